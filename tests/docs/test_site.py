"""The documentation site: it builds without a warning, needs no other host, can be searched, and has its pages as text too."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser_parts import Browser, missing

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "mkdocs.yml"
NO_ANNOUNCEMENT = {"NO_MKDOCS_2_WARNING": "1"}

pytestmark = pytest.mark.docs


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        env={**os.environ, **NO_ANNOUNCEMENT},
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once for all processes that run tests. Fails if it cannot be built."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    outcome = folder / "site.outcome"
    with (folder / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not outcome.exists():
            done = build(CONFIG, folder / "site")
            outcome.write_text(f"{done.returncode}\n{done.stdout}{done.stderr}", encoding="utf-8")
    told = outcome.read_text(encoding="utf-8")
    assert told.startswith("0\n") and "Documentation built" in told and "WARNING" not in told, told
    return folder / "site"


def listed(part: object) -> list[str]:
    """Return the pages of a part of the navigation."""
    if isinstance(part, str):
        return [part]
    children = part.values() if isinstance(part, dict) else part
    return [page for child in children for page in listed(child)]  # type: ignore[attr-defined]


class Loader(yaml.SafeLoader):
    """Reads what only MkDocs understands as nothing."""


Loader.add_multi_constructor("", lambda loader, tag, node: None)


def navigation() -> list[Any]:
    """Return the navigation as the configuration has it."""
    return list(yaml.load(CONFIG.read_text(encoding="utf-8"), Loader)["nav"])


def test_each_page_that_is_listed_is_built(site: Path) -> None:
    pages = listed(navigation())
    assert len(pages) > 80
    built = {re.sub(r"README\.md$", "index.md", page).removesuffix(".md") for page in pages}
    assert [page for page in built if not (site / f"{page}.html").exists()] == []


def test_the_table_in_the_readme_has_the_pages_of_the_navigation_in_their_parts_and_order() -> None:
    elsewhere = re.compile(r"index\.md|repository/README\.md|decisions/\d.*")
    pages = {title: listed(part) for section in navigation() for title, part in section.items()}
    wanted = {
        title: [page.removeprefix("repository/") if "repository/" in page else f"docs/{page}" for page in part]
        for title, part in (
            (title, [page for page in part if not elsewhere.fullmatch(page)]) for title, part in pages.items()
        )
    }
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Documentation\n")[2]
    rows = re.findall(r"^\| (\w+) \| (.*\]\(.*) \|$", readme, re.MULTILINE)
    assert {title: re.findall(r"\]\(([^)]+)\)", pages) for title, pages in rows} == wanted


def test_no_page_shows_markup_that_only_the_repository_understands(site: Path) -> None:
    """Python-Markdown wants an empty line before a list, a table and a block of code, and four spaces before a nested one."""
    raw = re.compile(r"^(?:<p>)?(?:[-*] |\d+\. |\|.*\|$|```|:::).*", re.MULTILINE)
    shown = set()
    for page in site.rglob("*.html"):
        (article,) = re.findall(r"<article.*?</article>", page.read_text(encoding="utf-8"), re.DOTALL)
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", article, flags=re.DOTALL)
        shown |= {(page.relative_to(site).as_posix(), found) for found in raw.findall(text)}
    assert shown == set()


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    tags = re.compile(
        r"<(?:script|link|img|iframe|source|video|audio)\b[^>]*?\b(?:src|href|srcset)=\"?((?:https?:)?//[^\s\">]+)"
    )
    assert {(page.name, url) for page in pages for url in tags.findall(page.read_text(encoding="utf-8"))} == set()
    styles = "".join(style.read_text(encoding="utf-8") for style in site.rglob("*.css"))
    assert re.findall(r"@import|url\(\"?(?:https?:)?//", styles) == []


def test_the_pages_exist_as_text_and_their_links_lead_to_texts(site: Path) -> None:
    index = (site / "llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# pgbus_gevent\n\n> .+\n\n.+\n\n## Start\n\n- \[", index)
    places = re.findall(r"^- \[.+?\]\(([^)]+)\): \S", index, re.MULTILINE)
    assert len(places) > 80 and [place for place in places if not (site / place).exists()] == []
    targets = set()
    for place in places:
        text = re.sub(r"^( *)```.*?^\1```", "", (site / place).read_text(encoding="utf-8"), flags=re.M | re.S)
        targets |= {(place, link) for link in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", text)}
    assert len(targets) > 300
    assert [(place, link) for place, link in targets if not (site / place).parent.joinpath(link).exists()] == []


def test_the_full_text_has_the_python_interface_and_leaves_out_the_inside(site: Path) -> None:
    full = (site / "llms-full.txt").read_text(encoding="utf-8")
    assert "Publish one message with the text `data`, and return its id." in full
    assert "<!-- settings.md -->" in full and "<!-- architecture.md -->" not in full


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    links = ["[page](nowhere.md)", "[heading](index.md#nowhere)", "![picture](nowhere.png)", "[absolute](/sql.html)"]
    (tmp_path / "docs/index.md").write_text(f"# A page\n\n{' '.join(links)}\n", encoding="utf-8")
    config = f"INHERIT: {CONFIG}\nnav: [index.md]\nplugins: []\nhooks: []\nextra_css: []\n"
    config += f"theme: {{custom_dir: {ROOT}/website/overrides}}\n"
    (tmp_path / "mkdocs.yml").write_text(config, encoding="utf-8")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert [link for link in ("nowhere.md", "#nowhere", "nowhere.png", "/sql.html") if link not in done.stderr] == []


FOUND = {
    "install": "start/tutorial",
    "nothing arrives": "troubleshooting",
    "404": "troubleshooting",
    "gap": "concepts/gaps",
    "expired token": "guides/tokens",
    "watermark": "concepts/cursors",
}
"""What readers look for, and the page that should be the first result."""


@pytest.mark.skipif(missing() != "", reason=missing())
def test_a_reader_finds_pages_in_the_files_without_a_server_and_without_a_network(site: Path, browser: Browser) -> None:
    found = browser.run(
        """
        const context = await browser.newContext();
        try {
          const page = await context.newPage();
          const asked = [], errors = [], first = {};
          page.on("request", (request) => asked.push(request.url()));
          page.on("pageerror", (error) => errors.push(String(error)));
          await page.goto(arg.url);
          const input = page.locator(".md-search__input"), results = page.locator(".md-search-result__item a");
          for (const words of arg.words) {
            await input.fill("");
            await results.first().waitFor({ state: "detached" });
            await input.fill(words.slice(0, -1));
            await input.pressSequentially(words.slice(-1)); // the search waits for a key
            first[words] = await results.first().evaluate((one) => one.href);
          }
          return { asked, errors, first };
        } finally { await context.close(); }
        """,
        {"url": f"file://{site}/index.html", "words": list(FOUND)},
    )
    assert found["errors"] == []
    pages = {
        words: re.sub(r"\.html.*", "", url.removeprefix(f"file://{site}/")) for words, url in found["first"].items()
    }
    assert pages == FOUND
    assert [url for url in found["asked"] if not url.startswith(("file:", "data:", "blob:"))] == []


KINDS = ["index", "start/tutorial", "concepts/delivery", "reference/python", "settings", "comparison"]
"""One page of each kind, for the checks of what it looks like."""


@pytest.mark.slow
@pytest.mark.skipif(missing() != "", reason=missing())
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_can_be_read_by_everybody_and_fits_a_phone(site: Path, browser: Browser, kind: str) -> None:
    """axe-core finds no fault under the rules of WCAG 2.1 A and AA, and nothing is wider than a window of 320 pixels."""
    axe = (ROOT / "tests/browser/node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")
    for scheme in ("light", "dark"):
        found = browser.run(
            """
            const context = await browser.newContext({ colorScheme: arg.scheme, viewport: { width: 320, height: 800 } });
            try {
              const page = await context.newPage();
              await page.goto(arg.url);
              await page.waitForFunction(
                () => [...document.querySelectorAll("article table")].every((one) => one.closest("[tabindex]")));
              await page.evaluate(arg.axe);
              return await page.evaluate(async () => {
                // The rest of a long page has nothing else.
                const parts = { include: [[".md-header"], ["article > :nth-child(-n + 14)"], [".md-footer"]] };
                const rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"];
                const found = await axe.run(parts, { runOnly: rules, resultTypes: ["violations"] });
                const faults = found.violations.map((one) => [one.id, one.nodes.slice(0, 3).map((node) => node.html)]);
                return { faults, width: document.documentElement.scrollWidth };
              });
            } finally { await context.close(); }
            """,
            {"scheme": scheme, "axe": axe, "url": f"file://{site}/{kind}.html"},
        )
        assert found == {"faults": [], "width": 320}, scheme
