"""Settings on their way to another process, or to an application in this one: as variables, without loss."""

from __future__ import annotations

import json
import os
from decimal import Decimal

from .table import Settings, entries, variable


def variables(settings: Settings) -> dict[str, str]:
    """The variables that give another process these settings; `Settings.load` makes the same of them."""
    given = {name: getattr(settings, name) for name in entries()}
    return {variable(name): _text(value) for name, value in given.items() if value is not None}


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment, with these settings and no others in it."""
    ours = {variable("config"), *map(variable, entries())}
    return {name: value for name, value in os.environ.items() if name not in ours} | variables(settings)


def _text(value: object) -> str:
    """A setting's value as text that its kind casts back to the same value, whatever characters are in it.

    Raises TypeError for a value that has no such form.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"  # an exponent is no number here
    if isinstance(value, tuple):
        return json.dumps([str(item) for item in value])
    if isinstance(value, (str, int)):
        return str(value)
    raise TypeError(f"a setting of type {type(value).__name__} cannot be given to another process")
