"""What tells a tokenizer from others: its contents, wherever its files lie."""

import hashlib
import json
from typing import NamedTuple

CLEANINGS = ("canonicalize", "lower", "whitespace")  # OpenCLIP's, of a text before it is cut into tokens


class TokenizerIdentity(NamedTuple):
    """A name to show, of class, source and cleaning, and a hash of the vocabulary: tokens and their ids."""

    name: str
    vocabulary: str


def tokenizer_identity(tokenizer) -> TokenizerIdentity:
    """Returns the identity of an OpenCLIP tokenizer."""
    source = getattr(getattr(tokenizer, "tokenizer", None), "name_or_path", "")
    clean = getattr(getattr(tokenizer, "clean_fn", None), "__name__", "").removeprefix("_clean_")
    name = " ".join(filter(None, [type(tokenizer).__name__, source, clean]))
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    vocabulary = inner.get_vocab() if hasattr(inner, "get_vocab") else inner.encoder
    listed = json.dumps(sorted(vocabulary.items(), key=lambda item: item[1]))
    return TokenizerIdentity(name, hashlib.sha256(listed.encode()).hexdigest()[:16])


def same_tokenizer(one: TokenizerIdentity, other: TokenizerIdentity) -> bool:
    """Returns whether class, cleaning and vocabulary are the same, wherever the files lie."""
    return _contents(one) == _contents(other)


def _contents(identity: TokenizerIdentity) -> tuple[str, str, str]:
    kind, *rest = identity.name.split()
    clean = rest[-1] if rest and rest[-1] in CLEANINGS else ""
    return kind, clean, identity.vocabulary
