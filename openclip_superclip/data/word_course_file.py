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
_NAME = re.compile(r"epoch_([1-9]\d*)\.safetensors")
_HELP = "copy it again, or move it away: the course is told without it"


class CourseFiles(NamedTuple):
    """What a run has recorded of its words."""

    run: Path
    identity: TokenizerIdentity
    texts: list[str]  # of the tokens, for people
    epochs: list[int]

    def read(self, epoch: int) -> EpochWords:
        """Returns what was recorded of an epoch; InputError where its file is damaged, or of another tokenizer."""
        path = self.run / FOLDER / f"epoch_{epoch}.safetensors"
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                words = EpochWords(
                    *map(file.get_tensor, ("captions", "share_where_label", "share_where_not")),
                    int(file.get_tensor("num_captions")),
                )
                vocabulary = about["vocabulary"]
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{path} is no file of words ({' '.join(str(error).split())}): {_HELP}") from error
        if vocabulary != self.identity.vocabulary:
            raise InputError(f"{path} is of another tokenizer than the folder's {TOKENS}: {_HELP}")
        for name, values in words._asdict().items():
            if name != "num_captions" and values.shape != (len(self.texts),):
                raise InputError(
                    f"{path} holds {name} of shape {list(values.shape)}, where {TOKENS} names {len(self.texts):,} "
                    "tokens: copy the damaged file of the two again"
                )
        fewest, most = words.captions.aminmax()
        if words.captions.is_floating_point() or fewest < 0 or not 0 < words.num_captions >= most:
            raise InputError(f"{path} holds impossible counts of captions: {_HELP}")
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
    if not _tells(tokens, identity, len(words.captions)):
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
    return CourseFiles(run, *_read_tokens(folder / TOKENS), epochs)


def _read_tokens(path: Path) -> tuple[TokenizerIdentity, list[str]]:
    """Returns the tokenizer and the texts of its tokens; InputError where the file is not there or broken."""
    try:
        tokens = json.loads(path.read_text())
        identity, texts = TokenizerIdentity(tokens["name"], tokens["vocabulary"]), tokens["tokens"]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError("tokens is no list of texts")
        return identity, texts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not say what the tokens are ({error}): copy it again, or that of another run of the same "
            "tokenizer"
        ) from error


def _tells(path: Path, identity: TokenizerIdentity, num_tokens: int) -> bool:
    """Returns whether a file of tokens is whole and of this tokenizer."""
    try:
        written, texts = _read_tokens(path)
    except InputError:
        return False
    return written.vocabulary == identity.vocabulary and len(texts) == num_tokens
