"""macOS, the BSDs, Windows and WSL: recorded formats, played back in place of the tools (pytest-subprocess).

Nothing here ran on those systems. Each listing has the rows that must not match beside those that must.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import pytest

import port_manager
from port_manager import CannotTell, PortManager, ensure_port_available, find_listeners

PORT = 8000
ANY = "0.0.0.0"


@pytest.fixture
def machine(monkeypatch, fp):
    """A machine whose port is held until somebody is stopped, and whose tools are played back."""
    state = SimpleNamespace(held=True, signals=[], error=OSError(errno.EADDRINUSE, "in use"))
    monkeypatch.setattr(port_manager, "_bind_error", lambda *_: state.error if state.held else None)
    monkeypatch.setattr(shutil, "which", lambda tool, path=None: tool)
    monkeypatch.setattr(port_manager, "RESTART_WATCH", 0.05)
    monkeypatch.setattr(port_manager, "FIRM_WAIT", 0.3)
    fp.allow_unregistered(False)

    def kill(pid, number):
        state.signals.append((pid, number))
        if number in (signal.SIGTERM, signal.SIGKILL):
            state.held = False

    monkeypatch.setattr(os, "kill", kill)
    state.release = lambda *_: setattr(state, "held", False)
    return state


def system(monkeypatch, platform, name):
    monkeypatch.setattr(sys, "platform", platform)
    if platform != "linux":
        monkeypatch.setattr(port_manager, "_my_name", lambda system: name)


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

    system(monkeypatch, "darwin", "alice")
    for name in ("KQ_EV_ADD", "KQ_EV_ONESHOT", "KQ_FILTER_PROC", "KQ_NOTE_EXIT"):
        monkeypatch.setattr(select, name, 1, raising=False)
    monkeypatch.setattr(select, "kevent", lambda *args: args, raising=False)
    monkeypatch.setattr(select, "kqueue", Queue, raising=False)
    monkeypatch.setattr(os, "getpid", lambda: 9999)
    fp.keep_last_process(True)
    fp.register(["lsof", "-a", "-p", fp.any(), "-d", "cwd", "-F", "n"], stdout="p38146\nfcwd\nn/Users/alice/项目\n")

    def lsof(*texts):
        for text in texts:
            fp.register(["lsof", "-nP", f"-iTCP:{PORT}", "-F", "pftdPnT"], stdout=text, returncode=0 if text else 1)

    def read_ps(pid):
        """What ps tells: the holder is a zombie once it has been signalled."""
        listing = PS.format(me=9999)
        return port_manager._parse_ps(listing if machine.held else listing.replace(" 38146 S ", " 38146 Z "))

    monkeypatch.setattr(port_manager, "MACOS", port_manager.MACOS._replace(read=read_ps))
    return SimpleNamespace(lsof=lsof, state=machine, fp=fp)


def test_macos_reads_ps(macos, fp):
    fp.register(["ps", fp.any()], stdout=PS.format(me=9999))
    processes = port_manager._read_ps(38146)
    assert list(fp.calls[-1])[1:3] == ["-axww", "-o"]
    assert processes[38146].parent == 701 and processes[666].zombie and not processes[701].zombie
    assert processes == port_manager.MACOS.read(None)


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


def test_macos_a_container_is_stopped_through_docker(macos, said):
    macos.lsof(LSOF_HELD.replace("p38146", "p555"))
    listing = f"{'ab' * 32}\tweb\t0.0.0.0:8000->80/tcp\n"
    macos.fp.register(["docker", "ps", macos.fp.any()], stdout=listing)
    macos.fp.register(["docker", "context", macos.fp.any()], stdout="unix:///Users/alice/.docker/run/docker.sock\n")
    macos.fp.register(["docker", "stop", "web"], callback=macos.state.release)
    assert ensure_port_available(PORT) is True
    assert "start it again with: docker start web" in said() and macos.state.signals == []


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
    reader = lambda pid: port_manager._parse_ps(next(looks, later))
    monkeypatch.setattr(port_manager, "MACOS", port_manager.MACOS._replace(read=reader))
    monkeypatch.setattr(port_manager, "ROUNDS", 1)
    assert ensure_port_available(PORT) is False
    assert macos.state.signals == []


def test_macos_without_ps_nobody_is_stopped(macos, monkeypatch, said):
    macos.lsof(LSOF_HELD)
    monkeypatch.setattr(port_manager, "MACOS", port_manager.MACOS._replace(read=lambda pid: {}))
    assert ensure_port_available(PORT) is False
    assert "it may be one of our own parents" in said()
    pin = port_manager._Pin(38146, "birth", None)
    assert port_manager._has_exited(port_manager.MACOS, pin) is False  # "cannot tell" is not "gone"
    assert macos.state.signals == []


def test_macos_without_lsof_nobody_can_tell(machine, monkeypatch):
    system(monkeypatch, "darwin", "alice")
    monkeypatch.setattr(shutil, "which", lambda tool, path=None: None)
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
    port_manager._nap(port_manager.MACOS, [port_manager._Pin(38146, "birth", None)], 1)


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
    system(monkeypatch, "freebsd14", "alice")
    fp.keep_last_process(True)
    fp.register(["sockstat", "-46l", "-P", "tcp", "-p", "8000"], stdout=SOCKSTAT)
    fp.register(["ps", fp.any()], stdout=PS.format(me=os.getpid()))
    fp.register(["lsof", fp.any()], stdout="")
    rows = port_manager._ask_sockstat(PORT)
    assert [(row.pid, row.address, row.v6only) for row in rows] == [
        (38146, "127.0.0.1", None), (38147, "::", False), (812, "::", True),
    ]  # fmt: skip
    assert [holder.pid for holder in find_listeners(PORT, "127.0.0.1")] == [38146]


def test_freebsd_falls_back_to_lsof(machine, monkeypatch, fp):
    system(monkeypatch, "freebsd13", "alice")
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
    assert port_manager._system().name == name and port_manager._system().ways


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


def cim(*extra):
    rows = [
        (4, 0, "", "System", ""),
        (700, 1, 133000000000000000, "explorer.exe", "C:\\Windows\\explorer.exe"),
        (9998, 700, 133000000010000000, "cmd.exe", '"C:\\Windows\\system32\\cmd.exe"'),
        (9999, 9998, 133000000020000000, "python.exe", "python port_manager.py free 8000"),
        (38146, 9998, 133000000030000000, "python.exe", '"C:\\Program Files\\Python\\python.exe" -m uvicorn ""x, y"" a:app'),
        (9120, 700, 133000000040000000, "firefox.exe", "firefox.exe"),
        *extra,
    ]
    quoted = (tuple(str(cell).replace('"', '""') for cell in row) for row in rows)
    lines = ['"ProcessId","ParentProcessId","Created","Name","CommandLine"', *('"{}","{}","{}","{}","{}"'.format(*row) for row in quoted)]
    return "\r\n".join(lines).encode()


@pytest.fixture
def windows(machine, monkeypatch, fp):
    monkeypatch.setattr(sys, "platform", "win32")
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
    tool = port_manager._windows_tool

    def play(*extra, owner=38146, user="DESKTOP\\alice", shell=0, elsewhere=b":8000 ", **kwargs):
        verbose = f'"python.exe","{owner}","Console","1","9 K","Running","{user}","0:00:01","N/A"\r\n'
        fp.register([tool("NETSTAT.EXE"), "-ano"], stdout=netstat(owner=owner, **kwargs).replace(b":8000 ", elsewhere))
        fp.register([tool("whoami.exe")], stdout="desktop\\alice\r\n")
        for pid in {owner, *(row[0] for row in extra)}:
            row = verbose.replace(str(owner), str(pid))
            fp.register([tool("tasklist.exe"), "/V", "/FO", "CSV", "/NH", "/FI", f"PID eq {pid}"], stdout=row)
        powershell = [tool("WindowsPowerShell\\v1.0\\powershell.exe"), fp.any()]
        fp.register(powershell, stdout="" if shell else cim(*extra), returncode=shell)

    def kill(pid, *words, **answer):
        fp.register([tool("taskkill.exe"), "/PID", str(pid), *words], **answer)

    return SimpleNamespace(state=machine, fp=fp, play=play, kill=kill, api=api, tool=tool)


def test_windows_tools_are_started_by_their_full_path(windows, monkeypatch):
    """A bare netstat would be found in the current folder first."""
    monkeypatch.setenv("SYSTEMROOT", "D:\\Win")
    assert port_manager._windows_tool("NETSTAT.EXE").startswith("D:\\Win")


@pytest.mark.parametrize("language", NETSTAT)
def test_windows_reads_the_shape_and_not_the_words(windows, language):
    windows.play(language=language)
    rows = port_manager._ask_netstat_ano(PORT)
    assert [(row.pid, row.address) for row in rows] == [(38146, "127.0.0.1"), (38146, "::1"), (7002, "fe80::1")]
    assert [holder.pid for holder in find_listeners(PORT, "localhost")] == [38146]
    assert [row.pid for row in port_manager._ask_netstat_ano(80)] == [4]


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
    assert ensure_port_available(PORT, "127.0.0.1") is True
    assert time.monotonic() - begun < 2
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
    assert f"Taskkill could not stop process 38146: {words[:5]}" in said() or words in said().lower()


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


def test_windows_without_powershell_nobody_is_stopped(windows, said):
    """tasklist knows no parents: it cannot be ruled out that the holder is an ancestor of ours."""
    windows.play(shell=1)
    windows.fp.register([windows.tool("tasklist.exe"), "/FO", "CSV", "/NH"], stdout='"python.exe","38146","Console","1","25,000 K"\r\n"cmd.exe","9999","Console","1","9 K"\r\n')
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert "Process 38146 (python.exe) is left alone: it may be one of our own parents" in said()


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
    pin = port_manager._pinned(port_manager.WINDOWS, 38146, {})[38146]
    assert pin == (38146, "133000000030000000", None)
    assert port_manager._has_exited(port_manager.WINDOWS, pin) is False
    assert port_manager._has_exited(port_manager.WINDOWS, pin._replace(birth="0")) is True


def test_windows_the_programs_own_calls(windows):
    windows.play()
    manager = PortManager(PORT, "127.0.0.1")
    assert manager.get_process_using_port(PORT) == 38146
    windows.kill(38146, callback=windows.state.release)
    assert manager.kill_process(38146) is True


# WSL


@pytest.fixture
def wsl(machine, monkeypatch, fp):
    monkeypatch.setattr(sys, "platform", "linux")
    release = SimpleNamespace(release="5.15.153.1-microsoft-standard-WSL2")
    monkeypatch.setattr(os, "uname", lambda: release)
    monkeypatch.setattr(port_manager, "LINUX", port_manager.LINUX._replace(ways=(lambda port: [],)))
    monkeypatch.setattr(port_manager, "_ask_sock_diag", lambda *_: [])
    monkeypatch.setattr(port_manager, "_windows_drive", lambda: "/mnt/c")
    fp.keep_last_process(True)
    folder = "/mnt/c/Windows/System32"
    fp.register([f"{folder}/WindowsPowerShell/v1.0/powershell.exe", fp.any()], stdout=cim())
    fp.register([f"{folder}/tasklist.exe", "/V", fp.any()], stdout='"python.exe","38146","Console","1","9 K","Running","DESKTOP\\alice","0:00:01","N/A"\r\n')

    def play(me="alice"):
        fp.register([f"{folder}/NETSTAT.EXE", "-ano"], stdout=netstat())
        fp.register([f"{folder}/whoami.exe"], stdout=f"desktop\\{me}\r\n")

    return SimpleNamespace(state=machine, fp=fp, folder=folder, play=play)


def test_wsl_a_windows_process_holds_the_port(wsl, said, monkeypatch):
    """With mirrored networking no Linux process is found, and Windows answers through interop."""
    wsl.play()
    wsl.fp.register([f"{wsl.folder}/taskkill.exe", "/PID", "38146"], callback=wsl.state.release)
    monkeypatch.setattr(port_manager, "_has_exited", lambda *_: not wsl.state.held)
    assert ensure_port_available(PORT, "127.0.0.1") is True
    assert wsl.state.signals == [] and "✅ Successfully killed process 38146" in said()


def test_wsl_the_process_is_named_as_one_of_windows(wsl, said):
    wsl.play(me="bob")
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert "❌ Windows process 38146 (" in said() and "it belongs to user DESKTOP\\alice" in said()


def test_wsl_a_windows_pid_is_not_taken_for_ours(wsl, said, monkeypatch):
    """Windows has PIDs of its own: the same number here is somebody else."""
    monkeypatch.setattr(os, "getpid", lambda: 38146)
    wsl.play()
    look = port_manager._look_at(PORT, "127.0.0.1")
    assert look.system is port_manager.WINDOWS
    assert port_manager._refusal(port_manager._Case(look, "kill", PORT, "0.0.0.0")) is None


def test_wsl_interop_may_be_off(wsl, said, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool, path=None: None)
    assert ensure_port_available(PORT, "127.0.0.1") is False
    assert "WSL's interoperability, which would tell, is switched off" in said()


def test_wsl_a_free_port_asks_nobody(wsl):
    wsl.state.held = False
    assert find_listeners(PORT) == [] and ensure_port_available(PORT)
    assert len(wsl.fp.calls) == 0


@pytest.mark.parametrize(
    ("mounts", "drive"),
    [
        ("C:\\134 /mnt/c 9p rw,aname=drvfs 0 0\n", "/mnt/c"),
        ("none / ext4 rw 0 0\nC: /win/c drvfs rw 0 0\n", "/win/c"),
        ("none / ext4 rw 0 0\n", "/mnt/c"),
        ("\n", "/mnt/c"),
    ],
)
def test_wsl_where_windows_is_mounted(tmp_path, monkeypatch, mounts, drive):
    (tmp_path / "mounts").write_text(mounts)
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *a, **k: real(tmp_path / "mounts" if path == "/proc/mounts" else path, *a, **k))
    assert port_manager._windows_drive() == drive
