"""A catalogue behind FastAPI: all workers read one file, and writers notify them.

    python shop.py fill                          # makes shop.db with 5,000 items
    uvicorn shop:app --workers 4                 # the first worker builds cache/shop.mmc
    curl localhost:8000/items/item-7
    curl -X PUT 'localhost:8000/items/item-7/price?price=3.5'
    curl localhost:8000/status

SHOP_DB and SHOP_CACHE name other paths. A search takes a `kind`, a range of prices, or both, and answers in the order
of prices.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request

import mmcache
from mmcache import Cache, Record, Schema, SQLiteSource, between

DATABASE = os.environ.get("SHOP_DB", "shop.db")
FILE = os.environ.get("SHOP_CACHE", "cache/shop.mmc")
KINDS = ("tool", "toy", "book", "lamp")
SCHEMA = Schema("items", key="sku", index=("kind", "price"))


def fill(items: int = 5_000) -> None:
    """Make the table of the catalogue, with made-up items."""
    with contextlib.closing(sqlite3.connect(DATABASE)) as db:
        db.execute("CREATE TABLE items (sku TEXT PRIMARY KEY, kind TEXT NOT NULL, price REAL NOT NULL)")
        rows = ((f"item-{i}", KINDS[i % len(KINDS)], i % 1000 / 10) for i in range(items))
        db.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
        db.commit()


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with mmcache.open(FILE, SQLiteSource(DATABASE, SCHEMA), label="shop") as app.state.items:
        yield


def opened(request: Request) -> Cache:
    cache: Cache = request.app.state.items
    return cache


app = FastAPI(title="shop", lifespan=lifespan)
Items = Annotated[Cache, Depends(opened)]


@app.get("/items/{sku}")
async def item(sku: str, items: Items) -> Record:
    """Microseconds from the file, so on the event loop."""
    return _found(items.get(sku), sku)


@app.get("/items")
def search(
    items: Items,
    kind: str | None = None,
    low: float = 0.0,
    high: float = 1e9,
    limit: Annotated[int, Query(le=100)] = 20,
) -> list[Record]:
    """In a thread: while a key is dirty, `where` asks the source for it."""
    terms: dict[str, Any] = {"price": between(low, high)}
    if kind is not None:
        terms["kind"] = kind
    return list(items.where(terms).order_by("price").limit(limit))


@app.put("/items/{sku}/price")
def set_price(sku: str, price: float, items: Items) -> Record:
    """Commit, then invalidate: from then on every worker answers with the new price."""
    with contextlib.closing(sqlite3.connect(DATABASE)) as db:
        db.execute("UPDATE items SET price = ? WHERE sku = ?", [price, sku])
        db.commit()
    items.invalidate([sku], reason="record_stored")
    return _found(items.get(sku), sku)


@app.get("/status")
def status(items: Items) -> dict[str, Any]:
    """Of all workers, whichever is asked."""
    now = items.status()
    return {"state": now.state, "generation": now.generation, "totals": now.fleet.totals}


def _found(record: Record | None, sku: str) -> Record:
    if record is None:
        raise HTTPException(404, f"there is no item {sku!r}")
    return record


if __name__ == "__main__":
    if sys.argv[1:] != ["fill"]:
        sys.exit("usage: python shop.py fill")
    fill()
