"""The checks of ``doctor URL`` before a stream is opened: who answers, over which protocol, and what of a request arrives."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

from .finding import FAIL, OK, SKIP, WARN, Finding, rounded
from .path_client import EVENTS, Address, Reply, json_object
from .path_remedies import fronts_in, remedies

_UNKNOWN_NAME = (
    "give this command the server's secret in PGBUS_SECRET, or the name of a stream that may be read by --stream"
)
_GATEWAY = (502, 503, 504)
_LOGIN = (
    "give the address that it leads to; if people log in there, let the path pass, or give what it asks for by --header"
)


class FrontChecks:
    """The checks of one address, whose streams have the path ``path`` below the mount.

    Iterate over :meth:`findings` first. Then ``fronts`` is what stands in front, and ``passes`` whether a stream can be tried.
    """

    def __init__(self, address: Address, path: str) -> None:
        self._address = address
        self._path = path
        self.fronts: dict[str, str] = {}
        self.passes = False

    def findings(self) -> Iterator[Finding]:
        """Run the checks, and yield what they find."""
        try:
            protocol = self._address.protocol()
            health, ready = self._address.ask("/healthz"), self._address.ask("/readyz")
        except (OSError, HTTPException) as error:
            yield self._unreachable(error)
            return
        self.fronts = fronts_in(health.headers, self._address.ask_nonsense())
        yield self._front()
        server = self._server(health, ready)
        yield server
        yield self._protocol(protocol)
        if server.level == FAIL:
            return
        requests = list(self._requests())
        yield from requests
        self.passes = all(found.check != "stream" for found in requests)

    def _unreachable(self, error: Exception) -> Finding:
        if isinstance(error, ssl.SSLCertVerificationError):
            todo = "install a certificate for this name; if its authority is your own, give its file in SSL_CERT_FILE"
            return Finding("address", FAIL, f"the certificate is not valid: {error.verify_message}", todo)
        text = f"there is no answer: {error or type(error).__name__}"
        return Finding("address", FAIL, text, "check the URL, the name, the firewall, and that the server runs")

    def _front(self) -> Finding:
        text = "; ".join(f"{front} ({sign})" for front, sign in self.fronts.items())
        figures = {"fronts": list(self.fronts)}
        return Finding("front", OK, text or "nothing shows itself in front of the server", figures=figures)

    def _server(self, health: Reply, ready: Reply) -> Finding:
        if health.status not in (200, 503) or not _is_health(health.body):
            return self._without_health(health)
        figures = {"answer_seconds": rounded(health.seconds), "ready": ready.status == 200}
        if ready.status != 200:
            text = f"the server takes no new clients now: {ready.line}"
            todo = "read docs/serving.md, and run `pgbus-gevent doctor` without a URL"
            return Finding("server", FAIL, text, todo, figures)
        text = f"pgbus-gevent answers, in {health.seconds * 1000:.0f} ms, and takes clients"
        return Finding("server", OK, text, figures=figures)

    def _without_health(self, health: Reply) -> Finding:
        """Judge an address without health check: a front may pass on the streams alone, as that of deploy/kubernetes does."""
        told = self._ask("?received")
        if isinstance(told, Reply) and (facts_of(told) is not None or "no such stream" in told.body):
            text = f"pgbus-gevent answers, in {told.seconds * 1000:.0f} ms; healthz and readyz are not passed on"
            return Finding("server", OK, text, figures={"answer_seconds": rounded(told.seconds), "ready": None})
        if (moved := _redirect(health)) is not None:
            return Finding("server", FAIL, f"this address redirects to {moved}", _LOGIN)
        text = f"{self._address.mount}/healthz is not answered by pgbus-gevent: status {health.status}, {health.line!r}"
        if health.status in _GATEWAY:
            todo = self._todo("gateway", "the proxy does not reach the server: check that the server runs")
            return Finding("server", FAIL, text, todo)
        return Finding("server", FAIL, text, self._todo("path", "the path must arrive unchanged, with the prefix"))

    def _protocol(self, protocol: str | None) -> Finding:
        six = "over which a browser opens at most six connections to one origin, for all tabs together"
        if protocol == "h2":
            text = "browsers get HTTP/2: all streams of all tabs share one connection"
            return Finding("http", OK, text, figures={"version": "HTTP/2", "connections_per_origin": None})
        figures = {"version": "HTTP/1.1", "connections_per_origin": 6}
        if protocol is None:
            text = f"without TLS, browsers speak HTTP/1.1, {six}"
            return Finding("http", WARN, text, self._todo("http", "browsers speak HTTP/2 over TLS only"), figures)
        return Finding("http", WARN, f"browsers get HTTP/1.1, {six}", self._todo("http"), figures)

    def _requests(self) -> Iterator[Finding]:
        """Look whether the query and the headers arrive as they were sent."""
        mark = f"doctor-{secrets.token_hex(4)}"
        refused = self._ask("?since=doctor")
        if isinstance(refused, Finding):
            yield refused
            return
        if refused.status != 400:
            yield self._no_query(refused)
            return
        told = self._ask("?received", {"Accept": EVENTS, "Last-Event-ID": mark})
        facts = facts_of(told)
        if isinstance(told, Reply) and told.status == 403:
            yield self._no_query(told)
            return
        if facts is None:
            yield Finding("query", OK, "the query arrives")
            yield Finding(
                "headers", SKIP, "the server's release does not say which headers arrive", "upgrade the server"
            )
            return
        yield Finding("query", OK, "the query arrives")
        sent = {"Last-Event-ID": (facts["lastEventId"], mark), "Accept": (facts["accept"], EVENTS)}
        changed = {name: got for name, (got, value) in sent.items() if got != value}
        figures = {"changed": list(changed)}
        if changed:
            told_of = [
                f"{name} arrives as {got!r}" if got else f"{name} does not arrive" for name, got in changed.items()
            ]
            yield Finding("headers", FAIL, ", and ".join(told_of), self._todo("headers"), figures)
        else:
            yield Finding("headers", OK, "Last-Event-ID and Accept arrive", figures=figures)
        figures = {"version": facts["protocol"]}
        if facts["protocol"] == "HTTP/1.0":
            text = "requests arrive as HTTP/1.0, so a stream that is cut off looks like one that has ended"
            yield Finding("upstream", WARN, text, self._todo("upstream"), figures)
        else:
            yield Finding("upstream", OK, f"requests arrive as {facts['protocol']}", figures=figures)

    def _no_query(self, reply: Reply) -> Finding:
        if reply.status == 404 and "no such stream" in reply.body:
            return Finding("stream", FAIL, f"404: {reply.line}", _UNKNOWN_NAME)
        if reply.status == 403:
            todo = "give a name that is valid by --stream, and what the authorize hook needs by --header"
            return Finding("stream", FAIL, f"403: {reply.line}", todo)
        if reply.status == 200 and reply.headers.get("content-type", "").startswith(EVENTS):
            text = "the query does not arrive: `since=doctor` was not refused"
            return Finding("query", FAIL, text, self._todo("query"))
        if (moved := _redirect(reply)) is not None:
            return Finding("stream", FAIL, f"{self._address.mount}/streams redirects to {moved}", _LOGIN)
        text = f"{self._address.mount}/streams is not answered by pgbus-gevent: status {reply.status}, {reply.line!r}"
        return Finding("stream", FAIL, text, self._todo("path"))

    def _ask(self, query: str, headers: dict[str, str] | None = None) -> Reply | Finding:
        try:
            return self._address.ask(self._path + query, headers or {"Accept": EVENTS})
        except (OSError, HTTPException) as error:
            text = f"{self._address.mount}/streams does not answer: {error or type(error).__name__}"
            return Finding("stream", FAIL, text, "look into the logs of the server and of what stands in front")

    def _todo(self, problem: str, rule: str = "") -> str:
        return remedies(problem, self.fronts, rule)


def _is_health(body: str) -> bool:
    facts = json_object(body)
    return "status" in facts and "parts" in facts


def _redirect(reply: Reply) -> str | None:
    return reply.headers.get("location", "another address")[:120] if 300 <= reply.status < 400 else None


def facts_of(reply: Reply | Finding | None) -> dict[str, Any] | None:
    """Return what the server says that it received, or None if it does not say."""
    facts = json_object(reply.body) if isinstance(reply, Reply) and reply.status == 200 else {}
    return facts if {"protocol", "accept", "lastEventId"} <= set(facts) else None
