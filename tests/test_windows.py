"""Windows without a Windows: its functions answer from buffers laid out as in its headers, its tools are played."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import socket
import struct
import sys
import time

import pytest

from port_manager import Endpoint, Holder, ensure_port_available, find_listeners, preview_port

from . import seam
from .samples import netstat_ano

pytestmark = pytest.mark.skipif(struct.calcsize("P") != 8, reason="the layouts are those for 64 bits")
PORT, PID, ME = 8000, 38144, 9999
ALICE, SYSTEM = "S-1-5-21-397955417-626881126-188441444-1010", "S-1-5-18"
BEGUN = 134401184012447350  # in 100 ns since 1601
SPAWNED = 'python.exe "-c" "from multiprocessing.spawn import spawn_main; spawn_main(parent_pid=%d, pipe_handle=4)"'


def text_at(place, text):
    """A UNICODE_STRING, what it points to, and what comes behind that."""
    data = text.encode("utf-16-le", "surrogatepass")
    return struct.pack("<HH4xQ", len(data), len(data) + 2, place + 16) + data + b"x\0"


def user_at(place, sid):
    """TOKEN_USER, and the SID that it points to."""
    _, revision, authority, *parts = sid.split("-")
    head = bytes([int(revision), len(parts)]) + int(authority).to_bytes(6, "big")
    return struct.pack("<QI4x", place + 16, 7) + head + struct.pack(f"<{len(parts)}I", *map(int, parts)) + b"\1\2\3\4"


def processes_at(place, processes):
    """SYSTEM_PROCESS_INFORMATION."""
    data = b""
    for left, (pid, (parent, start, program)) in zip(range(len(processes) - 1, -1, -1), processes.items()):
        text = program.encode("utf-16-le")
        name = place + len(data) + 256 if text else 0
        step = 256 + len(text) + -len(text) % 8 if left else 0
        head = struct.pack("<II24xqqqHH4xQi4xQQ", step, 3, start, 7, 8, len(text), len(text) + 2, name, 8, pid, parent)
        data += (head + bytes(256 - len(head)) + text).ljust(step, b"\0")
    return data


def listeners(rows, v6):
    """MIB_TCP6TABLE_OWNER_PID or MIB_TCPTABLE_OWNER_PID, with a row behind those that it counts."""
    data = []
    for pid, host, port in [row for row in rows if (":" in row[1]) == v6]:
        address = socket.inet_pton(socket.AF_INET6 if v6 else socket.AF_INET, host)
        local, remote = struct.pack(">H2s", port, b"xy"), b"\xff\xff\0\0"
        six = struct.pack("=16sI4s16sI4sII", address, 12, local, bytes(16), 0, remote, 2, pid or 0)
        data.append(six if v6 else struct.pack("=I4s4s4s4sI", 2, address, local, bytes(4), remote, pid or 0))
    return struct.pack("=I", len(data)) + b"".join(data + data[:1])


class Windows:
    """The machine, as a test writes it down; its functions, and those of CPython's _winapi."""

    def __init__(self):
        self.processes = {0: (0, 0, ""), 4: (0, 50, "System"), 700: (600, 60, "explorer.exe"),
                          ME: (700, 70, "python.exe"), PID: (700, BEGUN, "服务器.exe")}  # fmt: skip
        self.commands = {PID: "C:\\项目\\python.exe app.py"}
        self.users = {ME: ALICE, PID: ALICE, 700: ALICE}
        self.listeners, self.ipv6, self.needed = [(PID, "127.0.0.1", PORT)], True, 1
        self.netstat, self.taskkill = "", [(1, "", "FEHLER: ... nur erzwungen ... (mit /F-Option)."), self.force]
        self.root = "D:\\Win"
        self.sizes, self.asked, self.waits = [], [], []  # of buffers; tools; handles and milliseconds
        self.handles, self.numbers = {}, itertools.count(1 << 60)  # what is open: which process it is

    def held_by(self, pid, *ports):
        self.listeners = [(pid, "0.0.0.0", port) for port in ports or [PORT]]

    def force(self, heir=None, pid=PID):
        self.processes.pop(pid)
        self.listeners = [(heir, *row[1:]) for row in self.listeners if heir]
        return 0, "SUCCESS", ""

    def run(self, tool, *words, timeout=0):
        folder, name = os.path.split(tool)
        if tool in ("docker", "podman"):
            return None
        assert folder == os.path.join(self.root, "System32")  # a bare name: first in the current folder
        assert timeout == (0 if words == ("-ano",) else 10)  # seconds; taskkill gets five times those of other tools
        self.asked.append(" ".join([name, *words]))
        told = (0, self.netstat, "") if words == ("-ano",) else self.taskkill.pop(0)
        told = told() if callable(told) else told
        return told and seam.answer(*told)

    def told(self, buffer, size, data):
        """The status: 122 is what tells that the buffer is too small."""
        self.sizes.append(size.bit_length() - 1)
        if size < max(self.needed, len(data)) or not data:
            return 122
        buffer[: len(data)] = data
        return 0

    def opened(self, pid):
        number = next(self.numbers)
        self.handles[number] = pid, self.processes.get(pid, (0, 0))[1]
        return number

    def NtQuerySystemInformation(self, kind, buffer, size, needed):
        assert kind == 5  # SystemProcessInformation
        return self.told(buffer, size, processes_at(ctypes.addressof(buffer), self.processes))

    def NtQueryInformationProcess(self, process, kind, buffer, size, needed):
        assert kind == 60  # ProcessCommandLineInformation
        command = self.commands.get(self.handles[process.value][0])
        return self.told(buffer, size, text_at(ctypes.addressof(buffer), command) if command else b"")

    def GetExtendedTcpTable(self, buffer, size, ordered, family, kind, reserved):
        assert (ordered, kind, reserved) == (0, 3, 0)  # TCP_TABLE_OWNER_PID_LISTENER
        v6 = {2: False, 23: True}[family]
        return self.told(buffer, size[0], listeners(self.listeners, v6) if self.ipv6 in (v6, True) else b"")

    def OpenProcessToken(self, process, access, place):
        assert access == 8  # TOKEN_QUERY
        pid = ME if process.value == 2**64 - 1 else self.handles[process.value][0]
        told = self.users.get(pid, "") != ""
        if told:
            place[:8] = self.opened(pid).to_bytes(8, "little")
        return told

    def GetTokenInformation(self, token, kind, buffer, size, needed):
        assert kind == 1  # TokenUser
        sid = self.users[self.handles[token.value][0]]
        return self.told(buffer, size, user_at(ctypes.addressof(buffer), sid) if sid else b"") == 0

    def OpenProcess(self, access, inherit, pid):
        assert (access, inherit) == (0x00101000, False)  # SYNCHRONIZE, PROCESS_QUERY_LIMITED_INFORMATION
        if pid not in self.users or pid not in self.processes:
            raise PermissionError(13, "Access is denied", None, 5)
        return self.opened(pid)

    def CloseHandle(self, handle):
        del self.handles[handle]

    def WaitForMultipleObjects(self, handles, every, milliseconds):
        self.waits.append((len(handles), every, milliseconds))
        if any(self.processes.get(pid, (0, 0))[1] != start for pid, start in map(self.handles.get, handles)):
            return 0
        time.sleep(milliseconds / 1000)
        return 0x102


