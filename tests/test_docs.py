"""What the documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")]


@pytest.mark.parametrize("page", ["docs/faults.md", "SECURITY.md"])
def test_each_test_that_a_page_names_exists(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf-8")))
    assert named and named <= {path.stem for path in (ROOT / "tests").glob("test_*.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        found = page.parent / name if name else page
        assert found.exists(), f"{target} is not there"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target} names no heading of {sorted(anchors)}"


def test_the_page_on_the_inside_names_every_part_and_none_that_is_gone() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^## The parts\n\n```\n(.*?)^```$", text, re.M | re.S)
    package = ROOT / "pgbus_gevent"
    folders = ["core", "database", "streamer", "web", "hosts"]
    there = {path.stem for folder in folders for path in (package / folder).glob("*.py")}
    there |= {path.stem for path in package.glob("*.py") if not path.stem.startswith("cli_")}
    named = set(
        re.findall(r"\w+", re.sub(r"^\d|beside the folder:|programs|\(and cli_…\)|\w+/", "", block, flags=re.M))
    )
    assert named == {name for name in there if not name.startswith("__")}
