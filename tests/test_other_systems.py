"""macOS, the BSDs and Windows: listings written after what their tools print, played back (pytest-subprocess).

Nothing here ran on those systems. Each listing has the rows that must not match beside those that must. What asks
Windows itself is tested in test_wine.py.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest

import port_manager
from port_manager import CannotTell, ensure_port_available, find_listeners

from . import seam

PORT = 8000
ANY = "0.0.0.0"


@pytest.fixture
def machine(monkeypatch, fp):
    """A machine whose port is held until somebody is stopped, and whose tools are played back."""
    state = SimpleNamespace(held=True, signals=[], error=OSError(errno.EADDRINUSE, "in use"))
    seam.stand_in(monkeypatch, "bind", lambda *_: state.error if state.held else None)
    seam.stand_in(monkeypatch, "find a tool", lambda tool: tool)
    seam.limits(monkeypatch, restart_watch=0.05, forced_wait=0.3)
    fp.allow_unregistered(False)

    def kill(pid, number):
        state.signals.append((pid, number))
        if number in (signal.SIGTERM, signal.SIGKILL):
            state.held = False

    monkeypatch.setattr(os, "kill", kill)
    state.release = lambda *_: setattr(state, "held", False)
    return state


# macOS

LSOF_HELD = """\
p38146
f5
d0x2f1c
tIPv4
PTCP
n*:8000
TST=LISTEN
TQR=0
TQS=0
f9
tIPv4
PTCP
n127.0.0.1:8000->127.0.0.1:52011
TST=ESTABLISHED
p501
f31
tIPv4
PTCP
n127.0.0.1:52011->127.0.0.1:8000
TST=ESTABLISHED
p777
f4
tIPv4
PUDP
n*:8000
p778
f4
tIPv6
PTCP
n[::1]:18000
TST=LISTEN
"""
LSOF_BOUND = "p38146\nf7\ntIPv4\nPTCP\nn*:8000\nTST=CLOSED\nTQR=0\nTQS=0\n"
PS = """\
    1     0     1 Ss   ??       root  Mon Nov 23 08:00:00 2026 /sbin/launchd
  700     1   700 S    ??       alice Mon Nov 23 09:00:00 2026 /Applications/Terminal.app/Contents/MacOS/Terminal
  701   700   701 Ss   ttys001  alice Mon Nov 23 09:00:01 2026 -zsh
{me}   701 {me} S+   ttys001  alice Mon Nov 23 10:00:00 2026 python port_manager.py free 8000
38146   701 38146 S    ttys001  alice Mon Nov 23 09:30:00 2026 /opt/homebrew/bin/python3 -m uvicorn src.main:app
  501     1   501 S    ??       alice Mon Nov 23 08:10:00 2026 /Applications/Firefox.app/Contents/MacOS/firefox
  333     1   333 Ss   ??       alice Mon Nov 23 08:11:00 2026 /System/Library/CoreServices/\
ControlCenter.app/Contents/MacOS/ControlCenter
  444     1   444 S    ??       root  Mon Nov 23 08:11:00 2026 /usr/sbin/other
  555     1   555 S    ??       alice Mon Nov 23 08:12:00 2026 /Applications/OrbStack.app/Contents/Frameworks/\
OrbStack Helper.app/Contents/MacOS/OrbStack Helper vmgr
  666   701 38146 Z    ttys001  alice Mon Nov 23 09:31:00 2026 (python3)
garbage
"""


COMM = """\
  333 /System/Library/CoreServices/ControlCenter.app/Contents/MacOS/ControlCenter
  555 /Applications/OrbStack.app/Contents/Frameworks/OrbStack Helper.app/Contents/MacOS/OrbStack Helper
