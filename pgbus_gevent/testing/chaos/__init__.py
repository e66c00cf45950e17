"""Chaos on real parts: ``python -m pgbus_gevent.testing.chaos``.

A conductor starts PostgreSQL with a standby, PgBouncer, workers on two addresses, publishers and clients, breaks them one after the
other, and judges what each client was sent by what the database has. :mod:`.conductor` is the whole run.
"""
