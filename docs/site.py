"""MkDocs hook: more pages, links to source files, flags that do not break, and what the search
finds.

README and CHANGELOG become pages, and links to source files lead to the repository.
"""

import json
import posixpath
import re
from html import escape
from itertools import cycle
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
COLUMNS_OF_A_PHONE = 4
BOOSTS = dict.fromkeys(  # of the score that the search gives a page
    ["troubleshooting.md", "fine-tune.md", "results.md", "clusters.md"], 10
) | dict.fromkeys(
    ["changelog.md", "architecture.md", "contributing.md", "plugins.md", "api.md"], 0.01
)
NOTEBOOK = "docs/quickstart.ipynb"
LINK = re.compile(
    r"(?P<text>!?\[(?:\\.|[^\]\\])*\])\((?!https?:|#|data:)(?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)"
)


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
                parts.append(
                    f"![output](data:image/png;base64,{''.join(data['image/png'].split())})"
                )
            elif text := "".join(output.get("text", data.get("text/plain", []))).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown, page, config, files):
    """Returns the page with each relative link resolved: to a page of the site, or to a file of the
    repository.

    Also sets how the search ranks the page.
    """
    if page.file.src_uri in BOOSTS:
        page.meta["search"] = {"boost": BOOSTS[page.file.src_uri]}
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def resolve(match) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        inside = {written: page for page, written in PAGES.items()} | {NOTEBOOK: "quickstart.md"}
        uri = inside.get(path) or path.removeprefix("docs/")
        if path.startswith("docs/") or path in inside:
            found = files.get_file_from_path(uri)
            if found and not found.inclusion.is_excluded():
                target = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))
                return f"{text}({target}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # which a strict build reports
        return (
            f"{text}({config.repo_url}/blob/main/{path})"
            if config.repo_url
            else text.lstrip("!")[1:-1]
        )

    # which only GitHub needs
    markdown = re.sub(r"`[^`\n]*`", lambda code: code[0].replace("\\|", "|"), markdown)
    return LINK.sub(resolve, markdown)


def on_page_content(html, page, config, files):
    """Returns the page with elements that site.css needs: flags stay in one line, wide tables
    fold on a phone."""
    flag = r"(?<![\w-])--[a-z][\w-]*"
    html = re.sub(
        r"<table>.*?</table>", lambda table: labelled_cells(table[0]), html, flags=re.DOTALL
    )
    return re.sub(
        r"<code>[^<]*</code>",
        lambda code: re.sub(flag, r'<span class="flag">\g<0></span>', code[0]),
        html,
    )


def labelled_cells(table: str) -> str:
    """Returns a table in which each cell has the name of its column, unless all columns fit a
    phone."""
    heads = [
        re.sub(r"<[^>]*>", "", head)
        for head in re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table, flags=re.DOTALL)
    ]
    if len(heads) <= COLUMNS_OF_A_PHONE:
        return table
    labels = cycle(escape(head, quote=True) for head in heads)
    return re.sub(r"<td(?=[ >])", lambda _: f'<td data-label="{next(labels)}"', table)
