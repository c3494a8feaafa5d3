"""Runs what a page of the documents shows: its blocks in order, in one directory, as a reader would.

A block of `python` runs in the page's one session; one with a title, `title="app.py"`, is written to that file. A block
of `sh` runs in bash. A block of `text` right after one that ran is what that one prints, where `...` stands for
anything, as in doctest. `python -m tests.support.pages PLAN` runs the steps of a plan in JSON, which `run` writes.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import traceback
import types
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?: +title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<text>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
_ANY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
LANGUAGES = frozenset({"ini", "json", "mermaid", "nginx", "python", "sh", "sql", "text", "toml", "yaml", ""})


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    title: str
    text: str
    output: str | None
    """What the page says that it prints, or None."""


def blocks(page: Path) -> list[Block]:
    """Those of a page, in order. A `text` that is the output of the block before it is part of that one."""
    source = page.read_text("utf-8")
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(source):
        language, title = match["language"], match["title"] or ""
        text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        follows = not source[end : match.start()].strip() and found and found[-1].language in ("python", "sh")
        if language == "text" and follows and found[-1].output is None and not found[-1].title:
            found[-1] = Block(**{**asdict(found[-1]), "output": text})
        else:
            line = source.count("\n", 0, match.start()) + 1
            found.append(Block(str(page.relative_to(ROOT)), line, language, title, text, None))
        end = match.end()
    return found


def run(steps: list[Block], directory: Path, *, prelude: str = "", timeout: float = 300) -> None:
    """Run the blocks of one page in a process of its own. Raises AssertionError with what the page would show."""
    tools = _tools(directory.parent / f"{directory.name}-bin")
    plan = directory.parent / f"{directory.name}-plan.json"
    plan.write_text(json.dumps({"prelude": prelude, "steps": [asdict(step) for step in steps]}))
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    home = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths, "COLUMNS": "120", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.support.pages", str(plan)],
        cwd=directory,
        env=os.environ | home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]


def _tools(directory: Path) -> Path:
    """What a reader has on the path after an installation; what changes the machine is only checked for its words."""
    directory.mkdir(exist_ok=True)
    python = shlex.quote(sys.executable)
    for name, line in {
        "mmcache": f'exec {python} -m mmcache "$@"',
        "python": f'exec {python} "$@"',
        "pytest": f'exec {python} -m pytest -p no:cacheprovider "$@"',
        "pip": f'exec {python} -m tests.support.pages pip "$@"',
        "make": f'exec {python} -m tests.support.pages make "$@"',
    }.items():
        tool = directory / name
        tool.write_text(f"#!/bin/sh\n{line}\n")
        tool.chmod(0o755)
    return directory


def _check_pip(words: list[str]) -> None:
    """`pip install` names mmcache with extras that it has, or what the tests have installed."""
    assert words[0] == "install", words
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    for word in words[1:]:
        name, _, inner = word.partition("[")
        assert name != "mmcache" or not inner or set(inner.rstrip("]").split(",")) <= extras, word


def _check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for word in words if "=" not in word}
    assert named <= targets, f"the Makefile has no {named - targets}"


def _run_all(plan: Path) -> None:
    content = json.loads(plan.read_text())
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # functions of the page are looked up there, as in a script
    session = vars(module)
    exec(compile(content["prelude"], "prelude", "exec"), session)
    for step in content["steps"]:
        block = Block(**step)
        try:
            printed = _run_one(block, session)
            _compare(block, printed)
        except BaseException:  # noqa: BLE001 (whatever a page ends with is what it shows)
            print(f"{block.page}, line {block.line}:\n{block.text}")
            traceback.print_exc()
            sys.exit(1)


def _run_one(block: Block, session: dict[str, object]) -> str:
    if block.title:
        file = Path(block.title)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)
        return ""
    if block.language == "python":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, f"{block.page}:{block.line}", "exec"), session)
        return printed.getvalue()
    if block.language == "sh":
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}"
        return done.stdout
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "yaml":
        import yaml

        list(yaml.safe_load_all(block.text))
    return ""


def _compare(block: Block, printed: str) -> None:
    if block.output is not None and not doctest.OutputChecker().check_output(block.output, printed, _ANY):
        raise AssertionError(f"the page says\n{block.output}\nit printed\n{printed}")


if __name__ == "__main__":
    if sys.argv[1] == "pip":
        _check_pip(sys.argv[2:])
    elif sys.argv[1] == "make":
        _check_make(sys.argv[2:])
    else:
        _run_all(Path(sys.argv[1]))
