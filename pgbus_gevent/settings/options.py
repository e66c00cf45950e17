"""The settings as keywords, for type checkers. A test compares them with the table of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TypedDict

from .retention import Rule

# A setting may be given as text too, with units, as in its variable. None is as if it were not given.
Text = str | None
Texts = str | Sequence[str] | None
Number = float | str | None
Whole = int | str | None
Switch = bool | str | None
Folder = str | PathLike[str] | None
Rules = str | Sequence[Rule] | dict[str, object] | None


class Options(TypedDict, total=False):
    """The settings except ``database_url``, and whence the others are read: see :meth:`Settings.load`."""

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
    publish_token: Text
    worker_token: Texts
    operator_token: Text
    authorize: Text
    filters: Text
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
