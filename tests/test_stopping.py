"""Stop it: the whole family, politely, then firmly, the release verified; and whoever starts it anew is named."""

import json  # noqa: I001
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import pytest

from port_manager import FORCED_WAIT, PortManager, ensure_port_available, find_listeners, main

from . import seam
from .conftest import LINUX, PATIENCE, PORT_MANAGER, ROOT, RUN_BACKEND, bound_is_told, can_bind
from .conftest import command_line, eventually, holding, on_a_terminal, python

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")


def timed(call):
    begun = time.monotonic()
    return call(), time.monotonic() - begun


@pytest.mark.parametrize(("kind", "spec", "more"), [  # what is said beside its PID where it is told in one line
    ("prefork", {"children": 8}, " and its 8 children"),
    ("orphans", {"children": 4, "orphans": True}, None),
    ("strangers", {"children": 3, "double_fork": True}, None),
    ("reuseport", {"children": 3, "own_sockets": True, "reuseport": True}, None),
    ("silent parent", {"children": 2, "silent_parent": True}, None),  # its zombies count as ended
    ("stubborn", {"children": 2, "ignore_term": True}, " and its 2 children"),
    ("respawning", {"children": 9, "respawns": True}, " and its 9 children"),
    ("heir", {"starts": ["sleep", "60"], "leaks": True, "orphans": True}, " ("),
    pytest.param("bound", {"listen": False, "reuse": False}, " (", marks=bound_is_told),
])  # fmt: skip
def test_all_holders_go(port, hold, kind, spec, more, pinning, said, monkeypatch):
    seam.limits(monkeypatch, restart_watch=0.2)  # some leave a living parent
    held = hold(port, **spec)
    assert not spec.get("orphans") or eventually(lambda: held.pid not in held.alive())
    assert ensure_port_available(port, grace=0.3) is True
    assert held.alive() in ([], [held.pid] if kind in ("reuseport", "silent parent") else [])
    assert can_bind(port) and can_bind(port, "0.0.0.0")
    assert said().endswith(f"✅ Port {port} is now available") and "even when forced" not in said()
    if more is not None:
        root = held.children[0] if kind == "heir" else held.pid
        assert said().count("Process using port:") == said().count("Successfully killed") == 1
        assert f"✅ Successfully killed process {root}{more}" in said()
        (listed,) = [line for line in said().splitlines() if "Successfully killed" in line]
        named = [pid for pid in held.children if re.search(rf"\b{pid}\b", listed)]
        assert len(named) == min(len(held.children), 8) and ("…" in listed) is (len(held.children) > 8)


def test_the_words_of_a_take_over(port, hold, said):
    held = hold(port)
    assert ensure_port_available(port)
    *lines, available = said().splitlines()
    assert lines[0] == f"⚠️  Port {port} is already in use" and available == f"✅ Port {port} is now available"
    assert lines[1:3] == ["💡 Development environment detected", "Attempting to free up port..."]
    assert lines[3].startswith(f"Process using port: {held.pid} ({os.path.basename(sys.executable)} -S -E holder.py ")
    assert lines[3].endswith(f", in {seam.short_folder(os.getcwd())})")
    assert re.fullmatch(rf"✅ Successfully killed process {held.pid} \(\d+\.\d s\)", "\n".join(lines[4:]))


def test_a_server_that_its_grandparent_runs_on_a_terminal_goes_with_it(port, hold):
    """No terminal would end as well: it belongs to one of those who are stopped. Nor is its worker one."""
    inner = holding(("127.0.0.2", port), children=1)
    runner = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", *inner]
    held = hold(port, starts=runner)
    assert eventually(lambda: not can_bind(port, "127.0.0.2"))
    assert ensure_port_available(port) is True and eventually(lambda: held.alive() == [])


# Politely, then firmly


def test_a_polite_request_is_enough(port, hold, pinning, said):
    held = hold(port, says="saved\n")
    os.kill(held.pid, signal.SIGSTOP)  # as by Ctrl+Z
    done, took = timed(lambda: ensure_port_available(port, grace=PATIENCE))
    assert done and took < PATIENCE
    assert held.process.stdout.readline() == "saved\n" and "forced" not in said()


