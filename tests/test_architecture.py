"""The rules that hold the parts together: what importing costs, how imports point, which modules touch files, how large
the parts are, and what the public names and errors promise wherever they are defined."""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmcache
from mmcache import errors
from tests.support import inside

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mmcache"
MODULES = sorted(PACKAGE.rglob("*.py"))


def run(code: str) -> str:
    """The output of Python code in a process of its own, which coverage does not reach into."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


# Importing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["import mmcache", "import mmcache.errors, mmcache.schema"])
def test_importing_mmcache_loads_nothing_heavy(statement):
    heavy = "{'numpy', 'msgpack', 'filelock', 'sqlite3', 'xxhash', 'multiprocessing', 'asyncio', 'rich'}"
    assert run(f"import sys; {statement}; print(sorted({heavy} & sys.modules.keys()))") == "[]"


def test_reading_a_snapshot_loads_no_module_of_numpy(tmp_path):
    """`numpy.ma` for one is imported lazily, and two threads that do so at once may recurse without end."""
    code = f"""
        import sys, mmcache
        path = {str(tmp_path / "i.mmc")!r}
        records = [{{"id": str(i), "kind": i % 3, "tags": [i % 5, i % 7], "v": [float(i)]}} for i in range(900)]
        mmcache.build(path, records, mmcache.Schema("items", index=("kind", "tags"), embedding="v"))
        before = set(sys.modules)
        for verify in ("full", "lazy"):
            with mmcache.Snapshot.open(path, verify=verify) as snapshot:
                found = snapshot.where(kind=[0, 1], tags=[2, 3])
                found.ids, found.embeddings, found | snapshot.where(kind=2), found & found, found - found
                snapshot.get_many(["1", "2", "3", "x"]), list(snapshot.values()), snapshot.embeddings
        print(sorted(name for name in set(sys.modules) - before if name.startswith("numpy")))
    """
    assert run(textwrap.dedent(code)) == "[]"


UNWANTED = (
    *("numpy", "logging", "subprocess", "filelock", "sqlite3", "json", "multiprocessing", "asyncio"),
    *("hashlib", "decimal", "uuid", "html", "mmcache.models", "mmcache.values", "mmcache.storage.publish"),
)


@pytest.mark.skipif(mmcache.implementation == "pure", reason="pure Python finds rows with numpy")
@pytest.mark.parametrize("verify", ["auto", "full", "lazy"])
def test_a_first_answer_imports_only_what_it_needs(tmp_path, verify):
    """By key, by field, the embedding apart: what a process pays that asks one question and ends."""
    path = tmp_path / "i.mmc"
    records = [{"id": f"k{i}", "kind": i % 3, "tags": [i % 5, i % 7], "v": [float(i)]} for i in range(900)]
    mmcache.build(path, records, mmcache.Schema("items", index=("kind", "tags"), embedding="v"))
    code = f"""
        import sys, mmcache
        with mmcache.Snapshot.open({str(path)!r}, verify={verify!r}) as snapshot:
            assert snapshot["k7"]["kind"] == 1 and snapshot.get("x") is None and "k8" in snapshot
            assert [record and record.id for record in snapshot.get_many(["k1", "x", "k2"])] == ["k1", None, "k2"]
            assert snapshot.where(kind=0).ids == [f"k{{i}}" for i in range(0, 900, 3)]
            assert len(snapshot.where(tags=4)) > 200 and snapshot.where(kind=0, tags=6).ids[0] == "k6"
            assert [record["kind"] for record in snapshot.where(kind=1, tags=6).limit(5)] == [1] * 5
            print(sorted({{*{UNWANTED!r}}} & sys.modules.keys()))
            assert snapshot.embedding("k3").tolist() == [3.0] and "numpy" in sys.modules
    """
    assert run(textwrap.dedent(code)) == "[]"


def test_a_cache_imports_at_once_what_its_threads_need():
    """A thread that imports while the process forks leaves a lock in the child."""
    names = "{'numpy', 'logging', 'mmcache.storage.publish'}"
    code = f"import sys, mmcache.cache; print(sorted({names} & sys.modules.keys()))"
    assert run(code) == "['logging', 'mmcache.storage.publish', 'numpy']"


def test_every_public_name_has_a_home_and_every_home_a_public_name():
    assert sorted(mmcache.__all__) == sorted([*inside.HOMES, "__version__"])
    assert set(errors.__all__) <= set(mmcache.__all__)
    assert set(mmcache.__all__) <= set(dir(mmcache))


@pytest.mark.parametrize("name", sorted(inside.HOMES))
def test_public_name_resolves_to_the_one_of_its_module(name):
    home = importlib.import_module(inside.HOMES[name], "mmcache")
    assert getattr(mmcache, name) is getattr(home, name)
    assert name in home.__all__


def test_type_checkers_see_the_same_public_names_as_callers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.name: "." + (node.module or "")
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == inside.HOMES


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'mmcache' has no attribute 'opne'"):
        mmcache.opne  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from mmcache import opne  # type: ignore[attr-defined]  # noqa: F401


def test_imports_only_go_down():
    pytest.importorskip("importlinter", reason="the lint group is not installed")
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True, no_logo=True))"
    run(command)


# Calls ---------------------------------------------------------------------------------------------------------------

BANNED = {
    "cloudpickle": "a file must never be able to run code",
    "dill": "a file must never be able to run code",
    "eval": "a file must never be able to run code",
    "exec": "a file must never be able to run code",
    "marshal": "a file must never be able to run code",
    "numpy.load": "it may unpickle",
    "numpy.memmap": "it keeps no promise about lifetime; map once and use frombuffer",
    "os.ftruncate": "a file that shrinks under a map kills its readers",
    "os.truncate": "a file that shrinks under a map kills its readers",
    "pickle": "a file must never be able to run code",
    "shelve": "a file must never be able to run code",
    "signal.SIGBUS": "a handler cannot repair a read; never let one happen",
}

# Names of `os` that touch no file. Constants (O_RDONLY, EX_OK) do not either.
HARMLESS = (
    *("os.PathLike", "os.environ", "os.fsdecode", "os.fsencode", "os.fspath", "os.name", "os.nice", "os.pathsep"),
    *("os.sep", "os.stat_result"),
    *("os.cpu_count", "os.get_terminal_size", "os.process_cpu_count", "os.sched_getaffinity", "os.sched_yield"),
    *(
        "os.major",
        "os.minor",
        "os.getegid",
        "os.geteuid",
        "os.getgid",
        "os.getpid",
        "os.getppid",
        "os.getuid",
        "os.strerror",
        "os.sysconf",
    ),
    *("os._exit", "os.fork", "os.kill", "os.register_at_fork", "os.urandom", "os.waitpid", "os.waitstatus_to_exitcode"),
    *("os.path.abspath", "os.path.basename", "os.path.commonpath", "os.path.dirname", "os.path.expanduser"),
    *("os.path.isabs", "os.path.join", "os.path.normpath", "os.path.relpath", "os.path.split", "os.path.splitext"),
)

FILE_SYSTEM = (
    *("os", "open", "io.open", "io.FileIO", "mmap.mmap", "numpy.fromfile"),
    *("fcntl", "glob", "pathlib.Path", "shutil", "tempfile"),
)

# Module, or directory with a slash at its end -> what it may use all the same. No file of others is written here.
ALLOWED = {
    "storage/fs.py": FILE_SYSTEM,
    "storage/buildlock.py": ("..fs.system", "fcntl"),
    "storage/descriptors.py": ("fcntl",),
    "store.py": ("os.path.isdir",),  # whether a directory that is a store is there
    "storage/segments.py": ("tempfile",),  # of a worker that shares no disk with the build
    "storage/pagefile.py": ("..fs.system", "fcntl"),
    "storage/shared.py": ("..fs.system", "fcntl"),
    "sources/": ("open", "os.access", "os.fstat", "os.path", "os.stat"),  # look at and read the user's own data
    "sources/npy.py": ("os.pread",),
    "sources/parts.py": ("glob", "os.getcwd", "os.walk"),  # files of a pattern or directory
    "sources/recognize.py": ("os.listdir",),
    "sources/streams.py": ("os.dup", "os.pread", "shutil", "tempfile"),  # a pipe, copied
    "cli/": ("open", "pathlib.Path"),  # reads settings
    "cli/export.py": ("os.path", "os.replace", "os.unlink"),  # a file of the user's own
    "integrations/pytest_caches.py": FILE_SYSTEM,  # in directories of a run of tests
    "remote/difference.py": ("tempfile",),  # releases that are compared
    "integrations/pytest_plugin.py": ("pathlib.Path",),
    "testing/conformance.py": FILE_SYSTEM,  # builds in a directory of its own
}

MAY = {"mmcache/testing/conformance.py": ("pickle",)}
"""What is banned elsewhere: in tests, a source is sent through a pickle of our own."""


@functools.cache
def used_names(source: str) -> list[tuple[int, str]]:
    """(line, dotted name) for everything that the source imports or uses, under the name it was defined with."""
    return list(_used_names(source))


def _used_names(source: str) -> Iterator[tuple[int, str]]:
    tree = ast.parse(source)
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                if alias.name.split(".")[0] != "os":  # the import of os alone is no use of it
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                known[alias.asname or alias.name] = f"{module}.{alias.name}"
                yield node.lineno, f"{module}.{alias.name}"
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and id(node) not in inner:
            parts = []
            base: ast.expr = node
            while isinstance(base, ast.Attribute):
                parts.append(base.attr)
                base = base.value
            if isinstance(base, ast.Name):
                yield node.lineno, ".".join([known.get(base.id, base.id), *reversed(parts)])


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def touches_files(name: str) -> bool:
    if under(name, HARMLESS) or (name.startswith("os.") and name.rpartition(".")[2].isupper()):
        return False
    return (under(name, FILE_SYSTEM) and name != "os.path") or ".fs.system" in name


def test_nothing_runs_code_from_a_file_or_shrinks_one():
    offenders = [
        f"{module.relative_to(ROOT)}:{line}: {name}: {why}"
        for module in MODULES
        for line, name in used_names(module.read_text())
        for banned, why in BANNED.items()
        if under(name, (banned,)) and banned not in MAY.get(module.relative_to(ROOT).as_posix(), ())
    ]
    assert not offenders, "\n".join(offenders)


def test_only_fs_touches_the_file_system():
    offenders = []
    for module in MODULES:
        place = module.relative_to(PACKAGE).as_posix()
        allowed = tuple(
            name
            for where, names in ALLOWED.items()
            if place == where or (where.endswith("/") and place.startswith(where))
            for name in names
        )
        offenders += [
            f"{module.relative_to(ROOT)}:{line}: {name}"
            for line, name in used_names(module.read_text())
            if touches_files(name) and not under(name, allowed)
        ]
    assert not offenders, "move these calls into mmcache/storage/fs.py:\n" + "\n".join(offenders)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os\nos.unlink(p)", True),
        ("import os as o\no.open(p, o.O_RDONLY)", True),
        ("from os import stat as s\ns(p)", True),
        ("from os.path import exists\nexists(p)", True),
        ("import os.path\nos.path.getsize(p)", True),
        ("open(p)", True),
        ("import mmap\nmmap.mmap(3, 0)", True),
        ("import tempfile", True),
        ("import os\nos.fspath(p), os.environ.get('X'), os.path.join(p, q), os.O_CLOEXEC", False),
        ("from . import fs\nfs.system.unlink(p)", True),
        ("import mmap\nmmap.PAGESIZE", False),
        ("from .storage import fs\nfs.open(p), self.open(p)", False),
    ],
)
def test_the_search_for_file_system_calls_finds_them(source, found):
    assert any(touches_files(name) for _, name in used_names(source)) is found


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", errors.__all__)
def test_error_survives_pickle_and_copy_with_its_fields(name):
    kind = getattr(errors, name)
    declared = {field for base in kind.__mro__ for field in inspect.get_annotations(base)}
    fields = {field: f"some {field}" for field in declared}
    error = kind("what, and what to do", path="/some/file.mmc", **fields)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error) == "/some/file.mmc: what, and what to do"
        assert twin.args == error.args
        assert vars(twin) == vars(error)
        assert {field: getattr(twin, field) for field in fields} == fields


def test_every_error_is_public_and_one_of_ours():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined == set(errors.__all__)
    assert all(issubclass(getattr(errors, name), errors.MmcacheError) for name in defined)


# Sizes ---------------------------------------------------------------------------------------------------------------

MODULE, BODY, METHODS, ATTRIBUTES = 500, 40, 30, 12
"""At most: lines of a module; lines of a function, without signature and docstring; methods and attributes of a class.

