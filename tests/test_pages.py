"""Every block of every page runs, in order, in the page's own directory, and prints what the page says."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import mmcache
from examples.demo.bank import write_bank
from tests.support.pages import LANGUAGES, ROOT, Block, blocks, run

PAGES = sorted(page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if blocks(page))

IMPORTS = "import json, locale, math, sqlite3\nimport numpy as np\nimport mmcache\n"
IMPORTS += "from mmcache import IterableSource, Schema, SQLAlchemySource, SQLiteSource\n"
ITEMS = IMPORTS + 'schema = Schema("items", index=("kind",))\nsource = SQLiteSource("items.db", schema)\n'

ELSEWHERE = {
    "docs/pytest.md": "tests/integrations/test_pytest_plugin.py",
    "docs/workers.md": "tests/integrations/test_servers.py",
    "docs/format.md": "tests/format/test_format_spec.py",
    "docs/benchmarks/README.md": "tests/test_benchmarks.py",
}
"""Pages whose blocks other tests run, each in a way of its own."""

SHOWN = {
    ("docs/tracking.md", "sql"): "tests/sources/test_tracking.py",
}
"""Blocks that are shown, not run: what they say is what the test there finds in a database."""

REPLACED = {
    "docs/databases.md": {"postgresql://app@db/shop": "sqlite:///shop.db"},
    "docs/tracking.md": {"mmcache track postgresql://owner@db/shop --table items\n": ""},
    "docs/monitoring.md": {" | jq .state": "", "patterns.mmc": "bank.mmc"},
    "docs/commands.md": {" --watch": ""},
    "docs/containers.md": {"/var/cache/shop": "cache"},
    "docs/lookups.md": {"jq -c '.items[]' dump.json": "cat items.jsonl"},
    "docs/files.md": {  # tests/sources/test_objects.py has a bucket
        "s3://bucket/events/": "events/",
        "--shards 8": "--shards 2 --workers 1",
    },
    "docs/fleet.md": {
        "s3://bucket/items /var/cache/shop/items.mmc": "file://$PWD/store node/items.mmc --once",
        "items.mmc s3://bucket/items": "items.mmc file://$PWD/store",  # tests/remote/test_publish.py has a bucket
        'follow="s3://bucket/items"': 'follow=pathlib.Path("store").absolute().as_uri()',
        "/media/disk/items /var/cache/shop/": "/media/disk/items inside/",
        "file:///media/": "file://$PWD/",
        "file:///tmp/": "file://$PWD/",
        "/tmp/node/": "drilled/",
        "/var/cache/shop/": "node/",
    },
    "docs/scale.md": {"benchmarks.fleet ": "benchmarks.fleet --help "},  # tests/test_fleet_model.py runs it
    "docs/shards.md": {
        "ProcessPoolExecutor(8)": "ProcessPoolExecutor(2)",
        "shards=32": "shards=3",
        "shards=64": "shards=2",
        "from dask.distributed import Client\n": "",  # tests/sharing/test_sharded.py has a cluster
        'Client("tcp://scheduler:8786").get_executor(pure=False)': "ProcessPoolExecutor(2)",
        "/shared/": "shared/",
    },
}
"""What needs a server, or never ends, and what runs in its place."""


# --- what a page finds in its directory -------------------------------------------------------------------------------


def database(directory: Path, name: str, *statements: str) -> None:
    with closing(sqlite3.connect(directory / name)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def items(directory: Path) -> None:
    """`items.db`, `items.mmc` built from it, and an empty directory `cache`."""
    (directory / "cache").mkdir()
    database(
        directory,
        "items.db",
        "CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, price REAL, vector TEXT, created TEXT)",
        "INSERT INTO items VALUES ('a', 'tool', 2.5, '[1, 0]', '2026-01-31 12:00:00')",
        "INSERT INTO items VALUES ('b', 'toy', 1.5, '[0, 1]', '2026-02-01 12:00:00')",
    )
    source = mmcache.SQLiteSource(directory / "items.db", mmcache.Schema("items", index=("kind",), embedding="vector"))
    mmcache.build(directory / "items.mmc", source)


def shop(directory: Path) -> None:
    """`shop.db`: items by sku, and users; `prices.csv`."""
    database(
        directory,
        "shop.db",
        "CREATE TABLE items (sku TEXT PRIMARY KEY, kind TEXT NOT NULL, price REAL NOT NULL, tags TEXT, vector TEXT)",
        "INSERT INTO items VALUES ('hammer', 'tool', 12.5, '[\"steel\"]', '[1, 0]')",
        "INSERT INTO items VALUES ('saw', 'tool', 20, '[]', '[0, 1]')",
        "INSERT INTO items VALUES ('yo-yo', 'toy', 3, '[]', NULL)",
        "CREATE TABLE users (email TEXT PRIMARY KEY, name TEXT)",
        "INSERT INTO users VALUES ('a@example.org', 'Ada')",
    )
    (directory / "prices.csv").write_text("sku,price\nhammer,12.5\n")
    items(directory)


def bank(directory: Path) -> None:
    write_bank(directory / "patterns.db", 200)
    patterns = mmcache.Schema("patterns", index=("domain",), json=("metadata",), embedding="embedding", dim=768)
    mmcache.build(directory / "bank.mmc", mmcache.SQLiteSource(directory / "patterns.db", patterns))
    shop(directory)
    (directory / "items.csv.gz").write_bytes(gzip.compress(b"sku,kind\nhammer,tool\n"))
    (directory / "items.jsonl").write_text('{"id": "a", "kind": "tool"}\n')
    partition = directory / "events" / "year=2026"
    partition.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"id": ["e"], "month": [1]}), partition / "one.parquet")


def parts(directory: Path) -> None:
    """`items/`, of two Parquet files; `monday.mmc` and `tuesday.mmc`; `shared/scratch`."""
    items(directory)
    (directory / "shared" / "scratch").mkdir(parents=True)
    (directory / "items").mkdir()
    for name, keys in (("monday", ["a", "b"]), ("tuesday", ["c"])):
        kinds = ["tool"] * len(keys)
        pyarrow.parquet.write_table(
            pyarrow.table({"id": keys, "kind": kinds}), directory / "items" / f"{name}.parquet", row_group_size=1
        )
        mmcache.build(directory / f"{name}.mmc", [{"id": key} for key in keys], mmcache.Schema("items"))


def fleet(directory: Path) -> None:
    """`shop.db`, of one table."""
    items(directory)
    database(
        directory,
        "shop.db",
        "CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, price REAL)",
        "INSERT INTO items VALUES ('a', 'tool', 2.5), ('b', 'toy', 1.5)",
    )


def packages(directory: Path) -> None:
    """`packages.db`, as the page of the command line uses it."""
    database(
        directory,
        "packages.db",
        "CREATE TABLE packages (name TEXT PRIMARY KEY, section TEXT, tags TEXT, embedding TEXT)",
        "INSERT INTO packages VALUES ('0ad', 'games', '[\"role::program\"]', '[1, 0]')",
        "INSERT INTO packages VALUES ('libc6', 'libs', '[]', '[0, 1]')",
    )
    np.save(directory / "queries.npy", np.eye(2))
    mmcache.build(directory / "packages.mmc", [{"id": "before"}], mmcache.Schema("packages"))  # becomes the backup


def nothing(directory: Path) -> None:
    """What a reader begins with."""


PREPARED: dict[str, Callable[[Path], None]] = {
    "docs/build.md": shop,
    "docs/commands.md": packages,
    "docs/databases.md": shop,
    "docs/django.md": items,
    "docs/fastapi.md": shop,
    "docs/flask.md": shop,
    "docs/files.md": bank,
    "docs/fleet.md": fleet,
    "docs/lookups.md": bank,
    "docs/monitoring.md": bank,
    "docs/search.md": bank,
    "docs/shards.md": parts,
    "docs/tracking.md": shop,
    "docs/tutorial.md": nothing,
    "README.md": nothing,
}
"""What is there besides what `items` makes, which is there for every other page."""

PRELUDES = {
    "docs/fleet.md": f"import pathlib\n{ITEMS}",
    "docs/search.md": f"""{IMPORTS}
