"""A bank of test patterns and of agent configurations in SQLite.

The tables, the two schemas, what makes a record valid, and `PatternsSource`, which reads a bank and refuses invalid
records. A made-up one is written by `examples/demo/bank.py` of the repository.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from ..errors import BuildError
from ..query import Query
from ..schema import Schema
from ..sources.base import Invalid, Key, Reading, Row, SourceRecord, refused
from ..sources.opening import Connect
from ..sources.sqlite import SQLiteSource

__all__ = [
    "AGENT_CONFIGS",
    "DDL",
    "PATTERNS",
    "VERDICTS",
    "PatternsSource",
    "check_agent_config",
    "check_pattern",
]

DDL = """\
CREATE TABLE patterns (
    id        TEXT NOT NULL PRIMARY KEY,
    type      TEXT NOT NULL,  -- of test: 'unit-test', 'integration-test', ...
    domain    TEXT NOT NULL,  -- of the code under test: 'api', 'database', ...
    framework TEXT NOT NULL,  -- 'pytest', 'jest', ...
    content   TEXT NOT NULL,
    metadata  TEXT NOT NULL,  -- JSON: coverage, flakiness_score, verdict, created_at, last_used, usage_count, ...
    embedding BLOB            -- little-endian float32; last, so that reading the others does not read it
);
CREATE TABLE agent_configs (
    agent_id    TEXT NOT NULL PRIMARY KEY,
    type        TEXT NOT NULL,
    config_json TEXT NOT NULL,
    version     TEXT NOT NULL,
    updated_at  TEXT NOT NULL  -- ISO 8601, UTC
);
CREATE INDEX patterns_domain ON patterns (domain);
CREATE INDEX patterns_type ON patterns (type);
CREATE INDEX patterns_framework ON patterns (framework);
CREATE INDEX agent_configs_type ON agent_configs (type);
"""

VERDICTS = ("success", "failure", "flaky", "unknown")

PATTERNS = Schema(
    "patterns",
    key="id",
    index=("domain", "type", "framework"),
    embedding="embedding",
    dim=768,
    json=("metadata",),
)
AGENT_CONFIGS = Schema("agent_configs", key="agent_id", index=("type",))

_PATTERN_TEXTS = ("id", "type", "domain", "framework", "content")
_AGENT_TEXTS = ("agent_id", "type", "config_json", "updated_at")


def check_pattern(pattern: Mapping[str, Any]) -> None:
    """Raises ValueError with the reason why the pattern, its metadata decoded, is not valid.

    id, type, domain, framework and content must be non-empty text. In the metadata the verdict must be one of four
    ('unknown' is there for when it is); coverage and flakiness_score must be in 0..1, or absent or None: not measured.

    >>> texts = dict.fromkeys(("id", "type", "domain", "framework", "content"), "x")
    >>> mmcache.presets.patterns.check_pattern({**texts, "metadata": {"verdict": "success", "coverage": 2}})
    Traceback (most recent call last):
    ValueError: metadata.coverage must be a number in 0..1, found 2
    """
    _check_texts(pattern, _PATTERN_TEXTS)
    metadata = pattern.get("metadata")
    if not isinstance(metadata, Mapping):
        raise ValueError(f"metadata must be a JSON object, found {metadata!r}")  # noqa: TRY004 (a reason, as below)
    for field in ("coverage", "flakiness_score"):
        value = metadata.get(field)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1
        ):
            raise ValueError(f"metadata.{field} must be a number in 0..1, found {value!r}")
    verdict = metadata.get("verdict")
    if verdict not in VERDICTS:
        raise ValueError(f"metadata.verdict must be one of {', '.join(VERDICTS)}; found {verdict!r}")


def check_agent_config(config: Mapping[str, Any]) -> None:
    """Raises ValueError with the reason why the agent configuration is not valid.

    agent_id, type, config_json and updated_at must be non-empty text, config_json of JSON; version, text or a number.

    >>> texts = dict.fromkeys(("agent_id", "type", "updated_at"), "x")
    >>> mmcache.presets.patterns.check_agent_config({**texts, "config_json": "{}", "version": 1})
    """
    _check_texts(config, _AGENT_TEXTS)
    version = config.get("version")
    if version is None or version == "":
        raise ValueError(f"version is required, found {version!r}")
    try:
        json.loads(config["config_json"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config_json is not JSON: {error}") from error


def _check_texts(record: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    for field in fields:
        value = record.get(field)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{field} is required and must be non-empty text, found {value!r}")


_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    PATTERNS.name: check_pattern,
    AGENT_CONFIGS.name: check_agent_config,
}


class PatternsSource(SQLiteSource):
    """A SQLite bank made by `DDL`, with every record checked when it is read for a build.

    schemas: by default PATTERNS and AGENT_CONFIGS. A collection of either name is checked by that name's rules. For
        embeddings of other than 768 numbers: `dataclasses.replace(PATTERNS, dim=384)`.

    Lookups (`fetch`, `find`) give what is there, unchecked; where invalid records are to be left out, `find` leaves
    them out, too.

    >>> with contextlib.closing(sqlite3.connect("patterns.db")) as db:
    ...     _ = db.executescript(mmcache.presets.patterns.DDL)
    >>> with mmcache.open("patterns.mmc", mmcache.presets.patterns.PatternsSource("patterns.db")) as cache:
    ...     len(cache), cache.schema.index
    (0, ('domain', 'type', 'framework'))
    """

    kind: ClassVar[str] = "patterns"
    _gives_plain: ClassVar[bool] = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *schemas: Schema,
        timeout: float = 5.0,
        connect: Connect | str | None = None,
        immutable: bool = False,
    ) -> None:
        schemas = schemas or (PATTERNS, AGENT_CONFIGS)
        super().__init__(path, *schemas, timeout=timeout, connect=connect, immutable=immutable)

    @contextmanager
    def read(self) -> Iterator[Reading]:
        with super().read() as reading:
            yield _CheckedReading(reading, self.path, self._catalog)

    def fetch(self, collection: str, ids: Sequence[Key]) -> list[Row | None]:
        schema = self._catalog[collection]
        found = super().fetch(collection, ids)
        return found if schema.on_invalid == "raise" else [row and _checked(schema, row) for row in found]

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        schema = self._catalog[collection]
        for record in super().find(collection, query):
            if schema.on_invalid == "raise" or not isinstance(_checked(schema, record), Invalid):
                yield record


def _checked(schema: Schema, row: SourceRecord | Invalid) -> SourceRecord | Invalid:
    """The row, if it is valid. Raises BuildError where the schema does not let it be left out."""
    check = _CHECKS.get(schema.name)
    if check is None or isinstance(row, Invalid):
        return row
    try:
        check(dict(zip(row.names, row.values, strict=True)))
    except ValueError as error:
        return refused(schema, row.values[0], str(error), row, cause=error)
    return row


class _CheckedReading:
    def __init__(self, reading: Reading, path: str, schemas: Mapping[str, Schema]) -> None:
        self._reading = reading
        self._path = path
        self._schemas = schemas

    def count(self, collection: str) -> int | None:
        return self._reading.count(collection)

    def records(self, collection: str) -> Iterator[Row]:
        schema = self._schemas[collection]
        for row in self._reading.records(collection):
            try:
                yield _checked(schema, row)
            except BuildError as error:
                error.path = self._path
                raise
