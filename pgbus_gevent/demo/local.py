"""Keeps the demo of a machine to that machine: a site may have its own name lead here, and its pages would then read and post."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

WSGIApp = Callable[..., Iterable[bytes]]

_HOST = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::\d*)?|([^:]*)(?::\d*)?")
_REFUSAL = b"""This demo is for this machine alone, and was asked for by another name.
Open it by the name localhost, or serve it for others: --host 0.0.0.0
"""


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine alone, whatever a name service says."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)


def for_this_machine(app: WSGIApp) -> WSGIApp:
    """``app``, for requests whose Host is a name of this machine; the others get 421 (RFC 9110, section 15.5.20)."""

    def local(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        host = _HOST.fullmatch(str(environ.get("HTTP_HOST") or "localhost"))
        if host is not None and is_loopback(host[1] or host[2]):
            return app(environ, start_response)
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(_REFUSAL)))]
        start_response("421 Misdirected Request", headers)
        return [_REFUSAL]

    return local
