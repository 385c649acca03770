"""`superclip train`, and a check of its command line without data or models."""

import argparse
import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ..checkpoints.trainer_files import is_complete, quarantine
from ..environment import replaced
from ..errors import InputError, one_line, reason, to_stderr
from ..files import is_full, why_full
from ..flags import add_options, is_given
from . import current, hook_calls, output_folder
from .checks import check_has_data
from .horovod import join_ranks
from .parsed_options import launched

# torch's errors for the weights and the optimizer's state of a checkpoint
DIFFERS = re.compile(r"Error\(s\) in loading state_dict|loaded state dict ")


def register_plugin(plugin: object) -> None:
    """Registers a plugin in this process, in addition to the installed ones."""
    # an installed plugin cannot be loaded; training reports it
    with contextlib.suppress(RuntimeError):
        hook_calls.hooks_module().plugin_manager().register(plugin)


def train(argv: list[str]) -> int:
    """Trains like `python -m open_clip_train.main` and returns the exit code, 1 if OpenCLIP
    fails."""
    # torchrun needs it so as not to parse flags such as --logs, and passes it on
    if argv[:1] == ["--"]:
        argv = argv[1:]
    result = -1
    output_folder.started.clear()
    with _unchanged_process():
        try:
            result = _train(argv)
        except InputError as error:
            to_stderr(f"error: {one_line(error)}")
        finally:
            if result is not None:  # OpenCLIP returns -1 on errors
                output_folder.remove_unstarted_run()
            output_folder.release()
    return 0 if result is None else 1


@contextlib.contextmanager
def _unchanged_process() -> Iterator[None]:
    """Restores what a training changes in this process, perhaps a notebook: OpenCLIP's functions,
    the image formats that Pillow opens, the report of errors, and logging."""
    Image.init()
    formats = dict(Image.OPEN)
    order = Image.ID[:]
    levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    root = logging.root
    with (
        replaced(sys, excepthook=sys.excepthook),
        replaced(logging, raiseExceptions=logging.raiseExceptions),
        replaced(root, handlers=root.handlers[:], level=root.level),
        replaced(root.manager, disable=root.manager.disable),
    ):
        try:
            yield
        finally:
            hook_calls.uninstall()
            Image.OPEN.update(formats)
            Image.ID[:] = order
            # OpenCLIP makes all loggers verbose: torch.compile would print statistics at exit
            for name in list(root.manager.loggerDict):
                level = logging.WARNING if name.startswith("torch.") else logging.NOTSET
                logging.getLogger(name).setLevel(levels.get(name, level))


def _train(argv: list[str]):
    """Trains by OpenCLIP's main, and returns what it returns; an unpatched OpenCLIP calls the
    hooks then."""
    try:  # a plugin that cannot be loaded is reported first
        hook_calls.hooks_module().plugin_manager()
    except RuntimeError as error:  # a plugin cannot be loaded; the message names it
        raise InputError(str(error)) from error
    launch = _launch_options(argv)
    _check_device(launch)
    args = None if hook_calls.is_patched() else hook_calls.parse_args(argv)
    if args is not None:
        check_has_data(args)  # also without a flag of ours
    from open_clip_train.main import main

    if launch.horovod:
        join_ranks()
    if args is not None:
        hook_calls.install(args)
        if launched()[0] == 0:
            passed_on = (f"open_clip_train.data.{name}" for name in current().PASSED_ON)
            names = ", ".join([*hook_calls.REPLACED, *current().WRAPPERS, *passed_on])
            print(
                "superclip: this OpenCLIP is not patched; in this process the plugins replace "
                f"{names}",
                flush=True,
            )
    return main(argv)


def _launch_options(argv: list[str]) -> argparse.Namespace:
    """Returns --device, --horovod and our flags as OpenCLIP's parser understands them, shortened
    ones too: they are needed before OpenCLIP's modules are imported."""

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise InputError(message)

    parser = Parser(add_help=False)
    parser.add_argument("--device", nargs="?")  # OpenCLIP's parser reports a missing value
    parser.add_argument("--horovod", action="store_true")
    add_options(parser)
    try:
        return parser.parse_known_args(argv)[0]
    except InputError:  # OpenCLIP's parser reports it, with the flags that are similar
        return argparse.Namespace(device=None, horovod=False)


def _check_device(launch: argparse.Namespace) -> None:
    """Raises InputError for --device cuda beside a flag of ours if there is no GPU: OpenCLIP
    would use the CPU."""
    device = launch.device or ""
    if not device.startswith("cuda") or not is_given(vars(launch)):
        return
    from torch.cuda import is_available

    if not is_available():
        raise InputError(
            f"--device is {device}, and PyTorch finds no GPU here: expected --device cpu"
        )


@contextlib.contextmanager
def explained_errors() -> Iterator[None]:
    """Raises InputError, with a flag of ours, instead of the error of a full disk and of a resumed
    checkpoint that does not fit.

    An incomplete checkpoint is removed from a full disk.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if "using env:// rendezvous" in str(error):
            raise InputError(
                f"{reason(error)}: start ranks with torchrun, or unset WORLD_SIZE and, in a shell "
                "of salloc, SLURM_NTASKS to train in this process"
            ) from error
        if not output_folder.started:
            raise
        (args,) = output_folder.started
        if args.resume is not None and DIFFERS.match(str(error)):
            raise InputError(
                f"--resume: {args.resume} is of a run with another model or optimizer "
                f"({reason(error)[:200]}): give the flags of that run, or leave --resume out"
            ) from error
        if launched()[0] != 0 or not is_full(error):
            raise
        checkpoints = Path(args.logs, args.name or "", "checkpoints")
        removed = quarantine(checkpoints, is_complete, None)
        if (unfinished := checkpoints / "tmp.pt").exists() and not is_complete(unfinished):
            unfinished.unlink()
            removed.append(unfinished)
        advice = f"; {removed[0].name} was incomplete and is removed" if removed else ""
        raise InputError(
            f"--logs: {checkpoints.parent} cannot be written ({why_full(error)}){advice}"
        ) from error


def check_command(argv: list[str]) -> argparse.Namespace:
    """Returns the parsed arguments of `superclip train`, models and data unchecked; InputError
    if they are refused."""
    try:
        with explained_errors():
            return hook_calls.parse_args(argv, only_options=True)
    except SystemExit as error:
        raise InputError(f"flags: {str(error).removeprefix('error: ')}") from None
    except ValueError as error:  # including OpenCLIP's own
        raise InputError(f"flags: OpenCLIP refuses them: {reason(error)}") from None
