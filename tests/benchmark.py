"""What port_manager costs: one table, every figure set against something measured in the same run.

    python3 -m tests.benchmark
    python3 -m tests.benchmark --processes 500 --connections 500     (0 processes: no crowd)

Times differ from machine to machine and from minute to minute; the ratio of two medians whose samples were
taken in turns (A B A B …) hardly does. Both sides of a comparison run in the interpreter that runs this. It is
a program to be read, and no test: a row that misses its bar fails nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import random
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Iterator

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, "port_manager.py")
sys.path.insert(0, ROOT)

import port_manager

NOTHING = subprocess.DEVNULL
UNWANTED = {"subprocess", "argparse", "typing", "json", "shutil", "re"}
IMPORT = "import logging, socket, time; t = time.perf_counter(); import port_manager; print(time.perf_counter() - t)"
MODULES = "import socket, sys; old = set(sys.modules); import port_manager; print(*sorted(set(sys.modules) - old))"

# A holder that goes at once when it is asked to; with a second word, it tells the time as its last deed.
HOLDER = """
import os, signal, socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", int(sys.argv[1])))
listener.listen()
if sys.argv[2:]:
    signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"%d" % time.monotonic_ns()), os._exit(0)))
os.write(1, b"ready\\n")
os.read(0, 1)
"""

# Each process has 21 descriptors, and the first four share the connections (reset at the end, so that no
# TIME_WAIT stays). They read our pipe to its end, which comes when we close it or die; their parent reaps them.
CROWD = """
import contextlib, os, resource, socket, struct, sys
processes, connections = map(int, sys.argv[1:])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def connected(number):
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(number):
            client = socket.create_connection(server.getsockname())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            yield client, server.accept()
