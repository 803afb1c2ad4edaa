"""What keeps the wrong process alive, condition by condition: each test here fails when its condition is broken."""

import contextlib  # noqa: I001
import ctypes
import functools
import json
import os
import pwd
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from port_manager import CannotTell, PortManager, ensure_port_available, find_listeners, main
from port_manager import preview_port, wait_until_free

from . import seam
from .apart import KILL, NETLINK, InFlight, apart, boxed, forked, mounted, refuse_call, swapped
from .apart import when_it_says
from .conftest import ENSURE, LINUX, PORT_MANAGER, ROOT, as_nobody, as_root, birth, bound_is_told
from .conftest import can_bind, command_line, eventually, give_up_rights, holding

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")
MINE, OTHER = "127.0.0.1", "127.0.0.2"


def holders(port, host=MINE):
    """The PIDs that a look finds, in its order."""
    return [holder.pid for holder in preview_port(port, host).holders]


@pytest.mark.parametrize(("moment", "when", "pinning"), [  # a call that it comes before, or a line that is logged
    ("it is pinned", (os, "pidfd_open"), "pidfd"),  # what was read before is not true of the pinned one
    ("it has been looked at", "Process using port", "pidfd"),
    ("it has been looked at", "Process using port", "birth"),
    ("it is signalled", (signal, "pidfd_send_signal"), "pidfd"),
    ("a sandbox refuses the signal", (signal, "pidfd_send_signal"), "pidfd"),
    ("it is to be forced", "did not stop within", "pidfd"),
    ("it is to be forced", "did not stop within", "birth"),
    ("somebody is asked", "", "pidfd"),  # the answer was about the first one, and there is no second question
], indirect=["pinning"])  # fmt: skip
@boxed
def test_the_pid_changes_hands_when(sent, pinning, said, monkeypatch, moment, when):
    """Its new owner even holds the socket: only the handle, or the start time, tells that nobody looked at it."""
    name = "ssh" if when else "node"
    pid, swap = swapped(8000, name)
    swaps = iter([lambda: (swap(), sent.clear())])

    def late(real, *args):
        next(swaps, bool)()
        if "refuses" in moment:
            raise PermissionError(1, "Operation not permitted")
        return real(*args)

    if isinstance(when, tuple):
        monkeypatch.setattr(*when, functools.partial(late, getattr(*when)))
    elif when:
        when_it_says(when, next(swaps))
    seam.stand_in(monkeypatch, "terminal", lambda: True)
    seam.stand_in(monkeypatch, "question", lambda question: next(swaps)())
    policy = None if when else "ask"
    assert ensure_port_available(8000, MINE, policy=policy, grace=0.2) is False
    assert sent == [] and birth(pid) and Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"
    assert ("Somebody else holds the port now" in said()) is (not when)


