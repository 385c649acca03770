"""The record of how a run began, and what has changed since: options, data, tokenizer, packages."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

from ..data.tables import is_table
from ..data.tar_shards import expand, is_remote
from ..environment import current_time, versions
from ..errors import InputError
from ..files import content_digest, file_identity, json_or_empty, write_json
from ..flags import config_from, is_idf_file, options_of
from ..option_effects import effect_of
from .model_configurations import open_tokenizer, register_model
from .trainer_files import RECORD, read_options

NAME = "began_with.json"  # in the folder of a run of `superclip train`
# the same in the record of a run of `superclip run`, which alone writes it
BEGAN_WITH = "began_with"
NUM_MEASURED = 16  # maximum number of shards with recorded sizes and contents
END = 2**16  # bytes at each end of a shard, whose digest is recorded
PROBE = "A photo of 3 naïve Hamburgers, un-tokenized: 猫"  # to compare tokenizers
DEPENDS_ON = (
    "python",
    "openclip-superclip",
    "open_clip_torch",
    "torch",
    "torchvision",
    "timm",
    "webdataset",
    "numpy",
    "pillow",
)
DIGEST = "sha256:"
FACTS = {  # on measured shards, and how a change is described
    "bytes": "had {was:,} bytes and has {now:,}",
    "samples": "had {was} samples in sizes.json and has {now}",
    "contents": "had other content of the same size",
}


def beginning(options: dict, world_size: int) -> dict:
    """Returns the record of a run, given OpenCLIP's parsed options (including the model's
    defaults)."""
    config = config_from(options)
    if config is not None:
        options = options | options_of(config)
    return _record(options | {"world_size": world_size}) | {"versions": versions_of_run()}


def versions_of_run() -> dict[str, str]:
    """Returns the versions of the packages that a run depends on and of installed plugins."""
    plugins = [entry.dist for entry in entry_points(group="open_clip")]
    return versions(*DEPENDS_ON) | {plugin.name: plugin.version for plugin in plugins}


def _record(options: dict) -> dict:
    kept = {
        name: _content(name, value)
        for name, value in sorted(options.items())
        if effect_of(name).changes_weights
    }
    # a constant schedule does not depend on the number of epochs
    if kept.get("lr_scheduler") == "const":
        del kept["epochs"]
    factors = [options.get(name) for name in ("batch_size", "accum_freq", "world_size")]
    record = {
        "options": kept,
        "global_batch_size": math.prod(factors) if None not in factors else None,
        "shards": _identity(expand(options["train_data"], "--train-data")),
        "tokenizer": _digest_of_files(options.get("model") or "", _tokenizer),
        "versions": {},
    }
    return json.loads(json.dumps(record, default=str))


def _content(name: str, value):
    """Returns the value to compare: for files and model folders a digest, so that they may be
    moved."""
    # --force-image-size 224 is parsed as a list
    if isinstance(value, list | tuple) and len(value) == 1:
        return value[0]
    if not isinstance(value, str) or not value:
        return value
    is_file = name in ("pretrained", "distill_pretrained", "pretrained_image") or (
        name == "superclip_idf" and is_idf_file(value)
    )
    if is_file and os.path.isfile(value):
        return DIGEST + (file_identity(Path(value)) or content_digest(Path(value)))
    if name in ("model", "distill_model"):
        return _digest_of_files(value, _configuration) or value
    return value


def _digest_of_files(model: str, describe: Callable[[str], object]) -> str | None:
    """Returns a digest of what `describe` reads from the user's files of a model, which may change
    and be moved; None for OpenCLIP's models, and if a file cannot be read."""
    if not model.startswith("local-dir:") and not model.endswith(".json"):
        return None
    with suppress(InputError, OSError, ValueError, KeyError):
        content = json.dumps(describe(model))
        return DIGEST + hashlib.sha256(content.encode()).hexdigest()
    return None


def _configuration(model: str) -> dict:
    """Returns the configuration of a model, without the places of its tokenizer."""
    import open_clip

    register_model(model)
    config = open_clip.get_model_config(model)
    text_cfg = config.get("text_cfg", {})
    config["text_cfg"] = {
        name: value for name, value in text_cfg.items() if "tokenizer" not in name
    }
    return config


def _tokenizer(model: str) -> list:
    """Returns the vocabulary of a model's tokenizer, and the tokens of PROBE."""
    from ..data.captions import tokenizer_identity

    tokenizer = open_tokenizer(register_model(model))
    return [*tokenizer_identity(tokenizer), tokenizer([PROBE])[0].tolist()]


