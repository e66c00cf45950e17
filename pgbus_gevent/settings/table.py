"""The table of settings. Each field of `Settings` is a keyword, an environment variable, a TOML key, and perhaps a flag.

`Settings.load` reads the values from all of these places. A program or a `Bus` calls it once, and passes the `Settings` on.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import pgbus_gevent.settings.casting as kinds
import pgbus_gevent.settings.origins as origins
from pgbus_gevent.errors import InvalidSetting
from pgbus_gevent.settings.casting import HIDDEN, Kind
from pgbus_gevent.settings.casting import about as _about
from pgbus_gevent.settings.casting import setting as _setting
from pgbus_gevent.settings.contradictions import refuse_contradictions
from pgbus_gevent.settings.retention import Rule, rules
from pgbus_gevent.settings.wake import wake as wake_kind

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

logger = logging.getLogger("pgbus_gevent.settings")

_PREFIX = "PGBUS_"
_KIB, _MIB = 1024, 1024 * 1024
_HOUR, _YEARS = 3600, 3650 * 86400
# Variables with the prefix that are not settings: those of test suites, and the deadline of the pytest plugin.
_NOT_SETTINGS = re.compile(r"PGBUS_(?:TEST_.*|TIMEOUT)")


def default_data_dir(environ: Mapping[str, str] | None = None) -> str:
    """Return the user's data directory for pgbus-gevent on this platform (XDG Base Directory Specification)."""
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Application Support/pgbus-gevent")
    base = (os.environ if environ is None else environ).get("XDG_DATA_HOME", "")
    # By the specification, relative paths are ignored.
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.local/share"), "pgbus-gevent")


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Settings:
    """All settings of the package, checked and immutable. Durations are seconds (float), and sizes are bytes (int).

    ``Settings()`` has the defaults and reads no variables; programs call `load`. Both cast the values, and raise `InvalidSetting`
    for a value that is not allowed and for settings that contradict one another. ``dataclasses.replace`` makes a changed copy. The
    metadata of each field has its ``kind`` (`casting.Kind`), ``group``, ``flag`` and ``help``, and the default in ``words``.
    """

    # A table: each paragraph is one setting, with its facts in the same order.
    # fmt: off
    database_url: str | None = _setting(
        None, kinds.database_url(), "Database", "--database-url",
        "the address of PostgreSQL, as a postgresql:// URL or a key=value DSN",
        words="embedded, kept in the data directory")
    listen_url: str | None = _setting(
        None, kinds.database_url(), "Database", "--listen-url",
        "a direct URL for LISTEN, if the database URL leads to a pooler in transaction mode",
        words="the database URL")
    replica_url: str | None = _setting(
        None, kinds.database_url(), "Database", "--replica-url",
        "a streaming standby of the database; replay, and the checks for missed messages, are read from it",
        words="none (the primary is read)")
    wake: str = _setting(
        "postgres", wake_kind(), "Database", "--wake",
        "what tells workers of new messages: postgres (LISTEN); poll (nothing: they ask the database ten times per"
        " catch_up_interval, and get no ephemeral messages); or the URL of a Redis or Valkey")
    upstream: str | None = _setting(
        None, origins.upstream(), "Database", "--upstream",
        "the address of the origin, with its prefix. It makes this server an edge, which has no database",
        words="none")
    migrate: bool = _setting(
        True, kinds.switch(), "Database", "--no-migrate",
        "create or upgrade the schema at start; if off, the schema must be up to date")
    data_dir: str = field(default_factory=default_data_dir, metadata=_about(
        kinds.directory(), "Database", "--data-dir",
        "the directory of the embedded PostgreSQL and its secret", words="the user's data directory for pgbus-gevent"))
    pool_size: int = _setting(
        5, kinds.integer(1), "Database", None, "pooled connections per worker, in addition to the listener's connection")
    pool_timeout: float = _setting(
        10.0, kinds.duration(0.01, _HOUR), "Database", None, "how long to wait for a pooled connection")
    connect_timeout: float = _setting(
        5.0, kinds.duration(0.01, _HOUR), "Database", None, "how long one attempt to reach PostgreSQL may take")
    statement_timeout: float = _setting(
        30.0, kinds.duration(0.01, _HOUR), "Database", None, "how long one statement may take")
    away_after: float = _setting(
        10.0, kinds.duration(0.1, _HOUR), "Database", None,
        "how long the database may be away before new clients are refused; until then they wait for it")

    host: str = _setting(
        "127.0.0.1", kinds.host(), "Server", "--host", "the host name or address to listen on")
    port: int = _setting(
        8080, kinds.integer(0, 65535), "Server", "--port", "the port to listen on; 0 takes any free port")
    workers: int = _setting(
        1, kinds.integer(1), "Server", "--workers", "processes that share the port")
    prefix: str = _setting(
        "/pgbus", kinds.mount_path(), "Server", "--prefix", "the path under which the streams are mounted")
    request_timeout: float = _setting(
        10.0, kinds.duration(0.01, _HOUR), "Server", None,
        "the limit for the head of a request, for an idle connection, for the authorize hook, and for a client that sends a body,"
        " or reads an answer other than a stream, at less than 4 kB a second")
    max_request_head: int = _setting(
        32 * _KIB, kinds.size(_KIB, _MIB), "Server", None, "the largest head of a request")
    max_body: int = _setting(
        _MIB, kinds.size(1, 256 * _MIB), "Server", None, "the largest message that can be broadcast over HTTP")
    grace: float = _setting(
        10.0, kinds.duration(0, _HOUR), "Server", "--grace", "how long a shutdown may take")

    secret: tuple[str, ...] = _setting(
        (), kinds.secrets(16), "Access", "--secret",
        "the secret that signs stream names, of at least 16 characters. If there are several, oldest first, the last one signs and"
        " all of them verify. Prefer the variable, because flags are visible in the process list",
        words="made once for the embedded PostgreSQL, otherwise required")
    public: tuple[str, ...] = _setting(
        (), kinds.globs(), "Access", "--public",
        "patterns of streams that anybody may read by their bare names, such as `demo:*`",
        words="none (`demo:*` with the demo)", repeatable=True)
    publish_token: tuple[str, ...] = _setting(
        (), origins.tokens(16), "Access", "--publish-token",
        "the tokens that may broadcast over HTTP, of at least 16 characters each", words="none (no broadcasting over HTTP)")
    worker_token: tuple[str, ...] = _setting(
        (), origins.tokens(16), "Access", "--worker-token",
        "the token that an edge presents to its origin, of at least 16 characters. If there are several, oldest first, the last"
        " one is presented and all of them are accepted", words="none (no edges)")
    operator_token: str | None = _setting(
        None, kinds.token(16), "Access", "--operator-token",
        "the token for the console, and then also for the metrics, of at least 16 characters",
        words="none (`serve` makes one at start and logs the console's URL with it; the metrics are open)")
    authorize: str | None = _setting(
        None, kinds.reference(), "Access", "--authorize",
        "a function that decides, given environ and stream, whether a client may watch a stream",
        words="none (every verified name)")
    filters: str | None = _setting(
        None, kinds.reference(), "Access", "--filters",
        "the Bus, or Filters, with the predicates that `visible_to` names", words="none")
    recheck: float = _setting(
        0.0, kinds.duration(0, _YEARS), "Access", None,
        "how often the authorize hook is asked again about each open connection; 0 is never")
    cors_origins: tuple[str, ...] = _setting(
        (), kinds.origins(), "Access", "--cors-origin",
        "other origins whose pages may read streams of this server, as `scheme://host[:port]`",
        words="none", repeatable=True)

    retention: float = _setting(
        3600.0, kinds.duration(1, _YEARS), "Delivery", "--retention", "how long messages are kept for replay")
    retention_patterns: tuple[Rule, ...] = _setting(
        (), rules(1, _YEARS), "Delivery", None,
        "how long, and how many, messages are kept of streams whose names match a pattern; the first match counts",
        words="none")
    prune_interval: float = _setting(
        10.0, kinds.duration(0, _HOUR), "Delivery", None, "how often messages past the retention are removed; 0 is never")
    forget_after: float = _setting(
        30 * 86400.0, kinds.duration(_HOUR, _YEARS), "Delivery", None, "how long an empty stream is remembered")
    heartbeat: float = _setting(
        15.0, kinds.duration(0.1, 300), "Delivery", "--heartbeat",
        "how long a connection may be quiet before it gets a heartbeat, a comment frame")
    retry: float = _setting(
        2.0, kinds.duration(0.1, 300), "Delivery", None, "how long clients wait before they reconnect")
    max_age: float = _setting(
        0.0, kinds.duration(0, _YEARS), "Delivery", "--max-age",
        "how long a stream connection may last, ±20 % at random; 0 is no limit")
    write_deadline: float = _setting(
        20.0, kinds.duration(0.1, _HOUR), "Delivery", None, "how long a client may take no byte before it is closed")
    catch_up_interval: float = _setting(
        5.0, kinds.duration(0.05, 60), "Delivery", None,
        "how often all streams in use are compared with the database, with or without notifications")
    page_size: int = _setting(
        500, kinds.integer(1, 10_000), "Delivery", None, "the most messages in one read for replay")
    readers: int = _setting(
        3, kinds.integer(1, 32), "Delivery", None, "concurrent reads for replay, per worker")

    presence: tuple[str, ...] = _setting(
        (), kinds.globs(), "Presence", "--presence",
        "patterns of streams whose connected members are tracked, such as `room:*`",
        words="none", repeatable=True)
    presence_ttl: float = _setting(
        45.0, kinds.duration(1, _HOUR), "Presence", None,
        "how long a member still counts after its last sign of life, for example if its worker was killed")
    presence_grace: float = _setting(
        4.0, kinds.duration(0, 300), "Presence", None,
        "how long a member may be disconnected, as in a reload, before it counts as gone; set it longer than `retry`")

    max_connections: int = _setting(
        10_000, kinds.integer(1), "Limits", "--max-connections", "the most stream connections of one worker")
    max_per_owner: int = _setting(
        0, kinds.integer(0), "Limits", "--max-per-owner",
        "the most stream connections of one owner, as named by the authorize hook, on all workers together; 0 is no limit")
    max_per_address: int = _setting(
        0, kinds.integer(0), "Limits", "--max-per-address",
        "the most stream connections of one client address, on all workers together; 0 is no limit. All clients of a proxy have"
        " its address")
    ring_messages: int = _setting(
        1000, kinds.integer(1), "Limits", None, "the most messages of one stream that a worker keeps in memory")
    ring_bytes: int = _setting(
        _MIB, kinds.size(1), "Limits", None, "memory for the messages of one stream, per worker")
    ring_budget: int = _setting(
        64 * _MIB, kinds.size(1), "Limits", None, "memory for the messages of all streams, per worker")
    send_buffer: int = _setting(
        64 * _KIB, kinds.size(4 * _KIB, 16 * _MIB), "Limits", None,
        "how much the kernel buffers for one client that reads slowly (SO_SNDBUF)")

    log_level: str = _setting(
        "info", kinds.choice("debug", "info", "warning", "error"), "Programs", "--log-level",
        "the least severe records that are logged")
    log_format: str = _setting(
        "text", kinds.choice("text", "json"), "Programs", "--log-format", "the format of the log, on stderr")
    log_connections: str = _setting(
        "off", kinds.choice("off", "on", "owners"), "Programs", "--log-connections",
        "a line in the log when a connection opens and when it closes; owners adds the name of its owner")
    tracing: bool = _setting(
        False, kinds.switch(), "Programs", "--tracing", "make spans of broadcasts and deliveries, with OpenTelemetry")
    demo_speed: float = _setting(
        60.0, kinds.number(0.1, 100_000), "Programs", "--demo-speed", "simulated seconds per second in the demo")
    # fmt: on

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = _cast(entry, getattr(self, entry.name))
            object.__setattr__(self, entry.name, value)
        refuse_contradictions(self)

    @classmethod
    def load(
        cls, *, environ: Mapping[str, str] | None = None, config: str | Path | None = None, **keywords: object
    ) -> Settings:
        """Load the settings. A keyword wins over an environment variable, that over the TOML file, and that over the default.

        A keyword that is None and a variable that is empty count as not given. ``environ`` replaces ``os.environ``. ``config`` is
        the path of a TOML file whose top-level keys are settings; its variable is ``PGBUS_CONFIG``.

        Raises `InvalidSetting` for a value that is not allowed, for a name that no setting has, and for a file that cannot be read.
        An unknown variable that starts with ``PGBUS_`` only causes a warning, because it may belong to another program.
        """
        environ = os.environ if environ is None else environ
        given = {"data_dir": _Given(default_data_dir(environ), "")} | _gather(environ, config, keywords)
        known = entries()
        return cls(**{name: _cast(known[name], each.value, each.source) for name, each in given.items()})

    def __repr__(self) -> str:
        shown = ", ".join(f"{entry.name}={_shown(entry, getattr(self, entry.name))!r}" for entry in fields(self))
        return f"{type(self).__name__}({shown})"


