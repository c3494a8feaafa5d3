"""The data sets: one bank of made-up patterns in SQLite, and the same records in every other form.

Each form is made when first asked for and kept; a name carries a digest of the code that made it, so that a change of
that code makes it anew. All forms hold the same fields, the metadata decoded, and the same embeddings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import lmdb
import msgpack

import mmcache
from mmcache import Schema
from mmcache.presets import bank
from mmcache.presets.patterns import PATTERNS, write_bank

from .common import ROOT

FIELDS = ("id", "type", "domain", "framework", "content", "metadata")
COLUMNS = ", ".join((*FIELDS, "embedding"))
FACETS = ("domain", "type", "framework")

_LMDB_BATCH = 1_000

# Covering indexes for what is asked of SQLite, and the statistics that its planner chooses by.
_INDEXES = """
CREATE INDEX covering_domain ON patterns (domain, id);
CREATE INDEX covering_facets ON patterns (domain, type, framework, id);
ANALYZE;
"""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """n records with embeddings of `dim` numbers, kept below `home`."""

    n: int
    dim: int
    home: str

    @property
    def schema(self) -> Schema:
        return dataclasses.replace(PATTERNS, dim=self.dim)

    @property
    def bank(self) -> str:
        """SQLite: tables and indexes of the preset, and covering indexes beside them."""

        def write(path: str) -> None:
            write_bank(path, self.n, dim=self.dim)
            db = sqlite3.connect(path)
            db.executescript(_INDEXES)
            db.close()

        return self._made("bank", ".db", _digest(bank.__file__), write)

    @property
    def file(self) -> str:
        """The same records as mmcache keeps them."""
        source = mmcache.SQLiteSource(self.bank, self.schema)
        package = os.path.join(ROOT, "mmcache")
        modules = sorted(glob.glob(os.path.join(package, "**", "*.py"), recursive=True))

        def write(path: str) -> None:
            mmcache.build(path, source)
            os.unlink(f"{path}.lock")

        return self._made("file", ".mmc", _digest(*modules), write)

    @property
    def lmdb(self) -> str:
        """LMDB, a directory: see `write_lmdb`."""
        return self._made("lmdb", "", _digest(bank.__file__, __file__), lambda path: write_lmdb(self.bank, path))

    @property
    def blob(self) -> str:
        """One msgpack map of id to record, the embedding in it, to be decoded whole by every process."""

        def write(path: str) -> None:
            packer = msgpack.Packer()
            with open(path, "wb") as out:
                out.write(packer.pack_map_header(self.n))
                for row in read_bank(self.bank):
                    record = record_of(row)
                    record["embedding"] = row[-1]
                    out.write(packer.pack(row[0]) + packer.pack(record))

        return self._made("blob", ".msgpack", _digest(bank.__file__, __file__), write)

    def ids(self) -> list[str]:
        with contextlib.closing(sqlite3.connect(self.bank)) as db:
            return [row[0] for row in db.execute("SELECT id FROM patterns ORDER BY rowid")]

    def _made(self, form: str, suffix: str, digest: str, write: Callable[[str], None]) -> str:
        stem = os.path.join(self.home, f"{self.n}x{self.dim}-{form}-")
        path = f"{stem}{digest}{suffix}"
        if not os.path.exists(path):
            os.makedirs(self.home, mode=0o755, exist_ok=True)
            for outdated in glob.glob(f"{glob.escape(stem)}*"):
                _remove(outdated)
            write(f"{path}.part")
            os.rename(f"{path}.part", path)
            for shared in glob.glob(f"{glob.escape(path)}.part.*"):  # lock, control page and metrics of that name
                _remove(shared)
        return path


def read_bank(path: str, order: str = "rowid") -> Iterator[tuple[Any, ...]]:
    """Every row of `COLUMNS`."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        yield from db.execute(f"SELECT {COLUMNS} FROM patterns ORDER BY {order}")


def record_of(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row as a record: its fields without the embedding, the metadata decoded."""
    record = dict(zip(FIELDS, row, strict=False))
    record["metadata"] = json.loads(record["metadata"])
    return record


def write_lmdb(bank_path: str, path: str) -> None:
    """Records as msgpack maps and embeddings as bytes, each in a database of its own under the ids; and, as databases
    with sorted duplicates, the ids of every domain and of every combination of the three facets.

    As its documentation recommends for bulk loading: one transaction, sorted keys, `putmulti(append=True)`.
    """
    map_size = 4 * os.path.getsize(bank_path) + 2**24
    with lmdb.open(path, map_size=map_size, max_dbs=4) as env:
        records, embeddings = env.open_db(b"records"), env.open_db(b"embeddings")
        domains, facets = env.open_db(b"domains", dupsort=True), env.open_db(b"facets", dupsort=True)
        pack = msgpack.Packer().pack
        postings: dict[bytes, list[bytes]] = {}
        with env.begin(write=True) as txn:
            into = {db: txn.cursor(db) for db in (records, embeddings)}
            batch: list[tuple[Any, ...]] = []

            def put() -> None:
                into[records].putmulti([(row[0].encode(), pack(record_of(row))) for row in batch], append=True)
                into[embeddings].putmulti([(row[0].encode(), row[-1]) for row in batch], append=True)
                batch.clear()

            for row in read_bank(bank_path, "id"):
                batch.append(row)
                postings.setdefault(facet_key(row[2], row[1], row[3]), []).append(row[0].encode())
                if len(batch) == _LMDB_BATCH:
                    put()
            put()
            by_domain: dict[bytes, list[bytes]] = {}
            for key, ids in sorted(postings.items()):
                txn.cursor(facets).putmulti([(key, id_) for id_ in ids], append=True)
                by_domain.setdefault(key.partition(b"\0")[0], []).extend(ids)
            for key, ids in sorted(by_domain.items()):
                txn.cursor(domains).putmulti([(key, id_) for id_ in sorted(ids)], append=True)


def facet_key(domain: str, type_: str, framework: str) -> bytes:
    return f"{domain}\0{type_}\0{framework}".encode()


def _digest(*modules: str) -> str:
    digest = hashlib.sha256()
    for module in modules:
        with open(module, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:10]


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
