"""A worker that was idle, for an hour or a moment, is up to date at its first read.

The read that finds the poll due hands it to a thread, and waits a little for its result. Where no thread can run (uWSGI
without threads, a limit of processes) the read polls itself, and one line says so.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mmcache
from tests.accidents.stage import (
    Crew,
    apart,
    become,
    change,
    database,
    execute,
    heard,
    listen,
    note_of,
    opens,
    source,
    until,
)
from tests.support import inside
from tests.support.clock import Clock

HOUR = 3600.0
INTERVAL = 0.05
_installed: list[Any] = []


@pytest.fixture
def tracked(db: Path) -> Path:
    """A database that tells which records changed."""
    source(db).track()
    return db


def idle(work: Any) -> None:
    """Nothing is asked of the cache for an hour, while others work. (A get keeps the machine's own clock for whether a
    poll is due, so the shortest `check_interval` passes, too.)"""
    inside.patient_reads()
    clock, begun = Clock(), time.monotonic()
    _installed.append(clock.installed())
    work()
    until("a poll is due", lambda: time.monotonic() > begun + 2 * INTERVAL)
    _installed[-1].__enter__()  # for the rest of this process
    clock.later += HOUR
    clock.ahead += HOUR


def after_an_hour(path: Path, db: Path, step: str) -> list[Any]:
    """First answers after an hour of each kind of read, with an untold change."""
    cache = mmcache.open(path, source(db), executor="external", ttl=86_400, check_interval=INTERVAL)
    assert note_of(cache) == "old"
    idle(lambda: change(db, "k1", "k3"))
    return {
        "get": lambda: [note_of(cache, "k1"), note_of(cache, "k3")],
        "get_many": lambda: [record["note"] for record in cache.get_many(["k1", "k3"]) if record],
        "where": lambda: [record["note"] for record in cache.where(kind="a") if record.id == "k3"] * 2,
        "values": lambda: [record["note"] for record in cache.values() if record.id in ("k1", "k3")],
    }[step]()


@pytest.mark.parametrize("step", ["get", "get_many", "where", "values"])
def test_the_first_read_after_an_hour_sees_an_untold_change(path, tracked, step):
    assert apart(after_an_hour, path, tracked, step) == ["new", "new"]


def inserted_meanwhile(path: Path, db: Path) -> tuple[int, int, bool]:
    cache = mmcache.open(path, source(db), executor="external", ttl=86_400, check_interval=INTERVAL)
    note_of(cache)
    idle(lambda: execute(db, "INSERT INTO items VALUES ('z', 'a', 'new')"))
    return len(cache), len(list(cache)), "z" in cache.where(kind="a").ids


def test_an_untold_insert_is_counted_and_found_after_an_hour(path, tracked):
    assert apart(inserted_meanwhile, path, tracked) == (201, 201, True)


def adopted_after_an_hour(path: Path, db: Path, executor: Any) -> tuple[str, str, int | None]:
    cache = mmcache.open(path, source(db), executor=executor, ttl=86_400, check_interval=INTERVAL)
    note_of(cache)

    def publish() -> None:
        change(db)
        apart(build, path, db)

    idle(publish)
    return note_of(cache, "k1"), note_of(cache, "k2"), cache.stats().generation


def build(path: Path, db: Path) -> None:
    mmcache.build(path, source(db))


@pytest.mark.parametrize("executor", ["external", "thread", "subprocess"])
def test_a_file_published_meanwhile_answers_the_first_read(path, db, executor):
    assert apart(adopted_after_an_hour, path, db, executor) == ("new", "new", 2)


def test_an_event_of_meanwhile_is_heard_at_the_first_read(path, db, crew: Crew):
    idler, speaker = crew.hire(opens(path, db, check_interval=HOUR), 2)
    assert [idler(note_of), speaker(note_of)] == ["old", "old"]
    change(db, "k1")
    speaker("invalidate", ["k1"])
    assert idler(note_of) == "new"


def expired_after_an_hour(path: Path, db: Path) -> tuple[str, str]:
    cache = mmcache.open(path, source(db), executor="external", ttl=1800, check_interval=INTERVAL)
    note_of(cache)
    idle(lambda: change(db, "k1"))
    return note_of(cache), cache.stats().state


def test_a_file_that_expired_meanwhile_does_not_answer_the_first_read(path, db):
    assert apart(expired_after_an_hour, path, db) == ("new", "expired")


# --- no thread can run ------------------------------------------------------------------------------------------------


def poll_without_threads(place: Path) -> tuple[list[str], int]:
    """Reads under a limit of processes: their answers after untold changes, and how often a line said so."""
    with mmcache.open(place / "warm.mmc", source(database(place / "warm.db")), executor="external") as cache:
        cache.invalidate(["k1"])  # all is imported before the change of user
        note_of(cache)
        cache.rebuild()
        cache.status()
    home = place / "home"
    home.mkdir()
    db = database(home / "items.db")
    source(db).track()
    become(40_000 + os.getpid() % 20_000, home, *home.iterdir())
    listen()
    mmcache.build(home / "c.mmc", source(db))
    _, limit = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, limit))
    answers = []
    cache = mmcache.open(home / "c.mmc", source(db), executor="external", check_interval=0.0)
    for i in range(10):
        change(db, "k1", note=f"new-{i}")
        answers.append(note_of(cache))
    assert note_of(cache, "k2") == "old"
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    return answers, heard().count("poll_inline")


def test_under_a_limit_of_processes_the_read_polls_itself(place):
    if os.geteuid():
        pytest.skip("needs root: the limit is set for another user")
    answers, lines = apart(poll_without_threads, place)
    assert answers == [f"new-{i}" for i in range(10)]
    assert lines == 1


APPLICATION = """
import json, os
from pathlib import Path
import mmcache
from tests.accidents.stage import heard, listen, source
from tests.support import inside
inside.patient_reads()
listen()
cache = mmcache.open({path!r}, source(Path({db!r})), executor="external", check_interval={interval})

