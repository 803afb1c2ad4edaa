"""May we stop it? Who must stay is left alone, with the sentence that a person needs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import port_manager
from port_manager import ensure_port_available, find_listeners

from . import seam
from .conftest import (
    LINUX,
    LISTENING,
    NOBODY,
    PATIENCE,
    PORT_MANAGER,
    ROOT,
    ROOT_USER,
    as_nobody,
    bound_is_told,
    can_bind,
    command_line,
    eventually,
    shown_until_closed,
)

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")
ID = "0123456789abcdef" * 4


@pytest.fixture
def cgroup():
    """Move a process into a control group with a path of our choice; a maker that may skip the test."""
    made: list[Path] = []
    homes: dict[int, Path] = {}

    def move(pid: int, path: str) -> None:
        for home in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"):
            folder = Path(home)
            if not (folder / "cgroup.procs").exists():
                continue
            try:
                for part in (f"pm-tests-{os.getpid()}", *Path(path).parts):
                    folder = folder / part
                    if not folder.exists():
                        folder.mkdir()
                        made.append(folder)
                (folder / "cgroup.procs").write_text(str(pid))
            except OSError:
                continue
            homes[pid] = Path(home)
            return
        pytest.skip("no control group can be made here")

    yield move
    for pid, home in homes.items():
        with contextlib.suppress(OSError):
            (home / "cgroup.procs").write_text(str(pid))
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            folder.rmdir()


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder that comes first on PATH, and a maker of tools in it; the tools log how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "calls"
    log.write_text("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, script: str) -> Path:
        tool = folder / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> "{log}"\n{script}\n')
        tool.chmod(0o755)
        return log

    return make


def refused(port, said, *parts, policy=None):
    assert ensure_port_available(port, policy=policy) is False
    for part in parts:
        assert part in said(), said()


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
    ],
)
def test_a_service_or_a_container_is_left_alone(port, hold, cgroup, said, path, sentence, tools):
    tools("docker", "exit 1")
    tools("podman", "exit 1")
    held = hold(("127.0.0.1", port), children=1)
    for pid in (held.pid, *held.children):
        cgroup(pid, path)
    refused(port, said, f"Process {held.pid} (", "is left alone", sentence)
    assert held.alive() == [held.pid, *held.children]


@pytest.mark.parametrize("policy", ["kill", "own", "ask", "refuse"])
def test_a_container_has_a_name_and_is_stopped_by_nobody_here(port, hold, cgroup, tools, said, policy):
    calls = tools("docker", "echo web")
    held = hold(("127.0.0.1", port))
    cgroup(held.pid, f"system.slice/docker-{ID}.scope")
    refused(port, said, "the docker container web runs it; stop it with: docker stop web", policy=policy)
    assert held.alive() == [held.pid]
    assert f"--filter id={ID} " in calls.read_text() and " stop " not in calls.read_text()


@pytest.mark.parametrize(
    "path",
    [
        "user.slice/user-1.slice/session-3.scope",
        "user.slice/user-1.slice/user@1.service/app.slice/app-code-12.scope",
        "user.slice/user-1.slice/user@1.service/init.scope",
        "just/a/folder",
    ],
)
def test_a_login_session_is_no_service(port, hold, cgroup, path):
    held = hold(("127.0.0.1", port))
    cgroup(held.pid, path)
    assert ensure_port_available(port) is True
    assert held.alive() == []


@pytest.mark.parametrize(
    ("path", "ours"),
    [("system.slice/pm-runner.service", "system.slice/pm-runner.service"), (f"docker/{ID}/web", f"docker/{ID}/exec")],
)
def test_what_shares_our_own_service_or_container_is_not_foreign(port, hold, cgroup, path, ours):
    """Inside a container, or inside one service, development goes on as usual."""
    held = hold(("127.0.0.1", port))
    cgroup(held.pid, path)
    freed = subprocess.Popen(
        ["sh", "-c", f"read go; exec '{sys.executable}' '{PORT_MANAGER}' free {port}"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    cgroup(freed.pid, ours)
    _, told = freed.communicate("go\n", timeout=PATIENCE)
    assert freed.returncode == 0, told
    assert held.alive() == []


def test_a_terminal_that_is_a_unit_does_not_make_a_service(monkeypatch):
    path = "/user.slice/user-1.slice/user@1.service/app.slice/console.service"
    system = path.replace("/user.slice/user-1.slice/user@1.service/app.slice", "/system.slice")
    stop = "systemctl --user stop console.service", "systemctl stop console.service"
    places = ((34816, path, None), (0, path, stop[0]), (34816, system, stop[1]))
    for tty, place, sentence in places:
        why = seam.managed(monkeypatch, place, tty)
        assert why is sentence or sentence in why


# Published ports of containers


@pytest.fixture
def proxy(port, hold):
    """A process that calls itself docker-proxy and holds the port."""
    held = hold(("0.0.0.0", port), name="docker-proxy")
    assert eventually(lambda: port_manager.find_listeners(port)[0].name == "docker-proxy")
    return held


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        *((script, "docker stop NAME (docker ps --filter publish={port} tells the name")
          for script in ("exit 1", "exec sleep 9", "true", "echo one; echo two")),
        ("echo web", "the docker container web runs it; stop it with: docker stop web"),
    ],
)  # fmt: skip
def test_a_proxy_stays_and_the_words_help(port, proxy, tools, said, script, sentence, monkeypatch):
    seam.limits(monkeypatch, tool_timeout=0.3 if "sleep" in script else PATIENCE)
    calls = tools("docker", script)
    tools("podman", "exit 127")
    refused(port, said, sentence.format(port=port))
    assert proxy.alive() == [proxy.pid]
    assert f"docker ps --filter publish={port}/tcp " in calls.read_text() and " stop " not in calls.read_text()


# Squatters, other users, policies


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        ("ssh sshd dropbear kubectl ngrok cloudflared adb", "it is a tunnel"),
        ("qemu-system-x86_64 VBoxHeadless vmware-vmx", "it forwards the port to a virtual machine"),
        ("systemd", "systemctl --user stop NAME.socket (systemctl --user list-sockets tells it)"),
        ("rootlessport slirp4netns pasta com.docker.backend", "docker stop NAME (docker ps"),
    ],
)
def test_what_holds_ports_for_others_is_left_alone_with_its_remedy(ports, hold, said, names, remedy, tools):
    for tool in ("docker", "podman", "systemctl"):
        tools(tool, "exit 1")
    for name in names.split():
        port = ports()
        held = hold(("127.0.0.1", port), name=name)
        assert eventually(lambda held=held, name=name: seam.read(held.pid).name == name[:15])
        refused(port, said, f"Process {held.pid} (", remedy)
        assert held.alive() == [held.pid]
        assert said().count("is left alone") == said().count(remedy)


@pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")
def test_another_users_process_is_left_alone_by_root(port, hold, said):
    held = hold(("127.0.0.1", port), uid=NOBODY)
    refused(port, said, "it belongs to user nobody; only that user should stop it")
    assert held.alive() == [held.pid]


@pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")
def test_workers_that_gave_up_their_rights_go_with_their_master(port, hold):
    """nginx, started as root: its workers belong to another user, and to the family."""
    held = hold(("127.0.0.1", port), children=2, uid=NOBODY)
    assert eventually(lambda: {holder.user for holder in port_manager.find_listeners(port)} == {"root", "nobody"})
    assert ensure_port_available(port) is True
    assert held.alive() == []


def test_who_cannot_be_told_stays(port, hold, monkeypatch, said):
    """Where the line of our parents ends in the dark, whoever is older than what is seen of it may be in it."""
    held = hold(("127.0.0.1", port))
    started = find_listeners(port)[0].started
    with monkeypatch.context() as patch:
        seam.ancestry_is_hidden(patch, oldest=started + 1)
        refused(port, said, "it may be one of our own ancestors")
    with monkeypatch.context() as patch:
        seam.users_are_hidden(patch)
        refused(port, said, "it cannot be told whose it is")
    assert held.alive() == [held.pid]
    seam.ancestry_is_hidden(monkeypatch, oldest=started - 1)
    assert ensure_port_available(port) is True and held.alive() == []


@pytest.fixture
def projects(tmp_path):
    """Two folders with a mark of a repository, a worktree below the first, and a folder without."""
    for folder in ("api/src", "api/.worktrees/fix", "shop", "notes"):
        (tmp_path / folder).mkdir(parents=True)
    for mark in ("api/.git", "api/.worktrees/fix/.git", "shop/package.json"):
        (tmp_path / mark).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        ("api", "api", None),
        ("api", "api/src", None),
        ("api/src", "api", None),
        ("notes", "notes", None),
        ("api", "api/.worktrees/fix", "another project, {}, and the policy 'own' stops only what belongs to {ours}"),
        ("api/.worktrees/fix", "api", "another project, {}, and the policy 'own'"),
        ("api", "shop", "another project, {}, and the policy 'own'"),
        ("api", "notes", "the folder {}, and the policy 'own'"),
        ("/", "api", "another project, {}, and the policy 'own' stops only what belongs to this project, and this folder is in none"),
    ],
)
def test_own_stops_only_what_is_of_this_project(port, hold, projects, monkeypatch, said, ours, theirs, why):
    monkeypatch.chdir(projects / ours)
    monkeypatch.setenv("PORT_MANAGER_POLICY", "own")
    held = hold(("127.0.0.1", port), cwd=str(projects / theirs))
    assert ensure_port_available(port) is (why is None)
    assert held.alive() == ([held.pid] if why else [])
    where = seam.short_folder(str(projects / theirs))
    assert why is None or f"it belongs to {why.format(where, ours=projects / ours)}" in said()


@pytest.mark.parametrize(
    ("ours", "theirs", "stays"),
    [("api", "shop", True), ("notes", "shop", True), ("api", "notes", False), ("api", "api", False)],
)
def test_another_projects_server_is_stopped_by_name_alone(port, hold, projects, monkeypatch, said, ours, theirs, stays):
    """An automatic start leaves it alone; who types the port means it; the policy kill is the old way."""
    monkeypatch.chdir(projects / ours)
    held = hold(("127.0.0.1", port), cwd=str(projects / theirs))
    assert ensure_port_available(port) is not stays
    if stays:
        where = seam.short_folder(str(projects / theirs))
        assert f"it belongs to another project, {where}; take the next free port (--next), or stop it: " in said()
        assert f"port_manager.py free {port} (PORT_MANAGER_POLICY=kill" in said() and held.alive() == [held.pid]
        assert command_line("free", str(port)).returncode == 0 and held.alive() == []
        held = hold(("127.0.0.1", port), cwd=str(projects / theirs))
        monkeypatch.setenv("PORT_MANAGER_POLICY", "kill")
        assert ensure_port_available(port) is True
    assert held.alive() == []


def test_another_port_of_another_project_ends_with_its_server_only_when_it_is_named(ports, hold, projects, monkeypatch):
    """A debugger's port of this project is named by the project; whatever else would close has to be named."""
    first, second = sorted((ports(), ports()))
    theirs = hold(("127.0.0.1", first), ("127.0.0.1", second), cwd=str(projects / "shop"))
    monkeypatch.chdir(projects / "api")
    done = command_line("free", str(first))
    assert done.returncode == 1 and theirs.alive() == [theirs.pid]
    assert f"stopping it would also close port {second} (" in done.stderr
    assert f" {theirs.pid}); to stop all: port_manager.py free {first} {second}\n" in done.stderr
    assert command_line("free", str(first), str(second)).returncode == 0 and theirs.alive() == []
    ours = hold(("127.0.0.1", first), ("127.0.0.1", second), cwd=str(projects / "api" / "src"))
    assert command_line("free", str(first)).returncode == 0 and ours.alive() == []


