"""Operators: pins, withdrawals, rollbacks, prunes and diffs, as followers see them."""

from __future__ import annotations

import contextlib
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import MissingFileError, ReleaseError, Schema
from mmcache.cli import main
from mmcache.remote import log
from mmcache.remote.entries import blob_path, parse
from mmcache.remote.follower import Follower, Orders
from mmcache.sharing.following import Following, following
from mmcache.store import Store
from tests.remote.shop import number_of, publish, told

pytestmark = pytest.mark.usefixtures("no_leaks", "no_disk_wait")


def served(url: str, node: Path, **options: object) -> int:
    mmcache.follow(url, node, **options)  # type: ignore[arg-type]
    return number_of(node)


def test_a_pinned_store_stays_whatever_is_published(url, made, node):
    for number in (1, 2):
        publish(made, url, number)
    assert served(url, node) == 2
    assert mmcache.pin(url, 1, reason="2 is slow").pinned
    assert served(url, node) == 1
    release = publish(made, url, 3)
    assert not release.current
    assert served(url, node) == 1
    newest = mmcache.unpin(url)
    assert newest is not None
    assert newest.number == release.number
    assert served(url, node) == 3


def test_a_node_that_is_pinned_stays_and_says_so(url, made, node):
    first, second = (publish(made, url, number).number for number in (1, 2))
    assert served(url, node, pin=first) == 1
    publish(made, url, 3)
    assert served(url, node, pin=first) == 1
    said = told(node)
    assert (said.release, said.pinned, said.newest, said.lag, said.behind) == (first, first, 3, 2, 0.0)
    assert second == 2


def test_a_withdrawn_release_is_left_by_all(url, made, node, tmp_path):
    for number in (1, 2):
        publish(made, url, number)
    nodes = {"follows": (node, {}), "pinned": (tmp_path / "pinned" / "items.mmc", {"pin": 2})}
    for path, options in nodes.values():
        assert served(url, path, **options) == 2
    mmcache.pin(url, 2)
    left = mmcache.withdraw(url, 2)
    assert left is not None
    assert left.number == 1
    for path, options in nodes.values():
        assert served(url, path, **options) == 1
    assert [(r.number, r.withdrawn) for r in mmcache.releases(url)] == [(2, True), (1, False)]
    with pytest.raises(ReleaseError, match="was withdrawn"):
        mmcache.pin(url, 2)


def test_when_all_are_withdrawn_the_file_stays(url, made, node):
    publish(made, url, 1)
    served(url, node)
    assert mmcache.withdraw(url, 1) is None
    said = mmcache.follow(url, node)
    assert "every release was withdrawn" in said.error
    assert number_of(node) == 1


def test_a_rollback_is_a_new_number_for_an_old_blob(tmp_path, made, node):
    url = f"file://{tmp_path}/store"
    for number in (1, 2, 3):
        publish(made, url, number)
    served(url, node)
    blobs = sorted(os.listdir(tmp_path / "store" / "blobs"))
    assert (mmcache.rollback(url).number, served(url, node)) == (4, 2)
    assert (mmcache.rollback(url, to=1).number, served(url, node)) == (5, 1)
    assert sorted(os.listdir(tmp_path / "store" / "blobs")) == blobs
    assert [release.of for release in mmcache.releases(url)[:2]] == [1, 2]


def test_a_withdrawn_release_comes_back_by_a_rollback_only(url, made, node):
    publish(made, url, 1)
    publish(made, url, 2)
    mmcache.withdraw(url, 2)
    mmcache.rollback(url, to=2)
    assert served(url, node) == 2


@pytest.mark.parametrize("operate", [mmcache.pin, mmcache.withdraw, lambda url, n: mmcache.rollback(url, to=n)])
def test_what_is_not_there_is_named_and_changes_nothing(url, made, operate):
    with pytest.raises(MissingFileError):
        operate(url, 1)
    publish(made, url, 1)
    mmcache.pin(url, 1)
    for number in (2, 7):  # the entry of the pin is no release
        with pytest.raises(MissingFileError, match=str(number)):
            operate(url, number)
    assert [release.number for release in mmcache.releases(url)] == [1]


# --- prune ------------------------------------------------------------------------------------------------------------


def whole(store: Path) -> set[str]:
    """Every blob that an entry names is there; the blobs that are."""
    there = {f"blobs/{name}" for name in os.listdir(store / "blobs")}
    there |= {f"deltas/{name}" for name in os.listdir(store / "deltas")} if (store / "deltas").exists() else set()
    for path in (store / "generations").iterdir():
        entry = parse(path.read_bytes(), int(path.stem), str(path))
        if entry.file is not None:
            assert blob_path(entry.file.blob) in there, f"entry {entry.number} names a blob that is gone"
            assert {blob_path(delta.name) for delta in entry.file.deltas} <= there
    return there


