"""Checks of members and metadata, by PostgreSQL's own rules, so that a bad one does not fail a statement about many."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidArgument
from .names import utf8

MAX_MEMBER_BYTES = 255
MAX_METADATA_BYTES = 4096

NAMED = 250
"""The most members of a stream whose joins and leaves are announced by name; ``pgbus._presence_named`` in SQL."""

NAMED_AGAIN = 200
"""With how many members names come back after that."""


def check_member(member: str) -> str:
    """Return ``member``, or raise :class:`InvalidArgument`: 1 to 255 bytes of UTF-8 without control characters."""
    size = _size(member, "a member")
    if not 1 <= size <= MAX_MEMBER_BYTES:
        raise InvalidArgument(f"a member has 1 to {MAX_MEMBER_BYTES} bytes in UTF-8, this one has {size}")
    if any(unicodedata.category(character) == "Cc" for character in member):
        raise InvalidArgument(f"a member has no control characters: {member!r}")
    return member


def check_connection(connection: str) -> str:
    """Return ``connection``, or raise :class:`InvalidArgument`: at most 255 bytes of UTF-8 without NUL."""
    size = _size(connection, "a connection")
    if size > MAX_MEMBER_BYTES or "\0" in connection:
        raise InvalidArgument(
            f"a connection has at most {MAX_MEMBER_BYTES} bytes in UTF-8, and no NUL: {connection[:80]!r}"
        )
    return connection


def metadata_text(metadata: Mapping[str, Any] | None) -> str:
    """``metadata`` as JSON that PostgreSQL takes, or :class:`InvalidArgument`: a mapping, at most 4096 bytes."""
    if metadata is None:
        return "{}"
    if not isinstance(metadata, Mapping):
        raise InvalidArgument(f"metadata is a mapping, not {type(metadata).__name__}")
    try:
        # As jsonb writes it, with spaces, so that it is measured here as it is there.
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"metadata cannot be written as JSON: {error}") from None
    if size > MAX_METADATA_BYTES:
        raise InvalidArgument(f"metadata has at most {MAX_METADATA_BYTES} bytes as JSON, this has {size}")
    if "\\u0000" in text:
        # An escaped backslash before u0000, which PostgreSQL would take, is refused too; no real metadata has that.
        raise InvalidArgument("metadata has a NUL character in it, which PostgreSQL cannot store")
    return text


def _size(text: str, what: str) -> int:
    if not isinstance(text, str):
        raise InvalidArgument(f"{what} is text, not {type(text).__name__}")
    return len(utf8(text, what))
