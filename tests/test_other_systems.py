"""macOS and the BSDs: listings written after what their tools print, played back (pytest-subprocess).

Nothing here ran on those systems. What asks Windows is tested in test_windows.py and test_wine.py.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest

from port_manager import Endpoint, ensure_port_available, find_listeners

from . import seam
from .samples import COMM, LAUNCHCTL, LAUNCHCTL_PRINT, LSOF_BOUND, LSOF_HELD, NETSTAT_BSD, PS, PS_OF_FREEBSD, SOCKSTAT

PORT = 8000
ANY = "0.0.0.0"
LISTING = PS.format(me=9999)


@pytest.fixture
def machine(monkeypatch, fp):
    """A machine whose port is held until somebody is stopped, and whose tools are played back."""
    state = SimpleNamespace(held=True, signals=[])
    seam.stand_in(monkeypatch, "bind", lambda *_: OSError(errno.EADDRINUSE, "in use") if state.held else None)
    seam.stand_in(monkeypatch, "find a tool", lambda tool: tool)
    seam.limits(monkeypatch, restart_watch=0.05, forced_wait=0.3)
    seam.one_look(monkeypatch)
    fp.keep_last_process(True)

    def kill(pid, number):
        state.signals.append((pid, number))
        state.held = state.held and number not in (signal.SIGTERM, signal.SIGKILL)

    monkeypatch.setattr(os, "kill", kill)
    return state


@pytest.fixture
def kqueue(monkeypatch):
    """select.kqueue, as far as it is used."""
    queue, numbers = Mock(), {"KQ_EV_ADD": 1, "KQ_EV_ONESHOT": 16, "KQ_FILTER_PROC": -5, "KQ_NOTE_EXIT": 1 << 31}
    for name, value in {**numbers, "kqueue": lambda: queue, "kevent": lambda *words: words}.items():
        monkeypatch.setattr(select, name, value, raising=False)
    return queue


@pytest.mark.parametrize("gone", [None, ProcessLookupError])
def test_the_exit_of_one_is_waited_for(kqueue, gone):
    kqueue.control.side_effect = gone
    seam.sleep("macos", [38146, 501], 0.7)
    exits = [(pid, -5, 17, 1 << 31) for pid in (38146, 501)]
    assert kqueue.mock_calls == [call.control(exits, 1, 0.7), call.close()]


@pytest.fixture
def macos(machine, kqueue, monkeypatch, fp):
    """macos.lsof(listings of the port in turn, one of every port); macos.looks: what ps tells, in turn."""
    seam.on_system(monkeypatch, "darwin", "alice")
    for name, number in {"getpid": 9999, "getuid": 501, "geteuid": 501}.items():
        monkeypatch.setattr(os, name, lambda number=number: number)
    folder = r"/Users/alice/\xe9\xa1\xb9\xe7\x9b\xae"  # as lsof writes it with LC_ALL=C
    fp.register(["lsof", "-a", "-p", "38146", "-d", "cwd", "-F", "n"], stdout=f"p38146\nfcwd\nn{folder}\n")
    fp.register(["lsof", "-a", "-p", fp.any(), "-d", "cwd", "-F", "n"], stdout="")
    fp.register(["launchctl", "list"], stdout=LAUNCHCTL)
    for domain, text in (("gui/501", ""), ("system", ""), ("user/501", LAUNCHCTL_PRINT)):
        fp.register(["launchctl", "print", domain], stdout=text)
    fp.register(["netstat", "-an", "-p", "tcp"], stdout=NETSTAT_BSD)
    machine.looks = [LISTING]

    def lsof(*texts, every=None, port=PORT):
        for asked, listings in ((f"-iTCP:{port}", texts), ("-iTCP", texts[:1] if every is None else [every])):
            for text in listings:
                fp.register(["lsof", "-nP", asked, "-F", "pftdPnT"], stdout=text, returncode=0 if text else 1)

    def read(pid):
        text = machine.looks.pop(0) if len(machine.looks) > 1 else machine.looks[0]
        # the holder is a zombie once it has been signalled
        return seam.parse("ps", text if machine.held else text.replace(" 38146 S ", " 38146 Z "), COMM)

    machine.lsof = lsof
    seam.readings(monkeypatch, "macos", read)
    return machine


def test_macos_reads_ps(macos, fp):
    """Each keyword with an -o of its own: FreeBSD takes all that follows a = for the heading of one column."""
    keys = ("pid", "ppid", "pgid", "state", "tty", "user", "lstart", "command")
    fp.register(["ps", "-axww", *(word for key in keys for word in ("-o", f"{key}="))], stdout=LISTING)
    fp.register(["ps", "-axww", "-o", "pid=", "-o", "comm="], stdout=COMM)
    processes, begun = seam.reader("bsd")(38146), "Mon Nov 23 09:00:01 2026"
    started = time.mktime((2026, 11, 23, 9, 0, 1, 0, 0, -1))
    shell = (701, 700, 701, "ttys001", begun, started, "alice", "-zsh", "-zsh", False, False, False, True)
    assert processes[701] == shell and processes == seam.reader("macos")(None)
    names = {555: "OrbStack Helper", 501: "firefox", 815: "python3", 817: "ssh"}  # no path among its words is a name
    assert {pid: processes[pid].name for pid in names} == names and seam.parse("ps", LISTING)[817].name == "ssh"
    assert not processes[38146].leader and not processes[1].leader
    assert [pid for pid, process in processes.items() if process.zombie] == [666]


def test_macos_finds_the_holder(macos, fp):
    macos.lsof(LSOF_HELD)
    command, folder = "/opt/homebrew/bin/python3 -m uvicorn src.main:app", "/Users/alice/项目"
    started = time.mktime((2026, 11, 23, 9, 30, 0, 0, 0, -1))
    told = (38146, 701, "alice", "python3", command, folder, started, (Endpoint(ANY, PORT),))
    others = [r"/项\x41", r"/caf\xe9"]  # neither is how lsof writes UTF-8
    for folder in others:
        fp.register(["lsof", "-a", "-p", "38146", "-d", "cwd", "-F", "n"], stdout=f"p38146\nfcwd\nn{folder}\n")
    assert find_listeners(PORT) == [told]
    assert [find_listeners(PORT)[0].cwd for _ in others] == others


def held_by(pid):
    return [LSOF_HELD.replace("p38146", f"p{pid}")]


@pytest.mark.parametrize(("pid", "listing"), [(38146, LSOF_HELD), (38146, LSOF_BOUND), (820, *held_by(820))])
def test_macos_stops_the_holder_and_nobody_else(macos, pid, listing, said):
    macos.lsof(listing)
    assert ensure_port_available(PORT) is True
    assert macos.signals == [(pid, signal.SIGCONT), (pid, signal.SIGTERM)]
    assert f"✅ Successfully killed process {pid}" in said()


DEBUGGER = "p38146\nf6\ntIPv4\nPTCP\nn127.0.0.1:9229\nTST=LISTEN\n"
JOB = "homebrew.mxcl.postgresql@14"
AIRPLAY = "it is the AirPlay Receiver, which comes back when killed; choose another port, or switch it off in System"
STAY = {  # the listings of the port in turn, that of every port, why it is left alone
    "airplay": (held_by(333), None, AIRPLAY),
    "desktop": (held_by(501), None, "the desktop, as an application, runs it; stop it there"),
    "launchd": (held_by(812), None, f"launchd runs it; stop it with: launchctl bootout gui/501/{JOB}"),
    "by root": (held_by(812), None, f"launchd runs it; stop it with: launchctl bootout system/{JOB}"),
    "a label": (held_by(813), None, "launchd runs it; stop it with: launchctl bootout 'gui/501/org.x y?[2J'"),
    "a script": (held_by(819), None, "launchd runs it; stop it with: launchctl bootout user/501/homebrew.mxcl.mysql"),
    "launchctl": ([LSOF_HELD], None, "launchd, perhaps (launchctl list does not answer), runs it; stop it there"),
    "docker": (held_by(814), None, "the docker container web runs it; stop it with: docker stop web"),
    "supervised": (held_by(816), None, "supervisord runs it; stop it with: supervisorctl stop NAME"),
    "another port": ([LSOF_HELD], LSOF_HELD + DEBUGGER, "stopping it would also close port 9229 (python3 38146)"),
    "others": ([LSOF_HELD], "no listing\n", "stopping it would also close other ports, perhaps, which this system"),
    "changed": ([LSOF_HELD, *held_by(333)], None, AIRPLAY),  # just before the signal, another holds it
    # lsof shows users only their own processes
    "unseen": ([""], None, f"Port {PORT} cannot be freed: it is held by a process that you may not see; to find out:"),
    "unseen then": ([LSOF_HELD, "no listing\n"], None, f"Nothing on this system could tell who holds port {PORT}"),
}


@pytest.mark.parametrize("who", STAY)
def test_macos_who_stays(macos, monkeypatch, said, fp, who):
    listings, every, why = STAY[who]
    fp.register(["docker", "ps", fp.any()], stdout="web\t0.0.0.0:8000->80/tcp\n" if who == "docker" else "")
    fp.register(["podman", "ps", fp.any()], stdout="")
    macos.lsof(*listings, every=every)
    seam.stand_in(monkeypatch, "find a tool", lambda tool: None if tool == who == "launchctl" else tool)
    if who == "by root":
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert ensure_port_available(PORT) is False and macos.signals == []
    assert (f"❌ {why}" if "unseen" in who else f"is left alone: {why}") in said()


@pytest.mark.parametrize(("looks", "sentence"), [
    ([LISTING, LISTING.replace("09:30:0", "09:59:5")], "is still held after 1 attempts"),  # began later
    ([LISTING, ""], "it could not be verified that it is still the same process"),  # no ps when the signal is due
])  # fmt: skip
def test_macos_of_whom_ps_does_not_tell_enough_is_not_signalled(macos, monkeypatch, said, looks, sentence):
    """The first look is the one that pins; "cannot tell" is no permission."""
    macos.lsof(LSOF_HELD)
    macos.looks = [*looks]
    seam.limits(monkeypatch, rounds=1)
    assert ensure_port_available(PORT) is False and sentence in said()
    assert macos.signals == []


@pytest.mark.parametrize(("port", "stopped"), [(8006, True), *((port, False) for port in (8001, 8003, 8007, 8009))])
def test_macos_a_wildcard_of_ipv6_is_stopped_when_it_is_dual(macos, fp, port, stopped):
    fp.register([fp.program("docker"), fp.any()], stdout="")
    fp.register([fp.program("podman"), fp.any()], stdout="")
    macos.lsof(LSOF_HELD.replace("tIPv4\nPTCP\nn*:8000\nTST=LISTEN", f"tIPv6\nPTCP\nn*:{port}\nTST=LISTEN"), port=port)
    assert ensure_port_available(port) is stopped
    assert {pid for pid, _ in macos.signals} == ({38146} if stopped else set())


@pytest.mark.parametrize(("loopback", "one", "wildcard"), [("127.0.0.1", "10.0.0.1", ANY), ("::1", "fd00::1", "::")])
def test_macos_sockets_exclude_each_other_only_at_equal_addresses(monkeypatch, loopback, one, wildcard):
    """With SO_REUSEADDR, as every server has it there; loopback and wildcard hide each other, and count too."""
    seam.on_system(monkeypatch, "darwin", "alice")
    every = (loopback, one, wildcard)
    found = {wanted: [held for held in every if seam.conflict(held, wanted)] for wanted in every}
    assert found == {loopback: [loopback, wildcard], one: [one], wildcard: [loopback, wildcard]}


def test_macos_what_is_shadowed_counts_only_when_it_is_in_use(monkeypatch):
    """On macOS the wildcard's ports below 1024 are free to all, and loopback's are not."""
    seam.on_system(monkeypatch, "darwin", "alice")
    errors = {"127.0.0.1": OSError(errno.EACCES, "no")}
    seam.stand_in(monkeypatch, "bind", lambda family, address: errors.get(address[0]))
    assert seam.probe(80, ANY) is None
    errors["127.0.0.1"] = OSError(errno.EADDRINUSE, "in use")
    assert seam.probe(80, "") == "port 80 is already in use"
    errors = dict.fromkeys(("::", "::1"), OSError(errno.EADDRNOTAVAIL, "no"))  # without IPv6
    assert seam.probe(80, "localhost") is None and "::1" in seam.probe(80, "::1")


@pytest.mark.parametrize(("complaint", "told"), [
    ("", True),
    ("", None),
    ("lsof: WARNING: can't stat() fuse file system /run/u\n      Output information may be incomplete.\n", True),
    ("lsof: Unknown option 'n' (see \"lsof --help\")\n", False),
])  # fmt: skip
def test_an_lsof_that_complains_or_is_not_there_cannot_tell(machine, monkeypatch, fp, complaint, told):
    for output in ("\n", LSOF_HELD):
        status, words = 2 if told is None else 1, ["lsof", "-nP", f"-iTCP:{PORT}", "-F", "pftdPnT"]
        fp.register(words, stdout=output, stderr=complaint, returncode=status)
    assert seam.ask("lsof", PORT) == ([] if told else None)
    assert [row.pid for row in seam.ask("lsof", PORT) or []] == ([] if told is None else [38146])
    seam.stand_in(monkeypatch, "find a tool", lambda _: None)
    assert seam.ask("lsof", PORT) is None


@pytest.mark.parametrize(
    ("missing", "pids"), [("", [38146, 38147, None]), ("sockstat", [38146]), ("lsof", [38146, 38147, None])]
)
def test_freebsd_asks_sockstat_or_lsof(machine, monkeypatch, fp, missing, pids):
    seam.on_system(monkeypatch, "freebsd14", "alice")
    seam.stand_in(monkeypatch, "find a tool", lambda tool: None if tool == missing else tool)
    fp.register(["sockstat", "-46lw", "-P", "tcp", "-p", "8000"], stdout=SOCKSTAT)
    fp.register(["ps", fp.any()], stdout=PS_OF_FREEBSD.format(me=os.getpid()))
    fp.register(["lsof", "-nP", fp.any()], stdout=LSOF_HELD)
    fp.register(["lsof", "-a", fp.any()], stdout="")
    server, *others = find_listeners(PORT, "127.0.0.1")
    assert (server.parent, server.user, server.cwd) == (701, "alice", "")
    assert [holder.pid for holder in (server, *others)] == pids


def test_no_pid_below_2_is_named_and_no_port_above_65535():
    pids = {0: None, 1: None, 2: 2, 10**10: 10**10, 10**11: None}
    rows = [f"root app {pid} 3 tcp4 *:65535 *:*" for pid in pids]
    found = seam.parse("sockstat", "\n".join([*rows, "root app 2 3 tcp4 *:65536 *:*"]))
    assert found == [seam.listener(pid, 65535, ANY, None) for pid in pids.values()]
    assert [[row.pid for row in seam.on(PORT, seam.parse("lsof", held_by(pid)[0]))] for pid in (1, 2)] == [[], [2]]


def test_each_system_has_its_class():
    systems = {"android": "linux", "darwin": "macos", "freebsd14": "freebsd", "openbsd7": "bsd", "win32": "windows"}
    assert all(seam.system_of(platform) is seam.SYSTEMS[name] for platform, name in systems.items())
    assert [seam.SYSTEMS[name].colours for name in ("linux", "windows")] == [True, "WT_SESSION" in os.environ]


# Names that no structure shows


@pytest.mark.parametrize(("system", "names", "sentence"), [  # those of Linux are in test_guards.py
    ("macos", "OrbStack Helper", "a container's engine: docker stop NAME"),
    ("macos", "ssh", "it is a tunnel, which ends at another machine or device; end it where it runs"),
    ("macos", "launchd", "it keeps the port for a job whose property list names the port; launchctl bootout ends"),
    ("windows", "ssh.exe, SSH.EXE", "it is a tunnel, which ends at another machine or device; end it where it runs"),
    *((system, name, "it forwards the port to a virtual machine; change that machine's settings, or shut it down")
      for system, name in (("windows", "qemu-system-x86_64.exe"), ("macos", "QEMULauncher"))),
    ("windows", "svchost.exe, services.exe, lsass.exe, wininit.exe, spoolsv.exe", "it is a service of Windows"),
    ("windows", "wslrelay.exe, wslhost.exe", "it relays the port to a program in WSL; stop that one there"),
    ("windows", "services, python.exe, myssh.exe", None),
])  # fmt: skip
def test_who_holds_ports_for_others(monkeypatch, system, names, sentence):
    seam.stand_in(monkeypatch, "run a tool", lambda *_: None)
    for name in names.split(", "):
        why = seam.protected(name, system=system)
        assert why.startswith(sentence) if sentence else why is None, name


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="WSL is a Linux")
@pytest.mark.parametrize(("kernel", "words"), [
    ("6.18.1-generic", "a socket that is bound and not listening"),
    ("5.15.167.4-microsoft-standard-WSL2", "a program of Windows may, too; in a terminal of Windows, netstat -ano"),
])  # fmt: skip
def test_nobody_is_found_who_holds_the_port(port, hold, monkeypatch, said, kernel, words):
    held = hold((ANY, port))
    seam.only(monkeypatch, lambda _: [])
    seam.one_look(monkeypatch)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=kernel))
    assert ensure_port_available(port) is False
    assert f"❌ Nobody who may be seen holds port {port}" in said() and words in said()
    assert held.alive() == [held.pid]
