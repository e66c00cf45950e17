"""Set-up for all tests: plugins, signals, the markers of needs, and clearing up."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path

import kinds
import pytest
from hypothesis import HealthCheck, settings

import pgbus_gevent
from pgbus_gevent.testing.client import StreamClient

# If the package is installed, pytest has already found its plugin.
_installed = bool(entry_points(group="pytest11", name="pgbus_gevent"))
pytest_plugins = [
    *([] if _installed else ["pgbus_gevent.testing.plugin"]),
    "database_parts",
    "release_parts",
    "browser_fixtures",
    "js_parts",
]

# An example that takes long is the machine's fault: this process stood still. Tests of linear time measure it themselves.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Waiting longer costs nothing here, and this process or PostgreSQL may stand still.
StreamClient.patience = 20.0

# Some tests have more connections in this process than the 1024 descriptors of a usual shell. Servers raise the limit themselves.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(_soft, min(_hard, 8192)), _hard))

# A shell without job control starts background jobs with SIGINT ignored, and child processes
# inherit that. Then no test could end a server with Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The same for a hang-up under nohup. A test that needs a program to ignore SIGHUP says so itself.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """If PGBUS_TEST_INSTALLED is set, the tests are of the installed package, in this process and in those that they start."""
    if os.environ.get("PGBUS_TEST_INSTALLED"):
        code = "import pgbus_gevent; print(pgbus_gevent.__file__)"
        started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        files = {pgbus_gevent.__file__, started.stdout.strip()}
        site_packages = sysconfig.get_path("purelib")
        if not all(Path(file).is_relative_to(site_packages) for file in files):
            raise pytest.UsageError(
                f"the tests must import pgbus_gevent from {site_packages}, not from {sorted(files)}"
            )


@pytest.fixture(scope="session", autouse=True)
def runs_within_tests_have_a_folder_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the runs of pytest that tests start out of the folder of this one.

    Each run of pytest takes the rights of others from that folder. A server that runs as another user could then not enter it.
    """
    tmp_path_factory.getbasetemp()  # it is made now, because pytest goes by the variable when it is first asked for
    with tempfile.TemporaryDirectory(prefix="pgbus-test-runs-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTEST_DEBUG_TEMPROOT", folder)
            yield


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its needs."""
    kinds.mark(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Neither a fast test nor its fixtures may start a process."""
    with _refusing_processes(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A fast test may not start a process."""
    with _refusing_processes(item):
        return (yield)


_refusing = False


@contextmanager
def _refusing_processes(item: pytest.Item) -> Iterator[None]:
    global _refusing
    _refusing = item.get_closest_marker("fast") is not None
    try:
        yield
    finally:
        _refusing = False


def _refuse_processes(event: str, _: object) -> None:
    if _refusing and event in {"os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"}:
        pytest.fail("this test starts a process, so it is not a fast one: mark it with @pytest.mark.program")


sys.addaudithook(_refuse_processes)


@pytest.fixture(scope="session", autouse=True)
def embedded_data_is_removed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the data of embedded servers. For root it is outside pytest's folders, which the server's user cannot enter."""
    yield
    for origin in Path("/var/lib/pgbus-gevent").glob("data-*/data-dir"):
        with suppress(FileNotFoundError):  # another process of this run removes its own at the same time
            if Path(origin.read_text().strip()).is_relative_to(tmp_path_factory.getbasetemp()):
                shutil.rmtree(origin.parent)
