"""The files in which a run with --superclip-word-course records the words of each epoch."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from ..data.captions import token_texts, tokenizer_identity
from ..errors import InputError, as_input_error
from ..files import json_or_empty, write_bytes, write_json
from ..method.idf import EpochWords

FOLDER = "words"
TOKENS = "tokens.json"
ADVICE = "copy it again, or move it away to show the other epochs"


@dataclass(frozen=True)
class CourseFiles:
    """The word files of a run."""

    run: Path
    vocabulary: str  # a hash of the tokenizer's vocabulary
    texts: list[str]  # the text of each token
    epochs: list[int]

    def read(self, epoch: int) -> EpochWords:
        """Returns the record of an epoch.

        Raises InputError if its file is damaged or of another tokenizer."""
        path = self.run / FOLDER / f"epoch_{epoch}.safetensors"
        with as_input_error(f"{path} is not a file of words", f": {ADVICE}"):
            with safe_open(path, "pt") as file:
                vocabulary = file.metadata()["vocabulary"]
            values = load_file(path)
            counts = {name: int(values[name]) for name in ("num_captions", "num_trained")}
            words = EpochWords(**values | counts)
        shapes = {tensor.shape for tensor in words[:3]}
        if vocabulary != self.vocabulary or shapes != {(len(self.texts),)}:
            raise InputError(
                f"{path} belongs to another tokenizer than the folder's {TOKENS}: {ADVICE}"
            )
        return words


def write_epoch_words(run: Path, epoch: int, words: EpochWords, tokenizer) -> None:
    """Writes the file of an epoch, counted from 1, and tokens.json if it is missing or of
    another tokenizer."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    identity = tokenizer_identity(tokenizer)
    if json_or_empty(folder / TOKENS).get("vocabulary") != identity.vocabulary:
        tokens = token_texts(tokenizer, len(words.captions))
        write_json(folder / TOKENS, {**identity._asdict(), "tokens": tokens})
    tensors = {name: torch.as_tensor(values) for name, values in words._asdict().items()}
    # A single metadata entry, because safetensors writes several in random order.
    write_bytes(
        folder / f"epoch_{epoch}.safetensors", save(tensors, {"vocabulary": identity.vocabulary})
    )


def find_course(run: Path) -> CourseFiles:
    """Returns the word files in a run's folder.

    Raises InputError if there are none, and for a bad tokens.json."""
    matches = (
        re.fullmatch(r"epoch_([1-9]\d*)\.safetensors", path.name)
        for path in (run / FOLDER).glob("epoch_*")
    )
    epochs = sorted(int(match[1]) for match in matches if match)
    if not epochs:
        raise InputError(
            f"--course: {run} holds no words/epoch_N.safetensors: expected the folder of a run "
            "with --superclip and --superclip-word-course on"
        )
    path = run / FOLDER / TOKENS
    with as_input_error(
        f"{path} does not name the tokenizer and its tokens",
        ": copy it again, or from another run with the same tokenizer",
    ):
        tokens = json.loads(path.read_bytes())
        return CourseFiles(run, tokens["vocabulary"], list(map(str, tokens["tokens"])), epochs)
