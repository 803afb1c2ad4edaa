"""Bystanders survive, always: each public incident with real processes, in which a naive tool kills."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

import port_manager
from port_manager import PortManager, ensure_port_available

from . import seam
from .conftest import LINUX, PATIENCE, as_nobody, can_bind, command_line, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")


def test_clients_of_the_port_live(port, hold):
    """lsof -ti :PORT lists them too: browsers, editors and curls were killed with the server."""
    held = hold(("127.0.0.1", port))
    client = hold(("127.0.0.1", 0), connect=("127.0.0.1", port))
    with socket.create_connection(("127.0.0.1", port)):
        assert ensure_port_available(port)
    assert held.alive() == [] and client.alive() == [client.pid]


def test_a_client_whose_own_end_is_our_port_is_named_and_lives(ports, hold, said):
    port, server_port = ports(), ports()
    hold(("127.0.0.1", server_port))
    client = hold(("127.0.0.1", port), connect=("127.0.0.1", server_port), reuse=False)
    assert ensure_port_available(port) is False
    assert f"port {port} is the local end of a connection from process {client.pid} (" in said().lower()
    assert f"to 127.0.0.1:{server_port}; a client is never stopped" in said()
    assert client.alive() == [client.pid]


def test_the_last_client_lives_when_the_listener_goes_first(ports, hold, said):
    """Both at once: the server is stopped, and then the client alone still blocks the bind."""
    port, other = ports(), ports()
    hold(("127.0.0.1", other))
    server = hold(("127.0.0.1", port), reuse=False)
    client = hold(("127.0.0.9", port), connect=("127.0.0.1", other), reuse=False)
    assert ensure_port_available(port) is False
    assert server.alive() == [] and client.alive() == [client.pid]
    assert "a client is never stopped" in said() and f"Successfully killed process {server.pid}" in said()


def test_udp_on_the_same_number_lives(port, hold):
    udp, tcp = hold(("127.0.0.1", port), udp=True), hold(("127.0.0.1", port))
    assert ensure_port_available(port)
    assert (udp.alive(), tcp.alive()) == ([udp.pid], [])


@pytest.mark.parametrize(
    ("asked", "dies", "lives"),
    [
        ("127.0.0.1", ("127.0.0.1", None), ("127.0.0.2", None)),
        ("127.0.0.1", ("127.0.0.1", None), ("::1", None)),
        ("::1", ("::1", None), ("127.0.0.1", None)),
        ("0.0.0.0", ("127.0.0.1", None), ("::", True)),
        ("0.0.0.0", ("0.0.0.0", None), ("::1", None)),
        ("127.0.0.1", ("0.0.0.0", None), ("::", True)),
        ("127.0.0.1", ("::", False), None),
        ("0.0.0.0", ("::", False), None),
        ("0.0.0.0", ("127.0.0.2", None), None),
        ("localhost", ("::1", None), ("127.0.0.2", None)),
        ("::", ("::1", None), None),
        ("::ffff:127.0.0.1", ("127.0.0.1", None), ("127.0.0.2", None)),
        ("127.0.0.1", ("::ffff:127.0.0.1", False), ("::1", None)),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
@pytest.mark.parametrize("way", ["sock_diag", "proc_net"])
def test_only_what_conflicts_goes(port, hold, asked, dies, lives, way, monkeypatch, said):
    """The bind address was ignored: a listener on another interface was taken for ours and killed."""
    if way == "proc_net":
        seam.only(monkeypatch, "proc_net")
    bystander = hold((lives[0], port), v6only=lives[1]) if lives else None
    holder = hold((dies[0], port), v6only=dies[1])
    if way == "proc_net" and dies == ("::", False):  # which does not tell that it takes IPv4, too
        assert ensure_port_available(port, asked) is False
        assert f"port_manager.py free {port} --host ::" in said() and holder.alive() == [holder.pid]
        asked = "::"
    assert ensure_port_available(port, asked) is True
    assert holder.alive() == []
    assert bystander is None or bystander.alive() == [bystander.pid]
    assert can_bind(port, asked)


def test_nothing_is_stopped_for_a_host_that_is_free(port, hold):
    held = hold(("127.0.0.2", port))
    assert ensure_port_available(port, "127.0.0.1") is True
    assert held.alive() == [held.pid]


def test_we_and_our_ancestors_live(port, said):
    """This process holds the port itself; then a child of it asks."""
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", port))
        mine.listen()
        assert ensure_port_available(port) is False
        assert f"Process {os.getpid()} (" in said() and "left alone: it is this very process" in said()
        done = command_line("free", str(port))
    assert done.returncode == 1
    assert "is left alone: it is an ancestor of this process" in done.stderr
    assert "stop it from another terminal" in done.stderr


def test_a_supervisor_that_started_us_lives(port, start):
    """The holder starts a shell that starts the tool: an ancestor two steps up."""
    program = (
        "import socket, subprocess, sys; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen();"
        "print(subprocess.run(['sh', '-c', f'{sys.executable} {sys.argv[2]} free {sys.argv[1]}; echo status $?'],"
        " capture_output=True, text=True)); print('alive')"
    )
    done = start(sys.executable, "-c", program, str(port), port_manager.__file__)
    said, _ = done.communicate(timeout=PATIENCE)
    assert "ancestor of this process" in said and "status 1" in said and said.endswith("alive\n")


@pytest.mark.parametrize("pid", [1, 0, -1, -os.getpid()])
def test_no_signal_for_pid_1_and_below(pid, monkeypatch, said):
    """PID 0 reached kill(), which signals the caller's whole process group."""
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    assert PortManager().kill_process(pid) is False
    assert f"❌ Process {pid} is left alone: PID {pid} stands for the system or for whole groups" in said()
    with pytest.raises(ValueError, match="never signalled"):
        seam.send(pid, signal.SIGTERM)


