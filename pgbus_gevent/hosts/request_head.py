"""The head of an HTTP/1 request: read within a limit, and judged by the letter of RFC 9112.

What one parser lets pass and another reads otherwise is how a request is smuggled past a proxy. So whatever can be read
in two ways is refused; nothing is repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import punctuation
from typing import Protocol
from urllib.parse import quote

from ..core.names import hide_signed

MAX_HEADERS = 99
# As many as the standard library's parser takes, with the blank line.

MAX_SHOWN = 2048

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# A name, an IPv4 address or an IPv6 one in brackets, and perhaps a port (RFC 9110, section 4.2); never a user's name.
_AUTHORITY = rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(?::[0-9]{0,5})?"
# Without a fragment, which some take for the end of the path and some for a part of it.
_TARGET = rb"/[^\x00-\x20#\x7f]*|[Hh][Tt][Tt][Pp][Ss]?://" + _AUTHORITY + rb"(?:[/?][^\x00-\x20#\x7f]*)?"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") (" + _TARGET + rb") (HTTP/1\.[01])\r\n")
_ABSOLUTE = re.compile(rb"[A-Za-z]+://(" + _AUTHORITY + rb")(.*)", re.DOTALL)
_HOST = re.compile(_AUTHORITY)
# No space before the colon, no line that continues another, no CR inside, no line that a lone LF ends: each has been read in
# more than one way. Of the characters that show nothing, a value has the tab alone (RFC 9110, section 5.5).
_HEADER = re.compile(rb"(" + _TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n")
_SHOWN = punctuation.replace('"', "")
_LENGTH = re.compile(r"[0-9]{1,15}")


class Readable(Protocol):
    """What a head is read from."""

    def readline(self, limit: int, /) -> bytes: ...


class BadHead(Exception):
    """The head is refused with ``status``, for ``reason``, in which nothing of the head is repeated."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


def read_head(file: Readable, limit: int) -> list[bytes]:
    """The request line and the header lines, without the blank line; empty when the client leaves before the end.

    Raises :class:`BadHead` beyond ``limit`` bytes.
    """
    lines: list[bytes] = []
    left = limit
    while True:
        line = file.readline(left + 1)
        left -= len(line)
        if left < 0:
            raise _too_large(lines, limit)
        if not line.endswith(b"\n"):
            return []
        if line == b"\r\n":
            break
        if not line.endswith(b"\r\n"):
            raise BadHead("a line of the head does not end in CRLF")
        lines.append(line)
    return lines or [line]


def _too_large(lines: list[bytes], limit: int) -> BadHead:
    return BadHead(f"the head of the request has more than {limit} bytes", 400 if lines else 414)


class Fields:
    """The fields of a head in their order, asked for as gevent's handler asks: what a general parser would make of them costs
    a sixth of a connect. Names are in lower case; values are as they came, in Latin-1, without the space around them.
    """

    __slots__ = ("pairs",)

    status = ""  # nothing is wrong with them, or they would not be here

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first value that a field has."""
        name = name.lower()
        return next((value for key, value in self.pairs if key == name), default)

    getheader = get

    @property
    def says_close(self) -> bool:
        """Whether the client wants no other answer on this connection (RFC 9112, section 9.6); it may say more beside that."""
        options = ",".join(value for key, value in self.pairs if key == "connection")
        return "close" in (option.strip() for option in options.lower().split(","))

    @property
    def typeheader(self) -> str | None:
        """The value of Content-Type."""
        return self.get("content-type")

    def items(self) -> list[tuple[str, str]]:
        """All of them; gunicorn's access log asks."""
        return self.pairs

    def environ(self) -> Iterator[tuple[str, str]]:
        """The fields as WSGI names them, but for those that have names of their own there.

        One with an underscore in its name is left out: it would pass for another one, which a proxy may have removed.
        """
        for name, value in self.pairs:
            if "_" not in name and name not in ("content-type", "content-length"):
                yield "HTTP_" + name.replace("-", "_").upper(), value

    def __delitem__(self, name: str) -> None:
        # The handler drops a Content-Length beside a Transfer-Encoding; here there are never both.
        raise KeyError(name)


def check_head(lines: list[bytes]) -> tuple[bytes, Fields]:
    """The request line, and the fields below it. Raises :class:`BadHead` unless the head can be read in one way only.

    An absolute target becomes the path in it, and its authority the Host, as RFC 9112, section 3.2.2, has it.
    """
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise BadHead("the request line is not METHOD /path HTTP/1.1")
    pairs = _pairs(lines[1:])
    _check_framing(pairs, is_1_1=match[3] == b"HTTP/1.1")
    absolute = _ABSOLUTE.fullmatch(match[2])
    if absolute is None:
        return lines[0], Fields(pairs)
    path = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    host = ("host", absolute[1].decode("latin-1"))
    return b" ".join([match[1], path, match[3]]) + b"\r\n", Fields(
        [host, *(pair for pair in pairs if pair[0] != "host")]
    )


def _pairs(lines: list[bytes]) -> list[tuple[str, str]]:
    if len(lines) > MAX_HEADERS:
        raise BadHead(f"there are more than {MAX_HEADERS} header lines")
    pairs = []
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise BadHead("a header line is malformed")
        # Not left to the pattern, which would try each space of many as the last one.
        pairs.append((match[1].decode("latin-1").lower(), match[2].decode("latin-1").strip(" \t")))
    return pairs


def _check_framing(pairs: list[tuple[str, str]], *, is_1_1: bool) -> None:
    """Where the body ends, and who is meant, must be said once."""
    lengths, encodings, hosts = (
        [value for key, value in pairs if key == name] for name in ("content-length", "transfer-encoding", "host")
    )
    if len(hosts) > 1 or (is_1_1 and not hosts):
        raise BadHead("there must be one Host")
    # An empty one is for a target that names nobody (RFC 9110, section 7.2).
    if hosts and hosts[0] and not _HOST.fullmatch(hosts[0].encode("latin-1")):
        raise BadHead("the Host is not a name or an address, and perhaps a port")
    if lengths and encodings:
        raise BadHead("there are both a Content-Length and a Transfer-Encoding")
    if lengths and not (len(lengths) == 1 and _LENGTH.fullmatch(lengths[0])):
        raise BadHead("the Content-Length is malformed")
    if encodings and not (is_1_1 and [value.lower() for value in encodings] == ["chunked"]):
        raise BadHead("the Transfer-Encoding is not chunked, or not of HTTP/1.1")


def shown_path(target: str) -> str:
    """What a log shows of a target: visible ASCII, without the query and signed names, which let in whoever has them.

    Of a path that is longer than any of ours it shows the beginning: encoded, the rest would be three times what was sent.
    """
    path, end = target.partition("?")[0], ""
    if len(path) > MAX_SHOWN:
        path, end = path[:MAX_SHOWN], "..."
    return hide_signed(quote(path.encode("latin-1"), safe=_SHOWN)) + end
