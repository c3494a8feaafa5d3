"""Databases of three kinds: of SQLite, and of servers that the test run starts itself (`tests.support.servers`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import servers

SERVED = [pytest.param(kind, marks=pytest.mark.integration) for kind in ("postgresql", "mariadb")]
_number = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[str]:
    with servers.mariadb() as url:
        yield url


@pytest.fixture(params=["sqlite", *SERVED])
def database(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[servers.Database]:
    """An empty one, of each kind in turn."""
    yield from _database(request, tmp_path)


@pytest.fixture(params=SERVED)
def served(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[servers.Database]:
    """An empty one of a server."""
    yield from _database(request, tmp_path)


@pytest.fixture
def postgres(postgres_server: str) -> Iterator[servers.Database]:
    """An empty database of PostgreSQL."""
    yield from _of_server("postgresql", postgres_server)


@pytest.fixture
def mariadb(mariadb_server: str) -> Iterator[servers.Database]:
    """An empty database of MariaDB."""
    yield from _of_server("mariadb", mariadb_server)


def _database(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[servers.Database]:
    if request.param == "sqlite":
        with servers.Database("sqlite", f"sqlite:///{tmp_path}/items.db") as database:
            yield database
        return
    name = "postgres_server" if request.param == "postgresql" else "mariadb_server"
    yield from _of_server(request.param, request.getfixturevalue(name))


def _of_server(kind: str, server: str) -> Iterator[servers.Database]:
    name = f"test{next(_number)}"
    pytest.importorskip("psycopg" if kind == "postgresql" else "pymysql", reason="no driver: the integration group")
    with servers.Database(kind, server) as admin:
        admin.run(f"CREATE DATABASE {name}")
        there = "postgres" if kind == "postgresql" else "mysql"
        with servers.Database(kind, server.replace(f"/{there}?", f"/{name}?")) as database:
            yield database
        if kind == "postgresql":
            admin.run(f"DROP DATABASE {name} WITH (FORCE)")
        else:
            admin.run(f"DROP DATABASE {name}")
