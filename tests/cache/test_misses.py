"""A key that the file lacks is looked for where that costs little, or where it may be there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import BaseSource, Cache, JSONLinesSource, Schema
from tests.support import inside
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")


class Counted(JSONLinesSource):
    """Says how often the file was read."""

    reads = 0

    @contextmanager
    def read(self) -> Iterator[mmcache.Reading]:
        self.reads += 1
        with super().read() as reading:
            yield reading


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def opened(path: Path, source: mmcache.Source, **options: Any) -> Cache:
    return mmcache.open(path.with_suffix(".mmc"), source, executor="external", check_interval=3600, **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "items.jsonl", {"id": "a", "n": 1}, {"id": "b", "n": 2})


def test_a_file_that_is_as_it_was_is_not_read_for_a_key_that_it_lacks(file):
    with opened(file, source := Counted(file, Schema("items"))) as cache:
        reads = source.reads
        assert [cache.get(key) for key in ("x", 1, b"x")] == [None, None, None]
        assert "y" not in cache
        assert cache.get_many(["a", "z"]) == [{"id": "a", "n": 1}, None]
        with pytest.raises(KeyError):
            cache.embedding("x")
        assert source.reads == reads
        assert cache.stats().misses == 6


def test_a_file_that_has_changed_is_read(file):
    with opened(file, source := Counted(file, Schema("items"))) as cache:
        assert cache.get("new") is None
        write(file, {"id": "new", "n": 3})
        assert cache["new"]["n"] == 3
        reads = source.reads
        assert reads > 1
        # Two writes within one tick of the clock look alike from outside.
        write(file, {"id": "now", "n": 3})
        assert cache["now"]["n"] == 3
        assert cache.get("new") is None


def test_an_invalidated_key_is_looked_for_whatever_the_fingerprint_says(tmp_path):
    class Constant(BaseSource):
        def __init__(self) -> None:
            super().__init__(Schema("items"))
            self.rows = [{"id": "a"}]

        @contextmanager
        def read(self) -> Iterator[mmcache.Reading]:
            yield self.reading(self.rows)

    source = Constant()
    with opened(tmp_path / "c", source) as cache:
        source.rows = [{"id": "a"}, {"id": "b"}]
        assert cache.get("b") is None
        cache.invalidate(["b"])
        assert cache["b"] == {"id": "b"}
        cache.invalidate(hard=True)
        assert list(cache) == ["a", "b"]


def test_rows_that_were_left_out_are_still_found(file):
    write(file, {"id": "a", "n": 1}, {"id": "bad", "n": 2**70}, "no JSON\n")
    with opened(file, source := Counted(file, Schema("items", on_invalid="skip"))) as cache:
        assert list(cache) == ["a"]
        reads = source.reads
        assert cache.get("x") is None
        assert source.reads == reads
        assert cache["bad"]["n"] == 2**70
        assert source.reads == reads + 1


def test_among_more_bad_rows_than_are_named_each_key_is_looked_for(file):
    write(file, {"id": "a", "n": 1}, *({"id": f"bad{i}", "n": 2**70} for i in range(30)))
    with opened(file, Counted(file, Schema("items", on_invalid="skip"))) as cache:
        assert cache["bad29"]["n"] == 2**70
        assert cache.get("x") is None


def test_a_source_with_an_index_is_always_asked(tmp_path):
    class Indexed(BaseSource):
        def __init__(self) -> None:
            super().__init__(Schema("items"))
            self.rows = {"a": {"id": "a"}}

        @contextmanager
        def read(self) -> Iterator[mmcache.Reading]:
            yield self.reading(self.rows.values())

        def fetch(self, collection: str, ids: Sequence[Any]) -> list[Any]:
            found = mmcache.IterableSource([self.rows[key] for key in ids if key in self.rows], *self.schemas)
            return list(found.fetch(collection, ids))

    source = Indexed()
    with opened(tmp_path / "c", source) as cache:
        assert cache.get("b") is None
        source.rows["b"] = {"id": "b"}
        assert cache["b"] == {"id": "b"}


def test_a_source_that_cannot_say_how_it_is_is_asked(tmp_path):
    class Failing(BaseSource):
        fails = False

        @contextmanager
        def read(self) -> Iterator[mmcache.Reading]:
            yield self.reading([{"id": "a"}])

        def fingerprint(self) -> bytes:
            if self.fails:
                raise OSError("gone")
            return b"x" * 32

    source = Failing(Schema("items"))
    with opened(tmp_path / "c", source) as cache:
        assert cache.get("b") is None
        source.fails = True
        with pytest.raises(OSError, match="gone"):
            cache.get("b")
        assert cache["a"] == {"id": "a"}


def test_a_miss_is_one_of_the_file_that_is_as_the_source_is(file):
    """Case: between the look into a file that lacks the key, and the question to the source, a file that has it is
    published and adopted. Then the source's fingerprint is that of the other file."""
    source = Counted(file, Schema("items"))
    with opened(file, source) as cache:
        assert cache.get("new") is None
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(cache.get_many(["new"])))
        with inside.stopped_after_its_look(cache) as (looked, go_on):
            thread.start()
            assert looked.wait(30)
            write(file, {"id": "new", "n": 9})
            mmcache.build(file.with_suffix(".mmc"), JSONLinesSource(file, Schema("items")))
            until("the new file", lambda: cache.refresh() or cache.generation == 2)
            go_on.set()
            thread.join()
        assert answers == [[{"id": "new", "n": 9}]]
