"""The judge: compares what was committed with what each client received. It does no I/O and knows no peer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Commit:
    """A committed message. ``began`` is when its COMMIT was sent, ``ended`` when its publisher was done with it; both in
    monotonic seconds.

    A message whose publisher was done before another's COMMIT was sent comes before it. For any other two messages, both orders
    are right.
    """

    stream: str
    began: float
    ended: float


@dataclass
class Received:
    """What a client of a stream received: the keys in their order, and the times.

    ``page`` has the keys that the client's page already showed. ``told`` says whether a server told the client that messages are
    missing.
    """

    stream: str
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    page: frozenset[str] = frozenset()
    told: bool = False


@dataclass
class Verdict:
    """Counts of pairs of a client and a message that it had to get. ``right``: exactly once, and in order.

    ``told`` is the part of ``lost`` of clients that were told. ``unknown`` counts received messages that were never committed.
    """

    pairs: int = 0
    right: int = 0
    lost: int = 0
    told: int = 0
    repeated: int = 0
    disordered: int = 0
    unknown: int = 0

    @property
    def percent(self) -> float:
        """The right pairs, in percent of all pairs. It is 100 only if every pair is right."""
        return 100.0 * self.right / self.pairs if self.pairs else 0.0

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


def judge(commits: Mapping[str, Commit], clients: Iterable[Received]) -> Verdict:
    """Judge all clients."""
    total = Verdict()
    for client in clients:
        total += judge_client(commits, client)
    return total


def judge_client(commits: Mapping[str, Commit], client: Received) -> Verdict:
    """Judge one client. It must get each message of its stream that its page did not show.

    A message that the page showed and that came nevertheless counts as repeated, and as a pair that is not right.
    """
    counts = Counter(client.keys)
    due = {key for key, commit in commits.items() if commit.stream == client.stream} - client.page
    again = {key for key in counts if key in client.page}
    repeated = again | {key for key in due if counts[key] > 1}
    disordered = late(commits, client.keys) & due
    lost = {key for key in due if not counts[key]}
    return Verdict(
        pairs=len(due | again),
        right=len(due - lost - repeated - disordered),
        lost=len(lost),
        told=len(lost) if client.told else 0,
        repeated=len(repeated),
        disordered=len(disordered),
        unknown=sum(1 for key in counts if key not in commits or commits[key].stream != client.stream),
    )


def late(commits: Mapping[str, Commit], keys: Sequence[str]) -> set[str]:
    """Return the keys that came after a message that is later. Only the first time that a key comes counts."""
    newest = float("-inf")
    found = set()
    for key in dict.fromkeys(keys):
        commit = commits.get(key)
        if commit is None:
            continue
        if commit.ended < newest:
            found.add(key)
        newest = max(newest, commit.began)
    return found


def delays(commits: Mapping[str, Commit], clients: Iterable[Received]) -> list[float]:
    """Return the seconds from the COMMIT to each first receipt, sorted."""
    found = []
    for client in clients:
        seen: set[str] = set()
        for key, time in zip(client.keys, client.times, strict=True):
            if key in commits and key not in seen:
                seen.add(key)
                found.append(time - commits[key].began)
    return sorted(found)
