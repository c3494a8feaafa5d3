"""Databases of tools that developers run: each is run as on a command line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from tests.programs.catalog import program, run

SOURCE = """\
def even(number):
    if number % 2:
        return False
    return True

def test_even():
    assert even(2)

def test_odd():
    assert not even(3)

if __name__ == "__main__":
    test_even()
    test_odd()
"""


@program("coverage", "coverage")
def coverage() -> None:
    """Lines of one run, and arcs of three with a context for each test, combined."""
    Path("numbers.rc").write_text("[run]\ndynamic_context = test_function\nbranch = true\nparallel = true\n")
    Path("evens.py").write_text(SOURCE)
    Path("other.py").write_text("import evens\n\nfor n in range(3):\n    evens.even(n)\n")
    run("python", "-m", "coverage", "run", "--data-file=lines", "other.py")
    for script in ("evens.py", "other.py", "evens.py"):
        run("python", "-m", "coverage", "run", "--rcfile=numbers.rc", f"--context={script}", script)
    run("python", "-m", "coverage", "combine", "--rcfile=numbers.rc")


@program("ipython", "ipython")
def ipython() -> None:
    """Three sessions, outputs logged too."""
    for session in range(3):
        lines = [f"x = {session}", "x + 1", "'käse' * 3", "for i in range(3):\n    x += i\n", "%history", "x"]
        config = ("--HistoryManager.db_log_output=True", "--simple-prompt", "--no-banner", "--colors=NoColor")
        run("python", "-m", "IPython", *config, given="\n".join(lines) + "\n")


@program("mypy", "mypy")
def mypy() -> None:
    """The incremental cache of a package of two modules."""
    package = Path("package")
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from package.two import double\n\nprint(double(3))\n")
    (package / "two.py").write_text("def double(n: int) -> int:\n    return 2 * n\n")
    run("python", "-m", "mypy", "--sqlite-cache", "package")
    _, *others = sorted(Path(".mypy_cache").rglob("cache.*.db"), key=lambda path: -path.stat().st_size)
    for path in others:  # of one kind
        path.unlink()


@program("jupyter", "nbformat")
def jupyter() -> None:
    """Signatures of notebooks that were trusted."""
    from nbformat import v4
    from nbformat.sign import NotebookNotary

    notary = NotebookNotary(db_file="nbsignatures.db", secret=b"s" * 64)
    for number in range(20):
        notary.sign(v4.new_notebook(cells=[v4.new_code_cell(f"print({number})")]))
    notary.store.close()


@program("xonsh", "xonsh")
def xonsh() -> None:
    """The history of two shells."""
    for shell in range(2):
        script = "\n".join([f"echo {shell}", "x = 3", "print(x * 'ä')", "history flush", ""])
        run("python", "-m", "xonsh", "--no-rc", "-i", "-DXONSH_HISTORY_BACKEND=sqlite", "-DPROMPT=>", given=script)


@program("sqlite-utils", "sqlite-utils")
def sqlite_utils() -> None:
    """Tables with keys of all kinds, full-text search of both versions with triggers, counts and views."""
    from sqlite_utils import Database

    dogs = [{"id": n, "name": f"Dog {n}", "breed": n % 5, "weight": n / 4, "tags": ["a", n]} for n in range(1, 120)]
    Path("dogs.json").write_text(json.dumps(dogs))
    run("sqlite-utils", "insert", "dogs.db", "dogs", "dogs.json", "--pk", "id")
    run("sqlite-utils", "enable-fts", "dogs.db", "dogs", "name", "--create-triggers")
    run("sqlite-utils", "extract", "dogs.db", "dogs", "breed", "--table", "breeds")
    run("sqlite-utils", "create-index", "dogs.db", "dogs", "breeds_id")
    run("sqlite-utils", "create-view", "dogs.db", "heavy dogs", "select id, name from dogs where weight > 20")
    run("sqlite-utils", "enable-counts", "dogs.db")
    db = Database("mixed.db")
    rows = [{"space": f"s{n % 7}", "number": n, "value": n % 3 or None} for n in range(200)]
    db["compound"].insert_all(rows, pk=("space", "number"))
    db["by name"].insert_all(({"name, or not": f"n{n}", "x": n} for n in range(30)), pk="name, or not")
    db["no key"].insert_all({"a": n % 4, "b": None if n % 5 else b"\x00" * n} for n in range(50))
    db["hashed"].insert_all(({"text": f"t{n}"} for n in range(30)), hash_id="id")
    db["strict"].insert_all(({"id": n, "x": n / 2} for n in range(30)), pk="id", strict=True)
    articles = db["articles"]
    articles.insert_all(({"slug": f"a-{n}", "title": f"Title {n}", "body": "word " * n} for n in range(40)), pk="slug")
    articles.enable_fts(["title", "body"], fts_version="FTS4", tokenize="porter")
    articles.insert({"slug": "more", "title": "More", "body": ""}).m2m("topics", {"id": 1, "name": "news"}, pk="id")
    db.create_view("every article", "select slug, title from articles")
    db.close()


@program("svn", commands=("svn", "svnadmin"))
def svn() -> None:
    """A working copy with a conflict, a property, an external change, and what the repository shares."""
    run("svnadmin", "create", "repository")
    url = f"file://{Path('repository').resolve()}"
    run("svn", "checkout", url, "one")
    for n in range(12):
        Path(f"one/file {n}.txt").write_text(f"{n}\n" * n)
    Path("one/folder/deep/ünder").mkdir(parents=True)
    Path("one/folder/deep/ünder/x").write_text("x")
    names = [str(path) for path in Path("one").iterdir() if path.name != ".svn"]
    run("svn", "add", "--force", *names)
    run("svn", "propset", "svn:eol-style", "LF", "one/file 3.txt")
    run("svn", "commit", "-m", "all", "one", "--username", "tester")
    run("svn", "checkout", url, "two")
    Path("one/file 5.txt").write_text("one\n")
    Path("two/file 5.txt").write_text("two\n")
    run("svn", "commit", "-m", "changed", "one")
    run("svn", "update", "two", "--accept", "postpone")
    run("svn", "move", "two/file 7.txt", "two/moved.txt")
    run("svn", "changelist", "later", "two/file 8.txt")


@program("fossil", commands=("fossil",))
def fossil() -> None:
    """A repository with a checkout, a ticket and a wiki page; and the user's configuration."""
    run("fossil", "init", "--admin-user", "tester", "repository.fossil")
    Path("work").mkdir()
    fossil = [shutil.which("fossil") or "", "--chdir", "work", "--user", "tester"]
    run(*fossil, "open", "--force", "../repository.fossil")
    for n in range(10):
        Path(f"work/file {n}.txt").write_text(f"{n}\n" * 10 * n)
    run(*fossil, "add", ".")
    run(*fossil, "commit", "-m", "all", "--no-warnings", "--allow-empty")
    run(*fossil, "tag", "add", "käse", "trunk")
    run(*fossil, "ticket", "add", "title", "broken", "status", "Open")
    run(*fossil, "wiki", "create", "Page", given="text")
    Path("work/file 1.txt").write_text("changed")
    run(*fossil, "stash", "save", "-m", "later")


