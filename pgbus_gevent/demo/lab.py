"""The lab: publish, cut the line, see what is replayed; two users with different rights, and an answer word by word.

:func:`add_lab` adds the page ``/lab`` and what it posts to below ``/lab/``. Everything that it knows is in PostgreSQL, so it
does not matter which process answers which request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import bottle

from ..core.cursor import parse_cursor
from ..core.names import check_data, check_event
from ..errors import InvalidArgument, InvalidCursor, PgbusError
from . import answers, pages, visitors

if TYPE_CHECKING:
    from pgbus_gevent import Bus

    from .answers import Writer

STREAM = "demo:lab"
SHOWN = 12
"""Messages from before that a page starts with."""
MAX_TEXT, MAX_EVENT = 500, 60
"""Characters."""
MAX_MISSED = 500

_PUBLISH = "select pgbus.broadcast(%s, %s, event => %s, visible_to => %s, exclude => %s)"


def add_lab(app: bottle.Bottle, bus: Bus, writer: Writer, *, prefix: str = "/pgbus") -> None:
    """Add the lab's routes to an application. The streams ``demo:*`` have to be public, and ``admins`` a filter."""
    lab = _Lab(bus, writer, prefix)
    app.get("/lab")(lab.show_page)
    app.get("/lab/missed")(lab.show_missed)
    app.post("/lab/publish")(lab.publish)
    app.post("/lab/answer")(lab.answer)


class _Lab:
    def __init__(self, bus: Bus, writer: Writer, prefix: str) -> None:
        self._bus = bus
        self._writer = writer
        self._prefix = prefix
        self._prepared = False

    @contextmanager
    def _transaction(self, isolation: str | None = None) -> Iterator[Any]:
        """One that has the demo's table; raises the HTTP answer to give when there is none to be had."""
        try:
            if not self._prepared:
                with self._bus.transaction() as cursor:
                    answers.prepare(cursor)
                self._prepared = True
            with self._bus.transaction(isolation) as cursor:
                yield cursor
        except PgbusError as error:
            self._prepared = False
            raise pages.unavailable(error) from error

    def show_page(self) -> bottle.HTTPResponse:
        with self._transaction("repeatable read") as cursor:
            start = pages.cursor_before(cursor, STREAM, SHOWN)
            watermark = self._bus.stream(STREAM).last_id(using=cursor)
            answer = answers.latest(cursor)
            answer_watermark = self._bus.stream(answers.STREAM).last_id(using=cursor)
        if answer is not None and not answer.finished:
            self._writer.wake()
        body = _TEMPLATE.render(
            prefix=self._prefix,
            since=start,
            watermark=watermark,
            # The answer's messages, from its first one: a page that is loaded in the middle has all of them.
            answer_since=answer_watermark if answer is None else answer.before,
            answer_watermark=answer_watermark,
            topics=answers.TOPICS,
            max_text=MAX_TEXT,
            max_event=MAX_EVENT,
        )
        return bottle.HTTPResponse(body, headers=pages.HEADERS)

    def show_missed(self) -> bottle.HTTPResponse:
        """What Ada has missed since a cursor, as the database has it: to compare with what is replayed to her."""
        query = bottle.request.query
        try:
            after = parse_cursor(query.get("after", "0"), "after")
            messages = self._bus.stream(STREAM).read_after(after, MAX_MISSED)
            words = self._bus.stream(answers.STREAM).last_id()
        except InvalidCursor as error:
            raise pages.refusal(400, str(error)) from error
        except PgbusError as error:
            raise pages.unavailable(error) from error
        mine = [message.id for message in messages if message.exclude is None or message.exclude != query.get("tab")]
        watermark = messages[-1].id if messages else after
        return pages.json_answer({"watermark": watermark, "answer": words, "ids": mine})

    def publish(self) -> bottle.HTTPResponse:
        """Publish what was written, through SQL, in a transaction of its own."""
        form = pages.posted()
        text, event = form.get("text"), form.get("event") or None
        audience = form.get("audience") or None
        exclude = form.get("exclude") or None
        if not isinstance(text, str) or not 0 < len(text.strip()) <= MAX_TEXT:
            raise pages.refusal(400, f"write a text of 1 to {MAX_TEXT} characters")
        if event is not None and not (isinstance(event, str) and len(event) <= MAX_EVENT):
            raise pages.refusal(400, f"an event has at most {MAX_EVENT} characters")
        if audience not in (None, visitors.ADMINS) or not (exclude is None or visitors.is_tab(exclude)):
            raise pages.refusal(400, "there is no such audience")
        try:
            arguments = (STREAM, check_data(text.strip()), check_event(event), audience, exclude)
            with self._bus.transaction() as cursor:
                cursor.execute(_PUBLISH, arguments)
                (id,) = cursor.fetchone()
        except InvalidArgument as error:
            raise pages.refusal(400, str(error)) from error
        except PgbusError as error:
            raise pages.unavailable(error) from error
        return pages.json_answer({"id": id}, 201)

    def answer(self) -> bottle.HTTPResponse:
        """Begin an answer, or have the one that is being written gone on with; asked twice, it begins but one."""
        topic = pages.posted().get("topic")
        begun = False
        if topic is not None:
            if not isinstance(topic, str) or topic not in answers.TOPICS:
                raise pages.refusal(400, "there is no such question")
            with self._transaction() as cursor:
                begun = answers.start(cursor, topic)
        self._writer.wake()
        return pages.json_answer({"begun": begun}, 201 if begun else 200)


_TEMPLATE = pages.template("lab.html")
