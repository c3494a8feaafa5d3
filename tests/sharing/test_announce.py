"""What a builder says: that it builds, what came of it, and whether something was invalidated meanwhile."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmcache import SourceError
from mmcache.format.header import Header
from mmcache.format.layout import Layout
from mmcache.sharing.announce import Announcer
from mmcache.sharing.attach import attach
from mmcache.sharing.events import Event, Kind, ids_events
from mmcache.sharing.head import Announced
from mmcache.sharing.page import Page, page_path

pytestmark = pytest.mark.usefixtures("no_leaks")

HEADER = Header(
    file_size=4096,
    section_count=3,
    generation=7,
    created_ns=5,
    elapsed_ns=9,
    build_id=bytes(range(16)),
    sha256=bytes(32),
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.mmc")


@pytest.fixture
def page(path: str) -> Iterator[Page]:
    with contextlib.closing(attach(path)) as page:
        yield page


@pytest.fixture
def builder(path: str) -> Iterator[Announcer]:
    with contextlib.closing(Announcer(path)) as announcer:
        yield announcer


def kinds(page: Page) -> list[Kind]:
    return [event.kind for event in page.since(0, 0).events or ()]


def revalidate(builder: Announcer) -> None:
    assert builder.revalidated(HEADER, builder.tokens(), 1, 1, bytes(32))


LAYOUT = Layout(HEADER, {}, {}, "", None, {})

SAYINGS: dict[Kind, Callable[[Announcer], Any]] = {
    Kind.PUBLISHED: lambda builder: builder.published(LAYOUT, None),
    Kind.COVERED: revalidate,
    Kind.FAILED: lambda builder: builder.failed(SourceError("x")),
}


@pytest.mark.parametrize("kind", SAYINGS)
def test_what_came_of_a_build_wakes_every_process(page, builder, kind):
    before = page.word[0]
    SAYINGS[kind](builder)
    assert page.word[0] != before
    assert kinds(page) == [kind]


def test_a_builder_says_who_it_is_and_how_long_it_took(page, builder):
    builder.begin()
    found = page.head().builder
    assert found is not None
    assert found.pid == os.getpid()
    assert found.since <= time.monotonic()
    builder.end()
    head = page.head()
    assert head is not None
    assert head.builder is None
    builder.begin()
    again = page.head().builder
    assert again is not None
    assert 0 <= again.takes < 60


def test_what_was_invalidated_during_a_build_supersedes_it(page, builder):
    captured = builder.tokens()
    builder.revalidated(HEADER, captured, 1, 1, bytes(32))
    found = [builder.superseded]
    page.say(ids_events("items", ["a"], "manual"))
    builder.revalidated(HEADER, captured, 2, 1, bytes(32))
    found.append(builder.superseded)
    revalidate(builder)
    found.append(builder.superseded)
    builder.published(LAYOUT, None)  # whose tokens are those of another page
    assert [*found, builder.superseded] == [False, True, False, True]


def test_a_file_that_is_already_announced_is_not_announced_again(page, builder):
    builder.noticed(HEADER)
    builder.noticed(HEADER)
    assert kinds(page) == [Kind.PUBLISHED]
    assert builder.last == Announced(7, HEADER.build_id)
    assert builder.generation == 7


def test_success_forgets_a_failure(page, builder):
    builder.failed(SourceError("x"))
    assert page.failure is not None
    builder.succeeded()
    assert page.failure is None


def test_what_is_said_while_the_page_is_replaced_is_said_on_the_new_one(path, builder):
    os.unlink(page_path(path))
    builder.published(LAYOUT, None)
    with contextlib.closing(attach(path)) as page:
        assert kinds(page) == [Kind.PUBLISHED]
        head = page.head()
        assert head is not None
        assert head.announced == Announced(7, HEADER.build_id)


def test_a_revalidation_counts_from_its_check(page, builder):
    assert builder.covered_ns(HEADER) == HEADER.created_ns
    builder.revalidated(HEADER, builder.tokens(), 60, 1, bytes(32))
    assert builder.covered_ns(HEADER) == 60


def test_events_of_others_are_kept_by_what_a_builder_says(page, builder):
    page.say([Event(Kind.HARD)])
    builder.published(LAYOUT, None)
    assert kinds(page) == [Kind.HARD, Kind.PUBLISHED]
