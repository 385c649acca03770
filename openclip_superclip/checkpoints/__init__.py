"""Checkpoints: what is in them, how they are told apart, and the forms in which they leave."""

HEAD_NAME = "superclip_head.safetensors"  # class head and counts, beside an exported model