cache = mmcache.open("bank.mmc")
matrix = cache.embeddings[:3]
vector = matrix[0]
records = [dict(id=key, vector=row) for key, row in zip(cache, cache.embeddings)]
np.save("queries.npy", matrix)
""",
    "docs/migrating.md": f'{ITEMS}db = sqlite3.connect("items.db")\n',
    "docs/types.md": f"""{ITEMS}
from dataclasses import dataclass
from datetime import datetime
from numpy.typing import NDArray
from pydantic import BaseModel

@dataclass
class Item:
    id: str
    kind: str
    price: float
    created: datetime
    vector: object

class ItemModel(BaseModel):
    id: str

cache = mmcache.open("of-types.mmc", source)
""",
    "README.md": "",
    "docs/operations.md": "",
    "docs/sources.md": "",
    "docs/tutorial.md": "",
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def steps(page: Path) -> list[Block]:
    name = name_of(page)
    found = []
    for block in blocks(page):
        text = block.text
        for old, new in REPLACED.get(name, {}).items():
            text = text.replace(old, new)
        if (name, block.language) not in SHOWN:
            found.append(Block(name, block.line, block.language, block.title, text, block.output))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in ELSEWHERE], ids=name_of)
def test_what_a_page_shows_runs_and_prints_what_it_says(page, tmp_path):
    name = name_of(page)
    directory = tmp_path / "page"
    directory.mkdir()
    PREPARED.get(name, items)(directory)
    run(steps(page), directory, prelude=PRELUDES.get(name, ITEMS))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_says_in_which_language_it_is(page):
    found = {block.language for block in blocks(page)}
    assert found <= LANGUAGES, found - LANGUAGES


def test_what_runs_elsewhere_does():
    for name, test in [*ELSEWHERE.items(), *((name, test) for (name, _), test in SHOWN.items())]:
        assert (ROOT / name).exists()
        assert (ROOT / test).exists()


def test_a_page_that_prints_something_else_is_found(tmp_path):
    directory = tmp_path / "page"
    directory.mkdir()
    right = Block("p.md", 1, "python", "", "print(1 + 1)", "2\n")
    run([right], directory)
    with pytest.raises(AssertionError, match="the page says"):
        run([Block("p.md", 1, "python", "", "print(1 + 1)", "3\n")], directory)
    with pytest.raises(AssertionError, match="exit code 1"):
        run([Block("p.md", 1, "sh", "", "false", None)], directory)
    with pytest.raises(AssertionError, match="nope"):
        run([Block("p.md", 1, "sh", "", "pip install 'mmcache[nope]'", None)], directory)
    run([Block("p.md", 1, "sh", "", json.dumps("x") + " 2>/dev/null || true", None)], directory)
