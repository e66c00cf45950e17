"""One command for each task of a contributor. ``nox --list`` lists them. Arguments after ``--`` are passed on.

All tasks use one environment, the ``.venv`` of CONTRIBUTING.md, because the tools need the package and its requirements. So a task
downloads nothing.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
# The environment that nox was started from; or the project's, if nox comes from elsewhere (pipx, a distribution).
PYTHON = sys.executable if importlib.util.find_spec("pytest") else str(ROOT / ".venv/bin/python")

nox.options.default_venv_backend = "none"
nox.options.sessions = ["fast", "types", "lint"]
nox.options.stop_on_first_error = True


def run(session: nox.Session, module: str, *arguments: str) -> None:
    """Run a module of the environment."""
    if not Path(PYTHON).exists():
        session.error(
            "there is no .venv; make it: python3 -m venv .venv && .venv/bin/pip install -r requirements.txt -e ."
        )
    session.run(PYTHON, "-m", module, *arguments, external=True)


@nox.session
def fast(session: nox.Session) -> None:
    """Run the tests that need no database, no browser and no other process, in about 20 seconds on two cores."""
    run(session, "pytest", "-q", "-m", "fast", *(session.posargs or ["-n", "2"]))


@nox.session
def test(session: nox.Session) -> None:
    """Run all tests on two cores, or those that the arguments select: nox -s test -- tests/test_bus.py -k sign."""
    run(session, "pytest", "-q", *(session.posargs or ["-n", "2"]))


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy in strict mode."""
    run(session, "mypy", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the code and its format with ruff. Arguments are paths."""
    run(session, "ruff", "check", *(session.posargs or ["."]))
    run(session, "ruff", "format", "--check", *(session.posargs or ["."]))


@nox.session(name="format", default=False)
def format_(session: nox.Session) -> None:
    """Let ruff correct the code and its format. Arguments are paths."""
    run(session, "ruff", "check", "--fix", *(session.posargs or ["."]))
    run(session, "ruff", "format", *(session.posargs or ["."]))


@nox.session
def browser(session: nox.Session) -> None:
    """Run the tests in Chromium. It must be installed, with node and npm."""
    for program in ("chromium", "node", "npm"):
        if shutil.which(program) is None:
            session.error(f"{program} is not installed: apt-get install chromium nodejs npm")
    if not (ROOT / "tests/browser/node_modules/playwright-core").exists():
        session.run("npm", "ci", "--prefix", "tests/browser", "--silent", "--no-audit", "--no-fund", external=True)
    run(session, "pytest", "-q", "-m", "browser", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Check the documentation: links, code blocks, and the names in it."""
    run(session, "pytest", "-q", "-m", "docs", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmark: nox -s bench -- fanout paced."""
    run(session, "pgbus_gevent", "bench", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution and the wheel in dist/, from a clean tree. docs/releasing.md describes the next steps."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    if "https://example.org/" in (ROOT / "setup.py").read_text(encoding="utf-8"):
        session.warn("REPOSITORY in setup.py is still a placeholder: replace it before you upload this")
    run(session, "build", "--no-isolation", *session.posargs)


@nox.session(name="all")
def everything(session: nox.Session) -> None:
    """Run lint, types and all tests, including those of the documentation, and those in a browser if it is installed."""
    for task in ("lint", "types", "test"):
        session.notify(task, posargs=[])
