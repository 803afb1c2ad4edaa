"""May we stop it? Who must stay is left alone, with the sentence that a person needs; bystanders survive, always."""

from __future__ import annotations  # noqa: I001

import contextlib
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from port_manager import PortManager, ensure_port_available, find_listeners

from . import seam
from .apart import boxed
from .conftest import LINUX, NOBODY, PATIENCE, PORT_MANAGER, ROOT_USER, as_nobody, bound_is_told, can_bind, command_line
from .conftest import eventually, holding, on_a_terminal
from .scenes import wait_for

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")
as_root = pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")
ID = "0123456789abcdef" * 4


@pytest.fixture
def cgroup():
    """Move a process into a control group with a path of our choice; a maker that may skip the test."""
    moved: list[tuple[Path, int]] = []

    def move(pid: int, path: str) -> None:
        for home in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup")):
            folder = home / f"pm-tests-{os.getpid()}" / path
            with contextlib.suppress(OSError):
                if (home / "cgroup.procs").exists():
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / "cgroup.procs").write_text(str(pid))
                    moved.append((home, pid))
                    return
        pytest.skip("no control group can be made here")

    yield move
    for home, pid in moved:
        with contextlib.suppress(OSError):
            (home / "cgroup.procs").write_text(str(pid))
    for home in {home for home, _ in moved}:
        for folder, _, _ in os.walk(home / f"pm-tests-{os.getpid()}", topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A maker of tools in a folder that comes first on PATH; they log how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "calls"
    log.write_text("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(script: str, *names: str) -> Path:
        for name in names:
            (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{log}"\n{script}\n')
            (folder / name).chmod(0o755)
        return log

    return make


@pytest.fixture
def refused(said):
    """Nobody is stopped for a port, and it is told why."""

    def check(port, *parts, policy=None):
        assert ensure_port_available(port, policy=policy) is False
        for part in parts:
            assert part in said(), said()

    return check


# Control groups: services and containers


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("system.slice/pm-web.service", "the systemd service pm-web.service runs it; stop it with: systemctl stop"),
        ("system.slice/pm-web.service/inner", "systemctl stop pm-web.service"),
        ("user.slice/user-1.slice/user@1.service/app.slice/pm-sync.service", "systemctl --user stop pm-sync.service"),
        (f"system.slice/docker-{ID}.scope", f"the container {ID[:12]} runs it; stop it with: docker stop {ID[:12]}"),
        (f"machine.slice/libpod-{ID}.scope/container", f"podman stop {ID[:12]}"),
        (f"docker/{ID}", f"docker stop {ID[:12]}"),
        (f"docker/{'0' * 64}/system.slice/libpod-{ID}.scope", f"podman stop {ID[:12]}"),
        (f"docker/{'0' * 64}/pods/cri-containerd-{ID}.scope", f"the container {ID[:12]} runs it; stop it there"),
        ("lxc.payload.web", "the container lxc.payload.web runs it; stop it there"),
        # a login session is no service
        ("user.slice/user-1.slice/session-3.scope", None),
        ("user.slice/user-1.slice/user@1.service/app.slice/app-code-12.scope", None),
        ("user.slice/user-1.slice/user@1.service/init.scope", None),
        ("just/a/folder", None),
    ],
)
def test_a_service_or_a_container_is_left_alone(port, hold, cgroup, refused, path, sentence, tools):
    tools("exit 1", "docker", "podman")
    held = hold(port, children=1)
    for pid in (held.pid, *held.children):
        cgroup(pid, path)
    if sentence:
        refused(port, f"Process {held.pid} (", "is left alone", sentence)
    assert held.alive() == [held.pid, *held.children]
    assert sentence or (ensure_port_available(port) is True and held.alive() == [])


@pytest.mark.parametrize("policy", ["kill", "own", "ask", "refuse"])
def test_a_container_has_a_name_and_is_stopped_by_nobody_here(port, hold, cgroup, tools, refused, policy):
    calls = tools("echo web", "docker")
    held = hold(port)
    cgroup(held.pid, f"system.slice/docker-{ID}.scope")
    refused(port, "the docker container web runs it; stop it with: docker stop web", policy=policy)
    assert held.alive() == [held.pid]
    assert f"--filter id={ID} " in calls.read_text() and " stop " not in calls.read_text()


@pytest.mark.parametrize(
    ("path", "ours"),
    [("system.slice/pm-runner.service", "system.slice/pm-runner.service"), (f"docker/{ID}/web", f"docker/{ID}/exec")],
)
def test_what_shares_our_own_service_or_container_is_not_foreign(port, hold, cgroup, path, ours):
    """Inside a container, or inside one service, development goes on as usual."""
    held = hold(port)
    cgroup(held.pid, path)
    words = ["sh", "-c", 'read go; exec "$@"', "sh", sys.executable, PORT_MANAGER, "free", str(port)]
    freed = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    cgroup(freed.pid, ours)
    _, told = freed.communicate("go\n", timeout=PATIENCE)
    assert freed.returncode == 0, told
    assert held.alive() == []


USER = "/user.slice/user-1000.slice/user@1000.service"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/system.slice/engine.service/job-1.scope", "systemctl stop engine"),
        ("/machine.slice/systemd-nspawn@web.service/payload/init.scope", "systemctl stop systemd-nspawn@web"),
        ("/machine.slice/machine-web.scope/payload", "the container machine-web"),
        (f"/machine.slice/libpod-conmon-{'ab' * 32}.scope", "the container abababababab"),
        (f"{USER}/app.slice/console-7.scope", None),
        ("/user.slice/user-1000.slice/session-3.scope", None),
        # what a desktop's menu has started, and what that has started: no service, and no container
        (f"{USER}/app.slice/app-code-{'ab' * 16}.scope", None),
        (f"{USER}/app.slice/app-org.kde.konsole@ab12.service", None),
        (f"{USER}/app.slice/dbus-:1.2-org.gnome.Terminal.service", None),
        (f"{USER}/tmux-spawn-12.scope", None),
        (f"/sandbox/{'ab' * 16}", None),
        # to stop these would end other logins and jobs
        ("/system.slice/app-api.service", "systemctl stop app-api"),
        ("/system.slice/dbus-broker.service", "systemctl stop dbus-broker"),
        (f"{USER}/app.slice/app-api.service", "systemctl --user stop app-api"),
        ("/system.slice/system-getty.slice/getty@tty1.service", None),
        ("/system.slice/ssh.service", None),
        ("/system.slice/cron.service", None),
        # on a terminal, one of a user's is what has opened it
        (f"{USER}/app.slice/console.service on a terminal", None),
        (f"{USER}/app.slice/console.service", "systemctl --user stop console.service"),
        ("/system.slice/console.service on a terminal", "systemctl stop console.service"),
    ],
)
def test_what_runs_inside_a_service_or_machine(monkeypatch, path, sentence):
    path, _, terminal = path.partition(" on a ")
    why = seam.managed(monkeypatch, path, 34816 if terminal else None)
    assert why is sentence or sentence in why