@pytest.mark.parametrize("kind", ["ignore_term", "drain"])
def test_one_that_does_not_obey_is_forced_after_the_grace_period(port, hold, pinning, said, monkeypatch, kind):
    """The one that gives the port up and drains for ever, too. Meanwhile we sleep, and look now and then."""
    held, asked, clock = hold(port, **{kind: True}), [], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: asked.append(kind) or clock())
    done, took = timed(lambda: ensure_port_available(port, grace=0.3))
    assert done and 0.3 <= took < PATIENCE and held.alive() == [] and len(asked) < 200
    assert f"Process {held.pid} did not stop within 0.3 s: forced" in said()


@pytest.mark.parametrize("poll", [True, False])
def test_who_has_no_handle_is_looked_at_again_soon(monkeypatch, poll):
    """Only a handle wakes us up when its process exits: here a socket, of which nothing comes."""
    if not poll:
        monkeypatch.delattr(select, "poll")  # as eventlet.monkey_patch() does
    with socket.create_server(("127.0.0.1", 0)) as quiet:
        for handles, soon in (([None], True), ([quiet.fileno(), None], True), ([quiet.fileno()], False)):
            assert (timed(lambda: seam.sleep("linux", handles, 1))[1] < 0.9) is soon  # noqa: B023


@pytest.mark.parametrize(("kind", "ends"), [("ignore_term", False), ("drain", False), ("ignore_term", True)])
def test_one_that_does_not_end_in_time_when_forced_is_told(port, hold, monkeypatch, said, kind, ends):
    """It may wait for a disk, or have much to give back: it has two seconds. It is told where the port is free, too."""
    held, drains = hold(port, **{kind: True}), kind == "drain"
    seam.limits(monkeypatch, forced_wait=FORCED_WAIT if ends else 0.1)
    seam.one_look(monkeypatch)

    def signalled(pid, firmly, send):
        if firmly and ends:
            threading.Timer(1, send).start()
        elif not firmly:
            send()
            assert not drains or eventually(lambda: can_bind(port))

    seam.on_signal(monkeypatch, signalled)
    assert ensure_port_available(port, grace=0.1) is (drains or ends)
    assert ends is (held.alive() == []) is ("even when forced" not in said()) is ("Successfully killed" in said())
    assert ends or f"{'⚠️ ' if drains else '❌'} Process {held.pid} does not end even when forced" in said()


@pytest.mark.parametrize("when", ["before", "after"])
def test_nobody_was_killed_who_ended_by_himself(port, hold, monkeypatch, pinning, said, when):
    held = hold(port)
    seam.at_the_last_check(monkeypatch, **{when: lambda: (held.process.kill(), held.process.wait())})
    assert ensure_port_available(port) is True and held.alive() == []
    assert "killed" not in said() and f"Port {port} is now available" in said()


def test_nobody_is_asked_about_a_child_that_has_just_exited(port, hold, monkeypatch):
    """Its folder is out of reach since it has gone, and not since it is another project's."""
    held = hold(("127.0.0.1", port), children=1)
    (child,) = held.children

    def end():
        os.kill(child, signal.SIGKILL)
        assert eventually(lambda: child not in held.alive())

    seam.stand_in(monkeypatch, "folder", lambda _, pid, cwd: end() if pid == child else os.getcwd())
    seam.stand_in(monkeypatch, "terminal", lambda: True)
    seam.stand_in(monkeypatch, "question", lambda question: pytest.fail(question))
    assert ensure_port_available(port) is True and held.alive() == []


def test_kill_process(port, ports, hold):
    """Whatever other port it has: who names a process means that, too."""
    assert PortManager(port).kill_process(hold(ports(), cwd="/").pid) is True
    held = hold(port, children=1)
    manager = PortManager(port, grace=0.3)
    for pid in [*held.children * 2, 2**22 + 1, 2**22 + 5, 10**12]:  # it lives; has gone already; there is none
        assert manager.kill_process(pid) is True and held.alive() == [held.pid]
    for wrong in ("1234", None, 12.5, True):
        with pytest.raises(TypeError, match="a PID is an integer"):
            manager.kill_process(wrong)


