"""What the configuration of a model may open: never code, and only places that the user or
OpenCLIP has named."""

import gzip
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import InputError
from ..files import MAX_TEXT

# Arguments of OpenCLIP's tokenizers and, from the second line on, of transformers'.
TOKENIZER_OPTIONS = {
    "additional_special_tokens",
    "bpe_path",
    "clean",
    "context_length",
    "language",
    "reduction_mask",
    "strip_sep_token",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "do_lower_case",
    "extra_ids",
    "legacy",
    "model_max_length",
    "padding_side",
    "src_lang",
    "tgt_lang",
    "truncation_side",
    "use_fast",
    "bos_token",
    "cls_token",
    "eos_token",
    "mask_token",
    "pad_token",
    "sep_token",
    "unk_token",
}
MASKS = ("", "random", "shuffle", "simple")  # for OpenCLIP's "syntax", NLTK downloads files
NAMES = {
    "vision_cfg": ["timm_model_name"],
    "text_cfg": ["hf_model_name", "hf_tokenizer_name", "tokenizer_type"],
}
# of OpenCLIP 4, for timm and transformers
OPTIONS = {"vision_cfg": "timm_model_kwargs", "text_cfg": "hf_model_config"}
# in files of transformers
OPENS_OTHERS = re.compile(r"auto_map|quantization_config|\w*_implementation|backbone")


MAX_LAYERS = 1000
MAX_VOCABULARY = 2**25  # bytes of an unpacked one; CLIP's has 3 MB


def check_sources(model_cfg: dict, model: str, flag: str) -> None:
    """Raises InputError for a model_cfg of a file, a folder or a repository that could run code,
    download, or read files outside of the model's folder.

    The names of Hugging Face repositories are accepted if the models that OpenCLIP has by name
    contain them, if `model` is hf-hub: and that name, or if the user has downloaded the repository.
    """
    for problem in _problems(model_cfg, model):
        raise InputError(f"{flag}: {model} is not opened, because {problem}")


def _problems(model_cfg: dict, model: str) -> Iterator[str]:
    text = model_cfg["text_cfg"]
    yield from _type_problems(model_cfg)
    yield from _number_problems(model_cfg)
    if model.startswith("local-dir:"):
        yield from _file_problems(Path(model.removeprefix("local-dir:")))
    timm_name = model_cfg["vision_cfg"].get("timm_model_name") or ""
    if not re.fullmatch(r"[\w.-]*", timm_name):
        yield f"its timm_model_name is {timm_name!r}; expected one of timm.list_models()"
    if text.get("tokenizer_type") == "tiktoken":
        yield "its tokenizer_type is tiktoken, which downloads its vocabulary"
    yield from _tokenizer_problems(text.get("tokenizer_kwargs") or {}, model)
    if name := text.get("hf_model_name"):
        yield from _name_problems("hf_model_name", name, model)
    if name := text.get("hf_tokenizer_name"):
        # OpenCLIP ignores the name and opens the folder's tokenizer
        if model.startswith("local-dir:"):
            yield from code_in(model.removeprefix("local-dir:"))
        else:
            yield from _name_problems("hf_tokenizer_name", name, model)


def _type_problems(model_cfg: dict) -> Iterator[str]:
    for tower, fields in NAMES.items():
        for field in fields:
            name = model_cfg[tower].get(field) or ""
            if not isinstance(name, str) or "\0" in name or len(name) > 1000:
                yield f"its {field} is not a name"
    size = model_cfg["text_cfg"].get("vocab_size", 0)
    if not isinstance(size, int):
        yield f"its vocab_size is {size!r}; expected a number"
    for tower, field in OPTIONS.items():
        options = model_cfg[tower].get(field) or {}
        if not isinstance(options, dict) or not all(map(_has_numbers, options.values())):
            yield f"its {field} is {options!r}; expected numbers by name"


def _number_problems(content: object, field: str = "") -> Iterator[str]:
    """Yields a problem for each number in JSON content that is not finite, and for more layers than
    a model can have."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _number_problems(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _number_problems(value, field)
    elif isinstance(content, float) and not math.isfinite(content):
        yield f"its {field} is {content}; expected a finite number"
    elif (
        isinstance(content, int | float)
        and content > MAX_LAYERS
        and re.search("layer|depth", field)
    ):
        yield f"its {field} is {content:,}; expected at most {MAX_LAYERS:,}"


def _file_problems(folder: Path) -> Iterator[str]:
    """Yields a problem for each file of a model's folder that never ends, or is too large to be
    read whole."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.exists() and not file.is_file() and not file.is_dir():
            yield f"its {file.name} is not a regular file"
        if file.suffix == ".json" and file.exists() and file.stat().st_size > MAX_TEXT:
            yield f"its {file.name} is larger than {MAX_TEXT:,} bytes"


