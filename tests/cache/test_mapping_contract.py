"""One contract for every mapping that mmcache gives out: with a file or without, the answers are the source's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Cache, ClosedError, Snapshot
from tests.support.bank import ITEMS, make_bank, source_of, truth

KINDS = ("snapshot", "lazy snapshot", "copied snapshot", "collection", "cache", "cached collection", "source only")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a bank and its file are, which no test changes."""
    where = tmp_path_factory.mktemp("bank")
    make_bank(where / "bank.db")
    mmcache.build(where / "bank.mmc", source_of(where / "bank.db"))
    return where


@pytest.fixture(params=KINDS)
def mapping(request: pytest.FixtureRequest, home: Path) -> Iterator[Any]:
    path, source = home / "bank.mmc", source_of(home / "bank.db")
    make: dict[str, Callable[[], Any]] = {
        "snapshot": lambda: Snapshot.open(path),
        "lazy snapshot": lambda: Snapshot.open(path, verify="lazy"),
        "copied snapshot": lambda: Snapshot.open(path, access="copy"),
        "collection": lambda: Snapshot.open(path).collection("items"),
        "cache": lambda: mmcache.open(path, source),
        "cached collection": lambda: mmcache.open(path, source).collection("items"),
        "source only": lambda: mmcache.open(home / "none.mmc", source, build=False),
    }
    yield make[request.param]()
    source.close()


@pytest.fixture
def rows(home: Path) -> dict[str, dict[str, Any]]:
    return truth(home / "bank.db")


def fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "vector"}


def test_is_a_mapping_of_every_record(mapping: Any, rows: dict[str, dict[str, Any]]) -> None:
    assert isinstance(mapping, Mapping)
    assert len(mapping) == len(rows)
    assert list(mapping) == list(mapping.keys()) == list(rows)
    assert {key: dict(record) for key, record in mapping.items()} == {k: fields(r) for k, r in rows.items()}
    assert [record.id for record in mapping.values()] == list(rows)


def test_get_and_in_and_subscript_agree(mapping: Any, rows: dict[str, dict[str, Any]]) -> None:
    for key, row in rows.items():
        assert key in mapping
        assert mapping[key] == fields(row) == mapping.get(key)
        assert list(mapping[key]) == list(fields(row))
        assert mapping[key].id == key
    for absent in ("", "item-1", "nope", "\ud800", 7, b"item-1", ("a", 1)):
        assert absent not in mapping
        assert mapping.get(absent) is None
        assert mapping.get(absent, 5) == 5
        with pytest.raises(KeyError):
            mapping[absent]


def test_what_is_no_key_is_a_type_error_and_false_for_in(mapping: Any) -> None:
    wrongs: tuple[Any, ...] = (None, True, 1.0, ["item-1"], {}, ("a",), ("a",) * 9)
    for wrong in wrongs:
        assert wrong not in mapping
        for ask in (mapping.get, mapping.__getitem__, mapping.embedding, lambda key: mapping.get_many([key])):
            with pytest.raises(TypeError, match="a key cannot"):
                ask(wrong)
    with pytest.raises(TypeError, match="expected several keys"):
        mapping.get_many("item-1")


def test_get_many_keeps_order_repeats_and_gaps(mapping: Any, rows: dict[str, dict[str, Any]]) -> None:
    keys = list(rows)
    for wanted in ([], keys[:3], ["nope", keys[5], keys[5], "?"], [*keys[::-1], "nope", *keys], iter(keys)):
        wanted = list(wanted)
        found = mapping.get_many(iter(wanted))
        assert [None if r is None else r.id for r in found] == [key if key in rows else None for key in wanted]
        assert all(r is None or r == fields(rows[r.id]) for r in found)


