"""Deltas: the same bytes for a few of them, whatever changed; and only what is proved is kept, whatever one says."""

from __future__ import annotations

import contextlib
import random
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, strategies as st

import mmcache
from mmcache import CorruptFileError, Schema
from mmcache.format.header import HEADER_SIZE
from mmcache.format.layout import Layout, validate
from mmcache.remote import delta
from mmcache.remote.entries import blob_path
from tests.remote.shop import number_of
from tests.support.stores import Served

SCHEMA = Schema("items", index=("kind", "tags"), embedding="v")


SKETCHED = Schema("items", index=("kind", "tags"), embedding="v", sketch=True)


class Bytes:
    """A file in memory, to read and to write."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data


def item(i: int, draw: random.Random) -> dict[str, Any]:
    vector = [draw.random() for _ in range(16)] if i % 11 else None
    return {"id": f"k{i}", "kind": i % 5, "tags": [f"t{i % 3}"], "text": draw.randbytes(150).hex(), "v": vector}


def items(n: int = 3000) -> list[dict[str, Any]]:
    draw = random.Random(4)
    return [item(i, draw) for i in range(n)]


def built(path: Path, records: Any, *schemas: Schema, **options: Any) -> tuple[Bytes, Layout]:
    mmcache.build(path, records, *(schemas or (SCHEMA,)), **options)
    file = Bytes(path.read_bytes())
    return file, validate(file.read, file.size)


def applied(data: bytes, base: Bytes, base_layout: Layout, layout: Layout) -> Bytes:
    target = Bytes(bytes(layout.header.file_size))
    delta.apply(data, base, layout.sections, target, (base_layout.header.sha256, layout.header.sha256))
    return target


def changed(records: list[dict[str, Any]], how: str) -> list[dict[str, Any]]:
    draw, found = random.Random(9), [dict(one) for one in records]
    few = draw.sample(range(len(found)), len(found) // 100)
    match how:
        case "fields":
            for i in few:
                found[i]["text"] = draw.randbytes(draw.randint(1, 200)).hex()
        case "terms":
            for i in few:
                found[i]["kind"] = "another"
        case "embeddings":
            for i in few:
                found[i]["v"] = [draw.random() for _ in range(16)]
        case "added":
            found += [item(10_000 + i, draw) for i in few]
        case "removed":
            found = [one for i, one in enumerate(found) if i not in few]
        case "in the middle":
            for i in few:
                found.insert(i, item(10_000 + i, draw))
        case "order":
            draw.shuffle(found)
        case "shapes":
            for i in few:
                found[i]["more"] = i
        case "all":
            found = [item(i, draw) for i in range(len(found))]
        case "none":
            found = []
    return found


HOW = ("fields", "terms", "embeddings", "added", "removed", "in the middle", "order", "shapes", "all", "none", "same")


@pytest.mark.parametrize("how", HOW)
def test_a_delta_gives_every_byte(tmp_path, how):
    base, before = built(tmp_path / "a.mmc", items())
    new, after = built(tmp_path / "b.mmc", changed(items(), how))
    data = delta.make(base.read, before, new.read, after)
    made = applied(data, base, before, after)
    end = after.chunks.offset
    table = HEADER_SIZE + after.header.table_size
    assert made.data[table:end] == new.data[table:end]
    if how in ("fields", "terms", "embeddings", "shapes"):
        touched = 3 * sum(len(msgpack.packb(one)) for one in changed(items(), how)[::100])
        assert len(data) < touched + 0.01 * new.size, "3 x the changed bytes, and 1 % of the file"
    if how in ("added", "removed", "in the middle", "order"):
        assert len(data) < new.size / 8


@pytest.mark.parametrize("how", ["embeddings", "in the middle", "order"])
def test_a_delta_gives_every_byte_of_a_sketch(tmp_path, how):
    base, before = built(tmp_path / "a.mmc", items(), SKETCHED)
    new, after = built(tmp_path / "b.mmc", changed(items(), how), SKETCHED)
    made = applied(delta.make(base.read, before, new.read, after), base, before, after)
    table = HEADER_SIZE + after.header.table_size
    assert made.data[table : after.chunks.offset] == new.data[table : after.chunks.offset]


@pytest.mark.parametrize("how", ["fields", "in the middle", "removed"])
def test_typed_keys_and_several_collections(tmp_path, how):
    def records(of: list[dict[str, Any]]) -> dict[str, Any]:
        plain = [{key: value for key, value in one.items() if key != "v"} for one in of]
        return {"items": of, "ints": [{**one, "id": int(one["id"][1:])} for one in plain]}

    schemas = SCHEMA, Schema("ints", index=("kind",))
    base, before = built(tmp_path / "a.mmc", records(items(800)), *schemas)
    new, after = built(tmp_path / "b.mmc", records(changed(items(800), how)), *schemas, cluster_by="kind")
    made = applied(delta.make(base.read, before, new.read, after), base, before, after)
    table = HEADER_SIZE + after.header.table_size
    assert made.data[table : after.chunks.offset] == new.data[table : after.chunks.offset]


def test_another_schema_costs_bytes_and_no_more(tmp_path):
    base, before = built(tmp_path / "a.mmc", items(500))
    new, after = built(tmp_path / "b.mmc", items(500), Schema("items", index=("tags", "text")))
    made = applied(delta.make(base.read, before, new.read, after), base, before, after)
    table = HEADER_SIZE + after.header.table_size
    assert made.data[table : after.chunks.offset] == new.data[table : after.chunks.offset]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bytes, Layout, Layout, bytes]:
    place = tmp_path_factory.mktemp("pair")
    base, before = built(place / "a.mmc", items(60))
    new, after = built(place / "b.mmc", changed(items(60), "in the middle") + items(61)[60:])
    return base, before, after, delta.make(base.read, before, new.read, after)


@given(data=st.data())
def test_hostile_deltas_are_refused_or_write_within_the_file(pair, data):
    base, before, after, good = pair
    form, one, other, operations = msgpack.unpackb(zlib.decompress(good), strict_map_key=False)
    at = data.draw(st.integers(0, len(operations) - 1))
    part = data.draw(st.integers(0, len(operations[at]) - 1))
    odd = (
        st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=48) | st.none() | st.sampled_from(["copy", "rows", "ids"])
    )
    operations[at][part] = data.draw(odd)
    target = Bytes(bytes(after.header.file_size))
    hostile = zlib.compress(msgpack.packb([form, one, other, operations]))
    with contextlib.suppress(CorruptFileError):
        delta.apply(hostile, base, after.sections, target, (before.header.sha256, after.header.sha256))
    assert len(target.data) == after.header.file_size
    assert not any(target.data[: HEADER_SIZE + after.header.table_size]), "nor into the table"


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(pair, data):
    base, before, after, good = pair
    for hostile in (data, zlib.compress(data), good[: len(data)]):
        with pytest.raises(CorruptFileError):
            applied(hostile, base, before, after)


def test_a_bomb_is_refused(pair):
    base, before, after, _ = pair
    with pytest.raises(CorruptFileError):
        applied(zlib.compress(bytes(10**8)), base, before, after)


# --- between machines -------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, made, node):
    url = f"file://{tmp_path}/store"
    records = [{"id": f"k{i}", "number": 1, "text": "x" * 900} for i in range(4000)]
    for turn in range(2):
        next(one for one in records if one["id"] == "k7")["text"] = f"changed {turn}"
        records.insert(5, {"id": f"new{turn}", "number": 1, "text": "y"})
        mmcache.build(made, records, Schema("items"))
        mmcache.publish(made, url)
        if turn == 0:
            mmcache.follow(url, node)
    with Served(tmp_path / "store") as found:
        yield found


def deltas_of(served: Served) -> list[Path]:
    return list((served.directory / "deltas").iterdir())


def test_a_follower_takes_the_delta_and_not_the_blob(served, node):
    (path,) = deltas_of(served)
    assert path.stat().st_size < 20_000
    mmcache.follow(served.url, node)
    assert number_of(node) == 1
    assert served.sent < 40_000, "of 4 MB"
    with mmcache.Snapshot.open(node) as snapshot:
        assert snapshot["k7"]["text"] == "changed 1"


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut", "lies"])
def test_without_its_delta_a_release_costs_the_whole_file_and_no_more(served, node, damage):
    (path,) = deltas_of(served)
    data = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "cut":
        path.write_bytes(data[:-9])
    elif damage == "lies":
        form, one, other, operations = msgpack.unpackb(zlib.decompress(data), strict_map_key=False)
        operations[-2][-1] = bytes(len(operations[-2][-1]))
        lie = zlib.compress(msgpack.packb([form, one, other, operations]))
        path.write_bytes(lie + bytes(len(data) - len(lie)) if len(lie) < len(data) else lie)
    mmcache.follow(served.url, node)
    with mmcache.Snapshot.open(node, verify="full") as snapshot:
        assert snapshot["k7"]["text"] == "changed 1"


def test_a_node_without_the_base_downloads_the_file(served, tmp_path):
    fresh = tmp_path / "fresh" / "items.mmc"
    mmcache.follow(served.url, fresh)
    assert number_of(fresh) == 1
    assert not [path for _, path in served.requests if path.startswith("deltas/")]


def test_a_delta_is_named_in_its_release(served, tmp_path):
    from mmcache.remote.log import ReleaseLog
    from mmcache.store import Store

    file = ReleaseLog(Store(f"file://{tmp_path}/store")).release(2).file
    assert file is not None
    (one,) = file.deltas
    data = (served.directory / blob_path(one.name)).read_bytes()
    assert (one.size, one.sha256) == (len(data), sha256(data).hexdigest())