@pytest.fixture
def windows(monkeypatch):
    machine = Windows()
    seam.on_system(monkeypatch, "win32", "")
    monkeypatch.setenv("SYSTEMROOT", machine.root)
    monkeypatch.setattr(os, "getlogin", lambda: "alice")
    monkeypatch.setattr(os, "getpid", lambda: ME)
    monkeypatch.setattr(ctypes, "WinDLL", dict.fromkeys(("ntdll", "iphlpapi", "advapi32"), machine).get, raising=False)
    monkeypatch.setitem(sys.modules, "_winapi", machine)
    seam.stand_in(monkeypatch, "run a tool", machine.run)
    seam.stand_in(monkeypatch, "bind", lambda *_: OSError(errno.EADDRINUSE, "in use") if machine.listeners else None)
    seam.limits(monkeypatch, restart_watch=0.05, forced_wait=0.3, tool_timeout=2.0)
    seam.one_look(monkeypatch)
    yield machine
    assert machine.handles == {}, "each handle is closed, once"


def test_what_is_told_of_a_holder(windows):
    windows.listeners += [(PID, "::", PORT), (4, "0.0.0.0", 80), (PID, "fe80::1", 8001)]
    (holder,) = find_listeners(PORT)
    addresses = Endpoint("127.0.0.1", PORT), Endpoint("::", PORT)
    started = BEGUN / 1e7 - 11644473600
    assert holder == Holder(PID, 700, "alice", "服务器.exe", "C:\\项目\\python.exe app.py", "", started, addresses)
    assert {str(address) for each in find_listeners() for address in each.addresses} >= {"0.0.0.0:80", "[fe80::1]:8001"}
    # A file's name may be no text; Windows 8 tells no command.
    for command, told in (("a\ud800.exe b", "a\ufffd.exe b"), ("", "服务器.exe")):
        windows.commands[PID] = command
        assert find_listeners(PORT)[0].command == told
    del windows.users[PID]  # it may not be opened
    assert find_listeners(PORT)[0][2:6] == ("", "服务器.exe", "服务器.exe", "")


