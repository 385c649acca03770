"""The only code that touches OpenCLIP's training code."""
