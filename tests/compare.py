"""What port killers do in the cases that hurt people: one table, each case in namespaces of its own.

    python3 -m tests.compare

As root on Linux, with an interpreter and a folder that every user may read (one case runs the tool as nobody). A
tool that is not on PATH is left out. A tick is what a developer would want. It is a program to be read, and no test.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any, Callable

from .benchmark import timed
from .held import ROOT, Held, can_bind, eventually, holding

PORT = 8000
WHERE = "127.0.0.1"  # for those who can be told an address
TOOLS = {
    "lsof": f"lsof -ti:{PORT} | xargs -r kill -9",
    "listen": f"lsof -tiTCP:{PORT} -sTCP:LISTEN | xargs -r kill",
    "kill-port": f"kill-port {PORT}",
    "fkill": f"fkill :{PORT}",
    "fuser": f"fuser -k {PORT}/tcp",
    "this": f"'{sys.executable}' '{ROOT}/port_manager.py' free {PORT}",
}


def run(host: str = "", *before: str) -> tuple[int, str]:
    """Call the tool: (exit status, what it said)."""
    command = TOOLS[sys.argv[1]] + (f" --host {host}" if host and sys.argv[1] == "this" else "")
    words = [*before, "sh", "-c", command]
    done = subprocess.run(words, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True, check=False)
    return done.returncode, done.stdout


def gone(held: Held) -> bool:
    return eventually(lambda: not held.alive(), 3)


def freed(*spared: dict[str, Any], host: str = "", **server: Any) -> bool:
    """Whether the server and its children go, and those live that are started beside it."""
    held = Held((host or "0.0.0.0", PORT), **server)
    others = [Held(spec.pop("at"), **spec) for spec in spared]
    run(host)
    time.sleep(0.3)  # one that was killed may take a moment to end
    return gone(held) and all(other.alive() for other in others)


def an_own_end() -> bool:
    server, client = Held((WHERE, 9000)), Held((WHERE, PORT), connect=(WHERE, 9000))
    run()
    time.sleep(0.3)
    return bool(client.alive() and server.alive())


def tidying() -> bool:
    """It needs a moment to clean up, and says so when it could."""
    server = Held(("0.0.0.0", PORT), says="tidied")
    run()
    return gone(server) and server.process.stdout.read() == "tidied"


def at_once() -> bool:
    for _ in range(5):
        master = Held(("0.0.0.0", PORT), children=8)
        run()
        if not can_bind(PORT, "0.0.0.0"):
            return False
        gone(master)
    return True


def supervised() -> bool:
    """Reported: not by a status that is always the same, but by the PID of who starts it, as a word of its own."""
    words = ["sh", "-c", f"while :; do {shlex.join(holding(('0.0.0.0', PORT)))}; done"]
    loop = subprocess.Popen(words, stdout=DEVNULL, start_new_session=True)
    eventually(lambda: not can_bind(PORT))
    status, said = run()
    return status != 0 and re.search(rf"(?<![\w:.-]){loop.pid}(?![\w:.-])", said.replace(str(PORT), "")) is not None


def another_users() -> bool:
    server = Held(("0.0.0.0", PORT))
    status, said = run("", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    return bool(server.alive()) and status != 0 and "root" in said


def an_ancestor() -> bool:
    child = os.fork()
    if child == 0:
        with socket.create_server(("0.0.0.0", PORT)):
            run()
            os._exit(7)
    return os.waitpid(child, 0)[1] == 7 << 8


def take_over() -> str:
    took = []
    for _ in range(10):
        server = Held(("0.0.0.0", PORT))
        took.append(timed(run))
        gone(server)
    return f"{statistics.median(took) * 1e3:.0f}"


CASES: dict[str, Callable[[], object]] = {
    "a client of the port lives": lambda: freed({"at": (WHERE, 0), "connect": (WHERE, PORT)}),
    "a program whose own end of a connection uses the port lives": an_own_end,
    "a UDP program on the number lives, the TCP server goes": lambda: freed({"at": ("0.0.0.0", PORT), "udp": True}),
    "a listener on 127.0.0.2 lives beside 127.0.0.1": lambda: freed({"at": ("127.0.0.2", PORT)}, host=WHERE),
    "a v6-only listener lives beside 0.0.0.0": lambda: freed({"at": ("::", PORT), "v6only": True}),
    "a master and its four workers go": lambda: freed(children=4),
    "a socket that is bound and does not listen is found": lambda: freed(listen=False, reuse=False),
    "a server may clean up first (SIGTERM before SIGKILL)": tidying,
    "a server that ignores SIGTERM goes": lambda: freed(ignore_term=True),
    "the port of a master with eight workers can be bound when the tool returns (5 of 5)": at_once,
    "a supervisor that starts its server again is reported": supervised,
    "another user's server: refused, with the reason": another_users,
    "an ancestor of the tool lives": an_ancestor,
    "one take-over, ms (median of 10)": take_over,
}


def inside(case: str) -> None:
    """In its namespaces, as the first process there: make the case, and print what came of it."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.alarm(60)
    answer = CASES[case]()
    print("✓" if answer is True else answer or "", flush=True)


def main() -> None:
    if sys.argv[2:3] == ["--inside"]:
        return inside(sys.argv[3])
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return print("not compared: this needs root on Linux")
    tools = [tool for tool, command in TOOLS.items() if shutil.which(command.split()[0].strip("'"))]
    print("| case | " + " | ".join(tools) + " |\n|" + "---|" * (len(tools) + 1))
    for case in CASES:
        cells = []
        for tool in tools:
            box = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
            command = [*box, sys.executable, "-m", "tests.compare", tool, "--inside", case]
            done = subprocess.run(command, cwd=ROOT, stdout=PIPE, stderr=DEVNULL, text=True, check=False)
            cells.append(done.stdout.strip().rpartition("\n")[2] if done.returncode == 0 else "failed")
        print(f"| {case} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
