"""What many clients do to a server does not last: short runs of ``python -m benchmarks.endurance``, which find planted faults."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support import serving

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.endurance import descriptors, heap, names, silent, soak, stalled
from benchmarks.endurance.census import census
from pgbus_gevent.settings.table import Settings


def quiet(*_: Any, **__: Any) -> None:
    """Say nothing."""


def test_the_census_counts_a_container_of_any_part_without_knowing_it(pgbus_settings: Settings) -> None:
    with serving(pgbus_settings) as server:
        before = census()["containers"]
        assert {"instance.board.registry._logs", "instance.board.schedule._slots"} <= before.keys()
        server.instance.board.registry.planted = {"a": [1, 2]}  # type: ignore[attr-defined]
        server.instance.sweeper.planted = lambda held={1, 2, 3}: held  # type: ignore[attr-defined]
        planted = [{4}]
        server.instance.sweeper.closure = lambda: planted  # type: ignore[attr-defined]
        now = census()["containers"]
    added = {path: size for path, size in now.items() if size > before.get(path, 0)}
    assert added["instance.board.registry.planted"] == 1
    assert added["instance.board.registry.planted[]"] == 2
    assert added["instance.sweeper.closure<>"] == 1


def test_memory_that_grows_in_every_round_is_a_leak_and_a_cache_that_fills_is_none() -> None:
    def leaks(*megabytes: int) -> bool:
        return soak.leaks([{1: size << 20} for size in megabytes])

    assert leaks(50, 53, 56, 59) and leaks(50, 60, 55, 62, 65, 68)
    assert not leaks(50, 58, 62, 62, 62), "it has filled"
    assert not leaks(50, 58, 52, 61, 57), "it comes and goes"
    assert not leaks(50, 55, 60), "too few rounds"
    assert not soak.leaks([{1: 50 << 20}, {2: 55 << 20}, {2: 60 << 20}, {2: 65 << 20}]), "another process"


def test_memory_in_use_is_what_a_program_holds_and_not_what_it_has_freed() -> None:
    before = heap.in_use()
    held: list[Any] = [bytearray(50_000) for _ in range(400)]
    held += [[] for _ in range(10_000)]
    during = heap.in_use()
    held.clear()
    after = heap.in_use()
    assert during["blocks"] - before["blocks"] >= 10_000 and during["blocks"] - after["blocks"] >= 9000
    if "heap" in before:  # with glibc
        assert during["heap"] - before["heap"] > 19 << 20 and during["heap"] - after["heap"] > 18 << 20


@pytest.mark.slow
def test_after_rounds_of_churn_a_server_holds_what_it_held(pgbus_database: str) -> None:
    report = soak.soak(0.3, rounds=2, settling=25.0, database_url=pgbus_database, say=quiet)
    assert report["grown"] == {}
    assert (report["workers_lost"], report["tracebacks"]) == (0, 0)
    assert len(report["in_use"]["blocks"]) == len(report["memory"]) and report["trimmed"]["rss"] > 0
    counts = report["counts"]
    assert counts["watched"] > 50 and counts["published"] > 50 and counts["floods"] and counts["backends terminated"]


@pytest.mark.slow
def test_leaks_that_were_planted_are_found(pgbus_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGBUS_ENDURANCE_PLANT", "item,object,descriptor,greenlet")
    report = soak.soak(0.1, rounds=1, settling=1.0, faults=False, database_url=pgbus_database, say=quiet)
    assert report["grown"].keys() >= {"instance.clients.planted", "objects", "descriptors", "greenlets"}
    first, last = report["grown"]["instance.clients.planted"]
    blocks = report["in_use"]["blocks"]
    assert blocks[-1] - blocks[0] > 50 * (last - first), "with each item, 100 objects were planted"


@pytest.mark.slow
def test_silent_connections_keep_nobody_out(pgbus_database: str) -> None:
    report = silent.silent(connections=800, limit=240, seconds=2.0, database_url=pgbus_database, say=quiet)
    assert not silent.is_broken(report), report
    assert report["closed_for_room"] > 500


@pytest.mark.slow
def test_stalled_clients_cost_no_more_than_their_bound_and_resume(pgbus_database: str) -> None:
    report = stalled.stalled(300, messages=8, deadline=3.0, distinct=True, database_url=pgbus_database, say=quiet)
    assert not stalled.is_broken(report), report


@pytest.mark.slow
def test_names_that_are_never_used_again_leave_nothing_behind(pgbus_database: str) -> None:
    report = names.names(1400, watched=60, database_url=pgbus_database, say=quiet)
    assert not names.is_broken(report), report


@pytest.mark.slow
def test_without_descriptors_a_client_gets_its_messages_and_others_come_when_there_are_some(
    pgbus_database: str,
) -> None:
    report = descriptors.descriptors(120, seconds=2.0, database_url=pgbus_database)
    assert not descriptors.is_broken(report), report
    assert report["published"] > 0 and report["descriptors_most"] >= 119
