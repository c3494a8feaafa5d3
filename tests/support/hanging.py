"""Lines of JSON, read by functions that a rebuild imports, in whose place a pipe that nothing writes can be put."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmcache import CallableSource
from tests.support.bank import LINES

PLACE = "MMCACHE_TEST_LINES"
"""The environment variable that says where they are."""


def lines() -> list[dict[str, Any]]:
    with open(os.environ[PLACE], encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def looks() -> str:
    found = os.stat(os.environ[PLACE])
    return f"{found.st_ino}:{found.st_mtime_ns}"


def hanging_source() -> CallableSource:
    return CallableSource(lines, LINES, fingerprint=looks)


def hang(place: Path) -> None:
    """Whatever reads the lines from now on waits."""
    os.mkfifo(f"{place}.pipe")
    os.replace(f"{place}.pipe", place)
