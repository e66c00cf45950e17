"""The tests, files, links and names that the documentation mentions exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
DECISIONS = sorted(ROOT.glob("docs/decisions/0*.md"))
TERMS = re.split(r"^### ", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


@pytest.mark.parametrize(
    "page", ["docs/faults.md", "SECURITY.md", "docs/security.md", "docs/architecture.md", "docs/decisions/*.md"]
)
def test_each_test_that_a_page_names_exists(page: str) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob(page))
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named and named <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        found = page.parent / name if name else page
        assert found.exists(), f"{target} does not exist"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target} names none of the headings {sorted(anchors)}"


@pytest.mark.parametrize("page", [*ROOT.glob("docs/**/*.md")], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`(pgbus_gevent/[\w/.]+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_list_of_modules_has_exactly_the_modules_of_the_package() -> None:
    elsewhere = {"bench", "demo", "testing"}
    paths = [path.relative_to(ROOT) for path in (ROOT / "pgbus_gevent").rglob("*.py")]
    there = [path.as_posix() for path in paths if path.parts[1] not in elsewhere and not path.stem.startswith("__")]
    named = re.findall(r"^\| `(pgbus_gevent/[\w/.]+)` \|", (ROOT / "docs/modules.md").read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(there)


def test_the_list_of_modules_has_exactly_the_modules_of_the_client() -> None:
    named = re.findall(r"`(js/src/\w+\.ts)`", (ROOT / "docs/modules.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(f"js/src/{path.name}" for path in (ROOT / "js/src").iterdir())


@pytest.mark.parametrize(
    "page", [ROOT / "docs/architecture.md", ROOT / "docs/glossary.md", *DECISIONS], ids=lambda p: p.stem
)
def test_a_file_defines_the_names_that_a_page_attributes_to_it(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    named = re.findall(r"(`[\w.]+`(?: and `[\w.]+`)?) in `(pgbus_gevent/[\w/]+\.py)`", text)
    named += [(name, path) for path, name in re.findall(r"`(pgbus_gevent/[\w/]+\.py)`: (`[\w.]+`)", text)]
    assert named or page in DECISIONS
    for names, path in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"[\w.]+", names.replace(" and ", " ")):
            # Only definitions count, because a docstring or a comment may contain the word too.
            made = r"\b(?:def|class) {0}\b|\bself\.{0}\b|^ *{0}\b[^=\n]*=|^ +{0}: |\"{0}\""
            missing = [part for part in name.split(".") if not re.search(made.format(part), source, re.MULTILINE)]
            assert not missing, f"{name} is not in {path}"


def test_decisions_are_numbered_and_listed_and_have_a_measurement() -> None:
    index = (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8")
    for number, page in enumerate(DECISIONS, 1):
        text = page.read_text(encoding="utf-8")
        title = re.match(r"# (.+)\n", text)
        assert title and title[1].startswith(f"{number}. ") and page.name.startswith(f"{number:04}-")
        assert f"- [{title[1]}]({page.name})\n" in index
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Measurement", "Rejected"]


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.partition("\n")[0])
def test_a_glossary_entry_has_a_meaning_a_place_and_words_to_avoid(term: str) -> None:
    meaning, _, rest = term.partition("\n")[2].partition("*In the code:*")
    assert meaning.strip() and "*Not:*" in rest


def test_the_glossary_has_each_word_once() -> None:
    words = [term.partition("\n")[0].lower() for term in TERMS]
    assert sorted({*words}) == sorted(words)
