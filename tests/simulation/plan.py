"""Draws a history from a seed. Each seed has a subset of the troubles, so that none hides the others (swarm testing)."""

from __future__ import annotations

from random import Random
from typing import Any

from .history import History

VARIETY = (
    "late", "rollback", "commit", "repeatable", "several", "squat", "labels", "rights", "whisper", "large", "replay", "drop",
    "stall", "quit", "exclude", "prune", "quiet", "relisten",
)  # fmt: skip
"""What disturbs no worker, so that everything is to arrive as promptly as ever."""

TROUBLES = (
    "noise", "full", "forge", "cut", "hang", "hole", "slow", "restart", "back", "promote", "sequence", "kill", "stop",
    "wound", "strike",
)  # fmt: skip

THEMES = (
    {"squat", "late"}, {"relisten"}, {"strike"}, {"strike", "several"}, {"strike", "drop"}, {"back"},
    {"back", "drop", "replay"}, {"prune", "stall", "drop"}, {"whisper", "large"}, {"rights", "stall"},
    {"repeatable", "commit", "late"}, {"noise"}, {"cut", "drop"}, {"kill", "drop"}, {"promote", "drop"}, {"back", "prune"},
    {"noise", "drop"}, {"stall", "quiet"}, {"stall", "drop", "several"}, {"forge"},
)  # fmt: skip
"""What many seeds have almost alone, so that nothing else hides what goes wrong."""

TASKS = ("dispatcher", "reader-0", "sweeper", "listener", "steward", "ear", "heartbeat", "ephemerals")