def entries() -> dict[str, Field[Any]]:
    """The fields of `Settings` by name, in their order."""
    return {entry.name: entry for entry in fields(Settings)}


def places(*, config: str | Path | None = None, **keywords: object) -> dict[str, str]:
    """Return the settings that were given to this process, each with its place: its flag for a keyword, a variable, or a file.

    ``DATABASE_URL`` does not count, because other programs use it too. Raises the errors of `Settings.load`.
    """
    given = _gather({name: value for name, value in os.environ.items() if name != "DATABASE_URL"}, config, keywords)
    return {name: each.place or entries()[name].metadata["flag"] or name for name, each in given.items()}


def shown(name: str, value: object) -> str:
    """Return a setting's value as errors show it, without secrets and passwords."""
    return repr(_shown(entries()[name], value))


def _gather(environ: Mapping[str, str], config: str | Path | None, keywords: Mapping[str, object]) -> dict[str, _Given]:
    given = _from_toml(config or environ.get(f"{_PREFIX}CONFIG"))
    return given | _from_environ(environ) | _from_keywords(keywords)


class _Given(NamedTuple):
    """A value before it is cast, its source in the words of an error, and the variable or file that it is from."""

    value: object
    source: str
    place: str = ""


def _cast(entry: Field[Any], value: object, source: str = "") -> Any:
    if value is None and entry.default is None:
        return None
    kind: Kind[Any] = entry.metadata["kind"]
    try:
        return kind.cast(value)
    except (ValueError, OverflowError):
        # Without "from None" a traceback would show the cause's text, which can repeat a secret.
        raise InvalidSetting(entry.name, _shown(entry, value), f"expected {kind.allowed}{source}") from None


