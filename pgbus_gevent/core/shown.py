"""Makes untrusted text safe for a terminal: it obeys nothing in the text, and shows the text in its true order."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

# Control characters except the tab; line separators; characters that mark, embed, override or isolate a direction (UAX #9); and
# lone surrogates, which cannot be encoded.
_OBEYED = "\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_TEXT = re.compile(f"[{_OBEYED}]")
# json.dumps has escaped the characters below 0x20 already.
_IN_JSON = re.compile(f"[{_OBEYED}\ufeff]")


def visible(text: str) -> str:
    """Return ``text`` in one line. Characters that a terminal would obey are escaped, except tabs."""
    return _IN_TEXT.sub(_spelt, text)


def visible_lines(text: str) -> str:
    """Return ``text`` as :func:`visible` does, but keep its line breaks."""
    return "\n".join(map(visible, text.split("\n")))


def json_line(value: Any) -> str:
    """Return ``value`` as one line of JSON. Characters that a terminal would obey are escaped; a parser reads the same value."""
    return _IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def described(thing: object) -> str:
    """Return the ``repr`` of an exception or object of an application's own code. It may itself raise anything, or be long."""
    try:
        return f"{thing!r:.300}"
    except BaseException:
        return f"a {kind_of(thing)} that cannot be shown"


def kind_of(thing: object) -> str:
    """Return the name of an object's type, as the class statement gave it, even if the class or its metaclass hides it."""
    return str(type.__dict__["__name__"].__get__(type(thing)))


def traceable(error: BaseException) -> BaseException | None:
    """Return ``error``, or None if no traceback of it can be logged, because its own code raises then.

    A log handler catches an Exception that occurs while it formats a record, but not a SystemExit.
    """
    try:
        logging.Formatter().formatException((type(error), error, error.__traceback__))
    except BaseException:
        return None
    return error


def _spelt(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
