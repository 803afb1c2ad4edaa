"""What port_manager costs: one table, every figure set against something measured in the same run.

    python3 -m tests.benchmark

Times differ from machine to machine and from minute to minute; the ratio of two medians whose samples were taken in
turns (A B A B …) hardly does. It is a program to be read, and no test: a row that misses its bar fails nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from subprocess import DEVNULL, PIPE
from typing import Any, Callable, Iterator

import port_manager

from .held import ROOT, Held

IMPORT = "import logging, socket, time; t = time.perf_counter(); import port_manager; print(time.perf_counter() - t)"

# Each process has 21 descriptors, and the first four share the connections (reset at the end, so that no
# TIME_WAIT stays). They read our pipe to its end, which comes when we close it or die; their parent reaps them.
CROWD = """
import os, resource, socket, struct, sys
processes, connections = map(int, sys.argv[1:])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def connected():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return client, server.accept()
pipes = [os.pipe() for _ in range(9)]
for number in range(processes):
    if os.fork() == 0:
        held = [connected() for _ in range(connections // 4 if number < 4 else 0)]
        os.write(1, b"%d\\n" % os.getpid())
        os.read(0, 1)
        os._exit(0)
for _ in range(processes):
    os.wait()
"""


def row(what: str, ours: float, against: str, theirs: float, bar: float, unit: str = "") -> None:
    def shown(value: float) -> str:
        return f"{value:g} {unit}" if unit else f"{value * 1e6:.1f} µs" if value < 1e-4 else f"{value * 1e3:.2f} ms"

    text = f"1/{1 / bar:.0f}" if bar < 1 else f"{bar:g}"
    compared = f"{against}: {shown(theirs)}" if against else shown(theirs)
    cells = what, shown(ours), compared, f"{ours / theirs:.3g}", text, "yes" if ours / theirs <= bar else "NO"
    print(f"| {' | '.join(cells)} |", flush=True)


def timed(call: Callable[[], Any], times: int = 1) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begun) / times


def in_turns(
    what: str, ours: Callable[[], float], against: str, theirs: Callable[[], float], bar: float, times: int = 40
) -> None:
    """The medians of two measures whose samples are taken in turns; the first round only warms up."""
    samples = [(ours(), theirs()) for _ in range(times + 1)][1:]
    medians = [statistics.median(column) for column in zip(*samples)]
    row(what, medians[0], against, medians[1], bar)


def run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, stdout=DEVNULL, stderr=DEVNULL, check=False)


def some_port() -> int:
    """A free one, below those that outgoing connections get; no test that runs beside takes it meanwhile."""
    while True:
        port = port_manager.find_free_port(random.randrange(11000, 31000))
        if sys.platform != "linux":
            return port
        lock = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            lock.bind(f"\0port_manager_tests_{port}")
            lock.detach()  # the name is taken until this process ends
            return port


@contextlib.contextmanager
def child(code: str, *words: object, lines: int = 1) -> Iterator[tuple[Any, list[str]]]:
    """A Python process of our own, and what it said until it was ready; it ends with the end of its input."""
    command = [sys.executable, "-I", "-S", "-c", code, *map(str, words)]
    process: Any
    with subprocess.Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, start_new_session=True) as process:
        try:
            said = [process.stdout.readline().decode().strip() for _ in range(lines)]
            assert all(said), "it could not be made"
            yield process, said
        finally:
            process.stdin.close()


def free_port_row() -> None:
    port = some_port()

    def bare() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("0.0.0.0", port))

    ours = lambda: timed(lambda: port_manager.ensure_port_available(port), 200)
    in_turns("ensure_port_available, free port", ours, "socket, bind", lambda: timed(bare, 200), 5, 60)


def start_rows() -> None:
    """What starting it costs, as a script (compiled each time) and as a module (from bytecode of the first round)."""
    port, words = str(some_port()), [sys.executable, "-c", IMPORT]
    imported = lambda: float(subprocess.run(words, cwd=ROOT, stdout=PIPE, check=True).stdout)
    in_turns("import port_manager", imported, "", lambda: 1.5e-3, 1)

    def starting(*words: str) -> float:
        return timed(lambda: run(sys.executable, *words))

    def freeing(*words: str) -> float:
        with Held(("0.0.0.0", int(port))) as holder:
            took = starting(*words)
            assert holder.process.wait(5) == -signal.SIGTERM
        return took

    for how, words, bars in ("script", ["port_manager.py"], (2.4, 3)), ("-m", ["-m", "port_manager"], (1.3, 3)):
        bare = "python -c 'import socket'", lambda: starting("-c", "import socket")
        in_turns(f"check, free port ({how})", lambda: starting(*words, "check", port), *bare, bars[0])  # noqa: B023
        in_turns(f"free, prompt holder ({how})", lambda: freeing(*words, "free", port), *bare, bars[1])  # noqa: B023


def holder_row(what: str, call: Callable[[int], Any], port: int, tool: str, bar: float, times: int = 9) -> None:
    """How long a call takes to find the holder of a port, set against a tool that names it."""
    words = {"ss": f"ss -ltnpH sport = :{port}", "lsof": f"lsof -nP -iTCP:{port} -sTCP:LISTEN -t"}[tool].split()
    if shutil.which(tool):
        theirs = lambda: timed(lambda: run(*words))
        in_turns(f"finding the holder, {what}", lambda: timed(lambda: call(port)), tool, theirs, bar, times)


def crowd_rows() -> None:
    """The same among many processes and connections, where the holder is the youngest of them, or the oldest."""
    old, young, processes, call = some_port(), some_port(), 3000, port_manager.find_listeners
    with contextlib.ExitStack() as stack:
        oldest = stack.enter_context(Held(("0.0.0.0", old)))
        _, told = stack.enter_context(child(CROWD, processes, 4000, lines=processes))
        youngest = stack.enter_context(Held(("0.0.0.0", young)))
        if not oldest.pid < min(map(int, told)) <= max(map(int, told)) < youngest.pid:
            return print("no crowd: the PIDs began again from below; try once more")
        holder_row(f"{processes} processes, youngest", call, young, "ss", 1 / 50)
        holder_row(f"{processes} processes, youngest", call, young, "lsof", 1 / 100)
        holder_row(f"{processes} processes, oldest", call, old, "ss", 1)


def exit_row() -> None:
    """The holder tells the time as its last deed; what follows is its end, our waking up, and our last look."""
    port, lags = some_port(), []
    for _ in range(100):
        with Held(("0.0.0.0", port), tells_time=True) as holder:
            assert port_manager.ensure_port_available(port)
            lags.append((time.monotonic_ns() - int(holder.process.stdout.read())) / 1e9)
    row("from the holder's exit to our return", statistics.median(lags), "", 5e-3, 1)


def server_cost(port: int, *command: str) -> tuple[int, int]:
    """(processes, kB of memory) of a server that listens, everything in its session counted."""
    with subprocess.Popen(command, cwd=ROOT, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True) as server:
        try:
            port_manager.wait_until_listening(port, "0.0.0.0", 20)
            time.sleep(0.1)
            told = subprocess.run(["ps", "-o", "rss=", "-s", str(server.pid)], stdout=PIPE, check=True).stdout.split()
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    return len(told), sum(map(int, told))


def run_backend_rows() -> None:
    """What stays of run_backend.py beside the server that it has started: nothing."""
    port = some_port()
    server = [sys.executable, "-m", "http.server", str(port)]
    through = [sys.executable, os.path.join(ROOT, "run_backend.py"), "--port", str(port), "--", *server]
    costs = [server_cost(port, *through) + server_cost(port, *server) for _ in range(9)]
    ours, our_size, theirs, their_size = map(statistics.median, zip(*costs))
    row("server by run_backend, processes", ours, "plainly", theirs, 1, "in all")
    row("server by run_backend, memory", our_size, "plainly", their_size, 1.02, "kB")


def main() -> None:
    if not sys.platform.startswith("linux"):
        return print("not measured: this needs Linux")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything that was started is ended
    logging.getLogger("port_manager").setLevel(logging.CRITICAL)
    for name in ("ENVIRONMENT", "PORT_MANAGER_POLICY", "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores\n")
    print("| what | measured | compared with | ratio | bar | ok? |\n|---|---|---|---|---|---|")
    free_port_row()
    start_rows()
    port = some_port()
    with Held(("0.0.0.0", port)):
        holder_row("its PID", port_manager.PortManager(port).get_process_using_port, port, "ss", 1 / 10, 40)
        holder_row("described", port_manager.find_listeners, port, "ss", 1 / 10, 40)
    crowd_rows()
    exit_row()
    run_backend_rows()


if __name__ == "__main__":
    main()
