"""Releases with invented migrations: a folder of SQL files takes the place of our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pgbus_gevent.database import schema
from pgbus_gevent.database.schema import Migration

LIBRARY = {
    "0001_shelves.sql": "-- The shelves.\ncreate table pgbus.shelves (id integer primary key);\n",
    "0002_books.sql": "-- serves: 1\ncreate table pgbus.books (shelf int references pgbus.shelves, price text default '9 %s %');\n",
    "0003_loans.sql": "-- serves: 2\ncreate table pgbus.loans (since date);\nalter table pgbus.books add column lent boolean;\n",
}
"""Three migrations, of which the second and the third serve the release before."""


class Releases:
    """Folders of migrations, one for each release. This process can become any of these releases."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch

    def write(self, name: str, files: Mapping[str, str]) -> Path:
        """Write a folder with these files, and return it."""
        folder = self._folder / name
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        return folder

    def become(self, folder: Path) -> list[Migration]:
        """Become the release with the migrations in ``folder``, and return them."""
        known = schema.read_folder(folder)
        self._monkeypatch.setattr(schema, "migrations", lambda: list(known))
        return known


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Releases:
    return Releases(tmp_path, monkeypatch)
