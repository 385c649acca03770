"""Whether --out can be written without the loss of something else, told before anything is read."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError

# What export and import write, and what tokenizers save of themselves: of such files --overwrite may replace a folder.
MODEL_FILES = {
    "README.md",
    "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin", "superclip_head.safetensors",
    "config.json", "model.safetensors", "pytorch_model.bin", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
}  # fmt: skip


def check_folder_out(out: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Raises InputError where no folder can be written to `out`, or where --overwrite would lose more than a model.

    Args:
        inputs: files and folders that are read.
    """
    place = _checked_place(out, overwrite)
    if not place.exists():
        return
    if not place.is_dir():
        raise InputError(f"--out: {out} is a file; expected the name of a folder")
    working_folder = Path.cwd()
    if place in (working_folder, *working_folder.parents):
        raise InputError(f"--out: {out} is the folder you work in, or above it; give another name")
    for path in inputs:
        real = Path(os.path.realpath(path))
        if place in (real, *real.parents):
            raise InputError(f"--out: {out} holds {path}, which is read and would be lost; give another name")
    foreign = sorted(entry.name for entry in place.iterdir() if entry.is_dir() or not _is_of_a_model(entry.name))
    if foreign:
        raise InputError(f"--out: {out} holds {foreign[0]}, which --overwrite would lose; give another name")


def check_file_out(out: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Raises InputError where no file can be written to `out`, or where it would replace one that is read."""
    place = _checked_place(out, overwrite)
    if place.is_dir():
        raise InputError(f"--out: {out} is a folder; expected the name of a .pt or .safetensors file")
    for path in inputs:
        if place == Path(os.path.realpath(path)):
            raise InputError(f"--out: {out} is read too, and would be lost; give another name")


def _checked_place(out: Path, overwrite: bool) -> Path:
    if os.path.exists(out) and not overwrite:
        raise InputError(f"--out: {out} exists; give another name, or --overwrite")
    return Path(os.path.realpath(out))


def _is_of_a_model(name: str) -> bool:
    return name in MODEL_FILES or name.endswith(".txt.gz")  # a vocabulary of one's own
