"""Files and pages over HTTP: codings, ETags and their headers, for everything that the package serves to browsers."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import brotli
import gevent
import pytest
from demo_parts import running_demo
from gevent import monkey
from hypothesis import given
from hypothesis import strategies as st
from raw_http import Answer, ask
from site_parts import Site
from support import until

import pgbus_gevent
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web import representations
from pgbus_gevent.web.representations import coding_for, file_answer, has

PACKAGE = Path(pgbus_gevent.__file__).parent
TOKEN = "operator-token-of-the-site"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}

ELEMENT = ["/pgbus/pgbus.js", "/pgbus/pgbus.js.map"]
CONSOLE = [f"/pgbus/console/{path.name}" for path in PACKAGE.glob("web/static/*.*") if "pgbus.js" not in path.name]
DEMO = [f"/demo/{path.name}" for path in PACKAGE.glob("demo/*.*")]
FILES = sorted(path for path in ELEMENT + CONSOLE + DEMO if path.endswith((".js", ".css", ".map")))
STEADY = [*FILES, "/docs/README.md", "/pgbus/console"]
"""What is the same for each request: all files of the package, and the pages without live data."""
CHANGING = ["/", "/lab"]

DECODED = {"br": brotli.decompress, "gzip": gzip.decompress, None: bytes}


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_demo(pgbus_databases.make(), operator_token=TOKEN) as site:
        yield site


def fetch(site: Site, path: str, accepted: str | None = None, method: str = "GET", **headers: str) -> Answer:
    # Without this, http.client asks for "identity".
    given = {"Accept_Encoding": "" if accepted is None else accepted}
    return ask(site.port, path, method, **OPERATOR, **given, **headers)


@pytest.mark.parametrize("path", STEADY)
def test_each_file_and_page_has_three_codings_of_the_same_bytes(site: Site, path: str) -> None:
    answers = [fetch(site, path, accepted) for accepted in (None, "gzip", "gzip, deflate, br, zstd")]
    assert [answer.headers.get("content-encoding") for answer in answers] == [None, "gzip", "br"]
    plain = answers[0].body
    for answer in answers:
        assert answer.status == 200 and answer.headers["vary"] == "accept-encoding"
        assert answer.headers["content-type"] == answers[0].headers["content-type"]
        assert DECODED[answer.headers.get("content-encoding")](answer.body) == plain
        assert answer.headers["content-length"] == str(len(answer.body))
        assert re.fullmatch('"[0-9a-f]{32}"', answer.headers["etag"])
    assert len({answer.headers["etag"] for answer in answers}) == 3
    sizes = [len(answer.body) for answer in answers]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < sizes[1] < sizes[0]


@pytest.mark.parametrize("path", STEADY)
@pytest.mark.parametrize("accepted", [None, "gzip", "br"])
def test_a_head_is_answered_like_a_get_and_a_client_with_the_representation_gets_304(
    site: Site, path: str, accepted: str | None
) -> None:
    whole, head = fetch(site, path, accepted), fetch(site, path, accepted, "HEAD")
    drop = ("date",)
    assert head.body == b"" and head.status == whole.status
    assert {k: v for k, v in head.headers.items() if k not in drop} == {
        k: v for k, v in whole.headers.items() if k not in drop
    }
    for method in ("GET", "HEAD"):
        again = fetch(site, path, accepted, method, If_None_Match=f'"other", W/{whole.headers["etag"]}')
        assert (again.status, again.body) == (304, b"")
        kept = {name for name in whole.headers if not name.startswith("content-") or name == "content-security-policy"}
        assert {name: again.headers.get(name) for name in kept if name not in drop} == {
            name: whole.headers[name] for name in kept if name not in drop
        }
        assert not {"content-length", "content-type", "content-encoding"} & again.headers.keys()


@pytest.mark.parametrize("path", CHANGING)
def test_a_page_with_live_data_is_compressed_each_time(site: Site, path: str) -> None:
    for accepted, coding in ((None, None), ("gzip", "gzip"), ("gzip, br", "br")):
        answer = fetch(site, path, accepted)
        assert (answer.status, answer.headers.get("content-encoding")) == (200, coding)
        assert answer.headers["content-length"] == str(len(answer.body)) and answer.headers["vary"] == "accept-encoding"
        page = DECODED[coding](answer.body)
        assert page.startswith(b"<!doctype html>") and page.endswith(b"</html>\n")
        assert fetch(site, path, accepted, "HEAD").headers.get("content-encoding") == coding


def test_the_etag_of_one_coding_is_not_that_of_another(site: Site) -> None:
    etag = fetch(site, "/demo/site.css", "gzip").headers["etag"]
    assert fetch(site, "/demo/site.css", "br", If_None_Match=etag).status == 200
    assert fetch(site, "/demo/site.css", None, If_None_Match=etag).status == 200
    assert fetch(site, "/demo/site.css", "gzip", If_None_Match=etag).status == 304


def test_the_login_page_is_an_error_to_which_no_condition_applies(site: Site) -> None:
    """RFC 9110, section 13.2.1: a condition is ignored if the answer without it would not be a success."""
    for headers in ({}, {"If_None_Match": "*"}):
        answer = ask(site.port, "/pgbus/console", Accept="text/html", Accept_Encoding="br", **headers)
        assert (answer.status, answer.headers["content-encoding"]) == (401, "br")
        assert b"Operator token" in brotli.decompress(answer.body) and "etag" not in answer.headers


def test_what_may_have_a_secret_beside_the_text_of_others_is_not_compressed(site: Site) -> None:
    asked = "gzip, br"
    for path in ("/pgbus/console/streams?text=guess", "/pgbus/console/connections?text=guess", "/pgbus/metrics"):
        answer = fetch(site, path, asked)
        assert answer.status == 200 and "content-encoding" not in answer.headers
    stream = fetch(site, "/pgbus/streams/demo:x", asked, "HEAD")
    assert stream.headers["content-type"].startswith("text/event-stream") and "content-encoding" not in stream.headers


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("accepted", ["gzip", "br"])
def test_curl_decodes_what_is_sent(site: Site, accepted: str, tmp_path: Path) -> None:
    arguments = ["-H", f"Authorization: Bearer {TOKEN}", "-H", f"Accept-Encoding: {accepted}", "--compressed"]
    wanted = {path: tmp_path / str(number) for number, path in enumerate(STEADY)}
    for path, place in wanted.items():
        arguments += [f"{site.url}{path}", "-o", str(place)]
    done = subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for path, place in wanted.items():
        assert place.read_bytes() == fetch(site, path).body


# which coding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", "identity"),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, br", "br"),
        ("br;q=0.5, GZIP ; Q=0.8", "gzip"),
        ("br;q=0.5, identity", "identity"),
        ("gzip;q=0", "identity"),
        ("gzip; q=0.000, deflate", "identity"),
        ("*", "br"),
        ("br;q=0, *;q=0.1", "gzip"),
        ("identity;q=0", "identity"),
        ("identity;q=0, gzip;q=0.001", "gzip"),
        ("*;q=0", "identity"),
        ("x-gzip", "gzip"),
        ("xgzip, zstd", "identity"),
        ("gzip;level=9, br;q=2, br;q=0.0001", "identity"),
    ],
)
def test_the_coding_is_the_best_that_the_client_accepts(accepted: str, coding: str) -> None:
    assert coding_for(accepted) == coding


WEIGHTS = st.one_of(
    st.none(), st.integers(0, 1000).map(lambda weight: f"{weight / 1000:.3f}"), st.sampled_from(["0", "1", "0.", "1."])
)
WISHES = st.dictionaries(st.sampled_from(["br", "gzip", "identity", "*", "zstd", "deflate"]), WEIGHTS)
SPACE = st.sampled_from(["", " ", "\t", "  "])
JUNK = st.sampled_from(["", ";q=1", "br;q=1.5", "gzip;q", "br gzip", "q=1", "br;q=-1", "gzip;q=1;x=1", "é", '"br"'])


@st.composite
def headers(draw: st.DrawFn) -> tuple[str, dict[str, float]]:
    """Return an Accept-Encoding, and what it says."""
    wishes = draw(WISHES)
    items = []
    for name, weight in draw(st.permutations(list(wishes.items()))):
        spelt = draw(st.sampled_from([name, name.upper()]))
        suffix = "" if weight is None else f"{draw(SPACE)};{draw(SPACE)}{draw(st.sampled_from('qQ'))}={weight}"
        items.append(f"{draw(SPACE)}{spelt}{suffix}{draw(SPACE)}")
        if draw(st.booleans()):
            items.append(draw(JUNK))
    return ",".join(items), {name: 1.0 if weight is None else float(weight) for name, weight in wishes.items()}


@given(headers())
def test_the_coding_is_that_of_the_rules_of_http(made: tuple[str, dict[str, float]]) -> None:
    """The oracle takes the rules of RFC 9110, section 12.5.3, one by one, and does not parse."""
    header, wishes = made
    ranks = {}
    for coding in ("br", "gzip", "identity"):
        if coding in wishes:
            ranks[coding] = wishes[coding]
        elif "*" in wishes:
            ranks[coding] = wishes["*"]
        else:  # identity is acceptable unless it is excluded, and what is listed is preferred to it
            ranks[coding] = 0.0001 if coding == "identity" else 0.0
    acceptable = {coding for coding, rank in ranks.items() if rank > 0}
    chosen = coding_for(header)
    if not acceptable:
        assert chosen == "identity"
    else:
        assert chosen in acceptable and ranks[chosen] == max(ranks.values())
        smaller = {"br": set(), "gzip": {"br"}, "identity": {"br", "gzip"}}[chosen]
        assert all(ranks[other] < ranks[chosen] for other in smaller)


TAGS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"'), max_size=8)


@given(st.lists(st.tuples(st.booleans(), TAGS, SPACE)), TAGS)
def test_a_client_has_what_its_list_names(listed: list[tuple[bool, str, str]], own: str) -> None:
    written = ",".join(f'{space}{"W/" if weak else ""}"{tag}"{space}' for weak, tag, space in listed)
    assert has(written, f'"{own}"') == (own in [tag for _, tag, _ in listed])
    assert has(f" {'*'} ", f'"{own}"')


# compressing ----------------------------------------------------------------------------------------------------------


def test_a_file_is_compressed_once_while_everything_else_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some.js"
    path.write_bytes(b"export const a = 1;" * 50)
    calls: list[bytes] = []
    # One of the operating system, as it is waited for in a thread.
    release: Any = monkey.get_original("threading", "Event")()

    def slowly(plain: bytes) -> bytes:
        calls.append(plain)
        assert release.wait(60)
        return gzip.compress(plain)

    monkeypatch.setitem(representations._ONCE, "gzip", slowly)
    ask_for = [gevent.spawn(file_answer, {"HTTP_ACCEPT_ENCODING": "gzip"}, path, []) for _ in range(10)]
    until(lambda: calls, "it is being compressed")
    ticks = 0
    for _ in range(5):
        gevent.sleep(0.01)
        ticks += 1
    assert not any(greenlet.ready() for greenlet in ask_for) and ticks == 5
    assert file_answer({}, path, []).body == path.read_bytes()
    release.set()
    gevent.joinall(ask_for, 30, raise_error=True)
    assert len({greenlet.value.body for greenlet in ask_for}) == 1 and len(calls) == 1
