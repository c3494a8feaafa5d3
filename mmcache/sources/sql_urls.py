"""URLs of databases: which driver they mean, and what of them may be written down.

A file and a message carry a URL without its secrets. `postgres://`, and a URL that names no driver, mean whichever
driver is installed.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import sqlalchemy
from sqlalchemy.engine import URL

from ..errors import SourceError

__all__ = ["has_secrets", "parse", "path_of_sqlite", "shown", "without_secrets"]

_DRIVERS = {
    "postgresql": (("psycopg", "psycopg"), ("psycopg2", "psycopg2"), ("pg8000", "pg8000")),
    "mysql": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb"), ("mysqlconnector", "mysql.connector")),
}
"""Database -> its drivers as a URL names them, and the modules that they are; the first that is installed is taken."""

_ALIASES = {"postgres": "postgresql", "mariadb": "mysql"}
_INSTALLS = {"postgresql": "psycopg[binary]", "mysql": "pymysql"}
_SECRETS = ("pass", "secret", "token", "credential")


def parse(where: str | URL) -> URL:
    """The URL with a driver that is installed, and a path of SQLite made absolute. Raises SourceError."""
    try:
        url = sqlalchemy.make_url(where)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        kind = f"a {type(where).__name__} is " * (not isinstance(where, str))
        raise SourceError(
            f"{kind}not a URL of a database; expected one like postgresql://user@host/name, or an Engine"
        ) from None
    name, plus, _ = url.drivername.partition("+")
    kind = _ALIASES.get(name, name)
    if not plus and kind in _DRIVERS:
        url = url.set(drivername=f"{kind}+{_installed(kind)}")
    path = path_of_sqlite(url)
    if kind == "sqlite" and (url.database or ":memory:") == ":memory:":
        raise SourceError(f"{url} is a new, empty database in memory; give the Engine that has filled it")
    return url if path is None else url.set(database=path)


def _installed(kind: str) -> str:
    for driver, module in _DRIVERS[kind]:
        if find_spec(module.partition(".")[0]) is not None:
            return driver
    raise SourceError(
        f"a URL of {kind} needs a driver, and none is installed: pip install '{_INSTALLS[kind]}', "
        f"or name another one: {kind}+driver://"
    )


def path_of_sqlite(url: URL) -> str | None:
    """The absolute path of a SQLite database; None for any other, one in memory, and one named by a URI."""
    database = url.database or ""
    if url.get_backend_name() != "sqlite" or database in ("", ":memory:") or database.startswith("file:"):
        return None
    return os.path.abspath(database)


def has_secrets(url: URL) -> bool:
    return bool(url.password) or any(map(_is_secret, url.query))


def shown(url: URL) -> str:
    """The URL without its password, and without arguments that are one."""
    query: Any = {name: value for name, value in url.query.items() if not _is_secret(name)}
    return url._replace(password=None, query=query).render_as_string(hide_password=False)


def without_secrets(where: str) -> str:
    """`shown` of a text; as it is, where it is no URL or has no secrets."""
    try:
        url = sqlalchemy.make_url(where)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return where
    return shown(url) if has_secrets(url) else where


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRETS)
