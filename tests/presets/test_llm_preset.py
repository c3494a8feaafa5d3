"""A database that `llm` made, where that is installed; and one with its DDL, for what is rare in one."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
from typing import Any

import pytest

import mmcache
from mmcache import Snapshot, SourceError
from mmcache.presets.llm import llm_source
from mmcache.sharing.publishing import rebuild
from tests.support.console import ok

DDL = """
CREATE TABLE [collections] ([id] INTEGER PRIMARY KEY, [name] TEXT, [model] TEXT);
CREATE UNIQUE INDEX [idx_collections_name] ON [collections] ([name]);
CREATE TABLE "embeddings" (
   [collection_id] INTEGER REFERENCES [collections]([id]),
   [id] TEXT,
   [embedding] BLOB,
   [content] TEXT,
   [content_blob] BLOB,
   [content_hash] BLOB,
   [metadata] TEXT,
   [updated] INTEGER,
   PRIMARY KEY ([collection_id], [id])
);
CREATE INDEX [idx_embeddings_content_hash] ON [embeddings] ([content_hash]);
"""
TABLES = ("collections", "embeddings")
COLLECTIONS = {"notes": 3, "empty": 0, "photos/2024": 2}


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "by hand.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(DDL)
        for number, (name, n) in enumerate(COLLECTIONS.items(), 1):
            db.execute("INSERT INTO collections VALUES (?, ?, 'a-model')", (number, name))
            dim = 2 + number
            for i in range(n):
                row = (number, f"{name}-{i}", struct.pack(f"<{dim}f", *range(i, i + dim)), f"text {i}")
                metadata = json.dumps({"page": i}) if i else None
                db.execute("INSERT INTO embeddings VALUES (?, ?, ?, ?, NULL, x'00', ?, 1700000000)", (*row, metadata))
    return path


def test_each_collection_that_has_something_in_it_becomes_one(database, tmp_path):
    source = llm_source(database)
    with mmcache.open(tmp_path / "e.mmc", source) as cache:
        assert cache.snapshot is not None
        assert list(cache.snapshot.collections) == ["notes", "photos/2024"]
        assert cache["notes-1"] == {
            "id": "notes-1",
            "content": "text 1",
            "content_blob": None,
            "metadata": {"page": 1},
            "updated": 1_700_000_000,
        }
        assert cache["notes-0"]["metadata"] is None
        assert cache.get_embeddings(["notes-2"]).tolist() == [[2.0, 3.0, 4.0]]
        photos = cache.collection("photos/2024")
        assert photos.embeddings.tolist() == [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]
        assert source.fetch("notes", ["notes-1", "nope"])[1] is None


def test_a_rebuild_sees_what_was_embedded_since(database, tmp_path):
    mmcache.build(tmp_path / "e.mmc", llm_source(database))
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        db.execute(
            "INSERT INTO embeddings VALUES (1, 'late', ?, NULL, x'01', NULL, NULL, 5)", (struct.pack("<3f", 1, 2, 3),)
        )
    rebuild(tmp_path / "e.mmc")
    with Snapshot.open(tmp_path / "e.mmc") as snapshot:
        assert snapshot["late"]["content_blob"] == b"\x01"
        assert len(snapshot) == 4


def test_some_collections_only(database):
    assert [schema.name for schema in llm_source(database, ["photos/2024"]).schemas] == ["photos/2024"]
    with pytest.raises(SourceError, match="no collection 'empty' with embeddings; there are: 'notes', 'photos/2024'"):
        llm_source(database, ["empty"])


def test_every_name_that_llm_allows_becomes_one_that_can_be_stored(database, tmp_path):
    names = {
        "a collection of notes, " + 300 * "n": "a collection of notes, " + 230 * "n" + "~4",
        "ü" * 128: "ü" * 126 + "~5",
        "a/ü": "a/ü",
        "": "~7",
        "x" * 255: "x" * 255,
        "a\n/ü": "a%0A%2F%C3%BC",
    }
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        for number, name in enumerate(names, 4):
            db.execute("INSERT INTO collections VALUES (?, ?, 'a-model')", (number, name))
            vector = struct.pack("<f", number)
            db.execute("INSERT INTO embeddings VALUES (?, 'a', ?, NULL, NULL, NULL, NULL, 5)", (number, vector))
    mmcache.build(tmp_path / "e.mmc", llm_source(database, names))
    with Snapshot.open(tmp_path / "e.mmc") as snapshot:
        found = {name: collection.embeddings.tolist() for name, collection in snapshot.collections.items()}
    assert found == {stored: [[float(number)]] for number, stored in enumerate(names.values(), 4)}


def test_what_is_no_such_database_is_told(tmp_path):
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE items (id TEXT)")
    with pytest.raises(SourceError, match="not an embeddings database of llm"):
        llm_source(path)
    with pytest.raises(SourceError, match=r"missing\.db"):
        llm_source(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(DDL)
    with pytest.raises(SourceError, match="nothing is embedded"):
        llm_source(path)


# --- made by llm itself

NOTES = [(f"{i}", f"note {i}", {"page": i, "tags": ["a", "ü"]} if i % 3 else None) for i in range(250)]
PHOTOS = [("7", b"\xff\xd8 no text", {"width": 640}), ("other", "a caption", None)]


def numbers_of(item, dim):
    """What a model would say: the same numbers for the same item, and not such as float32 could hold exactly."""
    item = item.encode() if isinstance(item, str) else item
    return [len(item) / 3 + item[i % len(item)] / 7 + i / 11 for i in range(dim)]


@pytest.fixture
def llm(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    return pytest.importorskip("llm", reason="llm is not installed")


@pytest.fixture
def embed(llm, tmp_path):
    """Embeds entries (id, value, metadata) into a collection of `embeddings.db`."""
    sqlite_utils = pytest.importorskip("sqlite_utils", reason="sqlite-utils is not installed")

    base: Any = llm.EmbeddingModel

    class Model(base):  # type: ignore[misc]
        supports_binary = True

        def __init__(self, dim):
            self.model_id, self.dim = f"toy-{dim}", dim

        def embed_batch(self, items, *, key=None):
            return iter([numbers_of(item, self.dim) for item in items])

    def embed(name, dim, entries, store=True):
        database = sqlite_utils.Database(tmp_path / "embeddings.db")
        try:
            collection = llm.Collection(name, database, model=Model(dim))
            collection.embed_multi_with_metadata(entries, store=store)
        finally:
            database.close()

    return embed


def as_llm_has_it(llm, path, name):
    """The rows of a collection, decoded by llm and the standard library."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        rows = db.execute(
            "SELECT e.id, content, content_blob, metadata, updated, embedding FROM embeddings AS e"
            " JOIN collections AS c ON c.id = collection_id WHERE name = ?",
            [name],
        ).fetchall()
    return {
        key: (
            {
                "id": key,
                "content": content,
                "content_blob": blob,
                "metadata": None if metadata is None else json.loads(metadata),
                "updated": updated,
            },
            llm.decode(embedding),
        )
        for key, content, blob, metadata, updated, embedding in rows
    }