def test_records_of_a_batch_have_the_embeddings_that_were_read_with_them(
    mapping: Any, rows: dict[str, dict[str, Any]]
) -> None:
    keys = list(rows)
    for wanted in ([], keys[:3], ["nope", keys[5], keys[5]], [*keys[::-1], "nope", *keys] * 3):
        found = mapping.get_many(iter(wanted), embeddings=True)
        assert [r and r.id for r in found] == [key if key in rows else None for key in wanted]
        for record in filter(None, found):
            row, vector = rows[record.id], record.embedding
            assert record == fields(row)
            assert (vector is None and row["vector"] is None) or vector.tobytes() == row["vector"]
            assert vector is None or not vector.flags.writeable
            assert record.embedding_of("vector") is None or record.embedding_of("vector").tobytes() == row["vector"]
            arrived = pickle.loads(pickle.dumps(record))
            assert arrived == record
            assert (arrived.embedding is None) is (vector is None)
    with pytest.raises(TypeError):
        mapping.get_many(keys, True)
    with pytest.raises(TypeError):
        mapping.get_many(keys, embedding=True)
    with pytest.raises(TypeError):
        mapping.get_many()


def test_an_embedding_that_was_read_with_its_record_outlives_the_file(home: Path, rows: dict[Any, Any]) -> None:
    for verify in ("full", "lazy"):
        with Snapshot.open(home / "bank.mmc", verify=verify) as snapshot:
            found, plain = snapshot.get_many(rows, embeddings=True), snapshot.get_many(rows)
        for record, without in zip(found, plain, strict=True):
            assert record is not None
            assert without is not None
            vector = record.embedding
            assert (None if vector is None else vector.tobytes()) == rows[record.id]["vector"]
            assert (pickle.loads(pickle.dumps(record)).embedding is None) is (vector is None)
            with pytest.raises(ClosedError):
                without.embedding  # noqa: B018


def test_embeddings_are_the_sources_bytes_and_read_only(mapping: Any, rows: dict[str, dict[str, Any]]) -> None:
    for key, row in rows.items():
        vector = mapping.embedding(key)
        assert (None if vector is None else vector.tobytes()) == row["vector"]
        of_record = mapping[key].embedding
        assert (None if of_record is None else of_record.tobytes()) == row["vector"]
        if vector is not None:
            assert vector.dtype == np.float32
            with pytest.raises(ValueError, match="read-only"):
                vector[0] = 1
    with pytest.raises(KeyError):
        mapping.embedding("nope")
    expected = b"".join(row["vector"] or bytes(32) for row in rows.values())
    assert mapping.embeddings.tobytes() == expected
    assert mapping.embeddings.shape == (len(rows), 8)
    assert not mapping.embeddings.flags.writeable


def test_get_embeddings_keeps_order_and_repeats(mapping: Any, rows: dict[str, dict[str, Any]]) -> None:
    keys: list[Any] = list(rows)
    for wanted in ([], keys[:3], keys, [keys[5], keys[2], keys[5]], [*keys[::-1], *keys]):
        found = mapping.get_embeddings(iter(wanted))
        assert found.dtype == np.float32
        assert found.shape == (len(wanted), 8)
        assert found.tobytes() == b"".join(rows[key]["vector"] or bytes(32) for key in wanted)
    for absent in ("nope", 7, "\ud800"):
        for wanted in ([absent], [*keys, absent]):
            with pytest.raises(KeyError):
                mapping.get_embeddings(wanted)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ({}, lambda r: True),
        ({"kind": "a"}, lambda r: r["kind"] == "a"),
        ({"kind": None}, lambda r: r["kind"] is None),
        ({"kind": ["a", None]}, lambda r: r["kind"] in ("a", None)),
        ({"size": 3}, lambda r: r["size"] == 3),
        ({"size": True}, lambda r: r["size"] == 1),
        ({"size": "3"}, lambda r: False),
        ({"tags": "t1"}, lambda r: "t1" in r["tags"]),
        ({"tags": ["t1", "u4"]}, lambda r: {"t1", "u4"} & set(r["tags"])),
        ({"tags": []}, lambda r: False),
        ({"tags": None}, lambda r: False),
        (
            {"tags": "t2", "kind": "b", "size": (2, 4)},
            lambda r: "t2" in r["tags"] and r["kind"] == "b" and r["size"] in (2, 4),
        ),
        ({"kind": "unknown"}, lambda r: False),
    ],
)
def test_where_is_and_over_fields_or_within(
    mapping: Any, rows: dict[str, dict[str, Any]], terms: dict[str, Any], expected: Callable[[Any], Any]
) -> None:
    wanted = [key for key, row in rows.items() if expected(row)]
    selection = mapping.where(**terms)
    assert selection.ids == wanted
    assert len(selection) == len(wanted)
    assert [record.id for record in selection] == wanted
    assert selection.embeddings.tobytes() == b"".join(rows[key]["vector"] or bytes(32) for key in wanted)
    assert [record.id for record in selection[1:3]] == wanted[1:3]
    if wanted:
        assert selection[-1] == fields(rows[wanted[-1]])
    else:
        with pytest.raises(IndexError):
            selection[0]
    assert mapping.where(terms).ids == wanted


