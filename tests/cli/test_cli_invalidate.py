"""`mmcache invalidate`: what it notifies, and what it refuses."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

import mmcache
from mmcache.cli import main
from tests.support.console import make_shelf, make_shop, ok, run, worker, write

AGENTS = mmcache.Schema("agents", key="name")


@pytest.fixture
def database(tmp_path):
    return tmp_path / "shop.db"


@pytest.fixture
def shop(tmp_path, database):
    path = tmp_path / "items.mmc"
    mmcache.build(path, make_shop(database))
    return path


def told(capsys, *words: object) -> dict[str, Any]:
    assert main(["invalidate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_worker_answers_an_invalidated_id_from_the_source(shop, database):
    with worker(shop, database) as one, worker(shop, database) as other:
        assert [each.get("s3")["price"] for each in (one, other)] == [3, 3]
        write(database, "UPDATE items SET price = price + 100")
        assert [each.get("s3")["price"] for each in (one, other)] == [3, 3]
        done = ok("invalidate", shop, "s3", "--reason", "record_stored")
        said = "1 id of 'items': answered by the source until a newer generation (record_stored; 2 workers told)"
        assert done.out == f"{shop}: {said}\n"
        for each in (one, other):
            assert [each.get(key)["price"] for key in ("s3", "s4")] == [103, 4]
        done = ok("invalidate", shop, "--hard")
        assert ": everything: answered by the source until a newer generation (manual; 2 workers told)" in done.out
        assert [each.get("s4")["price"] for each in (one, other)] == [104, 104]
        ok("rebuild", shop)
        assert [each.get("s4")["price"] for each in (one, other)] == [104, 104]


def test_ids_come_as_words_from_a_file_and_from_stdin(shop, tmp_path, capsys):
    (tmp_path / "ids").write_bytes(b"s1\r\ns 2\n\nna\xc3\xafve\n\xff\ns1\n")
    found = told(capsys, shop, "s1", "s9", "--ids-from", tmp_path / "ids")
    assert (found["kind"], found["ids"], found["collection"], found["workers"]) == ("ids", 5, "items", 0)
    with open(tmp_path / "ids") as stdin:
        assert run("invalidate", shop, "--ids-from", "-", "--json", stdin=stdin).json["ids"] == 4
    status = run("status", shop, "--json").json
    assert status["dirty"] == 5


def test_an_id_may_look_like_a_flag_and_stand_after_one(shop, capsys):
    assert told(capsys, shop, "--reason", "record_deleted", "s1", "s2")["ids"] == 2
    for words in ([shop, "--", "-x", "--soft"], [shop, "a", "-q", "--", "--soft"]):
        assert run("invalidate", "--reason", "record_deleted", "--json", *words).json["ids"] == 2


def test_no_ids_at_all_change_nothing(shop, tmp_path):
    (tmp_path / "ids").write_text("\n")
    assert "no ids, so nothing is changed" in ok("invalidate", shop, "--ids-from", tmp_path / "ids").out
    assert run("status", shop, "--json").json["state"] == "fresh"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ([], "hard"),
        (["--soft"], "soft"),
        (["--reason", "record_stored"], "soft"),
        (["--reason", "record_stored", "--hard"], "hard"),
        (["--reason", "config_updated"], "hard"),
        (["--reason", "ttl_expired"], "soft"),
        (["--collection", "items"], "ids"),  # all of one collection
        (["--collection", "items", "--soft"], "soft"),
        (["s1"], "ids"),
    ],
)
def test_the_reason_decides_unless_a_flag_does(shop, capsys, words, kind):
    assert told(capsys, shop, *words)["kind"] == kind


def test_more_ids_than_can_be_named_are_everything(shop, tmp_path):
    (tmp_path / "ids").write_text("".join(f"k{i}\n" for i in range(20_000)))
    done = ok("invalidate", shop, "--ids-from", tmp_path / "ids")
    assert ": everything, for 20,000 ids are too many to name: answered by the source until" in done.out


def test_ids_are_those_of_the_first_collection_unless_another_is_named(tmp_path, capsys):
    path = tmp_path / "two.mmc"
    records = {"items": [{"sku": "x"}], "agents": [{"name": "x"}]}
    mmcache.build(path, records, mmcache.Schema("items", key="sku"), AGENTS)
    assert told(capsys, path, "x")["collection"] == "items"
    assert told(capsys, path, "x", "--collection", "agents")["collection"] == "agents"
    assert told(capsys, path)["collection"] is None


def test_what_is_not_there_or_not_ours_is_refused_and_left_alone(tmp_path, database, capsys):
    make_shop(database)
    for path, code in ((tmp_path / "none.mmc", 3), (database, 5)):
        assert main(["invalidate", str(path)]) == code
        assert capsys.readouterr().out == ""
    assert os.listdir(tmp_path) == ["shop.db"]


def test_a_damaged_file_with_a_good_backup_may_be_invalidated(shop, database, capsys):
    write(database, "UPDATE items SET price = 1")
    main(["-q", "rebuild", str(shop)])
    data = bytearray(shop.read_bytes())
    data[100] ^= 1
    shop.unlink()
    shop.write_bytes(data)
    assert told(capsys, shop, "s1")["kind"] == "ids"
    os.remove(f"{shop}.bak")
    assert main(["invalidate", str(shop), "s1"]) == 5


def test_where_no_process_can_be_notified_it_fails(tmp_path, capsys):
    path = tmp_path / "items.mmc"
    make_shelf(path)
    os.remove(f"{path}.ctl")
    os.mkfifo(f"{path}.ctl")
    assert main(["invalidate", str(path), "a"]) == 1
    assert "the other processes cannot be told" in capsys.readouterr().err


def test_help_names_every_reason(capsys):
    assert main(["invalidate", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "manual, record_stored, record_deleted, config_updated, schema_migration, ttl_expired" in text