def _shown(entry: Field[Any], value: object) -> object:
    # An empty value is not hidden, so that "set" and "not set" can be told apart.
    return entry.metadata["kind"].hide(value) if value else value


def _from_keywords(keywords: Mapping[str, object]) -> dict[str, _Given]:
    return {name: _Given(value, "") for name, value in _known(keywords, "") if value is not None}


def _from_toml(path: str | Path | None) -> dict[str, _Given]:
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:  # the last one for arrays in arrays in arrays
        reason = getattr(error, "strerror", None) or error
        raise InvalidSetting("config", str(path), f"expected a readable TOML file: {reason}") from None
    source = f"; given in {path}"
    return {name: _Given(value, source, f"{name} in {path}") for name, value in _known(table, source)}


def _from_environ(environ: Mapping[str, str]) -> dict[str, _Given]:
    settings = {variable(name): name for name in entries()}
    _warn_of_strangers(environ, [*settings, f"{_PREFIX}CONFIG"])
    # The last one wins. PGBUS_DATABASE_URL is meant for pgbus, while DATABASE_URL is for all programs.
    order = {"DATABASE_URL": "database_url", **settings}
    set_here = {name: variable for variable, name in order.items() if environ.get(variable, "").strip()}
    return {name: _Given(environ[variable], f"; given by {variable}", variable) for name, variable in set_here.items()}


def _warn_of_strangers(environ: Iterable[str], known: list[str]) -> None:
    for variable in environ:
        if variable.startswith(_PREFIX) and variable not in known and not _NOT_SETTINGS.fullmatch(variable):
            logger.warning("%s is set, but there is no such setting%s", variable, _suggestion(variable, known))


def _known(values: Mapping[str, object], source: str) -> Iterable[tuple[str, object]]:
    names = list(entries())
    for name in values:
        if name not in names:
            # The value stays hidden, because it may be a secret under a misspelt name.
            raise InvalidSetting(name, HIDDEN, f"no setting has this name{source}{_suggestion(name, names)}")
    return values.items()


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{_PREFIX}{name.upper()}"
