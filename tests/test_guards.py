"""May we stop it? Who must stay is left alone, with the sentence that a person needs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import port_manager
from port_manager import ensure_port_available

from . import seam
from .conftest import (
    LINUX,
    NOBODY,
    PATIENCE,
    PORT_MANAGER,
    ROOT_USER,
    as_nobody,
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


def refused(port, said, *parts):
    assert ensure_port_available(port) is False
    for part in parts:
        assert part in said(), said()


# Control groups: services and containers


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("system.slice/pm-web.service", "it is the systemd service pm-web; stop that with: systemctl stop pm-web"),
        ("system.slice/pm-web.service/inner", "systemctl stop pm-web"),
        (
            "user.slice/user-1.slice/user@1.service/app.slice/pm-sync.service",
            "it is the systemd service pm-sync; stop that with: systemctl --user stop pm-sync",
        ),
        (f"system.slice/docker-{ID}.scope", f"it runs in the container {ID[:12]}; stop that with: docker stop {ID[:12]}"),
        (f"machine.slice/libpod-{ID}.scope/container", f"podman stop {ID[:12]}"),
        (f"docker/{ID}", f"docker stop {ID[:12]}"),
        (f"kubepods.slice/cri-containerd-{ID}.scope", f"it runs in the container {ID[:12]}; stop that with: the tool"),
        ("lxc.payload.web", "it runs in the container web; stop that with: the tool that runs it"),
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


@pytest.mark.parametrize("path", ["system.slice/pm-runner.service", f"docker/{ID}"])
def test_what_shares_our_own_control_group_is_not_foreign(port, hold, cgroup, path):
    """Inside a container, or inside one service, development goes on as usual."""
    held = hold(("127.0.0.1", port))
    cgroup(held.pid, path)
    freed = subprocess.Popen(
        ["sh", "-c", f"read go; exec '{sys.executable}' '{PORT_MANAGER}' free {port}"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    cgroup(freed.pid, path)
    _, told = freed.communicate("go\n", timeout=PATIENCE)
    assert freed.returncode == 0, told
    assert held.alive() == []


def test_a_terminal_that_is_a_unit_does_not_make_a_service(monkeypatch):
    path = "/user.slice/user-1.slice/user@1.service/app.slice/console.service"
    system = path.replace("/user.slice/user-1.slice/user@1.service/app.slice", "/system.slice")
    places = ((34816, path, None), (0, path, "systemctl --user stop console"), (34816, system, "systemctl stop console"))
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


@pytest.mark.parametrize("script", ["exit 1", "echo garbage", "printf 'a\\tb\\n'", "exec sleep 9"], ids=str)
def test_without_an_answer_the_proxy_stays_and_the_words_help(port, proxy, tools, said, script, monkeypatch):
    seam.limits(monkeypatch, tool_timeout=0.3)
    tools("docker", script)
    tools("podman", "exit 127")
    refused(port, said, "it publishes the port of a container", f"docker ps --filter publish={port}", "and stop that")
    assert proxy.alive() == [proxy.pid]


@pytest.mark.parametrize("published", ["0.0.0.0:1->80/tcp", "0.0.0.0:{}->80/udp", "{}/tcp", ""])
def test_a_container_that_does_not_publish_the_port_is_not_stopped(port, proxy, tools, said, published):
    calls = tools("docker", f"printf '{ID}\\tother\\t{published.format(port)}\\n'")
    tools("podman", "exit 127")
    refused(port, said, "it publishes the port of a container")
    assert "stop other" not in calls.read_text() and proxy.alive() == [proxy.pid]


# Squatters, other users, policies


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ssh", "it is an SSH tunnel"),
        ("sshd", "it forwards the port for an SSH login"),
        ("systemd", "systemctl list-sockets"),
        ("launchd", "launchctl"),
        ("ControlCenter", "AirPlay Receiver"),
        ("System", "http.sys"),
        ("svchost.exe", "portproxy"),
        ("wslrelay.exe", "stop that program in WSL"),
        ("rootlessport", "it publishes the port of a container"),
        ("slirp4netns", "it publishes the port of a container"),
        ("pasta", "it publishes the port of a container"),
        ("com.docker.backend", "it publishes the port of a container"),
        ("OrbStack Helper", "it publishes the port of a container"),
    ],
)
def test_squatters_are_left_alone_with_their_remedy(port, hold, said, name, remedy, tools):
    tools("docker", "exit 1")
    tools("podman", "exit 1")
    held = hold(("127.0.0.1", port), name=name)
    assert eventually(lambda: port_manager.find_listeners(port)[0].name == name[:15])
    refused(port, said, f"Process {held.pid} (", "is left alone", remedy)
    assert held.alive() == [held.pid]


def test_the_editors_own_server_is_left_alone(port, start, tmp_path, said):
    """On WSL, VS Code's own node server held the port; killing it cut the user's editor off."""
    script = tmp_path / ".vscode-server" / "bin" / "server.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        f"import socket, time; s = socket.socket(); s.bind(('127.0.0.1', {port})); s.listen(); print(1, flush=True); time.sleep(60)"
    )
    holder = start(sys.executable, str(script))
    holder.stdout.readline()
    refused(port, said, "it is an editor or its server")
    assert holder.poll() is None


@pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")
def test_another_users_process_is_left_alone_by_root(port, hold, said):
    held = hold(("127.0.0.1", port), uid=NOBODY)
    refused(port, said, "it belongs to user nobody, and you are root; only that user should stop it")
    assert held.alive() == [held.pid]


@pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")
def test_workers_that_gave_up_their_rights_go_with_their_master(port, hold):
    """nginx, started as root: its workers belong to another user, and to the family."""
    held = hold(("127.0.0.1", port), children=2, uid=NOBODY)
    assert eventually(lambda: {holder.user for holder in port_manager.find_listeners(port)} == {"root", "nobody"})
    assert ensure_port_available(port) is True
    assert held.alive() == []


def test_who_cannot_be_told_stays():
    assert "it may be one of our own parents" in seam.refusal(None)
    assert "it cannot be told whose it is" in seam.refusal([])


def test_own_stops_only_what_was_started_from_this_project(port, hold, tmp_path, monkeypatch, said):
    project, elsewhere = tmp_path / "api", tmp_path / "api-old"
    (project / "src").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(project)
    held = hold(("127.0.0.1", port), cwd=str(elsewhere))
    assert ensure_port_available(port, policy="own") is False
    assert f"it was not started from this project: it runs in {elsewhere}, and the policy 'own' wants {project}" in said()
    monkeypatch.chdir(elsewhere)
    assert ensure_port_available(port, policy="own") is True
    assert held.alive() == []
    monkeypatch.chdir(project)
    inner = hold(("127.0.0.1", port), cwd=str(project / "src"))
    monkeypatch.setenv("PORT_MANAGER_POLICY", "own")
    assert ensure_port_available(port) is True
    assert inner.alive() == []


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


LEAKING = """
import os, pty, socket, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
listener.set_inheritable(True)
pid, terminal = pty.fork()
if pid == 0:
    os.write(1, b"here")
    os.execvp(sys.argv[2], sys.argv[2:])
