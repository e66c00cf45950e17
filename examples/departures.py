"""The departures board and the lab, built by hand. ``python -m pgbus_gevent.serve`` without an application does the same.

Run it and open http://127.0.0.1:8080/ in two windows. To serve your own application, put it in the place of the demo.

Give a database in PGBUS_DATABASE_URL and a secret in PGBUS_SECRET, or neither; then the embedded PostgreSQL is started.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    # Before all other imports: modules that are imported unpatched would block every client.
    monkey.patch_all()

import logging
import os
from collections.abc import Iterable
from typing import Any

from pgbus_gevent import Bus, Settings, StreamApp
from pgbus_gevent.database.embedded import EmbeddedPostgres
from pgbus_gevent.demo.site import PRESENCE, Demo
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.hosts.running import run_until_stopped
from pgbus_gevent.streamer import Instance

SPEED = 60.0  # simulated seconds per second


def main() -> None:
    """Serve the demo until Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")

    # Other settings come from PGBUS_*. Anybody may read the streams demo:*; for other streams, a page needs a signed name from
    # bus.sign("…"). The stream demo:here has presence.
    settings = Settings.load(
        database_url=os.environ.get("PGBUS_DATABASE_URL") or EmbeddedPostgres.open(Settings.load().data_dir).url,
        secret=os.environ.get("PGBUS_SECRET", "only for this example"),
        port=int(os.environ.get("PORT", "8080")),
        public=("demo:*",),
        presence=(PRESENCE,),
    )

    # A publisher needs only a Bus, and no server: a cron job or a queue worker can have one too.
    bus = Bus(settings=settings)
    demo = Demo(bus, speed=SPEED, prefix=settings.prefix)

    # A server needs an Instance, which listens to PostgreSQL and writes to all connected browsers.
    instance = Instance(settings).start()
    # The instance must know the filters of the bus. The authorize hook gives each connection its owner and context.
    instance.filters.share(bus.filters)
    streams = StreamApp(instance, demo.authorize)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve the streams below /pgbus and the demo everywhere else. They have one origin, so the browser needs no CORS."""
        if streams.serves(environ["PATH_INFO"]):
            return streams(environ, start_response)
        answer: Iterable[bytes] = demo.app(environ, start_response)
        return answer

    server = Server(listen(settings.host, settings.port), demo.publishing(application))
    server.start()
    demo.start()
    print(f"http://{settings.host}:{settings.port}/", flush=True)
    # At SIGTERM or Ctrl-C, each browser gets pgbus:shutdown with a random delay, so that they do not all reconnect together.
    run_until_stopped(server, [instance])
    demo.stop()
    bus.close()


if __name__ == "__main__":
    main()
