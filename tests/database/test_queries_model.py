"""The model of the database that simulations use answers as the real database does: the same histories run on both.

The model is in tests/simulation/database, and docs/simulation.md says what it covers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from database_parts import opened_sessions
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from model_database_parts import RealSide, run
from model_faults_parts import FAULTS, Fault, forget, planted
from model_parts import SESSIONS, Start, Step, Taken, replay

HISTORIES = int(os.environ.get("PGBUS_MODEL_HISTORIES", "60"))
"""How many histories are compared."""

STREAMS = 4  # the last two have one lock


def steps() -> st.SearchStrategy[Step]:
    """Return one step: mostly publishing and transactions, and reads of every kind."""
    session = st.integers(0, SESSIONS - 1)
    stream = st.sampled_from([0, 0, 0, 1, 2, 3])
    key = st.sampled_from([None, None, None, "k", "l"])
    size = st.sampled_from(["small", "small", "small", "middle", "large"])
    small = st.integers(0, 6)
    point = st.sampled_from(["s", "t"])
    isolation = st.sampled_from(
        ["read committed", "read committed", "repeatable read", "repeatable read", "serializable"]
    )
    counts = st.lists(st.sampled_from([None, 1, 2, 4]), min_size=STREAMS, max_size=STREAMS)
    reads = ["last_ids", "read_after", "moved", "inventory", "tail", "pages", "openings", "ephemerals", "wakes"]
    reads += ["revocations", "ids"]
    way = st.sampled_from(["now", "now", "commit"])
    publish = st.tuples(st.just("broadcast"), session, way, stream, size, key, st.sampled_from([None, "label"]))
    transact = st.one_of(
        st.tuples(st.just("begin"), session, isolation),
        st.tuples(st.just("begin"), session, isolation),
        st.tuples(st.sampled_from(["commit", "commit", "rollback"]), session),
        st.tuples(st.sampled_from(["savepoint", "rollback_to", "release"]), session, point),
        st.tuples(st.just("immediate"), session),
    )
    many = st.integers(0, 3).flatmap(
        lambda size: st.tuples(
            st.just("many"),
            session,
            stream,
            st.one_of(st.none(), st.lists(key, min_size=size, max_size=size)),
            st.just(size),
        )
    )
    ask = st.tuples(st.just("ask"), session, st.sampled_from(reads), small, small, small)
    bad = st.sampled_from(
        [{"stream": ""}, {"event": "pgbus:x"}, {"visible_to": ""}, {"key": "k" * 1001}, {"event": "a\nb"}]
    )
    rare = st.one_of(
        st.tuples(st.just("ephemeral"), session, stream, size),
        st.tuples(st.just("impatient"), session, stream),
        st.tuples(st.just("bad"), session, bad),
        st.tuples(st.just("disconnect"), session, st.sampled_from(["ada", "bob"])),
        st.tuples(st.just("ring_for"), session, small),
        st.tuples(st.sampled_from(["ring_everybody", "ring_control", "cancel", "kill", "age", "jumped"]), session),
        st.tuples(st.just("prune"), session, st.sampled_from([1800.0, 7200.0]), counts, st.sampled_from([1, 3, 100])),
        st.tuples(st.just("prune"), session, st.sampled_from([1800.0, 7200.0]), counts, st.sampled_from([1, 3, 100])),
        st.tuples(st.just("forget"), session, st.sampled_from([1800.0, 7200.0]), st.sampled_from([1, 100])),
        st.tuples(st.just("lose"), session, stream, small),
    )
    return st.one_of(publish, publish, publish, transact, transact, transact, many, ask, ask, rare, rare)


@pytest.fixture
def real(database: str) -> Iterator[RealSide]:
    with opened_sessions(database) as opener:
        watcher = opener()
        number = watcher.call("_lock_number", "d")
        twin = next(f"twin {n}" for n in count() if watcher.call("_lock_number", f"twin {n}") == number)
        yield RealSide(opener, ["a", "b", "d", twin])


@pytest.mark.slow
def test_the_model_answers_as_the_database_does_and_a_model_with_a_fault_does_not(
    real: RealSide, tmp_path: Path
) -> None:
    recorded: list[tuple[Start, list[Taken]]] = []

    @settings(
        max_examples=HISTORIES,
        deadline=None,
        derandomize="PGBUS_MODEL_HISTORIES" not in os.environ,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([Phase.shrink] if "PGBUS_MODEL_SHRINK" in os.environ else [])],
        report_multiple_bugs=False,
        print_blob=True,
    )
    @given(st.lists(steps(), min_size=20, max_size=60))
    def compare(history: list[Step]) -> None:
        note(f"{history}")
        recorded.append(run(real, history))

    compare()
    assert sum(len(taken) for _, taken in recorded) > 10 * HISTORIES
    found = {fault.name: _finds(fault, recorded, tmp_path / str(n), n) for n, fault in enumerate(FAULTS)}
    for name, number in found.items():
        print(f"| {name} | {number} |")
    assert [name for name, number in found.items() if number == 0] == []


def _finds(fault: Fault, recorded: list[tuple[Start, list[Taken]]], directory: Path, number: int) -> int:
    """Return in how many histories a fault is found."""
    model = planted(fault, directory, number)
    try:
        return sum(bool(replay(start, taken, model)) for start, taken in recorded)
    finally:
        forget(model)
