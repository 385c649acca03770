"""Prints the table of docs/results/README.md from runs/*/record.json: python
docs/results/table.py."""

import json
from pathlib import Path

RUNS = Path(__file__).parent / "runs"
HEADS = ("run", "method", "model", "samples", "batch", "learning rate", "device", "scores, %")
NUM_SCORES = 3
WANTED = (  # recipes without a record from a GPU
    ("finetune/superclip_vit-b-16_512k_bs256", "SuperCLIP", "ViT-B-16"),
    ("cc3m/superclip_vit-b-16_76.8m_bs1k", "SuperCLIP", "ViT-B-16"),
    ("cc12m/superclip_vit-b-16_256m_bs1k", "SuperCLIP", "ViT-B-16"),
)


def table() -> str:
    """Returns the table in Markdown: a row for each record, and rows that wait for one."""
    records = {
        file.parent.name: json.loads(file.read_text())
        for file in sorted(RUNS.glob("*/record.json"))
    }
    rows = [row(name, record) for name, record in records.items()]
    known = {record["recipe"] for record in records.values() if record["gpu"]}
    for recipe, method, model in WANTED:
        if recipe.partition("/")[2] not in known:
            rows.append(
                (
                    f"*yours:* `{recipe}`",
                    method,
                    model,
                    "",
                    "",
                    "",
                    "a GPU",
                    "*not measured: send yours*",
                )
            )
    lines = [HEADS, ("---",) * len(HEADS), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def row(name: str, record: dict) -> tuple[str, ...]:
    """Returns the cells of a record."""
    settings, scores = record["settings"], [*record["scores"].items()][:NUM_SCORES]
    return (
        f"[{name}](runs/{name}/record.json)",
        settings["method"],
        settings["model"].removeprefix("local-dir:"),
        f"{settings['samples']:,}",
        str(settings["global_batch_size"]),
        str(settings["lr"]),
        record["gpu"] or record["processor"],
        ", ".join(f"{key} {score:.1f}" for key, score in scores),
    )


if __name__ == "__main__":
    print(table())