def test_the_python_of_a_virtual_environment_is_no_master(windows):
    """It starts the real one, with the same command line."""
    windows.processes.update({8: (700, 80, "python.exe"), PID: (8, BEGUN, "python.exe")})
    windows.users[8], windows.commands = ALICE, dict.fromkeys((8, PID), "python.exe -m uvicorn main:app")
    assert preview_port(PORT).would_stop == [PID]


@pytest.mark.parametrize("parent", ["svchost.exe", "cmd.exe"])
def test_a_take_over(windows, said, parent):
    """A task or a shell over ssh is no service, though one has started it."""
    windows.processes.update({8: (4, 60, "services.exe"), 9: (8, 60, parent), PID: (9, BEGUN, "服务器.exe")})
    plan = "asked to stop (forced at once if it cannot be asked), forced after 5 s"
    assert preview_port(PORT).plan == f"stop {PID}: {plan}" and windows.asked == []
    assert ensure_port_available(PORT) is True
    assert windows.asked == [f"taskkill.exe /PID {PID}", f"taskkill.exe /PID {PID} /F"]
    assert f"✅ Successfully killed process {PID}" in said()
    windows.sizes.clear()
    assert ensure_port_available(PORT) is True and windows.sizes == []  # none is asked about a free port


def test_an_heir_of_the_holder_goes_after_it(windows):
    windows.processes[8], windows.users[8], windows.commands[8] = (PID, BEGUN + 1, "python.exe"), ALICE, SPAWNED % PID
    windows.taskkill = [lambda: windows.force(PID), lambda: windows.force(pid=8)]
    assert ensure_port_available(PORT) is True
    assert windows.asked == [f"taskkill.exe /PID {PID}", "taskkill.exe /PID 8"]


@pytest.mark.parametrize("parent", ["nodemon.exe", "cmd.exe"])
def test_a_restart_is_told(windows, said, monkeypatch, parent):
    """A supervisor, which is the holder's parent and began before it, starts the server again; a shell is none."""
    monkeypatch.delenv("SYSTEMROOT")
    windows.root = "C:\\Windows"

    def restart():
        now = int((time.time() + 11644473600) * 10**7)
        windows.processes[16], windows.users[16] = (8, now, "python.exe"), ALICE
        return windows.force(16)

    windows.processes.update({8: (700, 80, parent), PID: (8, BEGUN, "python.exe")})
    windows.taskkill = [restart]
    assert ensure_port_available(PORT) is False
    assert "taken again" in said() and (f": its supervisor 8 ({parent}) starts" in said()) is (parent == "nodemon.exe")


def test_a_reserved_range_has_no_holder(windows, said, monkeypatch):
    windows.listeners, error = [], PermissionError(errno.EACCES, "forbidden")
    error.winerror = 10013
    seam.stand_in(monkeypatch, "bind", lambda *_: error)
    assert ensure_port_available(PORT) is False
    assert "❌ Windows forbids port 8000 (error 10013)" in said() and "excludedportrange" in said()
    windows.held_by(4)
    assert ensure_port_available(PORT) is False and "it is the Windows kernel" in said().splitlines()[-2]


