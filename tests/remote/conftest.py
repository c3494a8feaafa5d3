"""Stores for the tests of releases. By day a directory; beside other integration tests a server of S3 as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import stores

pytest.importorskip("obstore", reason="the extra remote is not installed")


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with stores.moto() as found:
        yield found


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an empty store."""
    if request.param == "file":
        return f"file://{tmp_path}/store/items"
    for name, value in stores.environment(request.getfixturevalue("endpoint")).items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Where a publisher builds."""
    (tmp_path / "publisher").mkdir()
    return tmp_path / "publisher" / "items.mmc"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Where a node has its file."""
    (tmp_path / "node").mkdir()
    return tmp_path / "node" / "items.mmc"
