"""Promise 6: whatever fails in the file tier, the answer equals the source's, and the statistics say why."""

from __future__ import annotations

import errno
import os
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

import mmcache
from mmcache import (
    Cache,
    CorruptFileError,
    IncompatibleFormatError,
    MissingFileError,
    Schema,
    Snapshot,
    SourceError,
    SQLiteSource,
    UntrustedPathError,
    UnusableFileError,
)
from mmcache.sharing.publishing import clear
from tests.support.bank import ITEMS, insert_item, source_of, truth
from tests.support.faults import FailName, Then, faults
from tests.support.observe import logged
from tests.support.waits import until


@pytest.fixture
def source(bank: Path) -> SQLiteSource:
    return source_of(bank)


def replace_with(path: Path, data: bytes) -> None:
    """Put other bytes in the file's place, as a copy would: a new inode."""
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(data)
    os.replace(fresh, path)


def check_equals_source(cache: Cache, bank: Path) -> None:
    rows = truth(bank)
    for key, row in rows.items():
        assert cache[key] == {name: value for name, value in row.items() if name != "vector"}
        vector = cache.embedding(key)
        assert (None if vector is None else vector.tobytes()) == row["vector"]
    assert [r.id for r in cache.get_many([*rows, "nope"]) if r is not None] == list(rows)
    assert list(cache) == list(rows)
    assert cache.where(kind="a", tags=["t1", "u2"]).ids == [
        key for key, row in rows.items() if row["kind"] == "a" and {"t1", "u2"} & set(row["tags"])
    ]
    assert len(cache.collection("notes")) == 5


def flip_header(data: bytes, at: int, value: bytes) -> bytes:
    """Change header bytes and seal them again."""
    head = bytearray(data[:248])
    head[at : at + len(value)] = value
    return bytes(head) + struct.pack("<Q", xxh3_64_intdigest(bytes(head))) + data[256:]


def test_first_use_builds_and_later_ones_open(path: Path, bank: Path, source: SQLiteSource) -> None:
    with mmcache.open(path, source) as cache:
        check_equals_source(cache, bank)
        stats = cache.stats()
        assert (stats.rebuilds, stats.opens, stats.generation, stats.fallbacks) == (1, 1, 1, {})
        assert stats.load_seconds > 0
    with mmcache.open(path, source) as cache:
        check_equals_source(cache, bank)
        assert cache.stats().rebuilds == 0


def damaged_files(whole: bytes) -> dict[str, bytes | None]:
    middle = len(whole) // 2
    return {
        "missing": None,
        "empty": b"",
        "truncated": whole[:-1],
        "extended": whole + b"\0",
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "not ours": b"SQLite format 3\0" + whole[16:],
        "another major": flip_header(whole, 8, struct.pack("<H", 3)),
    }


CAUSES = {"missing": "missing", "another major": "incompatible"}


@pytest.mark.parametrize("case", ["missing", "empty", "truncated", "extended", "flipped", "not ours", "another major"])
def test_every_unusable_file_is_answered_by_the_source(path: Path, bank: Path, source: SQLiteSource, case: str) -> None:
    mmcache.build(path, source)
    data = damaged_files(path.read_bytes())[case]
    if data is None:
        path.unlink()
    else:
        replace_with(path, data)

    cache = mmcache.open(path, source, build=False)
    check_equals_source(cache, bank)
    stats = cache.stats()
    assert set(stats.fallbacks) == {CAUSES.get(case, "corrupt")}
    assert stats.hits == 0
    assert stats.fallback_seconds > 0
    assert stats.generation is None
    assert cache.snapshot is None
    with pytest.raises(UnusableFileError), cache.pinned():
        pass

    with pytest.raises(UnusableFileError) as raised:
        mmcache.open(path)
    assert raised.value.cause == CAUSES.get(case, "corrupt")
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("case", ["missing", "empty", "truncated", "flipped"])
def test_a_missing_or_damaged_file_is_built_again_on_first_use(
    path: Path, bank: Path, source: SQLiteSource, case: str
) -> None:
    mmcache.build(path, source)
    data = damaged_files(path.read_bytes())[case]
    path.unlink() if data is None else replace_with(path, data)
    cache = mmcache.open(path, source)
    check_equals_source(cache, bank)
    stats = cache.stats()
    assert stats.rebuilds == 1
    assert stats.fallbacks == {}
    assert stats.corruptions == (case != "missing")
    Snapshot.open(path).verify(deep=True)