@pytest.mark.parametrize("beside", ["a parent", "a parent; another takes it", "a master"])
@apart
def test_one_that_lets_go_of_the_port_between_look_and_signal_lives(port, hold, sent, monkeypatch, beside):
    """Nobody was stopped yet: its parent is not watched for a restart, and the other one is an ordinary holder."""
    seam.limits(monkeypatch, restart_watch=40)
    more, others = ["-m", "gunicorn"] if "master" in beside else [], []
    held = hold((MINE, port), children=1, silent_parent=True, drain=True, more=more)

    def let_go():
        KILL(held.children[0], signal.SIGTERM)
        eventually(lambda: can_bind(port))
        others.extend(hold((MINE, port)) for _ in range("another" in beside))

    when_it_says(str(held.children[0]), let_go)
    begun = time.monotonic()
    assert ensure_port_available(port, MINE) is True and time.monotonic() - begun < 30
    assert {pid for pid, _ in sent} == {other.pid for other in others} and len(held.alive()) == 2


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this Python has no pidfd_open")
@pytest.mark.parametrize(("outcome", "call"), [
    ("freed", lambda port, pid: ensure_port_available(port, MINE)),
    ("checked", lambda port, pid: main(["check", str(port), "--json"])),
    ("waited", lambda port, pid: wait_until_free(port, MINE, 20)),
    ("stopped by PID", lambda port, pid: PortManager(port).kill_process(pid)),
    ("gone", lambda port, pid: ensure_port_available(port, MINE)),
    ("unseen", lambda port, pid: ensure_port_available(port, "0.0.0.0")),
])  # fmt: skip
def test_every_handle_is_closed_whatever_comes_of_the_look(port, hold, outcome, call, monkeypatch):
    master = {"children": 1, "more": ["-m", "gunicorn"]} if outcome == "freed" else {}  # pinned once: it holds the port
    held = hold((MINE, port), exit_after=0.5 if outcome == "waited" else 60, **master)
    flight, opened = InFlight(port, "127.0.0.9"), Mock(side_effect=os.pidfd_open)
    held.process.stdout.close()
    seam.one_look(monkeypatch)
    end = bool if outcome != "gone" else lambda: (held.process.kill(), held.process.wait())
    monkeypatch.setattr(os, "pidfd_open", lambda pid: (opened(pid), end())[0])  # between the handle and the reading
    flight.send_off() if outcome == "unseen" else flight.close()
    before = sorted(os.listdir("/proc/self/fd"))
    call(port, held.pid)
    assert sorted(os.listdir("/proc/self/fd")) == before and opened.called
    flight.close()


@pytest.mark.parametrize("pid", [1, 0, -1, -os.getpid()])
def test_no_signal_for_a_pid_below_2(port, hold, sent, said, monkeypatch, pid):
    """PID 0 reached kill(), which signals the caller's whole process group; a call names it, or lsof and ps do."""
    assert PortManager().kill_process(pid) is False
    assert f"❌ PID {pid} stands for the system or for whole groups of processes: it is left alone" in said()
    for firmly in (False, True):
        with pytest.raises(OSError, match="never signalled"):
            seam.ask_to_stop("linux", pid, firmly)
    held, me = hold((MINE, port)), pwd.getpwuid(os.geteuid()).pw_name
    rows = "".join(f"{each} 0 0 S ?? {me} Mon Nov 23 10:15:00 2026 /bin/app\n" for each in (pid, os.getpid()))
    told = {"lsof": f"p{pid}\nf3\ntIPv4\nPTCP\nn127.0.0.1:{port}\nTST=LISTEN\n", "ps": rows}
    seam.stand_in(monkeypatch, "run a tool", lambda tool, *_, **__: seam.answer(0, told.get(tool, ""), ""))
    seam.on_system(monkeypatch, "darwin", me)
    assert ensure_port_available(port, MINE, grace=0.2) is False
    assert sent == [] and held.alive()


# ---- Whose it is ----
@boxed
def test_a_holder_whose_user_is_not_told_is_not_ours(hold, sent, said):
    held = hold((MINE, 8000))
    for name in ("status", "cmdline"):
        subprocess.run(["mount", "--bind", "/dev/null", f"/proc/{held.pid}/{name}"], check=True)
    assert ensure_port_available(8000, MINE) is False
    assert "it cannot be told whose it is" in said() and PortManager(8000).kill_process(held.pid) is False
    (holder,) = find_listeners(8000)
    assert sent == [] and held.alive() and (holder.user, holder.command) == ("", holder.name)


