"""The browser element as a file: its headers and its size. browser/test_element.py tests its behaviour."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from raw_http import Answer, ask, exchange
from site_parts import Site, running_site

from pgbus_gevent.testing.databases import TestDatabases

PATH = "/pgbus/pgbus.js"
ORIGIN = "https://shop.example"


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make(), cors_origins=(ORIGIN,)) as site:
        yield site


@pytest.fixture(scope="module")
def sent(site: Site) -> Answer:
    return ask(site.port, PATH)


def test_the_element_is_a_cacheable_javascript_module(sent: Answer) -> None:
    assert sent.status == 200
    assert sent.headers["content-type"] == "text/javascript; charset=utf-8"
    assert sent.headers["cache-control"] == "public, max-age=300"
    assert sent.headers["x-content-type-options"] == "nosniff"
    assert sent.headers["etag"].startswith('"')
    assert b"export{" in sent.body


def test_a_head_answers_like_a_get_without_the_body(site: Site, sent: Answer) -> None:
    head = ask(site.port, PATH, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert {name: head.headers[name] for name in ("etag", "content-length", "content-type")} == {
        "etag": sent.headers["etag"],
        "content-length": str(len(sent.body)),
        "content-type": sent.headers["content-type"],
    }


@pytest.mark.parametrize("tags", ["{}", "W/{}", '"other", {}', "*"])
def test_a_client_with_the_current_version_gets_304(site: Site, sent: Answer, tags: str) -> None:
    etag = sent.headers["etag"]
    again = ask(site.port, PATH, If_None_Match=tags.format(etag))
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    assert "content-length" not in again.headers


def test_a_client_with_another_version_gets_the_current_one(site: Site, sent: Answer) -> None:
    assert ask(site.port, PATH, If_None_Match='"other"').body == sent.body


def test_only_get_and_head_are_allowed(site: Site) -> None:
    answer = ask(site.port, PATH, "POST", b"")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_pages_of_configured_origins_may_import_the_element(site: Site) -> None:
    assert ask(site.port, PATH, Origin=ORIGIN).headers["access-control-allow-origin"] == ORIGIN


def test_the_element_is_under_5_kb_on_the_wire(site: Site) -> None:
    """With the Accept-Encoding of a browser. test_representations.py is about codings."""
    sent = ask(site.port, PATH, Accept_Encoding="gzip, deflate, br, zstd")
    assert sent.headers["content-encoding"] == "br" and len(sent.body) < 5000
    zipped = ask(site.port, PATH, Accept_Encoding="gzip, deflate")
    assert zipped.headers["content-encoding"] == "gzip" and len(zipped.body) < 5600


def test_caches_are_told_of_origins_and_codings(site: Site) -> None:
    head = exchange(site.port, f"HEAD {PATH} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    assert b"\r\nvary: accept-encoding\r\n" in head and b"\r\nvary: origin\r\n" in head


def test_the_source_map_has_the_sources(site: Site, sent: Answer) -> None:
    (name,) = re.findall(r"\n//# sourceMappingURL=(\S+)\n$", sent.body.decode())
    answer = ask(site.port, PATH.replace("pgbus.js", name))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    found = json.loads(answer.body)
    assert "pgbus-gevent/src/parser.ts" in found["sources"] and all(found["sourcesContent"])


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_module_that_is_sent_parses(sent: Answer) -> None:
    done = subprocess.run(["node", "--check", "--input-type=module"], input=sent.body, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr.decode()
