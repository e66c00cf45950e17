"""The code blocks of each page of the documentation run, in their order, and print what the page shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_ledger_parts import is_listed
from page_parts import blocks, pages
from page_running_parts import opened

from pgbus_gevent.testing.databases import TestDatabases

pytestmark = [pytest.mark.docs, pytest.mark.program]

WITH_CODE = [page for page in pages() if any(block.runner and not is_listed(block) for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_blocks_of_a_page_run(
    page: str, tmp_path: Path, request: pytest.FixtureRequest, pgbus_databases: TestDatabases
) -> None:
    with opened(blocks(page), tmp_path, request) as running:
        running.run()
