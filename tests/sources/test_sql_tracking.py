"""Tracking of PostgreSQL: whatever another client writes is told once it is seen, and nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading

import pytest

import mmcache
from mmcache import Schema, SQLAlchemySource
from mmcache.errors import SourceError
from mmcache.testing import check_source
from tests.support import servers
from tests.support.console import ok, run
from tests.support.crew import Crew
from tests.support.waits import until

sqlalchemy = pytest.importorskip("sqlalchemy", reason="the sqlalchemy extra is not installed")

pytestmark = pytest.mark.integration

ITEMS = Schema("items")
CREATE = (
    "CREATE TABLE items (id int PRIMARY KEY, n int)",
    "CREATE TABLE others (id int)",
    "INSERT INTO items SELECT i, 0 FROM generate_series(1, 9) i",
)


@contextlib.contextmanager
def tracked(database, *schemas, **options):
    with contextlib.closing(SQLAlchemySource(database.url, *schemas or (ITEMS,))) as source:
        assert source.track(**options).changed
        yield source


@pytest.fixture
def source(postgres):
    postgres.run(*CREATE)
    with tracked(postgres) as source:
        yield source


@contextlib.contextmanager
def client(database):
    """Another client, which commits when told to."""
    engine = sqlalchemy.create_engine(database.engine.url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def asked(database, statement):
    """The one value that a statement gives."""
    with database.engine.connect() as connection:
        return connection.exec_driver_sql(statement, execution_options={"no_parameters": True}).scalar_one()


def keys(source, since, collection="items"):
    changes = source.changes(since)
    return None if changes is None else set(changes.keys[collection])


def told(source, database, *statements):
    """The keys that these statements changed, by the source."""
    since = source.fingerprint()
    database.run(*statements)
    assert source.fingerprint() != since
    changes = source.changes(since)
    assert changes is None or changes.fingerprint == source.fingerprint()
    return keys(source, since)


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_every_way_to_write_a_row_tells_its_key(source, postgres):
    assert told(source, postgres, "UPDATE items SET n = 1 WHERE id = 3") == {3}
    assert told(source, postgres, "INSERT INTO items VALUES (20, 0), (21, 0)") == {20, 21}
    assert told(source, postgres, "DELETE FROM items WHERE id > 20") == {21}
    assert told(source, postgres, "UPDATE items SET id = 30 WHERE id = 20") == {20, 30}
    upsert = "INSERT INTO items VALUES (1, 5) ON CONFLICT (id) DO UPDATE SET n = 5"
    assert told(source, postgres, upsert, "MERGE INTO items USING (SELECT 2 AS i) x ON id = i"
                " WHEN MATCHED THEN DELETE") == {1, 2}  # fmt: skip
    assert told(source, postgres, "WITH gone AS (DELETE FROM items WHERE id = 4) INSERT INTO items VALUES (5, 1)"
                " ON CONFLICT (id) DO UPDATE SET n = 9") == {4, 5}  # fmt: skip
    assert told(source, postgres, "SET session_replication_role = replica; UPDATE items SET n = 2 WHERE id = 6") == {6}
    assert told(source, postgres, "COPY items FROM PROGRAM 'printf ''50\\t1\\n51\\t1\\n'''") == {50, 51}


def test_a_cascade_and_a_function_of_another_role_are_told(postgres):
    postgres.run(
        "CREATE TABLE kinds (id int PRIMARY KEY)",
        "CREATE TABLE items (id int PRIMARY KEY, kind int REFERENCES kinds ON DELETE CASCADE)",
        "INSERT INTO kinds VALUES (1), (2)",
        "INSERT INTO items VALUES (10, 1), (11, 2)",
        "DO $$ BEGIN CREATE ROLE writer; EXCEPTION WHEN duplicate_object THEN END $$",
        "GRANT SELECT, INSERT ON items TO writer",
        "GRANT SELECT ON kinds TO writer",
    )
    with tracked(postgres) as source:
        assert told(source, postgres, "DELETE FROM kinds WHERE id = 1") == {10}
        assert told(source, postgres, "SET ROLE writer; INSERT INTO items VALUES (12, 2)") == {12}


def test_writes_elsewhere_and_those_rolled_back_leave_the_fingerprint(source, postgres):
    since = source.fingerprint()
    postgres.run("INSERT INTO others VALUES (1)", "CREATE TABLE more (id int)", "ANALYZE items", "VACUUM items")
    assert source.fingerprint() == since
    with client(postgres) as other:
        other.exec_driver_sql("UPDATE items SET n = 7")
        assert source.fingerprint() == since
        assert keys(source, since) == set()
        other.rollback()
    assert source.fingerprint() == since
    postgres.run("INSERT INTO items VALUES (1, 1) ON CONFLICT DO NOTHING", "UPDATE items SET n = 1 WHERE id = -1")
    assert source.fingerprint() == since


def test_what_a_savepoint_took_back_is_not_told(source, postgres):
    since = source.fingerprint()
    with client(postgres) as other:
        other.exec_driver_sql("UPDATE items SET n = 1 WHERE id = 1")
        with contextlib.suppress(ZeroDivisionError), other.begin_nested():
            other.exec_driver_sql("UPDATE items SET n = 1 WHERE id = 2")
            raise ZeroDivisionError
        with other.begin_nested():
            other.exec_driver_sql("UPDATE items SET n = 1 WHERE id = 3")
        other.commit()
    assert keys(source, since) == {1, 3}


KEYS = {
    "int": (7, "7", "8"),
    "bigint": (-(2**63), "-9223372036854775808", "5"),
    "text": ("a 'ü'\\x", "E'a ''ü''\\\\x'", "'b'"),
    "varchar(9)": ("", "''", "'b'"),
    "char(4)": ("ab  ", "'ab'", "'b'"),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "gen_random_uuid()"),
    "bytea": (b"\x00\xff\\", r"'\x00ff5c'", r"'\x00'"),
    "numeric(12,3)": ("1.500", "1.5", "2"),
    "numeric(20,0)": (2**64 - 1, "18446744073709551615", "2"),
    "date": ("2026-02-01", "'2026-02-01'", "'2026-02-02'"),
    "timestamp": ("2026-02-01 23:59:59.500000", "'2026-02-01 23:59:59.5'", "'2026-02-02'"),
    "timestamptz": ("2026-02-01 21:59:59+00:00", "'2026-02-01 23:59:59+02'", "'2026-02-02'"),
    "time": ("10:00:00.250000", "'10:00:00.25'", "'11:00'"),
    "interval": ("P1M2DT3H4.5S", "'1 month 2 days 03:00:04.5'", "'1 day'"),
    "inet": ("10.0.0.1", "'10.0.0.1'", "'10.0.0.2'"),
    "mood": ("happy", "'happy'", "'sad'"),
    "positive": (5, "5", "6"),
}
"""Type -> a key, as a literal, and the literal of another one."""


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_of_each_type_is_told_as_a_record_has_it(postgres, kind):
    key, literal, other = KEYS[kind]
    postgres.run(
        "CREATE TYPE mood AS ENUM ('sad', 'happy')",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
        f'CREATE TABLE items ("the ""key""" {kind} PRIMARY KEY, n int)',
        f"INSERT INTO items VALUES ({other}, 0)",
    )
    settings = (
        "DateStyle = 'SQL, DMY'",
        "TimeZone = 'Asia/Tokyo'",
        "bytea_output = escape",
        "IntervalStyle = sql_standard",
    )
    odd = "".join(f"SET {setting}; " for setting in settings)
    # The literal is read by the settings of the server, the row written under those of an odd client.
    postgres.run(f"CREATE TABLE new AS SELECT CAST({literal} AS {kind}) AS k")
    with tracked(postgres) as source:
        assert told(source, postgres, f"{odd} INSERT INTO items SELECT k, 1 FROM new") == {key}
        assert source.fetch("items", [key]) != [None]
        assert told(source, postgres, f"{odd} UPDATE items SET n = 2 WHERE n = 1") == {key}
        assert key in told(source, postgres, f'{odd} UPDATE items SET "the ""key""" = DEFAULT WHERE n = 1;'
                           f" DELETE FROM items WHERE n = 2")  # fmt: skip


