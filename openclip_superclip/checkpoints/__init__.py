"""Reads, checks, averages and exports checkpoints."""

# of OpenCLIP's model folders
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# class head and token statistics, saved next to an exported model
HEAD_NAME = "superclip_head.safetensors"
