"""The pages are in GitHub's Markdown (CommonMark), and the site uses Python-Markdown. This adapts what the two read differently.

Python-Markdown wants four spaces before all that belongs to an item of a list, and an empty line before a list, a table and a block
of code. MkDocs calls the function whose name starts with ``on_``.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

MARKER = re.compile(r" {0,3}(?:[-*+]|\d+[.)]) +(?=\S)")
FENCE = re.compile(r" {0,3}(```+|~~~+)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page in the dialect of Python-Markdown, without its comments, which are for tests."""
    return "\n".join(adapted(without_comments(markdown).split("\n")))


def without_comments(markdown: str) -> str:
    """Remove comments, except in blocks of code."""
    parts = r"(^( *)(```+|~~~+).*?^\2\3 *$)|<!--.*?-->"
    return re.sub(parts, lambda match: match[1] or "", markdown, flags=re.MULTILINE | re.DOTALL)


def adapted(lines: list[str]) -> list[str]:
    """Return lines of CommonMark as lines for Python-Markdown."""
    done: list[str] = []
    tight = False  # the lines end with an item of one paragraph, so the next item may follow directly
    at = 0
    while at < len(lines):
        line, before = lines[at], done[-1] if done else ""
        end = at + 1
        fence, marker = FENCE.match(line), MARKER.match(line)
        if fence:
            end = _end_of_fence(lines, at, fence[1])
            block = lines[at:end]
        elif marker:
            end = _end_of_item(lines, at, len(marker[0]))
            block = _item(marker[0].strip(), lines[at][len(marker[0]) :], lines[at + 1 : end])
            if tight:
                before = ""
        else:
            block = [line]
            if not line.startswith("|") or before.startswith("|"):
                before = ""
        done += ["", *block] if before.strip() else block
        tight = bool(marker) and all(line.strip() for line in block)
        at = end
    return done


def _end_of_fence(lines: list[str], start: int, fence: str) -> int:
    for at in range(start + 1, len(lines)):
        if re.fullmatch(rf" {{0,3}}{re.escape(fence)}{re.escape(fence[0])}* *", lines[at]):
            return at + 1
    return len(lines)


def _end_of_item(lines: list[str], start: int, width: int) -> int:
    """Return the index after the last line of an item whose text begins at column ``width``."""
    fence = ""
    end = start + 1
    for at in range(start + 1, len(lines)):
        line = lines[at]
        within = line.startswith(" " * width)
        if fence or within:
            if found := FENCE.match(line[width:]):
                fence = "" if fence else found[1]
            end = at + 1
        elif line.strip() and (not lines[at - 1].strip() or MARKER.match(line) or FENCE.match(line)):
            return end
        elif line.strip():
            end = at + 1  # the paragraph goes on, although the line is not indented
    return end


def _item(marker: str, first: str, others: list[str]) -> list[str]:
    """Return an item of a list: its first line after the marker, and its other lines four spaces to the right."""
    body = adapted([first, *textwrap.dedent("\n".join(others)).split("\n")] if others else [first])
    return [f"{marker:<3} {body[0]}", *(f"    {line}" if line.strip() else "" for line in body[1:])]
