"""The client package as npm packs it, and as node and a server that renders pages import it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from js_parts import JS, Package, missing, run
from page_parts import block_of
from site_parts import running_site

import pgbus_gevent

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

CLONE = "/path/to/the/clone"
MANIFEST = json.loads((JS / "package.json").read_text())


def test_the_archive_has_what_the_sources_give_and_nothing_else(js_package: Package) -> None:
    sources = {path.stem for path in (JS / "src").glob("*.ts")}
    built = {f"dist/{name}{end}" for name in sources for end in (".js", ".js.map", ".d.ts")}
    assert len(sources) > 5
    assert js_package.files == built | {"package.json", "README.md", "LICENSE"}


def test_every_export_is_in_the_archive(js_package: Package) -> None:
    named = [
        path
        for export in MANIFEST["exports"].values()
        for path in (export.values() if isinstance(export, dict) else [export])
    ]
    assert len(named) >= 5
    assert {path.removeprefix("./") for path in named} <= js_package.files


def test_it_needs_no_other_package_and_has_the_version_of_the_server() -> None:
    assert "dependencies" not in MANIFEST
    peers = MANIFEST.get("peerDependencies", {})
    assert all(MANIFEST["peerDependenciesMeta"][name]["optional"] for name in peers)
    assert MANIFEST["version"] == pgbus_gevent.__version__
    assert (JS / "LICENSE").read_text() == (JS.parent / "LICENSE").read_text()


def test_publint_finds_nothing(js_package: Package) -> None:
    said = run(js_package.folder, "publint", "--strict", str(js_package.archive))
    assert "All good!" in said


def test_the_types_are_found_however_a_module_is_resolved(js_package: Package) -> None:
    """All that can be found by a program of ES modules; the package is nothing else."""
    run(js_package.folder, "attw", str(js_package.archive), "--profile", "esm-only", "--no-emoji")


def test_it_is_installed_as_the_documentation_says(js_package: Package, tmp_path: Path) -> None:
    tools, pack, install = block_of("docs/browser.md", "pack").splitlines()
    assert tools.startswith("npm ci --prefix ") and js_package.commands[1:] == [
        pack.replace(CLONE, str(js_package.folder.parent)),
        install,
    ]
    shutil.copy(js_package.archive, tmp_path)
    (tmp_path / "main.js").write_text(IMPORTS)
    run(tmp_path, "bash", "-ec", f"npm init -y >/dev/null; npm pkg set type=module; {install} --offline")
    assert json.loads((tmp_path / "package.json").read_text())["dependencies"].keys() == {"pgbus-gevent"}
    assert "function" in run(tmp_path, "node", "main.js")


IMPORTS = """
import { connect, parser } from "pgbus-gevent";
import * as element from "pgbus-gevent/element";
console.log(typeof connect, typeof parser, element.connect === connect, "HTMLElement" in globalThis);
"""


def test_node_imports_it_and_ends_by_itself(js_package: Package, tmp_path: Path) -> None:
    app = js_package.application(tmp_path / "app", {"main.js": IMPORTS})
    assert run(app, "node", "main.js") == "function function true false\n"


RENDERS = """
import "pgbus-gevent/element";
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { createSSRApp, h } from "vue";
import { renderToString as renderVue } from "vue/server-renderer";
const attributes = { src: "/pgbus/streams/demo:x", since: "5" };
console.log(renderToString(createElement("pgbus-stream-source", attributes)));
console.log(await renderVue(createSSRApp({ render: () => h("pgbus-stream-source", attributes) })));
"""


def test_a_server_that_renders_pages_imports_the_element(js_package: Package, tmp_path: Path) -> None:
    said = run(js_package.application(tmp_path / "app", {"main.js": RENDERS}), "node", "main.js")
    assert said.splitlines() == 2 * [
        '<pgbus-stream-source src="/pgbus/streams/demo:x" since="5"></pgbus-stream-source>'
    ]


FOLLOWS = """
import { connect } from "pgbus-gevent";
const stream = connect({ src: process.argv[2], since: 0 });
stream.addEventListener("order.paid", ({ data, detail, lastEventId }) => {
  console.log(JSON.stringify([data, detail.id === Number(lastEventId), stream.state]));
  stream.close();
});
"""


def test_a_program_of_node_follows_a_stream(js_package: Package, pgbus_database: str, tmp_path: Path) -> None:
    """It ends when it has closed the stream, because nothing is left to wait for."""
    app = js_package.application(tmp_path / "app", {"main.js": FOLLOWS})
    with running_site(pgbus_database) as site:
        site.bus.stream("demo:node").broadcast("7 €", event="order.paid")
        said = run(app, "node", "main.js", f"{site.url}/pgbus/streams/demo:node")
    assert json.loads(said) == ["7 €", True, "open"]


ALONE = """
import { connect } from "pgbus-gevent";
try {
  connect({ stream: "demo:x" });
} catch (error) {
  console.log(error.message);
}
"""


def test_a_program_without_a_page_needs_a_whole_url(js_package: Package, tmp_path: Path) -> None:
    app = js_package.application(tmp_path / "app", {"main.js": ALONE})
    assert run(app, "node", "main.js") == "Invalid URL\n"
