"""Ways to the wrong process that were found by looking for them: none leads there any more."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import port_manager
from port_manager import Holder, PortError, PortManager, bind_port, ensure_port_available, find_listeners

from . import seam
from .conftest import (
    LINUX,
    PATIENCE,
    PORT_MANAGER,
    ROOT,
    ROOT_USER,
    birth,
    bound_is_told,
    boxes,
    can_bind,
    command_line,
    eventually,
    in_a_box,
)

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")


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


def test_one_who_must_stay_saves_all_who_share_his_socket(port, hold):
    """All or none are stopped: the first look finds also those who are far from the youngest."""
    held = hold(("127.0.0.1", port), children=2, strangers=8, orphans=True, first="ssh")
    assert eventually(lambda: held.alive() == held.children)
    oldest = held.children[0]
    predicted = command_line("free", str(port), "--dry-run")
    done = command_line("free", str(port))
    assert predicted.returncode == done.returncode == 1
    assert f"process {oldest}" in predicted.stdout and f"Process {oldest}" in done.stderr and "SSH tunnel" in done.stderr
    assert held.alive() == held.children


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


@pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")
@pytest.mark.parametrize("uids", [(65534, 0, 0), (0, 0, 65534), (65534, 65534, 65534)], ids=str)
def test_the_same_user_is_the_same_in_every_respect(port, start, uids, said):
    """A program that runs with another's rights is not ours to stop."""
    code = (
        "import os, socket, sys, time; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('127.0.0.1', int(sys.argv[1])));"
        f"s.listen(); os.setresuid(*{uids}); print(1, flush=True); time.sleep(60)"
    )
    holder = start(sys.executable, "-S", "-c", code, str(port))
    holder.stdout.readline()
    assert ensure_port_available(port) is False
    assert "it belongs to user" in said() and holder.poll() is None


@pytest.mark.skipif(not ROOT_USER, reason="needs root")
@pytest.mark.parametrize("first", [True, False])
def test_what_runs_in_a_namespace_of_its_own_is_left_alone(port, start, said, first):
    """With its first process everything in there would end; and what any other is good for is not seen from here."""
    code = "import socket, sys, time; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); print(1, flush=True); time.sleep(60)"
    program = [sys.executable, "-S", "-c", code, str(port)]
    inside = program if first else ["sh", "-c", '"$@" & wait', "sh", *program]
    holder = start("unshare", "--pid", "--fork", "--kill-child", *inside)
    holder.stdout.readline()
    assert ensure_port_available(port) is False
    assert "it runs in a container or sandbox of its own (a PID namespace)" in said() and not can_bind(port)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/system.slice/engine.service/job-1.scope", "systemctl stop engine"),
        ("/machine.slice/systemd-nspawn@web.service/payload/init.scope", "systemctl stop systemd-nspawn@web"),
        ("/machine.slice/machine-web.scope/payload", "it runs in the container web"),
        (f"/machine.slice/libpod-conmon-{'ab' * 32}.scope", "podman stop abababababab"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/console-7.scope", None),
        ("/user.slice/user-1000.slice/session-3.scope", None),
        # what a desktop's menu has started, and what that has started: no service, and no container
        (f"/user.slice/user-1000.slice/user@1000.service/app.slice/app-code-{'ab' * 16}.scope", None),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.kde.konsole@ab12.service", None),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/dbus-:1.2-org.gnome.Terminal.service", None),
        ("/user.slice/user-1000.slice/user@1000.service/tmux-spawn-12.scope", None),
        (f"/sandbox/{'ab' * 16}", None),
        # to stop these would end other logins and jobs
        ("/system.slice/app-api.service", "systemctl stop app-api"),
        ("/system.slice/dbus-broker.service", "systemctl stop dbus-broker"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-api.service", "systemctl --user stop app-api"),
        ("/system.slice/system-getty.slice/getty@tty1.service", None),
        ("/system.slice/ssh.service", None),
        ("/system.slice/cron.service", None),
    ],
)
def test_what_runs_inside_a_service_or_machine(monkeypatch, path, sentence):
    why = seam.managed(monkeypatch, path)
    assert why is sentence or sentence in why


