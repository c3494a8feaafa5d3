"""What every benchmark shares: its arguments, how it measures and how it tells.

`interleave` is the method: contenders take turns, so that ratios hold on a noisy machine. `Report` collects tables and
goals, prints them as they come and writes them all as JSON at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import math
import os
import platform
import random
import re
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QUICK = (10_000,)
FULL = (1_000, 100_000)

LIBRARIES = (
    *("mmcache", "numpy", "msgpack", "xxhash"),
    *("lmdb", "diskcache", "pure-cdb", "redis", "hiredis", "pyarrow", "safetensors", "usearch"),
    *("faiss-cpu", "sqlite-vec", "lancedb"),
)
"""Distributions whose versions are told: what mmcache needs, and the peers, as far as they are installed."""

_SPIN = 20_000
_UNSTEADY = 1.25
_OTHERS = 0.10


# --- arguments --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What a run was asked for. repetitions: None leaves the number to the benchmark."""

    sizes: tuple[int, ...]
    repetitions: int | None
    data: str
    json: str | None
    check: bool

    def repeat(self, usual: int) -> int:
        return self.repetitions or usual


def dim_of(n: int) -> int:
    """Numbers in an embedding of a data set of n records: what keeps a million of them in half a gigabyte."""
    return 768 if n <= 100_000 else 64


def parser(question: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=question)
    made.add_argument(
        "--quick", action="store_true", help="minutes, not hours: 10,000 records, unless the question is about sizes"
    )
    made.add_argument("--sizes", metavar="N,...", help="numbers of records, instead of the usual ones")
    made.add_argument("--repetitions", type=int, metavar="N", help="how often everything is measured")
    made.add_argument("--json", metavar="FILE", help="write all results here")
    made.add_argument("--check", action="store_true", help="exit 1 when a goal is missed")
    made.add_argument("--data", metavar="DIR", default=os.path.join(ROOT, "benchmarks", ".data"), help="of data sets")
    return made


def settings_of(arguments: argparse.Namespace) -> Settings:
    sizes: tuple[int, ...] = QUICK if arguments.quick else FULL
    if arguments.sizes:
        sizes = tuple(int(size.replace("_", "")) for size in arguments.sizes.split(","))
    return Settings(sizes, arguments.repetitions, os.path.abspath(arguments.data), arguments.json, arguments.check)


# --- measuring --------------------------------------------------------------------------------------------------------

Turn = tuple[Callable[[], object], int]
"""What to do while the clock runs, and how many operations that is."""

Work = Callable[[int], Turn]
"""work(repetition) prepares a turn."""


@dataclass(frozen=True)
class Range:
    """Median, least and greatest of what several repetitions gave."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Range:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))


class Samples:
    """Seconds per operation, one figure per contender and repetition."""

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self._seconds = seconds

    def range(self, name: str) -> Range:
        return Range.of(self._seconds[name])

    def ratio(self, name: str, other: str) -> Range:
        """How many times as long `name` takes as `other`: pairwise, within each repetition."""
        return Range.of(a / b for a, b in zip(self._seconds[name], self._seconds[other], strict=True))


def turns(names: Sequence[str], repetitions: int, noise: Noise) -> Iterator[tuple[int, str]]:
    """Every name in every repetition, each time in another order."""
    for repetition in range(repetitions):
        noise.probe()
        for name in random.Random(repetition).sample(names, len(names)):
            yield repetition, name


def interleave(contenders: Mapping[str, Work], repetitions: int, noise: Noise, *, primed: bool = False) -> Samples:
    """Time all contenders in every repetition, after one round that is not counted.

    primed: let every turn follow one of the same contender that is not counted, so that what others left in the CPU's
    caches is not measured. As in `timeit`, the garbage collector is off while the clock runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work(0)[0]()
    for repetition, name in turns(list(contenders), repetitions, noise):
        action, count = contenders[name](repetition)
        if primed:
            contenders[name](repetition + 1)[0]()
        gc.collect()
        gc.disable()
        begin = time.perf_counter()
        action()
        elapsed = time.perf_counter() - begin
        gc.enable()
        seconds[name].append(elapsed / count)
    return Samples(seconds)


def repeated(action: Callable[[], object], seconds: float = 0.02) -> Work:
    """An action done so often that one turn takes about so many seconds."""
    action()  # imports, and first touches of memory
    once = math.inf
    for _ in range(5):
        begin = time.perf_counter()
        action()
        once = min(once, time.perf_counter() - begin)
        if once > seconds:
            break
    times = max(1, round(seconds / once))

    def all_of_them() -> None:
        for _ in range(times):
            action()

    return lambda _: (all_of_them, times)


class Noise:
    """What else the machine did meanwhile: the CPU time of others, and how steady a fixed loop runs."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._busy, self._own = _busy(), _own()
        self._spins: list[float] = []

    def probe(self) -> None:
        begin = time.perf_counter()
        sum(range(_SPIN))
        self._spins.append(time.perf_counter() - begin)

    def measured(self) -> dict[str, Any]:
        """others: cores that other processes kept busy. unsteadiness: slowest tenth of a fixed loop over its best."""
        others = max(0.0, (_busy() - self._busy) - (_own() - self._own)) / max(time.monotonic() - self._begun, 1e-9)
        spins = sorted(self._spins) or [1.0]
        return {
            "others": round(others, 3),
            "unsteadiness": round(spins[int(0.9 * (len(spins) - 1))] / spins[0], 3),
            "load": [round(load, 2) for load in os.getloadavg()],
        }

    def warning(self) -> str | None:
        found = self.measured()
        if found["others"] <= _OTHERS and found["unsteadiness"] <= _UNSTEADY:
            return None
        return (
            f"the machine was noisy: other processes used {found['others']:.2f} of {os.cpu_count()} cores, and a fixed "
            f"loop took up to {found['unsteadiness']:.2f} times its best. Trust ratios more than times, and wide "
            "ranges not at all"
        )


def _busy() -> float:
    """CPU seconds of the whole machine since it started; guests are in `user` already."""
    times: dict[str, float] = psutil.cpu_times()._asdict()
    return sum(times.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def _own() -> float:
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def child(module: str, *arguments: str) -> Any:
    """What `python -m benchmarks.<module> <arguments>` prints, as JSON: for what needs a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