def test_own_knows_a_folder_by_more_than_its_name(port, hold, tmp_path, monkeypatch):
    """A blank that no terminal shows; a folder that has gone, and one that bears the name which /proc gives to that."""
    wide, gone, namesake = tmp_path / "我的\u3000项目", tmp_path / "api", tmp_path / "api (deleted)"
    for folder in (wide, gone):
        folder.mkdir()
    monkeypatch.chdir(wide)
    held = hold(("127.0.0.1", port), cwd=str(wide))
    assert ensure_port_available(port, policy="own") is True and held.alive() == []
    held = hold(("127.0.0.1", port), cwd=str(gone))
    gone.rmdir()
    namesake.mkdir()
    monkeypatch.chdir(namesake)
    assert ensure_port_available(port, policy="own") is False and held.alive() == [held.pid]


@pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")
def test_a_socket_that_another_user_opened_is_left_to_that_user(port, hold):
    """root listens, and its workers give up their rights: whoever they belong to may not stop them one by one."""
    held = hold(("127.0.0.1", port), children=2, uid=NOBODY)
    assert eventually(lambda: {holder.user for holder in port_manager.find_listeners(port)} == {"root", "nobody"})
    assert as_nobody(lambda: ensure_port_available(port)) is False
    assert held.alive() == [held.pid, *held.children]


