"""What the tests of many processes may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bank import make_bank
from tests.support.crew import Crew


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """In WAL mode, so that a build that takes its time keeps no writer waiting."""
    make_bank(tmp_path / "bank.db", wal=True)
    return tmp_path / "bank.db"


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew
