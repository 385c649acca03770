"""Joins a timm image tower and a Hugging Face text tower to an OpenCLIP model, as a folder for
local-dir:."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import transformers
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer
from timm.data import resolve_data_config
from timm.models import load_state_dict
from torch import nn

from ..errors import InputError, as_input_error, listed
from ..files import check_out, json_or_empty, whole_output, write_text
from ..rendering import markdown_text
from .architecture import Architecture, check_image_size
from .export import write_model
from .model_sources import code_in
from .weights import Weights, check_values

# of transformers: no hub, no code of the folder
LOCAL = {"local_files_only": True, "trust_remote_code": False}
WRITTEN_BY = "Written by superclip join"  # the other commands' folders lack it
POOLERS = {  # of sentence-transformers, under OpenCLIP's names
    "pooling_mode_mean_tokens": "mean_pooler",
    "pooling_mode_cls_token": "cls_last_hidden_state_pooler",
}
UNLIMITED = 10**6  # transformers' model_max_length of tokenizers without a limit is larger


@dataclass(frozen=True)
class ImageSource:
    """A timm model, its weights and its preprocessing; None stands for the tower's own."""

    name: str
    file: Path | None  # None: the weights that timm downloads
    by_order: bool
    image_size: int | None
    mean: list[float] | None
    std: list[float] | None


