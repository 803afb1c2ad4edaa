"""Who holds it? Linux answers natively: sock_diag, /proc/net/tcp and /proc/PID/fd, and starts no program."""

import ctypes
import fcntl
import io
import os
import pwd
import socket
import sys
import time
from unittest.mock import Mock

import pytest

from port_manager import CannotTell, Endpoint, PortManager, find_listeners

from . import seam
from .apart import boxed
from .conftest import LINUX, bound_is_told, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="this is how Linux is asked")


@pytest.fixture(autouse=True)
def no_program_is_started(monkeypatch):
    def refuse(tool, *_, **__):
        raise AssertionError(f"{tool} was started")

    seam.stand_in(monkeypatch, "run a tool", refuse)


@pytest.fixture(params=["sock_diag", "proc_net"])
def native(request, monkeypatch):
    """Each native way alone."""
    if request.param == "proc_net":
        seam.only(monkeypatch, "proc_net")
    return request.param


def pids(*words, **options):
    return [holder.pid for holder in find_listeners(*words, **options)]


def test_all_that_is_told_of_a_holder(port, hold, native, tmp_path):
    """A name may look like what follows it in /proc/PID/stat, and be dangerous for a terminal."""
    assert find_listeners(port) == [] and PortManager(port).get_process_using_port(port) is None
    folder = tmp_path / "我的项目"
    folder.mkdir()
    before = time.time()
    held = hold(port, ("::1", port), cwd=str(folder), name=") S 1 (\x1b[名")
    (holder,) = find_listeners(port)
    assert holder[:3] == (held.pid, os.getpid(), pwd.getpwuid(os.geteuid()).pw_name)
    assert holder.name == ") S 1 (?[名"
    assert holder.command.startswith(f"{sys.executable} -S -E ")
    assert holder.cwd == str(folder)
    assert before - 2 < holder.started < time.time() + 2
    assert holder.addresses == (Endpoint("127.0.0.1", port), Endpoint("::1", port))
    assert PortManager().get_process_using_port(port) == held.pid


@pytest.mark.parametrize(("spec", "master_holds"), [
    ({"children": 4}, True),
    ({"children": 4, "double_fork": True}, True),  # strangers who share it
    ({"children": 12, "silent_parent": True}, False),
    ({"children": 2, "strangers": 10}, True),  # workers far from each other
    ({"children": 4, "orphans": True}, False),
    ({"children": 3, "own_sockets": True, "reuseport": True}, False),
])  # fmt: skip
def test_a_family_is_found_whole_and_parents_first(port, hold, native, spec, master_holds):
    """A thorough look leaves nobody out; the usual one finds the youngest's family, whoever else there is.

    Children without a parent are found as far as no crowd of other such children stands between them.
    """
    held = hold(port, **spec)
    assert not spec.get("orphans") or eventually(lambda: held.pid not in held.alive())
    everybody = {*held.children, *([held.pid] if master_holds else [])}
    thorough, usual = pids(port, thorough=True), pids(port)
    assert {*thorough} == everybody
    parentless = spec.get("orphans") or spec.get("double_fork")
    assert {*usual} == everybody or (parentless and set() < {*usual} < everybody)
    if spec == {"children": 4}:
        assert thorough[0] == usual[0] == held.pid == PortManager().get_process_using_port(port)


def test_parents_come_first_and_who_may_not_be_seen_last(port, hold, monkeypatch):
    """Where PIDs that were used again form a circle, nobody is left out."""
    held, real = hold(port, children=1), seam.reader("linux")
    seam.owners_answer(monkeypatch, lambda rows: [rows[0]._replace(pid=None), *sorted(rows, key=lambda row: -row.pid)])
    assert pids(port) == [held.pid, *held.children, None]
    circle = {held.pid: held.children[0]}
    read = lambda pid: {each.pid: each._replace(parent=circle.get(pid, each.parent)) for each in real(pid).values()}
    seam.readings(monkeypatch, "linux", read)
    assert {*pids(port)} == {held.pid, *held.children, None}


@bound_is_told
def test_what_is_bound_and_does_not_listen_is_told_once(ports, hold, monkeypatch):
    four, six = ports(), ports()
    held = hold(("127.0.0.1", four), ("::1", six), listen=False, reuse=False)
    for port, address in ((four, "127.0.0.1"), (six, "::1")):
        assert [(row.address, row.port) for row in seam.ask("bound", port)] == [(address, port)]
        assert seam.ask("sock_diag", port) == [] and pids(port) == [held.pid]
    assert PortManager().is_port_in_use(four) is True
    listener = hold(("127.0.0.2", four))
    assert pids(four) == [listener.pid]
    assert [{*pids(four, at, thorough=True)} for at in (None, "0.0.0.0")] == [{held.pid, listener.pid}] * 2
    hold(("127.0.0.3", four), listen=False)  # it shares its address, whatever else keeps that from being bound
    seam.stand_in(monkeypatch, "bind", lambda *_: PermissionError(13, "Permission denied"))
    assert pids(four, "127.0.0.3") == []


