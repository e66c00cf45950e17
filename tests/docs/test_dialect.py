"""Pages in GitHub's Markdown look the same on the site, which reads another dialect."""

from __future__ import annotations

import re
from pathlib import Path

import markdown
import pytest
from markdown_it import MarkdownIt

from website import dialect

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXTENSIONS = ["tables", "pymdownx.superfences", "attr_list", "md_in_html"]


def shape(html: str) -> list[str]:
    """Return the lists, tables and blocks of code of a page. Both dialects write them with the same tags."""
    return [tag for tag, _ in re.findall(r"<(/?(?:ul|ol|li|table|tr|pre))\b([^>]*)>", html)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_has_the_same_lists_tables_and_code_in_both_dialects(page: Path) -> None:
    text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"^::: .*\n(?: +.*\n)*", "", text, flags=re.MULTILINE)
    github = MarkdownIt("commonmark", {"html": True}).enable("table").render(dialect.without_comments(text))
    site = markdown.markdown(dialect.on_page_markdown(text), extensions=EXTENSIONS)
    assert shape(site) == shape(github)


@pytest.mark.parametrize(
    "text, tags",
    [
        ("A text:\n- one\n- two", "ul li /li li /li /ul"),
        ("1. one\n\n   ```sh\n   ls\n   ```\n2. two", "ol li pre /pre /li li /li /ol"),
        ("- one\n  - below\n    more\n- two", "ul li ul li /li /ul /li li /li /ul"),
        ("A text:\n| a |\n| - |\n| b |", "table tr /tr tr /tr /table"),
        ("A text\n```yaml\n- no list\n```", "pre /pre"),
        ("- one\nthat goes on\n\nA text", "ul li /li /ul"),
    ],
)
def test_markdown_of_github_becomes_what_it_says(text: str, tags: str) -> None:
    assert shape(markdown.markdown(dialect.on_page_markdown(text), extensions=EXTENSIONS)) == tags.split()


def test_comments_are_left_out_except_in_code() -> None:
    code = "```html\n<!-- a comment -->\n```\n"
    assert dialect.without_comments(f"a<!-- block:\n```sh\nls\n```\n-->b\n{code}") == f"ab\n{code}"