@pytest.mark.parametrize("listed", [True, False])
def test_a_pid_that_ps_does_not_list_has_gone_where_it_lists_any(monkeypatch, listed):
    rows, started = {pid: seam.process(pid, 1) for pid in (1, os.getpid())} if listed else {}, []
    seam.on_system(monkeypatch, "darwin", "alice")
    seam.readings(monkeypatch, "macos", lambda pid: started.append(pid) or rows)
    assert PortManager().kill_process(2**22 + 1) is listed
    assert len(started) == (3 if listed else 6)


@pytest.mark.parametrize("words", [
    [PORT_MANAGER, "free", "{}", "--grace", "30"],
    [RUN_BACKEND, "--port", "{}", "--", "true"],
    ["app.py", "--port", "{}"],
])  # fmt: skip
def test_ctrl_c_while_waiting(port, hold, start, words, tmp_path):
    held = hold(port, drain=True, cwd=tmp_path)
    (tmp_path / "app.py").write_text("import port_manager; port_manager.guard()")
    words, environ = [word.replace("{}", str(port)) for word in words], {**os.environ, "PYTHONPATH": str(ROOT)}
    caller = start(sys.executable, *words, cwd=tmp_path, env=environ)
    assert any(line.startswith("Process using port") for line in iter(caller.stdout.readline, ""))
    assert eventually(lambda: can_bind(port))  # it has been asked
    os.kill(caller.pid, signal.SIGINT)
    rest, _ = caller.communicate(timeout=PATIENCE)
    assert rest.strip() == f"Interrupted; asked to stop, and maybe still stopping: {held.pid}"
    assert caller.returncode == 130 and held.alive() == [held.pid]


@pytest.mark.parametrize("refused", [False, True])
def test_ctrl_c_while_they_are_asked(port, hold, monkeypatch, refused):
    """Whoever may have been signalled is named, the one at whom it happened included; the others are not."""
    held, asked, interrupt = hold(port, children=2), [], Mock(side_effect=KeyboardInterrupt)

    def interrupted(pid, firmly, send):
        asked.append(pid)
        if refused:
            patch.setattr(time, "monotonic", interrupt)
            raise PermissionError
        if len(asked) == 2:
            interrupt()

    seam.on_signal(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt) as caught, monkeypatch.context() as patch:
        ensure_port_available(port)
    names = "nobody" if refused else f"{held.pid}, {asked[-1]}"
    assert str(caught.value) == f"Interrupted; asked to stop, and maybe still stopping: {names}"


@pytest.mark.parametrize(("generations", "freed"), [(8, True), (9, False)])
def test_one_that_leaves_its_socket_to_another_is_followed_for_eight_rounds(port, hold, said, generations, freed):
    held = hold(port, generations=generations)
    assert ensure_port_available(port) is freed is can_bind(port)
    assert (f"Port {port} is still held after 8 attempts" in said()) is not freed
    if not freed:
        os.killpg(held.pid, signal.SIGKILL)


def test_a_line_on_a_terminal_shows_the_wait_and_goes(port, hold):
    held = hold(port, ignore_term=True)
    _, text, status = on_a_terminal(PORT_MANAGER, "free", str(port), "--grace", "1.3")
    line = f"Waiting for process {held.pid} to stop, 1.3 s at most: 1 s"
    assert status == 0 and text.count(line) == 1, "once for each second"
    after = text[text.rindex(line) :]
    assert re.search(r"\r {20,}\r", after)  # wiped before the next line
    assert f"Port {port} is now available" in after


# Who starts it again


