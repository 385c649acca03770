"""The folder of an audit: whose it is, its parts, and what of it is finished."""

import hashlib
import json
from pathlib import Path

from ..atomic_files import make_folder, write_json
from ..checkpoints import HEAD_NAME
from ..checkpoints.checkpoint import file_of_weights
from ..checkpoints.file_identity import content_digest, file_identity
from ..errors import InputError
from .audited_data import AuditedFiles, AuditedShards, Part
from .scores_file import merge_scores

RECORD, SCORES = "audit.json", "scores.jsonl"


class AuditFolder:
    """OUT, which holds one audit: of one data set, by one model.

    Raises InputError where OUT holds something else, or an audit of other data, by another model or in other parts.

    Args:
        part: of this call; None where it is to score all, or to join parts that others have scored.
    """

    def __init__(self, out: Path, data: AuditedFiles | AuditedShards, model: Path, part: Part | None):
        self.out, self.scores = out, out / SCORES
        facts = {
            "data": data.given, "content of the data": data.digest(), "columns": list(getattr(data, "columns", [])),
            "model": str(model), "content of the model": model_digest(model),
        }  # fmt: skip
        make_folder(out, "--out")
        record = out / RECORD
        there = json.loads(record.read_text()) if record.exists() else None
        if there is None and any(not path.name.startswith(("audit.", "scores")) for path in out.iterdir()):
            raise InputError(f"--out: {out} is not empty and holds no audit: give another name")
        self.num_parts = part.of if part else there["parts"] if there else 1
        facts["parts"] = self.num_parts
        if there is None:
            write_json(record, facts)
            return
        for name in ("content of the data", "columns", "content of the model", "parts"):
            if there.get(name) != facts[name]:
                shown = name.removeprefix("content of the ")  # the data and the model may have moved
                raise InputError(
                    f"--out: {out} holds an audit with other {shown}: {there.get(shown)}, and this is {facts[shown]}: "
                    "give another --out, or remove it"
                )

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


def model_digest(model: Path) -> str:
    """Returns what tells a model's weights and head from others'."""
    weights = file_of_weights(model)
    digest = hashlib.sha256()
    for file in (weights, weights.with_name(HEAD_NAME)):
        if file == weights or (model.is_dir() and file.is_file()):
            digest.update((file_identity(file) or content_digest(file)).encode())
    return digest.hexdigest()
