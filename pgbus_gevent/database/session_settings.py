"""What is set for every session of ours: in the start-up packet, or, behind a pooler that takes none there, with each statement.

A pooler in transaction mode gives each statement to any of its sessions, which others have next. What is set with ``SET`` would be
theirs, and not ours for long. ``SET LOCAL`` in front of a statement, sent along with it, is for that transaction alone.
"""

from __future__ import annotations

from collections.abc import Mapping

_ALWAYS = {
    "client_connection_check_interval": "2s",
    "idle_session_timeout": "0",
    # Our statements wait for a lock and then look again, whatever the database's default is.
    "default_transaction_isolation": "read committed",
    # What a name in a statement means is not for others to say, who may create things in the schema `public`.
    "search_path": "pg_catalog,pg_temp",
    # All of them go by an index and bring a few rows. The planner, whose statistics may be of a table that was empty a
    # minute ago, would now and then read it whole instead, or spend more on compiling a statement than it takes.
    "enable_seqscan": "off",
    "jit": "off",
    # psycopg2 writes a list of nothing but NULL as a text.
    "array_nulls": "on",
}
_OF_A_SESSION = {"client_connection_check_interval", "idle_session_timeout"}
_OF_TRANSACTIONS = {
    "default_transaction_isolation": "transaction isolation level {}",
    "default_transaction_read_only": "transaction read only",
}

MARK = "select pg_catalog.current_setting('enable_seqscan')", "off"
"""A question, and its answer in a session that has our settings."""


class SessionSettings:
    """Those of one session: ours, and ``more``."""

    def __init__(self, statement_timeout: float, more: Mapping[str, str]) -> None:
        self._values = {"statement_timeout": str(round(statement_timeout * 1000)), **_ALWAYS, **more}

    def options(self, others: str) -> str:
        """As the ``options`` of libpq, after those of the URL."""
        ours = (f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in self._values.items())
        return " ".join([others, *ours]).strip()

    def prefix(self, in_transaction: bool) -> str:
        """Statements to send in front of one; ``in_transaction`` where a transaction has begun, which then is for its own ones."""
        parts = []
        for name, value in self._values.items():
            if name in _OF_TRANSACTIONS:
                if not in_transaction:
                    parts.append(f"set {_OF_TRANSACTIONS[name].format(value)}")
            elif name not in _OF_A_SESSION:
                quoted = value if name == "search_path" else f"'{value}'"
                parts.append(f"set local {name} = {quoted}")
        return "".join(f"{part}; " for part in parts)