@as_root
@pytest.mark.parametrize("first", [True, False])
def test_what_runs_in_a_namespace_of_its_own_is_left_alone(port, start, refused, first):
    """With its first process everything in there would end; and what any other is good for is not seen from here."""
    inside = holding(port) if first else ["sh", "-c", '"$@" & wait', "sh", *holding(port)]
    start("unshare", "--pid", "--fork", "--kill-child", *inside).stdout.readline()
    refused(port, "a container or sandbox of its own (a PID namespace) runs it; stop it there")
    assert not can_bind(port)


# Who holds ports for others


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        *((script, "docker stop NAME (docker ps --filter publish={port} tells the name")
          for script in ("exit 1", "exec sleep 9", "true", "echo one; echo two")),
        ("echo web", "the docker container web runs it; stop it with: docker stop web"),
    ],
)  # fmt: skip
def test_a_proxy_stays_and_the_words_help(port, hold, tools, refused, script, sentence, monkeypatch):
    seam.limits(monkeypatch, tool_timeout=0.3 if "sleep" in script else PATIENCE)
    proxy = hold(("0.0.0.0", port), name="docker-proxy")
    calls = tools(script, "docker")
    tools("exit 127", "podman")
    refused(port, sentence.format(port=port))
    assert proxy.alive() == [proxy.pid]
    assert f"docker ps --filter publish={port}/tcp " in calls.read_text() and " stop " not in calls.read_text()


