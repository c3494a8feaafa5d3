"""SQLiteSource beside writers, in threads, after a fork and in other processes."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
import weakref
from typing import Any

import pytest

from mmcache.errors import MmcacheError, SourceError
from mmcache.schema import Schema
from mmcache.sources import SQLiteSource
from mmcache.sources.fingerprint import fingerprint_of, stamp_of
from tests.support import inside
from tests.support.processes import answering, ask_child
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")

SCHEMAS = Schema("a", index=("kind",)), Schema("b")


@pytest.fixture(params=["delete", "wal"])
def journal(request):
    return request.param


@pytest.fixture
def writer(tmp_path, journal):
    writer = sqlite3.connect(tmp_path / "items.db", timeout=0, isolation_level=None)
    writer.execute(f"PRAGMA journal_mode = {journal}")
    writer.execute("PRAGMA synchronous = OFF")
    writer.executescript("CREATE TABLE a (id TEXT PRIMARY KEY, kind TEXT); CREATE TABLE b (id TEXT PRIMARY KEY);")
    writer.execute("BEGIN")
    writer.executemany("INSERT INTO a VALUES (?, ?)", [(f"k{i}", "xy"[i % 2]) for i in range(200)])
    writer.executemany("INSERT INTO b VALUES (?)", [("one",)])
    writer.execute("COMMIT")
    yield writer
    writer.close()


@pytest.fixture
def source(tmp_path, writer):
    source = SQLiteSource(tmp_path / "items.db", *SCHEMAS, timeout=0.01)
    yield source
    source.close()


def settled(source: SQLiteSource) -> bytes:
    """Its fingerprint, once no write can leave it as it is."""
    until("the files are old enough", lambda: source.fingerprint() == source.fingerprint())
    return source.fingerprint()


def ids(records):
    return [record and record.values[0] for record in records]


# ---- one consistent read ---------------------------------------------------------------------------------------------


def test_a_read_does_not_see_what_is_written_during_it(source, writer, journal):
    with source.read() as reading:
        rows = reading.records("a")
        assert next(rows).values[0] == "k0"
        if journal == "wal":
            writer.execute("BEGIN")
            writer.execute("INSERT INTO a VALUES ('late', 'x')")
            writer.execute("INSERT INTO b VALUES ('late')")
            writer.execute("COMMIT")
        else:
            writer.execute("BEGIN")
            writer.execute("INSERT INTO b VALUES ('late')")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                writer.execute("COMMIT")
        assert len(list(rows)) == 199
        assert reading.count("b") == 1
        assert ids(reading.records("b")) == ["one"]
    if journal == "delete":
        writer.execute("COMMIT")  # the lock went with the read
    assert ids(source.fetch("b", ["late"])) == ["late"]
    with source.read() as reading:
        assert ids(reading.records("b")) == ["one", "late"]


@pytest.mark.parametrize("journal", ["wal"], indirect=True)  # else a writer cannot commit meanwhile
@pytest.mark.parametrize("schema", [Schema("b"), Schema("q", query="SELECT * FROM b")], ids=["table", "query"])
def test_the_view_is_fixed_when_the_read_begins(tmp_path, writer, journal, schema):
    source = SQLiteSource(tmp_path / "items.db", schema)
    with source.read() as reading:
        writer.execute("INSERT INTO b VALUES ('late')")
        assert ids(reading.records(schema.name)) == ["one"]
    source.close()


@pytest.mark.parametrize("journal", ["wal"], indirect=True)
def test_a_fetch_of_many_is_one_consistent_read(source, writer, journal):
    asked = [f"k{i}" for i in range(2000)]
    assert ids(source.fetch("a", asked[::-1]))[-200:] == asked[:200][::-1]
    (connection,) = inside.idle_connections(source)
    selects: list[str] = []

    def change(sql):
        if sql.startswith("SELECT s."):
            selects.append(sql)
            if len(selects) == 2:
                writer.execute("DELETE FROM a")

    connection.raw.set_trace_callback(change)
    try:
        assert ids(source.fetch("a", asked[::-1]))[-200:] == asked[:200][::-1]
    finally:
        connection.raw.set_trace_callback(None)
    assert len(selects) == 4
    assert ids(source.fetch("a", ["k1"])) == [None]


def test_a_collection_can_be_read_twice_and_two_interleaved(source):
    with source.read() as reading:
        first, second = reading.records("a"), reading.records("a")
        assert next(first) == next(second)
        assert ids(reading.records("b")) == ["one"]
        assert list(first) == list(second)


def test_a_read_that_is_over_gives_no_more(source, writer):
    writer.executemany("INSERT INTO a VALUES (?, 'x')", [(f"more {i}",) for i in range(2000)])
    with source.read() as reading:
        rows = reading.records("a")
        next(rows)
    with pytest.raises(SourceError):
        list(rows)  # a few of them were fetched with the first
    with pytest.raises(SourceError, match="over"):
        list(reading.records("a"))
    with pytest.raises(SourceError, match="over"):
        reading.count("a")


def test_a_failed_read_leaves_no_lock(source, writer):
    def fail():
        with source.read() as reading:
            next(reading.records("a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    writer.execute("INSERT INTO b VALUES ('late')")


@pytest.mark.parametrize("journal", ["wal"], indirect=True)
def test_a_writer_in_wal_mode_locks_no_reader_out(source, writer, journal):
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute("INSERT INTO b VALUES ('late')")
    assert ids(source.fetch("b", ["one", "late"])) == ["one", None]
    writer.execute("ROLLBACK")


@pytest.mark.parametrize("journal", ["delete"], indirect=True)
def test_a_locked_database_is_a_source_error_that_helps(source, writer, journal):
    source.fetch("a", ["k1"])
    writer.execute("BEGIN EXCLUSIVE")
    for ask in (
        lambda: source.fetch("a", ["k1"]),
        lambda: list(source.find("a", {})),
        lambda: source.read().__enter__(),
    ):
        with pytest.raises(SourceError, match=r"the database is locked: .*timeout of 0.01 s.*WAL") as caught:
            ask()
        assert caught.value.path == source.path
    writer.execute("ROLLBACK")
    assert ids(source.fetch("a", ["k1"])) == ["k1"]


@pytest.mark.parametrize("journal", ["delete"], indirect=True)  # in WAL mode readers do not wait
@pytest.mark.parametrize("is_open", [False, True])
def test_a_short_lock_is_waited_for(tmp_path, writer, journal, is_open):
    source = SQLiteSource(tmp_path / "items.db", *SCHEMAS, timeout=30)
    if is_open:
        source.fetch("b", ["one"])
        writer.execute("INSERT INTO b VALUES ('two')")
    writer.execute("BEGIN EXCLUSIVE")
    found = []
    reader = threading.Thread(target=lambda: found.extend(source.fetch("b", ["one"])))
    reader.start()
    reader.join(0.3)
    assert reader.is_alive()
    writer.execute("COMMIT")
    reader.join()
    assert ids(found) == ["one"]
    source.close()


# ---- fingerprint -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_writers_and_not_readers(source, writer):
    source.fetch("a", ["k1"])
    seen = {source.fingerprint()}
    for n in range(3):
        before = settled(source)
        with source.read() as reading:
            list(reading.records("a"))
        assert source.fingerprint() == before
        assert SQLiteSource(source.path, Schema("b")).fingerprint() == before
        writer.executemany("INSERT INTO a VALUES (?, ?)", [(f"n{n}-{i}", "z" * 100) for i in range(100)])
        seen.add(source.fingerprint())
    assert len(seen) == 4
    assert {len(fingerprint) for fingerprint in seen} == {32}


def test_reading_a_wal_database_that_is_not_open_keeps_its_fingerprint(tmp_path):
    path = tmp_path / "w.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("PRAGMA journal_mode = WAL; CREATE TABLE a (id TEXT); INSERT INTO a VALUES ('k')")
    assert not os.path.exists(f"{path}-wal")
    source = SQLiteSource(path, Schema("a", key="id"))
    before = settled(source)
    for _ in range(2):
        with source.read() as reading:
            assert ids(reading.records("a")) == ["k"]
        assert source.fingerprint() == before
        source.close()
        assert source.fingerprint() == before


def test_opening_a_wal_as_root_does_not_change_the_fingerprint(tmp_path):
    """It calls chown, which sets the ctime of the -wal. The times of the database itself all count."""
    path = tmp_path / "w.db"
    source = SQLiteSource(path, Schema("a"))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript("PRAGMA journal_mode = WAL; CREATE TABLE a (id TEXT)")
        db.execute("INSERT INTO a VALUES ('k')")
        before, seen = settled(source), os.stat(f"{path}-wal")

        def change_owner() -> bool:
            os.chown(f"{path}-wal", seen.st_uid, seen.st_gid)
            return os.stat(f"{path}-wal").st_ctime_ns > seen.st_ctime_ns

        until("the file system's clock has ticked", change_owner)
        assert source.fingerprint() == source.fingerprint() == before
        os.chown(path, seen.st_uid, seen.st_gid)
        assert source.fingerprint() != before


def test_every_part_of_the_fingerprint_counts():
    parts = [0o100644, 1, 2, 1, 0, 0, 3, 0, 0, 0]  # mode, inode, device, links, user, group, size, and whole seconds
    stats = [os.stat_result(parts, {"st_mtime_ns": 4, "st_ctime_ns": 5})]
    stats += [os.stat_result(parts, {"st_mtime_ns": 6, "st_ctime_ns": 5})]
    stats += [os.stat_result(parts, {"st_mtime_ns": 4, "st_ctime_ns": 6})]
    for position in (1, 2, 6):
        changed = [*parts[:position], 9, *parts[position + 1 :]]
        stats.append(os.stat_result(changed, {"st_mtime_ns": 4, "st_ctime_ns": 5}))
    stamps = [stamp_of(stat) for stat in stats]
    found = {fingerprint_of(stamp, wal) for stamp in stamps for wal in (None, stamps[0])}
    assert len(found) == 12


def test_a_file_put_in_its_place_shows_even_with_equal_size_and_times(tmp_path, source, writer):
    writer.close()
    before, stat = source.fingerprint(), os.stat(source.path)
    shutil.copy2(source.path, tmp_path / "copy")
    os.utime(tmp_path / "copy", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(tmp_path / "copy", source.path)
    assert os.stat(source.path).st_mtime_ns == stat.st_mtime_ns
    assert source.fingerprint() != before
    assert ids(source.fetch("b", ["one"])) == ["one"]


def test_the_wal_of_a_linked_database_is_found(tmp_path, writer, journal):
    os.symlink(tmp_path / "items.db", tmp_path / "link.db")
    source = SQLiteSource(tmp_path / "link.db", *SCHEMAS)
    before = source.fingerprint()
    writer.executemany("INSERT INTO a VALUES (?, ?)", [(f"n{i}", "z" * 100) for i in range(100)])
    assert source.fingerprint() != before
    source.close()


def replaced(path, how, script):
    """Another database in its place, which counts as many commits: the one that was, less its rows, and a script."""
    new = path.with_name("new.db")
    shutil.copy2(path, new)
    with contextlib.closing(sqlite3.connect(new)) as db:
        count = int.from_bytes(new.read_bytes()[24:28], "big")
        db.executescript(f"PRAGMA journal_mode = delete; BEGIN; DELETE FROM b; {script}; COMMIT")
    with new.open("r+b") as file:  # the count of changes, and which of them the header is of
        for place in (24, 92):
            file.seek(place)
            file.write(count.to_bytes(4, "big"))
    os.replace(new, path) if how == "renamed" else shutil.copyfile(new, path)


@pytest.mark.parametrize("how", ["renamed", "copied"])
def test_a_lookup_asks_the_database_that_is_there(tmp_path, source, writer, journal, how):
    writer.execute("PRAGMA journal_mode = delete")
    writer.close()
    assert ids(source.fetch("b", ["one"])) == ids(source.find("b", {})) == ["one"]
    for key in ("two", "three"):
        replaced(tmp_path / "items.db", how, f"INSERT INTO b VALUES ('{key}')")
        assert ids(source.fetch("b", ["one", key])) == [None, key]
        assert ids(source.find("b", {})) == source.in_order("b", [key, "one"]) == [key]
        with source.read() as reading:
            assert ids(reading.records("b")) == [key]


@pytest.mark.parametrize("how", ["renamed", "copied"])
def test_a_database_of_other_columns_is_read_by_them(tmp_path, how):
    path = tmp_path / "items.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE b (id TEXT PRIMARY KEY, old TEXT); INSERT INTO b VALUES ('one', 'x')")
        version = db.execute("PRAGMA schema_version").fetchone()[0]
    source = SQLiteSource(path, Schema("b"))
    (before,) = source.fetch("b", ["one"])
    assert before is not None
    assert before.values == ("one", "x")
    script = "DROP TABLE b; CREATE TABLE b (note TEXT, id TEXT PRIMARY KEY, more TEXT);"
    replaced(path, how, f"{script} INSERT INTO b VALUES ('n', 'one', 'm'); PRAGMA schema_version = {version}")
    (after,) = source.fetch("b", ["one"])
    assert after is not None
    assert sorted(after.values) == ["m", "n", "one"]
    source.close()


def test_connections_are_kept_while_others_commit(source, writer):
    source.fetch("b", ["one"])
    before = inside.open_connections(source)
    for n in range(20):
        writer.execute("INSERT INTO b VALUES (?)", [f"k{n}"])
        assert ids(source.fetch("b", [f"k{n}"])) == [f"k{n}"]
    assert inside.open_connections(source) == before


# ---- threads ---------------------------------------------------------------------------------------------------------


def test_threads_share_a_source(source):
    barrier, wrong = threading.Barrier(8), []

    def work(seed):
        barrier.wait()
        for i in range(60):
            key = f"k{(seed * 31 + i) % 200}"
            if ids(source.fetch("a", [key, "no"])) != [key, None]:
                wrong.append(key)
            if i % 20 == 0 and len(list(source.find("a", {"kind": ("x",)}))) != 100:
                wrong.append("find")
            if i % 30 == 0:
                with source.read() as reading:
                    if reading.count("a") != 200 or len(list(reading.records("a"))) != 200:
                        wrong.append("read")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(inside.open_connections(source)) == len(inside.idle_connections(source)) <= inside.MAX_IDLE


def test_more_users_than_may_stay_idle_all_get_a_connection(source):
    searches = [source.find("a", {}) for _ in range(inside.MAX_IDLE + 3)]
    assert {next(search).values[0] for search in searches} == {"k0"}
    for search in searches:
        search.close()
    assert len(inside.open_connections(source)) == len(inside.idle_connections(source)) == inside.MAX_IDLE


def test_close_is_not_final_and_spares_what_is_lent(source):
    search = source.find("a", {})
    next(search)
    source.fetch("a", ["k1"])
    source.close()
    source.close()
    assert len(list(search)) == 199
    assert not inside.open_connections(source)
    assert ids(source.fetch("a", ["k1"])) == ["k1"]


def test_closing_while_others_read_disturbs_none(source):
    stop, wrong = threading.Event(), []

    def work():
        while not stop.is_set():
            if ids(source.fetch("a", ["k1"])) != ["k1"]:
                wrong.append("fetch")

    def caught():
        try:
            work()
        except SourceError as error:
            wrong.append(str(error))

    threads = [threading.Thread(target=caught) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        source.close()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    source.close()
    assert not inside.open_connections(source)


def test_a_forgotten_source_closes_its_connections(tmp_path, writer):
    source = SQLiteSource(tmp_path / "items.db", *SCHEMAS)
    source.fetch("a", ["k1"])
    (connection,) = inside.idle_connections(source)
    raw = connection.raw
    del source, connection
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        raw.execute("SELECT 1")


def test_a_source_that_is_garbage_in_a_cycle_closes_them_before_sqlite3_warns(tmp_path, writer):
    """As it does since CPython 3.13, of each that it has to end itself; the collector begins with what is oldest."""
    db = tmp_path / "items.db"
    made = [sqlite3.connect(f"file:{db}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)]
    source = SQLiteSource(db, *SCHEMAS, connect=lambda *_, **__: made.pop())
    source.fetch("a", ["k1"])
    cycle: list[Any] = [source]
    cycle.append(cycle)
    del source, cycle
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gc.collect()
    assert not told


# ---- processes -------------------------------------------------------------------------------------------------------


def test_it_pickles_to_its_arguments(tmp_path, source):
    source.fetch("a", ["k1"])
    copy = pickle.loads(pickle.dumps(source))
    assert copy.__getstate__() == source.__getstate__() == {"path": source.path, "schemas": SCHEMAS, "timeout": 0.01}
    assert not inside.open_connections(copy)
    assert ids(copy.fetch("a", ["k1", "no"])) == ["k1", None]
    copy.close()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_it_works_in_workers_of_every_start_method(source, method):
    source.fetch("a", ["k1"])
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert ids(pool.apply(source.fetch, ("a", ["k1", "no"]))) == ["k1", None]
    assert ids(source.fetch("a", ["k1"])) == ["k1"]


class Watched(sqlite3.Connection):
    """Says when a process that did not open it executes on it, closes it or drops it."""

    offences: tuple[str, ...] = ()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.opener = os.getpid()

    def _note(self, what):
        if os.getpid() != self.opener:
            Watched.offences += (what,)

    def execute(self, *args):
        self._note("execute")
        return super().execute(*args)

    def close(self):
        self._note("close")
        super().close()

    def rollback(self):
        self._note("rollback")
        super().rollback()

    def __del__(self):
        self._note("drop")


@pytest.fixture
def watched(monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, factory=Watched))


def test_a_child_neither_uses_nor_closes_what_it_inherits(watched, source):
    source.fetch("a", ["k1"])
    other = SQLiteSource(source.path, *SCHEMAS)
    other.fetch("a", ["k1"])
    inherited = [weakref.ref(connection.raw) for s in (source, other) for connection in inside.idle_connections(s)]
    sources = [other]
    del other

    def child():
        found = ids(source.fetch("a", ["k1"])), ids(source.find("b", {}))
        sources.pop().close()
        source.close()
        gc.collect()
        return found, len(inherited), [ref() is None for ref in inherited], Watched.offences

    assert ask_child(child) == ((["k1"], ["one"]), 2, [False, False], ())
    assert ids(source.fetch("a", ["k2"])) == ["k2"]
    assert len(inside.open_connections(source)) == 1  # the parent's connection was not disturbed
    sources.pop().close()


def test_a_grandchild_does_not_either(watched, source):
    source.fetch("a", ["k1"])

    def child():
        source.fetch("a", ["k1"])
        return ask_child(lambda: (ids(source.fetch("a", ["k1"])), Watched.offences))

    assert ask_child(child) == (["k1"], ())


def test_what_other_threads_had_lent_is_not_closed_by_their_end_in_the_child(watched, source):
    lent, done = threading.Event(), threading.Event()

    def work():
        with inside.connection(source) as connection:
            cursor = connection.execute("SELECT id FROM a")
            cursor.fetchone()
            lent.set()
            done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    lent.wait()

    def child():
        gc.collect()
        return Watched.offences

    try:
        assert ask_child(child) == ()
    finally:
        done.set()
        thread.join()


def test_a_read_does_not_continue_in_a_child(watched, source):
    with source.read() as reading:
        rows = reading.records("a")
        next(rows)

        def child():
            try:
                list(reading.records("b"))
            except SourceError as error:
                return str(error), Watched.offences
            return None

        message, offences = ask_child(child)
        assert "a read cannot continue in the child process" in message
        assert offences == ()
        assert len(list(rows)) == 199


def test_leaving_a_read_in_the_child_does_not_touch_it(watched, source, writer, journal):
    def child():
        context.__exit__(None, None, None)
        gc.collect()
        return Watched.offences

    context = source.read()
    reading = context.__enter__()
    rows = reading.records("a")
    next(rows)
    assert ask_child(child) == ()
    assert len(list(rows)) == 199
    if journal == "delete":  # and the parent's lock still holds
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            writer.execute("INSERT INTO b VALUES ('late')")
    context.__exit__(None, None, None)
    writer.execute("INSERT INTO b VALUES ('late')")


def test_a_child_forked_during_a_read_is_refused(source):
    """SQLite would take the parent's lock for the child's own, and a writer could write under its reads."""
    with source.read():
        error = ask_child(lambda: source.fetch("a", ["k1"]))
        other = ask_child(lambda: SQLiteSource(source.path, *SCHEMAS).fetch("a", ["k1"]))
    for found in (error, other):
        assert isinstance(found, SourceError)
        assert "forked while its parent was reading" in str(found)
        assert found.path == source.path
    assert ids(ask_child(lambda: source.fetch("a", ["k1"]))) == ["k1"]
    assert ids(source.fetch("a", ["k1"])) == ["k1"]


def test_children_of_a_busy_process_read(source):
    """SQLite is inside a call in one of four threads at nearly any moment; a fork waits for one when it is in none.

    On a busy machine a read may take longer than a fork waits; then the child is refused, and none hangs."""
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            source.fetch("a", ["k1"])
            source.close()  # so that connections are opened and closed, too

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        found = [ask_child(lambda: source.fetch("a", ["k1"])) for _ in range(20)]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    refused = [one for one in found if isinstance(one, SourceError)]
    assert all("forked while its parent was reading" in str(one) for one in refused)
    assert [ids(one) for one in found if one not in refused] == [["k1"]] * (20 - len(refused))
    assert len(refused) <= 5


def test_a_read_does_not_wait_as_long_as_a_fork_that_waits_for_another(source):
    """A long read, such as a build's, keeps a fork waiting for 0.2 s; reads of other threads go on after 20 ms."""
    most = 0
    with source.read():
        for _ in range(20):  # one is enough, where the machine is not busy
            thread = threading.Thread(target=ask_child, args=(lambda: None,))
            thread.start()
            answered = 0
            while thread.is_alive():
                is_forking = inside.is_forking()
                assert ids(source.fetch("a", ["k1"])) == ["k1"]
                answered += is_forking and inside.is_forking()
            most = max(most, answered)
            if most > 1:
                break
    assert most > 1, "a read waits until the fork is over"


