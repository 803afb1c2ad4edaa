"""What port killers do in the cases that hurt people: one table, each case in namespaces of its own.

    python3 -m tests.compare
    python3 -m tests.compare "client lives" fuser

As root on Linux, with an interpreter and a folder that every user may read (one case runs the tool as nobody). A
tool that is not on PATH is left out.

Holders are real processes, the tool is called as its manual says, and a tick is what a developer would want. Nothing
outside of the namespaces can be reached from inside. It is a program to be read, and no test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import Any, Callable

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PORT = 8000
NOBODY = 65534
WHERE = "127.0.0.1"  # for those who can be told an address

TOOLS = {
    "lsof": f"lsof -ti:{PORT} | xargs -r kill -9",
    "listen": f"lsof -tiTCP:{PORT} -sTCP:LISTEN | xargs -r kill",
    "kill-port": f"kill-port {PORT}",
    "fkill": f"fkill :{PORT}",
    "killport": f"killport {PORT}",
    "fuser": f"fuser -k {PORT}/tcp",
    "this": f"'{sys.executable}' '{ROOT}/port_manager.py' free {PORT}",
}

# It needs a moment to clean up, and leaves a file when it could.
TIDY = """
import os, signal, socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", int(sys.argv[1])))
listener.listen()
def tidy(*_):
    time.sleep(0.2)
    open(sys.argv[2], "w").close()
    os._exit(0)
signal.signal(signal.SIGTERM, tidy)
print("{}", flush=True)
while True:
    time.sleep(9)
"""


def started(*command: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    return process, json.loads(process.stdout.readline())


def hold(*bind: tuple[str, int], **spec: Any) -> int:
    """Start a holder (see holder.py), and return its PID."""
    told = started(sys.executable, "-S", "-E", f"{ROOT}/tests/holder.py", json.dumps({"bind": bind, **spec}))[1]
    families[told["pid"]] = [told["pid"], *told["children"]]
    return int(told["pid"])


families: dict[int, list[int]] = {}


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Whether a process and its children have ended, within a few seconds."""
    end = time.monotonic() + 3
    while time.monotonic() < end and any(map(lives, families.get(pid, [pid]))):
        time.sleep(0.02)
    return not any(map(lives, families.get(pid, [pid])))


def bound() -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", PORT))
        except OSError:
            return False
    return True


def run(host: str = "", *before: str) -> tuple[int, str]:
    """Call the tool: (exit status, what it said)."""
    command = TOOLS[sys.argv[1]] + (f" --host {host}" if host and sys.argv[1] == "this" else "")
    words = [*before, "sh", "-c", command]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=-1, stderr=-2, text=True, check=False)
    return done.returncode, done.stdout


def freed(*spared: dict[str, Any], server: dict[str, Any] | None = None, host: str = "") -> bool:
    """Whether the server and its children go, and those live that are started beside it."""
    pid = hold((host or "0.0.0.0", PORT), **server or {})
    others = [hold(spec.pop("bind"), **spec) for spec in spared]
    run(host)
    return gone(pid) and all(map(lives, others))


def an_own_end() -> bool:
    hold((WHERE, 9000))
    client = hold((WHERE, PORT), connect=(WHERE, 9000))
    run()
    time.sleep(0.3)
    return lives(client)


def tidying() -> bool:
    mark = f"/tmp/tidied.{os.getpid()}.{time.time_ns()}"
    server, _ = started(sys.executable, "-S", "-c", TIDY, str(PORT), mark)
    run()
    tidied = gone(server.pid) and os.path.exists(mark)
    if os.path.exists(mark):
        os.unlink(mark)
    return tidied


def at_once() -> bool:
    for _ in range(5):
        master = hold(("0.0.0.0", PORT), children=8)
        run()
        if not bound():
            return False
        gone(master)
    return True


def supervised() -> bool:
    """Reported: not by a status that is always the same, but by the PID of who starts it, as a word of its own."""
    server = f"'{sys.executable}' -S -E '{ROOT}/tests/holder.py' '{json.dumps({'bind': [['0.0.0.0', PORT]]})}'"
    words = ["sh", "-c", f"while :; do {server}; done"]
    loop = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    while bound():
        time.sleep(0.02)
    status, said = run()
    return status != 0 and re.search(rf"(?<![\w:.-]){loop.pid}(?![\w:.-])", said.replace(str(PORT), "")) is not None


def another_users() -> bool:
    server = hold(("0.0.0.0", PORT))
    status, said = run("", "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return lives(server) and status != 0 and "root" in said


def an_ancestor() -> bool:
    child = os.fork()
    if child == 0:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("0.0.0.0", PORT))
            listener.listen()
            run()
            os._exit(7)
    return os.waitpid(child, 0)[1] == 7 << 8


def take_over() -> str:
    """The median of ten, in milliseconds."""
    took = []
    for _ in range(10):
        server = hold(("0.0.0.0", PORT))
        begun = time.perf_counter()
        run()
        took.append(time.perf_counter() - begun)
        gone(server)
    return f"{statistics.median(took) * 1e3:.0f}"


CASES: dict[str, Callable[[], object]] = {
    "a client of the port lives": lambda: freed({"bind": (WHERE, 0), "connect": (WHERE, PORT)}),
    "a program whose own end of a connection uses the port lives": an_own_end,
    "a UDP program on the number lives, the TCP server goes": lambda: freed({"bind": ("0.0.0.0", PORT), "udp": True}),
    "a listener on 127.0.0.2 lives beside 127.0.0.1": lambda: freed({"bind": ("127.0.0.2", PORT)}, host=WHERE),
    "a v6-only listener lives beside 0.0.0.0": lambda: freed({"bind": ("::", PORT), "v6only": True}),
    "a master and its four workers go": lambda: freed(server={"children": 4}),
    "a socket that is bound and does not listen is found": lambda: freed(server={"listen": False, "reuse": False}),
    "a server may clean up first (SIGTERM before SIGKILL)": tidying,
    "a server that ignores SIGTERM goes": lambda: freed(server={"ignore_term": True}),
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
    print({True: "✓", False: ""}.get(answer, answer) if isinstance(answer, bool) else answer, flush=True)


def main() -> None:
    if sys.argv[2:3] == ["--inside"]:
        return inside(sys.argv[3])
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return print("not compared: this needs root on Linux")
    present = [tool for tool in TOOLS if shutil.which(TOOLS[tool].split()[0].strip("'"))]
    tools = [tool for tool in present if not set(sys.argv[1:]) & set(TOOLS) or tool in sys.argv[1:]]
    wanted = [word for word in sys.argv[1:] if word not in TOOLS]
    print("| case | " + " | ".join(tools) + " |\n|" + "---|" * (len(tools) + 1))
    for case in CASES:
        if wanted and not any(word in case for word in wanted):
            continue
        cells = []
        for tool in tools:
            box = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
            command = [*box, sys.executable, "-m", "tests.compare", tool, "--inside", case]
            done = subprocess.run(command, cwd=ROOT, stdout=-1, stderr=subprocess.DEVNULL, text=True, check=False)
            cells.append(done.stdout.strip().rpartition("\n")[2] if done.returncode == 0 else "failed")
        print(f"| {case} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
