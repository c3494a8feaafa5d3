"""The recipes of docs/workers.md, one for each kind of worker, as the tests of each kind run them."""

from __future__ import annotations

import re
from pathlib import Path

from examples.demo.bank import write_bank

_PAGE = (Path(__file__).parent.parent / "docs" / "workers.md").read_text()
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def recipe(kind: str) -> str:
    """The recipe for a kind of worker, after the imports and the source at the top of the page."""
    top, *sections = _PAGE.split("\n## ")
    (source,) = _BLOCK.findall(top)
    (own,) = (own for section in sections if section.startswith(f"{kind}\n") for own in _BLOCK.findall(section))
    return f"{source}{own}"


def bank(directory: Path) -> None:
    """What the recipes read: `patterns.db`, 200 patterns and their embeddings, (768,)."""
    write_bank(directory / "patterns.db", 200)