@as_root
@pytest.mark.parametrize(("opener", "number", "freed", "begin"), [  # whose socket; who has it, given the listener
    ("root", 2, True, lambda _: forked(lambda: forked(give_up_rights))),  # a worker gave up its rights
    ("root", 2, False, lambda _: forked(lambda: (forked(bool), give_up_rights()))),  # a master did
    ("root", 1, False, lambda sock: forked(lambda: (forked(give_up_rights), sock.close()))),
    ("root", 2, False, lambda _: (forked(bool), forked(give_up_rights))),  # strangers who share it
    ("root", 1, False, lambda _: forked(give_up_rights)),
    ("daemon", 1, False, lambda _: forked(give_up_rights)),
    ("daemon", 1, True, lambda sock: forked(lambda: socket.create_server((OTHER, sock.getsockname()[1])).detach())),
])  # fmt: skip
@apart
def test_whose_it_is_when_several_users_hold_it(port, monkeypatch, opener, number, freed, begin):
    """A worker goes with the master of root that started it; all other holders of another user keep everybody alive."""
    os.seteuid(pwd.getpwnam(opener).pw_uid)
    listener = socket.create_server((MINE, port))
    os.seteuid(0)
    begin(listener)
    listener.close()
    pids = [holder.pid for holder in find_listeners(port, thorough=True)]
    assert len(pids) == number
    if number == 1 and not freed:  # it is nobody's own, but another opened the socket, and may hold it, too
        why = as_nobody(lambda: preview_port(port, MINE).reason)
        assert f"left alone: it belongs to user {opener}, who opened its socket; only that user should stop it" in why
        assert as_nobody(lambda: ensure_port_available(port, MINE)) is False and birth(pids[0])
    if number == 2:  # only root takes a worker of another user along
        with monkeypatch.context() as patch:
            seam.stand_in(patch, "superuser", lambda _: False)
            assert ensure_port_available(port, MINE) is False and all(map(birth, pids))
    assert ensure_port_available(port, MINE, grace=1) is freed
    assert [bool(birth(pid)) for pid in pids] == [not freed] * number


@pytest.mark.parametrize("begun", ["above us", "after us"])
@boxed
def test_a_parent_that_is_hidden_is_not_one_that_ended(begun):
    """Above root's (sudo) is perhaps the holder. Who began after the oldest of our known ancestors is none of those."""
    subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
    (read, write), (go, going) = os.pipe(), os.pipe()

    def hidden():  # of root, and the parent of who asks
        if os.fork() == 0:
            give_up_rights()
            os.read(go, 1)
            os.write(write, str(ensure_port_available(8000, MINE, grace=1)).encode())

    def listen():
        if begun == "above us":
            forked(hidden)
        give_up_rights()
        socket.create_server((MINE, 8000)).detach()

    if begun == "after us":
        forked(hidden)
        time.sleep(0.1)
    holder = forked(listen)
    os.write(going, b"1")
    assert os.read(read, 9).decode() == str(begun == "after us") and bool(birth(holder)) is (begun == "above us")


@pytest.mark.parametrize(("changes", "oldest", "sentence"), [  # told (None: nothing); since when we know our ancestors
    ({"kernel": True}, -1, "it is a thread of the kernel"),
    (None, -1, "it could not be looked at"),
    ({"started": None}, 1000.0, "it may be one of our own ancestors"),
    ({"started": 1000.0}, 1000.0, "it may be one of our own ancestors"),
    *(({"leader": True, "name": name}, -1, "it runs on a terminal of its own")
      for name in ("-zsh", "bash", "fish", "sh", "dash", "ksh", "tcsh", "csh", "ash", "nu", "xonsh", "elvish", "pwsh")),
])  # fmt: skip
def test_what_is_told_of_a_holder_keeps_it_alive(port, hold, monkeypatch, said, sent, changes, oldest, sentence):
    held, real = hold((MINE, port)), seam.reader("linux")

    def read(pid):
        found = real(pid)
        if pid == held.pid:
            found = {} if changes is None else {pid: found[pid]._replace(**changes)}
        return found

    seam.readings(monkeypatch, "linux", read)
    seam.stand_in(monkeypatch, "ancestry", lambda _: seam.ancestors([os.getpid()], oldest))
    assert ensure_port_available(port, MINE) is False
    assert sentence in said() and sent == [] and held.alive()


