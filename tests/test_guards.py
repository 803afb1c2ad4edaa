"""May we stop it? Who must stay is left alone, with the sentence that a person needs; bystanders survive, always."""

import os  # noqa: I001
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from port_manager import PortManager, ensure_port_available, find_listeners

from . import seam
from .apart import boxed
from .conftest import ENSURE, LINUX, NOBODY, PATIENCE, PORT_MANAGER, ROOT, ROOT_USER, as_nobody, as_root, can_bind
from .conftest import command_line, eventually, holding, on_a_terminal
from .scenes import children, wait_for

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")
ID, USER = "0123456789abcdef" * 4, "user.slice/user-1000.slice/user@1000.service"


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A maker of tools in a folder that comes first on PATH; they log how they were called."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(script, *names):
        for name in names:
            (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{log}"\n{script}\n')
            (folder / name).chmod(0o755)
        return log

    return make


@pytest.fixture
def stays(said):
    """Nobody is stopped for a port, and it is told why."""

    def check(held, port, *sentences, **options):
        assert ensure_port_available(port, **options) is False
        assert [sentence for sentence in sentences if sentence not in f"{said()}\n"] == [], said()
        assert held.alive() == [held.pid, *held.children]

    return check


TUNNELS = ("ssh", "autossh", "sshd", "sshd-session", "dropbear", "kubectl", "ngrok", "cloudflared", "adb")
MACHINES = ("qemu-system-x86_64", "qemu-kvm", "VirtualBoxVM", "VBoxHeadless", "VBoxNetNAT", "vmware-vmx", "vmnet-natd")
TUNNEL, MACHINE = "it is a tunnel, which ends at another", "it forwards the port to a virtual machine"
OTHER = "it belongs to user {}; only that user should stop it"
IPV4 = "it listens on IPv4 alone, beside which many servers can listen on ::; to stop it, name the host 0.0.0.0"
INHERITED = "it runs on a terminal of its own, and has only inherited the port"


@pytest.mark.parametrize(("spec", "options", "sentence"), [
    *(({"name": name}, {}, TUNNEL) for name in TUNNELS),
    *(({"name": name}, {}, MACHINE) for name in MACHINES),
    # an editor's server, whatever it is called: in one of its terminals there may be unsaved text
    ({"starts": ["sleep", "60"], "terminal": True, "leaks": True}, {}, INHERITED),
    # uvicorn binds :: without IPv4, and starts beside it; others would not: in doubt, nobody is stopped
    *(({}, {"host": host}, IPV4) for host in ("::", "::0", "0:0:0:0:0:0:0:0", "[::]")),
    # the same user is the same in every respect: a program that runs with another's rights is not ours to stop
    pytest.param({"uid": NOBODY}, {}, OTHER.format("nobody"), marks=as_root),
    pytest.param({"uid": (NOBODY, 0, 0)}, {}, OTHER.format("root"), marks=as_root),
    pytest.param({"uid": (0, 0, NOBODY)}, {}, OTHER.format("root"), marks=as_root),
])  # fmt: skip
def test_who_must_stay(port, hold, stays, spec, options, sentence):
    held = hold(port, **spec)
    assert not held.children or eventually(lambda: seam.read(held.children[0]).name == "sleep")
    stays(held, port, f"Process {[held.pid, *held.children][-1]} (", f") is left alone: {sentence}", **options)


def test_one_who_must_stay_saves_the_others(port, hold):
    """Nobody is half-stopped: all stay. The first look finds also those who are far from the youngest."""
    held = hold(port, children=2, strangers=8, orphans=True, first="ssh")
    assert eventually(lambda: held.alive() == held.children)
    oldest = held.children[0]
    assert (len(find_listeners(port)), len(find_listeners(port, thorough=True))) == (1, 2)
    predicted = command_line("free", str(port), "--dry-run")
    done = command_line("free", str(port))
    assert predicted.returncode == done.returncode == 1 and held.alive() == held.children
    assert f"leave {oldest} alone: it is a tunnel" in predicted.stdout
    assert f"❌ Process {oldest} (" in done.stderr and "is left alone: it is a tunnel" in done.stderr


def test_a_listener_on_ipv4_goes_where_a_name_stands_for_both_families(port, hold, monkeypatch):
    wildcards = ((socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port, 0, 0)))
    told = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in wildcards]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: told)
    held = hold(port)
    assert ensure_port_available(port, "everywhere") is True and held.alive() == []


