"""Whether torch can use a device."""

from .errors import InputError


def check_device(name: str) -> None:
    """Makes the device of --device the current one; InputError where torch cannot use it here."""
    import torch

    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device is {name}, which torch cannot use here: {reason}") from error
    if torch.device(name).type == "cuda":
        torch.cuda.set_device(name)
