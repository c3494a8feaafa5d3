"""A test of many cases: `make test` tries a sample of them, `make integration` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], every: int, others: pytest.MarkDecorator = pytest.mark.integration) -> list[Any]:
    """One case of `every`, from the first on, and all others marked. A tuple is a case of several parameters."""
    return [
        case if number % every == 0 else pytest.param(*(case if isinstance(case, tuple) else [case]), marks=others)
        for number, case in enumerate(cases)
    ]
