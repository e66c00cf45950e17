"""Counts what a process of ``serve`` holds. It runs inside that process, and knows no part by name.

The walk begins at every Instance and every module of the package, and follows attributes, items, bound methods and closures. So a
map that is added to any part is counted without a change here.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import types
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import gevent
import greenlet

from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import instances
from pgbus_gevent.web.process import resident_bytes

from . import heap

PACKAGE = "pgbus_gevent"
DEPTH = 25
"""How many steps from a root the walk goes."""

_PLAIN = (str, bytes, bytearray, int, float, bool, type(None), type, types.ModuleType, Settings)


def census() -> dict[str, Any]:
    """Return the sizes of all containers by path, and the totals of the process. Garbage is collected first."""
    gc.collect()
    in_use = heap.in_use()  # before the census takes memory itself
    containers: Counter[str] = Counter()
    for path, size in _walk(_roots()):
        containers[path] += size
    objects = gc.get_objects()
    totals = {
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,
        "greenlets": sum(issubclass(type(each), greenlet.greenlet) and not each.dead for each in objects),
        "watchers": gevent.get_hub().loop.activecnt,
        "objects": len(objects),
    }
    return {
        "pid": os.getpid(),
        "clients": sum(len(instance.registry) for instance in instances()),
        "totals": totals,
        "rss": resident_bytes(),
        "in_use": in_use,
        "containers": dict(containers),
    }


def _roots() -> list[tuple[str, Any]]:
    """Every Instance, and every container and cache of a module. Values of modules that are imported elsewhere count once."""
    found: list[tuple[str, Any]] = [("instance", instance) for instance in instances()]
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == PACKAGE:
            found += [(f"{name}:{key}", value) for key, value in list(vars(module).items()) if not key.startswith("__")]
    return found


def _walk(roots: list[tuple[str, Any]]) -> Iterator[tuple[str, int]]:
    """Yield path and size of each container. What is inside one container shares a path, because items move in it."""
    seen: set[int] = set()
    waiting = deque((path, thing, 0) for path, thing in roots)
    keep = []  # objects that a property made must live until the end, or their ids would be used again
    while waiting:
        path, thing, depth = waiting.popleft()
        try:
            if isinstance(thing, _PLAIN) or id(thing) in seen or depth > DEPTH:
                continue
        except Exception:  # Django's settings, which say of what class they are only when they have been configured
            continue
        seen.add(id(thing))
        keep.append(thing)
        size = _size(thing)
        if size is not None:
            yield path, size
        waiting.extend((path + step, value, depth + 1) for step, value in _inside(thing))


def _size(thing: Any) -> int | None:
    """The size of a container; None for what is none, or cannot grow beyond its own bound."""
    if isinstance(thing, functools._lru_cache_wrapper):
        return thing.cache_info().currsize if thing.cache_info().maxsize is None else None
    if isinstance(thing, deque):
        return len(thing) if thing.maxlen is None else None
    if isinstance(thing, (Mapping, Set)) or (isinstance(thing, Sequence) and not isinstance(thing, tuple)):
        try:
            return len(thing)
        except Exception:
            return None
    return None


def _inside(thing: Any) -> list[tuple[str, Any]]:
    """What the walk finds in ``thing``, with the step that leads there."""
    if isinstance(thing, Mapping):
        try:
            return [("[]", value) for item in list(thing.items()) for value in item]
        except Exception:
            return []
    if isinstance(thing, deque) and thing.maxlen is not None:
        return []  # it holds no more than its bound, and neither does all that is inside
    if isinstance(thing, (Set, Sequence)):
        return [("[]", value) for value in list(thing)]
    if isinstance(thing, types.MethodType):
        return [("", thing.__self__)]
    if isinstance(thing, functools.partial):
        return [("()", value) for value in (thing.func, *thing.args, *thing.keywords.values())]
    if isinstance(thing, types.GeneratorType):
        frame = thing.gi_frame
        return [] if frame is None else [(f"<{name}>", value) for name, value in list(frame.f_locals.items())]
    if isinstance(thing, types.FunctionType):
        return [("<>", value) for value in _closure(thing)]
    if type(thing).__module__.partition(".")[0] != PACKAGE:
        return []
    return [(f".{name}", value) for name, value in _attributes(thing)]


def _closure(function: types.FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            pass  # it is empty yet
    return found


def _attributes(thing: Any) -> Iterator[tuple[str, Any]]:
    slots = [name for kind in type(thing).__mro__ for name in _slots(kind) if name not in ("__weakref__", "__dict__")]
    for name in (*slots, *list(getattr(thing, "__dict__", ()))):
        yield name, getattr(thing, name, None)


def _slots(kind: type) -> tuple[str, ...]:
    found = kind.__dict__.get("__slots__", ())
    return (found,) if isinstance(found, str) else tuple(found)
