"""Which code blocks of the documentation no test runs, and the rules for what counts as run."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from page_parts import ROOT, Block, blocks

MOST = 15
"""How many blocks may have a reason."""

NOT_RUN: dict[tuple[str, str], str] = {
    (
        "README.md",
        "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt -e . && .venv/bin/python -m pytest -q -n 6",
    ): ("runs all tests: .ci/run takes this line from the page and runs it"),
    ("benchmarks/README.md", "*"): "figures that were measured once, and commands that measure for minutes",
    ("docs/peers.md", ".venv/bin/python -m benchmarks.peers --seed 14 --write"): (
        "installs and runs a dozen other servers for an hour; test_peers_run runs the program on fewer"
    ),
    ("docs/releasing.md", "python3 -m venv /tmp/try"): (
        "test_distributions builds the wheel, and .ci/debian13 installs it; here it would need the network"
    ),
    ("docs/releasing.md", "git push --follow-tags"): "publishes the release",
    ("docs/reference/cli.md", "*"): "texts of --help: test_reference compares the page with the commands",
    ("docs/reference/exceptions.md", "*"): "a tree of classes: test_reference compares the page with them",
    ("docs/reference/sql-functions.md", "*"): "signatures: test_reference compares the page with the database",
}
"""The reason for each block that cannot be run, by its page and its first line; `*` is all blocks of the page."""


def not_run(page: str) -> dict[str, str]:
    """Return what is wrong with the visible blocks of a page that nothing runs, by place."""
    found = {}
    for number, block in enumerate(blocks(page)):
        if block.hidden or block.runner or is_listed(block):
            continue
        if (why := _why_not_run(block, blocks(page)[:number], blocks(page)[number + 1 :])) is not None:
            found[str(block)] = why
    return found


def is_listed(block: Block) -> bool:
    """Return whether the block is not to be run."""
    return not block.hidden and not NOT_RUN.keys().isdisjoint({(block.page, block.start), (block.page, "*")})


def _why_not_run(block: Block, before: tuple[Block, ...], after: tuple[Block, ...]) -> str | None:
    test, name, file = block.value("by"), block.value("name"), block.value("file")
    if test is not None:
        if (block.page, name) in _blocks_that_run_in(ROOT / test):
            return None
        return f"{test} does not call block_of({block.page!r}, {name!r})"
    if block.has("output"):
        wanted = block.value("of")
        if any(one.runner and wanted in (None, one.value("name")) for one in before):
            return None
        return "it is the output of no block before it"
    if name is not None and any(one.runner and f'tester.text("{name}")' in one.text for one in after):
        return None
    if file is not None:
        words = rf"\b(?:{re.escape(file)}|{re.escape(Path(file).name)}|{re.escape(Path(file).stem)})\b"
        others = [one for one in (*before, *after) if one.runner or one.value("file")]
        is_run_later = any(one.runner in ("python", "sh", "console") for one in after)
        if block.has("serves") or (is_run_later and any(re.search(words, one.text) for one in others)):
            return None
        return f"no other block uses {file}"
    return f"nothing runs a block in {block.language or 'no language'}: CONTRIBUTING.md, Code in the documentation"


@cache
def _blocks_that_run_in(test: Path) -> set[tuple[str, str]]:
    """Return the pages and names in the calls of ``block_of`` in a test file."""
    if not test.is_file():
        return set()
    found = set()
    for node in ast.walk(ast.parse(test.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "block_of":
            page, name = (one.value if isinstance(one, ast.Constant) else "" for one in node.args)
            found.add((str(page), str(name)))
    return found
