"""Real holders for the tests: processes that hold real ports, and are gone when a test ends."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import pytest

from .environ import made

environment = made()
os.environ.clear()
os.environ.update(environment)

ROOT = Path(__file__).resolve().parent.parent
HOLDER = str(ROOT / "tests" / "holder.py")
PORT_MANAGER = str(ROOT / "port_manager.py")
RUN_BACKEND = str(ROOT / "run_backend.py")
LINUX = sys.platform.startswith("linux")
ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0
NOBODY = 65534
TELLS_BOUND = LINUX and tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 8)
bound_is_told = pytest.mark.skipif(not TELLS_BOUND, reason="before Linux 6.8 nothing tells of such a socket")

# An automatic start: exit status 0 where the port is free then.
ENSURE = "import port_manager, sys; sys.exit(not port_manager.ensure_port_available(int(sys.argv[1])))"
LISTENING = (  # a program that holds the port named by its first word
    "import socket, sys, time; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen();"
    "print('ready', flush=True); time.sleep(60)"
)

PATIENCE = 60.0  # seconds after which what did not happen fails; on a loaded machine little is quick

sys.path.insert(0, str(ROOT))
from . import seam
from .skips import pytest_sessionfinish  # noqa: F401

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, whose children could not be interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)


def birth(pid: int) -> str | None:
    """The start time of a living process (a zombie is none), which tells it from a later one with its PID."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


class Held:
    """A holder that was started, with its children."""

    def __init__(
        self, process: subprocess.Popen[str], pid: int, children: list[int], strangers: list[int], said: str = ""
    ) -> None:
        self.process, self.pid, self.children, self.strangers, self.said = process, pid, children, strangers, said
        self.births = {pid: birth(pid) for pid in [pid, *children, *strangers]}

    def alive(self) -> list[int]:
        """Those that live of the holder and its children."""
        return [pid for pid in self.living() if pid not in self.strangers]

    def living(self) -> list[int]:
        return [pid for pid, born in self.births.items() if born and birth(pid) == born]

    def end(self) -> None:
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a tool may take long to answer, and a process to end."""
    seam.limits(monkeypatch, tool_timeout=PATIENCE, forced_wait=PATIENCE)


@pytest.fixture
def ports() -> Iterator[Callable[[], int]]:
    """A maker of ports that are free, and that no test running beside this one will take, nor the next one after it."""
    locks: list[socket.socket] = []
    families = [(socket.AF_INET, "0.0.0.0")]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        families.append((socket.AF_INET6, "::"))

    def reserve(low: int = 11000, high: int = 32000) -> int:  # below the ports that outgoing connections get
        while True:
            port = random.randrange(low, high)
            pair = [socket.socket(socket.AF_UNIX) for _ in range(2)]
            try:
                for number, lock in enumerate(pair, port):
                    lock.bind(f"\0port_manager_tests_{number}")  # abstract: it vanishes with this process
                for family, host in families:
                    with socket.socket(family) as probe:
                        probe.bind((host, port))
            except OSError:
                for lock in pair:
                    lock.close()
                continue
            locks.extend(pair)
            return port

    yield reserve
    for lock in locks:
        lock.close()


@pytest.fixture
def port(ports: Callable[[], int]) -> int:
    return ports()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program; what is left of it and of its process group is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*command: str, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
        process = subprocess.Popen(command, start_new_session=True, **options)
        started.append(process)
        return process

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr, process.stdin):
            if stream:
                stream.close()


def holding(*bind: tuple[str, int] | int, **spec: Any) -> list[str]:
    """The command line of a holder (see holder.py); a number is a port of 127.0.0.1."""
    spec["bind"] = [("127.0.0.1", one) if isinstance(one, int) else one for one in bind]
    return [sys.executable, "-S", "-E", HOLDER, json.dumps(spec)]


@pytest.fixture
def hold() -> Iterator[Callable[..., Held]]:
    """Start a holder, in a folder and with more words behind its command line."""
    started: list[Held] = []

    def run(*bind: tuple[str, int] | int, cwd: Any = None, more: Sequence[str] = (), **spec: Any) -> Held:
        words = [*holding(*bind, **spec), *more]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=cwd, start_new_session=True)
        assert process.stdout
        told = json.loads(process.stdout.readline())
        started.append(Held(process, **told))
        return started[-1]

    yield run
    for held in started:
        held.end()


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


def command_line(*words: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python -m port_manager …`` to its end; names in capitals are variables of its environment."""
    # os.environ is named since readline sets LINES and COLUMNS in the C library's environment alone.
    environ = {**(os.environ if env is None else env), **{key: options.pop(key) for key in [*options] if key.isupper()}}
    environ["PYTHONPATH"] = str(ROOT)  # a script would be compiled at each call
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": PATIENCE, **options}
    return subprocess.run([sys.executable, "-m", "port_manager", *words], check=False, env=environ, **options)


def shown_until_closed(terminal: int) -> str:
    """All that a program shows on a terminal, until it ends."""
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the terminal is closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    return shown.decode("utf-8", "replace")


def on_a_terminal(
    *words: str, answer: bytes = b"", question: str = " [y/N]", cwd: Any = ".", **environ: str
) -> tuple[str, str, int]:
    """Run a Python program on a terminal of its own: what it shows up to its question, and after the answer; its status."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve(sys.executable, [sys.executable, *words], {**os.environ, "PYTHONPATH": str(ROOT), **environ})
    shown = b""
    while answer and question.encode() not in shown:
        shown += os.read(terminal, 4096)
    if answer == b"\x03":  # one that comes just before the program reads is not noticed
        eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S")
    os.write(terminal, answer)
    after = shown_until_closed(terminal)
    return shown.decode(), after, os.waitpid(pid, 0)[1] >> 8


def ensured(folder: Path | str, port: int, code: str = ENSURE, **environ: str) -> subprocess.CompletedProcess[str]:
    """An automatic start in a folder, without a terminal."""
    return subprocess.run(
        [sys.executable, "-c", code, str(port)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def as_nobody(question: Callable[[], Any]) -> Any:
    """The answer that a process of user nobody gets; only root may ask."""
    import argparse, difflib, pwd, select, struct  # noqa: F401, I001

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            answer = question()
        except BaseException as error:  # noqa: BLE001 (a forked test run must not go on)
            answer = repr(error)
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(child, 0)
    return answer


def can_bind(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The signals that this process has sent with success: (PID, number). None is let through to a PID below 2."""
    signals: list[tuple[int, int]] = []
    pids: dict[int, int] = {}

    def kill(pid: int, number: int, real: Callable[[int, int], None] = os.kill) -> None:
        if pid >= 2:
            real(pid, number)
        signals.append((pid, number))

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(os, "killpg", lambda group, number: signals.append((-group, number)))
    if hasattr(os, "pidfd_open"):

        def opened(pid: int, flags: int = 0, real: Callable[[int, int], int] = os.pidfd_open) -> int:
            handle = real(pid, flags)
            pids[handle] = pid
            return handle

        def send(handle: int, number: int, *rest: Any, real: Callable[..., None] = signal.pidfd_send_signal) -> None:
            if pids[handle] >= 2:
                real(handle, number, *rest)
            signals.append((pids[handle], number))

        monkeypatch.setattr(os, "pidfd_open", opened)
        monkeypatch.setattr(signal, "pidfd_send_signal", send)
    return signals
