"""The worked example of docs/format.md: `python -m tests.format.example` prints it."""

from __future__ import annotations

import os
import sys
import tempfile

from mmcache import Schema
from mmcache.sources import as_source
from mmcache.storage.publish import Order, publish
from tests.support import inside

SCHEMA = Schema("t", index=("k",), embedding="v")
ITEMS = [{"id": "a", "k": 1, "v": [1.0, 2.0]}, {"id": "b", "k": None}]
WRITER = "mmcache 0.1.0"
"""It stands in `meta`; a later version of the package gives other bytes here and nowhere else."""
NOT_CONTENT = range(48, 64)
"""Of the header: when it was built, and how long that took."""
NOT_CHECKSUM = range(248, 256)


def hex_dump(data: bytes) -> str:
    """As `xxd` would print it, without lines of zeros, and with dots for what differs from build to build."""
    lines = []
    skipping = False
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        if not any(row):
            lines += [] if skipping else ["*\n"]
            skipping = True
            continue
        skipping = False
        varies = [at + i in NOT_CONTENT or at + i in NOT_CHECKSUM for i in range(len(row))]
        pairs = " ".join("??" if unknown else f"{byte:02x}" for byte, unknown in zip(row, varies, strict=True))
        text = "".join(
            chr(byte) if 32 <= byte < 127 and not unknown else "." for byte, unknown in zip(row, varies, strict=True)
        )
        lines.append(f"{at:04x}  {pairs:47}  {text}\n")
    return "".join(lines)


def example_bytes() -> bytes:
    """The file of the example, built now."""
    with (
        tempfile.TemporaryDirectory() as directory,
        inside.writer(WRITER),
    ):
        path = os.path.join(directory, "example.mmc")
        publish(path, Order(as_source(ITEMS, (SCHEMA,))))
        with open(path, "rb") as file:
            return file.read()


def main() -> None:
    sys.stdout.write(hex_dump(example_bytes()))


if __name__ == "__main__":
    main()
