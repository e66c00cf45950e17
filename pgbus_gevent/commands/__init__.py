"""The commands of ``python -m pgbus_gevent``."""
