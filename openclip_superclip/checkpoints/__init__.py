"""Checkpoints: what is in them, of which kind they are, and the formats that they are exported to."""

WEIGHTS_NAMES = {"openclip": "open_clip_model.safetensors", "torch": "open_clip_pytorch_model.bin"}  # by --format
HEAD_NAME = "superclip_head.safetensors"  # class head and counts, beside an exported model
