"""superclip patch: applies or reverts a patch that makes OpenCLIP's training command accept the
plugins' flags."""

from pathlib import Path

from ..errors import InputError, Parser, one_line, to_stderr, to_stdout
from ..trainer import disk_patch
from ..trainer.disk_patch import Installation, find_installation

EXIT_CODES = {disk_patch.PATCHED: 0, disk_patch.NOT_PATCHED: 1, disk_patch.MODIFIED: 4}
ERROR = 2  # argparse's own
ACTIONS = {  # their state, and their results if files were changed and if none was
    "apply": (disk_patch.PATCHED, "applied", "already applied"),
    "revert": (disk_patch.NOT_PATCHED, "reverted", "not patched, nothing to revert"),
}


def main(argv: list[str]) -> int:
    parser = Parser(
        "patch",
        "Patches OpenCLIP so that python -m open_clip_train.main finds the installed plugins and "
        "accepts their flags. There are patches for open_clip_torch "
        f"{', '.join(disk_patch.patches())}. Exit code {ERROR} is an error, explained in one line "
        "that says whether files changed.",
        "apply",
    )
    codes = ", ".join(f"{code} ({state})" for state, code in EXIT_CODES.items())
    parser.option(
        "action",
        f"apply the patch, atomic and idempotent; check: exit with {codes}; revert to the exact "
        "bytes of the release",
        choices=("apply", "check", "revert"),
    )
    parser.option(
        "--source",
        "a checkout or an unpacked wheel (default: the installed OpenCLIP)",
        type=Path,
        metavar="DIR",
    )
    options = parser.parse_args(argv)
    try:
        openclip = find_installation(options.source)
        if options.action == "check":
            return _check(openclip)
        state, changed, unchanged = ACTIONS[options.action]
        done = disk_patch.change(openclip, state)
    except InputError as error:
        to_stderr(f"error: {one_line(error)}")
        return ERROR
    except OSError as error:  # in reading, or in writing copies
        to_stderr(f"error: {one_line(error)}; nothing was changed")
        return ERROR
    to_stdout(f"{openclip}: {changed if done else unchanged}")
    for path, what in done.items():
        to_stdout(f"  {what} {path}")
    return 0


def _check(openclip: Installation) -> int:
    files = openclip.states()
    states = {*files.values()}
    state = disk_patch.MODIFIED
    if states in ({disk_patch.PATCHED}, {disk_patch.NOT_PATCHED}):
        (state,) = states
    to_stdout(f"{state}: {openclip}")
    if state == disk_patch.MODIFIED:
        for path, state_of_file in files.items():
            to_stdout(f"  {path}: {state_of_file}")
        if states == {disk_patch.PATCHED, disk_patch.NOT_PATCHED}:
            to_stdout("An apply or a revert was interrupted: run either of them again.")
    return EXIT_CODES[state]
