"""How the collections of a SQLite database are read: the statements of each, and the decoders of its embeddings.

What was found out is kept for as long as the tables stay as they are, and found out anew after that. Each value is
replaced whole, so that threads need no lock, and it is as true in a forked child.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from ..errors import BuildError, SourceError
from ..logs import log
from ..schema import AnySchema, Schema
from .catalog import Catalog
from .connections import BusyError, Connection, Connections
from .names import NoKeyError, attached_names, keys_of_view, origin_of, quoted, resolved
from .statements import Plan, make_plan
from .vectors import MAX_DOUBTS, Decoders

__all__ = ["Plans"]

_ALL: Final[Mapping[str, str]] = MappingProxyType({})


class Plans:
    """The plans of the collections of one source. within: the condition of the rows that are read, by collection."""

    def __init__(self, connections: Connections, catalog: Catalog, within: Mapping[str, str] = _ALL) -> None:
        self._connections = connections
        self._catalog = catalog
        self._within = within
        self._plans: dict[str, tuple[tuple[int, ...], Plan]] = {}
        self._resolved: dict[str, Schema] = {}
        self._learned: dict[str, tuple[Plan, Decoders]] = {}
        self._told: frozenset[str] = frozenset()

    @property
    def schemas(self) -> tuple[AnySchema, ...]:
        """With their keys, and names as the database spells them; as given while it cannot be asked. Waits for no
        writer."""
        if len(self._resolved) < len(self._catalog):
            self._resolve()
        return tuple(self._resolved.get(name, schema) for name, schema in self._catalog.items())

    def _resolve(self) -> None:
        found = {}
        with contextlib.suppress(SourceError, BusyError), self._connections.at_once() as connection:
            for name, schema in self._catalog.items():
                with contextlib.suppress(ValueError):  # no such table yet
                    found[name] = resolved(connection, schema)
        self._resolved = self._resolved | found

    def scans(self, collection: str) -> bool:
        """Whether a lookup there reads the whole collection, as of the last plan; no, while none can be made."""
        schema = self._catalog[collection]
        known = self._plans.get(schema.name)
        if known is None:
            with contextlib.suppress(SourceError, BuildError, BusyError), self._connections.at_once() as connection:
                return self.of(connection, schema).scans
        return known is not None and known[1].scans

    def of(self, connection: Connection, schema: Schema) -> Plan:
        """The plan for lookups: kept for as long as the database's own schema stays as it is. Raises BuildError."""
        names = attached_names(connection) if self._connections.attached else ()
        versions = [f"PRAGMA {quoted(name)}.schema_version" for name in ("main", *names)]
        version = connection.epoch, *(connection.execute(sql).fetchone()[0] for sql in versions)
        known = self._plans.get(schema.name)
        if known is not None and known[0] == version:
            return known[1]
        plan = self._made(connection, schema)
        self._plans[schema.name] = version, plan
        return plan

    def of_all(self, connection: Connection) -> dict[str, Plan]:
        """The plans for a build, by collection. Raises BuildError, which names the columns of a view that could be its
        key; logs collations by which keys are not equal here, once."""
        plans = {name: self._made(connection, schema, look=True) for name, schema in self._catalog.items()}
        self._log_collations(plans)
        return plans

    def _made(self, connection: Connection, schema: Schema, *, look: bool = False) -> Plan:
        """look: at the rows of a view without a key, to name columns that could be it."""
        try:
            plan = make_plan(connection, schema)
        except ValueError as error:
            reason = str(error)
            if look and isinstance(error, NoKeyError):
                reason += f"; {keys_of_view(connection, origin_of(connection, schema))}"
            failure = BuildError.of(schema.name, None, reason)
            failure.path = self._connections.path
            raise failure from error
        self._resolved = self._resolved | {schema.name: plan.schema}
        within = self._within.get(schema.name)
        if within is None:
            return plan
        count = None if plan.count is None else f"{plan.count} AS s WHERE {within}"
        return replace(plan, within=within, count=count)

    def _log_collations(self, plans: dict[str, Plan]) -> None:
        path = self._connections.path
        for name, plan in plans.items():
            if plan.collations and name not in self._told:
                self._told |= {name}
                log.warning(
                    "%s: collection %r: the key %s has the collation %s in the database; here keys are equal only as "
                    "BINARY has it",
                    path,
                    name,
                    ", ".join(plan.schema.key_fields),
                    ", ".join(plan.collations),
                    extra={"event": "collation", "path": path},
                )

    def decoders(self, connection: Connection, plan: Plan) -> Decoders:
        """Those that have learned from the first embeddings, as those of a build do, so that both tiers read alike."""
        if not plan.schema.embeddings:
            return Decoders(plan.schema)
        name = plan.schema.name
        known = self._learned.get(name)
        if known is not None and known[0] is plan:
            return known[1].like()
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        unsettled: tuple[Plan, int, Decoders] | None = connection.notes.get(name)
        if unsettled is not None and unsettled[0] is plan and unsettled[1] == version:
            return unsettled[2].like()
        decoders = Decoders(plan.schema)
        if not decoders.is_settled:
            width = len(plan.schema.embeddings)
            for row in connection.execute(f"{plan.all} LIMIT {MAX_DOUBTS}"):
                with contextlib.suppress(ValueError):  # a build refuses it
                    decoders(row[-width:])
        if decoders.is_settled:
            self._learned = self._learned | {name: (plan, decoders)}
        else:
            connection.notes[name] = plan, version, decoders
        return decoders.like()
