"""Pages in a browser that has no network: what it shows."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WITHOUT_NETWORK = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


def needs_browser(test):
    """Marks a test that opens a page."""
    skip = pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
    return pytest.mark.browser(skip(test))


def dumped(address: str, out: Path) -> str:
    """The page at an address of this machine, once its scripts and requests are done."""
    flags = [f"--user-data-dir={out}/profile", "--virtual-time-budget=30000", "--dump-dom"]
    environment = {**os.environ, "HOME": str(out)}
    command = [BROWSER, *WITHOUT_NETWORK, *flags, address]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=environment).stdout
