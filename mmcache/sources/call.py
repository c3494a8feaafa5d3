"""`CallableSource`: a function that gives the records is the source.

def fetch_all():
    return db.rows("SELECT * FROM items")

cache = mmcache.open("items.mmc", load=fetch_all, schema=Schema("items", index=("kind",)))
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self, TypedDict, Unpack, overload

from ..errors import SourceError
from ..format.keys import check_key
from ..schema import AnySchema, R_co, Schema, check_width
from ..shown import internal
from ..values import Default, Values, importable
from .base import Changes, Key, Reading, Row, told
from .functions import described, is_findable
from .iterable import ArrowStream
from .mappings import Keyed, shape_records
from .own import BaseSource
from .tokens import fingerprint_of_token, token_in

__all__ = ["CallOptions", "CallableSource", "ChangedSince", "Fetch", "Fingerprint", "Load"]

Load = Callable[[], Iterable[Any] | ArrowStream]
Fetch = Callable[[list[Key]], Iterable[Any]]
Fingerprint = Callable[[], object]
ChangedSince = Callable[[Any], Iterable[object] | Mapping[str, Iterable[object]] | None]
"""Called with what `Fingerprint` gave."""

_STORED = "load", "fingerprint", "default"
"""Arguments without which a file cannot be built again as it is."""


class CallOptions(TypedDict, total=False):
    """What makes it cheaper to ask a function: see `CallableSource`."""

    fetch: Fetch | str | Mapping[str, Fetch | str] | None
    changed_since: ChangedSince | str | None
    fingerprint: Fingerprint | str | None


@internal("given", "kind", "remade")
class CallableSource(BaseSource[R_co]):
    """Records that a function gives, called for each build. Every function is given itself, or as its name
    "module:function".

    load: gives the records as `IterableSource` takes them: an iterable of mappings, such as a list or a generator; for
        several schemas, {collection: iterable}.
    fetch: gives the records of a list of keys, in the order of `load`; without those that are not there. For several
        schemas, {collection: function}. Without it, a lookup that the file may not answer calls `load`; an id that
        the file lacks is not looked for, until something is invalidated or the fingerprint has changed.
    fingerprint: gives a number, text, datetime or tuple that differs when the records may have changed, such as
        `SELECT max(updated_at), count(*)`: cheap, as it is asked once a second. Without it, or where it is None, only
        what is invalidated, and age, make the file be built again.
    changed_since: gives the keys that were written since a fingerprint, as `fingerprint` gave it; perhaps more, never
        fewer; None where that cannot be told. For several schemas, {collection: keys}. Exactly these are answered by
        the source until the file is built again.
    default: as of `IterableSource`.

    Rebuilt in the background by a process if all functions can be imported by name there, else by a thread: those of
    `__main__`, lambdas and inner functions cannot. A file only mentions their names; nothing is imported for that.

    >>> prices = {"apple": 3, "pear": 5}
    >>> source = mmcache.CallableSource(
    ...     lambda: [{"id": name, "price": price} for name, price in prices.items()],
    ...     Schema("prices"),
    ...     fingerprint=lambda: (len(prices), sum(prices.values())),
    ... )
    >>> with mmcache.open("prices.mmc", source) as cache:
    ...     prices["pear"] = 6
    ...     cache.invalidate(["pear"]), cache["pear"]["price"]
    ('ids', 6)
    """

    kind: ClassVar[str] = "call"
    _gives_plain: ClassVar[bool] = True

    @overload
    def __init__(
        self,
        load: Load | str,
        first: Schema[R_co],
        /,
        *others: AnySchema,
        default: Default | str | None = None,
        **options: Unpack[CallOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        load: Load | str,
        *schemas: Schema[R_co],
        default: Default | str | None = None,
        **options: Unpack[CallOptions],
    ) -> None: ...
    def __init__(
        self,
        load: Load | str,
        *schemas: AnySchema,
        fetch: Fetch | str | Mapping[str, Fetch | str] | None = None,
        changed_since: ChangedSince | str | None = None,
        fingerprint: Fingerprint | str | None = None,
        default: Default | str | None = None,
    ) -> None:
        super().__init__(*schemas)
        if load is None:
            raise TypeError("load= takes a function that gives the records")
        self._names: dict[str, Any] = {}
        self._load: Load = self._function("load", load)
        self._fetch = self._fetches(fetch)
        self._changed_since = self._function("changed_since", changed_since)
        self._fingerprint = self._function("fingerprint", fingerprint)
        self._values = Values(self._function("default", default))
        self._last: list[Callable[[], Any]] = []
        if self._changed_since is not None and self._fingerprint is None:
            raise TypeError("changed_since= is asked what was written since a fingerprint: give fingerprint=, too")

    def _function(self, argument: str, given: Any) -> Any:
        if given is None:
            return None
        function, name = importable(given, argument)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{argument}= is an async function; give one that runs it: lambda: asyncio.run(...)")
        self._names[argument] = name
        return function

    def _fetches(self, fetch: Any) -> dict[str, Fetch]:
        """By collection."""
        if fetch is None:
            return {}
        if not isinstance(fetch, Mapping):
            if len(self._catalog) > 1:
                raise TypeError(
                    f"fetch= takes {{collection: function}} for several schemas: {', '.join(self._catalog)}"
                )
            return {next(iter(self._catalog)): self._function("fetch", fetch)}
        functions = {self._catalog[name].name: self._function("fetch", each) for name, each in fetch.items()}
        self._names["fetch"] = {name: importable(each, "fetch")[1] for name, each in fetch.items()}
        return functions

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_last": []}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({described(self._load)}, {', '.join(self._catalog)})"

    def _called(self) -> str:
        return f"load={described(self._load)}"

    # --- reading

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """One call of `load`."""
        records: Any = self._load()
        try:
            yield self.reading(self._checked(records), default=self._values.default)
        finally:
            for each in records.values() if isinstance(records, Mapping) else (records,):
                if inspect.isgenerator(each):
                    each.close()

    def _checked(self, records: Any) -> Any:
        """Raises SourceError for what is no records at all. For a mapping, `reading` looks at its values."""
        if isinstance(records, (str, bytes)) or not (
            isinstance(records, Iterable) or hasattr(records, "__arrow_c_stream__")
        ):
            raise SourceError(f"{self._called()} gave a {type(records).__name__}, expected an iterable of mappings")
        iterators = [
            each
            for each in (records.values() if isinstance(records, Mapping) else [records])
            if isinstance(each, Iterator)
        ]
        for each in iterators:
            is_closed = inspect.isgenerator(each) and inspect.getgeneratorstate(each) == inspect.GEN_CLOSED
            if is_closed or any(before() is each for before in self._last):
                raise SourceError(
                    f"{self._called()} gave a {type(each).__name__} that was read before; it is called for each build "
                    "and lookup, and must give a new one, or a list"
                )
        self._last = [_reference(each) for each in iterators]
        return records

    # --- lookups

    def scans(self, collection: str) -> bool:
        """See `ScanningSource`."""
        return self._catalog[collection].name not in self._fetch

    def fetch(self, collection: str, ids: Sequence[Key]) -> Sequence[Row | None]:
        if self.scans(collection):
            return super().fetch(collection, ids)
        return self._fetched(collection, ids).fetch(ids)

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        """See `OrderedSource`: the order in which `fetch` gives them, if there is one."""
        if self.scans(collection):
            return super().in_order(collection, ids)
        return self._fetched(collection, ids).in_order(ids)

    def _fetched(self, collection: str, ids: Sequence[Key]) -> Keyed:
        schema, fetch = self._catalog[collection], self._fetch[collection]
        wanted = list(dict.fromkeys(ids))
        found: Any = fetch(wanted) if wanted else ()
        if isinstance(found, (str, bytes)) or not isinstance(found, Iterable):
            kind = type(found).__name__
            raise SourceError(f"fetch={described(fetch)} gave a {kind}, expected an iterable of mappings")
        items = found.values() if isinstance(found, Mapping) else found
        there = (item for item in items if item is not None)
        location = f"record {{}} of fetch={described(fetch)}".format
        return Keyed(
            schema, shape_records(schema, there, location, values_by=self._values, some=True), frozenset(wanted)
        )

    # --- what has changed

    def fingerprint(self) -> bytes:
        """Of what the function says; constant without one."""
        token = None if self._fingerprint is None else self._fingerprint()
        return fingerprint_of_token(token, exact=self._changed_since is not None)

    def changes(self, since: bytes) -> Changes | None:
        """See `TrackedSource`. None without `changed_since`."""
        token = token_in(since)
        if self._changed_since is None or token is None:
            return None
        now = self.fingerprint()  # first: what is written meanwhile is among the keys, and told once more
        found = self._changed_since(token)
        if found is None:
            return None
        if not isinstance(found, Mapping):
            if len(self._catalog) > 1:
                raise SourceError("changed_since= must give {collection: keys} for several schemas")
            found = {next(iter(self._catalog)): found}
        keys = {name: self._keys(schema, found.get(name, ())) for name, schema in self._catalog.items()}
        if unknown := [name for name in found if name not in keys]:
            raise SourceError(f"changed_since= names {unknown[0]!r}; the collections are: {', '.join(keys)}")
        return Changes(now, keys)

    def _keys(self, schema: Schema, given: Iterable[Any]) -> frozenset[Key]:
        keys: set[Key] = set()
        for key in given:
            try:
                plain = tuple(map(self._values, key)) if isinstance(key, tuple) else self._values(key)
                keys.add(check_key(plain))
                check_width(schema, plain)
            except (TypeError, ValueError) as error:
                raise SourceError(f"changed_since= gave {key!r:.80}, which is no key: {error}") from error
        return frozenset(keys)

    # --- by name

    def spec(self) -> dict[str, Any] | None:
        """The functions that a build needs, by name. A file only mentions them: see `sources.from_spec`."""
        functions = {"load": self._load, "fingerprint": self._fingerprint, "default": self._values.default}
        return {"kind": self.kind} | {
            name: described(function) for name, function in functions.items() if function is not None
        }

    def given(self) -> dict[str, Any] | None:
        """The names of all functions; None if a new process cannot import one of them."""
        names = [
            each for name in self._names.values() for each in (name.values() if isinstance(name, dict) else [name])
        ]
        return dict(self._names) if all(map(is_findable, names)) else None

    @classmethod
    def remade(cls, spec: Mapping[str, Any], schemas: Sequence[AnySchema], given: Mapping[str, Any]) -> Self:
        """See `sources.from_spec`. Without the functions that the spec mentions, a SourceError."""
        functions = {name: told(spec, given, name) for name in _STORED}
        functions |= {name: given.get(name) for name in ("fetch", "changed_since")}
        return cls(functions.pop("load"), *schemas, **functions)


def _reference(iterator: Iterator[Any]) -> Callable[[], Any]:
    """To an iterator that was read, which may hold a file open; weak, if its type allows that."""
    try:
        return weakref.ref(iterator)
    except TypeError:
        return lambda: iterator
