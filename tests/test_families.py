"""Everything that holds the port goes, as one family; and whoever starts it anew is named."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

import port_manager
from port_manager import ensure_port_available, find_listeners

from . import seam
from .conftest import HOLDER, LINUX, PATIENCE, PORT_MANAGER, TELLS_BOUND, can_bind, command_line, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"children": 1},
        {"children": 8},
        {"children": 4, "orphans": True},
        {"children": 3, "double_fork": True},
        {"children": 3, "own_sockets": True, "reuseport": True},
        {"children": 2, "silent_parent": True},
        {"children": 2, "ignore_term": True},
        {"listen": False, "reuse": False},
    ],
    ids=["single", "reloader", "prefork", "orphans", "strangers", "reuseport", "silent-parent", "stubborn", "bound-only"],
)
def test_all_holders_go(port, hold, spec, pinning, said, monkeypatch):
    seam.limits(monkeypatch, restart_watch=0.2)  # some leave a living parent
    if "listen" in spec and not TELLS_BOUND:
        pytest.skip("before Linux 6.8 nothing tells of such a socket")
    held = hold(("127.0.0.1", port), **spec)
    assert ensure_port_available(port, grace=0.3) is True
    idle = [held.pid] if spec.get("own_sockets") or spec.get("silent_parent") else []
    assert held.alive() in ([], idle)
    assert can_bind(port) and can_bind(port, "0.0.0.0")
    assert said().endswith(f"✅ Port {port} is now available")


def test_the_words_of_a_take_over(port, hold, said):
    held = hold(("127.0.0.1", port))
    assert ensure_port_available(port)
    lines = said().splitlines()
    command = lines.pop(3)
    assert lines == [
        f"⚠️  Port {port} is already in use",
        "💡 Development environment detected",
        "Attempting to free up port...",
        f"✅ Successfully killed process {held.pid}",
        f"✅ Port {port} is now available",
    ]
    assert command.startswith(f"Process using port: {held.pid} ({sys.executable} -S -E ")


def test_a_family_is_told_in_one_line(port, hold, said):
    held = hold(("127.0.0.1", port), children=2)
    first, second = sorted(held.children)
    assert ensure_port_available(port)
    assert said().count("Process using port:") == said().count("Successfully killed") == 1
    assert f"✅ Successfully killed process {held.pid} and its 2 children" in said()
    assert str(first) in said() and str(second) in said()


def test_roots_are_asked_first(port, hold, monkeypatch):
    """A master whose worker dies first would fork another one."""
    held = hold(("127.0.0.1", port), children=4)
    asked = []
    seam.on_signal(monkeypatch, lambda pid, firmly, send: (asked.append(pid), send()))
    assert ensure_port_available(port)
    assert asked[0] == held.pid and set(asked) == {held.pid, *held.children}


def test_a_master_that_respawns_its_workers(port, start):
    """The master waits for its workers and forks a new one for each that ends."""
    master = """
import os, signal, socket, sys
s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen()
def worker():
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pause()
        os._exit(0)
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
for _ in range(3): worker()
print("ready", flush=True)
while not stop:
    try:
        os.wait()
    except InterruptedError:
        pass
    if not stop:
        worker()
