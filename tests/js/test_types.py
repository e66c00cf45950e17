"""The types of the client package, as applications see them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from js_parts import Package, missing, run
from page_parts import block_of

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

USES = Path(__file__).with_name("uses")
STRICT = {"strict": True, "noUncheckedIndexedAccess": True, "noEmit": True, "types": [], "target": "ES2022"}


def check(package: Package, folder: Path, resolution: str, files: dict[str, str], status: int = 0) -> str:
    """Check the types of some files. Return what the compiler says."""
    skips = any(name.endswith(".tsx") for name in files)
    options = {
        **STRICT,
        "jsx": "react-jsx",
        "skipLibCheck": skips,
        "module": "NodeNext" if resolution == "NodeNext" else "ESNext",
        "moduleResolution": resolution,
    }
    settings = {"compilerOptions": options, "include": ["*.ts", "*.tsx"]}
    return run(
        package.application(folder, {**files, "tsconfig.json": json.dumps(settings)}), "tsc", "-p", ".", status=status
    )


@pytest.mark.parametrize("resolution", ["NodeNext", "Bundler"])
def test_right_uses_have_no_errors_and_wrong_uses_have(js_package: Package, tmp_path: Path, resolution: str) -> None:
    """A line of wrong.ts without an error would be one, because of its comment. The declarations are checked as well."""
    files = {path.name: path.read_text() for path in USES.glob("*.ts")}
    check(js_package, tmp_path / "app", resolution, {**files, "page.ts": block_of("docs/browser.md", "bundle")})


def test_hooks_and_templates_have_types(js_package: Package, tmp_path: Path) -> None:
    """The declarations of React and Vue themselves are not checked."""
    check(js_package, tmp_path / "app", "Bundler", {"hooks.tsx": (USES / "hooks.tsx").read_text()})


def test_each_wrong_use_is_an_error_of_its_own(js_package: Package, tmp_path: Path) -> None:
    wrong = (USES / "wrong.ts").read_text()
    expected = wrong.count("@ts-expect-error")
    bare = {"wrong.ts": wrong.replace("@ts-expect-error", "")}
    said = check(js_package, tmp_path / "app", "Bundler", bare, status=1)
    lines = {line.partition(",")[0] for line in said.splitlines() if "error TS" in line}
    assert len(lines) == expected > 10, said
