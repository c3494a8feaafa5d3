"""The table of all tables at the end of a test run, whichever process walked them."""

from __future__ import annotations

from typing import Any

__all__ = ["ABSENT", "write"]

ABSENT = "no databases of "
"""How the reason begins why a program was skipped."""


def write(reporter: Any) -> None:
    """reporter: pytest's, at the end of a run. Writes nothing where no database was walked."""
    reports = [report for reports in reporter.stats.values() for report in reports]
    found = [
        table
        for report in reports
        for name, tables in (getattr(report, "user_properties", None) or ())
        if name == "tables" and report.when == "call"
        for table in tables
    ]
    if not found:
        return
    from tests.programs.walk import Outcome, shown

    outcomes = sorted(Outcome(*table) for table in found)
    wrong = sum(bool(one.wrong) for one in outcomes)
    refused = sum(bool(one.reason) for one in outcomes)
    databases = {one.database for one in outcomes}
    programs = {name.partition(":")[0] for name in databases}
    absent = sum(ABSENT in str(report.longrepr) for report in reporter.stats.get("skipped", ()))
    reporter.section(f"{len(outcomes)} tables of {len(databases)} databases of {len(programs)} programs")
    reporter.line(f"{refused} tables not built, {wrong} wrong; {absent} programs absent")
    for line in shown(outcomes):
        reporter.line(line)
