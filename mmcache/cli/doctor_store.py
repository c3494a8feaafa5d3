"""What `mmcache doctor URL` checks of an object store, with objects of its own, which it removes again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from ..errors import MmcacheError, StoreError
from ..text import span
from .doctor_directory import Check

if TYPE_CHECKING:
    from ..store import Store

__all__ = ["check_store"]

_SKEW: Final = 30.0
"""Seconds by which the clocks of a store and this machine may differ before that is worth a word."""


def check_store(url: str) -> Iterator[Check]:
    from ..store import Store

    try:
        store = Store(url)
    except StoreError as error:
        advice = "pip install 'mmcache[remote]'" if "extra remote" in error.message else ""
        yield Check("store", "fail", error.message, advice)
        return
    if not store.can_list:
        yield Check("store", "ok", "is read by plain HTTP: followers can use it, publishers and operators cannot")
        yield from _releases(store)
        return
    if not store.is_there():
        yield Check("store", "warn", "there is no such directory yet", "check the path; mmcache publish makes it")
        return
    name = f"doctor/{os.urandom(8).hex()}.json"
    try:
        for check in (_creates, _reads, _lists, _clock):
            found = _tried(check, store, name)
            yield found
            if found.level == "fail" and check is not _lists:
                return
    finally:
        _removed(store, name)
    yield from _releases(store)


def _tried(check: Callable[[Store, str], Check], store: Store, name: str) -> Check:
    try:
        return check(store, name)
    except StoreError as error:
        advice = "check the URL, the credentials of the environment, and what they may do"
        return Check("store", "fail", error.message, advice)


def _creates(store: Store, name: str) -> Check:
    """The promise on which releases stand."""
    if not store.create(name, b"1" * 1000):
        return Check("create", "fail", f"{name} was never put, and the store says that it is there")
    if store.create(name, b"2" * 1000):
        text = "an object that is there is overwritten when it is to be created once: releases could be lost"
        return Check("create", "fail", text, "use a store that honours If-None-Match; this one ignores it")
    return Check("create", "ok", "an object is created once: the second attempt is refused")


def _reads(store: Store, name: str) -> Check:
    if store.get(name, 1000) != b"1" * 1000:
        return Check("read", "fail", "an object reads back as something else than was put")
    if b"".join(store.pieces(name, 10, 990)) != b"1" * 980:
        return Check("read", "fail", "a range of an object reads back as something else")
    return Check("read", "ok", "objects and ranges of them read back as they were put")


def _lists(store: Store, name: str) -> Check:
    listed = [found.name for found in store.listed("doctor", name[:-5])]
    if name not in listed:
        text = "an object is not listed right after it was put: releases are seen late, and none is lost"
        return Check("list", "warn", text)
    if name in [found.name for found in store.listed("doctor", name)]:
        return Check("list", "fail", "a list that begins behind an object has it", "use another store")
    return Check("list", "ok", "an object is listed right after it was put")


def _clock(store: Store, name: str) -> Check:
    found = store.stat(name)
    if found is None:
        return Check("clock", "fail", f"{name} is gone")
    ahead = found.modified.timestamp() - time.time()
    if abs(ahead) > _SKEW:
        text = f"the store's clock is {span(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} this machine's"
        return Check("clock", "warn", text, "set the clock: followers with a source go by it, to --skew seconds")
    return Check("clock", "ok", "the store's clock and this machine's agree")


def _removed(store: Store, name: str) -> None:
    try:
        store.remove(name)
    except StoreError:
        return


def _releases(store: Store) -> Iterator[Check]:
    from ..remote.log import ReleaseLog

    try:
        newest = ReleaseLog(store).newest()
    except MmcacheError as error:
        yield Check("releases", "fail", error.message)
        return
    if newest is None:
        yield Check("releases", "ok", "there are none yet", "mmcache publish FILE URL")
        return
    pinned = f", pinned to {newest.pinned}" if newest.pinned is not None else ""
    yield Check("releases", "ok", f"the newest is {newest.newest}, followers adopt {newest.current}{pinned}")
