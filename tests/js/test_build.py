"""What the build of the client package makes for the server: it is what is committed, small, and complete."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from js_parts import JS, STATIC, Package, missing, run

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

MOST = 5000
"""Bytes of the served module, compressed with brotli."""

COMPRESSED = """
import { readFileSync } from "node:fs";
import { brotliCompressSync } from "node:zlib";
console.log(brotliCompressSync(readFileSync(process.argv[1])).length);
"""


@pytest.mark.parametrize("name", ["pgbus.js", "pgbus.js.map"])
def test_what_is_committed_is_what_the_build_makes(js_package: Package, name: str) -> None:
    """If not: npm run build --prefix js"""
    assert (js_package.static / name).read_bytes() == (STATIC / name).read_bytes()


def test_the_module_is_under_5_kb_with_brotli(js_package: Package) -> None:
    size = run(js_package.folder, "node", "--input-type=module", "-e", COMPRESSED, str(STATIC / "pgbus.js"))
    assert 3000 < int(size) < MOST


def test_no_private_name_is_left_in_the_module() -> None:
    code = (STATIC / "pgbus.js").read_text()
    private = set(re.findall(r"\b_\w+", "".join(path.read_text() for path in (JS / "src").glob("*.ts"))))
    assert len(private) > 50
    assert [name for name in private if re.search(rf"\b{name}\b", code) and name != "_"] == []


def test_the_source_map_has_the_sources_as_they_are(js_package: Package) -> None:
    found = json.loads((js_package.static / "pgbus.js.map").read_text())
    texts = dict(zip(found["sources"], found["sourcesContent"], strict=True))
    assert len(texts) > 5
    for name, text in texts.items():
        assert text == (JS / name.removeprefix("pgbus-gevent/")).read_text()


def test_a_place_in_the_module_is_found_in_its_source(js_package: Package, tmp_path: Path) -> None:
    """The number that stands only there is looked up in the map."""
    code = (STATIC / "pgbus.js").read_text()
    column = code.splitlines()[0].index("text/event-stream")
    script = """
        import { readFileSync } from "node:fs";
        import { SourceMap } from "node:module";
        const map = new SourceMap(JSON.parse(readFileSync(process.argv[1])));
        const { originalSource, originalLine } = map.findEntry(0, Number(process.argv[2]));
        console.log(JSON.stringify([originalSource, originalLine]));
    """
    said = run(tmp_path, "node", "--input-type=module", "-e", script, str(STATIC / "pgbus.js.map"), str(column))
    source, line = json.loads(said)
    assert source == "pgbus-gevent/src/line.ts"
    assert "text/event-stream" in (JS / "src/line.ts").read_text().splitlines()[line]
