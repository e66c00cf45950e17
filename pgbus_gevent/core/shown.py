"""Text of others as a terminal may be given it: nothing in it is obeyed, or changes the order in which the rest is read."""

from __future__ import annotations

import json
import re
from typing import Any

# Control characters, but for the tab; the line separators; what marks, embeds, overrides and isolates directions (UAX #9); and
# lone surrogates, which cannot be encoded.
_OBEYED = "\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_TEXT = re.compile(f"[{_OBEYED}]")
# JSON has escaped those below 0x20 itself.
_IN_JSON = re.compile(f"[{_OBEYED}\ufeff]")


def visible(text: str) -> str:
    """``text`` in one line, with what a terminal would obey spelt out, but for tabs."""
    return _IN_TEXT.sub(_spelt, text)


def visible_lines(text: str) -> str:
    """The same of several lines, which stay so."""
    return "\n".join(map(visible, text.split("\n")))


def json_line(value: Any) -> str:
    """``value`` as one line of JSON, legible, with what a terminal would obey escaped: to a parser it is the same."""
    return _IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def _spelt(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