@pytest.mark.parametrize(
    ("name", "command", "protected"),
    [
        ("code", "/usr/share/code/code --type=utility", True),
        ("firefox-esr", "/usr/lib/firefox-esr/firefox-esr", True),
        ("kubectl", "kubectl port-forward svc/api 8000", True),
        ("Xtigervnc", "/usr/bin/Xtigervnc :1", True),
        ("tmux: server", "tmux", True),
        ("node", "/home/a/.vscode-server/bin/x/node /home/a/.vscode-server/bin/x/out/server-main.js", True),
        ("python", "/usr/bin/python /home/a/.vscode-server/extensions/ms-python.debugpy/launcher app.py", False),
        ("python", "/usr/bin/python /home/a/code app.py", False),
    ],
    ids=["editor", "browser", "tunnel", "desktop", "multiplexer", "editors-server", "debugged-program", "folder-name"],
)
def test_who_holds_ports_for_others(name, command, protected):
    assert (seam.protected(name, command) is not None) == protected


@pytest.mark.parametrize(
    ("program", "words", "name", "protected"),
    [
        ("ssh: /Users/a/.colima/ssh.sock [mux]", "", "ssh", True),
        ("/Applications/Rancher Desktop.app/Contents/Resources/lima/bin/limactl", "hostagent --pidfile x", "limactl", True),
        ("/Applications/Docker.app/Contents/MacOS/com.docker.backend", "run /Users/a/x", "com.docker.backend", True),
        ("/Applications/OrbStack.app/Contents/Frameworks/OrbStack Helper.app/Contents/MacOS/OrbStack Helper", "vmgr",
         "OrbStack Helper", True),
        ("/Applications/Visual Studio Code.app/Contents/MacOS/Electron", "", "Electron", True),
        ("/Applications/Visual Studio Code.app/Contents/Frameworks/Code Helper (Plugin).app/Contents/MacOS/Code Helper (Plugin)",
         "--type=utility", "Code Helper (Plugin)", True),
        ("/Applications/Cursor.app/Contents/MacOS/Cursor", "", "Cursor", True),
        ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "--flag", "Google Chrome", True),
        ("tmux", "new -s main", "tmux", True),
        ("/usr/bin/python3", "/srv/app.py", "python3", False),
        ("/Library/Frameworks/Python.framework/Versions/3.12/Resources/Python.app/Contents/MacOS/Python",
         "/Users/alice/bin/code", "Python", False),
        ("node", "/Users/alice/code/server.js", "node", False),
    ],
    ids=lambda value: value.rpartition("/")[2] if isinstance(value, str) else "",
)  # fmt: skip
def test_names_from_ps(program, words, name, protected):
    """The name is that of the program: blanks in its path and paths among its words lead to no other."""
    row = f"38146 900 38146 S ttys001 alice Mon Nov 23 10:15:00 2026 {program} {words}"
    process = seam.parse("ps", row, f"  999 /bin/x\n38146 {program}\ngarbage\n")[38146]
    assert process.name == name
    assert (seam.protected(process.name, process.command, "macos") is not None) == protected
    if " " not in program:  # a ps that tells no names
        assert seam.parse("ps", row)[38146].name == name


@pytest.mark.parametrize(
    ("name", "protected"),
    [
        ("ssh.exe", True), ("SSH.EXE", True), ("sshd.exe", True), ("Code.exe", True), ("VSCodium.exe", True),
        ("Code - Insiders.exe", True), ("pycharm64.exe", True), ("svchost.exe", True), ("msedge.exe", True),
        ("services", False), ("python.exe", False), ("mycode.exe", False),
    ],
)  # fmt: skip
def test_names_of_windows(name, protected):
    assert (seam.protected(name, system="windows") is not None) == protected


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("node", "/usr/lib/code-server/lib/node /usr/lib/code-server"),
        ("node", "/home/.openvscode-server/node /home/.openvscode-server/out/server-main.js"),
        ("node", "/vscode/vscode-server/bin/linux-x64/1/node /vscode/vscode-server/bin/linux-x64/1/out/server-main.js"),
        ("node", "/home/a/.vscode/cli/serve-web/1/node server-main.js"),
        ("code-tunnel", "/usr/share/code/bin/code-tunnel serve-web"),
        ("java", "/opt/idea/jbr/bin/java -Didea.paths.selector=x"),
        ("nvim", "nvim --listen 127.0.0.1:8000"),
        ("firefox", "/usr/lib/firefox/firefox"),
        ("dropbear", "dropbear -F"),
    ],
    ids=lambda value: value.split()[0],
)
def test_editors_and_browsers_are_closed_by_hand(name, command):
    assert seam.protected(name, command)


