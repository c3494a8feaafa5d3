"""The recipes of the README, one for each kind of worker, as the tests of each kind run them."""

from __future__ import annotations

import re
from pathlib import Path

from mmcache.presets.bank import write_bank

_README = (Path(__file__).parent.parent / "README.md").read_text()
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

SECTION = _README.partition("\n### In your workers\n")[2].partition("\n### ")[0]
REST = _README.replace(SECTION, "")


def recipe(kind: str) -> str:
    """The recipe for a kind of worker, after the imports and the source of the first example, which it builds on."""
    (first, *_), (own,) = (
        _BLOCK.findall(REST),
        _BLOCK.findall(SECTION.partition(f"#### {kind}\n")[2].split("\n#### ")[0]),
    )
    return f"{first.partition('with mmcache.open')[0]}{own}"


def bank(directory: Path) -> None:
    """What the recipes read: `patterns.db`, 200 patterns and their embeddings, (768,)."""
    write_bank(directory / "patterns.db", 200)
