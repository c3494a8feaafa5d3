"""At which rate does a file come from PostgreSQL, beside a program that only reads the same rows?

A server of its own on a socket, with records that have an embedding of 384 numbers as `real[]`, and others as `bytea`;
where the extension pgvector is installed, also as `vector`.
They are read by psycopg through a cursor of the server's, 1,000 rows at a time, in the order of the key, and nothing is
done with them; and they are built into a file, with its index, checksums and fsync.

    rate     records a second of the build / of the read alone; the goal is a ratio of times of at most 2
    writes   time of an UPDATE of a row a commit, and of all rows of a table of 20,000, tracked / plain
    memory   the peak of a process that builds, for a quarter of the records and for all of them

Needs the programs of PostgreSQL, and the group `integration`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile

import psycopg
import pytest

import mmcache
from tests.support import servers

from .common import ROOT, Report, Settings, Turn, Work, interleave, parser, ratio_text, settings_of

QUESTION = "At which rate does a file come from PostgreSQL, beside a program that only reads the same rows?"
DIM = 384
GOAL = 2.0
KINDS = {"real[]": "arrays", "bytea": "bytes", "vector": "vectors"}


def fill(url: str, n: int) -> dict[str, str]:
    """The kinds that there are, with their tables: pgvector may not be installed."""
    with psycopg.connect(url, autocommit=True) as db:
        kinds = dict(KINDS)
        if db.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone() is None:
            del kinds["vector"]
        else:
            db.execute("CREATE EXTENSION vector")
        for kind, table in kinds.items():
            column = f"vector({DIM})" if kind == "vector" else kind
            db.execute(f"CREATE TABLE {table} (id text PRIMARY KEY, kind text, body text, vector {column})")
            vector = f"(SELECT array_agg((random() - 0.5)::real) FROM generate_series(1, {DIM}) WHERE i > 0)"
            if kind == "bytea":
                # As clients write it: little-endian, without what array_send puts between the numbers.
                vector = f"decode(repeat(md5(i::text), {4 * DIM // 16}), 'hex')"
                vector = f"substring({vector} FROM 1 FOR {4 * DIM})"
                vector = f"set_bytes({vector})"
            db.execute(SET_BYTES)
            db.execute(
                f"INSERT INTO {table} SELECT 'item-' || lpad(i::text, 8, '0'), 'kind ' || i % 20,"
                f" repeat(md5(i::text), 6), {vector} FROM generate_series(1, {n}) i"
            )
            db.execute(f"VACUUM ANALYZE {table}")
    return kinds


SET_BYTES = """
CREATE OR REPLACE FUNCTION set_bytes(b bytea) RETURNS bytea LANGUAGE sql AS $$
  SELECT decode(regexp_replace(encode(b, 'hex'), '(.{6})(.{2})', '\\13e', 'g'), 'hex')