def test_a_wildcard_of_ipv6_is_not_blamed_for_what_may_be_another(ports, hold, monkeypatch, said):
    """Where netlink is refused, nothing tells a v6-only listener from a dual-stack one, and a client may be in the way."""
    port, server = ports(), ports()
    seam.only(monkeypatch, "proc_net")
    seam.stand_in(monkeypatch, "sock_diag", lambda *_: None)
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
server = "import socket, sys, time; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); print(1, flush=True); time.sleep(60)"
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
        "    s = socket.socket(socket.AF_INET6); s.bind(('fe80::1', 8000, 0, socket.if_nametoindex(zone))); s.listen(); return s\n"
        "both = listen('d0'), listen('d1')\n"
        "found = [p.find_listeners(8000, f'fe80::1%{zone}') for zone in ('d0', 'd1', 'lo')]\n"
        "print([[len(holder.addresses) for holder in holders] for holders in found], seam.conflict('fe80::1', 'fe80::1%2'))"
    )
    assert in_a_box(setup, question).endswith("[[1], [1], []] None")


def test_after_a_question_the_holder_is_looked_at_again(port, hold, monkeypatch, said):
    """While the person thinks, the holder may become one who must stay."""
    held = hold(("127.0.0.1", port))
    seam.stand_in(monkeypatch, "question", lambda *_: seam.precious(monkeypatch, held.pid))
    assert ensure_port_available(port, policy="ask") is False
    assert "it is precious" in said() and held.alive() == [held.pid]


def test_a_yes_is_for_the_holder_that_was_asked_about(port, hold, monkeypatch, said):
    """While the person thinks, another may have taken the port."""
    held = hold(("127.0.0.1", port))
    others = []

    def agree(*_):
        held.end()
        others.append(hold(("127.0.0.1", port)))

    seam.stand_in(monkeypatch, "question", agree)
    assert ensure_port_available(port, policy="ask") is False
    assert "somebody else holds the port now" in said().lower() and others[0].alive() == [others[0].pid]


@pytest.mark.parametrize("host", ["::", "::0", "0:0:0:0:0:0:0:0", "[::]"])
def test_a_listener_on_ipv4_alone_stays_where_ipv6_is_asked_for(port, hold, said, host):
    """uvicorn binds :: without IPv4, and starts beside it; a dual-stack server would not: nobody is stopped in doubt."""
    four = hold(("127.0.0.1", port))
    assert ensure_port_available(port, host) is False and four.alive() == [four.pid]
    assert "it listens on IPv4 alone" in said() and "name the host 0.0.0.0" in said()
    assert ensure_port_available(port, "0.0.0.0") is True and four.alive() == []


@bound_is_told
def test_all_or_none_also_where_one_has_only_bound(port, hold, said):
    """One listens, another has bound a different address: both keep the wildcard from being bound."""
    listener, reserved = hold(("127.0.0.1", port)), hold(("127.0.0.2", port), reuse=False, listen=False, name="ssh")
    assert {holder.pid for holder in find_listeners(port, "0.0.0.0", thorough=True)} == {listener.pid, reserved.pid}
    assert ensure_port_available(port) is False and "SSH tunnel" in said()
    assert listener.alive() and reserved.alive()
    assert ensure_port_available(port, "127.0.0.1") is True and reserved.alive()


