"""The documentation site: pages have their places, links and anchors lead somewhere, and nothing public is missing."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmcache
from mmcache.cli.main import COMMANDS, make_parser
from mmcache.cli.options import SETTINGS
from mmcache.shown import internals_of
from tests.test_frozen import log_events
from tools import picture, site
from tools.site_docstrings import markdown, unshown

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
FENCED = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCED.sub("", page.read_text("utf-8"))


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as MkDocs and code hosts make them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())
        found.add(slug)
    return found


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]+`", "", prose(page))
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_and_anchor_of_a_page_leads_somewhere(page):
    for link in links(page):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), f"{name_of(page)}: {link}"
        if anchor and target.suffix == ".md" and "generated" not in target.read_text("utf-8"):
            assert anchor in anchors(target), f"{name_of(page)}: {link}; there are: {sorted(anchors(target))}"


def test_the_check_of_links_knows_the_anchors_of_headings(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# The `a` of [b](c.md), d\n\n```sh\n# no heading\n```\n\n## Read-only media: `immutable=True`\n")
    assert anchors(page) == {"the-a-of-b-d", "read-only-media-immutabletrue"}


def test_documents_link_to_nothing_outside_of_the_repository():
    outside = [f"{name_of(page)}: {link}" for page in PAGES for link in links(page) if "://" in link]
    assert outside == [link for link in outside if "CHANGELOG.md" in link]


@pytest.mark.parametrize("page", [page for page in PAGES if DOCS in page.parents], ids=name_of)
def test_a_page_of_the_site_links_to_no_file_beside_it(page):
    for link in links(page):
        if "://" not in link and not link.startswith("#"):
            assert DOCS in (page.parent / link.partition("#")[0]).resolve().parents, link


def test_what_code_says_of_documents_exists():
    for file in [
        *(ROOT / "mmcache").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]:
        for named in re.findall(r"\bdocs/[\w/.-]+\.md\b", file.read_text("utf-8")):
            assert (ROOT / named).exists(), f"{file}: {named}"


# --- places -----------------------------------------------------------------------------------------------------------


def navigation() -> list[str]:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    found: list[str] = []

    def walk(entry: Any) -> None:
        if isinstance(entry, str):
            found.append(entry)
        else:
            for inner in entry if isinstance(entry, list) else entry.values():
                walk(inner)

    walk([site.expanded(entry, DOCS) for entry in config["nav"]])
    return found


def test_every_page_has_one_line_in_the_navigation():
    assert sorted(navigation()) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.integration
def test_the_site_is_built_strictly_and_every_link_of_it_leads_somewhere(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert list(site.problems(tmp_path / "site")) == []
    api = (tmp_path / "site" / "api.html").read_text("utf-8")
    for name in set(mmcache.__all__) - {"__version__"}:
        assert f'id="mmcache.{name}"' in api, name
    assert 'id="mmcache.Snapshot.verify"' in api
    for kind in (mmcache.Snapshot, mmcache.FileCollection, mmcache.Selection, mmcache.SQLiteSource):
        assert [name for name in internals_of(kind) if f'id="mmcache.{kind.__name__}.{name}"' in api] == []
    assert found_from_the_disk(tmp_path / "site" / "index.html", "embedding", tmp_path) > 9


def found_from_the_disk(page: Path, word: str, scratch: Path) -> int:
    """How many pages the search of a built site finds, opened by a browser without a server."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no browser to search with")
    shown = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={scratch / 'profile'}"),
            *("--virtual-time-budget=20000", "--dump-dom", f"{page.as_uri()}?q={word}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r"(\d+) matching documents", shown.stdout)
    return 0 if found is None else int(found[1])


def test_a_dead_link_of_a_built_site_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="x"></h1><a href="b.html">b</a><a href="#y">y</a><a href="#x">x</a>')
    (tmp_path / "c.html").write_text('<script src="https://elsewhere/x.js"></script><img src="none.svg">')
    found = list(site.problems(tmp_path))
    assert [line.partition(":")[0] for line in found] == ["a.html", "a.html", "c.html", "c.html"]
    assert "leads nowhere" in found[0]
    assert "no such anchor" in found[1]
    assert "another host" in found[2]


# --- completeness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(mmcache.__all__) - {"__version__"}))
def test_every_public_name_is_on_the_page_of_the_api(name):
    assert f"\n::: mmcache.{name}\n" in (DOCS / "api.md").read_text("utf-8")


def test_the_page_of_open_has_every_option_with_its_default():
    page = (DOCS / "open.md").read_text("utf-8")
    for option in list(inspect.signature(mmcache.open).parameters.values())[1:]:
        (row,) = re.findall(rf"^\| `{option.name}` \| ([^|]+) \|", page, re.MULTILINE)
        default = str(option.default) if not isinstance(option.default, str) else f'"{option.default}"'
        assert row.strip() in (default, "that of `profile`", "a day", "0.8"), option.name


def test_the_page_and_the_docstring_of_open_have_the_same_groups():
    page = (DOCS / "open.md").read_text("utf-8").split("\n## ")[1:]
    text = inspect.cleandoc(str(mmcache.open.__doc__))
    headings = [f"\n{section.partition(chr(10))[0]}:\n" for section in page]
    places = [text.find(heading) for heading in headings]
    assert -1 not in places
    assert places == sorted(places)
    for section, begin, end in zip(page, places, [*places[1:], len(text)], strict=True):
        for option in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE):
            assert re.search(rf"\b{option}\b", text[begin:end]), f"{option} is in another group of the docstring"


