"""``soak``: rounds of churn, after each of which everybody leaves. What a server holds then must be what it held before."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from pgbus_gevent.core.taps import TEXTS_SIZE
from pgbus_gevent.edge.session import NUMBERS, SMALL
from pgbus_gevent.redis import relay
from pgbus_gevent.streamer import steward_ear
from pgbus_gevent.web.returners import MAX_KNOWN

from .churn import Churn
from .target import Served, Site, site

SETTINGS = {
    "presence": "soak:*",
    "presence_ttl": "5",
    "retention": "5s",
    "prune_interval": "1",
    "forget_after": "1h",
    "max_per_owner": "8",
    "max_connections": "200",
    "recheck": "2",
    "write_deadline": "2",
    "ring_messages": "100",
    "ring_budget": "4MB",
    "pool_size": "4",
}

MEMORY_PER_ROUND = 1 << 20
LAST_ROUNDS = 3
"""A process leaks memory if it is larger than ever before after each of its last rounds, by more than so many bytes each time. A
single step says little: the allocator keeps what a busy moment took, and gives it back later or never."""

SPARE = {"objects": 3000, "descriptors": 4, "greenlets": 2, "watchers": 6, "database sessions": 6}
"""By how much the totals may differ: sessions of the pool open and close as there is work."""

BOUNDS = {
    "stream_apps[]._returners._due": MAX_KNOWN,
    "revocations._seen": 5000,
    "_complaints._logged": 1000,
    "database.pool._used": 4,
    "ear.heard": steward_ear.REMEMBERED,
    "ear.rung": steward_ear.REMEMBERED,
    "relay._sequencer._last": relay.REMEMBERED,
    "relay._sequencer._recent": relay.REMEMBERED,
    "upstream.session._needed": 2 * SMALL,
    "upstream.session._numbers": NUMBERS,
    "board.taps._texts._kept": TEXTS_SIZE // 100,
}
"""Containers that stay filled, and the most that they may hold: clients that were refused, revocations of the last minutes, labels
that were logged, messages that rang or were relayed, and what an edge remembers. Of texts of messages, the bytes are bounded."""


class State(NamedTuple):
    """What the servers hold at one moment: their resident memory by process, what is in use of it, and everything else by name."""

    memory: dict[int, int]
    in_use: dict[str, int]
    sizes: dict[str, int]


def look(target: Site, path: str = "/census") -> State:
    """Count everything. With the path ``/trimmed``, the servers give free memory back first."""
    memory: dict[int, int] = {}
    in_use: Counter[str] = Counter()
    sizes: Counter[str] = Counter({"database sessions": target.sessions})
    for served in target.servers:
        for pid, census in served.censuses(path).items():
            memory[pid] = int(census["rss"])
            for name, size in {"rss": memory[pid], **census["in_use"]}.items():
                in_use[f"{_kind(target, served)}{name}"] += size
            for name, size in {**census["totals"], **census["containers"]}.items():
                # The largest, because the workers share the duties of a fleet, and another one may have them each time.
                sizes[f"{_kind(target, served)}{name}"] = max(sizes[f"{_kind(target, served)}{name}"], size)
    return State(memory, dict(in_use), dict(sizes))


def _kind(target: Site, served: Served) -> str:
    return "" if len(target.servers) == 1 else "edge: " if served is target.front else "origin: "


def grown(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return what is larger than before by more than its allowance, with both sizes."""
    found = {}
    for name, size in now.items():
        path = name.removeprefix("edge: ").removeprefix("origin: ")
        bound = next((most for end, most in BOUNDS.items() if path.endswith(end)), 0)
        if size > max(bound, before.get(name, 0) + SPARE.get(path, 0)):
            found[name] = (before.get(name, 0), size)
    return found


def settle(target: Site, before: State | None, seconds: float) -> State:
    """Look until nothing is larger than before, for at most ``seconds``; without ``before``, until it stays the same."""
    end = time.monotonic() + seconds
    found = look(target)
    while time.monotonic() < end:
        time.sleep(1.0)
        last, found = found, look(target)
        compared = last if before is None else before
        if not grown(compared.sizes, found.sizes) and (before is not None or not grown(found.sizes, last.sizes)):
            break
    return found


def soak(
    minutes: float, *, rounds: int = 5, edge: bool = False, redis: bool = False, workers: int = 1, seed: int = 1,
    settling: float = 60.0, database_url: str | None = None, faults: bool = True, say: Any = print,
) -> dict[str, Any]:  # fmt: skip
    """Run a round to warm up and ``rounds`` others over ``minutes``, and report what has grown since the warm-up."""
    length = minutes * 60 / (rounds + 1)
    with site(database_url=database_url, edge=edge, redis=redis, **{**SETTINGS, "workers": str(workers)}) as target:
        states = []
        counts: Counter[str] = Counter()
        for number in range(rounds + 1):
            counts += Churn(target, seed + number, faults=faults).run(length)
            states.append(settle(target, states[0] if states else None, settling))
            megabytes = sum(states[-1].memory.values()) / 2**20
            say(f"round {number} of {rounds}: {megabytes:.1f} MB, {dict(counts.most_common(4))}", flush=True)
        trimmed = look(target, "/trimmed").in_use
        errors = [line for served in target.servers for line in served.errors.splitlines() if "Traceback" in line]
    first, last = states[0], states[-1]
    lost = first.memory.keys() - last.memory.keys()
    return {
        "minutes": minutes, "rounds": rounds, "edge": edge, "redis": redis, "workers": workers, "seed": seed,
        "counts": dict(counts),
        "grown": grown(first.sizes, last.sizes),
        "memory": [sum(state.memory.values()) for state in states],
        "in_use": {name: [state.in_use[name] for state in states] for name in first.in_use},
        "trimmed": trimmed,
        "leaks_memory": leaks([state.memory for state in states]),
        "workers_lost": len(lost),
        "tracebacks": len(errors),
    }  # fmt: skip


def leaks(memories: list[dict[int, int]]) -> bool:
    """Whether the memory of a process grew in each of the last rounds. Without so many rounds, nothing can be said."""
    for pid in memories[-1]:
        sizes = [memory[pid] for memory in memories if pid in memory]
        records = [size - max(sizes[:number]) for number, size in enumerate(sizes) if number]
        if len(records) >= LAST_ROUNDS and min(records[-LAST_ROUNDS:]) > MEMORY_PER_ROUND:
            return True
    return False
