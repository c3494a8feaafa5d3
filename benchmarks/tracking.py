"""What does change tracking cost the writers of a database, and what does it cost to ask?

Two databases hold the same records in the same layout; in one the table is tracked. Writers take turns on them with the
same statements: one row a commit, and 50,000 rows in one transaction, or 10,000 with --quick. `synchronous` is OFF, so
that the disk's own time does not hide the cost; with it the ratio of single commits is nearer to 1. The bulk is deleted
again, untimed, and the log is full from the start, so that its trimming is measured as well.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable

import mmcache
from mmcache.sources.tracking import LIMIT, track

from .common import Report, Settings, Turn, Work, interleave, parser, ratio_text, repeated, settings_of, time_text

QUESTION = "What does change tracking cost the writers of a database, and what does it cost to ask?"
COMMITS = 500
BULK, QUICK_BULK = 50_000, 10_000
SCHEMA = mmcache.Schema("items")
TEXT = "x" * 300
LAYOUTS = {
    "text key": "CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, n INTEGER, body TEXT)",
    "and a unique column": "CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT UNIQUE, n INTEGER, body TEXT)",
}

_number = itertools.count()


def make(path: str, layout: str, journal: str, records: int, *, tracked: bool) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(f"PRAGMA journal_mode = {journal}; PRAGMA synchronous = OFF; {layout}")
    insert(db, records, "base")
    if tracked:
        track(path, [SCHEMA])
        db.execute("BEGIN")
        for _ in range(-(-LIMIT // records)):
            db.execute("UPDATE items SET n = n + 1")
        db.execute("COMMIT")
    return db


def insert(db: sqlite3.Connection, records: int, prefix: str) -> None:
    db.execute("BEGIN")
    rows = ((f"{prefix}-{i}", f"{prefix}:{i}", i, TEXT) for i in range(records))
    db.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
    db.execute("COMMIT")


def inserts(db: sqlite3.Connection, commits: int) -> Work:
    def work(_: int) -> Turn:
        turn = next(_number)

        def action() -> None:
            for i in range(commits):
                key = f"one-{turn}-{i}"
                db.execute("INSERT INTO items VALUES (?, ?, 1, ?)", (key, key, TEXT))

        return action, commits

    return work


def updates(db: sqlite3.Connection, commits: int, records: int) -> Work:
    def work(_: int) -> Turn:
        def action() -> None:
            for i in range(commits):
                db.execute("UPDATE items SET n = n + 1 WHERE id = ?", (f"base-{i * 7919 % records}",))

        return action, commits

    return work


def bulk(db: sqlite3.Connection, rows: int) -> Work:
    def work(_: int) -> Turn:
        db.execute("DELETE FROM items WHERE id >= 'bulk' AND id < 'bulk.'")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return (lambda: insert(db, rows, "bulk")), rows

    return work


def compare(report: Report, settings: Settings, directory: str, layout: str, journal: str, *, most: int) -> None:
    """most: rows of the bulk, unless there are few records."""
    records = max(settings.sizes[0], 10)
    rows = min(most, 50 * records)
    with contextlib.ExitStack() as stack:
        pair = {}
        for name in ("plain", "tracked"):
            path = os.path.join(directory, f"{layout}-{journal}-{name}.db")
            db = make(path, LAYOUTS[layout], journal, records, tracked=name == "tracked")
            pair[name] = stack.enter_context(contextlib.closing(db))
        makers: dict[str, tuple[Callable[[sqlite3.Connection], Work], int]] = {
            "insert, a row a commit": (lambda db: inserts(db, COMMITS), 31),
            "update, a row a commit": (lambda db: updates(db, COMMITS, records), 31),
            f"insert of {rows:,} rows": (lambda db: bulk(db, rows), 11),
        }
        lines = []
        for operation, (maker, usual) in makers.items():
            works = {name: maker(db) for name, db in pair.items()}
            samples = interleave(works, settings.repeat(usual), report.noise)
            ratio = samples.ratio("tracked", "plain")
            plain, tracked = samples.range("plain"), samples.range("tracked")
            report.result(
                layout=layout, journal=journal, operation=operation, plain=plain, tracked=tracked, ratio=ratio
            )
            more = tracked.median - plain.median
            lines.append(
                [
                    operation,
                    time_text(plain.median),
                    time_text(tracked.median),
                    time_text(more) if more > 0 else "none",
                    ratio_text(ratio),
                ]
            )
    title = f"{layout}, journal_mode={journal}, time a row"
    report.table(title, ["operation", "plain", "tracked", "more", "tracked / plain"], lines)


def ask(report: Report, settings: Settings, directory: str) -> None:
    """What `fingerprint` and `changes` take."""
    path = os.path.join(directory, "asked.db")
    records = settings.sizes[0]
    with contextlib.closing(make(path, LAYOUTS["text key"], "wal", records, tracked=True)) as db:
        source = mmcache.SQLiteSource(path, SCHEMA)
        before = {}
        for count in (1_000, 1):
            before[count] = source.fingerprint()
            db.execute("BEGIN")
            db.executemany("UPDATE items SET n = 0 WHERE id = ?", [(f"base-{i % records}",) for i in range(count)])
            db.execute("COMMIT")
        time.sleep(0.05)  # until the file is old enough to be trusted
        source.fingerprint()

        def look() -> None:
            source._writes.last_answer = None
            source.fingerprint()

        contenders = {
            "fingerprint, file as it was": repeated(source.fingerprint),
            "fingerprint, file changed": repeated(look),
            "changes since 1 write": repeated(lambda: source.changes(before[1])),
            "changes since 1,001 writes": repeated(lambda: source.changes(before[1_000])),
        }
        samples = interleave(contenders, settings.repeat(11), report.noise)
        source.close()
    lines = []
    for name in contenders:
        report.result(operation=name, seconds=samples.range(name))
        lines.append([name, time_text(samples.range(name).median)])
    report.table("asking", ["operation", "median"], lines)


def main() -> int:
    arguments: argparse.Namespace = parser(QUESTION).parse_args()
    settings = settings_of(arguments)
    if arguments.quick and settings.repetitions is None:
        settings = Settings(settings.sizes, 7, settings.data, settings.json, settings.check)
    report = Report("tracking", QUESTION, settings)
    with tempfile.TemporaryDirectory() as directory:
        for layout in LAYOUTS:
            for journal in ("wal", "delete"):
                compare(report, settings, directory, layout, journal, most=QUICK_BULK if arguments.quick else BULK)
        ask(report, settings, directory)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
