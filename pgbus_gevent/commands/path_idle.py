"""The checks of ``doctor URL`` that watch a quiet connection: heartbeats, and how long a silent one is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http.client import HTTPException
from itertools import pairwise
from time import monotonic

import gevent

from .finding import FAIL, OK, SKIP, WARN, Finding, rounded
from .path_client import Address, Reply, Stream
from .path_remedies import remedy

HEARTBEATS = 3
"""How many heartbeats a silent connection should survive, so that a late one costs no connection."""

_HEARTBEAT = 15.0  # seconds, if the server does not say
_LONGEST = 300  # seconds that an answer can be asked to take
PATIENCE = 10.0
"""Seconds after which what should have come counts as missing."""


def idle(address: Address, path: str, watch: float | None, fronts: Mapping[str, str]) -> Iterator[Finding]:
    """Watch a quiet stream, and at the same time an answer that takes as long. Yield what was seen.

    ``watch`` is the time in seconds; None for three heartbeats, 0 for not at all.
    """
    if watch == 0:
        yield Finding("heartbeat", SKIP, "not tried, because --watch is 0")
        return
    with Stream(address, path) as stream:
        stream.wait(lambda: stream.control("connected"), PATIENCE)
        greeted = stream.control("connected")
        if greeted is None:
            yield Finding("heartbeat", FAIL, "a further stream was not opened", "run the command again")
            return
        interval = float(greeted.get("heartbeat", _HEARTBEAT))
        seconds = HEARTBEATS * interval if watch is None else watch
        silence = gevent.spawn(_silence, address, path, seconds)
        try:
            began = monotonic()
            stream.wait(lambda: stream.beats and monotonic() - began > seconds, seconds + interval + PATIENCE)
            yield _heartbeats(stream, interval, fronts)
            yield _limit(silence.get(), interval, fronts)
        finally:
            silence.kill()


def _heartbeats(stream: Stream, interval: float, fronts: Mapping[str, str]) -> Finding:
    quiet = (stream.ended or monotonic()) - (stream.last_byte or stream.began)
    farewell = stream.control("shutdown")
    gaps = [later - earlier for earlier, later in pairwise(stream.beats)]
    longest = max(gaps, default=0.0)
    figures = {
        "interval_seconds": interval,
        "heartbeats": len(stream.beats),
        "longest_seconds": rounded(longest) if gaps else None,
        "cut_off_after_seconds": rounded(quiet) if stream.ended is not None and farewell is None else None,
    }
    if stream.ended is not None and farewell is None:
        text = f"the stream was cut off after {quiet:.1f} s without a byte; a heartbeat comes every {interval:g} s"
        if stream.cause:
            text += f" ({stream.cause})"
        return Finding("heartbeat", FAIL, text, remedy("idle", fronts), figures)
    if farewell is not None and len(stream.beats) < 2:
        text = f"the server ended the stream meanwhile: {farewell.get('reason')}"
        return Finding("heartbeat", WARN, text, "run the command again", figures)
    if not stream.beats:
        text = f"no heartbeat came within {quiet:.0f} s; the server sends one every {interval:g} s"
        return Finding("heartbeat", FAIL, text, remedy("buffering", fronts), figures)
    text = f"a heartbeat comes every {interval:g} s"
    if longest > 1.5 * interval + 1.0:
        text += f", but {longest:.1f} s passed between two"
        return Finding("heartbeat", WARN, text, remedy("buffering", fronts), figures)
    text += f", and {longest:.1f} s passed at most between two" if gaps else ""
    return Finding("heartbeat", OK, text, figures=figures)


def _silence(address: Address, path: str, seconds: float) -> tuple[Reply | Exception, float, int]:
    """Ask for an answer that takes ``seconds``, and return it or the error, when it came, and the time that was asked for."""
    wanted = min(_LONGEST, max(1, round(seconds)))
    began = monotonic()
    try:
        found: Reply | Exception = address.ask(f"{path}?received={wanted}", timeout=wanted + PATIENCE)
    except (OSError, HTTPException) as error:
        found = error
    return found, monotonic() - began, wanted


def _limit(silence: tuple[Reply | Exception, float, int], interval: float, fronts: Mapping[str, str]) -> Finding:
    found, took, wanted = silence
    if isinstance(found, Reply):
        if found.status == 200 and '"lastEventId"' in found.body and took > wanted - 1:
            figures = {"silent_seconds": wanted, "kept": True}
            return Finding("idle", OK, f"a connection that is silent for {wanted} s is kept", figures=figures)
        if found.status == 200 or found.status == 400 or found.body.startswith(("not now", "16 requests")):
            text = f"the server did not answer after {wanted} s of silence: status {found.status}"
            return Finding("idle", SKIP, text)
        why = f"status {found.status}"
    else:
        why = str(found) or type(found).__name__
    text = f"a connection that was silent for {took:.1f} s was given up ({why}); heartbeats come every {interval:g} s"
    return Finding("idle", WARN, text, remedy("idle", fronts), {"silent_seconds": rounded(took), "kept": False})
