"""What version 0.2 had and later versions do not, each with what to use instead.

Release 0.4 drops this file.
"""

COMMANDS = {
    "audit": "it selected no better than CLIP's own score of each pair; use that, or a data filter",
    "benchmark": "studies/benchmark/measure.py of commit 3614e7ad times the class head",
    "import": "superclip export reads the checkpoints of SuperCLIP's authors",
    "interpolate": "superclip average --weights 0.5 0.5 RELEASED TUNED interpolates",
    "join": "write an OpenCLIP configuration with timm_model_name and hf_model_name",
    "recipes": "superclip plan lists the recipes, and superclip plan NAME --yaml prints one",
    "rehearse": "use superclip run --rehearse, or superclip submit --rehearse",
    "report": "superclip evaluate RUN… compares runs with each other and with the paper",
    "shards": "examples/table_to_shards.py converts a table; img2dataset downloads one",
}

_SETUP = "copy the shards in the job's --setup file, with the cluster's own tool"
_DENSE = "superclip export writes the tower, which other tools evaluate"
_BEST = "superclip export RUN --best takes the best epoch of a run"

FLAGS = {
    "--superclip-placebo": "leave it out: it was a control for studies",
    "--superclip-word-course": "leave it out: no words are recorded during training",
    "--stage": _SETUP,
    "--patience": _BEST,
    "--course": "no words are recorded during training",
    "--serve": "--out writes the same page to a file",
    "--port": "--out writes the page to a file",
    "--card": "studies/benchmark/measure.py of commit 3614e7ad times the class head",
    "--dense-lr": _DENSE,
    "--dense-epochs": _DENSE,
    "--alpha": "superclip average --weights takes the weight of each checkpoint",
    "--json": "a started run's run.json has the values of its plan; superclip words --out DIR "
    "writes words.jsonl",
    "--rehearsal": "give the rehearsal's speed, --samples-per-second S",
    "--gpu": "the hours are those of A100s; give the rehearsal's speed, --samples-per-second S",
    "--stop-after-slice": "superclip stop RUN ends a run after its next checkpoint",
    "--state": "the table of superclip status has a column for grep",
    "--record": "superclip evaluate writes scores.json, with the versions that made it",
    "--runs": "the runs of a study are in OUT/runs",
    "--write-evaluation": "superclip demo prints its scores",
    "--global-batch": "leave it out: counts assume the released runs' batch, and IDF weights need "
    "only their ratios",
    "--check": "superclip check DATA reads all shards, or all images of a table",
    "--every": "give the checkpoints, RUN/checkpoints/*.pt",
}

FIELDS = {  # of recipes, and of run.json
    "superclip.placebo": FLAGS["--superclip-placebo"],
    "superclip.word_course": FLAGS["--superclip-word-course"],
    "patience": _BEST,
    "stage": _SETUP,
}

STUDY_FIELDS = {  # of a study's file
    "choose": "set lr in the arms, or compare all arms at several rates: cells: {lr: [5e-4, 1e-3]}",
    "first_seed": "seeds begin at 0",
}


def without_removed(values: dict, prefix: str = "") -> tuple[dict, list[str]]:
    """Returns the fields of a recipe or a run without the removed ones, and a line about each
    removed one that had a value; `prefix` is "superclip." for those of the class loss."""
    kept = {}
    lines = []
    for name, value in values.items():
        reason = FIELDS.get(f"{prefix}{name}")
        if reason is None:
            kept[name] = value
        elif value:
            lines.append(f"the field {prefix}{name} was removed: {reason}")
    return kept, lines


def removed_flag(message: str) -> str:
    """Returns what to use instead of the first removed flag in a parser's error, "" for none."""
    for word in message.split():
        flag = word.partition("=")[0]
        if flag in FLAGS:
            return f"{flag} was removed: {FLAGS[flag]}"
    return ""
