"""What type checkers know of a program that uses mmcache, and what no public annotation may be."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAM = (HERE / "program.py").read_text()

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.integration,
]  # each reads numpy's types anew; `make check` has the program, too


def installed(module: str, group: str) -> None:
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed: dependency group {group}")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Outside of the repository, whose settings are not those of a user."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def test_a_users_program_passes_mypy_in_strict_mode(program: Path) -> None:
    installed("mypy", "lint")
    command = ["-m", "mypy", "--strict", "--no-error-summary", "--config-file=", f"--cache-dir={program.parent}/mypy"]
    done = subprocess.run(
        [sys.executable, *command, str(program)],
        cwd=program.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_users_program_passes_pyright_in_strict_mode(program: Path) -> None:
    installed("basedpyright", "integration")
    settings = {
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "reportUnusedExpression": "none",
        "extraPaths": [str(ROOT)],
        "include": [str(program)],
    }
    (program.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--project", str(program.parent), "--pythonpath", sys.executable],
        cwd=program.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
