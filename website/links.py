"""Links between the site and the files outside docs/. MkDocs calls the functions whose names start with ``on_``.

The pages of docs/ link to files of the repository as the repository needs it, with a relative path. On the site, such a link leads
to the page that was made of the file, or else to the file in the public repository.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FOLDER = "repository"
"""The folder of the site for files from outside docs/."""

INCLUDED = ["*.md", "benchmarks/**/README.md", "examples/README.md", "examples/images/*"]
"""Files outside docs/ that are part of the site, as patterns."""

# A fenced block of code, which stays as it is, or the relative target of a link or of an image.
PARTS = re.compile(
    r"(?P<code>^( *)(```+|~~~+).*?^\2\3 *$)|(?<=\]\()(?![a-z]+:|#|/)(?P<target>[^)\s#]+)", re.MULTILINE | re.DOTALL
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files from outside docs/."""
    for place, path in included().items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change the links of a page that lead out of docs/, or into it."""
    place = page.file.src_uri
    source = included().get(place, ROOT / "docs" / place)
    return PARTS.sub(lambda match: match["code"] or rewritten(match["target"], source, place), markdown)


def rewritten(target: str, source: Path, place: str) -> str:
    """Return where a link of the file ``source``, which is at ``place`` in the site, leads to. A broken one stays as it is."""
    path = Path(os.path.normpath(source.parent / target))
    if not path.exists() or not path.is_relative_to(ROOT):
        return target  # MkDocs warns about it, and that fails the build
    within = path.relative_to(ROOT).as_posix()
    if path.is_relative_to(ROOT / "docs") and path.is_file():
        there = path.relative_to(ROOT / "docs").as_posix()
    elif f"{FOLDER}/{within}" in included():
        there = f"{FOLDER}/{within}"
    else:
        return f"{repository()}/{within}"
    return os.path.relpath(there, Path(place).parent.as_posix())


@cache
def included() -> dict[str, Path]:
    """Return the files from outside docs/ by their place in the site."""
    found = {path for pattern in INCLUDED for path in ROOT.glob(pattern) if "node_modules" not in path.parts}
    return {f"{FOLDER}/{path.relative_to(ROOT).as_posix()}": path for path in sorted(found)}


@cache
def repository() -> str:
    """Return the address of the files of this version in the public repository."""
    (address,) = re.findall(r'^REPOSITORY = "(.+)"$', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    source = (ROOT / "pgbus_gevent/__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    return f"{address}/blob/v{version}"
