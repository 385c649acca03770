"""The data sets of the suites, found in the user's folder."""

import difflib
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from clip_benchmark.datasets import builder, imagenetv2
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_convert
from webdataset import autodecode
from webdataset.filters import default_collation_fn

from ..data.images import before_decoding, restrict_formats
from ..environment import replaced
from ..errors import InputError
from .suites import SUITES

KINDS = {  # of data sets, by task
    "zeroshot_classification": ("classification", "multilabel"),
    "zeroshot_retrieval": ("retrieval",),
    "linear_probe": ("classification",),
}


class LocalDataset(NamedTuple):
    """A data set in the user's folder: shards in CLIP_benchmark's layout, or a root of its
    built-in data sets."""

    name: str
    folder: Path
    in_shards: bool
    kind: str  # classification, multilabel or retrieval

    def build(self, transform: Callable, split: str, task: str) -> Dataset:
        """Returns CLIP_benchmark's data set. Missing files are an error; nothing is downloaded."""
        restrict_formats()  # for the data sets that open images themselves
        if self.in_shards:
            _check_shards(self.folder / split)
        handlers = [*autodecode.default_pre_handlers, before_decoding]
        with (
            replaced(builder, call=_refuse),  # wget, even with `download=False`
            replaced(imagenetv2, requests=SimpleNamespace(get=_refuse)),
            replaced(autodecode, default_pre_handlers=handlers),
            redirect_stdout(sys.stderr),  # CLIP_benchmark prints
        ):
            return builder.build_dataset(
                f"wds/{self.name}" if self.in_shards else self.name,
                root=str(self.folder),
                transform=transform,
                split=split,
                download=False,
                task=task,
            )

    def collate(self, samples: list[tuple]) -> list:
        """Returns a batch as CLIP_benchmark makes it."""
        if self.in_shards:
            return default_convert(default_collation_fn(samples))
        return builder.get_dataset_collate_fn(self.name)(samples)


def _check_suite(suite: str) -> None:
    if suite not in SUITES:
        near = difflib.get_close_matches(suite, SUITES, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"--suite: there is no suite '{suite}'; expected some of {','.join(SUITES)}{meant}"
        )


def select_datasets(
    folder: Path, suites: list[str], names: list[str]
) -> tuple[list[tuple[LocalDataset, str]], list[str]]:
    """Returns the data sets that `suites` evaluate in `folder`, each with its task, and missing
    ones, with the reason.

    `names` replace the suites' own data sets. Raises InputError if one is missing, or if there is
    nothing to evaluate.
    """
    suites = list(dict.fromkeys(suites))
    for suite in suites:
        _check_suite(suite)
    if not folder.is_dir():
        raise InputError(f"--data: there is no folder {folder}")
    content = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    kinds = {kind for suite in suites for kind in KINDS[SUITES[suite][0]]}
    chosen = []
    absent = []
    unfit = []
    for suite in suites:
        task, own_names = SUITES[suite]
        for name in dict.fromkeys(name.removeprefix("wds/") for name in names or own_names):
            dataset = find_dataset(folder, name)
            if dataset is None and names:
                raise InputError(f"--datasets: {folder} contains no {name}; it contains {content}")
            problem = _problem(dataset, task)
            if not problem:
                chosen.append((dataset, task))
                continue
            if names and dataset.kind not in KINDS[task] and dataset.kind in kinds:
                continue  # another suite evaluates it
            absent.append(f"{name} ({suite}: {problem})")
            if dataset is not None:
                unfit.append(absent[-1])
    if not chosen:
        expected = (
            "expected folders such as imagenet1k/ with test/nshards.txt and test/0.tar, or "
            f"--datasets NAME; it contains {content}"
        )
        raise InputError(
            f"--data: {folder} contains nothing for --suite {','.join(suites)}; "
            f"{', '.join(unfit) or expected}"
        )
    return chosen, absent


def _problem(dataset: LocalDataset | None, task: str) -> str:
    """Returns why a data set cannot be evaluated in a task, or ""."""
    if dataset is None:
        return "not found"
    if dataset.kind not in KINDS[task]:
        source = "; see its dataset_type.txt" if dataset.in_shards else ""
        return f"it is of kind {dataset.kind}{source}"
    if task == "linear_probe" and dataset.in_shards and not (dataset.folder / "train").is_dir():
        return "it has no train/"
    return ""


def find_dataset(folder: Path, name: str) -> LocalDataset | None:
    """Returns the data set with CLIP_benchmark's name, or with the name of its published copy,
    or None."""
    dashed = name.replace("/", "-")
    for subfolder in (name, f"wds/{name}", dashed, f"wds_{dashed}", f"wds_{dashed}_test"):
        if (folder / subfolder).is_dir():
            return _open(name, folder / subfolder)
    return None


def _open(name: str, folder: Path) -> LocalDataset:
    test = folder / "test"
    in_shards = any(test.glob("*.tar")) or (test / "nshards.txt").is_file()
    type_file = folder / "dataset_type.txt"
    kind = "classification"
    if in_shards:
        kind = type_file.read_text().strip().lower() if type_file.is_file() else kind
    elif builder.get_dataset_default_task(name) == "zeroshot_retrieval":
        kind = "retrieval"
    elif name.endswith("multilabel"):
        kind = "multilabel"
    return LocalDataset(name, folder, in_shards, kind)


def _check_shards(split: Path) -> None:
    """Raises InputError if nshards.txt is not a number, or is smaller than the number of
    shards."""
    text = (split / "nshards.txt").read_text().strip()
    if not text.isdecimal():
        raise InputError(f"{split}/nshards.txt is '{text[:20]}'; expected the number of shards")
    shards = [split / f"{number}.tar" for number in range(int(text))]
    left_out = sorted(set(split.glob("*.tar")).difference(shards))
    if left_out:
        raise InputError(
            f"{split}/nshards.txt says {text}, which leaves out {left_out[0].name}; expected all "
            "shards"
        )


def _refuse(source, **_):
    raise FileNotFoundError(
        f"files are missing, and CLIP_benchmark would have to get them ({source})"
    )
