"""report.html: figures and tables in one file that asks for no other and runs no script."""

import base64
import struct
from pathlib import Path

from ..html_template import html_template
from .report_sections import Section
from .report_table import ABSENT
from .reported_run import MISSING, ReportedRun

BAD = (ABSENT, "failed", "cut short", "preempted")
READABLE = 720  # pixels: on a narrower page a figure is moved sideways rather than made small


def html_page(title: str, facts: str, sections: list[Section], runs: list[ReportedRun]) -> str:
    """Returns the whole page; recipes, versions and commands of the runs stand at its end, folded."""
    filters = {"base64": _base64, "readable_width": _readable_width, "describe": _describe}
    template = html_template(Path(__file__).with_name("page.html"), **filters)
    found = [run for run in runs if run.state != MISSING]
    return template.render(title=title, facts=facts, sections=sections, runs=found, bad=BAD)


def _base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _readable_width(image: bytes) -> int:
    (width,) = struct.unpack(">I", image[16:20])  # of a PNG
    return min(width, READABLE)


def _describe(run: ReportedRun) -> str:
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
    return "\n".join(text)
