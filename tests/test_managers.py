"""Real process managers: what one runs is named with the command that stops it there, and nothing else dies."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from .apps import NODE
from .conftest import LINUX, birth, can_bind, eventually
from .scenes import below, children, free, listening, needs, wait_for, witness

pytestmark = pytest.mark.skipif(not LINUX, reason="who lives is asked of /proc")
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@pytest.fixture
def call(home, monkeypatch):
    """A call of PM2 or tmux, with a home of its own; what was started so ends with the test."""
    for name, value in {"PM2_HOME": home / "pm2", "TMUX_TMPDIR": home, "SHELL": "/bin/sh"}.items():
        monkeypatch.setenv(name, str(value))  # the shell of user nobody ends at once
    ends = {}

    def run(program, *words, **environ):
        ends[program] = {"pm2": "kill", "tmux": "kill-server"}[program]
        command, env = [program, *words], {**os.environ, **environ}
        return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=True).stdout.strip()

    yield run
    for words in [*ends.items()]:
        run(*words)


@needs("pm2")
def test_pm2(call, home, away, ports):
    """In cluster mode PM2 itself holds the port; in fork mode an app does, or what that has started."""
    place = {name: ports() for name in ("api", "other", "worker", "my app", "script")}
    (home / "server.js").write_text(NODE)
    (home / "shell.sh").write_text(f'"{sys.executable}" -m http.server -b 127.0.0.1 {place["script"]}; true\n')
    for name, *instances in (("api", "-i", "2"), ("other", "-i", "1"), ("worker",)):
        call("pm2", "start", "server.js", "--name", name, *instances, PORT=str(place[name]))
    serve = ["--interpreter", "none", "--", "-m", "http.server", "-b", "127.0.0.1", str(place["my app"])]
    call("pm2", "start", sys.executable, "--name", "my app", *serve)
    call("pm2", "start", "shell.sh", "--name", "script")
    wait_for(*place.values())
    files = [*(home / "pm2" / "pids").glob("*.pid"), home / "pm2" / "pm2.pid"]
    with witness(*(int(file.read_text()) for file in files)):
        for name, folder in itertools.product(place, (away, home)):
            answer = free(place[name], cwd=folder)
            answer.names(f"pm2 stop {shlex.quote(name)}")
            assert [each for each in place if f"pm2 stop {shlex.quote(each)}" in answer.words] == [name]
        free(*place.values(), cwd=home, PORT_MANAGER_POLICY="kill").refuses("pm2 stop api")
    assert all(map(listening, place.values()))


SUPERVISORD = """
[supervisord]
nodaemon=true
[inet_http_server]
port=127.0.0.1:{page}
[program:web]
command={python} -m http.server -b 127.0.0.1 {web}
[program:worker]
command={python} -m http.server -b 127.0.0.1 {worker}
[group:site]
programs=worker
[program:shell]
command=sh -c '{python} -m http.server -b 127.0.0.1 {shell}; true'
stopasgroup=true
killasgroup=true
[fcgi-program:fast]
socket=tcp://127.0.0.1:{fast}
command=sleep 999
"""


@needs("supervisord")
def test_supervisord(start, home, away, ports):
    place = {name: ports() for name in ("web", "worker", "shell", "fast", "page")}
    (home / "supervisord.conf").write_text(SUPERVISORD.format(python=sys.executable, **place))
    daemon = start("supervisord", "-c", "supervisord.conf", cwd=home, **QUIET)
    try:
        wait_for(*place.values())
        assert eventually(lambda: len(children(daemon.pid)) == 4)
        with witness(daemon.pid, *below(daemon.pid)):
            for folder in (away, home):
                for program, name in (("web", "web"), ("worker", "site:worker"), ("shell", "shell"), ("fast", "fast")):
                    free(place[program], cwd=folder).names(f"supervisorctl stop {name}")
            free(place["web"], cwd=home, PORT_MANAGER_POLICY="kill").names("supervisorctl stop web")
            free(place["page"], cwd=home).names("supervisorctl stop NAME")  # its own page, which is no program's
        assert all(map(listening, place.values()))
    finally:
        daemon.terminate()  # and with it its programs, each of which has a process group of its own
        daemon.wait(20)


CIRCUS = """
[circus]
endpoint = ipc://{home}/endpoint
pubsub_endpoint = ipc://{home}/events
[socket:web]
port = {web}
[socket:api]
port = {api}
"""


@needs("circusd")
def test_circus_with_sockets(start, home, away, ports):
    web, api = ports(), ports()
    (home / "circus.ini").write_text(CIRCUS.format(home=home, web=web, api=api))
    daemon = start("circusd", "circus.ini", cwd=home, **QUIET)
    wait_for(web, api)
    with witness(daemon.pid):
        free(web, cwd=away).refuses("stopping it would also close port")
    free(web, api, cwd=away).frees(daemon.pid)
    assert can_bind(web) and can_bind(api)


@needs("nodemon")
@pytest.mark.parametrize("words", [("server.js", "{}"), ("--exec", "node server.js {}")], ids=["", "by a shell"])
def test_nodemon(start, home, port, words):
    (home / "server.js").write_text(NODE)
    nodemon = start("nodemon", "--quiet", *(word.format(port) for word in words), cwd=home, **QUIET)
    wait_for(port)
    with witness(nodemon.pid):
        free(port, cwd=home).frees()  # it waits for a change of a file before it starts the server again
    assert can_bind(port)


@needs("adb")
def test_adb_s_server(start, home, port):
    server = start("adb", "-P", str(port), "nodaemon", "server", cwd=home, env={**os.environ, "HOME": str(home)})
    wait_for(port)
    with witness(server.pid):
        free(port, cwd=home).refuses("adb")


@needs("tmux")
@pytest.mark.parametrize("typed", [False, True], ids=["the pane's command", "typed into the pane's shell"])
def test_a_server_in_a_pane_of_tmux(call, home, port, typed):
    serve = f"{sys.executable} -m http.server -b 127.0.0.1 {port}"
    call("tmux", "-f", "/dev/null", "new-session", "-d", "-s", "one", "sh" if typed else f"exec {serve}")
    call("tmux", "new-window", "-d", "sleep 999")
    call("tmux", "new-window", "-d", "sh")
    if typed:
        call("tmux", "send-keys", "-t", "one:0", serve, "Enter")
    wait_for(port)
    panes = [int(pid) for pid in call("tmux", "list-panes", "-a", "-F", "#{pane_pid}").split()]
    with witness(int(call("tmux", "display-message", "-p", "#{pid}")), *panes[0 if typed else 1 :]):
        free(port, cwd=home).frees()
        time.sleep(0.2)


def test_an_editor_s_server_with_a_terminal_stays(hold, home, away, port):
    terminal = "import pty; pty.spawn(['sh', '-c', 'sleep 999; true'])"
    editor = hold(port, starts=[sys.executable, "-c", terminal], cwd=home)
    assert eventually(lambda: len(below(editor.pid)) == 3)  # the terminal's owner, the shell, what runs in it
    inside = below(editor.pid)
    with witness(editor.pid, *inside):
        for folder in (away, home):
            free(port, cwd=folder).refuses("stopping it would also end a terminal")
    os.kill(inside[0], signal.SIGKILL)  # the terminal hangs up
    assert eventually(lambda: not any(map(birth, inside)))
    free(port, cwd=away).frees(editor.pid)
