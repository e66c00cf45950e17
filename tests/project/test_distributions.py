"""The source distribution and the wheel are complete, contain nothing else, and have correct metadata."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import pgbus_gevent

ROOT = Path(__file__).parents[2]
NOT_SOURCES = (".venv", ".git", "node_modules", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
LINK = re.compile(r"\]\(([^)\s]+)\)")


COMMITTED = 1_767_225_600
"""When the commit was made from which the archives are built, in Unix seconds."""


def build(folder: Path, *what: str) -> None:
    """Build archives from a copy of the sources."""
    shutil.copytree(ROOT, folder / "sources", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    command = [sys.executable, "-m", "build", "--no-isolation", *what]
    command += ["--outdir", str(folder / "dist"), str(folder / "sources")]
    variables = {**os.environ, "SOURCE_DATE_EPOCH": str(COMMITTED)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


class Built:
    """The two archives that ``nox -s build`` makes, built from a copy of the sources."""

    def __init__(self, folder: Path) -> None:
        build(folder)
        (self.sdist,) = folder.glob("dist/*.tar.gz")
        (self.wheel,) = folder.glob("dist/*.whl")
        with tarfile.open(self.sdist) as archive:
            # Names without the top folder of the archive.
            self.in_sdist = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        with zipfile.ZipFile(self.wheel) as archive:
            self.in_wheel = set(archive.namelist())
            (name,) = [name for name in self.in_wheel if name.endswith(".dist-info/METADATA")]
            self.metadata = archive.read(name)

    @property
    def fields(self) -> Message:
        return BytesParser().parsebytes(self.metadata)

    @property
    def description(self) -> str:
        return self.metadata.decode().partition("\n\n")[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("built")
    yield Built(folder)
    shutil.rmtree(folder)


def entries(wheel: Path) -> list[tuple[str, tuple[int, ...], int]]:
    """Return what a wheel says of each of its files: name, time and mode. It helps to see a difference."""
    with zipfile.ZipFile(wheel) as archive:
        return [(each.filename, each.date_time, each.external_attr) for each in archive.infolist()]


def test_the_wheel_is_the_same_byte_for_byte_wherever_and_whenever_it_is_built(built: Built, tmp_path: Path) -> None:
    """One was built from the source distribution, the other from the tree, in another folder and at a later time."""
    build(tmp_path / "another/folder", "--wheel")
    (again,) = tmp_path.glob("another/folder/dist/*.whl")
    assert int(again.stat().st_mtime) > int(built.wheel.stat().st_mtime)
    assert entries(again) == entries(built.wheel)
    assert again.read_bytes() == built.wheel.read_bytes()


def sources(*folders: str) -> set[str]:
    """Return the files that the repository has in some folders."""
    found = {path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    names = {path.relative_to(ROOT).as_posix() for path in found}
    made = ("__pycache__", "node_modules", "_cache/", ".venv/", "js/dist/", "tests/browser/wheels/")
    return {name for name in names if not any(part in name for part in made)}


def test_both_archives_have_the_version_of_the_package(built: Built) -> None:
    version = pgbus_gevent.__version__
    assert built.sdist.name == f"pgbus_gevent-{version}.tar.gz"
    assert built.wheel.name == f"pgbus_gevent-{version}-py3-none-any.whl"
    assert built.fields["Version"] == version


def test_the_version_is_stated_in_one_place() -> None:
    stated = [
        path
        for name in sources("pgbus_gevent") | {"setup.py", "pyproject.toml", "README.md"}
        if (path := ROOT / name).suffix in {".py", ".toml", ".md", ".sql", ".js"}
        and f'"{pgbus_gevent.__version__}"' in path.read_text(encoding="utf-8")
    ]
    assert stated == [ROOT / "pgbus_gevent/__init__.py"]


def test_the_sdist_has_every_file_that_its_tests_need_and_its_pages_link_to(built: Built) -> None:
    expected = sources(
        "pgbus_gevent", "tests", "docs", "examples", "benchmarks", "deploy", "website", "tools", "js", ".ci", ".github"
    )
    expected |= {path.name for path in ROOT.glob("*.md")}
    expected |= {"LICENSE", "MANIFEST.in", "setup.py", "pyproject.toml", "requirements.txt", "noxfile.py", "mkdocs.yml"}
    assert any(Path(name).name == "conftest.py" for name in expected)
    assert expected - built.in_sdist == set()


def test_the_wheel_has_the_package_with_its_data_and_nothing_else(built: Built) -> None:
    package = {name for name in built.in_wheel if ".dist-info/" not in name}
    assert package == sources("pgbus_gevent")
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in built.in_wheel)


def test_neither_archive_has_leftovers_of_a_build_or_a_test(built: Built) -> None:
    left = re.compile(r"__pycache__|\.pyc$|node_modules|\.venv|(^|/)\.git/|_cache/|\.hypothesis")
    assert [name for name in built.in_sdist | built.in_wheel if left.search(name)] == []


def test_the_metadata_is_valid(built: Built) -> None:
    metadata = Metadata.from_email(built.metadata, validate=True)
    assert metadata.name == "pgbus-gevent"
    assert metadata.description_content_type == "text/markdown"
    assert metadata.summary and metadata.requires_python is not None


def test_each_link_of_the_description_is_absolute_and_leads_to_a_released_file(built: Built) -> None:
    links = [link for link in LINK.findall(built.description) if not link.startswith("#")]
    assert links and [link for link in links if not re.match(r"https?://", link)] == []
    base = re.escape(built.fields["Home-page"] or built.fields["Project-URL"])
    pages = re.compile(rf"{base}/(?:blob|raw)/v{re.escape(pgbus_gevent.__version__)}/([^#]+)")
    ours = {found[1] for link in links if (found := pages.match(link))}
    assert len(ours) > 10 and [name for name in ours if not (ROOT / name).exists()] == []


def test_the_images_of_the_description_are_raw_files(built: Built) -> None:
    images = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", built.description)
    assert images and all("/raw/v" in image for image in images)


def test_the_description_is_the_readme_except_for_its_links(built: Built) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert LINK.sub("](…)", built.description).strip() == LINK.sub("](…)", readme).strip()