# Control groups: services and containers


@pytest.mark.parametrize(("path", "sentence"), [
    ("system.slice/a.service/in", "the systemd service a.service runs it; stop it with: systemctl stop a.service"),
    ("system.slice/engine.service/web$(x).service", "systemctl stop 'web$(x).service'"),
    ("machine.slice/systemd-nspawn@web.service/payload/init.scope", "systemctl stop systemd-nspawn@web.service"),
    (f"{USER}/app.slice/pm-sync.service", "systemctl --user stop pm-sync.service"),
    (f"system.slice/docker-{ID}.scope", f"the container {ID[:12]} runs it; stop it with: docker stop {ID[:12]}"),
    (f"machine.slice/libpod-conmon-{ID}.scope", f"the container {ID[:12]} runs it; stop it there"),
    (f"docker/{ID}", f"docker stop {ID[:12]}"),
    (f"docker/{'0' * 64}/system.slice/libpod-{ID}.scope/container", f"podman stop {ID[:12]}"),
    (f"docker/{'0' * 64}/pods/cri-containerd-{ID}.scope", f"the container {ID[:12]} runs it; stop it there"),
    ("lxc.payload.web", "the container lxc.payload.web runs it; stop it there"),
    ("lxc/web", "the container web runs it; stop it there"),
    ("machine.slice/machine-web.scope/payload", "the container machine-web runs it; stop it there"),
    # inside a container, or inside one service, development goes on as usual
    ("system.slice/pm-runner.service beside system.slice/pm-runner.service", None),
    (f"docker/{ID}/web beside docker/{ID}/exec", None),
    # a login session is no service; nor is what a desktop's menu has started, and what that has started
    ("user.slice/user-1000.slice/session-3.scope", None),
    (f"{USER}/init.scope", None),
    (f"{USER}/app.slice/app-code-{'ab' * 16}.scope", None),
    (f"{USER}/app.slice/app-org.kde.konsole@ab12.service", None),
    (f"{USER}/app.slice/dbus-:1.2-org.gnome.Terminal.service", None),
    (f"build-{'xy' * 32}.scope", None),  # nor is this a container
    ("system.slice/dbus-broker.service", "systemctl stop dbus-broker.service"),  # only of a user's manager
    (f"{USER}/app.slice/app-api.service", "systemctl --user stop app-api.service"),
    # to stop these would end other logins and jobs
    *((f"system.slice/{name}.service", None) for name in ("ssh", "sshd", "cron", "crond", "atd")),
    *((f"system.slice/{name}@tty1.service", None) for name in ("getty", "serial-getty")),
    # on a terminal, one of a user's is what has opened it
    (f"{USER}/app.slice/console.service on a terminal", None),
    ("system.slice/console.service on a terminal", "systemctl stop console.service"),
])  # fmt: skip
def test_a_service_or_a_container_is_left_alone(port, hold, stays, monkeypatch, path, sentence, tools):
    tools("exit 1", "docker", "podman")
    held, real = hold(port, children=1), seam.reader("linux")
    path, _, terminal = path.partition(" on a ")
    path, _, ours = path.partition(" beside ")
    paths = {**dict.fromkeys((held.pid, *held.children), path), **({"self": ours} if ours else {})}
    seam.in_cgroups(monkeypatch, paths)
    if terminal:
        seam.readings(monkeypatch, "linux", lambda pid: {at: one._replace(tty=34816) for at, one in real(pid).items()})
    if sentence:
        stays(held, port, f"Process {held.pid} (", "is left alone", f"{sentence}\n")
    else:
        assert ensure_port_available(port) is True and held.alive() == []


