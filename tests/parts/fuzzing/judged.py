"""What has to come of an answer of an application's code, judged from the documentation and not by the package's own checks."""

from __future__ import annotations

import logging
import unicodedata
from time import time
from types import AsyncGeneratorType, BuiltinFunctionType, CoroutineType, FunctionType, GeneratorType
from typing import Any

import gevent

from fuzzing.answers import HIDDEN, Answer
from pgbus_gevent.core.client import Subscriber

_UNASKED = (AsyncGeneratorType, BuiltinFunctionType, CoroutineType, FunctionType, GeneratorType)


class Logged(logging.Handler):
    """Keeps the texts of what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class Noted:
    """Calls what an input says, and keeps what came of it. With ``once``, it answers that from the second call on."""

    def __init__(self, answer: Answer, once: Any = None) -> None:
        self.answer = answer
        self.raised = False
        self.ever_raised = False
        self.value: Any = False
        self.calls = 0
        self.depth = 0
        """How deep calls were in one another, at most."""
        self._within = 0
        self._once = once

    def __call__(self) -> Any:
        self.calls += 1
        if self._once is not None and self.calls > 1:
            return self._once
        self.depth = max(self.depth, self._within)
        self._within += 1
        try:
            value = self.answer()
        except BaseException:
            self.raised = self.ever_raised = True
            raise
        finally:
            self._within -= 1
        self.value, self.raised = value, False
        if type(value) is CoroutineType:
            value.close()  # or Python warns that it was not awaited
        return value

    def __repr__(self) -> str:
        return f"raised={self.raised} {_shown(self.value)}"

    @property
    def expired(self) -> bool:
        """Whether it answered a subscriber whose right is over."""
        return not self.raised and lets_in(self.value, 0.0) and not lets_in(self.value, time())


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.300}"
    except BaseException as error:
        return f"something whose repr raises {type(error)}"


def lets_in(answer: Any, now: float) -> bool:
    """Whether an answer of the authorize hook lets a client in at a time in Unix seconds."""
    if answer is True:
        return True
    if not issubclass(type(answer), Subscriber):
        return False
    fields = list(tuple.__iter__(answer))
    if len(fields) != 5:
        return False
    owner, _, member, expires_at, labels = fields
    if issubclass(type(expires_at), (int, float)) and type(expires_at) is not bool:
        end = float.__float__(expires_at) if isinstance(expires_at, float) else int.__int__(expires_at)
        if not 0 <= end <= 10**12 or end <= now:
            return False
    elif expires_at is not None:
        return False
    texts = all(_is_text(each) for each in (owner, member) if each is not None)
    return texts and (member is None or _is_member(member)) and _are_labels(labels)


def _is_text(value: Any) -> bool:
    if not issubclass(type(value), str):
        return False
    text = str.__str__(value)
    return bool(text) and "\0" not in text and not any("\ud800" <= each <= "\udfff" for each in text)


def _is_member(value: Any) -> bool:
    text = str.__str__(value)
    return len(text.encode()) <= 255 and not any(unicodedata.category(each) == "Cc" for each in text)


def _are_labels(labels: Any) -> bool:
    if not issubclass(type(labels), frozenset):
        return False
    return frozenset.__len__(labels) <= 1000 and all(_is_text(each) for each in frozenset.__iter__(labels))


def shows(noted: Noted) -> bool | None:
    """Whether the answer of a filter shows a message; None if it is no answer, and the log has to say so."""
    if noted.raised:
        return None
    value = noted.value
    if type(value) in _UNASKED or issubclass(type(value), (type, gevent.Greenlet)) or type(value) in HIDDEN:
        return None
    try:
        return bool(value)
    except BaseException:
        return None