def test_a_key_of_several_columns_is_told_as_a_tuple(postgres):
    postgres.run(
        'CREATE TABLE items (auth text, "Code.x" int, n int, PRIMARY KEY (auth, "Code.x"))',
        "INSERT INTO items VALUES ('EPSG', 1, 0), ('EPSG', 2, 0)",
    )
    with tracked(postgres) as source:
        assert told(source, postgres, 'UPDATE items SET "Code.x" = 3 WHERE "Code.x" = 2') == {("EPSG", 2), ("EPSG", 3)}


def test_a_key_that_is_no_primary_key_leaves_out_null(postgres):
    postgres.run("CREATE TABLE items (id int PRIMARY KEY, code text)", "INSERT INTO items VALUES (1, NULL), (2, 'b')")
    with tracked(postgres, Schema("items", key="code")) as source:
        assert told(source, postgres, "UPDATE items SET code = 'a' WHERE id = 1") == {"a"}
        assert told(source, postgres, "UPDATE items SET code = NULL WHERE id = 2") == {"b"}
        since = source.fingerprint()
        postgres.run("UPDATE items SET id = 9 WHERE code IS NULL")
        assert keys(source, since) == set()


def test_a_collation_that_ignores_case_does_not_hide_a_new_key(postgres):
    try:
        postgres.run("CREATE COLLATION folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    except sqlalchemy.exc.NotSupportedError:
        pytest.skip("this PostgreSQL was built without ICU")
    postgres.run(
        "CREATE TABLE items (id text COLLATE folding PRIMARY KEY, n int)",
        "INSERT INTO items VALUES ('a', 0)",
    )
    with tracked(postgres) as source:
        assert told(source, postgres, "UPDATE items SET id = 'A'") == {"a", "A"}


def test_collections_of_one_source_are_told_apart(postgres):
    postgres.run(
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.items (id int PRIMARY KEY, code text UNIQUE)",
        "CREATE TABLE items (id int PRIMARY KEY)",
    )
    schemas = [
        Schema("here", table="items"),
        Schema("there", table="shop.items"),
        Schema("codes", table="shop.items", key="code"),
    ]
    with tracked(postgres, *schemas) as source:
        since = source.fingerprint()
        postgres.run("INSERT INTO shop.items VALUES (1, 'a')", "INSERT INTO items VALUES (2)")
        assert source.changes(since).keys == {"here": {2}, "there": {1}, "codes": {"a"}}


def test_partitions_are_told_whichever_way_they_are_written(postgres):
    postgres.run(
        "CREATE TABLE items (id int PRIMARY KEY, n int) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF items FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE high PARTITION OF items FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id)",
        "CREATE TABLE highest PARTITION OF high FOR VALUES FROM (10) TO (20)",
    )
    with tracked(postgres) as source:
        assert told(source, postgres, "INSERT INTO items VALUES (1, 0), (11, 0)") == {1, 11}
        replica = "SET session_replication_role = replica;"
        assert told(source, postgres, f"{replica} UPDATE highest SET n = 1") == {11}
        assert told(source, postgres, f"{replica} UPDATE items SET id = 12 WHERE id = 1") == {1, 12}
        for change in (
            "TRUNCATE highest",
            "CREATE TABLE more PARTITION OF items FOR VALUES FROM (20) TO (30)",
            "ALTER TABLE items DETACH PARTITION low",
        ):
            assert told(source, postgres, change) is None
        assert told(source, postgres, f"{replica} INSERT INTO more VALUES (25, 0)") == {25}


def test_a_tracked_source_keeps_all_rules_of_a_source(source, postgres):
    check_source(source, change=lambda: postgres.run("UPDATE items SET n = n + 1 WHERE id IN (3, 9)"))


# ---- the order of commits --------------------------------------------------------------------------------------------


def test_what_commits_late_is_told_and_only_that(source, postgres):
    with client(postgres) as early, client(postgres) as unrelated:
        early.exec_driver_sql("UPDATE items SET n = 1 WHERE id = 1")  # has the lower number
        unrelated.exec_driver_sql("INSERT INTO others VALUES (1)")
        postgres.run("UPDATE items SET n = 1 WHERE id = 2")
        since = source.fingerprint()
        assert source.fingerprint() == since
        assert keys(source, since) == set()
        early.commit()
        assert source.fingerprint() != since
        assert keys(source, since) == {1}
        postgres.run("UPDATE items SET n = 1 WHERE id = 3")
        assert keys(source, since) == {1, 3}
        after = source.fingerprint()
        unrelated.commit()
        assert keys(source, after) == set()


@pytest.mark.parametrize("count", [12, 40])
def test_many_that_commit_late_are_all_told(source, postgres, count):
    with contextlib.ExitStack() as stack:
        late = [stack.enter_context(client(postgres)) for _ in range(count)]
        for i, other in enumerate(late):
            other.exec_driver_sql(f"INSERT INTO items VALUES ({100 + i}, 0)")
        postgres.run("UPDATE items SET n = 1 WHERE id = 2")
        since = source.fingerprint()
        for i, other in enumerate(late):
            other.commit()
            assert {100 + j for j in range(i + 1)} <= keys(source, since) <= {2, *range(100, 101 + i)}
            assert source.fingerprint() != since
    assert keys(source, source.fingerprint()) == set()


def test_a_file_built_while_a_transaction_runs_hears_of_its_commit(source, postgres, path):
    with client(postgres) as early:
        early.exec_driver_sql("UPDATE items SET n = 5 WHERE id = 1")
        postgres.run("UPDATE items SET n = 6 WHERE id = 2")
        with mmcache.open(path, source, check_interval=0.02, rebuild_after=3600) as cache:
            assert (cache[1]["n"], cache[2]["n"]) == (0, 6)
            early.commit()
            until("the late commit is answered", lambda: cache[1]["n"] == 5)
            assert cache.status().dirty == 1


def test_a_prepared_transaction_is_told_when_it_commits():
    with servers.postgres("max_prepared_transactions=5") as url, servers.Database("postgresql", url) as database:
        database.run(*CREATE)
        with tracked(database) as source:
            database.run("BEGIN; UPDATE items SET n = 1 WHERE id = 4; PREPARE TRANSACTION 'p'")
            database.run("UPDATE items SET n = 1 WHERE id = 5")
            since = source.fingerprint()
            database.run("COMMIT PREPARED 'p'")
            assert keys(source, since) == {4}


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_no_change_of_many_concurrent_writers_is_missed(postgres, isolation):
    """Whatever differs from a copy that was read after a fingerprint is among the keys told since that."""
    postgres.run(*CREATE, "INSERT INTO items SELECT i, 0 FROM generate_series(10, 60) i")
    with tracked(postgres) as source:
        stop = threading.Event()
        writers = [threading.Thread(target=write, args=(postgres, isolation, i, stop)) for i in range(6)]
        for writer in writers:
            writer.start()
        try:
            copies = [copy_of(source)]
            for _ in range(60):
                copies.append(copy_of(source))
                copies = copies[-6:]
                for copy in copies[:1] + copies[-2:-1]:
                    mend(source, copy)
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        with source.read() as reading:
            truth = {row.values[0]: row.values[1] for row in reading.records("items")}
        for since, copy in copies:
            changes = source.changes(since)
            assert changes is not None
            for key in set(copy) | set(truth):
                if copy.get(key) != truth.get(key):
                    assert key in changes.keys["items"]


def copy_of(source):
    """A fingerprint, and what was read after it."""
    since = source.fingerprint()
    with source.read() as reading:
        return since, {row.values[0]: row.values[1] for row in reading.records("items")}


def mend(source, copied):
    since, copy = copied
    now, truth = copy_of(source)
    changes = source.changes(since)
    assert changes is not None
    differ = {key for key in set(copy) | set(truth) if copy.get(key) != truth.get(key)}
    assert differ <= changes.keys["items"]
    if now == since:
        # What was read after it may be newer: then the next look sees another fingerprint.
        assert not differ or source.fingerprint() != since


def write(database, isolation, number, stop):
    dice = random.Random(number)
    with client(database) as other:
        other.execution_options(isolation_level=isolation)
        while not stop.is_set():
            try:
                for _ in range(dice.randint(1, 3)):
                    i = dice.randrange(1, 70)
                    other.exec_driver_sql(
                        dice.choice(
                            [
                                f"UPDATE items SET n = n + 1 WHERE id = {i}",
                                f"INSERT INTO items VALUES ({i}, 1) ON CONFLICT (id) DO UPDATE SET n = items.n + 1",
                                f"DELETE FROM items WHERE id = {i}",
                                "INSERT INTO others VALUES (1)",
                                f"UPDATE items SET id = id + 100 WHERE id = {i}",
                            ]
                        )
                    )
                    if dice.random() < 0.2:
                        other.exec_driver_sql(f"SELECT pg_sleep({dice.random() / 20})")
                other.commit() if dice.random() < 0.8 else other.rollback()
            except sqlalchemy.exc.DBAPIError:
                other.rollback()  # a deadlock, a conflict


# ---- where it cannot be told -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "TRUNCATE items",
        "ALTER TABLE items ALTER n TYPE bigint USING n + 1",
        "ALTER TABLE items ADD COLUMN more int DEFAULT 5",
        "ALTER TABLE items DISABLE TRIGGER ALL; UPDATE items SET n = 3; ALTER TABLE items ENABLE TRIGGER ALL",
        "DROP TABLE items; CREATE TABLE items (id int PRIMARY KEY, n int)",
        "ALTER TABLE items RENAME TO was; CREATE TABLE items (id int PRIMARY KEY, n int)",
        "DROP SCHEMA _mmcache CASCADE",
        "TRUNCATE _mmcache.changes",
    ],
)
def test_what_triggers_cannot_see_counts_as_everything(source, postgres, change):
    assert told(source, postgres, change) is None
    source.track()
    assert asked(postgres, "SELECT count(*) FROM pg_proc WHERE proname LIKE 'log!_%' ESCAPE '!' AND pronamespace ="
                 " CAST('_mmcache' AS regnamespace)") == 1 + ("RENAME" in change)  # fmt: skip
    again = source.fingerprint()
    assert keys(source, again) == set()
    assert told(source, postgres, "INSERT INTO items VALUES (77, 1)") == {77}


