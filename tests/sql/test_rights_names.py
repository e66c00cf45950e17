"""Public and internal functions of the schema: their names, their comments, and their documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from database_parts import Session

DOCS = Path(__file__).parents[2] / "docs"
FUNCTIONS = """
select p.oid::regprocedure::text, p.proname, coalesce(d.description, '')
from pg_proc p left join pg_description d on d.objoid = p.oid and d.classoid = 'pg_proc'::regclass and d.objsubid = 0
where p.pronamespace = 'pgbus'::regnamespace order by 1
"""
INTERNAL = "Internal to pgbus: may change in any release."
WITH_DATA = ("broadcast", "broadcast_on_commit", "broadcast_ephemeral")
RAISING = (*WITH_DATA, "broadcast_many", "last_id", "read_after", "watch_table", "unwatch_table", "disconnect", "prune",
           "presence_members", "presence_count", "presence_join", "presence_leave", "presence_touch",
           "presence_touch_many")  # fmt: skip


def comments(sql: Session) -> dict[str, tuple[str, str]]:
    """Return name and comment of each function of the schema, by its signature."""
    return {signature: (name, comment) for signature, name, comment in sql.run(FUNCTIONS)}


def test_a_function_with_an_underscore_is_marked_as_internal(sql: Session) -> None:
    found = [comment for name, comment in comments(sql).values() if name.startswith("_")]
    assert set(found) == {INTERNAL} and len(found) > 40


def test_every_public_function_has_a_comment(sql: Session) -> None:
    for signature, (name, comment) in comments(sql).items():
        if not name.startswith("_"):
            assert len(comment) > 40 and comment.endswith((".", ";")) and INTERNAL not in comment, signature
            assert comment[0].isupper() and max(map(len, comment.splitlines())) <= 120, signature


@pytest.mark.parametrize("name", RAISING)
def test_the_comment_of_a_function_that_refuses_arguments_names_the_sqlstates(name: str, sql: Session) -> None:
    [full, *others] = sorted(
        (one for own, one in comments(sql).values() if own == name), key=lambda c: "Errors:" not in c
    )
    assert re.search(r"\nErrors: (22023|as those of \w+)", full)
    assert len(others) == (2 if name in WITH_DATA else 0)
    assert all(one.startswith("Does the same as") for one in others)


def test_the_documentation_names_every_public_function_and_no_other(sql: Session) -> None:
    public = {name for name, _ in comments(sql).values() if not name.startswith("_")}
    pages = [(DOCS / page).read_text() for page in ("sql.md", "presence.md", "retention.md")]
    shown = "".join(
        re.sub("<!--.*?-->", "", page, flags=re.DOTALL) for page in pages
    )  # a comment sets up what a test needs
    assert (
        set(re.findall(r"\bpgbus\.(\w+)\(", shown)) - {"stream", "stream_path"} == public
    )  # two are methods in Python


def test_a_function_that_takes_data_takes_text_json_and_jsonb(sql: Session) -> None:
    taking = sql.run(
        "select p.proname, array_agg(t.name order by t.name) from pg_proc p"
        " cross join lateral (select p.proargtypes[array_position(p.proargnames, 'data') - 1]::regtype::text) t(name)"
        " where p.pronamespace = 'pgbus'::regnamespace and p.proname !~ '^_' and t.name is not null group by p.proname"
    )
    assert dict(taking) == {
        **{name: ["json", "jsonb", "text"] for name in WITH_DATA},
        "broadcast_many": ["anycompatiblearray"],
    }
