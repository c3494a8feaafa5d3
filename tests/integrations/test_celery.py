"""Celery, as docs/workers.md says: a real worker with a prefork pool, whose broker is a directory.

The pool's processes are forked from one that has the cache open, are daemons that may have no children by
`multiprocessing`, rebuild in the background all the same, are killed and are replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
import pytest

pytest.importorskip("celery", reason="celery is not installed")

from billiard.exceptions import WorkerLostError
from celery import Celery

import mmcache
from tests.recipes import bank, recipe
from tests.support import inside
from tests.support.console import ok
from tests.support.observe import totals
from tests.support.waits import PATIENCE, until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent
KEYS = [f"pattern-{i}" for i in range(8)]
QUEUE = {"data_folder_in": "queue", "data_folder_out": "sent", "control_folder": "control", "polling_interval": 0.01}
DIRECTORIES = ("queue", "sent", "control", "known", "results")

TASKS = f"""

import multiprocessing
import os
import signal
import sqlite3
import time

import psutil

app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={QUEUE},
    result_backend="file://results",
    worker_enable_remote_control=False,
    worker_lost_wait=0.1,
)


@app.task
def read(key):
    return os.getpid(), cache.generation, cache[key]["content"]


@app.task
def write(content, key):
    with sqlite3.connect("patterns.db", timeout=30, isolation_level=None) as db:
        db.execute("UPDATE patterns SET content = ? WHERE id = ?", (content, key))
    db.close()
    cache.invalidate([key], reason="record_stored")
    return os.getpid()


@app.task
def start_rebuild(then_die=False):
    cache.invalidate(reason="record_stored")
    while not (children := psutil.Process().children()):
        cache["pattern-0"]
    if then_die:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid(), [child.pid for child in children]


@app.task
def start_child():
    multiprocessing.get_context("fork").Process(target=print).start()


@app.task
def go_on_until_gone(gate):
    open("begun", "x").close()
    while os.path.exists(gate):
        time.sleep(0.01)
    return cache["pattern-0"].id
