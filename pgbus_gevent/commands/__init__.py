"""The commands of ``python -m pgbus_gevent``, also installed as ``pgbus-gevent``."""
