"""The tests of mmcache use its public names; what only the parts see is asked by tests/support/inside.py alone."""

from __future__ import annotations

import ast
import gc
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock import step_wall_clock
from tests.support.processes import in_child

TESTS = Path(__file__).parent
INSIDE = "support/inside.py"
REACH_INSIDE = (
    *("accidents/mutants.py", "processes/campaign.py", "processes/mutants.py", "processes/test_history_checker.py"),
    "sharing/test_counter_files.py",
)
"""Mistakes that are put into the product, and tests of a file format below every public name."""
OF_OTHERS = {"_SubParsersAction", "_current_frames", "_actions", "_exit", "_replace", "_repr_html_"}
"""Private by their form only: of the standard library, and of notebooks."""

PRIVATE_PATH = re.compile(r"mmcache(\.\w+)*\._\w+")


def modules() -> list[str]:
    found = (path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py"))
    return sorted(place for place in found if place != INSIDE and not place.startswith(REACH_INSIDE))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of what a module imports or asks of others by a private name."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_own(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for name in (*(node.module or "").split("."), *(alias.name for alias in node.names)):
                if is_private(name):
                    yield node.lineno, name
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not _is_own(node) and node.attr not in own | OF_OTHERS:
                yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and PRIVATE_PATH.fullmatch(node.value):
            yield node.lineno, node.value


def _is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_tests_ask_by_public_names():
    found = [
        f"{place}:{line}: {name}"
        for place in modules()
        for line, name in private_names(ast.parse((TESTS / place).read_text()))
    ]
    assert not found, "ask by public names, or through tests/support/inside.py:\n" + "\n".join(found)


def test_tests_fork_by_what_all_share():
    found = [
        f"{place}:{node.lineno}"
        for place in modules()
        for node in ast.walk(ast.parse((TESTS / place).read_text()))
        if not place.startswith(("support/processes.py", "accidents/test_forks.py"))
        and isinstance(node, ast.Attribute)
        and ast.unparse(node) == "os.fork"
    ]
    assert not found, "fork by tests/support/processes.py:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("cache._tiers", ["_tiers"]),
        ("self._one, self.two._three", ["_three"]),
        ("from mmcache.cache import _clock", ["_clock"]),
        ("patch('mmcache.' 'tiers._COOL_DOWN')", ["mmcache.tiers" + "._COOL_DOWN"]),
        ("def _own(): ...\nx._own, x.__len__, x._replace(a=1)", []),
    ],
)
def test_the_search_for_private_names_finds_them(source, found):
    assert [name for _, name in private_names(ast.parse(source))] == found


def test_a_clock_that_was_stepped_stays_there():
    assert in_child(_step_and_look) == 0


def _step_and_look() -> None:
    before = time.time()
    for _ in range(2):
        step_wall_clock(1e6)
        gc.collect()
    assert 2e6 <= time.time() - before < 2.1e6