def test_a_file_of_another_major_version_is_left_to_its_owners(path: Path, source: SQLiteSource) -> None:
    mmcache.build(path, source)
    theirs = flip_header(path.read_bytes(), 8, struct.pack("<H", 3))
    replace_with(path, theirs)
    cache = mmcache.open(path, source)
    assert cache.stats().rebuilds == 0
    assert cache.get("item-1-ä") is not None
    assert path.read_bytes() == theirs


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_answered_by_the_source(path: Path, bank: Path, source: SQLiteSource) -> None:
    mmcache.build(path, source)
    path.chmod(0)
    cache = mmcache.open(path, source)
    check_equals_source(cache, bank)
    assert set(cache.stats().fallbacks) == {"unreadable"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_file_that_the_system_refuses_to_open_is_answered_by_the_source(
    path: Path, bank: Path, source: SQLiteSource, code: int
) -> None:
    """What the test above does, for root too, and for errors that permissions cannot make."""
    mmcache.build(path, source)
    with faults(FailName("open", code)):
        cache = mmcache.open(path, source)
        check_equals_source(cache, bank)
        stats = cache.stats()
        assert set(stats.fallbacks) == {"unreadable"}
        assert stats.rebuilds == 0
        with pytest.raises(UnusableFileError, match="cannot be read"):
            mmcache.open(path)


def test_a_directory_in_its_place_is_answered_by_the_source(path: Path, bank: Path, source: SQLiteSource) -> None:
    path.mkdir()
    cache = mmcache.open(path, source)
    check_equals_source(cache, bank)
    assert set(cache.stats().fallbacks) == {"untrusted"}
    assert path.is_dir()
    with pytest.raises(UntrustedPathError, match="found a directory"):
        mmcache.open(path)


def test_a_symbolic_link_is_answered_by_the_source(
    path: Path, tmp_path: Path, bank: Path, source: SQLiteSource
) -> None:
    mmcache.build(tmp_path / "real.mmc", source)
    path.symlink_to(tmp_path / "real.mmc")
    cache = mmcache.open(path, source)
    check_equals_source(cache, bank)
    assert set(cache.stats().fallbacks) == {"untrusted"}


def test_one_damaged_record_is_answered_by_the_source_and_the_others_by_the_file(
    path: Path, bank: Path, source: SQLiteSource
) -> None:
    mmcache.build(path, source)
    data = bytearray(path.read_bytes())
    at = data.index(b"item-9-")
    data[at + 12] ^= 4
    replace_with(path, bytes(data))
    cache = mmcache.open(path, source, verify="lazy", build=False)
    rows = truth(bank)
    hurt = "item-9-ä"
    expected = {name: value for name, value in rows[hurt].items() if name != "vector"}
    assert cache[hurt] == expected
    assert cache["item-8-ä"]["size"] == 2
    assert [r.id for r in cache.get_many(list(rows)) if r is not None] == list(rows)
    stats = cache.stats()
    assert stats.fallbacks["record"] == 2
    assert stats.corruptions == 1  # one place, met twice
    assert stats.hits == 1 + len(rows) - 1
    alone = mmcache.open(path, verify="lazy")
    assert alone["item-8-ä"]["size"] == 2
    with pytest.raises(CorruptFileError, match="not match"):
        alone[hurt]


ALL_OF = {
    "keys": list,
    "values": lambda cache: [each.id for each in cache.values()],
    "items": lambda cache: [*dict(cache.items())],
}


@pytest.mark.parametrize("read", ALL_OF.values(), ids=ALL_OF)
@pytest.mark.parametrize("is_dirty", [False, True])
def test_reading_all_goes_on_with_the_source_behind_damage(path, bank, source, read, is_dirty):
    mmcache.build(path, source)
    data = bytearray(path.read_bytes())
    data[data.index(b"item-9-") + 12] ^= 4
    replace_with(path, bytes(data))
    rows = truth(bank)
    with mmcache.open(path, source, verify="lazy", executor="external") as cache:
        if is_dirty:
            cache.invalidate(["item-3-ä"])
        found = read(cache)
        assert len(found) == len(rows)
        assert set(found) == set(rows)
        assert cache.stats().corruptions == 1
        assert cache.status().state != "corrupt"
    with mmcache.open(path, verify="lazy") as alone, pytest.raises(CorruptFileError):
        read(alone)


def test_a_damaged_index_is_answered_by_the_source(path: Path, bank: Path, source: SQLiteSource) -> None:
    mmcache.build(path, source)
    section = Snapshot.open(path).layout.sections["0/index.0"]
    data = bytearray(path.read_bytes())
    data[section.offset + section.length // 2] ^= 255
    replace_with(path, bytes(data))
    cache = mmcache.open(path, source, verify="lazy", build=False)
    expected = [key for key, row in truth(bank).items() if row["kind"] == "b"]
    assert cache.where(kind="b").ids == expected
    assert cache.stats().fallbacks == {"record": 1}


def test_an_id_that_the_file_lacks_is_answered_by_the_source(path: Path, bank: Path, source: SQLiteSource) -> None:
    cache = mmcache.open(path, source)
    with sqlite3.connect(bank) as db:
        insert_item(db, 1000)
    db.close()
    assert "item-1000-ä" in cache
    assert cache["item-1000-ä"]["size"] == 4
    assert cache.embedding("item-1000-ä") is not None
    assert [r and r.id for r in cache.get_many(["item-1-ä", "item-1000-ä", "?"])] == ["item-1-ä", "item-1000-ä", None]
    stats = cache.stats()
    assert stats.fallbacks == {"absent": 4}
    assert (stats.hits, stats.misses) == (1, 1)
    assert len(cache) == 60
    report = cache.rebuild()
    assert (report.generation, report.changed) == (2, True)
    assert len(cache) == 61
    assert cache["item-1000-ä"]["size"] == 4
    assert cache.stats().fallbacks == {"absent": 4}


def test_without_a_source_the_cache_says_that_it_cannot_answer(path: Path, source: SQLiteSource) -> None:
    with pytest.raises(MissingFileError, match="build it, or check the path"):
        mmcache.open(path)
    mmcache.build(path, source)
    cache = mmcache.open(path)
    assert cache["item-1-ä"]["size"] == 1
    assert cache.get("nope") is None
    assert cache.stats().misses == 1
    with pytest.raises(SourceError, match="without a source cannot be rebuilt"):
        cache.rebuild()


def test_records_in_place_of_a_source_are_refused_with_the_way_to_do_it(path: Path) -> None:
    with pytest.raises(TypeError, match=r"mmcache\.build, or IterableSource"):
        mmcache.open(path, [{"id": "a"}])  # type: ignore[call-overload]


def test_a_file_built_with_other_schemas_is_built_again(path: Path, bank: Path, source: SQLiteSource) -> None:
    mmcache.build(path, SQLiteSource(bank, Schema("items", key="name", json=("tags", "extra"))))
    refused = mmcache.open(path, source, build=False)
    assert refused.where(kind="a").ids == [key for key, row in truth(bank).items() if row["kind"] == "a"]
    assert set(refused.stats().fallbacks) == {"incompatible"}
    cache = mmcache.open(path, source)
    assert cache.stats().rebuilds == 1
    assert cache.generation == 2
    check_equals_source(cache, bank)
    assert cache.schema == ITEMS.resolved()


def test_a_build_that_fails_leaves_the_answers_to_the_source(path: Path, bank: Path, source: SQLiteSource) -> None:
    with sqlite3.connect(bank) as db:
        db.execute("UPDATE items SET vector = x'00' WHERE name = 'item-5-ä'")
    db.close()
    cache = mmcache.open(path, source)
    assert cache["item-6-ä"]["size"] == 0
    assert cache.stats().build_failures == 1
    assert set(cache.stats().fallbacks) == {"missing"}
    assert not path.exists()
    with pytest.raises(mmcache.BuildError, match="item-5-ä"):
        cache.rebuild()


def test_a_source_that_fails_as_the_last_tier_raises_source_error(path: Path, bank: Path, source: SQLiteSource) -> None:
    cache = mmcache.open(path, source)
    with sqlite3.connect(bank) as db:
        db.execute("DROP TABLE items")
    db.close()
    assert cache["item-1-ä"]["size"] == 1
    with pytest.raises(SourceError, match="items"):
        cache["nope"]
    with pytest.raises(mmcache.MmcacheError):
        cache.rebuild()
    assert cache["item-1-ä"]["size"] == 1


def test_a_newer_file_is_adopted_and_a_bad_one_refused(path: Path, bank: Path, source: SQLiteSource) -> None:
    cache, other = (mmcache.open(path, source, executor="external") for _ in range(2))
    assert cache.refresh() is False
    with sqlite3.connect(bank) as db:
        insert_item(db, 7, kind="changed")
    db.close()
    old = cache.snapshot
    view = cache.embeddings
    before = view.copy()
    with cache.pinned() as pinned:
        assert cache["item-7-ä"]["kind"] == "c"
        other.rebuild()
        assert cache["item-7-ä"]["kind"] == "changed"
        assert pinned["item-7-ä"]["kind"] == "c"
        assert pinned is old
    assert (view == before).all()
    assert cache.generation == 2
    good = path.read_bytes()
    replace_with(path, good[: len(good) // 2])
    assert cache.refresh() is False
    assert cache["item-7-ä"]["kind"] == "changed"
    assert cache.stats().corruptions == 1
    replace_with(path, good)
    assert cache.refresh() is True


def test_a_file_published_while_another_is_opened_is_noticed_by_the_next_get(path: Path, source: SQLiteSource) -> None:
    other = mmcache.open(path, source, executor="external")

    def publish() -> None:
        other.invalidate(reason="manual", hard=False)
        mmcache.build(path, source, metadata={"n": 2})

    with faults(Then("open", path.name, publish)):
        cache = mmcache.open(path, source, executor="external", check_interval=3600)
    assert cache["item-1-ä"]["size"] == 1
    assert cache.stats().generation == 2


def test_a_file_that_was_verified_and_then_written_to_is_verified_again(path: Path, source: SQLiteSource) -> None:
    mmcache.build(path, source)
    mmcache.open(path, source).close()
    before = path.stat().st_mtime_ns
    path.chmod(0o644)

    def damage() -> bool:
        with path.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"damage")
        return path.stat().st_mtime_ns != before

    until("the file system's clock has ticked", damage)
    with pytest.raises(CorruptFileError):
        mmcache.open(path)


def test_a_cache_without_a_file_adopts_one_when_it_appears(path: Path, source: SQLiteSource) -> None:
    cache = mmcache.open(path, source, build=False)
    assert cache.snapshot is None
    assert cache["item-1-ä"]["size"] == 1
    mmcache.build(path, source)
    assert cache.refresh() is True
    assert cache.generation == 1
    cache["item-1-ä"]
    assert (cache.stats().hits, cache.stats().fallbacks) == (1, {"missing": 1})


def test_an_older_file_is_adopted_with_a_word(
    path: Path, bank: Path, source: SQLiteSource, caplog: pytest.LogCaptureFixture
) -> None:
    cache = mmcache.open(path, source)
    first = path.read_bytes()
    with sqlite3.connect(bank) as db:
        insert_item(db, 7, kind="changed")
    db.close()
    cache.rebuild()
    replace_with(path, first)
    assert cache.refresh() is True
    assert "generation_went_back" in logged(caplog)
    assert "went back from generation 2 to 1" in caplog.text


def test_mmcache_disable_sends_everything_to_the_source(
    path: Path, bank: Path, source: SQLiteSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    mmcache.build(path, source)
    monkeypatch.setenv("MMCACHE_DISABLE", "1")
    cache = mmcache.open(path, source)
    check_equals_source(cache, bank)
    assert set(cache.stats().fallbacks) == {"disabled"}
    with pytest.raises(SourceError, match="MMCACHE_DISABLE"):
        mmcache.open(path)


def test_cluster_by_and_metadata_reach_the_build(path: Path, source: SQLiteSource) -> None:
    cache = mmcache.open(path, source, cluster_by={"items": "kind"}, metadata={"model": "m"})
    snapshot = cache.snapshot
    assert snapshot is not None
    assert snapshot.metadata == {"model": "m"}
    chosen = snapshot.where(kind="b")
    assert chosen.rows.tolist() == list(range(int(chosen.rows[0]), int(chosen.rows[0]) + 15))
    assert chosen.embeddings.base is not None


def test_incompatible_error_says_what_was_found(path: Path, source: SQLiteSource) -> None:
    mmcache.build(path, source)
    replace_with(path, flip_header(path.read_bytes(), 8, struct.pack("<3H", 3, 1, 4)))
    with pytest.raises(IncompatibleFormatError, match="upgrade mmcache") as raised:
        Snapshot.open(path)
    error: Any = raised.value
    assert (error.found, error.supported) == ("3.1.4", "2.0.0")


def test_a_mistyped_path_never_replaces_what_is_not_a_cache_file(path: Path, bank: Path, source: SQLiteSource) -> None:
    before = bank.read_bytes()
    for replace in (
        lambda: mmcache.build(bank, source),
        lambda: mmcache.open(bank, source).rebuild(),
        lambda: clear(bank),
    ):
        with pytest.raises(UntrustedPathError, match="is not an mmcache file"):
            replace()
    cache = mmcache.open(bank, source)
    assert cache["item-1-ä"]["size"] == 1
    assert bank.read_bytes() == before
    backup = path.with_name(f"{path.name}.bak")
    backup.write_text("my own notes")
    with pytest.raises(UntrustedPathError, match="is not an mmcache file"):
        mmcache.build(path, source)
    assert backup.read_text() == "my own notes"


@pytest.mark.parametrize("damage", [b"", bytes(4096), b"\x88MMC\r\n\x1a\n" + bytes(500)])
def test_a_cache_file_with_a_damaged_beginning_is_replaced(path: Path, source: SQLiteSource, damage: bytes) -> None:
    path.write_bytes(damage)
    assert mmcache.open(path, source).generation == 1


def numbers(records: Any, field: str) -> list[list[float]]:
    return [record.embedding_of(field).tolist() for record in records]


def test_a_record_of_either_tier_has_each_embedding_by_name(path):
    schema = Schema("items", embedding=("title", "body"), index=("kind",))
    records = [{"id": key, "kind": 1, "title": [1, i], "body": [i, 2, 3]} for i, key in enumerate("abc")]
    with mmcache.open(path, mmcache.IterableSource(records, schema), check_interval=3600.0) as cache:
        cache.get("a")
        cache.invalidate(["b"])
        for found in ([cache[key] for key in "abc"], list(cache.values()), cache.get_many(["a", "b", "c"])):
            assert numbers(found, "title") == [[1, 0], [1, 1], [1, 2]]
            assert numbers(found, "body") == [[0, 2, 3], [1, 2, 3], [2, 2, 3]]
        assert cache.where(kind=1).embeddings_of("body").tolist() == [[0, 2, 3], [1, 2, 3], [2, 2, 3]]
        cache.invalidate()
        assert numbers(cache.values(), "body") == [[0, 2, 3], [1, 2, 3], [2, 2, 3]]


class WithoutColumn(SQLiteSource):
    """Its look-ups fail as those of a source of one's own may, in which a name is wrong."""

    def fetch(self, _: str, keys: Any) -> Any:
        raise KeyError("column", len(keys))


@pytest.mark.parametrize("state", ["no file", "a dirty id", "an absent id"])
def test_a_key_error_of_a_source_is_no_miss(path: Path, bank: Path, state: str) -> None:
    source = WithoutColumn(bank, ITEMS)
    key = "absent" if state == "an absent id" else "item-1-ä"
    with mmcache.open(path, source, executor="external", build=state != "no file") as cache:
        if state == "a dirty id":
            cache.invalidate([key])
        reads = cache.__getitem__, cache.get, cache.__contains__, cache.embedding, lambda key: cache.get_many([key])
        for read in reads:
            with pytest.raises(SourceError, match=r"KeyError: .*'column'"):
                read(key)
