"""The model card of an export: what is known of the model, and nothing else."""

import open_clip

from ..table import markdown_table
from ..versions import versions
from .run_options import RunRecord

RECIPE = {  # options of the run, under OpenCLIP's names, and how the card calls them
    "epochs": "epochs",
    "train_num_samples": "samples an epoch",
    "lr": "learning rate",
    "warmup": "warm-up steps",
    "wd": "weight decay",
    "precision": "precision",
    "seed": "seed",
    "superclip_weight": "weight of the class loss λ",
    "superclip_idf": "IDF",
    "superclip_head_warmup": "samples in which the head learned alone",
}


MADE_WITH = ("openclip-superclip", "open_clip_torch", "torch")

PLAIN = "A CLIP model."
WITH_CLASS_LOSS = (
    "A CLIP model, trained with the class loss of [SuperCLIP](https://arxiv.org/abs/2512.14480). The class head served "
    "training only; this is the model without it."
)


def model_card(
    name: str, run: RunRecord, num_captions: int | None, license: str, library: str, usage: str, model: str
) -> str:
    """Returns the README.md of a model folder, in Markdown with the Hugging Face hub's front matter.

    Args:
        name: the model's own.
        run: what trained it; a card of a checkpoint that stands alone says nothing of a recipe.
        num_captions: seen with the class loss; None where nothing counted them.
        license: an identifier of the hub's.
        library: `open_clip` or `transformers`.
        usage: code that opens the model.
        model: the architecture's name.
    """
    sections = [
        _front_matter(run, license, library),
        f"# {name}\n\n{PLAIN if num_captions is None else WITH_CLASS_LOSS}",
        "## Model\n\n" + _list(_facts(run, num_captions, model)),
        f"## Use\n\n```python\n{usage}\n```",
    ]
    recipe = _list({label: run.options.get(option) for option, label in RECIPE.items()} | _global_batch(run))
    if recipe:
        sections.append(f"## Recipe\n\n{recipe}")
    if run.measures:
        rows = [[measure, f"{value:.4f}"] for measure, value in run.measures.items()]
        sections.append(f"## Measured by the training run\n\n{markdown_table(['', ''], rows)}")
    return "\n\n".join(sections) + "\n"


def _front_matter(run: RunRecord, license: str, library: str) -> str:
    lines = [f"license: {license}", f"library_name: {library}", "pipeline_tag: zero-shot-image-classification"]
    lines += ["tags:", "- clip", "- superclip"]
    repo = open_clip.get_pretrained_cfg(*_model_and_tag(run)).get("hf_hub", "")
    if repo:
        lines.append(f"base_model: {repo.rpartition('/')[0]}")
    return "\n".join(["---", *lines, "---"])


def _facts(run: RunRecord, num_captions: int | None, model: str) -> dict:
    base, tag = _model_and_tag(run)
    return {
        "architecture": model,
        "base model": f"{base}, {tag}" if tag else None,
        "data": run.options.get("train_data"),
        "captions seen with the class loss": f"{num_captions:,}" if num_captions else None,
        "made with": ", ".join(f"{name} {version}" for name, version in versions(*MADE_WITH).items()),
    }


def _model_and_tag(run: RunRecord) -> tuple[str, str]:
    return str(run.options.get("model", "")), str(run.options.get("pretrained", ""))


def _global_batch(run: RunRecord) -> dict:
    sizes = [run.options.get(name) for name in ("batch_size", "world_size", "accum_freq")]
    return {"global batch": f"{sizes[0] * sizes[1] * sizes[2]:,}"} if all(isinstance(n, int) for n in sizes) else {}


def _list(facts: dict) -> str:
    return "\n".join(f"- {label}: {value}" for label, value in facts.items() if value not in (None, ""))