def test_a_prune_keeps_the_newest_and_what_is_in_use(tmp_path, made, node):
    url, store = f"file://{tmp_path}/store", tmp_path / "store"
    for number in range(1, 9):
        publish(made, url, number)
    mmcache.pin(url, 2)
    assert mmcache.prune(url, keep=3, older_than=3600).releases == []
    seen = mmcache.prune(url, keep=3, older_than=0, dry_run=True)
    assert len(whole(store)) >= 8
    done = mmcache.prune(url, keep=3, older_than=0)
    assert done == seen
    assert [release.number for release in mmcache.releases(url)] == [8, 7, 6, 2]
    whole(store)
    assert served(url, node) == 2
    mmcache.unpin(url)
    assert served(url, node) == 8
    with pytest.raises(MissingFileError, match=r"pruned|no release"):
        mmcache.rollback(url, to=3)
    assert mmcache.prune(url, keep=1, older_than=0).releases
    assert [release.number for release in mmcache.releases(url)] == [8]
    assert len([name for name in whole(store) if name.startswith("blobs/")]) == 1


def test_a_follower_of_a_release_that_is_gone_keeps_its_file(url, made, node):
    for number in range(1, 4):
        publish(made, url, number)
    served(url, node, pin=1)
    mmcache.prune(url, keep=1, older_than=0)
    assert served(url, node, pin=1) == 1
    node.unlink()
    with pytest.raises(MissingFileError):
        mmcache.follow(url, node, pin=1)
    assert "no release 1" in (following(str(node)) or Following("")).error


def test_no_order_of_operations_leaves_an_entry_without_its_blob(tmp_path, made, node):
    """At random, with a model of which content followers have."""
    url, store, draw = f"file://{tmp_path}/store", tmp_path / "store", random.Random(5)
    contents: dict[int, int] = {}
    withdrawn: set[int] = set()
    pinned: int | None = None
    for step in range(1, 80):
        live = {release.number for release in mmcache.releases(url)}
        good = sorted(live - withdrawn)
        choice = draw.choice(("publish", "publish", "rollback", "withdraw", "pin", "unpin", "prune"))
        if choice == "publish" or len(good) < 3:
            contents[publish(made, url, step).number] = step
        elif choice == "rollback":
            to = draw.choice(good)
            contents[mmcache.rollback(url, to=to).number] = contents[to]
        elif choice == "withdraw":
            number = draw.choice(good)
            mmcache.withdraw(url, number)
            withdrawn.add(number)
            pinned = None if pinned == number else pinned
        elif choice == "pin":
            pinned = draw.choice(good)
            mmcache.pin(url, pinned)
        elif choice == "unpin":
            mmcache.unpin(url)
            pinned = None
        else:
            mmcache.prune(url, keep=draw.randint(1, 4), older_than=0)
        whole(store)
        good = sorted({release.number for release in mmcache.releases(url)} - withdrawn)
        expected = contents[good[-1] if pinned is None else pinned]
        assert served(url, node) == expected, (step, choice)


def test_a_prune_killed_at_any_removal_leaves_no_entry_without_its_blob(tmp_path, made, monkeypatch):
    """What is done after its entry is done by the next one."""
    from mmcache.store import Store

    url, store = f"file://{tmp_path}/store", tmp_path / "store"
    for number in range(1, 6):
        publish(made, url, number)
    real = Store.remove
    left = 0

    def remove(self: Store, name: str) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        real(self, name)

    for left in range(8):  # noqa: B007 (as the closure has it)
        monkeypatch.setattr(Store, "remove", remove)
        with contextlib.suppress(KeyboardInterrupt):
            mmcache.prune(url, keep=1, older_than=0)
        monkeypatch.setattr(Store, "remove", real)
        whole(store)
    mmcache.prune(url, keep=1, older_than=0)
    assert [release.number for release in mmcache.releases(url)] == [5]


# --- diff -------------------------------------------------------------------------------------------------------------


