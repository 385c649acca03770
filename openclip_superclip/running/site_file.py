"""What a site's jobs have in common: ~/.config/superclip/site.yaml, defaults of the commands that submit jobs."""

import os
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from ..errors import InputError

VARIABLE = "SUPERCLIP_SITE"  # another file; no file where it is empty
FIELDS = {
    "partition": str, "account": str, "qos": str, "time": str, "constraint": str, "gpus_per_node": int,
    "gpu_type": str, "cpus_per_node": int, "container_image": str, "apptainer": str, "mounts": str, "setup": str,
    "stage": str, "sbatch": list,
}  # fmt: skip


def site_file() -> Path | None:
    """Returns the site's file, None where there is none; InputError where the variable names one that is not there."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        if named and not Path(named).is_file():
            raise InputError(f"{VARIABLE} is {named}; expected a file, or nothing")
        return Path(named) if named else None
    path = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "superclip" / "site.yaml"
    return path if path.is_file() else None


def read_site() -> dict:
    """Returns the fields of the site's file, nothing where there is none; InputError for what it cannot hold."""
    path = site_file()
    if path is None:
        return {}
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text()) or {}
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a YAML mapping of {', '.join(FIELDS)}")
    for name, value in values.items():
        if name not in FIELDS:
            raise InputError(f"{path}: there is no field '{name}'; a site's fields are {', '.join(FIELDS)}")
        if type(value) is not FIELDS[name]:
            kind = {str: "text, in quotes", int: "a whole number", list: "a list: [mem=400G]"}[FIELDS[name]]
            raise InputError(f"{path}: {name} is {value!r}; expected {kind}")
    if "container_image" in values and "apptainer" in values:
        raise InputError(f"{path}: container_image and apptainer are both there; expected one of them")
    return values
