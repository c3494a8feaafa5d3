"""`python -m benchmarks` asks all questions, one after the other, and ends with one table of ratios.

Each runs in a process of its own, as `python -m benchmarks.<name>` does, so that none inherits what another left in
memory. One that fails is told and the others go on. What `--json-dir` holds of questions that are not asked now is told
too: one question of a long run can be asked again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .common import ROOT, command_text, parser
from .summary import Told, compact, goals_of, page, summary_text

QUESTIONS = (
    *("requirements", "lookup", "scan", "open", "build", "load"),
    *("memory", "cold", "growth", "freshness", "dirty", "tracking", "keys", "nearest"),
)


def ask(name: str, arguments: Sequence[str], out: str) -> Told | None:
    """Run it, its output shown as it comes; None if it failed."""
    print(f"\n==> benchmarks.{name}", flush=True)
    begun = time.monotonic()
    command = [sys.executable, "-u", *(f"-W{option}" for option in sys.warnoptions), "-m", f"benchmarks.{name}"]
    done = subprocess.run([*command, *arguments, "--json", out], cwd=ROOT, check=False)
    print(f"\n<== benchmarks.{name}: {time.monotonic() - begun:.0f} s", flush=True)
    return load(out) if done.returncode == 0 else None


def load(path: str) -> Told:
    with open(path, encoding="utf-8") as file:
        told: dict[str, Any] = json.load(file)
    return told


def ask_all(names: Sequence[str], arguments: Sequence[str], directory: str) -> tuple[dict[str, Told], list[str]]:
    """What the questions told, in their order, and who failed."""
    told: dict[str, Told] = {}
    failed = []
    for name in QUESTIONS:
        out = os.path.join(directory, f"{name}.json")
        if name not in names:
            if os.path.exists(out):
                told[name] = load(out)
            continue
        answer = ask(name, arguments, out)
        if answer is None:
            failed.append(name)
        else:
            told[name] = answer
    return told, failed


def write(told: Mapping[str, Told], command: str, directory: str) -> None:
    """The page, the charts and the JSON; charts that are there and were not drawn again stay."""
    os.makedirs(directory, exist_ok=True)
    try:
        from .charts import draw
    except ImportError as error:
        print(f"no charts: {error}")
        charts = []
    else:
        charts = draw(told, directory)
    for name, text in (("results.md", page(told, command, charts)), ("results.json", compact(told))):
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(text)
    print(f"\nwritten: {', '.join(('results.md', 'results.json', *charts))}")


def questions(names: str) -> list[str]:
    chosen = names.replace(",", " ").split()
    if unknown := sorted(set(chosen) - set(QUESTIONS)):
        raise argparse.ArgumentTypeError(f"no such question: {', '.join(unknown)}; there are {', '.join(QUESTIONS)}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser("All questions, one after the other, and one table of ratios.")
    asked.add_argument(
        "--full",
        action="store_true",
        help="1,000 and 100,000 records, of some up to 10,000,000: an hour. Without it --quick is meant",
    )
    asked.add_argument("--only", metavar="NAME,...", type=questions, default=QUESTIONS, help="these questions")
    asked.add_argument("--write", metavar="DIR", help="results.md, results.json and charts")
    asked.add_argument("--json-dir", metavar="DIR", help="keep what each question measured, as NAME.json")
    given = asked.parse_args(arguments)
    if given.full and given.quick:
        asked.error("--quick or --full?")
    passed = [] if given.full else ["--quick"]
    for option in ("sizes", "repetitions", "data"):
        if (value := getattr(given, option)) is not None:
            passed += [f"--{option}", os.path.abspath(value) if option == "data" else str(value)]
    with tempfile.TemporaryDirectory() as temporary:
        directory = os.path.abspath(given.json_dir or temporary)
        os.makedirs(directory, exist_ok=True)
        told, failed = ask_all(given.only, passed, directory)
    if told:
        print(f"\n==> all\n\n{summary_text(told)}")
    if given.json is not None:
        with open(given.json, "w", encoding="utf-8") as file:
            file.write(compact(told))
    if told and given.write is not None:
        write(told, command_text(), given.write)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed) or (given.check and not all(goal.met for goal in goals_of(told))))


if __name__ == "__main__":
    sys.exit(main())