class Asked:
    """How often a store was asked for a list, and for one object without its bytes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.counts = {"listed": 0, "stat": 0}
        for name in self.counts:
            patch.setattr(Store, name, self._counted(name, getattr(Store, name)))

    def _counted(self, name: str, real: Any) -> Any:
        def call(store: Store, *args: Any) -> Any:
            self.counts[name] += 1
            return real(store, *args)

        return call


def test_polls_look_for_the_next_entry_and_list_once_a_minute(url, made, node, monkeypatch):
    publish(made, url, 1)
    follower = Follower(str(node), url, Orders())
    follower.poll()
    with monkeypatch.context() as within:
        asked = Asked(within)
        for _ in range(10):
            follower.poll()
        assert asked.counts == {"listed": 0, "stat": 10}
        within.setattr(log, "LIST_EVERY", 0.0)
        follower.poll()
        assert asked.counts == {"listed": 1, "stat": 10}
    publish(made, url, 2)
    assert follower.poll().release == 2
    assert number_of(node) == 2


def test_a_node_that_a_prune_overtook_finds_the_newest_by_its_next_list(url, made, node, monkeypatch):
    """Between two of its polls the entry after the one it knows came and went."""
    publish(made, url, 1)
    follower = Follower(str(node), url, Orders())
    assert follower.poll().release == 1
    for number in (2, 3, 4):
        publish(made, url, number)
    assert mmcache.prune(url, keep=1, older_than=0).releases == [1, 2, 3]
    assert follower.poll().release == 1
    monkeypatch.setattr(log, "LIST_EVERY", 0.0)
    assert follower.poll().release == 4
    assert number_of(node) == 4


def test_a_diff_tells_keys_and_fields(tmp_path, made):
    url, schema = f"file://{tmp_path}/store", Schema("items", embedding="v")
    before: list[dict[str, Any]] = [
        {"id": f"k{i}", "price": i, "tags": ["a"], "v": [float(i), 1.0]} for i in range(2000)
    ]
    mmcache.build(made, before, schema)
    mmcache.publish(made, url)
    after = [dict(item) for item in before[:-3]]
    for i in range(5):
        after[i]["price"] += 1
    after[0]["tags"] = ["b"]
    after[7]["v"] = [0.0, 0.0]
    after += [{"id": "new", "price": 1, "tags": [], "v": [1.0, 1.0]}]
    mmcache.build(made, after, schema)
    mmcache.publish(made, url)
    for one, other in ((f"{url}@1", f"{url}@2"), (f"{url}@1", url), (f"{url}@1", str(made))):
        found = mmcache.diff(one, other)["items"]
        assert (found.added, found.removed, found.changed, found.same) == (1, 3, 6, 1991)
        assert found.fields == {"price": 5, "tags": 1, "v": 1}
        assert found.examples["added"] == ["new"]
        assert sorted(found.examples["removed"]) == ["k1997", "k1998", "k1999"]
    same = mmcache.diff(url, str(made))["items"]
    assert (same.added, same.removed, same.changed) == (0, 0, 0)
    with pytest.raises(MissingFileError):
        mmcache.diff(f"{url}@9", url)


def test_a_diff_knows_collections_that_come_and_go(tmp_path):
    one, other = tmp_path / "one.mmc", tmp_path / "other.mmc"
    mmcache.build(one, {"a": [{"id": 1}], "b": [{"id": 1}, {"id": 2}]}, Schema("a"), Schema("b"))
    mmcache.build(other, {"b": [{"id": 1}, {"id": 2}], "c": [{"id": 3}]}, Schema("b"), Schema("c"))
    found = mmcache.diff(one, other)
    assert {name: (d.added, d.removed, d.same) for name, d in found.items()} == {
        "a": (0, 1, 0),
        "b": (0, 0, 2),
        "c": (1, 0, 0),
    }


def test_a_node_that_was_away_leaves_a_withdrawn_release_that_was_pruned(url, made, node):
    for number in (1, 2):
        publish(made, url, number)
    assert served(url, node, pin=2) == 2
    mmcache.withdraw(url, 2)
    for number in (3, 4):
        publish(made, url, number)
    assert 2 in mmcache.prune(url, keep=1, older_than=0.0).releases
    assert served(url, node, pin=2) == 4


def test_a_line_of_a_node_that_is_nested_without_end_is_none(url, made, node):
    publish(made, url, 1)
    served(url, node)
    node.with_name(f"{node.name}.follow").write_text("[" * 16_000)
    assert following(str(node)) is None
    assert served(url, node) == 1


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-1", "true", "1.5", "NaN", "1e999"])
@pytest.mark.parametrize("field", ["release", "generation", "polled", "behind"])
def test_a_line_of_a_node_with_a_number_that_is_none_is_no_line(url, made, node, field, number):
    publish(made, url, 1)
    served(url, node)
    line = node.with_name(f"{node.name}.follow")
    whole = line.read_text()
    assert following(str(node)) is not None
    line.write_text(re.sub(rf'"{field}":[^,}}]+', f'"{field}":{number}', whole))
    assert following(str(node)) is None or (field in ("polled", "behind") and number == "1.5")
    assert served(url, node) == 1


ASKING = {
    "releases": mmcache.releases,
    "prune": mmcache.prune,
    "withdraw": lambda url: mmcache.withdraw(url, 1),
    "unpin": mmcache.unpin,
    "rollback": mmcache.rollback,
    "diff": lambda url: mmcache.diff(f"{url}@1", f"{url}@2"),
    "doctor": lambda url: main(["doctor", url]),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_asking_for_a_directory_that_is_not_there_makes_none(tmp_path, ask):
    url = f"file://{tmp_path}/a%20typo"
    with contextlib.suppress(MissingFileError):
        ask(url)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_made_meanwhile_is_found(tmp_path, made, node):
    url = f"file://{tmp_path}/a%20store"
    follower = Follower(str(node), url, Orders())
    with pytest.raises(MissingFileError, match="no releases here yet"):
        follower.poll()
    assert not (tmp_path / "a store").exists()
    publish(made, url, 1)
    assert (tmp_path / "a store").is_dir()
    assert follower.poll().release == 1
