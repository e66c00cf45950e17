"""The settings as keywords, with types, of whatever takes either them or whole :class:`Settings`.

A test compares the types with the table of settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

from ..errors import InvalidArgument
from .retention import Rule
from .table import Settings

# A setting may be given as text too, with units, as in its variable. None is as if it were not given.
Text = str | None
Texts = str | Sequence[str] | None
Number = float | str | None
Whole = int | str | None
Switch = bool | str | None
Folder = str | PathLike[str] | None
Rules = str | Sequence[Rule] | dict[str, object] | None


class _Options(TypedDict, total=False):
    """Whence settings are read, and the settings that have the same keyword everywhere: see :meth:`Settings.load`."""

    environ: Mapping[str, str] | None
    config: str | Path | None

    listen_url: Text
    replica_url: Text
    wake: Text
    upstream: Text
    migrate: Switch
    data_dir: Folder
    pool_size: Whole
    pool_timeout: Number
    connect_timeout: Number
    statement_timeout: Number
    away_after: Number

    host: Text
    port: Whole
    workers: Whole
    prefix: Text
    request_timeout: Number
    max_request_head: Whole
    max_body: Whole
    grace: Number

    secret: Texts
    public: Texts
    publish_token: Texts
    worker_token: Texts
    operator_token: Text
    authorize: Text
    recheck: Number
    cors_origins: Texts

    retention: Number
    retention_patterns: Rules
    prune_interval: Number
    forget_after: Number
    heartbeat: Number
    retry: Number
    max_age: Number
    write_deadline: Number
    catch_up_interval: Number
    page_size: Whole
    readers: Whole

    presence: Texts
    presence_ttl: Number
    presence_grace: Number

    max_connections: Whole
    max_per_owner: Whole
    max_per_address: Whole
    ring_messages: Whole
    ring_bytes: Whole
    ring_budget: Whole
    send_buffer: Whole

    log_level: Text
    log_format: Text
    log_connections: Text
    tracing: Switch
    demo_speed: Number


class Options(_Options, total=False):
    """The keywords of ``Bus``, which takes ``database_url`` without a keyword too."""

    filters: Text


class InstanceSettings(_Options, total=False):
    """The keywords of an Instance, whose ``filters`` are the filters themselves."""

    database_url: Text


def chosen(whose: str, settings: Settings | None, options: Mapping[str, Any]) -> Settings:
    """Return ``settings``, or those of the options and of the environment.

    Raises :class:`InvalidSetting`, and :class:`InvalidArgument`, with the name ``whose``, for both at once.
    """
    if settings is None:
        return Settings.load(**options)
    if any(value is not None for value in options.values()):
        raise InvalidArgument(f"{whose} takes either settings= or single settings by keyword, but was given both")
    return settings
