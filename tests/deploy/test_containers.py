"""The Dockerfile and the Compose file of ``deploy/``."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from page_parts import block_of
from place_parts import DEPLOY
from serve_parts import serving
from support import run, session

from pgbus_gevent.hosts import running
from pgbus_gevent.hosts.serving import load_app
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.servers import SECRET

ROOT = DEPLOY.parent
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DEFAULTS = Settings(database_url="postgresql:///x", secret=SECRET)


def steps() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with its arguments, without comments and line breaks."""
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def last(name: str) -> str:
    return [rest for step, rest in steps() if step == name][-1]


def variables() -> dict[str, str]:
    """Return the environment of the image, but for PATH."""
    found = dict(
        word.split("=", 1) for rest in (rest for step, rest in steps() if step == "ENV") for word in shlex.split(rest)
    )
    return {name: value for name, value in found.items() if name != "PATH" and not name.startswith("PIP_")}


def list_of(text: str) -> list[str]:
    found: list[str] = yaml.safe_load(text)
    return found


def test_the_image_has_what_it_copies_and_nothing_else_is_sent_to_the_builder() -> None:
    copied = {word for step, rest in steps() if step == "COPY" and "--from" not in rest for word in rest.split()[:-1]}
    assert copied and all((ROOT / word).exists() for word in copied)
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied


def test_the_package_can_be_built_from_what_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for step, rest in steps():
        if step == "COPY" and "--from" not in rest:
            subprocess.run(["cp", "-r", *rest.split()[:-1], str(source / rest.split()[-1])], cwd=ROOT, check=True)
    [command] = [rest for step, rest in steps() if step == "RUN" and "'.[" in rest]
    program, verb, *flags = shlex.split(command)
    assert (program, verb) == ("/opt/pgbus/bin/pip", "install")
    assert set(Requirement(f"pgbus-gevent{flags[-1][1:]}").extras) == {"workers", "redis"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(tmp_path), *flags[:-1], "."],
        cwd=source,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("pgbus_gevent-*.whl"))) == 1


