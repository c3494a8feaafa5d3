"""multiprocessing, concurrent.futures and joblib, as docs/workers.md has them, and what else is sent to pools."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import mmcache
from mmcache import Cache, EmbeddingRef, GenerationGoneError, Schema, Selection, Snapshot, SQLiteSource
from tests.recipes import bank, recipe
from tests.support import inside
from tests.support.observe import totals
from tests.support.samples import sampled
from tests.support.waits import PATIENCE, until

pytestmark = pytest.mark.usefixtures("let_go")

ROOT = Path(__file__).parent.parent.parent
METHODS = ("fork", "forkserver", "spawn")
PATTERNS = Schema("patterns", index=("domain",), json=("metadata",), embedding="embedding", dim=768)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    bank(tmp_path)
    return tmp_path


@contextlib.contextmanager
def database(home: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(home / "patterns.db", timeout=PATIENCE, isolation_level=None)) as db:
        yield db


def write_all(home: Path, number: int) -> None:
    with database(home) as db:
        db.execute("UPDATE patterns SET content = ?", [str(number)])


# --- what a process of a pool does ------------------------------------------------------------------------------------

_kept: Any = None


def keep(cache: Cache, barrier: Any) -> None:
    global _kept  # noqa: PLW0603 (what an initializer is for)
    _kept = cache, barrier


def meet(_: int) -> tuple[int, int, int | None, set[str]]:
    """Once in each process of the pool: its pid, how many files it has opened, the generation and contents of now."""
    cache, barrier = _kept
    barrier.wait(PATIENCE)
    contents = {cache[f"pattern-{i}"]["content"] for i in range(50)}
    return os.getpid(), cache.stats().opens, cache.generation, contents


def send_back(domain: str, key: str) -> tuple[Any, EmbeddingRef, Any]:
    cache, _ = _kept
    return cache.where(domain=domain), cache.embedding_ref(key), cache[key]


def find(domain: str) -> Any:
    return _kept[0].where(domain=domain)


def write(home: Path, key: str, number: int) -> None:
    with database(home) as db:
        db.execute("UPDATE patterns SET content = ? WHERE id = ?", (str(number), key))
    _kept[0].invalidate([key], reason="record_stored")


def look_at(found: Any) -> tuple[list[str], list[str], float]:
    return found.ids, [pattern["content"] for pattern in found], float(found.embeddings.sum())


def sum_of(found: Selection) -> tuple[float, int]:
    """Of its embeddings, and by how many bytes the memory that is this process's own has grown meanwhile."""
    before = anonymous_bytes()
    vectors = found.embeddings
    return float(vectors.sum(dtype="f8")), anonymous_bytes() - before


