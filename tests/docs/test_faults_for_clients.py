"""Each row of the table of docs/operations/faults-for-clients.md has a test that makes the fault happen."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/operations/faults-for-clients.md"

SHOWN_BY = {
    "the database is away for a moment": "test_a_client_that_comes_while_the_database_is_away_for_a_moment_waits_and_is_served",
    "it is away for longer": "test_a_client_that_waited_longer_than_the_setting_is_refused_and_served_after_the_return",
    "a backup is restored": "test_a_database_that_was_dumped_replaces_the_one_in_use",
    "a worker is killed": "test_clients_of_a_killed_worker_reconnect_to_others_with_their_cursors",
    "a deploy": "test_a_hangup_replaces_the_workers_and_clients_miss_nothing",
    "the proxy reloads": "test_nginx_serves_every_route_and_loses_nothing_in_a_reload_and_a_restart",
    "no server behind the proxy": "test_an_event_source_outlives_a_restart_of_the_server_behind_nginx",
    "the same, with another proxy": "test_an_element_comes_back_after_temporary_refusals",
    "the network is lost": "test_the_element_comes_back_at_once_with_the_network",
    "a proxy holds streams back": "test_after_two_streams_without_a_byte_it_polls_and_returns_when_streams_come_through",
    "the path is silent": "test_a_connection_that_has_gone_silent_is_dropped",
    "the computer sleeps": "test_the_connection_is_renewed_after_the_machine_slept",
    "the client was away": "test_a_client_with_a_cursor_below_the_horizon_is_told_and_gets_the_rest",
    "its signed name, or": "test_an_expired_signature_ends_the_stream",
    "its signed name does not": "test_a_page_survives_a_new_signing_secret",
    "its right is taken back": "test_disconnect_ends_the_connections_of_one_owner_on_every_worker",
    "the authorize hook": "test_a_client_that_the_hook_does_not_allow_gets_403",
    "another user logs in": "test_open_tabs_end_when_the_server_answers_for_another_login",
    "the client reads too slowly": "test_a_client_that_stops_reading_is_closed_by_the_deadline_and_gets_all_by_its_cursor",
    "the worker is full": "test_above_max_connections_a_browser_is_told_to_come_back_and_others_get_503",
    "its user or address": "test_a_client_that_is_no_event_source_gets_429_with_retry_after",
    "the connection is older": "test_a_connection_ends_at_its_greatest_age",
    "[Redis]": "test_nothing_is_lost_or_repeated_while_redis_is_flushed_filled_stopped_and_killed",
    "the origin of an [edge]": "test_the_ledger_is_exact_while_origins_are_killed_and_come_back",
    "the request is wrong": "test_a_malformed_cursor_or_count_is_400_and_the_body_says_why_without_repeating_it_raw",
    "`Last-Event-ID` was damaged": "test_a_malformed_last_event_id_gets_the_live_stream_and_a_gap_event",
}
"""The test for each row, which begins with these words, in the file that the row names."""


def rows() -> list[tuple[str, str]]:
    """Return the fault and the file of each row."""
    text = PAGE.read_text(encoding="utf-8").partition("## The table")[2]
    return re.findall(r"^\| (.+?) \|.* `(test_\w+)` \|$", text, re.MULTILINE)


def test_each_fault_has_a_test_in_the_file_that_it_names() -> None:
    unshown = [fault for fault, _ in rows() if not any(fault.startswith(words) for words in SHOWN_BY)]
    assert unshown == []
    files = [path for pattern in ("*.py", "*/*.py") for path in (ROOT / "tests").glob(pattern)]
    for words, name in SHOWN_BY.items():
        (file,) = [file for fault, file in rows() if fault.startswith(words)]
        trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files if path.stem == file]
        named = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in named, f"{file} has no {name}"


def test_the_reasons_are_those_that_the_server_gives() -> None:
    table = PAGE.read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pgbus_gevent").rglob("*.py"))
    for reason in ("unavailable", "restart", "expired", "revoked", "overloaded", "too-many-connections", "max-age"):
        assert f"`{reason}`" in table and f'"{reason}"' in source
    for reason in ("ahead", "expired", "invalid-cursor"):
        assert f"`pgbus:gap-detected`, reason `{reason}`" in table and f'"{reason}"' in source
