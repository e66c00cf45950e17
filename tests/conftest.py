"""What all tests share."""

import signal
from importlib.metadata import entry_points

# Where the package is installed, pytest has found its plugin already.
_installed = bool(entry_points(group="pytest11", name="pgbus_gevent"))
pytest_plugins = [*([] if _installed else ["pgbus_gevent.testing.plugin"]), "database_parts", "browser_fixtures"]

# A shell without job control starts what it puts into the background with SIGINT ignored, and a process hands that
# on to those it starts: then no test could end a server with Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
