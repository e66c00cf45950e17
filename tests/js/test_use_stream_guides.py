"""The components in the guides for React and Vue, in a real browser and on a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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


def page_of_the_guide(package: Package, folder: Path, config: str) -> Path:
    """Return a folder with the files that the guide for React puts beside its server."""
    files = {
        "index.html": block_of("docs/guides/react.md", "index"),
        "main.jsx": block_of("docs/guides/react.md", "main"),
        "Orders.jsx": block_of("docs/guides/react.md", "component"),
        "vite.config.mjs": config,
        "package.json": "{}",  # npm install makes one without a type
    }
    return package.application(folder, files)


def test_the_guide_installs_what_it_imports(js_package: Package) -> None:
    *pack, install = block_of("docs/guides/react.md", "install").splitlines()
    *ours, archive = block_of("docs/browser.md", "pack").splitlines()
    assert pack == ours and install.startswith(f"{archive} ")
    names = set(install.removeprefix(archive).split())
    tested = json.loads((js_package.folder / "package.json").read_text())["devDependencies"]
    assert names == {"react", "react-dom", "vite"} <= tested.keys()


def test_the_page_of_the_guide_shows_its_rows_and_what_comes(
    js_package: Package, tmp_path: Path, tabs: Profile, front: Front, stream: str
) -> None:
    """As its last command builds it."""
    app = page_of_the_guide(js_package, tmp_path / "app", block_of("docs/guides/react.md", "vite"))
    npx, *build = block_of("docs/guides/react.md", "build").split()
    assert npx == "npx"
    run(app, *build)
    (code,) = (app / "dist/assets").glob("*.js")
    loads = re.compile(r"<script [^>]*></script>")
    built, found = loads.subn("", (app / "dist/index.html").read_text())
    assert found == 1
    script = f'<link rel="icon" href="data:,"><script type="module">{code.read_text()}</script></body>'
    front.pages["/orders"] = built.replace("</body>", script)
    (since,) = publish(front.site, stream, '{"id": 1, "item": "tea"}', event="order")
    properties = {"src": f"/pgbus/streams/{stream}", "since": since, "first": [{"id": 1, "item": "tea & milk"}]}
    front.pages["/orders.json"] = json.dumps(properties)
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
const get = (path) => fetch(`http://127.0.0.1:${port}${path}`);
const text = async (path) => (await get(path)).text();
if (!(await text("/")).includes('src="/main.jsx"')) throw new Error("the page");
if (!/from "[^"]*react/.test(await text("/main.jsx"))) throw new Error("the script");
if ((await text("/orders.json")) !== "from the server") throw new Error("the properties");
const { body } = await get("/pgbus/streams/demo:vite?since=0");
let got = "";
for await (const bytes of body.pipeThrough(new TextDecoderStream())) if ((got += bytes).includes("data: hello")) break;
console.log("through the proxy");
process.exit();
"""


def test_the_development_server_of_the_guide_has_the_page_and_passes_the_rest_on(
    js_package: Package, pgbus_database: str, tmp_path: Path
) -> None:
    assert block_of("docs/guides/react.md", "dev").split() == ["npx", "vite"]
    with running_site(pgbus_database) as site:
        streams = site.app

        def served(environ: Any, start_response: Any) -> Any:
            if environ["PATH_INFO"] != "/orders.json":
                return streams(environ, start_response)
            start_response("200 OK", [("content-type", "application/json")])
            return [b"from the server"]

        site.app = served
        config = block_of("docs/guides/react.md", "vite").replace("8080", str(site.port))
        app = page_of_the_guide(js_package, tmp_path / "app", config)
        (app / "serve.mjs").write_text(SERVE)
        site.bus.stream("demo:vite").broadcast("hello")
        assert run(app, "node", "serve.mjs") == "through the proxy\n"


def test_in_strict_mode_of_development_each_order_is_shown_once(
    js_package: Package, tmp_path: Path, tabs: Profile, front: Front, stream: str
) -> None:
    """There, each component is mounted twice."""
    app = page_of_the_guide(js_package, tmp_path / "app", "")
    code = run(app, "esbuild", "main.jsx", "--bundle", "--format=esm", "--jsx=automatic")
    (since,) = publish(front.site, stream, '{"id": 1, "item": "tea"}', event="order")
    front.pages["/orders.json"] = json.dumps({"src": f"/pgbus/streams/{stream}", "since": since, "first": []})
    front.pages["/orders"] = f"""<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
        <div id="orders"></div><script type="module">{code}</script>"""
    page = tabs.open("/orders")
    page.until("document.querySelector('#orders ul')?.ariaBusy == 'false'")
    publish(front.site, stream, '{"id": 2, "item": "milk"}', '{"id": 3, "item": "oil"}', event="order")
    page.until("[...document.querySelectorAll('#orders li')].map((item) => item.textContent).join() == 'milk,oil'")
