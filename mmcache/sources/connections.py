"""Read-only SQLite connections to one file, each lent to one user at a time.

A connection is opened when none is idle, is exclusive while lent (so a suspended iterator and a lookup in the same
thread never share a transaction). It goes back with its cursors closed and its transaction ended. Any thread may use
any idle connection.

A database may be replaced: by a rename, after which a connection reads the file that was, or by a copy over it, after
which SQLite answers from pages that it remembers if both files count as many commits. So the file is looked at each
time a connection is lent. One whose file was written, though SQLite knows of no commit, is closed.

Fork: SQLite's rule (howtocorrupt.html, 2.6) is that a child neither uses nor closes what its parent opened. The child's
hook drops the pools' books and keeps the inherited objects alive for ever; new connections are opened on demand. But
SQLite counts its locks per process, in memory: a child forked *while a read was under way* would believe that it holds
a lock which it does not, and one forked inside a call would wait for a mutex for ever. So a fork waits a moment until
all connections are idle, and none is lent meanwhile. After a read that took longer, connecting is refused in the child,
and the error says what to do.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet, finalize

from ..errors import SourceError
from ..forks import in_child, renew_if_forked
from ..owner import Within
from ..text import open_files
from .fingerprint import Stamp, stamp_of
from .opening import Connect, Opening, what_it_lacks

__all__ = ["BusyError", "Connection", "Connections"]

MAX_IDLE = 8

_FILES_OF_A_CONNECTION = 4
"""Database, journal or WAL, its index, and a directory that is synced."""

_QUIET: Final = 0.2
"""Seconds that a fork waits for reads to end."""

_PATIENCE: Final = 0.02
"""Seconds that a read waits for a fork, as for anything but its source."""

_PAUSE: Final = 0.0005
"""Seconds between two looks of whichever waits."""


class BusyError(Exception):
    """A writer holds the database locked."""


class Connection:
    """A lent connection: `with connections.take() as connection`. Raises what sqlite3 raises.

    It knows its pool only while it is lent, so that the last reference to a pool closes what is idle."""

    __slots__ = ("_lender", "_seen", "_version", "abandoned", "cursors", "epoch", "notes", "raw")

    def __init__(self, raw: sqlite3.Connection, epoch: int, seen: Stamp | None) -> None:
        """epoch: another one than that of any connection to a file that was there before. seen: the file, before.

        Raises sqlite3.Error for a file that is no database, or one without its key: SQLCipher says so only once."""
        self.raw = raw
        self.epoch = epoch
        self._seen = seen
        self._version: int | None = None
        with contextlib.suppress(sqlite3.OperationalError):  # the read that follows says what is wrong
            self._version = self._data_version()
        self.cursors: list[sqlite3.Cursor] = []
        self.notes: dict[str, Any] = {}
        """What a source keeps of what it read by this connection."""
        self.abandoned = False
        self._lender: tuple[Connections, list[Connection]] | None = None

    def lend(self, pool: Connections, home: list[Connection]) -> Self:
        self._lender = pool, home
        return self

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """A cursor that lives, and is kept alive, until the connection goes back."""
        if self.abandoned:
            reason = "this read was begun before a fork; a read cannot continue in the child process"
            raise SourceError(reason, path=self._lender[0].path if self._lender is not None else None)
        cursor = self.raw.execute(sql, parameters)
        self.cursors.append(cursor)
        return cursor

    def is_current(self, now: Stamp | None) -> bool:
        """Whether SQLite reads the file that is at the path now. Raises sqlite3.Error."""
        before, known = self._seen, self._version
        if now is None or now == before:
            return True  # a database that is gone is found out by the next poll
        if before is None or now[:2] != before[:2] or known is None:
            return False
        self._seen, self._version = now, self._data_version()
        return self._version != known

    def _data_version(self) -> int:
        """Differs after each commit of others. Waits for no writer's lock."""
        timeout = self.raw.execute("PRAGMA busy_timeout").fetchone()[0]
        self.raw.execute("PRAGMA busy_timeout = 0").close()
        try:
            version: int = self.raw.execute("PRAGMA data_version").fetchone()[0]
        finally:
            self.raw.execute(f"PRAGMA busy_timeout = {timeout}").close()
        return version

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lender is not None:
            pool, home = self._lender
            self._lender = None
            pool.give_back(self, home)


