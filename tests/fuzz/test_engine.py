"""The fuzzer finds what it is made to find: planted faults of each kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from fuzzing import engine
from fuzzing.engine import Finding, OfProcess, Target, fuzz, judging, plain, shrunk
from fuzzing.targets import TARGETS
from support import run, session


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


@pytest.mark.slow
def test_an_input_of_the_corpus_that_is_slow_again_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CORPUS", tmp_path)
    monkeypatch.setattr(engine, "FLOOR", 0.05)
    monkeypatch.setattr(engine, "TIMES", 2)
    (tmp_path / "planted").mkdir()
    for name, data in {"1": b"a", "2": b"b" * 4000, "3": b"c"}.items():
        (tmp_path / "planted" / name).write_bytes(data)
    with pytest.raises(Finding, match="of processor time"), judging(Target("planted", plain(squares), (b"a",))):
        pass


@pytest.mark.slow
def test_the_processor_time_of_a_database_session_counts(pgbus_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FLOOR", 0.05)
    with session(pgbus_database) as connection:

        def sums(data: bytes) -> None:
            run(connection, "select sum(n) from generate_series(1, 3000000) n")

        check = OfProcess(sums, connection.info.backend_pid)
        if not Path(f"/proc/{connection.info.backend_pid}").exists():
            pytest.skip("PostgreSQL runs on another machine")
        with judging(Target("planted", plain(check), (b"a",))) as judge, pytest.raises(Finding, match="processor time"):
            judge.run(b"a")


def test_a_finding_is_made_smaller() -> None:
    with judging(Target("planted", plain(raises), (b"a",))) as judge:
        found = shrunk(judge, Finding("planted", b"one\xa0two" * 50, "it raised"))
    assert found.data == b"\xa0"


@pytest.mark.slow
def test_a_sound_target_has_no_findings() -> None:
    with judging(Target("sound", plain(lambda data: None), (b"a", b"\xa0"))) as judge:
        assert fuzz(judge, seconds=0.5, seed=1) > 0


def test_every_target_is_on_the_page_of_the_checks() -> None:
    page = (Path(__file__).parents[2] / "docs/reliability.md").read_text(encoding="utf-8")
    assert [name for name in TARGETS if f"| `{name}` |" not in page] == []