def application(environ, start_response):
    key = environ["PATH_INFO"][1:]
    start_response("200 OK", [("Content-Type", "application/json")])
    answer = heard() if key == "events" else [os.getpid(), cache[key]["note"]]
    return [json.dumps(answer).encode()]
"""


@contextmanager
def uwsgi(directory: Path, application: str, *options: str) -> Iterator[Any]:
    """A uWSGI server of this application; gives a function that asks it."""
    server = Path(sys.executable).parent / "uwsgi"
    if not server.exists():
        pytest.skip("there is no uwsgi beside this Python (pip install pyuwsgi)")
    (directory / "app.py").write_text(application)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    command = [str(server), "--http-socket", f"127.0.0.1:{port}", "--wsgi-file", str(directory / "app.py")]
    command += ["--die-on-term", "--disable-logging", "--need-app", *options]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=directory)

    def ask(what: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{what}", timeout=20) as answer:
            return json.load(answer)

    def is_up() -> bool:
        assert process.poll() is None, (directory / "log").read_text()[-2000:]
        try:
            return bool(ask("k9"))
        except OSError:
            return False

    try:
        until("uwsgi is up", is_up, timeout=60.0, pause=0.05)
        yield ask
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.parametrize("options", [(), ("--master", "--processes", "2"), ("--enable-threads",)], ids=str)
def test_under_uwsgi_the_first_read_sees_an_untold_change(path, tmp_path, tracked, options):
    mmcache.build(path, source(tracked))
    application = APPLICATION.format(path=str(path), db=str(tracked), interval=0.0)
    with uwsgi(tmp_path, application, *options) as ask:
        for i in range(10):
            change(tracked, "k1", note=f"new-{i}")
            assert {ask("k1")[1] for _ in range(4)} == {f"new-{i}"}


def test_under_uwsgi_without_threads_no_line_is_logged_twice(path, tmp_path, tracked):
    mmcache.build(path, source(tracked))
    application = APPLICATION.format(path=str(path), db=str(tracked), interval=0.0)
    with uwsgi(tmp_path, application) as ask:
        for i in range(5):
            change(tracked, "k1", note=f"new-{i}")
            assert ask("k1")[1] == f"new-{i}"
        assert ask("events").count("poll_inline") <= 1  # none where its threads run while a request waits


def test_under_uwsgi_without_threads_an_event_is_heard(path, tmp_path, db):
    mmcache.build(path, source(db))
    application = APPLICATION.format(path=str(path), db=str(db), interval=HOUR)
    with uwsgi(tmp_path, application, "--master", "--processes", "2") as ask, opens(path, db)() as cache:
        for i in range(5):
            change(db, "k1", note=f"new-{i}")
            cache.invalidate(["k1"])
            assert {ask("k1")[1] for _ in range(6)} == {f"new-{i}"}
