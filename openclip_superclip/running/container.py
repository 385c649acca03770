"""The container that a job's commands run in, and what it must see of this machine's folders."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True)
class Container:
    """An image of pyxis (and enroot), or of Apptainer."""

    image: str
    is_apptainer: bool
    mounts: str = ""  # /data,/scratch:/scratch

    def command(self, paths: Iterable[Path], gpus: bool) -> str:
        """Returns what srun needs before a command: this folder is the container's, and it sees `paths`.

        Folders of paths that neither this one nor the mounts hold are mounted too. Raises InputError for what the
        options of containers cannot hold.
        """
        here = Path.cwd()
        for told in (self.image, self.mounts, str(here)):
            if re.search(r"\s", told):
                raise InputError(f"'{told}' has a space in it: a container's options take none; link it elsewhere")
        seen = [here, *(Path(mount.split(":")[min(1, mount.count(":"))]) for mount in self.mounts.split(",") if mount)]
        more: list[Path] = []
        for path in map(Path.absolute, paths):
            if not any(path.is_relative_to(folder) for folder in [*seen, *more]):
                if re.search(r"[\s,:]", str(path)):
                    raise InputError(f"'{path}' cannot be mounted: expected a path without spaces, commas and colons")
                more.append(path)
        own, given = [str(here), *map(str, more)], [self.mounts] if self.mounts else []
        if self.is_apptainer:
            gpu = " --nv" if gpus else ""
            return f"apptainer exec{gpu} --pwd {here} --bind {','.join([*own, *given])} {self.image}"
        mounts = ",".join([*(f"{path}:{path}" for path in own), *given])
        return f"--container-image={self.image} --container-mounts={mounts} --container-workdir={here}"


def folders_of(values: Iterable[str]) -> list[Path]:
    """Returns the folders that paths and brace patterns of shards lie in; nothing of URLs and pipes."""
    parts = (part for value in values for part in value.split("::"))
    local = (part for part in parts if part.startswith(("/", "./", "../", "~")) or not re.match(r"\w+:", part))
    return [Path(re.split(r"[{*?\[]", part)[0] + "x").parent for part in local if part]