CHANGES = {  # whom a change of the machine leaves alone, and why
    "System": (lambda w: w.held_by(4), "it is the Windows kernel (http.sys); netsh http show servicestate names"),
    "PID 4": (lambda w: (w.held_by(4), w.processes.update({4: (0, 50, "a.exe")})), "PID 4 is the system itself"),
    "not told": (lambda w: w.held_by(None), "to find out: as an administrator, python port_manager.py check 8000"),
    "an ancestor": (lambda w: w.held_by(700), "it is an ancestor of this process"),
    "a service": (lambda w: w.processes.update({PID: (700, 80, "svchost.exe")}), "it is a service of Windows"),
    "of a service": (lambda w: w.processes.update({8: (4, 60, "Services.exe"), 9: (8, 60, "nssm.exe"), PID: (
        9, BEGUN, "node.exe")}), "Windows, as a service, runs it; stop it there"),
    "another's": (lambda w: w.users.update({PID: SYSTEM}), f"it belongs to user {SYSTEM}; only that user should"),
    "may not be opened": (lambda w: w.users.pop(PID), "it cannot be told whose it is"),
    "its token is refused": (lambda w: w.users.update({PID: ""}), "it cannot be told whose it is"),
    "no user is told": (lambda w: w.users.update({PID: "", ME: ""}), "it cannot be told whose it is"),
    "its user is not told": (lambda w: w.users.update({PID: None}), "it cannot be told whose it is"),
    "our own user is not told": (lambda w: w.users.pop(ME), f"it belongs to user {ALICE}"),
    "another port": (lambda w: w.held_by(PID, PORT, 9229), f"would also close port 9229 (服务器.exe {PID})"),
    "no processes": (lambda w: w.processes.clear(), "it could not be looked at"),
    "no table": (lambda w: setattr(w, "ipv6", None), "could tell who holds port 8000: it is treated as held"),
}


@pytest.mark.parametrize("who", CHANGES)
def test_who_stays(windows, said, who):
    change, sentence = CHANGES[who]
    change(windows)
    assert ensure_port_available(PORT) is False
    assert sentence in said() and windows.asked in ([], ["NETSTAT.EXE -ano"])


@pytest.mark.parametrize(("ends", "name", "command"), [
    (True, "cmd.exe", ""),
    (False, "CMD.EXE", r"C:\Windows\System32\CMD.EXE /D /S /C npm start"),
    (True, "powershell.exe", r'powershell.exe -noexit -command try { . "C:\VS Code\shellIntegration.ps1" } catch'),
    (False, "pwsh.exe", "pwsh -NoProfile -Command Start-Sleep 9"),
    (True, "bash.exe", r"C:\Git\bin\bash.exe --login -i"),
    (False, "bash.exe", "bash -c ./serve"),
    (True, "WindowsTerminal.exe", "wt"),
    (False, "conhost.exe", r"\??\C:\Windows\system32\conhost.exe 0x4"),
    (True, "conhost.exe", r"C:\Windows\system32\conhost.exe --headless --width 80 --height 30 --signal 0x9"),
    (True, "OpenConsole.exe", "OpenConsole.exe --headless --width 80"),
    (False, "chrome.exe", "chrome.exe --headless"),
])  # fmt: skip
def test_somebodys_terminal_below_a_holder_lives(windows, said, ends, name, command):
    windows.processes[8], windows.users[8], windows.commands[8] = (PID, BEGUN + 1, name), ALICE, command
    assert ensure_port_available(PORT) is not ends
    assert (f"stopping it would also end a terminal ({name} 8)" in said()) is ends


# Who holds the port


@pytest.mark.parametrize(("tables", "ipv6", "found"), [
    ([(9, "127.0.0.1", 8000), (8, "::1", 8000)], True, {"127.0.0.1": 9, "::1": 8}),
    ([(9, "127.0.0.1", 8000), (8, "::1", 8000)], False, {"127.0.0.1": 9}),  # where it is switched off
    ([(8, "127.0.0.1", 8000), (None, "127.0.0.2", 8000), (None, "::", 8000)], True,  # netstat tells of two
     {"127.0.0.1": 8, "127.0.0.2": None, "::": PID}),
    ([(None, "127.0.0.1", 8100)], True, {}),
    ([], True, {}),
])  # fmt: skip
def test_the_tables_of_both_families(windows, tables, ipv6, found):
    windows.processes.clear()
    windows.listeners, windows.ipv6, windows.netstat = tables, ipv6, netstat_ano()
    rows = seam.sockets("windows", PORT)
    assert rows == [seam.listener(pid, PORT, host, ":" in host) for host, pid in found.items()]
    assert windows.asked == ["NETSTAT.EXE -ano"] * (None in found.values())


@pytest.mark.parametrize(("children", "pids"), [  # the parent, and whose worker it says that it is
    ({8: (PID, PID), 12: (PID, PID), 16: (4, PID), 20: (PID, 4)}, [8, 12]), ({8: (PID, PID * 10)}, [None]), ({}, [PID])
], ids=["its workers", "another's", "cannot be read"])  # fmt: skip
def test_the_heirs_of_an_owner_that_has_ended(windows, children, pids):
    windows.processes = {pid: (parent, 5, "python.exe") for pid, (parent, _) in children.items()}
    windows.users = dict.fromkeys(children, ALICE)
    windows.commands = {pid: SPAWNED % named for pid, (_, named) in children.items()}
    assert [each.pid for each in seam.sockets("windows", PORT)] == pids


