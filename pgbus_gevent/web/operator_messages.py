"""The stored messages of a stream for an operator, and the messages that an operator publishes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..core.names import check_data, check_name
from ..database.statements import Publication, publication
from ..errors import DatabaseError, DatabaseUnavailable, InvalidArgument, PoolTimeout
from ..publishing.observed import Observer
from ..settings.table import Settings
from ..streamer.instance import Instance
from .responses import Answer, Environ, Refused, json_answer, text

logger = logging.getLogger("pgbus_gevent.console")

LATEST = 20
"""The messages of a stream that an operator sees."""

SHOWN = 200
"""The most characters of their data that an operator sees."""

_TEXTS = ("stream", "data", "event", "visible_to")

T = TypeVar("T")


def why_not(settings: Settings) -> str | None:
    """Why nobody can publish at a server with these settings; None if that is possible."""
    if settings.upstream is not None:
        return "this server is an edge, which only delivers: publish at its origin"
    return None


def parse_fields(environ: Environ, body: str) -> dict[str, object]:
    """The fields of a message that an operator publishes, which come as a JSON object. Raises Refused.

    Its content type has to say that it is one. The form of a page of another site cannot send that type, and a script there would
    have to be allowed to by us, in the answer to an OPTIONS request.
    """
    kind = str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(text(415, "send a JSON object, as application/json"))
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(text(400, "the body is not JSON")) from None
    if not isinstance(found, dict):
        raise Refused(text(400, "the body is not a JSON object"))
    return found


class OperatorMessages:
    """Answers the requests of one worker's console about messages. Whoever calls it has checked that an operator asks."""

    def __init__(self, instance: Instance) -> None:
        self._database = instance.database
        self._settings = instance.settings
        self._observer = Observer(instance.events)

    def latest(self, stream: str) -> Answer:
        """The newest messages of a stream that are stored, newest first, with the beginning of their data."""
        found = self._asked(lambda: self._database.fleet.latest(stream, LATEST, SHOWN))
        messages = [{**each._asdict(), "cut": len(each.data.encode()) < each.size} for each in found]
        return json_answer(200, {"stream": stream, "messages": messages})

    def retained(self, stream: str) -> Answer:
        """The number of stored messages of a stream, up to a limit, because each of them has to be counted."""
        return json_answer(200, {"stream": stream, **self._asked(lambda: self._database.fleet.retained(stream))})

    def _asked(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except DatabaseError as error:
            logger.info("the console cannot read messages: %s", error)
            reason = str(error) if self._settings.upstream is not None else "the database does not answer now"
            raise Refused(text(503, reason)) from None

    def publish(self, fields: Mapping[str, object]) -> Answer:
        """Publish a message: 201 with its id, which is null if it is ephemeral. Raises Refused."""
        if (reason := why_not(self._settings)) is not None:
            raise Refused(text(403, reason))
        try:
            stream, data, message, ephemeral = _checked(fields)
        except InvalidArgument as error:
            raise Refused(text(400, str(error))) from None
        if (size := len(data.encode())) > self._settings.max_body:
            raise Refused(text(413, f"the data has {size} bytes, more than the {self._settings.max_body} allowed"))
        try:
            with self._observer.broadcast(stream):
                id = self._publish(stream, data, message, ephemeral)
        except (DatabaseUnavailable, PoolTimeout) as error:
            logger.warning("an operator could not publish: %s", error)
            raise Refused(text(503, "the database is not available now", ("retry-after", "5"))) from None
        except DatabaseError as error:
            logger.error("an operator could not publish: %s", error)
            # An operator sees the log anyway, and can do something about a right that is missing.
            raise Refused(text(500, f"the database refused it: {str(error).splitlines()[0]}")) from None
        logger.info(
            "an operator has published %s to %r", "an ephemeral message" if id is None else f"message {id}", stream
        )
        return json_answer(201, {"stream": stream, "id": id})

    def _publish(self, stream: str, data: str, message: Publication, ephemeral: bool) -> int | None:
        queries = self._database.queries
        if ephemeral:
            queries.broadcast_ephemeral(stream, data, message)
            return None
        return queries.broadcast(stream, data, message)


def _checked(fields: Mapping[str, object]) -> tuple[str, str, Publication, bool]:
    # Unknown fields are refused, because a typing error in ``visible_to`` would show the message to everybody.
    if unknown := fields.keys() - {*_TEXTS, "ephemeral"}:
        raise InvalidArgument(f"a message has no field {min(unknown)[:40]!a}: it has {', '.join(_TEXTS)}, ephemeral")
    given: dict[str, Any] = {name: fields.get(name) for name in _TEXTS}
    for name, value in given.items():
        if not isinstance(value, str) and (value is not None or name in ("stream", "data")):
            raise InvalidArgument(f"{name} is text")
    ephemeral = fields.get("ephemeral", False)
    if not isinstance(ephemeral, bool):
        raise InvalidArgument("ephemeral is true or false")
    message = publication(given["event"], given["visible_to"], None)
    return check_name(given["stream"]), check_data(given["data"]), message, ephemeral
