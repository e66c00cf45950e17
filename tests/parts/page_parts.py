"""The code blocks of the documentation, the hidden ones too, and how each is to be run. CONTRIBUTING.md describes the comments.

``page_running_parts`` runs the blocks, and the tests of the documentation use both.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PATTERNS = ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/*.md", "deploy/**/*.md")
RUN = {"python": "python", "sh": "sh", "bash": "sh", "shell": "sh", "console": "console", "sql": "sql"}
"""Languages whose blocks are run in their page, and what runs them."""

_COMMENT = re.compile(r"<!--\s*(block|hidden):[ \t]*([^\n]*?)\s*(?:\n(.*))?-->\s*", re.DOTALL)
_LOOKS_LIKE_ONE = re.compile(r"<!--\s*(?:blocks?|hidden|test|run)\s*:")
LEAVES = {"inline", "html_block", "code_block", "hr"}
Options = tuple[tuple[str, str], ...]
_FLAGS = {"background", "each-line", "output", "serves"}
_VALUES = {"by", "file", "in", "name", "of", "raises", "replace", "status"}


class Block(NamedTuple):
    """A code block. ``line`` is that of its first line of code, and ``options`` what the comment before it says."""

    page: str
    line: int
    language: str
    text: str
    hidden: bool = False
    options: Options = ()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def has(self, flag: str) -> bool:
        return any(name == flag for name, _ in self.options)

    def value(self, name: str) -> str | None:
        """Return the value of an option; None if the block does not have it."""
        return next((value for key, value in self.options if key == name), None)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.options if key == name]

    @property
    def runner(self) -> str | None:
        """Return what runs the block in its page; None if it is only text there, or run by another test."""
        if self.value("by") or self.has("output"):
            return None
        if self.value("file") and not self.has("serves"):
            return None
        return RUN.get(self.language)

    @property
    def start(self) -> str:
        """Return the first line of the code, by which a list can name the block."""
        return next((line.strip() for line in self.text.splitlines() if line.strip()), "")


def pages() -> list[str]:
    """Return the paths of all pages, from the root of the repository."""
    found = {path for pattern in PATTERNS for path in ROOT.glob(pattern) if "node_modules" not in path.parts}
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """Return the blocks of a page in their order. Raises AssertionError if a comment is none that we know."""
    return blocks_of_text(page, (ROOT / page).read_text(encoding="utf-8"))


def blocks_of_text(page: str, text: str) -> tuple[Block, ...]:
    """Return the blocks of a page with this text."""
    found: list[Block] = []
    waiting: Options = ()  # of the comment that has not met its block
    for token in MarkdownIt("commonmark").parse(text):
        line = token.map[0] + 1 if token.map else 0
        place = f"{page}:{line}"
        if token.type == "fence":
            language, _, rest = token.info.strip().partition(" ")
            title = re.search(r'title="([^"]+)"', rest)
            options = waiting if title is None else (*waiting, ("file", title[1]))
            found.append(Block(page, line + 1, language, token.content, False, options))
            waiting = ()
            continue
        comment = _COMMENT.fullmatch(token.content) if token.type == "html_block" else None
        assert comment or not _LOOKS_LIKE_ONE.match(token.content), f"{place}: an unknown comment"
        assert not waiting or token.type not in LEAVES, f"{place}: the comment before this has no block"
        if comment is None:
            continue
        if comment[1] == "block":
            assert comment[3] is None, f"{place}: the options of a block are on one line"
            waiting = _parsed(comment[2], place)
        else:
            language, _, words = comment[2].partition(" ")
            found.append(Block(page, line + 1, language, comment[3] or "", True, _parsed(words, place)))
    assert not waiting, f"{page}: the last comment has no block"
    return tuple(found)


def _parsed(words: str, place: str) -> Options:
    pairs = [(name, value) for word in shlex.split(words) for name, _, value in [word.partition("=")]]
    for name, value in pairs:
        known = name in _VALUES if value else name in _FLAGS
        assert known, f"{place}: {name!r} is no option of a block"
    return tuple(pairs)


def block_of(page: str, name: str) -> str:
    """Return the text of the block that a comment calls ``name``. A test that runs it elsewhere calls this, with two literals."""
    (found,) = [block for block in blocks(page) if block.value("name") == name]
    return found.text
