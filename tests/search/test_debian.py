"""Real sentence embeddings: 4,000 Debian packages, beside the repository, and the example that searches them."""

from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import mmcache
from mmcache import Schema, SQLiteSource

ROOT = Path(__file__).parents[2]
DATABASE = ROOT.parent / "shared" / "data" / "debian-packages.db"

pytestmark = pytest.mark.skipif(not DATABASE.exists(), reason="../shared/data/debian-packages.db is not here")


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """A copy, for the example writes beside it."""
    return Path(shutil.copy(DATABASE, tmp_path_factory.mktemp("debian") / "packages.db"))


def test_real_embeddings_have_the_neighbours_of_brute_force(path, database):
    schema = Schema("packages", key="name", index=("section",), embedding="embedding", dim=384)
    mmcache.build(path, SQLiteSource(database, schema))
    with closing(sqlite3.connect(database)) as db:
        rows = db.execute("SELECT name, section, embedding FROM packages ORDER BY rowid").fetchall()
    vectors = {name: np.frombuffer(data, "<f4").astype(float).tolist() for name, _, data in rows}
    games = {name for name, section, _ in rows if section == "games"}
    with mmcache.Snapshot.open(path) as snapshot:
        for name in list(vectors)[::400]:
            query = vectors[name]
            for where, among in (({}, vectors.keys()), ({"section": "games"}, games)):
                right = sorted((_cosine(query, vectors[other]) for other in among if other != name), reverse=True)[:10]
                found = snapshot.nearest(id=name, where=where)
                assert found.scores == pytest.approx(right, abs=1e-12)
                assert set(found.ids) <= set(among) - {name}
                assert found.scores.tolist() == [
                    pytest.approx(_cosine(query, vectors[other]), abs=1e-12) for other in found.ids
                ]


def _cosine(one: list[float], other: list[float]) -> float:
    def dot(x: list[float], y: list[float]) -> float:
        return math.fsum(a * b for a, b in zip(x, y, strict=True))

    return dot(one, other) / math.sqrt(dot(one, one) * dot(other, other))


def test_the_example_finds_packages_that_are_alike(database):
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "search" / "packages.py"), str(database)]

    def found(*words: str) -> str:
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    alike = found("0ad", "-k", "3")
    assert "megaglest" in alike, "another real-time strategy game"
    assert "freeciv" in alike
    assert "megaglest" not in found("0ad", "--section", "libs")
