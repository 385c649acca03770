"""Joins a timm image tower and a Hugging Face text tower to an OpenCLIP model, as a folder for
local-dir:."""

import difflib
import tempfile
import zipfile
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
from timm.models import load_state_dict, remap_state_dict
from torch import Tensor, nn

from ..errors import InputError, listed, reason
from ..files import check_out, json_or_empty, whole_output, write_text
from ..rendering import markdown_text
from .architecture import Architecture
from .export import write_model
from .model_sources import code_in
from .weights import Weights, check_match, check_values

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


@dataclass(frozen=True)
class Joined:
    """A joined model, for the summary that the command prints."""

    image_size: int
    context_length: int
    pooler: str
    num_parameters: int
    unused_image: list[str]
    unused_text: list[str]


def join(
    image: ImageSource,
    text: Path,
    out: Path,
    embed_dim: int,
    context_length: int | None,
    *,
    overwrite: bool,
) -> Joined:
    """Writes the folder `out` with the weights of both towers and random projections of width
    `embed_dim`."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if image.file and not image.file.is_file():
        raise InputError(f"--image: there is no file {image.file}")
    inputs = [file for file in (image.file, text) if file]
    check_out(out, inputs, {"README.md": WRITTEN_BY}, overwrite=overwrite)
    vision_cfg, preprocess_cfg = _image_configuration(image)
    with text_folder(text) as folder:
        text_cfg = _text_configuration(text, folder, context_length)
        model_cfg = {"embed_dim": embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
        architecture = Architecture("the joined model", model_cfg, preprocess_cfg)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = architecture.build("cpu").eval()
        _check_image_size(image, model.visual, vision_cfg["image_size"])
        image_weights, unused_image = _image_weights(image, model.visual.trunk)
        text_weights, unused_text = _text_weights(text, folder, model.text)
        check_values(image_weights, "--image")
        check_values(text_weights, "--text")
        weights = model.state_dict()
        weights |= {f"visual.trunk.{name}": tensor for name, tensor in image_weights.items()}
        weights |= {f"text.transformer.{name}": tensor for name, tensor in text_weights.items()}
        with whole_output(out, overwrite=overwrite) as part:
            part.mkdir()
            write_model(part, out, architecture, model, weights)
            towers = markdown_text(f"timm's {image.name} and {text.name}")
            write_text(part / "README.md", f"{WRITTEN_BY}: {towers}, with random projections.\n")
    return Joined(
        image_size=vision_cfg["image_size"],
        context_length=text_cfg["context_length"],
        pooler=text_cfg["hf_pooler_type"],
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        unused_image=unused_image,
        unused_text=unused_text,
    )


def _image_configuration(image: ImageSource) -> tuple[dict, dict]:
    """Returns OpenCLIP's vision_cfg and preprocess_cfg with the preprocessing that timm records
    for the tower."""
    if not timm.is_model(image.name):
        near = difflib.get_close_matches(image.name, timm.list_models())
        advice = (
            f"did you mean {' or '.join(near)}?" if near else "expected one of timm.list_models()"
        )
        raise InputError(f"--image: timm has no model '{image.name}'; {advice}")
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


@torch.no_grad()
def _check_image_size(image: ImageSource, visual: nn.Module, size: int) -> None:
    try:
        visual(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"--image-size: {image.name} in OpenCLIP cannot take images of {size} px "
            f"({reason(error)[:200]})"
        ) from error


def _image_weights(image: ImageSource, trunk: nn.Module) -> tuple[Weights, list[str]]:
    """Returns the weights for `trunk`, a timm model without its classifier, and the names of
    those not used."""
    weights = _read_image_weights(image)
    expected = trunk.state_dict()
    if image.by_order:
        if not _agree_in_order(weights, expected):
            raise InputError(
                f"--by-order: the tensors of {image.file} do not agree with timm's "
                f"{image.name} in order and shape"
            )
        unused = list(weights)[len(expected) :]
        return remap_state_dict(weights, trunk, allow_reshape=False), unused
    complete = timm.create_model(image.name)  # with its classifier
    source = f"--image: {image.file or image.name}"
    if weights.keys().isdisjoint(expected) and _agree_in_order(weights, expected):
        raise InputError(
            f"{source} has other names of tensors than timm's {image.name} ({next(iter(weights))} "
            f"instead of {next(iter(complete.state_dict()))}), which agree in order and shape: add "
            "--by-order"
        )
    classifiers = complete.pretrained_cfg.get("classifier") or ()
    if isinstance(classifiers, list):
        classifiers = tuple(classifiers)
    unused = [name for name in weights if name not in expected and name.startswith(classifiers)]
    used = {name: tensor for name, tensor in weights.items() if name not in unused}
    check_match(used, expected, source, f"timm's {image.name}")
    return used, unused


def _agree_in_order(weights: Weights, expected: Weights) -> bool:
    """Returns whether the tensors have the expected shapes, followed by a classifier's weight
    and bias or nothing."""
    shapes = [tensor.shape for tensor in weights.values()]
    wanted = [tensor.shape for tensor in expected.values()]
    return shapes[: len(wanted)] == wanted and len(shapes) <= len(wanted) + 2


def _read_image_weights(image: ImageSource) -> Weights:
    try:
        if image.file is None:
            return timm.create_model(image.name, pretrained=True).state_dict()
        weights = load_state_dict(str(image.file), weights_only=True)
    except Exception as error:  # corrupt files and downloads can raise anything
        if image.file is None:
            raise InputError(
                f"--image: timm cannot load weights of {image.name} ({reason(error)[:200]}); "
                f"expected timm:{image.name}=FILE"
            ) from error
        raise InputError(
            f"--image: {image.file} cannot be read as weights ({reason(error)[:200]}); only "
            "weights are ever loaded"
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(tensor, Tensor) for tensor in weights.values()
    ):
        raise InputError(
            f"--image: {image.file} is not a file of weights: expected tensors by name"
        )
    return weights


@contextmanager
def text_folder(text: Path) -> Iterator[Path]:
    """The folder with config.json of a text model: `text`, a folder in it, or the content of a
    zip file."""
    if not text.exists():
        raise InputError(f"--text: there is no folder {text}")
    archives = [text] if text.is_file() else sorted(text.glob("*.zip"))
    inner = _transformer_folder(text)
    if inner:
        yield inner
        return
    if len(archives) != 1 or not zipfile.is_zipfile(archives[0]):
        raise InputError(
            f"--text: {text} contains no config.json; expected the folder of a Hugging Face "
            "text model"
        )
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(archives[0]) as archive:
            archive.extractall(unpacked)
        folders = [Path(unpacked), *Path(unpacked).iterdir()]
        inner = next(filter(None, map(_transformer_folder, folders)), None)
        if not inner:
            raise InputError(
                f"--text: {archives[0]} contains no config.json of a Hugging Face text model"
            )
        yield inner


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
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
    except Exception as error:  # transformers can raise anything
        raise InputError(
            f"--text: transformers cannot open {text} ({reason(error)[:200]})"
        ) from error
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
    limits = [
        tokenizer.model_max_length,
        _sentence_settings(folder, "sentence_bert_config").get("max_seq_length"),
    ]
    positions = getattr(config, "max_position_embeddings", None)
    # whose positions start after the id of padding
    if positions and "roberta" in config.model_type:
        positions -= config.pad_token_id + 1
    limits = [limit for limit in (*limits, positions) if limit and limit < UNLIMITED]
    return min(limits, default=None)


def _pooler(text: Path, folder: Path) -> str:
    settings = _sentence_settings(folder, "1_Pooling/config")
    modes = [
        name
        for name, value in settings.items()
        if name.startswith("pooling_mode_") and value is True
    ]
    if not modes:
        return POOLERS["pooling_mode_mean_tokens"]
    if len(modes) > 1 or modes[0] not in POOLERS:
        raise InputError(
            f"--text: {text} has {listed(modes)}; OpenCLIP supports one of {', '.join(POOLERS)}"
        )
    return POOLERS[modes[0]]


def _sentence_settings(folder: Path, name: str) -> dict:
    """Returns the content of a JSON file of sentence-transformers, which is beside the transformer
    or in the folder above it; {} without one."""
    file = f"{name}.json"
    return json_or_empty(folder / file) or json_or_empty(folder.parent / file)


def _text_weights(text: Path, folder: Path, tower: HFTextEncoder) -> tuple[Weights, list[str]]:
    """Returns the weights for the tower's transformer, and the names of those not used."""
    is_pair = getattr(tower.config, "is_encoder_decoder", False)
    options = {} if is_pair else {"add_pooling_layer": False}
    try:
        model, report = transformers.AutoModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **options, **LOCAL
        )
    except Exception as error:  # transformers can raise anything
        raise InputError(
            f"--text: the weights in {text} cannot be read ({reason(error)[:200]})"
        ) from error
    unused = sorted(report["unexpected_keys"])
    parts = tuple(f"{name}." for name, _ in model.named_children())
    prefix = f"{model.base_model_prefix}."
    wrong = [name for name in unused if name.removeprefix(prefix).startswith(parts)]
    missing = sorted(report["missing_keys"])
    if missing or wrong:
        problem = f"lack {listed(missing, 3)}" if missing else f"contain {listed(wrong, 3)}"
        raise InputError(
            f"--text: the weights in {text} do not match its config.json: they {problem}"
        )
    transformer = model.encoder if is_pair else model
    weights = transformer.state_dict()
    check_match(weights, tower.transformer.state_dict(), f"--text: {text}", "OpenCLIP's text tower")
    return weights, unused
