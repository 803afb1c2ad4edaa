"""macOS, the BSDs, Windows and WSL: recorded formats, played back in place of the tools (pytest-subprocess).

Nothing here ran on those systems. Each listing has the rows that must not match beside those that must.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from types import SimpleNamespace

import pytest

import port_manager
from port_manager import CannotTell, PortManager, ensure_port_available, find_listeners

from . import seam
from .conftest import PATIENCE

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
LSOF_BOUND = "p38146\nf7\ntIPv4\nPTCP\nn*:8000\nTST=CLOSED\nTQR=0\n"
PS = """\
    1     0     1 Ss   ??       root             Mon Nov 23 08:00:00 2026     /sbin/launchd
  700     1   700 S    ??       alice            Mon Nov 23 09:00:00 2026     /Applications/Terminal.app/Contents/MacOS/Terminal
  701   700   701 Ss   ttys001  alice            Mon Nov 23 09:00:01 2026     -zsh
{me}   701 {me} S+   ttys001  alice            Mon Nov 23 10:00:00 2026     python port_manager.py free 8000
38146   701 38146 S    ttys001  alice            Mon Nov 23 09:30:00 2026     /opt/homebrew/bin/python3 -m uvicorn src.main:app
  501     1   501 S    ??       alice            Mon Nov 23 08:10:00 2026     /Applications/Firefox.app/Contents/MacOS/firefox
  333     1   333 Ss   ??       alice            Mon Nov 23 08:11:00 2026     /System/Library/CoreServices/ControlCenter.app/Contents/MacOS/ControlCenter
  444     1   444 S    ??       root             Mon Nov 23 08:11:00 2026     /usr/sbin/other
  555     1   555 S    ??       alice            Mon Nov 23 08:12:00 2026     /Applications/OrbStack.app/Contents/Frameworks/OrbStack Helper.app/Contents/MacOS/OrbStack Helper vmgr
  666   701 38146 Z    ttys001  alice            Mon Nov 23 09:31:00 2026     (python3)
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

    def lsof(*texts):
        for text in texts:
            fp.register(["lsof", "-nP", f"-iTCP:{PORT}", "-F", "pftdPnT"], stdout=text, returncode=0 if text else 1)

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
    assert {pid for pid, _ in macos.state.signals} == {38146}
    assert macos.state.signals[0] == (38146, signal.SIGTERM)
    assert "✅ Successfully killed process 38146" in said()


def test_macos_airplay_receiver_stays(macos, said):
    macos.lsof(LSOF_HELD.replace("p38146", "p333"))
    assert ensure_port_available(PORT) is False
    assert "it is the AirPlay Receiver" in said() and "AirDrop & Handoff" in said()
    assert macos.state.signals == []


def test_macos_another_users_process_stays(macos, said):
    macos.lsof(LSOF_HELD.replace("p38146", "p444"))
    assert ensure_port_available(PORT) is False
    assert "it belongs to user root, and you are alice" in said()
    assert macos.state.signals == []


def test_macos_our_shell_stays(macos, said):
    macos.lsof(LSOF_HELD.replace("p38146", "p701"))
    assert ensure_port_available(PORT) is False
    assert "it is an ancestor of this process" in said()
    assert macos.state.signals == []


def test_macos_a_hidden_holder_is_not_guessed(macos, said):
    """lsof shows a user only his own processes: the bind is refused, and nobody is to be seen."""
    macos.lsof("")
    assert ensure_port_available(PORT) is False
    assert f"port {PORT} is held by a process that cannot be named from here" in said().lower()
    assert macos.state.signals == []


def test_macos_the_holder_changed_before_the_signal(macos):
    """The second lsof, asked just before the signal, names another."""
    macos.lsof(LSOF_HELD, LSOF_HELD.replace("p38146", "p333"))
    assert ensure_port_available(PORT) is False
    assert macos.state.signals == []


