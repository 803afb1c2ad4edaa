"""Another project's server: a start asks about it, or refuses; a person who names the port frees it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import LINUX, PATIENCE, ROOT, command_line, eventually, shown_until_closed

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")

CALL = "import port_manager, sys; raise SystemExit(not port_manager.ensure_port_available(int(sys.argv[1])))"
BIND = "import port_manager, sys; port_manager.bind_port(int(sys.argv[1]))"


@pytest.fixture
def projects(tmp_path, monkeypatch):
    """Two projects in a home folder of their own, the first of which is ours, and a folder that is no project."""
    home = tmp_path.resolve()
    monkeypatch.setenv("HOME", str(home))
    for folder in ("shop/src/deep", "shop/packages/web", "shop/.git", "blog/.git", "blog/api", "scripts"):
        (home / folder).mkdir(parents=True)
    (home / "shop/packages/web/package.json").write_text("{}")
    worktree = home / "shop/.worktrees/feature"
    worktree.mkdir(parents=True)
    (worktree / ".git").write_text(f"gitdir: {home}/shop/.git/worktrees/feature\n")
    return home


def started(folder: Path | str, port: int, code: str = CALL, **environ: str) -> subprocess.CompletedProcess[str]:
    """An automatic start in a folder, without a terminal."""
    return subprocess.run(
        [sys.executable, "-c", code, str(port)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def on_a_terminal(folder: Path, port: int, answer: str) -> tuple[int, str]:
    """The same on a terminal: (exit status, all that it showed)."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(sys.executable, [sys.executable, "-c", CALL, str(port)], {**os.environ, "PYTHONPATH": str(ROOT)})
    shown = ""
    while " [y/N]" not in shown:
        shown += os.read(terminal, 4096).decode()
    os.write(terminal, answer.encode())
    shown += shown_until_closed(terminal)
    return os.waitpid(pid, 0)[1] >> 8, shown


@pytest.mark.parametrize("code", [CALL, BIND], ids=["ensure_port_available", "bind_port"])
@pytest.mark.parametrize("mark", [".git", "pyproject.toml", "setup.cfg", "package.json", "manage.py", "go.mod"])
def test_another_projects_server_is_refused_without_a_terminal(port, hold, projects, mark, code):
    (projects / "blog/.git").rename(projects / "blog" / mark)
    held = hold(("127.0.0.1", port), cwd=str(projects / "blog/api"))
    done = started(projects / "shop", port, code)
    assert done.returncode == 1 and held.alive() == [held.pid]
    for part in (
        f"Process {held.pid} (", ", in ~/blog/api)", "it belongs to another project, ~/blog", "(--next)",
        f"port_manager.py free {port}", "PORT_MANAGER_POLICY=kill",
    ):  # fmt: skip
        assert part in done.stderr, done.stderr


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_it_is_asked_about_on_a_terminal(port, hold, projects, answer, status):
    held = hold(("127.0.0.1", port), cwd=str(projects / "blog"))
    ended, shown = on_a_terminal(projects / "shop", port, answer)
    assert ended == status and held.alive() == ([] if status == 0 else [held.pid])
    assert f"Process {held.pid} belongs to another project, ~/blog. Stop process {held.pid} (" in shown
    assert ("The answer was no: nobody was stopped" in shown) == (status == 1)


