"""Passes settings as variables, without loss, to another process or to an application in this one."""

from __future__ import annotations

import json
import os
from decimal import Decimal

from .table import Settings, entries, variable


def variables(settings: Settings) -> dict[str, str]:
    """Return the environment variables from which `Settings.load` makes equal settings."""
    given = {name: getattr(settings, name) for name in entries()}
    return {variable(name): _text(value) for name, value in given.items() if value is not None}


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment of this process, with these settings in place of its own."""
    ours = {variable("config"), *map(variable, entries())}
    return {name: value for name, value in os.environ.items() if name not in ours} | variables(settings)


def _text(value: object) -> str:
    """Return a setting's value as text that its kind casts back to the same value. Raises TypeError for an unknown type."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"  # without an exponent, which the settings refuse
    if isinstance(value, tuple):
        return json.dumps([str(item) for item in value])
    if isinstance(value, (str, int)):
        return str(value)
    raise TypeError(f"a setting of type {type(value).__name__} cannot be given to another process")
