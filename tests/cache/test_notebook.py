"""What a notebook shows of a cache and of a snapshot."""

from __future__ import annotations

import html.parser
import os
import pickle

import pytest

import mmcache
from mmcache import Cache, IterableSource, Schema, Snapshot
from tests.support.observe import await_polls

ITEMS = Schema("items", index=("kind",), embedding="v")
RECORDS = [{"id": f"k{i}", "kind": "<b>", "v": [1.0, float(i)]} for i in range(1200)]


class Text(html.parser.HTMLParser):
    """The text of a document whose tags are closed as they were opened."""

    def __init__(self, document):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(document)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert not attributes
        if tag != "br":
            self.open.append(tag)
            self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_a_snapshot_shows_generation_age_collections_sizes_and_indexes(tmp_path):
    path = tmp_path / "a<b>&.mmc"
    mmcache.build(path, {"items": RECORDS, "others": []}, ITEMS, Schema("others"))
    with Snapshot.open(path) as snapshot:
        texts = Text(snapshot._repr_html_()).texts
    assert str(path) in texts
    assert {"items", "1,200", "2", "kind", "others", "2.0.0"} <= set(texts)
    assert any(text.endswith("ago") for text in texts)
    assert sum(text.endswith(("kB", "bytes")) for text in texts) == 3


def test_a_cache_shows_its_counts_and_its_file_or_that_there_is_none(tmp_path):
    source = IterableSource(RECORDS, ITEMS)
    with mmcache.open(tmp_path / "i.mmc", source) as cache:
        assert cache["k1"] is not None
        texts = Text(cache._repr_html_()).texts
        assert {"fresh", "100.0%", "items", "1,200"} <= set(texts)
    with mmcache.open(tmp_path / "none.mmc", source, build=False) as cache:
        cache.get("k1")
        texts = Text(cache._repr_html_()).texts
        assert "missing" in texts
        assert "items" not in texts


def test_names_are_shown_as_they_are_and_do_nothing(tmp_path):
    name = "<b id='x'>&quot;\"x\""
    schema = Schema(name, index=("<img src=x onerror=alert(1)>",))
    mmcache.build(tmp_path / "i.mmc", [{"id": "a", "<img src=x onerror=alert(1)>": 1}], schema)
    with mmcache.open(tmp_path / "i.mmc") as cache:
        shown = Text(cache._repr_html_())
    assert {name, "<img src=x onerror=alert(1)>"} <= set(shown.texts)
    assert shown.tags == {"p", "code", "b", "table", "tr", "th", "td"}


@pytest.fixture
def source():
    return IterableSource(RECORDS, ITEMS)


def without_a_file(path, source):
    return mmcache.open(path, source, build=False)


def never_read(path, source):
    return Cache(path, source)


def never_read_and_without_a_source(path, source):
    return Cache(path)


def arrived_by_pickle(path, source):
    mmcache.build(path, source)
    with mmcache.open(path) as cache:
        return pickle.loads(pickle.dumps(cache))


def damaged(path, source):
    path.write_bytes(b"\x89MMC\r\n\x1a\n" + bytes(5000))
    return mmcache.open(path, source, build=False)


def of_a_file_that_is_gone(path, source):
    cache = mmcache.open(path, source, executor="external")
    path.unlink()
    return cache


def expired(path, source):
    mmcache.build(path, source)
    return mmcache.open(path, source, ttl=1e-9, executor="external")


def invalidated(path, source):
    cache = mmcache.open(path, source, executor="external")
    cache.invalidate(reason="manual")
    return cache


SHOWN = {
    without_a_file: "missing",
    never_read: "starting",
    never_read_and_without_a_source: "starting",
    arrived_by_pickle: "starting",
    damaged: "incompatible",
    of_a_file_that_is_gone: "fresh",
    expired: "expired",
    invalidated: "invalidated",
}


@pytest.mark.parametrize("made", SHOWN, ids=lambda made: made.__name__.replace("_", " "))
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_showing_a_cache_raises_nothing_and_does_nothing(tmp_path, source, made, closed):
    path = tmp_path / "i.mmc"
    with made(path, source) as cache:
        if closed:
            cache.close()
        await_polls()  # which write down what was counted
        before = {name: os.stat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)}, cache.stats()
        texts = Text(cache._repr_html_()).texts
        assert texts[:3] == [f"Cache: {path}", "state", "closed" if closed else SHOWN[made]]
        assert ("items" in texts) == (not closed and before[1].generation is not None)
        assert repr(cache) == f"<Cache {str(path)!r}>"
        assert ({name: os.stat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)}, cache.stats()) == before


def test_collections_and_closed_snapshots_are_shown_without_reading_either(tmp_path, source):
    mmcache.build(tmp_path / "i.mmc", source)
    with mmcache.open(tmp_path / "i.mmc") as cache:
        items, snapshot = cache.collection("items"), cache.snapshot
        assert snapshot is not None
        shown = snapshot._repr_html_()
    snapshot.close()
    assert repr(items) == f"<CachedCollection {str(tmp_path / 'i.mmc')!r}, collection 'items'>"
    assert snapshot._repr_html_() == shown
    assert repr(snapshot) == f"<Snapshot {str(tmp_path / 'i.mmc')!r}, generation 1, items: 1200>"
