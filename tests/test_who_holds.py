"""Who holds it? Linux answers natively: sock_diag, /proc/net/tcp and /proc/PID/fd, and starts no program."""

from __future__ import annotations

import fcntl
import io
import os
import pwd
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from port_manager import CannotTell, Endpoint, PortManager, ensure_port_available, find_listeners

from . import seam
from .apart import NETLINK, apart, boxed, refuse_call
from .conftest import LINUX, NOBODY, ROOT, ROOT_USER, as_nobody, bound_is_told, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="this is how Linux is asked")
ME = pwd.getpwuid(os.geteuid()).pw_name
as_root = pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")


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


def test_nobody(port, native):
    assert find_listeners(port) == []
    assert PortManager(port).get_process_using_port(port) is None


def test_all_that_is_told_of_a_holder(port, hold, native, tmp_path):
    folder = tmp_path / "我的项目"
    folder.mkdir()
    before = time.time()
    held = hold(port, ("::1", port), cwd=str(folder))
    (holder,) = find_listeners(port)
    assert holder.pid == held.pid
    assert holder.parent == os.getpid()
    assert holder.user == ME
    assert holder.name == os.path.basename(sys.executable)[:15] or holder.name.startswith("python")
    assert holder.command.startswith(f"{sys.executable} -S -E ")
    assert holder.cwd == str(folder)
    assert before - 2 < holder.started < time.time() + 2
    assert holder.addresses == (Endpoint("127.0.0.1", port), Endpoint("::1", port))
    assert PortManager().get_process_using_port(port) == held.pid


def test_every_port(ports, hold, native):
    first, second = ports(), ports()
    held = [hold(("127.0.0.1", first)), hold(("127.0.0.1", second), ("127.0.0.2", first))]
    found = {holder.pid: {str(address) for address in holder.addresses} for holder in find_listeners()}
    assert found[held[0].pid] == {f"127.0.0.1:{first}"}
    assert found[held[1].pid] == {f"127.0.0.1:{second}", f"127.0.0.2:{first}"}


def test_only_those_that_block_a_host(port, hold, native):
    first, second = hold(port), hold(("127.0.0.2", port))
    assert {holder.pid for holder in find_listeners(port)} == {first.pid, second.pid}
    assert {holder.pid for holder in find_listeners(port, "0.0.0.0")} == {first.pid, second.pid}
    assert [holder.pid for holder in find_listeners(port, "127.0.0.2")] == [second.pid]
    assert find_listeners(port, "127.0.0.3") == []


@pytest.mark.parametrize(
    ("spec", "master_holds"),
    [
        pytest.param({"children": 4}, True, id="prefork"),
        pytest.param({"children": 4, "double_fork": True}, True, id="strangers who share it"),
        pytest.param({"children": 12, "silent_parent": True}, False, id="a master who holds nothing"),
        pytest.param({"children": 4, "orphans": True}, False, id="orphans"),
        pytest.param({"children": 3, "own_sockets": True, "reuseport": True}, False, id="sockets of their own"),
    ],
)
def test_a_family_is_found_whole_and_parents_first(port, hold, native, spec, master_holds):
    """A thorough look leaves nobody out; the usual one finds the youngest's family, whoever else there is."""
    held = hold(port, **spec)
    assert not spec.get("orphans") or eventually(lambda: held.pid not in held.alive())
    everybody = {*held.children, *([held.pid] if master_holds else [])}
    thorough, usual = ([holder.pid for holder in find_listeners(port, thorough=how)] for how in (True, False))
    assert set(thorough) == everybody
    assert set(usual) == everybody or (spec.get("double_fork") and set(usual) >= set(held.children))
    if spec == {"children": 4}:
        assert thorough[0] == usual[0] == held.pid == PortManager().get_process_using_port(port)


@bound_is_told
def test_a_bound_socket_that_does_not_listen(port, hold):
    held = hold(port, listen=False, reuse=False)
    assert [holder.pid for holder in find_listeners(port)] == [held.pid]
    assert seam.ask("sock_diag", port) == []
    assert PortManager().is_port_in_use(port) is True


@bound_is_told
def test_each_bound_socket_is_told_once(ports, hold):
    four, six = ports(), ports()
    hold(("127.0.0.1", four), ("::1", six), listen=False)
    told = [seam.ask("bound", port) for port in (four, six)]
    assert [[(row.address, row.port) for row in rows] for rows in told] == [[("127.0.0.1", four)], [("::1", six)]]


