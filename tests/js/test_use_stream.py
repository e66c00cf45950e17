"""The hooks for React and Vue, with the real libraries in their development builds, which mount twice and warn."""

from __future__ import annotations

from pathlib import Path

import browser_parts
import js_parts
import pytest
from browser_parts import Front, Page, Profile, publish
from js_parts import Package, run

_WHY = browser_parts.missing() or js_parts.missing()
pytestmark = [
    pytest.mark.skipif(bool(_WHY), reason=_WHY),
    pytest.mark.parametrize("library", ["react", "vue"]),
]

PAGES = {"react": "react.jsx", "vue": "vue.js"}
FOLDER = Path(__file__).with_name("pages")
RENDER = {
    "react": """
        import { createElement } from "react";
        import { renderToString } from "react-dom/server";
        import { App } from "./react.jsx";
        console.log(renderToString(createElement(App, { options: { src: "/pgbus/streams/a", since: 1 } })));
    """,
    "vue": """
        import { createSSRApp } from "vue";
        import { renderToString } from "vue/server-renderer";
        import { App } from "./vue.js";
        show({ src: "/pgbus/streams/a", since: 1 });
        console.log(await renderToString(createSSRApp(App)));
    """,
}
DEVELOPMENT = (
    '--define:process.env.NODE_ENV="development"',
    "--define:__VUE_OPTIONS_API__=true",
    "--define:__VUE_PROD_DEVTOOLS__=false",
    "--define:__VUE_PROD_HYDRATION_MISMATCH_DETAILS__=true",
)
LIST = "[...document.querySelectorAll('#list li')].map((item) => item.textContent).join()"


bundles: dict[str, str] = {}


@pytest.fixture(scope="module")
def application(js_package: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application with both pages."""
    files = {name: (FOLDER / name).read_text(encoding="utf-8") for name in PAGES.values()}
    return js_package.application(tmp_path_factory.mktemp("hooks") / "app", files)


def bundle(application: Path, name: str, *options: str) -> str:
    return run(application, "esbuild", name, "--bundle", "--format=esm", "--jsx=automatic", *DEVELOPMENT, *options)


def opened(application: Path, library: str, tabs: Profile, front: Front, inside: str = "") -> Page:
    """Open a page that follows nothing yet."""
    code = bundles.get(library) or bundles.setdefault(library, bundle(application, PAGES[library]))
    front.pages["/hooks"] = f"""<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
        <main>{inside}</main><script type="module">{code}</script>"""
    page = tabs.open("/hooks")
    page.until("window.show")
    return page


@pytest.fixture
def page(application: Path, library: str, tabs: Profile, front: Front) -> Page:
    return opened(application, library, tabs, front)


def show(page: Page, src: str, since: int | None = None, prefix: str = "") -> None:
    page.eval("([options, prefix]) => void show(options, prefix)", [{"src": src, "since": since}, prefix])


def until_shown(page: Page, *items: str) -> None:
    page.until(f"{LIST} == '{','.join(items)}'")


def test_a_component_shows_each_message_once(front: Front, page: Page, stream: str) -> None:
    """Also in Strict Mode, which mounts it twice, and if its connection is cut."""
    first, _ = publish(front.site, stream, "before the page", "while it loads")
    show(page, f"/pgbus/streams/{stream}", first)
    until_shown(page, "while it loads")
    page.until("document.getElementById('state').textContent == 'open'")
    assert len(front.asked) == 1
    with front.away(front.drop):
        page.until("document.getElementById('state').textContent != 'open'")
        publish(front.site, stream, "away")
    until_shown(page, "while it loads", "away")
    page.until("document.getElementById('last').textContent == 'away'")
    (client,) = front.site.instance.registry.clients()
    page.until(f"document.getElementById('connection').textContent == '{client.id}'")
    page.eval("void hide()")
    front.until_live(0)


def test_another_render_keeps_the_connection_and_has_its_own_handler(front: Front, page: Page, stream: str) -> None:
    for prefix in ("", "new "):
        show(page, f"/pgbus/streams/{stream}", 0, prefix)
        page.until(f"document.body.dataset.prefix == '{prefix}'")  # it has been rendered
        publish(front.site, stream, "a")
        page.until(f"{LIST}.endsWith('{prefix}a')")
    assert page.eval(LIST) == "a,new a" and len(front.asked) == 1


def test_another_token_goes_on_behind_the_last_message(front: Front, page: Page, stream: str) -> None:
    """Even if the component asks for it while it handles a message. Another cursor begins there."""
    bus = front.site.bus
    sources = [bus.stream_path(stream, expires_in=seconds) for seconds in (1000, 2000, 3000)]
    show(page, sources[0], 0)
    (first,) = publish(front.site, stream, "a")
    until_shown(page, "a")
    show(page, sources[1], 0)
    page.eval("(options) => void (window.next = options)", {"src": sources[2], "since": 0})
    publish(front.site, stream, "b", "move", "c")
    until_shown(page, "a", "b", "move", "c")
    page.eval("(since) => void (next.since = since)", first)
    show(page, sources[2], first)
    until_shown(page, "a", "b", "move", "c", "b", "move", "c")


def test_without_options_nothing_is_followed(front: Front, page: Page, stream: str) -> None:
    page.eval("void show(null)")
    page.until("document.getElementById('state')?.textContent == 'closed'")
    show(page, f"/pgbus/streams/{stream}", 0)
    publish(front.site, stream, "a")
    until_shown(page, "a")
    page.eval("void show(null)")
    front.until_live(0)
    page.until("document.getElementById('state').textContent == 'closed'")
    assert len(front.asked) == 1


def test_several_streams_have_their_own_cursors(front: Front, page: Page, stream: str) -> None:
    """Also if they change places."""
    one, other = f"{stream}:one", f"{stream}:other"
    first, _ = publish(front.site, one, "old", "a")
    second, _ = publish(front.site, other, "old", "b")
    options = {"base": "/pgbus/streams", "streams": [one, other], "since": [first, second]}
    page.eval("(options) => void show(options)", options)
    page.until(f"{LIST}.length == 3")
    publish(front.site, other, "c")
    page.until(f"{LIST}.endsWith('c')")
    page.eval("(options) => void show(options)", {**options, "streams": [other, one]})
    publish(front.site, one, "d")
    page.until(f"{LIST}.endsWith('d')")
    assert sorted(page.eval(LIST).split(",")) == ["a", "b", "c", "d"]


def test_a_gap_is_told(front: Front, page: Page, stream: str) -> None:
    show(page, f"/pgbus/streams/{stream}", 9_000_000_000_000_000)
    page.until("document.getElementById('gap').textContent == 'ahead'")


def test_what_a_server_rendered_comes_alive(
    application: Path, library: str, tabs: Profile, front: Front, stream: str
) -> None:
    (application / f"{library}.server.js").write_text(RENDER[library], encoding="utf-8")
    bundle(application, f"{library}.server.js", "--platform=node", "--packages=external", "--outfile=server.js")
    html = run(application, "node", "server.js")
    assert '<p id="state">connecting</p>' in html
    page = opened(application, library, tabs, front, html.strip())
    page.eval("void (document.getElementById('list').kept = true)")
    page.eval("(options) => void hydrate(options)", {"src": f"/pgbus/streams/{stream}", "since": 0})
    publish(front.site, stream, "a")
    until_shown(page, "a")
    assert page.eval("document.getElementById('list').kept"), "the elements are those of the server"
