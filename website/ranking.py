"""In the search, pages for beginners and for those in trouble come first, and those about the inside last.

MkDocs calls the function whose name starts with ``on_``.
"""

from __future__ import annotations

from typing import Any

from mkdocs.structure.pages import Page

WEIGHTS = {"Start": 2.0, "Troubleshooting": 2.0, "Inside": 0.3}
"""The weight of the pages of a section, where it is not 1."""


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Give a page the weight of its section. The theme's search reads this from the page's metadata."""
    titles = {str(section.title) for section in page.ancestors} | {page.title}
    for title in titles & WEIGHTS.keys():
        page.meta["search"] = {"boost": WEIGHTS[title]}
    return markdown
