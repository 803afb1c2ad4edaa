"""Take-overs for minutes on end: no wrong stop, nothing left behind, as quick at the end as at the start.

    python3 -m tests.soak     1,000 take-overs in a row, then 20 callers at once for 5 minutes, beside 3,000 processes

With "small" or "medium" behind it, it is shorter. What goes wrong is printed, and makes its status 1.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import port_manager

from .benchmark import CROWD, child, some_port, timed
from .held import ROOT, Held

# Take-overs in a row, minutes, callers at once, processes beside them.
SIZES = {"large": (1000, 5, 20, 3000), "medium": (200, 0.5, 20, 300), "small": (6, 0.01, 10, 5)}

# A client of the port, which connects again to each new server; and a caller, who frees the port each time it is told.
CLIENT = """
import contextlib, os, select, socket, sys
os.write(1, b"ready\\n")
while not select.select([0], [], [], 0.05)[0]:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as server:
        select.select([0, server], [], [])
"""
CALLER = """
import logging, os, sys
sys.path.insert(0, sys.argv[1])
from port_manager import ensure_port_available
logging.getLogger("port_manager").setLevel(50)
os.write(1, b"ready\\n")
while os.read(0, 1):
    os.write(1, b"%d" % ensure_port_available(int(sys.argv[2]), policy="kill"))
"""


def left() -> tuple[list[str], set[str]]:
    """Our descriptors, and our children that live or have not been buried."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return sorted(os.listdir("/proc/self/fd")), {*children}


@contextlib.contextmanager
def server(port: int, children: int) -> Iterator[None]:
    """A server that is ended meanwhile with its children; then the port can be bound."""
    with Held(("0.0.0.0", port), children=children) as held:
        yield
        assert held.process.wait(10) == -signal.SIGTERM and held.alive() == []
        socket.create_server(("0.0.0.0", port)).close()


def at_once(port: int, callers: list[Any], minutes: float) -> None:
    """Rounds in which all callers free the port of one server at once, for so long."""
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        with server(port, random.choice([0, 8])):
            for caller in callers:
                caller.stdin.write(b"x")
            answers.extend(caller.stdout.read(1) == b"1" for caller in callers)


def main() -> int:
    take_overs, minutes, callers_at_once, processes = SIZES[(sys.argv[1:] or ["large"])[0]]
    logging.getLogger("port_manager").setLevel(logging.CRITICAL)
    port, other = some_port(), some_port()
    with contextlib.ExitStack() as stack:
        _, crowd = stack.enter_context(child(CROWD, processes, 0, lines=processes))
        bystander = stack.enter_context(Held(("0.0.0.0", other), exit_after=3600))
        client, _ = stack.enter_context(child(CLIENT, port))
        before, took = left(), []
        for number in range(take_overs):  # of a server alone and of one with children in turns
            with server(port, number % 2 * 8):
                took.append(timed(lambda: answers.append(port_manager.ensure_port_available(port, policy="kill"))))
        tenth = max(1, len(took) // 10)
        first, last = (1e3 * statistics.median(some) for some in (took[:tenth], took[-tenth:]))
        print(f"{len(took)} take-overs: {first:.1f} ms at the start, {last:.1f} ms at the end")
        faults = {"left behind": [left(), before] if left() != before else []}
        callers = [stack.enter_context(child(CALLER, ROOT, port))[0] for _ in range(callers_at_once)]
        at_once(port, callers, minutes)
        files = {len(os.listdir(f"/proc/{caller.pid}/fd")) for caller in callers}
        faults["a caller has more descriptors than another"] = sorted(files)[1:]
        dead = [pid for pid in crowd if not os.path.exists(f"/proc/{pid}")]
        dead += [str(process.pid) for process in (bystander.process, client, *callers) if process.poll() is not None]
        faults["ended, although nobody asked for it"] = dead
    faults["calls that failed"] = [answer for answer in answers if not answer]
    found = "\n".join(f"{what}: {which}" for what, which in faults.items() if which)
    print(found or f"{len(answers)} calls, no wrong stop, nothing left behind")
    return 1 if found else 0


answers: list[bool] = []

if __name__ == "__main__":
    sys.exit(main())
