"""Exports: a checkpoint as plain CLIP, in a folder with configuration, tokenizer and model card."""

from pathlib import Path
from typing import NamedTuple

from ..atomic_files import whole_output
from ..errors import InputError
from . import HEAD_NAME, WEIGHTS_NAMES
from .architecture import architecture_of, fit, vocabulary_warnings
from .checkpoint import read_checkpoint
from .head_check import check_head
from .model_card import model_card
from .model_folder import write_model
from .overwrite_check import check_folder_out
from .run_options import HEAD_OPTIONS, run_behind
from .weights_check import NUM_CAPTIONS, check_match, check_values
from .weights_writer import save_weights

OPENCLIP_USAGE = """import open_clip
model, preprocess = open_clip.create_model_from_pretrained("{place}")
tokenizer = open_clip.get_tokenizer("{place}")"""

HF_USAGE = """from transformers import CLIPModel, CLIPProcessor
model = CLIPModel.from_pretrained("{folder}")
processor = CLIPProcessor.from_pretrained("{folder}")"""


class Export(NamedTuple):
    """What was written."""

    model: str
    usage: str  # code that opens it
    warnings: list[str]


def export(
    file: Path,
    out: Path,
    model: str | None = None,
    format: str = "openclip",
    with_head: bool = False,
    license: str = "unknown",
    repo: str | None = None,
    overwrite: bool = False,
) -> Export:
    """Writes the folder `out`, whole or not at all, and returns what it holds.

    Args:
        file: a checkpoint of a run, a file of weights, or a folder.
        out: the folder; with `overwrite` it is exchanged whole.
        model: OpenCLIP's name or a JSON file, where nothing beside the checkpoint tells it.
        format: of WEIGHTS_NAMES, or "hf" for transformers.
        with_head: whether the class head and the counts are kept beside the model.
        license: for the model card.
        repo: of the hub, where the folder will be.
    """
    check_folder_out(out, overwrite, [file])
    checkpoint = read_checkpoint(file)
    run, head = run_behind(checkpoint), checkpoint.head()
    if with_head and not head:
        raise InputError(f"--with-head: {file} holds no class head")
    found = architecture_of(file, run.options, model)
    architecture, weights = fit(found, checkpoint.without_head())
    plain = architecture.on_meta()
    check_match(weights, plain.state_dict(), str(file), found.name)
    if with_head:
        check_head(head, plain, str(file), found.name)
    check_values(checkpoint.weights, str(file))
    warnings = vocabulary_warnings(architecture, plain)
    num_captions = head[NUM_CAPTIONS].item() if NUM_CAPTIONS in head else None
    with whole_output(out, overwrite) as folder:
        folder.mkdir()
        if format == "hf":
            from .transformers_export import write_clip_model

            write_clip_model(folder, architecture, plain, weights)
            library, usage = "transformers", HF_USAGE.format(folder=repo or out)
        else:
            write_model(folder, architecture, plain, weights, WEIGHTS_NAMES[format], repo)
            place = f"hf-hub:{repo}" if repo else f"local-dir:{out}"
            library, usage = "open_clip", OPENCLIP_USAGE.format(place=place)
        if with_head:
            save_weights(
                head, folder / HEAD_NAME, {name: run.options[name] for name in HEAD_OPTIONS & run.options.keys()}
            )
        card = model_card(out.resolve().name, run, num_captions, license, library, usage, found.name)
        (folder / "README.md").write_text(card)
    return Export(found.name, usage, warnings)
