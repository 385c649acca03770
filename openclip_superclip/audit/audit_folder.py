"""The folder of an audit: whose it is, its parts, and what of it is finished."""

import hashlib
import json
from pathlib import Path

from ..atomic_files import make_folder, write_json
from ..checkpoints import HEAD_NAME
from ..checkpoints.checkpoint import Checkpoint, file_of_weights
from ..checkpoints.file_identity import content_digest, file_identity
from ..checkpoints.run_options import options_to_keep
from ..errors import InputError
from .audited_data import AuditedFiles, AuditedShards, Part
from .scores_file import merge_scores

RECORD, SCORES = "audit.json", "scores.jsonl"


class AuditFolder:
    """OUT, which holds one audit: of one data set, by one model. Nothing is written before `claim`.

    Raises InputError where OUT holds something else, or an audit of other data, by another model or in other parts.

    Args:
        architecture: the model's name, where it was given.
        part: of this call; None where it is to score all, or to join parts that others have scored.
    """

    def __init__(
        self, out: Path, data: AuditedFiles | AuditedShards, model: Checkpoint, architecture: str | None,
        part: Part | None,
    ):  # fmt: skip
        self.out, self.scores = out, out / SCORES
        self.facts = {
            "data": data.given, "content of the data": data.digest(), "columns": list(getattr(data, "columns", [])),
            "model": str(model.path), "content of the model": model_digest(model, architecture),
        }  # fmt: skip
        make_folder(out, "--out")
        there = self._check()
        self.num_parts = self.facts["parts"] = part.of if part else there["parts"] if there else 1
        self._check()

    def claim(self) -> None:
        """Writes what the folder is of; InputError where another call has meanwhile."""
        if self._check() is None:
            write_json(self.out / RECORD, self.facts)

    def _check(self) -> dict | None:
        """Returns the record of the audit that is there, None where none is; InputError for that of another."""
        files = list(self.out.iterdir())  # first: scores come after their record
        record = self.out / RECORD
        if not record.exists():
            if any(not path.name.startswith(f"{RECORD}.") for path in files):
                raise InputError(f"--out: {self.out} is not empty and holds no audit: give another name")
            return None
        try:
            there = json.loads(record.read_text())
            assert isinstance(there["parts"], int)
        except (OSError, ValueError, LookupError, TypeError, AssertionError):
            raise InputError(f"--out: {record} is damaged: give another --out, or remove {self.out}") from None
        for name in ("content of the data", "columns", "content of the model", "parts"):
            if name in self.facts and there.get(name) != self.facts[name]:
                shown = name.removeprefix("content of the ")  # the data and the model may have moved
                found, given = there.get(shown), self.facts[shown]
                told = f"{found}, and this is {given}" if found != given else f"{given} has changed since"
                raise InputError(
                    f"--out: {self.out} holds an audit with other {shown}: {told}: give another --out, or remove it"
                )
        return there

    def file_of(self, part: Part) -> Path:
        """Returns the file of a part's scores, once it is finished."""
        if part.of == 1:
            return self.scores
        return self.out / f"scores-{part.number:0{len(str(part.of))}}-of-{part.of}.jsonl"

    def is_finished(self, part: Part) -> bool:
        """Returns whether a part needs no more scoring."""
        return self.scores.exists() or self.file_of(part).exists()

    def join(self) -> None:
        """Makes the scores of all pairs out of the parts'; InputError where one is not finished."""
        if self.scores.exists():
            return
        parts = [Part(number, self.num_parts) for number in range(1, self.num_parts + 1)]
        missing = [part for part in parts if not self.is_finished(part)]
        if missing:
            named = ", ".join(f"--part {part.number}/{part.of}" for part in missing[:3])
            more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
            raise InputError(f"--out: {self.out} is an audit in {self.num_parts} parts; not finished: {named}{more}")
        merge_scores([self.file_of(part) for part in parts], self.scores)


def model_digest(model: Checkpoint, architecture: str | None) -> str:
    """Returns what tells a model from others: its weights and head, its configuration, the options of its run."""
    weights, options = file_of_weights(model.path), options_to_keep(model)
    name = architecture or str(options.pop("model", ""))
    files = [weights]
    if model.path.is_dir():
        files.append(weights.with_name(HEAD_NAME))
    if name.startswith("local-dir:"):
        files.append(Path(name.removeprefix("local-dir:")) / "open_clip_config.json")
        name = "local-dir:"  # which may have moved
    elif name.endswith(".json"):
        files.append(Path(name))
    digest = hashlib.sha256(json.dumps([name, options], sort_keys=True, default=str).encode())
    for file in files:
        if file.is_file():
            digest.update((file_identity(file) or content_digest(file)).encode())
    return digest.hexdigest()
