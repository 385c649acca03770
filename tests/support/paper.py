"""The paper's runs, out of paper.md: what each reached, by the name of its recipe."""

import re
from pathlib import Path

TEXT = Path(__file__).with_name("paper.md").read_text()
RETRIEVAL = [
    "coco_text_to_image_r1", "flickr30k_text_to_image_r1", "coco_image_to_text_r1", "flickr30k_image_to_text_r1",
]  # fmt: skip
IMAGENET = ["imagenet_zero_shot", "imagenet_v2_zero_shot"]
CAPTIONS = {"1.0/0.0": "", "0.0/1.0": "-long", "0.8/0.2": "-mixed0.8", "dual": "-dual"}


def released() -> dict:
    """The settings of the released configuration."""
    text = re.search(r"Released configuration.*?\n\n", TEXT + "\n", flags=re.DOTALL)[0].replace("\n", " ")
    beta1, beta2 = re.search(r"betas ([\d.]+)/([\d.]+)", text).groups()
    names = {"local loss": "local-loss", "gather with grad": "gather-with-grad", "static graph": "ddp-static-graph"}
    names["gradient checkpointing"] = "grad-checkpointing"
    return {
        "lr": float(re.search(r"\blr (\S+),", text)[1]),
        "warmup": int(re.search(r"warmup (\d+)", text)[1]),
        "beta1": float(beta1),
        "beta2": float(beta2),
        "eps": float(re.search(r"eps (\S+),", text)[1]),
        "wd": float(re.search(r"weight decay ([\d.]+)", text)[1]),
        "precision": re.search(r"amp_\w+", text)[0],
        "seed": int(re.search(r"seed (\d+)", text)[1]),
        "flags": {flag: True for name, flag in names.items() if name in text},
    }


def runs() -> dict[str, dict[str, dict[str, float]]]:
    """What each run reached: by recipe, table or figure, and measure."""
    found = {}

    def add(source, name, samples, measures, values, batch="16k"):
        recipe = f"{name}_{samples}_bs{batch}"
        numbers = dict(zip(measures, map(float, values), strict=True))
        found.setdefault(recipe, {}).setdefault(source, {}).update(numbers)

    for name, *values in _table("Table 2"):
        method, model, samples = name.split()
        add("Table 2", f"{method.lower()}_{_model(model)}", samples.lower(), IMAGENET + RETRIEVAL, values)
    for name, captions, *values in _table("Table 5"):
        method, size = name.split("-")
        name = f"{method.lower()}{CAPTIONS[captions]}_vit-{size.lower()}-16"
        add("Table 5", name, "512m", [*RETRIEVAL, "average_of_38"], values)
    for name, *values in _table("Table 6"):
        add("Table 6", f"{name.lower()}_vit-b-16", "512m", IMAGENET + RETRIEVAL, values)
    vision = ["imagenet_linear_probe", "pascal_miou", "ade20k_miou", "nyuv2_rmse"]
    for method, size, *values in re.findall(r"(\w*CLIP)-([BL]) ([\d.]+) / ([\d.]+) / ([\d.]+) / (\.\d+)", TEXT):
        add("Table 7", f"{method.lower()}_vit-{size.lower()}-16", "512m", vision, values)
    for name, clip, superclip in re.findall(r"(\w+) ([\d.]+)→(\d+(?:\.\d)?)", TEXT):
        for method, value in (("clip", clip), ("superclip", superclip)):
            add("Table 8", f"{method}_vit-b-16", "512m", [f"llava_{name.lower()}"], [value])
    for batch, *values in _table("Figure 4"):
        measures = ["imagenet_zero_shot", "imagenet_linear_probe"]
        add("Figure 4", "clip_vit-b-16", "512m", measures, values[0::3], batch.lower())
        add("Figure 4", "superclip_vit-b-16", "512m", measures, values[1::3], batch.lower())
    averages = ["text_to_image_r1_average", "image_to_text_r1_average"]
    for weight, *values in _table("Table 9"):
        variant = "" if weight == "1.0" else f"-weight{weight}"
        add("Table 9", f"superclip{variant}_vit-b-16", "256m", [*IMAGENET[:1], *averages], values)
    for idf, *values in _table("Table 10"):
        variant = "-no-idf" if idf == "without" else ""
        add("Table 10", f"superclip{variant}_vit-b-16", "256m", [*IMAGENET[:1], *RETRIEVAL], values)
    return found


def _model(name: str) -> str:
    return f"vit-{name.lower().replace('/', '-')}"


def _table(title: str) -> list[list[str]]:
    """The cells of the table below `title`, without its head."""
    lines = TEXT[re.search(f"^{title}", TEXT, flags=re.MULTILINE).start() :].splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows
