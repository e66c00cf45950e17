"""A small model of the database: the ordering rules of ``pgbus_gevent/database/sql`` without a database.

It is pure Python, does no input or output, reads no clock, and never waits: the same calls always have the same answers.
``tests/database/test_queries_model.py`` runs the same histories on a real PostgreSQL and compares every answer.

* :class:`Server` is the PostgreSQL. ``Server(clock)``: ``clock`` returns Unix seconds.
* :meth:`Server.session` opens a :class:`Session`: ``begin(isolation)``, ``commit()``, ``rollback()``, ``savepoint(name)``,
  ``rollback_to(name)``, ``release(name)``, ``broadcast(…)``, ``broadcast_many(…)``, ``broadcast_on_commit(…)``,
  ``broadcast_ephemeral(…)``, ``disconnect(owner)``, ``close()``. Without ``begin``, each statement is a transaction.
* What may have to wait returns a :class:`Statement`: ``done``, ``result()``, ``waits_for``, ``paused_at``, ``on_end``.
  :meth:`Server.blockers` says for whom it waits; :meth:`Server.fail` cancels it; :meth:`Server.expire` applies lock timeouts.
* :class:`Queries`, :class:`Stewardship` and :class:`Pruning` have the methods of the classes of the package, with the same
  results. They take the callbacks ``wait``, ``before`` and ``after``; the scheduler of a simulation waits there.
* :meth:`Server.listen` opens an :class:`Ear`: ``channels``, ``inbox``, ``take()``, ``on_arrival``. The names of the channels are
  ``server.control`` and ``pgbus_gevent.core.buckets.channel(server.doorbell, bucket)``.
* :class:`WakeSession` is such a session with the methods that the listener needs, if nothing is to go wrong with it.
* ``crash(server, position)``, ``promote(server, position)``, ``restart(server)``, ``restore(server, backup(server))`` and
  ``server.message_ids.set(id)`` interrupt the server or take it back; positions are those of ``server.wal.end``.
  ``server.end(session, error)`` ends one session. ``vacuum(server, position)`` bounds the memory.
* ``pause(statement, point)`` may hold a statement at the points DRAWN, TRIGGERED and LOGGED, until :meth:`Server.resume`.
"""

from __future__ import annotations

from .listening import Ear, WakeSession
from .queries import Pruning, Queries, Stewardship
from .recovery import backup, crash, promote, restart, restore, vacuum
from .server import Server
from .session import Session
from .statements import DRAWN, LOGGED, TRIGGERED, Blocked, Statement

__all__ = [
    "DRAWN",
    "LOGGED",
    "TRIGGERED",
    "Blocked",
    "Ear",
    "Pruning",
    "Queries",
    "Server",
    "Session",
    "Statement",
    "Stewardship",
    "WakeSession",
    "backup",
    "crash",
    "promote",
    "restart",
    "restore",
    "vacuum",
]
