"""Applications that have the client package in their bundles, in a real browser and on a real server."""

from __future__ import annotations

from pathlib import Path

import browser_parts
import js_parts
import pytest
from browser_parts import Front, Profile, element, publish
from js_parts import Package, run
from page_parts import block_of

_WHY = browser_parts.missing() or js_parts.missing()
pytestmark = pytest.mark.skipif(bool(_WHY), reason=_WHY)

LOGGING = "window.logged = []; console.log = (...what) => logged.push(what);"


def main(stream: str) -> str:
    """Return the code of an application, from the documentation."""
    return block_of("docs/browser.md", "bundle").replace("TOKEN", stream).replace("1700000000000012", "0")


ONLY_CONNECT = """
import { connect } from "pgbus-gevent";
connect({ src: document.body.dataset.src, since: 0 });
"""

VITE = """
export default { build: { rollupOptions: { input: "main.ts" }, outDir: "out", modulePreload: false }, logLevel: "warn" };
"""


def bundle(package: Package, folder: Path, tool: str, code: str) -> str:
    """Return the code that a bundler makes of an application."""
    app = package.application(folder, {"main.ts": code, "vite.config.js": VITE})
    if tool == "vite":
        run(app, "vite", "build")
    else:
        run(app, "esbuild", "main.ts", "--bundle", "--minify", "--format=esm", "--outdir=out")
    (made,) = app.glob("out/**/*.js")
    return made.read_text(encoding="utf-8")


def application(stream: str, code: str) -> str:
    """Return the page of an application."""
    return f"""<!doctype html><link rel="icon" href="data:,"><body>
        {element(stream, 'since="0"')}<script type="module">{code}</script>"""


@pytest.mark.parametrize("tool", ["vite", "esbuild"])
def test_a_bundled_application_follows_a_stream(
    js_package: Package, tmp_path: Path, tabs: Profile, front: Front, stream: str, tool: str
) -> None:
    code = bundle(js_package, tmp_path / "app", tool, main(stream))
    front.pages["/app"] = application(stream, code)
    page = tabs.open("/app", init=LOGGING)
    (id,) = publish(front.site, stream, "tea", event="order.paid")
    page.until("logged.length == 2")
    assert sorted(page.eval("logged"), key=len) == [["tea"], [id, "tea"]]
    assert front.live == 1  # they share a connection


def test_a_bundle_without_the_element_leaves_it_out(js_package: Package, tmp_path: Path) -> None:
    code = bundle(js_package, tmp_path / "app", "esbuild", ONLY_CONNECT)
    assert "pgbus-stream-source" not in code and "text/event-stream" in code


def test_a_bundle_and_the_served_module_share_a_connection(
    js_package: Package, tmp_path: Path, tabs: Profile, front: Front, stream: str
) -> None:
    """One tab has the bundle, whose private names are other ones, and the other tab has the module of the server."""
    served = tabs.open(front.page(element(stream, 'since="0"')))
    served.until_open()
    code = bundle(js_package, tmp_path / "app", "esbuild", main(stream))
    front.pages["/app"] = application(stream, code)
    bundled = tabs.open("/app", init=LOGGING)
    (id,) = publish(front.site, stream, "tea", event="order.paid")
    bundled.until("logged.length == 2")
    assert sorted(bundled.eval("logged"), key=len) == [["tea"], [id, "tea"]]
    served.until_data(["tea"])
    assert front.live == 1
