"""Where the files that ship beside the modules are: recipes, patches and scripts for clusters."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped_folder(name: str) -> Path:
    """Returns the folder `name` (recipes, patches, slurm) of the installed package or, in a checkout, beside it."""
    return next(path for path in (PACKAGE / name, PACKAGE.parent / name) if path.is_dir())
