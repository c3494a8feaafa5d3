"""Databases that real programs make: each program is used as its users use it, once, and what it left is kept.

`@program` registers a function that leaves databases in the current directory. `databases_of` runs it in a process of
its own, with a home directory of its own, below a cache directory; the next run finds the databases there, as long as
neither the programs' versions nor the functions changed. A program that is not installed raises `AbsentError`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import blake2b
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

__all__ = ["PROGRAMS", "AbsentError", "databases_of", "program", "run"]

_MAGIC = b"SQLite format 3\0"
_ROOT = Path(__file__).parents[2]
_SECONDS = 300
"""For one program to make its databases, on a busy machine."""


class AbsentError(Exception):
    """The program is not installed here, or cannot work here; the message says which."""


class Program(NamedTuple):
    """How databases of one program are made.

    distributions: of the package index, that it needs. commands: on the PATH, that it needs.
    """

    name: str
    make: Callable[[], None]
    distributions: tuple[str, ...]
    commands: tuple[str, ...]

    def version(self) -> str:
        """Of all that it needs. Raises AbsentError."""
        try:
            found = [f"{name} {version(name)}" for name in self.distributions]
        except PackageNotFoundError as error:
            raise AbsentError(f"the package {error.name} is not installed") from error
        for command in self.commands:
            path = shutil.which(command)
            if path is None:
                raise AbsentError(f"the command {command} is not installed")
            found.append(f"{command} {os.path.getmtime(path):.0f}")
        return ", ".join(found)


PROGRAMS: dict[str, Program] = {}


def program(name: str, *distributions: str, commands: tuple[str, ...] = ()) -> Callable[..., Callable[[], None]]:
    """Register the decorated function as the maker of the databases of the program."""

    def registered(make: Callable[[], None]) -> Callable[[], None]:
        PROGRAMS[name] = Program(name, make, distributions, commands)
        return make

    return registered


def run(*command: str, given: str = "") -> str:
    """What a command printed. "python" is this interpreter. Raises CalledProcessError."""
    if command[0] == "python":
        command = (sys.executable, *command[1:])
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
    done.check_returncode()
    return done.stdout


def databases_of(name: str, cached: Path) -> dict[str, Path]:
    """The databases of a program by their paths in its directory, made now or before. Raises AbsentError."""
    directory = cached / f"{name}-{_digest(PROGRAMS[name])}"
    cached.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if not directory.exists():
            _make(name, directory)
    return {str(path.relative_to(directory)): path for path in sorted(_databases(directory))}


def _digest(program: Program) -> str:
    digest = blake2b(f"{sys.version} {program.version()}".encode(), digest_size=8)
    digest.update(Path(sys.modules[program.make.__module__].__file__ or "").read_bytes())
    return digest.hexdigest()


def _make(name: str, directory: Path) -> None:
    work = directory.with_suffix(".tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    # A home of its own; and nothing that a developer or a test run has set for the programs.
    kept = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "TMPDIR", "PYTHONHOME")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    env = {**kept, "PATH": path, "HOME": str(work), "PYTHONPATH": str(_ROOT), "TZ": "UTC"}
    command = [sys.executable, "-m", "tests.programs.catalog", name]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        raise AbsentError(f"{name} made no database here: {done.stderr.strip()[-2000:]}")
    work.rename(directory)


def _databases(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) == _MAGIC:
                    yield path


def load() -> None:
    """Register all programs."""
    for module in ("applications", "frameworks", "libraries", "tools"):
        import_module(f"tests.programs.{module}")


if __name__ == "__main__":
    from tests.programs import catalog

    catalog.load()
    catalog.PROGRAMS[sys.argv[1]].make()
