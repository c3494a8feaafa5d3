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
import sys
from collections.abc import Callable, Iterator
from typing import Any

from examples.demo import bank
from mmcache import Schema
from mmcache.presets.patterns import PATTERNS

from .common import ROOT
from .peers.base import Peer

FIELDS = ("id", "type", "domain", "framework", "content", "metadata")
COLUMNS = ", ".join((*FIELDS, "embedding"))
FACETS = ("domain", "type", "framework")

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
            bank.write_bank(path, self.n, dim=self.dim)
            db = sqlite3.connect(path)
            db.executescript(_INDEXES)
            db.close()

        return self._made("bank", ".db", digest_of(bank.__file__), write)

    def store(self, peer: type[Peer]) -> str:
        """Where a peer keeps these records, made if it is not there. Raises AbsentError."""
        if peer.store is not None:
            return self.store(peer.store)
        modules = [bank.__file__, __file__, str(sys.modules[peer.__module__].__file__)]
        if peer.__module__.endswith(".mmcache_file"):
            modules += sorted(glob.glob(os.path.join(ROOT, "mmcache", "**", "*.py"), recursive=True))
        return self._made(peer.__name__.lower(), peer.suffix, digest_of(*modules), lambda path: peer.write(self, path))

    def ids(self) -> list[str]:
        with contextlib.closing(sqlite3.connect(self.bank)) as db:
            return [row[0] for row in db.execute("SELECT id FROM patterns ORDER BY rowid")]

    def _made(self, form: str, suffix: str, digest: str, write: Callable[[str], None]) -> str:
        return made(os.path.join(self.home, f"{self.n}x{self.dim}-{form}-"), digest, suffix, write)


def made(stem: str, digest: str, suffix: str, write: Callable[[str], None]) -> str:
    """The path of a file that was made by code of this digest: made now, and others of the stem removed, if it is not
    there."""
    path = f"{stem}{digest}{suffix}"
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
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


def digest_of(*modules: str) -> str:
    """Of the code that makes a form."""
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
