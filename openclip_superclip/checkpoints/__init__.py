"""Reads, checks, averages, imports and exports checkpoints."""

WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # of OpenCLIP's model folders
HEAD_NAME = "superclip_head.safetensors"  # class head and token statistics, saved next to an exported model
