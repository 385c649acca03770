"""superclip train: OpenCLIP's training command, with the plugins' options."""

from ..integration.training import train as main  # noqa: F401
