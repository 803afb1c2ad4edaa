"""Stop it: politely, then firmly, the release verified, and never in steps of sleep."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time

import pytest

import port_manager
from port_manager import PortManager, ensure_port_available

from . import seam
from .conftest import (
    LINUX,
    PATIENCE,
    PORT_MANAGER,
    RUN_BACKEND,
    can_bind,
    command_line,
    eventually,
    shown_until_closed,
)

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")


def timed(call):
    begun = time.monotonic()
    return call(), time.monotonic() - begun


def test_a_polite_request_is_enough(port, start, pinning, said):
    code = (
        "import os, signal, socket, sys; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen();"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'saved\\n'), os._exit(0)));"
        "print('ready', flush=True); signal.pause()"
    )
    holder = start(sys.executable, "-c", code, str(port))
    holder.stdout.readline()
    done, took = timed(lambda: ensure_port_available(port, grace=PATIENCE))
    assert done and took < PATIENCE
    assert holder.stdout.readline() == "saved\n"
    assert "forced" not in said()


def test_one_that_does_not_obey_is_forced_after_the_grace_period(port, hold, pinning, said):
    held = hold(("127.0.0.1", port), ignore_term=True)
    done, took = timed(lambda: ensure_port_available(port, grace=0.5))
    assert done and 0.5 <= took < PATIENCE
    assert held.alive() == []
    assert f"Process {held.pid} did not stop within 0.5 s: forced" in said()


def test_one_that_gives_the_port_up_and_drains_for_ever_is_forced_too(port, hold, said):
    held = hold(("127.0.0.1", port), drain=True)
    done, took = timed(lambda: ensure_port_available(port, grace=0.5))
    assert done and 0.5 <= took < PATIENCE
    assert held.alive() == []


def test_a_server_stopped_by_ctrl_z_obeys(port, hold, said):
    held = hold(("127.0.0.1", port))
    os.kill(held.pid, signal.SIGSTOP)
    done, took = timed(lambda: ensure_port_available(port, grace=PATIENCE))
    assert done and took < PATIENCE
    assert "forced" not in said()


def test_a_zombie_is_not_taken_for_alive(port, start, pinning):
    """Its parent does not wait for it: kill(pid, 0) would succeed for ever."""
    code = (
        "import os, socket, sys, time\n"
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); os.write(w, b'x'); time.sleep(60)\n"
        "os.read(r, 1); print('ready', flush=True); time.sleep(60)"
    )
    assert start(sys.executable, "-c", code, str(port)).stdout.readline() == "ready\n"
    (holder,) = port_manager.find_listeners(port)
    done, took = timed(lambda: PortManager(port, grace=PATIENCE).kill_process(holder.pid))
    assert done and took < PATIENCE
    os.kill(holder.pid, 0)  # it is there still, as a zombie
    assert can_bind(port)


def test_no_handle_is_left_open(port, hold):
    before = sorted(os.listdir("/proc/self/fd"))
    for spec in ({}, {"children": 3}, {"ignore_term": True}):
        hold(("127.0.0.1", port), **spec).process.stdout.close()
        assert ensure_port_available(port, grace=0.2)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_exit_of_one_who_cannot_be_forced_is_reported(port, hold, monkeypatch, said):
    held = hold(("127.0.0.1", port), ignore_term=True)
    seam.limits(monkeypatch, forced_wait=0.1)
    seam.on_signal(monkeypatch, lambda pid, firmly, send: firmly or send())
    assert ensure_port_available(port, grace=0.1) is False
    assert f"❌ Process {held.pid} does not end even when forced" in said()


@pytest.mark.parametrize("when", ["at once", "when forced"])
def test_a_signal_that_is_not_permitted_is_reported(port, hold, monkeypatch, said, when):
    """Whoever was asked before is named."""

    def refused(pid, firmly, send):
        if firmly or when == "at once":
            raise PermissionError(1, "Operation not permitted")

    held = hold(("127.0.0.1", port))
    seam.on_signal(monkeypatch, refused)
    assert ensure_port_available(port, grace=0.1) is False
    assert PortManager(port, grace=0.1).kill_process(held.pid) is False
    asked = "nobody" if when == "at once" else held.pid
    sentence = f"Process {held.pid} may not be stopped: Operation not permitted; asked to stop before that: {asked}"
    assert said().count(f"❌ {sentence}\n") + said().endswith(sentence) == 2
    assert held.alive() == [held.pid]


def test_one_that_exits_just_before_the_signal(port, hold, monkeypatch, pinning):
    held = hold(("127.0.0.1", port))
    seam.at_the_last_check(monkeypatch, after=lambda: (held.process.kill(), held.process.wait()))
    assert ensure_port_available(port) is True


def test_one_that_obeys_at_once_counts_as_stopped(port, hold, monkeypatch, said):
    """Its parent has reaped it before the call that signals returns."""
    held, kill = hold(("127.0.0.1", port)), os.kill
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.setattr(os, "kill", lambda pid, number: kill(pid, number) or number == 15 and held.process.wait())
    assert ensure_port_available(port) is True
    assert f"Successfully killed process {held.pid}" in said()


def test_one_that_let_go_of_the_port_in_time_lives(port, hold, monkeypatch):
    """It closed the listener between the look and the signal: it is a bystander now."""
    held = hold(("127.0.0.1", port), drain=True)

    def let_go():
        os.kill(held.pid, signal.SIGTERM)
        assert eventually(lambda: can_bind(port))

    seam.at_the_last_check(monkeypatch, before=let_go)
    assert ensure_port_available(port) is True
    assert held.alive() == [held.pid]


def test_kill_process(port, hold, said):
    held = hold(("127.0.0.1", port), children=1)
    manager = PortManager(port, grace=0.3)
    assert manager.kill_process(held.children[0]) is True
    assert manager.kill_process(held.children[0]) is True  # gone already
    assert manager.kill_process(2**22 + 1) is True  # no such process
    assert held.alive() == [held.pid]
    assert manager.kill_process(os.getpid()) is False
    assert manager.kill_process(os.getppid()) is False
    assert "it is this very process" in said()
    assert "it is an ancestor of this process" in said() or os.getppid() == 1
    for wrong in ("1234", None, 12.5, True):
        with pytest.raises(TypeError, match="a PID is an integer"):
            manager.kill_process(wrong)


@pytest.mark.parametrize("policy", ["refuse", "ask", "own"])
def test_kill_process_minds_the_policy(port, hold, policy, tmp_path):
    held = hold(("127.0.0.1", port), cwd=str(tmp_path))
    assert PortManager(port, policy=policy).kill_process(held.pid) is False
    assert held.alive() == [held.pid]


@pytest.mark.parametrize("how", ["free", "run_backend"])
def test_ctrl_c_while_waiting(port, hold, start, how):
    held = hold(("127.0.0.1", port), drain=True)
    free, run = [PORT_MANAGER, "free", str(port), "--grace", "30"], [RUN_BACKEND, "--port", str(port), "--", "true"]
    caller = start(sys.executable, *(free if how == "free" else run))
    lines = []
    for line in caller.stdout:
        lines.append(line)
        if line.startswith("Process using port"):
            break
    assert eventually(lambda: can_bind(port))  # it has been asked
    os.kill(caller.pid, signal.SIGINT)
    rest, _ = caller.communicate(timeout=PATIENCE)
    assert caller.returncode == 130
    assert rest.strip() == f"Interrupted; asked to stop, and maybe still stopping: {held.pid}"
    assert held.alive() == [held.pid]


def test_ctrl_c_while_they_are_asked(port, hold, monkeypatch):
    """Whoever may have been signalled is named, the one at whom it happened included; the others are not."""
    held = hold(("127.0.0.1", port), children=2)
    asked = []

    def interrupted(pid, firmly, send):
        asked.append(pid)
        if len(asked) == 2:
            raise KeyboardInterrupt

    seam.on_signal(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        ensure_port_available(port)
    assert str(caught.value) == f"Interrupted; asked to stop, and maybe still stopping: {held.pid}, {asked[1]}"
    assert len(asked) == 2


def test_an_endless_round_is_given_up(port, hold, monkeypatch, said):
    """Every round finds the same holder, who never goes: the number of rounds has an end."""
    hold(("127.0.0.1", port))
    seam.stand_in(monkeypatch, "stop", lambda *_: ({}, None))
    assert ensure_port_available(port) is False
    assert f"port {port} is still held after {seam.ROUNDS} attempts" in said().lower()


def test_a_line_on_a_terminal_shows_the_wait_and_goes(port, hold):
    pty = pytest.importorskip("pty")
    held = hold(("127.0.0.1", port), ignore_term=True)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, PORT_MANAGER, "free", str(port), "--grace", "2"])
    text = shown_until_closed(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    line = f"Waiting for process {held.pid} to stop, 2 s at most: 1 s"
    assert line in text
    after = text[text.rindex(line) :]
    assert re.search(r"\r {20,}\r", after)  # wiped before the next line
    assert f"Port {port} is now available" in after


def test_no_such_line_in_a_pipe(port, hold):
    hold(("127.0.0.1", port), ignore_term=True)
    done = command_line("free", str(port), "--grace", "0.7")
    assert done.returncode == 0 and "Waiting" not in done.stderr and "\r" not in done.stderr


def test_a_thread_is_not_a_process_of_its_own(said):
    """A signal to a thread's number ends its whole process: this one, or an ancestor."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert PortManager().kill_process(thread.native_id) is False
        assert "it is a thread of another process, or may not be seen" in said()
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("pid", [2**22 + 5, 10**12])
def test_a_pid_that_nobody_has(pid):
    assert PortManager().kill_process(pid) is True


