"""The pages for programs that read Markdown: each page as text beside its HTML, ``llms.txt``, and ``llms-full.txt``.

``llms.txt`` lists the pages, in the format of https://llmstxt.org/. ``llms-full.txt`` has the pages for users, one after the other.
MkDocs calls the functions whose names start with ``on_``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from markdownify import ATX, markdownify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

INSIDE = "Inside"
"""The section for contributors. ``llms-full.txt`` leaves it out, and ``llms.txt`` marks it as optional."""

_texts: dict[str, str] = {}
_sections: list[tuple[str, list[Page]]] = []


def on_nav(nav: Navigation, *, config: MkDocsConfig, files: Files) -> Navigation:
    """Remember the sections, in their order."""
    _texts.clear()
    _sections[:] = [(str(item.title), list(pages_of(item))) for item in nav.items]
    return nav


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Remember the text of a page. What is made from docstrings exists only in HTML, so it is converted back."""
    text = page.markdown or ""
    if re.search(r"^::: ", text, re.MULTILINE):
        html_of_text = re.sub(
            r'<a [^>]*\bclass="headerlink".*?</a>', "", html
        )  # the links behind headings would be noise
        html_of_text = re.sub(r'(<a [^>]*\bhref="[^":]+)\.html', r"\1.md", html_of_text)
        text = markdownify(html_of_text, heading_style=ATX, escape_underscores=False)
    _texts[page.file.src_uri] = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return html


def on_post_build(*, config: MkDocsConfig) -> None:
    """Write the files."""
    site = Path(config.site_dir)
    about = "Each link leads to a page as Markdown. [llms-full.txt](llms-full.txt) has the pages for users in one file."
    listed, full = [f"# {config.site_name}\n\n> {config.site_description}\n\n{about}\n"], []
    for title, pages in _sections:
        listed.append(f"\n## {'Optional' if title == INSIDE else title}\n\n")
        for page in pages:
            place, text = page.file.src_uri, _texts[page.file.src_uri]
            (site / place).write_text(text, encoding="utf-8")
            listed.append(f"- [{page.title}]({config.site_url or ''}{place}): {first_sentence(text)}\n")
            if title != INSIDE:
                full.append(f"<!-- {place} -->\n\n{text}")
    (site / "llms.txt").write_text("".join(listed), encoding="utf-8")
    (site / "llms-full.txt").write_text("\n".join(full), encoding="utf-8")


def pages_of(item: object) -> Iterator[Page]:
    """Yield the pages of a part of the navigation."""
    if isinstance(item, Page):
        yield item
    for child in getattr(item, "children", None) or ():
        yield from pages_of(child)


def first_sentence(text: str) -> str:
    """Return the first sentence of a page's text, without links and other markup."""
    text = re.sub(r"^( *)(```+|~~~+).*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", text):
        if re.match(r"[A-Za-z`*\[]", paragraph) and not paragraph.startswith("* "):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split())).replace("*", "")
            return re.sub(r":$", ".", re.split(r"(?<=[.!?]) (?=[A-Z`(])", plain, maxsplit=1)[0])
    return ""
