"""Registers models with OpenCLIP: the small ones of this package, and JSON files given as
--model."""

import difflib
import json
import math
from dataclasses import asdict
from pathlib import Path

from ..errors import InputError, as_input_error, listed
from ..files import PACKAGE, read_json
from .model_sources import check_sources

CONFIGURATIONS = PACKAGE / "model_configs"


def register_small_models() -> None:
    """Registers this package's small models with OpenCLIP."""
    from open_clip import factory

    for file in CONFIGURATIONS.glob("*.json"):
        factory._MODEL_CONFIGS.setdefault(file.stem, json.loads(file.read_text()))


def register_file(model: str, model_cfg: dict, preprocess_cfg: dict, flag: str) -> None:
    """Registers the configuration in a JSON file with OpenCLIP; InputError if training would use
    other preprocessing or another tokenizer than the file says."""
    from open_clip import factory
    from open_clip.transform import PreprocessCfg

    defaults = json.loads(json.dumps(asdict(PreprocessCfg())))
    # the model determines the size
    if {**defaults, **preprocess_cfg, "size": defaults["size"]} != defaults:
        raise InputError(
            f"{flag}: {model} contains a preprocess_cfg, which training only reads from a "
            "folder: name the file open_clip_config.json and give local-dir:FOLDER, or remove "
            "it and give --image-mean and the like"
        )
    if "siglip" in model.lower() and not model_cfg["text_cfg"].get("hf_tokenizer_name"):
        raise InputError(
            f"{flag}: {model} has no hf_tokenizer_name, and OpenCLIP would download SigLIP's "
            "tokenizer because of 'siglip' in its path: rename it, or name a tokenizer"
        )
    # add_model_config would drop the path of the file from the name; OpenCLIP looks up both names
    factory._MODEL_CONFIGS[model] = factory._MODEL_CONFIGS[model.replace("/", "-")] = model_cfg


def is_file(model: str) -> bool:
    """Returns whether a --model is a JSON file."""
    return model.endswith(".json") and ":" not in model


def openclip_name(model: str) -> str:
    """Returns the name under which OpenCLIP finds a --model and its tokenizer: ViT-B-16 for
    ViT-B/16."""
    return (
        model
        if ":" in model or model.endswith(".json") or Path(model).is_dir()
        else model.replace("/", "-")
    )


def read_configuration(
    model: str, flag: str = "--model", cache_dir: str | None = None
) -> tuple[dict, dict]:
    """Returns copies of the model_cfg and preprocess_cfg of a model of OpenCLIP's, a JSON file,
    local-dir:FOLDER or hf-hub:REPO.

    A JSON file has OpenCLIP's model configuration (embed_dim, vision_cfg, text_cfg) either at the
    top level or under `model_cfg` as in open_clip_config.json.

    Raises InputError if OpenCLIP has no such model, or if the configuration cannot be read, is
    invalid, or could run code or download from places that the user has not named.
    """
    from open_clip import get_model_config, list_models
    from open_clip.constants import HF_CONFIG_NAME
    from open_clip.factory import parse_model_name
    from open_clip.pretrained import download_pretrained_from_hf

    schema, location = parse_model_name(model)
    is_of_openclip = schema is None and not model.endswith(".json")
    if is_of_openclip:
        register_small_models()
        model_cfg = get_model_config(model)
        preprocess_cfg = {}
        if model_cfg is None:
            near = difflib.get_close_matches(model, list_models())
            if Path(model).is_dir():
                near = [f"local-dir:{model}"]
            suggestion = (
                f"did you mean {' or '.join(near)}?"
                if near
                else "expected one of open_clip.list_models(), local-dir:FOLDER, hf-hub:REPO or a "
                "JSON file with embed_dim, vision_cfg and text_cfg"
            )
            raise InputError(f"{flag}: OpenCLIP has no model '{model}'; {suggestion}")
    else:
        file = Path(location, HF_CONFIG_NAME) if schema else Path(model)
        if schema == "hf-hub":
            with as_input_error(f"{flag}: {model} has no {HF_CONFIG_NAME}"):
                file = download_pretrained_from_hf(
                    location, filename=HF_CONFIG_NAME, cache_dir=cache_dir
                )
        content = read_json(Path(file), flag=flag)
        # Of a repository without model_cfg, OpenCLIP would open the tokenizer, which is not checked
        # then.
        model_cfg = content.get("model_cfg", None if schema else content)
        preprocess_cfg = content.get("preprocess_cfg", {})
        if schema == "local-dir" and holds_text_tower(Path(location), model_cfg):
            # wherever it was written
            model_cfg["text_cfg"]["hf_model_name"] = str(Path(location).resolve())
    _check_configuration(model_cfg, preprocess_cfg, model, flag)
    if not is_of_openclip:
        check_sources(model_cfg, model, flag)
    return model_cfg, preprocess_cfg


def holds_text_tower(folder: Path, model_cfg: object) -> bool:
    """Returns whether a model's folder contains the configuration of its Hugging Face text
    tower, as ours do."""
    text = model_cfg.get("text_cfg") if isinstance(model_cfg, dict) else None
    return (folder / "config.json").is_file() and isinstance(text, dict) and "hf_model_name" in text


def _check_configuration(model_cfg: object, preprocess_cfg: object, model: str, flag: str) -> None:
    """Raises InputError if the configuration is invalid."""
    content = model_cfg if isinstance(model_cfg, dict) else {}
    content = {**content, "preprocess_cfg": preprocess_cfg}
    kinds = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict, "preprocess_cfg": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    if wrong:
        raise InputError(
            f"{flag}: {model} is not a model configuration: {listed(wrong)} missing or wrong; "
            "expected embed_dim (a number), vision_cfg and text_cfg (objects)"
        )
    check_preprocessing(preprocess_cfg, f"{flag}: {model} has a preprocess_cfg")


def check_preprocessing(preprocess_cfg: dict, source: str) -> None:
    """Raises InputError, which begins with `source`, if OpenCLIP cannot preprocess an image with
    this configuration."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
    from PIL import Image

    for name in ("mean", "std", "fill_color"):
        value = preprocess_cfg.get(name)
        numbers = value if isinstance(value, list | tuple) else [value]
        is_valid = len(numbers) in (1, 3) and all(map(_is_finite, numbers))
        if value is not None and not (is_valid and (name != "std" or min(numbers) > 0)):
            above = " above 0" if name == "std" else ""
            raise InputError(
                f"{source} whose {name} is {value!r}; expected a finite number{above}, or three"
            )
    small = {**preprocess_cfg, "size": 8}  # the model determines the size
    with as_input_error(f"{source} that OpenCLIP cannot use"):
        image_transform_v2(PreprocessCfg(**merge_preprocess_dict({}, small)), is_train=False)(
            Image.new("RGB", (8, 8))
        )


def _is_finite(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < math.inf


def model_for_pretrained(model: str) -> str | None:
    """Returns, for messages, a --model for which stock OpenCLIP uses --pretrained; None if it does
    so for `model` itself.

    For local-dir: and hf-hub:, OpenCLIP ignores --pretrained and loads the weights of the folder,
    or random ones.
    """
    schema, _, location = model.partition(":")
    instead = {
        "local-dir": f"{location}/open_clip_config.json",
        "hf-hub": "FILE (its open_clip_config.json)",
    }
    return instead.get(schema)