@pytest.mark.parametrize(
    ("script", "who"),
    [("exit 1", "the container abababababab runs it; stop it there"), ("echo web", "podman stop web")],
)
def test_podman_s_monitor_stays_whatever_podman_says(port, hold, tools, refused, script, who):
    """It keeps the published ports of its container, which is named on its command line."""
    monitor = hold(("0.0.0.0", port), name="conmon", more=["-c", "ab" * 32, "-u", "ab" * 32])
    tools("exit 1", "docker")
    tools(script, "podman")
    refused(port, who)
    assert monitor.alive() == [monitor.pid]


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        ("ssh sshd dropbear kubectl ngrok cloudflared adb", "it is a tunnel"),
        ("qemu-system-x86_64 VBoxHeadless vmware-vmx", "it forwards the port to a virtual machine"),
        ("systemd", "systemctl --user stop NAME.socket (systemctl --user list-sockets tells it)"),
        ("rootlessport slirp4netns pasta com.docker.backend", "docker stop NAME (docker ps"),
    ],
)
def test_what_holds_ports_for_others_is_left_alone_with_its_remedy(ports, hold, said, refused, names, remedy, tools):
    tools("exit 1", "docker", "podman", "systemctl")
    for name in names.split():
        port = ports()
        held = hold(port, name=name)
        assert seam.read(held.pid).name == name[:15]
        refused(port, f"Process {held.pid} (", remedy)
        assert held.alive() == [held.pid]
        assert said().count("is left alone") == said().count(remedy)


# Other users


@as_root
@pytest.mark.parametrize("uids", [NOBODY, (NOBODY, 0, 0), (0, 0, NOBODY)], ids=str)
def test_another_users_process_is_left_alone_by_root(port, hold, refused, uids):
    """The same user is the same in every respect: a program that runs with another's rights is not ours to stop."""
    held = hold(port, uid=uids)
    owner = "nobody" if uids == NOBODY else "root"  # the name of the user whose rights it has
    refused(port, f"it belongs to user {owner}; only that user should stop it")
    assert held.alive() == [held.pid]


@as_root
def test_workers_that_gave_up_their_rights(port, hold, monkeypatch):
    """nginx, started as root: its workers are another user's, who may not stop them one by one; and of the family."""
    seam.one_look(monkeypatch)
    held = hold(port, children=2, uid=NOBODY)
    assert {holder.user for holder in find_listeners(port)} == {"root", "nobody"}
    assert as_nobody(lambda: ensure_port_available(port)) is False
    assert held.alive() == [held.pid, *held.children]
    assert ensure_port_available(port) is True
    assert held.alive() == []


@as_root
def test_a_normal_user_stops_nobody_elses(port, hold, monkeypatch, said):
    seam.one_look(monkeypatch)
    held = hold(port)
    freed, told = as_nobody(lambda: (ensure_port_available(port), said()))
    assert freed is False and "it is held by a process of user root that you may not see" in told
    assert as_nobody(lambda: PortManager().kill_process(held.pid)) is False
    assert held.alive() == [held.pid]


def test_root_leaves_other_users_alone(port, hold, monkeypatch, said):
    """Seen from another account, our own holder is somebody else's."""
    held = hold(port)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert ensure_port_available(port) is False
    assert PortManager().kill_process(held.pid) is False
    assert held.alive() == [held.pid]
    assert said().count("is left alone: it belongs to user ") == 2 and "; only that user should stop it" in said()


# Who cannot be told


def test_who_cannot_be_told_stays(port, hold, monkeypatch, refused):
    """Where the line of our parents ends in the dark, whoever is older than what is seen of it may be in it."""
    held = hold(port)
    started = find_listeners(port)[0].started
    with monkeypatch.context() as patch:
        seam.ancestry_is_hidden(patch, oldest=started + 1)
        refused(port, "it may be one of our own ancestors")
    with monkeypatch.context() as patch:
        seam.users_are_hidden(patch)
        refused(port, "it cannot be told whose it is")
    assert held.alive() == [held.pid]
    seam.ancestry_is_hidden(monkeypatch, oldest=started - 1)
    assert ensure_port_available(port) is True and held.alive() == []


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