@as_root
def test_what_runs_in_a_namespace_of_its_own_is_left_alone(port, start, said):
    """What it is good for is not seen from here; with the first process everything in there would end."""
    start("unshare", "--pid", "--fork", "--kill-child", *holding(port)).stdout.readline()
    assert ensure_port_available(port) is False and not can_bind(port)
    assert "a container or sandbox of its own (a PID namespace) runs it; stop it there" in said()


# Who holds ports for others, and who runs others


PROXIES = "com.docker.backend slirp4netns pasta pasta.avx2 passt rootlesskit vpnkit gvproxy limactl OrbStack"
LISTED = "docker stop NAME (docker ps --filter publish={port} tells the name; podman likewise)"
ENGINE = f"a container's engine runs it; stop it with: {LISTED}"
NOT_TOLD = "the container abababababab runs it; stop it there"
WEB = "the docker container web runs it; stop it with: docker stop web"
TWO = "printf 'one\\t127.0.0.9:{port}->80/tcp\\ntwo\\t0.0.0.0:{port}->80/tcp, [::]:{port}->80/tcp\\n'"
SAME = TWO.replace("127.0.0.9", "0.0.0.0")
SOCKETS = "systemd, for a socket unit, runs it; stop it with: {ctl} stop NAME.socket ({ctl} list-sockets tells it)"
NAMELESS = "PM2 runs it; stop it with: pm2 stop NAME (pm2 status tells the name)"


@pytest.mark.parametrize(("name", "docker", "podman", "sentence"), [
    *(("dockerd", one, "exit 1", ENGINE) for one in ("exit 1", "exec sleep 9", "true", "echo 1; echo 2", SAME)),
    ("docker-proxy", "echo web", "exit 1", WEB),
    ("docker-proxy", TWO, "exit 1", "docker stop two"),
    ("rootlessport", "exit 1", "echo web", "the podman container web runs it; stop it with: podman stop web"),
    *((name, "exit 1", "exit 1", ENGINE) for name in PROXIES.split()),
    # podman's monitor keeps the published ports of its container, which is named on its command line
    ("conmon", "exit 1", "exit 1", NOT_TOLD),
    ("conmon", "exit 1", "echo web", "podman stop web"),
    ("conmon of nobody", "exit 1", "exit 1", ENGINE),
    ("node in a container", "echo web", "exit 1", WEB),
])  # fmt: skip
def test_who_holds_the_port_of_a_container_stays(port, hold, tools, stays, name, docker, podman, sentence, monkeypatch):
    """No policy lifts that: a container is stopped by its engine alone."""
    seam.limits(monkeypatch, tool_timeout=1 if "sleep" in docker else PATIENCE)
    words = {"conmon": ["-c", "ab" * 32, "-u", "ab" * 32, "-c", "x"], "pasta": ["-c", "x"]}
    held = hold(("0.0.0.0", port), name=name.partition(" ")[0], more=words.get(name, []))
    if "in a container" in name:
        seam.in_cgroups(monkeypatch, {held.pid: f"system.slice/docker-{'ab' * 32}.scope"})
    calls = tools(docker.format(port=port), "docker")
    tools(podman, "podman")
    stays(held, port, sentence.format(port=port), policy="kill")
    about = f"id={'ab' * 32}" if name in ("conmon", "node in a container") else f"publish={port}/tcp"
    asked = f"ps --filter {about} --format {{{{.Names}}}}\t{{{{.Ports}}}}"
    assert {f"docker {asked}"} <= {*calls.read_text().splitlines()} <= {f"docker {asked}", f"podman {asked}"}