# --- telling ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """A figure that ought to be at most `limit`."""

    name: str
    n: int
    measured: float
    limit: float
    met: bool

    @property
    def verdict(self) -> str:
        if self.met:
            return f"<= {self.limit:g}: met"
        return f"<= {self.limit:g}: missed by {self.measured / self.limit - 1:.0%}"


def goals_text(goals: Sequence[Goal]) -> str:
    """How many are met, and a line for each that is not."""
    missed = [goal for goal in goals if not goal.met]
    told = [f"  missed: {goal.name}, {goal.n:,} records: {goal.measured:.3g} {goal.verdict}" for goal in missed]
    return "\n".join([f"{len(goals) - len(missed)} of {len(goals)} goals met", *told])


def table_text(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Columns as wide as they need be; the first ones to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            f"{cell:<{w}}" if i < left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


class Report:
    """Tables and goals of one benchmark, printed as they come, and everything as JSON at the end."""

    def __init__(self, name: str, question: str, settings: Settings) -> None:
        self.noise = Noise()
        self._name = name
        self._question = question
        self._settings = settings
        self._environment = environment()
        self._results: list[dict[str, Any]] = []
        self._goals: list[Goal] = []
        self._notes: list[str] = []
        self._tables: list[dict[str, Any]] = []
        stamp = self._environment
        libraries = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
        print(question)
        print(f"{stamp['cpu']}, {stamp['cores']} cores, {stamp['memory_gb']} GB, {stamp['system']}")
        print(textwrap.fill(f"{stamp['python']}; {libraries}; commit {stamp['commit']}", 120))

    def result(self, **values: Any) -> None:
        """One thing measured, for the JSON; a `Range` becomes a map."""
        self._results.append({key: asdict(v) if isinstance(v, Range) else v for key, v in values.items()})

    def goal(self, name: str, n: int, measured: float, limit: float) -> str:
        """Record a goal; what to print about it."""
        goal = Goal(name, n, measured, limit, measured <= limit)
        self._goals.append(goal)
        return goal.verdict

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print it, and keep it for the JSON."""
        self._tables.append({"title": title, "header": [*header], "rows": [[*row] for row in rows]})
        print(f"\n{title}\n\n{table_text(header, rows)}", flush=True)

    def note(self, text: str) -> None:
        self._notes.append(text)
        print(f"\n{text}", flush=True)

    def finish(self) -> int:
        """Goals and warnings; the exit code."""
        missed = [goal for goal in self._goals if not goal.met]
        print(f"\n{goals_text(self._goals)}")
        warning = self.noise.warning()
        if warning is not None:
            print(f"warning: {warning}")
        if self._settings.json is not None:
            told = {
                "benchmark": self._name,
                "question": self._question,
                "command": command_text(),
                "environment": self._environment,
                "sizes": self._settings.sizes,
                "noise": self.noise.measured(),
                "warnings": [] if warning is None else [warning],
                "results": self._results,
                "goals": [asdict(goal) for goal in self._goals],
                "notes": self._notes,
                "tables": self._tables,
            }
            with open(self._settings.json, "w") as file:
                json.dump(told, file, indent=1)
                file.write("\n")
        return int(bool(missed) and self._settings.check)


def command_text() -> str:
    """How this process was called, without the paths it was given."""
    module = sys.modules["__main__"].__spec__
    name = "?" if module is None else module.name.removesuffix(".__main__")
    words, given = ["python", "-m", name], iter(sys.argv[1:])
    for word in given:
        option, _, value = word.partition("=")
        is_path = option in ("--data", "--json", "--json-dir", "--write", "--vectors")
        if not is_path:
            words.append(word)
        elif option == "--vectors":
            words += [option, "FILE"]
        if is_path and not value:
            next(given, None)
    return " ".join(words)


def environment() -> dict[str, Any]:
    """The machine and the versions, without names of hosts, users or paths."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": _versions(),
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    found["sqlite"] = sqlite3.sqlite_version
    if (server := shutil.which("redis-server")) is not None:
        told = subprocess.run([server, "--version"], capture_output=True, text=True, check=False).stdout
        if version := re.search(r"\bv=(\S+)", told):
            found["redis-server"] = version[1]
    return found


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        found = ""
    return found or "unknown"


def time_text(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, factor in (("ns", 1e9), ("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}" if seconds * factor < 100 else f"{seconds * factor:.0f} {unit}"
    return f"{seconds:.2f} s"


def size_text(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def ratio_text(ratio: Range) -> str:
    """Two digits after the point, or of what is smaller, one that is not zero."""
    median, least, greatest = (f"{x:.2f}" if x >= 0.1 else f"{x:.1g}" for x in (ratio.median, ratio.min, ratio.max))
    return f"{median} ({least}-{greatest})"
