"""The settings of all our sessions: sent in the startup packet, or with each statement behind a pooler that refuses them there.

A pooler in transaction mode runs each transaction in any of its sessions, and lends that session to other clients next. A
``SET`` would reach those clients, and not our next statement. ``SET LOCAL``, sent in front of a statement, lasts only for its
transaction.
"""

from __future__ import annotations

from collections.abc import Mapping

_ALWAYS = {
    "client_connection_check_interval": "2s",
    "idle_session_timeout": "0",
    # Our statements wait for a lock and then read again, which needs a new snapshot. The database may have another default.
    "default_transaction_isolation": "read committed",
    # Other roles may create objects in the schema `public`; those must not capture names in our statements.
    "search_path": "pg_catalog,pg_temp",
    # All our statements use an index and return few rows. The planner's statistics may date from when the table was empty, so it
    # would sometimes read the whole table, or spend more time on compiling a statement than on running it.
    "enable_seqscan": "off",
    "jit": "off",
    # psycopg2 writes a list with only None as the text '{NULL}', which needs this setting.
    "array_nulls": "on",
}
_OF_A_SESSION = {"client_connection_check_interval", "idle_session_timeout"}
_OF_TRANSACTIONS = {
    "default_transaction_isolation": "transaction isolation level {}",
    "default_transaction_read_only": "transaction read only",
}

NETWORK = {
    "gssencmode": "disable",  # libpq would look for a Kerberos ticket with blocking calls
    # Together these end a session within ten seconds after its network path died.
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 9000,
}
"""Parameters of libpq for all our connections, which the URL may override."""

MARK = "select pg_catalog.current_setting('enable_seqscan')", "off"
"""A statement, and its answer in a session that has our settings."""

# Our sessions set search_path for our own statements. An application's statements get the search_path of the URL, else that of
# the role or the database (the more specific first), else PostgreSQL's default.
OWN_SEARCH_PATH = """
select pg_catalog.set_config('search_path', coalesce(%s, (
  select split_part(c.item, '=', 2)
  from pg_catalog.pg_db_role_setting s cross join unnest(s.setconfig) as c(item)
  where c.item like 'search_path=%%'
        and s.setrole in (0, (select r.oid from pg_catalog.pg_roles r where r.rolname = session_user))
        and s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))
  order by s.setrole = 0, s.setdatabase = 0 limit 1), '"$user", public'), true)
"""


class SessionSettings:
    """The settings of one session: ours, and ``more``. ``statement_timeout`` is in seconds."""

    def __init__(self, statement_timeout: float, more: Mapping[str, str]) -> None:
        self._values = {"statement_timeout": str(round(statement_timeout * 1000)), **_ALWAYS, **more}

    def options(self, others: str) -> str:
        """Return them as libpq's ``options``, after the URL's own (``others``)."""
        ours = (f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in self._values.items())
        return " ".join([others, *ours]).strip()

    def prefix(self, in_transaction: bool) -> str:
        """Return the statements to send in front of a statement. ``in_transaction`` says that it begins a longer transaction."""
        parts = []
        for name, value in self._values.items():
            if name in _OF_TRANSACTIONS:
                if not in_transaction:
                    parts.append(f"set {_OF_TRANSACTIONS[name].format(value)}")
            elif name not in _OF_A_SESSION:
                quoted = value if name == "search_path" else f"'{value}'"
                parts.append(f"set local {name} = {quoted}")
        return "".join(f"{part}; " for part in parts)
