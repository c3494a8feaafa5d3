"""The rules for patterns and agent configurations, and the source that applies them."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import sqlite3
import struct
from dataclasses import replace

import pytest

from examples.demo.bank import write_bank
from mmcache.errors import BuildError
from mmcache.presets.patterns import (
    AGENT_CONFIGS,
    DDL,
    PATTERNS,
    PatternsSource,
    check_agent_config,
    check_pattern,
)
from mmcache.schema import Schema
from mmcache.sources import from_spec

METADATA = {"coverage": 0.9, "flakiness_score": 0, "verdict": "success"}
PATTERN = {"id": "p", "type": "unit-test", "domain": "api", "framework": "pytest", "content": "c", "metadata": METADATA}
CONFIG = {"agent_id": "a", "type": "t", "config_json": "{}", "version": 1, "updated_at": "2025-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"coverage": 0, "flakiness_score": 1},
        {"coverage": None},
        {"usage_count": 5, "anything": ["else"]},
        *[{"verdict": verdict} for verdict in ("success", "failure", "flaky", "unknown")],
    ],
)
def test_valid_patterns_pass(metadata):
    check_pattern(PATTERN | {"metadata": METADATA | metadata})
    check_pattern(PATTERN | {"metadata": {"verdict": "unknown"}})


@pytest.mark.parametrize("field", ["id", "type", "domain", "framework", "content"])
@pytest.mark.parametrize("value", [None, "", " \n", 5])
def test_a_pattern_needs_its_fields(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field} is required and must be non-empty text, found {value!r}")):
        check_pattern(PATTERN | {field: value})
    with pytest.raises(ValueError, match=f"{field} is required"):
        check_pattern({name: value for name, value in PATTERN.items() if name != field})


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "metadata must be a JSON object, found None"),
        ("{}", "metadata must be a JSON object, found '{}'"),
        ([], "metadata must be a JSON object"),
        *[
            (METADATA | {field: value}, f"metadata.{field} must be a number in 0..1, found {value!r}")
            for field in ("coverage", "flakiness_score")
            for value in (-0.1, 1.0001, 50, "0.5", True, float("nan"), float("inf"))
        ],
        (METADATA | {"verdict": "passed"}, "verdict must be one of success, failure, flaky, unknown; found 'passed'"),
        (METADATA | {"verdict": None}, "found None"),
        (METADATA | {"verdict": ["success"]}, "verdict must be one of"),
        ({"coverage": 0.5}, "verdict must be one of .*; found None"),
    ],
)
def test_the_metadata_of_a_pattern_has_rules(metadata, reason):
    with pytest.raises(ValueError, match=reason):
        check_pattern(PATTERN | {"metadata": metadata})


def test_agent_configs_have_rules():
    check_agent_config(CONFIG)
    check_agent_config(CONFIG | {"version": "1.0"})
    for field in ("agent_id", "type", "config_json", "updated_at"):
        with pytest.raises(ValueError, match=f"{field} is required"):
            check_agent_config(CONFIG | {field: ""})
    for version in (None, ""):
        with pytest.raises(ValueError, match="version is required"):
            check_agent_config(CONFIG | {"version": version})
    with pytest.raises(ValueError, match="config_json is not JSON"):
        check_agent_config(CONFIG | {"config_json": "{"})


@pytest.fixture
def bank(tmp_path):
    path = tmp_path / "bank.db"
    write_bank(path, 20, dim=4)
    return path


FOUR = replace(PATTERNS, dim=4)


def change(path, sql, *parameters):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        assert db.execute(sql, parameters).rowcount == 1


def read(path, *schemas):
    with contextlib.closing(PatternsSource(path, *schemas)) as source, source.read() as reading:
        return {schema.name: list(reading.records(schema.name)) for schema in source.schemas}


def test_a_bank_is_read_with_its_metadata_decoded(bank):
    found = read(bank, FOUR, AGENT_CONFIGS)
    assert [record.values[0] for record in found["patterns"]] == [f"pattern-{i}" for i in range(20)]
    first = dict(zip(found["patterns"][0].names, found["patterns"][0].values, strict=True))
    assert set(first) == {"id", "type", "domain", "framework", "content", "metadata"}
    assert first["metadata"]["verdict"] in ("success", "failure", "flaky", "unknown")
    assert all(record.vector and len(record.vector) == 16 for record in found["patterns"])
    assert len(found["agent_configs"]) == 32


def test_embeddings_have_768_numbers_unless_the_schema_says_otherwise(bank):
    source = PatternsSource(bank)
    assert source.schemas == (PATTERNS, AGENT_CONFIGS)
    assert PATTERNS.dim == 768
    with pytest.raises(BuildError, match="16 bytes, expected 3072"), source.read() as reading:
        next(reading.records("patterns"))
    source.close()


@pytest.mark.parametrize(
    ("sql", "value", "key", "reason"),
    [
        ("UPDATE patterns SET domain = ? WHERE id = 'pattern-7'", " ", "pattern-7", "domain is required"),
        (
            "UPDATE patterns SET metadata = ? WHERE id = 'pattern-7'",
            json.dumps(METADATA | {"coverage": 87}),
            "pattern-7",
            r"metadata.coverage must be a number in 0..1, found 87",
        ),
        ("UPDATE patterns SET metadata = ? WHERE id = 'pattern-7'", "{", "pattern-7", "not JSON"),
        (
            "UPDATE patterns SET embedding = ? WHERE id = 'pattern-7'",
            struct.pack("<4d", 1, 2, 3, 4),
            "pattern-7",
            "dtype='f8'",
        ),
        (
            "UPDATE agent_configs SET config_json = ? WHERE agent_id = 'agent-3'",
            "[",
            "agent-3",
            "not JSON",
        ),
    ],
)
def test_an_invalid_record_is_named_when_it_is_read(bank, sql, value, key, reason):
    change(bank, sql, value)
    with pytest.raises(BuildError, match=reason) as caught:
        read(bank, FOUR, AGENT_CONFIGS)
    assert (caught.value.collection, caught.value.key, caught.value.path) == (sql.split()[1], key, str(bank))


def test_only_the_collections_of_the_preset_are_checked(bank):
    change(bank, "UPDATE patterns SET domain = '' WHERE id = 'pattern-7'")
    assert len(read(bank, Schema("anything", table="patterns"))["anything"]) == 20


def test_lookups_give_what_is_there(bank):
    change(bank, "UPDATE patterns SET framework = 'none' WHERE id = ?", "pattern-7")
    change(bank, "UPDATE patterns SET domain = '' WHERE id = ?", "pattern-7")
    with contextlib.closing(PatternsSource(bank, FOUR)) as source:
        (found,) = source.find("patterns", {"framework": ("none",)})
        assert source.fetch("patterns", ["pattern-7"]) == [found]


def test_it_pickles_and_comes_again_from_its_spec(bank):
    source = PatternsSource(bank, FOUR)
    spec = source.spec()
    assert spec == {"kind": "patterns", "path": str(bank)}
    for again in (pickle.loads(pickle.dumps(source)), from_spec(spec, source.schemas)):
        assert type(again) is PatternsSource
        assert again.schemas == (FOUR,)
        with again.read() as reading:
            assert len(list(reading.records("patterns"))) == 20
        again.close()


def test_the_ddl_makes_a_bank_that_can_be_read(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "new.db")) as db, db:
        db.executescript(DDL)
        indexed = {row[0] for row in db.execute("SELECT tbl_name FROM sqlite_master WHERE type = 'index'")}
    assert indexed == {"patterns", "agent_configs"}
    assert read(tmp_path / "new.db") == {"patterns": [], "agent_configs": []}