def test_a_parent_counts_if_it_began_before_its_child(windows):
    """808 began before 800, which is a later process with the PID of its parent."""
    begun = {4: (0, 0), 700: (600, 50), 800: (700, 60), 804: (800, 60), 808: (800, 55), 812: (800, 0)}
    windows.processes = {pid: (*each, "a.exe") for pid, each in begun.items()}
    found = seam.reader("windows")(0)
    assert {pid: each.parent for pid, each in found.items()} == {4: 0, 700: 0, 800: 700, 804: 800, 808: 0, 812: 800}
    other = (None, None, 50, 50 / 1e7 - 11644473600, "", "a.exe", "", False, False, False, False)
    assert found[700] == (700, 0, *other) and (found[4].start, found[4].started) == (0, None)


@pytest.mark.parametrize(("needed", "asked"), [(1 << 16, [16]), (1 << 17, [16, 20]), (1 << 30, [16, 20, 23])])
def test_a_buffer_grows_until_all_fits(windows, needed, asked):
    windows.needed = needed
    assert [*seam.reader("windows")(0)] == ([] if needed == 1 << 30 else [*windows.processes])
    assert windows.sizes == asked


# Stopping


FORCED = ["", " /F"]  # it was asked to stop, and forced then


@pytest.mark.parametrize(("answers", "asked", "error"), [
    ([(0, "not /F", "")], [""], ""),
    ([(1, "", "FEHLER: ... nur erzwungen ... (mit /F-Option)."), (0, "", "")], FORCED, ""),
    ([(1, "ERREUR: (option /F).", ""), (0, "", "")], FORCED, ""),
    ([(128, "Error: Could not find", ""), (0, "", "")], FORCED, ""),  # it has no window, under Wine
    ([(1, "", "ERROR: Access is\tdenied.\n")], [""], "ERROR: Access is?denied."),
    ([(1, "", "(/F)"), (1, "denied (/F)", "")], FORCED, "denied (/F)"),
    ([None], [" /F"], "nothing in 10 s"),
    (["it has ended"], [" /F"], ""),
])  # fmt: skip
def test_taskkill(windows, answers, asked, error):
    windows.taskkill = [lambda: windows.force() and None] if answers == ["it has ended"] else [*answers]
    with pytest.raises(OSError) if error else contextlib.nullcontext() as raised:
        seam.ask_to_stop("windows", PID, asked == [" /F"], BEGUN)
    assert not error or raised.value.args == (0, f"taskkill says: {error}")
    assert windows.asked == [f"taskkill.exe /PID {PID}{force}" for force in asked]


@pytest.mark.parametrize(("pid", "began", "start", "wrong"), [
    (0, 0, 5, OSError),  # no process is told
    (8, 5, 5, ProcessLookupError),
    (PID, 5, 5, None),
    (PID, 6, 5, ProcessLookupError),
    (PID, 0, 5, OSError),
    (PID, 5, 0, OSError),
])  # fmt: skip
def test_taskkill_meets_only_what_is_still_the_same(windows, pid, began, start, wrong):
    """Without a handle the start time tells; also after the request, before the forced end that may follow it."""
    processes = {pid: (0, began, "a.exe")} if pid else {}

    def changed():
        windows.processes = processes
        return 1, "", "ERROR: ... (with /F option)."

    windows.taskkill = [changed, (0, "", "")]
    windows.processes[PID] = 0, start or 5, "a.exe"
    with pytest.raises(wrong) if wrong else contextlib.nullcontext() as raised:
        seam.ask_to_stop("windows", PID, False, start)
    assert not wrong or raised.type is wrong
    assert len(windows.asked) == bool(start) + (not wrong)


@pytest.mark.parametrize(("seconds", "milliseconds"), [(5, 200), (0.1501, 151), (0.0001, 1), (0, 0)])
def test_more_processes_than_can_be_waited_for(windows, seconds, milliseconds):
    """Not for long: some are not waited for, and nothing ends a wait."""
    windows.handles = dict.fromkeys(range(2, 102), (PID, BEGUN))
    seam.sleep("windows", [*windows.handles], seconds)
    assert windows.waits == [(63, False, milliseconds)]
    windows.handles.clear()
