"""What would end with a holder keeps it alive: a terminal, or another port that nobody named."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from .conftest import LINUX, birth, can_bind, eventually
from .scenes import SERVE, SERVER_JS, Witness, below, free, is_free, needs, wait_for

pytestmark = pytest.mark.skipif(not LINUX, reason="who lives is asked of /proc")

# Terminals


@pytest.fixture
def tmux(home, monkeypatch):
    """A tmux server of its own; a call of it."""
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("TMUX_TMPDIR", str(home))
    monkeypatch.setenv("SHELL", "/bin/sh")  # that of user nobody ends at once

    def call(*words, **options):
        command = ["tmux", "-f", "/dev/null", *words]
        return subprocess.run(command, cwd=home, capture_output=True, text=True, check=True, **options).stdout.strip()

    yield call
    with contextlib.suppress(subprocess.CalledProcessError):
        call("kill-server")


@needs("tmux")
@pytest.mark.parametrize("how", ["the pane's command", "typed into the pane's shell"])
def test_a_server_in_a_pane_of_tmux(tmux, home, port, how):
    (home / "server.py").write_text(SERVE)
    serve = f"{sys.executable} server.py {port}"
    tmux("new-session", "-d", "-s", "one", f"exec {serve}" if how == "the pane's command" else "sh")
    tmux("new-window", "-d", "sleep 999")
    tmux("new-window", "-d", "sh")
    if how != "the pane's command":
        tmux("send-keys", "-t", "one:0", serve, "Enter")
    wait_for(port)
    server = int(tmux("display-message", "-p", "#{pid}"))
    panes = [int(pid) for pid in tmux("list-panes", "-a", "-F", "#{pane_pid}").split()]
    others = panes[1:] if how == "the pane's command" else panes
    there = Witness(tmux=server, **{f"pane {pid}": pid for pid in others})
    free(port, cwd=home).frees()
    time.sleep(0.2)
    assert there.missing() == []


@needs("tmux")
@pytest.mark.parametrize("named", ["tmux", "another multiplexer"])
def test_a_port_that_tmux_itself_holds(tmux, home, port, named):
    """It inherited the socket of whoever started it."""
    code = (
        "import os, socket, sys; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen();"
        "os.dup2(s.fileno(), 9); os.set_inheritable(9, True); os.execv(sys.argv[2], sys.argv[2:])"
    )
    program = home / "muxer"
    shutil.copy(shutil.which("tmux"), program)
    tmux_program = shutil.which("tmux") if named == "tmux" else str(program)
    words = [tmux_program, "-f", "/dev/null", "new-session", "-d", "sleep 999"]
    subprocess.run([sys.executable, "-c", code, str(port), *words], cwd=home, check=True, capture_output=True)
    server, pane = (int(tmux("display-message", "-p", what)) for what in ("#{pid}", "#{pane_pid}"))
    there = Witness(tmux=server, pane=pane)
    assert not can_bind(port)
    for folder in (home, home.parent):
        free(port, cwd=folder).refuses()
    assert there.missing() == []


TERMINAL = "import pty, sys; pty.spawn(['sh', '-c', 'sleep 999; true'])"
SHAPES = {
    "node": "require('child_process').spawn({python}, ['-c', {terminal}], {{stdio: ['pipe', 'ignore', 'ignore']}});"
    + SERVER_JS,
    "python": "import subprocess, sys; shell = subprocess.Popen([{python}, '-c', {terminal}], stdin=-1, stdout=-3); "
    + SERVE,
}


@pytest.mark.parametrize("language", [pytest.param("node", marks=needs("node")), "python"])
def test_an_editor_s_server_with_a_terminal_stays(start, tmp_path, away, port, language):
    folder = tmp_path / ".nova-remote" / "bin"
    folder.mkdir(parents=True)
    program = folder / f"server-main.{'js' if language == 'node' else 'py'}"
    program.write_text(SHAPES[language].format(python=json.dumps(sys.executable), terminal=json.dumps(TERMINAL)))
    editor = start(shutil.which("node") if language == "node" else sys.executable, str(program), str(port), cwd=folder)
    wait_for(port)
    assert eventually(lambda: len(below(editor.pid)) >= 3, 10)  # the pty's owner, the shell, what runs in it
    everybody = Witness(editor=editor.pid, **{f"below {pid}": pid for pid in below(editor.pid)})
    for where in (away, folder):
        free(port, cwd=where).refuses("stopping it would also end a terminal")
    assert everybody.missing() == []
    for pid in below(editor.pid):  # sessions of their own, which the end of the test would not reach
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not any(map(birth, below(editor.pid))))  # zombies may be left
    free(port, cwd=away).frees(editor.pid)


# Other ports of the same processes

TREE = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[3], sys.argv[2]]);" + SERVE


@pytest.mark.parametrize("where", ["in a child", "in the same process"])
def test_another_port_would_close_too(start, home, away, ports, where):
    one, two = ports(), ports()
    both = "import socket, sys; t = socket.create_server(('127.0.0.1', int(sys.argv[2]))); " + SERVE
    holder = start(sys.executable, "-c", TREE if where == "in a child" else both, str(one), str(two), SERVE, cwd=home)
    wait_for(one, two)
    everybody = Witness(holder=holder.pid, **{f"child {pid}": pid for pid in below(holder.pid)})
    free(one, cwd=away).refuses(f"stopping it would also close port {two}", f"free {min(one, two)} {max(one, two)}")
    assert everybody.missing() == []
    free(one, two, cwd=away).frees(holder.pid)
    assert eventually(lambda: is_free(one) and is_free(two))


@needs("node")
def test_a_debugger_s_port_goes_with_the_server_of_this_project(start, home, away, ports):
    port, debugger = ports(), ports()
    (home / "api").mkdir()
    (home / "server.js").write_text(SERVER_JS)
    server = start("node", f"--inspect=127.0.0.1:{debugger}", "../server.js", str(port), cwd=home / "api")
    wait_for(port, debugger)
    free(port, cwd=away).refuses(f"stopping it would also close port {debugger}")
    assert server.poll() is None
    answer = free(port, cwd=home)
    answer.frees(server.pid)
    assert answer.holders[0].get("project") == str(home)
    assert is_free(port) and is_free(debugger)
