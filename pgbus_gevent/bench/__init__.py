"""The benchmark: ``python -m pgbus_gevent bench``.

Each part is a process of its own, and speaks JSON in lines with the command that started it: the server under test
(:mod:`.server`, or an adapter for a peer), the clients (:mod:`.load`) and the publishers (:mod:`.publisher`). The clients and
the publishers are plain Python, unpatched, and know nothing of the package.
"""
