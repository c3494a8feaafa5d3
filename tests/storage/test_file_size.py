"""What a file takes beyond its records and embeddings: limits just above today's size, equal on every machine."""

from __future__ import annotations

import os

import msgpack
import pytest

import mmcache
from mmcache import Schema


@pytest.mark.parametrize(
    ("schema", "items", "most"),
    [
        pytest.param(
            Schema("patterns", index=("kind", "number"), embedding="v", dim=64),
            [
                {"id": f"record-{i}", "kind": f"kind-{i % 7}", "number": i % 1000, "v": [0.5] * 64}
                for i in range(10_000)
            ],
            60,
            id="few terms",
        ),
        pytest.param(
            Schema("items", index=("a", "b")),
            [{"id": f"r{i}", "a": i, "b": f"x{i}"} for i in range(50_000)],
            195,
            id="a term for each record",
        ),
        pytest.param(Schema("items"), [{"id": i, "a": i} for i in range(50_000)], 58, id="int keys"),
    ],
)
def test_a_record_takes_few_bytes_more_than_its_values(tmp_path, schema, items, most):
    mmcache.build(tmp_path / "i.mmc", items, schema)
    vector = 4 * (schema.dim or 0)
    values = sum(len(msgpack.packb([x for name, x in item.items() if name != "v"])) + vector for item in items)
    more = (os.path.getsize(tmp_path / "i.mmc") - values) / len(items)
    assert most - 8 < more < most
