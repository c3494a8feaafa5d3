"""What the tests of storage may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmcache.storage import fs


@pytest.fixture(scope="module")
def no_disk_wait() -> Iterator[None]:
    """Files are written and not synced: for tests that build hundreds of them and cut no power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "_fsync", lambda _: None)
        yield
