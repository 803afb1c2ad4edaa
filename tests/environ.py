"""The environment that the tests begin in: made here, so that they do the same wherever they are started."""

from __future__ import annotations

import os

# What is taken over from whoever starts the tests; all else would change what the tools and servers under test do.
KEPT = ("HOME", "PATH", "TMPDIR", "USER", "LOGNAME", "SYSTEMROOT", "TEMP", "TMP")
KEPT_PREFIXES = ("COVERAGE_", "PYTEST_")


def made() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    return {**kept, "LC_ALL": "C.UTF-8"}
