"""superclip train: OpenCLIP's training command, with the plugins' options."""
