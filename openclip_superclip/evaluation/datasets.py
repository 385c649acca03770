"""What to evaluate on: the suites' data sets, looked for in the user's folder."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from clip_benchmark.datasets import builder, imagenetv2
from huggingface_hub import constants

from ..errors import InputError
from ..optional_dependencies import check_datasets
from .averages import DATACOMP_CLASSIFICATION, RETRIEVAL, THE_38
from .dense_data import DENSE, DenseSet, dense_kind
from .replaced_names import replaced
from .score_checks import check_shards
from .shard_samples import ShardSamples

SUITES = {
    "zeroshot": ("zeroshot_classification", THE_38),
    "datacomp": ("zeroshot_classification", DATACOMP_CLASSIFICATION),
    "retrieval": ("zeroshot_retrieval", RETRIEVAL),
    "probe": ("linear_probe", ["imagenet1k"]),
    "fewshot": ("few_shot", ["imagenet1k"]),
    "knn": ("knn", ["imagenet1k"]),
    "compositional": ("image_caption_selection", [*builder.dataset_collection["sugar_crepe"], "winoground"]),
    "dense": ("dense", ["pascal_voc", "ade20k", "nyuv2"]),  # the data say which task
}
FITTED = ("linear_probe", "few_shot", "knn")  # to the split train
NO_LABELS = "it has none of VOCdevkit/VOC2012, annotations/training and train/depths"
KINDS = {  # of data, by task
    "zeroshot_retrieval": ("retrieval",), "image_caption_selection": ("compositional",), "dense": DENSE,
}  # fmt: skip


class Data(NamedTuple):
    """A data set in the user's folder: shards in CLIP_benchmark's layout, or the root of one that it has built in."""

    name: str
    folder: Path
    shards: bool
    kind: str  # classification, multilabel, retrieval, compositional, segmentation or depth

    def build(self, transform: Callable, split: str, task: str):
        """Returns CLIP_benchmark's data set. Nothing is ever downloaded: a root that lacks files is an error."""
        if self.kind in DENSE:
            return DenseSet(self.folder, split, transform)
        if self.name == "winoground" and not self.shards:
            check_datasets("Winoground", "winoground")
        num_shards = check_shards(self.folder / split) if self.shards else 0
        name = f"wds/{self.name}" if self.shards else self.name
        with _no_downloads():
            dataset = builder.build_dataset(
                name, root=str(self.folder), transform=transform, split=split, download=False, task=task
            )
        return ShardSamples(dataset, self.folder / split, num_shards) if self.shards else dataset

    def files_id(self, splits: tuple[str, ...], pictures_alone: bool = False) -> str:
        """Returns a digest of the names, sizes and times of its files: equal while the data set is the same.

        Of shards only the splits count, and what lies beside them unless the pictures alone matter; of a data set that
        CLIP_benchmark has built in, everything below its root.
        """
        alone = pictures_alone and self.shards
        top = [] if alone else [entry.path for entry in os.scandir(self.folder) if entry.is_file()]
        folders = [self.folder / split for split in splits] if self.shards else [self.folder]
        files = {*top, *(file for folder in folders for file in _files_below(folder))}
        found = [(os.path.relpath(file, self.folder), os.stat(file)) for file in sorted(files) if os.path.exists(file)]
        facts = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in found]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class Selection(NamedTuple):
    """What the suites ask for: data sets with the task on each, and those that cannot be, with the reason."""

    chosen: list[tuple[Data, str]]
    absent: list[str]


