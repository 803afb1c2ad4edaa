"""Real process managers: what one runs is named with the command that stops it there, and nothing else dies.

Real terminals and debuggers: what would end with a holder keeps it alive.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from .conftest import LINUX, birth, can_bind, eventually
from .scenes import SERVE, SERVER_JS, Witness, below, children, free, is_free, listening, needs, wait_for

pytestmark = pytest.mark.skipif(not LINUX, reason="who lives is asked of /proc")

# PM2


@pytest.fixture
def pm2(home, monkeypatch):
    """PM2 with a home of its own; a call of it."""
    monkeypatch.setenv("PM2_HOME", str(home / "pm2"))
    (home / "server.js").write_text(SERVER_JS)
    (home / "server.py").write_text(SERVE)

    def call(*words, **environ):
        environment = {**os.environ, **{name: str(value) for name, value in environ.items()}}
        return subprocess.run(
            ["pm2", *words], cwd=home, env=environment, capture_output=True, text=True, check=True
        ).stdout

    yield call
    call("kill")


def pm2_pids(home):
    files = [*(home / "pm2" / "pids").glob("*.pid"), home / "pm2" / "pm2.pid"]
    return Witness(**{file.stem: int(file.read_text()) for file in files})


@needs("pm2")
def test_pm2_in_cluster_mode(pm2, home, away, ports):
    api, other, worker = ports(), ports(), ports()
    pm2("start", "server.js", "--name", "api", "-i", "2", PORT=api)
    pm2("start", "server.js", "--name", "other", "-i", "1", PORT=other)
    pm2("start", "server.js", "--name", "worker", PORT=worker)
    wait_for(api, other, worker)
    with pm2_pids(home):
        answer = free(api, cwd=away)
        answer.names("pm2 stop api")
        assert "pm2 stop other" not in answer.words
        free(other, cwd=home).names("pm2 stop other")
        free(worker, cwd=home).names("pm2 stop worker")
        free(api, other, worker, cwd=home, PORT_MANAGER_POLICY="kill").refuses("pm2 stop api")


@needs("pm2")
def test_pm2_in_fork_mode_and_what_its_app_starts(pm2, home, away, ports):
    port, below_it = ports(), ports()
    (home / "shell.sh").write_text(f'"{sys.executable}" server.py {below_it}; true\n')
    pm2("start", "server.py", "--name", "my app", "--interpreter", sys.executable, "--", str(port))
    pm2("start", "shell.sh", "--name", "script")
    wait_for(port, below_it)
    with pm2_pids(home):
        answer = free(port, cwd=away)
        answer.refuses("pm2 stop", "my app")
        free(below_it, cwd=home).names("pm2 stop script")
    assert listening(port) and listening(below_it)


@needs("pm2-runtime")
def test_a_restart_by_pm2_without_a_daemon_is_prevented_or_reported(start, home, port, monkeypatch):
    monkeypatch.setenv("PM2_HOME", str(home / "pm2"))
    (home / "server.js").write_text(SERVER_JS)
    runtime = start("pm2-runtime", "start", "server.js", "--", str(port), cwd=home, stdout=subprocess.DEVNULL)
    wait_for(port)
    with Witness(runtime=runtime.pid):
        answer = free(port, cwd=home)
        assert answer.status == 1, answer.words
        assert "pm2" in answer.reason.lower(), answer.words


@pytest.mark.parametrize(
    "variables",
    [
        {"pm_id": "0", "name": "api", "exec_mode": "fork_mode", "PM2_HOME": "/nowhere"},
        {"SUPERVISOR_ENABLED": "1", "SUPERVISOR_PROCESS_NAME": "web", "SUPERVISOR_GROUP_NAME": "web"},
        {"INVOCATION_ID": "0123456789abcdef0123456789abcdef", "SYSTEMD_EXEC_PID": "77"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "77", "LISTEN_FDNAMES": "web.socket"},
        {"TMUX": "/tmp/tmux-0/default,77,0", "TMUX_PANE": "%0"},
    ],
    ids=["PM2", "supervisord", "systemd", "a socket unit", "tmux"],
)
def test_variables_alone_are_no_manager(start, home, port, variables):
    """They are inherited, and outlive the manager: what it left behind is nobody's."""
    server = start(sys.executable, "-c", SERVE, str(port), cwd=home, env={**os.environ, **variables})
    wait_for(port)
    free(port, cwd=home).frees(server.pid)


# supervisord and circus

SUPERVISORD = """
[supervisord]
nodaemon=true
logfile=none
pidfile={home}/supervisord.pid
[unix_http_server]
file={home}/supervisord.sock
[supervisorctl]
serverurl=unix://{home}/supervisord.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[program:web]
command={python} -c "{serve}" {web}
[program:worker]
command={python} -c "{serve}" {worker}
[group:site]
programs=worker
[program:shell]
command=sh -c '{python} server.py {shell}; true'
stopasgroup=true
killasgroup=true
[fcgi-program:fast]
socket=tcp://127.0.0.1:{fast}
command={python} -c "import time; time.sleep(999)"
[fcgi-program:other]
socket=tcp://127.0.0.1:{other}
command={python} -c "import time; time.sleep(999)"
"""