WITH_A_TERMINAL = """
import os, pty, socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
listener.set_inheritable(sys.argv[2] == "leaking")
pid, terminal = pty.fork()
if pid == 0:
    os.write(1, b"here")
    os.execvp(sys.argv[3], sys.argv[3:])
os.read(terminal, 4)
print(pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("program", ["sh -i", "sleep 60"], ids=["shell", "program"])
def test_what_runs_on_a_terminal_of_its_own_has_only_inherited_the_port(port, start, said, program):
    """A server that opens terminals: in one of them there may be a shell, or unsaved text."""
    server = start(sys.executable, "-S", "-c", WITH_A_TERMINAL, str(port), "leaking", *program.split())
    inner = int(server.stdout.readline())
    refused(port, said, f"Process {inner} (", "it runs on a terminal of its own, and has only inherited the port")
    assert server.poll() is None


def test_a_server_whose_terminals_would_end_with_it_stays(port, start, said):
    """The server of an editor, whatever that is called: killing it cut the user off from what was typed there."""
    server = start(sys.executable, "-S", "-c", WITH_A_TERMINAL, str(port), "closed", "sh", "-i")
    inner = int(server.stdout.readline())
    assert eventually(lambda: seam.read(inner).name == "sh")
    refused(port, said, f"Process {server.pid} (", f"is left alone: stopping it would also end a terminal (sh {inner})")
    assert server.poll() is None


def test_the_program_of_a_terminal_of_its_own_may_be_the_server(port, said):
    """As in tmux new-session 'python app.py'."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-S", "-c", LISTENING, str(port)])
    assert b"ready" in os.read(terminal, 100)
    assert ensure_port_available(port) is True
    assert os.waitpid(pid, 0)[1] == 15
    os.close(terminal)


