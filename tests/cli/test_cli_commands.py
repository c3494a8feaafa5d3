"""What each command does when all is well: its data on stdout, nothing on stderr, exit code 0."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import sqlite3
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import mmcache
from examples.demo.bank import write_bank
from mmcache import Schema, Snapshot, SQLiteSource
from mmcache.cli import main
from mmcache.cli.main import COMMANDS
from mmcache.cli.options import FILE_COMPLETION
from tests.support.console import ROOT, environment, make_shelf, ok, run, run_here
from tests.support.observe import beside


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shelf")
    make_shelf(directory / "items.mmc")
    return directory / "items.mmc"


def call(capsys, *words: object) -> str:
    """Stdout of a command in this process."""
    assert main(list(map(str, words))) == 0
    return capsys.readouterr().out


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


# get -----------------------------------------------------------------------------------------------------------------


def test_get_prints_one_document_a_line_in_the_order_asked(shelf):
    printed = ok("get", shelf, "d", "a").lines
    assert [record["id"] for record in printed] == ["d", "a"]
    assert printed[1] == {
        "id": "a",
        "kind": "book",
        "tags": ["red", "old"],
        "year": 5,
        "blob": {"$base64": True, "encoded": "AP8="},
        "note": "naïve 日本",
    }


def test_get_prints_what_json_cannot_carry_in_a_form_of_its_own(shelf):
    record = ok("get", shelf, "b").json
    assert record["ratio"] == {"$float": "nan"}
    assert record["map"] == {"$map": [[1, "one"], ["1", "text"]]}


def test_get_as_json_is_one_list_with_null_for_what_is_missing(shelf):
    printed = run("get", shelf, "a", "nope", "d", "--json")
    assert [record and record["id"] for record in printed.json] == ["a", None, "d"]
    assert printed.code == 1
    assert printed.err == f"mmcache get: {shelf}: no 'nope' in collection 'items'\n"


def test_get_with_embedding_gives_numbers_that_round_trip(shelf):
    a, c = ok("get", shelf, "a", "c", "--embedding").lines
    assert a["vector"] == [0.1, 0.2, 0.3, 0.4]
    assert np.array_equal(np.float32(a["vector"]), mmcache.Snapshot.open(shelf).embeddings[0])
    assert c["vector"] is None


def test_output_cannot_command_a_terminal(shelf):
    printed = ok("get", shelf, "c")
    assert "\x1b" not in printed.out
    assert "\x9b" not in printed.out
    assert printed.json["note"] == "\x1b[31mred\x9b"


def test_output_in_ascii_is_the_same_json(shelf):
    printed = ok("get", shelf, "a", env={"PYTHONIOENCODING": "ascii"})
    assert printed.out.isascii()
    assert printed.json["note"] == "naïve 日本"


# find ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "ids"),
    [
        ([], "abcdw"),
        (["kind=book"], "ab"),
        (["kind=book", "tags=red"], "a"),
        (["tags=old", "tags=new"], "ad"),
        (["year=5"], "b"),  # the text is there, so it is the text
        (["year:=5"], "a"),
        (['year:="5"'], "b"),
        (["year=2024"], "d"),  # there is no such text, but such an int
        (["year=-7"], "w"),
        (["year=null"], "c"),
        (["kind=null"], "c"),
        (["kind:=null"], "d"),
        (["tags=true"], "d"),
        (["kind=card=a:b"], "w"),
        (["kind=nothing"], ""),
        (["year=99999999999999999999"], ""),
        (["year:5..2024"], "ad"),
        (["year:5.."], "ad"),
        (["year:..5"], "aw"),
        (["year:>5"], "d"),
        (["year:>=5"], "ad"),
        (["year:<5"], "w"),
        (["year:<=4.5"], "w"),
        (['year:"5".."6"'], "b"),
        (["year:5.."] * 2, "ad"),
        (["kind:b*"], "ab"),
        (["kind:a..book"], "ab"),
        (["kind:card..", "year!=null"], "w"),
        (["kind!=book"], "cdw"),
        (["kind!=book", "kind!=null"], "dw"),
        (["year:5..", "tags!=old"], "d"),
        (["--order-by", "year", "--desc", "--limit", "3"], "bda"),
        (["--order-by", "year", "--limit", "2", "kind=book"], "ab"),
    ],
)
def test_find_prints_what_has_these_terms(shelf, capsys, terms, ids):
    found = lines(call(capsys, "find", shelf, *terms))
    assert "".join(record["id"][0] for record in found) == ids


def test_find_can_print_ids_or_a_count_or_a_list(shelf, capsys):
    assert call(capsys, "find", shelf, "kind=book", "--ids") == "a\nb\n"
    assert json.loads(call(capsys, "find", shelf, "--ids", "--json"))[-1] == "with space\nand line"
    assert call(capsys, "find", shelf, "kind=book", "--count") == "2\n"
    assert len(json.loads(call(capsys, "find", shelf, "--json"))) == 5
    assert json.loads(call(capsys, "find", shelf, "kind=nothing", "--json")) == []


def test_find_says_on_stderr_when_it_prints_fewer_than_there_are(shelf):
    printed = run("find", shelf, "--limit", "2")
    assert (printed.code, len(printed.lines), printed.err) == (0, 2, "5 records (2 shown)\n")


# status, verify, inspect ---------------------------------------------------------------------------------------------


def test_status_says_what_the_file_is(shelf):
    status = ok("status", shelf, "--json").json
    with mmcache.Snapshot.open(shelf) as snapshot:
        assert status["build_id"] == snapshot.header.build_id.hex()
        assert status["size"] == shelf.stat().st_size == snapshot.header.file_size
    assert (status["state"], status["generation"], status["backup"]) == ("fresh", 1, None)
    assert status["metadata"] == {"owner": "tests"}
    assert 0 <= status["age_seconds"] < 600
    assert status["collections"]["items"] == {
        "records": 5,
        "key": "id",
        "index": {"kind": 4, "tags": 5, "year": 5},
        "embedding": "vector",
        "dim": 4,
        "metric": "cosine",
        "without_embedding": 1,
        "cluster_by": None,
        "shapes": 4,
        "left_out": {"invalid": 0, "duplicates": 0, "rows": []},
    }


def test_status_for_people_has_the_same(shelf):
    text = ok("status", shelf).out
    assert re.search(r"^ *state +fresh: built ", text, re.MULTILINE)
    assert re.search(r"^ *generation +1$", text, re.MULTILINE)
    assert "items: 5 records" in text
    assert "vector: 4 x float32, cosine, 1 record without" in text
    assert "none: built from records in memory" in text


def test_status_tells_of_a_backup(tmp_path, capsys):
    path = tmp_path / "f.mmc"
    for n in (1, 2):
        mmcache.build(path, [{"id": str(i)} for i in range(n)], mmcache.Schema("c"))
    backup = json.loads(call(capsys, "status", path, "--json"))["backup"]
    assert (backup["state"], backup["generation"]) == ("ok", 1)


@pytest.mark.parametrize("deep", [(), ("--deep",)])
def test_verify_says_what_it_checked(shelf, capsys, deep):
    found = json.loads(call(capsys, "verify", shelf, "--json", *deep))
    assert (found["ok"], found["deep"], found["records"]) == (True, bool(deep), {"items": 5})
    assert ": ok, every byte" in call(capsys, "verify", shelf, *deep)


def test_inspect_lists_sections_shapes_and_indexes(shelf, capsys):
    found = json.loads(call(capsys, "inspect", shelf, "--json"))
    with mmcache.Snapshot.open(shelf) as snapshot:
        assert [section["name"] for section in found["sections"]] == list(snapshot.layout.sections)
    items = found["collections"]["items"]
    assert items["shapes"][0] == ["id", "kind", "tags", "year", "blob", "note"]
    assert items["indexes"]["tags"]["top"][0] == {"value": "red", "records": 2}
    assert items["indexes"]["year"]["values"] == 5
    text = call(capsys, "inspect", shelf)
    assert "items/index.tags" in text
    assert "red (2)" in text


def test_every_section_has_a_summary(shelf, capsys):
    with mmcache.Snapshot.open(shelf) as snapshot:
        names = list(snapshot.layout.sections)
    every = [json.loads(call(capsys, "inspect", shelf, "--section", name)) for name in names]
    assert [one["name"] for one in every] == names
    summaries = {one["of"] or one["name"]: one for one in every}
    for name, one in summaries.items():
        assert json.loads(call(capsys, "inspect", shelf, "--section", name)) == one
    assert summaries["items/rows"]["records"] == 5
    assert summaries["items/presence.vector"]["with_embedding"] == 4
    assert summaries["items/index.year"]["types"] == {"int": 3, "str": 1, "NoneType": 1}
    assert summaries["items/embeddings.vector"]["norms"]["max"] == 1
    assert summaries["items/index.year"]["first"] == [None, -7, 5, 2024, "5"]
    assert summaries["items/index.year"]["last"] == [None, -7, 5, 2024, "5"]
    assert summaries["chunks"]["digests"] == len(names) - 1
    assert summaries["meta"]["metadata"] == {"owner": "tests"}
    assert summaries["items/records"]["first_ids"][:2] == ["a", "b"]


# build, rebuild ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path):
    database = tmp_path / "shop.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE items (sku TEXT PRIMARY KEY, kind TEXT, tags TEXT, price INT, vector BLOB)")
        connection.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
            [(f"s{i}", "ab"[i % 2], json.dumps([f"t{i % 3}"]), i, np.arange(i, i + 3, dtype="f8")) for i in range(6)],
        )
    connection.close()
    return database


def test_build_takes_the_only_table_and_says_what_it_made(shop, tmp_path):
    target = tmp_path / "items.mmc"
    done = ok(
        "build", shop, "--key", "sku", "--index", "kind", "--index", "tags", "--json-columns", "tags", "-o", target
    )
    assert done.out.startswith(f"{target}: generation 1 (items: 6 records, ")
    with mmcache.Snapshot.open(target) as snapshot:
        assert snapshot.where(tags="t1", kind="b").ids == ["s1"]
        assert snapshot.schema.json == ("tags",)


def test_build_with_every_option(shop, tmp_path, capsys):
    target = tmp_path / "cheap.mmc"
    words = [
        *("build", shop, "--query", "SELECT * FROM items WHERE price < 5", "--collection", "cheap", "--key", "sku"),
        *("--columns", "kind,price", "--index", "kind", "--embedding", "vector", "--dim", 3, "--dtype", "f8"),
        *("--metric", "dot", "--allow-nan", "--cluster-by", "kind", "--metadata", "owner=me", "--metadata", "n:=3"),
        *("--timeout", 5, "-o", target, "--json"),
    ]
    report = json.loads(call(capsys, *words))
    assert (report["records"], report["changed"], report["generation"]) == ({"cheap": 5}, True, 1)
    with mmcache.Snapshot.open(target) as snapshot:
        assert list(snapshot) == ["s0", "s2", "s4", "s1", "s3"]
        assert snapshot["s3"] == {"sku": "s3", "kind": "b", "price": 3}
        assert snapshot["s3"].embedding is not None
        assert snapshot.embeddings[4].tolist() == [3, 4, 5]
        assert snapshot.metadata == {"owner": "me", "n": 3}
        assert (snapshot.schema.metric, snapshot.schema.allow_nan) == ("dot", True)


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson.gz"])
def test_build_from_json_lines(tmp_path, capsys, suffix):
    source = tmp_path / f"things{suffix}"
    text = "".join(json.dumps({"id": f"k{i}", "kind": i % 2, "vector": [i, 1]}) + "\n" for i in range(4)).encode()
    source.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    target = tmp_path / "things.mmc"
    call(capsys, "build", source, "--index", "kind", "--embedding", "vector", "-o", target)
    with mmcache.Snapshot.open(target) as snapshot:
        assert snapshot.where(kind=1).ids == ["k1", "k3"]
        assert snapshot.schema.name == "things"
    assert "unchanged, generation 1 stays" in call(capsys, "rebuild", target)


def test_the_preset_takes_embeddings_of_another_length(tmp_path, capsys):
    bank, target = tmp_path / "bank.db", tmp_path / "bank.mmc"
    write_bank(bank, 4, agents=2, dim=24)
    assert run_here(capsys, "build", bank, "--preset", "patterns", "-o", target)[0] == 1
    call(capsys, "build", bank, "--preset", "patterns", "--dim", "24", "-o", target)
    call(capsys, "rebuild", target)
    with Snapshot.open(target) as snapshot:
        assert snapshot.collection("patterns").embeddings.shape == (4, 24)
    for words in (("patterns", "--dim", "24,24"), ("patterns", "--dim", "0"), ("llm", "--dim", "24")):
        assert run_here(capsys, "build", bank, "--preset", *words, "-o", target)[0] == 2


def test_build_with_the_preset_makes_all_its_collections(tmp_path, capsys):
    bank = tmp_path / "bank.db"
    write_bank(bank, 20)
    target = tmp_path / "bank.mmc"
    call(capsys, "build", bank, "--preset", "patterns", "-o", target)
    assert json.loads(call(capsys, "find", target, "--count")) == 20
    agents = lines(call(capsys, "find", target, "--collection", "agent_configs", "--limit", 1))
    assert agents[0]["agent_id"] == "agent-0"


def test_rebuild_needs_only_the_file_and_keeps_what_has_not_changed(shop, tmp_path, capsys):
    target = tmp_path / "items.mmc"
    call(capsys, "build", shop, "--key", "sku", "--index", "kind", "--cluster-by", "kind", "-o", target)
    assert not json.loads(call(capsys, "optimize", target, "--json"))["changed"]
    with sqlite3.connect(shop) as connection:
        connection.execute("UPDATE items SET price = 99 WHERE sku = 's3'")
    connection.close()
    report = json.loads(call(capsys, "rebuild", target, "--json"))
    assert (report["changed"], report["generation"]) == (True, 2)
    with mmcache.Snapshot.open(target) as snapshot:
        assert snapshot["s3"]["price"] == 99
        assert snapshot.collection("items").cluster_by == "kind"


def test_rebuild_from_a_source_that_moved(shop, tmp_path, capsys):
    target = tmp_path / "items.mmc"
    call(capsys, "build", shop, "--key", "sku", "-o", target)
    shop.rename(tmp_path / "moved.db")
    assert main(["rebuild", str(target)]) == 1
    assert json.loads(call(capsys, "rebuild", target, "--source", tmp_path / "moved.db", "--json"))["generation"] == 2
    call(capsys, "rebuild", target)


def test_rebuild_mends_a_damaged_file_from_what_its_backup_says(shop, tmp_path, capsys):
    target = tmp_path / "items.mmc"
    call(capsys, "build", shop, "--key", "sku", "-o", target)
    call(capsys, "build", shop, "--key", "sku", "--index", "kind", "-o", target)
    target.unlink()
    target.write_bytes(b"\0" * 1000)
    call(capsys, "rebuild", target)
    call(capsys, "verify", target)


def test_rebuild_if_stale_does_nothing_while_the_file_is_fresh(shop, tmp_path, capsys):
    target = tmp_path / "items.mmc"
    call(capsys, "build", shop, "--key", "sku", "-o", target)
    assert call(capsys, "rebuild", target, "--if-stale").startswith(f"{target}: fresh, generation 1 stays (built ")
    found = json.loads(call(capsys, "rebuild", target, "--if-stale", "--json"))
    assert (found["changed"], found["state"], found["generation"]) == (False, "fresh", 1)
    assert ": unchanged, generation 1 stays" in call(capsys, "rebuild", target, "--if-stale", "--ttl", "0.001")


def test_rebuild_if_stale_builds_what_was_written_to_invalidated_or_damaged(shop, tmp_path, capsys):
    target = tmp_path / "items.mmc"
    call(capsys, "build", shop, "--key", "sku", "-o", target)
    with sqlite3.connect(shop) as connection:
        connection.execute("UPDATE items SET price = 99 WHERE sku = 's3'")
    connection.close()
    assert json.loads(call(capsys, "rebuild", target, "--if-stale", "--json"))["generation"] == 2
    for words in (["s1"], ["--soft"], ["--hard"]):
        call(capsys, "invalidate", target, *words)
        assert "unchanged, generation 2 stays" in call(capsys, "rebuild", target, "--if-stale")
        assert "fresh, generation 2 stays" in call(capsys, "rebuild", target, "--if-stale")
    data = bytearray(target.read_bytes())
    data[300] ^= 1  # in the section table
    target.unlink()
    target.write_bytes(data)
    assert json.loads(call(capsys, "rebuild", target, "--if-stale", "--json"))["changed"]


def test_the_script_for_cron_is_the_rebuild_command(shop, tmp_path, capsys):
    target = tmp_path / "items.mmc"
    call(capsys, "build", shop, "--key", "sku", "-o", target)
    script = ROOT / "tools" / "rebuild.py"
    assert len(script.read_text().splitlines()) <= 20
    for words, code in (([target, "--json"], 0), ([tmp_path / "none.mmc"], 3), ([], 2)):
        done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done
        assert bool(done.stdout) is (code == 0)


# clear ---------------------------------------------------------------------------------------------------------------


def test_clear_removes_file_backup_and_leftovers_and_nothing_else(tmp_path, capsys):
    path = tmp_path / "f.mmc"
    for n in (1, 2):
        mmcache.build(path, [{"id": str(i)} for i in range(n)], mmcache.Schema("c"))
    leftovers = [tmp_path / ".f.mmc.0123456789abcdef.tmp", tmp_path / "f.mmc.bak.new"]
    others = [tmp_path / "f.mmc.old", tmp_path / ".f.mmc.tmp", tmp_path / "f.mmc.lock", tmp_path / "f.mmc2"]
    for other in (*leftovers, *others):
        other.touch()
    others.append(tmp_path / "f.mmc.ctl")
    ours = [str(path), f"{path}.bak", *map(str, tmp_path.glob(".f.mmc.*.counts"))]
    assert len(ours) == 3
    assert json.loads(call(capsys, "clear", path, "--dry-run", "--json"))["removed"] == ours
    assert path.exists()
    assert json.loads(call(capsys, "clear", path, "--yes", "--json"))["removed"] == ours
    assert [tmp_path / name for name in beside(path)] == sorted(others)
    assert json.loads(call(capsys, "clear", path, "--yes", "--json"))["removed"] == []


def test_clear_of_nothing_leaves_nothing(tmp_path):
    done = run("clear", tmp_path / "f.mmc", "--yes")
    assert (done.code, done.out, done.err) == (0, "", f"{tmp_path / 'f.mmc'}: nothing to remove\n")
    assert not list(tmp_path.iterdir())


def test_readers_keep_a_cleared_file(tmp_path, capsys):
    path = tmp_path / "f.mmc"
    mmcache.build(path, [{"id": "a"}], mmcache.Schema("c"))
    with mmcache.Snapshot.open(path) as snapshot:
        call(capsys, "clear", path, "-y")
        assert snapshot["a"] == {"id": "a"}


# the rest ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "completion"])
def test_every_command_has_help_and_json(command, capsys):
    text = call(capsys, command, "--help")
    assert "--json" in text
    assert "--quiet" in text


def test_every_help_has_a_description_and_an_example_without_docstrings():
    code = (
        "import sys; from mmcache.cli.main import COMMANDS, make_parser; p = make_parser(); "
        "print(*[c.format_help() for c in dict(p._subparsers._group_actions[0].choices).values()], sep='\\0')"
    )
    command = [sys.executable, "-OO", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment())
    helps = done.stdout.split("\0")
    assert len(helps) == len(COMMANDS) + 1
    for text in helps:
        assert re.search(r"^ +(\w+: |.*\| )?mmcache \w+", text.partition("\n\n")[2], re.MULTILINE), text
        assert not re.search(r"\b(docs|tests|benchmarks)/", text), text


def test_help_lists_every_command_and_exit_code(capsys):
    text = call(capsys, "--help")
    assert call(capsys) == text
    for word in ("build", "optimize", "completion", "75", "MMCACHE_TIMEOUT"):
        assert word in text


def test_version(capsys):
    assert call(capsys, "--version") == f"mmcache {mmcache.__version__}\n"


def test_ids_may_stand_after_a_flag(shelf, capsys):
    found = json.loads(call(capsys, "get", shelf, "d", "--collection", "items", "a", "--json"))
    assert [record["id"] for record in found] == ["d", "a"]
    assert main(["get", str(shelf), "a", "--nonsense", "b"]) == 2
    assert "unrecognized arguments: --nonsense b" in capsys.readouterr().err


def test_flags_may_stand_before_the_command(shelf, capsys):
    assert json.loads(call(capsys, "--json", "status", shelf))["state"] == "fresh"
    assert call(capsys, "-q", "status", shelf) == ""
    assert call(capsys, "verify", shelf, "--quiet") == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_prints_a_script(capsys, shell):
    pytest.importorskip("shtab", reason="the cli extra is not installed")
    script = call(capsys, "completion", shell)
    assert "optimize" in script
    assert FILE_COMPLETION[shell] in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=30)


def test_clear_can_rebuild_and_a_rebuild_after_a_plain_clear_says_what_to_do(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT)")
        db.execute("INSERT INTO items VALUES ('k1', 'a')")
    file = tmp_path / "items.mmc"
    mmcache.build(file, SQLiteSource(tmp_path / "s.db", Schema("items", index=("kind",))), metadata={"who": "me"})
    before = file.stat().st_mtime_ns
    done = run("clear", file, "--rebuild", "--yes")
    assert done.code == 0, done.err
    assert file.stat().st_mtime_ns != before
    with Snapshot.open(file) as snapshot:
        assert (snapshot.schema.index, snapshot.metadata["who"]) == (("kind",), "me")
    os.rename(tmp_path / "s.db", tmp_path / "away.db")
    assert run("clear", file, "--rebuild", "--yes").code == 1
    assert file.exists(), "nothing is removed that cannot be built again"
    assert run("clear", file, "--yes").code == 0
    failed = run("rebuild", file)
    assert failed.code == 3
    assert "mmcache build SOURCE -o" in failed.err
