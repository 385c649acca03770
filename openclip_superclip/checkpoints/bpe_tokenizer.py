"""OpenCLIP's own tokenizer with a vocabulary of one's own, as a Hugging Face tokenizer: files that a folder carries.

OpenCLIP finds a vocabulary by its path, which is another once the folder is moved or on the hub. A Hugging Face
tokenizer it opens from the folder itself.
"""

from open_clip.tokenizer import SimpleTokenizer

# As SimpleTokenizer splits a text that is cleaned: words, digits one by one, and whatever else stands together.
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
PADDING = "<padding_of_text>"


def as_hugging_face(tokenizer: SimpleTokenizer):
    """Returns transformers' tokenizer with the same ids, but for padding: OpenCLIP is told to put 0 there.

    That is `strip_sep_token`, which makes zeros of the token after a text: here, of the padding.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = (tokenizer.decoder[id] for id in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    merges = [merge for merge in tokenizer.bpe_ranks if len(merge) == 2]  # not the empty line at a file's end
    bpe = Tokenizer(models.BPE(tokenizer.encoder, merges, end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, tokenizer.sot_token_id), (end, tokenizer.eot_token_id)]
    )
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (start, end, PADDING)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=start, eos_token=end, pad_token=PADDING, sep_token=PADDING,
        model_max_length=tokenizer.context_length, clean_up_tokenization_spaces=False,
    )  # fmt: skip
