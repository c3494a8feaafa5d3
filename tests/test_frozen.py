"""What users see, as lines in data/frozen.txt: a change of any of it is a decision, and shows as a diff of that file.

    python -m tests.test_frozen --write       # after a change that is meant

Frozen are public names with their signatures, commands with their options, JSON keys, exit codes, log events, metrics
and file names. The bytes of the format are frozen by the golden files (tests/format).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import inspect
import io
import json
import re
import sqlite3
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache.cli import main
from mmcache.cli.main import COMMANDS, make_parser
from mmcache.cli.options import SETTINGS
from mmcache.front import PureFront
from mmcache.integrations.prometheus import text_of
from mmcache.shown import internals_of
from mmcache.storage.bykey import PureByKey, PureFirst
from mmcache.storage.record import PureFields
from tests.support.console import endless_build
from tests.support.waits import until

PACKAGE = Path(mmcache.__file__).parent
KEPT = Path(__file__).parent / "data" / "frozen.txt"
REGENERATE = "python -m tests.test_frozen --write"


# --- names and signatures ---------------------------------------------------------------------------------------------

MODULES = (
    "mmcache",
    "mmcache.cache",  # its other classes are what the methods of a Cache return
    "mmcache.presets.llm",
    "mmcache.presets.patterns",
    "mmcache.integrations.prometheus",
    "mmcache.integrations.pytest_plugin",
    "mmcache.integrations.torch",
    "mmcache.testing",
)
MADE_BY_US = {
    "CachedCollection",
    "Collection",
    "EmbeddingRef",
    "FileCollection",
    "Neighbours",
    "Record",
    "Selection",
    "Snapshot",
}
"""Classes that no caller constructs."""
IMPLIED = {"BaseException", "Collection", "Container", "Exception", "Generic", "Iterable", "Reversible", "Sized"}
"""Bases that follow from others."""
TWINS = {"ByKey": PureByKey, "Fields": PureFields, "First": PureFirst, "Front": PureFront}
"""What the compiled core has in the place of these. Its methods have the signatures of theirs, without annotations."""
HALVES = {*TWINS, *(pure.__name__ for pure in TWINS.values())}
"""Bases that differ between the two implementations."""
NO_PROMISE = re.compile(
    r"__(init|new|post_init|init_subclass|class_getitem|subclasshook|class|del|weakref|dict|abstractmethods|getattr"
    r"|repr|reduce|reduce_ex|getnewargs|getstate|setstate|setattr|delattr|sizeof|dir|format|replace|annotate\w*)__"
)
"""Special methods that are seen by their effect, or that only some versions of Python add."""


def names() -> Iterator[str]:
    seen: set[int] = set()
    for place in MODULES:
        try:
            module = import_module(place)
        except ImportError:  # torch may be absent; then the lines of that module are compared with nothing
            continue
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                if id(value) not in seen:
                    yield from _lines_of(f"{place}.{name}", value)
                seen.add(id(value))
            elif place != "mmcache.cache":
                yield f"{place}.{name}: {type(value).__name__}"


def _lines_of(name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{_signature(value)}"
        return
    bases = [
        base.__name__
        for base in value.__mro__[1:-1]
        if base.__name__ not in HALVES and (base in _ours(base) or base.__name__ not in IMPLIED)
    ]
    yield f"{name}: class({', '.join(base for base in bases if not base.startswith('_'))})"
    if value.__name__ not in MADE_BY_US:
        yield f"{name}{_signature(value)}"
    for attribute in sorted(_attributes(value)):
        yield f"{name}.{attribute}"
    for member in sorted(_members(value)):
        yield from _member(f"{name}.{member}", inspect.getattr_static(value, member))


def _ours(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.startswith("mmcache")]


def _members(kind: type) -> set[str]:
    """Methods, properties and constants that a class of this package gives it, wherever in its ancestry."""
    found = {name for base in _ours(kind) for name in vars(base) if callable(getattr(base, name, None))}
    properties = property, types.GetSetDescriptorType
    found |= {name for base in _ours(kind) for name, value in vars(base).items() if isinstance(value, properties)}
    special = {name for name in found if name.startswith("__") and not NO_PROMISE.fullmatch(name)}
    return {name for name in found - internals_of(kind) if not name.startswith("_")} | special


def _member(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, types.GetSetDescriptorType) and value.__objclass__.__name__ in TWINS:
        value = vars(TWINS[value.__objclass__.__name__])[value.__name__]
    if isinstance(value, property):
        yield f"{name}: {inspect.get_annotations(value.fget).get('return', 'Any') if value.fget else 'Any'}"
    elif isinstance(value, (classmethod, staticmethod)):
        yield f"{name}{_signature(value.__func__)}: {type(value).__name__}"
    elif value is None:  # __hash__ = None
        yield f"{name}: None"
    elif callable(value):
        yield f"{name}{_signature(value)}"


def _attributes(kind: type) -> set[str]:
    """Fields, slots, and what methods give `self`: what can be read from an instance."""
    found: set[str] = set()
    for base in _ours(kind):
        members = vars(base)
        slots = members.get("__slots__", ())
        found |= {slots} if isinstance(slots, str) else set(slots)
        found |= set(inspect.get_annotations(base))
        with contextlib.suppress(OSError):
            found |= _assigned(inspect.getsource(base))
    return {name for name in found if not name.startswith("_")} - _members(kind) - internals_of(kind)


def _assigned(source: str) -> set[str]:
    tree = ast.parse(inspect.cleandoc(source) if source[0].isspace() else source)
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


class _Verbatim:
    """An annotation as it stands in the source, without quotes."""

    def __init__(self, text: object) -> None:
        self.text = text if isinstance(text, str) else inspect.formatannotation(text)

    def __repr__(self) -> str:
        return self.text


def _signature(value: Any) -> str:
    kind = getattr(value, "__objclass__", None)
    if kind is not None and kind.__module__.endswith("._core"):
        value = getattr(TWINS[kind.__name__], value.__name__)
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    if str(found) == "(*args, **kwargs)":  # versions of Python differ in which of both they say
        return "(...)"
    plain = [
        one if one.annotation is one.empty else one.replace(annotation=_Verbatim(one.annotation))
        for one in found.parameters.values()
    ]
    returned = found.return_annotation
    given = found.replace(
        parameters=plain, return_annotation=returned if returned is found.empty else _Verbatim(returned)
    )
    return re.sub(r" at 0x[0-9a-f]+", "", str(given))


# --- the command line -------------------------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    for command, (_, aliases, _) in COMMANDS.items():
        yield f"{command}{''.join(f', {alias}' for alias in aliases)}"
        (chosen,) = (
            action.choices[command]
            for action in make_parser(command)._actions
            if isinstance(action, argparse._SubParsersAction)
        )
        for action in chosen._actions:
            words = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            value = f" {action.metavar or action.dest.upper()}" if action.option_strings and action.nargs != 0 else ""
            choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
            yield f"{command} {words}{value}{choices}"
    for name in SETTINGS:
        yield f"setting {name}, MMCACHE_{name.upper()}"


# --- what a cache goes through, once ----------------------------------------------------------------------------------


class Tour:
    """A directory with a database and a file of it, in which commands run in this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database, self.file = directory / "s.db", directory / "items.mmc"
        with contextlib.closing(sqlite3.connect(self.database, isolation_level=None)) as db:
            db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, v BLOB)")
            vector = bytes(8) + b"\0\0\x80?"
            db.executemany("INSERT INTO items VALUES (?, ?, ?)", [(f"k{i}", "ab"[i % 2], vector) for i in range(4)])
        self.schema = mmcache.Schema("items", index=("kind",), embedding="v")

    def source(self) -> mmcache.SQLiteSource:
        return mmcache.SQLiteSource(self.database, self.schema)

    def change(self) -> None:
        with contextlib.closing(sqlite3.connect(self.database, isolation_level=None)) as db:
            db.execute("INSERT INTO items VALUES (hex(randomblob(8)), 'a', NULL)")

    def run(self, *words: object) -> tuple[int, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(map(str, words)))
        return code, out.getvalue()

    def build(self) -> tuple[int, str]:
        words = ("--key", "id", "--index", "kind", "--embedding", "v", "-o", self.file, "--json")
        return self.run("build", self.database, *words)

    def damage(self) -> None:
        data = bytearray(self.file.read_bytes())
        data[300] ^= 1  # in the section table
        self.file.unlink()
        self.file.write_bytes(data)


