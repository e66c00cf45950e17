"""Each extra installs everything that its programs need: they run in an environment that has nothing else.

The environment is built from the distributions that are installed here, by their requirements and those of setup.py, as pip
would: no network is needed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from database_parts import until
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from program_parts import PATIENCE, ROOT, Program, program

from tools.versions import declared

Make = Callable[..., Path]


def needed(requirements: list[str]) -> set[str]:
    """Return the distributions that these requirements install."""
    todo = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while todo:
        one = todo.pop()
        for extra in {"", *one.extras}:
            if (one.marker and not one.marker.evaluate({"extra": ""})) or (canonicalize_name(one.name), extra) in seen:
                continue
            seen.add((canonicalize_name(one.name), extra))
            for text in metadata.distribution(one.name).requires or []:
                deeper = Requirement(text)
                if deeper.marker is None or deeper.marker.evaluate({"extra": extra}):
                    deeper.marker = None
                    todo.append(deeper)
    return {name for name, _ in seen}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def made(*extras: str) -> Path:
        """Make an environment with the package and these extras. From now on, the tests' programs run its Python."""
        folder = tmp_path / "bare"
        venv.create(folder, symlinks=True, with_pip=False)
        (site,) = folder.glob("lib/python*/site-packages")
        wanted = declared()
        for name in needed([text for extra in ("", *extras) for text in wanted[extra]]):
            link(metadata.distribution(name), site)
        (site / "pgbus_gevent").symlink_to(ROOT / "pgbus_gevent")
        monkeypatch.setattr(sys, "executable", str(folder / "bin" / "python"))
        return folder

    return made


def link(distribution: metadata.Distribution, site: Path) -> None:
    for file in distribution.files or []:
        if ".." not in file.parts:
            place = site / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(str(distribution.locate_file(file)))


SERVE = ("-m", "pgbus_gevent.serve")


def serves(*flags: str, database_url: str, folder: Path, **env: str) -> None:
    env["PYTHONPATH"] = ""
    with program(*SERVE, *flags, database_url=database_url, cwd=folder, **env) as served:
        until(lambda: "pgbus_gevent serves http://" in served.log, "it serves", 3 * PATIENCE)
        assert "board" in served.page("/") and served.page("/pgbus/healthz")
        assert served.stop() == 0, served.log
    assert "Traceback" not in served.log


def test_the_package_alone_serves_and_names_the_extra_for_several_workers(
    make: Make, pgbus_database: str, tmp_path: Path
) -> None:
    make()
    serves(database_url=pgbus_database, folder=tmp_path)
    refused = Program([*SERVE, "--workers", "2"], pgbus_database, tmp_path, None, PYTHONPATH="")
    assert refused.process.wait(3 * PATIENCE) == 1
    assert refused.log == "pgbus-gevent: more than one worker needs gunicorn: pip install 'pgbus-gevent[workers]'\n"
    no_database = Program(SERVE, "", tmp_path, None, PYTHONPATH="", PGBUS_DATA_DIR=str(tmp_path / "data"))
    assert no_database.process.wait(3 * PATIENCE) == 1
    assert "pip install 'pgbus-gevent[embedded]'" in no_database.log and len(no_database.log.splitlines()) == 1


def test_the_extra_workers_has_the_needs_of_several_workers(make: Make, pgbus_database: str, tmp_path: Path) -> None:
    make("workers")
    serves("--workers", "2", database_url=pgbus_database, folder=tmp_path)


def test_the_extra_redis_is_named_where_it_is_needed_and_has_what_redis_needs(
    make: Make, pgbus_database: str, tmp_path: Path
) -> None:
    away = ("--wake", "redis://user:hidden@127.0.0.1:1")
    folder = make()
    refused = Program([*SERVE, *away], pgbus_database, tmp_path, None, PYTHONPATH="")
    assert refused.process.wait(3 * PATIENCE) == 2
    assert "pip install 'pgbus-gevent[redis]'" in refused.log and "hidden" not in refused.log
    assert len(refused.log.splitlines()) == 1
    shutil.rmtree(folder)
    make("redis")
    serves(*away, database_url=pgbus_database, folder=tmp_path)  # without a Redis, PostgreSQL is used


def test_the_extra_otel_is_named_where_it_is_needed_and_has_what_traces_need(
    make: Make, pgbus_database: str, tmp_path: Path
) -> None:
    folder = make()
    refused = Program([*SERVE, "--tracing", "on"], pgbus_database, tmp_path, None, PYTHONPATH="")
    assert refused.process.wait(3 * PATIENCE) == 2
    assert "pip install 'pgbus-gevent[otel]'" in refused.log and len(refused.log.splitlines()) == 1
    shutil.rmtree(folder)
    make("otel")
    nowhere = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    serves("--tracing", "on", database_url=pgbus_database, folder=tmp_path, **nowhere)


def test_the_extra_embedded_has_a_database(make: Make, tmp_path: Path) -> None:
    make("embedded")
    serves(database_url="", folder=tmp_path, PGBUS_DATA_DIR=str(tmp_path / "data"), PGBUS_SECRET="")


def test_the_extra_test_has_the_needs_of_the_pytest_plugin(make: Make, tmp_path: Path) -> None:
    make("test")
    (tmp_path / "test_it.py").write_text(
        "def test_it(pgbus_bus, pgbus_client):\n"
        "    client = pgbus_client('orders')\n"
        "    pgbus_bus.stream('orders').broadcast('x')\n"
        "    assert client.next(timeout=60).data == 'x'\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "pgbus_gevent.testing.patch",
            "-p",
            "pgbus_gevent.testing.plugin",
            "test_it.py",
        ],
        capture_output=True,
        text=True,
        timeout=170,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_extra_chaos_has_the_needs_of_its_clients(make: Make, tmp_path: Path) -> None:
    make("embedded", "chaos")
    imports = "import pgbus_gevent.testing.chaos.conductor, pgbus_gevent.testing.chaos.clients"
    done = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
