"""The first commands of each page run, on small data."""

import glob
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from support import DATA, parametrize
from support.data import write_table
from support.models import write_model, write_weights
from support.pages import PAGES, ROOT, blocks, commands
from support.training_runs import run_superclip

# page: what its commands need, what is exchanged for less of the same, and
# what is there afterwards
PAGES_THAT_WRITE = YAML(typ="safe").load(DATA / "first_commands.yaml")
ELSEWHERE = {*PAGES_THAT_WRITE.pop("elsewhere")}
HERE = sorted({Path(page).stem for page in PAGES if page.startswith("docs/")} - ELSEWHERE)


pytestmark = pytest.mark.usefixtures("forks")


@parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow) if page in PAGES_THAT_WRITE else page
        for page in HERE
    ],
)
def test_the_first_commands_of_a_page_run(page, tmp_path, tmp_path_factory, csv_data, request):
    of_page = PAGES_THAT_WRITE.get(page, {})
    needs = of_page.get("needs", "nothing")
    all_blocks = blocks(PAGES[f"docs/{page}.md"])
    command = "".join(all_blocks[number] for number in of_page.get("blocks", [0]))
    command = re.sub(r" \\\n +", " ", command)  # a part to exchange may be in two lines
    for whole, less in of_page.get("exchanged", {}).items():
        assert needs == "the demo" or whole in command
        command = command.replace(whole, less)
    if needs == "the demo":
        (tmp_path / "demo").symlink_to(request.getfixturevalue("demo"))
    if needs == "its scenes":
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo/data").symlink_to(request.getfixturevalue("demo") / "data")
    if needs == "own data":
        write_own_data(tmp_path, csv_data)
    recorded = commands(command, tmp_path_factory.mktemp("recorder"))
    output = tmp_path / "printed"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    folder = ROOT if page == "architecture" else tmp_path
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for program, *patterns in recorded:
        # a shell expands them when the command before has written the files
        found = [glob.glob(one, root_dir=tmp_path) or [one] for one in patterns]
        arguments = [*itertools.chain(*found)]
        if program == "superclip":  # in a fork of this process
            code = run_superclip(arguments, output, folder)
        else:
            with open(output, "a") as file:
                command = [program, *arguments]
                code = subprocess.call(
                    command, cwd=folder, env=environment, stdout=file, stderr=file
                )
        assert code == 0, output.read_text()[-4000:]
    assert [name for name in of_page.get("written", []) if not (tmp_path / name).exists()] == []


def write_own_data(folder, csv_data):
    """Writes tables of pictures, and small models for the released ones."""
    rows = [row.split("\t") for row in csv_data.read_text().splitlines()[1:]]
    (folder / "pictures").symlink_to(csv_data.parent)
    pairs = [(f"pictures/{Path(picture).name}", words) for picture, words in rows]
    write_table(folder / "pairs.csv", pairs)
    table = (folder / "pairs.csv").read_text()
    (folder / "pairs.csv").write_text(table.replace("image,caption", "filepath,title", 1))
    write_weights(write_model(folder / "tiny", text={"width": 12}))  # which trains in seconds
