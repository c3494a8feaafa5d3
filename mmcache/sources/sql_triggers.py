"""What tracking installs in PostgreSQL, as SQL; docs/tracking.md shows it.

Everything but the triggers lives in a schema of its own, so that one DROP SCHEMA removes it. A row trigger logs the key
as text, together with the number of the writer's transaction. The text is read back as the type of the column.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b, md5
from typing import Final, NamedTuple

from .sql_columns import SQLColumn
from .triggers import PARTS, PREFIX, key_name

__all__ = ["FORMAT", "LOCK", "LOG", "SPACE", "TRIM", "Logged", "logged", "settings"]

FORMAT: Final = 1
SPACE: Final = "_mmcache"
LOCK: Final = 0x6D6D6361636865
"""Advisory lock of the database, held by a trim and by `track` until their transaction ends."""

_TRIM_EVERY: Final = 16_384
"""Entries between two trims, so many of which may stand in the log beyond its limit."""

LOG: Final = f"""\
CREATE UNLOGGED TABLE {SPACE}.changes (
  xid xid8 NOT NULL DEFAULT pg_current_xact_id(), seq bigint GENERATED ALWAYS AS IDENTITY,
  mark bigint NOT NULL DEFAULT CAST(random() * 9e18 AS bigint),
  tbl oid NOT NULL, key_name text NOT NULL, {", ".join(f"{part} text" for part in PARTS)}, PRIMARY KEY (xid, seq)
)"""
"""Unlogged: the server empties it after a crash, which may lose transactions that readers had seen, and in whatever is
made of a backup or a standby. It is not replicated, and takes less of a writer's time."""


def settings(instance: str, home: str, kept: int) -> str:
    """The statement that keeps what a log has besides its entries, where nothing replicates it."""
    return (
        f"CREATE OR REPLACE VIEW {SPACE}.tracking AS SELECT {FORMAT} AS format, "
        f"CAST({_text(instance)} AS text) AS instance, CAST({_text(home)} AS text) AS home, {kept} AS kept"
    )


TRIM: Final = (
    # Nothing here may make the writer's transaction fail. Under SERIALIZABLE even reading the log might.
    # What is as new as a writer that is not over yet stays, and the newest before that, which proves fingerprints.
    f"""\
CREATE OR REPLACE FUNCTION {SPACE}.trim() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  least xid8;
BEGIN
  IF current_setting('transaction_isolation') = 'serializable' OR NOT pg_try_advisory_xact_lock({LOCK}) THEN
    RETURN;
  END IF;
  SELECT xid INTO least FROM {SPACE}.changes ORDER BY xid DESC, seq DESC
    OFFSET (SELECT kept FROM {SPACE}.tracking) LIMIT 1;
  IF least > pg_snapshot_xmin(pg_current_snapshot()) THEN
    SELECT xid INTO least FROM {SPACE}.changes WHERE xid < pg_snapshot_xmin(pg_current_snapshot())
      ORDER BY xid DESC, seq DESC LIMIT 1;
  END IF;
  DELETE FROM {SPACE}.changes WHERE xid < least;
EXCEPTION WHEN serialization_failure OR deadlock_detected OR lock_not_available THEN
  RETURN;
END $$""",
    f"""\
CREATE OR REPLACE FUNCTION {SPACE}.trim_now_and_then() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM {SPACE}.trim();
  RETURN NULL;
END $$""",
    f"""\
CREATE TRIGGER {PREFIX}trim AFTER INSERT ON {SPACE}.changes FOR EACH ROW WHEN (NEW.seq % {_TRIM_EVERY} = 0)
  EXECUTE FUNCTION {SPACE}.trim_now_and_then()""",
    f"ALTER TABLE {SPACE}.changes ENABLE ALWAYS TRIGGER {PREFIX}trim",
)

_MOMENTS: Final = "SET TimeZone = 'UTC' SET DateStyle = 'ISO' SET IntervalStyle = 'iso_8601'"
"""Of a function that logs moments, as `settle` has them where they are read."""

