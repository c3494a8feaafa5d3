"""The examples in docstrings run as they stand, over one small cache, and every public name is shown in one."""

from __future__ import annotations

import contextlib
import doctest
import errno
import functools
import importlib
import inspect
import json
import math
import os
import pickle
import re
import shutil
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import IterableSource, Schema
from mmcache.shown import internals_of
from mmcache.sources import base
from tests.test_frozen import MADE_BY_US, MODULES

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
PAGES = Path(__file__).parent.parent / "docs"

SHOWN_ON_THE_PAGE_OF_PYTEST = {
    "mmcache.integrations.pytest_plugin.CacheFactory": "mmcache_factory(",
    "mmcache.integrations.pytest_plugin.Hooks": "def pytest_mmcache_prebuild(",
    "mmcache.integrations.pytest_plugin.Isolate": "mmcache_isolated(",
}
"""What needs a run of pytest to be shown: tests/integrations runs the blocks of docs/pytest.md in one."""
PARTS_OF_A_SOURCE = [
    *(base.Source, base.SourceOf, base.TrackedSource, base.OrderedSource, base.ScanningSource, base.ShardedSource),
    base.EvolvingSource,
]
"""What a method of this name is, whichever source has it, the docstring of the protocol says."""


@dataclass
class Item:
    id: str
    kind: str
    size: int