def join(
    image: ImageSource,
    text: Path,
    out: Path,
    embed_dim: int,
    context_length: int | None,
    *,
    overwrite: bool,
) -> str:
    """Writes the folder `out` with the weights of both towers and random projections of width
    `embed_dim`; returns a summary."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if image.file and not image.file.is_file():
        raise InputError(f"--image: there is no file {image.file}")
    inputs = [file for file in (image.file, text) if file]
    check_out(out, inputs, WRITTEN_BY, "README.md", overwrite=overwrite)
    vision_cfg, preprocess_cfg = _image_configuration(image)
    with text_folder(text) as folder:
        text_cfg = _text_configuration(text, folder, context_length)
        model_cfg = {"embed_dim": embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
        architecture = Architecture("the joined model", model_cfg, preprocess_cfg)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = architecture.build("cpu").eval()
        check_image_size(model, "--image-size", image.name)
        unused_image = _load_image_tower(image, model.visual.trunk)
        unused_text = _load_text_tower(text, folder, model.text)
        with whole_output(out, overwrite=overwrite) as part:
            part.mkdir()
            write_model(part, out, architecture, model, model.state_dict())
            towers = markdown_text(f"timm's {image.name} and {text.name}")
            write_text(part / "README.md", f"{WRITTEN_BY}: {towers}, with random projections.\n")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{image.name} ({vision_cfg['image_size']} px) and {text} ({text_cfg['context_length']} "
        f"tokens, {text_cfg['hf_pooler_type']}), {num_parameters / 1e6:.1f} M parameters\n"
        f"not used of the image tower: {listed(unused_image) or 'nothing'}\n"
        f"not used of the text tower:  {listed(unused_text) or 'nothing'}"
    )


def _image_configuration(image: ImageSource) -> tuple[dict, dict]:
    """Returns OpenCLIP's vision_cfg and preprocess_cfg with the preprocessing that timm records
    for the tower."""
    if not timm.is_model(image.name):
        raise InputError(
            f"--image: timm has no model '{image.name}'; expected one of timm.list_models()"
        )
    recorded = timm.get_pretrained_cfg(image.name)
    own = resolve_data_config(pretrained_cfg=recorded.to_dict() if recorded else {})
    vision_cfg = {
        "timm_model_name": image.name,
        "timm_pool": "",  # the tower's own pooling
        "timm_proj": "linear",
        "image_size": image.image_size or own["input_size"][-1],
    }
    preprocess_cfg = {
        "mean": list(image.mean or own["mean"]),
        "std": list(image.std or own["std"]),
        "interpolation": own["interpolation"],
        "resize_mode": "shortest",
    }
    return vision_cfg, preprocess_cfg


def _load_image_tower(image: ImageSource, trunk: nn.Module) -> list[str]:
    """Loads the weights into `trunk`, a timm model without its classifier; returns the names of
    those not used."""
    weights = _read_image_weights(image)
    with as_input_error(
        f"--image: {image.file or image.name} does not match timm's {image.name}",
        "" if image.by_order else "; if only the names differ, add --by-order",
    ):
        expected = trunk.state_dict()
        complete = timm.create_model(image.name).state_dict()  # with its classifier
        if image.by_order:
            if len(weights) not in (len(expected), len(complete)):
                raise ValueError(f"it has {len(weights)} tensors instead of {len(complete)}")
            unused = list(weights)[len(expected) :]
            used = dict(zip(expected, weights.values(), strict=False))
        else:
            unused = [name for name in weights if name in complete and name not in expected]
            used = {name: tensor for name, tensor in weights.items() if name not in unused}
        check_values(used, "--image")
        trunk.load_state_dict(used)
        for name, tensor in used.items():
            if tensor.is_floating_point() != expected[name].is_floating_point():
                raise ValueError(f"{name} is {tensor.dtype}, expected {expected[name].dtype}")
    return unused


def _read_image_weights(image: ImageSource) -> Weights:
    if image.file is None:
        with as_input_error(
            f"--image: timm cannot load weights of {image.name}",
            f"; expected timm:{image.name}=FILE",
        ):
            return timm.create_model(image.name, pretrained=True).state_dict()
    with as_input_error(
        f"--image: {image.file} cannot be read as weights", "; only weights are ever loaded"
    ):
        return load_state_dict(str(image.file), weights_only=True)


@contextmanager
def text_folder(text: Path) -> Iterator[Path]:
    """The folder with config.json of a text model: `text`, a folder in it, or the content of a
    zip file."""
    with tempfile.TemporaryDirectory() as unpacked:
        folder = _transformer_folder(text)
        archives = [text] if text.is_file() else list(text.glob("*.zip"))
        if folder is None and len(archives) == 1:
            with as_input_error(f"--text: {archives[0]} cannot be unpacked"):
                shutil.unpack_archive(archives[0], unpacked, "zip")
            folders = [Path(unpacked), *Path(unpacked).iterdir()]
            folder = next(filter(None, map(_transformer_folder, folders)), None)
        if folder is None:
            raise InputError(f"--text: {text} contains no config.json of a Hugging Face text model")
        yield folder


def _transformer_folder(folder: Path) -> Path | None:
    """Returns the folder of the transformer: sentence-transformers may keep it in 0_Transformer."""
    for candidate in (folder / "0_Transformer", folder):
        if "model_type" in json_or_empty(candidate / "config.json"):
            return candidate
    return None


def _text_configuration(text: Path, folder: Path, context_length: int | None) -> dict:
    """Returns OpenCLIP's text_cfg for the model in `folder`.

    Raises InputError, which names `text`."""
    for problem in code_in(str(folder), is_tower=True):
        raise InputError(
            f"--text: {problem.replace(str(folder), str(text), 1)}; only weights are ever loaded"
        )
    with as_input_error(f"--text: transformers cannot open {text}"):
        config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
    files = tokenizer.vocab_files_names.values()
    # transformers then makes an empty tokenizer
    if not any((folder / name).is_file() for name in files):
        raise InputError(
            f"--text: {text} has no tokenizer; expected one of {', '.join(sorted(files))}"
        )
    if len(tokenizer) > config.vocab_size or tokenizer.pad_token_id != config.pad_token_id:
        raise InputError(
            f"--text: the tokenizer of {text} has {len(tokenizer):,} tokens and pads with "
            f"{tokenizer.pad_token_id}; expected the model's {config.vocab_size:,} and "
            f"{config.pad_token_id}"
        )
    own = _context_length(folder, config, tokenizer)
    if context_length is not None and own is not None and context_length > own:
        raise InputError(
            f"--context-length is {context_length}; expected at most {own}, that of {text}"
        )
    return {
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_pooler_type": _pooler(text, folder),
        "hf_proj_type": "linear",
        "context_length": context_length or own or HFTokenizer.__init__.__defaults__[0],
    }


def _context_length(folder: Path, config, tokenizer) -> int | None:
    """Returns the largest number of tokens that the tower reads, None if unlimited."""
    positions = getattr(config, "max_position_embeddings", None)
    # whose positions start after the id of padding
    if positions and "roberta" in config.model_type:
        positions -= config.pad_token_id + 1
    limits = (
        tokenizer.model_max_length,
        _sentence_settings(folder, "sentence_bert_config.json").get("max_seq_length"),
        positions,
    )
    return min((limit for limit in limits if limit and limit < UNLIMITED), default=None)


def _pooler(text: Path, folder: Path) -> str:
    settings = _sentence_settings(folder, "1_Pooling/config.json")
    modes = [
        name
        for name, value in settings.items()
        if name.startswith("pooling_mode_") and value is True
    ] or ["pooling_mode_mean_tokens"]
    if len(modes) > 1 or modes[0] not in POOLERS:
        raise InputError(
            f"--text: {text} has {listed(modes)}; OpenCLIP supports one of {', '.join(POOLERS)}"
        )
    return POOLERS[modes[0]]


def _sentence_settings(folder: Path, file: str) -> dict:
    """Returns the content of a JSON file of sentence-transformers, which is beside the transformer
    or in the folder above it; {} without one."""
    return json_or_empty(folder / file) or json_or_empty(folder.parent / file)


def _load_text_tower(text: Path, folder: Path, tower: HFTextEncoder) -> list[str]:
    """Loads the weights into the tower's transformer; returns the names of those not used."""
    is_pair = getattr(tower.config, "is_encoder_decoder", False)
    options = {} if is_pair else {"add_pooling_layer": False}
    with as_input_error(f"--text: the weights in {text} cannot be read"):
        model, report = transformers.AutoModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **options, **LOCAL
        )
    unused = sorted(report["unexpected_keys"])
    parts = tuple(f"{name}." for name, _ in model.named_children())
    prefix = f"{model.base_model_prefix}."
    wrong = [name for name in unused if name.removeprefix(prefix).startswith(parts)]
    if wrong or report["missing_keys"]:
        names = listed(sorted([*wrong, *report["missing_keys"]]), 3)
        raise InputError(
            f"--text: the weights in {text} do not match its config.json: missing or unexpected "
            f"are {names}"
        )
    weights = (model.encoder if is_pair else model).state_dict()
    check_values(weights, "--text")
    with as_input_error(f"--text: {text} does not match OpenCLIP's text tower"):
        tower.transformer.load_state_dict(weights)
    return unused