def test_every_command_and_option_is_on_the_page_of_commands():
    page = site.on_page_markdown((DOCS / "commands.md").read_text("utf-8"))
    for name in COMMANDS:
        section = page.partition(f"## mmcache {name}\n")[2].partition("\n## mmcache ")[0]
        (parser,) = (
            action.choices[name]
            for action in make_parser(name)._actions
            if isinstance(action, argparse._SubParsersAction)
        )
        for action in parser._actions:
            if action.help != argparse.SUPPRESS and action.dest != "help":
                words = action.option_strings or [str(action.metavar or action.dest)]
                assert all(f"`{word}" in section for word in words), (name, words)


def test_every_setting_is_on_its_page():
    page = site.on_page_markdown((DOCS / "settings.md").read_text("utf-8"))
    assert all(f"`MMCACHE_{name.upper()}`" in page for name in SETTINGS)


def test_every_log_event_has_a_row():
    page = (DOCS / "events.md").read_text("utf-8")
    rows = {
        name for first in re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", first)
    }
    assert rows == set(log_events())


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code():
    source = "".join(path.read_text("utf-8") for path in (ROOT / "mmcache").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    headings = re.findall(r"^### (.+)$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    assert len(headings) > 25
    assert [heading for heading in headings if heading not in joined] == []


def test_every_promise_names_tests_that_exist():
    sections = (DOCS / "promises.md").read_text("utf-8").split("\n## ")[1:]
    for section in sections:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", section)
        assert named, section.partition("\n")[0]
        for path, test in named:
            assert f"def {test}(" in (ROOT / path).read_text("utf-8"), f"{path}::{test}"


def test_the_picture_is_that_of_the_last_full_run(tmp_path):
    picture.main(["-o", str(tmp_path / "memory.svg")])
    assert (tmp_path / "memory.svg").read_text("utf-8") == picture.PICTURE.read_text("utf-8")


# --- words ------------------------------------------------------------------------------------------------------------


def test_the_readme_has_fewer_than_900_words():
    assert len((ROOT / "README.md").read_text("utf-8").split()) < 900


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_a_page_names_components_not_people(page):
    found = re.findall(r"\b(?:nobody|somebody|whoever|whom|he|his)\b", prose(page), re.IGNORECASE)
    assert found == []


def test_what_a_class_does_not_show_is_not_on_its_page():
    assert unshown(["made_here", "internal('attach', 'layout')", "dataclass(frozen=True)"]) == [
        *("__init__", "attach", "layout"),
    ]


def test_a_docstring_becomes_lists_and_blocks():
    text = "Opens it.\n\na: one thing\n    and more. b: another\n\n>>> f()\n1\n\nThe end."
    lines = markdown(text).split("\n")
    assert [line for line in lines if line] == [
        *("Opens it.", "- `a`: one thing", "    and more. `b`: another"),
        *("```pycon", ">>> f()", "1", "```", "The end."),
    ]
    assert lines[lines.index("```pycon") - 1] == lines[lines.index("The end.") - 1] == ""