def test_one_that_lets_go_and_lives_is_told(port, hold, monkeypatch, said):
    """The port is free, and the process that cannot be ended is not kept quiet about."""
    held = hold(("127.0.0.1", port), drain=True)
    seam.limits(monkeypatch, forced_wait=0.0)
    seam.on_signal(monkeypatch, lambda pid, firmly, send: firmly or send())
    assert ensure_port_available(port, grace=0.3) is True
    assert f"⚠️  Process {held.pid} does not end even when forced" in said()


def test_nobody_was_killed_who_ended_by_himself(port, hold, monkeypatch, said):
    held = hold(("127.0.0.1", port), exit_after=0.3)
    seam.at_the_last_check(monkeypatch, after=lambda: eventually(lambda: not held.alive()))
    assert ensure_port_available(port) is True
    assert "killed" not in said() and f"Port {port} is now available" in said()


@pytest.mark.parametrize("environment", ["", "staging"])
def test_what_free_cannot_do_is_told_as_what_it_is(port, hold, environment):
    held = hold(("127.0.0.1", port))
    done = command_line("free", str(port), "--policy", "refuse", ENVIRONMENT=environment)
    assert done.returncode == 1 and held.alive() == [held.pid]
    assert "annot start" not in done.stderr and "PRODUCTION" not in done.stderr
    assert "🚨 Port conflict: ENVIRONMENT is 'staging'" in done.stderr or not environment


def test_nobody_is_asked_about_a_child_that_has_just_exited(port, hold, monkeypatch):
    """Its folder is out of reach since it has gone, and not since it is another project's."""
    held = hold(("127.0.0.1", port), children=1)
    (child,) = held.children

    def end():
        os.kill(child, signal.SIGKILL)
        assert eventually(lambda: child not in held.alive())

    seam.on_the_way_to_its_folder(monkeypatch, child, end)
    seam.stand_in(monkeypatch, "terminal", lambda: True)
    seam.stand_in(monkeypatch, "question", lambda question: pytest.fail(question))
    assert ensure_port_available(port) is True and held.alive() == []