def _vocabulary_problems(path: str) -> Iterator[str]:
    """Yields a problem if the file of bpe_path is no regular file, or unpacks to too much."""
    if os.path.exists(path) and not os.path.isfile(path):
        yield f"its bpe_path, {path}, is not a regular file"
        return
    try:
        with gzip.open(path) as file:
            size = len(file.read(MAX_VOCABULARY + 1))
    except (OSError, EOFError, zlib.error):  # OpenCLIP reports it
        return
    if size > MAX_VOCABULARY:
        yield f"its bpe_path, {path}, unpacks to more than {MAX_VOCABULARY:,} bytes"


def _has_numbers(value: object) -> bool:
    """Returns whether an option is a number, None, or a list of these."""
    values = value if isinstance(value, list) else [value]
    return all(number is None or isinstance(number, int | float) for number in values)


def _tokenizer_problems(options: dict, model: str) -> Iterator[str]:
    if not isinstance(options, dict):
        yield f"its tokenizer_kwargs is {options!r}; expected an object"
        return
    for name, value in options.items():
        if name not in TOKENIZER_OPTIONS or isinstance(value, dict):
            yield f"its tokenizer_kwargs contains {name} = {value!r}, which is not accepted"
    if (mask := options.get("reduction_mask", "")) not in MASKS:
        yield f"its reduction_mask is {mask!r}; expected one of {', '.join(filter(None, MASKS))}"
    vocabulary = options.get("bpe_path") or ""
    if not isinstance(vocabulary, str) or "\0" in vocabulary:
        yield f"its bpe_path is {vocabulary!r}; expected the name of a file"
    elif vocabulary and not _is_in_folder(vocabulary, model):
        yield (
            f"its bpe_path, {vocabulary}, is not in the model's folder: copy the file there "
            "and correct the path"
        )
    elif vocabulary:
        yield from _vocabulary_problems(vocabulary)


def _is_in_folder(path: str, model: str) -> bool:
    """Returns whether a path leads into the folder of a local model, symbolic links resolved."""
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:"))
    elif model.endswith(".json"):
        folder = Path(model).parent
    else:
        return False
    return Path(path).resolve().is_relative_to(folder.resolve())


def _name_problems(field: str, name: str, model: str) -> Iterator[str]:
    """Yields a problem if the name in a field is not accepted, or if what it names contains
    code."""
    if name in _names_of_openclip():
        return
    if Path(name).exists():
        if not _is_in_folder(name, model):
            yield (
                f"its {field}, {name}, is not in the model's folder: copy the files there "
                "and correct the path"
            )
    elif model != f"hf-hub:{name}" and not _is_downloaded(name):
        yield (
            f"its {field} is {name}, which OpenCLIP's models do not use: if you trust it, "
            f"run hf download {name}"
        )
    yield from code_in(name, is_tower=field == "hf_model_name")


def _names_of_openclip() -> set[str]:
    """Returns the Hugging Face names in configurations of OpenCLIP, not in files of the user."""
    from open_clip import factory

    return {
        cfg["text_cfg"].get(field)
        for name, cfg in factory._MODEL_CONFIGS.items()
        if not name.endswith(".json")
        for field in ("hf_model_name", "hf_tokenizer_name")
    }


def _is_downloaded(repository: str) -> bool:
    """Returns whether the cache of huggingface_hub contains a repository's configuration of a
    tower or a tokenizer."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return any(
            isinstance(try_to_load_from_cache(repository, file), str)
            for file in ("config.json", "tokenizer_config.json")
        )
    except ValueError:  # not a name of a repository
        return False


def code_in(place: str, *, is_tower: bool = False) -> Iterator[str]:
    """Yields a problem if the files of transformers in a folder or repository could run code or
    open another model, and for a tower that OpenCLIP does not support.

    From then on, transformers refuses code of other files instead of asking on the terminal whether
    to run it.
    """
    from open_clip.hf_configs import arch_dict
    from transformers import PretrainedConfig, dynamic_module_utils
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    yield from _file_problems(Path(place))
    if (Path(place) / "adapter_config.json").exists():
        yield f"{place} contains adapter_config.json, which may name other weights"
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    tokenizer = _configuration(get_tokenizer_config, place)
    model = _configuration(lambda place: PretrainedConfig.get_config_dict(place)[0], place)
    for content in (tokenizer, model):
        if not isinstance(content, dict):
            yield f"{place} contains a configuration of transformers that is not a JSON object"
            return
        yield from _number_problems(content)
        for name in filter(OPENS_OTHERS.fullmatch, _names_in(content)):
            yield f"{place} contains {name}, which can run code or open another model"
    kind = model.get("model_type")
    if is_tower and model and kind not in arch_dict:
        yield f"{place} is a {kind}; OpenCLIP supports {', '.join(sorted(arch_dict))}"


def _configuration(read: Callable[[str], object], place: str) -> object:
    """Returns the content of a file of transformers; {} without the file, and None for a list."""
    try:
        return read(place)
    except (OSError, ValueError):  # OpenCLIP reports the files that it needs
        return {}
    except TypeError:  # transformers expects an object
        return None


def _names_in(content: object) -> Iterator[str]:
    """Yields the names of all fields in JSON content, those of nested objects too."""
    if isinstance(content, dict):
        yield from content
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from _names_in(part)
