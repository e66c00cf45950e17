"""The documentation below /docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import bottle
import pytest

from pgbus_gevent.demo import manual


@pytest.fixture(scope="module")
def app() -> bottle.Bottle:
    found = bottle.Bottle()
    manual.add_manual(found)
    return found


def get(app: bottle.Bottle, path: str) -> tuple[int, str]:
    seen: list[Any] = []
    request = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "wsgi.errors": None}
    body = b"".join(app(request, lambda status, headers, *more: seen.append(int(status[:3]))))
    return seen[0], body.decode()


def test_each_link_of_a_page_leads_to_a_page(app: bottle.Bottle) -> None:
    assert manual.link() == "docs/README.md"
    for start in ("README.md", "docs/streams.md", "examples/README.md"):
        status, body = get(app, f"/docs/{start}")
        assert status == 200
        links = [link.partition("#")[0] for link in re.findall(r'<a href="([^":]+)"', body.partition("<main")[2])]
        for link in links:
            target = posixpath.normpath(posixpath.join("/docs", posixpath.dirname(start), link))
            assert get(app, target)[0] == 200, (start, link)
        assert links


@pytest.mark.parametrize("path", ["setup.py", "docs/../setup.py", "../../etc/passwd", "docs", "requirements.txt"])
def test_it_serves_nothing_else(app: bottle.Bottle, path: str) -> None:
    assert get(app, f"/docs/{path}")[0] == 404


def test_markdown_keeps_its_text_and_has_no_markup_of_its_own() -> None:
    links = "[one](a.md#b) [two](../c.md) [three](javascript:x) [four](#d) [five](https://e.example/) ![six](i.png)"
    text = manual.as_html(
        f"<!-- block: x -->\n# A `b` & c\n\n<script>x</script>\n{links}\n", "docs/x.md", ["docs/a.md"]
    )
    assert text.splitlines() == [
        '<b id="a-b--c"># A `b` &amp; c</b>',
        "",
        "&lt;script&gt;x&lt;/script&gt;",
        '<a href="a.md#b">one</a> two three <a href="#d">four</a> <a href="https://e.example/">five</a> (six)',
    ]


def test_without_its_files_the_metadata_names_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(manual, "_root", lambda: None)
    assert manual.link() is None, "the address is a placeholder still"
    monkeypatch.setattr(manual, "_PLACEHOLDER", "elsewhere.example")
    link = manual.link()
    assert link and link.startswith("https://") and link.endswith("/docs")
    app = bottle.Bottle()
    manual.add_manual(app)
    assert get(app, "/docs/README.md")[0] == 404
