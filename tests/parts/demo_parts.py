"""The demo as ``serve`` has it, in the process of the tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from site_parts import Site, running_site

from pgbus_gevent.demo.site import PRESENCE, Demo
from pgbus_gevent.web.stream_app import StreamApp


@contextmanager
def running_demo(database_url: str, **changes: Any) -> Iterator[Site]:
    """Run a site with the demo beside its streams. Flights and answers go fast."""
    with running_site(database_url, public=("demo:*",), presence=(PRESENCE,), **changes) as site:
        demo = Demo(site.bus, speed=600, pace=0.03)
        site.instance.filters.share(site.bus.filters)
        streams = StreamApp(site.instance, demo.authorize)

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            chosen: Any = streams if streams.serves(environ["PATH_INFO"]) else demo.app
            answer: Iterable[bytes] = chosen(environ, start_response)
            return answer

        site.app = demo.publishing(app)
        demo.start()
        try:
            yield site
        finally:
            demo.stop()