@program("rpm", commands=("rpm", "rpmbuild"))
def rpm() -> None:
    """The database of packages that are installed: three that were built here."""
    place = str(Path("rpmdb").resolve())
    run("rpm", "--initdb", "--dbpath", place)
    for name in ("alpha", "beta", "gamma"):
        head = f"Name: {name}\nVersion: 1.0\nRelease: 1\nSummary: nothing\nLicense: MIT\nBuildArch: noarch\n"
        spec = f"{head}\n%description\nNothing.\n\n%install\nmkdir -p %{{buildroot}}/opt\n"
        spec += f"echo {name} > %{{buildroot}}/opt/{name}\n\n%files\n/opt/{name}\n"
        Path(f"{name}.spec").write_text(spec)
        run("rpmbuild", "-bb", "--define", f"_topdir {Path.cwd()}/build", "--dbpath", place, f"{name}.spec")
    packages = map(str, Path("build/RPMS/noarch").glob("*.rpm"))
    run("rpm", "--install", "--justdb", "--nodeps", "--nosignature", "--dbpath", place, *packages)


@program("certutil", commands=("certutil",))
def certutil() -> None:
    """The certificates and keys of a browser's profile."""
    Path("profile").mkdir()
    Path("noise").write_bytes(bytes(range(256)) * 8)
    database = ("-d", "sql:profile")
    run("certutil", "-N", *database, "--empty-password")
    for number in range(1, 4):
        subject = ("-n", f"site {number}", "-s", f"CN=site{number}.example", "-m", str(number))
        run("certutil", "-S", *database, *subject, "-x", "-t", "CT,,", "-z", "noise", "-k", "ec", "-q", "nistp256")


@program("dbm.sqlite3")
def dbm_sqlite3() -> None:
    """The dictionary on disk of Python 3.13."""
    if sys.version_info < (3, 13):
        raise SystemExit("dbm.sqlite3 comes with Python 3.13")
    import dbm.sqlite3

    with dbm.sqlite3.open("shelf.db", "c") as shelf:
        for number in range(40):
            shelf[f"key {number}".encode() + b"\xff"] = bytes([number]) * number
