"""The compiled core with AddressSanitizer and UndefinedBehaviorSanitizer, under tests that give it hostile bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.core_build import compiled_into

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "tests/format/test_compiled_core.py",
    "tests/format/test_processors.py",
    "tests/storage/test_bit_flips.py",
    "tests/storage/test_hostile_files.py",
]
CHOSEN = "not multiply and not in_time and not header and not section_table and not meta"
"""Without those that limit their memory, for a sanitizer reserves terabytes of addresses; and without what only Python
reads."""
INPUTS = "20000"

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Sanitized:
    """A copy of the checkout whose core has sanitizers, and the environment that loads them."""

    directory: Path
    environment: dict[str, str]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=590,
        )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Sanitized:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("there is no gcc")
    found = subprocess.run([gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    if not os.path.isabs(library := found.strip()):
        pytest.skip("gcc has no libasan")
    directory = tmp_path_factory.mktemp("sanitized")
    for name in ("mmcache", "tests", "tools", "core"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", directory)
    core = compiled_into(directory / "mmcache", sanitize=True)
    check = f"from mmcache import native\n\n\ndef test_it():\n    assert native.core.__file__ == {str(core)!r}\n"
    (directory / "tests" / "test_copy.py").write_text(check)
    own = {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(directory)}
    return Sanitized(directory, os.environ | own | {"MMCACHE_FUZZ_INPUTS": INPUTS})


def test_they_find_a_read_beyond_a_buffer(copy):
    """On purpose, by ctypes: else the next test might not be able to fail."""
    code = "import ctypes, mmcache\nassert mmcache.implementation == 'compiled'\n"
    code += "block = ctypes.CDLL(None).malloc\nblock.restype = ctypes.c_void_p\n"
    code += "ctypes.memmove(ctypes.create_string_buffer(64), block(16), 17)"
    done = copy.run("-c", code)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_they_find_nothing_in_hostile_files_flipped_bits_and_the_fuzz_test(copy):
    done = copy.run("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", CHOSEN, "tests/test_copy.py", *HOSTILE)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
