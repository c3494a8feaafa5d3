"""Connections by SQLAlchemy: lent for one read each, in a transaction of their own that writes nothing.

A statement has `MARK` in the place of each parameter, and gets the marks of its driver when it runs. So a `%` or `:` of
a user's query is never taken for one.

Fork: a child drops its parent's pool without closing what is in it. It keeps it alive for ever, as some drivers say
goodbye to the server by the shared socket when a connection goes. A read that was begun before the fork does not
continue in the child.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import sqlalchemy
from sqlalchemy.engine import URL, Connection, CursorResult, Engine

from ..errors import SourceError
from ..forks import in_child, on_fork, renew_if_forked
from .sql_urls import parse, path_of_sqlite, shown

__all__ = ["MARK", "RUN", "Link", "Links"]

MARK: Final = "\0"
"""Stands for a parameter in a statement."""

RUN: Final = 512
"""Rows that are fetched, and held, at a time."""

_IDLE = 2
"""Connections that a process keeps for later."""

_CONNECT_TIMEOUTS = {"psycopg": "connect_timeout", "psycopg2": "connect_timeout", "pymysql": "connect_timeout"}


class Link:
    """A lent connection. Good until the `with` of `Links.take` ends. Raises what SQLAlchemy raises."""

    __slots__ = ("_open", "_pid", "connection", "name")

    def __init__(self, connection: Connection, name: str) -> None:
        self._pid = os.getpid()
        self._open: list[Any] = []
        self.connection = connection
        self.name = name

    @property
    def is_ours(self) -> bool:
        """Whether no fork came between."""
        return self._pid == os.getpid()

    @property
    def encoding(self) -> str | None:
        """By which psycopg encodes text; None of any other driver."""
        found: str | None = getattr(getattr(self._raw(), "info", None), "encoding", None)
        return found

    def execute(self, sql: str, parameters: Sequence[Any] = (), *, stream: bool = False) -> CursorResult[Any]:
        """stream: by a cursor of the server's, so that only `RUN` rows are held."""
        self._check()
        options: dict[str, Any] = {"stream_results": True, "max_row_buffer": RUN} if stream else {}
        if not parameters:
            return self.connection.exec_driver_sql(sql, execution_options={**options, "no_parameters": True})
        text, values = _rendered(sql, parameters, self.connection.dialect.paramstyle)
        return self.connection.exec_driver_sql(text, values, execution_options=options)

    def takes(self, sql: str, parameters: Sequence[Any]) -> bool:
        """Whether the database does not refuse a statement, where one that it refuses does not end the transaction.
        Raises SQLAlchemy's error of a connection that is lost."""
        try:
            self.execute(sql, parameters).close()
        except UnicodeError:  # of a driver that cannot even send it
            return False
        except sqlalchemy.exc.DBAPIError as error:
            if error.connection_invalidated:
                raise
            return False
        return True

    def rows(self, sql: str, parameters: Sequence[Any] = (), *, binary: bool = False) -> Iterator[tuple[Any, ...]]:
        """Streamed. binary: all columns have types of which the driver makes the same of either form; PostgreSQL gives
        the binary one in half the time."""
        if binary and not parameters and self.connection.dialect.driver == "psycopg":
            result = self._raw().cursor(f"mmcache_{next(_number)}", binary=True)
            result.itersize = RUN
            result.execute(sql)
        else:
            result = self.execute(sql, parameters, stream=True)
        self._open.append(result)
        try:
            while rows := result.fetchmany(RUN):
                yield from map(tuple, rows)
                self._check()
        finally:
            if self.is_ours:
                result.close()

    def _check(self) -> None:
        if not self.is_ours:
            reason = "this read was begun before a fork; a read cannot continue in the child process"
            raise SourceError(reason, path=self.name)

    def _raw(self) -> Any:
        return self.connection.connection.driver_connection

    def close(self) -> None:
        """Some drivers must have read what was not, before anything else is asked for by their connection."""
        with suppress(sqlalchemy.exc.SQLAlchemyError, _errors_of(self.connection)):
            for result in self._open:
                result.close()
            self.connection.close()


def _rendered(sql: str, parameters: Sequence[Any], style: str) -> tuple[str, Any]:
    first, *others = sql.split(MARK)
    if style in ("format", "pyformat"):
        return sql.replace("%", "%%").replace(MARK, "%s"), tuple(parameters)
    if style == "qmark":
        return sql.replace(MARK, "?"), tuple(parameters)
    if style == "named":
        marks = "".join(f":p{i}{part}" for i, part in enumerate(others))
        return first + marks, {f"p{i}": value for i, value in enumerate(parameters)}
    sign = "$" if style == "numeric_dollar" else ":"
    return first + "".join(f"{sign}{i}{part}" for i, part in enumerate(others, 1)), tuple(parameters)