def test_a_person_who_names_the_port_means_it(port, hold, projects):
    held = hold(("127.0.0.1", port), cwd=str(projects / "blog"))
    predicted = command_line("free", str(port), "--dry-run", cwd=projects / "shop", stdin=subprocess.DEVNULL)
    assert predicted.returncode == 0 and f"stop {held.pid}" in predicted.stdout
    done = command_line("free", str(port), cwd=projects / "shop", stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and held.alive() == [], done.stderr


def test_the_variable_brings_whoever_holds_it_back(port, hold, projects):
    held = hold(("127.0.0.1", port), cwd=str(projects / "blog"))
    assert started(projects / "shop", port, PORT_MANAGER_POLICY="kill").returncode == 0
    assert held.alive() == []


@pytest.mark.parametrize(
    ("ours", "theirs", "goes"),
    [
        ("shop", "shop", True),
        ("shop/src/deep", "shop", True),
        ("shop", "shop/src/deep", True),
        ("shop", "shop/packages/web", True),  # a package of ours is ours
        ("shop", "shop/.worktrees/feature", False),  # a worktree is another project, and so is the one it is of
        ("shop/.worktrees/feature", "shop", False),
        ("shop/.worktrees/feature", "shop/.worktrees/feature", True),
        ("blog", "shop/packages/web", False),
        ("shop", "scripts", True),  # without a mark nobody knows of a project
        ("scripts", "scripts", True),
        ("scripts", "blog", False),
        ("shop", ".", True),  # the home folder and / are no projects
        ("shop", "/", True),
        (".", "blog", False),
        ("/", "blog", False),
    ],
)
def test_whose_a_server_is(port, hold, projects, ours, theirs, goes):
    (projects / ".git").mkdir()  # as of one who keeps the home folder's files in git
    held = hold(("127.0.0.1", port), cwd=str(projects / theirs))
    done = started(projects / ours, port)
    assert (done.returncode == 0) == goes, done.stderr
    assert held.alive() == ([] if goes else [held.pid])


@pytest.mark.parametrize(
    ("ours", "theirs", "goes"),
    [
        ("shop", "shop/src/deep", True),
        ("shop/src/deep", "shop", True),
        ("shop/src/deep", "shop/packages/web", True),
        ("scripts", "scripts", True),
        ("shop", "scripts", False),
        ("shop", "blog/api", False),
        ("shop/.worktrees/feature", "shop", False),
        (".", ".", False),
        (".", "shop", False),
        ("/", "/", False),
        ("/", "shop", False),
    ],
)
def test_own_is_this_project_from_any_of_its_folders(port, hold, projects, ours, theirs, goes):
    held = hold(("127.0.0.1", port), cwd=str(projects / theirs))
    done = started(projects / ours, port, PORT_MANAGER_POLICY="own")
    assert (done.returncode == 0) == goes, done.stderr
    assert held.alive() == ([] if goes else [held.pid])
    if not goes:
        assert "the policy 'own' stops only what belongs to " in done.stderr


@pytest.mark.parametrize("environment", ["", "production"])
def test_every_line_that_describes_a_process_names_its_folder(port, hold, projects, environment):
    folder = projects / "blog/api"
    held = hold(("127.0.0.1", port), children=1, cwd=str(folder))
    said = [
        started(projects / "shop", port, ENVIRONMENT=environment).stderr,
        command_line("free", str(port), "--policy", "refuse", ENVIRONMENT=environment).stderr,
        command_line("free", str(port), ENVIRONMENT=environment).stderr,
    ]
    assert (held.alive() == []) == (environment == "")
    lines = [line for line in "\n".join(said).splitlines() if re.search(rf"\b{held.pid} \((?!\d)", line)]
    assert len(lines) >= 3 and all(", in ~/blog/api)" in line for line in lines), said


def test_a_servers_other_ports_go_with_it_where_it_is_ours(ports, hold, projects):
    """A debugger's or a live reload's; of another folder's server each of them has to be named."""
    port, other = ports(), ports()
    ours = hold(("127.0.0.1", port), ("127.0.0.1", other), cwd=str(projects / "shop/src"))
    assert started(projects / "shop", port).returncode == 0 and eventually(lambda: ours.alive() == [])
    theirs = hold(("127.0.0.1", port), ("127.0.0.1", other), cwd=str(projects / "scripts"))
    done = started(projects / "shop", port)
    assert done.returncode == 1 and theirs.alive() == [theirs.pid]
    both = " ".join(map(str, sorted((port, other))))
    for part in (f"stopping it would also close port {other} (", f"port_manager.py free {both}"):
        assert part in done.stderr, done.stderr
    done = command_line("free", str(port), str(other), cwd=projects / "shop")
    assert done.returncode == 0 and theirs.alive() == [], done.stderr
