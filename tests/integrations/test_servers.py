"""gunicorn and uvicorn, as docs/workers.md says: real servers on 127.0.0.1, asked over HTTP all the time, while the
bank is written to, files are published, and workers die.

An answer is wrong if it is not 200, or older than what the bank held when it was asked for. None may be, ever.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from tests.recipes import bank, recipe
from tests.support import inside
from tests.support.console import ok
from tests.support.observe import totals
from tests.support.waits import PATIENCE, until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent
WORKERS = 3
CLIENTS = 4
IDS = [f"pattern-{i}" for i in range(200)]

ROUTES = '''

import os
import sqlite3


def told(path):
    """What the tests ask of a worker."""
    _, _, verb, *more = path.split("/")
    if verb == "write":  # a bank that a request writes to, and says so
        with sqlite3.connect("patterns.db", timeout=30, isolation_level=None) as db:
            db.execute("UPDATE patterns SET content = ? WHERE id = ?", more)
        db.close()
        cache.invalidate([more[1]], reason="record_stored")
    elif verb == "soft":
        cache.invalidate(reason="record_stored")
    elif verb == "read":
        float(cache.embeddings.sum())
    return json.dumps({"pid": os.getpid(), "generation": cache.generation}).encode()


recipe = app
'''

WSGI = """

def app(environ, start_response):
    if not environ["PATH_INFO"].startswith("/-/"):
        return recipe(environ, start_response)
    start_response("200 OK", [])
    return [told(environ["PATH_INFO"])]
"""

ASGI = """

async def app(scope, receive, send):
    if not scope.get("path", "").startswith("/-/"):
        return await recipe(scope, receive, send)
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": told(scope["path"])})
"""


@dataclass(frozen=True)
class Kind:
    package: str
    options: tuple[str, ...] = ()
    is_reloaded: bool = False
    """By the test, with SIGHUP; not all of them, since as many workers begin again."""

    @property
    def is_preloaded(self) -> bool:
        return "--preload" in self.options

    def command(self) -> list[str]:
        # What gunicorn's workers say that they live on is a file of their own: not beside ours, and not in /tmp.
        where = {
            "gunicorn": ["--bind", "127.0.0.1:0", "--worker-tmp-dir", ".", "--graceful-timeout", "10"],
            "uvicorn": ["--port", "0", "--no-access-log"],
        }[self.package]
        workers = ["--workers", str(WORKERS)]
        return [sys.executable, "-W", "always", "-m", self.package, "app:app", *workers, *where, *self.options]


THREADS = ("--worker-class", "gthread", "--threads", "2")
KINDS = {
    "gunicorn sync": Kind("gunicorn"),
    "gunicorn sync, preloaded": Kind("gunicorn", ("--preload",), is_reloaded=True),
    "gunicorn threads": Kind("gunicorn", THREADS, is_reloaded=True),
    "gunicorn threads, preloaded": Kind("gunicorn", (*THREADS, "--preload")),
    "uvicorn": Kind("uvicorn"),
}


def kinds(by_day: Collection[str] = KINDS.keys()) -> list[Any]:
    """All kinds, as parameters; those that are not named are for the night."""
    return [
        pytest.param(
            kind,
            id=name,
            marks=[
                pytest.mark.skipif(find_spec(kind.package) is None, reason=f"{kind.package} is not installed"),
                *([] if name in by_day else [pytest.mark.nightly]),
            ],
        )
        for name, kind in KINDS.items()
    ]


# --- servers ----------------------------------------------------------------------------------------------------------


class Server:
    """A master and its workers in a directory with `patterns.db`: the recipe, and routes below `/-/` for the tests."""

    def __init__(self, directory: Path, kind: Kind, more: str = "") -> None:
        self.directory = directory
        self.kind = kind
        self.path = directory / "patterns.mmc"
        self.text = recipe(kind.package) + ROUTES + {"gunicorn": WSGI, "uvicorn": ASGI}[kind.package] + more

    def __enter__(self) -> Self:
        (self.directory / "app.py").write_text(self.text)
        # Newer ones have a socket in the home directory, and a thread for it in the master. Older ones pass over this.
        (self.directory / "gunicorn.conf.py").write_text("control_socket_disable = True\n")
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with (self.directory / "log").open("w") as log:
            self.master = subprocess.Popen(
                self.kind.command(),
                cwd=self.directory,
                env=os.environ | {"PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            found = until("the server listens", lambda: re.search(r"http://127\.0\.0\.1:(\d+)", self.running().log()))
            self.port = int(found[1])
            until("the server answers", self.answers)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.master.pid, signal.SIGKILL)  # the session: workers and rebuilds
        self.master.wait(PATIENCE)

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def running(self) -> Self:
        assert self.master.poll() is None, self.log()
        return self

    def answers(self) -> bool:
        try:
            return self.running().told("who") is not None
        except ConnectionError:
            return False

    def ask(self, path: str) -> tuple[int, Any]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def told(self, *words: object) -> dict[str, Any]:
        """What one of the workers says to a route of the tests."""
        status, body = self.ask("/-/" + "/".join(map(str, words)))
        assert status == 200, self.log()
        return body

    def group(self) -> list[psutil.Process]:
        master = psutil.Process(self.master.pid)
        return [master, *master.children(recursive=True)]

    def ask_all(self, *words: object) -> set[int]:
        """The same of every worker; their pids."""
        pids: set[int] = set()
        with ThreadPoolExecutor(2 * WORKERS) as clients:

            def asked() -> bool:
                answers = [clients.submit(self.told, *words) for _ in range(2 * WORKERS)]
                pids.update(answer.result()["pid"] for answer in answers)
                return len(pids) >= WORKERS

            until(f"each worker was asked to {words[0]}", asked)
        return pids

    def stop(self) -> None:
        """As an administrator does; the whole group is gone when it returns."""
        group = self.group()
        self.master.terminate()
        assert self.master.wait(PATIENCE) == 0, self.log()
        _, left = psutil.wait_procs(group[1:], timeout=PATIENCE)
        assert not left, left


class Load:
    """Clients that ask a hundred times a second each, for a record and then for who answers, until the block ends.

    floor: for each id the number that an answer must at least have, if it is asked for from now on. generations: the
    newest that each worker spoke of. wrong: answers that must never be. broken: connections that ended without one.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.floor = dict.fromkeys(IDS, 0)
        self.generations: dict[int, int] = {}
        self.answers: collections.Counter[int] = collections.Counter()
        self.wrong: list[object] = []
        self.broken: list[object] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, i: int) -> None:
        deadline = time.monotonic() + 3 * PATIENCE
        while not self._over.wait(0.01) and time.monotonic() < deadline:
            i = (i + 7) % len(IDS)
            try:
                self._ask_both(IDS[i])
            except (ConnectionError, http.client.HTTPException) as error:
                self.broken.append(error)
            except Exception as error:  # noqa: BLE001 (whatever it is, the test is told)
                self.wrong.append(error)

    def _ask_both(self, key: str) -> None:
        expected = self.floor[key]
        status, record = self.server.ask(f"/{key}")
        if status != 200 or record["id"] != key or int(record["content"]) < expected:
            self.wrong.append((status, record, expected))
        worker = self.server.told("who")
        pid, generation = worker["pid"], worker["generation"]
        self.answers[pid] += 1
        self.generations[pid] = max(generation, self.generations.get(pid, 0))

    def until_all(self, generation: int, *, without: Collection[int] = ()) -> set[int]:
        """The pids of a full group of workers, each of which spoke of this generation."""

        def arrived() -> set[int]:
            there = {pid for pid, its in list(self.generations.items()) if its >= generation and pid not in without}
            return there if len(there) >= WORKERS else set()

        return until(f"all workers on generation {generation}", arrived)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    bank(tmp_path)
    write(tmp_path, 0)
    return tmp_path


