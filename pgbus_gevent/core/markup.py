"""Text that is HTML already, for templates that escape everything else."""

from __future__ import annotations


class Html(str):
    """Text that is HTML already. Templates that know ``__html__``, such as Jinja2's, do not escape it."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)
