"""Real holders for the tests: processes that hold real ports, and are gone when a test ends."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from . import seam
from .held import PATIENCE, ROOT, Held, birth, can_bind, clean_environ, ended, eventually, holding  # noqa: F401
from .skips import pytest_sessionfinish  # noqa: F401

kept = clean_environ()
os.environ.clear()
os.environ.update(kept)

PORT_MANAGER = str(ROOT / "port_manager.py")
RUN_BACKEND = str(ROOT / "run_backend.py")
LINUX = sys.platform.startswith("linux")
ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0
NOBODY = 65534
as_root = pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")
KILLPG = getattr(os, "killpg", None)  # the real one, whatever stands in its place in a test
TELLS_BOUND = LINUX and tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 8)
bound_is_told = pytest.mark.skipif(not TELLS_BOUND, reason="before Linux 6.8 nothing tells of such a socket")

# An automatic start: exit status 0 where the port is free then.
ENSURE = "import port_manager, sys; sys.exit(not port_manager.ensure_port_available(int(sys.argv[1])))"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: its children could not be interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # nohup ignores it, and so would every child
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a tool may take long to answer, and a process to end."""
    seam.limits(monkeypatch, tool_timeout=PATIENCE, forced_wait=PATIENCE)


@pytest.fixture
def ports() -> Iterator[Callable[[], int]]:
    """A maker of ports that are free, and that no test running beside this one will take, nor the next one after it."""
    with contextlib.ExitStack() as locks:
        hosts = [host for host in ("0.0.0.0", "::") if can_bind(0, host)]

        def reserve(low: int = 11000, high: int = 32000) -> int:  # below the ports that outgoing connections get
            while True:
                port = random.randrange(low, high)
                three = [locks.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]  # for ranges of ports
                with contextlib.suppress(OSError):
                    for number, lock in enumerate(three, port):
                        lock.bind(f"\0port_manager_tests_{number}")  # abstract: it vanishes with this process
                    if all(can_bind(port, host, 0) for host in hosts):
                        return port

        yield reserve


@pytest.fixture
def port(ports: Callable[[], int]) -> int:
    return ports()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program; what is left of it and of its process group is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*command: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
        started.append(subprocess.Popen(command, start_new_session=True, **options))
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        ended(process)


@pytest.fixture
def hold() -> Iterator[Callable[..., Held]]:
    with contextlib.ExitStack() as stack:
        yield lambda *words, **spec: stack.enter_context(Held(*words, **spec))


def project(folder: Path) -> Path:
    """The folder, with the mark of a repository."""
    (folder / ".git").mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where holders run: a project of their own."""
    return project(tmp_path / "home")


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """Where the tool is called: a project that is none of the holders'."""
    return project(tmp_path / "away")


@pytest.fixture(params=["pidfd", "birth"])
def pinning(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With a pidfd (Linux 5.3, Python 3.9), and without."""
    if request.param == "birth":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("this Python has no pidfd_open")
    return str(request.param)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What port_manager has logged so far."""
    caplog.set_level(10, logger="port_manager")
    return lambda: "\n".join(record.getMessage() for record in caplog.records if record.name == "port_manager")


def python(*words: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end; names in capitals are variables of its environment."""
    # os.environ is named since readline sets LINES and COLUMNS in the C library's environment alone.
    environ = {**(os.environ if env is None else env), **{key: options.pop(key) for key in [*options] if key.isupper()}}
    environ["PYTHONPATH"] = str(ROOT)  # a script would be compiled at each call
    options = {"capture_output": True, "text": True, "timeout": PATIENCE, **options}
    return subprocess.run([sys.executable, *words], check=False, env=environ, **options)


command_line = functools.partial(python, "-m", "port_manager")


def ensured(folder: Path | str, port: int, code: str = ENSURE, **environ: str) -> subprocess.CompletedProcess[str]:
    """An automatic start in a folder, without a terminal."""
    return python("-c", code, str(port), cwd=folder, stdin=subprocess.DEVNULL, **environ)


def on_a_terminal(
    *words: str, answer: bytes = b"", question: str = " [y/N]", cwd: Any = ".", **environ: str
) -> tuple[str, str, int]:
    """Run a Python program on a terminal of its own: what it shows up to its question, what after that; its status."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        signal.alarm(100)  # a question too many waits for ever
        os.execve(sys.executable, [sys.executable, *words], {**os.environ, "PYTHONPATH": str(ROOT), **environ})
    shown = b""
    while answer and question.encode() not in shown:
        shown += os.read(terminal, 4096)
    if answer == b"\x03":  # one that comes just before the program reads is not noticed
        eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S")
    first, *others = answer.splitlines(keepends=True) or [b""]
    os.write(terminal, first)
    after = b""
    with contextlib.suppress(OSError), open(terminal, "rb", buffering=0) as stream:  # the error: it has been closed
        for part in iter(lambda: stream.read(4096), b""):
            after += part
            if others and after.rstrip().endswith(question.strip().encode()):  # what was typed before it is no answer
                os.write(terminal, others.pop(0))
    return shown.decode(), after.decode("utf-8", "replace"), os.waitpid(pid, 0)[1] >> 8


def give_up_rights() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: its user may look at it, as after an exec


def told_by_a_fork(question: Callable[[], Any]) -> bytes:
    """What a fork of this process answers, or why it could not, as JSON; nothing where it was killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = question()
        except BaseException as error:  # noqa: BLE001 (a forked test run must not go on)
            answer = repr(error)
        os.write(write, json.dumps(answer).encode() + b"\n")
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        line = pipe.readline()
    with contextlib.suppress(ProcessLookupError):
        KILLPG(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return line


def as_nobody(question: Callable[[], Any]) -> Any:
    """The answer that a process of user nobody gets; only root may ask."""
    import argparse, difflib, pwd, select, struct  # noqa: F401, I001

    return json.loads(told_by_a_fork(lambda: (give_up_rights(), question())[1]))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The signals that this process has sent with success: (PID, number). None is let through to a PID below 2."""
    signals: list[tuple[int, int]] = []
    pids: dict[int, int] = {}

    def noted(real: Callable[..., None], pid_of: Callable[[int], int]) -> Callable[[int, int], None]:
        def send(target: int, number: int) -> None:
            if pid_of(target) >= 2:
                real(target, number)
            signals.append((pid_of(target), number))

        return send

    monkeypatch.setattr(os, "kill", noted(os.kill, int))
    monkeypatch.setattr(os, "killpg", lambda group, number: signals.append((-group, number)))
    if hasattr(os, "pidfd_open"):

        def opened(pid: int, real: Callable[[int], int] = os.pidfd_open) -> int:
            handle = real(pid)
            pids[handle] = pid
            return handle

        monkeypatch.setattr(os, "pidfd_open", opened)
        monkeypatch.setattr(signal, "pidfd_send_signal", noted(signal.pidfd_send_signal, pids.__getitem__))
    return signals
