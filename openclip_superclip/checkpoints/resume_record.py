"""What the weights of a run depend on: recorded when it starts, and compared when it resumes."""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path

from ..data.tar_shards import expand, is_remote
from ..environment import current_time, versions
from ..errors import InputError, listed
from ..files import file_identity, json_or_empty, write_json
from ..flags import Config, DataConfig
from ..option_table import effect_of
from .trainer_files import RECORD, read_options

NAME = "began_with.json"  # in the folder of a run of `superclip train`
FIELD = "began_with"  # the same in run.json, which `superclip run` alone writes
NUM_MEASURED = 16  # maximum number of shards with recorded sizes
PACKAGE = "openclip-superclip"
OPENCLIP = "open_clip_torch"
DEPENDS_ON = (
    "python",
    PACKAGE,
    OPENCLIP,
    "torch",
    "torchvision",
    "timm",
    "webdataset",
    "numpy",
    "pillow",
)
# options that may change, because the global batch stays the same
DIVISION = ("world_size", "workers", "batch_size")
NAMES = {"world_size": "the number of ranks", "global_batch_size": "the global batch"}
# options that a file or a folder may be the value of: they may be moved
FILES = ("pretrained", "distill_pretrained", "pretrained_image", "superclip_idf")
DIGEST = "sha256:"
# earlier records and records without --superclip lack options that have these values
DEFAULTS = {"superclip": False} | {
    f"superclip_{field.name}": field.default for field in (*fields(Config), *fields(DataConfig))
}


@dataclass(frozen=True)
class ResumeRecord:
    """What the weights of a run depend on."""

    options: dict  # that change the weights, by attribute name; files by their digests
    shards: dict  # the training data: number, digest of the names, and sizes
    versions: dict[str, str]  # of packages and plugins; {} if unknown


def record_of(options: dict, world_size: int) -> ResumeRecord:
    """Returns the record of a run, given OpenCLIP's parsed options (including the model's
    defaults)."""
    return _record(options | {"world_size": world_size}, versions_of_run())


def versions_of_run() -> dict[str, str]:
    """Returns the versions of the packages that a run depends on and of installed plugins."""
    plugins = [entry.dist for entry in entry_points(group="open_clip")]
    return versions(*DEPENDS_ON) | {plugin.name: plugin.version for plugin in plugins}


def _record(options: dict, versions: dict[str, str]) -> ResumeRecord:
    recorded = {
        name: _content(name, value)
        for name, value in sorted(options.items())
        if effect_of(name).changes_weights or name in DIVISION
    }
    # a constant schedule does not depend on the number of epochs
    if recorded.get("lr_scheduler") == "const":
        del recorded["epochs"]
    factors = [options.get(name) for name in ("batch_size", "accum_freq", "world_size")]
    if None not in factors:
        recorded["global_batch_size"] = math.prod(factors)
    shards = _shards(expand(options["train_data"], "--train-data"))
    # as in a file
    return ResumeRecord(json.loads(json.dumps(recorded, default=str)), shards, versions)


def _content(name: str, value: object) -> object:
    """Returns the value to compare: for files and model folders a digest."""
    # --force-image-size 224 is parsed as a list
    if isinstance(value, list | tuple) and len(value) == 1:
        return value[0]
    if name in FILES and isinstance(value, str) and os.path.isfile(value):
        return f"{DIGEST}{file_identity(Path(value))}"
    if name in ("model", "distill_model") and value:
        return configuration_digest(value) or value
    return value


def configuration_digest(model: str) -> str | None:
    """Returns a digest of the configuration in the user's files of a model, without the places of
    its tokenizer; None for OpenCLIP's models, and if the file cannot be read."""
    file = Path(model)
    if model.startswith("local-dir:"):
        file = Path(model.removeprefix("local-dir:"), "open_clip_config.json")
    if file.suffix != ".json" or not (content := json_or_empty(file)):
        return None
    config = content.get("model_cfg", content)
    text_cfg = config.get("text_cfg", {})
    config["text_cfg"] = {
        name: value for name, value in text_cfg.items() if "tokenizer" not in name
    }
    return DIGEST + hashlib.sha256(json.dumps(config).encode()).hexdigest()


