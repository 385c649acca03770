"""Checkpoints: what is in them, of which kind they are, and the formats that they are exported to."""

HEAD_NAME = "superclip_head.safetensors"  # class head and counts, beside an exported model
