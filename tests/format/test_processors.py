"""Each loop of the compiled core: those of the processor that runs the tests, of older ones, and of any."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcache import native
from mmcache.search import metrics
from tests.support import inside

if native.core is None:
    pytest.skip("there is no compiled core, or pure Python is asked for", allow_module_level=True)
core: Any = native.core

ROOT = Path(__file__).parents[2]
DIMS = (*range(1, 20), 31, 32, 33, 63, 64, 65, 127, 128, 129, 136, 137, 255, 384, 768, 1000, 1025)


def same_by_each(ask: Callable[[], object], best: int) -> None:
    """Whatever is asked, each loop gives. best: the loop that this processor has for it."""
    found = []
    for most in (0, 1, 2):
        with inside.loops_up_to(most):
            found.append(ask())
            assert core.loop() == min(most, best)
    assert found[0] == found[1] == found[2]


def best_of(ask: Callable[[], object]) -> int:
    ask()
    loop: int = core.loop()
    return loop


def numbers(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Nine rows and a query: lengths of all kinds, zeros, and numbers that are none."""
    random = np.random.default_rng(dim)
    matrix = (random.standard_normal((9, dim)) * 10.0 ** random.integers(-40, 38, (9, dim))).astype(np.float32)
    matrix[3], matrix[4, 0], matrix[5, -1], matrix[6] = 0, np.nan, np.inf, -0.0
    return matrix, random.standard_normal(dim).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_a_score_is_the_same_to_the_last_bit_by_each_loop(metric):
    for dim in DIMS:
        matrix, query = numbers(dim)
        for rows in (None, np.array([8, 3, 3, 0, 1], np.uint32)):
            args = matrix, query.astype(np.float64), metric, rows

            def ask(args: Any = args) -> bytes:
                return metrics.exact_scores(*args).tobytes()

            same_by_each(ask, best_of(ask))


def test_a_product_is_the_same_to_the_last_bit_by_each_loop():
    for dim in DIMS:
        for rows in (1, 2, 9):
            matrix, query = numbers(dim)

            def ask(matrix: Any = matrix[:rows], query: Any = query) -> bytes:
                out = np.full(len(matrix), 7, np.float32)
                core.products(matrix, query, out)
                return out.tobytes()

            same_by_each(ask, best_of(ask))


@pytest.mark.parametrize("words", [1, 2, 3, 13, 16])
def test_the_same_rows_are_near_by_each_loop(words):
    random = np.random.default_rng(words)
    signs, query = random.integers(0, 2**64, words * 1300, np.uint64), random.integers(0, 2**64, words, np.uint64)

    def ask() -> tuple[int, int, list[int]]:
        entries = np.zeros(40, np.uint64)
        size, limit = core.nearby(signs, query, None, entries, (512, 0, 0, 2**64 - 1))
        return size, limit, sorted(entries[:size].tolist())

    same_by_each(ask, best_of(ask))


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_the_loops_without_vectors_pass_the_tests_of_the_core(tmp_path):
    """Of hashes and signs: which they are was decided when the core was compiled."""
    environment = os.environ | {"CFLAGS": "-U__SSE2__ -O1", "PYTHONPATH": str(ROOT)}
    build = [sys.executable, "tools/core_build.py", "--into", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, env=environment, check=True, capture_output=True)
    (module,) = tmp_path.glob("_core*.so")
    # Loaded in the place of the one beside the sources, before anything asks for that.
    (tmp_path / "plain_core.py").write_text(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('mmcache._core', {str(module)!r})\n"
        "sys.modules['mmcache._core'] = core = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(core)\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "plain_core", "-p", "no:cacheprovider"]
    chosen = ["-k", "hash or signs or bits or input", "tests/format/test_compiled_core.py"]
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    done = subprocess.run(
        [*words, *chosen], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=590
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
