"""Holders that are started for real (see holder.py), what can be seen of them, and the environment that tests begin in.

Nothing here needs pytest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Sequence

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0  # seconds after which what did not happen fails; on a loaded machine little is quick

# What is taken over from whoever starts the tests; all else would change what the tools and servers under test do.
KEPT = ("HOME", "PATH", "TMPDIR", "USER", "LOGNAME", "SYSTEMROOT", "TEMP", "TMP")


def clean_environ() -> dict[str, str]:
    """The same wherever the tests are started; TESTS_NAME is NAME: .ci/containers says so where its docker is."""
    prefixes = ("COVERAGE_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(prefixes)}
    given = {name[len("TESTS_") :]: value for name, value in os.environ.items() if name.startswith("TESTS_")}
    return {**kept, **given, "LC_ALL": "C.UTF-8"}


def birth(pid: int) -> str | None:
    """The start time of a living process (a zombie is none), which tells it from a later one with its PID."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    return None


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


def can_bind(port: int, host: str = "127.0.0.1", reuse: int = 1) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        probe.bind((host, port))
        return True
    return False


def holding(*bind: tuple[str, int] | int, **spec: Any) -> list[str]:
    """The command line of a holder; a number is a port of 127.0.0.1."""
    spec["bind"] = [("127.0.0.1", one) if isinstance(one, int) else one for one in bind]
    return [sys.executable, "-S", "-E", str(ROOT / "tests/holder.py"), json.dumps(spec)]


class Held(contextlib.AbstractContextManager):
    """A holder with its children, started in a folder and with more words behind its command line."""

    def __init__(self, *bind: tuple[str, int] | int, cwd: Any = None, more: Sequence[str] = (), **spec: Any) -> None:
        words = [*holding(*bind, **spec), *more]
        self.process: Any = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=cwd, start_new_session=True)
        told = json.loads(self.process.stdout.readline())
        self.pid, self.children, self.strangers = told["pid"], told["children"], told["strangers"]
        self.said = told.get("said")
        self.births = {pid: birth(pid) for pid in [self.pid, *self.children, *self.strangers]}

    def alive(self) -> list[int]:
        """Those that live of the holder and its children."""
        return [pid for pid in self.living() if pid not in self.strangers]

    def living(self) -> list[int]:
        return [pid for pid, born in self.births.items() if born and birth(pid) == born]

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended(self.process)


def ended(process: Any) -> None:
    process.kill()
    process.wait()
    for stream in filter(None, (process.stdout, process.stderr, process.stdin)):
        stream.close()
