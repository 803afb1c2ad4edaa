"""The environment that the tests begin in: made here, so that they do the same wherever they are started."""

from __future__ import annotations

import os

# What is taken over from whoever starts the tests; all else would change what the tools and servers under test do.
KEPT = ("HOME", "PATH", "TMPDIR", "USER", "LOGNAME", "SYSTEMROOT", "TEMP", "TMP")
# TESTS_NAME is NAME for them: .ci/containers says so where its docker is.
KEPT_PREFIXES = ("COVERAGE_", "PYTEST_")


def made() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    given = {name[len("TESTS_") :]: value for name, value in os.environ.items() if name.startswith("TESTS_")}
    return {**kept, **given, "LC_ALL": "C.UTF-8"}
