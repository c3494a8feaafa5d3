"""A database as the `llm` command line makes it: its own DDL, and rows written as it writes them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
import subprocess
import sys

import pytest

import mmcache
from mmcache import Snapshot, SourceError
from mmcache.presets.llm import llm_source
from mmcache.sharing.publishing import rebuild

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
COLLECTIONS = {"notes": 3, "empty": 0, "photos/2024": 2}


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "embeddings.db"
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
        assert list(cache.snapshot.collections) == ["notes", "photos%2F2024"]
        assert cache["notes-1"] == {
            "id": "notes-1",
            "content": "text 1",
            "content_blob": None,
            "metadata": {"page": 1},
            "updated": 1_700_000_000,
        }
        assert cache["notes-0"]["metadata"] is None
        assert cache.get_embeddings(["notes-2"]).tolist() == [[2.0, 3.0, 4.0]]
        photos = cache.collection("photos%2F2024")
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
    assert [schema.name for schema in llm_source(database, ["photos/2024"]).schemas] == ["photos%2F2024"]
    with pytest.raises(SourceError, match="no collection 'empty' with embeddings; there are: 'notes', 'photos/2024'"):
        llm_source(database, ["empty"])


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


def test_in_one_command(database, tmp_path):
    command = [
        sys.executable,
        "-m",
        "mmcache",
        "build",
        database,
        "--preset",
        "llm",
        "-o",
        tmp_path / "e.mmc",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Snapshot.open(tmp_path / "e.mmc") as snapshot:
        assert len(snapshot) == 3
        assert snapshot.schema.metric == "cosine"