os.read(terminal, 4)
print(pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("program", ["sh -i", "sleep 60"], ids=["shell", "program"])
def test_what_runs_on_a_terminal_of_its_own_has_only_inherited_the_port(port, start, said, program):
    """A server that opens terminals: in one of them there may be a shell, or unsaved text."""
    server = start(sys.executable, "-S", "-c", LEAKING, str(port), *program.split())
    inner = int(server.stdout.readline())
    refused(port, said, f"Process {inner} (", "it runs on a terminal of its own, and has only inherited the port; end it there")
    assert server.poll() is None


def test_the_program_of_a_terminal_of_its_own_may_be_the_server(port, said):
    """As in tmux new-session 'python app.py'."""
    pty = pytest.importorskip("pty")
    code = f"import socket, time; s = socket.socket(); s.bind(('127.0.0.1', {port})); s.listen(); print('ready', flush=True); time.sleep(60)"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-S", "-c", code])
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


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1)])
def test_ask_on_a_terminal(port, hold, answer, status):
    pty = pytest.importorskip("pty")
    held = hold(("127.0.0.1", port))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, PORT_MANAGER, "free", str(port), "--policy", "ask"])
    shown = ""
    while " [y/N]" not in shown:
        shown += os.read(terminal, 4096).decode()
    assert f"Process using port: {held.pid} (" in shown
    question = shown.splitlines()[-1]  # it says all by itself: the lines above may have gone into a log
    assert question.startswith(f"Stop process {held.pid} (") and question.endswith(f") to free port {port}? [y/N] ")
    os.write(terminal, answer.encode())
    end = time.monotonic() + PATIENCE
    with contextlib.suppress(OSError):
        while time.monotonic() < end and os.read(terminal, 4096):
            pass
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] >> 8 == status
    assert held.alive() == ([] if status == 0 else [held.pid])


def test_an_answer_that_is_no_text_is_no_yes(port, hold):
    pty = pytest.importorskip("pty")
    held = hold(("127.0.0.1", port))
    pid, terminal = pty.fork()
    if pid == 0:
        environ = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
        os.execve(sys.executable, [sys.executable, PORT_MANAGER, "free", str(port), "--policy", "ask"], environ)
    shown = b""
    while b" [y/N]" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"\xff\xfey\n")
    shown = shown_until_closed(terminal)
    assert os.waitpid(pid, 0)[1] >> 8 == 1
    assert "The answer was no" in shown and "Traceback" not in shown
    assert held.alive() == [held.pid]


def test_force_lifts_the_environment_and_no_guard(port, hold, monkeypatch):
    held = hold(("127.0.0.1", port))
    environ = {**os.environ, "ENVIRONMENT": "production"}
    assert command_line("free", str(port), env=environ).returncode == 1
    assert held.alive() == [held.pid]
    tunnel = hold(("127.0.0.2", port), name="ssh")
    refused_ = command_line("free", str(port), "--force", env=environ)
    assert refused_.returncode == 1 and "SSH tunnel" in refused_.stderr
    assert held.alive() == [held.pid] and tunnel.alive() == [tunnel.pid]
    done = command_line("free", str(port), "--host", "127.0.0.1", "--force", env=environ)
    assert done.returncode == 0, done.stderr
    assert held.alive() == []
