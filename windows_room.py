from __future__ import annotations

import os
import socket
import sys
import time
from functools import lru_cache
from typing import Any, Callable, Iterable, NamedTuple, TypeVar

_T = TypeVar("_T")

DEBUG, TOOL_TIMEOUT = 10, 2.0


class Endpoint(NamedTuple):
    host: str
    port: int


class Holder(NamedTuple):
    pid: int | None
    parent: int | None
    user: str
    name: str
    command: str
    cwd: str
    started: float | None
    addresses: tuple[Endpoint, ...]


class _Socket(NamedTuple):
    address: str
    port: int
    listening: bool
    peer: Endpoint | None
    pid: int | None
    uid: int | None
    inode: int
    v6only: bool | None


class _Process(NamedTuple):
    pid: int
    parent: int | None
    group: int | None
    tty: object
    start: object
    started: float | None
    user: str
    name: str
    command: str
    zombie: bool
    kernel: bool
    leader: bool


class _Pin(NamedTuple):
    pid: int
    start: object
    handle: int | None


class _Manager(NamedTuple):
    name: str
    stop: str


class _Options(NamedTuple):
    grace: float
    polite: str
    policy: str | None
    force: bool
    ports: tuple[int, ...]


class _System:
    whole = False
    way = ""

    def __init__(self) -> None:
        self.known: dict[int, _Process] = {}

    def read(self, pid: int) -> dict[int, _Process]:
        raise NotImplementedError

    def protected(self, holder: Holder) -> str | None:
        return None

    def managed_by(self, holder: Holder, port: int) -> _Manager | None:
        return None


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _number(text: str) -> int | None:
    plain = text.isascii() and text.isdigit() and len(text) <= 10 and (text[0] != "0" or text == "0")
    return int(text) if plain else None


def _endpoint(text: str) -> Endpoint | None:
    host, _, digits = text.rpartition(":")
    port, host = _number(digits), host.strip("[]").partition("%")[0]
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        host = socket.inet_ntop(family, socket.inet_pton(family, host))
    except (OSError, ValueError):
        return None
    return Endpoint(host, port) if port is not None and port <= 65535 else None


def _decoded(output: bytes) -> str:
    for encoding in ("utf-8", "oem"):
        try:
            return output.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    return output.decode("utf-8", "backslashreplace")


