"""The fixtures, the deadline and the leak check, as a pytest plugin; the entry point by which pytest finds it.

Every test process of whoever has the package installed imports this module: it imports nothing but pytest, and its hooks leave
alone what does not ask for them. The rest is imported by the fixtures.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

from . import options
from .deadline import Deadline

if TYPE_CHECKING:
    from ..bus import Bus
    from ..messages import Message
    from ..settings.table import Settings
    from ..streamer.instance import Instance
    from .client import StreamClient
    from .databases import TestDatabases
    from .leaks import Before
    from .servers import RunningServer

_DEADLINE = pytest.StashKey[Deadline]()
_BEFORE: pytest.StashKey[Before] = pytest.StashKey()
_FAILED = pytest.StashKey[bool]()
_SHARED = pytest.StashKey[str]()

_UNPATCHED = (
    "this fixture needs a test process that is patched for gevent, before all else is imported: put"
    ' addopts = "-p pgbus_gevent.testing.patch" into the settings of pytest, or run `python -m gevent.monkey --module pytest`'
)


def __getattr__(name: str) -> Any:
    """Names that live elsewhere."""
    if name in ("SECRET", "RunningServer"):
        from . import servers

        return getattr(servers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# options and life


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--pgbus-timeout``, ``--pgbus-leaks`` and the ini settings of the same names."""
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options, once and for all tests."""
    options.check(config)
    config.stash[_DEADLINE] = Deadline()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give back what was taken."""
    if _DEADLINE in config.stash:
        config.stash[_DEADLINE].close()
    if _SHARED in config.stash:
        shutil.rmtree(config.stash[_SHARED], ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Before each worker of pytest-xdist: all of them share the embedded server of one directory."""
    stash = node.config.stash
    if _SHARED not in stash:
        stash[_SHARED] = tempfile.mkdtemp(prefix="pgbus-test-")
    node.workerinput["pgbus_directory"] = stash[_SHARED]


# the deadline


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """With the deadline, or half a minute where that is less: a first fixture starts servers."""
    return (yield from _limited(item, "setup"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """With the deadline."""
    return (yield from _limited(item, "call"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """As for the setup."""
    return (yield from _limited(item, "teardown"))


def _limited(item: pytest.Item, phase: str) -> Generator[None, object, object]:
    seconds = options.timeout_of(item)
    if not seconds:
        return (yield)
    deadline = item.config.stash[_DEADLINE]
    deadline.arm(item, phase, seconds if phase == "call" else max(seconds, options.DEFAULT_TIMEOUT))
    try:
        return (yield)
    finally:
        deadline.disarm()


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Whoever looks at a test may take their time."""
    config.stash[_DEADLINE].disarm()


# leaks


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note which tests fail."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def _pgbus_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something of its own behind. Of a test's own fixtures this one comes first and goes last."""
    if not options.checks_leaks(request.node):
        yield
        return
    from .leaks import Before

    before = Before()
    request.config.stash[_BEFORE] = before
    yield
    del request.config.stash[_BEFORE]
    _fail_for(request, before.left())


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """A fixture that outlives the test, and is set up in the middle of it, leaves behind what it wants."""
    before = request.config.stash.get(_BEFORE, None)
    if before is None or fixturedef.scope == "function":
        return (yield)
    with before.allowing():
        return (yield)


def _fail_for(request: pytest.FixtureRequest, left: list[str]) -> None:
    # The exception of a test that failed holds on to all that it used.
    if left and _FAILED not in request.node.stash:
        lines = "\n  ".join(left)
        pytest.fail(f"the test left behind:\n  {lines}\n(pgbus_leaks says what is looked at)", pytrace=False)


# fixtures


def _patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


@pytest.fixture(scope="session")
def pgbus_databases(request: pytest.FixtureRequest) -> Iterator[TestDatabases]:
    """The server that test databases are made on: ``PGBUS_TEST_DATABASE_URL``, else an embedded one."""
    from ..database import green
    from .databases import TestDatabases

    if _patched():
        green.install()
    workerinput = getattr(request.config, "workerinput", {})
    databases = TestDatabases(os.environ.get("PGBUS_TEST_DATABASE_URL"), directory=workerinput.get("pgbus_directory"))
    yield databases
    databases.close()


@pytest.fixture
def pgbus_database(request: pytest.FixtureRequest, pgbus_databases: TestDatabases) -> Iterator[str]:
    """The URL of a fresh database with the schema in it."""
    url = pgbus_databases.make()
    yield url
    left = pgbus_databases.left(url) if options.checks_leaks(request.node) else []
    pgbus_databases.drop(url)
    _fail_for(request, left)


@pytest.fixture
def pgbus_settings(pgbus_database: str) -> Settings:
    """The settings of the fixtures; override it to change them."""
    from ..settings.table import Settings
    from .servers import SECRET

    return Settings(database_url=pgbus_database, secret=(SECRET,), public=("*",), grace=3.0, host="127.0.0.1")


@pytest.fixture
def pgbus_bus(pgbus_settings: Settings) -> Iterator[Bus]:
    """A Bus on the fresh database."""
    from ..bus import Bus

    with Bus(settings=pgbus_settings) as bus:
        yield bus


@pytest.fixture
def pgbus_instance(pgbus_settings: Settings) -> Iterator[Instance]:
    """A started Instance on the fresh database, stopped after the test."""
    from ..streamer.instance import Instance

    if not _patched():
        pytest.fail(_UNPATCHED, pytrace=False)
    instance = Instance(pgbus_settings)
    try:
        yield instance.start()
    finally:
        instance.shutdown()


@pytest.fixture
def pgbus_server(pgbus_instance: Instance) -> Iterator[RunningServer]:
    """A real server of the Instance: ``.url``, ``.app`` to replace."""
    from ..web.stream_app import StreamApp
    from .servers import RunningServer

    server = RunningServer(StreamApp(pgbus_instance), pgbus_instance.settings.prefix)
    yield server
    server.stop()


@pytest.fixture
def pgbus_client(pgbus_server: RunningServer) -> Iterator[Callable[..., StreamClient]]:
    """Connects clients to the server: ``pgbus_client("orders", since=None, headers=None)``."""
    from .client import StreamClient, stream_path

    clients: list[StreamClient] = []

    def connect(
        stream: str | Sequence[str],
        since: int | str | None = None,
        headers: Mapping[str, str] | None = None,
        query: str = "",
    ) -> StreamClient:
        path = stream_path(pgbus_server.prefix, stream)
        if query:
            path += ("&" if "?" in path else "?") + query
        client = StreamClient(pgbus_server.url, path, since=since, headers=headers)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def assert_broadcasts(pgbus_bus: Bus) -> Callable[[str, int], AbstractContextManager[list[Message]]]:
    """``with assert_broadcasts("orders", 2) as messages:`` fails unless exactly so many were broadcast inside."""
    from .broadcasts import assert_broadcasts

    return lambda stream, n: assert_broadcasts(pgbus_bus, stream, n)