def write(home: Path, number: int) -> None:
    with contextlib.closing(sqlite3.connect(home / "patterns.db", timeout=PATIENCE, isolation_level=None)) as db:
        db.execute("UPDATE patterns SET content = ?", [number])


def builds(path: Path) -> tuple[int, int]:
    """(that published a file, others), by whomever."""
    counted = totals(path)
    others = ("rebuilds_unchanged", "rebuilds_failed", "rebuilds_superseded")
    return counted["rebuilds_ok"], sum(counted[name] for name in others)


# --- the life of a group ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds())
def test_a_group_lives_through_writes_rebuilds_and_deaths_without_a_wrong_answer(kind: Kind, home: Path) -> None:
    with Server(home, kind) as server:
        path = server.path
        with Load(server) as load:
            first = load.until_all(1)
            assert builds(path) == (1, 0)  # they all began without a file

            write(home, 1)  # a writer that notifies none, and a rebuild from outside
            ok("rebuild", path)
            load.floor = dict.fromkeys(IDS, 1)
            load.until_all(2)

            for number in range(2, 6):  # a request that writes
                key = IDS[7 * number]
                server.told("write", number, key)
                load.floor[key] = number
                assert server.ask(f"/{key}")[1]["content"] == str(number)
            assert builds(path) == (2, 0)

            write(home, 6)  # a worker rebuilds, in the background
            server.told("soft")
            load.until_all(3)
            load.floor = dict.fromkeys(IDS, 6)
            assert builds(path) == (3, 0)
            assert not load.broken

            victim = min(first)
            os.kill(victim, signal.SIGKILL)
            survivors = load.until_all(3, without={victim})
            assert first - {victim} < survivors
            assert len(load.broken) <= CLIENTS  # what the victim was answering
            assert builds(path) == (3, 0)
            in_group = {process.pid for process in server.group()}
            counted = {worker["pid"] for worker in ok("status", path, "--json").json["fleet"]["workers"]}
            assert survivors <= counted <= in_group
            assert counted == survivors | ({server.master.pid} if kind.is_preloaded else set())

            load.broken.clear()
            if kind.is_reloaded:
                server.master.send_signal(signal.SIGHUP)
                load.until_all(3, without={victim, *survivors})

        assert not load.wrong
        server.stop()
        assert builds(path) == (3, 0)
        assert not inside.fleet_of(path).workers
        print(f"{load.answers.total()} answers by {len(load.answers)} workers, {len(load.broken)} broken")
        left = {re.sub(r"[0-9a-f]{16}", "*", name) for name in os.listdir(home)} - {"__pycache__"}
        beside = {f"patterns.mmc{suffix}" for suffix in ("", ".bak", ".ctl", ".lock")}
        assert (
            left - {".patterns.mmc.*.counts", ".patterns.mmc.*.wake"}
            == {"app.py", "gunicorn.conf.py", "log", "patterns.db"} | beside
        )
        assert not re.search("Traceback|multi-threaded", server.log()), server.log()


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a bank of 13,000 patterns, of which the first server makes a file of 45 MB."""
    home = tmp_path_factory.mktemp("large")
    bank(home)
    with contextlib.closing(sqlite3.connect(home / "patterns.db", isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute(
            "INSERT INTO patterns "
            "WITH RECURSIVE copies (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM copies WHERE i < 64) "
            "SELECT id || '-' || i, type, domain, framework, content, metadata, embedding FROM patterns, copies"
        )
    return home


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory is read from /proc")
@pytest.mark.parametrize("kind", kinds({"gunicorn sync, preloaded", "uvicorn"}))
def test_a_group_has_the_file_in_memory_once(kind: Kind, large: Path) -> None:
    with Server(large, kind) as server:
        server.ask_all("who")
        size, block = server.path.stat().st_size, 13_000 * 768 * 4
        pids = [process.pid for process in server.group()]
        before = sum(pss(pid) for pid in pids)
        workers = server.ask_all("read")
        after = sum(pss(pid) for pid in pids)
        shares = {pid: of_file(pid, server.path) for pid in pids}
        server.stop()
    once = sum(share for share, _ in shares.values())
    print(f"file {size / 1e6:.1f} MB; read by {len(workers)} workers: PSS of it {once / 1e6:.1f} MB together,")
    print(f"of the group {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after")
    assert 39e6 < block < size < 60e6
    assert all(shares[pid][1] >= block for pid in workers)  # each has all of it in its address space
    assert block <= once <= size + 1e6
    assert after - before <= 1.2 * size


def pss(pid: int) -> int:
    """Bytes, of all that a process has in memory; what n processes share counts for each as an nth."""
    found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def of_file(pid: int, path: Path) -> tuple[int, int]:
    """(Pss, Rss) of a file in a process."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    maps = re.findall(rf"^\S+-\S+ .* {re.escape(str(path))}\n((?:\w+: .*\n)+)", text, re.MULTILINE)
    return tuple(  # type: ignore[return-value]
        1024 * sum(int(n) for one in maps for n in re.findall(rf"^{name}: +(\d+) kB", one, re.MULTILINE))
        for name in ("Pss", "Rss")
    )


