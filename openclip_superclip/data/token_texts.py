"""The texts of a tokenizer's tokens, for people to read."""

from open_clip.tokenizer import SimpleTokenizer

END_OF_WORD = "</w>"


def token_texts(tokenizer, vocab_size: int) -> list[str]:
    """Returns a text for each token id below `vocab_size` of an OpenCLIP tokenizer; a part of a word has a hyphen."""
    if isinstance(tokenizer, SimpleTokenizer):
        known = {id: _of_clip(tokenizer, text, id) for text, id in tokenizer.encoder.items()}
    else:
        inner = tokenizer.tokenizer
        known = dict(enumerate(map(_of_others, inner.convert_ids_to_tokens(list(range(min(vocab_size, len(inner))))))))
    return [known.get(id, f"<{id}>") for id in range(vocab_size)]


def _of_clip(tokenizer: SimpleTokenizer, text: str, id: int) -> str:
    word = tokenizer.decode([id]).strip()
    return word if text.endswith(END_OF_WORD) or text.startswith("<") else f"{word}-"


def _of_others(token: str | None) -> str:
    token = token or ""
    if token[:1] in "▁Ġ":  # where SentencePiece and byte-level BPE begin a word
        return token[1:] or token
    return f"-{token[2:]}" if token.startswith("##") else token  # WordPiece's parts