def test_every_package_of_the_image_is_pinned() -> None:
    pins = {line.partition("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line}
    needed = {"gevent", "greenlet", "gunicorn", "psycogreen", "psycopg2-binary", "bottle", "brotli", "itsdangerous"}
    assert needed | {"redis", "prometheus-client", "setuptools", "packaging", "zope-event", "zope-interface"} <= pins
    for step, rest in steps():
        assert step != "RUN" or "pip install" not in rest or "--constraint requirements.txt" in rest


def test_the_image_runs_as_nobody_and_serves_and_its_health_is_that_of_the_server(
    tmp_path: Path, pgbus_database: str
) -> None:
    user, group = last("USER").split(":")
    assert int(user) == int(group) > 10_000 and f"--uid {user}" in DOCKERFILE and f"--gid {group}" in DOCKERFILE
    program, module_flag, module = list_of(last("ENTRYPOINT"))
    assert (program, module_flag) == ("python", "-m")
    given = {"PGBUS_DATABASE_URL": pgbus_database, "PGBUS_SECRET": SECRET, **variables()}
    _, _, command = last("HEALTHCHECK").partition(" CMD ")
    with serving(tmp_path, *list_of(last("CMD")), program=(module,), **given) as served:
        assert served.host == "0.0.0.0" and b"It serves streams." in served.get("/").body
        assert served.stderr.startswith("{")  # the log is JSON
        healthy, flag, code = list_of(command)
        assert (healthy, flag) == ("python", "-c")
        check = [sys.executable, "-c", code]
        port = {**os.environ, "PGBUS_PORT": str(served.port)}
        assert subprocess.run(check, timeout=60, env=port).returncode == 0
        other = {**port, "PGBUS_PREFIX": "/live"}  # where nobody answers
        assert subprocess.run(check, timeout=60, env=other, stderr=subprocess.DEVNULL).returncode != 0
    assert subprocess.run(check, timeout=60, env=port, stderr=subprocess.DEVNULL).returncode != 0
    assert last("EXPOSE") == str(DEFAULTS.port) and f"'PGBUS_PORT', {DEFAULTS.port})" in code
    assert f"'PGBUS_PREFIX', '{DEFAULTS.prefix}')" in code


def builder() -> tuple[list[str], Callable[[str], dict[str, Any]]]:
    """Return the command that builds an image here, and what returns the configuration of one. Without a builder, it skips."""

    def shown(*command: str) -> Any:
        return json.loads(subprocess.run(command, timeout=60, capture_output=True, text=True, check=True).stdout)

    docker, buildah = shutil.which("docker"), shutil.which("buildah")
    if docker and subprocess.run([docker, "info"], capture_output=True, timeout=60).returncode == 0:
        return [docker, "build"], lambda name: dict(shown(docker, "inspect", "--type", "image", name)[0]["Config"])
    if buildah:
        build = [buildah, "build", "--format", "docker", "--isolation", "chroot"]
        return build, lambda name: dict(shown(buildah, "inspect", "--type", "image", name)["Docker"]["config"])
    pytest.skip("there is no builder: docker with its daemon, or buildah")


@pytest.mark.slow
@pytest.mark.pgbus_timeout(1200)
def test_the_image_is_built_where_a_builder_exists() -> None:
    """It downloads, and takes minutes, so it runs on demand only, with an image of Debian 13 as the base."""
    base = os.environ.get("PGBUS_IMAGE_BASE")
    if not base:
        pytest.skip("set PGBUS_IMAGE_BASE, to debian:trixie-slim or another image of Debian 13")
    build, inspect = builder()
    command = [*build, "-f", "deploy/Dockerfile", "--build-arg", f"BASE={base}", "-t", "pgbus-gevent:test", "."]
    done = subprocess.run(command, cwd=ROOT, timeout=900, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    config = inspect("pgbus-gevent:test")
    assert (config["User"], config["Entrypoint"]) == (last("USER"), list_of(last("ENTRYPOINT")))
    assert config["Healthcheck"]["Test"][:3] == ["CMD", "python", "-c"]
    assert config["ExposedPorts"].keys() == {f"{DEFAULTS.port}/tcp"}


def test_an_image_of_ones_own_is_based_on_it() -> None:
    first, *_, command = block_of("docs/operations/deployment.md", "your-image").splitlines()
    built = block_of("docs/operations/deployment.md", "docker").splitlines()[0].split()
    assert first == f"FROM {built[built.index('-t') + 1]}" == f"FROM {COMPOSE['services']['server']['image']}"
    assert list_of(command.removeprefix("CMD ")) == ["shop:app"]
    assert (ROOT / built[built.index("-f") + 1]).is_file() and built[-1] == "."


def test_the_services_of_the_compose_file_have_settings_that_exist_and_commands_that_run(pgbus_databases: Any) -> None:
    database, migrate, server = (COMPOSE["services"][name] for name in ("database", "migrate", "server"))
    assert all(callable(load_app(name)) for name in server["command"])
    url = "postgresql://app:word@database/app"
    assert server["environment"]["PGBUS_DATABASE_URL"] == url.replace("word", "${DATABASE_PASSWORD:?give a password}")
    loaded = Settings.load(environ={**server["environment"], "PGBUS_DATABASE_URL": url, "PGBUS_SECRET": SECRET})
    assert loaded.migrate is False
    assert (database["environment"]["POSTGRES_USER"], database["environment"]["POSTGRES_DB"]) == ("app", "app")
    assert int(server["stop_grace_period"].removesuffix("s")) > DEFAULTS.grace + running.HARD_LIMIT
    assert server["ports"] == [f"127.0.0.1:8080:{DEFAULTS.port}"]
    own = pgbus_databases.make()
    python, *arguments = migrate["entrypoint"]
    environ = {**os.environ, "PGBUS_DATABASE_URL": own, "PYTHONPATH": str(ROOT)}
    assert python == "python" and subprocess.run([sys.executable, *arguments], env=environ, timeout=120).returncode == 0
    with session(own) as connection:
        assert run(connection, "select to_regclass('pgbus.messages') is not null") == [(True,)]


def test_the_compose_file_is_valid() -> None:
    """By the reader of the Compose Specification."""
    reader = pytest.importorskip("compose_spec").PyCompose
    assert set(reader.from_json(json.dumps(COMPOSE)).service_names()) == set(COMPOSE["services"])
    wrong = {**COMPOSE["services"]["server"], "stop_grace_period": "soon"}
    with pytest.raises(ValueError):
        reader.from_json(json.dumps({**COMPOSE, "services": {**COMPOSE["services"], "server": wrong}}))


def test_the_dockerfile_pleases_its_linter(tmp_path: Path) -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed")
    checked = subprocess.run([linter, str(DEPLOY / "Dockerfile")], timeout=60, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text(
        DOCKERFILE.replace("# hadolint ignore=DL3008\n", "").replace("${BASE}", "debian")
    )
    wrong = subprocess.run([linter, str(tmp_path / "Dockerfile")], timeout=60, capture_output=True, text=True)
    assert {"DL3006", "DL3008"} <= set(re.findall(r"DL\d+", wrong.stdout))