class Connections:
    """The connections to `path`, an absolute path. `timeout`: seconds to wait for a writer's lock. connect, immutable:
    see `Opening`. attached: the files of further databases, which `connect` has attached; None before the first call.
    """

    def __init__(self, path: str, timeout: float, *, connect: Connect | None = None, immutable: bool = False) -> None:
        self.opening = Opening(path, timeout, connect, immutable)
        self.attached: tuple[str, ...] | None = None if connect is not None else ()
        self._epoch = 0
        self._open: set[Connection] = set()
        self._inside: set[int] = set()
        self._home: list[list[Connection]] = [[]]
        # Not by a method: of a pool that is garbage in a cycle, sqlite3 could be asked to end first, which warns.
        # No lent connection is in it: that knows its pool, and would keep it for ever.
        finalize(self, _close_idle, self._home)
        _pools.add(self)

    @property
    def _idle(self) -> list[Connection]:
        return self._home[0]

    @_idle.setter
    def _idle(self, idle: list[Connection]) -> None:
        self._home[0] = idle

    @property
    def path(self) -> str:
        return self.opening.path

    @property
    def timeout(self) -> float:
        return self.opening.timeout

    def take(self) -> Connection:
        """An exclusive connection, outside any transaction. Raises SourceError."""
        renew_if_forked()
        with Within(self._inside):
            if not _forks:
                return self._take()
        _wait_until(lambda: not _forks, _PATIENCE)
        with Within(self._inside):
            return self._take()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[Connection]:
        """A read transaction that does not wait for a writer's lock, for a get may be waiting. Raises BusyError where
        there is one, and SourceError."""
        with self.take() as connection:
            try:
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("BEGIN")
                yield connection
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                    raise BusyError from error
                raise self.error(error) from error
            finally:
                connection.execute(f"PRAGMA busy_timeout = {round(1000 * self.timeout)}")

    def _take(self) -> Connection:
        home, now = self._idle, self._stamp()
        while home:
            try:
                connection = home.pop()
            except IndexError:
                break
            if self._is_current(connection, now):
                return connection.lend(self, home)
            self._epoch += 1
            if connection in self._open:  # else a fork came between: it belongs to the parent
                self._open.discard(connection)
                connection.raw.close()
        if self.path in _tainted:
            raise SourceError(
                "this process was forked while its parent was reading the database, and SQLite cannot lock the file "
                "here; fork outside of reads, or start workers by 'spawn' or 'forkserver'",
                path=self.path,
            )
        raw = self._connect()
        try:
            connection = Connection(raw, self._epoch, now)
        except sqlite3.Error as error:
            raw.close()
            raise self.error(error) from error
        self._open.add(connection)
        return connection.lend(self, home)

    def _stamp(self) -> Stamp | None:
        try:
            return stamp_of(os.stat(self.path))
        except OSError:
            return None

    def _is_current(self, connection: Connection, now: Stamp | None) -> bool:
        """What is wrong, such as a writer's lock or damage, a new connection says."""
        try:
            return connection.is_current(now)
        except sqlite3.Error:
            return False

    def give_back(self, connection: Connection, home: list[Connection]) -> None:
        if connection not in self._open:
            return  # a fork came between: it belongs to the parent
        for cursor in connection.cursors:
            cursor.close()
        connection.cursors.clear()
        if connection.raw.in_transaction:
            connection.raw.rollback()
        connection.raw.text_factory = str  # see `tolerant`
        home.append(connection)
        if home is not self._idle:  # closed since it was lent, or at this moment
            self._close(home, 0)
        elif len(home) > MAX_IDLE:
            self._close(home, MAX_IDLE)

    def close(self) -> None:
        """Close what is idle now, and what is lent when it comes back. A later `take` opens anew."""
        idle, self._idle = self._idle, []
        self._epoch += 1
        self._close(idle, 0)

    def _close(self, idle: list[Connection], keep: int) -> None:
        """By `pop`, which gives a connection to one thread alone, as another may be in `take` or here."""
        with Within(self._inside):
            while len(idle) > keep:
                try:
                    connection = idle.pop()
                except IndexError:
                    return
                self._open.discard(connection)
                connection.raw.close()

    def is_idle(self) -> bool:
        """Whether no thread is inside SQLite, or in a read, by this pool."""
        return len(self._open) <= len(self._idle) and not self._inside

    def error(self, error: sqlite3.Error) -> SourceError:
        """What happened, in words that help, as the error that a source raises."""
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith("SQLITE_BUSY"):
            reason = (
                f"the database is locked: a writer kept it for longer than the timeout of {self.timeout:g} s; end that "
                "transaction, raise SQLiteSource(timeout=...), or let readers and writers overlap (journal_mode=WAL)"
            )
        elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_IOERR")):
            reason = self._why_not_read(error)
        elif name.startswith("SQLITE_READONLY"):
            reason = f"SQLite cannot read the database without writing beside it ({error}){self._why_it_writes()}"
        elif name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            reason = f"not a whole SQLite database ({error})"
            if content := self._what_it_is():
                reason += content
            else:
                way = what_it_lacks(error, self.path)
                reason += "; check it with PRAGMA integrity_check" + f", or {way}" * bool(way)
        elif "Could not decode" in str(error):
            reason = f"{error}: text in the database is not valid UTF-8; store such bytes as a BLOB"
        elif "can only be used in that same thread" in str(error):
            reason = f"{error}: connect= must hand on all arguments that it is given, check_same_thread=False too"
        elif way := what_it_lacks(error, self.path):
            reason = f"SQLite: {error}; {way}"
        else:
            reason = f"SQLite: {error}" + (f" ({name})" if name else "")
        return SourceError(reason, path=self.path)

    def _what_it_is(self) -> str:
        from .recognize import content_of

        return "" if self.opening.connect is not None else content_of(self.path, "sqlite")

    def _why_not_read(self, error: sqlite3.Error) -> str:
        if not os.path.exists(self.path):
            return "there is no database at this path; check the path, or create the database first"
        if not os.path.isfile(self.path):
            return "this is not a file; expected a SQLite database"
        if not os.access(self.path, os.R_OK):
            return "no permission to read the database"
        if hint := _too_many_open_files():
            return f"SQLite cannot open the database ({error}){hint}"
        return f"SQLite cannot read the database ({error}){self._why_it_writes()}"

    def _why_it_writes(self) -> str:
        """What reading writes, and where that is not possible."""
        directory = os.path.dirname(os.path.realpath(self.path))
        if os.access(directory, os.W_OK):
            is_so = "if it is in WAL mode, reading needs write access to its directory for the -shm file"
        else:
            is_so = f"if it is in WAL mode, reading makes a -shm file beside it, and {directory} cannot be written"
        return (
            f"; {is_so}: grant that, or switch to journal_mode=DELETE, or, if no program writes to the database "
            "(read-only media), give SQLiteSource(immutable=True), or --option immutable=true on the command line"
        )

    def _connect(self) -> sqlite3.Connection:
        if self.opening.immutable:
            self._check_wal()
        try:
            raw = self.opening.open()
            if self.opening.connect is not None:
                self.attached = _attached_to(raw)
        except sqlite3.Error as error:
            raise self.error(error) from error
        return raw

    def _check_wal(self) -> None:
        """Raises SourceError where an immutable database would lack what is committed in its -wal."""
        with contextlib.suppress(OSError):
            if os.stat(os.path.realpath(self.path) + "-wal").st_size:
                raise SourceError(
                    "immutable=True leaves out what is in the -wal file beside the database: run PRAGMA "
                    "wal_checkpoint(TRUNCATE) where it can be written, or read it without immutable=True",
                    path=self.path,
                )

    def abandon(self) -> list[set[Connection]]:
        """In a forked child: forget every connection without touching it. The caller keeps them from being dropped."""
        if not self.is_idle():
            _tainted.add(self.path)
            self._inside = set()
        for connection in self._open:
            connection.abandoned = True
        inherited, self._open, self._idle = self._open, set(), []
        return [inherited]