def test_where_on_a_field_without_an_index_names_those_that_have_one(mapping: Any) -> None:
    with pytest.raises(ValueError, match=r"no index on 'kinds'; indexed fields: kind, size, tags"):
        mapping.where(kinds="a")
    with pytest.raises(TypeError, match="bytes"):
        mapping.where(size=b"x")


def test_a_record_is_a_read_only_mapping_that_pickles_and_copies(mapping: Any, rows: dict[str, dict[str, Any]]) -> None:
    key = list(rows)[1]
    record = mapping[key]
    with pytest.raises(TypeError):
        record["kind"] = "z"
    record["extra"]["n"] = -1
    record["tags"].append("z")
    assert mapping[key] == fields(rows[key])
    for other in (pickle.loads(pickle.dumps(mapping[key])), copy.deepcopy(mapping[key])):
        assert other == fields(rows[key])
        assert other.embedding.tobytes() == rows[key]["vector"]
    with pytest.raises(KeyError):
        record["nope"]
    assert record.get("nope", 1) == 1
    assert "kind" in record
    assert "vector" not in record
    assert record.asdict() == dict(record)
    assert repr(mapping[key]).startswith("Record({'name': ")


def test_closed_means_closed(home: Path) -> None:
    snapshot = Snapshot.open(home / "bank.mmc")
    cache = mmcache.open(home / "bank.mmc", source_of(home / "bank.db"))
    key = next(iter(snapshot))
    kept = snapshot.embeddings
    for closed in (snapshot, cache):
        closed.close()
        closed.close()
        for use in (
            lambda m: m[key],
            lambda m: m.get(key),
            lambda m: key in m,
            lambda m: m.get_many([key]),
            lambda m: m.get_many([key] * 50),
            list,
            lambda m: m.where(kind="a"),
            lambda m: m.embedding(key),
            lambda m: m.embeddings,
        ):
            with pytest.raises(ClosedError, match="open it again"):
                use(closed)
    published = (home / "bank.mmc").stat()
    for act in (cache.rebuild, cache.rollback, cache.resume, cache.invalidate, lambda: cache.invalidate([key])):
        with pytest.raises(ClosedError, match="open it again"):
            act()
    assert (home / "bank.mmc").stat().st_ino == published.st_ino
    assert kept.shape == (60, 8)
    assert float(kept.sum()) == pytest.approx(float(np.array(kept).sum()))


def test_schema_and_collections_are_the_same_in_every_tier(home: Path) -> None:
    source = source_of(home / "bank.db")
    for opened in (
        Snapshot.open(home / "bank.mmc"),
        mmcache.open(home / "bank.mmc", source),
        mmcache.open(home / "bank.mmc"),
        mmcache.open(home / "none.mmc", source, build=False),
    ):
        assert opened.schema == ITEMS.resolved()
        assert opened.collection("notes")["note-3"] == {"note_id": "note-3", "body": "xxx"}
        assert len(opened.collection("notes")) == 5
        assert opened.collection("notes").embedding("note-3") is None
        with pytest.raises(KeyError, match="there are: items, notes"):
            opened.collection("nope")


def test_a_cache_without_a_file_gives_a_selection_without_rows(home: Path) -> None:
    cache: Cache = mmcache.open(home / "none.mmc", source_of(home / "bank.db"), build=False)
    chosen = cache.where(kind="a")
    assert len(chosen.rows) == 0
    assert len(chosen) == len(chosen.ids) > 0
    assert not chosen.complete
