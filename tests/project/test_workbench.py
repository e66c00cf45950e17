"""The tools of contributors fit together: tasks, hooks before a commit, CI and templates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pre_commit.clientlib
import pytest
import yaml

ROOT = Path(__file__).parents[2]
HOOKS: list[dict[str, Any]] = [
    hook
    for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repo["hooks"]
]
PROVIDERS = {"ruff": "ruff", "mypy": "mypy"}
"""Programs by the requirement that brings them; the others are of pre-commit-hooks."""


def requirements() -> set[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {line.partition("==")[0] for line in lines if not line.startswith("#")}


def tasks() -> set[str]:
    source = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    found = re.findall(r'^@nox\.session(?:\((?:name="(\w+)")?.*\))?\n(?:@nox.*\n)?def (\w+)', source, re.MULTILINE)
    return {name or function for name, function in found}


def test_there_is_a_task_for_each_frequent_job() -> None:
    assert {"fast", "test", "versions", "types", "lint", "browser", "docs", "bench", "all"} <= tasks()


def test_the_page_for_contributors_lists_every_task() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"nox -s (\w+)`", page)) == tasks()


def test_the_test_command_in_the_readme_begins_with_the_set_up() -> None:
    (command,) = re.findall(
        r"^(python3 -m venv .*) && .*pytest", (ROOT / "README.md").read_text(encoding="utf-8"), re.M
    )
    assert f"\n{command}\n" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_each_finding_of_bandit_that_is_let_pass_has_a_reason() -> None:
    sources = (ROOT / "pgbus_gevent").rglob("*.py")
    passed = [line for path in sources for line in path.read_text(encoding="utf-8").splitlines() if "# nosec" in line]
    assert len(passed) > 10
    assert [line for line in passed if not re.search(r"# nosec B\d{3} # \w.{5,}$", line)] == []
    settings = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.bandit]")[2].partition("[tool.")[0]
    )
    kinds = [line for line in settings.splitlines() if line.strip().startswith('"B')]
    assert kinds and [line for line in kinds if not re.search(r'"B\d{3}", # \w.{10,}$', line)] == []


def test_the_hooks_are_well_formed() -> None:
    assert pre_commit.clientlib.load_config(str(ROOT / ".pre-commit-config.yaml"))


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_runs_a_program_of_the_environment_without_network(hook: dict[str, Any]) -> None:
    assert hook["language"] == "system"
    folder, _, program = hook["entry"].split()[0].rpartition("/")
    assert folder == ".venv/bin"
    assert PROVIDERS.get(program, "pre-commit-hooks") in requirements()


def test_ci_runs_the_command_of_the_readme_and_existing_tasks() -> None:
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "README.md" in text and 'bash -euo pipefail -c "$test_command"' in text
    called = {task for names in re.findall(r"nox -s ((?:\w+ ?)+)", text) for task in names.split()}
    assert {"lint", "types", "test"} <= called <= tasks()


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")), ids=lambda path: path.name)
def test_a_template_for_issues_is_well_formed(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name != "config.yml":
        assert form["name"] and form["description"]
        assert all(part["attributes"].get("label") or part["type"] == "markdown" for part in form["body"])