@pytest.mark.parametrize(("listed", "told"), [
    ("[::]:{port} a.socket b.service", "for a.socket, runs it; stop it with: {ctl} stop a.socket b.service\n"),
    ("*:{port}%lo echo\\x2d.socket -", "{ctl} stop 'echo\\x2d.socket'\n"),
    ("*:{port} a.socket", SOCKETS),
    ("*:1{port} a.socket a.service", SOCKETS),
])  # fmt: skip
@pytest.mark.parametrize("ctl", ["systemctl --user", "systemctl"])  # of a user's systemd; of the system's own, PID 1
def test_systemd_holds_a_port_for_a_socket_unit(port, hold, tools, stays, monkeypatch, listed, told, ctl):
    calls = tools(f"echo '/run/dbus dbus.socket dbus.service\n{listed.format(port=port)}'", "systemctl")
    held, first = hold(port, name="systemd"), seam.read(1)._replace(name="systemd")
    if ctl == "systemctl":
        seam.owners_answer(monkeypatch, lambda rows: [row._replace(pid=1) for row in rows])
        seam.readings(monkeypatch, "linux", lambda pid: {pid: first})
    stays(held, port, told.format(ctl=ctl))
    assert f"\n{ctl} list-sockets --all --no-legend --no-pager\n" in f"\n{calls.read_text()}"


@pytest.mark.parametrize(("manager", "variables", "sentence"), [
    ("supervisord", {"SUPERVISOR_GROUP_NAME": "web", "SUPERVISOR_PROCESS_NAME": "web"}, "supervisorctl stop web\n"),
    ("supervisord", {"SUPERVISOR_GROUP_NAME": "a", "SUPERVISOR_PROCESS_NAME": "b"}, "supervisorctl stop a:b"),
    ("PM2 v5", {"pm_id": "0", "name": "my app"}, "PM2 runs it; stop it with: pm2 stop 'my app'\n"),
    ("PM2 v5", {"name": "api"}, NAMELESS),
    ("PM2 v5.1 holds", {"pm_id": "0", "name": "worker"}, NAMELESS),
    # in cluster mode PM2 itself holds the port
    ("PM2 v5.1 holds", {"pm2_env": '{{"PORT": {port}, "name": "api"}}'}, "pm2 stop api\n"),
    ("PM2 v5.1 holds", {"pm2_env": '{{"name": "api"}}'}, "pm2 stop api\n"),
    ("PM2 v5.1 holds", {"pm2_env": '{{"PORT": 1, "name": "api"}}'}, NAMELESS),
    *(("PM2 v5.1 holds", {"pm2_env": broken}, NAMELESS) for broken in ("[]", "{{", "{{}}")),
    # they are inherited, and outlive the manager: what it left behind is nobody's
    ("sh", {"pm_id": "0", "name": "a", "SUPERVISOR_PROCESS_NAME": "web", "INVOCATION_ID": "7", "TMUX": "/x,7,0"}, None),
])  # fmt: skip
def test_what_a_manager_runs_stays(port, hold, stays, monkeypatch, manager, variables, sentence):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(port=port))
    holds = manager.endswith(" holds")
    below = ["sleep", "60"] if holds else holding(port)
    held = hold(*[port] * holds, name=manager.partition(" holds")[0], starts=below)
    wait_for(port)
    if sentence:
        stays(held, port, sentence)
    else:
        assert ensure_port_available(port) is True and held.alive() == [held.pid]


def test_two_programs_of_a_manager_have_no_common_name(port, start, said):
    script = 'printf "PM2 v5" >/proc/$$/comm; pm_id=0 name=a "$@" & pm_id=1 name=b "$@" & wait'
    manager = start("sh", "-c", script, "sh", *holding(port, reuseport=True))
    assert manager.stdout.readline() and manager.stdout.readline()
    assert ensure_port_available(port) is False and not can_bind(port)
    assert NAMELESS in said()


@pytest.mark.parametrize("script", ["pm2-runtime", "supervisor.supervisord"])
def test_a_manager_is_known_by_its_script_or_module(port, start, said, tmp_path, script):
    (tmp_path / script).write_text('"$@" & wait')
    assert start("sh", "-u", str(tmp_path / script), *holding(port)).stdout.readline()
    assert ensure_port_available(port) is False and not can_bind(port) and " runs it; stop it with: " in said()


