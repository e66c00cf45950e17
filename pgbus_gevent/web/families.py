"""Metric families of prometheus_client: makes them from numbers, sends them to other workers, merges them, and writes them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.samples import Sample

from ..core.histogram import Histogram


def gauge(name: str, help: str, value: float | None) -> Metric:
    """A gauge. It has no sample if the value is not known."""
    return GaugeMetricFamily(name, help, None if value is None else float(value))


def counter(name: str, help: str, value: float) -> Metric:
    """A counter. ``_total`` is appended to its name."""
    return CounterMetricFamily(name, help, float(value))


def counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    """A counter with a sample for each value of a label."""
    family = CounterMetricFamily(name, help, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], float(value))
    return family


def histograms(name: str, help: str, values: Mapping[tuple[str, ...], Histogram], label: str | None = None) -> Metric:
    """A histogram for each value of a label, or one without a label."""
    family = HistogramMetricFamily(name, help, labels=[] if label is None else [label])
    for labels, histogram in values.items():
        family.add_metric(labels, histogram.cumulative, histogram.sum)
    return family


def written(families: Iterable[Metric], accept: str) -> tuple[bytes, str]:
    """The text and its content type, in the format that the ``Accept`` header asks for. Families without samples are left out."""
    encode, content_type = choose_encoder(accept)
    return encode(_Collected([family for family in families if family.samples])), content_type


class _Collected:
    """A registry, as far as prometheus_client needs one to write metrics."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def of_worker(families: Iterable[Metric], worker: int, host: str | None = None) -> list[Metric]:
    """The same families with a label for the worker, and one for its host if that is given."""
    own = {"worker": str(worker)} if host is None else {"host": host, "worker": str(worker)}
    return [_with(each, [s._replace(labels={**own, **s.labels}) for s in each.samples]) for each in families]


def merged(groups: Iterable[Iterable[Metric]]) -> list[Metric]:
    """The families of several workers, with one family for each name, as the formats require."""
    found: dict[str, Metric] = {}
    for family in (family for group in groups for family in group):
        known = found.get(family.name)
        found[family.name] = family if known is None else _with(known, [*known.samples, *family.samples])
    return list(found.values())


def packed(families: Iterable[Metric]) -> str:
    """The samples as text that another worker reads with :func:`unpacked`."""
    samples = {each.name: [[s.name, s.labels, s.value] for s in each.samples] for each in families}
    return json.dumps(samples, separators=(",", ":"))


def unpacked(text: Any, known: Iterable[Metric]) -> list[Metric]:
    """The families of another worker, as far as they are ``known`` here, because that worker may run another release."""
    given: Mapping[str, Any] = json.loads(text) if isinstance(text, str) else {}
    return [
        _with(family, [Sample(str(name), dict(labels), float(value)) for name, labels, value in samples])
        for family in known
        if (samples := given.get(family.name))
    ]


def _with(family: Metric, samples: list[Sample]) -> Metric:
    made = Metric(family.name, family.documentation, family.type)
    made.samples = samples
    return made
