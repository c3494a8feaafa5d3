"""uWSGI, which forks in C, with the options that decide about threads, forks and hooks: see "uWSGI" in docs/workers.md.

The application is loaded in the master, which starts a rebuild while it forks its workers. The builder is killed: its
lock is free at once, though no worker was asked anything; and then each worker serves what is new.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmcache
from tests.accidents.stage import change, source, until
from tests.accidents.test_forks_in_c import has_a_lock_of_its_own
from tests.accidents.test_idle_workers import uwsgi
from tests.support import inside
from tests.support.observe import is_builder

APPLICATION = """
import json, os
from pathlib import Path
import mmcache
from tests.accidents.stage import source
cache = mmcache.open({path!r}, source(Path({db!r})), check_interval=0.05, rebuild_after=0.0)
cache["k0"], cache["k1"]

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    found = [os.getpid(), cache[environ["PATH_INFO"][1:]]["note"], cache.generation]
    return [json.dumps(found).encode()]
"""

OPTIONS = {
    "as it is": (),
    "threads": ("--enable-threads",),
    "lazy": ("--enable-threads", "--lazy-apps"),
    "hooks": ("--enable-threads", "--py-call-uwsgi-fork-hooks"),
}


def builders_of(path: Path) -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if is_builder(pid) and str(path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@contextlib.contextmanager
def killing_builders(path: Path) -> Iterator[list[int]]:
    """Every builder of a file is killed as soon as it has its lock; gives their pids."""
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.001):
            for pid in builders_of(path):
                if has_a_lock_of_its_own(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_under_uwsgi_a_killed_builder_holds_up_no_worker(path, tmp_path, db, options):
    mmcache.build(path, source(db))
    change(db, "k1")
    application = APPLICATION.format(path=str(path), db=str(db))
    with (
        killing_builders(path) as killed,
        uwsgi(tmp_path, application, "--master", "--processes", "2", *options) as ask,
    ):
        notes = (change(db, "k1", note=f"new-{i}") for i in itertools.count())
        until("a builder was killed", lambda: (next(notes), ask("k0"), killed)[2], timeout=60.0, pause=0.05)
        with inside.build_lock(path, 20.0):
            pass
        generation = ask("k1")[2]
    with uwsgi(tmp_path, application, "--master", "--processes", "2", *options) as ask:
        change(db, "k2", note="newer")
        seen: dict[int, tuple[str, int]] = {}

        def is_served_by_both() -> bool:
            pid, note, number = ask("k2")
            seen[pid] = note, number
            return len(seen) == 2 and all(note == "newer" and n > generation for note, n in seen.values())

        until("both workers serve the new file", is_served_by_both, timeout=60.0, pause=0.02)
