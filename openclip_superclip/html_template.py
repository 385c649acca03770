"""Pages of HTML, filled in by Jinja; each template lies beside the module that fills it."""

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def html_template(file: Path, **filters: Callable) -> Template:
    """Returns a template that escapes all that it is given and refuses a name that it is not."""
    environment = Environment(
        loader=FileSystemLoader(file.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= filters
    return environment.get_template(file.name)
