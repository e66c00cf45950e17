"""The kinds of an edge's settings: the address of its origin, and the tokens of workers."""

from __future__ import annotations

from urllib.parse import urlsplit

from .casting import Kind, matches, text, texts

_HIDDEN = "***"


def upstream() -> Kind[str]:
    """The address of an origin: a URL with its prefix, without user, query and trailing slash."""
    allowed = (
        "http://host[:port]/pgbus or https://…, with the prefix of the origin, without user, query and trailing slash"
    )
    fits = matches(r"https?://(?:[\w.-]+|\[[\da-fA-F:.]+\])(?::\d{1,5})?(?:/[\w.~-]+)+")
    return text("URL", allowed, lambda word: fits(word) and _is_split(word))


def _is_split(url: str) -> bool:
    """Whether the standard library takes a URL apart, and can look its host up."""
    try:
        parts = urlsplit(url)
        return parts.port != 0 and bool((parts.hostname or "").encode("idna"))
    except ValueError:
        return False


def tokens(least: int) -> Kind[tuple[str, ...]]:
    """Bearer tokens, never shown. They are visible ASCII, because the header ``Authorization`` can carry nothing else."""
    allowed = f"at least {least} visible ASCII characters each, without spaces and commas"
    return texts("TOKEN", allowed, matches(rf"[!-+\--~]{{{least},}}"), lambda value: _HIDDEN)