# Other users, and who cannot be told


@as_root
def test_a_normal_user_stops_nobody_elses(port, hold, monkeypatch, said):
    """The holder may be just exiting, so there are several looks; the engines of containers are asked once."""
    asked: list[str] = []
    seam.stand_in(monkeypatch, "run a tool", lambda tool, *_: asked.append(tool))
    held = hold(port)
    freed, told, tools = as_nobody(lambda: (ensure_port_available(port), said(), asked))
    own_pids = os.readlink("/proc/self/ns/pid") != "pid:[4026531836]"  # in a container nobody is asked
    assert freed is False and "docker" not in told and sorted(tools) == ([] if own_pids else ["docker", "podman"])
    hidden = f"Port {port} cannot be freed: it is held by a process of user root that you may not see; to find out: "
    assert f"{hidden}sudo python port_manager.py check {port}" in told
    seam.in_cgroups(monkeypatch, {"self": f"docker/{ID}"})  # nor in one that sees the host's processes
    assert as_nobody(lambda: (ensure_port_available(port), asked)[1]) == []
    assert as_nobody(lambda: PortManager().kill_process(held.pid)) is False
    unknown = as_nobody(lambda: PortManager().get_process_using_port(port))
    assert f"port {port} is held by a process of user root that may not be seen" in unknown
    assert as_nobody(lambda: find_listeners(port)[0][:3]) == [None, None, "root"] and held.alive() == [held.pid]


@pytest.mark.parametrize(("parents", "old", "first", "told"), [
    ([9, 1, 1], {"zombie": True}, {}, [1]),
    ([9] * 9, None, {}, None),  # it is hidden
    ([9, 1, 1], None, {"parent": None, "started": None}, None),  # nor is it told who is above the first
    ([9] * 9, {"parent": 1}, {"parent": 9}, [9, 1]),  # PIDs are used again, and may form a circle
    ([9] * 9, {"parent": os.getpid()}, {}, [9]),
])  # fmt: skip
def test_a_parent_that_ends_leaves_its_child_to_another(monkeypatch, parents, old, first, told):
    """That was above the old one, and may hold the port. Above a hidden one (sudo, and hidepid) anybody may be."""
    me, ours, parent = os.getpid(), seam.read(os.getpid()), iter(parents)

    def read(pid):
        facts = {"parent": next(parent)} if pid == me else {1: first, 9: old}.get(pid)
        return {} if facts is None else {pid: ours._replace(**{"pid": pid, "parent": 0, **facts})}

    seam.readings(monkeypatch, "linux", read)
    assert seam.ancestry() == (told and [me, *told])


def test_a_proc_that_numbers_other_processes_names_nobody(port, hold, monkeypatch, said, stays, request):
    """In a container with the host's /proc, its PIDs are those of other processes here."""
    seam.one_look(monkeypatch)
    held = hold(port)
    real = os.readlink
    seam.forget()
    request.addfinalizer(seam.forget)
    monkeypatch.setattr(os, "readlink", lambda path, **at: "1" if path == "/proc/self" else real(path, **at))
    assert PortManager().kill_process(held.pid) is False
    assert "it is a thread of another process, or may not be seen" in said()
    where = "that cannot be seen from here, perhaps" if ROOT_USER else "that you may not see; to find out"
    stays(held, port, "it is held by a process of user ", where)
    seam.owners_answer(monkeypatch, lambda rows: [row._replace(uid=None) for row in rows])
    stays(held, port, f"it is held by a process {where}")
    assert "Process using port" not in said()


# We, our ancestors, and the system


def test_this_very_process_lives(port, said):
    with socket.create_server(("127.0.0.1", port)):
        assert ensure_port_available(port) is False
    assert f"Process {os.getpid()} (" in said() and "left alone: it is this very process" in said()


