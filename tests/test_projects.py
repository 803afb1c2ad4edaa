"""Another project's server: a start asks about it, or refuses; a person who names the port frees it."""

import os
import subprocess
from unittest.mock import Mock

import pytest

from port_manager import ensure_port_available

from . import seam
from .apart import boxed
from .conftest import ENSURE, LINUX, birth, command_line, ensured, holding, on_a_terminal, project
from .scenes import wait_for

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")

BIND = "import port_manager, sys; port_manager.bind_port(int(sys.argv[1]))"
MARKS = (".git pyproject.toml setup.py setup.cfg package.json manage.py go.mod Cargo.toml pom.xml build.gradle "
         "Gemfile composer.json mix.exs")  # fmt: skip


@pytest.fixture
def projects(tmp_path, monkeypatch):
    """Two projects in a home folder of their own, the first of which is ours, and a folder that is no project."""
    home = tmp_path.resolve()
    monkeypatch.setenv("HOME", str(home))
    folders = "shop/src/deep shop/packages/web shop/.git shop/.worktrees/feature blog/.git blog/api scripts/site/deep"
    for folder in folders.split():
        (home / folder).mkdir(parents=True)
    for package in ("shop/packages/web", "scripts/site"):
        (home / package / "package.json").write_text("{}")
    (home / "shop/.worktrees/feature/.git").write_text(f"gitdir: {home}/shop/.git/worktrees/feature\n")
    return home


@pytest.mark.parametrize(("mark", "code"), [*((mark, ENSURE) for mark in MARKS.split()), (".git", BIND)])
def test_another_projects_server_is_refused_without_a_terminal(port, hold, projects, mark, code):
    """The variable brings it back that whoever holds the port is stopped."""
    (projects / "blog/.git").rename(projects / "blog" / mark)
    held = hold(port, cwd=projects / "blog/api")
    done = ensured(projects / "shop", port, code)
    assert done.returncode == 1 and held.alive() == [held.pid]
    way = f"take the next free port (--next), or stop it: port_manager.py free {port} (PORT_MANAGER_POLICY=kill"
    for part in (f"Process {held.pid} (", ", in ~/blog/api)", f"it belongs to another project, ~/blog; {way}"):
        assert part in done.stderr, done.stderr
    assert ensured(projects / "shop", port, code, PORT_MANAGER_POLICY="kill").returncode == 0 and held.alive() == []


@pytest.mark.parametrize(("answer", "status"), [(b"y\n", 0), (b"n\n", 1), (b"\n", 1), (b"y\n" * 9, 0)])
def test_it_is_asked_about_on_a_terminal(port, hold, projects, answer, status):
    """The last server forks for each request, and has others at each look: the yes is not about its workers."""
    forks = answer.count(b"\n") > 1
    held = hold(port, forks=forks, cwd=projects / "blog")
    shown, after, ended = on_a_terminal("-c", ENSURE, str(port), answer=answer, cwd=projects / "shop")
    assert ended == status and held.alive() == ([] if status == 0 else [held.pid]), shown + after
    asked = f"Process {held.pid} belongs to another project, ~/blog. Stop process {held.pid} ("
    assert forks or shown.splitlines()[-1].startswith(asked)
    assert ("The answer was no: nobody was stopped" in after) == (status == 1)


@pytest.mark.parametrize(("ours", "theirs", "goes", "own"), [
    # whether it is stopped by default; and what the policy "own" says of it, which stops less
    ("shop/src/deep", "shop", True, ""),
    ("shop", "shop/src/deep", True, ""),
    ("shop", "shop/packages/web", True, ""),  # a package of ours is ours
    ("shop", "shop/.worktrees/feature", False, "another project, {}, and"),  # and so is the one it is of
    ("shop/.worktrees/feature", "shop", False, "another project, {}, and"),
    ("shop/.worktrees/feature", "shop/.worktrees/feature", True, ""),
    ("blog", "shop/packages/web", False, "another project, {}, and"),
    ("shop", "blog/api", False, "another project, ~/blog, and"),
    ("shop", "scripts", True, "the folder {}, and"),  # without a mark nobody knows of a project
    ("scripts", "scripts", True, ""),
    ("scripts", "scripts/site/deep", False, "another project, ~/scripts/site, and"),  # a mere folder has no packages
    ("shop", ".", True, "the folder {}, and"),  # the home folder and / are no projects
    ("shop", "/", True, "the folder {}, and"),
    (".", ".", True, "the folder {}, and"),
    ("/", "/", True, "the folder {}, and"),
    (".", "blog", False, "another project, {}, and"),
])  # fmt: skip
def test_whose_a_server_is(port, hold, projects, monkeypatch, said, ours, theirs, goes, own):
    (projects / ".git").mkdir()  # as of one who keeps the home folder's files in git
    monkeypatch.chdir(projects / ours)
    seam.stand_in(monkeypatch, "terminal", lambda: False)
    held = hold(port, cwd=projects / theirs)
    monkeypatch.setenv("PORT_MANAGER_POLICY", "own")
    assert ensure_port_available(port) == (own == "") == (held.alive() == [])
    where = "this project, and this folder is in none" if ours in (".", "/") else projects / ours
    sentence = f"it belongs to {own} the policy 'own' stops only what belongs to {where}"
    assert not own or sentence.format(seam.short_folder(str(projects / theirs))) in said()
    monkeypatch.delenv("PORT_MANAGER_POLICY")
    held = held if own else hold(port, cwd=projects / theirs)
    assert ensure_port_available(port) == goes == (held.alive() == [])


