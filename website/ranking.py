"""In the search, pages for users come before those about the inside. MkDocs calls the function whose name starts with ``on_``."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.pages import Page

INSIDE = "Inside"
"""The section of the pages for contributors."""


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Give a page of the inside less weight. The theme's search reads this from the page's metadata."""
    if any(section.title == INSIDE for section in page.ancestors):
        page.meta["search"] = {"boost": 0.3}
    return markdown