"""
    process = start(sys.executable, "-c", master, str(port))
    process.stdout.readline()
    assert ensure_port_available(port) is True
    assert process.wait(5) is not None
    assert port_manager.find_listeners(port) == []


def test_a_helper_that_outlives_its_server(port, start):
    """The server is gone; a program that it started has inherited the listener."""
    server = (
        "import socket, subprocess, sys; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen();"
        "s.set_inheritable(True); h = subprocess.Popen(['sleep', '60'], close_fds=False); print(h.pid, flush=True)"
    )
    process = start(sys.executable, "-c", server, str(port))
    helper = int(process.stdout.readline())
    process.wait()
    (holder,) = port_manager.find_listeners(port)
    assert (holder.pid, holder.name) == (helper, "sleep")
    assert ensure_port_available(port) is True


def test_a_reloader_whose_parent_was_killed_by_hand(port, hold):
    """Only the parent was killed: the orphan kept the port (and the next tool saw no family)."""
    held = hold(("127.0.0.1", port), children=1)
    held.process.kill()
    held.process.wait()
    assert not can_bind(port)
    assert ensure_port_available(port) is True
    assert held.alive() == []


# Supervisors


def loop(tmp_path, port, pause="0"):
    script = tmp_path / "loop.sh"
    spec = f'{{"bind": [["127.0.0.1", {port}]]}}'
    script.write_text(f"while true; do '{sys.executable}' -S -E '{HOLDER}' '{spec}'; sleep {pause}; done\n")
    return str(script)


@pytest.mark.parametrize("pause", ["0", "0.4"])
def test_a_loop_that_starts_its_server_again_is_named(port, start, tmp_path, pause, said, monkeypatch):
    supervisor = start("bash", loop(tmp_path, port, pause))
    seam.limits(monkeypatch, restart_watch=PATIENCE)
    first = supervisor.stdout.readline()
    assert '"pid"' in first
    # Started by this process, the loop is no ancestor of it.
    assert ensure_port_available(port) is False
    assert f"port {port} was taken again by process " in said().lower()
    assert f"its supervisor {supervisor.pid} (bash " in said() and f"stop process {supervisor.pid} first" in said()
    assert supervisor.poll() is None


def test_the_command_line_names_it_too(port, start, tmp_path):
    supervisor = start("bash", loop(tmp_path, port))
    supervisor.stdout.readline()
    done = command_line("free", str(port))
    assert done.returncode == 1 and f"stop process {supervisor.pid} first" in done.stderr


def test_a_supervisor_above_a_shell(port, start, said, monkeypatch):
    """nodemon starts sh, which starts the server: the shell ends, and nodemon starts another."""
    boss = "import subprocess, sys\nwhile True: subprocess.run(['sh', '-c', sys.argv[1] + '; exit 3'])"
    spec = f'{{"bind": [["127.0.0.1", {port}]]}}'
    supervisor = start(sys.executable, "-c", boss, f"'{sys.executable}' -S -E '{HOLDER}' '{spec}'")
    supervisor.stdout.readline()
    seam.limits(monkeypatch, restart_watch=PATIENCE)
    assert ensure_port_available(port) is False
    assert f"its supervisor {supervisor.pid} (" in said()


def test_an_ordinary_restart_does_not_pay_for_the_watch(port, hold, monkeypatch):
    hold(("127.0.0.1", port))
    seam.limits(monkeypatch, restart_watch=PATIENCE)
    begun = time.monotonic()
    assert ensure_port_available(port)
    assert time.monotonic() - begun < PATIENCE


def test_a_launcher_that_ends_with_its_server_costs_no_watch(port, start, monkeypatch):
    """npm run dev: npm waits for sh, which waits for the server; all of them end."""
    spec = f'{{"bind": [["127.0.0.1", {port}]]}}'
    launcher = start("sh", "-c", f"'{sys.executable}' -S -E '{HOLDER}' '{spec}'; exit 1")
    launcher.stdout.readline()
    seam.limits(monkeypatch, restart_watch=PATIENCE)
    begun = time.monotonic()
    assert ensure_port_available(port)
    assert time.monotonic() - begun < PATIENCE
    assert launcher.wait(PATIENCE) == 1


def test_a_living_parent_is_watched_for_a_while(port, start, monkeypatch):
    spec = f'{{"bind": [["127.0.0.1", {port}]]}}'
    parent = start("sh", "-c", f"'{sys.executable}' -S -E '{HOLDER}' '{spec}'; sleep 90")
    parent.stdout.readline()
    seam.limits(monkeypatch, restart_watch=0.5)
    begun = time.monotonic()
    assert ensure_port_available(port)
    assert time.monotonic() - begun >= 0.5


def test_an_interactive_shell_is_no_supervisor(port, monkeypatch):
    """Job control gives the job a process group of its own; a script's loop does not do so."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
    spec = f'{{"bind": [["127.0.0.1", {port}]]}}'
    os.write(terminal, f"'{sys.executable}' -S -E '{HOLDER}' '{spec}' &\n".encode())
    try:
        assert eventually(lambda: not can_bind(port))
        seam.limits(monkeypatch, restart_watch=PATIENCE)
        begun = time.monotonic()
        assert ensure_port_available(port)
        assert time.monotonic() - begun < PATIENCE
    finally:
        os.kill(pid, 9)
        os.close(terminal)
        os.waitpid(pid, 0)


# Together


def test_ten_callers_at_once_all_end_well(port, hold):
    held = hold(("127.0.0.1", port), children=3)
    callers = [
        subprocess.Popen(
            [sys.executable, PORT_MANAGER, "free", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(10)
    ]
    ends = [(caller.communicate(timeout=60)[1], caller.returncode) for caller in callers]
    assert [status for _, status in ends] == [0] * 10, ends
    assert held.alive() == []


def test_several_ports_go_on_after_one_fails(ports, hold, start):
    first, second, third = sorted(ports() for _ in range(3))
    holders = [hold(("127.0.0.1", first)), hold(("127.0.0.1", third))]
    other = ports()
    hold(("127.0.0.1", other))
    client = hold(("127.0.0.1", second), connect=("127.0.0.1", other), reuse=False)
    done = command_line("free", str(first), str(second), str(third))
    assert done.returncode == 1
    assert [held.alive() for held in holders] == [[], []] and client.alive() == [client.pid]
    assert f"Port {first} is now available" in done.stderr and f"Port {third} is now available" in done.stderr


def test_orphans_far_from_each_other_all_go(port, hold, monkeypatch):
    """The usual walk ends before it comes to the next of them; the look after the first has gone leaves nobody out."""
    held = hold(("127.0.0.1", port), children=10, strangers=8, orphans=True)
    assert eventually(lambda: held.alive() == held.children)
    assert len(find_listeners(port)) < 10 == len(find_listeners(port, thorough=True))
    assert ensure_port_available(port) and held.alive() == []
    assert len(held.living()) == 80


def test_a_holder_that_exits_by_itself_counts_as_success(port, hold, monkeypatch):
    held = hold(("127.0.0.1", port), exit_after=0.4)
    seam.at_the_last_check(monkeypatch, before=lambda: eventually(lambda: not held.alive()))
    assert ensure_port_available(port) is True
    assert held.alive() == []