@contextlib.contextmanager
def _tour() -> Iterator[Tour]:
    with tempfile.TemporaryDirectory() as directory:
        yield Tour(Path(directory))


def json_keys() -> Iterator[str]:
    """The paths of all keys that `--json` prints, over a day of one cache."""
    found: set[str] = set()
    with _tour() as tour:

        def ask(*words: object) -> None:
            _, text = tour.run(*words, "--json")
            found.update(f"{words[0]} {path}" for path in _paths(json.loads(text)))

        found.update(f"build {path}" for path in _paths(json.loads(tour.build()[1])))
        with mmcache.open(tour.file, tour.source(), executor="external") as cache:
            cache.invalidate(["k1"])
            assert cache["k1"] != cache["k2"]
            cache.refresh()
            for command in ("status", "metrics", "doctor"):
                ask(command, tour.file)
        for words in (
            ("status", tour.file, "--check", "--max-load-ms", 0),
            ("verify", tour.file),
            ("inspect", tour.file),
            *(("inspect", tour.file, "--section", name) for name in ("meta", "0/index.0", "0/records")),
            ("invalidate", tour.file, "k1"),
            ("rebuild", tour.file, "--if-stale"),
            ("rebuild", tour.file, "--if-stale"),
            ("track", tour.database, "--table", "items"),
            ("track", tour.database, "--remove"),
            ("get", tour.file, "k1", "--embedding"),
            ("find", tour.file, "kind=a"),
            ("nearest", tour.file, "--id", "k1"),
        ):
            ask(*words)
        tour.change()
        ask("rebuild", tour.file)
        tour.database.rename(tour.directory / "away.db")
        tour.run("rebuild", tour.file)
        ask("status", tour.file)
        (tour.directory / "away.db").rename(tour.database)
        with endless_build(tour.database, tour.file):
            until("there is a builder", lambda: json.loads(tour.run("status", tour.file, "--json")[1])["builder"])
            ask("status", tour.file)
        tour.damage()
        for words in (("status", tour.file), ("verify", tour.file), ("clear", tour.file, "-y"), ("status", tour.file)):
            with contextlib.suppress(json.JSONDecodeError):  # `verify` of a damaged file prints an error instead
                ask(*words)
    yield from sorted(path for path in found if not any(other.startswith((f"{path}.", f"{path}[")) for other in found))