def test_a_proc_that_numbers_other_processes_names_nobody(port, hold, monkeypatch, said, request):
    """In a container with the host's /proc, its PIDs are those of other processes here."""
    seam.one_look(monkeypatch)
    held = hold(port)
    real = os.readlink
    seam.forget()
    request.addfinalizer(seam.forget)
    monkeypatch.setattr(os, "readlink", lambda path, **at: "1" if path == "/proc/self" else real(path, **at))
    assert ensure_port_available(port) is False and held.alive() == [held.pid]
    assert PortManager().kill_process(held.pid) is False and held.alive() == [held.pid]
    where = "that cannot be seen from here, perhaps" if ROOT_USER else "that you may not see; to find out"
    assert "it is held by a process of user " in said() and where in said()
    assert "it is a thread of another process, or may not be seen" in said()


# We, our ancestors, and the system


def test_we_and_our_ancestors_live(port, said):
    """This process holds the port itself; then a child of it asks."""
    with socket.create_server(("127.0.0.1", port)):
        assert ensure_port_available(port) is False
        assert f"Process {os.getpid()} (" in said() and "left alone: it is this very process" in said()
        done = command_line("free", str(port))
    assert done.returncode == 1
    assert "is left alone: it is an ancestor of this process" in done.stderr
    assert "stop it from another terminal" in done.stderr


def test_a_supervisor_that_started_us_lives(port, hold):
    """The holder starts a shell that starts the tool: an ancestor two steps up."""
    tool = shlex.join([sys.executable, PORT_MANAGER, "free", str(port)])
    held = hold(port, runs=f"exec 2>&1; {tool}; echo status $?")
    assert "ancestor of this process" in held.said and "status 1" in held.said and held.alive() == [held.pid]


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
    source = Path(PORT_MANAGER).read_text(encoding="utf-8")
    assert [source.count(call) for call in ("os.kill(", "pidfd_send_signal(", "killpg")] == [1, 1, 0]


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
    holder, bystander = hold(port, exit_after=0.3), hold(ports())

    def reused(rows):
        return [row._replace(pid=bystander.pid) if row.pid == holder.pid else row for row in rows]

    seam.owners_answer(monkeypatch, reused)
    seam.on_signal(monkeypatch, lambda *_: pytest.fail("a signal was sent"))
    ensure_port_available(port)
    assert bystander.alive() == [bystander.pid]


def test_the_pid_is_reused_where_there_is_no_pidfd(hold, port):
    """Without a handle, the start times are compared just before the signal."""
    bystander = hold(port)
    with pytest.raises(ProcessLookupError):
        seam.send(bystander.pid, True, start=12345)
    assert not eventually(lambda: bystander.alive() == [], 0.1)
    seam.send(bystander.pid, True)
    assert eventually(lambda: bystander.alive() == [])


# Who is not in the way: naive tools kill these


def test_a_client_whose_own_end_is_our_port_is_named_and_lives(ports, hold, said, monkeypatch):
    seam.one_look(monkeypatch)
    port, server_port = ports(), ports()
    hold(server_port)
    client = hold(port, connect=("127.0.0.1", server_port), reuse=False)
    assert ensure_port_available(port) is False
    assert f"port {port} is the local end of a connection from process {client.pid} (" in said().lower()
    assert f"to 127.0.0.1:{server_port}; a client is never stopped" in said()
    assert client.alive() == [client.pid]


@pytest.mark.parametrize("beside", [{"reuse": False}, {"listen": False}], ids=["a listener", "one that only binds"])
def test_the_last_client_lives_when_the_listener_goes_first(ports, hold, said, beside, monkeypatch):
    """Both at once: the server is stopped, and then the client alone still blocks the bind.

    What is bound with SO_REUSEADDR and does not listen keeps nobody from the port, and is no holder.
    """
    seam.one_look(monkeypatch)
    port, other = ports(), ports()
    hold(other)
    server = hold(port, **beside)
    client = hold(("127.0.0.9", port), connect=("127.0.0.1", other), reuse=False)
    assert ensure_port_available(port) is False
    assert client.alive() == [client.pid]
    assert f"process {client.pid}" in said() and "a client is never stopped" in said()
    assert server.alive() == ([server.pid] if "listen" in beside else [])
    assert (f"Successfully killed process {server.pid}" in said()) != ("listen" in beside)


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
        ("127.0.0.1", None, ("127.0.0.2", None)),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
