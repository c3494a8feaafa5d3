"""Any table: databases that real programs made, each table built with `Schema(name)` alone, compared with sqlite3.

A table of all tables stands at the end of the run. A program that is not installed is skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import catalog
from tests.programs.summary import ABSENT
from tests.programs.walk import Outcome, walk

catalog.load()

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_disk_wait"), pytest.mark.timeout(1200)]

AT_LEAST = 8
"""Programs without which this shows too little."""


@pytest.fixture(scope="module")
def cached(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.cache.mkdir("programs"))


def walked(name: str, cached: Path, place: Path, *, is_deep: bool) -> list[Outcome]:
    """Raises AbsentError."""
    found: list[Outcome] = []
    for number, (label, database) in enumerate(catalog.databases_of(name, cached).items()):
        (place / str(number)).mkdir()
        found += walk(database, f"{name}: {label}", place / str(number), is_deep=is_deep)
    return found


@pytest.mark.parametrize("name", catalog.PROGRAMS)
def test_every_row_miss_and_where_equals_sqlite(name, cached, tmp_path, record_property):
    try:
        outcomes = walked(name, cached, tmp_path, is_deep=True)
    except catalog.AbsentError as error:
        pytest.skip(f"{ABSENT}{name}: {error}")
    record_property("tables", [tuple(one) for one in outcomes])
    assert outcomes
    wrong = [f"{one.database}, {one.table}: {what}" for one in outcomes for what in one.wrong]
    assert not wrong, "\n".join([f"{len(wrong)} differences", *wrong])


def test_nineteen_of_twenty_tables_are_built(cached, tmp_path):
    outcomes, programs = [], 0
    for name in catalog.PROGRAMS:
        (tmp_path / name).mkdir()
        try:
            outcomes += walked(name, cached, tmp_path / name, is_deep=False)
            programs += 1
        except catalog.AbsentError:
            continue
    if programs < AT_LEAST:
        pytest.skip(f"{programs} of {AT_LEAST} programs are installed: make integration installs the group programs")
    built = sum(not one.reason for one in outcomes)
    refused = [f"{one.database}, {one.table}: {one.reason}" for one in outcomes if one.reason]
    assert built >= 0.95 * len(outcomes), "\n".join([f"{built} of {len(outcomes)}", *refused])
