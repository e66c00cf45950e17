"""The pytest plugin, found by its entry point: the fixtures, the deadline and the leak check.

If the package is installed, every pytest process imports this module. So it imports only pytest, and its hooks do nothing for
tests that do not use the kit. The fixtures import the rest.
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
    "this fixture needs a test process that was patched for gevent before other imports: put"
    ' addopts = "-p pgbus_gevent.testing.patch" into the settings of pytest, or run `python -m gevent.monkey --module pytest`'
)


def __getattr__(name: str) -> Any:
    """Import names that other modules define, when they are first used."""
    if name in ("SECRET", "RunningServer"):
        from . import servers

        return getattr(servers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# options and life


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--pgbus-timeout``, ``--pgbus-leaks`` and the ini settings of the same names."""
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options, once for all tests."""
    options.check(config)
    config.stash[_DEADLINE] = Deadline()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Release the timers and the shared directory."""
    if _DEADLINE in config.stash:
        config.stash[_DEADLINE].close()
    if _SHARED in config.stash:
        shutil.rmtree(config.stash[_SHARED], ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give all workers of pytest-xdist one directory, so that they share one embedded server."""
    stash = node.config.stash
    if _SHARED not in stash:
        stash[_SHARED] = tempfile.mkdtemp(prefix="pgbus-test-")
    node.workerinput["pgbus_directory"] = stash[_SHARED]


# the deadline


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Apply the deadline, but at least 30 s, because the first fixture starts servers."""
    return (yield from _limited(item, "setup"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Apply the deadline."""
    return (yield from _limited(item, "call"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Apply the deadline as for the setup."""
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
    """Stop the timers while a debugger is open."""
    config.stash[_DEADLINE].disarm()


# leaks


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Record the tests that fail."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def _pgbus_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves something behind. This is the first fixture of a test to be set up, and the last to be torn down."""
    if not options.checks_leaks(request.node):
        yield
        return
    from .leaks import Before

    before = Before()
    request.config.stash[_BEFORE] = before
    yield
    del request.config.stash[_BEFORE]
    _fail_for(request, before.left)
    before.close()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Ignore what a fixture with a wider scope adds if it is set up in the middle of a test."""
    before = request.config.stash.get(_BEFORE, None)
    if before is None or fixturedef.scope == "function":
        return (yield)
    with before.allowing():
        return (yield)


def _fail_for(request: pytest.FixtureRequest, look: Callable[[], list[str]]) -> None:
    # Skips a failed test: its exception keeps everything alive that the test used.
    if _FAILED not in request.node.stash and (left := look()):
        lines = "\n  ".join(left)
        pytest.fail(
            f"the test left behind:\n  {lines}\n(the option pgbus_leaks sets which tests are checked)", pytrace=False
        )


# fixtures


def _patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


@pytest.fixture(scope="session")
def pgbus_databases(request: pytest.FixtureRequest) -> Iterator[TestDatabases]:
    """The server for test databases, a ``TestDatabases``: the one at ``PGBUS_TEST_DATABASE_URL``, or an embedded one.

    Raises :class:`~pgbus_gevent.errors.EmbeddedError` if the embedded server does not start.
    """
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
    """The URL, a ``str``, of a fresh database with the schema. It is dropped after the test, which fails if sessions are left."""
    url = pgbus_databases.make()
    yield url
    try:
        if options.checks_leaks(request.node):
            _fail_for(request, lambda: pgbus_databases.left(url))
    finally:
        pgbus_databases.drop(url)


@pytest.fixture
def pgbus_settings(pgbus_database: str) -> Settings:
    """The ``Settings`` of the other fixtures. Override this fixture to change them."""
    from ..settings.table import Settings
    from .servers import SECRET

    return Settings(database_url=pgbus_database, secret=(SECRET,), public=("*",), grace=3.0, host="127.0.0.1")


@pytest.fixture
def pgbus_bus(pgbus_settings: Settings) -> Iterator[Bus]:
    """A ``Bus`` on the fresh database, closed after the test."""
    from ..bus import Bus

    with Bus(settings=pgbus_settings) as bus:
        yield bus


@pytest.fixture
def pgbus_instance(pgbus_settings: Settings) -> Iterator[Instance]:
    """A started ``Instance`` on the fresh database, stopped after the test. Fails if the process is not patched for gevent."""
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
    """A real HTTP server for the Instance, a ``RunningServer``: its ``url``, and its WSGI ``app``, which can be replaced."""
    from ..web.stream_app import StreamApp
    from .servers import RunningServer

    server = RunningServer(StreamApp(pgbus_instance), pgbus_instance.settings.prefix)
    yield server
    server.stop()


@pytest.fixture
def pgbus_client(pgbus_server: RunningServer) -> Iterator[Callable[..., StreamClient]]:
    """A function that connects a ``StreamClient`` to the server: ``pgbus_client("orders", since=None, headers=None, query="")``.

    It takes one stream name or several, signed or public. It returns when the stream starts or is refused, or after 5 seconds.
    Clients are closed after the test. Raises OSError.
    """
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
        # Otherwise, a message that the test publishes next may come before the client, which then starts after it.
        client.wait_started()
        return client

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def assert_broadcasts(pgbus_bus: Bus) -> Callable[[str, int], AbstractContextManager[list[Message]]]:
    """``with assert_broadcasts("orders", 2) as messages:`` fails unless exactly 2 messages are broadcast in the block.

    After the block, ``messages`` lists them as :class:`~pgbus_gevent.messages.Message`. Raises AssertionError.
    """
    from .broadcasts import assert_broadcasts

    return lambda stream, n: assert_broadcasts(pgbus_bus, stream, n)
