"""The manifests of ``deploy/kubernetes`` are valid, agree with one another, and with the running server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from page_parts import block_of
from place_parts import DEPLOY
from support import get

from pgbus_gevent.hosts import running
from pgbus_gevent.hosts.serving import load_app
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.servers import SECRET

RELEASES = "1.32", "1.37"
"""Releases of Kubernetes whose schemas the manifests are checked against."""

FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
DOCUMENTS = [(path.name, one) for path in FILES for one in yaml.safe_load_all(path.read_text()) if one]
DEFAULTS = Settings(database_url="postgresql:///x", secret=SECRET)


def of(kind: str) -> Any:
    [found] = [one for _, one in DOCUMENTS if one["kind"] == kind]
    return found


SERVER = of("Deployment")["spec"]["template"]
[CONTAINER] = SERVER["spec"]["containers"]
[MIGRATION] = of("Job")["spec"]["template"]["spec"]["containers"]


@pytest.mark.parametrize("release", RELEASES)
def test_each_manifest_is_valid(release: str) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    assert {"Deployment", "Service", "Ingress", "PodDisruptionBudget", "Job"} == {one["kind"] for _, one in DOCUMENTS}
    for name, document in DOCUMENTS:
        print(name, document["kind"])
        validate(document, release, strict=True)


def test_a_wrong_manifest_is_found() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    wrong = of("Service") | {"spec": {"ports": [{"port": "eighty"}]}}
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, RELEASES[-1], strict=True)


def test_the_probes_ask_what_the_server_answers(pgbus_server: Any) -> None:
    probes = {name: CONTAINER[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes["livenessProbe"]["path"] == probes["startupProbe"]["path"] != probes["readinessProbe"]["path"]
    assert [get(pgbus_server.url, probe["path"]).status for probe in probes.values()] == [200, 200, 200]
    [port] = CONTAINER["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]} and port["containerPort"] == DEFAULTS.port


def test_a_server_that_stops_fails_the_readiness_probe_and_not_the_liveness_probe(
    pgbus_server: Any, pgbus_instance: Instance
) -> None:
    pgbus_instance.health.draining = True
    try:
        assert get(pgbus_server.url, CONTAINER["readinessProbe"]["httpGet"]["path"]).status == 503
        assert get(pgbus_server.url, CONTAINER["livenessProbe"]["httpGet"]["path"]).status == 200
    finally:
        pgbus_instance.health.draining = False


def test_the_addresses_of_the_ingress_are_served_and_those_for_operators_are_not_among_them(pgbus_server: Any) -> None:
    [rule] = of("Ingress")["spec"]["rules"]
    paths = [one["path"] for one in rule["http"]["paths"]]
    assert [get(pgbus_server.url, path).status for path in paths] == [400, 200, 200]  # a stream needs a name
    assert not any("/pgbus/metrics".startswith(path) or "/pgbus/console".startswith(path) for path in paths)
    assert rule["host"] in of("Ingress")["spec"]["tls"][0]["hosts"]


def test_the_manifests_lead_to_the_pods() -> None:
    labels = SERVER["metadata"]["labels"]
    selectors = [
        of("Deployment")["spec"]["selector"]["matchLabels"],
        of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of("Service")["spec"]["selector"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert not any(
        selector.items() <= of("Job")["spec"]["template"]["metadata"]["labels"].items() for selector in selectors
    )
    [port] = of("Service")["spec"]["ports"]
    assert port["targetPort"] == CONTAINER["ports"][0]["name"]
    for path in of("Ingress")["spec"]["rules"][0]["http"]["paths"]:
        service = path["backend"]["service"]
        assert (service["name"], service["port"]["name"]) == (of("Service")["metadata"]["name"], port["name"])


def test_a_pod_has_the_time_that_a_drain_takes() -> None:
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert SERVER["spec"]["terminationGracePeriodSeconds"] >= pause + DEFAULTS.grace + running.HARD_LIMIT
    probe = CONTAINER["readinessProbe"]
    assert pause > probe["periodSeconds"] * probe["failureThreshold"]
    ingress = of("Ingress")["metadata"]["annotations"]
    assert int(ingress["nginx.ingress.kubernetes.io/proxy-read-timeout"]) >= 3 * DEFAULTS.heartbeat


def test_no_container_may_more_than_it_needs() -> None:
    for spec in (SERVER["spec"], of("Job")["spec"]["template"]["spec"]):
        assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert "limits" in container["resources"]


def test_the_variables_are_settings_and_the_commands_run(pgbus_databases: Any, tmp_path: Path) -> None:
    given = {one["name"]: one.get("value", "") for one in CONTAINER["env"]}
    assert Settings.load(environ={"PGBUS_DATABASE_URL": "postgresql:///x", **given}).migrate is False
    assert all(callable(load_app(name)) for name in CONTAINER["args"])
    program, *arguments = MIGRATION["command"]
    assert (program, [one["name"] for one in MIGRATION["env"]]) == ("python", ["PGBUS_DATABASE_URL"])
    url = pgbus_databases.make()
    environ = {**os.environ, "PGBUS_DATABASE_URL": url, "PYTHONPATH": str(DEPLOY.parent)}
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environ, timeout=120, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_page_apply_every_manifest_in_their_order(tmp_path: Path) -> None:
    """kubectl is replaced by a program that notes its arguments, and fails for a file or a job that does not exist."""
    program = tmp_path / "kubectl"
    program.write_text('#!/bin/sh\necho "$@" >>"$0.log"\n')
    program.chmod(0o755)
    commands = block_of("docs/operations/deployment.md", "kubernetes")
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", commands], cwd=DEPLOY.parent, env=environ, check=True, timeout=60)
    lines = (tmp_path / "kubectl.log").read_text().splitlines()
    files = [word for line in lines for word in line.split() if word.endswith(".yaml")]
    assert sorted(files) == [path.relative_to(DEPLOY.parent).as_posix() for path in sorted(FILES)]
    assert files[0].endswith("migrate.yaml")
    assert f"job/{of('Job')['metadata']['name']}" in lines[1].split()
