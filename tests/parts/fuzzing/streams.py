"""Event streams: our parsers, in Python and in pgbus.js, against the own EventSource of a browser."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from time import monotonic
from typing import Any

import gevent

from fuzzing.engine import Finding, Target, growing, plain
from fuzzing.inputs import varied
from pgbus_gevent.core.sse_parser import ParsedFrame, Parser
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.web.element import element

Event = tuple[str, str, str]
"""Name, data and last event id, as a browser dispatches them."""


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """Return the pieces of a stream, cut at any bytes."""
    places = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 1, 2, 5, 30))))
    return [data[start:end] for start, end in pairwise([0, *places, len(data)]) if end > start]


def parsed(pieces: Iterable[bytes]) -> list[ParsedFrame]:
    parser = Parser()
    return [frame for piece in pieces for frame in parser.feed(piece)]


def dispatched(frames: Iterable[ParsedFrame], forgets: bool = False) -> list[Event]:
    """Return what a browser would dispatch of the frames of our Python parser. One that ``forgets`` ignores an id without data."""
    found, last_id = [], ""
    for frame in frames:
        if forgets and not frame.dispatches:
            continue
        last_id = last_id if frame.id is None else frame.id
        if frame.dispatches:
            found.append((frame.event, frame.data, last_id))
    return found


def stream(data: bytes) -> None:
    """A stream means the same wherever it is cut: at any byte, and between all bytes."""
    whole = parsed([data])
    if len(data) < 5000:
        assert parsed(bytes([byte]) for byte in data) == whole
    for seed in range(3):
        assert parsed(cut(data, random.Random(seed))) == whole


WORDS = (
    *(
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\r\r",
        b"\r\n\r\n",
        b"data:",
        b"data: ",
        b"data",
        b"event: ",
        b"event:",
        b"event",
        b"id: ",
        b"id:",
    ),
    *(
        b"id",
        b"retry: ",
        b"retry:5",
        b":",
        b": ",
        b" ",
        b"x",
        b"\xef\xbb\xbf",
        b"\0",
        b"\xff",
        b"\xe2\x82",
        b"\xe2\x82\xac",
        b"\xed\xa0\x80",
    ),
    *(
        b"\xf0\x9f\x98\x80",
        b"\xf0\x9f",
        b"\xc0\x80",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
        b"\x0b",
        b"\x0c",
        b"\x1c",
        b"\t",
        b"data: a\n\n",
    ),
    *(
        b"id: 7\n\n",
        b"event: e\ndata: b\nid: 8\n\n",
        b"id: 9\0\n",
        b"Data: c\n",
        b" data: d\n",
        b"data :e\n",
        b"message",
        b"open",
        b"error",
    ),
)

SLOW = 3.0
"""Seconds that pgbus.js may take for a stream. They are those of the clock, so a busy machine adds to them."""

LARGE = 200_000
"""Bytes of the streams that are made of a small one, to see whether the time of pgbus.js grows faster than the size."""

STREAM = Target("stream", plain(stream), WORDS, about="event streams, cut at any byte, in Python")
BROWSER = Target(
    "browser", plain(stream), WORDS, most=3000, needs="browser", about="event streams, against a browser's EventSource"
)

PAGE = b"""<!DOCTYPE html><meta charset="utf-8"><script type="module">
import { parser } from "/pgbus.js";
const read = (n, names) => new Promise((done) => {
  const found = [], source = new EventSource(`/s/${n}`);
  const take = (event) => event instanceof MessageEvent && found.push([event.type, event.data, event.lastEventId]);
  for (const name of new Set([...names, "message"])) source.addEventListener(name, take);
  source.addEventListener("error", (event) => {
    if (event instanceof MessageEvent) return;
    source.close();
    done(found);
  });
});
const ours = (pieces) => {
  const found = [];
  let last = "";
  const feed = parser((frame) => {
    last = frame.id ?? last;
    found.push([frame.event || "message", frame.data, last]);
  }, () => {});
  for (const piece of pieces) feed(Uint8Array.from(atob(piece), (c) => c.charCodeAt(0)));
  return found;
};
// The shortest of three times, because something else may use the processor.
const timed = (pieces) => {
  let found, shortest = Infinity;
  for (let n = 0; n < 3; n++) {
    const began = performance.now();
    found = ours(pieces);
    shortest = Math.min(shortest, performance.now() - began);
    if (shortest < 100) break;
  }
  return [found, shortest / 1000];
};
globalThis.compare = (streams) =>
  Promise.all(streams.map(async ({ n, names, pieces }) => [await read(n, names), ...timed(pieces)]));
