"""How the data loader's worker processes start."""

import multiprocessing

from ..errors import InputError


def fork_workers(workers: int) -> None:
    """Makes the workers of a WebDataset start by fork, whatever Python's default: OpenCLIP's cannot be sent to others.

    Raises InputError where the process has chosen another way, or the machine has no fork.
    """
    if workers < 1:
        return
    method = multiprocessing.get_start_method(allow_none=True)
    if method is None and "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork")
    elif method != "fork":
        raise InputError(
            f"--workers is {workers}, and processes of this Python start by {method or 'spawn'}, to which OpenCLIP's "
            "WebDataset cannot be sent: give --workers 0, or call multiprocessing.set_start_method('fork')"
        )
