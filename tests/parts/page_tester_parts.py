"""What hidden blocks of the documentation use as ``tester``: they do what the reader does, and look at what comes of it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psycopg2
from raw_http import Answer, ask
from support import START, until

from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.servers import SECRET, RunningServer
from pgbus_gevent.web.stream_app import StreamApp

if TYPE_CHECKING:
    from page_running_parts import Page

TAG = re.compile(r'<pgbus-stream-source[^>]*? src="([^"]+)"(?:[^>]*? since-id="(\d+)")?[^>]*></pgbus-stream-source>')

MODULE = re.compile(r'<script type="module" src="[^"]*/pgbus\.js"></script>')


class Tester:
    """The reader of one page. ``url`` and ``port`` are those of the page's server, 8080 in its text."""

    def __init__(self, page: Page) -> None:
        self._page = page

    @property
    def folder(self) -> Path:
        """The folder in which the blocks run."""
        return self._page.folder

    secret = SECRET
    """The secret in PGBUS_SECRET, and of the servers here."""

    @property
    def database_url(self) -> str:
        return self._page.database_url

    @property
    def port(self) -> int:
        return self._page.port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def output(self, of: str | None = None) -> str:
        """Return what the last visible block has printed so far, or the block that a comment calls ``of``."""
        return self._page.output(of)

    def text(self, name: str) -> str:
        """Return the text of the block that a comment calls ``name``."""
        return self._page.text(name)

    def fixture(self, name: str) -> Any:
        """Return a fixture of the tests. Those of our testing kit have the page's database."""
        return self._page.fixture(name)

    def sql(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Run a statement on the page's database, commit it, and return its rows."""
        connection: Any = psycopg2.connect(self.database_url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, arguments or None)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def serve(self, app: Any = None, *, authorize: Any = None, written: str = "8080", **settings: Any) -> RunningServer:
        """Start a server in this process, until the end of the page. All streams are public if no setting says otherwise.

        ``app`` is another WSGI application; ``written`` is the server's port in the text of the page.
        """
        defaults: dict[str, Any] = {"secret": (SECRET,), "public": ("*",), "grace": 1.0}
        instance: Instance | None = None
        if app is None:
            instance = Instance(Settings(database_url=self.database_url, **{**defaults, **settings})).start()
            app = StreamApp(instance, authorize=authorize)
        server = RunningServer(app, "/pgbus")
        if instance is not None:
            self._page.stack.callback(instance.shutdown)
        self._page.stack.callback(server.stop)
        self._page.ports[written] = server.port
        return server

    def get(self, path: str, written: str = "8080", **headers: str) -> Answer:
        """GET a path; an underscore in a header's name stands for a hyphen. ``written`` is the port in the text of the page."""
        return ask(self._page.port(written), path, **headers)

    def answers(self, port: int) -> bool:
        """Return whether a server at this port says that it is ready."""
        with suppress(OSError):
            return ask(port, "/pgbus/readyz").status == 200
        return False

    def post(self, path: str, body: Any = None, **fields: str) -> Answer:
        """POST a body, or the fields of a form."""
        if body is not None:
            return ask(self.port, path, "POST", body)
        return ask(self.port, path, "POST", urlencode(fields), Content_Type="application/x-www-form-urlencoded")

    def watch(self, path: str, since: int | str | None = None, **headers: str) -> StreamClient:
        """Return a connected client of a path, or of a stream. It is closed at the end of the page."""
        path = path if path.startswith("/") else f"/pgbus/streams/{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        client = StreamClient(self.url, path, since=since, headers=named)
        self._page.stack.callback(client.close)
        client.next("pgbus:connected", timeout=60.0)
        return client

    def tag_in(self, page: str | bytes) -> tuple[str, int | None]:
        """Return the path and the watermark of the one tag in an HTML page.

        A page, as bytes or with more than the tag, has to load the module. Without it, the element does nothing.
        """
        text = page.decode() if isinstance(page, bytes) else page
        ((path, since),) = TAG.findall(text)
        alone = isinstance(page, str) and TAG.fullmatch(text.strip())
        assert alone or MODULE.search(text), f"the page does not load the element's module:\n{text}"
        return path.replace("&amp;", "&"), int(since) if since else None

    @staticmethod
    def until(condition: Any, what: str = "what the page says") -> Any:
        """Wait until the condition is true, and return its result."""
        return until(condition, what, START)