def _paths(value: Any, above: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, f"{above}.{key}" if above else key)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _paths(inner, f"{above}[]")
    else:
        yield above


def exit_codes() -> Iterator[str]:
    with _tour() as tour:
        file = tour.file

        def tried(what: str, *words: object) -> str:
            return f"{tour.run(*words)[0]} {what}"

        yield tried("status of no file", "status", file)
        yield tried("get from no file", "get", file, "k1")
        yield tried("rebuild of no file", "rebuild", file)
        yield f"{tour.build()[0]} build"
        yield tried("build of no database", "build", tour.directory / "no.db", "-o", file)
        yield tried("no such option", "status", file, "--nope")
        yield tried("no such command", "nope")
        yield tried("no command", "--quiet")
        yield tried("version", "--version")
        yield tried("status", "status", file)
        yield tried("status --check of a broken rule", "status", file, "--check", "--max-load-ms", 0, "--ttl", 0.001)
        yield tried("get", "get", file, "k1")
        yield tried("get of an id that is not there", "get", file, "nope")
        yield tried("find with nothing found", "find", file, "kind=nope")
        yield tried("find in a field without an index", "find", file, "v=1")
        yield tried("verify", "verify", file)
        yield tried("rebuild", "rebuild", file)
        yield tried("rebuild --if-stale of a fresh file", "rebuild", file, "--if-stale")
        yield tried("invalidate", "invalidate", file, "--hard")
        yield tried("status of an invalidated file", "status", file)
        with endless_build(tour.database, file):
            until("the lock is held", lambda: json.loads(tour.run("status", file, "--json")[1])["building"])
            yield tried("rebuild beside another build", "rebuild", file, "--timeout", 0)
        tour.damage()
        for command in ("status", "verify", "get", "inspect", "doctor"):
            yield tried(f"{command} of a damaged file", command, file, *(("k1",) if command == "get" else ()))
        yield tried("clear", "clear", file, "--yes")