@pytest.fixture
def supervisord(start, home):
    """Starts a supervisord, which ends with the test, and ends its programs before: each has a process group of its own."""
    daemons = []

    def run(config):
        (home / "server.py").write_text(SERVE)
        (home / "supervisord.conf").write_text(config)
        daemons.append(start("supervisord", "-c", "supervisord.conf", cwd=home, stdout=subprocess.DEVNULL))
        return daemons[-1]

    yield run
    for daemon in daemons:
        daemon.terminate()
        daemon.wait(20)


@needs("supervisord")
def test_supervisord(supervisord, home, away, ports):
    place = {name: ports() for name in ("web", "worker", "shell", "fast", "other")}
    config = SUPERVISORD.format(home=home, python=sys.executable, serve=SERVE.replace("%", "%%"), **place)
    daemon = supervisord(config)
    wait_for(*place.values())
    assert eventually(lambda: len(children(daemon.pid)) == 5)
    with Witness(daemon=daemon.pid, **{f"program {pid}": pid for pid in below(daemon.pid)}):
        for folder in (away, home):
            for program, command in (("web", "web"), ("worker", "site:worker"), ("shell", "shell"), ("fast", "fast")):
                answer = free(place[program], cwd=folder)
                answer.refuses("supervisorctl ", f"stop {command}")
                assert answer.holders and any(holder.get("manager") for holder in answer.holders), answer.words
        free(place["web"], cwd=home, PORT_MANAGER_POLICY="kill").refuses("supervisorctl ")
    assert all(map(listening, place.values()))


@needs("supervisord")
def test_supervisord_s_own_page_is_not_taken_for_its_program(supervisord, home, ports):
    web, page = ports(), ports()
    inet = f"[inet_http_server]\nport=127.0.0.1:{page}\n"
    program = f"[program:web]\ncommand={sys.executable} server.py {web}\n"
    daemon = supervisord(SUPERVISORD.partition("[program:web]")[0].format(home=home) + inet + program)
    wait_for(web, page)
    with Witness(daemon=daemon.pid, program=children(daemon.pid)[0]):
        answer = free(page, cwd=home)
        answer.refuses("supervisor")
        assert "stop web" not in answer.words


CIRCUS = """
[circus]
endpoint = ipc://{home}/endpoint
pubsub_endpoint = ipc://{home}/events
[watcher:web]
cmd = {python} -c "import time; time.sleep(999)"
use_sockets = True
numprocesses = 2
[watcher:plain]
cmd = {python} server.py {plain}
[socket:web]
host = 127.0.0.1
port = {web}
[socket:api]
host = 127.0.0.1
port = {api}
"""


@needs("circusd")
def test_circus_with_sockets(start, home, away, ports):
    place = {name: ports() for name in ("web", "api", "plain")}
    (home / "server.py").write_text(SERVE)
    (home / "circus.ini").write_text(CIRCUS.format(home=home, python=sys.executable, **place))
    daemon = start("circusd", "circus.ini", cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(*place.values())
    assert eventually(lambda: len(children(daemon.pid)) == 3)
    with Witness(daemon=daemon.pid, **{f"watcher {pid}": pid for pid in below(daemon.pid)}):
        free(place["web"], cwd=away).refuses("stopping it would also close port")
    free(*place.values(), cwd=away).frees(daemon.pid)
    assert all(map(is_free, place.values()))


# nodemon, adb


@needs("nodemon")
@pytest.mark.parametrize("how", ["direct", "by a shell"])
def test_nodemon(start, home, port, how):
    (home / "server.js").write_text(SERVER_JS)
    words = ["server.js", str(port)] if how == "direct" else ["--exec", f"node server.js {port}"]
    nodemon = start("nodemon", "--quiet", *words, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(port)
    with Witness(nodemon=nodemon.pid):
        free(port, cwd=home).frees()  # it waits for a change of a file before it starts the server again
    assert is_free(port)


@needs("adb")
def test_adb_s_server(start, home, port):
    server = start("adb", "-P", str(port), "nodaemon", "server", cwd=home, env={**os.environ, "HOME": str(home)})
    wait_for(port)
    with Witness(adb=server.pid):
        free(port, cwd=home).refuses("adb")


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
    assert not eventually(there.missing, 0.2)


@needs("tmux")
@pytest.mark.parametrize("named", ["tmux", "another multiplexer"])
def test_a_port_that_tmux_itself_holds(tmux, hold, home, port, named):
    """It inherited the socket of whoever started it."""
    program = shutil.which("tmux") if named == "tmux" else shutil.copy(shutil.which("tmux"), home / "muxer")
    words = [str(program), "-f", "/dev/null", "new-session", "-d", "sleep 999"]
    hold(port, starts=words, leaks=True, orphans=True, cwd=home)
    assert eventually(lambda: (home / f"tmux-{os.geteuid()}" / "default").exists())
    server, pane = (int(tmux("display-message", "-p", what)) for what in ("#{pid}", "#{pane_pid}"))
    with Witness(tmux=server, pane=pane):
        assert not can_bind(port)
        for folder in (home, home.parent):
            free(port, cwd=folder).refuses()


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
    with Witness(editor=editor.pid, **{f"below {pid}": pid for pid in below(editor.pid)}):
        for where in (away, folder):
            free(port, cwd=where).refuses("stopping it would also end a terminal")
    for pid in below(editor.pid):  # sessions of their own, which the end of the test would not reach
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not any(map(birth, below(editor.pid))))  # zombies may be left
    free(port, cwd=away).frees(editor.pid)


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
