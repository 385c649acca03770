"""Puts the current openclip_superclip/hooks.py into every patch; run it after each change of the
contract.

A change of the calls themselves is made in a patched copy of the release: `git init`, commit the
files of the wheel, `git apply` the patch, edit, `git add --intent-to-add open_clip/hooks.py`, `git
diff --full-index`.
"""

import re
import sys
from pathlib import Path

from openclip_superclip.trainer.disk_patch import NO_FILE, blob_id

PATCHES = Path(__file__).parent
HOOKS = PATCHES.parent / "openclip_superclip/hooks.py"


def added(path: str, file: Path) -> str:
    """Returns the git diff that adds a file as `path`."""
    lines = file.read_text().splitlines()
    return (
        f"diff --git a/{path} b/{path}\nnew file mode 100644\nindex {NO_FILE}..{blob_id(file)}\n"
        f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{len(lines)} @@\n"
        + "".join(f"+{line}\n" for line in lines)
    )


def refreshed(patch: str) -> str:
    """Returns `patch` with its diff of hooks.py replaced."""
    diffs = re.split(r"^(?=diff --git )", patch, flags=re.MULTILINE)
    hooks = added("open_clip/hooks.py", HOOKS)
    return "".join(
        hooks if diff.startswith("diff --git a/open_clip/hooks.py ") else diff for diff in diffs
    )


if __name__ == "__main__":
    for path in sorted(PATCHES.glob("*.patch")):
        patch = path.read_text()
        print("unchanged" if refreshed(patch) == patch else "refreshed", path.name, file=sys.stderr)
        path.write_text(refreshed(patch))
