"""Checkpoints: what is in them, how they are told apart, and the forms in which they leave."""

WEIGHTS_NAMES = {"openclip": "open_clip_model.safetensors", "torch": "open_clip_pytorch_model.bin"}  # by --format
HEAD_NAME = "superclip_head.safetensors"  # class head and counts, beside an exported model
