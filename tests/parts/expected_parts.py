"""Compares what a block of the documentation printed with the output that its page shows."""

from __future__ import annotations

import re

_ID = r"\b1[5-9]\d{14}\b"
_WRITTEN = re.compile(rf"(?P<id>{_ID})|(?P<any>(?:\b[0-9a-f]{{6}})?…)")


class Expected:
    """The ids that a page shows, and those that stand for them in this run.

    In an expected output, `…` stands for anything in its line, with six hexadecimal digits before it too, and a line of
    `…` alone for any lines. An id of a message
    stands for another one. But an id that the page shows twice must be the same both times, and a larger one must be larger.
    """

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}

    def put_in(self, text: str) -> str:
        """Replace the ids of the page that have been seen in an output by the real ones."""
        return re.sub(_ID, lambda match: self.ids.get(match[0], match[0]), text)

    def compare(self, shown: str, printed: str, *, start: bool = False) -> str:
        """Return why ``printed`` is not what the page shows, or an empty text. With ``start``, more may have been printed."""
        pattern, new = self._pattern(shown)
        printed = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
        found = (re.match if start else re.fullmatch)(pattern, printed)
        if found is None:
            return f"the page shows\n{shown.rstrip()}\nbut this was printed:\n{printed}"
        ids = self.ids | {id: found[group] for id, group in new.items()}
        written = sorted(set(re.findall(_ID, shown)), key=int)
        given = [int(ids[id]) for id in written]
        if given != sorted(set(given)):
            return f"the ids are not in the order of the page, {written}, but {given}:\n{printed}"
        self.ids = ids
        return ""

    def _pattern(self, shown: str) -> tuple[str, dict[str, str]]:
        new: dict[str, str] = {}

        def part(match: re.Match[str]) -> str:
            if match["any"]:
                return r"[^\n]*?"
            id = match["id"]
            if id in self.ids:
                return self.ids[id]
            if id in new:
                return f"(?P={new[id]})"
            new[id] = f"id{len(new)}"
            return rf"(?P<{new[id]}>\d+)"

        lines = []
        for line in shown.strip("\n").splitlines():
            if line.strip() == "…":
                lines.append(r"(?:[^\n]*(?:\n|\Z))*?")
                continue
            place, pattern = 0, ""
            for match in _WRITTEN.finditer(line := line.rstrip()):
                pattern += re.escape(line[place : match.start()]) + part(match)
                place = match.end()
            lines.append(pattern + re.escape(line[place:]) + r"(?:\n|\Z)")
        return "".join(lines), new