What is larger has two duties. Find the second one; a cut anywhere else only adds imports."""

LONGER = {
    "storage/bykey.py: PureByKey.__getitem__": "a get, whose every call is paid; the core has it in C",
}
LARGER = {
    "FileCollection": "22 questions of `Collection`, and what a selection asks, each answered in a line or two by "
    "a part: Lookup, Batches, Vectors, IndexReader, Mapped",
    "Snapshot": "the same 22, which it hands to its first collection, and what a file says of itself",
}
"""Why these are larger all the same."""


def functions_of(tree: ast.AST, within: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield within + node.name, node
        if not isinstance(node, ast.expr):
            inner = f"{node.name}." if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else ""
            yield from functions_of(node, within + inner)


def lines_of_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[1:2] if ast.get_docstring(function) else function.body[:1]
    return (function.end_lineno or 0) - first[0].lineno + 1 if first else 0


def test_a_module_has_at_most_500_lines():
    lines = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8").count("\n") for path in MODULES}
    assert {name: count for name, count in lines.items() if count > MODULE} == {}


def test_a_function_fits_on_a_screen():
    found = {
        f"{path.relative_to(PACKAGE).as_posix()}: {name}": lines_of_body(function)
        for path in MODULES
        for name, function in functions_of(ast.parse(path.read_text("utf-8")))
    }
    assert {name: count for name, count in found.items() if count > BODY and name not in LONGER} == {}
    assert all(found[name] > BODY for name in LONGER), "a reason that is not needed any more"


def test_no_class_has_two_duties():
    larger = {}
    for path in MODULES:
        for kind in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(kind, ast.ClassDef):
                continue
            # The overloads of a method are one.
            methods = {node.name for node in kind.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
            attributes = {
                node.attr
                for node in ast.walk(kind)
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value)
            }
            if len(methods) > METHODS or len(attributes) > ATTRIBUTES:
                larger[kind.name] = len(methods), len(attributes)
    assert {name: sizes for name, sizes in larger.items() if name not in LARGER} == {}
    assert LARGER.keys() <= larger.keys(), "a reason that is not needed any more"


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f():\n    pass", 1),
        ('def f(\n    a,\n):\n    """Two\n    lines."""\n    return 1\n\n    # why\n', 1),
        ("class A:\n    def f(self):\n        if 1:\n            return 2\n        return 3", 3),
        ('def f():\n    """Only this."""', 0),
    ],
)
def test_the_count_of_lines_leaves_signature_and_docstring_out(source, lines):
    assert [lines_of_body(function) for _, function in functions_of(ast.parse(source))] == [lines]
