"""Bystanders survive, always: each public incident with real processes, in which a naive tool kills."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

import port_manager
from port_manager import PortManager, ensure_port_available, find_listeners

from . import seam
from .conftest import (
    LINUX,
    LISTENING,
    PATIENCE,
    as_nobody,
    birth,
    boxes,
    can_bind,
    command_line,
    eventually,
    in_a_box,
)

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
    assert f"❌ PID {pid} stands for the system or for whole groups of processes: it is left alone" in said()
    for firmly in (False, True):
        with pytest.raises(OSError, match="never signalled"):
            seam.send(pid, firmly)


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
    with pytest.raises(ProcessLookupError):
        seam.send(bystander.pid, True, start=12345)
    assert not eventually(lambda: bystander.alive() == [], 0.1)
    seam.send(bystander.pid, True)
    assert eventually(lambda: bystander.alive() == [])


def test_production_touches_nobody(port, hold, monkeypatch, said, tmp_path):
    monkeypatch.setenv("ENVIRONMENT", "production")
    held = hold(("127.0.0.1", port), cwd=str(tmp_path))
    assert ensure_port_available(port) is False
    assert held.alive() == [held.pid]
    lines = said().splitlines()
    assert lines[:2] == [f"⚠️  Port {port} is already in use", "🚨 Port conflict in PRODUCTION environment!"]
    assert lines[2].startswith(f"Process using port: {held.pid} ({os.path.basename(sys.executable)} -S -E holder.py ")
    folder = seam.short_folder(str(tmp_path))
    assert lines[2].endswith(f" s ago, in {folder})") and ", user " in lines[2] and ", started " in lines[2]
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
    production = value.lower() in ("prod", "production")
    assert ("PRODUCTION" in said()) == production
    assert (f"🚨 Port conflict: ENVIRONMENT is {value!r}: outside development" in said()) != production
    assert ("The names of development are dev, development, local, " in said()) != production


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
    holder = start(sys.executable, "-c", LISTENING, str(port), evil)
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
    assert said().count("is left alone: it belongs to user ") == 2 and "; only that user should stop it" in said()


def test_the_folk_remedy_would_have_killed(port, hold):
    """What these tests guard against does happen: lsof without a filter names the client as well."""
    lsof = subprocess.run(["sh", "-c", f"command -v lsof && lsof -ti :{port}"], capture_output=True, check=False)
    if not lsof.stdout:
        pytest.skip("there is no lsof here")
    held = hold(("127.0.0.1", port))
    client = hold(("127.0.0.1", 0), connect=("127.0.0.1", port))
    listed = subprocess.run(["lsof", "-ti", f":{port}"], capture_output=True, text=True, check=False).stdout.split()
    assert {str(held.pid), str(client.pid)} <= set(listed)


def test_a_socket_that_shares_its_address_is_no_holder(port, ports, hold, said):
    """Bound with SO_REUSEADDR and not listening, it keeps nobody from the port; here, a client does."""
    server = ports()
    hold(("127.0.0.3", server))
    idle = hold(("127.0.0.1", port), listen=False)
    client = hold(("127.0.0.2", port), reuse=False, connect=("127.0.0.3", server))
    assert ensure_port_available(port) is False
    assert f"process {client.pid}" in said() and "a client is never stopped" in said()
    assert idle.alive() == [idle.pid] and client.alive() == [client.pid]


def test_an_ancestor_that_is_hidden_may_be_the_holder(monkeypatch):
    """hidepid hides a parent of another user (sudo), and with it who is above: nobody can be ruled out."""
    me = os.getpid()
    ours = seam.read(me)._replace(parent=4_000_000)
    seam.readings(monkeypatch, "linux", lambda pid: {me: ours} if pid == me else {})
    assert seam.ancestry() is None


@pytest.mark.parametrize("end", ["gone", "going"])
def test_a_parent_that_ends_leaves_its_child_to_another(monkeypatch, end):
    """The new parent is an ancestor as well: it was above the old one, and may hold the port."""
    me = os.getpid()
    ours, init = (seam.read(pid) for pid in (me, 1))
    end = {} if end == "gone" else {4_000_000: ours._replace(pid=4_000_000, parent=0, zombie=True)}
    parents = iter([4_000_000, 1, 1])

    def read(pid):
        process = {me: ours, 1: init._replace(parent=0)}.get(pid)
        return {pid: process._replace(parent=next(parents)) if pid == me else process} if process else end

    seam.readings(monkeypatch, "linux", read)
    assert seam.ancestry() == [me, 1]


def test_a_stand_by_is_no_holder(port, ports, start, hold, said):
    """It is older than the call and takes the port when that is free; whoever held nothing is not stopped."""
    code = (
        "import socket, sys, time\n"
        "print('spins', flush=True)\n"
        "while True:\n"
        "    s = socket.socket(); s.setsockopt(1, 2, 1)\n"
        "    try: s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); break\n"
        "    except OSError: s.close(); time.sleep(0.0002)\n"
        "print('took it', flush=True); time.sleep(60)\n"
    )
    held = hold(("127.0.0.1", port))
    waiting = start(sys.executable, "-S", "-c", code, str(port))
    assert waiting.stdout.readline() == "spins\n"
    available = ensure_port_available(port)
    assert held.alive() == []
    assert waiting.poll() is None and birth(waiting.pid)
    assert available or "was taken again" in said()


def test_a_wildcard_of_ipv6_is_not_blamed_for_what_may_be_another(ports, hold, monkeypatch, said):
    """Where netlink is refused, nothing tells a v6-only listener from a dual-stack one; a client may be in the way."""
    port, server = ports(), ports()
    seam.stand_in(monkeypatch, "sock_diag", lambda *_: None)
    seam.only(monkeypatch, "proc_net")
    hold(("127.0.0.1", server))
    bystander = hold(("::", port), v6only=True)
    client = hold(("127.0.0.1", port), reuse=False, connect=("127.0.0.1", server))
    assert ensure_port_available(port) is False
    assert bystander.alive() == [bystander.pid] and client.alive() == [client.pid]
    assert "it cannot be told whether its :: keeps 0.0.0.0 from being bound" in said()


RESERVING = """
import os, socket, subprocess, sys, time
reserved = socket.socket()
reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
reserved.bind(("0.0.0.0", int(sys.argv[1])))
server = (
    "import socket, sys, time; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('127.0.0.1', int(sys.argv[1])));"
    "s.listen(); print(1, flush=True); time.sleep(60)"
)
subprocess.Popen([sys.executable, "-S", "-c", server, sys.argv[1]]).wait()
time.sleep(60)
"""


def test_one_who_reserved_the_number_for_a_server_is_no_holder(port, start, monkeypatch):
    """A test runner binds a port, keeps it, and hands its number over: it blocks nobody, and is no master."""
    seam.limits(monkeypatch, restart_watch=0.2)
    runner = start(sys.executable, "-S", "-c", RESERVING, str(port))
    runner.stdout.readline()
    (server,) = find_listeners(port, "127.0.0.1")
    assert server.pid != runner.pid
    assert ensure_port_available(port, "127.0.0.1") is True
    assert runner.poll() is None and birth(server.pid) is None


@boxes
def test_the_same_link_local_address_on_another_interface():
    setup = "ip link add d0 type veth peer name d1; " + "; ".join(
        f"ip link set d{n} up; ip -6 address add fe80::1/64 dev d{n} nodad" for n in (0, 1)
    )
    question = (
        "import sys\n"
        "def listen(zone):\n"
        "    s = socket.socket(socket.AF_INET6); s.bind(('fe80::1', 8000, 0, socket.if_nametoindex(zone))); s.listen()\n"
        "    return s\n"
        "both = listen('d0'), listen('d1')\n"
        "print(p.ensure_port_available(8000, 'fe80::1%d0'), seam.conflict('fe80::1', 'fe80::1%2'))"
    )
    told = in_a_box(setup, question)
    assert told.endswith("False None") and "is left alone: it is this very process" in told


@pytest.mark.parametrize("host", ["::", "::0", "0:0:0:0:0:0:0:0", "[::]"])
def test_a_listener_on_ipv4_alone_stays_where_ipv6_is_asked_for(port, hold, said, host):
    """uvicorn binds :: without IPv4, and starts beside it; others would not: in doubt, nobody is stopped."""
    four = hold(("127.0.0.1", port))
    assert ensure_port_available(port, host) is False and four.alive() == [four.pid]
    assert "it listens on IPv4 alone" in said() and "name the host 0.0.0.0" in said()
    assert ensure_port_available(port, "0.0.0.0") is True and four.alive() == []


def test_a_proc_that_numbers_other_processes_names_nobody(port, hold, monkeypatch, said, request):
    """In a container with the host's /proc, its PIDs are those of other processes here."""
    held = hold(("127.0.0.1", port))
    real = os.readlink
    seam.forget()
    request.addfinalizer(seam.forget)
    monkeypatch.setattr(
        os, "readlink", lambda path, **where: "1" if path == "/proc/self" else real(path, **where)
    )
    assert ensure_port_available(port) is False and held.alive() == [held.pid]
    assert PortManager().kill_process(held.pid) is False and held.alive() == [held.pid]
    assert "cannot be seen from here" in said() or "that you may not see" in said()
