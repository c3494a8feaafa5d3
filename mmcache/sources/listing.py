"""Which tables of a database hold records of its owner's.

Not those of SQLite (`sqlite_...`) and of ours (`_mmcache_...`), nor the shadow tables of a full-text, R-tree or vector
index. SQLite itself knows shadow tables by the module of the index, where a connection has that.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from typing import Any, Final, Protocol

__all__ = ["tables_of", "virtual_tables"]

_OWN: Final = ("sqlite_", "_mmcache_")

_VIRTUAL: Final = re.compile(r"\s*CREATE\s+VIRTUAL\s+TABLE\b.*?\bUSING\s+[\"\[`]?(\w+)", re.IGNORECASE | re.DOTALL)

_TREE: Final = ("node", "parent", "rowid")
_SHADOWS: Final = {
    "fts3": ("content", "segments", "segdir"),
    "fts4": ("content", "segments", "segdir", "docsize", "stat"),
    "fts5": ("data", "idx", "content", "docsize", "config"),
    "rtree": _TREE,
    "rtree_i32": _TREE,
    "geopoly": _TREE,
    "vec0": ("info", "chunks", "rowids", "auxiliary", "vector_chunks", "metadatachunks", "metadatatext"),
}
"""Module -> what follows the name of the index and "_" in those of its tables, apart from a number."""


class _Executes(Protocol):
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> sqlite3.Cursor: ...


def tables_of(connection: _Executes, *, views: bool = True) -> list[str]:
    """Tables, and views, by name. A virtual table is among them where there is nothing else. Raises what sqlite3
    raises."""
    entries = _entries(connection)
    modules = _modules(entries)
    hidden = _shadows_known(connection) | {
        name.lower() for name, _, _ in entries if any(_is_shadow(name, *index) for index in modules.items())
    }
    kinds = ("table", "view") if views else ("table",)
    there = [name for name, kind, _ in entries if kind in kinds and name.lower() not in hidden]
    return [name for name in there if name not in modules] or there


def virtual_tables(connection: _Executes) -> list[str]:
    """By name. Raises what sqlite3 raises."""
    return list(_modules(_entries(connection)))


def _entries(connection: _Executes) -> list[tuple[str, str, str]]:
    """Name, type and SQL of each table and view that is not SQLite's or ours."""
    rows = connection.execute("SELECT name, type, sql FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY 1")
    return [(name, kind, sql or "") for name, kind, sql in rows if not name.lower().startswith(_OWN)]


def _modules(entries: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """Virtual table -> its module."""
    return {name: found[1].lower() for name, _, sql in entries if (found := _VIRTUAL.match(sql))}


def _shadows_known(connection: _Executes) -> set[str]:
    """Of modules that this connection has; none before SQLite 3.37."""
    try:
        rows = connection.execute("SELECT name FROM pragma_table_list WHERE type = 'shadow'").fetchall()
    except sqlite3.OperationalError:
        return set()
    return {name.lower() for (name,) in rows}


def _is_shadow(name: str, index: str, module: str) -> bool:
    begin, rest = name.lower()[: len(index) + 1], name.lower()[len(index) + 1 :]
    return begin == f"{index.lower()}_" and rest.rstrip("0123456789") in _SHADOWS.get(module, ())