"""


class Answer(NamedTuple):
    pid: int
    generation: int
    content: str


class Worker:
    """`celery -A app worker` in a directory with `patterns.db`: the recipe, and tasks for the tests."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.path = directory / "patterns.mmc"
        self.options = options
        self.client = Celery("client", set_as_current=False)
        self.client.conf.update(
            broker_url="filesystem://",
            broker_transport_options={
                "data_folder_in": f"{directory}/sent",
                "data_folder_out": f"{directory}/sent",
                "control_folder": f"{directory}/known",
            },
            result_backend=f"file://{directory}/results",
        )

    def __enter__(self) -> Self:
        for name in DIRECTORIES:
            (self.directory / name).mkdir()
        (self.directory / "app.py").write_text(recipe("Celery") + TASKS)
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
        command = [sys.executable, "-W", "always", "-m", "celery", "-A", "app", "worker", "--pool", "prefork", *quiet]
        with (self.directory / "log").open("w") as log:
            self.main = subprocess.Popen(
                [*command, *self.options],
                cwd=self.directory,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.main.pid, signal.SIGKILL)  # the session: the pool and rebuilds
        self.main.wait(PATIENCE)
        self.client.close()

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def begin(self, task: str, *args: object) -> Any:
        begun = self.client.send_task(f"app.{task}", args)
        for name in os.listdir(self.directory / "sent"):  # the worker may not find one that is not written yet
            os.rename(self.directory / "sent" / name, self.directory / "queue" / name)
        return begun

    def result(self, begun: Any) -> Any:
        """What the task returned; raises what it raised."""

        def is_done() -> bool:
            assert self.main.poll() is None, self.log()
            return begun.ready()

        until("the task is done", is_done)
        return begun.get(timeout=PATIENCE)

    def __call__(self, task: str, *args: object) -> Any:
        return self.result(self.begin(task, *args))

    def read(self, n: int = len(KEYS)) -> list[Answer]:
        """Of several tasks at once."""
        return [Answer(*self.result(task)) for task in [self.begin("read", key) for key in KEYS[:n]]]

    def read_in_all(self, processes: int = 2, **expected: object) -> set[int]:
        """The processes of the pool, each of which has answered as expected, and after that never differently."""
        there: set[int] = set()

        def all_answered() -> bool:
            for answer in self.read():
                as_expected = all(getattr(answer, name) == value for name, value in expected.items())
                assert as_expected or answer.pid not in there, answer
                if as_expected:
                    there.add(answer.pid)
            return len(there) >= processes

        until(f"{processes} processes answered with {expected}", all_answered)
        return there

    def pool(self) -> list[psutil.Process]:
        return psutil.Process(self.main.pid).children()

    def stop(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """As an administrator does; the whole group is gone when it returns. Tasks that have begun may end."""
        group = psutil.Process(self.main.pid).children(recursive=True)
        self.main.terminate()
        until("it shuts down", lambda: "Warm shutdown" in self.log())
        meanwhile()
        assert self.main.wait(PATIENCE) == 0, self.log()
        _, left = psutil.wait_procs(group, timeout=PATIENCE)
        assert not left, left


@pytest.fixture
def home(tmp_path: Path) -> Path:
    bank(tmp_path)
    write_all(tmp_path, "0")
    return tmp_path


@contextlib.contextmanager
def database(home: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(home / "patterns.db", timeout=PATIENCE, isolation_level=None)) as db:
        yield db


def write_all(home: Path, content: str) -> None:
    with database(home) as db:
        db.execute("UPDATE patterns SET content = ?", [content])


def builds(path: Path) -> tuple[int, int]:
    """(that published a file, others), by whomever."""
    counted = totals(path)
    return counted["rebuilds_ok"], sum(counted[f"rebuilds_{how}"] for how in ("unchanged", "failed", "superseded"))


def test_a_pool_lives_through_writes_rebuilds_and_deaths_without_a_wrong_answer(home: Path) -> None:
    with Worker(home, "--concurrency", "2") as worker:
        path = worker.path
        first = worker.read_in_all(generation=1, content="0")
        assert builds(path) == (1, 0)  # there was no file
        assert totals(path)["opens"] == 1  # by the process that the pool was forked from
        with mmcache.Snapshot.open(path) as snapshot:
            assert worker("coverage", "pattern-7") == snapshot["pattern-7"]["metadata"]["coverage"]

        for number in range(1, 6):  # a task that writes: no process answers with what was before
            worker("write", str(number), KEYS[3])
            answered: set[int] = set()
            while not answered >= first:
                answers = worker.read()
                assert [answer.content for answer in answers] == [*"000", str(number), *"0000"]
                answered |= {answer.pid for answer in answers}
        assert builds(path) == (1, 0)

        write_all(home, "6")  # a rebuild, begun by a process that may have no children
        with pytest.raises(AssertionError, match="daemonic processes are not allowed to have children"):
            worker("start_child")
        beginner, children = worker("start_rebuild")
        assert beginner in first
        assert len(children) == 1
        assert worker.read_in_all(generation=2, content="6") == first
        until("it is reaped", lambda: (worker.read(), not psutil.pid_exists(children[0]))[1])
        assert builds(path) == (2, 0)

        write_all(home, "7")  # a process is killed, and does not see what it began land
        with database(home) as db:
            db.execute("BEGIN EXCLUSIVE")  # the rebuild has to wait
            lost = worker.begin("start_rebuild", True)
            until("it is dead", lambda: first - {process.pid for process in worker.pool()})
            assert builds(path) == (2, 0)
            db.execute("ROLLBACK")
        with pytest.raises(WorkerLostError):
            worker.result(lost)
        second = worker.read_in_all(generation=3, content="7")
        assert len(first & second) == 1
        assert second == {process.pid for process in worker.pool()}
        assert builds(path) == (3, 0)
        counted = {one["pid"] for one in ok("status", path, "--json").json["fleet"]["workers"]}
        assert counted == second | {worker.main.pid}

        (home / "gate").touch()
        last = worker.begin("go_on_until_gone", "gate")
        until("it has begun", (home / "begun").exists)
        worker.stop((home / "gate").unlink)
        assert last.get(timeout=PATIENCE) == "pattern-0"
        assert builds(path) == (3, 0)
        assert_nothing_is_left(worker, counter_files=len(counted) + 1)  # a process that rebuilds counts, too
        assert "ResourceWarning" not in worker.log()


@pytest.mark.nightly
def test_processes_that_live_for_a_few_tasks_leave_nothing(home: Path) -> None:
    with Worker(home, "--concurrency", "2", "--max-tasks-per-child", "4") as worker:
        pids: set[int] = set()
        for generation in (1, 2, 3):
            pids |= worker.read_in_all(8, generation=generation, content=str(generation - 1))
            write_all(home, str(generation))
            ok("rebuild", worker.path)
        assert len(pids) >= 24
        assert builds(worker.path) == (4, 0)
        worker.stop()
        assert_nothing_is_left(worker, counter_files=5)  # of the last; those before them were folded by the next


def assert_nothing_is_left(worker: Worker, *, counter_files: int) -> None:
    assert not inside.fleet_of(worker.path).workers
    left = set(os.listdir(worker.directory)) - {*DIRECTORIES, "app.py", "__pycache__", "log", "begun", "patterns.db"}
    beside = {f"patterns.mmc{suffix}" for suffix in ("", ".bak", ".ctl", ".lock")}
    assert beside <= left
    assert all(re.fullmatch(r"\.patterns\.mmc\.[0-9a-f]{16}\.(counts|wake)", name) for name in left - beside), left
    files_left = [name for name in left - beside if name.endswith(".counts")]
    assert len(files_left) <= counter_files  # what was counted, for the next that comes to add up