@pytest.mark.parametrize(("program", "terminal"), [("sleep 60", True), ("setsid sleep 60", False)])
def test_a_terminal_below_a_holder_where_the_kernel_tells_no_children(port, hold, monkeypatch, said, program, terminal):
    """It was built without CONFIG_PROC_CHILDREN: every process is read. A session without a terminal ends nobody's."""
    opened, exists = os.open, os.path.exists
    monkeypatch.setattr(os, "open", lambda path, *more: opened(str(path).replace("/children", "/none"), *more))
    monkeypatch.setattr(os.path, "exists", lambda path: exists(path) and "/children" not in str(path))
    held = hold((MINE, port), starts=program.split(), terminal=terminal)
    assert eventually(lambda: seam.read(held.children[0]).name == "sleep")
    assert ensure_port_available(port, MINE) is not terminal
    assert (f"would also end a terminal (sleep {held.children[0]})" in said()) is terminal


# ---- What is in the way, and what is not ----
@boxed
def test_a_bind_to_the_wildcard_of_ipv6_does_not_meet_ipv4_where_the_system_says_so(hold):
    four, six = hold((MINE, 8000)), hold(("::1", 8000))
    Path("/proc/sys/net/ipv6/bindv6only").write_text("1")
    assert holders(8000, "::") == [six.pid]
    assert ensure_port_available(8000, "::") and four.alive()


@bound_is_told
@pytest.mark.parametrize(("how", "goes"), [("forks", True), ("multiprocessing", True), ("starts another", False)])
def test_the_master_that_bound_the_port_of_its_workers_is_in_the_way(port, hold, how, goes):
    """It does not listen, and would start them again. A stranger who shares the address would not; nor would a test
    runner that reserved the number for its server: it blocks nobody."""
    kind = {"listen": False, "starts": [*holding((MINE, port), reuseport=1), how]}
    kind = {"children": 2, "own_sockets": 1, "master_binds": 1} if how == "forks" else kind
    stranger, held = hold((MINE, port), reuseport=1, listen=False), hold((MINE, port), reuseport=1, **kind)
    assert eventually(lambda: sorted(holders(port)) == sorted([held.pid] * goes + held.children))
    assert ensure_port_available(port) is True and held.alive() == [held.pid] * (not goes) and stranger.alive()


@bound_is_told
@boxed
def test_a_bound_wildcard_of_ipv6_alone_is_probed_as_such(hold):
    """With SO_REUSEADDR it keeps nobody out; a probe of both families would meet the IPv4 holder, and blame it."""
    idle = hold(("::", 8000), v6only=True, listen=False)
    held = hold((MINE, 8000), reuse=False, listen=False)
    assert holders(8000, "::") == [held.pid] and idle.alive()


@pytest.mark.parametrize(("worker", "parent"), [
    ("", ""), ("python -c from multiprocessing.spawn import spawn_main", "uvicorn main:app"),
])  # fmt: skip
def test_who_is_not_the_master_of_a_worker_that_binds_for_itself(worker, parent):
    """One whose command is not told; one that started another program, which no server does with such a worker."""
    at = 4_000_000
    known = [seam.process(at + 1, at)._replace(command=worker), seam.process(at, 1)._replace(command=parent)]
    assert seam.masters("linux", known) == (None, [])


def test_one_that_listens_on_both_families_is_in_the_way_of_the_wildcard(port, hold):
    held, beside = hold((MINE, port), ("::1", port)), hold((OTHER, port))
    assert ensure_port_available(port, "::") is False and held.alive() and beside.alive()
    beside.end()
    assert preview_port(port, "::").managers == {}
    assert ensure_port_available(port, "::") is True and held.alive() == []


# ---- Stop, in the right order, and long enough ----
@boxed
def test_parents_are_asked_before_their_children_whatever_their_pids(sent):
    """A master whose worker dies first would start another; its PID may be the higher one."""

    def master():
        socket.create_server((MINE, 8000)).detach()
        forked(bool, 3000)
        forked(bool, 7000)

    pid = forked(master, 5000)
    assert holders(8000)[0] == pid
    assert ensure_port_available(8000, MINE) is True
    assert [asked for asked, number in sent if number == signal.SIGTERM] in ([pid, 3000, 7000], [pid, 7000, 3000])