def _run(tool: str, *options: str, timeout: float | None = None) -> tuple[int, str, str] | None:
    import subprocess

    try:
        done = subprocess.run(
            [tool, *options], stdin=-3, capture_output=True, timeout=timeout or TOOL_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.returncode, _decoded(done.stdout), _decoded(done.stderr)


def _output(tool: str, *options: str) -> str:
    answer = _run(tool, *options)
    return answer[1] if answer and answer[0] == 0 else ""


def _complaint(answer: tuple[int, str, str] | None) -> str:
    return _clean(" ".join((answer[2] or answer[1]).split())) if answer else ""


# ==== the room begins here: all above is a stand-in for what port_manager.py has ====

# Parsers of what Windows tells: tables of its functions, by the layouts in its headers, and netstat's text.

_ENTRY = "@IIIPIIIiI520s0P"  # PROCESSENTRY32W: size, _, PID, _, _, _, parent, _, _, program; padded as C does


def _parse_process_entry(data: bytes) -> tuple[int, int, str]:
    """(PID, parent, program)."""
    import struct

    fields = struct.unpack(_ENTRY, data)
    return fields[2], fields[6], _wide(fields[9]).partition("\0")[0]


def _parse_tcp_table(data: bytes, v6: bool) -> list[_Socket]:
    """Rows of type MIB_TCPROW_OWNER_PID or MIB_TCP6ROW_OWNER_PID, all listeners; a PID of 0 is "not told".

    A dual-stack socket has a row in both tables, so that a row of IPv6 speaks for IPv6 alone.
    """
    import struct

    layout, family = ("=16s4x2s30xI", socket.AF_INET6) if v6 else ("=4x4s2s10xI", socket.AF_INET)
    size = struct.calcsize(layout)
    rows = []
    for place in range(int.from_bytes(data[:4], sys.byteorder)):
        address, port, pid = struct.unpack_from(layout, data, 4 + place * size)
        host = socket.inet_ntop(family, address)
        rows.append(_Socket(host, int.from_bytes(port, "big"), True, None, pid or None, None, 0, v6))
    return rows


def _parse_netstat_ano(text: str) -> list[_Socket] | None:
    """Judged by shape: a TCP row whose foreign address is all zero listens, whatever its state is called."""
    rows, known = [], False
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[0] != "TCP":
            continue
        local, pid = _endpoint(fields[1]), _number(fields[-1])
        known = known or (local is not None and pid is not None)
        if local and pid and pid >= 2 and fields[2] in ("0.0.0.0:0", "[::]:0"):
            rows.append(_Socket(*local, True, None, pid, None, 0, ":" in local.host))
    return rows if known else None


def _wide(data: bytes) -> str:
    return data.decode("utf-16-le", "replace")


class _Windows(_System):
    """Windows: its own functions through ctypes, netstat where they do not name the owner, and taskkill.

    A process keeps its parent's PID for life, and another process may have it since. So a parent that has
    ended reads 0 in a _Process; ``born_of`` has what Windows says.
    """

    whole = True
    way = "asked to stop, forced at once if it cannot be asked"

    def __init__(self) -> None:
        super().__init__()
        self.born_of: dict[int, int] = {}

    def sockets(self, port: int | None) -> list[_Socket] | None:
        rows = _tcp_tables()
        if rows is None or any(row.pid is None and port in (None, row.port) for row in rows):
            told = _parse_netstat_ano(_output(_windows_tool("NETSTAT.EXE"), "-ano"))
            named = {(row.address, row.port) for row in told or ()}
            if told is not None:
                rows = told + [row for row in rows or () if (row.address, row.port) not in named]
        return rows and [row for row in rows if port in (None, row.port)]

    def owners(self, sockets: list[_Socket], thorough: bool) -> list[_Socket]:
        """Where the owner has ended, its children hold the handle that they inherited.

        Children of different programs are no family: one of them may be of an earlier owner of that PID.
        """
        told = self.read(0) if sockets else {}
        if told:  # a PID that was read before may have become another's
            self.known.clear()
            self.known.update(told)
        owned = []
        for row in sockets:
            pids: list[int | None] = [row.pid]
            if self.known and row.pid and row.pid not in self.known:
                heirs = [self.known[pid] for pid, parent in self.born_of.items() if parent == row.pid]
                names = {heir.pid: heir.name.lower() for heir in heirs if heir.name.lower() != "conhost.exe"}
                pids = [*names] if len(set(names.values())) == 1 else [None]
            owned += [row._replace(pid=pid) for pid in pids]
        return owned

    def read(self, pid: int) -> dict[int, _Process]:
        """Every process of the machine, whichever is asked for: one snapshot has them all."""
        told = _snapshot()
        self.born_of = {each: parent for each, parent, _ in told}
        starts = {each: _with_handle(each, _start_of) or 0 for each in self.born_of}  # 0: not told
        found = {}
        for each, parent, name in told:
            start = starts[each]
            if parent not in starts or 0 < start < starts[parent]:
                parent = 0
            started = start / 1e7 - 11644473600 if start else None  # a file time counts 100 ns since 1601
            facts = (parent, None, None, start or None, started, "", _clean(name), "")
            found[each] = _Process(each, *facts, False, False, False)
        return found

    def describe(self, process: _Process) -> tuple[str, str, str]:
        def ask(handle: int) -> tuple[str, str, str] | None:
            user = _user_of(handle)
            same = _start_of(handle) == process.start
            return (user[1] if user else "", _clean(_command_of(handle)), "") if same else None

        return _with_handle(process.pid, ask) or ("", "", "")

    def children(self, pid: int) -> list[int]:
        return [process.pid for process in self.read(pid).values() if process.parent == pid]

    def hold(self, pids: Iterable[int]) -> dict[int, _Pin]:
        handles = {pid: _opened(pid) for pid in pids}
        self.known.clear()
        self.known.update(self.read(0))
        self.release(_Pin(pid, None, handle) for pid, handle in handles.items() if pid not in self.known)
        return {pid: _Pin(pid, self.known[pid].start, handle) for pid, handle in handles.items() if pid in self.known}

    def release(self, pins: Iterable[_Pin]) -> None:
        for pin in pins:
            if pin.handle is not None:
                _winapi().CloseHandle(pin.handle)

    def has_exited(self, pin: _Pin) -> bool | None:
        if pin.handle is not None:
            return bool(_winapi().WaitForSingleObject(pin.handle, 0) == 0)
        processes = self.read(pin.pid)
        process = processes.get(pin.pid)
        if not processes or (process and None in (process.start, pin.start)):
            return None
        return process is None or process.start != pin.start

    def sleep(self, pins: list[_Pin], seconds: float) -> None:
        handles = [pin.handle for pin in pins if pin.handle is not None][:63]  # it takes no more
        if len(handles) < len(pins):
            seconds = min(seconds, 0.2)
        if handles:  # a wait that Ctrl+C ends, as one through ctypes would not
            _winapi().WaitForMultipleObjects(handles, False, int(seconds * 1000 + 0.999))
        else:
            time.sleep(seconds)

    def stop(self, pin: _Pin, options: _Options, firmly: bool) -> None:
        """A console program cannot be asked, and taskkill says at once that /F is needed, in any language."""
        tool, word = _windows_tool("taskkill.exe"), str(pin.pid)
        for force in (True,) if firmly else (False, True):
            exited = self.has_exited(pin)
            if exited is None:
                raise OSError(0, "it could not be verified that it is still the same process")
            if exited:  # a worker may go with its master
                raise ProcessLookupError(pin.pid)
            answer = _run(tool, "/PID", word, *(["/F"] if force else []), timeout=5 * TOOL_TIMEOUT)
            if answer and answer[0] == 0:
                return
            # 128 means that there is no such process: while the handle says that it lives, Wine had no window to ask.
            if answer is None or not (answer[0] == 128 or "/F" in answer[1] + answer[2]):
                break
        if not self.has_exited(pin):
            raise OSError(0, f"taskkill says: {_complaint(answer) or 'nothing'}")

    def still_holds(self, pin: _Pin, sockets: list[_Socket], port: int) -> bool:
        return any(row.pid == pin.pid for row in self.owners(self.sockets(port) or [], True))

    def listening_of(self, pids: Iterable[int]) -> list[_Socket] | None:
        rows, wanted = self.sockets(None), set(pids)
        return rows and [row for row in self.owners(rows, True) if row.pid in wanted]

    def protected(self, holder: Holder) -> str | None:
        if holder.pid in (0, 4):
            return "it is the Windows kernel (http.sys); netsh http show servicestate names the service"
        name = holder.name.lower()
        return next((why for names, why in _PROTECTED_ON_WINDOWS if name in names), None) or super().protected(holder)

    def not_ours(self, holder: Holder, look: object) -> str | None:
        mine, its = (_with_handle(pid, _user_of) for pid in (os.getpid(), holder.pid or 0))
        if not mine or not its:
            return "it cannot be told whose it is; a prompt that was started as administrator may tell"
        if mine[0] == its[0]:
            return None
        return f"it belongs to user {its[1]}, and you are {mine[1]}; only that user should stop it"


_PROTECTED_ON_WINDOWS = (  # programs, in small letters, and what a person can do about each
    (
        ("svchost.exe", "services.exe", "lsass.exe", "wininit.exe", "winlogon.exe", "smss.exe", "csrss.exe",
         "spoolsv.exe", "system", "registry"),
        "it is a service of Windows, perhaps a port proxy; netsh interface portproxy show all lists those",
    ),
    (("wslrelay.exe", "wslhost.exe", "wsl.exe"), "it relays the port to a program in WSL; stop that program in WSL"),
    (
        ("com.docker.backend.exe", "com.docker.service", "vpnkit.exe", "gvproxy.exe"),
        "it publishes the port of a container; docker ps names that, and docker stop NAME stops it",
    ),
    (("explorer.exe",), "it is the desktop; choose another port"),
    (
        ("code.exe", "code - insiders.exe", "code-tunnel.exe", "vscodium.exe", "cursor.exe", "windsurf.exe", "trae.exe",
         "kiro.exe", "zed.exe", "devenv.exe", "idea64.exe", "pycharm64.exe", "webstorm64.exe", "phpstorm64.exe",
         "goland64.exe", "rubymine64.exe", "rider64.exe", "clion64.exe", "rustrover64.exe", "datagrip64.exe"),
        "it is an editor, whose terminals would all end with it; remove the port in its Ports view, or quit it",
    ),
    (("firefox.exe", "chrome.exe", "msedge.exe", "brave.exe", "opera.exe"), "it is a browser; close it there"),
)  # fmt: skip


# What Windows tells; None where it does not.


def _winapi() -> Any:
    import importlib

    return importlib.import_module("_winapi")  # CPython's own; multiprocessing waits for processes with it


@lru_cache(maxsize=None)
def _library(name: str) -> tuple[Any, Any]:
    """(ctypes, one of the system's libraries)."""
    import ctypes

    windows: Any = ctypes  # WinDLL is there on Windows alone
    return windows, windows.WinDLL(name, use_last_error=True)


def _windows_tool(name: str) -> str:
    """The full path of a tool: a bare name would be searched in the current folder first."""
    return os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", name)


def _opened(pid: int) -> int | None:
    """A handle, which keeps the PID from being used again."""
    try:
        return int(_winapi().OpenProcess(0x00101000, False, pid))  # SYNCHRONIZE, PROCESS_QUERY_LIMITED_INFORMATION
    except OSError:  # it has gone, or it is another user's
        return None


def _with_handle(pid: int, ask: Callable[[int], _T | None]) -> _T | None:
    handle = _opened(pid)
    try:
        return None if handle is None else ask(handle)
    finally:
        if handle is not None:
            _winapi().CloseHandle(handle)


def _snapshot() -> list[tuple[int, int, str]]:
    """(PID, parent, program) of every process, from Toolhelp; a part of them is no answer."""
    import struct

    try:
        ctypes, kernel = _library("kernel32")
    except (ImportError, OSError):  # a Python without ctypes
        return []
    kernel.CreateToolhelp32Snapshot.restype = ctypes.c_void_p
    snapshot = ctypes.c_void_p(kernel.CreateToolhelp32Snapshot(2, 0))  # TH32CS_SNAPPROCESS
    found = []
    entry = ctypes.create_string_buffer(struct.calcsize(_ENTRY))
    entry[:4] = len(entry).to_bytes(4, sys.byteorder)
    more = kernel.Process32FirstW(snapshot, entry)
    while more:
        found.append(_parse_process_entry(entry.raw))
        more = kernel.Process32NextW(snapshot, entry)
    complete = ctypes.get_last_error() == 18  # ERROR_NO_MORE_FILES
    kernel.CloseHandle(snapshot)
    return found if complete else []


def _tcp_tables() -> list[_Socket] | None:
    """Every listener, from GetExtendedTcpTable."""
    rows: list[_Socket] = []
    try:
        ctypes, library = _library("iphlpapi")
    except (ImportError, OSError):
        return None
    for family, v6 in ((2, False), (23, True)):  # as Windows numbers them
        size = ctypes.c_uint32(16384)
        for _ in range(8):  # where the table is larger, its size is told, and it may have grown since
            table = ctypes.create_string_buffer(size.value)
            status = library.GetExtendedTcpTable(table, ctypes.byref(size), False, family, 3, 0)  # listeners with PIDs
            if status != 122:  # ERROR_INSUFFICIENT_BUFFER
                break
        if status == 0:
            rows += _parse_tcp_table(table.raw, v6)
        elif not v6:  # where IPv6 is switched off, it has no table
            return None
    return rows


def _start_of(handle: int) -> int | None:
    """When the process began, in units of 100 ns: no later one with its PID began at the same time."""
    ctypes, kernel = _library("kernel32")
    times = (ctypes.c_uint64 * 4)()  # created, exited, in the kernel, outside of it
    places = [ctypes.byref(times, 8 * place) for place in range(4)]
    return int(times[0]) if kernel.GetProcessTimes(ctypes.c_void_p(handle), *places) else None


def _command_of(handle: int) -> str:
    """The command line (told since Windows 8.1), else the program's path."""
    ctypes, kernel = _library("kernel32")
    process, buffer, size = ctypes.c_void_p(handle), ctypes.create_string_buffer(65600), ctypes.c_uint32(32767)
    if _library("ntdll")[1].NtQueryInformationProcess(process, 60, buffer, len(buffer), None) == 0:
        text = 2 * ctypes.sizeof(ctypes.c_void_p)  # behind a UNICODE_STRING: its length in bytes, a pointer
        return _wide(buffer.raw[text : text + int.from_bytes(buffer.raw[:2], sys.byteorder)])
    told = kernel.QueryFullProcessImageNameW(process, 0, buffer, ctypes.byref(size))
    return _wide(buffer.raw[: 2 * size.value]) if told else ""


def _user_of(handle: int) -> tuple[bytes, str] | None:
    """(SID, name) of the user whose process it is."""
    ctypes, library = _library("advapi32")
    token, size, buffer = ctypes.c_void_p(), ctypes.c_uint32(), ctypes.create_string_buffer(256)
    if not library.OpenProcessToken(ctypes.c_void_p(handle), 8, ctypes.byref(token)):  # TOKEN_QUERY
        return None
    told = library.GetTokenInformation(token, 1, buffer, len(buffer), ctypes.byref(size))  # TokenUser
    _winapi().CloseHandle(token.value)
    name, domain = (ctypes.create_unicode_buffer(256) for _ in range(2))
    pointer, sizes = ctypes.c_void_p.from_buffer(buffer), [ctypes.byref(ctypes.c_uint32(256)) for _ in range(3)]
    if not told:
        return None
    library.LookupAccountSidW(None, pointer, name, sizes[0], domain, sizes[1], sizes[2])
    sid = buffer.raw[2 * ctypes.sizeof(pointer) : size.value]  # it follows the pointer to it, and some flags
    return sid, _clean(f"{domain.value}\\{name.value}" if name.value else "of another system")