@pytest.mark.parametrize("way", ["sock_diag", "proc_net"])
def test_only_what_conflicts_goes(port, hold, asked, dies, lives, way, monkeypatch, said):
    """The bind address was ignored: a listener on another interface was taken for ours and killed."""
    if way == "proc_net":
        seam.only(monkeypatch, "proc_net")
    bystander = hold((lives[0], port), v6only=lives[1]) if lives else None
    holder = hold((dies[0], port), v6only=dies[1]) if dies else None
    if way == "proc_net" and dies == ("::", False):  # which does not tell that it takes IPv4, too
        assert ensure_port_available(port, asked) is False
        assert f"port_manager.py free {port} --host ::" in said() and holder.alive() == [holder.pid]
        asked = "::"
    assert ensure_port_available(port, asked) is True
    assert holder is None or holder.alive() == []
    assert bystander is None or bystander.alive() == [bystander.pid]
    assert can_bind(port, asked)


def test_a_stand_by_is_no_holder(port, hold, said):
    """It is older than the call and takes the port when that is free; whoever held nothing is not stopped."""
    held, waiting = hold(port), hold(port, stand_by=True)
    available = ensure_port_available(port)
    assert held.alive() == [] and waiting.alive() == [waiting.pid]
    assert available or "was taken again" in said()


def test_a_wildcard_of_ipv6_is_not_blamed_for_what_may_be_another(ports, hold, monkeypatch, said):
    """Where netlink is refused, nothing tells a v6-only listener from a dual-stack one; a client may be in the way."""
    port, server = ports(), ports()
    seam.stand_in(monkeypatch, "sock_diag", lambda *_: None)
    seam.only(monkeypatch, "proc_net")
    hold(server)
    bystander = hold(("::", port), v6only=True)
    client = hold(port, reuse=False, connect=("127.0.0.1", server))
    assert ensure_port_available(port) is False
    assert bystander.alive() == [bystander.pid] and client.alive() == [client.pid]
    assert "it cannot be told whether its :: keeps 0.0.0.0 from being bound" in said()


def test_one_who_reserved_the_number_for_a_server_is_no_holder(port, hold, monkeypatch):
    """A test runner binds a port, keeps it, and hands its number over: it blocks nobody, and is no master."""
    seam.limits(monkeypatch, restart_watch=0.2)
    runner = hold(("0.0.0.0", port), listen=False, starts=holding(port))
    wait_for(port)
    assert [server.pid for server in find_listeners(port, "127.0.0.1")] == runner.children
    assert ensure_port_available(port, "127.0.0.1") is True
    assert runner.alive() == [runner.pid]


@boxed
def test_the_same_link_local_address_on_another_interface(said):
    subprocess.run(["ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1"], check=True)
    for name in ("d0", "d1"):
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        subprocess.run(["ip", "-6", "address", "add", "fe80::1/64", "dev", name, "nodad"], check=True)
    listeners = [socket.socket(socket.AF_INET6) for _ in range(2)]
    for name, listener in zip(("d0", "d1"), listeners):
        listener.bind(("fe80::1", 8000, 0, socket.if_nametoindex(name)))
        listener.listen()
    assert ensure_port_available(8000, "fe80::1%d0") is False and "is left alone: it is this very process" in said()
    assert seam.conflict("fe80::1", "fe80::1%2") is None


@pytest.mark.parametrize("host", ["::", "::0", "0:0:0:0:0:0:0:0", "[::]"])
def test_a_listener_on_ipv4_alone_stays_where_ipv6_is_asked_for(port, hold, said, host):
    """uvicorn binds :: without IPv4, and starts beside it; others would not: in doubt, nobody is stopped."""
    four = hold(port)
    assert ensure_port_available(port, host) is False and four.alive() == [four.pid]
    assert "it listens on IPv4 alone" in said() and "name the host 0.0.0.0" in said()
    assert ensure_port_available(port, "0.0.0.0") is True and four.alive() == []


# Terminals


INHERITED = "it runs on a terminal of its own, and has only inherited the port"


