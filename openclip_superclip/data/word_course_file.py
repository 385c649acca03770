"""words/epoch_N.safetensors: how well each token was known in an epoch of a run, beside the run's checkpoints."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..atomic_files import whole_file, write_json
from ..errors import InputError
from ..method.word_sums import EpochWords
from .token_texts import token_texts
from .tokenizer_identity import TokenizerIdentity, tokenizer_identity

FOLDER, TOKENS = "words", "tokens.json"
_NAME = re.compile(r"epoch_(\d+)\.safetensors")


class CourseFiles(NamedTuple):
    """What a run has recorded of its words."""

    run: Path
    identity: TokenizerIdentity
    texts: list[str]  # of the tokens, for people
    epochs: list[int]

    def read(self, epoch: int) -> EpochWords:
        """Returns what was recorded of an epoch; InputError where its file is none, or of another tokenizer."""
        path = self.run / FOLDER / f"epoch_{epoch}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                words = EpochWords(
                    *map(file.get_tensor, ("captions", "share_where_label", "share_where_not")),
                    int(file.get_tensor("num_captions")),
                )
                vocabulary = about["vocabulary"]
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{path} is no file of words ({' '.join(str(error).split())}): remove it") from error
        if vocabulary != self.identity.vocabulary:
            raise InputError(f"{path} is of another tokenizer than the folder's {TOKENS}: remove it")
        return words


def write_epoch_words(run: Path, epoch: int, words: EpochWords, tokenizer) -> None:
    """Writes the file of an epoch, counted from 1, and once what the tokens are.

    Args:
        tokenizer: OpenCLIP's.
    """
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    identity = tokenizer_identity(tokenizer)
    tokens = folder / TOKENS
    if not tokens.is_file() or json.loads(tokens.read_text()).get("vocabulary") != identity.vocabulary:
        write_json(tokens, {**identity._asdict(), "tokens": token_texts(tokenizer, len(words.captions))})
    tensors = {
        "captions": words.captions,
        "share_where_label": words.share_where_label,
        "share_where_not": words.share_where_not,
        "num_captions": words.captions.new_tensor(words.num_captions),
    }
    about = {"epoch": str(epoch), "tokenizer": identity.name, "vocabulary": identity.vocabulary}
    with whole_file(folder / f"epoch_{epoch}.safetensors") as file:
        file.write(save(tensors, about))


def find_course(run: Path) -> CourseFiles | None:
    """Returns what the run in a folder has recorded of its words, None where it has nothing; InputError if broken."""
    folder = run / FOLDER
    found = (_NAME.fullmatch(path.name) for path in folder.glob("epoch_*.safetensors"))
    epochs = sorted(int(match[1]) for match in found if match)
    if not epochs:
        return None
    try:
        tokens = json.loads((folder / TOKENS).read_text())
        identity = TokenizerIdentity(tokens["name"], tokens["vocabulary"])
        return CourseFiles(run, identity, list(tokens["tokens"]), epochs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / TOKENS} does not say what the tokens are ({error}): copy it again") from error