$$"""
"""Makes numbers between 0.03 and 0.5 of arbitrary bytes."""


def source_of(url: str, table: str) -> mmcache.SQLAlchemySource:
    schema = mmcache.Schema("items", key="id", table=table, index=("kind",), embedding="vector", dim=DIM, dtype="f4")
    return mmcache.SQLAlchemySource(url, schema)


def compare(report: Report, settings: Settings, url: str, n: int, kinds: dict[str, str]) -> None:
    rows = []
    for kind, table in kinds.items():

        def reading(_: int, table: str = table) -> Turn:
            def read() -> None:
                with psycopg.connect(url) as db, db.cursor("rows") as cursor:
                    cursor.itersize = 1000
                    cursor.execute(f"SELECT id, kind, body, vector FROM {table} ORDER BY id")
                    for _ in cursor:
                        pass

            return read, n

        with tempfile.TemporaryDirectory(dir=settings.data) as directory:

            def building(repetition: int, table: str = table, directory: str = directory) -> Turn:
                path = os.path.join(directory, f"{repetition}.mmc")

                def build() -> None:
                    with contextlib.closing(source_of(url, table)) as source:
                        mmcache.build(path, source)

                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                return build, n

            works: dict[str, Work] = {"read": reading, "build": building}
            samples = interleave(works, settings.repeat(3), report.noise)
        ratio = samples.ratio("build", "read")
        rates = {name: 1 / samples.range(name).median for name in works}
        report.result(operation="postgres", kind=kind, n=n, ratio=ratio, **rates)
        verdict = report.goal(f"a build of {kind} / reading it", n, ratio.median, GOAL)
        peaks = [peak(url, table, part) for part in (n // 4, n)]
        report.result(operation="memory", kind=kind, n=n, quarter_mb=peaks[0], all_mb=peaks[1])
        rows.append(
            [kind, f"{rates['read']:,.0f}", f"{rates['build']:,.0f}", ratio_text(ratio), verdict]
            + [f"{megabytes:.0f} MB" for megabytes in peaks]
        )
    header = ["embedding", "read, records/s", "built, records/s", "time ratio", "goal", "peak of a quarter", "of all"]
    report.table(f"{n:,} records of {DIM} numbers", header, rows)


def writes(report: Report, settings: Settings, url: str) -> None:
    """What tracking costs the writers of a table."""
    rows = []
    with psycopg.connect(url, autocommit=True) as db, contextlib.ExitStack() as stack:
        for table in ("plain", "tracked"):
            db.execute(f"CREATE TABLE {table} (id text PRIMARY KEY, n int, body text)")
            body = "SELECT 'item-' || i, 0, repeat('x', 300) FROM generate_series(1, 20000) i"
            db.execute(f"INSERT INTO {table} {body}")
        source = stack.enter_context(contextlib.closing(mmcache.SQLAlchemySource(url, mmcache.Schema("tracked"))))
        source.track()

        def commits(table: str) -> Work:
            def update() -> None:
                for i in range(1, 301):
                    db.execute(f"UPDATE {table} SET n = n + 1 WHERE id = %s", (f"item-{i}",))

            return lambda _: (update, 300)

        def bulk(table: str) -> Work:
            return lambda _: (lambda: db.execute(f"UPDATE {table} SET n = n + 1"), 20_000)

        for name, work in (("update, a row a commit", commits), ("update of 20,000 rows", bulk)):
            samples = interleave(
                {table: work(table) for table in ("plain", "tracked")}, settings.repeat(3), report.noise
            )
            ratio = samples.ratio("tracked", "plain")
            medians = {table: samples.range(table).median for table in ("plain", "tracked")}
            report.result(operation="writes", kind=name, ratio=ratio, **medians)
            rows.append([name, *(f"{1e6 * seconds:.0f} µs" for seconds in medians.values()), ratio_text(ratio)])
    report.table("writers, time a row", ["operation", "plain", "tracked", "tracked / plain"], rows)


def peak(url: str, table: str, n: int) -> float:
    """Megabytes that reading n records through a source takes at most, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.postgres", "--peak", url, table, str(n)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def tell_peak(url: str, table: str, n: int) -> None:
    query = f"SELECT * FROM {table} WHERE id <= 'item-{n:08}' ORDER BY id"
    schema = mmcache.Schema("items", key="id", query=query, index=("kind",), embedding="vector", dim=DIM, dtype="f4")
    with contextlib.closing(mmcache.SQLAlchemySource(url, schema)) as source, source.read() as reading:
        for _ in reading.records("items"):
            pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> int:
    if sys.argv[1:2] == ["--peak"]:
        tell_peak(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return 0
    settings = settings_of(parser(QUESTION).parse_args())
    report = Report("postgres", QUESTION, settings)
    os.makedirs(settings.data, exist_ok=True)
    for n in settings.sizes:
        try:
            with servers.postgres("shared_buffers=512MB") as url:
                compare(report, settings, url, n, fill(url, n))
                writes(report, settings, url)
        except pytest.skip.Exception as error:
            report.note(str(error))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