def test_the_file_signals_in_one_place():
    """A PID is checked before it gets there, and no other place calls what signals."""
    with open(port_manager.__file__, encoding="utf-8") as file:
        source = file.read()
    calls = ("os.kill(", "pidfd_send_signal(", "killpg")
    assert [source.count(call) for call in calls] == [1, 1, 0]


def test_kernel_threads_live(said, monkeypatch):
    seam.on_signal(monkeypatch, lambda *_: pytest.fail("a signal was sent"))
    kthreadd = seam.read(2)
    if not kthreadd or not kthreadd.kernel:
        pytest.skip("no thread of the kernel is to be seen here")
    assert PortManager().kill_process(2) is False
    assert "it is a thread of the kernel" in said()


def test_the_pid_was_reused_between_look_and_signal(ports, hold, monkeypatch):
    """The process that was looked at ends, and its PID now is a bystander's."""
    port = ports()
    holder, bystander = hold(("127.0.0.1", port), exit_after=0.3), hold(("127.0.0.1", ports()))

    def reused(rows):
        return [row._replace(pid=bystander.pid) if row.pid == holder.pid else row for row in rows]

    seam.owners_answer(monkeypatch, reused)
    seam.on_signal(monkeypatch, lambda *_: pytest.fail("a signal was sent"))
    ensure_port_available(port)
    assert bystander.alive() == [bystander.pid]


def test_the_pid_is_reused_where_there_is_no_pidfd(hold, port, monkeypatch):
    """Without a handle, the start times are compared just before the signal."""
    bystander = hold(("127.0.0.1", port))
    seam.send(bystander.pid, signal.SIGKILL, start=12345)
    assert not eventually(lambda: bystander.alive() == [], 0.1)
    seam.send(bystander.pid, signal.SIGKILL)
    assert eventually(lambda: bystander.alive() == [])


def test_production_touches_nobody(port, hold, monkeypatch, said, tmp_path):
    monkeypatch.setenv("ENVIRONMENT", "production")
    held = hold(("127.0.0.1", port), cwd=str(tmp_path))
    assert ensure_port_available(port) is False
    assert held.alive() == [held.pid]
    lines = said().splitlines()
    assert lines[:2] == [f"⚠️  Port {port} is already in use", "🚨 Port conflict in PRODUCTION environment!"]
    assert lines[2].startswith(f"Process using port: {held.pid} ({sys.executable} ")
    assert lines[2].endswith(f" s ago, in {tmp_path})") and ", user " in lines[2] and ", started " in lines[2]
    assert lines[3:] == ["❌ Cannot start: port is not available"]
    manager = PortManager(port)
    assert manager.check_and_clean_port() is False and manager.kill_process(held.pid) is False
    assert held.alive() == [held.pid]