@pytest.mark.parametrize(("who", "forced", "asked"), [(0, False, 0), (1, False, 1), (0, True, 2)])
def test_who_was_asked_is_not_forced_where_one_may_not_be_stopped(port, hold, monkeypatch, said, who, forced, asked):
    """The family stays: nobody else is asked, or forced, for a port that will not be free; who was asked is named."""
    held, order = hold((MINE, port), children=1, ignore_term=True), []
    pids = [held.pid, *held.children]

    def refused(pid, firmly, send):
        order.append((pid, firmly))
        if (pid, firmly) == (pids[who], forced):
            raise PermissionError(*([] if forced else [1]), "Operation not permitted")  # with a number or without
        send()

    seam.on_signal(monkeypatch, refused)
    assert ensure_port_available(port, MINE, grace=0.1) is False and held.alive() == pids
    assert order == [*((pid, False) for pid in pids[:asked]), (pids[who], forced)]
    sentence = f"❌ Process {pids[who]} may not be stopped: Operation not permitted; asked to stop before that: "
    assert f"{said()}\n".count(f"{sentence}{', '.join(map(str, pids[:asked])) or 'nobody'}\n") == 1
    assert ("did not stop" in said()) is forced
    assert PortManager(port, grace=0.1).kill_process(pids[who]) is False and said().count(sentence) == 2


@pytest.mark.parametrize("exited", [True, False])
@boxed
def test_a_child_whose_descriptors_cannot_be_read_is_no_reason(exited):
    """It has exited, and beside it there is a port of its user without a holder; or there is no such port."""
    give_up_rights()
    flight = InFlight(8001)
    flight.send_off() if exited else flight.close()
    child = lambda: os._exit(0) if exited else (ctypes.CDLL(None).prctl(4, 0, 0, 0, 0), time.sleep(60))
    forked(lambda: (os.fork() or child(), socket.create_server((MINE, 8000)).detach()))
    time.sleep(0.1)
    assert ensure_port_available(8000, MINE) is True
    flight.close()


@boxed
def test_what_another_users_child_listens_on_is_not_told(said):
    """Its descriptors cannot be read, and there is a port of that user which has no holder."""

    def serve():
        forked(lambda: socket.create_server((MINE, 8001)).detach())
        give_up_rights()
        socket.create_server((MINE, 8000)).detach()

    pid = forked(serve)
    give_up_rights()
    assert ensure_port_available(8000, MINE) is False and birth(pid)
    assert "stopping it would also close other ports, perhaps, which this system does not tell" in said()


@pytest.mark.parametrize("client", [False, True])
@apart
def test_who_is_just_ending_is_waited_for(port, said, client):
    """Its socket is there, and nobody holds it any more; or the port is its own end, and nobody is found."""
    with socket.create_server((MINE, 0)) as server:
        if client:
            ending = socket.create_connection(server.getsockname(), None, (MINE, port))
            ending.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # without TIME_WAIT
        else:
            ending = InFlight(port)
            ending.send_off()
        when_it_says("Attempting", threading.Timer(0.25, ending.close).start)  # between two looks
        assert ensure_port_available(port, MINE) is True and said().count("⚠️") == 1  # that it was in use


def test_the_number_of_a_thread_is_no_pid(start):
    """A signal to it would end the whole process."""
    code = "import threading as t; t.Thread(target=t.Event().wait).start(); print(t.enumerate()[1].native_id)"
    process = start(sys.executable, "-u", "-c", code)
    assert PortManager().kill_process(int(process.stdout.readline())) is False and process.poll() is None


