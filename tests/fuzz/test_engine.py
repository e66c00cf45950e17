"""The fuzzer finds what it is made to find: planted faults of each kind."""

from __future__ import annotations

import logging
from collections.abc import Callable

import gevent
import pytest
from fuzzing import engine
from fuzzing.engine import Finding, Target, fuzz, judging, plain, shrunk


def raises(data: bytes) -> None:
    assert b"\xa0" not in data


def logs(data: bytes) -> None:
    if b"\xa0" in data:
        logging.getLogger("pgbus_gevent.server").error("failed")


def fails_elsewhere(data: bytes) -> None:
    if b"\xa0" in data:
        gevent.spawn(raises, data).join()


def ends_the_process(data: bytes) -> None:
    if b"\xa0" in data:
        raise SystemExit


def hangs(data: bytes) -> None:
    if b"\xa0" in data:
        gevent.sleep(60)


def squares(data: bytes) -> None:
    for _ in range(len(data) ** 2 // 2):
        pass


PLANTED: dict[str, tuple[Callable[[bytes], None], str]] = {
    "an exception": (raises, "it raised AssertionError"),
    "a line in the log": (logs, "it left in the log: failed"),
    "a greenlet that fails": (fails_elsewhere, "it left in the log: uncaught in"),
    "an end of the process": (ends_the_process, "it raised SystemExit"),
    "a hang": (hangs, "it hangs"),
    "a time that grows with the square of the size": (squares, "of processor time"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("check", "said"), PLANTED.values(), ids=list(PLANTED))
def test_it_finds_a_planted_fault(
    check: Callable[[bytes], None], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "HANG", 0.5)
    monkeypatch.setattr(engine, "FLOOR", 0.05)
    target = Target("planted", plain(check), (b"a", b"\xa0", b"\n"), most=8192)
    with judging(target) as judge, pytest.raises(Finding, match=said):
        fuzz(judge, seconds=60.0, seed=1)
    assert "seed 1" in capsys.readouterr().out


def test_a_finding_is_made_smaller() -> None:
    with judging(Target("planted", plain(raises), (b"a",))) as judge:
        found = shrunk(judge, Finding("planted", b"one\xa0two" * 50, "it raised"))
    assert found.data == b"\xa0"


@pytest.mark.slow
def test_a_sound_target_has_no_findings() -> None:
    with judging(Target("sound", plain(lambda data: None), (b"a", b"\xa0"))) as judge:
        assert fuzz(judge, seconds=0.5, seed=1) > 10
