"""Skips are counted: a run that TESTS_SKIPS gives groups of reasons fails where a test is skipped for any other.

.ci/run says for each of its jobs which groups there may be.
"""

from __future__ import annotations

import os
import re
from typing import Any

STATED = {
    "machine": "before Linux 6.8|no seccomp|no FUSE|no namespaces|nothing can be (mounted|traced)|"
    "no thread of the kernel|cannot be measured|for 64 bits",
    "elsewhere": "docker|podman|systemd|PORT_MANAGER_WINE|.ci/managers",  # they have jobs of their own
    "programs": "(node|npm|nginx|redis-server|busybox|dash|litestar|quart|sanic) is not installed",
    "packages": "could not import|is not installed|no debugpy",  # python3 -m tests --servers installs these
    "user": "root|a normal user|(ss|lsof|netstat) is not installed|no lsof",
    "python": "no pidfd_open",
}


def pytest_sessionfinish(session: Any) -> None:
    """A hook of pytest's, which conftest.py has from here."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    groups = os.environ.get("SKIPS", "").split()
    reasons = {report.longrepr[2] for report in reporter.stats.get("skipped", [])}
    found = sorted(reason for reason in reasons if not any(re.search(STATED[group], reason) for group in groups))
    if groups and found:
        reporter.write_line(f"\nnot among the skips of {', '.join(groups)} that tests/skips.py states:", red=True)
        reporter.write_line("\n".join(found), red=True)
        session.exitstatus = 1
