"""report.html: figures and tables in one file that asks for no other and runs no script."""

import base64
from html import escape

from ..table import Table
from .reported_run import ReportedRun

HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1.2rem; color: #222 }}
h1 {{ font-size: 1.6rem; margin-bottom: 0 }}
h2 {{ font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd; overflow-wrap: anywhere }}
h3 {{ font-size: 1rem; margin: 1.5rem 0 .4rem }}
img {{ display: block; max-width: 100%; margin: 1rem 0 }}
table {{ border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }}
th, td {{ padding: 3px 9px; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top }}
th {{ background: #f4f4f2 }}
td {{ font-variant-numeric: tabular-nums }}
td:not(:last-child) {{ white-space: nowrap }}
.bad {{ color: #b00020; font-weight: 600 }}
.note, .facts {{ color: #666; font-size: 13px }}
pre {{ background: #f6f6f4; padding: .8rem; font-size: 12px; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere }}
summary {{ cursor: pointer; margin: .3rem 0 }}
</style></head><body>
<h1>{title}</h1>
<p class=facts>{facts}</p>
"""


class Page:
    """Takes sections in their order and gives the page."""

    def __init__(self, title: str, facts: str):
        self.parts = [HEAD.format(title=escape(title), facts=escape(facts))]

    def section(self, title: str) -> None:
        self.parts.append(f"<h2>{escape(title)}</h2>\n")

    def text(self, text: str) -> None:
        """Adds a note, if there is any."""
        self.parts.append(f"<p class=note>{escape(text)}</p>\n" if text else "")

    def figure(self, image: bytes, describes: str) -> None:
        """Adds a PNG; `describes` stands for it where it is not seen."""
        data = base64.b64encode(image).decode()
        self.parts.append(f'<img src="data:image/png;base64,{data}" alt="{escape(describes)}">\n')

    def table(self, table: Table) -> None:
        self.parts.append(table.html())

    def run(self, run: ReportedRun) -> None:
        """Adds a run's recipe, versions and command, folded."""
        versions, measured_with = (
            ", ".join(f"{name} {version}" for name, version in packages.items()) or "not recorded"
            for packages in (run.versions, run.measured_with)
        )
        changed = ", ".join(f"{key}={value}" for key, value in run.set.items())
        text = [f"state: {run.state}" + (f" ({run.note})" if run.note else ""), f"versions: {versions}"]
        text += [f"measured with: {measured_with}"] if run.measured_with else []
        text += [f"hosts: {', '.join(run.hosts)}"] if run.hosts else []
        text += [f"--set: {changed}"] if changed else []
        text += [f"command: {run.command}"] if run.command else []
        text += ["", run.recipe.text.strip()] if run.recipe else []
        body = escape("\n".join(text))
        self.parts.append(f"<details><summary>{escape(run.name)}</summary><pre>{body}</pre></details>\n")

    def html(self) -> str:
        """Returns the whole page."""
        return "".join([*self.parts, "</body></html>\n"])
