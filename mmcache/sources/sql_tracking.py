"""Change tracking for PostgreSQL, as `tracking` is for SQLite: triggers log which keys were written, whatever writes.

`track` installs them, `untrack` removes every trace, `tracked` and `changes_since` read the log in the transaction of
the caller's. docs/tracking.md shows the SQL, the cost and the limits. Too many keys may be told, never too few: where
the log may not hold everything, nothing is told, and everything counts as changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple
from uuid import uuid4

from ..errors import BuildError, SourceError
from ..logs import log
from ..schema import Schema
from .base import Changes, Key
from .sql_databases import Database
from .sql_links import MARK, Link, Links
from .sql_plans import SQLPlan, make_plan
from .sql_positions import Position, parse, running
from .sql_triggers import FORMAT, LOCK, LOG, SPACE, TRIM, Logged, logged, settings
from .tracking import LIMIT, TrackedTable, Tracking
from .triggers import PREFIX

__all__ = ["changes_since", "is_installed", "track", "tracked", "untrack"]

_INSTALLED = f"""\
SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = '{SPACE}' AND c.relname IN ('changes', 'tracking') AND c.relkind IN ('r', 'v')
  AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AND NOT pg_is_in_recovery()"""

_HOME = f"""\
concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
  (SELECT oid FROM pg_database WHERE datname = current_database()), CAST('{SPACE}.changes' AS regclass)::oid)"""
"""A log that was dumped and restored is at another place. Its numbers are those of other transactions."""

_STATE = f"""\
SELECT t.format, CAST(t.instance AS text), t.home = {_HOME}, t.kept,
  CAST((SELECT o.xid FROM {SPACE}.changes o ORDER BY o.xid LIMIT 1) AS text), CAST(e.xid AS text), e.mark,
  CAST(pg_current_snapshot() AS text),
  (SELECT count(*) FROM pg_trigger g WHERE g.tgrelid = CAST('{SPACE}.changes' AS regclass)
    AND g.tgname = '{PREFIX}trim' AND g.tgenabled = 'A')
FROM {SPACE}.tracking t LEFT JOIN LATERAL (
  SELECT xid, mark FROM {SPACE}.changes ORDER BY xid DESC, seq DESC LIMIT 1) e ON true"""

_TABLES = f"""\
WITH wanted AS (
  SELECT b.i, to_regclass(b.name)::oid AS oid FROM unnest(CAST({MARK} AS text[])) WITH ORDINALITY AS b(name, i)
)
SELECT w.i, w.oid, c.oid, CAST(c.relkind AS text), c.relfilenode, CAST(c.oid AS regclass)::text,
  c.relkind = 'p' OR NOT EXISTS (SELECT 1 FROM pg_inherits h WHERE h.inhparent = c.oid),
  (SELECT md5(string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod), ',' ORDER BY a.attnum))
    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  CAST((SELECT json_agg(json_build_array(g.tgname, g.tgtype, g.tgenabled = 'A', p.proname, p.prosecdef,
      md5(convert_to(p.prosrc, 'UTF8')), CAST(g.xmin AS text), CAST(p.xmin AS text)) ORDER BY g.tgname)
    FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE g.tgrelid = c.oid AND n.nspname = '{SPACE}') AS text)
