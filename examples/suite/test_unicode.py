"""Tests over a data set that all workers share: see conftest.py."""

from __future__ import annotations

from unicodedata import ucd_3_2_0 as ucd

import numpy as np
import pytest

import mmcache
from mmcache import startswith
from mmcache.types import Isolate

ALPHA = ord("\N{GREEK SMALL LETTER ALPHA}")


@pytest.mark.parametrize("character", "aZ€αж")
def test_a_character_has_its_name(unicode: mmcache.Cache, character: str) -> None:
    assert unicode[ord(character)]["name"] == ucd.name(character)


@pytest.mark.parametrize("category", ["Lu", "Nd", "Sc", "Zs"])
def test_an_index_gives_what_a_scan_gives(unicode: mmcache.Cache, category: str) -> None:
    scanned = [number for number, record in unicode.items() if record["category"] == category]
    assert unicode.where(category=category).ids == scanned


def test_similar_names_lie_close_together(unicode: mmcache.Cache) -> None:
    letters = unicode.where(name=startswith("GREEK SMALL LETTER"))
    vector = unicode.embedding(ALPHA)
    assert vector is not None
    assert letters[int(np.linalg.norm(letters.embeddings - vector, axis=1).argmin())].id == ALPHA


def test_a_test_may_change_a_copy_of_its_own(unicode: mmcache.Cache, mmcache_isolated: Isolate) -> None:
    own = mmcache_isolated(unicode)
    own.invalidate([ord("a")])
    assert own.stats().counters["invalidated_ids"] == 1
    assert unicode.stats().counters["invalidated_ids"] == 0