@pytest.mark.parametrize(("mark", "call", "refused"), [
    *((mark, ["-m", "port_manager", "free"], True) for mark in ("", "RUN_MAIN=true")),  # a person's is no reloader's
    ("", ["-c", ENSURE], True),
    *((mark, ["-c", ENSURE], False) for mark in ("RUN_MAIN=true", "WERKZEUG_RUN_MAIN=true")),  # app.run(debug=True)
])  # fmt: skip
def test_an_ancestor_lives(port, hold, mark, call, refused):
    """The holder starts a shell that starts the tool: two steps up. Its reloader's port is available to a child."""
    tool = shlex.join([f"PYTHONPATH={ROOT}", sys.executable, *call, str(port)])
    held = hold(port, runs=f"exec 2>&1; env {mark} {tool}; echo status $?")
    why = "is left alone: it is an ancestor of this process, which would end with it; stop it from another terminal"
    assert held.alive() == [held.pid] and (why in held.said and "status 1" in held.said) is refused
    assert refused or held.said == "status 0\n"


@pytest.mark.parametrize(("namespace", "sentence"), [
    ("pid:[4026531836]", "PID 1 is the system itself"),  # which is that of the host
    ("pid:[4026532001]", "it is this container's main process: restart the container"),
])  # fmt: skip
def test_the_first_process_lives(monkeypatch, namespace, sentence):
    monkeypatch.setattr(os, "readlink", lambda path, **at: namespace)
    assert seam.protected("init", pid=1) == sentence


def test_the_file_signals_in_one_place():
    """A PID is checked before it gets there, and no other place calls what signals."""
    source = Path(PORT_MANAGER).read_text(encoding="utf-8")
    assert [source.count(call) for call in ("os.kill(", "pidfd_send_signal(", "killpg")] == [1, 1, 0]


def test_kernel_threads_live(said, sent):
    kthreadd = seam.read(2)
    if not kthreadd or kthreadd.name != "kthreadd":
        pytest.skip("no thread of the kernel is to be seen here")
    assert PortManager().kill_process(2) is False and sent == []
    assert "it is a thread of the kernel" in said()


# Who is not in the way: naive tools kill these


@pytest.mark.parametrize("beside", [None, {"reuse": False}, {"listen": False}], ids=["", "a listener", "only bound"])
def test_a_client_whose_own_end_is_our_port_is_named_and_lives(ports, hold, said, beside, monkeypatch):
    """Beside a server, which is stopped, it still blocks the bind; what is only bound with SO_REUSEADDR does not."""
    seam.one_look(monkeypatch)
    port, other = ports(), ports()
    hold(other)
    servers = [hold(port, **beside)] if beside else []
    client = hold(("127.0.0.9", port), connect=("127.0.0.1", other), reuse=False)
    assert ensure_port_available(port) is False and client.alive() == [client.pid]
    assert f"port {port} is the local end of a connection from process {client.pid} (" in said().lower()
    assert f"to 127.0.0.1:{other}; a client is never stopped" in said()
    for server in servers:
        assert bool(server.alive()) is ("listen" in beside)
        assert (f"Successfully killed process {server.pid}" in said()) is ("reuse" in beside)
    client.end()
    assert ensure_port_available(port) is False and "The system is still closing connections of a former" in said()


@pytest.mark.parametrize(("asked", "dies", "lives"), [
    ("::1", ("::", True), ("127.0.0.1", None)),
    ("127.0.0.1", ("0.0.0.0", None), ("::", True)),
    ("127.0.0.1", ("::", False), None),
    ("localhost", ("::1", None), ("127.0.0.2", None)),
])  # fmt: skip
@pytest.mark.parametrize("way", ["sock_diag", "proc_net"])
def test_only_what_conflicts_goes(port, hold, stays, asked, dies, lives, way, monkeypatch):
    """The bind address was ignored: a listener on another interface was taken for ours and killed."""
    if way == "proc_net":
        seam.stand_in(monkeypatch, "sock_diag", lambda *_: None)
    bystanders = [hold((lives[0], port), v6only=lives[1])] if lives else []
    holder = hold((dies[0], port), v6only=dies[1])
    bystanders += [hold((dies[0], 0), connect=(dies[0], port)), hold((dies[0], port), udp=True)]  # a client; not TCP
    if way == "proc_net" and dies == ("::", False):  # which does not tell that it takes IPv4, too
        told = f"it cannot be told whether its :: keeps {asked} from being bound; if it does: "
        stays(holder, port, f"{told}port_manager.py free {port} --host ::", host=asked)
        asked = "::"
    assert ensure_port_available(port, asked) is True and can_bind(port, asked) and holder.alive() == []
    assert [one.alive() for one in bystanders] == [[one.pid] for one in bystanders]


