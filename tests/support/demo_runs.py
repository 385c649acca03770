"""`superclip demo`, small."""

import os
import subprocess
import sys

SMALL = ["demo", "--quick", "--samples", "320", "--batch-size", "32"]


def run_demo(out, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "openclip_superclip", *SMALL, "--out", str(out), *arguments],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
