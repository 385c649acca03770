"""README and the pages of docs/: their text, their blocks of code, and the
commands in them."""

import argparse
import importlib.util
import re
import subprocess
import sys

import open_clip_train.params

from openclip_superclip import hooks
from openclip_superclip.__main__ import main as superclip

from . import ROOT

FILES = {"README.md": ROOT / "README.md", "slurm/README.md": ROOT / "slurm/README.md"}
FILES |= {f"docs/{path.name}": path for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = {name: path.read_text() for name, path in FILES.items()}
# what a page may call
PROGRAMS = """
    superclip python python3 torchrun horovodrun sbatch bash pip lint-imports hf
    .venv/bin/pip .venv/bin/superclip .venv/bin/pytest
""".split()


def script(path):
    """A script of the repository as a module."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def marked(page, name):
    """Returns the text of a file of docs/ between its marks of a name."""
    return (ROOT / "docs" / page).read_text().split(f"<!-- {name} -->\n")[1].split("\n<!-- end")[0]


def blocks(text, language="bash"):
    """Returns the contents of a page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def code_spans(text):
    """Yields the texts between single backticks in a page, outside its code
    blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))


def commands(block, folder):
    """Returns the commands of a block as bash would start them, its loops
    and quotes resolved; none is run.

    Each of PROGRAMS is a recorder, and bash finds no other program. `…`,
    "and other flags", is left out.
    """
    recorder = folder / "recorder"
    recorder.write_text('#!/bin/bash\nprintf \'%s\\n\' "${0#$PROGRAMS/}" "$@" \'\' >>"$RECORD"\n')
    recorder.chmod(0o755)
    for program in PROGRAMS:
        # by PATH, and from the folder
        for path in (folder / "programs" / program, folder / program):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.symlink_to(recorder)
    record = folder / "record"
    record.write_text("")
    environment = {
        "PATH": f"{folder}/programs",
        "PROGRAMS": f"{folder}/programs",
        "RECORD": str(record),
    }
    shell = ["/bin/bash", "-eu", "-c", block]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}\n{block}"
    return [
        [part for part in command.split("\n") if part != "…"]
        for command in record.read_text().split("\n\n")
        if command
    ]


class _Reached(BaseException):
    """The parser of a command is about to parse."""


def superclip_parser(command, monkeypatch):
    """Returns the real parser of a command of `superclip`."""

    def stop(parser, *_):
        raise _Reached(parser)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "open_clip.hooks", hooks)  # as `superclip train` leaves them
        patch.setattr(open_clip_train.params, "argparse", argparse)
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        try:
            superclip([command])
        except _Reached as reached:
            return reached.args[0]
    raise AssertionError(f"superclip {command} parses nothing")


def parse_superclip(argv, monkeypatch):
    """Returns what the real parser makes of `superclip` arguments; it exits
    where it refuses them."""
    command, *arguments = argv
    parser = superclip_parser(command, monkeypatch)
    if "--lora" in arguments:
        script("examples/open_clip_lora/open_clip_lora.py").open_clip_add_options(parser)
    return argparse.ArgumentParser.parse_args(parser, arguments[arguments[:1] == ["--"] :])
