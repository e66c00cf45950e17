"""The departures board and the lab, put together by hand: ``python -m pgbus_gevent.serve`` does the same without an application.

Run it and open http://127.0.0.1:8080/ in two windows. An application of your own takes the place of the demo's two lines.

It needs a database in PGBUS_DATABASE_URL and a secret in PGBUS_SECRET, or neither: then it starts the embedded PostgreSQL.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    # The program patches, before it imports anything else: what is imported unpatched would block every client.
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

    # What is not given here comes from PGBUS_*. Streams named demo:* may be read by anybody; without a public pattern a
    # page needs a signed name, from bus.sign("…"). Who follows demo:here is told who else does.
    settings = Settings.load(
        database_url=os.environ.get("PGBUS_DATABASE_URL") or EmbeddedPostgres.open(Settings.load().data_dir).url,
        secret=os.environ.get("PGBUS_SECRET", "only for this example"),
        port=int(os.environ.get("PORT", "8080")),
        public=("demo:*",),
        presence=(PRESENCE,),
    )

    # Who publishes holds a Bus. It needs no server: a cron job or a worker of a queue can have one of its own.
    bus = Bus(settings=settings)
    demo = Demo(bus, speed=SPEED, prefix=settings.prefix)

    # Who serves holds an Instance: it listens to PostgreSQL and writes to every connected browser.
    instance = Instance(settings).start()
    # What the bus knows of audiences it has to know too; and the hook tells whose connection it is.
    instance.filters.share(bus.filters)
    streams = StreamApp(instance, demo.authorize)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The streams below /pgbus, the demo everywhere else, on one port: so the browser needs no CORS."""
        if streams.serves(environ["PATH_INFO"]):
            return streams(environ, start_response)
        answer: Iterable[bytes] = demo.app(environ, start_response)
        return answer

    server = Server(listen(settings.host, settings.port), application)
    server.start()
    demo.start()
    print(f"http://{settings.host}:{settings.port}/", flush=True)
    # At SIGTERM or Ctrl-C each browser gets a pgbus:shutdown, so that it comes back at a moment of its own.
    run_until_stopped(server, [instance])
    demo.stop()
    bus.close()


if __name__ == "__main__":
    main()
