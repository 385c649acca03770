"""The demo's held-out scenes as data sets for `superclip evaluate`, in CLIP_benchmark's WebDataset layout."""

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm
from webdataset import TarWriter

from ..atomic_files import whole_file, write_text
from ..errors import InputError
from .measures import different_scenes
from .scenes import NAMES, VERSION, Scene, sample, scenes


def write_evaluation_data(
    folder: Path, num_scenes: int = 1000, num_probe_scenes: int = 2000, seed: int = 0
) -> dict[str, Path]:
    """Writes two data sets and returns their folders by name. What is there already is left as it is.

    demo_objects: scenes of one object with its name's number, `test` and, for the linear probe, `train`.
    demo_scenes: scenes of two objects or more, no two alike, with their long captions, for retrieval.

    The test scenes are those that the demo measures on. The same arguments give the same bytes. Raises InputError for a
    folder that holds others.
    """
    objects, groups = folder / "demo_objects", folder / "demo_scenes"
    record = folder / "scenes.txt"  # written last, so it vouches for all
    facts = f"version {VERSION}, seed {seed}: {num_scenes} test scenes, {num_probe_scenes} train scenes\n"
    if record.is_file() and record.read_text() == facts:
        return {"demo_objects": objects, "demo_scenes": groups}
    if folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - {objects, groups}):
        raise InputError(f"{folder} holds something else; give another folder for the scenes")
    for path, text in {
        objects / "classnames.txt": "\n".join(NAMES),
        objects / "zeroshot_classification_templates.txt": "{c}",  # captions are plain names
        groups / "dataset_type.txt": "retrieval",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"{text}\n")
    _write_split(objects / "test", scenes(num_scenes, seed, "test", num_objects=(1,)), with_captions=False)
    _write_split(objects / "train", scenes(num_probe_scenes, seed, "train", num_objects=(1,)), with_captions=False)
    _write_split(groups / "test", different_scenes(num_scenes, seed, "test"), with_captions=True)
    write_text(record, facts)
    return {"demo_objects": objects, "demo_scenes": groups}


def _write_split(folder: Path, shown: Iterable[Scene], with_captions: bool) -> None:
    """Writes one shard of pictures, with captions or with the number of the one object's name."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "0.tar") as file, TarWriter(file, mtime=0) as tar:
        for index, scene in enumerate(tqdm(shown, desc=str(folder), unit=" scenes")):
            label = {"txt": scene.captions["long"]} if with_captions else {"cls": NAMES.index(scene.objects[0])}
            tar.write({"__key__": f"{index:06d}", "png": sample(scene, "long")["png"], **label})
    write_text(folder / "nshards.txt", "1\n")