def test_a_trigger_that_was_off_for_a_moment_counts_as_everything(source, postgres):
    (name, *_) = source.track().tables[0].triggers
    off = f"ALTER TABLE items DISABLE TRIGGER {name}; INSERT INTO items VALUES (78, 1)"
    assert told(source, postgres, f"BEGIN; {off}; ALTER TABLE items ENABLE ALWAYS TRIGGER {name}; COMMIT") is None
    assert told(source, postgres, "INSERT INTO items VALUES (79, 1)") == {79}


def test_columns_of_a_key_are_not_dropped_unseen(source, postgres):
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="depend"):
        postgres.run("ALTER TABLE items DROP COLUMN id")


def test_a_log_that_does_not_reach_back_tells_nothing(postgres):
    postgres.run(*CREATE)
    with tracked(postgres, limit=100) as source:
        oldest = source.fingerprint()
        postgres.run("UPDATE items SET n = 1")
        older = source.fingerprint()
        for start in range(0, 9000, 3000):
            postgres.run(f"INSERT INTO items SELECT i, 0 FROM generate_series({1000 + start}, {3999 + start}) i")
        recent = source.fingerprint()
        postgres.run("INSERT INTO items SELECT i, 0 FROM generate_series(20000, 20039) i")
        source.track(limit=50)
        assert keys(source, oldest) is None
        assert keys(source, older) is None
        assert keys(source, recent) == set(range(20000, 20040))
        assert asked(postgres, "SELECT count(*) FROM _mmcache.changes") < 3100