def _identity(shards: list[str]) -> dict:
    """Returns the number of shards, a hash of their relative names, and facts on a few local ones.

    These are the sizes, digests of both ends or of whole tables, and the numbers of samples that
    sizes.json lists.
    """
    names = shards
    if not any(map(is_remote, shards)):
        paths = [os.path.abspath(shard) for shard in shards]
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = [os.path.relpath(path, folder) for path in paths]
    facts = {fact: {} for fact in FACTS}
    stride = math.ceil(len(shards) / NUM_MEASURED)
    for name, shard in zip(names[::stride], map(Path, shards[::stride]), strict=True):
        if not shard.is_file():
            continue
        with suppress(OSError):
            facts["bytes"][name] = shard.stat().st_size
            digest = content_digest if is_table(str(shard)) else _digest_of_ends
            facts["contents"][name] = digest(shard)
            index = json_or_empty(shard.with_name("sizes.json"))
            facts["samples"][name] = index.get(shard.name, "no number of")
    return {
        "number": len(shards),
        "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        **facts,
    }


def _digest_of_ends(file: Path) -> str:
    """Returns a digest of the first and the last END bytes of a file."""
    with open(file, "rb") as opened:
        digest = hashlib.sha256(opened.read(END))
        opened.seek(max(END, file.stat().st_size - END))
        digest.update(opened.read(END))
    return digest.hexdigest()


def read_beginning(folder: Path) -> dict | None:
    """Returns the record in a run's folder, else one made from OpenCLIP's params.txt, or None."""
    record = json_or_empty(folder / RECORD).get(BEGAN_WITH) or json_or_empty(folder / NAME)
    if {"options", "global_batch_size", "shards", "versions"} <= record.keys():
        return record
    options = read_options(folder)
    return _record(options) if isinstance(options.get("train_data"), str) else None


def differences(before: dict | None, now: dict) -> list[str]:
    """Returns a line for each difference between the record of a run's start, if there is one, and
    that of its resumption."""
    if before is None:
        return []
    earlier = before["options"]
    options = now["options"]
    # Older records leave out what was not given; a record of another OpenCLIP may lack the option
    # itself.
    openclip = [record["versions"].get("open_clip_torch") for record in (before, now)]
    is_same_openclip = openclip[0] == openclip[1]
    compared = {
        name
        for name in options
        if name in earlier or (is_same_openclip and not name.startswith("superclip_"))
    }
    compared.add("superclip_slices")  # recorded only if given
    lines = [
        f"--{name.replace('_', '-')} was {_shown(earlier.get(name))} and is "
        f"{_shown(options.get(name))}"
        for name in sorted(compared)
        if earlier.get(name) != options.get(name)
    ]
    if before["global_batch_size"] not in (None, now["global_batch_size"]):
        lines.append(
            f"the global batch was {before['global_batch_size']:,} and is "
            f"{now['global_batch_size']:,}"
        )
    if before.get("tokenizer") not in (None, now["tokenizer"]):
        lines.append(
            f"the tokenizer of --model was {_shown(before['tokenizer'])} and is "
            f"{_shown(now['tokenizer'])}"
        )
    lines += _changed_data(before["shards"], now["shards"])
    installed = now["versions"]
    return lines + [
        f"{name} was {version} and is {installed[name]}"
        for name, version in before["versions"].items()
        if installed.get(name, version) != version
    ]


def changed_data(folder: Path, data: str) -> list[str]:
    """Returns a line if the shards in a run's record of its start have changed since."""
    before = read_beginning(folder)
    return _changed_data(before["shards"], _identity(expand(data, "--data"))) if before else []


def _changed_data(old: dict, new: dict) -> list[str]:
    """Returns a line if shards have changed; older records have fewer facts on them."""
    if old["sha256"] != new["sha256"]:
        shown = [f"{shards['number']:,} shards ({shards['sha256'][:8]})" for shards in (old, new)]
        return [f"--train-data was {shown[0]} and is {shown[1]}"]
    for fact, described in FACTS.items():
        for name, was in old.get(fact, {}).items():
            now = new[fact].get(name, was)
            if was != now:
                return [f"--train-data: {name} {described.format(was=was, now=now)}"]
    return []


def _shown(value) -> str:
    text = "not given" if value is None else str(value)
    return text[: len(DIGEST) + 8] if text.startswith(DIGEST) else text


def check_beginning(folder: Path, now: dict, accept: str) -> None:
    """Raises InputError if there are differences from the start of the run; the flag `accept`
    would accept them."""
    if lines := differences(read_beginning(folder), now):
        raise InputError(
            f"{folder} was started with other settings: {'; '.join(lines)}; use the same "
            f"settings, train into another folder, or pass {accept}, which records the change"
        )


def write_beginning(folder: Path, now: dict, *, resumes: bool) -> list[str]:
    """Records the start of a run or, if it resumes, the changes since then, which are returned."""
    if BEGAN_WITH in json_or_empty(folder / RECORD):
        return []
    before = read_beginning(folder) if resumes else None
    lines = differences(before, now)
    if before is None or lines or not before["versions"]:  # else the record is up to date
        changes = (before or {}).get("changes", [])
        if lines:
            changes = [*changes, {"when": current_time(), "changed": lines}]
        write_json(folder / NAME, {**now, "changes": changes})
    return lines
