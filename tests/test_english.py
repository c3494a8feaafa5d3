"""The English of code, docs, messages and tests, so far as a search can judge it: no persons, and sentences that end.

A component is the subject of a sentence, never a person. A sentence has at most 25 words. The name of a test is a claim
of at most 70 characters. Where the last two did not hold everywhere, the count may only fall.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pages import ROOT

PACKAGE = sorted((ROOT / "mmcache").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OTHERS = sorted(path for name in ("benchmarks", "examples", "tools") for path in (ROOT / name).rglob("*.py"))
CORE = sorted((ROOT / "core").glob("*.[ch]"))
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/adr").glob("*.md"),
    ]
)

PERSONS = re.compile(r"(?<![A-Za-z])(?:nobody|somebody|whoever|whom|he|his|him)(?![A-Za-z])", re.IGNORECASE)
LONGEST_SENTENCE, LONGEST_NAME = 25, 70
LONG_SENTENCES_OF_PAGES = 55
LONG_SENTENCES_OF_DOCSTRINGS = 55
LONG_NAMES = 35
"""What there is now. Lower it when it falls; it never grows."""


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what a person reads in a module: comments, docstrings and names of functions; of the package, and
    where a text has several words, its messages too."""
    text = path.read_text("utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    is_of_package = path in PACKAGE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno, node.name.replace("_", " ")
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
        elif is_of_package and isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def sentences(text: str) -> list[str]:
    """The sentences of prose: of a page or docstring without code, tables and headings."""
    text = re.sub(r"^( *)```.*?^\1```", "\n\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ *(?:>>>|\.\.\.).*(?:\n(?! *$).*)*", "", text, flags=re.MULTILINE)
    text = re.sub(r"^ *(?:[|#]|<!--).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    parts = re.split(r"(?<=[.!?:;])[\s)*]+|\n\s*\n|^\s*(?:[-*]|\d+\.|[\w, ]+:)\s", text, flags=re.MULTILINE)
    return [" ".join(part.split()) for part in parts if part.strip()]


def long_ones(text: str) -> list[str]:
    return [one for one in sentences(text) if len(re.findall(r"\w[\w'-]*", one)) > LONGEST_SENTENCE]


@pytest.mark.parametrize("paths", [PACKAGE, TESTS, OTHERS], ids=["package", "tests", "benchmarks, examples and tools"])
def test_code_names_components_and_no_persons(paths):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {hit[0]}"
        for path in paths
        for line, text in words_of(path)
        if (hit := PERSONS.search(text)) and path.name not in ("test_english.py", "test_site.py")
    ]
    assert found == []


def test_pages_and_the_core_name_components_and_no_persons():
    found = [
        f"{path.relative_to(ROOT)}: {hit[0]}"
        for path in [*PAGES, *CORE, ROOT / "pyproject.toml"]
        for hit in PERSONS.finditer(path.read_text("utf-8"))
    ]
    assert found == []


def test_long_sentences_of_pages_only_become_fewer():
    found = [one for page in PAGES if page.name != "CHANGELOG.md" for one in long_ones(page.read_text("utf-8"))]
    assert len(found) <= LONG_SENTENCES_OF_PAGES, "\n\n".join(found)


def test_long_sentences_of_docstrings_only_become_fewer():
    found = []
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                found += long_ones(ast.get_docstring(node) or "")
    assert len(found) <= LONG_SENTENCES_OF_DOCSTRINGS, "\n\n".join(found)


def test_long_names_of_tests_only_become_fewer():
    found = [
        name
        for path in TESTS
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
        if len(name.removeprefix("test_")) > LONGEST_NAME
    ]
    assert len(found) <= LONG_NAMES, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is short. Another, too.", ["One is short.", "Another, too."]),
        ("# A heading\n\nA sentence\nin two lines.\n\n```sh\nls -l. Not\n```\n", ["A sentence in two lines."]),
        ("| a | table. of |\n\nSee [a page](elsewhere.md), and `some. code`.", ["See [a page], and code."]),
        ("An example.\n\n>>> f(1)\n2\n", ["An example."]),
        ("- one item\n- another", ["one item", "another"]),
    ],
)
def test_prose_is_cut_into_sentences(text, expected):
    assert sentences(text) == expected
