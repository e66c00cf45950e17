"""What all tests share."""

import shutil
import signal
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

# Where the package is installed, pytest has found its plugin already.
_installed = bool(entry_points(group="pytest11", name="pgbus_gevent"))
pytest_plugins = [*([] if _installed else ["pgbus_gevent.testing.plugin"]), "database_parts", "browser_fixtures"]

# A shell without job control starts what it puts into the background with SIGINT ignored, and a process hands that
# on to those it starts: then no test could end a server with Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The same of a hang-up, under nohup: the tests that need a program to ignore it say so themselves.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def embedded_data_is_removed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For root: what an embedded server of a test has put where its user gets to, as it does not get to pytest's folders."""
    yield
    for origin in Path("/var/lib/pgbus-gevent").glob("data-*/data-dir"):
        if Path(origin.read_text().strip()).is_relative_to(tmp_path_factory.getbasetemp()):
            shutil.rmtree(origin.parent)
