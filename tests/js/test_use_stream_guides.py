"""The components in the guides for React and Vue, in a real browser and on a real server."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import browser_parts
import js_parts
import pytest
from browser_parts import Front, Profile, publish
from js_parts import Package, run
from page_parts import block_of
from site_parts import running_site

_WHY = browser_parts.missing() or js_parts.missing()
pytestmark = [pytest.mark.skipif(bool(_WHY), reason=_WHY), pytest.mark.docs]

REACT = """
import { createElement } from "react";
import { createRoot } from "react-dom/client";
import { Orders } from "./Orders.jsx";
const root = createRoot(document.querySelector("main"));
window.show = (properties) => root.render(createElement(Orders, properties));
"""
VUE = """
import { createApp, h, shallowRef } from "vue";
import Orders from "./Orders.js";
const given = shallowRef();
createApp({ render: () => given.value && h(Orders, given.value) }).mount("main");
window.show = (properties) => (given.value = properties);
"""
COMPILE = """
import { readFileSync, writeFileSync } from "node:fs";
import { compileScript, parse } from "vue/compiler-sfc";
const { descriptor } = parse(readFileSync("Orders.vue", "utf8"));
writeFileSync("Orders.js", compileScript(descriptor, { id: "orders", inlineTemplate: true }).content);
"""


@pytest.mark.parametrize("library", ["react", "vue"])
def test_a_component_shows_each_order_once_also_with_another_token(
    library: str, js_package: Package, tmp_path: Path, tabs: Profile, front: Front, stream: str
) -> None:
    files = {
        "Orders.jsx": block_of("docs/guides/react.md", "component"),
        "Orders.vue": block_of("docs/guides/vue.md", "component"),
        "react.js": REACT,
        "vue.js": VUE,
        "compile.js": COMPILE,
    }
    app = js_package.application(tmp_path / "app", files)
    run(app, "node", "compile.js")
    defined = '--define:process.env.NODE_ENV="production"'
    code = run(app, "esbuild", f"{library}.js", "--bundle", "--format=esm", "--jsx=automatic", defined)
    (since,) = publish(front.site, stream, '{"id": 1, "item": "tea"}', event="order")
    front.pages["/orders"] = f"""<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
        <main></main><script type="module">{code}</script>"""
    page = tabs.open("/orders")
    page.until("window.show")
    show = f"(src) => void show({{ src, since: {since}, first: [{{ id: 1, item: 'tea' }}] }})"
    items = "[...document.querySelectorAll('main li')].map((item) => item.textContent).join()"
    page.eval(show, f"/pgbus/streams/{stream}")
    page.until(f"{items} == 'tea'")
    publish(front.site, stream, '{"id": 2, "item": "milk"}', event="order")
    page.until(f"{items} == 'tea,milk' && document.querySelector('ul').ariaBusy == 'false'")
    page.eval(show, front.site.bus.stream_path(stream, expires_in=60))
    publish(front.site, stream, '{"id": 3, "item": "oil"}', event="order")
    page.until(f"{items} == 'tea,milk,oil'")
    page.eval("(src) => void show({ src, since: 9000000000000000, first: [] })", f"/pgbus/streams/{stream}")
    page.until("document.querySelector('main a')")


def test_a_page_gives_a_component_its_rows(
    js_package: Package, tmp_path: Path, tabs: Profile, front: Front, stream: str
) -> None:
    """In development, where Strict Mode mounts each component twice."""
    files = {
        "Orders.jsx": block_of("docs/guides/react.md", "component"),
        "main.jsx": block_of("docs/guides/react.md", "main"),
    }
    app = js_package.application(tmp_path / "app", files)
    code = run(app, "esbuild", "main.jsx", "--bundle", "--format=esm", "--jsx=automatic")
    (since,) = publish(front.site, stream, '{"id": 1, "item": "tea"}', event="order")
    properties = {"src": f"/pgbus/streams/{stream}", "since": since, "first": [{"id": 1, "item": "tea & milk"}]}
    front.pages["/orders"] = f"""<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
        <div id="orders" data-properties="{escape(json.dumps(properties))}"></div><script type="module">{code}</script>"""
    page = tabs.open("/orders")
    page.until("document.querySelector('#orders ul')?.ariaBusy == 'false'")
    publish(front.site, stream, '{"id": 2, "item": "milk"}', '{"id": 3, "item": "oil"}', event="order")
    page.until(
        "[...document.querySelectorAll('#orders li')].map((item) => item.textContent).join() == 'tea & milk,milk,oil'"
    )


SERVE = """
import { createServer } from "vite";
const server = await createServer({ server: { host: "127.0.0.1", port: 0 }, logLevel: "error" });
await server.listen();
const { port } = server.httpServer.address();
const { body } = await fetch(`http://127.0.0.1:${port}/pgbus/streams/demo:vite?since=0`);
let got = "";
for await (const bytes of body.pipeThrough(new TextDecoderStream())) if ((got += bytes).includes("data: hello")) break;
console.log("through the proxy");
process.exit();
"""


def test_a_development_server_passes_the_streams_on(js_package: Package, pgbus_database: str, tmp_path: Path) -> None:
    with running_site(pgbus_database) as site:
        config = block_of("docs/guides/react.md", "vite").replace("8080", str(site.port))
        app = js_package.application(tmp_path / "app", {"vite.config.js": config, "main.js": SERVE})
        site.bus.stream("demo:vite").broadcast("hello")
        assert run(app, "node", "main.js") == "through the proxy\n"