def files() -> Iterator[str]:
    """What lies beside a database and its cache, of the names that operators know."""
    with _tour() as tour:
        tour.build()
        with mmcache.open(tour.file, tour.source()) as cache:
            cache.invalidate(["k1"])
            tour.change()
            cache.rebuild()
        there = {path.name for path in tour.directory.iterdir()}
    yield from sorted(there & {f"items.mmc{end}" for end in ("", ".bak", ".lock", ".ctl")})


# --- logs and metrics -------------------------------------------------------------------------------------------------


def log_events() -> Iterator[str]:
    """The names of `extra={"event": ...}`, and those that are given to a function which logs them."""
    found: set[str] = set()
    for module in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(module.read_text())
        found |= {str(event.value) for event in _events_in(tree) if isinstance(event, ast.Constant)}
        found |= _given_events(tree)
    yield from sorted(found)


LOGGING = {"log_once": 0, "note": 1}
"""Function or method -> which of its arguments is the event."""


def _given_events(tree: ast.AST) -> set[str]:
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            at = LOGGING.get(name, len(node.args))
            if at < len(node.args) and isinstance(event := node.args[at], ast.Constant):
                names[str(event.value)] = name
    return set(names)


def _events_in(tree: ast.AST) -> list[ast.expr]:
    return [
        value
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict)
        for key, value in zip(node.value.keys, node.value.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "event"
    ]


def metrics() -> Iterator[str]:
    """Prometheus samples with their labels; words as values, where the set of them is closed."""
    with _tour() as tour:
        tour.build()
        with mmcache.open(tour.file, tour.source()) as cache:
            assert cache["k1"]
            cache.refresh()
            text = text_of(str(tour.file))
    found = {
        re.sub(r'(path|label|pid|version|le|quantile|generation)="[^"]*"', r"\1", line.rpartition(" ")[0])
        for line in text.splitlines()
        if line and not line.startswith("#")
    }
    yield from sorted(found)
    yield from sorted(line for line in text.splitlines() if line.startswith("# TYPE"))


# --- kept and found ---------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[], Iterable[str]]] = {
    "names": names,
    "commands": commands,
    "json keys": json_keys,
    "exit codes": exit_codes,
    "log events": log_events,
    "metrics": metrics,
    "files": files,
}


def kept() -> dict[str, list[str]]:
    sections = re.split(r"^\[(.*)\]\n", KEPT.read_text(), flags=re.MULTILINE)[1:] if KEPT.exists() else []
    return {name: text.rstrip("\n").split("\n") for name, text in zip(sections[::2], sections[1::2], strict=True)}


def unknown(line: str) -> bool:
    """Whether it is about a module that cannot be imported here."""
    return line.startswith("mmcache.integrations.torch.") and _absent("torch")


def _absent(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return True
    return False


@pytest.mark.parametrize("section", SECTIONS)
def test_what_users_see_is_as_it_was(section):
    before = [line for line in kept()[section] if not unknown(line)]
    diff = "\n".join(difflib.unified_diff(before, list(SECTIONS[section]()), "kept", "found", lineterm="", n=0))
    assert not diff, f"[{section}] changed. If that is meant: {REGENERATE}\n{diff}"


def write() -> None:
    before = kept()
    parts = []
    for section, find in SECTIONS.items():
        absent = [line for line in before.get(section, ()) if unknown(line)]
        parts.append(f"[{section}]\n" + "".join(f"{line}\n" for line in [*find(), *absent]))
    KEPT.write_text("\n".join(parts))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {REGENERATE}")
    write()
