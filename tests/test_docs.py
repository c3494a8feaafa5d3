"""What the documents should name they name. That their blocks run: test_pages.py; their links: test_site.py."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmcache
from mmcache.sharing.alerts import Rules
from mmcache.sharing.metrics import FAMILIES

ROOT = Path(__file__).parent.parent
DOCS = "".join(page.read_text() for page in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))])


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)


def test_the_readme_names_only_targets_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(re.findall(r"`[^`\n]+`", DOCS)) + "".join(blocks("sh"))))
    assert named
    assert named <= targets


@pytest.mark.parametrize("name", sorted(set(mmcache.__all__) - {"__version__"}))
def test_every_public_name_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", DOCS), f"{name} is public and stands in no document"
    assert getattr(mmcache, name).__doc__, f"{name} has no docstring"


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "mmcache", "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    commands = set(re.findall(r"^ {4}([a-z]+)\b", shown, re.MULTILINE))
    assert {"build", "rebuild", "status", "verify", "get", "find", "inspect", "clear"} <= commands
    documented = set(
        re.findall(r"\bmmcache ([a-z]+)\b", "\n".join(re.findall(r"`[^`\n]+`", DOCS)) + "".join(blocks("sh")))
    )
    assert commands - {"optimize"} <= documented
    assert documented <= commands


def test_every_file_and_directory_that_the_documents_name_exists() -> None:
    named = set(re.findall(r"`((?:mmcache|tests|docs|benchmarks|tools)/[\w/.]+)`", DOCS))
    assert named
    assert [name for name in named if "/." not in name and not (ROOT / name).exists()] == []


def test_every_decision_record_has_its_three_parts() -> None:
    for page in (ROOT / "docs" / "adr").glob("*.md"):
        assert re.fullmatch(r"\d{4}-[a-z0-9-]+", page.stem)
        text = page.read_text()
        assert re.match(rf"# {int(page.stem[:4])}\. ", text)
        assert all(f"**{part}.**" in text for part in ("Problem", "Decision")), page


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{mmcache.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_metric_and_every_rule_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    for name, (family, members) in FAMILIES.items():
        sample = f"mmcache_{name}_total" if family.kind == "counter" else f"mmcache_{name}"
        labels = f"{family.label}: {', '.join(metric.value for metric in members)}" if family.label else ""
        assert f"| `{sample}` | {family.kind} | {labels} | {family.help} |" in page, sample
    for rule in dataclasses.fields(Rules):
        assert rule.name == "window" or f"| `{rule.name}` |" in page
