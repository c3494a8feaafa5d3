"""Made-up banks: repeatable, valid, skewed and clustered as real ones are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import signal
import sqlite3
from collections import Counter

import numpy as np
import pytest

from examples.demo.bank import generate, generate_agents, write_bank
from mmcache.presets.patterns import check_agent_config, check_pattern
from tests.support.processes import ask_child


def digest(records):
    lines = (json.dumps({k: v.hex() if isinstance(v, bytes) else v for k, v in r.items()}) for r in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_the_same_arguments_give_the_same_records_for_ever():
    """Of the records themselves, so that another Python, numpy, machine or byte order cannot pass unnoticed."""
    assert digest(generate(600, dim=8)) == "69e571ea415496436e18ba7daa9a3045db0bf9faf079b29b1d5769747b70f31c"
    assert digest(generate(3, dim=768, seed=7)) == "8dbe2fae0057a933a092fecddf2d9d95a056fceadde8a914019607a7814f6443"
    assert digest(generate_agents(20)) == "69bcda9b8088bc4cbe23efc0d3458dcfb807c503981abe3b5ce2fb1d8b8a3eed"


def test_the_first_records_do_not_depend_on_how_many_follow():
    many = list(generate(1100, dim=4))
    for n in (0, 1, 511, 512, 513):
        assert list(generate(n, dim=4)) == many[:n]
    assert list(generate_agents(3)) == list(generate_agents(9))[:3]


def test_another_seed_gives_another_bank():
    assert digest(generate(5, dim=4, seed=1)) != digest(generate(5, dim=4, seed=2))
    assert digest(generate_agents(5, seed=1)) != digest(generate_agents(5, seed=2))


def test_every_record_is_valid_and_has_its_own_id():
    patterns = list(generate(2000, dim=4))
    for pattern in patterns:
        check_pattern(pattern)
        assert 0 <= pattern["metadata"]["success_count"] <= pattern["metadata"]["usage_count"]
        assert pattern["metadata"]["created_at"] <= pattern["metadata"]["last_used"]
    assert [pattern["id"] for pattern in patterns] == [f"pattern-{i}" for i in range(2000)]
    for config in generate_agents(50):
        check_agent_config(config)


def test_fields_are_skewed_and_every_value_occurs():
    patterns = list(generate(5000, dim=1))
    for field, values in [("domain", 13), ("type", 10), ("framework", 9)]:
        counts = Counter(pattern[field] for pattern in patterns)
        assert len(counts) == values
        assert sum(n for _, n in counts.most_common(3)) > 2500
        assert counts.most_common()[-1][1] < 250
    verdicts = Counter(pattern["metadata"]["verdict"] for pattern in patterns)
    assert verdicts["success"] > 2500
    assert min(verdicts[v] for v in ("failure", "flaky", "unknown")) > 100
    uses = sorted((pattern["metadata"]["usage_count"] for pattern in patterns), reverse=True)
    assert sum(uses[:500]) > sum(uses[500:])


def test_embeddings_have_unit_length_and_cluster_by_domain():
    patterns = list(generate(1000, dim=64))
    vectors = np.array([np.frombuffer(pattern["embedding"], "<f4") for pattern in patterns])
    assert vectors.shape == (1000, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    domains = np.array([pattern["domain"] for pattern in patterns])
    similar = vectors @ vectors.T
    same = domains[:, None] == domains[None]
    assert similar[same].mean() > similar[~same].mean() + 0.3
    assert len({pattern["embedding"] for pattern in patterns}) == 1000


@pytest.mark.parametrize("dim", [0, -1])
def test_a_dim_is_positive(dim):
    with pytest.raises(ValueError, match="dim must be at least 1"):
        list(generate(1, dim=dim))


def test_a_written_bank_holds_what_generate_gives(tmp_path):
    write_bank(tmp_path / "bank.db", 700, dim=8, seed=3, agents=5)
    with contextlib.closing(sqlite3.connect(tmp_path / "bank.db")) as db:
        db.row_factory = sqlite3.Row
        patterns = [dict(row) for row in db.execute("SELECT * FROM patterns ORDER BY rowid")]
        agents = [dict(row) for row in db.execute("SELECT * FROM agent_configs ORDER BY rowid")]
        assert [row[0] for row in db.execute("PRAGMA integrity_check")] == ["ok"]
        used = db.execute("EXPLAIN QUERY PLAN SELECT * FROM patterns WHERE domain = 'api'").fetchone()
    for pattern in patterns:
        pattern["metadata"] = json.loads(pattern["metadata"])
    assert patterns == list(generate(700, dim=8, seed=3))
    assert agents == list(generate_agents(5, seed=3))
    assert "patterns_domain" in used["detail"]


def test_the_same_arguments_write_the_same_file(tmp_path):
    for name in ("a.db", "b.db"):
        write_bank(tmp_path / name, 100, dim=8)
    assert (tmp_path / "a.db").read_bytes() == (tmp_path / "b.db").read_bytes()


def test_a_database_that_exists_is_not_touched(tmp_path):
    path = tmp_path / "bank.db"
    write_bank(path, 2, dim=4)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="give another path"):
        write_bank(path, 1, dim=4)
    assert path.read_bytes() == before
    path.write_text("mine, and no database" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        write_bank(path, 1, dim=4)
    assert path.read_text() == "mine, and no database" * 100


def test_a_bank_that_fails_half_way_leaves_nothing_in_the_file(tmp_path):
    def fail() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * 2**20,) * 2)  # reached after SQLite's cache has spilled
        write_bank(tmp_path / "bank.db", 10_000, dim=512)

    assert isinstance(ask_child(fail), sqlite3.OperationalError)
    assert [(entry.name, entry.stat().st_size) for entry in tmp_path.iterdir()] == [("bank.db", 0)]
    write_bank(tmp_path / "bank.db", 10, dim=4)
