"""A function as source: what it may give, what lookups cost, and that nothing is ever answered from an older call."""

from __future__ import annotations

import datetime as dt
import importlib
import os
import pickle
import subprocess
import sys
import threading
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import BuildError, CallableSource, Schema, SourceError
from mmcache.sources import from_spec, is_remakable
from mmcache.sources.tokens import fingerprint_of_token, token_in
from mmcache.testing import check_source
from tests.support import observe
from tests.support.processes import ended, forked
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")

ITEMS = Schema("items", index=("kind",))
ROWS: list[dict[str, Any]] = [{"id": f"k{i}", "kind": "ab"[i % 2], "n": i} for i in range(10)]


class Truth:
    """Records that change, and how often they were asked for."""

    def __init__(self) -> None:
        self.rows = [dict(row) for row in ROWS]
        self.loads = 0
        self.fetched: list[list[Any]] = []
        self.version = 1

    def load(self) -> Any:
        self.loads += 1
        return list(self.rows)

    def fetch(self, keys: list[Any]) -> Any:
        self.fetched.append(keys)
        return [row for row in self.rows if row["id"] in keys]

    def write(self, key: str, n: int) -> None:
        self.version += 1
        self.rows = [row for row in self.rows if row["id"] != key] + [{"id": key, "kind": "a", "n": n}]


@pytest.fixture
def truth() -> Truth:
    return Truth()


def values_of(source: mmcache.Source, collection: str, key: Any) -> Any:
    row = source.fetch(collection, [key])[0]
    return None if row is None else row.values


def rows_of(source: mmcache.Source, collection: str = "items") -> list[Any]:
    with source.read() as reading:
        return [dict(zip(row.names, row.values, strict=True)) for row in reading.records(collection)]


# ---- what it gives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "load",
    [lambda: ROWS, lambda: iter(ROWS), lambda: (row for row in ROWS), lambda: map(dict, ROWS), lambda: {"items": ROWS}],
    ids=["list", "iterator", "generator", "map", "by collection"],
)
def test_any_iterable_is_read_anew_for_each_build_and_lookup(load):
    source = CallableSource(load, ITEMS)
    for _ in range(2):
        assert rows_of(source) == ROWS
        assert [row and row.values[0] for row in source.fetch("items", ["k3", "no", "k1"])] == ["k3", None, "k1"]
        assert [row.values[0] for row in source.find("items", {"kind": ("b",)})] == ["k1", "k3", "k5", "k7", "k9"]
        assert source.in_order("items", ["k3", "no", "k1"]) == ["k1", "k3"]
    check_source(source, pickles=False)


def test_several_collections_come_by_name():
    source = CallableSource(lambda: {"a": iter([{"id": 1}]), "b": [{"id": "x"}]}, Schema("a"), Schema("b"))
    assert (rows_of(source, "a"), rows_of(source, "b")) == ([{"id": 1}], [{"id": "x"}])
    assert source.fetch("b", ["x"])[0] is not None
    check_source(source, pickles=False)


def test_a_source_that_fails_to_name_its_changed_keys_is_rebuilt(tmp_path, truth):
    def changed_since(version: int) -> list[str]:
        raise RuntimeError(f"no log since {version}")

    with mmcache.open(
        tmp_path / "c.mmc",
        load=truth.load,
        fingerprint=lambda: truth.version,
        changed_since=changed_since,
        schema=ITEMS,
        rebuild_after=0,
        executor="thread",
    ) as cache:
        assert cache["k1"]["n"] == 1
        truth.write("k1", 77)
        cache.refresh()
        until("the new record", lambda: cache["k1"]["n"] == 77)


@pytest.mark.parametrize(
    ("gives", "reason"),
    [
        (lambda: None, "load=.*gave a NoneType, expected an iterable of mappings"),
        (lambda: "rows", "gave a str, expected an iterable of mappings"),
        (lambda: {"others": []}, "load=.*no schema is named 'others'"),
        (lambda: {"k1": {"id": "k1"}}, r"no schema is named 'k1'.*pass its values\(\)"),
        (lambda: [5], "record 0: a record must be a mapping, not int"),
        (lambda: [{"id": 1.5}], "the key 'id': a key cannot be 1.5"),
    ],
)
def test_what_is_no_records_is_named(tmp_path, gives, reason):
    source = CallableSource(gives, ITEMS)
    with pytest.raises((SourceError, BuildError), match=reason):
        mmcache.build(tmp_path / "c.mmc", source)
    with pytest.raises(SourceError, match=reason):
        source.fetch("items", ["k1"])


