"""One of several publishers: `python -m tests.remote.racer URL NAME ROUNDS`. Each round begins with a line on stdin.

Prints for each round the number that it got. It commits entries as `publish` does, of a file that is uploaded once, so
that the time goes into the race.
"""

from __future__ import annotations

import os
import sys

from mmcache.format.header import Header
from mmcache.remote.entries import Entry, File
from mmcache.remote.log import ReleaseLog
from mmcache.store import Store

HEADER = Header(10_000, 7, 3, 1_700_000_000_000_000_000, 5, bytes(16), bytes(range(32)))


def main(url: str, name: str, rounds: str) -> None:
    log = ReleaseLog(Store(url))
    file = File(
        f"{'a' * 64}-{'b' * 16}.mmc", HEADER.pack(), HEADER.file_size, HEADER.sha256.hex(), {"items": int(name)}
    )
    for turn in range(int(rounds)):
        sys.stdin.readline()

        def fields(newest: Entry | None, turn: int = turn) -> dict[str, object]:
            number = 1 if newest is None else newest.number + 1
            return {"kind": "publish", "file": file, "newest": number, "current": number, "reason": f"{name}.{turn}"}

        entry, _ = log.commit(fields)
        assert entry is not None
        print(entry.number, flush=True)


if __name__ == "__main__":
    os.nice(5)
    main(*sys.argv[1:])
