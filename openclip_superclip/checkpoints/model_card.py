"""The model card of an exported folder: README.md with the Hugging Face hub's front matter."""

import json
import re

from torch import Tensor

from ..checkpoints import HEAD_NAME
from ..environment import versions
from ..rendering import markdown_text

MADE_WITH = ("openclip-superclip", "open_clip_torch", "torch")
USAGE = {  # by --format
    "openclip": """import open_clip
model, preprocess = open_clip.create_model_from_pretrained({place})
tokenizer = open_clip.get_tokenizer({place})""",
    "hf": """from transformers import CLIPModel, CLIPProcessor
model = CLIPModel.from_pretrained({place})
processor = CLIPProcessor.from_pretrained({place}, backend="pil")  # resizes as OpenCLIP does""",
}
CARD = """---
library_name: {library}
pipeline_tag: zero-shot-image-classification
tags:
{tags}
---

# {name}

{what}

{facts}

```python
{usage}
```
"""


def usage_of(format: str, place: str) -> str:
    """Returns code that opens the model at a place of OpenCLIP, local-dir:FOLDER or hf-hub:REPO."""
    if format == "hf":
        _, _, place = place.partition(":")
    return USAGE[format].format(place=json.dumps(place, ensure_ascii=False))


def model_card(
    name: str,
    model: str,
    options: dict,
    num_captions: Tensor | None,
    usage: str,
    *,
    with_head: bool,
) -> str:
    """Returns the README.md of a model folder, in Markdown with the Hugging Face hub's front
    matter.

    `options` are those of the run; `num_captions` are the captions seen with the class loss, None
    if not counted. `usage` is code that opens the model.
    """
    what = "A CLIP model."
    tags = "- clip"
    if num_captions is not None:
        tags += "\n- superclip"
        place = f"in `{HEAD_NAME}`" if with_head else "not included"
        what = (
            "A CLIP model, trained with the class loss of "
            f"[SuperCLIP](https://arxiv.org/abs/2512.14480). The class head is {place}."
        )
    facts = {
        "architecture": model,
        "pretrained weights": options.get("pretrained"),
        "data": options.get("train_data"),
        "captions seen with the class loss": f"{num_captions:,}" if num_captions else None,
        "epochs": options.get("epochs"),
        "learning rate": options.get("lr"),
        "weight of the class loss λ": options.get("superclip_weight"),
        "made with": ", ".join(
            f"{name} {version}" for name, version in versions(*MADE_WITH).items()
        ),
    }
    lines = [
        f"- {label}: {_plain(value)}" for label, value in facts.items() if value not in (None, "")
    ]
    return CARD.format(
        library="transformers" if usage.startswith("from transformers") else "open_clip",
        tags=tags,
        name=_plain(name),
        what=what,
        facts="\n".join(lines),
        usage=usage,
    )


def _plain(value) -> str:
    """Returns a value as one line of escaped Markdown.

    Absolute paths are reduced to their last component."""
    return markdown_text(
        re.sub(r"(^|[\s,'\"(:])(?:local-dir:)?/(?:[^\s/,:]+/)+", r"\1", str(value))
    )