# The environment, and policies


@pytest.mark.parametrize(("value", "development"), [
    *((one, True) for one in (None, "", "dev", "Development", "LOCAL", "test", "testing", "debug", " dev ")),
    *((one, False) for one in ("prod", "PRODUCTION", "staging", "developement", "0", "false", " ", "dev;", "none")),
])  # fmt: skip
def test_the_names_of_development_and_all_others(port, hold, monkeypatch, value, development, said):
    """They are asked each time, whatever is called. A policy can only tighten."""
    manager = PortManager(port)
    assert manager.IS_DEVELOPMENT
    monkeypatch.setenv("PORT_MANAGER_POLICY", "kill")
    if value is not None:
        monkeypatch.setenv("ENVIRONMENT", value)
    held = hold(port)
    assert PortManager.IS_DEVELOPMENT is manager.IS_DEVELOPMENT is ensure_port_available(port) is development
    assert held.alive() == ([] if development else [held.pid])
    if not development:
        assert manager.check_and_clean_port() is manager.kill_process(held.pid) is False
        assert ensure_port_available(port, policy="kill") is False and held.alive() == [held.pid]
        production = value.lower() in ("prod", "production")
        assert ("PRODUCTION" in said()) == production
        assert (f"🚨 Port conflict: ENVIRONMENT is {value!r}: outside development" in said()) != production
        assert ("The names of development are dev, development, local, " in said()) != production
        assert f", in {seam.short_folder(os.getcwd())})" in said()


def test_force_lifts_the_environment_and_no_guard(port, hold):
    held, words = hold(port), ("free", str(port))
    refused = command_line(*words, ENVIRONMENT="production")
    assert refused.returncode == 1 and "annot start" not in refused.stderr and held.alive() == [held.pid]
    tunnel = hold(("127.0.0.2", port), name="ssh")
    for more in ([], ["--dry-run"]):
        done = command_line(*words, "--force", *more, ENVIRONMENT="production")
        assert done.returncode == 1 and "it is a tunnel" in done.stdout + done.stderr
    assert held.alive() == [held.pid] and tunnel.alive() == [tunnel.pid]
    done = command_line(*words, "--host", "127.0.0.1", "--force", ENVIRONMENT="production")
    assert done.returncode == 0 and held.alive() == [], done.stderr
    assert "💡 Told to do so by --force\n" in done.stderr and "PRODUCTION" not in done.stderr


@pytest.mark.parametrize(("policy", "sentence"), [
    ("Refuse", "the policy 'refuse' stops nobody"),
    ("kil", "PORT_MANAGER_POLICY is 'kil', which is none of kill, own, ask, refuse"),
    ("own", "the policy 'own' stops only what belongs to "),
])  # fmt: skip
def test_a_policy_that_stops_nobody(port, hold, stays, monkeypatch, policy, sentence, tmp_path):
    held = hold(port, cwd=tmp_path)
    if policy != "kil":  # which is an error of the caller's there
        assert PortManager(port, policy=policy.lower()).kill_process(held.pid) is False
    monkeypatch.setenv("PORT_MANAGER_POLICY", policy)
    stays(held, port, sentence)
    assert ensure_port_available(port, policy="kill") is True and held.alive() == []


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
    assert f"{shown}{after}".count("Process using port:") == 1


