"""Puts the virtual clock, the virtual loop and seeded randomness into this process, before anything of the product is imported."""

from __future__ import annotations

import random
import secrets
import time
from typing import Any, cast

import gevent
from gevent import monkey

from .loop import CLOCK, START, VirtualLoop

real_monotonic = time.monotonic
"""The clock of the machine, for progress and figures."""

_installed = False


def install() -> None:
    """Replace time and chance in this process. Idempotent. To be called before the product is imported."""
    global _installed
    if _installed:
        return
    _installed = True
    put(gevent.config, "loop", VirtualLoop)
    monkey.patch_socket()
    time.monotonic = CLOCK.monotonic
    time.time = CLOCK.time
    for name, function in (("token_hex", _token_hex), ("token_bytes", _token_bytes), ("randbits", _randbits)):
        put(secrets, name, function)


def put(place: object, name: str, value: object) -> None:
    """Replace what ``place`` calls ``name``, whatever its type."""
    setattr(place, name, value)


def _token_bytes(count: int | None = None) -> bytes:
    return random.randbytes(count or 32)


def _token_hex(count: int | None = None) -> str:
    return _token_bytes(count).hex()


def _randbits(bits: int) -> int:
    return random.getrandbits(bits)


def loop() -> VirtualLoop:
    """Return the loop of this process."""
    return cast(VirtualLoop, cast(Any, gevent.get_hub()).loop)


def begin(seed: int) -> VirtualLoop:
    """Set time and chance to the beginning of the simulation with this seed, and return the loop."""
    CLOCK.now = START
    CLOCK.look, CLOCK.step = 2e-7, 2e-6
    random.seed(seed)
    found = loop()
    found.clear()
    found.random = random.Random(seed)
    found.steps = 0
    return found
