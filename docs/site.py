"""MkDocs hook: README, slurm/README and CHANGELOG become pages, and links to source files lead to the repository."""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "slurm.md": "slurm/README.md", "changelog.md": "CHANGELOG.md"}
NOTEBOOK = "docs/quickstart.ipynb"
LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?!https?:|#|data:)(?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)")


def on_files(files, config):
    """Adds the pages that are written elsewhere in the repository."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "quickstart.md", content=notebook_page()))
    return files


def notebook_page() -> str:
    """Returns the notebook's text, code and printed output as Markdown."""
    parts = []
    for cell in json.loads((ROOT / NOTEBOOK).read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![output](data:image/png;base64,{''.join(data['image/png'].split())})")
            elif text := "".join(output.get("text", data.get("text/plain", []))).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown, page, config, files):
    """Returns the page with each relative link resolved: to a page of the site, or to a file of the repository."""
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def resolve(match) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        inside = {written: page for page, written in PAGES.items()} | {NOTEBOOK: "quickstart.md"}
        uri = inside.get(path) or path.removeprefix("docs/")
        for candidate in (uri, f"{uri}/study.md"):
            if path.startswith("docs/") or path in inside:
                found = files.get_file_from_path(candidate)
                if found and not found.inclusion.is_excluded():
                    return f"{text}({posixpath.relpath(candidate, posixpath.dirname(page.file.src_uri))}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # which a strict build reports
        return f"{text}({config.repo_url}/blob/main/{path})" if config.repo_url else text.lstrip("!")[1:-1]

    markdown = re.sub(r"`[^`\n]*`", lambda code: code[0].replace("\\|", "|"), markdown)  # which only GitHub needs
    return LINK.sub(resolve, markdown)
