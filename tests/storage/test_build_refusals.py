"""What cannot be stored is refused, with the collection, the key and the reason, and nothing is left behind."""

# mypy: disable-error-code="type-arg"
# What may be None fails the test where it is.

from __future__ import annotations

import datetime as dt
import gc
import pickle
import re
import zoneinfo
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import BuildError, PublishError, Schema, SourceError
from mmcache.format.records import MAX_KEY_BYTES, MAX_RECORD_BYTES, MAX_SHAPES
from tests.support.faults import faults
from tests.support.observe import beside, open_files

pytestmark = pytest.mark.usefixtures("no_disk_wait")

INDEXED = Schema("items", index=("kind",))
VECTORS = Schema("items", embedding="v", dim=3)
ANY_VECTORS = Schema("items", embedding="v")


def nested(depth: int, value: Any = None) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def endless() -> list:
    value: list = []
    value.append(value)
    return value


def bad(**fields: Any) -> list[dict]:
    """One bad record among good ones, and not the first."""
    return [{"id": f"good{i}", **dict.fromkeys(fields)} for i in range(3)] + [{"id": "bad", **fields}, {"id": "after"}]


def wide(*vectors: Any) -> list[dict]:
    return [{"id": ["good", "bad"][i == len(vectors) - 1] + str(i), "v": v} for i, v in enumerate(vectors)]


class Opaque:
    pass


VALUES = {
    "fraction": (Fraction(1, 2), "field 'x': a record cannot hold a value of type fractions.Fraction"),
    "complex": (1j, "a value of type complex"),
    "object": (Opaque(), "Opaque; convert it, or give the source default="),
    "class": (Opaque, "a value of type type"),
    "function": (len, "a value of type builtin_function_or_method"),
    "numpy complex": (np.complex64(1), "a numpy value of dtype complex64"),
    "a time of a zone": (dt.time(1, tzinfo=zoneinfo.ZoneInfo("Europe/Zurich")), "depends on the date"),
    "int above": (2**64, "field 'x' has an int beyond 64 bits; store it as text"),
    "int below": (-(2**63) - 1, "field 'x' has an int beyond 64 bits"),
    "surrogate": ("\ud800", "field 'x' has text that is not valid Unicode"),
    "surrogate in a key": ({"\udfff": 1}, "field 'x' has text that is not valid Unicode"),
    "tuple key": ({(1, 2): 3}, r"a map has the key \(1, 2\)"),
    "deep tuple key": ([{"a": {(): 3}}], r"a map has the key \(\)"),
    "deep object": ([{"a": [{1j}]}], "a value of type complex"),
    "too deep": (nested(1024), "nest more than 100 levels deep|deeper than 100 levels"),
    "just too deep": (nested(100), "nest more than 100 levels deep|deeper than 100 levels"),
    "too deep, in a map": ({"a": {"b": nested(98)}}, "nest more than 100 levels deep|deeper than 100 levels"),
    "too deep, with a tuple": (nested(1024, ()), "nest more than 100 levels deep|deeper than 100 levels"),
    "endless": (endless(), "nest more than 100 levels deep|deeper than 100 levels"),
    "key of a strange type": ({Fraction(1, 2): 1}, "a value of type fractions.Fraction"),
}

TERMS = {
    "dict": ({"a": 1}, "is of type dict"),
    "bytes": (b"x", "is of type bytes"),
    "bytes in a list": (["a", b"x"], "indexed field 'kind': b'x' is of type bytes"),
    "list in a list": (["a", ["b"]], "is of type list"),
    "int above": (2**64, "out of range"),
    "int below": ([-(2**63) - 1], "out of range"),
    "object": (Opaque(), "Opaque; convert it|is of type Opaque"),
}