def test_a_transaction_that_still_runs_keeps_its_part_of_the_log(postgres):
    postgres.run(*CREATE)
    with tracked(postgres, limit=50) as source, client(postgres) as early:
        early.exec_driver_sql("UPDATE items SET n = 1 WHERE id = 1")
        since = source.fingerprint()
        postgres.run("INSERT INTO items SELECT i, 0 FROM generate_series(1000, 9000) i")
        early.commit()
        assert keys(source, since) == {1, *range(1000, 9001)}


def test_a_dump_that_is_put_back_is_not_tracked_until_it_is_again(source, postgres):
    since = source.fingerprint()
    name = postgres.engine.url.database
    programs = os.path.dirname(servers.program("initdb"))
    host = postgres.engine.url.query["host"]
    dump = subprocess.run(
        [f"{programs}/pg_dump", "-h", host, "-U", "tester", name], capture_output=True, check=True
    ).stdout
    psql = [f"{programs}/psql", "-qX", "-v", "ON_ERROR_STOP=1", "-h", host, "-U", "tester"]
    subprocess.run([*psql, "-d", "postgres", "-c", f"CREATE DATABASE {name}_b"], check=True)
    subprocess.run([*psql, "-d", f"{name}_b"], input=dump, check=True, stdout=subprocess.DEVNULL)
    with (
        servers.Database("postgresql", postgres.url.replace(f"/{name}?", f"/{name}_b?")) as copy,
        contextlib.closing(SQLAlchemySource(copy.url, ITEMS)) as other,
    ):
        assert keys(other, since) is None
        untracked = other.fingerprint()
        assert keys(other, untracked) is None
        copy.run("UPDATE items SET n = 5 WHERE id = 5")
        assert other.fingerprint() != untracked
        assert other.track().changed
        assert told(other, copy, "UPDATE items SET n = 6 WHERE id = 6") == {6}
        other.close()
    postgres.run(f"DROP DATABASE {name}_b")


