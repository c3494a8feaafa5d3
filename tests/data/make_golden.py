"""Makes the golden file of format 2.0.0: `python -m tests.data.make_golden DIRECTORY`.

Run once for each version of the format. The file stays as it is for ever: it must open in every later version of
2.x. Beside it stands what it holds, as JSON.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

import mmcache
from mmcache import Schema, SourceRecord
from mmcache.sources import as_source
from mmcache.storage.publish import Order, publish
from tests.support import inside

NAME = "golden-2.0.0"
SCHEMAS = (
    Schema(
        "patterns",
        index=("domain", "rare", "tags", "level"),
        embedding="vector",
        metric="dot",
        json=("metadata",),
    ),
    Schema("agent_configs", key="agent_id", index=("type",)),
    Schema("empty", index=("kind",), embedding="vector", dim=5),
    Schema(
        "Coordinate systems / all", key=("authority", "code"), index=("code", "scale"), embedding=("area", "name_vec")
    ),
    Schema("keys"),
)
WRITER = "mmcache 0.1.0"
"""The one thing in the file that depends on the version of the package."""
METADATA = {"purpose": "golden", "list": [1, None, {"deep": True}]}
CLUSTER_BY = {"agent_configs": "type"}


def vector(i: int) -> list[float]:
    return [i + 0.5, -float(i), 2.0**-i, float(i * i), 0.0, 1e-3 * i, 7.0]


def patterns() -> list[dict[str, Any]]:
    """List, bitmap and range postings, several shapes, nested maps, every type of value, and missing embeddings."""
    unusual = [
        *(None, True, False, 0, -1, 127, -32, 2**64 - 1, -(2**63), 0.5, -0.0, float("inf"), 1e300, "", "\0", "\u00e9"),
        *("e\u0301", "\U0001f9ea", "x" * 300, b"", b"\0\xff", [], [1, [2, [3]]], {}, {"a": {"b": {"c": None}}}),
        *(
            {1: "int", b"b": "bytes", None: "none", 2.5: "float"},
            msgpack.Timestamp(1_700_000_000, 5),
            msgpack.ExtType(5, b"e"),
        ),
    ]
    items = []
    for i in range(80):
        item: dict[str, Any] = {
            "id": f"pattern-{i:03d}" if i % 9 else f"p\u00e4ttern \U0001f9ea {i}",
            "domain": "api" if i % 2 else "ui",
            "rare": "first and last" if i in (0, 79) else ("run" if 20 <= i < 30 else None),
            "tags": [["a"], ["a", "b"], [], [True, 2**63], "single"][i % 5],
            "level": i // 8,
            "value": unusual[i % len(unusual)],
            "metadata": {"coverage": i / 80, "verdict": "flaky"} if i % 3 else {"usage_count": i},
            "vector": vector(i) if i % 7 != 3 else None,
        }
        if i % 4 == 0:
            item["note"] = "n" * i
        if i % 10 == 0:
            item |= {f"wide{j}": j for j in range(12)}
        items.append(item)
    return items


def agent_configs() -> list[dict[str, Any]]:
    return [
        {"agent_id": f"agent-{i}", "type": ("planner", "runner", "critic")[i % 3], "config": {"n": i}, "version": i}
        for i in range(10)
    ]


def records() -> dict[str, list[dict[str, Any]]]:
    return {"patterns": patterns(), "agent_configs": agent_configs(), "empty": []}


def systems() -> list[SourceRecord]:
    """Keys of two fields, floats and null as terms, two embeddings of which either may be missing."""
    names = (("authority", "code"), "scale", "note")
    scales = [0.5, 1, 1.0, None, -0.25, float("inf"), "unknown", 2.0**63, 2**53 + 1, 1e300]
    found = []
    for i in range(20):
        area = None if i % 6 == 5 else struct.pack("<3f", i, -i, 0.5)
        name = None if i % 2 else struct.pack("<2f", 1.0, i)
        key = ("EPSG" if i % 3 else "ESRI", 4326 + i)
        found.append(SourceRecord(names, (key, scales[i % len(scales)], "n" * i), (area, name)))
    return found


def typed_keys() -> list[SourceRecord]:
    """Of every type, and in every form that msgpack has for it."""
    numbers = [0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1]
    numbers += [-1, -32, -33, -128, -129, -32_768, -32_769, -(2**31), -(2**31) - 1, -(2**63)]
    texts = ["", "0", "x" * 31, "x" * 32, "x" * 255, "x" * 256, "\u00e9", "\U0001f9ea"]
    found: list[Any] = [*numbers, *texts, *(b"", b"0", b"b" * 255, b"b" * 256)]
    return [SourceRecord(("id", "n"), (key, i), None) for i, key in enumerate(found)]


class _Golden:
    """The records of all collections, as a source."""

    schemas = SCHEMAS

    @contextlib.contextmanager
    def read(self) -> Iterator[_Golden]:
        with as_source(records(), SCHEMAS[:3]).read() as self._reading:
            yield self

    def count(self, _: str) -> None:
        return None

    def records(self, collection: str) -> Iterator[SourceRecord]:
        own = {SCHEMAS[3].name: systems, SCHEMAS[4].name: typed_keys}
        return iter(own[collection]()) if collection in own else self._reading.records(collection)

    def fingerprint(self) -> bytes:
        return bytes(32)

    def spec(self) -> None:
        return None


def build(path: str | os.PathLike[str]) -> mmcache.BuildReport:
    source: Any = _Golden()
    with inside.writer(WRITER):
        return publish(path, Order(source, CLUSTER_BY, METADATA))


def jsonable(value: Any) -> Any:
    """A form of any value that JSON keeps apart from every other."""
    if isinstance(value, dict):
        return {"map": [[jsonable(key), jsonable(item)] for key, item in value.items()]}
    if isinstance(value, msgpack.ExtType):
        return {"ext": [value.code, base64.b64encode(value.data).decode()]}
    if isinstance(value, msgpack.Timestamp):
        return {"timestamp": [value.seconds, value.nanoseconds]}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, float):
        return {"float": value.hex()}
    return value


def described(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file holds, as plain JSON."""
    with mmcache.Snapshot.open(path) as snapshot:
        return {
            "metadata": jsonable(dict(snapshot.metadata)),
            "build_id": snapshot.header.build_id.hex(),
            "sha256": snapshot.header.sha256.hex(),
            "collections": {
                collection.name: {
                    "schema": collection.schema.to_dict(),
                    "cluster_by": collection.cluster_by,
                    "records": [
                        [
                            jsonable(record.asdict()),
                            *(
                                None if one is None else [x.hex() for x in one.tolist()]
                                for field in collection.embedding_fields
                                for one in [record.embedding_of(field)]
                            ),
                        ]
                        for record in collection.values()
                    ],
                    "terms": {
                        field: [
                            [jsonable(term), collection.where({field: term}).rows.tolist()]
                            for term in collection.terms(field)
                        ]
                        for field in collection.schema.index
                    },
                }
                for collection in snapshot.collections.values()
            },
        }


def main() -> None:
    directory = Path(sys.argv[1])
    made = directory / f"{NAME}.mmc"
    build(made)
    (directory / f"{NAME}.json").write_text(json.dumps(described(made), separators=(",", ":")) + "\n")
    (directory / f"{NAME}.mmc.lock").unlink()


if __name__ == "__main__":
    main()
