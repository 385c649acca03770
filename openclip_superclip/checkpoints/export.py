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
from torch import Tensor, nn

from ..checkpoints import HEAD_NAME, WEIGHTS_NAMES
from ..environment import versions
from ..errors import InputError
from ..files import atomic_output, check_out, write_record, write_text
from ..method.head import FIXED_IDF, NUM_CAPTIONS, head_input_of, is_of_authors
from ..rendering import markdown_text
from .architecture import Architecture, architecture_of, expected_head, fit
from .authors import from_authors
from .hugging_face import as_hugging_face, save_tokenizer, write_clip_model
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
IN_FOLDER = "in-this-folder"  # a name that no repository has
NEEDED_BY_HEAD = ("superclip_idf", "superclip_special_tokens")  # options
MADE_WITH = ("openclip-superclip", "open_clip_torch", "torch")
USAGE = {  # by --format
    "openclip": """import open_clip
model, preprocess = open_clip.create_model_from_pretrained({place})
tokenizer = open_clip.get_tokenizer({place})""",
    "hf": """from transformers import CLIPModel, CLIPProcessor
model = CLIPModel.from_pretrained({place})
processor = CLIPProcessor.from_pretrained({place}, backend="pil")  # resizes as OpenCLIP does""",
}
CARD = """---
library_name: {library}
pipeline_tag: zero-shot-image-classification
tags:
{tags}
---

# {name}

{what}

{facts}

```python
{usage}
```
"""


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


def read_source(file: Path, model: str | None, *, tag: str) -> Checkpoint:
    """Returns the checkpoint to export.

    `tag` is that of a file of `model`'s released weights, "" for other files.
    """
    checkpoint = read_checkpoint(file, of_authors=True)
    if is_of_authors(checkpoint.weights):
        return replace(checkpoint, weights=from_authors(checkpoint.weights, file))
    if tag:
        quick_gelu = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu")
        of_tag = {"pretrained": tag, "force_quick_gelu": quick_gelu}
        checkpoint = replace(checkpoint, options=of_tag)
    return checkpoint


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
    with atomic_output(out, overwrite=overwrite) as folder:
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


def usage_of(format: str, place: str) -> str:
    """Returns code that opens the model at a place of OpenCLIP, local-dir:FOLDER or hf-hub:REPO."""
    if format == "hf":
        _, _, place = place.partition(":")
    return USAGE[format].format(place=json.dumps(place, ensure_ascii=False))


def model_card(
    name: str,
    model: str,
    options: dict,
    num_captions: Tensor | None,
    usage: str,
    *,
    with_head: bool,
) -> str:
    """Returns the README.md of a model folder, in Markdown with the Hugging Face hub's front
    matter.

    `options` are those of the run; `num_captions` are the captions seen with the class loss, None
    if not counted. `usage` is code that opens the model.
    """
    what = "A CLIP model."
    tags = "- clip"
    if num_captions is not None:
        tags += "\n- superclip"
        place = f"in `{HEAD_NAME}`" if with_head else "not included"
        what = (
            "A CLIP model, trained with the class loss of "
            f"[SuperCLIP](https://arxiv.org/abs/2512.14480). The class head is {place}."
        )
    facts = {
        "architecture": model,
        "pretrained weights": options.get("pretrained"),
        "data": options.get("train_data"),
        "captions seen with the class loss": f"{num_captions:,}" if num_captions else None,
        "epochs": options.get("epochs"),
        "learning rate": options.get("lr"),
        "weight of the class loss λ": options.get("superclip_weight"),
        "made with": ", ".join(
            f"{name} {version}" for name, version in versions(*MADE_WITH).items()
        ),
    }
    lines = [
        f"- {label}: {_plain(value)}" for label, value in facts.items() if value not in (None, "")
    ]
    return CARD.format(
        library="transformers" if usage.startswith("from transformers") else "open_clip",
        tags=tags,
        name=_plain(name),
        what=what,
        facts="\n".join(lines),
        usage=usage,
    )


def _plain(value) -> str:
    """Returns a value as one line of escaped Markdown.

    Absolute paths are reduced to their last component."""
    return markdown_text(
        re.sub(r"(^|[\s,'\"(:])(?:local-dir:)?/(?:[^\s/,:]+/)+", r"\1", str(value))
    )
