"""No public annotation says `Any`, but for those with a reason: what a caller reads is what a checker knows."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

import mmcache

MODULES = ("mmcache", "mmcache.types", "mmcache.integrations.pytest_plugin")

HONEST = {
    "mmcache.Record": "a field's value is whatever msgpack carries, as the caller's own data are",
    "mmcache.SourceRecord": "as of Record",
    "mmcache.Invalid": "what stands where a key should",
    "mmcache.Snapshot.metadata": "what the build was given, whatever msgpack carries",
    "mmcache.Snapshot.source": "plain data of any source",
    "mmcache.Schema.to_dict": "plain data",
    "mmcache.Schema.from_dict": "plain data",
}
"""Where Any is the honest type, and why. A name stands for all of its members."""

PLAIN_DATA = re.compile(r"\.(spec|given|remade|with_rules)$")
"""Members of every source that give or take plain data."""


def names_any(annotation: object) -> bool:
    """`AnySchema` does not: it is what a list of schemas has in common, each with a model of its own."""
    return re.search(r"\bAny\b", str(annotation)) is not None


def annotations_of(value: Any) -> dict[str, Any]:
    """Of a function, or of its overloads, behind which an implementation may say what it likes."""
    overloads = typing.get_overloads(value) if inspect.isfunction(value) else []
    found = [inspect.get_annotations(one) for one in overloads or [value] if callable(one)]
    return {f"{name} ({i})" if i else name: hint for i, hints in enumerate(found) for name, hint in hints.items()}


def members(name: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """Each public annotation: where it is, of what, and what it says."""
    if not inspect.isclass(value):
        yield from ((name, part, hint) for part, hint in annotations_of(value).items())
        return
    for base in [base for base in value.__mro__ if base.__module__.startswith("mmcache")]:
        yield from ((name, part, hint) for part, hint in inspect.get_annotations(base).items() if part[0] != "_")
        for member, found in vars(base).items():
            if member.startswith("_") and member not in ("__init__", "__getitem__", "__iter__", "__call__"):
                continue
            place = name if member == "__init__" else f"{name}.{member}"
            inner = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
            if inspect.isfunction(inner):
                yield from ((place, part, hint) for part, hint in annotations_of(inner).items())


def is_excused(place: str) -> bool:
    return any(place == name or place.startswith(f"{name}.") for name in HONEST) or PLAIN_DATA.search(place) is not None


def everything() -> list[tuple[str, str, Any]]:
    return [
        found
        for home in MODULES
        for name in import_module(home).__all__
        if name != "__version__"
        for found in members(f"{home}.{name}", getattr(import_module(home), name))
    ]


@pytest.mark.parametrize("home", MODULES)
def test_no_public_annotation_is_any_without_a_reason(home):
    bare = [
        f"{place}: {part}: {hint}"
        for place, part, hint in everything()
        if place.startswith(f"{home}.") and names_any(hint) and not is_excused(place)
    ]
    assert not bare, "\n".join(bare)


def test_every_public_function_is_annotated_throughout():
    missing = []
    for home in MODULES:
        for name in import_module(home).__all__:
            value = getattr(import_module(home), name)
            if inspect.isfunction(value):
                parts = set(inspect.signature(value).parameters) | {"return"}
                missing += [f"{home}.{name}: {part}" for part in sorted(parts - set(inspect.get_annotations(value)))]
    assert not missing


def test_no_reason_outlives_its_annotation():
    places = {place for place, _, hint in everything() if names_any(hint)}
    assert [name for name in HONEST if not any(place == name or place.startswith(f"{name}.") for place in places)] == []


def test_what_a_method_gives_can_be_named_by_the_caller():
    public = {name for home in (*MODULES, "mmcache.cache") for name in import_module(home).__all__}
    assert {"Cache", "CachedCollection", "Collection", "FileCollection", "Selection", "Record", "Snapshot"} <= public
    assert {"Reason", "Kind", "State", "Key", "Term", "CacheFactory", "Isolate"} <= public
    assert mmcache.Cache.collection.__annotations__["return"].startswith("CachedCollection")
