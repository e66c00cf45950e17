"""The documentation below ``/docs/``, as text with links, if its files are at hand: in a clone, or in a source distribution.

An installed package has none of them. Then the pages link to the documentation that the package's metadata names.
"""

from __future__ import annotations

import importlib.metadata
import posixpath
import re
from collections.abc import Collection
from html import escape, unescape
from pathlib import Path
from urllib.parse import urlsplit

import bottle

from . import pages

FIRST = "README.md"
"""The page that ``/docs/`` leads to."""

_PAGES = ("*.md", "docs/**/*.md", "examples/**/*.md", "examples/*.py", "benchmarks/**/*.md")
_PLACEHOLDER = "example.org"
_HIDDEN = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)\s]*\)")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


def link() -> str | None:
    """Return the address of the documentation, relative to the demo's pages, or None if there is none."""
    if _root() is not None:
        return f"docs/{FIRST}"
    try:
        urls = importlib.metadata.metadata("pgbus-gevent").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [url for name, _, url in (given.partition(", ") for given in urls) if name == "Documentation"]
    return next((url for url in found if urlsplit(url).hostname != _PLACEHOLDER), None)


def add_manual(app: bottle.Bottle) -> None:
    """Add the pages of the documentation, if its files are at hand."""
    root = _root()
    if root is None:
        return
    files = {path.relative_to(root).as_posix(): path for pattern in _PAGES for path in root.glob(pattern)}

    @app.get("/docs/<name:path>")  # type: ignore[untyped-decorator]
    def show_file(name: str) -> bottle.HTTPResponse:
        if name not in files:
            bottle.abort(404, "there is no such page")
        text = files[name].read_text(encoding="utf-8")
        up = "../" * (name.count("/") + 1)
        html = as_html(text, name, files.keys()) if name.endswith(".md") else escape(text)
        return pages.page(_TEMPLATE.render(name=name, text=html, up=up))


def as_html(text: str, name: str, names: Collection[str]) -> str:
    """Return the Markdown of the page ``name`` as HTML text: with its links and headings, and otherwise as it is written.

    Links to other sites, and to one of the pages ``names``, become links.
    """

    def anchor(found: re.Match[str]) -> str:
        target, path = found[2], found[2].partition("#")[0]
        elsewhere = target.startswith(("http://", "https://"))
        if elsewhere or not path or posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) in names:
            return f'<a href="{target}">{found[1]}</a>'
        return found[1]

    text = _LINK.sub(anchor, escape(_IMAGE.sub(r"(\1)", _HIDDEN.sub("", text))))
    return _HEADING.sub(lambda found: f'<b id="{_id_of(found[2])}">{found[1]} {found[2]}</b>', text)


def _id_of(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", unescape(re.sub(r"<[^>]*>", "", heading)).lower()).replace(" ", "-")


def _root() -> Path | None:
    """The folder with the files of this project: that of the package, or the current one, from which it may have been installed."""
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "docs/start/tutorial.md").is_file() and (root / "pgbus_gevent/demo").is_dir():
            return root
    return None


_TEMPLATE = pages.template("manual.html")
