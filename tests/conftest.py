"""What all tests share."""

pytest_plugins = ["pgbus_gevent.testing.plugin", "database_parts"]