def test_macos_a_reused_pid_is_not_signalled(macos, monkeypatch):
    """The same PID, another birth."""
    macos.lsof(LSOF_HELD)
    later = PS.format(me=9999).replace("09:30:00", "09:59:59")
    looks = iter([PS.format(me=9999)] * 2)  # for the ancestry, and when it is pinned
    reader = lambda pid: seam.parse("ps", next(looks, later))
    seam.readings(monkeypatch, "macos", reader)
    seam.limits(monkeypatch, rounds=1)
    assert ensure_port_available(PORT) is False
    assert macos.state.signals == []


def test_macos_without_ps_nobody_is_stopped(macos, monkeypatch, said):
    macos.lsof(LSOF_HELD)
    seam.readings(monkeypatch, "macos", lambda pid: {})
    assert ensure_port_available(PORT) is False
    assert "it may be one of our own parents" in said()
    assert seam.has_exited(38146, "macos", "unknown") is None  # "cannot tell" is not "gone"
    assert macos.state.signals == []


@pytest.mark.parametrize(
    ("pid", "sentence"),
    [(812, "launchctl bootout gui/501/homebrew.mxcl.postgresql@14"), (501, "it is an application, not a server"), (38146, None)],
)
def test_macos_what_launchd_runs_stays(macos, monkeypatch, pid, sentence):
    monkeypatch.setattr(os, "getuid", lambda: 501)
    why = seam.managed_by_launchd(monkeypatch, pid)
    assert why is sentence or sentence in why


def test_macos_nobody_is_signalled_whom_ps_no_longer_tells_of(macos, monkeypatch, said):
    """ps may hang just when the signal is due: "cannot tell" is no permission."""
    macos.lsof(LSOF_HELD)
    answers = iter([seam.parse("ps", PS.format(me=9999), COMM)] * 2)  # for the ancestry, and when it is pinned
    seam.readings(monkeypatch, "macos", lambda pid: next(answers, {}))
    seam.limits(monkeypatch, rounds=1)
    assert ensure_port_available(PORT) is False
    assert macos.state.signals == []
    for firmly in (False, True):
        with pytest.raises(PermissionError, match="it could not be verified that it is still the same process"):
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
    macos.fp.register(["lsof", "-nP", f"-iTCP:{port}", "-F", "pftdPnT"], stdout=listing)
    macos.fp.register(["netstat", "-an", "-p", "tcp"], stdout=NETSTAT_BSD, returncode=status)
    assert seam.parse("netstat of macOS", NETSTAT_BSD) == {8000: False, 8001: True}
    assert ensure_port_available(port) is stopped
    assert {pid for pid, _ in macos.state.signals} == ({38146} if stopped else set())


def test_macos_sockets_exclude_each_other_only_at_equal_addresses(monkeypatch):
    """With SO_REUSEADDR, as every server has it there; loopback and wildcard hide each other, and count too."""
    monkeypatch.setattr(sys, "platform", "darwin")
    held = ("127.0.0.1", "192.168.1.5", ANY)
    found = {wanted: [a for a in held if seam.conflict(a, wanted)] for wanted in (ANY, "127.0.0.1", "10.0.0.1")}
    assert found == {ANY: ["127.0.0.1", ANY], "127.0.0.1": ["127.0.0.1", ANY], "10.0.0.1": []}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT])
def test_macos_what_is_shadowed_counts_only_when_it_is_in_use(monkeypatch, number):
    """On macOS the wildcard's ports below 1024 are free to all, and loopback's are not."""
    monkeypatch.setattr(sys, "platform", "darwin")
    errors = {"127.0.0.1": OSError(number, "no")}
    seam.stand_in(monkeypatch, "bind", lambda family, address: errors.get(address[0]))
    assert seam.probe(80, ANY) is None
    errors["127.0.0.1"] = OSError(errno.EADDRINUSE, "in use")
    assert seam.probe(80, ANY) == "port 80 is already in use"


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT])
def test_a_bsd_without_ipv6_has_a_localhost(monkeypatch, number):
    monkeypatch.setattr(sys, "platform", "freebsd14")
    seam.stand_in(monkeypatch, "bind", lambda family, address: OSError(number, "no") if ":" in address[0] else None)
    assert seam.probe(8000, "localhost") is None
    assert "::1" in seam.probe(8000, "::1")


