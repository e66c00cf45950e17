"""The Grafana dashboard: its queries are PromQL about metrics that servers export, and Grafana's own models read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from metric_names_parts import exported, labels_used, metrics_used, promtool

PATH = Path(__file__).parents[2] / "deploy/grafana/pgbus.json"
DASHBOARD: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
WIDTH = 24


def queries() -> list[str]:
    """Return the queries, with a value for each of Grafana's variables."""
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return [expr.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*") for expr in found]


def test_the_queries_are_promql(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


def test_the_queries_use_only_metrics_and_labels_that_servers_export() -> None:
    names, labels = exported()
    for expr in queries():
        assert metrics_used(expr) and metrics_used(expr) <= names, expr
        assert labels_used(expr) <= labels | {"job", "instance"}, expr


def read_by_grafana(dashboard: dict[str, Any]) -> Any:
    """Return what Grafana's models keep of a dashboard. They need Python 3.11."""
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    return json.loads(encoder.JSONEncoder(sort_keys=True).encode(models.Dashboard.from_json(dashboard)))


def test_grafanas_own_models_read_it_and_lose_nothing() -> None:
    assert missing(DASHBOARD, read_by_grafana(DASHBOARD)) == []


def missing(given: Any, read: Any, place: str = "") -> list[str]:
    """Return the places of what Grafana's models do not know, or read as something else."""
    if isinstance(given, dict) and isinstance(read, dict):
        return [
            found
            for key, value in given.items()
            for found in (missing(value, read[key], f"{place}.{key}") if key in read else [f"{place}.{key}"])
        ]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        pairs = enumerate(zip(given, read, strict=True))
        return [found for n, (one, other) in pairs for found in missing(one, other, f"{place}[{n}]")]
    return [] if given == read else [f"{place}: {given!r} is read as {read!r}"]


def test_the_comparison_finds_what_the_models_do_not_know() -> None:
    bad = {**DASHBOARD, "titel": "x", "panels": [{**PANELS[0], "grid": {}}]}
    assert missing(bad, read_by_grafana(bad)) == [".panels[0].grid", ".titel"]


def test_each_panel_says_what_it_shows_and_no_two_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < WIDTH, panel["title"]
        taken |= cells
    assert all(len(panel["description"]) > 10 for panel in PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize(
    "histogram", ["append_to_send", "pass_duration", "read_duration", "connect_duration", "publish_duration"]
)
def test_each_histogram_has_a_panel(histogram: str) -> None:
    assert any(f"pgbus_{histogram}_seconds_bucket" in expr for expr in queries())