RECORDS = [
    {"id": "a", "kind": "tool", "size": 1},
    {"id": "b", "kind": "tool", "size": 2},
    {"id": "c", "kind": "prompt", "size": 3},
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what examples find in theirs."""
    directory = tmp_path_factory.mktemp("prepared")
    with contextlib.closing(sqlite3.connect(directory / "items.db")) as connection, connection:
        connection.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, size INTEGER)")
        connection.executemany("INSERT INTO items VALUES (:id, :kind, :size)", RECORDS)
    (directory / "items.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    mmcache.build(directory / "whole.mmc", source())
    data = (directory / "whole.mmc").read_bytes()
    (directory / "broken.mmc").write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    (directory / "later.mmc").write_bytes(data[:8] + struct.pack("<H", 3) + data[10:])
    return directory


def source() -> IterableSource:
    schema = Schema("items", index=("kind", "size"), embedding="vector")
    return IterableSource(RECORDS, schema, embeddings=np.array([[1, 0], [0, 1], [1, 1]]))


@pytest.fixture
def names(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What examples may use: a database, a cache and a snapshot of three items, and the names of the README."""
    for name in ("items.db", "items.jsonl", "broken.mmc", "later.mmc"):
        shutil.copy(prepared / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    modules = (contextlib, errno, json, math, os, pickle, sqlite3, time)
    with (
        mmcache.open("cache.mmc", source(), executor="thread") as cache,
        mmcache.Snapshot.open("cache.mmc") as snapshot,
    ):
        yield {
            **{name: getattr(mmcache, name) for name in mmcache.__all__ if name != "open"},
            **{module.__name__: module for module in modules},
            "contextmanager": contextlib.contextmanager,
            "mmcache": mmcache,
            "cache": cache,
            "snapshot": snapshot,
            "records": RECORDS,
            "Item": Item,
            "np": np,
        }


# --- what has examples ------------------------------------------------------------------------------------------------


@functools.cache
def public() -> dict[str, Any]:
    """Every class and function that users import, by its full name; each once."""
    found: dict[int, tuple[str, Any]] = {}
    for place in MODULES:
        with contextlib.suppress(ImportError):  # torch may be absent
            module = importlib.import_module(place)
            for name in module.__all__:
                value = getattr(module, name)
                if inspect.isclass(value) or inspect.isfunction(value):
                    found.setdefault(id(value), (f"{place}.{name}", value))
    return dict(found.values())


def homes(kind: type) -> list[type]:
    """The classes of this package that give a class its members, and the protocols that say what members are."""
    ours = [one for one in kind.__mro__ if one.__module__.startswith("mmcache")]
    return [*ours, *PARTS_OF_A_SOURCE] if hasattr(kind, "fingerprint") else ours


def members(kind: type) -> list[str]:
    """Public methods and properties that this package gives a class, and no library that it derives it from."""
    foreign = {name for base in kind.__mro__ if not _is_plain(base) for name in vars(base)}
    found: dict[str, None] = {}
    for home in homes(kind):
        for name, value in vars(home).items():
            if not name.startswith("_") and (callable(getattr(home, name, None)) or isinstance(value, property)):
                found[name] = None
    return [name for name in found if hasattr(kind, name) and name not in foreign | internals_of(kind)]


def _is_plain(kind: type) -> bool:
    """Whether it is of this package or of Python itself, such as `Mapping`."""
    return kind.__module__.partition(".")[0] in {"mmcache", *sys.stdlib_module_names}


@functools.cache
def examples() -> dict[str, doctest.DocTest]:
    """Of public names, and of what gives them their members; those of one docstring share their names."""
    finder = doctest.DocTestFinder(recurse=True, exclude_empty=True)
    found = {}
    for value in public().values():
        for home in homes(value) if inspect.isclass(value) else [value]:
            module = importlib.import_module(home.__module__)
            for test in finder.find(home, f"{home.__module__}.{home.__qualname__}", module):
                if test.examples:
                    found[test.name] = test
    return found


@pytest.mark.parametrize("name", sorted(examples()))
def test_the_example_of_a_docstring_gives_what_it_says(name: str, names: dict[str, Any]) -> None:
    example = examples()[name]
    example.globs = dict(names)
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False).run(example, out=told.append)
    assert not result.failed, "".join(told)


# --- what is shown ----------------------------------------------------------------------------------------------------


def code(kind: Any) -> str:
    """The examples of a class and of its members, or of a function."""
    names = {f"{home.__module__}.{home.__qualname__}" for home in (homes(kind) if inspect.isclass(kind) else [kind])}
    tests = [test for name, test in examples().items() if name in names or name.rpartition(".")[0] in names]
    return "".join(example.source for test in tests for example in test.examples)


@pytest.mark.parametrize("name", public())
def test_a_public_name_has_an_example_that_runs(name: str) -> None:
    value = public()[name]
    assert inspect.getdoc(value), f"{name} has no docstring"
    if name in SHOWN_ON_THE_PAGE_OF_PYTEST:
        assert SHOWN_ON_THE_PAGE_OF_PYTEST[name] in (PAGES / "pytest.md").read_text("utf-8")
    else:
        assert code(value), f"{name} has no example"


def test_a_public_name_is_on_the_page_of_the_api() -> None:
    page = (PAGES / "api.md").read_text("utf-8")
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    assert [name for name in public() if name.rpartition(".")[2] not in listed] == []


@pytest.mark.parametrize("name", [name for name, value in public().items() if inspect.isclass(value)])
def test_a_public_method_has_a_docstring_and_is_shown_in_an_example(name: str) -> None:
    kind = public()[name]
    shown = code(kind)
    described = {member for home in homes(kind) for member in vars(home) if inspect.getdoc(getattr(home, member, None))}
    without = [member for member in members(kind) if member not in described]
    if name in SHOWN_ON_THE_PAGE_OF_PYTEST:
        shown = (PAGES / "pytest.md").read_text("utf-8")
    unseen = [member for member in members(kind) if not re.search(rf"(?:\.|def ){member}\b", shown)]
    assert (without, unseen) == ([], [])


def test_what_is_internal_exists_and_is_not_shown(names: dict[str, Any]) -> None:
    for kind in public().values():
        if inspect.isclass(kind):
            missing = [name for name in internals_of(kind) if not hasattr(kind, name)]
            assert [name for name in missing if name not in {"default", "expired", "opened_in", "file"}] == []
    cache, snapshot = names["cache"], names["snapshot"]
    items = snapshot.collection("items")
    for shown in (cache, snapshot, items, cache.where(), cache.nearest([1, 0]), cache.source):
        assert set(dir(shown)).isdisjoint(internals_of(type(shown)))
        assert all(hasattr(shown, name) for name in internals_of(type(shown)))
    assert {"get", "where", "generation", "header"} <= set(dir(snapshot))


def test_a_class_that_no_caller_constructs_has_no_signature(names: dict[str, Any]) -> None:
    for kind in MADE_BY_US:
        assert str(inspect.signature(getattr(mmcache, kind))) == "()"
    assert "source" in inspect.signature(mmcache.Cache).parameters
    with pytest.raises(TypeError, match=r"opened by mmcache\.Snapshot\.open"):
        mmcache.Snapshot("cache.mmc")


def test_a_method_that_no_example_shows_is_found() -> None:
    assert "invalidate" in members(mmcache.Cache)
    assert ".invalidate(" in code(mmcache.Cache)
    assert ".rollback(" not in code(mmcache.Snapshot)
