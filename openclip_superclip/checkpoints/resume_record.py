"""What the weights of a run depend on: recorded when it starts, and compared when it resumes."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.tables import is_table
from ..data.tar_shards import expand, is_remote
from ..environment import current_time, versions
from ..errors import InputError, as_input_error
from ..files import content_digest, file_identity, json_or_empty, read_json, write_json
from ..flags import is_idf_file
from ..option_table import effect_of
from .trainer_files import RECORD, read_options

if TYPE_CHECKING:  # it imports torch
    from .architecture import Architecture

NAME = "began_with.json"  # in the folder of a run of `superclip train`
FIELD = "began_with"  # the same in run.json, which `superclip run` alone writes
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
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
DIVISION = {  # options that may change, and how a change is described
    "world_size": "the number of ranks",
    "workers": "--workers",
    "batch_size": "--batch-size",
}
DIGEST = "sha256:"
FACTS = {  # on measured shards, and how a change is described
    "bytes": "had {was:,} bytes and has {now:,}",
    "contents": "had other content of the same size",
}


@dataclass(frozen=True)
class ResumeRecord:
    """What the weights of a run depend on.

    Records of earlier versions lack what has a default here.
    """

    options: dict  # that change the weights, by attribute name; files by their digests
    global_batch_size: int | None
    shards: dict  # `_identity` of the training data
    versions: dict[str, str]  # of packages and plugins; {} if unknown
    tokenizer: str | None = None  # a digest, if it is one of the user's files
    preprocessing: dict | None = None  # of images, with the defaults of the model and its folder
    division: dict | None = None  # of a step: ranks, workers, and captions per rank


def record_of(options: dict, world_size: int, model: "Architecture") -> ResumeRecord:
    """Returns the record of a run, given OpenCLIP's parsed options (including the model's
    defaults)."""
    return replace(
        _record(options | {"world_size": world_size}),
        versions=versions_of_run(),
        tokenizer=_digest_of_files(options["model"], lambda _: _tokenizer(model)),
        preprocessing=_preprocessing(model, options),
    )


def versions_of_run() -> dict[str, str]:
    """Returns the versions of the packages that a run depends on and of installed plugins."""
    plugins = [entry.dist for entry in entry_points(group="open_clip")]
    return versions(*DEPENDS_ON) | {plugin.name: plugin.version for plugin in plugins}


def _record(options: dict) -> ResumeRecord:
    kept = {
        name: _content(name, value)
        for name, value in sorted(options.items())
        if effect_of(name).changes_weights and name not in DIVISION
    }
    # a constant schedule does not depend on the number of epochs
    if kept.get("lr_scheduler") == "const":
        del kept["epochs"]
    factors = [options.get(name) for name in ("batch_size", "accum_freq", "world_size")]
    record = ResumeRecord(
        options=kept,
        global_batch_size=math.prod(factors) if None not in factors else None,
        shards=_identity(expand(options["train_data"], "--train-data")),
        versions={},
        division={name: options.get(name) for name in DIVISION},
    )
    return ResumeRecord(**json.loads(json.dumps(asdict(record), default=str)))  # as in a file


def _preprocessing(model: "Architecture", options: dict) -> dict:
    """Returns how a run prepares images."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    cfg = merge_preprocess_dict(PreprocessCfg(), model.with_options(options).preprocess_cfg)
    return {
        name: list(cfg[name]) if isinstance(cfg[name], tuple) else cfg[name]
        for name in PREPROCESSING
    }


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
        return f"{DIGEST}{file_identity(Path(value))}"
    if name in ("model", "distill_model"):
        return configuration_digest(value) or value
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


def configuration_digest(model: str) -> str | None:
    """Returns a digest of the configuration in the user's files of a model, None for OpenCLIP's
    models."""
    return _digest_of_files(model, _configuration)


def _configuration(model: str) -> dict:
    """Returns the configuration of a model, without the places of its tokenizer."""
    file = Path(model.removeprefix("local-dir:"))
    if model.startswith("local-dir:"):
        file = file / "open_clip_config.json"
    content = read_json(file)
    config = content.get("model_cfg", content)
    text_cfg = config.get("text_cfg", {})
    config["text_cfg"] = {
        name: value for name, value in text_cfg.items() if "tokenizer" not in name
    }
    return config


def _tokenizer(model: "Architecture") -> list:
    """Returns the vocabulary of a model's tokenizer, and the tokens of PROBE."""
    from ..data.captions import tokenizer_identity

    tokenizer = model.tokenizer()
    return [*tokenizer_identity(tokenizer), tokenizer([PROBE])[0].tolist()]


