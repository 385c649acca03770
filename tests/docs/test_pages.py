"""The commands of pages and of --help are taken by the real parsers; the
pages' flags, links and file names exist."""

import re
import shlex
from pathlib import Path

import tomllib
from support import parametrize
from support.pages import (
    FILES,
    PAGES,
    ROOT,
    blocks,
    code_spans,
    commands,
    parse_superclip,
    superclip_parser,
)
from torch.distributed.run import get_args_parser as torchrun_parser

from openclip_superclip.__main__ import COMMANDS
from openclip_superclip.plans.recipe_files import read_recipe

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# flags that sentences name of other programs, of OpenCLIP's main branch, of
# examples/open_clip_lora
NOT_OURS = set(
    """
    --batch --fsdp --fsdp-checkpoint --gpus-per-node --gres --json-text-key-probs --lora
    --lora-towers --nproc-per-node --use-naflex
""".split()
)
each_page = parametrize("page", PAGES)
WITH_PLUGINS = "docs/plugins.md"  # whose flags are those of plugins; test_plugins.py runs all of it
each_page_on_ours = parametrize("page", [page for page in PAGES if page != WITH_PLUGINS])


@each_page_on_ours
def test_every_command_is_one_that_its_program_takes(page, tmp_path, monkeypatch):
    for block in blocks(PAGES[page]):
        for command in commands(block, tmp_path):
            assert_taken(command, monkeypatch)


def assert_taken(command, monkeypatch):
    """Fails if the program would refuse its arguments, or if a file that it
    names is missing."""
    program, *arguments = command
    match Path(program).name, arguments:
        case "superclip", [name, "--help"]:
            assert name in COMMANDS, command
        case "superclip", [name, *_]:
            assert name in COMMANDS, command
            options = parse_superclip(arguments, monkeypatch)
            if name in ("plan", "run", "submit"):
                recipe = options.recipe
                if name == "plan":  # a recipe, or words to find some
                    recipe = " ".join(recipe)
                if name != "plan" or "/" in recipe:
                    read_recipe(recipe, dict(pair.split("=", 1) for pair in options.set))
        case "torchrun", _:
            options = torchrun_parser().parse_args(arguments)
            assert options.module
            ranks = [options.training_script, *options.training_script_args]
            assert_taken(["python", "-m", *ranks], monkeypatch)
        case "python", ["-m", "open_clip_train.main", *flags]:
            assert_taken(["superclip", "train", *flags], monkeypatch)
        case "python", ["-m", "openclip_superclip", *ours]:
            assert_taken(["superclip", *ours], monkeypatch)
        case "python", ["-c", program]:
            compile(program, "page", "exec")
        case "horovodrun", ["-np", _, "--gloo", *ranks]:
            assert_taken(ranks, monkeypatch)
        case "sbatch", _:
            script, *given = [argument for argument in arguments if not argument.startswith("--")]
            if script.endswith("/train.sbatch"):
                read_recipe(given[0])
        case "pip", ["install", *_, what] if "[" in what:
            assert what in [f".[{extra}]" for extra in EXTRAS], command
        case name, _:
            assert name in "python python3 bash pip lint-imports hf pytest".split()
    for file in arguments:
        if re.match(r"(\./)?(docs|slurm|examples|tests)/", file):
            assert (ROOT / file).exists(), command


@each_page_on_ours
def test_every_flag_that_its_sentences_name_exists(page, monkeypatch):
    known = set()
    for name in COMMANDS:
        for action in superclip_parser(name, monkeypatch)._actions:
            known.update(action.option_strings)
    named = {
        flag
        for span in code_spans(PAGES[page])
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
    }
    assert named <= known | NOT_OURS


@parametrize("file", [*FILES.values(), *ROOT.glob("docs/*/**/*.md")], ids=str)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(file):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text()):
        name, _, heading = target.partition("#")
        path = file.parent / name if name else file
        assert path.exists(), target
        if heading:
            prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
            titles = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
            # as GitHub's
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in anchors, target


@each_page
def test_every_source_file_that_it_names_exists(page):
    """Named from the root, from the package, or by its name alone."""
    names = {"params.py", "main.py", "data.py"}  # OpenCLIP's
    for tree in ("openclip_superclip", "tests", "patches"):
        names |= {path.name for path in (ROOT / tree).rglob("*")}
    for span in code_spans(PAGES[page]):
        if re.fullmatch(
            r"[\w./-]+\.py|(tests|openclip_superclip|recipes|slurm|docs)/[\w./-]*", span
        ):
            exists = (ROOT / span).exists() or (ROOT / "openclip_superclip" / span).exists()
            assert exists or span in names or span.startswith("open_clip/"), span


@parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_the_command_takes(command, monkeypatch):
    shown = superclip_parser(command, monkeypatch).format_help()
    (example,) = re.findall(r"\nexample: (superclip .*)\n$", shown, flags=re.DOTALL)
    program, *argv = shlex.split(example)
    assert (program, argv[0]) == ("superclip", command)
    assert parse_superclip(argv, monkeypatch)
