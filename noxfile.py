"""One command for each task of a contributor. ``nox --list`` lists them. Arguments after ``--`` are passed on.

All tasks but ``versions`` use one environment, the ``.venv`` of CONTRIBUTING.md, because the tools need the package and its
requirements. So a task downloads nothing.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nox

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))

from tools import versions as allowed  # noqa: E402  # nox does not look for modules beside this file

# The environment that nox was started from; or the project's, if nox comes from elsewhere (pipx, a distribution).
PYTHON = sys.executable if importlib.util.find_spec("pytest") else str(ROOT / ".venv/bin/python")

nox.options.default_venv_backend = "none"
nox.options.sessions = ["fast", "types", "lint"]
nox.options.stop_on_first_error = True


def run(session: nox.Session, module: str, *arguments: str, **options: Any) -> Any:
    """Run a module of the environment."""
    if not Path(PYTHON).exists():
        session.error(
            "there is no .venv; make it: python3 -m venv .venv && .venv/bin/pip install -r requirements.txt -e ."
        )
    return session.run(PYTHON, "-m", module, *arguments, external=True, **options)


@nox.session
def fast(session: nox.Session) -> None:
    """Run the tests that need no database, no browser and no other process, in about 20 seconds on two cores."""
    run(session, "pytest", "-q", "-m", "fast", *(session.posargs or ["-n", "2"]))


@nox.session
def test(session: nox.Session) -> None:
    """Run all tests on two cores, or those that the arguments select: nox -s test -- tests/test_bus.py -k sign."""
    run(session, "pytest", "-q", *(session.posargs or ["-n", "2"]))


@nox.session(venv_backend="uv|venv", python=allowed.PYTHONS, default=False)
@nox.parametrize("dependencies", ["oldest", "newest"])
def versions(session: nox.Session, dependencies: str) -> None:
    """Run the tests on each Python that is found, in environments of their own: nox -s "versions-3.12(dependencies='oldest')"."""
    lines = {"oldest": allowed.oldest, "newest": allowed.newest}[dependencies](str(session.python))
    session.install(*lines)
    session.install("--no-deps", "--no-build-isolation", "-e", ".")
    session.run("python", "-m", "pytest", "-q", *allowed.tests(), *(session.posargs or ["-n", "2"]))


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy in strict mode."""
    run(session, "mypy", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the code and its format with ruff, and the package with bandit. Arguments are paths."""
    run(session, "ruff", "check", *(session.posargs or ["."]))
    run(session, "ruff", "format", "--check", *(session.posargs or ["."]))
    run(session, "bandit", "-q", "-c", "pyproject.toml", "-r", *(session.posargs or ["pgbus_gevent"]))


@nox.session(name="format", default=False)
def format_(session: nox.Session) -> None:
    """Let ruff correct the code and its format. Arguments are paths."""
    run(session, "ruff", "check", "--fix", *(session.posargs or ["."]))
    run(session, "ruff", "format", *(session.posargs or ["."]))


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known vulnerabilities in the installed packages. Without the data for that, say NOT AUDITED."""
    outcome = run(session, "pip_audit", "--progress-spinner", "off", "-f", "json", silent=True, success_codes=[0, 1])
    try:
        packages = json.loads(str(outcome)[str(outcome).index("{") :].partition("\n")[0])["dependencies"]
    except ValueError:
        packages = []  # it could not reach its data
    # pip-audit also skips what an index has no data about, and then says that it knows of no vulnerability.
    audited = [package for package in packages if "vulns" in package]
    skipped = [package["name"] for package in packages if "vulns" not in package and package["name"] != "pgbus-gevent"]
    found = [f"{package['name']} {package['version']}: {bad['id']}" for package in audited for bad in package["vulns"]]
    if not audited:
        session.warn(
            f"NOT AUDITED: pip-audit has no data here, so nothing is known about any package.\n{outcome}"[:1000]
        )
    elif skipped:
        session.warn(f"NOT AUDITED, because there are no data about them: {', '.join(skipped)}")
    session.log(f"{len(audited)} packages audited, {len(found)} vulnerabilities")
    if found:
        session.error("\n".join(found))


@nox.session
def browser(session: nox.Session) -> None:
    """Run the tests in Chromium, Firefox and WebKitGTK. They must be installed, with node and npm."""
    for program in ("chromium", "firefox-esr", "WebKitWebDriver", "Xvfb", "node", "npm"):
        if shutil.which(program) is None:
            packages = "chromium firefox-esr webkit2gtk-driver xvfb nodejs npm"
            session.error(f"{program} is not installed: apt-get install {packages}")
    if not (ROOT / "tests/browser/node_modules/playwright-core").exists():
        session.run("npm", "ci", "--prefix", "tests/browser", "--silent", "--no-audit", "--no-fund", external=True)
    if not (ROOT / "tests/browser/wheels/starhtml").exists():
        flags = "--no-deps", "--ignore-requires-python", "--target", "tests/browser/wheels"
        run(session, "pip", "install", "-q", *flags, "-r", "tests/browser/requirements.txt")
    run(session, "pytest", "-q", "-m", "browser", *session.posargs)


@nox.session
def js(session: nox.Session) -> None:
    """Build the client package in js/dist, and from it the module that the server sends."""
    if not (ROOT / "js/node_modules/typescript").exists():
        session.run("npm", "ci", "--prefix", "js", "--silent", "--no-audit", "--no-fund", external=True)
    session.run("npm", "run", "build", "--prefix", "js", "--silent", external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """Check the documentation: links, code blocks, and the names in it."""
    run(session, "pytest", "-q", "-m", "docs", *session.posargs)


@nox.session
def site(session: nox.Session) -> None:
    """Write the reference pages that are made from the code, and build the documentation site in site/."""
    run(session, "website.reference")
    # Not --quiet: it hides warnings from the strict mode too. The variable turns off an announcement of another program.
    run(session, "mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


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
    # The time of the commit, so that the same commit gives the same wheel, byte for byte.
    committed = session.run("git", "log", "-1", "--format=%ct", external=True, silent=True, log=False)
    run(session, "build", "--no-isolation", *session.posargs, env={"SOURCE_DATE_EPOCH": str(committed).strip()})


@nox.session(name="all")
def everything(session: nox.Session) -> None:
    """Run lint, types and all tests, including those of the documentation, and those in a browser if it is installed."""
    for task in ("lint", "types", "test"):
        session.notify(task, posargs=[])