globalThis.long = (size, count) => {
  const found = [], feed = parser((frame) => found.push(frame.data.length), () => {});
  const piece = new Uint8Array(size).fill(120), bytes = new TextEncoder();
  feed(bytes.encode("data:"));
  for (let n = 0; n < count; n++) feed(piece);
  feed(bytes.encode("\\n\\n"));
  return found;
};
globalThis.ready = true;
</script>"""


class Streams:
    """A server of event streams that end, and a page that reads them."""

    def __init__(self) -> None:
        self.pieces: dict[str, list[bytes]] = {}
        self._server = Server(listen("127.0.0.1", 0), self._answer)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/s/"):
            start_response("200 OK", [("content-type", "text/event-stream"), ("cache-control", "no-store")])
            return self._body(path.removeprefix("/s/"))
        kind, body = ("text/html", PAGE)
        if path == "/pgbus.js":
            answer = element({"REQUEST_METHOD": "GET"})
            kind, body = "text/javascript", answer.body
        start_response("200 OK", [("content-type", kind), ("content-length", str(len(body)))])
        return [body]

    def _body(self, number: str) -> Iterator[bytes]:
        for piece in self.pieces[number]:
            yield piece
            gevent.sleep(0)

    def close(self) -> None:
        self._server.stop(1.0)


MISREAD = {
    "chromium": re.compile(rb"\A\xef\xbb\xbf[\r\n]"),
    "firefox": re.compile(rb"\0"),
    "webkit": re.compile(rb"\A\xef\xbb\xbf"),
}
"""The streams that an engine reads otherwise than the standard.

Chromium takes a line break directly after the byte order mark for the beginning of the next line. The standard has it end a line.
Firefox drops NUL characters, and a message with one in its id. It also forgets an id without data (see dispatched). WebKit
sometimes takes the byte order mark for a part of the first line, depending on where the stream is cut.
"""


@contextmanager
def comparing(browser: Any, longest: list[tuple[float, bytes]]) -> Iterator[Any]:
    """Give a function that compares some streams, and raises :class:`Finding` with the first one that is read in two ways.

    ``longest`` gets the stream that took pgbus.js the most seconds, with these. At first, pgbus.js reads a message of 32 MB in
    pieces of 1 kB. It took minutes when each piece was joined to the last one.
    """
    from browser_parts import Profile

    streams = Streams()
    profile = Profile(browser, streams.url)
    page = profile.open("/")
    page.until("globalThis.ready")
    assert page.eval("long(1024, 32768)") == [1024 * 32768]
    numbers = iter(range(1 << 30))

    def compare(inputs: Iterable[bytes], rng: random.Random) -> int:
        asked, expected = [], []
        streams.pieces.clear()
        for data in inputs:
            number, pieces = next(numbers), cut(data, rng)
            streams.pieces[str(number)] = pieces
            frames = parsed([data])
            names = sorted({frame.event for frame in frames})
            asked.append({"n": number, "names": names, "pieces": [base64.b64encode(each).decode() for each in pieces]})
            standard, its = (list(map(list, dispatched(frames, each))) for each in (False, browser.engine == "firefox"))
            expected.append((data, standard, its))
        found = page.eval("(streams) => compare(streams)", asked)
        for (data, python, its), (native, javascript, seconds) in zip(expected, found, strict=True):
            if javascript != python:
                raise Finding("browser", data, f"pgbus.js dispatches {javascript!r}, and our Python parser {python!r}")
            if native != its and not MISREAD[browser.engine].search(data):
                raise Finding("browser", data, f"{browser.engine} dispatches {native!r}, and our parsers {python!r}")
            longest[:] = [max(*longest, (seconds, data))] if longest else [(seconds, data)]
            if seconds > SLOW:
                raise Finding("browser", data, f"pgbus.js took {seconds:.3f} s, and not {SLOW:g}")
        return len(asked)

    try:
        yield compare
        assert profile.errors == []
    finally:
        profile.close()
        streams.close()


def fuzz_in_browser(browser: Any, *, seconds: float, seed: int, batch: int = 60) -> int:
    """Compare the corpus and fresh streams for some seconds, and return how many. Raises :class:`Finding`."""
    corpus, rng = BROWSER.corpus(), random.Random(seed)
    print(f"browser: {browser.engine}, seed {seed}")
    longest: list[tuple[float, bytes]] = []
    with comparing(browser, longest) as compare:
        count, end = compare(corpus, rng), monotonic() + seconds  # a page may need long to open
        while monotonic() < end:
            fresh = [varied(rng.choice(corpus), BROWSER, rng) for _ in range(batch // 2)]
            fresh += [b"".join(rng.choices(WORDS, k=rng.randrange(40))) for _ in range(batch // 2)]
            count += compare([*fresh, *growing(rng.choice(fresh), LARGE)], rng)
    print(f"browser: {count} streams, all read alike by {browser.engine}, pgbus.js and Python")
    [(used, data)] = longest
    print(f"browser: the slowest stream took pgbus.js {1000 * used:.0f} ms ({len(data)} bytes: {data[:60]!r})")
    return count
