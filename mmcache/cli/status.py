"""Say what a cache file is: generation, age, size, collections, source, backup.

Reads and checks header, section table and meta, however large the file is; `mmcache verify` checks every byte. Exit
code 3: there is no file; 5: it is damaged; 1: it cannot be used for another reason.
"""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime
from typing import Any

from ..errors import UnusableFileError
from ..format.header import Header
from ..format.layout import CollectionLayout, Layout
from ..storage.fs import backup_name
from .files import layout_of
from .options import OK, file_argument
from .output import Output
from .words import ago, bytes_of, number, plural, printable, short, span

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    file_argument(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    path: str = arguments.file
    try:
        layout = layout_of(path)
    except UnusableFileError as error:
        if output.json:
            backup = _backup(path)
            output.document({"path": path, "state": error.cause, "error": error.message, "backup": backup})
        raise
    if output.json:
        output.document(_plain(path, layout))
    else:
        _print(path, layout, output)
    return OK


def _age(header: Header) -> float:
    return time.time() - header.created_ns / 1e9


def _created(header: Header) -> datetime | None:
    try:
        return datetime.fromtimestamp(header.created_ns // 10**9, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _plain(path: str, layout: Layout) -> dict[str, Any]:
    header = layout.header
    created = _created(header)
    return {
        "path": path,
        "state": "ok",
        "generation": header.generation,
        "created": created.isoformat() if created else None,
        "created_ns": header.created_ns,
        "age_seconds": round(_age(header), 3),
        "build_seconds": header.elapsed_ns / 1e9,
        "build_id": header.build_id.hex(),
        "sha256": header.sha256.hex(),
        "size": header.file_size,
        "sections": header.section_count,
        "format": ".".join(map(str, header.version)),
        "writer": layout.writer,
        "source": layout.source,
        "metadata": layout.metadata,
        "collections": {name: _plain_collection(c) for name, c in layout.collections.items()},
        "backup": _backup(path),
    }


def _plain_collection(collection: CollectionLayout) -> dict[str, Any]:
    schema = collection.schema
    return {
        "records": collection.n,
        "key": schema.key,
        "index": {name: index.terms for name, index in collection.index.items()},
        "embedding": schema.embedding,
        "dim": collection.dim or None,
        "metric": schema.metric if schema.embedding else None,
        "without_embedding": collection.missing,
        "cluster_by": collection.cluster_by,
        "shapes": len(collection.shapes),
    }


def _backup(path: str) -> dict[str, Any] | None:
    """The generation before this one, kept beside it."""
    try:
        header = layout_of(backup_name(path)).header
    except UnusableFileError as error:
        return None if error.cause == "missing" else {"state": error.cause}
    return {"state": "ok", "generation": header.generation, "size": header.file_size, "age_seconds": _age(header)}


def _print(path: str, layout: Layout, output: Output) -> None:
    header = layout.header
    created = _created(header)
    when = f"{created.astimezone():%Y-%m-%d %H:%M:%S %z}, " if created else ""
    output.heading(printable(path))
    rows = [
        ("generation", number(header.generation)),
        ("built", f"{when}{ago(_age(header))}, in {span(header.elapsed_ns / 1e9)}"),
        ("size", f"{bytes_of(header.file_size)} ({plural(header.file_size, 'byte')}, {header.section_count} sections)"),
        ("format", f"{'.'.join(map(str, header.version))}, by {short(layout.writer, 60)}"),
        ("build id", header.build_id.hex()),
        ("source", _source(layout.source)),
        ("backup", _backup_text(_backup(path))),
    ]
    rows += [("metadata", f"{short(key, 40)} = {short(str(value), 60)}") for key, value in layout.metadata.items()]
    output.pairs(rows)
    for name, collection in layout.collections.items():
        output.heading(f"{printable(name)}: {plural(collection.n, 'record')}")
        output.pairs(_collection(collection))


def _collection(collection: CollectionLayout) -> list[tuple[str, str]]:
    schema = collection.schema
    terms = (f"{printable(name)} ({plural(index.terms, 'value')})" for name, index in collection.index.items())
    rows = [("key", printable(schema.key)), ("indexes", ", ".join(terms) or "none")]
    if schema.embedding is not None:
        absent = f", {plural(collection.missing, 'record')} without" if collection.missing else ""
        rows.append(
            ("embeddings", f"{printable(schema.embedding)}: {collection.dim} x float32, {schema.metric}{absent}")
        )
    if collection.cluster_by is not None:
        rows.append(("clustered", f"by {printable(collection.cluster_by)}"))
    return rows


def _source(spec: dict[str, Any] | None) -> str:
    if spec is None:
        return "none: built from records in memory"
    return f"{short(str(spec.get('kind')), 20)} {printable(str(spec.get('path')))}"


def _backup_text(backup: dict[str, Any] | None) -> str:
    if backup is None:
        return "none"
    if backup["state"] != "ok":
        return str(backup["state"])
    return f"generation {backup['generation']}, {bytes_of(backup['size'])}, built {ago(backup['age_seconds'])}"
