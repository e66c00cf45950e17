"""Flask-SSE (PyPI): Redis publish/subscribe under gunicorn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import httpx

from ..site import Site
from .base import Message, Peer
from .listen import SERVERS


class FlaskSse(Peer):
    """One gunicorn worker with gevent, as its documentation shows."""

    name = "flask-sse"
    package = "flask-sse, gunicorn, gevent (PyPI), redis-server (Debian)"
    needs: Sequence[str] = ("python", "redis-server")
    store = "redis"
    use = (
        "One gunicorn worker with gevent, and one Redis. A view calls `sse.publish` after the application's COMMIT. There are no "
        "cursors"
    )
    says = "Nothing about faults; messages pass through Redis publish/subscribe, which keeps none"

    def command(self, site: Site) -> list[str]:
        """Return the command that starts gunicorn."""
        options = ["--worker-class", "gevent", "--bind", f"127.0.0.1:{site.port}", "--graceful-timeout", "2"]
        log = ["--log-level", "warning"]
        return [
            str(site.environment.python),
            "-m",
            "gunicorn",
            "flask_app:app",
            *options,
            *log,
            "--chdir",
            str(SERVERS),
        ]

    def variables(self, site: Site) -> Mapping[str, str]:
        """Return the address of Redis."""
        return {"PEERS_REDIS_URL": f"redis://127.0.0.1:{site.redis_port}"}

    def publish_after(self, site: Site, http: httpx.Client, message: Message) -> None:
        """Call the view that publishes."""
        http.post(site.url(f"/send/{message.stream}"), content=message.text).raise_for_status()

    def request(self, stream: str, cursor: str | None) -> tuple[str, Mapping[str, str]]:
        """Return the request of a channel."""
        return f"/stream?channel={stream}", {} if cursor is None else {"Last-Event-ID": cursor}
