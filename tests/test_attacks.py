"""What fresh readers got wrongly stopped, or wrongly refused: each attack with real processes and public calls."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from .apart import KILL, boxed, forked, mounted
from .conftest import LINUX, PATIENCE, ROOT, birth, command_line, project
from .scenes import SERVE, wait_for
from .test_projects import CALL, on_a_terminal, started

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")
MINE = "127.0.0.1"

# It forks a server that binds for itself; when that ends, the next one.
FORKS = """
import os, signal, socket, sys
while True:
    pid = os.fork()
    if not pid:
        server = socket.create_server(("127.0.0.1", int(sys.argv[-1])))
        signal.pause()
    os.waitpid(pid, 0)
"""


@pytest.mark.parametrize(("program", "goes"), [("gunicorn", True), ("pytest", False), ("launch.py", False)])
def test_only_a_server_s_own_command_is_a_master(port, start, home, program, goes):
    """A test runner, or a launcher of several servers, forks the next one, too: it is told, and not stopped."""
    (home / program).write_text(FORKS)
    master = start(sys.executable, program, "main:app", str(port), cwd=home)
    wait_for(port)
    foretold = json.loads(command_line("check", str(port), "--json", cwd=home).stdout)["ports"][0]["would_stop"]
    assert (master.pid in foretold) == goes
    done = command_line("free", str(port), cwd=home)
    assert (done.returncode == 0) == goes == (master.poll() is not None), done.stderr
    assert goes or f"stop process {master.pid} first" in done.stderr


# Folders of which nothing can be said are not nobody's


@boxed
def test_a_path_that_leads_elsewhere_in_another_mount_namespace(tmp_path):
    ours, theirs, at = project(tmp_path / "ours"), project(tmp_path / "theirs"), tmp_path / "at"
    at.mkdir()
    (ours / ".git" / "HEAD").write_text("ref: refs/heads/ours\n")
    script = f'mount --bind "{theirs}" "{at}"; cd "{at}"; exec "$@"'
    words = ["unshare", "--mount", "sh", "-ec", script, "sh", sys.executable, "-c", SERVE, "8000"]
    with subprocess.Popen(words) as holder:
        wait_for(8000)
        done = started(ours, 8000)
        assert done.returncode == 1 and holder.poll() is None, done.stderr
        assert "it belongs to another project, perhaps, whose folder is out of reach from here; take the next" in done.stderr
        assert '"branch": null' in command_line("check", "8000", "--json", cwd=ours).stdout  # it is not the asker's
        assert started(ours, 8000, PORT_MANAGER_POLICY="own").returncode == 1 and holder.poll() is None
        assert command_line("free", "8000", cwd=ours).returncode == 0


@boxed
def test_a_folder_on_a_file_system_that_does_not_answer(tmp_path):
    ours, theirs = project(tmp_path / "ours"), tmp_path / "theirs"
    theirs.mkdir()
    server = mounted(theirs)
    holder = forked(lambda: (os.chdir(theirs), socket.create_server((MINE, 8000)).detach()))
    KILL(server, signal.SIGSTOP)
    done = started(ours, 8000)
    KILL(server, signal.SIGKILL)
    assert done.returncode == 1 and birth(holder), done.stderr


# Of a removed folder what is left above it tells whose it was


@pytest.mark.parametrize(
    ("removed", "again", "ours", "goes"),
    [
        ("blog/dist", True, "shop", False),  # a build made it anew: it is the other project's as before
        ("blog/dist", False, "shop", False),
        ("blog/dist", True, "blog", True),
        ("shop/.worktrees/one", False, "shop", True),
        ("trees/one", False, "shop", True),  # a worktree beside its repository, of which nothing is left
        ("trees/one", True, "trees/two", True),
    ],
)
def test_a_server_of_a_folder_that_was_removed(port, hold, tmp_path, monkeypatch, removed, again, ours, goes):
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("shop", "blog", "trees/two"):
        project(tmp_path / folder)
    folder = tmp_path / removed
    folder.mkdir(parents=True)
    held = hold((MINE, port), cwd=str(folder))
    folder.rmdir()
    if again:
        folder.mkdir()
    done = started(tmp_path / ours, port)
    assert (done.returncode == 0) == goes == (held.alive() == []), done.stderr


def test_a_yes_is_about_the_server_and_not_about_its_workers(port, hold, tmp_path):
    """One that forks for each request has others at each look."""
    theirs, ours = project(tmp_path / "theirs"), project(tmp_path / "ours")
    held = hold((MINE, port), forks=True, cwd=str(theirs))
    status, shown = on_a_terminal(ours, port, "y\ny\ny\n")
    assert status == 0 and held.alive() == [], shown


def test_a_reloader_s_variable_that_was_left_in_a_shell(port, start, home):
    """Whoever else was started from there is no part of our server."""
    script = '"$1" -c "$2" "$4" & read; WERKZEUG_RUN_MAIN=true "$1" -c "$3" "$4"; echo status $?'
    words = ["bash", "-c", script, "bash", sys.executable, SERVE, CALL, str(port)]
    shell = start(*words, cwd=home, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(port)
    said, _ = shell.communicate("\n", timeout=PATIENCE)
    assert "Successfully killed" in said and "status 0" in said, said