def anonymous_bytes() -> int:
    match = re.search(r"^Anonymous: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


# --- multiprocessing and concurrent.futures ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", sampled(METHODS, 2))
def test_the_recipe(home: Path, method: str) -> None:
    (home / "main.py").write_text(
        f"import multiprocessing\n\nif __name__ == '__main__':\n    multiprocessing.set_start_method({method!r})\n"
        f"{recipe('multiprocessing and concurrent.futures')}    import json\n    print(json.dumps(coverages))\n"
    )
    with database(home) as db:
        expected = [
            json.loads(text)["coverage"] for (text,) in db.execute("SELECT metadata FROM patterns ORDER BY rowid")
        ]
    assert json.loads(run_alone(home, "main.py")) == expected
    counted = totals(home / "patterns.mmc")
    assert counted["rebuilds_ok"] == 1
    assert counted["opens"] == 1 if method == "fork" else 1 < counted["opens"] <= 3


@pytest.mark.parametrize("method", sampled(METHODS, 2))
def test_a_pool_and_its_parent_see_the_same_and_send_it_to_each_other(home: Path, method: str) -> None:
    write_all(home, 0)
    context = multiprocessing.get_context(method)
    with (
        mmcache.open(home / "patterns.mmc", SQLiteSource(home / "patterns.db", PATTERNS)) as cache,
        context.Pool(2, keep, (cache, context.Barrier(2))) as pool,
    ):

        def all_see(generation: int, contents: set[str], opens: int) -> set[int]:
            """All of the pool; their pids."""
            seen = pool.map_async(meet, range(2), chunksize=1).get(PATIENCE)
            assert [answer[1:] for answer in seen] == [(opens, generation, contents)] * 2
            return {pid for pid, *_ in seen}

        opens = 0 if method == "fork" else 1
        pids = all_see(1, {"0"}, opens)
        assert len(pids) == 2

        old, reference, record = pool.apply(send_back, ("api", "pattern-3"))
        own = cache.where(domain="api")
        assert isinstance(old, Selection)
        assert look_at(old) == look_at(own)
        assert record == cache["pattern-3"]
        vector = cache.get_embeddings(["pattern-3"])[0].tolist()
        assert reference.embedding is not None
        assert reference.embedding.tolist() == record.embedding.tolist() == vector

        first = own.ids[0]
        pool.apply(write, (home, first, 1))
        assert cache[first]["content"] == "1"
        assert pool.apply(look_at, (pool.apply(find, ("api",)),)) == look_at(cache.where(domain="api"))
        assert look_at(cache.where(domain="api"))[1] == ["1"] + ["0"] * (len(own) - 1)  # from the source, now

        write_all(home, 2)
        cache.rebuild()
        assert all_see(2, {"2"}, opens + 1) == pids
        assert pool.apply(look_at, (own,)) == look_at(own) == look_at(old)  # of the generation before
        assert look_at(own)[1] == ["0"] * len(own)
        second = cache.where(domain="api")

        for number in (3, 4):
            write_all(home, number)
            cache.rebuild()
        with pytest.raises(GenerationGoneError, match="2, found generation 4, as backup generation 3") as caught:
            pool.apply(look_at, (second,))
        assert caught.value.path == cache.path
        assert look_at(old)[1] == ["0"] * len(own)  # which we have mapped all the time
        assert all_see(4, {"4"}, opens + 2) == pids
        assert totals(home / "patterns.mmc")["rebuilds_ok"] == 4
        pool.close()
        pool.join()
        assert [worker.pid for worker in inside.fleet_of(cache.path).workers] == [os.getpid()]


def test_an_executor_goes_on_after_a_generation_that_is_gone(home: Path) -> None:
    with mmcache.open(home / "patterns.mmc", SQLiteSource(home / "patterns.db", PATTERNS)) as cache:
        found = cache.where(domain="api")
        for number in range(2):
            write_all(home, number)
            cache.rebuild()
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            error = pool.submit(look_at, found).exception(PATIENCE)
            assert type(error) is GenerationGoneError
            assert error.path == cache.path
            assert pool.submit(look_at, cache.where(domain="api")).result(PATIENCE) == look_at(
                cache.where(domain="api")
            )


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory is read from /proc")
def test_ten_thousand_embeddings_are_sent_in_forty_kilobytes(path: Path) -> None:
    vectors = np.random.default_rng(0).integers(0, 100, (10_000, 768)).astype("<f4")
    records = ({"id": f"k{i}", "kind": "x", "v": vector} for i, vector in enumerate(vectors))
    mmcache.build(path, records, Schema("items", index=("kind",), embedding="v", dim=768))
    with (
        Snapshot.open(path) as snapshot,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        found = snapshot.where(kind="x")
        assert vectors.nbytes == 30_720_000
        assert len(pickle.dumps(found)) < 41_000
        total, grown = pool.submit(sum_of, found).result(PATIENCE)
    assert total == float(vectors.sum(dtype="f8"))
    assert grown < 2e6


# --- joblib -----------------------------------------------------------------------------------------------------------

with_joblib = pytest.mark.skipif(find_spec("joblib") is None, reason="joblib is not installed")


@with_joblib
def test_the_recipe_for_joblib(home: Path) -> None:
    (home / "main.py").write_text(f"{recipe('joblib')}\nprint([centre.tolist() for centre in centres])\n")
    centres = json.loads(run_alone(home, "main.py"))
    with Snapshot.open(home / "patterns.mmc") as snapshot:
        expected = [snapshot.where(domain=domain).embeddings.mean(axis=0) for domain in ("api", "ui", "auth")]
    assert np.array_equal(np.array(centres, "<f4"), expected)
    assert totals(home / "patterns.mmc")["rebuilds_ok"] == 1


@with_joblib
@pytest.mark.parametrize("backend", [pytest.param("loky", marks=pytest.mark.integration), "multiprocessing"])
def test_a_script_with_joblib(home: Path, backend: str) -> None:
    run_alone(home, Path(__file__).with_name("joblib_script.py"), backend)
    assert totals(home / "patterns.mmc")["rebuilds_ok"] == 4
    assert not inside.fleet_of(home / "patterns.mmc").workers


# --- scripts ----------------------------------------------------------------------------------------------------------


def run_alone(home: Path, script: str | Path, *words: str) -> str:
    """What a script prints, which warns of nothing, and leaves no process and no temporary file."""
    # A fork is what some of them are about, and numpy has threads of its own: since 3.12 that is warned of.
    command = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", str(script), *words]
    # Not below tmp_path: the forkserver's socket is there, whose name may have about a hundred characters.
    with tempfile.TemporaryDirectory() as temporary:
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            command,
            cwd=home,
            env=os.environ | {"PYTHONPATH": paths, "TMPDIR": temporary, "JOBLIB_TEMP_FOLDER": temporary},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=2 * PATIENCE)
            assert (process.returncode, err) == (0, ""), err
            until("its processes are gone", lambda: not in_session(process.pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=PATIENCE)
        assert os.listdir(temporary) == []
    return out


def in_session(leader: int) -> list[int]:
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getsid(pid) == leader:
                found.append(pid)
    return found
