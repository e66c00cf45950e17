"""Docstrings name classes and methods with the markup of reStructuredText. The site's pages are Markdown, so this removes it."""

from __future__ import annotations

import re
from typing import Any

import griffe


class PlainNames(griffe.Extension):
    """Turns ``:class:`Bus``` into ``Bus`` in backquotes, and leaves out the dots and the tilde before a name."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":\w+:`[~.]*([^`]+)`", r"`\1`", obj.docstring.value)