@pytest.mark.parametrize(
    "kind", [iter, partial(map, dict), lambda rows: (row for row in rows)], ids=["list", "map", "own"]
)
def test_an_iterator_that_was_read_is_no_empty_table(tmp_path, kind):
    once = kind(ROWS)
    source = CallableSource(lambda: once, ITEMS)
    assert mmcache.build(tmp_path / "c.mmc", source).records == {"items": 10}
    for ask in (lambda: mmcache.build(tmp_path / "c.mmc", source), lambda: source.fetch("items", ["k1"])):
        with pytest.raises(SourceError, match=r"gave a \w+ that was read before"):
            ask()
    with mmcache.Snapshot.open(tmp_path / "c.mmc") as snapshot:
        assert len(snapshot) == 10


def test_a_generator_is_closed_when_a_build_ends_early(tmp_path):
    closed = []

    def load() -> Any:
        try:
            yield from [{"id": "a"}, {"id": 1.5}, {"id": "b"}]
        finally:
            closed.append(True)

    with pytest.raises(BuildError):
        mmcache.build(tmp_path / "c.mmc", CallableSource(load, Schema("items")))
    assert closed == [True]


def test_what_a_function_raises_is_what_the_caller_gets(tmp_path):
    def load() -> Any:
        raise ConnectionRefusedError("the database is down")

    for ask in (
        lambda: mmcache.build(tmp_path / "c.mmc", CallableSource(load, ITEMS)),
        lambda: mmcache.open(tmp_path / "c.mmc", load=load, schema=ITEMS).get("k1"),
    ):
        with pytest.raises(ConnectionRefusedError, match="the database is down"):
            ask()


async def arrives() -> list[dict[str, Any]]:
    return ROWS


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"load": arrives}, "load= is an async function; give one that runs it"),
        ({"load": None}, "load= takes a function"),
        ({"load": ROWS}, "load= takes a function or its name 'module:function', not list"),
        ({"load": list, "fetch": 5}, "fetch= takes a function"),
        ({"load": list, "changed_since": list}, "changed_since= is asked what was written since a fingerprint"),
    ],
)
def test_what_is_no_function_is_refused_at_once(arguments, reason):
    with pytest.raises(TypeError, match=reason):
        CallableSource(arguments.pop("load"), ITEMS, **arguments)


def test_functions_for_one_collection_of_several_are_named():
    with pytest.raises(TypeError, match=r"fetch= takes \{collection: function\} for several schemas: a, b"):
        CallableSource(dict, Schema("a"), Schema("b"), fetch=list)
    with pytest.raises(ValueError, match="no collection 'c'; it has: a, b"):
        CallableSource(dict, Schema("a"), Schema("b"), fetch={"c": list})
    source = CallableSource(dict, Schema("a"), Schema("b"), fetch={"b": lambda keys: [{"id": key} for key in keys]})
    assert (source.scans("a"), source.scans("b")) == (True, False)
    assert values_of(source, "b", "x") == ("x",)


# ---- fetch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fetch",
    [
        lambda keys: [row for row in ROWS if row["id"] in keys],
        lambda keys: (row for row in reversed(ROWS) if row["id"] in keys),
        lambda keys: {row["id"]: row for row in ROWS if row["id"] in keys},
        lambda keys: [next((row for row in ROWS if row["id"] == key), None) for key in keys],
        lambda _: ROWS,
    ],
    ids=["list", "generator", "mapping", "with None", "more than asked"],
)
def test_fetch_may_give_records_in_any_form(fetch):
    source = CallableSource(lambda: ROWS, ITEMS, fetch=fetch)
    found = source.fetch("items", ["k3", "no", "k1", "k3"])
    assert [row and row.values for row in found] == [("k3", "b", 3), None, ("k1", "b", 1), ("k3", "b", 3)]


def test_fetch_gives_sparse_records_and_values_by_the_rule():
    schema = Schema("items", index=("kind",), embedding="v", dim=2)
    source = CallableSource(
        lambda: [{"id": "a", "kind": 1, "v": None}],
        schema,
        fetch=lambda _: [{"id": "a", "at": dt.date(2024, 1, 1), "v": np.ones(2)}],
    )
    row: Any = source.fetch("items", ["a"])[0]
    assert (row.names, row.values, len(row.vector)) == (("id", "at"), ("a", "2024-01-01"), 8)


def test_fetch_is_conformant_where_it_keeps_the_order(truth):
    source = CallableSource(truth.load, ITEMS, fetch=truth.fetch, fingerprint=lambda: truth.version)
    check_source(source, change=lambda: truth.write("k1", truth.version), pickles=False)