def check(llm, file, path, names):
    with Snapshot.open(file) as snapshot:
        assert list(snapshot.collections) == names
        for name in names:
            collection, expected = snapshot.collection(name), as_llm_has_it(llm, path, name)
            assert collection.schema.metric == "cosine"
            assert set(collection) == set(expected)
            for key, (fields, vector) in expected.items():
                assert collection[key] == fields
                assert collection.get_embeddings([key]).tolist() == [list(vector)]


def test_what_llm_embedded_is_read_in_one_command_and_again(llm, embed, tmp_path):
    path, file = tmp_path / "embeddings.db", tmp_path / "notes.mmc"
    embed("notes", 24, NOTES)
    embed("photos", 8, PHOTOS)
    ok("build", "embeddings.db", "--preset", "llm", "-o", "notes.mmc", "--json", cwd=tmp_path)
    check(llm, file, path, ["notes", "photos"])
    with Snapshot.open(file) as snapshot:
        assert len(snapshot) == 250
        assert snapshot["7"]["content"] == "note 7"
        assert snapshot["7"]["metadata"] == {"page": 7, "tags": ["a", "ü"]}
        assert snapshot.collection("photos")["7"]["content_blob"] == PHOTOS[0][1]
        # Similar notes, as `llm similar` ranks them.
        query = numbers_of("note 7", 24)
        products = snapshot.embeddings @ query / snapshot.default.norms
        assert list(snapshot)[int(products.argmax())] == "7"
    embed("notes", 24, [("late", "not stored", None), ("7", "note 7, once more", None)], store=False)
    ok("rebuild", "notes.mmc", cwd=tmp_path)
    check(llm, file, path, ["notes", "photos"])
    with Snapshot.open(file) as snapshot:
        assert (len(snapshot), snapshot.generation) == (251, 2)
        assert snapshot["late"]["content"] is None
        assert snapshot["7"]["metadata"] is None
    embed("new", 8, PHOTOS)
    ok("build", "embeddings.db", "--preset", "llm", "-o", "notes.mmc", cwd=tmp_path)
    check(llm, file, path, ["notes", "photos", "new"])


def test_a_cache_follows_what_llm_embeds(llm, embed, tmp_path):
    path = tmp_path / "embeddings.db"
    embed("notes", 24, NOTES[:3])
    with mmcache.open(tmp_path / "e.mmc", llm_source(path), executor="external") as cache:
        embed("notes", 24, [("late", "a late one", {"page": 4})])
        assert cache["late"]["metadata"] == {"page": 4}  # the file lacks it
        embed("notes", 24, [("1", "another text", None)])
        cache.invalidate(["1"], reason="record_stored")
        assert cache["1"]["content"] == "another text"
        assert cache.get_embeddings(["1"]).tolist() == [list(as_llm_has_it(llm, path, "notes")["1"][1])]


def test_the_ddl_of_these_tests_is_that_of_llm(embed, database, tmp_path):
    embed("notes", 24, NOTES[:1])
    made = []
    for path in (tmp_path / "embeddings.db", database):
        with contextlib.closing(sqlite3.connect(path)) as db:
            made.append({table: db.execute(f"PRAGMA table_info({table})").fetchall() for table in TABLES})
    assert made[0] == made[1]