38146 /opt/homebrew/bin/python3
garbage
"""
LAUNCHCTL = """\
PID\tStatus\tLabel
-\t0\tcom.apple.SafariHistoryServiceAgent
812\t0\thomebrew.mxcl.postgresql@14
501\t0\tapplication.org.mozilla.firefox.123.456
"""


class Queue:
    """select.kqueue, as far as it is used: one exit, at once."""

    def control(self, events, most, seconds):
        assert seconds > 0 and most == 1 and events
        return []

    def close(self):
        pass


@pytest.fixture
def macos(machine, monkeypatch, fp):
    import select

    seam.on_system(monkeypatch, "darwin", "alice")
    for name in ("KQ_EV_ADD", "KQ_EV_ONESHOT", "KQ_FILTER_PROC", "KQ_NOTE_EXIT"):
        monkeypatch.setattr(select, name, 1, raising=False)
    monkeypatch.setattr(select, "kevent", lambda *args: args, raising=False)
    monkeypatch.setattr(select, "kqueue", Queue, raising=False)
    monkeypatch.setattr(os, "getpid", lambda: 9999)
    fp.keep_last_process(True)
    folder = r"/Users/alice/\xe9\xa1\xb9\xe7\x9b\xae"  # as lsof writes it with LC_ALL=C
    fp.register(["lsof", "-a", "-p", fp.any(), "-d", "cwd", "-F", "n"], stdout=f"p38146\nfcwd\nn{folder}\n")
    fp.register(["launchctl", "list"], stdout=LAUNCHCTL)

    def lsof(*texts, every=None):
        for asked, listings in ((f"-iTCP:{PORT}", texts), ("-iTCP", texts[:1] if every is None else [every])):
            for text in listings:
                fp.register(["lsof", "-nP", asked, "-F", "pftdPnT"], stdout=text, returncode=0 if text else 1)

    def read_ps(pid):
        """What ps tells: the holder is a zombie once it has been signalled."""
        listing = PS.format(me=9999)
        return seam.parse("ps", listing if machine.held else listing.replace(" 38146 S ", " 38146 Z "), COMM)

    seam.readings(monkeypatch, "macos", read_ps)
    return SimpleNamespace(lsof=lsof, state=machine, fp=fp)


def test_macos_reads_ps(macos, fp):
    """Each keyword with an -o of its own: FreeBSD takes all that follows a = for the heading of one column."""
    keys = ("pid", "ppid", "pgid", "stat", "tty", "user", "lstart", "command")
    fp.register(["ps", "-axww", *(word for key in keys for word in ("-o", f"{key}="))], stdout=PS.format(me=9999))
    fp.register(["ps", "-axww", "-o", "pid=", "-o", "comm="], stdout=COMM)
    processes = seam.read_by_ps(38146)
    assert processes[555].name == "OrbStack Helper" and processes[501].name == "firefox"
    assert processes[701].leader and not processes[38146].leader and not processes[1].leader
    assert processes[38146].parent == 701 and processes[666].zombie and not processes[701].zombie
    assert processes == seam.reader("macos")(None)


def test_macos_finds_the_holder(macos):
    macos.lsof(LSOF_HELD)
    (holder,) = find_listeners(PORT)
    assert (holder.pid, holder.parent, holder.user, holder.name) == (38146, 701, "alice", "python3")
    assert holder.command == "/opt/homebrew/bin/python3 -m uvicorn src.main:app"
    assert holder.cwd == "/Users/alice/项目"
    assert time.localtime(holder.started)[:5] == (2026, 11, 23, 9, 30)
    assert [str(address) for address in holder.addresses] == ["0.0.0.0:8000"]


def test_macos_nobody(macos):
    macos.lsof("")
    assert find_listeners(PORT) == []


@pytest.mark.parametrize("listing", [LSOF_HELD, LSOF_BOUND], ids=["listening", "bound"])
def test_macos_stops_the_holder_and_nobody_else(macos, listing, said):
    macos.lsof(listing)
    assert ensure_port_available(PORT) is True
    assert macos.state.signals == [(38146, signal.SIGCONT), (38146, signal.SIGTERM)]
    assert "✅ Successfully killed process 38146" in said()


@pytest.mark.parametrize(
    ("pid", "sentence"),
    [
        (333, "it is the AirPlay Receiver, which comes back when killed; choose another port, or switch it off in"),
        (444, "it belongs to user root; only that user should stop it"),
        (501, "the desktop, as an application, runs it; stop it there"),
        (701, "it is an ancestor of this process"),
        # lsof shows users only their own processes: the bind is refused, and nobody is to be seen
        (None, f"Port {PORT} is held by a process that cannot be named from here"),
    ],
)
def test_macos_who_stays(macos, said, pid, sentence):
    macos.lsof(LSOF_HELD.replace("p38146", f"p{pid}") if pid else "")
    assert ensure_port_available(PORT) is False
    assert sentence in said() and macos.state.signals == []


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("p38146\nf6\ntIPv4\nPTCP\nn127.0.0.1:9229\nTST=LISTEN\n", "would also close port 9229 (python3 38146)"),
        (None, "close other ports, perhaps, which this system does not tell"),
    ],
)
def test_macos_another_port_of_another_folders_holder_saves_it(macos, said, row, sentence):
    macos.lsof(LSOF_HELD, every=LSOF_HELD + row if row else "no listing\n")
    assert ensure_port_available(PORT) is False
    assert sentence in said() and macos.state.signals == []


def test_macos_the_holder_changed_before_the_signal(macos):
    """The second lsof, asked just before the signal, names another."""
    macos.lsof(LSOF_HELD, LSOF_HELD.replace("p38146", "p333"))
    assert ensure_port_available(PORT) is False
    assert macos.state.signals == []


def test_macos_a_reused_pid_is_not_signalled(macos, monkeypatch):
    """The same PID, another start time."""
    macos.lsof(LSOF_HELD)
    later = PS.format(me=9999).replace("09:30:00", "09:59:59")
    looks = iter([PS.format(me=9999)])  # when it is pinned
    reader = lambda pid: seam.parse("ps", next(looks, later))
    seam.readings(monkeypatch, "macos", reader)
    seam.limits(monkeypatch, rounds=1)
    assert ensure_port_available(PORT) is False
    assert macos.state.signals == []


def test_macos_without_ps_nobody_is_stopped(macos, monkeypatch, said):
    macos.lsof(LSOF_HELD)
    seam.readings(monkeypatch, "macos", lambda pid: {})
    assert ensure_port_available(PORT) is False
    assert "it could not be looked at" in said()
    assert seam.has_exited(38146, "macos", "unknown") is None  # "cannot tell" is not "gone"
    assert macos.state.signals == []


@pytest.mark.parametrize(
    ("pid", "sentence"),
    [
        (812, "launchctl bootout gui/501/homebrew.mxcl.postgresql@14"),
        (501, "the desktop, as an application"),
        (38146, None),
    ],
)
def test_macos_what_launchd_runs_stays(macos, monkeypatch, pid, sentence):
    monkeypatch.setattr(os, "getuid", lambda: 501)
    why = seam.managed_by_launchd(monkeypatch, pid)
    assert why is sentence or sentence in why


def test_macos_nobody_is_signalled_whom_ps_no_longer_tells_of(macos, monkeypatch, said):
    """ps may hang just when the signal is due: "cannot tell" is no permission."""
    macos.lsof(LSOF_HELD)
    answers = iter([seam.parse("ps", PS.format(me=9999), COMM)])  # when it is pinned
    seam.readings(monkeypatch, "macos", lambda pid: next(answers, {}))
    seam.limits(monkeypatch, rounds=1)
    assert ensure_port_available(PORT) is False
    assert macos.state.signals == []
    for firmly in (False, True):
        with pytest.raises(OSError, match="it could not be verified that it is still the same process"):
            seam.ask_to_stop("macos", 38146, firmly)
    assert macos.state.signals == []


NETSTAT_BSD = """\
Active Internet connections (including servers)
Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)
tcp46      0      0  *.8000                 *.*                    LISTEN
tcp6       0      0  *.8001                 *.*                    LISTEN
tcp4       0      0  *.8002                 *.*                    LISTEN
tcp46      0      0  *.8003                 *.*                    LISTEN
tcp6       0      0  *.8003                 *.*                    LISTEN
tcp46      0      0  *.8004                 10.0.0.1.5             ESTABLISHED
udp46      0      0  *.8005                 *.*
"""


@pytest.mark.parametrize(
    ("port", "status", "stopped"),
    [(8000, 0, True), (8001, 0, False), (8003, 0, False), (8009, 0, False), (8000, 1, False)],
    ids=["dual", "v6only", "both-kinds", "unknown", "netstat-fails"],
)
def test_macos_a_wildcard_of_ipv6_is_stopped_when_it_is_dual(macos, port, status, stopped):
    """As a normal user sees it, the real holder may be hidden, and a v6-only server be all that lsof shows."""
    listing = LSOF_HELD.replace("tIPv4\nPTCP\nn*:8000\nTST=LISTEN", f"tIPv6\nPTCP\nn*:{port}\nTST=LISTEN")
    for asked in (f"-iTCP:{port}", "-iTCP"):
        macos.fp.register(["lsof", "-nP", asked, "-F", "pftdPnT"], stdout=listing)
    macos.fp.register(["netstat", "-an", "-p", "tcp"], stdout=NETSTAT_BSD, returncode=status)
    assert seam.parse("netstat of macOS", NETSTAT_BSD) == {8000: False, 8001: True}
    assert ensure_port_available(port) is stopped
    assert {pid for pid, _ in macos.state.signals} == ({38146} if stopped else set())


def test_macos_sockets_exclude_each_other_only_at_equal_addresses(monkeypatch):
    """With SO_REUSEADDR, as every server has it there; loopback and wildcard hide each other, and count too."""
    seam.on_system(monkeypatch, "darwin", "alice")
    held = ("127.0.0.1", "192.168.1.5", ANY)
    found = {wanted: [a for a in held if seam.conflict(a, wanted)] for wanted in (ANY, "127.0.0.1", "10.0.0.1")}
    assert found == {ANY: ["127.0.0.1", ANY], "127.0.0.1": ["127.0.0.1", ANY], "10.0.0.1": []}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT])
def test_macos_what_is_shadowed_counts_only_when_it_is_in_use(monkeypatch, number):
    """On macOS the wildcard's ports below 1024 are free to all, and loopback's are not."""
    seam.on_system(monkeypatch, "darwin", "alice")
    errors = {"127.0.0.1": OSError(number, "no")}
    seam.stand_in(monkeypatch, "bind", lambda family, address: errors.get(address[0]))
    assert seam.probe(80, ANY) is None
    errors["127.0.0.1"] = OSError(errno.EADDRINUSE, "in use")
    assert seam.probe(80, ANY) == "port 80 is already in use"


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT])
def test_a_bsd_without_ipv6_has_a_localhost(monkeypatch, number):
    seam.on_system(monkeypatch, "freebsd14", "alice")
    seam.stand_in(monkeypatch, "bind", lambda family, address: OSError(number, "no") if ":" in address[0] else None)
    assert seam.probe(8000, "localhost") is None
    assert "::1" in seam.probe(8000, "::1")


@pytest.mark.parametrize(
    ("complaint", "told"),
    [
        ("", True),
        ("lsof: WARNING: can't stat() fuse file system /run/u\n      Output information may be incomplete.\n", True),
        ("lsof: Unknown option 'n' (see \"lsof --help\")\n", False),
        ("lsof: can't open /dev/mem: Permission denied\n", False),
        ("lsof: illegal option character: F\n", False),
    ],
)
def test_an_lsof_that_complains_and_tells_nothing_cannot_tell(machine, fp, complaint, told):
    fp.register(["lsof", fp.any()], stderr=complaint, returncode=1)
    assert seam.ask("lsof", PORT) == ([] if told else None)


def test_waiting_starts_no_tool_again_and_again(macos):
    macos.lsof(LSOF_HELD)
    with pytest.raises(port_manager.PortTimeout):
        port_manager.wait_until_free(PORT, timeout=0.5)
    assert len(macos.fp.calls) <= 3  # once, for the holders that the error names


def test_macos_without_lsof_nobody_can_tell(machine, monkeypatch):
    seam.on_system(monkeypatch, "darwin", "alice")
    seam.stand_in(monkeypatch, "find a tool", lambda tool: None)
    with pytest.raises(CannotTell):
        find_listeners(PORT)


def test_kqueue_where_the_process_has_gone(monkeypatch):
    import select

    class Gone(Queue):
        def control(self, *_):
            raise ProcessLookupError

    for name in ("KQ_EV_ADD", "KQ_EV_ONESHOT", "KQ_FILTER_PROC", "KQ_NOTE_EXIT"):
        monkeypatch.setattr(select, name, 1, raising=False)
    monkeypatch.setattr(select, "kevent", lambda *args: args, raising=False)
    monkeypatch.setattr(select, "kqueue", Gone, raising=False)
    seam.sleep("macos", [38146], 1)


# The BSDs

SOCKSTAT = """\
USER     COMMAND    PID   FD  PROTO  LOCAL ADDRESS         FOREIGN ADDRESS
alice    python3.11 38146 3   tcp4   127.0.0.1:8000        *:*
alice    python3.11 38146 4   tcp6   ::1:8000              *:*
alice    my tcp4 x  38147 3   tcp46  *:8000                *:*
alice    curl       501   5   tcp4   127.0.0.1:52011       127.0.0.1:8000
alice    curl       501   6   tcp6   ::1:52012             ::1:8000
alice    curl       501   7   tcp6   fe80::1%lo0:52013     fe80::1%lo0:8000
root     nginx      812   6   tcp6   *:8000                *:*
root     syslogd    400   6   udp4   *:8000                *:*
?        ?          ?     ?   tcp4   127.0.0.1:8000        *:*
alice    python3.11 900   3   tcp4   127.0.0.1:18000       *:*
"""
PS_OF_FREEBSD = """\
    0     0     0 DLs  -      root             Mon Nov 23 08:00:00 2026     [kernel]
    1     0     1 ILs  -      root             Mon Nov 23 08:00:00 2026     /sbin/init
  701     1   701 Is   pts/0  alice            Mon Nov 23 09:00:01 2026     -sh (sh)
 {me}   701 {me} S+   pts/0  alice            Mon Nov 23 10:00:00 2026     python port_manager.py free 8000