def test_a_crash_of_the_server_counts_as_everything():
    with servers.postgres("synchronous_commit=off") as url, servers.Database("postgresql", url) as database:
        database.run(*CREATE)
        with tracked(database) as source:
            since = source.fingerprint()
            with client(database) as other:
                pid = other.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
                os.kill(pid, signal.SIGKILL)
                other.invalidate()

            def is_another():  # and not that of the moment before the server sees the death
                with contextlib.suppress(SourceError):
                    return source.fingerprint() != since

            until("the server is back", is_another)
            assert keys(source, since) is None
            assert told(source, database, "UPDATE items SET n = 1 WHERE id = 1") is None
            assert told(source, database, "UPDATE items SET n = 1 WHERE id = 2") == {2}


# ---- installing ------------------------------------------------------------------------------------------------------


def test_tracking_twice_does_nothing_more_and_untracking_leaves_nothing(source, postgres):
    first = source.track()
    assert not first.changed
    assert [(table.table, table.key, len(table.triggers)) for table in first.tables] == [("items", "id", 3)]
    since = source.fingerprint()
    assert source.track(limit=7).changed
    assert keys(source, since) == set()
    removed = source.untrack()
    assert len(removed) == 6
    assert source.untrack() == ()
    assert keys(source, since) is None
    left = "SELECT (SELECT count(*) FROM pg_trigger) + (SELECT count(*) FROM pg_namespace WHERE nspname = '_mmcache')"
    assert asked(postgres, left) == 0


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (Schema("seen", key="id", table="seen"), "seen is a view"),
        (Schema("kept", key="id", table="kept"), "kept is a materialized view"),
        (Schema("asked", key="id", query="SELECT * FROM items"), "'asked' is a query"),
        (Schema("parent"), "parent has tables that inherit from it"),
        (Schema("absent"), "no table 'absent'"),
        (Schema("floats"), "column 'id': a key of this type"),
    ],
)
def test_what_cannot_be_tracked_is_refused_by_name(postgres, schema, reason):
    postgres.run(
        *CREATE,
        "CREATE VIEW seen AS SELECT * FROM items",
        "CREATE MATERIALIZED VIEW kept AS SELECT * FROM items",
        "CREATE TABLE parent (id int PRIMARY KEY)",
        "CREATE TABLE child () INHERITS (parent)",
        "CREATE TABLE floats (id real PRIMARY KEY)",
    )
    with contextlib.closing(SQLAlchemySource(postgres.url, schema)) as source:
        with pytest.raises(SourceError, match=reason):
            source.track()
        assert source.changes(source.fingerprint()) is None


