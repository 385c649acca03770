"""The fields of a recipe as a page for people, made of what reads and checks them."""

import dataclasses
import textwrap
from collections.abc import Sequence

from ..config import Config
from ..table import markdown_table
from .recipe import FIELDS, KINDS, REQUIRED, is_mapping
from .recipe_rules import MEASURES, TAKEN, VALUES

ABOUT = """# The fields of a recipe

```bash
superclip recipes --fields
```

prints this page. A recipe is one YAML file with these fields and no others; `--set FIELD=VALUE` replaces one,
`--set superclip.weight=2` one within another. [Recipes](recipes.md) tells how they are trained."""
OF_SUPERCLIP = """## superclip

The fields of [`--superclip`](../README.md), each the flag of the same name. Left out, a field has its default."""
OF_FLAGS = """## flags

Any flag of OpenCLIP (`superclip train --help`), without the dashes: `grad-checkpointing: true`, `val-data: val.csv`.
"""
OF_PAPER = """## paper

"""


def reference() -> str:
    """Returns the page, docs/recipe-fields.md, in Markdown."""
    rows = [
        [f"`{name}`", _kind(name), "yes" if name in REQUIRED else "", _meaning(name, field)]
        for name, field in FIELDS.items()
    ]
    options = [
        [f"`{field.name}`", f"`{field.metadata['flag']}`", _default(field.default), field.metadata["help"]]
        for field in dataclasses.fields(Config)
    ]
    return "\n\n".join(
        [
            ABOUT,
            markdown_table(["field", "holds", "required", "meaning"], rows),
            OF_SUPERCLIP,
            markdown_table(["field", "flag", "default", "meaning"], options),
            OF_FLAGS
            + _listed("These are not among them, since they follow from other fields or are the run's to say: ", TAKEN),
            OF_PAPER + _listed("`values` holds, in percent but for `nyuv2_rmse` and `llava_mme`, some of ", MEASURES),
        ]
    )


def _listed(said: str, names: Sequence[str]) -> str:
    names = ", ".join(f"`{name}`" for name in names)
    return textwrap.fill(f"{said}{names}.", width=120, break_long_words=False, break_on_hyphens=False)


def _kind(name: str) -> str:
    return KINDS[dict if is_mapping(name) else FIELDS[name].type]


def _meaning(name: str, field: dataclasses.Field) -> str:
    return field.metadata["help"] + (f" ({VALUES[name][1]})" if name in VALUES else "")


def _default(default) -> str:
    return "none" if default in ("", None) else f"`{str(default).lower() if isinstance(default, bool) else default}`"
