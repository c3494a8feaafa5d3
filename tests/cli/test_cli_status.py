"""`mmcache status`: what it says of freshness, builders and workers; its rules and exit codes; --watch."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys

import pytest

import mmcache
from mmcache import native
from mmcache.cli import main
from mmcache.sharing import metrics
from mmcache.sharing.counters import record_event
from tests.support.console import COMMAND, endless_build, environment, make_shelf, make_shop, ok, run, worker, write
from tests.support.waits import until


@pytest.fixture
def database(tmp_path):
    return tmp_path / "shop.db"


@pytest.fixture
def shop(tmp_path, database):
    """A file built from the database."""
    path = tmp_path / "items.mmc"
    mmcache.build(path, make_shop(database))
    return path


@pytest.fixture
def status(capsys):
    """What `mmcache status --json` says, in this process, and its exit code."""

    def ask(path, *words, code: int = 0):
        assert main(["status", str(path), "--json", *map(str, words)]) == code
        return json.loads(capsys.readouterr().out)

    return ask


def invalidate(path, *words: str) -> None:
    assert main(["-q", "invalidate", str(path), *words]) == 0


# freshness -----------------------------------------------------------------------------------------------------------


def test_it_says_in_a_sentence_how_fresh_the_file_is_and_why(shop, status, database):
    found = status(shop)
    assert (found["state"], found["dirty"]) == ("fresh", 0)
    assert found["why"].startswith("built ")
    assert status(shop, "--ttl", "0.001")["why"].endswith("expired at 0.001 seconds")
    invalidate(shop, "s1", "--reason", "record_stored")
    assert status(shop)["why"] == "1 id was invalidated since it was built, and is answered by the source"
    invalidate(shop, "s2", "--reason", "record_stored")
    found = status(shop)
    assert (found["state"], found["dirty"]) == ("stale", 2)
    assert found["why"] == "2 ids were invalidated since it was built, and are answered by the source"
    invalidate(shop, "--reason", "ttl_expired")
    assert status(shop)["why"] == "it was invalidated softly (ttl_expired)"
    invalidate(shop, "--reason", "schema_migration")
    found = status(shop)
    assert (found["state"], found["why"]) == ("invalidated", "everything was invalidated (schema_migration)")
    main(["-q", "rebuild", str(shop)])
    found = status(shop)
    assert (found["state"], found["revalidated"]) == ("fresh", True)
    write(database, "UPDATE items SET price = 7")
    assert status(shop)["why"] == "the source was written to since it was built"


def test_it_says_which_implementation_runs_and_why(shop, status):
    found = status(shop)["implementation"]
    assert found == {"mmcache": mmcache.implementation, "reason": native.reason or None, "msgpack": "compiled"}
    pure = {"MMCACHE_PURE": "1", "MSGPACK_PUREPYTHON": "1"}
    assert run("status", shop, "--json", env=pure).json["implementation"] == {
        "mmcache": "pure",
        "reason": "MMCACHE_PURE is set",
        "msgpack": "pure",
    }
    assert "pure Python (MMCACHE_PURE is set); of msgpack: pure Python" in ok("status", shop, env=pure).out


def test_a_source_that_cannot_be_asked_is_a_sentence_and_no_failure(shop, status, database):
    database.unlink()
    found = status(shop)
    assert found["state"] == "fresh"
    assert found["source_error"] == "cannot look at the database: No such file or directory"
    assert f"sqlite {database}, which cannot be asked now: cannot look at the database" in ok("status", shop).out


def test_a_source_of_an_unknown_kind_is_a_sentence_too(tmp_path, status):
    class Odd(mmcache.IterableSource):
        def spec(self):
            return {"kind": "odd", "path": "x"}

    mmcache.build(tmp_path / "f.mmc", Odd([{"id": "a"}], mmcache.Schema("c")))
    assert "unknown kind of source 'odd'" in status(tmp_path / "f.mmc")["source_error"]


def test_it_changes_nothing(tmp_path, shop, status):
    before = sorted(os.listdir(tmp_path))
    (tmp_path / "items.mmc.ctl").unlink()
    found = status(shop)
    assert not found["control"]["shared"]
    assert found["control"]["problem"].startswith("there is no control page")
    assert sorted(os.listdir(tmp_path)) == [name for name in before if name != "items.mmc.ctl"]


def test_damage_behind_the_header_is_told_and_the_workers_too(shop, status, database):
    with worker(shop, database, "web"):
        data = bytearray(shop.read_bytes())
        data[300] ^= 1  # in the section table
        shop.unlink()
        shop.write_bytes(data)
        found = status(shop, code=5)
        assert found["state"] == "corrupt"
        assert "generation" not in found
        assert [worker["label"] for worker in found["fleet"]["workers"]] == ["web"]
        checked = status(shop, "--check", "--max-load-ms", "60000", code=5)
        assert [alert["rule"] for alert in checked["broken"]] == ["file"]


# builders ------------------------------------------------------------------------------------------------------------


def test_it_names_the_builder_and_does_not_wait_for_it(tmp_path, status):
    path, empty = tmp_path / "f.mmc", tmp_path / "empty.db"
    make_shelf(path)
    assert (status(path)["building"], status(path)["builder"]) == (False, None)
    with endless_build(empty, path) as builder:
        until("there is a builder", lambda: status(path)["builder"])
        found = status(path)
        assert found["building"]
        assert found["builder"]["pid"] == builder.pid
        assert 0 <= found["builder"]["seconds"] < 60
        assert f"pid {builder.pid}, for " in ok("status", path).out
    assert (status(path)["building"], status(path)["builder"]) == (False, None)


def test_it_tells_of_the_last_failure_until_a_build_succeeds(shop, status, database):
    assert status(shop)["failure"] is None
    database.rename(f"{database}.away")
    for attempts in (1, 2):
        assert main(["-q", "rebuild", str(shop)]) == 1
        failure = status(shop)["failure"]
        assert failure["attempts"] == attempts
        assert f"{database}: cannot look at the database" in failure["error"]
        assert 0 <= failure["retry_seconds"] <= 60
    assert "2 failures in a row, the last " in ok("status", shop).out
    database.with_name("shop.db.away").rename(database)
    assert main(["-q", "rebuild", str(shop)]) == 0
    assert status(shop)["failure"] is None


# workers -------------------------------------------------------------------------------------------------------------


def test_it_shows_every_worker_and_what_all_of_them_counted(shop, status, database):
    with worker(shop, database, "web") as web, worker(shop, database, "jobs\x1b[31m") as jobs:
        for i in range(8):
            assert web.get(f"s{i}")["price"] == i
        assert jobs.get("nope") is None
        invalidate(shop, "s1")
        assert jobs.get("s1")["price"] == 1
        fleet = status(shop)["fleet"]
        by_label = {worker["label"]: worker for worker in fleet["workers"]}
        one, other = by_label["web"], by_label["jobs\x1b[31m"]
        assert (one["pid"], one["hits"], one["fallbacks"], one["hit_rate"]) == (web.pid, 8, {}, 1.0)
        assert (other["pid"], other["hits"], other["misses"]) == (jobs.pid, 0, 1)
        assert (other["fallbacks"], other["hit_rate"]) == ({"invalidated": 1}, 0.0)
        assert one["generation"] == 1
        assert one["load_seconds"] > 0
        assert 0 <= one["seen_seconds"] < 60
        assert (fleet["hits"], fleet["misses"], fleet["fallbacks"]) == (8, 1, {"invalidated": 1})
        assert fleet["hit_rate"] == 0.8
        assert fleet["invalidations"]["ids"] == 1
        assert fleet["rebuilds"]["ok"] == 1
        assert [event["kind"] for event in fleet["events"]] == ["rebuild"]
        text = ok("status", shop).out
        assert "2 workers" in text
        assert "jobs\\x1b[31m" in text
        assert "hit rate       80.00% (8 from the file, 1 missed)" in text
        assert "fallbacks      1: 1 invalidated" in text
    fleet = status(shop)["fleet"]
    assert (fleet["workers"], fleet["hits"]) == ([], 8)
    assert "no worker has it open" in ok("status", shop).out


def test_every_kind_of_event_has_a_sentence(shop, status, capsys):
    sentences = {
        "rebuild": "generation 7 was published",
        "unchanged": "a rebuild found generation 7 still right",
        "rebuild_failed": "a rebuild failed",
        "corruption": "damage was met",
        "invalidation": "7 ids invalidated",
        "refusal": "a file was refused",
    }
    assert sentences.keys() == set(metrics.EVENTS)
    for kind, sentence in sentences.items():
        record_event(str(shop), kind, 7)
        assert main(["status", str(shop)]) == 0
        assert capsys.readouterr().out.endswith(f" ago: {sentence}\n")
    assert [event["kind"] for event in status(shop)["fleet"]["events"]] == ["rebuild", *sentences]


# --check -------------------------------------------------------------------------------------------------------------


def test_check_ends_with_0_for_what_answers_even_if_it_is_due(shop, status):
    assert status(shop, "--check")["broken"] == []
    invalidate(shop, "s1")
    invalidate(shop, "--soft")
    found = status(shop, "--check")
    assert (found["state"], found["broken"]) == ("stale", [])
    assert ok("status", shop, "--check").out == f"{shop}: ok, stale: it was invalidated softly (manual)\n"


def test_check_ends_with_4_for_what_may_not_answer(shop, status):
    found = status(shop, "--check", "--ttl", "0.001", code=4)
    assert [alert["rule"] for alert in found["broken"]] == ["state"]
    invalidate(shop, "--hard")
    done = run("status", shop, "--check")
    text = "state: the file is invalidated: everything was invalidated (manual)"
    assert (done.code, done.out, done.err) == (4, f"{shop}: {text}\n", "")


def test_check_ends_with_3_and_5_and_1_for_files_that_cannot_be_used(tmp_path, shop):
    done = run("status", tmp_path / "none.mmc", "--check")
    assert (done.code, done.out.count("file: the file is missing")) == (3, 1)
    assert "mmcache build" in done.err
    for place, code, state in ((100, 5, "corrupt"), (8, 1, "incompatible")):
        data = bytearray(shop.read_bytes())
        data[place] ^= 8
        broken = tmp_path / f"{place}.mmc"
        broken.write_bytes(data)
        done = run("status", broken, "--check")
        assert (done.code, done.out.count(f"file: the file is {state}")) == (code, 1), done


def test_check_names_each_rule_that_the_workers_break(shop, status, database):
    with worker(shop, database) as one:
        assert status(shop, "--check", "--max-load-ms", "10000")["broken"] == []
        invalidate(shop, "--hard")
        one.get("s1")
        main(["-q", "rebuild", str(shop)])
        rules = ["--max-load-ms", "0", "--max-rebuilds", "0"]
        broken = status(shop, "--check", *rules, code=4)["broken"]
        assert [alert["rule"] for alert in broken] == ["hit_rate", "load", "rebuilds"]
        assert broken[0]["text"] == "hit rate 0.0% in the last 600 s, expected at least 90.0%"
        assert (broken[0]["value"], broken[0]["limit"]) == (0.0, 0.9)
        relaxed = ["--max-load-ms", "10000", "--min-hit-rate", "0"]
        assert status(shop, "--check", *relaxed)["broken"] == []


def test_check_counts_damage_that_workers_met(shop, status, database):
    with mmcache.Snapshot.open(shop) as snapshot:
        place = snapshot.layout.sections["0/records"].offset + 3
    data = bytearray(shop.read_bytes())
    data[place] ^= 1
    shop.with_name("damaged").write_bytes(data)
    shop.with_name("damaged").replace(shop)
    with worker(shop, database) as one:
        assert [one.get(f"s{i}")["price"] for i in range(10)] == list(range(10))
        relaxed = ["--min-hit-rate", "0", "--max-load-ms", "10000"]
        found = status(shop, "--check", "--max-corruptions", "0", *relaxed, code=4)
        assert [alert["rule"] for alert in found["broken"]] == ["corruptions"]
        assert found["fleet"]["corruptions"] > 0


def test_rules_are_settings(shop, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.mmcache]\nmax_rebuilds = 0\nttl = 'inf'\n")
    done = run("status", shop, "--check", cwd=tmp_path)
    assert (done.code, done.out) == (4, f"{shop}: rebuilds: 1 rebuilds in the last hour, expected at most 0\n")
    assert run("status", shop, "--check", cwd=tmp_path, env={"MMCACHE_MAX_REBUILDS": "5"}).code == 0
    assert run("status", shop, "--check", "--max-rebuilds", "3", cwd=tmp_path).code == 0
    done = run("status", shop, "--check", env={"MMCACHE_MIN_HIT_RATE": "ninety"})
    assert (done.code, "MMCACHE_MIN_HIT_RATE: expected a share" in done.err) == (2, True)


# --watch -------------------------------------------------------------------------------------------------------------


def watch(path, *words: str):
    command = [*COMMAND, "status", str(path), "--watch", "0.05", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def test_watch_prints_a_json_line_for_each_look_until_interrupted(shop, database):
    with watch(shop, "--json") as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["state"] == "fresh"
        with worker(shop, database, "late"):
            labels: list[str] = []  # of what builds, too, for a moment
            while "late" not in labels:
                labels = [each["label"] for each in json.loads(watching.stdout.readline())["fleet"]["workers"]]
        os.remove(shop)
        while json.loads(watching.stdout.readline())["state"] != "missing":
            pass
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=30)
    assert (watching.returncode, err) == (130, "mmcache: interrupted\n")


def test_watch_without_a_terminal_prints_a_block_for_each_look(shop):
    with watch(shop) as watching:
        assert watching.stdout is not None
        blocks = 0
        while blocks < 3:
            blocks += watching.stdout.readline() == f"{shop}\n"
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=30)
    assert (watching.returncode, err) == (130, "mmcache: interrupted\n")
    assert "\x1b" not in out


def test_watch_ends_in_silence_when_its_reader_ends(shop):
    with watch(shop) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        watching.stdout.readline()
        watching.stdout.close()
        assert watching.stderr.read() == ""
        assert watching.wait(30) == 141


WITHOUT_RICH = "import sys; sys.modules['rich'] = None; sys.modules['rich.live'] = None; "
MAIN = "from mmcache.cli import main; raise SystemExit(main())"


@pytest.mark.parametrize("style", ["rich", "plain"])
def test_watch_ends_when_its_terminal_is_gone_and_holds_nothing_open_meanwhile(shop, style):
    ours, theirs = pty.openpty()
    code = MAIN if style == "rich" else WITHOUT_RICH + MAIN
    command = [sys.executable, "-c", code, "status", str(shop), "--watch", "0.05"]
    terminal = environment({"TERM": "xterm-256color"})
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=terminal) as watching:
        os.close(theirs)
        looks = 0
        while looks < 20 and select.select([ours], [], [], 30)[0]:
            looks += os.read(ours, 65_536).count(b"control page")
        directory = f"/proc/{watching.pid}/fd"
        held = [os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory)] if os.path.isdir(directory) else []
        assert sum("shop.db" in name for name in held) <= 1
        os.close(ours)
        try:
            assert watching.wait(30) == 1
        finally:
            watching.kill()


@pytest.mark.parametrize("style", ["rich", "plain", "no colour"])
def test_watch_on_a_terminal_draws_over_what_it_drew(shop, style):
    if style == "rich":
        pytest.importorskip("rich", reason="the cli extra is not installed")
    ours, theirs = pty.openpty()
    code = MAIN if style == "rich" else WITHOUT_RICH + MAIN
    terminal = {"TERM": "xterm-256color", "COLUMNS": "120", **({"NO_COLOR": "1"} if style == "no colour" else {})}
    command = [sys.executable, "-c", code, "status", str(shop), "--watch", "0.05"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(terminal)) as watching:
        os.close(theirs)
        shown = b""
        while shown.count(b"control page") < 3 and select.select([ours], [], [], 30)[0]:
            shown += os.read(ours, 65_536)
        watching.send_signal(signal.SIGINT)
        try:
            while select.select([ours], [], [], 30)[0] and (data := os.read(ours, 65_536)):
                shown += data
        except OSError:  # Linux's way to say that the other end is closed
            pass
        os.close(ours)
        assert watching.wait(30) == 130
    text = shown.decode()
    assert "fresh: built " in text
    assert "10 records" not in text  # only what may change
    assert "mmcache: interrupted" in text
    assert ("\x1b" in text) is (style != "no colour")
    if style == "rich":
        assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is put back
    if style == "plain":
        assert text.count("\x1b[H\x1b[2J") >= 3
