"""How much a run tries: everything in a nightly one (HYPOTHESIS_PROFILE=nightly), else a sample."""

from __future__ import annotations

import os

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
NIGHTLY = PROFILE == "nightly"
