"""Text that is HTML already, for templates that escape everything else."""

from __future__ import annotations


class Html(str):
    """Text that is HTML already: templates that know ``__html__`` (Jinja2) take it as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)