def test_a_process_lives_as_long_as_one_of_its_threads(port, hold, pinning):
    """Its first thread has ended: /proc shows a zombie without descriptors, which another thread still serves with."""
    held = hold(("127.0.0.1", port), children=1, first_thread_ends=True)
    child = held.children[0]
    assert eventually(lambda: Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert {holder.pid for holder in find_listeners(port, thorough=True)} == {held.pid, child}
    assert not seam.has_exited(child)
    assert ensure_port_available(port, "127.0.0.1", grace=1) is True
    assert held.alive() == [] and can_bind(port)


def test_a_proc_of_another_namespace_where_our_number_is_the_same_by_chance():
    if not (ROOT_USER and shutil.which("unshare")):
        pytest.skip("needs root and unshare")
    question = (
        "import os; from tests import seam; real = os.readlink\n"
        "os.readlink = lambda path, **at: str(os.getpid()) if path == '/proc/self' else real(path, **at)\n"
        "print(os.getpid(), seam.proc_is_ours(os.getpid()))"
    )
    inside = ["unshare", "--pid", "--fork", sys.executable, "-c", question]
    for options, ours in ((["--mount-proc"], "True"), ([], "False")):
        done = subprocess.run([*inside[:1], *options, *inside[1:]], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.split() == ["1", ours]


@pytest.mark.parametrize("spare", [0, 1, 2, 4])
def test_without_a_descriptor_to_spare_nobody_is_gone(hold, ports, spare):
    """What cannot be read because too many files are open has not ended."""
    held = hold(("127.0.0.1", ports()), ignore_term=True)
    question = (
        "import os, port_manager as p, pwd, resource, select, signal, struct, sys\n"
        "highest = max(map(int, os.listdir('/proc/self/fd')))\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (highest + {spare}, highest + {spare}))\n"
        f"print(p.PortManager(8000, grace=0.2).kill_process({held.pid}))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", question], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() == str(held.alive() == [])


def test_a_name_that_is_forgotten_meanwhile(port, hold, monkeypatch, said):
    """The name server answered for the bind probe, and not for the look: an answer, not an exception."""
    held = hold(("127.0.0.1", port))
    answers = iter([socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)])

    def resolved(*_, **__):
        for answer in answers:
            return answer
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    assert ensure_port_available(port, "flaky") is False and held.alive() == [held.pid]
    assert "Host name 'flaky' is unknown" in said()


def test_bind_port_frees_no_more_than_it_binds(port, hold):
    six = hold(("::1", port))
    with bind_port(port, "localhost") as listener:
        assert listener.getsockname() == ("127.0.0.1", port)
    assert six.alive() == [six.pid]


def test_a_parent_that_did_not_start_the_taker_is_not_accused(port, hold, monkeypatch):
    taker = hold(("127.0.0.1", port))
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        why = seam.taken_again(port, "127.0.0.1", bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()
    assert f"by process {taker.pid}" in why and "supervisor" not in why


def test_one_that_lets_go_and_lives_is_told(port, hold, monkeypatch, said):
    """The port is free, and the process that cannot be ended is not kept quiet about."""
    held = hold(("127.0.0.1", port), drain=True)
    seam.limits(monkeypatch, forced_wait=0.0)
    seam.on_signal(monkeypatch, lambda pid, firmly, send: firmly or send())
    assert ensure_port_available(port, grace=0.3) is True
    assert f"⚠️  Process {held.pid} does not end even when forced" in said()


@pytest.mark.parametrize("grace", [float("inf"), float("nan"), -1, 1e9, "5", None])
def test_a_grace_period_that_is_none_stops_nobody(port, hold, grace):
    held = hold(("127.0.0.1", port))
    with pytest.raises(ValueError, match="a grace period is a number of seconds"):
        ensure_port_available(port, grace=grace)
    assert held.alive() == [held.pid]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".b", "x\0y"], ids=["unknown", "too-long", "nul"])
def test_an_unknown_host_is_one_error_everywhere(host):
    for call in (find_listeners, port_manager.wait_until_free, port_manager.wait_until_listening, bind_port):
        with pytest.raises(PortError, match="is unknown"):
            call(8000, host)
    assert command_line("wait", "8000", "--host", host.replace("\0", "?"), "--timeout", "1").returncode == 1


def test_waiting_for_what_cannot_come_ends():
    with pytest.raises(PortError, match="is not an address of this machine"):
        port_manager.wait_until_free(8000, "192.0.2.1")


def test_a_long_line_of_parents_is_ordered():
    holders = [Holder(pid, pid - 1, "", "", "", "", None, ()) for pid in range(3000, 1, -1)]
    assert [holder.pid for holder in seam.roots_first(holders)] == list(range(2, 3001))


def test_workers_of_an_interpreter_in_a_folder_with_a_blank(tmp_path, port):
    """The words of a command line are told apart by what separates them, and that is no blank."""
    (tmp_path / "my tools").mkdir()
    python = tmp_path / "my tools" / "python3"
    python.symlink_to(sys.executable)
    (tmp_path / "main.py").write_text("import port_manager; port_manager.guard()\n")
    (tmp_path / "uvicorn").mkdir()
    (tmp_path / "uvicorn" / "__init__.py").write_text("")
    (tmp_path / "uvicorn" / "__main__.py").write_text(
        "import importlib, os, socket, sys\n"
        "wait, ready = os.pipe(); over, end = os.pipe()\n"
        "def worker():\n"
        "    os.close(end); importlib.import_module('main')\n"
        "    s = socket.socket(); s.setsockopt(1, 15, 1); s.bind(('127.0.0.1', int(sys.argv[3]))); s.listen()\n"
        "    os.write(ready, b'1'); os.read(over, 1); os._exit(0)\n"
        "for _ in range(2):\n"
        "    os.fork() or worker()\n"
        "    os.read(wait, 1)\n"
        "os.close(end); print([os.wait()[1] for _ in range(2)])\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHOME": sys.base_prefix}
    words = [str(python), "-X", "utf8", "-m", "uvicorn", "main:app", "--port", str(port)]
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.stdout == "[0, 0]\n", done


def test_the_command_line_file_is_the_one_that_is_tested():
    assert os.path.samefile(port_manager.__file__, PORT_MANAGER)
