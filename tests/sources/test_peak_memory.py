"""Peak memory of a build does not grow with the rows, whatever file they come from.

`python -m tests.sources.test_peak_memory [ROWS]` prints a figure for each kind of file: the peak of a process that
builds from ROWS rows, and of one that builds from four times as many.
"""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.profile import NIGHTLY

ROWS = 100_000 if NIGHTLY else 50_000
KINDS = ("csv", "csv.gz", "json", "jsonl", "jsonl.gz", "parquet", "parts", "arrow", "arrows", "duckdb")
WORDS = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor " * 4
PER_ROW = 150
"""Bytes that a build holds for each row, at most: hashes of keys and what places them, not the row, which has more."""

OWN_CACHES = {"duckdb": 2**29}
"""What remembers what it read, up to a limit."""

CHILD = """
import sys
import mmcache
from mmcache import Schema
from mmcache.sources.at import source_at
schema = Schema(sys.argv[3], index=("kind",))
source = mmcache.SQLAlchemySource(sys.argv[1], schema) if "://" in sys.argv[1] else source_at(sys.argv[1], schema)
mmcache.build(sys.argv[2], source)
# Not ru_maxrss, which begins with what the parent had.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def rows(n: int) -> Iterator[dict[str, Any]]:
    return rows_from(0, n)


def rows_from(begin: int, n: int) -> Iterator[dict[str, Any]]:
    for i in range(begin, begin + n):
        yield {"id": f"key-{i}", "kind": i % 7, "text": f"{i} {WORDS}", "price": i / 7, "other": f"{WORDS} {i}"}


def write(path: Path, n: int) -> None:
    """The file that the suffix says."""
    kind = path.name.partition(".")[2] or "parts"
    if kind in ("parquet", "parts", "arrow", "arrows", "duckdb"):
        write_arrow(path, kind, n)
        return
    opened: Callable[..., Any] = partial(gzip.open, compresslevel=1) if kind.endswith("gz") else open
    with opened(path, mode="wt", newline="") as file:
        if kind.startswith("csv"):
            table = csv.DictWriter(file, next(rows(1)))
            table.writeheader()
            table.writerows(rows(n))
        elif kind == "json":
            for i, row in enumerate(rows(n)):
                file.write(f"{',' if i else '['}\n{json.dumps(row)}")
            file.write("]")
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows(n))


def write_arrow(path: Path, kind: str, n: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    step = 5000
    schema = pa.RecordBatch.from_pylist(list(rows(1))).schema

    def each() -> Iterator[Any]:
        run: list[dict[str, Any]] = []
        for row in rows(n):
            run.append(row)
            if len(run) == step:
                yield pa.RecordBatch.from_pylist(run)
                run = []

    if kind == "parquet":
        with parquet.ParquetWriter(path, schema) as writer:
            for batch in each():
                writer.write_batch(batch)
    elif kind == "parts":
        path.mkdir()
        for i, batch in enumerate(each()):
            parquet.write_table(pa.Table.from_batches([batch]), path / f"{i:04}.parquet")
    elif kind == "duckdb":
        import duckdb

        with duckdb.connect(str(path)) as connection:
            reader = pa.RecordBatchReader.from_batches(schema, each())
            connection.register("given", reader)
            connection.execute("CREATE TABLE items AS SELECT * FROM given")
    else:
        make = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with make(path, schema) as writer:
            for batch in each():
                writer.write_batch(batch)


def peak(kind: str, n: int) -> tuple[int, int]:
    """Of a build from so many rows, in bytes; and the size of the cache file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"items-{n}" if kind == "parts" else f"items.{kind}")
        write(path, n)
        return _built(path, Path(directory, "items.mmc"), "items")


def _built(source: Path | str, out: Path, table: str) -> tuple[int, int]:
    command = [sys.executable, "-c", CHILD, source, out, table]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout), out.stat().st_size


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of the peak")
@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_does_not_grow_with_the_rows(kind):
    pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    few, _ = peak(kind, ROWS)
    many, size = peak(kind, 4 * ROWS)
    print(f"{kind}: {few / 2**20:.1f} and {many / 2**20:.1f} MiB; the file has {size / 2**20:.0f} MiB")
    assert many - few < 3 * ROWS * PER_ROW + 2**24 + OWN_CACHES.get(kind, 0)


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of the peak")
def test_peak_memory_does_not_grow_with_the_rows_of_a_table(database, tmp_path):
    """Of PostgreSQL, MariaDB and SQLite by SQLAlchemy, and of SQLite by sqlite3."""
    n = ROWS // 2
    tables = {"few": n, "many": 4 * n}
    for table, count in tables.items():
        database.run(f"CREATE TABLE {table} (id varchar(20) PRIMARY KEY, kind integer, text varchar(2000))")
        for begin in range(0, count, 5000):
            taken = [{name: row[name] for name in ("id", "kind", "text")} for row in rows_from(begin, 5000)]
            database.run(f"INSERT INTO {table} VALUES (:id, :kind, :text)", rows=taken)
    for source in [database.url, *([tmp_path / "items.db"] if database.kind == "sqlite" else [])]:
        (few, _), (many, size) = (_built(source, tmp_path / f"{table}.mmc", table) for table in tables)
        print(f"{source}: {few / 2**20:.1f} and {many / 2**20:.1f} MiB; the file has {size / 2**20:.0f} MiB")
        assert many - few < 3 * n * PER_ROW + 2**24
        assert size > 3 * n * PER_ROW + 2**24, "else nothing is shown"


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    print(f"| source | MiB at {count} rows | at {4 * count} | bytes a row more | the file then |")
    print("|---|---|---|---|---|")
    for one in KINDS:
        low, _ = peak(one, count)
        high, whole = peak(one, 4 * count)
        more = (high - low) / (3 * count)
        print(f"| {one} | {low / 2**20:.1f} | {high / 2**20:.1f} | {more:.0f} | {whole / 2**20:.0f} MiB |", flush=True)
