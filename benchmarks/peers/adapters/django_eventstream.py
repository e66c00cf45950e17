"""django-eventstream (PyPI): a Django project under Daphne, with its storage in Django's database."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from ..site import Site, free_port
from .base import KEY, Message, Peer, Reading

PROJECT = Path(__file__).resolve().parents[1] / "servers"


class DjangoEventstream(Peer):
    """One process, ``DjangoModelStorage`` on PostgreSQL."""

    name = "django-eventstream"
    package = "django-eventstream, daphne (PyPI)"
    needs: Sequence[str] = ("python",)
    use = (
        "One Daphne process, `DjangoModelStorage` on PostgreSQL. A view calls `send_event` after the application's COMMIT. Clients "
        "resume with `Last-Event-ID`. A page's cursor is `get_current_event_id`"
    )
    says = (
        "With the storage, events are written to the database before they are published, and the stream is repaired if a client, "
        "a proxy or the server fails, even mid-publish. If a client fell behind, it gets `stream-reset`"
    )

    def prepare(self, site: Site) -> None:
        """Make the tables."""
        command = [str(site.environment.python), "-m", "django", "migrate", "--verbosity", "0"]
        variables = {"PATH": "/usr/bin:/bin", **self.variables(site), "PYTHONPATH": str(PROJECT)}
        subprocess.run(command, check=True, env=variables)

    def command(self, site: Site) -> list[str]:
        """Return the command that starts Daphne."""
        where = ["-b", "127.0.0.1", "-p", str(site.port)]
        return [str(site.environment.python), "-m", "daphne", "-v", "0", *where, "django_app:application"]

    def variables(self, site: Site) -> Mapping[str, str]:
        """Return the settings of the project."""
        return {
            "PYTHONPATH": str(PROJECT),
            "DJANGO_SETTINGS_MODULE": "django_app",
            "PEERS_DATABASE_URL": site.database_url,
        }

    def publish_after(self, site: Site, http: httpx.Client, message: Message) -> None:
        """Call the view that sends."""
        http.post(site.url(f"/send/{message.stream}"), content=message.text).raise_for_status()

    def request(self, stream: str, cursor: str | None) -> tuple[str, Mapping[str, str]]:
        """Return the request of a channel."""
        return f"/events/{stream}/", {} if cursor is None else {"Last-Event-ID": cursor}

    def read(self, event: str, data: str, event_id: str) -> Reading:
        """Read an event."""
        gap = event in ("stream-reset", "stream-error")
        return Reading(KEY.findall(data) if event == "message" else [], event_id or None, gap)

    def page(self, site: Site, http: httpx.Client, cursor: Any, stream: str) -> str | None:
        """Return the id that the project renders into a page."""
        answer = http.get(site.url(f"/current/{stream}"))
        answer.raise_for_status()
        return answer.text


class DjangoPushpin(DjangoEventstream):
    """The same project behind Pushpin, which holds the connections."""

    name = "django-pushpin"
    package = "django-eventstream, daphne (PyPI), pushpin (Debian)"
    needs: Sequence[str] = ("python", "pushpin")
    patience = 30.0
    use = "As django-eventstream, behind Pushpin with `GRIP_URL`. A restart of the server restarts both"
    says = "As django-eventstream; Pushpin uses the ids of messages, and asks the application for those that it missed"

    def command(self, site: Site) -> list[str]:
        """Return the command that starts both."""
        ports = [str(site.port), str(free_port()), str(free_port())]
        return [str(site.environment.python), str(PROJECT / "pushpin_app.py"), str(site.directory), *ports]

    def open(self, site: Site, http: httpx.Client, streams: Sequence[str]) -> None:
        """Wait until Pushpin reaches Django."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if http.get(site.url("/current/s0")).status_code == 200:
                    return
            time.sleep(0.1)