@pytest.mark.parametrize("how", ["by port", "by PID"])
def test_after_a_question_the_holder_is_looked_at_again(port, hold, monkeypatch, said, how):
    """While the person thinks, the holder may become one who must stay."""
    held, precious = hold(port), lambda *_: iter(["it is precious"])
    seam.stand_in(monkeypatch, "terminal", lambda: True)
    seam.stand_in(monkeypatch, "question", lambda *_: seam.stand_in(monkeypatch, "must stay", precious) or True)
    manager = PortManager(port, policy="ask")
    assert (manager.check_and_clean_port() if how == "by port" else manager.kill_process(held.pid)) is False
    assert "it is precious" in said() and held.alive() == [held.pid]


WAITS = "import os, select, signal; signal.alarm(2); print(end='[y/N]', flush=True); select.select([0], [], []); "
JOB = "import os, sys; os.setpgrp(); os.execv(sys.argv[1], sys.argv[1:])"
BEHIND = "import os, subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]], preexec_fn=os.setpgrp))"


def test_what_was_typed_before_the_question_is_no_answer(port, hold):
    held = hold(port)
    code = f"{WAITS}import port_manager; port_manager.ensure_port_available({port}, policy='ask')"
    _, after, status = on_a_terminal("-c", code, answer=b"y\n", question="[y/N]")
    assert after.count("[y/N]") == 1 and held.alive() == [held.pid] and status == 0  # the alarm has ended it


def test_in_the_background_nobody_is_asked(port, hold):
    """There, a program that reads from the terminal is suspended."""
    held = hold(port)
    words = [PORT_MANAGER, "free", "--policy", "ask", str(port)]
    _, after, status = on_a_terminal("-c", BEHIND, *words)
    assert status == 1 and held.alive() == [held.pid] and "the policy 'ask' needs a terminal to ask on" in after


@as_root
@pytest.mark.parametrize(("script", "status"), [
    ('"$@"; exit 7', 1),
    ('sleep 99 & "$@"', 1),  # a shell waits for its youngest child
    ('"$@" & sleep 99', 0),
    (f'"{sys.executable}" -c "{JOB}" "$@"; sleep 99', 0),  # a job of a shell that goes on
    ('setsid "$@" & exec sleep 99', 0),  # as what docker exec has started
])  # fmt: skip
def test_the_first_process_of_a_container_waits_for_the_holder(port, start, script, status):
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh"]
    first = start(*unshare, *holding(port))
    first.stdout.readline()
    inside = ["nsenter", "-t", str(children(first.pid)[0]), "-p", "-m", "setsid", sys.executable, PORT_MANAGER]
    done = subprocess.run([*inside, "free", str(port)], capture_output=True, text=True, check=False)
    assert done.returncode == status and first.poll() is None and can_bind(port) == (status == 0), done
    sentence = "it would also end this container, whose first process waits for it; restart the container"
    assert (sentence in done.stderr) == (status == 1)


@as_root
@pytest.mark.parametrize("free", ["port_manager.main(free[2:])", "subprocess.call(free)"])
def test_the_first_process_of_a_container_may_free_a_port_of_its_children(port, free):
    code = f"import port_manager, subprocess, sys; child = subprocess.Popen({holding(port)!r}, stdout=-1); "
    code += f"child.stdout.readline(); free = [sys.executable, '{PORT_MANAGER}', 'free', '{port}']; sys.exit({free})"
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", code]
    done = subprocess.run(unshare, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and "Successfully killed" in done.stderr, done


@boxed
def test_what_an_engine_publishes_is_no_port_of_a_namespace_of_its_own(hold, monkeypatch, said):
    seam.stand_in(monkeypatch, "run a tool", lambda *_: seam.answer(0, "web\n", ""))
    hold(8000)
    told = as_nobody(lambda: (ensure_port_available(8000), said())[1])
    assert "that you may not see" in told and "web" not in told
    hold(8001, name="docker-proxy")  # it is seen, and so it is of this namespace
    assert ensure_port_available(8001) is False and "the docker container web runs it" in said()
