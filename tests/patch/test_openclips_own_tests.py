"""OpenCLIP's own tests pass with the plugin as they pass in stock:
OPENCLIP_SOURCE=DIR pytest tests/patch/test_openclips_own_tests.py."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.openclip_trees import patched_source

pytestmark = pytest.mark.skipif(
    "OPENCLIP_SOURCE" not in os.environ, reason="needs OPENCLIP_SOURCE, a checkout of OpenCLIP"
)
SOURCE = Path(os.environ.get("OPENCLIP_SOURCE", "")).resolve()

TRAINING = "test_training_simple.py"
LEFT_OUT = {  # the start of a test's name: why
    "test_download_pretrained.py::DownloadPretrainedTests::test_download_pretrained_from_hfh": (
        "downloads from a hub"
    ),
    "test_hf_model.py::test_pretrained_text_encoder": "downloads models",
    "test_inference.py": "compares outputs with those that an earlier OpenCLIP has recorded",
    "test_inference_simple.py": "downloads weights",
    "test_training_simple.py::test_training_mt5": "downloads mT5",
}
REFUSED = {  # with --superclip
    "test_training_simple.py::test_training_clip_with_jit": "--torchscript cannot save the head",
}


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """Runs OpenCLIP's tests on the OpenCLIP in a folder, all or those that
    train, and returns the names of those that passed."""

    @functools.cache
    def passed(source, flags="", pattern="test_*.py"):
        folder = tmp_path_factory.mktemp("own")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (source, ROOT, ROOT / "tests"))),
            "TRAINING_FLAGS": f"--precision fp32 {flags}",
        }
        command = [
            *f"{sys.executable} -m pytest -q -r pfE -p support.training_flags".split(),
            *(f"--deselect=tests/{name}" for name in LEFT_OUT),
            *sorted((SOURCE / "tests").glob(pattern)),
        ]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        print(done.stdout[-5000:])
        return {*re.findall(r"^PASSED .*?(test_\w+\.py::.*)$", done.stdout, re.MULTILINE)}

    return passed


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    return patched_source(SOURCE, tmp_path_factory.mktemp("patched"))


def test_what_passes_in_stock_passes_in_a_patched_openclip(passed, patched):
    stock = passed(SOURCE / "src")
    assert len(stock) > 20
    assert stock - passed(patched) == set()


def test_what_trains_in_stock_trains_with_superclip(passed, patched):
    stock = {name for name in passed(SOURCE / "src") if name.startswith(TRAINING)}
    assert len(stock) >= 3
    assert stock - passed(patched, "--superclip", TRAINING) == stock & REFUSED.keys()
