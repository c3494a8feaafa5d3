"""Fixtures of the accident tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.accidents.stage import Crew, database


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They take minutes together, and want what not every machine has."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("integration")


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory that every user may enter."""
    directory = Path(tempfile.mkdtemp(prefix="mmcache-accident-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """The database, in a directory without cache files."""
    (tmp_path / "source").mkdir()
    return database(tmp_path / "source" / "items.db")


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew() as crew:
        yield crew