def test_a_pid_alone_is_not_described(port, hold, monkeypatch):
    held = hold(port)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pytest.fail("a user was looked up"))
    assert PortManager(port).get_process_using_port(port) == held.pid


def test_a_look_ends_with_the_last_socket_of_a_process(port, monkeypatch):
    with socket.create_server(("127.0.0.1", port)), open(os.devnull) as null:
        later = fcntl.fcntl(null, fcntl.F_DUPFD, 1000)
        read: list[str] = []
        readlink = os.readlink
        monkeypatch.setattr(os, "readlink", lambda path, **folder: read.append(path) or readlink(path, **folder))
        assert [holder.pid for holder in find_listeners(port)] == [os.getpid()]
        os.close(later)
        assert read and str(later) not in read


def test_neither_udp_nor_a_client_is_a_holder(port, hold):
    hold(port, udp=True)
    assert find_listeners(port) == []
    held = hold(port)
    with socket.create_connection(("127.0.0.1", port)):
        assert [holder.pid for holder in find_listeners(port)] == [held.pid]


def test_v6only_is_told(ports, hold):
    dual, only = ports(), ports()
    hold(("::", dual), v6only=False)
    hold(("::", only), v6only=True)
    assert [row.v6only for row in seam.ask("sock_diag", dual)] == [False]
    assert [row.v6only for row in seam.ask("sock_diag", only)] == [True]
    assert [row.v6only for row in seam.ask("proc_net", only)] == [None]
    assert len(find_listeners(dual, "127.0.0.1")) == 1
    assert find_listeners(only, "127.0.0.1") == []


@pytest.mark.parametrize("connections", [0, 15])
def test_the_two_native_ways_agree(ports, hold, connections):
    port = ports()
    hold(("0.0.0.0", port), ("::", ports()))
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    for asked in (None, port):
        diag, proc = seam.ask("sock_diag", asked), seam.ask("proc_net", asked)
        assert {row._replace(v6only=None) for row in diag} >= {row for row in proc if row.port == port}
        assert len([row for row in diag if row.port == port]) == 1
    for client in clients:
        client.close()


def test_nobody_and_cannot_tell_are_different(port, hold, monkeypatch):
    hold(port)
    seam.only(monkeypatch, lambda port: None)
    with pytest.raises(CannotTell, match="treated as held") as caught:
        find_listeners(port)
    assert (caught.value.port, caught.value.holders) == (port, ())
    seam.only(monkeypatch, lambda port: None, lambda port: [])
    assert find_listeners(port) == []


def test_nobody_is_an_answer_and_ends_the_search(port, monkeypatch):
    asked = []
    answers = {1: None, 2: [], 3: []}
    seam.only(monkeypatch, *(lambda port, n=n: asked.append(n) or answers[n] for n in answers))
    assert find_listeners(port) == []
    assert asked == [1, 2]


@as_root
def test_another_users_holder_is_named_by_its_user(port, hold):
    hold(port)
    (holder,) = as_nobody(lambda: find_listeners(port))
    assert holder[0] is None and holder[2] == "root"
    said = as_nobody(lambda: PortManager().get_process_using_port(port))
    assert f"port {port} is held by a process of user root that may not be seen" in said


@as_root
def test_a_process_that_gave_up_its_rights_is_named_by_its_new_user(port, hold):
    held = hold(port, uid=NOBODY)
    assert eventually(lambda: [holder.user for holder in find_listeners(port)] == [pwd.getpwuid(NOBODY).pw_name])
    assert find_listeners(port)[0].pid == held.pid


@pytest.mark.parametrize(
    "name",
    ["a b", ") S 1 (", 'x",pid=1,fd=1', "\x1b[31mred\x07", "名字"],
    ids=["blank", "bracket", "quote", "escape", "wide"],
)
def test_names_that_try_to_mislead(port, hold, name):
    held = hold(port, name=name)
    shown = "".join(c if c.isprintable() else "?" for c in name)
    assert eventually(lambda: [holder.name for holder in find_listeners(port)] == [shown])
    (holder,) = find_listeners(port)
    assert (holder.pid, holder.parent) == (held.pid, os.getpid())


@pytest.mark.parametrize(
    ("loadavg", "order"),
    [
        ("0.1 0.2 0.3 1/80 300", [300, 70, 2, 900, 500]),
        *((text, [900, 500, 300, 70, 2]) for text in ("0.1 0.2 0.3 1/80 901", None, "")),
    ],
    ids=["wrapped", "upwards", "processes-only", "garbage"],
)
def test_the_youngest_have_the_pids_up_to_the_one_given_last(monkeypatch, loadavg, order):
    def contents(path):
        if loadavg is None:
            raise FileNotFoundError(path)
        return loadavg.encode()

    monkeypatch.setattr(os, "listdir", lambda _: ["70", "900", "self", "2", "300", "500"])
    assert seam.youngest_first(monkeypatch, contents) == order