def test_refuse_stops_nobody(port, hold, said, monkeypatch):
    held = hold(("127.0.0.1", port))
    monkeypatch.setenv("PORT_MANAGER_POLICY", "Refuse")
    assert ensure_port_available(port) is False
    assert "the policy 'refuse' stops nobody" in said().lower()
    assert held.alive() == [held.pid]
    assert ensure_port_available(port, policy="kill") is True  # what the caller says goes before the variable


def test_a_policy_that_is_none_stops_nobody(port, hold, said, monkeypatch):
    held = hold(("127.0.0.1", port))
    monkeypatch.setenv("PORT_MANAGER_POLICY", "kil")
    assert ensure_port_available(port) is False
    assert "PORT_MANAGER_POLICY is 'kil', which is none of kill, own, ask, refuse" in said()
    assert held.alive() == [held.pid]
    with pytest.raises(ValueError, match="a policy is one of kill, own, ask, refuse"):
        ensure_port_available(port, policy="kil")


def test_the_variable_can_only_tighten(port, hold, monkeypatch):
    held = hold(("127.0.0.1", port))
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("PORT_MANAGER_POLICY", "kill")
    assert ensure_port_available(port) is False
    assert ensure_port_available(port, policy="kill") is False
    assert held.alive() == [held.pid]