pipes = [os.pipe() for _ in range(9)]
for number in range(processes):
    if os.fork() == 0:
        held = list(connected(connections // 4)) if number < 4 else []
        os.write(1, b"%d\\n" % os.getpid())
        os.read(0, 1)
        os._exit(0)
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
"""

rows: list[tuple[str, ...]] = []


def row(what: str, ours: float, against: str, theirs: float, bar: float, show: Callable[[float], str]) -> None:
    ratio, text = ours / theirs, f"1/{1 / bar:.0f}" if bar < 1 else f"{bar:g}"
    compared = f"{against}: {show(theirs)}" if against else show(theirs)
    rows.append((what, show(ours), compared, f"{ratio:.3g}", text, "yes" if ratio <= bar else "NO"))


def shown(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-4 else f"{seconds * 1e3:.2f} ms"


def timed(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def in_turns(times: int, *measures: Callable[[], float]) -> list[float]:
    """The medians of several measures whose samples are taken in turns; the first round only warms up."""
    samples = [[measure() for measure in measures] for _ in range(times + 1)][1:]
    return [statistics.median(column) for column in zip(*samples)]


def run(*command: str, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=ROOT, env=env, stdout=NOTHING, stderr=NOTHING, check=False)


def some_port() -> int:
    """A free one, below those that outgoing connections get."""
    return port_manager.find_free_port(random.randrange(11000, 31000))


@contextlib.contextmanager
def child(code: str, *words: object, lines: int = 1) -> Iterator[tuple[Any, list[str]]]:
    """A Python process of our own, and what it said until it was ready; it ends with the end of its input."""
    command = [sys.executable, "-I", "-S", "-c", code, *map(str, words)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, start_new_session=True) as process:
        assert process.stdin and process.stdout
        said = b""
        try:
            while said.count(b"\n") < lines:
                part = process.stdout.read(65536) if select.select([process.stdout], [], [], 30)[0] else b""
                if not part:
                    raise OSError("it could not be made")
                said += part
            yield process, said.decode().split()
        finally:
            process.stdin.close()


def free_port_row() -> None:
    port, many = some_port(), range(200)
    logging.getLogger("port_manager").setLevel(logging.CRITICAL)

    def bare() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("0.0.0.0", port))

    ours, theirs = in_turns(
        60,
        lambda: timed(lambda: [port_manager.ensure_port_available(port) for _ in many]) / len(many),
        lambda: timed(lambda: [bare() for _ in many]) / len(many),
    )
    row("ensure_port_available, free port", ours, "socket, bind", theirs, 5, shown)


def start_rows(env: dict[str, str]) -> None:
    """What starting it costs, as a script (compiled each time) and as a module (from cached bytecode)."""

    def answer(code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=-1, check=True).stdout.decode()

    (took,) = in_turns(40, lambda: float(answer(IMPORT)))
    row("import port_manager", took, "", 1.5e-3, 1, shown)
    names = answer(MODULES).split()
    ok = "NO" if UNWANTED.intersection(names) else "yes"
    rows.append(("it imports, beside socket's", " ".join(names), "", "", "no " + " ".join(sorted(UNWANTED)), ok))

    port = str(some_port())
    starting = lambda *words: timed(lambda: run(sys.executable, *words, env=env))

    def freeing(*words: str) -> float:
        with child(HOLDER, port) as (holder, _):
            took = starting(*words)
            assert holder.wait(5) == -signal.SIGTERM
        return took

    cases = ("check, free port", starting, 2.4, 1.3), ("free, prompt holder", freeing, 3, 3)
    for verb, measure, plain, module in cases:
        for name, words, bar in (("script", [SCRIPT], plain), ("-m", ["-m", "port_manager"], module)):
            call = [*words, verb.split(",")[0], port]
            ours, theirs = in_turns(40, lambda: measure(*call), lambda: starting("-c", "import socket"))  # noqa: B023
            row(f"{verb} ({name})", ours, "python -c 'import socket'", theirs, bar, shown)


def holder_rows(who: str, port: int, pid: int, times: int, bars: dict[str, float]) -> None:
    """How long it takes to name the holder of a port, and to describe it, set against the tools that name it."""
    named, described = port_manager.PortManager(port).get_process_using_port, port_manager.find_listeners
    tools = {"ss": f"ss -ltnpH sport = :{port}", "lsof": f"lsof -nP -iTCP:{port} -sTCP:LISTEN -t"}
    assert [holder.pid for holder in described(port)] == [pid]
    for tool, bar in bars.items():
        if not shutil.which(tool):
            why = f"not measured: {tool} is missing"
            rows.append((f"finding the holder, {who}", why, "", "", f"1/{1 / bar:.0f}", "-"))
            continue
        pid_alone, whole, theirs = in_turns(
            times, *(lambda call=call: timed(lambda: call(port)) for call in (named, described)),
            lambda: timed(lambda: run(*tools[tool].split())),  # noqa: B023
        )  # fmt: skip
        row(f"finding the holder, {who}: its PID", pid_alone, tool, theirs, bar, shown)
        row(f"finding the holder, {who}: described", whole, tool, theirs, bar, shown)


def crowd_rows(processes: int, connections: int) -> None:
    """The same among many processes and connections, where the holder is the youngest of them, or the oldest."""
    with open("/proc/meminfo") as memory:
        free = next(int(line.split()[1]) for line in memory if line.startswith("MemAvailable"))
    why = "left out" if processes < 1 else "there is too little memory" if free < processes * 1000 else ""  # kB
    for _ in range(0 if why else 3):  # once more where the PIDs began again from below meanwhile
        old, young, size = some_port(), some_port(), f"{processes} processes"
        try:
            with contextlib.ExitStack() as stack:
                oldest, _ = stack.enter_context(child(HOLDER, old))
                _, told = stack.enter_context(child(CROWD, processes, connections, lines=processes))
                youngest, _ = stack.enter_context(child(HOLDER, young))
                if oldest.pid < min(map(int, told)) and max(map(int, told)) < youngest.pid:
                    holder_rows(f"{size}, youngest", young, youngest.pid, 9, {"ss": 1 / 50, "lsof": 1 / 100})
                    return holder_rows(f"{size}, oldest", old, oldest.pid, 9, {"ss": 1})
        except OSError as error:  # a limit is too low for so many
            why = str(error)
            break
    why = f"not measured: {why or 'the PIDs began again'}"
    rows.append(("finding the holder in a crowd", why, "", "", "1/50", "-"))


def exit_rows() -> None:
    """The holder tells the time as its last deed; what follows is its end, our waking up, and our last look."""
    port, lags = some_port(), []
    for _ in range(100):
        with child(HOLDER, port, "tell") as (holder, _):
            assert port_manager.ensure_port_available(port)
            lags.append((time.monotonic_ns() - int(holder.stdout.read())) / 1e9)
    row("from the holder's exit to our return", statistics.median(lags), "", 5e-3, 1, shown)
    row("the same, 95th percentile", sorted(lags)[94], "", 5e-3, 1, shown)


def server_cost(*command: str) -> tuple[int, int]:
    """(processes, kB of memory) of a server that listens, everything in its process group counted."""
    port = some_port()
    words = [word.replace("PORT", str(port)) for word in command]
    with subprocess.Popen(words, cwd=ROOT, stdout=NOTHING, stderr=NOTHING, start_new_session=True) as server:
        try:
            port_manager.wait_until_listening(port, "0.0.0.0", 20)
            time.sleep(0.1)
            told = subprocess.run(["ps", "-o", "rss=", "-s", str(server.pid)], stdout=-1, check=True).stdout.split()
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    return len(told), sum(map(int, told))


def run_backend_rows() -> None:
    """What stays of run_backend.py beside the server that it has started: nothing."""
    server = [sys.executable, "-m", "http.server", "PORT"]
    through = [sys.executable, os.path.join(ROOT, "run_backend.py"), "--port", "PORT", "--", *server]
    costs = [server_cost(*through) + server_cost(*server) for _ in range(9)]
    ours, our_size, theirs, their_size = map(statistics.median, zip(*costs))
    row("server by run_backend, processes", ours, "plainly", theirs, 1, lambda number: f"{number:g}")
    row("server by run_backend, memory", our_size, "plainly", their_size, 1.02, lambda size: f"{size:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description="What port_manager costs, as ratios.")
    parser.add_argument("--processes", type=int, default=3000, help="in the crowd (0: no crowd)")
    parser.add_argument("--connections", type=int, default=4000, help="in the crowd")
    asked = parser.parse_args()
    if not sys.platform.startswith("linux"):
        return print("not measured: this needs Linux")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything that was started is ended
    for name in ("ENVIRONMENT", "PORT_MANAGER_POLICY"):
        os.environ.pop(name, None)
    free_port_row()
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        run(sys.executable, "-m", "py_compile", SCRIPT, env=env)
        start_rows(env)
    port = some_port()
    with child(HOLDER, port) as (holder, _):
        holder_rows("idle machine", port, holder.pid, 40, {"ss": 1 / 10})
    crowd_rows(asked.processes, asked.connections)
    exit_rows()
    run_backend_rows()
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    lines = [("what", "measured", "compared with", "ratio", "bar", "ok?"), *rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


if __name__ == "__main__":
    main()