# --- who reaps --------------------------------------------------------------------------------------------------------

MASTER_REBUILDS = """

import psutil

while not (started := psutil.Process().children()):
    cache["pattern-0"]
open("rebuild", "w").write(str(started[0].pid))
"""


@pytest.mark.skipif(find_spec("gunicorn") is None, reason="gunicorn is not installed")
@pytest.mark.parametrize(
    "killed", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["it ends", "it is killed"]
)
def test_a_rebuild_that_the_master_began_is_no_worker_of_gunicorns(
    home: Path, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gunicorn's master waits for every child there is, and so takes the exit status of ours."""
    monkeypatch.chdir(home)
    module: dict[str, Any] = {}
    exec(recipe("gunicorn"), module)
    module["cache"].close()
    write(home, 1)
    ok("invalidate", home / "patterns.mmc", "--reason", "record_stored")
    with contextlib.closing(sqlite3.connect("patterns.db", isolation_level=None)) as db:
        if killed:
            db.execute("BEGIN EXCLUSIVE")  # the rebuild has to wait
        with Server(home, KINDS["gunicorn sync, preloaded"], MASTER_REBUILDS) as server:
            rebuild = int((home / "rebuild").read_text())
            assert rebuild not in server.ask_all("who")
            if killed:
                os.kill(rebuild, signal.SIGKILL)
                db.execute("ROLLBACK")
            until("it is reaped", lambda: not psutil.pid_exists(rebuild))
            until("a worker of the next generation", lambda: server.told("who")["generation"] == 2)
            assert server.ask("/pattern-7")[1]["content"] == "1"
            assert builds(server.path) == (2, 0)
            server.stop()
            assert "was sent" not in server.log()
