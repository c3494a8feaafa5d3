"""What goes wrong: one line on stderr that names the next step, nothing on stdout, the right exit code."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys

import pytest

import mmcache
from mmcache.cli import main
from tests.support import inside
from tests.support.console import make_shelf, run
from tests.support.observe import beside


@pytest.fixture
def shelf(tmp_path):
    make_shelf(tmp_path / "items.mmc")
    return tmp_path / "items.mmc"


@pytest.fixture
def corrupt(shelf):
    damage(shelf, "0/records")
    return shelf


def damage(path, section: str) -> None:
    """Flip a bit in the middle of a section, in a new file under the same name."""
    with mmcache.Snapshot.open(path) as snapshot:
        found = snapshot.layout.sections[section]
    data = bytearray(path.read_bytes())
    data[found.offset + found.length // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.fixture
def incompatible(shelf):
    data = bytearray(shelf.read_bytes())
    data[8] = 9
    shelf.unlink()
    shelf.write_bytes(data)
    return shelf


def fails(capsys, code: int, *words: object) -> str:
    """Stderr of a command in this process that ends with this code and prints no data."""
    assert main(list(map(str, words))) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


READERS = [("status",), ("verify",), ("verify", "--deep"), ("inspect",), ("get", "a"), ("find",), ("rebuild",)]


@pytest.mark.parametrize("command", READERS)
def test_missing_file_is_3(tmp_path, capsys, command):
    path = tmp_path / "none.mmc"
    err = fails(capsys, 3, command[0], path, *command[1:])
    assert err == f"mmcache {command[0]}: {path}: there is no such file. Next: mmcache build SOURCE -o {path}\n"
    assert not list(tmp_path.iterdir())


def test_exit_codes_are_those_of_the_process(tmp_path, corrupt):
    assert run("status", tmp_path / "none.mmc").code == 3
    assert run("verify", corrupt).code == 5
    assert run("get", corrupt).code == 2
    assert run("get", corrupt, "nope").code == 5  # who knows what stood there


def test_damage_is_5_and_says_where(corrupt, capsys):
    err = fails(capsys, 5, "verify", corrupt)
    reason = "section '0/records': checksum does not match: expected [0-9a-f]{16}, found [0-9a-f]{16}"
    path = re.escape(str(corrupt))
    assert re.fullmatch(rf"mmcache verify: {path}: {reason}\. Next: mmcache rebuild {path}\n", err)


def test_a_damaged_record_is_5_and_the_others_are_printed(corrupt, capsys):
    codes = {}
    for key in "acd":
        codes[key] = main(["get", str(corrupt), key])
        out, err = capsys.readouterr()
        assert bool(out) is (codes[key] == 0)
        assert ("mmcache rebuild" in err) is (codes[key] == 5)
    assert sorted(codes.values()) == [0, 0, 5]


def test_a_damaged_header_is_5(shelf, capsys):
    data = bytearray(shelf.read_bytes())
    data[100] ^= 1
    shelf.unlink()
    shelf.write_bytes(data)
    for command in READERS[:-1]:
        assert "section 'header': checksum does not match" in fails(capsys, 5, command[0], shelf, *command[1:])


def test_a_damaged_index_is_shown_where_it_is(shelf, capsys):
    damage(shelf, "0/index.1")
    assert main(["inspect", str(shelf), "--json"]) == 5
    out, err = capsys.readouterr()
    indexes = json.loads(out)["collections"]["items"]["indexes"]
    assert "error" in indexes["tags"]
    assert err.startswith(f"mmcache inspect: {shelf}: ")


@pytest.mark.parametrize("command", READERS[:-1])
def test_a_file_of_another_format_is_1_and_says_which(incompatible, capsys, command):
    err = fails(capsys, 1, command[0], incompatible, *command[1:])
    assert re.search(r"format 9\.\d+\.0, and this version reads 2\.x", err)


def test_the_verdict_on_an_unusable_file_is_data_too(tmp_path, corrupt, capsys):
    assert main(["status", str(tmp_path / "none.mmc"), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["state"] == "missing"
    assert main(["verify", str(corrupt), "--json"]) == 5
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["ok"], verdict["state"], verdict["section"]) == (False, "corrupt", "0/records")
    assert verdict["kind"] == "checksum"
    assert verdict["expected"] != verdict["found"]
    corrupt.write_bytes(corrupt.read_bytes()[:-1])
    assert main(["verify", str(corrupt), "--json"]) == 5
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["kind"], verdict["expected"]) == ("structure", None)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_what_is_not_a_file_is_refused_at_once(tmp_path, capsys, make):
    path = tmp_path / "odd.mmc"
    make(path)
    for command in (*READERS, ("clear", "-y")):
        fails(capsys, 1, command[0], path, *command[1:])
    assert [entry.name for entry in tmp_path.iterdir() if not entry.name.endswith(".lock")] == ["odd.mmc"]


def test_a_held_lock_is_75_and_says_who_holds_it(shelf, capsys):
    with inside.build_lock(shelf, 0):
        source = shelf.parent / "in.jsonl"
        source.write_text('{"id": "x"}\n')
        for words in (["build", source, "-o", shelf], ["clear", shelf, "--yes"]):
            err = fails(capsys, 75, *words, "--timeout", "0")
            assert f"pid {os.getpid()}" in err
            assert "--timeout" in err
    assert len(mmcache.Snapshot.open(shelf)) == 5


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["find", "FILE", "colour=red"], "'colour' is not indexed in 'items'; indexed fields: kind, tags, year"),
        (["find", "FILE", "red"], "expected FIELD=VALUE, found 'red'"),
        (["find", "FILE", "year:=[1]"], "must be a text, a number, true, false or null"),
        (["find", "FILE", "year:=x"], "is not JSON"),
        (["find", "FILE", "--limit", "-1"], "expected a whole number"),
        (["find", "FILE", "--ids", "--count"], "not allowed with"),
        (["get", "FILE"], "the following arguments are required: ID"),
        (["get", "FILE", "a", "--collection", "no"], "no collection 'no'; there are: items"),
        (["get", "FILE", "a", "--verify", "some"], "expected one of auto, full, lazy"),
        (["inspect", "FILE", "--section", "no"], "no section 'no'; there are: meta"),
        (["clear", "FILE"], "say --yes, or --dry-run"),
        (["rebuild", "FILE", "--timeout", "soon"], "expected seconds"),
        (["rebuild", "FILE", "--ttl", "5"], "they go with --if-stale"),
        (["status", "FILE", "--ttl", "0"], "expected seconds above 0"),
        (["status", "FILE", "--profile", "test"], "expected one of development, staging, production"),
        (["status", "FILE", "--min-hit-rate", "90"], "expected a share from 0 to 1"),
        (["status", "FILE", "--max-load-ms", "nan"], "expected milliseconds"),
        (["status", "FILE", "--check", "--watch"], "not allowed with"),
        (["status", "--watch", "FILE"], "write --watch after FILE"),
        (["invalidate", "FILE", "a", "--hard"], "--hard and --soft are for everything"),
        (["invalidate", "FILE", "--soft", "--hard"], "not allowed with"),
        (["invalidate", "FILE", "--reason", "whim"], "expected one of manual, record_stored"),
        (["invalidate", "FILE", "a", "--collection", "no"], "no collection 'no'; there are: items"),
        (["invalidate", "FILE", "--ids-from", "/none"], "--ids-from /none: cannot be read (No such file"),
        (["status"], "the following arguments are required: FILE"),
        (["frobnicate"], "invalid choice"),
        (["--nonsense"], "unrecognized arguments"),
        (["build", "DB", "-o", "NEW", "--key", "sku", "--table", "a", "--query", "SELECT 1"], "--table or --query"),
        (["build", "DB", "-o", "NEW"], "say which table, with --table; DB has: items, other"),
        (["build", "DB", "-o", "DB", "--table", "items"], "is there and is not an mmcache file"),
        (["build", "DB", "-o", "NEW", "--table", "items", "--dim", "3"], "dim=3 without an embedding field"),
        (["build", "DB", "-o", "NEW", "--preset", "patterns", "--key", "sku"], "leave out --key"),
        (["build", "DB", "-o", "NEW", "--metadata", "owner"], "expected KEY=VALUE"),
        (["build", "DB", "-o", "NEW", "--metadata", "n:=x"], "is not JSON"),
        (["build", "DB", "-o", "NEW", "--index", "a,,b"], "expected names separated by commas"),
        (["build", "x.jsonl", "-o", "NEW", "--table", "t"], "--table is for databases"),
        (["build", "DB"], "the following arguments are required: -o/--output"),
    ],
)
def test_wrong_arguments_are_2_and_change_nothing(shelf, capsys, monkeypatch, words, reason):
    database = shelf.parent / "shop.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE items (sku TEXT PRIMARY KEY)")
        connection.execute("CREATE TABLE other (sku TEXT PRIMARY KEY)")
    connection.close()
    monkeypatch.setattr("sys.stdin", None)
    places = {"FILE": shelf, "DB": database, "NEW": shelf.parent / "new.mmc", "HERE": shelf.parent}
    before = sorted(os.listdir(shelf.parent))
    err = fails(capsys, 2, *(places.get(word, word) for word in words))
    assert reason.replace("DB", str(database)) in err
    assert sorted(os.listdir(shelf.parent)) == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"name": "x"}', "line 1: no field 'id'"),
        ('{"id": "x"}\n{"id": "x"}', "the key stands twice"),
        ('{"id": 5.5}', "the key 'id': a key cannot be 5.5"),
        ('{"id"', "line 1 is not JSON"),
    ],
)
def test_records_that_cannot_be_built_are_1_and_leave_the_old_file(tmp_path, capsys, line, reason):
    source, path = tmp_path / "in.jsonl", tmp_path / "f.mmc"
    source.write_text(line)
    mmcache.build(path, [{"id": "old"}], mmcache.Schema("in"))
    assert reason in fails(capsys, 1, "build", source, "-o", path)
    assert list(mmcache.Snapshot.open(path)) == ["old"]
    assert beside(path) == ["f.mmc", "f.mmc.ctl", "f.mmc.lock", "in.jsonl"]


def test_a_missing_source_is_1(tmp_path, capsys):
    for source in ("none.db", "none.jsonl"):
        err = fails(capsys, 1, "build", tmp_path / source, "-o", tmp_path / "f.mmc")
        assert "check the path" in err


def test_a_file_that_names_no_source_cannot_be_rebuilt(shelf, capsys):
    assert "its source cannot be named" in fails(capsys, 1, "rebuild", shelf)
    assert "its source cannot be named" in fails(capsys, 1, "rebuild", shelf, "--source", "elsewhere.db")
    assert "its source cannot be named" in fails(capsys, 1, "rebuild", shelf, "--if-stale", "--ttl", "0.001")


def test_a_source_in_the_place_of_a_cache_file_is_one_to_build_from(tmp_path, capsys):
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": 1}\n')
    assert f"Next: mmcache build {path} -o FILE" in fails(capsys, 5, "inspect", path)


def test_clear_touches_only_what_mmcache_wrote(tmp_path, capsys):
    path = tmp_path / "precious.db"
    path.write_text("not a cache")
    assert "is not an mmcache file" in fails(capsys, 1, "clear", path, "--yes")
    mmcache.build(tmp_path / "f.mmc", [{"id": "a"}], mmcache.Schema("c"))
    (tmp_path / "f.mmc.bak").write_text("a backup of something else")
    assert "f.mmc.bak: is not an mmcache file" in fails(capsys, 1, "clear", tmp_path / "f.mmc", "--yes")
    assert {"precious.db", "f.mmc", "f.mmc.bak"} <= set(os.listdir(tmp_path))


def test_a_traceback_only_with_verbose(tmp_path):
    plain, verbose = run("status", tmp_path / "none"), run("status", tmp_path / "none", "-v")
    assert plain.err.count("\n") == 1
    assert "Traceback" in verbose.err
    assert verbose.err.endswith(plain.err)


def test_an_error_is_one_line_whatever_is_in_the_name(tmp_path):
    done = run("status", tmp_path / "two\nlines\x1b[31m")
    assert done.err.count("\n") == 1
    assert "\x1b" not in done.err
    assert done.code == 3


def test_an_id_that_is_no_text_is_missing(shelf):
    done = run("get", shelf, os.fsdecode(b"\xff"))
    assert (done.code, done.out) == (1, "")
    assert "no '\\udcff' in collection" in done.err


def test_output_that_cannot_be_written_is_1(shelf):
    with open("/dev/full", "w") as full:
        done = run("get", shelf, "a", stdout=full)
    assert (done.code, done.err) == (1, "mmcache: cannot write the output: No space left on device\n")


def test_closed_standard_streams_do_no_harm(shelf):
    command = f'"$0" -m mmcache verify {shelf} >&- 2>&- <&-'
    done = subprocess.run(["sh", "-c", command, sys.executable], timeout=60, check=False)
    assert done.returncode == 0
    assert len(mmcache.Snapshot.open(shelf)) == 5
