"""How the collections of a database that SQLAlchemy reaches are read: a plan for each, kept for some seconds.

The twin of `planned`, which can ask SQLite whether its tables are as they were. Each value is replaced whole, so that
threads need no lock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from ..errors import BuildError
from ..schema import Schema
from .sql_databases import Database
from .sql_links import Link
from .sql_plans import SQLPlan, make_plan
from .vectors import MAX_DOUBTS, Decoders

__all__ = ["SQLPlans"]

_PLAN_SECONDS: Final = 10.0
"""For so long lookups rely on the columns that a table had."""


class SQLPlans:
    """The plans of the collections of one source. path: for messages."""

    def __init__(self, database: Database, path: str) -> None:
        self._database = database
        self._path = path
        self._plans: dict[str, tuple[float, SQLPlan]] = {}
        self._learned: dict[str, Decoders] = {}
        self.resolved: Mapping[str, Schema] = {}
        """By collection: the schema with its key, and names as the database spells them, once it was asked."""

    def forget(self) -> None:
        """A column may be gone, or be of another type."""
        self._plans = {}

    def of(self, link: Link, schema: Schema) -> SQLPlan:
        """The plan for lookups. Raises BuildError."""
        known = self._plans.get(schema.name)
        if known is not None and time.monotonic() - known[0] < _PLAN_SECONDS:
            return known[1]
        plan = self.made(link, schema)
        self._plans = self._plans | {schema.name: (time.monotonic(), plan)}
        return plan

    def made(self, link: Link, schema: Schema) -> SQLPlan:
        """A new plan, for a build. Raises BuildError for a schema that the database cannot meet."""
        try:
            plan = make_plan(link, self._database, schema)
        except ValueError as error:
            failure = BuildError.of(schema.name, None, str(error))
            failure.path = self._path
            raise failure from error
        self.resolved = {**self.resolved, schema.name: plan.schema}
        return plan

    def decoders(self, link: Link, plan: SQLPlan) -> Decoders:
        """Those that have learned from the first embeddings, as those of a build do, so that both tiers read alike."""
        name = plan.schema.name
        known = self._learned.get(name)
        if known is not None:
            return known.like()
        decoders = plan.decoders()
        if not decoders.is_settled and self._database.has_limit:
            for row in list(link.rows(f"{plan.looking} {plan.order} LIMIT {MAX_DOUBTS}")):
                with suppress(ValueError):  # a build refuses it
                    list(plan.records(iter([row]), decoders))
        if decoders.is_settled:
            self._learned = self._learned | {name: decoders}
        return decoders.like()
