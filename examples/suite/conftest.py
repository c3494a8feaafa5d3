"""One data set for a whole run of pytest, whatever number of workers it has.

    pytest                    # one process builds the cache and reads it
    pytest -n 8               # one of eight builds it; all map one file

The data set is the Unicode database of Python, version 3.2, with a vector for each character. Without the cache each
worker would make, and keep, a copy of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unicodedata import ucd_3_2_0 as ucd

import pytest

import mmcache
from mmcache import Schema
from mmcache.integrations.pytest_plugin import CacheFactory

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def characters() -> Iterator[dict[str, Any]]:
    """Called in one process of the run."""
    for number in range(0x10000):
        name = ucd.name(chr(number), "")
        if name and not name.startswith(("CJK", "HANGUL SYLLABLE")):
            vector = [name.count(letter) for letter in LETTERS]
            yield {"id": number, "name": name, "category": ucd.category(chr(number)), "vector": vector}


@pytest.fixture(scope="session")
def unicode(mmcache_factory: CacheFactory) -> mmcache.Cache:
    schema = Schema("characters", index=("category", "name"), embedding="vector")
    return mmcache_factory("unicode", build=characters, schema=schema)