def test_own_knows_a_folder_by_more_than_its_name(port, hold, tmp_path, monkeypatch, said):
    """A blank that no terminal shows; a folder that has gone, and one with the name that /proc gives to that; none."""
    wide, gone, namesake = tmp_path / "我的\u3000项目", tmp_path / "api", tmp_path / "api (deleted)"
    for folder in (wide, gone):
        folder.mkdir()
    monkeypatch.chdir(wide)
    held = hold(port, cwd=wide)
    assert ensure_port_available(port, policy="own") is True and held.alive() == []
    held = hold(port, cwd=gone)
    gone.rmdir()
    namesake.mkdir()
    monkeypatch.chdir(namesake)
    assert ensure_port_available(port, policy="own") is False and held.alive() == [held.pid]
    (gone / ".git").mkdir(parents=True)  # it is there again, and is another one
    assert ensure_port_available(port) is False and "it belongs to another project, " in said()
    real = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path, **at: "" if path.endswith("/cwd") else real(path, **at))
    assert ensure_port_available(port, policy="own") is False and held.alive() == [held.pid]
    assert "it belongs to a folder that is not told, and the policy 'own'" in said()


@pytest.mark.parametrize("how", ["by a start", "by name", "in a child"])
def test_another_port_would_close_too(ports, hold, projects, how):
    """A debugger's, say. Where the server is ours, all go with it; of another folder's server each has to be named."""
    port, *others = ports(), ports(), ports()
    every, shop = [str(one) for one in sorted((port, *others))], projects / "shop"

    def free_one():
        return ensured(shop, port) if how == "by a start" else command_line("free", str(port), cwd=shop)

    def server(folder):
        if how != "in a child":
            return hold(port, *others, cwd=projects / folder)
        held = hold(port, starts=holding(*others), cwd=projects / folder)
        wait_for(*others)
        return held

    ours = server("shop/src")
    assert free_one().returncode == 0 and not birth(ours.pid)  # a child that holds nothing of this lives
    ours.end()
    theirs = server("scripts" if how == "by a start" else "blog")
    done = free_one()
    assert done.returncode == 1 and theirs.alive() == [theirs.pid, *theirs.children]
    assert f"stopping it would also close port {min(others)} (" in done.stderr, done.stderr
    holder = (theirs.children or [theirs.pid])[0]
    assert f" {holder}); to stop all: port_manager.py free {' '.join(every)}\n" in done.stderr, done.stderr
    done = command_line("free", *every, cwd=shop)
    assert done.returncode == 0 and theirs.alive() == [], done.stderr


def test_no_thread_can_be_started_to_look_at_a_folder(port, hold, projects, monkeypatch, said):
    monkeypatch.setattr("threading.Thread.start", Mock(side_effect=RuntimeError("can't start new thread")))
    held = hold(port, cwd=projects / "shop")
    assert ensure_port_available(port) is False and held.alive() == [held.pid]
    assert "whose folder is out of reach from here" in said()


@pytest.mark.parametrize("below", ["", "/in"])  # here nothing is below it
@boxed
def test_a_path_that_leads_elsewhere_in_another_mount_namespace(tmp_path, below):
    ours, theirs, at = project(tmp_path / "ours"), project(tmp_path / "theirs"), tmp_path / "at"
    at.mkdir()
    (ours / ".git" / "HEAD").write_text("ref: refs/heads/ours\n")
    place = f'"{at}{below}"'
    script = f'mount -t tmpfs none "{at}"; mkdir -p {place}; mount --bind "{theirs}" {place}; cd {place}; exec "$@"'
    with subprocess.Popen(["unshare", "--mount", "sh", "-ec", script, "sh", *holding(8000)]) as holder:
        wait_for(8000)
        done = ensured(ours, 8000)
        assert done.returncode == 1 and holder.poll() is None, done.stderr
        sentence = "it belongs to another project, perhaps, whose folder is out of reach from here; take the next"
        assert sentence in done.stderr
        assert '"branch": null' in command_line("check", "8000", "--json", cwd=ours).stdout  # it is not the asker's
        assert ensured(ours, 8000, PORT_MANAGER_POLICY="own").returncode == 1 and holder.poll() is None
        assert command_line("free", "8000", cwd=ours).returncode == 0


@pytest.mark.parametrize(("removed", "again", "ours", "goes"), [  # what is left above it tells whose it was
    ("blog/dist", True, "shop", False),  # a build made it anew: it is the other project's as before
    ("blog/dist", False, "shop", False),
    ("shop/.worktrees/one", False, "shop", True),
    ("trees/one", False, "shop", True),  # a worktree beside its repository, of which nothing is left
    ("trees/one", True, "trees/two", True),
])  # fmt: skip
def test_a_server_of_a_folder_that_was_removed(port, hold, projects, removed, again, ours, goes):
    project(projects / "trees/two")
    folder = projects / removed
    folder.mkdir(parents=True)
    held = hold(port, cwd=folder)
    folder.rmdir()
    if again:
        folder.mkdir()
    done = ensured(projects / ours, port)
    assert (done.returncode == 0) == goes == (held.alive() == []), done.stderr