def test_the_end_of_a_child_does_not_close_what_it_inherits(source):
    script = """
import os, sqlite3, sys
from mmcache.schema import Schema
from mmcache.sources import SQLiteSource

parent = os.getpid()

class Told(sqlite3.Connection):
    def __del__(self):
        if os.getpid() != parent:
            os.write(1, b"closed by the child")

connect = sqlite3.connect
sqlite3.connect = lambda *args, **kwargs: connect(*args, **kwargs, factory=Told)
source = SQLiteSource(sys.argv[1], Schema("a"))
source.fetch("a", ["k1"])
sqlite3.connect = connect
if os.fork():
    assert os.wait()[1] == 0
else:
    assert source.fetch("a", ["k1"]) != [None]
"""
    run = subprocess.run([sys.executable, "-c", script, source.path], check=True, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_errors_survive_a_process_boundary(tmp_path):
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(MmcacheError, match="no database") as caught,
    ):
        pool.apply(SQLiteSource(tmp_path / "no.db", *SCHEMAS).fetch, ("a", ["k"]))
    assert caught.value.path == str(tmp_path / "no.db")


@pytest.mark.parametrize("journal", ["wal"], indirect=True)
def test_readers_in_processes_and_threads_beside_a_writer(tmp_path, writer, journal):
    """Every read is of one commit: the two tables always hold the same generation."""
    writer.execute("DELETE FROM b")
    writer.execute("UPDATE a SET kind = '0'")
    writer.execute("INSERT INTO b VALUES ('0')")
    source = SQLiteSource(tmp_path / "items.db", *SCHEMAS)
    source.fetch("b", ["0"])

    def look():
        seen: set[str] = set()
        deadline = time.monotonic() + 20
        while len(seen) < 5 and time.monotonic() < deadline:
            with source.read() as reading:
                kinds = {record.values[1] for record in reading.records("a")}
                generations = set(ids(reading.records("b")))
            assert kinds == generations, (kinds, generations)
            assert len(kinds) == 1
            seen |= kinds
        return len(seen)

    stop = threading.Event()

    def write():
        generation = 0
        while not stop.is_set():
            generation += 1
            with contextlib.closing(sqlite3.connect(tmp_path / "items.db", timeout=30)) as db, db:
                db.execute("UPDATE a SET kind = ?", (str(generation),))
                db.execute("UPDATE b SET id = ?", (str(generation),))

    writing = threading.Thread(target=write)
    counts = []
    readers = [threading.Thread(target=lambda: counts.append(look())) for _ in range(2)]
    with answering(look) as answer:  # forked before any thread begins a read
        for thread in (writing, *readers):
            thread.start()
        for thread in readers:
            thread.join()
        counts.append(answer())
    stop.set()
    writing.join()
    assert min(counts) >= 5
    source.close()