def test_a_role_that_may_not_read_the_log_goes_by_the_snapshot(source, postgres):
    postgres.run(
        "DO $$ BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
        "GRANT SELECT ON items TO reader",
    )
    url = postgres.url.replace("tester@", "reader@")
    with contextlib.closing(SQLAlchemySource(url, ITEMS)) as other:
        since = other.fingerprint()
        assert keys(other, since) is None
        postgres.run("INSERT INTO items VALUES (90, 1)")
        assert other.fingerprint() != since
        with pytest.raises(SourceError, match="owner of the tables"):
            other.track()
        postgres.run(
            "GRANT USAGE ON SCHEMA _mmcache TO reader", "GRANT SELECT ON ALL TABLES IN SCHEMA _mmcache TO reader"
        )
        assert other.fingerprint() == source.fingerprint()
        assert told(other, postgres, "INSERT INTO items VALUES (91, 1)") == {91}


def test_a_writer_that_holds_the_table_is_named_when_it_takes_too_long(postgres):
    postgres.run(*CREATE)
    with client(postgres) as other, contextlib.closing(SQLAlchemySource(postgres.url, ITEMS, timeout=0.1)) as source:
        other.exec_driver_sql("UPDATE items SET n = 1")
        with pytest.raises(SourceError, match="keep the tables locked"):
            source.track()
        other.rollback()
        assert source.track().changed


