"""Paths of streams, and the HTML elements that connect a page to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

from .client import Subscriber, checked_answer
from .identity import Identities
from .markup import Html
from .names import PublicNames, Signer, check_name


class Tags:
    """Makes the paths and elements of one server: ``prefix`` is the path under which it serves the streams.

    ``secrets`` are in order, the oldest first, and ``public`` are the patterns of the streams that need no signed name.
    """

    def __init__(self, prefix: str, secrets: Sequence[str], public: Iterable[str]) -> None:
        self.signer = Signer(secrets)
        self._prefix = prefix
        self._has_secret = bool(secrets)
        self._public = PublicNames(public)
        self._identities = Identities(secrets)

    def path(self, name: str, expires_at: float | None = None) -> str:
        """Return the path of a stream. Without a secret, the path of a public stream has the bare name.

        ``expires_at`` is in Unix seconds. Raises :class:`InvalidName`, and :class:`InvalidArgument` if signing is not possible.
        """
        return f"{self._prefix}/streams/{self._written(name, expires_at)}"

    def of_one(
        self, name: str, watermark: int, expires_at: float | None = None, subscriber: Subscriber | None = None
    ) -> Html:
        """Return the element of one stream, which starts after ``watermark``.

        ``subscriber`` is whom the page is for, as an authorize hook answers; None if that is unknown.
        """
        return _element(
            self.path(name, expires_at), f' since-id="{watermark}"', self._identity([checked_answer(subscriber)])
        )

    def of_several(
        self,
        names: Sequence[str],
        watermarks: Sequence[int],
        expires_at: float | None = None,
        subscribers: Sequence[Subscriber | None] = (),
    ) -> Html:
        """Return the one element of several streams. ``subscribers`` has one for each stream, or is empty if none is known."""
        places = zip(names, watermarks, strict=True)
        query = "&".join(f"stream={self._written(name, expires_at)}&since={watermark}" for name, watermark in places)
        return _element(f"{self._prefix}/streams?{query}", "", self._identity([*map(checked_answer, subscribers)]))

    def _written(self, name: str, expires_at: float | None) -> str:
        if not self._has_secret and name in self._public:
            return quote(check_name(name), safe="")
        return self.signer.sign(name, expires_at)

    def _identity(self, subscribers: Sequence[Subscriber | None]) -> str:
        """The attribute with the identity of the user that the element is made for; empty if that is unknown."""
        known = [each for each in subscribers if each is not None]
        identity = self._identities.of(*known) if known and len(known) == len(subscribers) else None
        return "" if identity is None else f' identity="{identity}"'


def _element(source: str, *attributes: str) -> Html:
    return Html(f'<pgbus-stream-source src="{escape(source, quote=True)}"{"".join(attributes)}></pgbus-stream-source>')