KEYS = {
    "None": (None, "a key cannot be None"),
    "surrogate": ("a\ud800", "the key is not valid Unicode"),
    "too long": ("x" * (MAX_KEY_BYTES - 2), f"the key has {MAX_KEY_BYTES + 1} bytes; at most {MAX_KEY_BYTES}"),
    "too long in UTF-8": ("\u20ac" * (MAX_KEY_BYTES // 3 + 1), "bytes; at most"),
}

nan, inf = float("nan"), float("inf")
EMBEDDINGS = {
    "short": (VECTORS, wide([1, 2, 3], [1, 2]), "2 numbers"),
    "long": (VECTORS, wide([1, 2, 3], [1, 2, 3, 4]), "4 numbers"),
    "ragged": (ANY_VECTORS, wide([1, 2, 3], [4, 5, 6], [1, 2]), "2 numbers"),
    "ragged blob": (ANY_VECTORS, wide(bytes(12), bytes(8)), "8 bytes, expected 12"),
    "empty": (ANY_VECTORS, wide([1.0], []), "empty"),
    "nan": (VECTORS, wide([1, 2, 3], [1, nan, 3]), "NaN or infinite"),
    "inf": (VECTORS, wide([1, 2, 3], [1, inf, 3]), "NaN or infinite"),
    "nan blob": (VECTORS, wide(bytes(12), b"\0\0\xc0\x7f" * 3), "NaN or infinite"),
    "odd bytes": (ANY_VECTORS, wide(bytes(12), bytes(13)), "13 bytes"),
    "of text": (VECTORS, wide([1, 2, 3], ["a", "b", "c"]), ""),
    "of another type": (VECTORS, wide([1, 2, 3], 7), "is of type int"),
}

CASES: dict[str, tuple[Schema, list, str, str]] = {
    **{f"value: {name}": (Schema("items"), bad(x=value), reason, "bad") for name, (value, reason) in VALUES.items()},
    **{f"term: {name}": (INDEXED, bad(kind=value), reason, "bad") for name, (value, reason) in TERMS.items()},
    **{
        f"key: {name}": (Schema("items"), [{"id": "good"}, {"id": key}], reason, "")
        for name, (key, reason) in KEYS.items()
    },
    **{f"embedding: {name}": (schema, items, reason, "bad") for name, (schema, items, reason) in EMBEDDINGS.items()},
    "key: missing": (Schema("items"), [{"id": "a"}, {"x": 1}], "no field 'id'", ""),
    "key: twice": (Schema("items"), [{"id": "a"}, {"id": "b"}, {"id": "a"}], "stands twice, in records 0 and 2", "a"),
    "key: twice, far apart": (
        Schema("items"),
        [*({"id": str(i)} for i in range(3000)), {"id": "17"}],
        "stands twice, in records 17 and 3000",
        "17",
    ),
    "record: not a mapping": (Schema("items"), [{"id": "a"}, ["id"]], "must be a mapping, not list", ""),
    "record: too large": (
        Schema("items"),
        [{"id": "good"}, {"id": "bad", "x": bytes(MAX_RECORD_BYTES)}],
        "bytes when encoded",
        "bad",
    ),
    "shapes: too many": (
        Schema("items"),
        [{"id": f"k{i}", f"f{i}": None} for i in range(MAX_SHAPES + 5)],
        f"more than {MAX_SHAPES} different sets of fields",
        f"k{MAX_SHAPES}",
    ),
    "shapes: too many, with maps": (
        Schema("items"),
        [{"id": f"k{i}", f"f{i}": {"a": i}} for i in range(MAX_SHAPES + 5)],
        f"more than {MAX_SHAPES} different sets of fields",
        f"k{MAX_SHAPES}",
    ),
    "fields: more than meta holds": (
        Schema("items"),
        [{"id": f"k{i}", f"f{i}" + "x" * 20_000: None} for i in range(1000)],
        "field names take",
        "",
    ),
    "embedding dimension: too large": (ANY_VECTORS, wide(bytes(4 * 65_537)), "65537 numbers; 1 to 65536", ""),
}


@pytest.fixture
def published(path):
    """A file that is there already, which every refusal leaves as it is."""
    mmcache.build(path, [{"id": "old"}], Schema("items"))
    return path


def refused(path, *args: Any, **options: Any) -> BuildError:
    """The refusal of a build, which leaves no trace."""
    before = {name: (path.parent / name).read_bytes() for name in beside(path)}
    gc.collect()  # what other tests dropped must not vanish meanwhile
    files = open_files()
    with pytest.raises(BuildError) as caught:
        mmcache.build(path, *args, **options)
    error = caught.value
    error.__traceback__ = None
    after = {name: (path.parent / name).read_bytes() for name in beside(path)}
    for shared in (".lock", ".ctl"):  # they say who built last, when, and what came of it
        before[path.name + shared] = after[path.name + shared]
    assert after == before
    assert open_files() == files
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.collection, again.key, again.reason) == (
        str(error),
        error.collection,
        error.key,
        error.reason,
    )
    return error


@pytest.mark.parametrize("name", CASES)
def test_a_record_that_cannot_be_stored_is_refused_with_collection_key_and_reason(published, name):
    schema, items, reason, key = CASES[name]
    error = refused(published, items, schema)
    assert re.search(reason, str(error)), str(error)
    assert len(str(error)) < 2000
    if "field names take" not in reason:
        assert error.collection == "items"
        assert "items" in str(error)
        assert error.reason
    if key:
        assert error.key is not None
        assert error.key.startswith(key)
        assert key in str(error)


def test_the_first_publish_that_is_refused_leaves_only_the_lock_file(path):
    refused(path, bad(x=1j), Schema("items"))
    assert beside(path) == ["items.mmc.ctl", "items.mmc.lock"]


@pytest.mark.parametrize("path", ["/", "//", "/.", "/tmp/.."])
def test_the_root_directory_is_refused_before_any_system_call(path):
    with faults() as calls, pytest.raises(PublishError, match="give the name of a file in it"):
        mmcache.build(path, [{"id": "a"}], Schema("items"))
    assert calls.log == []


def test_a_refusal_in_a_later_collection_leaves_nothing_of_the_first(published):
    error = refused(published, {"a": [{"id": "x"}] * 1, "b": bad(x=1j)}, Schema("a"), Schema("b"))
    assert (error.collection, error.key) == ("b", "bad")


def test_clustering_by_what_cannot_be_clustered_is_refused(published):
    items = [{"id": "a", "kind": 1, "tags": ["x"]}, {"id": "b", "kind": 2, "tags": "y"}]
    schema = Schema("items", index=("kind", "tags"))
    other = Schema("other")
    for cluster_by, records, schemas, reason in (
        ("nothing", items, (schema,), "cannot cluster by 'nothing', which is not indexed; indexed fields: kind, tags"),
        ("id", items, (Schema("items"),), "indexed fields: none"),
        ({"items": "other"}, items, (schema,), "cannot cluster by 'other'"),
        ({"nobody": "kind"}, items, (schema,), "nobody, which is not a collection here"),
        ({"other": "kind"}, {"items": items, "other": []}, (schema, other), "cannot cluster by 'kind'"),
        ("tags", items, (schema,), "cannot cluster by 'tags': some records have a list of values"),
    ):
        assert reason in str(refused(published, records, *schemas, cluster_by=cluster_by))


def test_metadata_that_does_not_come_back_as_it_was_is_refused(published):
    for metadata in (
        {"a": {1: 2}},
        {1: 2},
        {"a": {1, 2}},
        {"a": 2**64},
        {"a": "\ud800"},
        {"a": endless()},
        {"a": bytes(2**24)},
    ):
        assert "metadata" in str(refused(published, [{"id": "a"}], Schema("items"), metadata=metadata))


def test_a_source_that_breaks_its_word_about_fields_is_refused(published):
    class Broken:
        schemas = (INDEXED,)

        def __init__(self, records):
            self._records = records

        def read(self):
            import contextlib

            return contextlib.nullcontext(self)

        def count(self, collection):
            return None

        def records(self, collection):
            return iter(self._records)

        def fetch(self, collection, ids):
            return []

        def find(self, collection, query):
            return iter(())

        def fingerprint(self):
            return bytes(32)

        def spec(self):
            return None

    names = ("id", "kind")
    record = mmcache.SourceRecord
    for records in (
        [record(names, ("a", 1), None), record(names, ("b",), None)],
        [record(names, ("a", 1, 2), None)],
        [record(names, (1.5, 1), None)],
        [record(names, (None, 1), None)],
        [record(names, (("a", "b"), 1), None)],
        [record(("id",), ("a",), None), record(("id",), ("b", 2), None)],
        [record(names, ("a", 1), None), record(names, (), None)],
    ):
        error = refused(published, Broken(records))
        assert error.collection == "items"


def test_an_iterator_is_read_once(path):
    source = mmcache.IterableSource(iter([{"id": "a"}]), Schema("items"))
    mmcache.build(path, source)
    with pytest.raises(SourceError, match="read once"):
        mmcache.build(path, source)
    assert beside(path) == ["items.mmc", "items.mmc.ctl", "items.mmc.lock"]
