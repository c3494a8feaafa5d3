"""docs/sources.md: what it shows runs, in one session, and a source of one's own takes fifteen lines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "sources.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_block_runs_in_one_session(tmp_path):
    (tmp_path / "page.py").write_text("\n".join(BLOCKS))
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "page.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_source_of_ones_own_takes_fifteen_lines():
    (own,) = (block for block in BLOCKS if "BaseSource" in block)
    assert len([line for line in own.splitlines() if line.strip()]) <= 15