def test_ask_without_a_terminal_refuses(port, hold):
    held = hold(("127.0.0.1", port))
    done = command_line("free", str(port), "--policy", "ask", stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and "needs a terminal" in done.stderr
    assert held.alive() == [held.pid]


FREE = (PORT_MANAGER, "free", "--policy", "ask")
ENSURE = ("-c", "import port_manager, sys; sys.exit(not port_manager.ensure_port_available(int(sys.argv[1])))")


def answered(answer, *words, **environ):
    """What is shown before the answer and after it, and the status, of a program with a question on a terminal."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, *words], {**os.environ, "PYTHONPATH": str(ROOT), **environ})
    shown = b""
    while b" [y/N]" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, answer)
    after = shown_until_closed(terminal)
    return shown.decode(), after, os.waitpid(pid, 0)[1] >> 8


@pytest.mark.parametrize("answer", [b"y\n", b"YES\n", b"n\n", b"\n", b"\x04", b"\xff\xfey\n"])
def test_ask_on_a_terminal(port, hold, answer):
    """The last of the answers is no text, and so no yes."""
    held = hold(("127.0.0.1", port))
    shown, after, status = answered(answer, *FREE, str(port), PYTHONIOENCODING="utf-8:strict")
    assert f"Process using port: {held.pid} (" in shown
    question = shown.splitlines()[-1]  # it says all by itself: the lines above may have gone into a log
    assert question.startswith(f"Stop process {held.pid} (") and question.endswith(f") to free port {port}? [y/N] ")
    agreed = answer.strip().lower() in (b"y", b"yes")
    assert (status, held.alive()) == ((0, []) if agreed else (1, [held.pid]))
    assert ("The answer was no: nobody was stopped" in after) != agreed and "Traceback" not in after


@pytest.mark.parametrize("answer", [b"y\n", b"n\n"])
def test_an_automatic_start_asks_about_another_projects_server(port, hold, projects, monkeypatch, answer):
    held = hold(("127.0.0.1", port), cwd=str(projects / "shop"))
    monkeypatch.chdir(projects / "api")
    shown, _, status = answered(answer, *ENSURE, str(port))
    where = seam.short_folder(str(projects / "shop"))
    assert f"Process {held.pid} belongs to another project, {where}. Stop process {held.pid} (" in shown.splitlines()[-1]
    assert (status, held.alive()) == ((0, []) if answer == b"y\n" else (1, [held.pid]))


def test_force_lifts_the_environment_and_no_guard(port, hold, monkeypatch):
    held = hold(("127.0.0.1", port))
    environ = {**os.environ, "ENVIRONMENT": "production"}
    assert command_line("free", str(port), env=environ).returncode == 1
    assert held.alive() == [held.pid]
    tunnel = hold(("127.0.0.2", port), name="ssh")
    refused_ = command_line("free", str(port), "--force", env=environ)
    assert refused_.returncode == 1 and "it is a tunnel" in refused_.stderr
    assert held.alive() == [held.pid] and tunnel.alive() == [tunnel.pid]
    done = command_line("free", str(port), "--host", "127.0.0.1", "--force", env=environ)
    assert done.returncode == 0, done.stderr
    assert held.alive() == []


def test_one_who_must_stay_saves_all_who_share_his_socket(port, hold):
    """All or none are stopped: the first look finds also those who are far from the youngest."""
    held = hold(("127.0.0.1", port), children=2, strangers=8, orphans=True, first="ssh")
    assert eventually(lambda: held.alive() == held.children)
    oldest = held.children[0]
    predicted = command_line("free", str(port), "--dry-run")
    done = command_line("free", str(port))
    assert predicted.returncode == done.returncode == 1
    assert f"leave {oldest} alone: it is a tunnel" in predicted.stdout
    assert f"Process {oldest} (" in done.stderr and "is left alone: it is a tunnel" in done.stderr
    assert held.alive() == held.children


@pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")
@pytest.mark.parametrize("uids", [(65534, 0, 0), (0, 0, 65534), (65534, 65534, 65534)], ids=str)
def test_the_same_user_is_the_same_in_every_respect(port, start, uids, said):
    """A program that runs with another's rights is not ours to stop."""
    code = (
        "import os, socket, sys, time; s = socket.socket(); s.setsockopt(1, 2, 1);"
        f"s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); os.setresuid(*{uids}); print(1, flush=True); time.sleep(60)"
    )
    holder = start(sys.executable, "-S", "-c", code, str(port))
    holder.stdout.readline()
    assert ensure_port_available(port) is False
    assert "it belongs to user" in said() and holder.poll() is None


@pytest.mark.skipif(not ROOT_USER, reason="needs root")
@pytest.mark.parametrize("first", [True, False])
def test_what_runs_in_a_namespace_of_its_own_is_left_alone(port, start, said, first):
    """With its first process everything in there would end; and what any other is good for is not seen from here."""
    code = (
        "import socket, sys, time; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen();"
        "print(1, flush=True); time.sleep(60)"
    )
    program = [sys.executable, "-S", "-c", code, str(port)]
    inside = program if first else ["sh", "-c", '"$@" & wait', "sh", *program]
    holder = start("unshare", "--pid", "--fork", "--kill-child", *inside)
    holder.stdout.readline()
    assert ensure_port_available(port) is False
    assert "a container or sandbox of its own (a PID namespace) runs it; stop it there" in said() and not can_bind(port)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/system.slice/engine.service/job-1.scope", "systemctl stop engine"),
        ("/machine.slice/systemd-nspawn@web.service/payload/init.scope", "systemctl stop systemd-nspawn@web"),
        ("/machine.slice/machine-web.scope/payload", "the container machine-web"),
        (f"/machine.slice/libpod-conmon-{'ab' * 32}.scope", "the container abababababab"),
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


def test_after_a_question_the_holder_is_looked_at_again(port, hold, monkeypatch, said):
    """While the person thinks, the holder may become one who must stay."""
    held = hold(("127.0.0.1", port))
    seam.stand_in(monkeypatch, "terminal", lambda: True)
    seam.stand_in(monkeypatch, "question", lambda *_: seam.precious(monkeypatch, held.pid) or True)
    assert ensure_port_available(port, policy="ask") is False
    assert "it is precious" in said() and held.alive() == [held.pid]


@bound_is_told
def test_all_or_none_also_where_one_has_only_bound(port, hold, said):
    """One listens, another has bound a different address: both keep the wildcard from being bound."""
    listener, reserved = hold(("127.0.0.1", port)), hold(("127.0.0.2", port), reuse=False, listen=False, name="ssh")
    assert {holder.pid for holder in find_listeners(port, "0.0.0.0", thorough=True)} == {listener.pid, reserved.pid}
    assert ensure_port_available(port) is False and "it is a tunnel" in said()
    assert listener.alive() and reserved.alive()
    assert ensure_port_available(port, "127.0.0.1") is True and reserved.alive()
