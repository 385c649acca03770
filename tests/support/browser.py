"""Pages in a browser that has no network: what it shows, and how it lays them out."""

import os
import re
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


def _browse(address: str, out: Path, *flags: str) -> str:
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [BROWSER, *WITHOUT_NETWORK, f"--user-data-dir={out}/profile", *flags, address],
        check=True, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(out)},
    )  # fmt: skip
    return done.stdout


def dumped(address: str, out: Path) -> str:
    """The page at an address of this machine, once its scripts and requests are done."""
    return _browse(address, out, "--virtual-time-budget=30000", "--dump-dom")


def evaluated(page: Path, width: int, script: str, out: Path) -> float:
    """The number that a script returns in a page that is laid out `width` pixels wide."""
    out.mkdir(exist_ok=True)
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text())  # which forbids scripts
    asked = f"<script>onload = () => document.title = 'it is ' + ({script})</script>"
    (out / "inner.html").write_text(text.replace("</head>", f"{asked}</head>"))
    # a browser's window may not be that narrow, a frame may
    (out / "outer.html").write_text(
        f"<iframe src='inner.html' style='border: 0; width: {width}px; height: 900px'></iframe>"
        "<script>onload = () => document.body.append(document.querySelector('iframe').contentDocument.title)</script>"
    )
    flags = ["--allow-file-access-from-files", "--window-size=1600,1000", "--dump-dom"]
    return float(re.search(r"it is (-?[\d.]+)", _browse((out / "outer.html").resolve().as_uri(), out, *flags))[1])


def num_pixels_outside(page: Path, width: int, out: Path) -> float:
    """How far a page has to be moved sideways."""
    return evaluated(page, width, "document.documentElement.scrollWidth - document.documentElement.clientWidth", out)