_EVENTS: Final = {
    "insert": ("INSERT", "NEW.{0} IS NOT NULL", 5),
    "update": ("UPDATE", "OLD.{0} IS NOT NULL OR NEW.{0} IS NOT NULL", 17),
    "delete": ("DELETE", "OLD.{0} IS NOT NULL", 9),
}
"""Event -> its word, when it is logged, and `tgtype`. What a trigger names cannot be dropped unseen: PostgreSQL refuses
to drop the column, or drops the trigger along with it. A function's body is not looked at."""


class Logged(NamedTuple):
    """One table and the key that is logged of it. name: of its function. triggers: name -> `tgtype`. digest: of the
    function's body. statements: what makes them all. key_name: as it stands in the log. reads: what gives the key's
    columns back, of a row `s` of the log."""

    name: str
    triggers: dict[str, int]
    digest: str
    statements: tuple[str, ...]
    key_name: str
    reads: tuple[str, ...]


def logged(table: str, oid: int, key: Sequence[SQLColumn]) -> Logged:
    """table: quoted. Raises ValueError for a key of a type that no text gives back."""
    for column in key:
        is_readable = _is_text(column) or column.cast
        if not is_readable or column.kind in ("float", "real", "json", "array", "any", "bool"):
            raise ValueError(f"column {column.name!r}: a key of this type cannot be logged")
    names = [column.name for column in key]
    suffix = blake2b(repr(names).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    name = f"log_{oid}_{suffix}"
    body = _body(oid, key)
    is_dated = any(_is_text(column) for column in key)
    function = (
        f"CREATE OR REPLACE FUNCTION {SPACE}.{name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER\n"
        f"SET search_path = pg_catalog, pg_temp {_MOMENTS * is_dated} AS {_dollars(body)}"
    )
    calls = f"EXECUTE FUNCTION {SPACE}.{name}()"
    statements, triggers = [function], {}
    for event, (word, when, kind) in _EVENTS.items():
        trigger = f"{PREFIX}{event}_{suffix}"
        triggers[trigger] = kind
        condition = " OR ".join(f"({when.format(column.sql.removeprefix('s.'))})" for column in key)
        statements += [
            f"DROP TRIGGER IF EXISTS {trigger} ON {table}",
            f"CREATE TRIGGER {trigger} AFTER {word} ON {table} FOR EACH ROW WHEN ({condition}) {calls}",
            f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}",
        ]
    reads = tuple(
        f"s.{part}" if _is_text(column) else f"CAST(s.{part} AS {column.cast})"
        for part, column in zip(PARTS, key, strict=False)
    )
    digest = md5(body.encode(), usedforsecurity=False).hexdigest()
    return Logged(name, triggers, digest, tuple(statements), key_name(tuple(names)), reads)


def _body(oid: int, key: Sequence[SQLColumn]) -> str:
    width = len(key)
    into = f"INSERT INTO {SPACE}.changes (tbl, key_name, {', '.join(PARTS[:width])})"
    tag = f"{oid}, {_text(key_name(tuple(column.name for column in key)))}"
    old, new = (", ".join(_written(column, row) for column in key) for row in ("OLD", "NEW"))
    differ = " OR ".join(
        f'{_written(column, "NEW")} COLLATE "C" IS DISTINCT FROM {_written(column, "OLD")} COLLATE "C"'
        for column in key
    )
    return f"""
BEGIN
  IF TG_OP = 'INSERT' THEN
    {into} VALUES ({tag}, {new});
  ELSE
    {into} VALUES ({tag}, {old});
    IF TG_OP = 'UPDATE' THEN
      IF {differ} THEN
        {into} VALUES ({tag}, {new});
      END IF;
    END IF;
  END IF;
  RETURN NULL;
END """


def _is_text(column: SQLColumn) -> bool:
    """Whether the column is read as its text, which depends on settings."""
    return column.selected != column.sql


def _written(column: SQLColumn, row: str) -> str:
    value = f"{row}.{column.sql.removeprefix('s.')}"
    if _is_text(column):
        return column.selected.replace(column.sql, value, 1)
    # A cast to text takes the blanks from the end of a char(n).
    return f"concat({value})" if column.kind == "padded" else f"CAST({value} AS text)"


def _dollars(body: str) -> str:
    tag = "$mmcache$"
    while tag in body:
        tag = tag[:-1] + "x$"
    return f"{tag}{body}{tag}"


def _text(value: str) -> str:
    return "E'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
