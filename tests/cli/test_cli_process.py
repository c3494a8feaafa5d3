"""The command as a process among others: what it imports, pipes that close, Ctrl-C, terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import mmcache
from tests.support.console import COMMAND, environment, make_empty, make_shelf, make_shop, on_terminal, run, unmeasured
from tests.support.observe import beside
from tests.support.waits import until


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    path = tmp_path_factory.mktemp("shelf") / "items.mmc"
    make_shelf(path)
    return path


# imports -------------------------------------------------------------------------------------------------------------

HEAVY = {
    "numpy",
    "filelock",
    "sqlite3",
    "rich",
    "multiprocessing",
    "asyncio",
    "mmcache.cache",
    "mmcache.storage.publish",
}


def imported(*words: object) -> set[str]:
    code = (
        "import sys; from mmcache.cli import main; code = main(sys.argv[1:]); "
        f"print(*({HEAVY | {'msgpack', 'xxhash'}!r} & sys.modules.keys()), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, env=unmeasured(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["build", "--help"], ["doctor", "--help"]])
def test_help_imports_nothing_but_the_command_line(words):
    assert imported(*words) == set()


@pytest.mark.skipif(mmcache.implementation == "pure", reason="pure Python finds rows with numpy")
def test_get_and_find_answer_without_numpy(shelf):
    with mmcache.Snapshot.open(shelf) as snapshot:
        key, field = next(iter(snapshot)), snapshot.schema.index[0]
        term = next(iter(snapshot.terms(field)))
    assert imported("get", shelf, key) == {"msgpack", "xxhash"}
    for more in ([], ["--ids"], ["--count"], ["--limit", "2"]):
        assert imported("find", shelf, f"{field}={term}", *more) == {"msgpack", "xxhash"}


def test_status_asks_a_source_without_numpy(tmp_path):
    path = tmp_path / "shop.mmc"
    mmcache.build(path, make_shop(tmp_path / "shop.db"))
    for words in (["status"], ["status", "--json"], ["status", "--check"], ["rebuild", "--if-stale"]):
        assert imported(words[0], path, *words[1:]) == {"msgpack", "xxhash", "sqlite3"}


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["verify"]])
def test_status_and_verify_read_the_file_without_numpy(shelf, words):
    assert imported(words[0], shelf, *words[1:]) == {"msgpack", "xxhash"}


# pipes ---------------------------------------------------------------------------------------------------------------


def test_an_output_without_a_reader_is_no_error_to_speak_of(tmp_path):
    path = tmp_path / "many.mmc"
    mmcache.build(path, [{"id": f"key-{i}", "text": "x" * 100} for i in range(5000)], mmcache.Schema("many"))
    command = [*COMMAND, "find", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 141
    process.stderr.close()


def test_a_short_answer_without_a_reader_is_silent_too(shelf):
    reading, writing = os.pipe()
    os.close(reading)
    done = run("get", shelf, "a", stdout=writing)
    os.close(writing)
    assert (done.code, done.err) == (141, "")


# Ctrl-C --------------------------------------------------------------------------------------------------------------


def test_interrupted_build_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path, database = tmp_path / "f.mmc", tmp_path / "empty.db"
    mmcache.build(path, [{"id": "old"}], mmcache.Schema("c"))
    make_empty(database)
    endless = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT 'k' || i AS id FROM c"
    command = [*COMMAND, "build", str(database), "--query", endless, "--collection", "c", "-o", str(path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=unmeasured(),
    )
    try:
        before: set[str] = set()

        def is_written() -> bool:
            """A file was there the last time as well, so it was not only just made."""
            now = {name for name in os.listdir(tmp_path) if name.endswith(".tmp")}
            again = bool(before & now)
            before.update(now)
            return again

        until("it is written", is_written, pause=0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "mmcache: interrupted\n")
    assert beside(path) == ["empty.db", "f.mmc", "f.mmc.ctl", "f.mmc.lock"]
    assert list(mmcache.Snapshot.open(path)) == ["old"]


# terminals -----------------------------------------------------------------------------------------------------------

WITHOUT_RICH = "import sys; sys.modules['rich'] = None; from mmcache.cli import main; raise SystemExit(main())"


@pytest.mark.parametrize("code", [None, WITHOUT_RICH], ids=["rich", "plain"])
def test_a_person_sees_tables(shelf, code):
    if code is None:
        pytest.importorskip("rich", reason="the cli extra is not installed")
    ended, shown = on_terminal("find", shelf, "kind=book", code=code)
    assert ended == 0
    assert "red, old" in shown
    assert "2 records" in shown
    assert "{" not in shown
    ended, shown = on_terminal("inspect", shelf, code=code)
    assert ended == 0
    assert "items/index.tags" in shown


@pytest.mark.parametrize("words", [["status"], ["find"], ["inspect"]])
def test_no_color_means_no_escape_sequence(shelf, words):
    ended, shown = on_terminal(words[0], shelf, *words[1:], env={"NO_COLOR": "1"})
    assert ended == 0
    assert "\x1b" not in shown
    assert "\x1b" in on_terminal(words[0], shelf, *words[1:])[1] or words == ["find"]


def test_a_person_sees_indented_json(shelf):
    ended, shown = on_terminal("get", shelf, "a")
    assert ended == 0
    assert '\n  "kind": "book",\n' in shown


@pytest.mark.parametrize("code", [None, WITHOUT_RICH], ids=["rich", "plain"])
def test_a_long_build_shows_progress_to_a_person_and_a_short_one_does_not(tmp_path, code):
    database = tmp_path / "empty.db"
    make_empty(database)
    slow = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {}) SELECT 'k' || i AS id FROM c"
    for n, expected in ((400_000, True), (10, False)):
        words = ["build", database, "--query", slow.format(n), "--collection", "numbers", "-o", tmp_path / "n.mmc"]
        is_shown, begun = not expected, 0.0
        for _ in range(10):  # on a busy machine a short one may take long
            begun = time.monotonic()
            ended, shown = on_terminal(*words, code=code)
            assert ended == 0
            is_shown = "numbers" in shown.rpartition("n.mmc: ")[0]
            if is_shown is expected:
                break
        assert is_shown is expected or (is_shown and time.monotonic() - begun > 3)
    assert len(mmcache.Snapshot.open(tmp_path / "n.mmc")) == 10


def test_clear_asks_a_person_and_takes_only_yes_for_yes(tmp_path):
    path = tmp_path / "f.mmc"
    mmcache.build(path, [{"id": "a"}], mmcache.Schema("c"))
    for answer, code, there in (("n\n", 1, True), ("\n", 1, True), ("y\n", 0, False)):
        ended, shown = on_terminal("clear", path, answer=answer)
        assert (ended, path.exists()) == (code, there), shown
        assert "Remove? [y/N]" in shown


def test_clear_without_a_terminal_needs_yes(tmp_path):
    path = tmp_path / "f.mmc"
    mmcache.build(path, [{"id": "a"}], mmcache.Schema("c"))
    done = run("clear", path)
    assert (done.code, done.out, path.exists()) == (2, "", True)
    assert "--yes" in done.err
