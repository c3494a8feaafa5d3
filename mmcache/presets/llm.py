"""The embeddings database of the `llm` command line, as it is.

`llm embed-multi` and `llm embed` keep what they embed in a SQLite file, in the tables `collections` and `embeddings`
(https://llm.datasette.io/en/stable/embeddings/storage.html). Each of its collections becomes one here: the key is the
id within it, the embedding a BLOB of little-endian float32, as llm stores it, and `metadata` is decoded from JSON.

    mmcache build embeddings.db --preset llm -o notes.mmc
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from urllib.parse import quote

from ..errors import SourceError
from ..schema import MAX_NAME_BYTES, Schema
from ..sources.connections import Connections
from ..sources.sqlite import SQLiteSource

__all__ = ["llm_source"]

_FIELDS = "id, content, content_blob, metadata, updated, embedding"


def llm_source(path: str | os.PathLike[str], collections: Iterable[str] | None = None) -> SQLiteSource:
    """The source of an llm database, with one schema for each of its collections that is not empty, in their order.

    collections: only these, by the names that llm has for them, the first of them the default one. Here a name that
    is not printable is written with percent signs, as in a URL: `a%0Ab`; and one of more than 255 bytes is cut off and
    ends with the number that llm has for it: `a-collection-of-many-n~7`. What is embedded later shows in a rebuild; a
    collection that is made later, once the source is made again.

    Raises SourceError for a file that is not such a database, that has nothing embedded, or lacks one of `collections`.

    >>> with contextlib.closing(sqlite3.connect("llm.db")) as db, db:
    ...     _ = db.execute("CREATE TABLE collections (id INTEGER PRIMARY KEY, name TEXT, model TEXT)")
    ...     _ = db.execute(
    ...         "CREATE TABLE embeddings (collection_id INTEGER, id TEXT, embedding BLOB, content TEXT,"
    ...         " content_blob BLOB, content_hash BLOB, metadata TEXT, updated INTEGER,"
    ...         " PRIMARY KEY (collection_id, id))"
    ...     )
    ...     _ = db.execute("INSERT INTO collections VALUES (1, 'notes', 'some-model')")
    ...     _ = db.execute(
    ...         "INSERT INTO embeddings VALUES (1, 'first', ?, 'a note', NULL, NULL, NULL, 0)",
    ...         [np.ones(2, "<f4").tobytes()],
    ...     )
    >>> with mmcache.open("notes.mmc", mmcache.presets.llm.llm_source("llm.db")) as notes:
    ...     notes.schema.name, notes["first"]["content"], notes.embeddings.shape
    ('notes', 'a note', (1, 2))
    """
    path = os.path.abspath(os.fspath(path))
    found = _collections(path)
    if collections is not None:
        wanted = list(collections)
        if missing := [name for name in wanted if name not in found]:
            there = ", ".join(map(repr, found)) or "none"
            raise SourceError(f"no collection {missing[0]!r} with embeddings; there are: {there}", path=path)
        found = {name: found[name] for name in wanted}
    if not found:
        raise SourceError("nothing is embedded in this database: see `llm embed-multi`", path=path)
    return SQLiteSource(path, *(_schema(name, number) for name, number in found.items()))


def _schema(name: str, number: int) -> Schema:
    return Schema(
        _storable(name, number),
        query=f"SELECT {_FIELDS} FROM embeddings WHERE collection_id = {number}",  # noqa: S608 (an int)
        embedding="embedding",
        json=("metadata",),
        metric="cosine",
        tracks={"embeddings": "id"},
    )


def _storable(name: str, number: int) -> str:
    name = name if name.isprintable() else quote(name, safe=" ")
    if 0 < len(name.encode()) <= MAX_NAME_BYTES:
        return name
    end = f"~{number}"
    return name.encode()[: MAX_NAME_BYTES - len(end)].decode(errors="ignore") + end


def _collections(path: str) -> dict[str, int]:
    """Names and numbers of the collections that have something in them."""
    connections = Connections(path, timeout=5.0)
    try:
        with connections.take() as connection:
            return dict(
                connection.execute(
                    "SELECT name, id FROM collections AS c WHERE EXISTS"
                    " (SELECT 1 FROM embeddings WHERE collection_id = c.id) ORDER BY id"
                ).fetchall()
            )
    except sqlite3.Error as error:
        raise SourceError(
            f"is not an embeddings database of llm, with its tables collections and embeddings: {error}", path=path
        ) from error
    finally:
        connections.close()