@pytest.mark.parametrize(
    ("program", "leaks", "sentence"),
    [
        ("sh -i", True, f"Process {{inner}} (… is left alone: {INHERITED}"),
        ("sleep 60", True, f"Process {{inner}} (… is left alone: {INHERITED}"),
        ("sh -i", False, "Process {holder} (… is left alone: stopping it would also end a terminal (sh {inner})"),
    ],
)
def test_a_server_that_opens_terminals(port, hold, refused, program, leaks, sentence):
    """As an editor's does, whatever that is called: in one of them there may be a shell, or unsaved text."""
    held = hold(port, starts=program.split(), terminal=True, leaks=leaks)
    (inner,) = held.children
    assert eventually(lambda: seam.read(inner).name == program.split()[0])
    refused(port, *sentence.format(inner=inner, holder=held.pid).split("…"))
    assert held.alive() == [held.pid, inner]


def test_the_program_of_a_terminal_of_its_own_may_be_the_server(port):
    """As in tmux new-session 'python app.py'."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, holding(port))
    assert b'"pid"' in os.read(terminal, 100)
    assert ensure_port_available(port) is True
    assert os.waitpid(pid, 0)[1] == 15
    os.close(terminal)


# The environment


def test_production_touches_nobody(port, hold, monkeypatch, said, tmp_path):
    monkeypatch.setenv("ENVIRONMENT", "production")
    held = hold(port, cwd=tmp_path)
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
    monkeypatch.setenv("PORT_MANAGER_POLICY", "kill")  # which can only tighten
    assert ensure_port_available(port) is False
    assert ensure_port_available(port, policy="kill") is False
    assert held.alive() == [held.pid]


@pytest.mark.parametrize(
    ("value", "development"),
    [
        *((name, True) for name in (None, "", "dev", "Development", "LOCAL", "test", "testing", "debug", " dev ")),
        *((name, False) for name in ("prod", "PRODUCTION", "staging", "developement", "0", "false", " ", "dev;", "none")),
    ],
)
def test_the_names_of_development_and_all_others(port, hold, monkeypatch, value, development, said):
    if value is not None:
        monkeypatch.setenv("ENVIRONMENT", value)
    held = hold(port)
    assert PortManager.IS_DEVELOPMENT is PortManager().IS_DEVELOPMENT is development
    assert ensure_port_available(port) is development
    assert held.alive() == ([] if development else [held.pid])
    if not development:
        production = value.lower() in ("prod", "production")
        assert ("PRODUCTION" in said()) == production
        assert (f"🚨 Port conflict: ENVIRONMENT is {value!r}: outside development" in said()) != production
        assert ("The names of development are dev, development, local, " in said()) != production


def test_the_environment_is_asked_each_time(monkeypatch):
    manager = PortManager()
    for value in ("production", "dev", "production"):
        monkeypatch.setenv("ENVIRONMENT", value)
        assert manager.IS_DEVELOPMENT == PortManager.IS_DEVELOPMENT == (value == "dev")


def test_force_lifts_the_environment_and_no_guard(port, hold):
    held = hold(port)
    assert command_line("free", str(port), ENVIRONMENT="production").returncode == 1
    assert held.alive() == [held.pid]
    tunnel = hold(("127.0.0.2", port), name="ssh")
    done = command_line("free", str(port), "--force", ENVIRONMENT="production")
    assert done.returncode == 1 and "it is a tunnel" in done.stderr
    assert held.alive() == [held.pid] and tunnel.alive() == [tunnel.pid]
    done = command_line("free", str(port), "--host", "127.0.0.1", "--force", ENVIRONMENT="production")
    assert done.returncode == 0, done.stderr
    assert held.alive() == []


# Policies


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("Refuse", "the policy 'refuse' stops nobody"),
        ("kil", "PORT_MANAGER_POLICY is 'kil', which is none of kill, own, ask, refuse"),
        ("ask", "needs a terminal"),
    ],
)
def test_a_policy_that_stops_nobody(port, hold, said, monkeypatch, policy, sentence):
    seam.stand_in(monkeypatch, "terminal", lambda: False)
    held = hold(port)
    monkeypatch.setenv("PORT_MANAGER_POLICY", policy)
    assert ensure_port_available(port) is False
    assert sentence.lower() in said().lower()
    assert held.alive() == [held.pid]
    if policy == "ask":
        done = command_line("free", str(port), "--policy", "ask", stdin=subprocess.DEVNULL)
        assert done.returncode == 1 and "needs a terminal" in done.stderr and held.alive() == [held.pid]
    if policy == "kil":
        with pytest.raises(ValueError, match="a policy is one of kill, own, ask, refuse"):
            ensure_port_available(port, policy="kil")
    if policy == "Refuse":
        assert ensure_port_available(port, policy="kill") is True  # what the caller says goes before the variable


@pytest.mark.parametrize("answer", [b"y\n", b"YES\n", b"n\n", b"\n", b"\x04", b"\xff\xfey\n"])
def test_ask_on_a_terminal(port, hold, answer):
    """The last of the answers is no text, and so no yes."""
    held = hold(port)
    words = [PORT_MANAGER, "free", "--policy", "ask", str(port)]
    shown, after, status = on_a_terminal(*words, answer=answer, PYTHONIOENCODING="utf-8:strict")
    assert f"Process using port: {held.pid} (" in shown
    question = shown.splitlines()[-1]  # it says all by itself: the lines above may have gone into a log
    assert question.startswith(f"Stop process {held.pid} (") and question.endswith(f") to free port {port}? [y/N] ")
    agreed = answer.strip().lower() in (b"y", b"yes")
    assert (status, held.alive()) == ((0, []) if agreed else (1, [held.pid]))
    assert ("The answer was no: nobody was stopped" in after) != agreed and "Traceback" not in after


def test_after_a_question_the_holder_is_looked_at_again(port, hold, monkeypatch, said):
    """While the person thinks, the holder may become one who must stay."""
    held = hold(port)
    seam.stand_in(monkeypatch, "terminal", lambda: True)
    seam.stand_in(monkeypatch, "question", lambda *_: seam.precious(monkeypatch, held.pid) or True)
    assert ensure_port_available(port, policy="ask") is False
    assert "it is precious" in said() and held.alive() == [held.pid]


@as_root
def test_the_engines_of_containers_are_asked_once_about_a_hidden_holder(port, hold, monkeypatch):
    """It may be just exiting, so there are several looks; each question may take as long as a tool may."""
    asked: list[str] = []
    seam.stand_in(monkeypatch, "run a tool", lambda tool, *_: asked.append(tool))
    hold(port)
    freed, tools = as_nobody(lambda: (ensure_port_available(port), asked))
    assert freed is False and len(tools) == len({*tools})


# All or none


def test_one_who_must_stay_saves_the_others(port, hold, monkeypatch, refused):
    """Nobody is half-stopped: when one holder is refused, the port stays held, and so all of them stay."""
    held = hold(port, children=2)
    last = held.children[-1]
    seam.precious(monkeypatch, last)
    refused(port, f"❌ Process {last} (", "is left alone: it is precious")
    assert held.alive() == [held.pid, *held.children]


def test_one_who_must_stay_saves_all_who_share_his_socket(port, hold):
    """The first look finds also those who are far from the youngest."""
    held = hold(port, children=2, strangers=8, orphans=True, first="ssh")
    assert eventually(lambda: held.alive() == held.children)
    oldest = held.children[0]
    predicted = command_line("free", str(port), "--dry-run")
    done = command_line("free", str(port))
    assert predicted.returncode == done.returncode == 1
    assert f"leave {oldest} alone: it is a tunnel" in predicted.stdout
    assert f"Process {oldest} (" in done.stderr and "is left alone: it is a tunnel" in done.stderr
    assert held.alive() == held.children


@bound_is_told
def test_all_or_none_also_where_one_has_only_bound(port, hold, refused):
    """One listens, another has bound a different address: both keep the wildcard from being bound."""
    listener, reserved = hold(port), hold(("127.0.0.2", port), reuse=False, listen=False, name="ssh")
    assert {holder.pid for holder in find_listeners(port, "0.0.0.0", thorough=True)} == {listener.pid, reserved.pid}
    refused(port, "it is a tunnel")
    assert listener.alive() and reserved.alive()
    assert ensure_port_available(port, "127.0.0.1") is True and reserved.alive()


def test_control_characters_never_reach_the_terminal(port, hold):
    hold(port, more=["\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202e"])
    for words in (("check", str(port)), ("list",), ("check", str(port), "--json"), ("free", str(port))):
        done = command_line(*words, text=False, PYTHONIOENCODING="utf-8")
        shown = (done.stdout + done.stderr).decode()
        assert all(c.isprintable() or c == "\n" for c in shown), words