def test_no_more_is_read_than_was_asked_for(port, monkeypatch):
    """The last socket of a process ends the look at it, and a PID alone is not described."""
    read, readlink = [], os.readlink
    monkeypatch.setattr(os, "readlink", lambda path, **folder: read.append(path) or readlink(path, **folder))
    with socket.create_server(("127.0.0.1", port)) as listener, open(os.devnull) as null:
        later = fcntl.fcntl(null, fcntl.F_DUPFD, 1000)
        assert PortManager(port).get_process_using_port(port) == os.getpid()
        os.close(later)
        assert str(listener.fileno()) in read and not {str(later), f"/proc/{os.getpid()}/cwd"} & {*read}


def test_nobody_is_an_answer_and_cannot_tell_is_none(port, hold, monkeypatch):
    hold(port)
    asked, answers = [], {1: None, 2: [], 3: []}
    seam.only(monkeypatch, *(lambda port, n=n: asked.append(n) or answers[n] for n in answers))
    assert find_listeners(port) == [] and asked == [1, 2]
    seam.only(monkeypatch, lambda port: None)
    which = f"port {port}: it is treated as held"
    for asked, host, told in ((port, None, which), (port, "127.0.0.1", which), (None, None, "which port")):
        with pytest.raises(CannotTell, match=f"could tell who holds {told}") as caught:
            find_listeners(asked, host)
        assert (caught.value.port, caught.value.host, caught.value.holders) == (asked or 0, host or "", ())


@pytest.mark.parametrize(("loadavg", "pids"), [
    (b"0.1 0.2 0.3 1/80 300", [300, 70, 2, 900, 500]),
    (b"0.1 0.2 0.3 1/80 900", [900, 500, 300, 70, 2]),
    (b"", [900, 500, 300, 70, 2]),
    (FileNotFoundError("a /proc that shows processes alone"), [900, 500, 300, 70, 2]),
])  # fmt: skip
def test_the_youngest_have_the_pids_up_to_the_one_given_last(monkeypatch, loadavg, pids):
    monkeypatch.setattr(os, "listdir", lambda _: ["70", "900", "self", "2", "300", "500"])
    seam.stand_in(monkeypatch, "contents", Mock(side_effect=[loadavg]))
    assert seam.youngest_first() == pids


def test_a_process_may_vanish_at_any_moment(port, hold, monkeypatch):
    held = hold(port)
    held.end()
    assert seam.read(held.pid) is None
    with socket.create_server(("127.0.0.1", port)):
        with monkeypatch.context() as patch:
            seam.owners_answer(patch, lambda rows: [rows[0]._replace(pid=pid) for pid in (held.pid, os.getpid())])
            assert pids(port) == [os.getpid()]
        listdir = os.listdir
        monkeypatch.setattr(os, "listdir", lambda path: ["99999", *listdir(path)])
        assert pids(port, thorough=True) == [os.getpid()]


@pytest.mark.parametrize(("name", "table", "told"), [
    *(("tcp", table, None) for table in (FileNotFoundError(), PermissionError())), ("tcp6", PermissionError(), None),
    *(("tcp", io.StringIO(text), None) for text in ("", "\n", "no table\n")), ("tcp6", FileNotFoundError(), 1),
])  # fmt: skip
def test_a_table_of_proc_that_is_not_there_or_no_table(port, hold, monkeypatch, name, table, told):
    """Where IPv6 is switched off there is none of it; WSL 1 has an empty one."""
    hold(port)
    real, told_there = open, {f"/proc/net/{name}": Mock(side_effect=[table])}
    monkeypatch.setattr("builtins.open", lambda path, *more, **how: told_there.get(path, real)(path, *more, **how))
    rows = seam.ask("proc_net", port)
    assert (rows if rows is None else len(rows)) == told


@boxed
def test_a_proc_of_another_namespace_where_our_number_is_the_same_by_chance(monkeypatch):
    real = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path, **at: "1" if path == "/proc/self" else real(path, **at))
    assert ctypes.CDLL(None).unshare(0x20000000) == 0  # CLONE_NEWPID
    child = os.fork()
    if child == 0:
        os._exit(seam.proc_is_ours(os.getpid()) or os.getpid() != 1)
    assert os.waitpid(child, 0)[1] == 0
