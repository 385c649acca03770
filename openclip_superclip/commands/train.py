"""superclip train: OpenCLIP's training command, with the plugins' options."""

from ..openclip.train import train as main  # noqa: F401
