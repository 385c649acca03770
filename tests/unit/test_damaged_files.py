"""With a damaged file of weights, a command fails with one error line and leaves no incomplete output.

HYPOTHESIS_EXAMPLES=10000 pytest tests/unit/test_damaged_files.py tests more, random cases.
"""

import contextlib
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import GOLDEN
from support.models import write_model

import openclip_superclip as superclip
from openclip_superclip.__main__ import main

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "0"))  # 0: a few fixed examples
COMMANDS = {  # by damaged file: the commands that read it
    "run.pt": [
        "export run.pt --model model/open_clip_config.json --with-head --out out",
        "average run.pt run.pt --out out.pt",
        "interpolate run.pt run.pt --out out.safetensors",
    ],
    "run.safetensors": ["average run.safetensors run.pt --out out.safetensors"],
    "exported/open_clip_config.json": ["export exported --out out", "export exported --format hf --out out"],
    "exported/tokenizer.json": ["export exported --out out"],
    "exported/tokenizer_config.json": ["export exported --out out"],
    "exported/superclip_head.safetensors": ["export exported --with-head --out out"],
    "exported/open_clip_model.safetensors": ["export exported --with-head --out out"],
    "authors.pt": ["import authors.pt --model authors.json --global-batch 48 --out out"],
    "authors.json": ["import authors.pt --model authors.json --global-batch 48 --out out"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with one undamaged file of each kind, for very small models."""
    folder = tmp_path_factory.mktemp("whole")
    name = write_model(
        folder / "model", vision={"layers": 1, "width": 8, "head_width": 8}, text={"layers": 1, "width": 6}
    )
    state = superclip.create_model_and_transforms(name)[0].state_dict()
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "run.pt")
    save_file(state, folder / "run.safetensors")
    argv = ["export", folder / "run.pt", "--model", name, "--with-head", "--out", folder / "exported"]
    assert main([*map(str, argv)]) == 0
    shutil.copy(GOLDEN / "reference_tiny.pt", folder / "authors.pt")
    shutil.copy(GOLDEN / "reference_tiny.json", folder / "authors.json")
    return folder


NEAR = st.floats(0, 1) | st.floats(0, 0.02) | st.floats(0.98, 1)  # fractions of the length; headers are at the ends
DAMAGES = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "swap", "double", "zero"]), NEAR, NEAR, st.integers(1, 255)),
    min_size=1, max_size=4,
)  # fmt: skip


def damaged(content: bytes, damage) -> bytes:
    """Applies each damage to the content in turn."""
    for kind, here, there, value in damage:
        first, second = sorted((int(here * len(content)), int(there * len(content))))
        start, middle, end = content[:first], content[first:second], content[second:]
        content = {
            "flip": start[:-1] + bytes([start[-1] ^ value if start else value]) + middle + end,
            "cut": start + middle if value % 2 else start + end,
            "swap": start + end[:value] + middle + end[value:],
            "double": start + middle + middle[:value] + end,
            "zero": start + bytes(min(value, len(middle))) + middle[value:] + end,
        }[kind]
    return content


def run(command: str) -> tuple[int, str]:
    """Returns the exit code and the standard error of a command."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(command.split())
    return code, said.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_ends_in_one_line_and_leaves_nothing_half_written(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")

    @settings(
        max_examples=EXAMPLES or 25, deadline=None, derandomize=not EXAMPLES, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(sorted(COMMANDS)), DAMAGES, st.integers(0, 3))
    def holds(file, damage, which):
        content = (whole / file).read_bytes()
        Path(file).write_bytes(damaged(content, damage))
        command = COMMANDS[file][which % len(COMMANDS[file])]
        try:
            code, said = run(command)
            out = [path for path in Path().iterdir() if path.name.startswith("out")]
            assert code in (0, 1)
            if code:
                assert said.startswith("error: "), said
                assert said.count("\n") == 1, said
            assert [path.suffix for path in out] == ([Path(command.split()[-1]).suffix] if code == 0 else [])
        finally:
            Path(file).write_bytes(content)
            for path in Path().glob("out*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    holds()