@pytest.mark.parametrize(
    ("gives", "reason"),
    [(None, "fetch=.*gave a NoneType"), ("k1", "gave a str"), ([5], "a record must be a mapping, not int")],
)
def test_a_fetch_that_gives_no_records_is_named(gives, reason):
    source = CallableSource(lambda: ROWS, ITEMS, fetch=lambda _: gives)
    with pytest.raises(SourceError, match=reason):
        source.fetch("items", ["k1"])


# ---- a cache of it ---------------------------------------------------------------------------------------------------


def test_open_takes_a_function_in_place_of_a_source(tmp_path, truth):
    with mmcache.open(tmp_path / "c.mmc", load=truth.load, schema=ITEMS, executor="external") as cache:
        assert cache["k1"] == ROWS[1]
        assert cache.where(kind="b").ids == ["k1", "k3", "k5", "k7", "k9"]
        assert truth.loads == 1
    with mmcache.open(tmp_path / "c.mmc", load=truth.load, schema=[ITEMS]) as cache:
        assert cache["k1"] == ROWS[1]
        assert truth.loads == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"load": list}, "load= needs schema="),
        (
            {"load": list, "schema": ITEMS, "source": mmcache.IterableSource([], ITEMS)},
            "give source or load=, not both",
        ),
        ({"fetch": list, "source": mmcache.IterableSource([], ITEMS)}, "fetch= goes with load="),
        ({"schema": ITEMS}, "schema= is for load=, or the path or URL of a source"),
        ({"schema": ITEMS, "source": mmcache.IterableSource([], ITEMS)}, "a source has its own schemas"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(tmp_path, arguments, reason):
    with pytest.raises(TypeError, match=reason):
        mmcache.open(tmp_path / "c.mmc", **arguments)


def test_an_invalidated_id_is_answered_by_a_load_that_began_later(tmp_path, truth):
    with mmcache.open(tmp_path / "c.mmc", load=truth.load, schema=ITEMS, executor="external") as cache:
        assert cache["k1"]["n"] == 1
        for n in range(2, 6):
            truth.write("k1", n)
            cache.invalidate(["k1"])
            assert cache["k1"]["n"] == n
            assert cache.where(kind="a").ids[-1] == "k1" or "k1" in cache.where(kind="a").ids
        assert truth.loads <= 1 + 3 * 4


def test_an_id_that_the_file_lacks_costs_no_load_until_it_is_invalidated(tmp_path, truth):
    with mmcache.open(tmp_path / "c.mmc", load=truth.load, schema=ITEMS, executor="external") as cache:
        assert cache.get("new") is None
        assert "other" not in cache
        assert cache.get_many(["k1", "new"]) == [ROWS[1], None]
        assert truth.loads == 1
        truth.write("new", 5)
        assert cache.get("new") is None
        cache.invalidate(["new"])
        assert cache["new"]["n"] == 5
        assert cache.stats().misses == 4


def test_with_fetch_an_id_that_the_file_lacks_is_looked_for(tmp_path, truth):
    options: Any = {"load": truth.load, "fetch": truth.fetch, "schema": ITEMS, "executor": "external"}
    with mmcache.open(tmp_path / "c.mmc", **options) as cache:
        assert cache.get("new") is None
        truth.write("new", 5)
        assert cache["new"]["n"] == 5
        assert truth.fetched == [["new"], ["new"]]
        assert truth.loads == 1


def test_a_changed_fingerprint_makes_absent_ids_be_looked_for(tmp_path, truth):
    options: Any = {"load": truth.load, "schema": ITEMS, "executor": "external"}
    with mmcache.open(tmp_path / "c.mmc", fingerprint=lambda: truth.version, **options) as cache:
        assert cache.get("new") is None
        assert truth.loads == 1
        truth.write("new", 5)
        assert cache["new"]["n"] == 5


def test_changed_keys_are_told_since_the_token_of_the_file(tmp_path, truth):
    asked: list[Any] = []
    written: dict[int, str] = {}

    def changed_since(version: int) -> list[str]:
        asked.append(version)
        return [key for number, key in written.items() if number > version]

    with mmcache.open(
        tmp_path / "c.mmc",
        load=truth.load,
        fetch=truth.fetch,
        fingerprint=lambda: truth.version,
        changed_since=changed_since,
        schema=ITEMS,
        executor="external",
    ) as cache:
        assert cache["k1"]["n"] == 1
        truth.write("k1", 77)
        written[truth.version] = "k1"
        cache.refresh()
        assert cache["k1"]["n"] == 77
        assert cache["k2"]["n"] == 2
        assert asked == [1]
        assert truth.fetched == [["k1"]]
        assert cache.status().state == "stale"


@pytest.mark.parametrize(
    ("gives", "reason"),
    [
        ([1.5], "changed_since= gave 1.5, which is no key"),
        ([("a", "b")], "which is no key"),
        ({"others": ["k1"]}, "changed_since= names 'others'; the collections are: items"),
    ],
)
def test_keys_that_are_none_are_named(gives, reason):
    source = CallableSource(lambda: ROWS, ITEMS, fingerprint=lambda: 1, changed_since=lambda _: gives)
    with pytest.raises(SourceError, match=reason):
        source.changes(source.fingerprint())


def test_a_fingerprint_that_is_no_token_says_nothing_of_changes():
    source = CallableSource(lambda: ROWS, ITEMS, fingerprint=lambda: 2, changed_since=lambda _: ["k1"])
    for since in (bytes(32), b"x" * 32, b"x", fingerprint_of_token("x" * 40, exact=False)):
        assert source.changes(since) is None
    assert CallableSource(lambda: ROWS, ITEMS).changes(source.fingerprint()) is None


@pytest.mark.parametrize(
    "token",
    [
        1,
        -(2**63),
        2.5,
        "2024-01-01 00:00:00.000001",
        b"\0\1",
        True,
        dt.datetime(2024, 1, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 1, 2, 3, 4, 5),  # noqa: DTZ001
        dt.date(2024, 1, 1),
        Decimal("1.10"),
        (dt.datetime(2024, 1, 1, tzinfo=dt.UTC), 100_000),
        (None, 0),
        np.int64(5),
    ],
)
def test_a_token_comes_back_as_it_was_given(token):
    fingerprint = fingerprint_of_token(token, exact=True)
    assert len(fingerprint) == 32
    assert fingerprint[-1]
    assert token_in(fingerprint) == token


def test_tokens_are_distinct_and_bounded():
    tokens = [1, True, "1", b"1", 1.5, None, "x" * 40, "x" * 41, (1,), 10]
    assert len({fingerprint_of_token(token, exact=False) for token in tokens}) == len(tokens)
    assert fingerprint_of_token(None, exact=True) == bytes(32)
    with pytest.raises(SourceError, match="takes 42 bytes; with changed_since= at most 31"):
        fingerprint_of_token("x" * 40, exact=True)
    with pytest.raises(SourceError, match="expected a number, text, bytes, datetime, or a tuple"):
        fingerprint_of_token(object(), exact=False)


# ---- threads, forks, pickles -----------------------------------------------------------------------------------------


def test_lookups_at_the_same_time_share_the_next_load(truth):
    """Case: four ask while a load is under way. None may have its answer, and one load does for all four."""
    begun, go = threading.Event(), threading.Event()

    def load() -> Any:
        rows = truth.load()
        if truth.loads == 1:
            begun.set()
            assert go.wait(30)
        return rows

    source = CallableSource(load, ITEMS)
    answers: list[Any] = []

    def ask(key: str) -> None:
        answers.append(values_of(source, "items", key))

    threads = [threading.Thread(target=ask, args=("k1",))]
    threads[0].start()
    assert begun.wait(30)
    truth.write("k1", 99)
    truth.write("k2", 98)
    threads += [threading.Thread(target=ask, args=(key,)) for key in ("k1", "k2", "k1", "k2")]
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [("k1", "a", 99), ("k1", "a", 99), ("k1", "b", 1), ("k2", "a", 98), ("k2", "a", 98)]
    assert 2 <= truth.loads <= 5


def test_a_load_that_fails_fails_for_those_who_asked_for_it(truth):
    def load() -> Any:
        truth.load()
        raise OSError("down")

    source = CallableSource(load, ITEMS)
    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            source.fetch("items", ["k1"])
    assert truth.loads == 2


def test_a_load_may_look_something_up_in_itself(truth):
    def load() -> Any:
        if truth.loads == 0:
            truth.load()
            assert source.fetch("items", ["k2"])[0] is not None
        return ROWS

    source = CallableSource(load, ITEMS)
    assert source.fetch("items", ["k1"])[0] is not None


def test_a_child_that_was_forked_during_a_load_loads_itself(truth):
    begun, go = threading.Event(), threading.Event()
    parent = os.getpid()

    def load() -> Any:
        if os.getpid() == parent:
            begun.set()
            assert go.wait(30)
        return ROWS

    source = CallableSource(load, ITEMS)
    thread = threading.Thread(target=source.fetch, args=("items", ["k1"]))
    thread.start()
    assert begun.wait(30)

    def look_up() -> None:
        assert source.fetch("items", ["k1"])[0] is not None

    child = forked(look_up)
    go.set()
    thread.join()
    assert ended(child) == 0


def importable_rows(*_: Any) -> list[dict[str, Any]]:
    return ROWS


def newest() -> int:
    return 7


def test_it_pickles_with_functions_that_have_a_name():
    source = CallableSource(importable_rows, ITEMS, fingerprint=newest)
    check_source(source)
    again = pickle.loads(pickle.dumps(source))
    assert (again.schemas, again.fingerprint(), rows_of(again)) == (source.schemas, source.fingerprint(), ROWS)


# ---- by name ---------------------------------------------------------------------------------------------------------


class Kept:
    @classmethod
    def rows(cls, *_: Any) -> list[dict[str, Any]]:
        return ROWS

    def mine(self) -> list[dict[str, Any]]:
        return ROWS


def test_only_functions_that_another_process_finds_are_handed_on():
    here = __name__
    for function, name in ((importable_rows, "importable_rows"), (Kept.rows, "Kept.rows")):
        source = CallableSource(function, ITEMS, default=str, fetch={"items": function})
        assert source.spec() == {"kind": "call", "load": f"{here}:{name}", "default": "builtins:str"}
        assert source.given() == {
            "load": f"{here}:{name}",
            "default": "builtins:str",
            "fetch": {"items": f"{here}:{name}"},
        }
        assert is_remakable(source)
        assert rows_of(from_spec(source.spec() or {}, source.schemas, source.given())) == ROWS
    for hidden in (lambda: ROWS, Kept().mine, Truth().load):
        source = CallableSource(hidden, ITEMS)
        assert (source.spec() or {})["kind"] == "call"
        assert source.given() is None
        assert not is_remakable(source)


def test_nothing_that_a_file_names_is_imported(tmp_path):
    spec = {"kind": "call", "load": "evil:function"}
    with pytest.raises(
        SourceError, match=r"built with load='evil:function', and nothing that a file names is imported"
    ):
        from_spec(spec, [ITEMS])
    assert "evil" not in sys.modules
    with pytest.raises(SourceError, match="load='no_such_module:f' cannot be imported"):
        from_spec(spec, [ITEMS], {"load": "no_such_module:f"})


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a program, next to it."""
    (tmp_path / "own_shop.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "def version():\n    return Path(os.environ['OWN_N']).read_text()\n"
        "def rows():\n    return [{'id': 'a', 'pid': os.getpid(), 'n': version()}]\n"
    )
    (tmp_path / "n").write_text("1")
    monkeypatch.setenv("OWN_N", str(tmp_path / "n"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_shop", raising=False)
    return importlib.import_module("own_shop")


@pytest.mark.parametrize("is_named", [True, False], ids=["by name", "lambda"])
def test_it_is_rebuilt_by_a_process_if_that_can_import_it(tmp_path, shop, is_named):
    load = shop.rows if is_named else lambda: [*shop.rows()]
    options: Any = {"fingerprint": shop.version, "rebuild_after": 0.0, "check_interval": 0.05}
    with mmcache.open(tmp_path / "c.mmc", load=load, schema=Schema("items"), **options) as cache:
        assert cache["a"]["pid"] == os.getpid()
        (tmp_path / "n").write_text("2")
        until("a rebuild", lambda: cache["a"]["n"] == "2" and cache.generation == 2)
        assert (cache["a"]["pid"] == os.getpid()) is not is_named
        until("it has ended", lambda: not cache.status().building and "mmcache-rebuild" not in observe.threads())


def mmcache_rebuild(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmcache", "rebuild", "c.mmc", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(Path(mmcache.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_is_told_the_function_again(tmp_path, shop):
    mmcache.build(tmp_path / "c.mmc", CallableSource(shop.rows, Schema("items"), fingerprint=shop.version))
    done = mmcache_rebuild(tmp_path)
    assert done.returncode == 1
    assert "built with load='own_shop:rows'" in done.stderr
    assert "mmcache rebuild FILE --load" in done.stderr
    done = mmcache_rebuild(tmp_path, "--load", "own_shop:rows")
    assert "--fingerprint" in done.stderr
    done = mmcache_rebuild(tmp_path, "--load", "own_shop:rows", "--fingerprint", "own_shop:version")
    assert done.returncode == 0, done.stderr
    with mmcache.Snapshot.open(tmp_path / "c.mmc") as snapshot:
        assert snapshot["a"]["pid"] != os.getpid()
