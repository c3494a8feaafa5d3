"""What goes wrong in the first hour with mmcache has a message that says what to do."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import mmcache
from mmcache import IterableSource, Schema

RECORDS = [{"id": i, "kind": "toy" if i % 2 else "tool"} for i in range(8)]
ITEMS = Schema("items", index=("kind",))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[mmcache.Cache]:
    with mmcache.open(tmp_path / "items.mmc", IterableSource(RECORDS, ITEMS), executor="thread") as cache:
        yield cache


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (mmcache.Record, "cache[key]"),
        (mmcache.Selection, "where()"),
        (mmcache.FileCollection, "snapshot.collection(name)"),
        (mmcache.CachedCollection, "cache.collection(name)"),
        (mmcache.Neighbours, "nearest()"),
        (mmcache.Snapshot, "mmcache.Snapshot.open(path)"),
    ],
)
def test_a_class_that_is_given_says_what_gives_it(kind: Callable[..., Any], how: str):
    for given in ((), ("x",)):
        with pytest.raises(TypeError, match=re.escape(how)):
            kind(*given)


@pytest.mark.parametrize("name", ["build", "fallback_on_slow"])
def test_an_option_of_yes_or_no_is_no_text(tmp_path: Path, name: str):
    """ "no" and "false", from an environment or a file of settings, would be true."""
    with pytest.raises(ValueError, match=f"^{name} must be True or False, not 'false'$"):
        mmcache.open(tmp_path / "items.mmc", IterableSource(RECORDS, ITEMS), **cast("Any", {name: "false"}))


@pytest.mark.parametrize(("option", "method"), [("limit", "limit(10)"), ("order_by", "order_by(field)")])
def test_where_names_the_methods_that_it_has_no_options_for(cache: mmcache.Cache, option: str, method: str):
    with pytest.raises(ValueError, match=re.escape(f"has no index on '{option}'; indexed fields: kind; ") + ".*") as it:
        cache.where({"kind": "toy", option: 3})
    assert str(it.value).endswith(f"write where(...).{method}")


def test_one_id_is_no_iterable_of_ids(cache: mmcache.Cache):
    for one in (5, "5", b"5"):
        with pytest.raises(TypeError, match=re.escape(f"ids must be an iterable of ids, not one: [{one!r}]")):
            cache.invalidate(one)  # type: ignore[arg-type]


def test_ids_of_a_type_that_no_key_has_are_named_once(cache: mmcache.Cache, caplog: pytest.LogCaptureFixture):
    """Of "5" where the keys are numbers nothing would be invalidated, in silence."""
    assert cache[5]["kind"] == "toy"
    with caplog.at_level(logging.WARNING):
        cache.invalidate([5, cast("int", np.int64(6))])
        assert not caplog.records
        for _ in range(2):
            cache.invalidate(["5"])
    assert [record.getMessage() for record in caplog.records] == [
        f"{cache.path}: collection 'items' was asked to invalidate a key of type str; its keys are of type int"
    ]


def test_a_failure_of_an_earlier_try_is_told_as_one(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """In a notebook: a cell with a mistake, then the cell without it."""
    wrong = IterableSource(RECORDS, Schema("items", index=("knd",)))
    with mmcache.open(tmp_path / "items.mmc", wrong, executor="thread"):
        caplog.clear()
        with mmcache.open(tmp_path / "items.mmc", IterableSource(RECORDS, ITEMS), executor="thread") as cache:
            assert cache[5]["kind"] == "toy"
    texts = [record.getMessage() for record in caplog.records if getattr(record, "event", "") == "build_failed"]
    assert len(texts) == 1
    assert re.search(r": a build failed \d+ seconds? ago, and none is tried for \d+ more seconds: .*'knd'", texts[0])