class Links:
    """The connections of one source, by an engine of the user's, or by one of its own that is made when needed.

    timeout: seconds that connecting may take, of an engine of its own. hint: what to add where connecting fails.
    """

    def __init__(self, engine_or_url: Engine | URL | str, timeout: float, hint: str = "") -> None:
        self._given = engine_or_url if isinstance(engine_or_url, Engine) else None
        self.url = parse(engine_or_url) if not isinstance(engine_or_url, Engine) else engine_or_url.url
        self.timeout = timeout
        self.hint = hint
        self._engine = self._given
        self._lent: set[Link] = set()
        on_fork(self)

    @property
    def name(self) -> str:
        """The database, as messages call it."""
        return shown(self.url)

    @property
    def engine(self) -> Engine:
        """Raises SourceError where its driver is not installed."""
        if self._engine is None:
            self._engine = self._made()
        return self._engine

    def _made(self) -> Engine:
        url = self.url
        argument = _CONNECT_TIMEOUTS.get(url.drivername.partition("+")[2])
        arguments = {argument: max(1, round(self.timeout))} if argument and argument not in url.query else {}
        try:
            if path_of_sqlite(url) is not None:
                return sqlalchemy.create_engine(url, connect_args={"timeout": self.timeout, "check_same_thread": False})
            options: dict[str, Any] = {"pool_size": _IDLE, "max_overflow": -1, "pool_pre_ping": True}
            if url.get_backend_name() == "sqlite":
                options = {}
            engine = sqlalchemy.create_engine(url, connect_args=arguments, **options)
        except (ImportError, TypeError, sqlalchemy.exc.SQLAlchemyError) as error:
            raise SourceError(f"no connection can be made: {_first_line(error)}", path=self.name) from error
        if engine.dialect.name in ("mysql", "mariadb"):
            sqlalchemy.event.listen(engine, "connect", _in_utc)
        return engine

    @contextmanager
    def take(self) -> Iterator[Link]:
        """A connection; what is open in it at the end is rolled back. Raises SourceError for whatever the database
        raises inside."""
        renew_if_forked()
        path = path_of_sqlite(self.url)
        if path is not None and not os.path.exists(path):  # SQLite would make one
            raise SourceError("there is no database at this path; check the path", path=path)
        try:
            connection = self.engine.connect()
        except (sqlalchemy.exc.SQLAlchemyError, UnicodeError) as error:
            raise SourceError(f"cannot connect: {_first_line(error)}{self.hint}", path=self.name) from error
        except TypeError as error:  # psycopg gives text of SQL_ASCII as bytes, which SQLAlchemy does not expect
            way = "if the encoding of the database is SQL_ASCII, add client_encoding=utf8 to the URL"
            raise SourceError(f"cannot connect: {_first_line(error)}; {way}", path=self.name) from error
        link = Link(connection, self.name)
        self._lent.add(link)
        try:
            yield link
        except (sqlalchemy.exc.SQLAlchemyError, UnicodeError, _errors_of(connection)) as error:
            raise SourceError(_first_line(error), path=self.name) from error
        finally:
            self._lent.discard(link)
            if link.is_ours:
                link.close()

    def begin_process(self) -> None:
        """In a forked child."""
        _kept.append(self._lent)
        self._lent = set()
        if self._engine is not None:
            _kept.append(self._engine.pool)
            self._engine.dispose(close=False)

    def close(self) -> None:
        """What is idle in an engine of its own; that of a user stays as it is."""
        if self._engine is not None and self._given is None:
            self._engine.dispose()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):  # else its constructor raised
            with suppress(Exception):  # as the interpreter ends
                self.close()


def _errors_of(connection: Connection) -> type[Exception]:
    """Of the driver."""
    errors: Any = connection.dialect.loaded_dbapi
    found: type[Exception] = errors.Error
    return found


def _in_utc(connection: Any, _: object) -> None:
    """TIMESTAMP columns of MySQL are given in the session's zone."""
    cursor = connection.cursor()
    cursor.execute("SET time_zone = '+00:00'")
    cursor.close()


def _first_line(error: Exception) -> str:
    """What the database said, without SQLAlchemy's statement and link."""
    cause = getattr(error, "orig", None) or error
    text = cause.args[-1] if type(cause).__module__.startswith("pymysql") and cause.args else cause
    return " ".join(line.strip() for line in str(text).splitlines() if line.strip())[:500] or type(cause).__name__


_number = itertools.count()

_kept: list[Any] = []
"""What a forked child inherited, and must never close."""

# The interpreter never lets go of a hook, not even as it ends, and so never closes what the hook keeps.
in_child(partial(len, _kept))