@pytest.mark.parametrize("value", ["prod", "PRODUCTION", "staging", "developement", "0", "false", " ", "dev;", "none"])
def test_every_other_environment_refuses_too(port, hold, monkeypatch, value, said):
    monkeypatch.setenv("ENVIRONMENT", value)
    held = hold(("127.0.0.1", port))
    assert PortManager.IS_DEVELOPMENT is False and PortManager().IS_DEVELOPMENT is False
    assert ensure_port_available(port) is False
    assert held.alive() == [held.pid]
    assert ("the names of development are" in said()) == (value.lower() not in ("prod", "production"))


@pytest.mark.parametrize("value", [None, "", "dev", "Development", "LOCAL", "test", "testing", "debug", " dev "])
def test_the_names_of_development(port, hold, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("ENVIRONMENT", value)
    held = hold(("127.0.0.1", port))
    assert PortManager.IS_DEVELOPMENT is True and PortManager().IS_DEVELOPMENT is True
    assert ensure_port_available(port) is True
    assert held.alive() == []


def test_the_environment_is_asked_each_time(monkeypatch):
    manager = PortManager()
    answers = []
    for value in ("production", "dev", "production"):
        monkeypatch.setenv("ENVIRONMENT", value)
        answers.append((manager.IS_DEVELOPMENT, PortManager.IS_DEVELOPMENT))
    assert answers == [(False, False), (True, True), (False, False)]


def test_one_who_must_stay_saves_the_others(port, hold, monkeypatch, said):
    """Nobody is half-stopped: when one holder is refused, the port stays held, and so all of them stay."""
    held = hold(("127.0.0.1", port), children=2)
    last = held.children[-1]
    seam.precious(monkeypatch, last)
    assert ensure_port_available(port) is False
    assert held.alive() == [held.pid, *held.children]
    assert f"❌ Process {last} (" in said() and "is left alone: it is precious" in said()


def test_control_characters_never_reach_the_terminal(port, start):
    evil = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202e"
    code = f"import socket,time;s=socket.socket();s.bind(('127.0.0.1',{port}));s.listen();print(1,flush=True);time.sleep(60)"
    holder = start(sys.executable, "-c", code, evil)
    holder.stdout.readline()
    for words in (("check", str(port)), ("list",), ("check", str(port), "--json"), ("free", str(port))):
        done = command_line(*words, text=False, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        shown = (done.stdout + done.stderr).decode()
        assert all(c.isprintable() or c == "\n" for c in shown), words


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_normal_user_stops_nobody_elses(port, hold):
    held = hold(("127.0.0.1", port))
    assert as_nobody(lambda: ensure_port_available(port)) is False
    assert as_nobody(lambda: PortManager().kill_process(held.pid)) is False
    assert held.alive() == [held.pid]


def test_root_leaves_other_users_alone(port, hold, monkeypatch, said):
    """Seen from another account, our own holder is somebody else's."""
    held = hold(("127.0.0.1", port))
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert ensure_port_available(port) is False
    assert PortManager().kill_process(held.pid) is False
    assert held.alive() == [held.pid]
    assert "it belongs to user" in said() and "and you are 54321" in said()


def test_the_folk_remedy_would_have_killed(port, hold):
    """What these tests guard against does happen: lsof without a filter names the client as well."""
    lsof = subprocess.run(["sh", "-c", f"command -v lsof && lsof -ti :{port}"], capture_output=True, check=False)
    if not lsof.stdout:
        pytest.skip("there is no lsof here")
    held = hold(("127.0.0.1", port))
    client = hold(("127.0.0.1", 0), connect=("127.0.0.1", port))
    listed = subprocess.run(["lsof", "-ti", f":{port}"], capture_output=True, text=True, check=False).stdout.split()
    assert {str(held.pid), str(client.pid)} <= set(listed)
