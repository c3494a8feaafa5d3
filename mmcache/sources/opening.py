"""How a connection to a database is opened: read-only, by sqlite3, or by a function of the user's in its place.

The function is called as `sqlite3.connect` is, and gives what that gives: a connection of sqlite3's, or of a module
that is made like it (SQLCipher, pysqlite3, sqlean), whose errors become sqlite3's here. So it may register collations
and functions, load extensions, attach databases and give a key, and the rest of the package need not know.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Self, TypedDict
from urllib.parse import quote

from ..errors import SourceError
from ..values import importable

__all__ = ["Connect", "Hook", "Opening", "SQLiteOptions", "path_of_database", "what_it_lacks"]

Connect = Callable[..., Any]
"""Called with the arguments of `sqlite3.connect`, all of which it hands on."""


class SQLiteOptions(TypedDict, total=False):
    """The keyword arguments of `SQLiteSource`, which says what they mean."""

    timeout: float
    connect: Connect | str | None
    immutable: bool


_MANY: Final = 999
"""Parameters that every build of SQLite takes."""


_URL: Final = "sqlite:///"
"""Before a path in the URLs of SQLAlchemy."""


def path_of_database(path: str | os.PathLike[str]) -> str:
    """What a source was given as the path of a database, absolute. Raises TypeError or ValueError."""
    if hasattr(path, "execute"):
        rows = path.execute("PRAGMA database_list").fetchall()
        file = next((file for _, name, file in rows if name == "main"), "")
        raise TypeError(
            "a source opens connections of its own: expected the path of the database, found a connection"
            + (f"; give {file!r}, and by connect= what its connections need" if file else " to one in memory")
        )
    text = os.fspath(path)
    if text == ":memory:":
        raise ValueError("a database in memory is its connection's alone: expected the path of a file")
    if isinstance(text, str):
        text = text.removeprefix(_URL)
    if "\0" in os.fsdecode(text):
        raise ValueError(f"a path cannot hold a NUL character: {text!r}")
    return os.path.abspath(text)


class Hook(NamedTuple):
    """`connect` as it was given. name: "module:function", under which any process can import it; None without one."""

    function: Connect | None
    name: str | None

    @classmethod
    def of(cls, connect: Connect | str | None) -> Self:
        """Raises ValueError for a name that leads to no function."""
        return cls(*importable(connect, "connect"))

    @property
    def given(self) -> Connect | str | None:
        """What gives this hook again."""
        return self.name or self.function


class Opening(NamedTuple):
    """connect: in the place of `sqlite3.connect`. immutable: no program writes to the file, and nothing is locked."""

    path: str
    timeout: float
    connect: Connect | None = None
    immutable: bool = False

    def open(self) -> sqlite3.Connection:
        """A connection to read by. Raises sqlite3.Error, or SourceError for what `connect` did otherwise than
        `sqlite3.connect`."""
        raw = self._opened("ro&immutable=1" if self.immutable else "ro")
        # A mapped database turns a truncated file into SIGBUS; a read gives an error instead.
        raw.execute("PRAGMA mmap_size = 0").close()
        if self.connect is not None:
            raw.execute("PRAGMA query_only = 1").close()
        return raw

    def writable(self) -> sqlite3.Connection:
        """The same, to write by."""
        return self._opened("rw")

    def _opened(self, mode: str) -> sqlite3.Connection:
        uri = "file://" + quote(os.fsencode(self.path)) + "?mode=" + mode
        if self.connect is None:
            return sqlite3.connect(uri, uri=True, timeout=self.timeout, isolation_level=None, check_same_thread=False)
        with _as_sqlite3():
            try:
                raw = self.connect(uri, uri=True, timeout=self.timeout, isolation_level=None, check_same_thread=False)
            except (sqlite3.Error, SourceError):
                raise
            except Exception as error:
                if _twin(error) is not None:
                    raise
                raise SourceError(f"connect= failed: {type(error).__name__}: {error}", path=self.path) from error
        return self._adopted(raw)

    def _adopted(self, raw: Any) -> sqlite3.Connection:
        """What `connect` gave, as this package needs it: rows are tuples, text is str, no transaction is open."""
        if not (hasattr(raw, "execute") and hasattr(raw, "in_transaction")):
            found = f"found {type(raw).__name__}"
            raise SourceError(f"connect= must give a connection, as sqlite3.connect does; {found}", path=self.path)
        connection: Any = raw if isinstance(raw, sqlite3.Connection) else _Foreign(raw)
        connection.isolation_level, connection.row_factory, connection.text_factory = None, None, str
        if connection.in_transaction:
            connection.rollback()
        # Before the file is asked for, which may be encrypted: this reads nothing of it.
        opened = next((file for _, name, file in connection.execute("PRAGMA database_list") if name == "main"), "")
        if not (opened and os.path.exists(opened) and os.path.samefile(opened, self.path)):
            connection.close()
            raise SourceError(
                f"connect= has opened {opened or 'a database in memory'!r}, expected {self.path!r}: hand all arguments "
                "on, as in `connection = sqlite3.connect(*args, **options)`",
                path=self.path,
            )
        return connection  # type: ignore[no-any-return]


def what_it_lacks(error: sqlite3.Error, path: str) -> str:
    """What to do about what a connection does not know, or "" for any other error."""
    text = str(error)
    if "no such collation sequence" in text:
        what = "a function that registers it by create_collation"
    elif "no such function" in text:
        what = "a function that registers it by create_function"
    elif "no such module" in text:
        what = "a function that loads the extension with this module"
    elif "unknown database" in text:
        what = "a function that attaches it"
    elif getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB" and _may_be_encrypted(path):
        what = "the `connect` of a module for SQLCipher that also gives the key, if it is encrypted"
    else:
        return ""
    return f"give SQLiteSource(connect=...) {what}"


def _may_be_encrypted(path: str) -> bool:
    """Whether the pages may be there, and be unreadable: the file has the size of some."""
    try:
        size = os.stat(path).st_size
    except OSError:
        return False
    return size > 0 and size % 512 == 0


# --- modules that are made like sqlite3 -------------------------------------------------------------------------------

_NAMES: Final = {
    "database is locked": "SQLITE_BUSY",
    "unable to open database": "SQLITE_CANTOPEN",
    "not a database": "SQLITE_NOTADB",
    "malformed": "SQLITE_CORRUPT",
    "readonly database": "SQLITE_READONLY",
    "disk I/O error": "SQLITE_IOERR",
    "interrupted": "SQLITE_INTERRUPT",
}
"""What older modules only say in words."""


def _twin(error: Exception) -> sqlite3.Error | None:
    """The error of sqlite3's that is called as one of another module; None for any other."""
    for kind in type(error).__mro__:
        twin = getattr(sqlite3, kind.__name__, None)
        if isinstance(twin, type) and issubclass(twin, sqlite3.Error):
            made: sqlite3.Error = twin(*error.args)
            text = str(error)
            by_text = next((name for words, name in _NAMES.items() if words in text), "SQLITE_ERROR")
            made.sqlite_errorname = getattr(error, "sqlite_errorname", by_text)
            return made
    return None


@contextmanager
def _as_sqlite3() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error:
        raise
    except Exception as error:
        twin = _twin(error)
        if twin is None:
            raise
        raise twin from error


class _Foreign:
    """A connection of another module, whose errors are those of sqlite3."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Any) -> None:
        object.__setattr__(self, "_raw", raw)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._raw, name, value)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> _ForeignCursor:
        with _as_sqlite3():
            return _ForeignCursor(self._raw.execute(sql, parameters))

    def getlimit(self, category: int) -> int:
        limit = getattr(self._raw, "getlimit", None)
        return _MANY if limit is None else int(limit(category))


class _ForeignCursor:
    __slots__ = ("_raw",)

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    @property
    def description(self) -> Any:
        return self._raw.description

    def __iter__(self) -> Iterator[Any]:
        rows = iter(self._raw)
        while True:
            with _as_sqlite3():
                try:
                    row = next(rows)
                except StopIteration:
                    return
            yield row

    def fetchone(self) -> Any:
        with _as_sqlite3():
            return self._raw.fetchone()

    def fetchall(self) -> Any:
        with _as_sqlite3():
            return self._raw.fetchall()

    def close(self) -> None:
        self._raw.close()
