"""Which metrics and labels servers export, and which ones a query uses."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache

import pytest
from prometheus_client.core import Metric

from pgbus_gevent.core.windows import Counts
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.streamer.steward import Steward
from pgbus_gevent.web import metrics
from pgbus_gevent.web.backstage import backstage_of

DATABASE = "postgresql://nowhere/x"
KINDS = (
    {"database_url": DATABASE, "presence": ["room:*"], "worker_token": ["a-token-of-the-edges"]},
    {"database_url": DATABASE, "replica_url": "postgresql://nowhere/y"},
    {"database_url": DATABASE, "wake": "redis://nowhere"},
    {"upstream": "https://nowhere.example/pgbus", "worker_token": ["a-token-of-the-edges"]},
)
"""Servers of every kind. None of them is started. A metric whose value is not known yet is among the families all the same; the
two that are not are made to be known."""

_WORD = re.compile(r"\b(?:pgbus|process|up)(?:_\w+)?\b")
_SELECTOR = re.compile(r"\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


@cache
def exported() -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the samples of all kinds of servers, and their labels."""
    patch = pytest.MonkeyPatch()
    patch.setattr(metrics, "total_counts", lambda: Counts(1, 1, 1, 1, 1))
    patch.setattr(Steward, "silence", 1.0)
    try:
        families = [family for kind in KINDS for family in _families(Settings(**kind))]
    finally:
        patch.undo()
    names = {name for family in families for name in _names(family)}
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    return frozenset(names), frozenset(labels | {"worker"})


def _families(settings: Settings) -> list[Metric]:
    instance = Instance(settings)
    try:
        return backstage_of(instance).metrics.collect()
    finally:
        instance.shutdown(0.0)


def _names(family: Metric) -> set[str]:
    endings = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "info": ("_info",)}
    return {family.name + ending for ending in endings.get(family.type, ("",))}


def metrics_used(expr: str) -> set[str]:
    return set(_WORD.findall(_SELECTOR.sub("", expr)))


def labels_used(expr: str) -> set[str]:
    matched = {name for inside in _SELECTOR.findall(expr) for name in _MATCHER.findall(inside)}
    return matched | {name.strip() for inside in _GROUPED.findall(expr) for name in inside.split(",") if name.strip()}


def promtool(*arguments: str) -> str:
    """Return the output of promtool, which must succeed."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
