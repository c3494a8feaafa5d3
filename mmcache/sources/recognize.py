"""What a path or URL is, and the source of it. A stand-in: SQLite, JSON lines and Parquet only."""

from __future__ import annotations

import os
from typing import Any

from ..schema import Schema
from . import Source

__all__ = ["kind_of", "source_at"]


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind, as a spec names it, by content first, suffix second."""
    name = os.fspath(path).lower()
    if name.endswith((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")):
        return "jsonl"
    return "parquet" if name.endswith(".parquet") else "sqlite"


def source_at(where: str | os.PathLike[str], *schemas: Schema, **options: Any) -> Source:
    """The source of a path."""
    from . import _KINDS, _load

    source: Source = _load(_KINDS[kind_of(where)])(where, *schemas, **options)
    return source
