"""The alert rules: promtool reads them, and each fires in its case and not in the one beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from metric_names_parts import exported, labels_used, metrics_used, promtool
from page_parts import block_of

ROOT = Path(__file__).parents[2]
PATH = ROOT / "deploy/prometheus/alerts.yml"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for rule in yaml.safe_load(PATH.read_text(encoding="utf-8"))["groups"][0]["rules"]
}
RUNBOOK = "docs/operations/monitoring.md"
((REPOSITORY,),) = [re.findall(r'^REPOSITORY = "(.*)"$', (ROOT / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)]

Series = dict[str, str]


def quantile(name: str, fast: str, slow: str, *, late: bool, extra: str = "") -> Series:
    """Return a histogram whose observations are below ``fast``, or half of them between that and ``slow``."""
    made = {fast: "0+50x40" if late else "0+100x40", slow: "0+100x40", "+Inf": "0+100x40"}
    return {f'{name}_bucket{{{extra}worker="1",le="{le}"}}': values for le, values in made.items()}


LATE, CONNECT, PUBLISH = (
    f"pgbus_{name}_seconds" for name in ("append_to_send", "connect_duration", "publish_duration")
)
NOW = 'kind="now",'

CASES: dict[str, tuple[Series, Series]] = {
    "PgbusDown": ({"up{}": "0x40"}, {"up{}": "1x40"}),
    "PgbusNotReady": ({"pgbus_ready{}": "1 0x40"}, {"pgbus_ready{}": "1x20 0 1x40"}),
    "PgbusNotListening": ({"pgbus_listener_up{}": "0x40"}, {"pgbus_listener_up{}": "1x40"}),
    "PgbusNoSteward": (
        {'pgbus_steward{worker="1"}': "1x40", 'pgbus_steward{worker="2"}': "1x40"},
        {'pgbus_steward{worker="1"}': "0x40", 'pgbus_steward{worker="2"}': "1x40"},
    ),
    "PgbusLate": (quantile(LATE, "0.5", "1.0", late=True), quantile(LATE, "0.5", "1.0", late=False)),
    "PgbusSlowConnects": (quantile(CONNECT, "1.0", "5.0", late=True), quantile(CONNECT, "1.0", "5.0", late=False)),
    "PgbusSlowPublishing": (
        quantile(PUBLISH, "0.5", "1.0", late=True, extra=NOW),
        quantile(PUBLISH, "0.5", "1.0", late=True, extra='kind="on-commit",'),
    ),
    "PgbusNearlyFull": (
        {"pgbus_connections{}": "901x40", "pgbus_connections_max{}": "1000x40"},
        {"pgbus_connections{}": "900x40", "pgbus_connections_max{}": "1000x40"},
    ),
    "PgbusRefusing": (
        {'pgbus_refusals_total{reason="overloaded"}': "0+61x40"},
        {'pgbus_refusals_total{reason="overloaded"}': "0+59x40", 'pgbus_refusals_total{reason="restart"}': "0+99x40"},
    ),
    "PgbusDescriptorsNearlyGone": (
        {"process_open_fds{}": "901x40", "process_max_fds{}": "1000x40"},
        {"process_open_fds{}": "900x40", "process_max_fds{}": "1000x40"},
    ),
    "PgbusGaps": (
        {'pgbus_gaps_total{reason="expired"}': "0+1x40", "pgbus_connections_opened_total{}": "0+19x40"},
        {
            'pgbus_gaps_total{reason="expired"}': "0+1x40",
            'pgbus_gaps_total{reason="invalid-cursor"}': "0+9x40",
            "pgbus_connections_opened_total{}": "0+21x40",
        },
    ),
    "PgbusLostMessages": (
        {'pgbus_gaps_total{reason="ahead"}': "0x15 1x40"},
        {'pgbus_gaps_total{reason="ahead"}': "1x40", 'pgbus_gaps_total{reason="expired"}': "0+1x40"},
    ),
    "PgbusSlowConsumers": (
        {"pgbus_slow_consumers_total{}": "0+61x40"},
        {"pgbus_slow_consumers_total{}": "0+59x40"},
    ),
    "PgbusPoolBusy": (
        {"pgbus_pool_connections_in_use{}": "5x40", "pgbus_pool_connections_max{}": "5x40"},
        {"pgbus_pool_connections_in_use{}": " ".join(["5 5 4"] * 14), "pgbus_pool_connections_max{}": "5x40"},
    ),
    "PgbusPruningLate": ({"pgbus_prune_overdue_seconds{}": "601x40"}, {"pgbus_prune_overdue_seconds{}": "600x40"}),
    "PgbusClockOff": (
        {"pgbus_database_clock_offset_seconds{}": "-6x40"},
        {"pgbus_database_clock_offset_seconds{}": "5x40"},
    ),
    "PgbusEphemeralsDropped": (
        {"pgbus_ephemerals_dropped_total{}": "0+1x40"},
        {"pgbus_ephemerals_dropped_total{}": "7x40"},
    ),
    "PgbusCoalescedLost": ({"pgbus_coalesced_lost_total{}": "0x20 1x40"}, {"pgbus_coalesced_lost_total{}": "1x40"}),
    "PgbusPresenceFailing": ({"pgbus_presence_failing{}": "1x40"}, {"pgbus_presence_failing{}": "0x40"}),
    "PgbusStandbyUnused": ({"pgbus_standby_up{}": "0x40"}, {"pgbus_standby_up{}": "1x40"}),
    "PgbusRedisUnused": ({"pgbus_redis_up{}": "0x40"}, {"pgbus_redis_up{}": "1x40"}),
    "PgbusNoRelay": (
        {'pgbus_relay_up{worker="1"}': "0x40", 'pgbus_relay_up{worker="2"}': "0x40"},
        {'pgbus_relay_up{worker="1"}': "0x40", 'pgbus_relay_up{worker="2"}': "1x40"},
    ),
    "PgbusEdgeCutOff": ({"pgbus_hop_lines{}": "0x40"}, {"pgbus_hop_lines{}": "1x40"}),
}
"""For each alert, series with which it fires 25 minutes later, and others with which it does not. A value is for each minute."""


def test_promtool_reads_the_rules() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", str(PATH))


def test_prometheus_reads_the_configuration_of_the_page(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a token")
    text = block_of("docs/operations/monitoring.md", "scrape")
    for written, here in (("/etc/prometheus/pgbus-token", token), ("/etc/prometheus/pgbus-alerts.yml", PATH)):
        assert written in text
        text = text.replace(written, str(here))
    file = tmp_path / "prometheus.yml"
    file.write_text(text)
    assert f"{len(RULES)} rules found" in promtool("check", "config", str(file))


def placed(series: str) -> str:
    """Return a series with the labels that a scrape adds."""
    name, _, rest = series.partition("{")
    return f'{name}{{job="pgbus",instance="web-1:8080",{rest}'.replace(",}", "}")


def kept_labels(rule: dict[str, Any], series: Series) -> dict[str, str]:
    """Return the labels of the alert: those that the rule sums by, or all of the series."""
    every = {"job": "pgbus", "instance": "web-1:8080", **dict(re.findall(r'(\w+)="([^"]*)"', next(iter(series))))}
    grouped = re.search(r"by \(([\w, ]+)\)", rule["expr"])
    kept = every if grouped is None else {name: every[name] for name in grouped[1].split(", ") if name != "le"}
    return {**kept, **rule["labels"]}


def test_each_rule_fires_in_its_case_and_not_in_the_other(tmp_path: Path) -> None:
    assert list(CASES) == list(RULES)
    # Without the annotations, whose texts promtool would compare too. It has read them above.
    bare = [{key: value for key, value in rule.items() if key != "annotations"} for rule in RULES.values()]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [{"name": "pgbus", "rules": bare}]}))
    tests = []
    for name, cases in CASES.items():
        for fires, series in zip((True, False), cases, strict=True):
            expected = [{"exp_labels": kept_labels(RULES[name], series)}] if fires else []
            tests.append(
                {
                    "interval": "1m",
                    "input_series": [{"series": placed(one), "values": values} for one, values in series.items()],
                    "alert_rule_test": [{"eval_time": "25m", "alertname": name, "exp_alerts": expected}],
                }
            )
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", str(file))


@pytest.mark.parametrize("name", RULES)
def test_each_rule_uses_only_metrics_and_labels_that_servers_export(name: str) -> None:
    names, labels = exported()
    expr = RULES[name]["expr"]
    assert metrics_used(expr) and metrics_used(expr) <= names | {"up"}
    assert labels_used(expr) <= labels | {"job", "instance"}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_has_a_reason_and_a_runbook(name: str) -> None:
    rule = RULES[name]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert len(rule["annotations"]["reason"]) > 40 and rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == f"{REPOSITORY}/blob/main/{RUNBOOK}" and anchor == name.lower()
    text = (ROOT / RUNBOOK).read_text(encoding="utf-8")
    _, found, runbook = text.partition(f"\n### {name}\n")
    assert found and len(runbook.split("\n#")[0].split()) > 8


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    text = (ROOT / RUNBOOK).read_text(encoding="utf-8")
    assert re.findall(r"^### (Pgbus\w+)$", text, re.MULTILINE) == list(RULES)