def test_only_postgresql_and_sqlite_are_tracked(served):
    served.run(*CREATE[:1])
    source = SQLAlchemySource(served.url, ITEMS, fingerprint="SELECT 1")
    with contextlib.closing(source), pytest.raises(ValueError, match="leave it out"):
        source.track()
    if served.kind == "mariadb":
        source = SQLAlchemySource(served.url, ITEMS)
        with contextlib.closing(source), pytest.raises(SourceError, match="only PostgreSQL and SQLite"):
            source.track()


# ---- workers ---------------------------------------------------------------------------------------------------------


def seen(cache, key):
    return cache[key]["n"]


def await_value(cache, key, value):
    until("the worker answers it", lambda: cache[key]["n"] == value)


def dirty(cache):
    return cache.status().dirty


def test_all_workers_answer_another_clients_update_by_exactly_its_keys(source, postgres, path):
    import psycopg

    source.close()
    mmcache.build(path, source)

    def opened():
        return mmcache.open(path, SQLAlchemySource(postgres.url, ITEMS), check_interval=0.2, rebuild_after=3600)

    with Crew() as crew:
        workers = crew.hire(opened, 4)
        assert [worker(seen, 3) for worker in workers] == [0] * 4
        with psycopg.connect(postgres.url, autocommit=True) as other:
            for value, key in ((7, 3), (8, 4), (9, 3)):
                other.execute("UPDATE items SET n = %s WHERE id = %s", (value, key))
                for worker in workers:
                    worker.begin(await_value, key, value)  # by its own looks, one each check_interval
                for worker in workers:
                    worker.result()
            other.execute("UPDATE items SET n = 10 WHERE id = 5")
            for worker in workers:
                worker("refresh")  # one look is enough
                assert worker(seen, 5) == 10
            other.execute("INSERT INTO others VALUES (1)")
        assert [worker(dirty) for worker in workers] == [3] * 4


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_tracks_by_a_url_or_like_a_file_and_removes_it(postgres, path):
    postgres.run(*CREATE)
    url = postgres.url.replace("tester@", "tester:se_cret@")
    done = ok("track", url, "--table", "items", "--limit", "99")
    assert "cret" not in done.out
    assert (
        "tracked from now on\n  items, by id: 3 triggers\n  in the schema _mmcache: changes (the log, about 99 changes)"
        in done.out
    )
    with contextlib.closing(SQLAlchemySource(postgres.url, ITEMS)) as source:
        assert told(source, postgres, "UPDATE items SET n = 1 WHERE id = 1") == {1}
        mmcache.build(path, source)
    again = ok("track", "--like", path, "--json").json
    assert (again["changed"], again["limit"], again["tables"][0]["table"]) == (True, 65536, "items")
    assert ", tracked: workers" in run("doctor", path).out
    assert "removed _mmcache.changes\n" in ok("track", url, "--remove").out
    assert ok("track", url, "--remove", "--json").json["removed"] == []
    assert "say which table" in run("track", url).err
    assert "it has: items, others" in run("track", url, "--table", "none").err