@pytest.mark.parametrize(
    ("complaint", "told"),
    [
        ("", True),
        ("lsof: WARNING: can't stat() fuse file system /run/user/1000/gvfs\n      Output information may be incomplete.\n", True),
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
alice    my tcp4 x  38147 3   tcp46  *:8000                *:*
alice    curl       501   5   tcp4   127.0.0.1:52011       127.0.0.1:8000
root     nginx      812   6   tcp6   *:8000                *:*
root     syslogd    400   6   udp4   *:8000                *:*
?        ?          ?     ?   tcp4   127.0.0.1:8000        *:*
alice    python3.11 900   3   tcp4   127.0.0.1:18000       *:*
"""


def test_freebsd_asks_sockstat_first(machine, monkeypatch, fp):
    seam.on_system(monkeypatch, "freebsd14", "alice")
    fp.keep_last_process(True)
    fp.register(["sockstat", "-46l", "-P", "tcp", "-p", "8000"], stdout=SOCKSTAT)
    fp.register(["ps", fp.any()], stdout=PS.format(me=os.getpid()))
    fp.register(["lsof", fp.any()], stdout="")
    rows = seam.ask("sockstat", PORT)
    assert [(row.pid, row.address, row.v6only) for row in rows] == [
        (38146, "127.0.0.1", None), (38147, "::", False), (812, "::", True),
    ]  # fmt: skip
    assert [holder.pid for holder in find_listeners(PORT, "127.0.0.1")] == [38146]


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
    [("linux", "linux"), ("darwin", "macos"), ("freebsd14", "freebsd"), ("win32", "windows"), ("openbsd7", "other")],
)
def test_each_system_has_its_list(monkeypatch, platform, name):
    monkeypatch.setattr(sys, "platform", platform)
    assert seam.system_of(platform) == name


# Windows

NETSTAT = {
    "English": ("Active Connections", "Proto  Local Address          Foreign Address        State           PID",
                "LISTENING", "ESTABLISHED", "TIME_WAIT"),
    "German": ("Aktive Verbindungen", "Proto  Lokale Adresse         Remoteadresse          Status           PID",
               "ABHÖREN", "HERGESTELLT", "WARTEND"),
    "Chinese": ("活动连接", "协议  本地地址          外部地址        状态           PID",
                "LISTENING", "ESTABLISHED", "TIME_WAIT"),
    "French": ("Connexions actives", "Proto  Adresse locale         Adresse distante       État",
               "À L’ÉCOUTE", "ÉTABLIE", "EN ATTENTE"),
}  # fmt: skip
CODE_PAGES = {"English": "cp437", "German": "cp850", "Chinese": "cp936", "French": "cp1252"}


def netstat(language="English", owner=38146):
    title, header, listening, established, waiting = NETSTAT[language]
    return f"""
{title}

  {header}
  TCP    0.0.0.0:135            0.0.0.0:0              {listening}       1044
  TCP    127.0.0.1:8000         0.0.0.0:0              {listening}       {owner}
  TCP    127.0.0.1:18000        0.0.0.0:0              {listening}       7001
  TCP    127.0.0.1:80           0.0.0.0:0              {listening}       4
  TCP    127.0.0.1:8000         127.0.0.1:52011        {established}     {owner}
  TCP    127.0.0.1:52011        127.0.0.1:8000         {established}     9120
  TCP    127.0.0.1:8000         127.0.0.1:52012        {waiting}       0
  TCP    [::1]:8000             [::]:0                 {listening}       {owner}
  TCP    [fe80::1%12]:8000      [::]:0                 {listening}       7002
  UDP    0.0.0.0:8000           *:*                                    7003
  UDP    [::]:8000              *:*                                    7004
""".replace("\n", "\r\n").encode(CODE_PAGES[language])


PROCESSES = (
    (4, 0, 0, "System", ""),
    (700, 1, 133000000000000000, "explorer.exe", "C:\\Windows\\explorer.exe"),
    (9998, 700, 133000000010000000, "cmd.exe", '"C:\\Windows\\system32\\cmd.exe"'),
    (9999, 9998, 133000000020000000, "python.exe", "python port_manager.py free 8000"),
    (38146, 9998, 133000000030000000, "python.exe", '"C:\\Program Files\\Python\\python.exe" -m uvicorn ""x, y"" a:app'),
    (9120, 700, 133000000040000000, "firefox.exe", "firefox.exe"),
)


@pytest.fixture
def windows(machine, monkeypatch, fp):
    monkeypatch.setattr(sys, "platform", "win32")
    for name in ("geteuid", "getuid", "uname", "pidfd_open", "sysconf", "getpgid"):  # what Windows does not have
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    monkeypatch.setitem(sys.modules, "pwd", None)
    monkeypatch.setattr(os, "getpid", lambda: 9999)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("os.kill ends a process on Windows, whatever the signal"))
    opened = []
    api = SimpleNamespace(
        opened=opened,
        OpenProcess=lambda access, inherit, pid: opened.append(pid) or pid,
        CloseHandle=lambda handle: opened.remove(handle),
        WaitForSingleObject=lambda handle, milliseconds: 258 if machine.held else 0,
        WaitForMultipleObjects=lambda handles, every, milliseconds: 258,
    )
    monkeypatch.setitem(sys.modules, "_winapi", api)
    fp.keep_last_process(True)
    tool = seam.windows_tool

    def play(*extra, owner=38146, user="DESKTOP\\alice", elsewhere=b":8000 ", **kwargs):
        fp.register([tool("NETSTAT.EXE"), "-ano"], stdout=netstat(owner=owner, **kwargs).replace(b":8000 ", elsewhere))
        fp.register([tool("whoami.exe")], stdout="desktop\\alice\r\n")
        seam.play_windows(monkeypatch, [*PROCESSES, *extra], user)

    def kill(pid, *words, **answer):
        fp.register([tool("taskkill.exe"), "/PID", str(pid), *words], **answer)

    return SimpleNamespace(state=machine, fp=fp, play=play, kill=kill, api=api, tool=tool)


def test_windows_tools_are_started_by_their_full_path(windows, monkeypatch):
    """A bare netstat would be found in the current folder first."""
    monkeypatch.setenv("SYSTEMROOT", "D:\\Win")
    assert seam.windows_tool("NETSTAT.EXE").startswith("D:\\Win")


@pytest.mark.parametrize("language", NETSTAT)
def test_windows_reads_the_shape_and_not_the_words(windows, language):
    windows.play(language=language)
    rows = seam.ask("netstat -ano", PORT)
    assert [row.v6only for row in rows] == [False, True, True]  # a dual-stack socket has a row for each family
    assert [(row.pid, row.address) for row in rows] == [(38146, "127.0.0.1"), (38146, "::1"), (7002, "fe80::1")]
    assert [holder.pid for holder in find_listeners(PORT, "localhost")] == [38146]
    assert [row.pid for row in seam.ask("netstat -ano", 80)] == [4]


def test_windows_describes_the_holder(windows):
    windows.play()
    (holder,) = find_listeners(PORT, "127.0.0.1")
    assert (holder.parent, holder.user, holder.name) == (9998, "DESKTOP\\alice", "python.exe")
    assert holder.command == '"C:\\Program Files\\Python\\python.exe" -m uvicorn ""x, y"" a:app'
    assert holder.started == pytest.approx(133000000030000000 / 1e7 - 11644473600)


def test_windows_force_is_used_at_once_where_it_is_needed(windows, said):
    windows.play()
    windows.kill(38146, returncode=1, stderr="FEHLER: Der Prozess kann nur erzwungen beendet werden (mit /F-Option).\r\n")
    windows.kill(38146, "/F", stdout="ERFOLGREICH\r\n", callback=windows.state.release)
    begun = time.monotonic()
    assert ensure_port_available(PORT, "127.0.0.1", grace=PATIENCE) is True
    assert time.monotonic() - begun < PATIENCE
    assert "✅ Successfully killed process 38146" in said()
    assert not any("/T" in list(call) for call in windows.fp.calls)
    assert windows.api.opened == []


def test_windows_a_window_is_asked_and_waited_for(windows):
    windows.play()
    windows.kill(38146, callback=windows.state.release)
    assert ensure_port_available(PORT, "127.0.0.1") is True
    assert not any("/F" in list(call) for call in windows.fp.calls)


def test_windows_one_that_does_not_obey_is_forced(windows):
    windows.play()
    windows.kill(38146)
    windows.kill(38146, "/F", callback=windows.state.release)
    assert ensure_port_available(PORT, "127.0.0.1", grace=0.1) is True


@pytest.mark.parametrize(
    ("answer", "words"),
    [({"returncode": 1, "stderr": "ERROR: Access is denied.\r\n"}, "ERROR: Access is denied."), ({"returncode": 5}, "taskkill")],
)
def test_windows_a_refusal_is_told(windows, said, answer, words):
    windows.play()
    windows.kill(38146, **answer)
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert f"Process 38146 may not be stopped: taskkill says: {words if words != 'taskkill' else 'nothing'}" in said()


def test_windows_a_worker_that_went_with_its_master_is_no_failure(windows):
    windows.play()
    windows.kill(38146, returncode=1, stderr="ERROR: There is no running instance of the task.", callback=windows.state.release)
    assert ensure_port_available(PORT, "127.0.0.1") is True


def test_windows_one_that_has_gone_counts_as_stopped(windows):
    windows.play()
    windows.kill(38146, returncode=128, callback=windows.state.release)
    assert ensure_port_available(PORT, "127.0.0.1") is True


def test_windows_a_dead_owner_has_heirs(windows, said):
    """The owner PID was dead; a child held the inherited handle; taskkill said "not found" for hours."""
    heir = (6001, 5555, 133000000050000000, "python.exe", "python worker.py")
    windows.play(heir, (6002, 700, 1, "python.exe", "python other.py"), owner=5555)
    windows.kill(6001, "/F", callback=windows.state.release)
    windows.kill(6001, returncode=1, stderr="(/F)")
    assert ensure_port_available(PORT, "127.0.0.1") is True
    assert {list(call)[2] for call in windows.fp.calls if "taskkill" in str(call)} == {"6001"}


def test_windows_children_of_different_programs_are_no_heirs(windows, said):
    """PIDs are used again, and a parent's number stays when it has died: one of them may be an earlier one's child."""
    windows.play(
        (6001, 5555, 133000000050000000, "chrome.exe", "chrome.exe"),
        (6002, 5555, 130000000000000000, "idea64.exe", "idea64.exe"),
        (6003, 5555, 133000000060000000, "python.exe", "python worker.py"),
        owner=5555,
    )
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert "taskkill" not in str(windows.fp.calls)


def test_windows_a_reserved_range_beside_a_v6only_listener(windows, said):
    windows.state.error = PermissionError(errno.EACCES, "forbidden")
    windows.state.error.winerror = 10013
    windows.play(elsewhere=b":8010 ")
    assert not seam.conflict("::", ANY, v6only=True)
    assert ensure_port_available(PORT) is False and "taskkill" not in str(windows.fp.calls)


def test_windows_the_program_is_pinned_before_it_is_judged(windows, monkeypatch):
    """kill_process: what the ancestry had to read before is read again once the PID is held."""
    windows.play()
    order = []
    opened = windows.api.OpenProcess
    windows.api.OpenProcess = lambda *words: order.append("pinned") or opened(*words)
    read = seam.reader("windows")
    seam.readings(monkeypatch, "windows", lambda pid: order.append("read") or read(pid))
    windows.kill(38146, callback=windows.state.release)
    assert PortManager(PORT, "127.0.0.1").kill_process(38146) is True
    assert "read" in order[order.index("pinned") :]


def test_windows_more_processes_than_can_be_waited_for(windows):
    waited = []
    windows.api.WaitForMultipleObjects = lambda handles, every, milliseconds: waited.append(len(handles))
    seam.sleep("windows", range(2, 102), 0.1)
    assert waited == [63]


def test_windows_tools_of_the_current_folder_are_not_started(tmp_path, monkeypatch):
    """shutil.which looks there first."""
    for name in ("docker", "docker.exe"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("PATH", f".{os.pathsep}{os.pathsep}relative")
    assert seam.found("docker") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert seam.found("docker") == str(tmp_path / "docker.exe")


@pytest.mark.parametrize(
    ("parent", "environ", "family"),
    [
        ('"C:\\venv\\Scripts\\python.exe" -m uvicorn main:app', {}, False),  # a venv's own starter of the real one
        ("uvicorn main:app", {}, False),
        ("python manage.py runserver", {"RUN_MAIN": "true"}, True),
        ("flask run", {"WERKZEUG_RUN_MAIN": "true"}, True),
    ],
)
def test_windows_the_child_of_a_reloader(windows, monkeypatch, parent, environ, family):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    windows.play((9997, 700, 133000000015000000, "python.exe", parent))
    assert seam.is_in_the_family("uvicorn", "127.0.0.1", PORT) is family


def test_the_child_of_multiprocessing_is_in_the_family(monkeypatch):
    """uvicorn --reload and --workers, and others: on every system."""
    assert seam.is_in_the_family("uvicorn", "127.0.0.1", PORT) is False
    spawned = SimpleNamespace(parent_process=lambda: SimpleNamespace(pid=1))
    monkeypatch.setitem(sys.modules, "multiprocessing.process", spawned)
    assert seam.is_in_the_family("uvicorn", "127.0.0.1", PORT) is True


def test_windows_a_dead_owner_without_heirs_is_nobody_to_stop(windows, said):
    windows.play(owner=5555)
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert "held by a process" in said()


@pytest.mark.parametrize("pid", [4, 700])
def test_windows_the_system_stays(windows, said, pid):
    windows.play(owner=pid)
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert ("http.sys" in said()) if pid == 4 else ("an ancestor" in said())


@pytest.mark.parametrize("name", ["svchost.exe", "wslrelay.exe", "com.docker.backend.exe"])
def test_windows_squatters_stay(windows, said, name, monkeypatch):
    windows.play((6100, 700, 133000000050000000, name, ""), owner=6100)
    windows.fp.register(["docker", windows.fp.any()], returncode=1)
    windows.fp.register(["podman", windows.fp.any()], returncode=1)
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert "is left alone: it" in said()


def test_windows_another_users_process_stays(windows, said):
    windows.play(user="N/A")
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert "it belongs to user N/A, and you are desktop\\alice" in said()


def test_windows_a_reserved_range_has_no_holder(windows, said):
    windows.state.error = PermissionError(errno.EACCES, "forbidden")
    windows.state.error.winerror = 10013
    windows.play(elsewhere=b":8010 ")
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert "❌ Windows forbids port 8000 (error 10013)" in said() and "excludedportrange" in said()


def test_windows_production(windows, said, monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "production")
    windows.play()
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert 'Process using port: 38146 ("C:\\Program Files' in said() and "taskkill" not in str(windows.fp.calls)


def test_windows_no_handle_where_it_may_not_be_opened(windows):
    def denied(*_):
        raise PermissionError(13, "Access is denied")

    windows.api.OpenProcess = denied
    windows.play()
    assert seam.hold("windows", 38146) is None
    assert seam.has_exited(38146, "windows") is False
    assert seam.has_exited(38146, "windows", start="0") is True


def test_windows_the_programs_own_calls(windows):
    windows.play()
    manager = PortManager(PORT, "127.0.0.1")
    assert manager.get_process_using_port(PORT) == 38146
    windows.kill(38146, callback=windows.state.release)
    assert manager.kill_process(38146) is True
