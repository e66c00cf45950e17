"""Numbers in the text format of Prometheus, version 0.0.4: families, samples and their escapes.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """One number; ``suffix`` is what follows the family's name, ``_bucket`` for example."""

    suffix: str
    labels: Labels
    value: float


class Family(NamedTuple):
    """One metric: its name, its type (``counter``, ``gauge`` or ``histogram``), one line of help, and its samples."""

    name: str
    type: str
    help: str
    samples: Sequence[Sample]


class Histogram:
    """Counts observations by ``bounds``, which rise; the last bucket is without a bound. :meth:`observe` never yields."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def counts(self) -> list[int]:
        """How many lay in each bucket, each for itself."""
        return list(self._counts)

    def samples(self, labels: Labels = ()) -> list[Sample]:
        """As the format has them: each bucket with all below it."""
        found, below = [], 0
        for bound, count in zip((*map(number, self.bounds), "+Inf"), self._counts, strict=True):
            below += count
            found.append(Sample("_bucket", (*labels, ("le", bound)), below))
        return [*found, Sample("_sum", labels, self.sum), Sample("_count", labels, below)]


def one(name: str, type: str, help: str, value: float | None) -> Family:
    """A family with one sample, or with none where the value is not known."""
    return Family(name, type, help, [] if value is None else [Sample("", (), value)])


def by_label(name: str, help: str, label: str, values: Mapping[str, float]) -> Family:
    """A counter with a sample for each value of a label."""
    return Family(name, "counter", help, [Sample("", ((label, key),), value) for key, value in sorted(values.items())])


def render(families: Iterable[Family]) -> bytes:
    """The text. A family without samples is left out."""
    lines = []
    for family in families:
        if family.samples:
            help = family.help.replace("\\", r"\\").replace("\n", r"\n")
            lines += [f"# HELP {family.name} {help}", f"# TYPE {family.name} {family.type}"]
            lines += [
                f"{family.name}{sample.suffix}{_braced(sample.labels)} {number(sample.value)}"
                for sample in family.samples
            ]
    return "".join(f"{line}\n" for line in lines).encode()


def labelled(family: Family, *labels: tuple[str, str]) -> Family:
    """The same with labels before those that its samples have."""
    return family._replace(samples=[sample._replace(labels=(*labels, *sample.labels)) for sample in family.samples])


def merged(groups: Iterable[Iterable[Family]]) -> list[Family]:
    """The families of several workers as one of each name, as the format wants it."""
    found: dict[str, Family] = {}
    for family in (family for group in groups for family in group):
        known = found.get(family.name)
        found[family.name] = family if known is None else known._replace(samples=[*known.samples, *family.samples])
    return list(found.values())


def number(value: float) -> str:
    """As the format writes it: whole numbers without a point."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _braced(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
