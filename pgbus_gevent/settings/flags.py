"""The settings as flags of a program, and as a table for the documentation."""

from __future__ import annotations

import argparse
from dataclasses import Field
from typing import Any

from .table import entries, variable


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags of the settings ``names`` to ``parser``; by default, all flags. The name ``config`` is the TOML file.

    A flag that is not used has the value None, so `Settings.load` goes on to the variable, the file and the default. Raises
    KeyError for a name without a flag.
    """
    flagged = {name: entry for name, entry in entries().items() if entry.metadata["flag"]}
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name in names or (*flagged, "config"):
        if name == "config":
            parser.add_argument("--config", metavar="FILE", help=f"a TOML file of settings ({variable('config')})")
            continue
        title = flagged[name].metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_flag(groups[title], flagged[name])


def flags_given(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of `add_flags` that were used, as keywords for `Settings.load`. Other arguments are left out."""
    names = {"config", *entries()}
    return {name: value for name, value in vars(namespace).items() if name in names and value is not None}


def settings_table() -> str:
    """Return all settings as a Markdown table with flag, variable, default and meaning."""
    head = "| flag | variable | default | meaning |\n| --- | --- | --- | --- |\n"
    return head + "".join(f"{_row(entry)}\n" for entry in entries().values())


def _add_flag(group: argparse._ArgumentGroup, entry: Field[Any]) -> None:
    about, flag = entry.metadata, entry.metadata["flag"]
    meaning = f"{_meaning(entry)}; {variable(entry.name)}; default: {_default(entry)}".replace("%", "%%")
    if flag.startswith("--no-"):
        # Add --NAME too, so that a flag can also turn on a setting that the environment has turned off.
        group.add_argument(f"--{entry.name}", action=argparse.BooleanOptionalAction, help=meaning)
        return
    action = "append" if about["repeatable"] else "store"
    group.add_argument(flag, dest=entry.name, metavar=about["kind"].metavar, action=action, help=meaning)


def _row(entry: Field[Any]) -> str:
    flag = f"`{entry.metadata['flag']}`" if entry.metadata["flag"] else ""
    repeatable = " (repeatable)" if entry.metadata["repeatable"] else ""
    name = f"`{variable(entry.name)}`" + (", then `DATABASE_URL`" if entry.name == "database_url" else "")
    default = _default(entry) if entry.metadata["words"] else f"`{_default(entry)}`"
    return f"| {flag}{repeatable} | {name} | {default} | {_meaning(entry)} |"


def _default(entry: Field[Any]) -> str:
    return str(entry.metadata["words"] or entry.metadata["kind"].text(entry.default))


def _meaning(entry: Field[Any]) -> str:
    limits = entry.metadata["kind"].limits
    return f"{entry.metadata['help']} ({limits})" if limits else str(entry.metadata["help"])
