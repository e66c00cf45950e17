"""The benchmark: ``python -m pgbus_gevent bench``.

The server under test (:mod:`.server`, or the adapter of a peer), the clients (:mod:`.load`) and the publishers
(:mod:`.publisher`) are separate processes. Each exchanges lines of JSON with the command that started it. Clients and
publishers are plain, unpatched Python and use no other part of the package.
"""
