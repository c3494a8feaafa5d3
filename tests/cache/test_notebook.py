"""What a notebook shows of a cache and of a snapshot."""

from __future__ import annotations

import html.parser

import mmcache
from mmcache import IterableSource, Schema, Snapshot

ITEMS = Schema("items", index=("kind",), embedding="v")
RECORDS = [{"id": f"k{i}", "kind": "<b>", "v": [1.0, float(i)]} for i in range(1200)]


class Text(html.parser.HTMLParser):
    """The text of a document whose tags are closed as they were opened."""

    def __init__(self, document):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(document)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag != "br":
            self.open.append(tag)

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
    assert {"items", "1,200", "2", "kind", "others", "1.1.0"} <= set(texts)
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
        assert "no file" in texts
        assert "items" not in texts
