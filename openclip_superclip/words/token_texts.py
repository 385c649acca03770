"""The texts of a tokenizer's tokens, for readers: "cat", and "ing" of "sleep-ing" as "-ing"."""

from open_clip.tokenizer import SimpleTokenizer

from ..data.captions import vocabulary

END_OF_WORD = "</w>"  # of CLIP's tokens


def token_texts(tokenizer, vocab_size: int) -> list[str]:
    """Returns the text of each token id below `vocab_size`; a hyphen marks parts of words."""
    mark = _word_mark(tokenizer)
    texts = {id: _text(token, mark, tokenizer) for token, id in vocabulary(tokenizer).items()}
    return [texts.get(id, f"<{id}>") for id in range(vocab_size)]


def _word_mark(tokenizer) -> str:
    """Returns how tokens show where words begin or end.

    CLIP's tokens mark the ends of words, SentencePiece and byte-level BPE the starts, and WordPiece
    the other parts.
    """
    if isinstance(tokenizer, SimpleTokenizer):
        return END_OF_WORD
    tokens = tokenizer.tokenizer.tokenize("a a")
    if all(token.endswith(END_OF_WORD) for token in tokens):
        return END_OF_WORD
    return next((token[0] for token in tokens if token[0] in "▁Ġ"), "##")


def _text(token: str, mark: str, tokenizer) -> str:
    """Returns the text of a token, given how words are marked."""
    if mark == END_OF_WORD:
        is_whole = token.endswith(mark) or token.startswith("<")
        return f"{_decoded(token, tokenizer).removesuffix(mark).strip()}{'' if is_whole else '-'}"
    is_part = token.startswith(mark) if mark == "##" else not token.startswith((mark, "<"))
    text = _decoded(token, tokenizer).strip() if mark == "Ġ" else token.removeprefix(mark)
    return f"{'-' if is_part else ''}{text or token}"


def _decoded(token: str, tokenizer) -> str:
    if isinstance(tokenizer, SimpleTokenizer):
        return tokenizer.decode([tokenizer.encoder[token]])
    return tokenizer.tokenizer.convert_tokens_to_string([token.removesuffix(END_OF_WORD)])