def _close_idle(home: list[list[Connection]]) -> None:
    """As a pool is dropped, and as the interpreter ends."""
    renew_if_forked()
    with Within(_closing):
        for connection in home[0]:
            connection.raw.close()


def _attached_to(raw: sqlite3.Connection) -> tuple[str, ...]:
    """The files of all databases but the first, and those in memory."""
    rows = raw.execute("PRAGMA database_list").fetchall()
    return tuple(file for _, name, file in rows if file and name != "main")


def _too_many_open_files() -> str:
    """What to do, if no more files can be opened: SQLite does not tell. The database itself is not opened here, for
    closing it would drop SQLite's locks."""
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(_FILES_OF_A_CONNECTION):
                opened.enter_context(open("/dev/null", "rb", buffering=0))
        except OSError as error:
            return open_files(error.errno)
    return ""


_pools: WeakSet[Connections] = WeakSet()
_tainted: set[str] = set()
_closing: set[int] = set()
"""Threads that close what a dropped pool had. A fork waits for them, as for those inside a pool."""


def _abandon_all(keep: list[set[Connection]]) -> None:
    _closing.clear()
    for pool in list(_pools):
        keep.extend(pool.abandon())


# The interpreter never lets go of a hook, not even as it ends, and so never closes what the hook keeps.
in_child(partial(_abandon_all, []))

_forks: list[None] = []
"""One for each thread that forks. Every change is one call of C code."""


def _wait_until(is_so: Callable[[], bool], patience: float) -> None:
    end = time.monotonic() + patience
    while not is_so() and time.monotonic() < end:
        time.sleep(_PAUSE)


def _are_idle() -> bool:
    try:
        return not _closing and all(pool.is_idle() for pool in list(_pools))
    except RuntimeError:  # another thread makes a pool at this moment
        return False


# Of the functions to be called before a fork, the last to be registered comes first.
os.register_at_fork(before=partial(_wait_until, _are_idle, _QUIET))
os.register_at_fork(before=partial(_forks.append, None), after_in_parent=_forks.pop, after_in_child=_forks.clear)
