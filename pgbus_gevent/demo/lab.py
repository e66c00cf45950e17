"""The lab: publish, cut a connection and see the replay; two users with different rights; an answer word by word.

:func:`add_lab` adds the page ``/lab``, and the routes below ``/lab/`` to which it posts. All state is in PostgreSQL, so any process
can answer any request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import bottle

from ..core.cursor import parse_cursor
from ..core.names import check_data, check_event
from ..errors import InvalidCursor, PgbusError
from . import answers, manual, pages, visitors
from .hello import admit

if TYPE_CHECKING:
    from pgbus_gevent import Bus

    from .answers import Writer
    from .rates import Rates

STREAM = "demo:lab"
SHOWN = 12
"""The number of earlier messages that a page shows."""
MAX_TEXT, MAX_EVENT = 500, 60
"""The most characters of a text, and of an event."""
MAX_MISSED = 500

WELCOME = (
    ("Welcome. Publish something: Ada and Bob get it at the same moment.", None),
    ("Only admins get this one: Ada does, Bob does not.", visitors.ADMINS),
    ("Cut Ada’s connection, publish, and reconnect: she gets what she missed, in order.", None),
)
"""The first messages, each with its audience."""

_IS_EMPTY = "select not exists (select from pgbus.messages where stream = %s)"
_GREET = "select pgbus.broadcast(%s, %s, visible_to => %s, key => %s)"
_PUBLISH = "select pgbus.broadcast(%s, %s, event => %s, visible_to => %s, exclude => %s)"


def add_lab(
    app: bottle.Bottle, bus: Bus, writer: Writer, rates: Rates, questions: Rates, *, prefix: str = "/pgbus"
) -> None:
    """Add the lab's routes to an application. The streams ``demo:*`` must be public, and a filter ``admins`` must exist.

    ``rates`` bounds the messages of visitors, and ``questions`` what they ask for: answers, and lists of missed messages.
    """
    lab = _Lab(bus, writer, rates, questions, prefix)
    app.get("/lab")(lab.show_page)
    app.get("/lab/missed")(lab.show_missed)
    app.post("/lab/publish")(lab.publish)
    app.post("/lab/answer")(lab.answer)


class _Lab:
    def __init__(self, bus: Bus, writer: Writer, rates: Rates, questions: Rates, prefix: str) -> None:
        self._bus = bus
        self._writer = writer
        self._rates = rates
        self._questions = questions
        self._prefix = prefix
        self._prepared = False

    @contextmanager
    def _transaction(self, isolation: str | None = None) -> Iterator[Any]:
        """Lend a database cursor in a transaction, with the demo's table. Raises the HTTP response if the database is away."""
        try:
            if not self._prepared:
                with self._bus.transaction() as database_cursor:
                    answers.prepare(database_cursor)
                self._prepared = True
            with self._bus.transaction(isolation) as database_cursor:
                yield database_cursor
        except PgbusError as error:
            self._prepared = False
            raise pages.unavailable(error) from error

    def show_page(self) -> bottle.HTTPResponse:
        with self._transaction() as database_cursor:
            _welcome(database_cursor)
        with self._transaction("repeatable read") as database_cursor:
            start = pages.cursor_before(database_cursor, STREAM, SHOWN)
            watermark = self._bus.stream(STREAM).last_id(using=database_cursor)
            answer = answers.latest(database_cursor)
            answer_watermark = self._bus.stream(answers.STREAM).last_id(using=database_cursor)
        if answer is not None and not answer.finished:
            self._writer.wake()
        body = _TEMPLATE.render(
            prefix=self._prefix,
            since=start,
            watermark=watermark,
            # The page follows the answer from its first message, so a page that is loaded in the middle gets all words.
            answer_since=answer_watermark if answer is None else answer.before,
            answer_watermark=answer_watermark,
            topics=answers.TOPICS,
            docs=manual.link(),
            max_text=MAX_TEXT,
            max_event=MAX_EVENT,
        )
        return pages.page(body)

    def show_missed(self) -> bottle.HTTPResponse:
        """Return the ids of the messages that Ada has missed since a cursor, for comparison with the replay."""
        query = bottle.request.query
        admit(self._questions, "questions")
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
        """Publish the posted text with SQL, in a new transaction."""
        form = pages.posted()
        text = form.get("text")
        # Nothing chosen in a form is an empty text. Anything else that is no text is refused below, and never means everybody.
        event, audience, exclude = (
            None if (given := form.get(name)) == "" else given for name in ("event", "audience", "exclude")
        )
        if not isinstance(text, str) or not 0 < len(text.strip()) <= MAX_TEXT:
            raise pages.refusal(400, f"the text must have 1 to {MAX_TEXT} characters")
        if event is not None and not (isinstance(event, str) and len(event) <= MAX_EVENT):
            raise pages.refusal(400, f"the event must have at most {MAX_EVENT} characters")
        if audience not in (None, visitors.ADMINS) or not (exclude is None or visitors.is_tab(exclude)):
            raise pages.refusal(400, "there is no such audience")
        admit(self._rates)
        with pages.publishing(self._bus) as database_cursor:
            arguments = (STREAM, check_data(text.strip()), check_event(event), audience, exclude)
            database_cursor.execute(_PUBLISH, arguments)
            (id,) = database_cursor.fetchone()
        return pages.json_answer({"id": id}, 201)

    def answer(self) -> bottle.HTTPResponse:
        """Start an answer, unless one is being written, and wake the writer. Both need the database, so both are bounded."""
        topic = pages.posted().get("topic")
        if topic is not None and not (isinstance(topic, str) and topic in answers.TOPICS):
            raise pages.refusal(400, "there is no such question")
        admit(self._questions, "questions")
        begun = False
        if topic is not None:
            with self._transaction() as database_cursor:
                begun = answers.start(database_cursor, topic)
        self._writer.wake()
        return pages.json_answer({"begun": begun}, 201 if begun else 200)


def _welcome(database_cursor: Any) -> None:
    """Publish the first messages and start an answer if there are none to show: at the first visit, or after the retention."""
    database_cursor.execute(_IS_EMPTY, (STREAM,))
    (empty,) = database_cursor.fetchone()
    answered = answers.latest(database_cursor) is not None
    if not empty and answered:
        return
    if empty:
        for number, (text, audience) in enumerate(WELCOME):
            # The key is for two visitors who come at the same time.
            database_cursor.execute(_GREET, (STREAM, text, audience, f"welcome-{number}"))
    if not answered:
        answers.start(database_cursor, next(iter(answers.TOPICS)))


_TEMPLATE = pages.template("lab.html")