def test_a_process_may_vanish_at_any_moment(port, hold, monkeypatch):
    """Between the table of sockets and the process, and between its descriptors."""
    held = hold(port)
    rows = seam.ask("sock_diag", port)
    held.end()
    assert seam.read(held.pid) is None
    seam.only(monkeypatch, lambda port: rows)
    assert [holder.pid for holder in find_listeners(port)] == [None]
    seam.only(monkeypatch, "sock_diag")
    seam.owners_answer(monkeypatch, lambda rows: [row._replace(pid=held.pid) for row in rows])
    with socket.create_server(("127.0.0.1", port)):
        assert find_listeners(port) == []
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", port)):
        listdir = os.listdir
        monkeypatch.setattr(os, "listdir", lambda path: [*listdir(path), "99999"])
        assert [holder.pid for holder in find_listeners(port)] == [os.getpid()]


def test_garbage_from_the_kernel_is_no_answer(monkeypatch):
    with pytest.raises(ValueError, match="sock_diag"):
        seam.parse("sock_diag", b"\x20\0\0\0\x02\0" + bytes(26))  # NLMSG_ERROR
    done = struct.pack("=IHHII", 20, 3, 2, 0, 0)
    assert seam.parse("sock_diag", done + struct.pack("=i", 0)) == ([], True)
    with pytest.raises(ValueError, match="sock_diag"):  # the kernel's module for TCP cannot be loaded
        seam.parse("sock_diag", done + struct.pack("=i", -2))

    class Refusing(socket.socket):
        def send(self, *_):
            raise PermissionError

    monkeypatch.setattr(socket, "socket", Refusing)
    assert seam.ask("sock_diag", 80) is None
    monkeypatch.delattr(socket, "AF_NETLINK")
    assert seam.ask("sock_diag", 80) is None


@pytest.mark.parametrize("missing", ["tcp", "tcp6"])
def test_without_a_table_in_proc(port, hold, missing, monkeypatch):
    hold(port)
    real = open

    def without(path, *args, **kwargs):
        if path == f"/proc/net/{missing}":
            raise FileNotFoundError(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", without)
    rows = seam.ask("proc_net", port)
    assert rows is None if missing == "tcp" else len(rows) == 1  # without tcp6, IPv6 is switched off


@pytest.mark.parametrize("text", ["", "\n", "no table\n", None])
def test_an_empty_table_is_no_answer(monkeypatch, text):
    """WSL 1 has a /proc/net/tcp in which there is nothing; another may not be read."""

    def opened(*_, **__):
        if text is None:
            raise PermissionError
        return io.StringIO(text)

    monkeypatch.setattr("builtins.open", opened)
    assert seam.ask("proc_net", 80) is None


# What a machine may be like: each is made for real


@boxed
def test_without_proc(said, monkeypatch):
    seam.one_look(monkeypatch)
    seam.stand_in(monkeypatch, "run a tool", lambda *_: None)  # docker's is asked who publishes the port
    subprocess.run(["mount", "-t", "tmpfs", "none", "/proc"], check=True)
    with socket.create_server(("127.0.0.1", 8000)):
        assert find_listeners(8000)[0][:3] == (None, None, "root")
        assert ensure_port_available(8000) is False
    assert "held by a process of user root that cannot be seen from here" in said()


@boxed
def test_with_a_hidden_proc():
    subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
    with socket.create_server(("127.0.0.1", 8000)):
        assert find_listeners(8000)[0].pid == seam.ancestry()[0] == os.getpid()


@boxed
def test_with_ipv6_switched_off():
    for name in ("all", "lo"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    assert ensure_port_available(8000, "localhost") is True and find_listeners(8000) == []
    assert seam.probe(8000, "::1") == "::1 is not an address of this machine"


@apart
def test_without_netlink(port):
    """A sandbox (seccomp) that refuses the socket: /proc answers."""
    refuse_call(1, *NETLINK)
    with socket.create_server(("127.0.0.1", port)):
        assert seam.ask("sock_diag", port) is None
        assert find_listeners(port)[0].pid == os.getpid()


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
        words = [*inside[:1], *options, *inside[1:]]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.split() == ["1", ours]