FROM wanted w LEFT JOIN LATERAL pg_partition_tree(w.oid) f ON true JOIN pg_class c ON c.oid = coalesce(f.relid, w.oid)
ORDER BY w.i, c.oid"""
"""The tables with all their partitions, and what must stay for the log to tell all. TRUNCATE moves `relfilenode`, as
does every ALTER TABLE that writes rows anew without triggers; switching a trigger off and on moves its `xmin`."""


class _Part(NamedTuple):
    """A table, or a partition of it. number: of the plan. is_plain: without children that inherit from it."""

    number: int
    base: int
    oid: int
    kind: str
    file: int
    name: str
    is_plain: bool
    columns: str
    triggers: str | None


class _Base(NamedTuple):
    """A table of a collection, with its partitions. oid: of the table itself."""

    plan: SQLPlan
    oid: int
    parts: tuple[_Part, ...]
    logged: Logged

    @property
    def is_whole(self) -> bool:
        """Whether all triggers are there and in force, and the function is what it should be."""
        return all(map(self._has_all, self.parts))

    def _has_all(self, part: _Part) -> bool:
        wanted = {(name, kind) for name, kind in self.logged.triggers.items()}
        for name, kind, is_always, function, is_definer, digest, _, _ in json.loads(part.triggers or "[]"):
            if function == self.logged.name and is_always and is_definer and digest == self.logged.digest:
                wanted.discard((name, kind))
        return not wanted


# --- reading ----------------------------------------------------------------------------------------------------------


def is_installed(link: Link) -> bool:
    """Whether there is a log that may be read here."""
    dialect: Any = link.connection.dialect
    return dialect.server_version_info >= (13,) and bool(link.execute(_INSTALLED).scalar_one() == 2)


def tracked(link: Link, plans: Sequence[SQLPlan]) -> Position | None:
    """Where the database stands, if the tables of all plans are tracked and all is whole; else None."""
    try:
        bases = _bases(link, plans)
    except ValueError:
        return None
    return _position(link, bases)


def changes_since(link: Link, plans: Sequence[SQLPlan], since: bytes) -> Changes | None:
    """`TrackedSource.changes`."""
    before = parse(since)
    if before is None:
        return None
    try:
        bases = _bases(link, plans)
    except ValueError:
        return None
    now = _position(link, bases)
    if now is None or before.low < now.oldest or before.top > now.top:
        return None
    newest = f"SELECT mark FROM {SPACE}.changes WHERE xid = {_xid(MARK)} ORDER BY seq DESC LIMIT 1"
    mark = link.execute(newest, (str(before.top),)).scalar()
    if mark is None or now.proof(mark) != before.proof:
        return None
    later = f"s.xid >= {_xid(MARK)}"
    bound: list[Any] = [str(before.low)]
    if before.gaps is not None:
        later += f" AND (s.xid > {_xid(MARK)} OR s.xid = ANY(CAST(CAST({MARK} AS text[]) AS xid8[])))"
        bound += [str(before.top), list(map(str, before.gaps))]
    keys: dict[str, frozenset[Key]] = {}
    for base in bases:
        rows = link.rows(
            f"SELECT DISTINCT {', '.join(base.logged.reads)} FROM {SPACE}.changes s "
            f"WHERE {later} AND s.tbl = {MARK} AND s.key_name = {MARK}",
            [*bound, base.oid, base.logged.key_name],
        )
        keys[base.plan.schema.name] = base.plan.keys(rows)
    return Changes(now.fingerprint, keys)


def _xid(text: str) -> str:
    return f"CAST(CAST({text} AS text) AS xid8)"


def _bases(link: Link, plans: Sequence[SQLPlan]) -> list[_Base]:
    """Raises ValueError for what cannot be tracked."""
    for plan in plans:
        if plan.body is None:
            raise ValueError(f"{plan.schema.name!r} is a query, which cannot be tracked; tables can")
    rows = [_Part(*row) for row in _all(link, _TABLES, [[plan.body for plan in plans]])]
    found = []
    for number, plan in enumerate(plans, 1):
        parts = tuple(part for part in rows if part.number == number)
        if not parts:
            raise ValueError(f"there is no table {plan.body}")
        for part in parts:
            if part.kind not in ("r", "p") or not part.is_plain:
                raise ValueError(f"{part.name} {_WHY.get(part.kind, _WHY['r'])}")
        key = [plan.columns[name] for name in plan.schema.key_fields]
        found.append(_Base(plan, parts[0].base, parts, logged(plan.body or "", parts[0].base, key)))
    return found


_WHY = {
    "v": "is a view, which cannot be tracked; tables can",
    "m": "is a materialized view, which cannot be tracked; tables can",
    "f": "is a foreign table, of which triggers see only what is written here",
    "r": "has tables that inherit from it, of which its triggers see nothing",
}


def _position(link: Link, bases: Iterable[_Base]) -> Position | None:
    """None unless all triggers are whole."""
    rows = _all(link, _STATE)
    if len(rows) != 1 or not all(base.is_whole for base in bases):
        return None
    format_, instance, is_home, _, oldest, xid, mark, snapshot, trims = rows[0]
    if format_ != FORMAT or not is_home or not trims or xid is None or int(xid) >= int(snapshot.split(":")[1]):
        return None
    # How a table is called depends on the role that asks.
    parts = {part._replace(number=0, name="") for base in bases for part in base.parts}
    state = repr((instance, sorted(parts, key=lambda part: (part.base, part.oid))))
    top = int(xid)
    return Position(blake2b(state.encode()).digest(), top, mark, running(snapshot, top), int(oldest))


# --- installing and removing ------------------------------------------------------------------------------------------


def track(
    links: Links, database: Database, schemas: Sequence[Schema], *, limit: int = LIMIT, timeout: float = 10.0
) -> Tracking:
    """As `tracking.track`, in one transaction. timeout: seconds to wait for transactions that write to the tables.
    Raises SourceError."""
    if not 1 <= limit < 2**31:
        raise ValueError(f"limit: expected a number of log entries from 1 to {2**31 - 1}, found {limit!r}")
    with _writing(links, timeout) as link:
        try:
            bases = _bases(link, [make_plan(link, database, schema) for schema in schemas])
        except (ValueError, BuildError) as error:
            raise SourceError(str(error), path=links.name) from error
        found = _settings(link)
        is_new = found is None
        changed = _create(link, limit) if found is None else _renew(link, *found, limit)
        for base in bases:
            if is_new or not base.is_whole:
                _install(link, base)
                changed = True
        if changed:
            _tidy(link)
        link.connection.commit()
    tables = tuple(dict.fromkeys(map(_told, bases)))
    if changed:
        names = ", ".join(dict.fromkeys(found.table for found in tables))
        log.info("%s: changes of %s are tracked", links.name, names, extra={"event": "track", "path": links.name})
    return Tracking(links.name, tables, limit, changed)


def untrack(links: Links, *, timeout: float = 10.0) -> tuple[str, ...]:
    """As `tracking.untrack`. Raises SourceError."""
    with _writing(links, timeout) as link:
        triggers = _all(
            link,
            "SELECT DISTINCT g.tgname || ' on ' || CAST(g.tgrelid AS regclass)::text FROM pg_trigger g "
            "JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace "
            f"WHERE n.nspname = '{SPACE}' AND NOT g.tgisinternal AND g.tgparentid = 0 ORDER BY 1",
        )
        tables = _all(
            link,
            "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            f"WHERE n.nspname = '{SPACE}' AND c.relkind IN ('r', 'v') ORDER BY 1",
        )
        removed = tuple(name for names in (triggers, tables) for (name,) in names)
        _run(link, "SET LOCAL client_min_messages = warning", f"DROP SCHEMA IF EXISTS {SPACE} CASCADE")
        link.connection.commit()
    if removed:
        log.info("%s: changes are no longer tracked", links.name, extra={"event": "untrack", "path": links.name})
    return removed


def _settings(link: Link) -> tuple[str, int, bool] | None:
    """The instance and the limit of the log that is there, and whether it has entries; None if it is not whole."""
    rows = _all(link, _STATE) if is_installed(link) else []
    if len(rows) != 1 or rows[0][0] != FORMAT or not (rows[0][2] and rows[0][-1]):
        return None
    return rows[0][1], rows[0][3], rows[0][5] is not None


def _renew(link: Link, instance: str, kept: int, has_entries: bool, limit: int) -> bool:  # noqa: FBT001
    """Whether anything had to be."""
    if kept != limit:
        _run(link, settings(instance, _home(link), limit))
    if not has_entries:
        _run(link, _FIRST)
    _run(link, f"SELECT {SPACE}.trim()")
    return kept != limit or not has_entries


def _create(link: Link, limit: int) -> bool:
    """The log, empty but for its beginning. What there was of one goes, and with it the triggers of all tables: a log
    that was restored from a dump is one of other numbers, and its triggers are of other tables."""
    old = _all(
        link,
        "SELECT 'FUNCTION', CAST(CAST(p.oid AS regprocedure) AS text) FROM pg_proc p JOIN pg_namespace n "
        f"ON n.oid = p.pronamespace WHERE n.nspname = '{SPACE}' UNION ALL "
        "SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, CAST(CAST(c.oid AS regclass) AS text) "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname = '{SPACE}' AND c.relkind IN ('r', 'v')",
    )
    _run(link, *[f"DROP {kind} IF EXISTS {name} CASCADE" for kind, name in old])
    if not link.execute(f"SELECT count(*) FROM pg_namespace WHERE nspname = '{SPACE}'").scalar_one():
        _run(link, f"CREATE SCHEMA {SPACE}")
    _run(link, LOG)
    _run(link, settings(uuid4().hex, _home(link), limit), *TRIM, _FIRST)
    return True


def _home(link: Link) -> str:
    found: str = link.execute(f"SELECT {_HOME}").scalar_one()
    return found


_FIRST = f"""\
INSERT INTO {SPACE}.changes (xid, tbl, key_name)
SELECT CAST(CAST(CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) - 1 AS text) AS xid8), 0, ''"""
"""The log holds all of what is higher, also of transactions that have a number already."""


def _install(link: Link, base: _Base) -> None:
    _run(link, *base.logged.statements)
    for part in base.parts:
        for trigger in base.logged.triggers:
            _run(link, f"ALTER TABLE {part.name} ENABLE ALWAYS TRIGGER {trigger}")


def _tidy(link: Link) -> None:
    """Without the functions of tables that are gone."""
    left = _all(
        link,
        "SELECT CAST(CAST(p.oid AS regprocedure) AS text) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
        f"WHERE n.nspname = '{SPACE}' AND p.proname LIKE 'log%' "
        "AND NOT EXISTS (SELECT 1 FROM pg_trigger g WHERE g.tgfoid = p.oid)",
    )
    _run(link, *[f"DROP FUNCTION {name}" for (name,) in left])


def _told(base: _Base) -> TrackedTable:
    schema = base.plan.schema
    fields = schema.key_fields
    return TrackedTable(
        schema.table or schema.name, fields[0] if len(fields) == 1 else fields, tuple(base.logged.triggers)
    )


def _all(link: Link, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    return list(map(tuple, link.execute(sql, parameters).fetchall()))


def _run(link: Link, *statements: str) -> None:
    for statement in statements:
        link.execute(statement).close()


@contextmanager
def _writing(links: Links, timeout: float) -> Iterator[Link]:
    """A transaction under the lock of tracking, to be committed inside. Raises SourceError."""
    try:
        with links.take() as link:
            link.connection.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=False)
            dialect: Any = link.connection.dialect
            if dialect.server_version_info < (13,):
                raise SourceError("tracking needs PostgreSQL 13 or later", path=links.name)
            _run(
                link,
                f"SET LOCAL lock_timeout = {max(1, round(1000 * timeout))}",
                "SET LOCAL client_min_messages = warning",
                "SET LOCAL synchronous_commit = on",
                f"SELECT pg_advisory_xact_lock({LOCK})",
            )
            yield link
    except SourceError as error:
        cause = getattr(error.__cause__, "orig", None)
        state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        if state == "55P03":
            error.message = f"other transactions keep the tables locked ({error.message}); try again when they are over"
        elif state in ("42501", "25006"):
            error.message = f"tracking writes into the database, and may not ({error.message}): {_NEEDS}"
        raise


_NEEDS = (
    "it needs the owner of the tables, with CREATE on the database, or on a schema of that name made before "
    "(CREATE SCHEMA ... AUTHORIZATION), and a server that can be written"
)
