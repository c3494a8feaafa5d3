"""Files of records from the shell: what `init` finds in them, what `export` writes, and what a build makes of both."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Schema, Snapshot
from tests.support.console import ok, run

VECTORS = np.random.default_rng(1).standard_normal((60, 12)).astype("f4")
RECORDS: list[dict[str, Any]] = [
    {"code": f"{i:03}", "kind": "ab"[i % 2], "n": i, "share": i / 7, "ok": i % 3 == 0, "tags": ["x", f"t{i % 4}"]}
    for i in range(60)
]


@pytest.fixture
def items(tmp_path: Path) -> Path:
    given = [{**record, "vector": vector} for record, vector in zip(RECORDS, VECTORS, strict=True)]
    mmcache.build(tmp_path / "items.mmc", given, Schema("items", key="code", index=("kind",), embedding="vector"))
    return tmp_path / "items.mmc"


def equal(before: Path, after: Path) -> bool:
    with Snapshot.open(before) as a, Snapshot.open(after) as b:
        records = [[record.asdict() for record in one.values()] for one in (a, b)]
        return records[0] == records[1] and np.array_equal(a.embeddings, b.embeddings)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "arrow"])
def test_export_init_and_build_give_equal_records(items: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"again.{ending}"
    told = run("export", items, "-o", out)
    assert (told.err == "") is (ending != "csv")
    ok("init", out, "-o", tmp_path / "cache.toml")
    chosen = tomllib.loads((tmp_path / "cache.toml").read_text())["collections"]["again"]
    assert chosen["key"] == "code"
    assert "kind" in chosen["index"]
    assert (chosen["embedding"], chosen["dim"]) == ("vector", 12)
    if ending == "csv":  # 007 is a number to some readers of CSV, though not to ours
        assert told.err == "to build it back: mmcache build ... --cast tags=json,code=str\n"
        assert chosen["json"] == ["tags"]
    ok("build", "--config", tmp_path / "cache.toml")
    assert equal(items, tmp_path / "again.mmc")


def test_what_csv_loses_a_cast_brings_back(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "1", "zip": "8001", "blob": b"\x00\xff", "n": 1},
        {"id": "2", "zip": None, "blob": b"", "n": None},
    ]
    mmcache.build(tmp_path / "items.mmc", rows, Schema("items"))
    told = run("export", tmp_path / "items.mmc", "-o", tmp_path / "items.csv").err.splitlines()
    cast = told[0].partition("--cast ")[2]
    assert sorted(cast.split(",")) == ["blob=bytes", "id=str", "zip=str"]
    ok("build", tmp_path / "items.csv", "--cast", cast, "-o", tmp_path / "again.mmc")
    with Snapshot.open(tmp_path / "again.mmc") as again:
        assert again["1"] == rows[0]


def test_json_lines_bring_bytes_back_by_a_cast(tmp_path: Path) -> None:
    rows = [{"id": b"\x01", "blob": b"\x00\xff", "r": float("inf")}, {"id": b"\x02", "blob": b"", "r": 0.5}]
    mmcache.build(tmp_path / "items.mmc", rows, Schema("items"))
    told = run("export", tmp_path / "items.mmc", "-o", tmp_path / "items.jsonl").err
    cast = told.strip().partition("--cast ")[2]
    ok("build", tmp_path / "items.jsonl", "--cast", cast, "-o", tmp_path / "again.mmc")
    with Snapshot.open(tmp_path / "again.mmc") as again:
        assert [record.asdict() for record in again.values()] == rows


def test_options_of_a_source_and_other_names_from_the_shell(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("Nr;Art\n1;a\n2;b\n")
    words = ("--rename", "Nr=id,Art=kind", "--cast", "id=str", "--option", "delimiter=;", "--index", "kind")
    ok("build", tmp_path / "in.csv", *words, "-o", tmp_path / "in.mmc")
    with Snapshot.open(tmp_path / "in.mmc") as snapshot:
        assert snapshot.where(kind="b").ids == ["2"]
    done = run("build", tmp_path / "in.csv", "--option", "delimeter=;", "-o", tmp_path / "new.mmc")
    assert done.code == 2
    assert "delimeter" in done.err
    assert "delimiter" in done.err


def test_stdin_is_a_source(tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps({"id": f"k{i}"}) + "\n" for i in range(3)))
    with lines.open() as stdin:
        done = run("build", "-", "-o", tmp_path / "out.mmc", "--json", stdin=stdin)
    assert done.json["records"] == {"records": 3}