def _identity(shards: list[str]) -> dict:
    """Returns the number of shards, a hash of their relative names, and facts on a few local ones.

    These are the sizes, and digests of both ends or of whole tables.
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


def read_record(folder: Path) -> ResumeRecord | None:
    """Returns the record in a run's folder, else one made from OpenCLIP's params.txt, or None."""
    content = json_or_empty(folder / RECORD).get(FIELD) or json_or_empty(folder / NAME)
    with as_input_error(f"{folder}: the record of the run's start is damaged"):
        if {"options", "global_batch_size", "shards", "versions"} <= content.keys():
            names = ResumeRecord.__dataclass_fields__.keys() & content.keys()
            record = ResumeRecord(**{name: content[name] for name in names})
            changes(record, record)  # raises for values of other types
            return record
    options = read_options(folder)
    return _record(options) if isinstance(options.get("train_data"), str) else None


@dataclass(frozen=True)
class Changes:
    """What has changed since a run was started, a line each."""

    refused: list[str]  # another run, unless the user accepts the changes
    allowed: list[str]  # the same run, with other weights by chance

    @property
    def lines(self) -> list[str]:
        return self.refused + self.allowed

    def check(self, folder: Path, accept: str) -> None:
        """Raises InputError for changes that are not allowed; the flag `accept` would accept
        them."""
        if self.refused:
            raise InputError(
                f"{folder} was started with other settings: {'; '.join(self.refused)}; use the "
                f"same settings, train into another folder, or pass {accept}, which records the "
                "change"
            )


def changes(before: ResumeRecord | None, now: ResumeRecord) -> Changes:
    """Compares the record of a run's start, if there is one, with that of its resumption."""
    if before is None:
        return Changes([], [])
    lines = _changed_options(before, now)
    if before.global_batch_size not in (None, now.global_batch_size):
        lines.append(
            f"the global batch was {before.global_batch_size:,} and is {now.global_batch_size:,}"
        )
    if before.tokenizer not in (None, now.tokenizer):
        lines.append(_line("the tokenizer of --model", before.tokenizer, now.tokenizer))
    lines += _changed_data(before.shards, now.shards)
    lines += [
        _line(name, version, now.versions[name])
        for name, version in before.versions.items()
        if now.versions.get(name, version) != version
    ]
    division = before.division or now.division
    allowed = [
        f"{_line(what, division[name], now.division[name])}, which changes the batches"
        for name, what in DIVISION.items()
        if division[name] not in (None, now.division[name])
    ]
    return Changes(lines, allowed)


def _changed_options(before: ResumeRecord, now: ResumeRecord) -> list[str]:
    earlier = before.options
    # Older records leave out what was not given; a record of another OpenCLIP may lack the option
    # itself.
    openclip = [record.versions.get("open_clip_torch") for record in (before, now)]
    is_same_openclip = openclip[0] == openclip[1]
    compared = {
        name
        for name in now.options
        if name in earlier or (is_same_openclip and not name.startswith("superclip_"))
    }
    compared.add("superclip_slices")  # recorded only if given
    changed = [name for name in sorted(compared) if earlier.get(name) != now.options.get(name)]
    lines = [
        _line(f"--{name.replace('_', '-')}", earlier.get(name), now.options.get(name))
        for name in changed
    ]
    of_images = now.preprocessing or {}
    for name, was in (before.preprocessing or of_images).items():
        is_named = {f"image_{name}", "model", "pretrained"} & {*changed}  # by its own line
        if of_images.get(name, was) != was and not is_named:
            lines.append(_line(f"the images' {name} of --model", was, of_images[name]))
    return lines


def changed_data(folder: Path, data: str) -> list[str]:
    """Returns a line if the shards in a run's record of its start have changed since."""
    before = read_record(folder)
    return _changed_data(before.shards, _identity(expand(data, "--data"))) if before else []


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


def _line(what: str, was: object, now: object) -> str:
    return f"{what} was {_shown(was)} and is {_shown(now)}"


def _shown(value: object) -> str:
    text = "not given" if value is None else str(value)
    return text[: len(DIGEST) + 8] if text.startswith(DIGEST) else text


def continued(
    before: ResumeRecord | None, now: ResumeRecord, found: Changes, earlier: list[dict], **when
) -> tuple[ResumeRecord, list[dict]]:
    """Returns the record to write, that of the start if nothing has changed and this version has
    written it, and the list of changes, `earlier` ones first; `when` says which start this is."""
    if found.lines:
        earlier = [*earlier, {"when": current_time(), **when, "changed": found.lines}]
    is_kept = before is not None and before.versions and before.division and not found.lines
    return before if is_kept else now, earlier


def write_record(folder: Path, now: ResumeRecord, checkpoint: str | None) -> list[str]:
    """Records the start of a run of `superclip train` or, if it resumes from a checkpoint, the
    changes since then, which are returned."""
    if FIELD in json_or_empty(folder / RECORD):  # of `superclip run`
        return []
    before = read_record(folder) if checkpoint is not None else None
    found = changes(before, now)
    earlier = json_or_empty(folder / NAME).get("changes", []) if before else []
    record, noted = continued(before, now, found, earlier)
    if record is not before:
        write_json(folder / NAME, {**asdict(record), "changes": noted})
    return found.lines