def _shards(paths: list[str]) -> dict:
    """Returns the number of shards, a digest of their relative names, and the sizes of a few local
    ones."""
    names = paths
    if not any(map(is_remote, paths)):
        absolute = [os.path.abspath(path) for path in paths]
        folder = os.path.commonpath([os.path.dirname(path) for path in absolute])
        names = [os.path.relpath(path, folder) for path in absolute]
    stride = math.ceil(len(paths) / NUM_MEASURED)
    measured = zip(names[::stride], paths[::stride], strict=True)
    return {
        "number": len(paths),
        "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "bytes": {name: os.path.getsize(path) for name, path in measured if os.path.isfile(path)},
    }


def read_record(folder: Path) -> ResumeRecord | None:
    """Returns the record in a run's folder, else one made from OpenCLIP's params.txt, or None.

    Records of versions 0.1 and 0.2 contain the global batch beside the options, and neither the
    number of ranks nor --batch-size; those of 0.1 name the model instead of its digest.
    """
    for content in (json_or_empty(folder / RECORD).get(FIELD), json_or_empty(folder / NAME)):
        parts = content if isinstance(content, dict) else {}
        options, shards, versions = (parts.get(part) for part in ("options", "shards", "versions"))
        if all(isinstance(part, dict) for part in (options, shards, versions)):
            if parts.get("global_batch_size") is not None:
                options["global_batch_size"] = parts["global_batch_size"]
            options = {name: _content(name, value) for name, value in options.items()}
            return ResumeRecord(options | (parts.get("division") or {}), shards, versions)
    options = read_options(folder)
    return _record(options, {}) if isinstance(options.get("train_data"), str) else None


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
    refused = []
    allowed = []
    if before is None:
        return Changes(refused, allowed)
    missing = []  # options that another release did not record, or does not have
    releases = [
        (record.versions.get(PACKAGE), record.versions.get(OPENCLIP)) for record in (before, now)
    ]
    is_same_release = releases[0] == releases[1]
    for name in sorted(before.options.keys() | now.options.keys()):
        was = before.options.get(name, DEFAULTS.get(name))
        value = now.options.get(name, DEFAULTS.get(name))
        is_in_both = all(name in record.options or name in DEFAULTS for record in (before, now))
        if was == value or not (is_in_both or was or value):
            continue
        what = NAMES.get(name, f"--{name.replace('_', '-')}")
        if not is_in_both and (name in DIVISION or not is_same_release):
            missing.append(what)
        elif name in DIVISION:
            allowed.append(f"{_line(what, was, value)}, which changes the batches")
        else:
            refused.append(_line(what, was, value))
    refused += _changed_shards(before.shards, now.shards)
    for name, version in before.versions.items():
        if now.versions.get(name, version) != version:
            # a newer version of this package continues runs of earlier ones
            lines = allowed if name == PACKAGE else refused
            lines.append(_line(name, version, now.versions[name]))
    if missing:
        allowed.append(f"recorded by only one of the versions, and not compared: {listed(missing)}")
    return Changes(refused, allowed)


def changed_data(folder: Path, data: str) -> list[str]:
    """Returns a line if the shards in a run's record of its start have changed since."""
    before = read_record(folder)
    return _changed_shards(before.shards, _shards(expand(data, "--data"))) if before else []


def _changed_shards(old: dict, new: dict) -> list[str]:
    """Returns a line if shards have changed."""
    if old.get("sha256") != new["sha256"]:
        shown = [
            f"{shards.get('number')} shards ({str(shards.get('sha256'))[:8]})"
            for shards in (old, new)
        ]
        return [f"--train-data was {shown[0]} and is {shown[1]}"]
    for name, was in (old.get("bytes") or {}).items():
        size = new["bytes"].get(name, was)
        if size != was:
            return [f"--train-data: {name} had {was:,} bytes and has {size:,}"]
    return []


def _line(what: str, was: object, value: object) -> str:
    return f"{what} was {_shown(was)} and is {_shown(value)}"


def _shown(value: object) -> str:
    text = "not given" if value is None else str(value)
    return text[: len(DIGEST) + 8] if text.startswith(DIGEST) else text


def continued(
    before: ResumeRecord | None, now: ResumeRecord, found: Changes, earlier: list[dict], **when
) -> tuple[ResumeRecord, list[dict]]:
    """Returns the record to write, that of the start if nothing has changed, and the list of
    changes, `earlier` ones first; `when` says which start this is."""
    if found.lines:
        earlier = [*earlier, {"when": current_time(), **when, "changed": found.lines}]
    is_kept = before is not None and before.versions and not found.lines
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
