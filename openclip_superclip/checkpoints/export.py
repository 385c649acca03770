"""Exports a checkpoint as plain CLIP to a folder with preprocessing, tokenizer and model card."""

import copy
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import open_clip
from open_clip.constants import HF_CONFIG_NAME
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from ..checkpoints import HEAD_NAME, WEIGHTS_NAMES
from ..data.captions import PADDING
from ..errors import InputError
from ..files import check_out, whole_output, write_record, write_text
from ..method.head import FIXED_IDF, NUM_CAPTIONS, head_input_of, is_of_authors
from .architecture import Architecture, architecture_of, expected_head, fit
from .authors import RELEASED_BATCH, from_authors
from .hugging_face import write_clip_model
from .model_card import model_card, usage_of
from .weights import (
    Checkpoint,
    Weights,
    check_match,
    check_values,
    fixed_idf,
    read_checkpoint,
    save_weights,
)

COMMAND = "superclip export"
# How SimpleTokenizer splits clean text: words, single digits, and runs of other characters.
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
IN_FOLDER = "in-this-folder"  # a name that no repository has
NEEDED_BY_HEAD = ("superclip_idf", "superclip_special_tokens")  # options


def as_hugging_face(tokenizer: SimpleTokenizer):
    """Returns a transformers tokenizer with the same ids, except that `save_tokenizer` sets that
    of padding to 0."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = (tokenizer.decoder[id] for id in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    # skips the empty last line of the file
    merges = [merge for merge in tokenizer.bpe_ranks if len(merge) == 2]
    bpe = Tokenizer(models.BPE(tokenizer.encoder, merges, end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.post_processor = processors.BertProcessing(
        (end, tokenizer.eot_token_id), (start, tokenizer.sot_token_id)
    )
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    bpe.add_special_tokens([start, end, PADDING])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=start,
        eos_token=end,
        pad_token=PADDING,
        sep_token=PADDING,
        model_max_length=tokenizer.context_length,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer, folder: Path) -> None:
    """Writes a transformers tokenizer. A tokenizer made by `as_hugging_face` pads with 0, like
    OpenCLIP's.

    0 is also the id of "!" inside words, so the file contains two names for it. A tokenizer loaded
    from such a file saves only one of them, even in the merges.
    """
    tokenizer.chat_template = None  # transformers writes each template to a file of its name
    tokenizer.save_pretrained(folder)
    if tokenizer.pad_token != PADDING:
        return
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    model = content["model"]
    model["vocab"] |= {"!": 0, PADDING: 0}
    model["merges"] = json.loads(json.dumps(model["merges"]).replace(PADDING, "!"))
    for token in content["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]
    write_text(file, json.dumps(content, ensure_ascii=False))


def write_model(
    folder: Path,
    out: Path,
    architecture: Architecture,
    model: nn.Module,
    weights: Weights,
    hub: str | None = None,
) -> None:
    """Writes configuration, weights and tokenizer for local-dir:; `model` is
    `architecture.build()`.

    `out` is the folder's later place, where OpenCLIP finds the configuration of a Hugging Face text
    tower. For hf-hub:, but not for local-dir:, it looks for the model's own tokenizer where the
    configuration says, which is the repository `hub`, if given.
    """
    model_cfg = copy.deepcopy(architecture.model_cfg)
    text_cfg = model_cfg["text_cfg"]
    _write_tokenizer(folder, architecture, text_cfg)
    if os.path.isdir(text_cfg.get("hf_model_name") or ""):
        model.text.config.save_pretrained(folder)
        text_cfg["hf_model_name"] = hub or str(out.resolve())
        text_cfg["hf_tokenizer_name"] = IN_FOLDER
    if name := text_cfg.get("hf_tokenizer_name"):
        is_local = os.path.exists(name)  # a path that only this machine has
        text_cfg["hf_tokenizer_name"] = hub or (IN_FOLDER if is_local else name)
    save_config_for_hf(model, folder / HF_CONFIG_NAME, model_cfg)
    save_weights(weights, folder / WEIGHTS_NAMES[0])


def _write_tokenizer(folder: Path, architecture: Architecture, text_cfg: dict) -> None:
    """Writes a tokenizer that is not OpenCLIP's own, and sets its name in the folder's
    `text_cfg`; InputError for one that cannot be exported."""
    kwargs = text_cfg.get("tokenizer_kwargs") or {}
    tokenizer = architecture.tokenizer()
    if text_cfg.get("hf_tokenizer_name"):
        save_tokenizer(tokenizer.tokenizer, folder)
    elif kwargs.get("bpe_path"):
        if others := kwargs.keys() - {"bpe_path", "clean"}:
            raise InputError(
                f"--model: {architecture.name} has its own vocabulary, and "
                f"{', '.join(sorted(others))} in tokenizer_kwargs: only bpe_path and clean can "
                "be exported"
            )
        save_tokenizer(as_hugging_face(tokenizer), folder)
        text_cfg["hf_tokenizer_name"] = IN_FOLDER
        text_cfg["tokenizer_kwargs"] = {
            "clean": kwargs.get("clean", "lower"),
            "strip_sep_token": True,
        }


def read_source(
    file: Path, model: str | None, *, tag: str, global_batch: int | None
) -> tuple[Checkpoint, str]:
    """Returns the checkpoint to export, and a warning about it, "" for none.

    `tag` is that of a file of `model`'s released weights, "" for other files. `global_batch` is the
    number of captions per step of a run of the SuperCLIP authors' code.
    """
    checkpoint = read_checkpoint(file, of_authors=True)
    if is_of_authors(checkpoint.weights):
        global_batch = global_batch or RELEASED_BATCH
        weights, is_whole = from_authors(checkpoint.weights, global_batch, file)
        warning = (
            f"--global-batch {global_batch} does not give integer counts, which were rounded: the "
            "run used another global batch size, or several"
        )
        return replace(checkpoint, weights=weights), "" if is_whole else warning
    if global_batch is not None:
        raise InputError(
            f"--global-batch has no effect: {file} is not a checkpoint of SuperCLIP's authors"
        )
    if tag:
        quick_gelu = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu")
        of_tag = {"pretrained": tag, "force_quick_gelu": quick_gelu}
        checkpoint = replace(checkpoint, options=of_tag)
    return checkpoint, ""


def export(
    checkpoint: Checkpoint,
    out: Path,
    *,
    model: str | None,
    format: str,
    with_head: bool,
    overwrite: bool,
    hub: str | None,
) -> tuple[str, str]:
    """Writes the folder `out`, which is never left incomplete; returns the model's name, and code
    that opens it.

    `hub` is the repository, OWNER/NAME, to which the folder will be uploaded.
    """
    file = checkpoint.path
    head = checkpoint.head()
    if with_head and not head:
        raise InputError(f"--with-head: {file} contains no class head")
    if hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", hub):
        raise InputError(f"--hub is {hub}; expected the name of a repository, OWNER/NAME")
    recorded = architecture_of(checkpoint, model)
    recorded.model_cfg.pop("clstext_cfg", None)  # the authors' description of the head
    inputs = [file, *recorded.name.split("local-dir:")[1:]]
    check_out(out, inputs, COMMAND, overwrite=overwrite, folder=True)
    architecture, weights = fit(recorded, checkpoint.without_head())
    plain = architecture.build()
    check_match(weights, plain.state_dict(), file, recorded.name)
    if with_head:
        head |= fixed_idf(checkpoint, architecture.tokenizer())
        expected = expected_head(plain, head_input_of(head), has_fixed_idf=FIXED_IDF[0] in head)
        check_match(head, expected, f"{file}: the class head", recorded.name)
    check_values(checkpoint.weights, file)
    with whole_output(out, overwrite=overwrite) as folder:
        folder.mkdir()
        if format == "hf":
            write_clip_model(folder, architecture, plain, weights)
        else:
            write_model(folder, out, architecture, plain, weights, hub)
        if with_head:
            _write_head(folder, head, checkpoint.options)
        name = out.resolve().name
        usage = usage_of(format, f"hf-hub:{hub}" if hub else f"local-dir:{name}")
        num_captions = head.get(NUM_CAPTIONS)
        card = model_card(
            name, recorded.name, checkpoint.options, num_captions, usage, with_head=with_head
        )
        write_text(folder / "README.md", card)
        write_record(folder, COMMAND)
    return recorded.name, usage_of(format, f"local-dir:{out}")


def _write_head(folder: Path, head: Weights, options: dict) -> None:
    """Writes a class head, with the options of the run that it needs."""
    needed = {name: options[name] for name in NEEDED_BY_HEAD if name in options}
    if FIXED_IDF[0] in head:  # the counts of the file of --superclip-idf, whose path is not needed
        needed.pop("superclip_idf", None)
    save_weights(head, folder / HEAD_NAME, needed)
