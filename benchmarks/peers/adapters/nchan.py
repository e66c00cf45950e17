"""nchan (Debian): nginx with the module, with messages in its shared memory or in Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from ..environment import program
from ..site import Site
from .base import Message, Peer

CONFIGURATION = """\
load_module {module};
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  {upstream}
  server {{
    listen 127.0.0.1:{port};
    location ~ ^/sub/(.*)$ {{
      nchan_subscriber eventsource;
      nchan_channel_id $1;
      nchan_subscriber_first_message newest;
      {redis}
    }}
    location ~ ^/pub/(.*)$ {{
      nchan_publisher;
      nchan_channel_id $1;
      nchan_message_buffer_length 1000;
      nchan_message_timeout 10m;
      {redis}
    }}
  }}
}}
"""


class Nchan(Peer):
    """Messages are in nginx's shared memory."""

    name = "nchan"
    package = "nginx-light, libnginx-mod-nchan (Debian)"
    needs: Sequence[str] = ("nginx", "ngx_nchan_module.so")
    store = "itself"
    use = (
        "nginx with one worker, messages in its memory: 1,000 for each channel, for ten minutes. The application sends a POST to "
        "the publisher's location after its COMMIT. A page's cursor is the `last_message_id` of the channel's information"
    )
    says = "A client resumes with `Last-Event-ID`, if the buffer of its channel still has the message (10 messages by default)"

    def prepare(self, site: Site) -> None:
        """Write the configuration."""
        values = {
            "module": program("ngx_nchan_module.so"),
            "directory": site.directory,
            "port": site.port,
            "upstream": self._upstream(site),
            "redis": self._location(),
        }
        (site.directory / "nginx.conf").write_text(CONFIGURATION.format(**values))

    def _upstream(self, site: Site) -> str:
        return ""

    def _location(self) -> str:
        return ""

    def command(self, site: Site) -> list[str]:
        """Return the command that starts nginx."""
        directory = str(site.directory)
        return [
            program("nginx") or "",
            "-p",
            directory,
            "-e",
            f"{directory}/nginx-error.log",
            "-c",
            f"{directory}/nginx.conf",
        ]

    def publish_after(self, site: Site, http: httpx.Client, message: Message) -> None:
        """Send it to the publisher's location."""
        http.post(site.url(f"/pub/{message.stream}"), content=message.text).raise_for_status()

    def request(self, stream: str, cursor: str | None) -> tuple[str, Mapping[str, str]]:
        """Return the request of a channel."""
        return f"/sub/{stream}", {} if cursor is None else {"Last-Event-ID": cursor}

    def page(self, site: Site, http: httpx.Client, cursor: Any, stream: str) -> str | None:
        """Return the id of the channel's last message."""
        answer = http.get(site.url(f"/pub/{stream}"), headers={"Accept": "text/json"})
        return str(answer.json()["last_message_id"]) if answer.status_code == 200 else None


class NchanRedis(Nchan):
    """Messages are in Redis."""

    name = "nchan-redis"
    package = "nginx-light, libnginx-mod-nchan, redis-server (Debian)"
    needs: Sequence[str] = ("nginx", "ngx_nchan_module.so", "redis-server")
    store = "redis"
    use = "As nchan, with `nchan_redis_pass` to one Redis, whose persistence is that of Debian's package (snapshots)"
    says = "As nchan; messages can be in Redis instead of memory, also for several servers"

    def _upstream(self, site: Site) -> str:
        return f"upstream redis {{ nchan_redis_server redis://127.0.0.1:{site.redis_port}; }}"

    def _location(self) -> str:
        return "nchan_redis_pass redis;"