def test_a_process_whose_first_thread_has_ended_is_still_one(port, hold, pinning):
    held = hold((MINE, port), children=1, first_thread_ends=True)
    folder = Path(f"/proc/{held.children[0]}")
    assert eventually(lambda: (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z")
    KILL(held.pid, signal.SIGKILL)
    assert [each.cwd for each in find_listeners(port) if each.pid != held.pid] == [os.getcwd()]
    assert ensure_port_available(port, MINE, grace=1) is True and not list(folder.glob("task/*/fd/3"))


@pytest.mark.parametrize("error", [1, 38], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize("call", [(424,), (434,), NETLINK], ids=["pidfd_send_signal", "pidfd_open", "netlink"])
@apart
def test_a_sandbox_that_refuses_one_call_is_no_obstacle(port, hold, call, error):
    held = hold((MINE, port), ("::1", port))
    refuse_call(error, *call)
    assert ensure_port_available(port, grace=2) is True and held.alive() == []


@pytest.mark.parametrize("call", [
    lambda manager, _: not manager.is_port_in_use(manager.port), lambda manager, _: manager.check_and_clean_port(),
    PortManager.kill_process,
])  # fmt: skip
@pytest.mark.parametrize("spare", range(8))
@apart
def test_out_of_descriptors_the_port_counts_as_held(port, hold, sent, spare, call):
    """No descriptor for a probe, an answer of the kernel, a handle: nobody is stopped by half, nor counts as gone."""
    held, manager = hold((MINE, port), ignore_term=True), PortManager(port, MINE, grace=0.2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unused = [number for number in range(1000) if not os.path.exists(f"/proc/self/fd/{number}")]
    free = False
    resource.setrlimit(resource.RLIMIT_NOFILE, (unused[spare], hard))
    with contextlib.suppress(CannotTell):  # which is not "free"
        free = call(manager, held.pid)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert held.alive() == [] if free else (sent, held.alive()) == ([], [held.pid])


@boxed
def test_names_of_users_and_commands_bring_no_control_characters(tmp_path):
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
    (tmp_path / "passwd").write_text(f"ro{evil}ot:x:0:0::/:\n")
    subprocess.run(["mount", "--bind", str(tmp_path / "passwd"), "/etc/passwd"], check=True)
    subprocess.Popen([*holding(8000), f"{evil}\r\n"], stdout=subprocess.PIPE, cwd="/").stdout.readline()
    for words in (["list"], ["list", "--json"], ["check", "8000"], ["free", "8000"]):
        done = command_line(*words, text=False, PYTHONIOENCODING="utf-8")
        shown = (done.stdout + done.stderr).decode()
        assert "?]0;owned" in shown and not [c for c in shown if not c.isprintable() and c != "\n"], words
        for told in json.loads(shown)["ports"] if "--json" in words else ():
            assert all(c.isprintable() for holder in told["holders"] for c in holder["user"] + holder["command"])


@boxed
def test_a_dead_mount_hangs_nobody(tmp_path):
    """The holder's folder is on a file system that answers no more, as of a server that went away."""
    server = mounted(tmp_path)
    holder = forked(lambda: (os.chdir(tmp_path), socket.create_server((MINE, 8000)).detach()))
    KILL(server, signal.SIGSTOP)
    calls = ["list", "list --json", "check 8000", "free 8000 --dry-run", "free 8000 --policy own"]
    words = {**{call: [PORT_MANAGER, *call.split()] for call in calls}, "a start": ["-c", ENSURE, "8000"]}
    quiet = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    asked = {call: subprocess.Popen([sys.executable, *words[call]], **quiet) for call in words}
    hanging = lambda: [call for call, process in asked.items() if process.poll() is None]
    eventually(lambda: not hanging(), 20)
    left = hanging()
    KILL(server, signal.SIGKILL)  # what hangs gets an error now
    assert left == [] and birth(holder)
    assert asked["free 8000 --policy own"].returncode == asked["a start"].returncode == 1


@pytest.mark.parametrize("terminal", ["stdin", "stderr"])
def test_to_ask_takes_a_terminal_at_both_ends(port, hold, monkeypatch, said, terminal):
    held = hold((MINE, port))
    for name in ("stdin", "stderr"):
        stream = SimpleNamespace(isatty=lambda is_one=name == terminal: is_one, readline=lambda: "y\n", write=len)
        monkeypatch.setattr(sys, name, stream)
    assert ensure_port_available(port, MINE, policy="ask") is False
    assert "the policy 'ask' needs a terminal to ask on" in said() and held.alive()