class Plan:
    """Draws one history."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.theme = random.choice(THEMES) if random.random() < 0.6 else None
        self.troubles = set(self.theme or ())
        if self.theme is None:
            density = random.choice((0.05, 0.3, 0.5))
            self.troubles |= {name for name in VARIETY if random.random() < 0.5}
            self.troubles |= {name for name in TROUBLES if random.random() < density}
        else:
            self.troubles |= {name for name in VARIETY if random.random() < 0.15}
        self.troubled = random.choice((5.0, 10.0, 20.0)) if self.theme or self.troubles.intersection(TROUBLES) else 1.0
        self.seconds = self.troubled + random.choice((8.0, 16.0))
        strikes = self.theme is not None and self.has("strike")
        # After so many clients a pass lets others run; None: as many as in production.
        self.slice = random.choice((1, 2, 5)) if strikes else random.choice((None, None, None, 1, 3, 10))
        self.busy = [f"s{n}" for n in range(1 if strikes else random.choice((1, 2, 3, 6)))]
        self.quiet = ["q0", "q1"]
        """Streams with so few messages that none shows that the one before it was missed."""
        self.streams = [*self.busy, *self.quiet]
        self.quiet_from = {
            name: self.seconds * random.choice((0.2, 0.5, 0.8, 1.0)) if self.has("quiet") or strikes else self.seconds
            for name in self.busy
        }
        self.workers = random.choice((2, 2, 3) if self.theme else (1, 2, 2, 3))
        self.clients = 60 if strikes else random.choice((10, 30, 30, 60, 150))
        self.rate = random.choice((0.7, 3.0) if strikes else (0.7, 3.0, 25.0))
        self.operations: list[list[Any]] = []
        self.history = History(
            seed, self.workers, self._settings(), self._scheduler(), self.operations, sorted(self.troubles)
        )

    def has(self, trouble: str) -> bool:
        """Whether this history has a trouble."""
        return trouble in self.troubles

    def _settings(self) -> dict[str, Any]:
        random = self.random
        return {
            "ring_messages": random.choice((3, 10, 50, 1000)),
            "page_size": random.choice((2, 10, 100)),
            "readers": random.choice((1, 2)),
            "pool_size": random.choice((2, 3, 5)),
            "catch_up_interval": random.choice((5.0,) if self.theme else (1.0, 3.0, 5.0)),
            "heartbeat": random.choice((2.0, 15.0)),
            "write_deadline": random.choice((3.0, 20.0)),
            "away_after": 10.0,
        }

    def _scheduler(self) -> dict[str, Any]:
        random = self.random
        return {
            "slice": self.slice,
            "shuffle": random.random() < 0.5,
            "step": random.choice((1e-6, 1e-5, 1e-4)),
            "look": random.choice((1e-6, 2e-5, 1e-4 if self.rate < 5.0 else 2e-5, 3e-4 if self.rate < 5.0 else 1e-5)),
            "latency": random.choice((0.0002, 0.001, 0.005)),
            "commit": random.choice((0.0005, 0.002, 0.01)),
        }

    def at(self, low: float = 1.0, high: float | None = None) -> float:
        """Return a time."""
        return round(self.random.uniform(low, self.seconds if high is None else high), 4)

    def add(self, at: float, name: str, *arguments: Any) -> None:
        """Add an operation."""
        self.operations.append([at, name, *arguments])

    # what is in every history

    def draw(self) -> History:
        """Draw the operations."""
        for number in range(self.clients):
            self._client(number)
        at = 0.3
        while at < self.seconds:
            self._publish(round(at, 4))
            at += self.random.expovariate(self.rate) * self.random.choice((0.02, 1.0, 1.0, 3.0))
        for stream in self.quiet:
            at = self.random.uniform(0.5, 4.0)
            # The first one is silent in the second part, so that nothing there shows what was missed or lost before.
            while at < (self.troubled if stream == self.quiet[0] else self.seconds):
                holds = self.random.choice((0.5, 1.0, 2.0)) if self.has("late") else 0.0
                self.add(round(at, 4), "publish", [stream], "now", holds, False, None, 0)
                at += self.random.uniform(2.5, 6.0)
        self._database()
        self._workers()
        self._aims()
        self._impersonations()
        self.operations.sort(key=lambda operation: operation[0])
        return self.history

    def _publish(self, at: float) -> None:
        random = self.random
        busy = [name for name in self.busy if at < self.quiet_from[name]]
        if not busy:
            return
        kinds = ["now", *(kind for kind in ("commit", "repeatable") if self.has(kind))]
        count = random.choice((1, 1, 2, 5, 20)) if self.has("several") else 1
        if self.has("several") and random.random() < 0.3:
            streams = [random.choice(busy) for _ in range(count)]
        else:
            streams = [random.choice(busy)] * count
        holds = random.choice((0.01, 0.2, 1.0, 3.0)) if self.has("late") and random.random() < 0.2 else 0.0
        fails = self.has("rollback") and random.random() < 0.15
        label = self._label()
        size = random.choice((9000, 3000)) if self.has("large") and random.random() < 0.1 else 0
        self.add(at, "publish", streams, random.choice(kinds), holds, fails, label, size)
        if self.has("whisper") and random.random() < 0.3:
            label = None if label is not None and label.startswith("exclude") else label
            stream, large = random.choice(self.streams), self.has("large") and random.random() < 0.3
            self.add(at, "whisper", stream, label, large)
            if large and random.random() < 0.5:
                # A small one follows while a worker may still read the large one.
                self.add(round(at + random.uniform(0.0005, 0.01), 4), "whisper", stream, label, False)

    def _label(self) -> str | None:
        random = self.random
        if self.has("rights") and random.random() < 0.3:
            return random.choice(("red", "blue", "green"))
        if self.has("labels") and random.random() < 0.3:
            return random.choice(("own1", "own2"))
        if self.has("exclude") and random.random() < 0.1:
            return f"exclude {random.randrange(self.clients)}"
        return None

    def _client(self, number: int) -> None:
        random = self.random
        at = self.at(0.0, random.choice((0.5, 0.5, self.seconds * 0.8)))
        count = min(len(self.streams), random.choice((1, 1, 1, 2, 3)))
        streams = random.sample(self.streams, count)
        cursor = random.choice((None, 0)) if self.has("replay") else None
        replay = random.choice((None, 1, 5, 50)) if self.has("replay") else None
        labels = random.sample(("own1", "own2"), random.randint(0, 2)) if self.has("labels") else []
        rights = random.sample(("red", "blue", "green"), random.randint(0, 3)) if self.has("rights") else []
        self.add(at, "join", number, streams, cursor, replay, labels, rights)
        if self.has("drop"):
            for _ in range(random.choice((0, 1, 3))):
                self.add(self.at(at), "drop", number, random.choice((0, 0, 1, 2)), round(random.expovariate(1.0), 3))
        if self.has("stall") and random.random() < 0.4:
            begins = self.at(at)
            self.add(begins, "stall", number, random.choice((0, 10, 500)))
            self.add(round(begins + random.choice((0.5, 2.0, 6.0, 25.0)), 4), "flow", number)
        if self.has("rights") and random.random() < 0.3:
            for _ in range(3):
                self.add(self.at(at), "change", number, random.choice(("red", "blue", "green")))
        if self.has("quit") and random.random() < 0.3:
            self.add(self.at(at), "quit", number)

    # troubles

    def _times(self, trouble: str, most: int, least: int = 1) -> list[float]:
        """Return when a trouble comes. What disturbs workers comes in the first part, so that there is calm in the second."""
        last = self.troubled if trouble in TROUBLES else self.seconds
        return [self.at(1.0, last) for _ in range(self.random.randint(least, most))] if self.has(trouble) else []

    def _database(self) -> None:
        random = self.random
        for at in self._times("noise", 4):
            shares = [random.choice((0.0, 0.1, 0.5, 1.0)), random.choice((0.0, 0.2)), random.choice((0.0, 0.1, 0.5))]
            self.add(at, "noise", *shares, random.choice((0.05, 0.5, 3.0)), random.choice((2.0, 10.0)))
        for at in self._times("full", 2):
            self.add(at, "full", random.choice((1.0, 8.0)))
        for at in self._times("squat", 3):
            self.add(at, "squat", random.choice((5.0, 30.0)))
        for at in self._times("forge", 4):
            # The very next id is given to a real message soon: of this stream, or of another.
            self.add(at, "forge", random.choice(self.streams), random.choice((1, 1, 2, 10**6)), random.random() < 0.7)
        for at, name, *arguments in list(self.operations) if self.has("relisten") else ():
            if name == "publish" and arguments[0][0] in self.quiet and random.random() < 0.7:
                # Shortly before a commit, which the session that follows has then missed.
                self.add(round(at - random.uniform(0.005, 0.05), 4), "cut", "listen", random.randrange(self.workers))
        for at in self._times("cut", 4):
            self.add(at, "cut", random.choice(("listen", "pool", "all")), random.randrange(self.workers))
        for at in self._times("hang", 2):
            kind = random.choice(("listen", "pool", "all"))
            self.add(at, "hang", kind, random.randrange(self.workers), random.choice((1.0, 4.0, 12.0)))
        for at in self._times("hole", 1):
            self.add(at, "hole", random.choice((0.5, 3.0, 7.0)))
        for at in self._times("slow", 2):
            self.add(at, "slow", random.choice((0.02, 0.1)), random.choice((1.0, 5.0)))
        for at in self._times("restart", 2):
            self.add(at, "restart", random.choice((0.05, 1.0, 4.0)), 0.0)
        for at in self._times("back", 3):
            at = self.troubled if random.random() < 0.5 else at
            self.add(at, "restart", random.choice((0.05, 1.0)), random.choice((0.5, 5.0, 5.0)))
        for at in self._times("promote", 2):
            self.add(at, "promote", random.choice((0.05, 1.0, 12.0)), random.choice((0.0, 0.02, 0.5, 5.0)))
        for at in self._times("sequence", 2):
            self.add(at, "sequence", random.choice((1, 20, 10**5)))
        for at in self._times("prune", 8):
            self.add(at, "prune", random.choice(self.streams), random.choice((0, 1, 10, 50)))

    def _workers(self) -> None:
        random = self.random
        for at in self._times("kill", 3):
            self.add(at, "kill", random.randrange(self.workers), random.choice((0.1, 1.0, 3.0)), False)
        for at in self._times("stop", 2):
            self.add(at, "kill", random.randrange(self.workers), random.choice((2.5, 4.0)), True)
        for at in self._times("wound", 4):
            self.add(at, "wound", random.randrange(self.workers), random.choice(TASKS))
        for at in self._times("strike", 1):
            self.add(at, "strike", random.randrange(self.workers), random.randint(1, 3 * self.clients // self.workers))

    def _impersonations(self) -> None:
        """Have somebody forge messages with the ids of real ones, some of which do not ring."""
        random = Random(self.history.seed * 11 + 5)
        for at in (
            [random.uniform(1.0, self.seconds) for _ in range(random.choice((1, 3, 6)))] if self.has("forge") else ()
        ):
            self.add(round(at, 4), "impersonate", random.choice(self.streams), random.choice((1, 2, 5)))

    # what has an effect only at the right moment

    def _aims(self) -> None:
        published = [(at, rest[0]) for at, name, *rest in self.operations if name == "publish"]
        if not published:
            return
        if self.has("strike"):
            self._aim_strikes(published)
        if self.has("drop"):
            self._aim_drops([at for at, _ in published])
        if self.has("stall"):
            self._aim_stalls()
        if {"back", "prune"} <= self.troubles:
            self._aim_losses(published)

    def _aim_strikes(self, published: list[tuple[float, list[str]]]) -> None:
        """Kill dispatchers within the pass for the last message of a stream, which nothing follows that would repair it."""
        last = {stream: at for at, streams in published for stream in streams}
        for at in sorted(last.values()):
            # Some come together, so that the log moves while a pass is under way.
            for n in range(self.random.choice((0, 0, 3))):
                self.add(round(at - 0.001 * (n + 1), 4), "publish", [self.busy[0]], "now", 0.0, False, None, 0)
            for worker in range(self.workers):
                most = max(2, self.clients // (3 * self.workers))
                self.add(round(at - 0.0001, 4), "strike", worker, self.random.randint(1, most))

    def _aim_drops(self, published: list[float]) -> None:
        """Have clients come back just after a message or a loss, of which another worker may not know yet."""
        random = self.random
        losses = [at for at, name, *_ in self.operations if name in ("restart", "promote")]
        for _ in range(30):
            at = random.choice(losses if losses and random.random() < 0.5 else published) + random.uniform(0.0005, 0.03)
            back = random.choice((0.001, 0.02, 0.3)) * random.random()
            self.add(round(at, 4), "drop", random.randrange(self.clients), random.choice((0, 0, 1)), round(back, 4))
            self.add(self.at(), "hop", random.randrange(self.clients), random.choice((0.0, 0.001, 0.01)))

    def _aim_stalls(self) -> None:
        """Have clients stall during the last messages of a stream, and read again when nothing follows."""
        random = self.random
        for number in random.sample(range(self.clients), self.clients // 2):
            end = random.choice(list(self.quiet_from.values()))
            self.add(round(max(0.5, end - random.uniform(0.2, 3.0)), 4), "stall", number, random.choice((0, 10, 300)))
            self.add(round(end + random.uniform(0.1, 2.0), 4), "flow", number)

    def _aim_losses(self, published: list[tuple[float, list[str]]]) -> None:
        """Prune all messages of a stream, and then lose this and the messages."""
        random = self.random
        early = [(at, streams[0]) for at, streams in published if at < self.troubled]
        for at, stream in random.sample(early, min(2, len(early))):
            prune = at + random.uniform(0.3, 1.0)
            self.add(round(prune, 4), "prune", stream, 0)
            self.add(round(prune + random.uniform(0.7, 3.0), 4), "restart", random.choice((0.05, 1.0, 4.0)), 4.0)


def draw(seed: int) -> History:
    """Return the history of a seed."""
    return Plan(seed).draw()