@pytest.mark.parametrize("loop", [
    ["bash", "-c", "while true; do {}; sleep 0; done"],
    ["bash", "-c", "while true; do {}; sleep 0.4; done"],
    [  # nodemon starts sh, which starts the server: the shell ends, and nodemon starts another
        # in a process group of its own, as a shell's job is; but it is no shell that starts it
        sys.executable, "-c", "import os, subprocess as s, sys\nwhile 1: s.call(sys.argv[1:], preexec_fn=os.setpgrp)",
        "sh", "-c", "{}; exit 3",
    ],
])  # fmt: skip
def test_a_loop_that_starts_its_server_again_is_named(port, start, loop, said, capsys, monkeypatch):
    """And what it starts is not stopped again. Started by this process, the loop is no ancestor of it."""
    seam.limits(monkeypatch, restart_watch=PATIENCE)
    supervisor = start(*(word.replace("{}", shlex.join(holding(port))) for word in loop))
    first = json.loads(supervisor.stdout.readline())["pid"]
    assert main(["free", str(port), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ports"][0]["stopped"] == [first]
    assert f"port {port} was taken again by process " in said().lower() and supervisor.poll() is None
    assert f"its supervisor {supervisor.pid} ({os.path.basename(loop[0])} " in said()
    assert f"stop process {supervisor.pid} first" in said()
    supervisor.kill()
    for holder in find_listeners(port):
        os.kill(holder.pid, signal.SIGKILL)


@pytest.mark.parametrize(("who", "told", "freed"), [  # who takes the port then; whether sockets are told
    ("new", True, False),
    ("old", True, False),  # it waited for the port
    ("new", False, False),  # by its age
    ("old new", False, False),
    ("old", False, True),
    ("ageless new", False, True),  # its age is not told
    ("clock", False, True),  # nobody, and the clock was put back
    ("brief new", True, True),  # it has ended since
    pytest.param("bound new", True, True, marks=bound_is_told),  # beside a socket that was there
])  # fmt: skip
def test_a_restart_is_told_by_its_socket_or_else_by_its_age(port, hold, monkeypatch, said, who, told, freed):
    held, read = hold(("0.0.0.0", port), reuseport=True), seam.reader("linux")
    takers = [hold(port, stand_by=True)] if "old" in who else []
    if "bound" in who:
        takers = [hold(port, reuse=False, reuseport=True, listen=False)]
    seam.one_look(monkeypatch, lambda: [taker.end() for taker in takers if "brief" in who])
    if not told:  # whoever tells of every socket does not tell which

        def rows(port, every=False):
            return [row._replace(inode=0) if every else row for row in seam.ask("sock_diag", port)]

        seam.stand_in(monkeypatch, "sock_diag", rows)
    if who in ("clock", "ageless new"):
        begun = lambda one: one.started + 3600 if who == "clock" else None
        changed = lambda pid: {pid: one._replace(started=begun(one)) for pid, one in read(pid).items()}
        seam.readings(monkeypatch, "linux", changed)

    def followed(pid, firmly, send):
        send()
        if pid == held.pid:
            held.process.wait()
            assert "old" not in who or eventually(lambda: not can_bind(port))
            if "new" in who:
                time.sleep(0.05)  # start times are told in hundredths of a second
                takers.append(hold(("127.0.0.2", port)))

    seam.on_signal(monkeypatch, followed)
    assert ensure_port_available(port) is freed
    assert [taker.alive() for taker in takers] == [[] if freed else [taker.pid] for taker in takers]
    assert ("was taken again by" in said()) is not freed


@pytest.mark.parametrize(("program", "goes"), [("gunicorn", True), ("pytest", False)])
def test_only_a_server_s_own_command_is_a_master(port, hold, program, goes):
    """A test runner, or a launcher of several servers, forks the next one, too: it is told, and not stopped."""
    master = hold(port, children=1, own_sockets=True, respawns=True, more=["-m", program])
    assert PortManager(port, "127.0.0.1").kill_process(hold(("127.0.0.2", port)).pid)  # by its PID
    assert master.alive() == [master.pid, *master.children]
    foretold = json.loads(command_line("check", str(port), "--json").stdout)["ports"][0]["would_stop"]
    assert (master.pid in foretold) == goes
    done = command_line("free", str(port))
    assert (done.returncode == 0) == goes == (master.alive() == []), done.stderr
    if not goes:
        assert f"stop process {master.pid} first" in done.stderr
        os.killpg(master.pid, signal.SIGKILL)


def test_the_main_server_of_another_port_is_no_master(ports, start):
    port, main = ports(), ports()
    listen = f"import os, socket, time\nmain = socket.create_server(('127.0.0.1', {main}))\n"
    child = f"    main.close()\n    other = socket.create_server(('127.0.0.1', {port}))\n    print(flush=True)\n"
    code = f"{listen}if os.fork() == 0:\n{child}time.sleep(60)"
    server = start(sys.executable, "-c", code, "-m", "gunicorn")
    assert server.stdout.readline() and command_line("free", str(port)).returncode == 0
    assert server.poll() is None and can_bind(port) and not can_bind(main)


@pytest.mark.parametrize(("script", "status", "told", "watched"), [  # its status where it ends with the server
    ("exec {}", -signal.SIGTERM, {}, False),  # an ordinary restart
    ("{}; exit 1", 1, {}, False),  # npm waits for sh, which waits for the server
    ("setsid {} & wait; sleep 90", None, {}, False),  # a shell that gives the job a group of its own
    ("{}; sleep 90", None, {"kernel": True}, False),
    ("{}; sleep 90", None, None, False),  # it may not be seen
    *(("{}; sleep 90", None, {"name": name}, False) for name in ("systemd", "launchd", "init")),
    ("{}; sleep 90", None, {}, True),
])  # fmt: skip
def test_only_a_living_parent_is_watched_for_a_while(port, start, monkeypatch, script, status, told, watched):
    """A shell with job control is none: it gives the job a process group of its own, which a script's loop does not."""
    launcher, read = start("sh", "-c", script.format(shlex.join(holding(port)))), seam.reader("linux")
    launcher.stdout.readline()

    def answer(pid):
        if pid != launcher.pid:
            return read(pid)
        return {} if told is None else {pid: read(pid)[pid]._replace(**told)}

    seam.readings(monkeypatch, "linux", answer)
    if not watched:
        seam.limits(monkeypatch, restart_watch=PATIENCE)
    done, took = timed(lambda: ensure_port_available(port))
    assert done and (took >= 2 if watched else took < PATIENCE)
    assert (launcher.wait(PATIENCE) if status else launcher.poll()) == status


@pytest.mark.parametrize(("who", "accused", "becomes"), [  # who has the port; what becomes of the suspect
    ("nobody", True, bool),
    ("nobody", False, lambda process: (process.kill(), process.wait())),
    ("nobody", False, lambda process: (process.kill(), os.waitid(os.P_PID, process.pid, 0x1000004))),  # a zombie
    ("another", False, bool),
    ("itself", True, bool),
])  # fmt: skip
def test_only_a_living_supervisor_above_the_taker_is_accused(port, hold, start, who, accused, becomes):
    """Where the taker itself has gone meanwhile, whoever lives above the former holder is."""
    taker = f" by process {hold(port).pid} (" if who == "another" else ""
    program = f"exec {shlex.join(holding(port))}" if who == "itself" else "exec -a '' cat"
    suspect = start("bash", "-c", program, stdin=subprocess.PIPE)
    name = os.path.basename(sys.executable) if who == "itself" else "cat"  # which has no command line
    assert eventually(lambda: seam.read(suspect.pid).name == name[:15] and (who != "itself" or not can_bind(port)))
    why = seam.taken_again(port, "127.0.0.1", suspect.pid, lambda: becomes(suspect))
    assert why.startswith(f"port {port} was taken again{taker}")
    assert (f": its supervisor {suspect.pid} ({name}" in why) is accused
    assert why.endswith(f" starts it anew; stop process {suspect.pid} first") is accused
    assert why.endswith(" while it was being freed") is not accused


@pytest.mark.parametrize("size", ["small", pytest.param("medium", marks=pytest.mark.load)])
def test_the_soak_runs(size):
    """What goes wrong once in a hundred times shows in the longer one: python3 -m tests -m load."""
    done = python("-m", "tests.soak", size, cwd=ROOT, timeout=None)
    assert done.returncode == 0 and "no wrong stop, nothing left behind" in done.stdout, done.stdout + done.stderr
