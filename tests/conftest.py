"""What all tests share."""

from importlib.metadata import entry_points

# Where the package is installed, pytest has found its plugin already.
_installed = bool(entry_points(group="pytest11", name="pgbus_gevent"))
pytest_plugins = [*([] if _installed else ["pgbus_gevent.testing.plugin"]), "database_parts", "browser_fixtures"]
