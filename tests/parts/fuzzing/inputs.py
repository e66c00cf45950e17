"""Inputs: made by hypothesis from a target's words and its corpus, and read piece by piece by targets that need values."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from .engine import Finding, Target

T = TypeVar("T")

BATCH = 40
"""Inputs that hypothesis draws between two looks at which input was slow."""

VARIANTS = 9
"""Inputs that are made of each one that hypothesis draws."""

Batch = Callable[[Callable[[bytes], None], Callable[[], bool]], None]


def strategy(target: Target, corpus: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return what inputs are drawn from: bytes, words, and inputs of the corpus with a few changes."""
    word = st.sampled_from(target.words)
    piece = word | word | st.binary(max_size=6)
    pieces = st.lists(piece, max_size=24).map(b"".join)
    repeated = st.builds(
        lambda head, part, times, tail: (head + part * times + tail)[: target.most],
        pieces, st.one_of(word, st.binary(min_size=1, max_size=3)), st.sampled_from((2, 7, 64, 999, 5000, 20_000)), pieces,
    )  # fmt: skip
    kinds = [st.binary(max_size=100), pieces, pieces, repeated]
    if corpus:
        known = st.sampled_from(corpus)
        edit = st.tuples(st.integers(0, 1 << 16), st.sampled_from("idrxdup"), piece, st.integers(0, 12))
        edited = st.builds(edited_by, known, st.lists(edit, min_size=1, max_size=5))
        spliced = st.builds(
            lambda a, b, i, j: a[: i % (len(a) + 1)] + b[j % (len(b) + 1) :],
            known, known, st.integers(0, 1 << 16), st.integers(0, 1 << 16),
        )  # fmt: skip
        kinds += [edited, edited, edited, spliced]
    return st.one_of(kinds).map(lambda data: data[: target.most])


def edited_by(data: bytes, edits: Sequence[tuple[int, str, bytes, int]]) -> bytes:
    """Return an input with pieces put in, taken out, replaced, doubled, or with a bit changed."""
    for place, kind, piece, size in edits:
        at = place % (len(data) + 1)
        if kind == "i":
            data = data[:at] + piece + data[at:]
        elif kind == "d":
            data = data[:at] + data[at + size :]
        elif kind == "r":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "x" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << size % 8)]) + data[at + 1 :]
        else:
            data = data[:at] + data[max(0, at - size) : at] + data[at:]
    return data


def batches(target: Target, corpus: Sequence[bytes], seed: int) -> Iterator[Batch]:
    """Yield batches of inputs for ever. Each is a function of what runs an input, and of what says that the time is over."""
    inputs = strategy(target, corpus)
    for number in count():
        yield _batch(target, inputs, seed * 1_000_003 + number)


def _batch(target: Target, inputs: st.SearchStrategy[bytes], seed: int) -> Batch:
    def run(judge: Callable[[bytes], None], over: Callable[[], bool]) -> None:
        found: list[Finding] = []

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=BATCH, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        )  # fmt: skip
        @hypothesis.given(inputs, st.integers(0, 1 << 32))
        def each(data: bytes, salt: int) -> None:
            rng = random.Random(salt)
            for n in range(1 + VARIANTS):
                if found or over():
                    return
                try:
                    judge(data if n == 0 else varied(data, target, rng))
                except Finding as error:
                    found.append(error)  # not raised here: hypothesis would run it again and again

        each()
        if found:
            raise found[0]

    return run


def varied(data: bytes, target: Target, rng: random.Random) -> bytes:
    """Return an input with one to three changes. This takes a hundredth of the time that hypothesis takes to draw one."""
    for _ in range(rng.randrange(1, 4)):
        piece = rng.choice(target.words) if rng.random() < 0.7 else rng.randbytes(rng.randrange(1, 5))
        data = edited_by(data, [(rng.randrange(1 << 16), rng.choice("idrxu"), piece, rng.randrange(13))])
    return data[: target.most]


def smaller(data: bytes, fails: Callable[[bytes], bool], over: Callable[[], bool]) -> bytes:
    """Return a smaller input that fails too: pieces are taken out while it still does."""
    size = max(1, len(data) // 2)
    while not over():
        at = 0
        while at < len(data) and not over():
            shorter = data[:at] + data[at + size :]
            if fails(shorter):
                data = shorter
            else:
                at += size
        if size == 1:
            break
        size = max(1, size // 2)
    return data


class Taker:
    """Reads values from the bytes of an input, which never ends: after the last byte come zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Return how many bytes are left."""
        return max(0, len(self._data) - self._at)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def pick(self, values: Sequence[T]) -> T:
        return values[self.byte() % len(values)]

    def bytes(self, end: bytes = b"\n") -> bytes:
        """Return the bytes up to ``end``, or to the end of the input."""
        rest = self._data[self._at :]
        part, found, _ = rest.partition(end)
        self._at += len(part) + len(found)
        return part

    def rest(self) -> bytes:
        rest, self._at = self._data[self._at :], len(self._data)
        return rest

    def text(self, end: bytes = b"\n") -> str:
        """Return a text up to ``end``. Bytes that are no UTF-8 become lone surrogates."""
        return self.bytes(end).decode("utf-8", "surrogateescape")

    def value(self, depth: int = 0) -> Any:
        """Return a value of any type that JSON or Python has."""
        kind = self.byte() % (16 if depth < 40 else 10)
        if kind < 3:
            return (None, True, False)[kind]
        if kind < 5:
            return int.from_bytes(self.bytes()[:40], "big", signed=True)
        if kind == 5:
            return self.pick((float("nan"), float("inf"), -float("inf"), 1e308, -1.5, 0.0, 5e-324, 1e15))
        if kind < 8:
            return self.text()
        if kind == 8:
            return self.bytes()
        if kind == 9:
            return self.pick((2**53, 2**53 - 1, 2**63, -1, 0, 10**400, 1, 253402300800))
        if kind < 13:
            return [self.value(depth + 1) for _ in range(min(self.byte() % 9, self.left))]
        return {self.text(): self.value(depth + 1) for _ in range(min(self.byte() % 6, self.left))}
