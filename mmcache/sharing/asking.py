"""Asking a source whether it was written to by a process that did not say so."""

from __future__ import annotations

from ..sources.base import Source, TrackedSource, fingerprint_of
from .decide import Baseline, SourceFacts

__all__ = ["ask"]


def ask(source: Source, baseline: Baseline | None) -> SourceFacts:
    """What the source says of itself, and of what was written since the baseline. May take as long as the source does.

    Raises nothing: a source of a user's own may raise anything, and reads go on.
    """
    fingerprint = None
    try:
        fingerprint = fingerprint_of(source)
        if baseline is None or fingerprint == baseline.fingerprint or not any(baseline.fingerprint):
            return SourceFacts(fingerprint)
        tracked: object = source
        changes = tracked.changes(baseline.fingerprint) if isinstance(tracked, TrackedSource) else None
    except Exception as error:  # noqa: BLE001 (see above)
        why = str(error) or type(error).__name__
        return SourceFacts(error=why) if fingerprint is None else SourceFacts(fingerprint, None, why)
    return SourceFacts(fingerprint, None if changes is None else changes.keys)