38146   701 38146 S    pts/0  alice            Mon Nov 23 09:30:00 2026     python3.11 -m uvicorn main:app
38147     1 38147 Ss   -      alice            Mon Nov 23 09:30:00 2026     daemon: my tcp4 x[38147] (daemon)
"""


def test_freebsd_asks_sockstat_first(machine, monkeypatch, fp):
    seam.on_system(monkeypatch, "freebsd14", "alice")
    fp.keep_last_process(True)
    fp.register(["sockstat", "-46lw", "-P", "tcp", "-p", "8000"], stdout=SOCKSTAT)
    fp.register(["ps", fp.any()], stdout=PS_OF_FREEBSD.format(me=os.getpid()))
    fp.register(["lsof", fp.any()], stdout="")
    rows = seam.ask("sockstat", PORT)
    assert [(row.pid, row.address, row.v6only) for row in rows] == [
        (38146, "127.0.0.1", None), (38146, "::1", True), (38147, "::", False), (812, "::", True),
        (None, "127.0.0.1", None),
    ]  # fmt: skip
    server, dual, hidden = find_listeners(PORT, "127.0.0.1")
    assert (server.pid, server.parent, server.user) == (38146, 701, "alice")
    assert (dual.pid, hidden.pid) == (38147, None)
    processes = seam.reader("freebsd")(0)
    assert [pid for pid, process in processes.items() if process.leader] == [701]
    assert [processes[pid].tty for pid in (1, 701)] == ["", "pts/0"]


def test_freebsd_falls_back_to_lsof(machine, monkeypatch, fp):
    seam.on_system(monkeypatch, "freebsd13", "alice")
    fp.keep_last_process(True)
    fp.register(["sockstat", fp.any()], returncode=1)
    fp.register(["lsof", "-nP", fp.any()], stdout=LSOF_HELD)
    fp.register(["ps", fp.any()], stdout=PS.format(me=os.getpid()))
    fp.register(["lsof", "-a", fp.any()], stdout="")
    assert [holder.pid for holder in find_listeners(PORT)] == [38146]


@pytest.mark.parametrize(
    ("platform", "name"),
    [
        ("linux", "linux"),
        ("android", "linux"),
        ("darwin", "macos"),
        ("freebsd14", "freebsd"),
        ("win32", "windows"),
        ("openbsd7", "bsd"),
    ],
)
def test_each_system_has_its_class(platform, name):
    assert seam.system_of(platform) == name


# Windows: what needs none of its functions, and stands in no listing


def test_windows_tools_are_started_by_their_full_path(monkeypatch):
    """A bare netstat would be found in the current folder first."""
    monkeypatch.setenv("SYSTEMROOT", "D:\\Win")
    assert seam.windows_tool("NETSTAT.EXE").startswith("D:\\Win")


def test_windows_more_processes_than_can_be_waited_for(monkeypatch):
    waited = []
    wait = lambda handles, every, milliseconds: waited.append(len(handles))
    monkeypatch.setitem(sys.modules, "_winapi", SimpleNamespace(WaitForMultipleObjects=wait))
    seam.sleep("windows", range(2, 102), 0.1)
    assert waited == [63]


def test_windows_a_reserved_range_has_no_holder(monkeypatch):
    error = PermissionError(errno.EACCES, "forbidden")
    error.winerror = 10013
    seam.stand_in(monkeypatch, "bind", lambda *_: error)
    assert seam.probe(PORT, ANY).startswith("Windows forbids port 8000 (error 10013)")
    assert "excludedportrange" in seam.probe(PORT, ANY)


# Names that no structure shows


@pytest.mark.parametrize(
    ("program", "words", "name", "protected"),
    [
        ("ssh: /Users/a/.colima/ssh.sock [mux]", "", "ssh", True),
        ("/Applications/Rancher Desktop.app/Contents/Resources/lima/bin/limactl", "hostagent x", "limactl", True),
        ("/Applications/Docker.app/Contents/MacOS/com.docker.backend", "run /Users/a/x", "com.docker.backend", True),
        ("/Applications/OrbStack.app/Contents/Frameworks/OrbStack Helper.app/Contents/MacOS/OrbStack Helper", "vmgr",
         "OrbStack Helper", True),
        ("/System/Library/CoreServices/ControlCenter.app/Contents/MacOS/ControlCenter", "", "ControlCenter", True),
        ("/usr/bin/python3", "/srv/app.py", "python3", False),
        ("/Library/Frameworks/Python.framework/Versions/3.12/Resources/Python.app/Contents/MacOS/Python",
         "/Users/alice/bin/ssh", "Python", False),
        ("node", "/Users/alice/kubectl/server.js", "node", False),
    ],
    ids=lambda value: value.rpartition("/")[2] if isinstance(value, str) else "",
)  # fmt: skip
def test_names_from_ps(program, words, name, protected):
    """The name is that of the program: blanks in its path and paths among its words lead to no other."""
    row = f"38146 900 38146 S ttys001 alice Mon Nov 23 10:15:00 2026 {program} {words}"
    process = seam.parse("ps", row, f"  999 /bin/x\n38146 {program}\ngarbage\n")[38146]
    assert process.name == name
    assert (seam.protected(process.name, process.command, "macos") is not None) == protected
    if " " not in program:  # a ps that tells no names
        assert seam.parse("ps", row)[38146].name == name


TUNNEL = "it is a tunnel, which ends at another machine or device"
MACHINE = "it forwards the port to a virtual machine"


@pytest.mark.parametrize(
    ("system", "name", "sentence"),
    [
        ("linux", "ssh", TUNNEL),
        ("linux", "sshd-session", TUNNEL),
        ("linux", "dropbear", TUNNEL),
        ("linux", "kubectl", TUNNEL),
        ("linux", "cloudflared", TUNNEL),
        ("linux", "adb", TUNNEL),
        ("linux", "qemu-system-x86_64"[:15], MACHINE),
        ("linux", "VBoxHeadless", MACHINE),
        ("linux", "docker-proxy", "docker ps --filter publish=80"),
        ("linux", "python", None),
        ("linux", "code", None),  # what ends with an editor's server is asked, not its name
        ("linux", "sshuttle", None),
        ("windows", "ssh.exe", TUNNEL),
        ("windows", "SSH.EXE", TUNNEL),
        ("windows", "qemu-system-x86_64.exe", MACHINE),
        ("windows", "svchost.exe", "it is a service of Windows"),
        ("windows", "System", "it is the Windows kernel (http.sys)"),
        ("windows", "wslrelay.exe", "it relays the port to a program in WSL"),
        ("windows", "services", None),
        ("windows", "python.exe", None),
        ("windows", "myssh.exe", None),
    ],
)
def test_who_holds_ports_for_others(system, name, sentence):
    why = seam.protected(name, system=system)
    assert why is sentence or sentence in why


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="WSL is a Linux")
@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("6.18.1-generic", "a socket that is bound and not listening"),
        ("5.15.167.4-microsoft-standard-WSL2", "a program of Windows may, too; in a terminal of Windows, netstat -ano"),
    ],
)
def test_nobody_is_found_who_holds_the_port(port, hold, monkeypatch, said, kernel, words):
    """Another namespace hides the holder, say, or Windows has it."""
    held = hold((ANY, port))
    seam.only(monkeypatch, lambda _: [])
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=kernel))
    assert ensure_port_available(port) is False
    assert f"❌ Nobody who may be seen holds port {port}" in said() and words in said()
    assert held.alive() == [held.pid]
