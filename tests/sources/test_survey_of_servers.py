"""`mmcache init` of a database that is reached by URL: what it proposes, and that a build takes it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from mmcache import Snapshot
from mmcache.cli.survey import Survey, choices
from tests.support.console import run_here
from tests.support.servers import Database

sqlalchemy = pytest.importorskip("sqlalchemy", reason="the sqlalchemy extra is not installed")
from mmcache.cli.survey_sql import survey_url  # noqa: E402

TABLES = (
    "CREATE TABLE items (sku varchar(50) PRIMARY KEY, kind varchar(20), title varchar(20), vector varchar(200))",
    "CREATE INDEX by_title ON items (title)",
    "CREATE TABLE coords (code int, auth varchar(9), PRIMARY KEY (auth, code))",
    "CREATE TABLE logs (line varchar(40) NOT NULL, at varchar(40) NOT NULL, maybe int, UNIQUE (maybe), UNIQUE (at))",
    "CREATE TABLE heap (a int, b varchar(9), c int UNIQUE)",
    "CREATE TABLE empty_one (id int PRIMARY KEY, x int)",
    "CREATE VIEW cheap AS SELECT sku AS item, kind FROM items",
)
N = 60


def filled(database: Database) -> Database:
    database.run(*TABLES)
    vector = "[" + ", ".join(["0.25"] * 16) + "]"
    items = [{"sku": f"s{i}", "kind": "ab"[i % 2], "title": f"t{i}", "vector": vector} for i in range(N)]
    database.run("INSERT INTO items VALUES (:sku, :kind, :title, :vector)", rows=items)
    database.run("INSERT INTO coords VALUES (:i, 'EPSG')", rows=[{"i": i} for i in range(N)])
    database.run("INSERT INTO logs VALUES ('x', :at, NULL)", rows=[{"at": f"{i}"} for i in range(N)])
    database.run("INSERT INTO heap VALUES (:a, 'x', NULL)", rows=[{"a": i} for i in range(N)])
    return database


def surveyed(database: Database) -> dict[str, Survey]:
    return {survey.name: survey for survey in survey_url(database.url)[0]}


def chosen(survey: Survey) -> dict[str, Any]:
    return {choice.field: choice.value for choice in choices(survey)}


def test_tables_have_the_keys_and_indexes_that_the_database_has(database):
    found = surveyed(filled(database))
    keys = {name: survey.key for name, survey in found.items() if survey.is_on}
    assert keys == {"items": ("sku",), "coords": ("auth", "code"), "logs": ("at",), "empty_one": ("id",)}
    assert {name: survey.size for name, survey in found.items() if not survey.is_view} == {
        "items": N,
        "coords": N,
        "logs": N,
        "heap": N,
        "empty_one": 0,
    }
    assert chosen(found["items"]) == {"index": ["kind", "title"], "embedding": "vector", "dim": 16}
    assert found["logs"].reason == "unique and not null"
    assert found["heap"].reason == f"it has no primary key; unique and not null in its first {N} rows: a"
    assert found["cheap"].is_view
    assert "its first 60 rows: item" in found["cheap"].reason


def test_what_init_writes_of_a_server_can_be_built(served, tmp_path, capsys):
    filled(served)
    config = tmp_path / "cache.toml"
    code, out, err = run_here(capsys, "init", served.url, "-o", config)
    assert (code, err) == (0, "")
    assert "4 collections" in out
    assert tomllib.loads(config.read_text())["source"] == served.url
    code, _, err = run_here(capsys, "build", "--config", config, "-o", tmp_path / "x.mmc")
    assert (code, err) == (0, "")
    with Snapshot.open(tmp_path / "x.mmc") as snapshot:
        assert snapshot.collection("coords")[("EPSG", 7)]["code"] == 7
        assert len(snapshot.collection("items").where(kind="a")) == N // 2
        assert snapshot.collection("items").embeddings_of("vector").shape == (N, 16)


OF_POSTGRES = (
    "CREATE TABLE vectors (id bigint PRIMARY KEY, v real[], doc jsonb, tags text[], day date, odd timestamp)",
    """INSERT INTO vectors SELECT i, array_fill(0.25::real, ARRAY[16]), jsonb_build_object('a', i), ARRAY['t' || i % 3],
    '2026-01-31', CASE i WHEN 7 THEN 'infinity' END::timestamp FROM generate_series(1, 50) i""",
    "CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id)",
    "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100)",
    "CREATE MATERIALIZED VIEW stored AS SELECT id FROM vectors",
    "CREATE SCHEMA sales",
    "CREATE TABLE sales.orders (id int PRIMARY KEY)",
    "CREATE TABLE secret (id int PRIMARY KEY)",
    "CREATE TABLE wide (x double precision PRIMARY KEY)",
    "INSERT INTO wide VALUES (0.5)",
    "CREATE UNIQUE INDEX some_of_them ON secret (id) WHERE id > 5",
)


def test_of_postgresql_arrays_partitions_and_schemas_are_seen(postgres):
    postgres.run(*OF_POSTGRES)
    postgres.run("REVOKE ALL ON secret FROM PUBLIC", "CREATE ROLE reader LOGIN", "GRANT SELECT ON vectors TO reader")
    surveys, left_out = survey_url(postgres.url.replace("//tester@", "//reader@"))
    found = {survey.name: survey for survey in surveys}
    assert sorted(found) == ["parted", "secret", "stored", "vectors", "wide"]
    assert chosen(found["vectors"]) == {"index": ["tags", "day"], "embedding": "v", "dim": 16}
    assert len(found["vectors"].rows) == 49  # one has a moment that no record can hold
    assert found["stored"].is_view
    assert "permission denied" in found["secret"].reason
    assert left_out == [
        "parted_1, a partition of a table that is there",
        'the schemas sales; name tables of theirs by table = "schema.name"',
    ]
    wide = next(survey for survey in survey_url(postgres.url)[0] if survey.name == "wide")
    assert (wide.key, wide.reason) == (None, "its primary key, x, is of a type that no key has")
    postgres.run("DROP OWNED BY reader", "DROP ROLE reader")


def test_a_password_is_not_written_down(postgres, tmp_path, capsys):
    postgres.run("CREATE TABLE items (id int PRIMARY KEY)")
    config = tmp_path / "cache.toml"
    url = postgres.url.replace("//tester@", "//tester:s3cret@")
    code, _, _ = run_here(capsys, "init", url, "-o", config)
    assert code == 0
    text = config.read_text()
    assert "s3cret" not in text
    assert "# Left out: the password" in text
    code, _, err = run_here(capsys, "build", "--config", config, url, "-o", tmp_path / "x.mmc")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://nobody:s3cret@/x?host=/nowhere", "cannot connect"),
        ("nodatabase://x", "no connection can be made"),
    ],
)
def test_a_server_that_is_not_there_is_an_error_of_one_line(url, words, capsys, tmp_path):
    pytest.importorskip("psycopg", reason="no driver: the integration group")
    code, out, err = run_here(capsys, "init", url, "-o", tmp_path / "x.toml")
    assert (code, out) == (1, "")
    assert words in err
    assert "s3cret" not in err
    assert not Path(tmp_path / "x.toml").exists()