def select_datasets(folder: Path, suites: list[str], names: list[str]) -> Selection:
    """Returns what `suites` evaluate in `folder`: their own data sets or, where there are any, those of `names`.

    Raises InputError for a named data set that is not there, and where nothing is left to evaluate.
    """
    for suite in suites:
        if suite not in SUITES:
            raise InputError(f"--suite: there is no suite '{suite}'; expected some of {','.join(SUITES)}")
    if not folder.is_dir():
        raise InputError(f"--data: there is no folder {folder}")
    chosen, absent, unfit = [], [], {}
    for suite in dict.fromkeys(suites):
        task, listed = SUITES[suite]
        for name in names or listed:
            data = find_data(folder, name)
            if data is None and names:
                raise InputError(f"--datasets: {folder} holds no {name}; it holds {_held(folder)}")
            if data is None:
                absent.append(f"{name} ({suite}: not there)")
            elif data.kind not in KINDS.get(task, ("classification", "multilabel")):
                unfit[name] = f"{name} ({suite}: {NO_LABELS if task == 'dense' else f'it is for {data.kind}'})"
            elif task in FITTED and data.kind == "multilabel":
                absent.append(f"{name} ({suite}: it has several labels a picture)")
            elif task in FITTED and data.shards and not (data.folder / "train").is_dir():
                absent.append(f"{name} ({suite}: it has no train/ to fit to)")
            elif (data, of_data := data.kind if task == "dense" else task) not in chosen:
                chosen.append((data, of_data))
    evaluated = {data.name for data, _ in chosen}
    absent += [reason for name, reason in unfit.items() if name.removeprefix("wds/") not in evaluated]
    if not chosen and unfit:
        raise InputError(f"--suite {','.join(suites)} measures nothing of {folder}: {', '.join(unfit.values())}")
    if not chosen:
        raise InputError(
            f"--data: {folder} holds nothing for --suite {','.join(suites)}; expected folders such as "
            f"imagenet1k/ with test/nshards.txt and test/0.tar, or --datasets NAME; it holds {_held(folder)}"
        )
    return Selection(chosen, absent)


def find_data(folder: Path, name: str) -> Data | None:
    """Returns the data set of that name, as CLIP_benchmark or its copies of the data sets call it, or None."""
    name = name.removeprefix("wds/")
    if name.startswith("sugar_crepe/") and (folder / f"{name}.json").is_file():  # the seven share their pictures
        return Data(name, folder / "sugar_crepe", False, "compositional")
    dashed = name.replace("/", "-")
    for place in (name, f"wds/{name}", dashed, f"wds_{dashed}", f"wds_{dashed}_test"):
        if (folder / place).is_dir():
            return _data(name, folder / place)
    return None


def other_data(folder: Path, selection: Selection) -> list[str]:
    """Returns the names of data sets in `folder` that the selection leaves out."""
    planned = {data.folder for data, _ in selection.chosen}
    return [str(place.relative_to(folder)) for place in _with_shards(folder) if place not in planned]


def _files_below(folder: Path) -> Iterator[str]:
    """Yields all files below a folder; links lead on, but into no folder twice."""
    entered = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        yield from (os.path.join(place, file) for file in files)


def _data(name: str, folder: Path) -> Data:
    if kind := dense_kind(folder):
        return Data(name, folder, False, kind)
    compositional = builder.get_dataset_default_task(name) == "image_caption_selection"
    if any((folder / "test").glob("*.tar")) or (folder / "test" / "nshards.txt").is_file():
        type_file = folder / "dataset_type.txt"
        kind = type_file.read_text().strip().lower() if type_file.is_file() else "classification"
        return Data(name, folder, True, "compositional" if compositional else kind)
    if compositional:
        return Data(name, folder, False, "compositional")
    if builder.get_dataset_default_task(name) == "zeroshot_retrieval":
        return Data(name, folder, False, "retrieval")
    return Data(name, folder, False, "multilabel" if name.endswith("multilabel") else "classification")


def _with_shards(folder: Path) -> list[Path]:
    depths = ("*", "*/*", "*/*/*")  # wds/vtab/cifar10 is the deepest
    return sorted(path.parent.parent for depth in depths for path in folder.glob(f"{depth}/test/nshards.txt"))


def _held(folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in _with_shards(folder)]
    return ", ".join(names) or ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"


@contextmanager
def _no_downloads() -> Iterator[None]:
    """CLIP_benchmark calls wget where files are missing, whatever `download` says; here it raises instead."""

    def refuse(source, **_):
        raise FileNotFoundError(f"files are missing, and CLIP_benchmark would have to get them ({source})")

    with (
        replaced(builder, call=refuse),
        replaced(imagenetv2, requests=SimpleNamespace(get=refuse)),
        replaced(constants, HF_HUB_OFFLINE=True),  # of huggingface_hub: Winoground comes out of its cache
    ):
        yield
