"""What runs the code in the documentation finds every block, and notices an output that is not the one that a page shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from expected_parts import Expected
from page_parts import Block, block_of, blocks_of_text
from page_running_parts import opened
from pip_parts import missing

from pgbus_gevent.bus import Bus

pytestmark = pytest.mark.docs

ONE, OTHER, LATER = "1795547890113946", "1800000000000001", "1800000000000002"


def test_the_example_for_contributors_runs(tmp_path: Path, request: pytest.FixtureRequest, pgbus_bus: Bus) -> None:
    parts = blocks_of_text("CONTRIBUTING.md", block_of("CONTRIBUTING.md", "example"))
    assert [block.language for block in parts] == ["python", "sql", "", "python"]
    with opened(parts, tmp_path, request) as page:
        page.run()
    wrong = [block._replace(text=block.text.replace("7", "8")) if block.has("output") else block for block in parts]
    with pgbus_bus.transaction() as cursor:
        cursor.execute("drop table orders")
    with opened(wrong[:3], tmp_path, request) as page, pytest.raises(AssertionError, match="8"):
        page.run()


def a_page(text: str) -> tuple[Block, ...]:
    return blocks_of_text("a page", text.replace("~~~", "```"))


def test_blocks_in_lists_and_their_comments_are_found() -> None:
    first, second = a_page(
        '- text\n\n  <!-- block: name=x status=1 -->\n  ~~~sh\n  ls\n  ~~~\n\n~~~py title="a.py"\n~~~\n'
    )
    assert first == Block("a page", 5, "sh", "ls\n", False, (("name", "x"), ("status", "1")))
    assert second.value("file") == "a.py" and not second.hidden


@pytest.mark.parametrize(
    "text",
    [
        "<!-- block: outputs -->\n~~~\n~~~\n",
        "<!-- block: output=yes -->\n~~~\n~~~\n",
        "<!-- blocks: output -->\n~~~\n~~~\n",
        "<!-- block: output -->\n\ntext\n\n~~~\n~~~\n",
        "<!-- block: output -->\n",
        "<!-- block: output\ncode\n-->\n~~~\n~~~\n",
    ],
)
def test_a_comment_without_a_meaning_is_an_error(text: str) -> None:
    with pytest.raises(AssertionError, match="a page"):
        a_page(text)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("a\nb\n", "a\nb"),
        ("a … z\n", "a b c z\n"),
        ("a\n…\nz\n", "a\nb\nc\nz\n"),
        ("a\n…\n", "a\n"),
        (f"id: {ONE}\nagain {ONE}\n", f"id: {OTHER}\nagain {OTHER}\n"),
        (f"1~{ONE}.{int(ONE) + 1}\n", f"1~{OTHER}.{LATER}\n"),
    ],
)
def test_an_output_is_what_the_page_shows(shown: str, printed: str) -> None:
    assert Expected().compare(shown, printed) == ""


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("a\n", "b\n"),
        ("a\n", "a\nb\n"),
        ("a …\n", "a b\nc\n"),
        (f"id: {ONE}\nagain {ONE}\n", f"id: {OTHER}\nagain {LATER}\n"),
        (f"1~{ONE}.{int(ONE) + 1}\n", f"1~{LATER}.{OTHER}\n"),
        (f"{ONE} {int(ONE) + 1}\n", f"{OTHER} {OTHER}\n"),
    ],
)
def test_an_output_is_not_what_the_page_shows(shown: str, printed: str) -> None:
    assert Expected().compare(shown, printed) != ""


def test_an_id_that_was_shown_stands_for_the_same_one_later() -> None:
    expected = Expected()
    assert expected.compare(f"id: {ONE}\n", f"id: {OTHER}\n: heartbeat 1\n", start=True) == ""
    assert expected.put_in(f"since={ONE}") == f"since={OTHER}"
    assert expected.compare(f"id: {ONE}\n", f"id: {LATER}\n") != ""


def test_installing_what_does_not_exist_is_noticed() -> None:
    assert missing(["-q", "pgbus-gevent[redis,embedded]", "."]) == []
    assert missing(["pgbus-gevent[rediss]"]) == ["pgbus-gevent has no extra rediss"]
    assert missing(["/tmp[embedded]"]) == ["/tmp[embedded] is not the clone"]
    assert missing(["no-such-package-of-ours"]) == ["no-such-package-of-ours is not installed"]
