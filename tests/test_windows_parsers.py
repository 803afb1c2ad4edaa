"""What Windows tells, where Wine cannot show it: forms written after its own, and the decisions that hang on them."""

from __future__ import annotations

import ctypes
import os
import struct
from types import SimpleNamespace

import pytest

from . import seam
from .samples import HEADS
from .samples import netstat_ano as told

PLACE = 0x1_0000_0000  # where the buffer of a table was


def row(pid, port=8000, host="127.0.0.1", v6=False):
    return seam.listener(pid, port, host, v6)


def table(*rows):
    """SYSTEM_PROCESS_INFORMATION of (PID, parent, start, program), as Windows lays it out for 64 bits."""
    data = b""
    for left, (pid, parent, start, program) in zip(range(len(rows) - 1, -1, -1), rows):
        text = program.encode("utf-16-le")
        place = PLACE + len(data) + 256 if text else 0
        step = 256 + len(text) + -len(text) % 8 if left else 0
        head = struct.pack("<II24xqqqHH4xQi4xQQ", step, 3, start, 7, 8, len(text), len(text) + 2, place, 8, pid, parent)
        data += (head + bytes(256 - len(head)) + text).ljust(step, b"\0")
    return data, PLACE


def living(monkeypatch, *rows):
    """Let these be the processes of the machine."""
    seam.stand_in(monkeypatch, "answers of Windows", lambda library, ask, of=0: table(*rows) if rows else (b"", 0))


@pytest.mark.parametrize("language", HEADS)
def test_netstat_is_judged_by_its_shape(language):
    """In whatever language a state is told, whose foreign address is all zero listens."""
    assert seam.parse("netstat -ano", told(language)) == [
        row(38144), row(4, 80, "0.0.0.0"), row(None, 8100, "0.0.0.0"), row(38144, host="::", v6=True),
        row(38148, 8001, "fe80::1", True),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "netstat: option", told().partition("TCP")[0], "  TCP  1.2.3.4:5  [::]:0  L  x"])
def test_what_is_not_netstats_answer_tells_nothing(text):
    assert seam.parse("netstat -ano", text) is None


def test_the_tables_of_listeners():
    port = struct.pack(">H2x", 8000)
    first = struct.pack("=I4s4s4s4sI", 2, b"\x7f\0\0\1", port, bytes(4), bytes(4), 38144)
    second = struct.pack("=I4s4s4s4sI", 2, bytes(4), port, bytes(4), b"\xff\xff\0\0", 0)
    found = seam.parse("table of listeners", struct.pack("=I", 2) + first + second + bytes(99), False)
    assert found == [row(38144), row(None, host="0.0.0.0")]
    third = struct.pack("=16sI4s16sI4sII", bytes(15) + b"\1", 0, port, bytes(16), 0, bytes(4), 2, 38148)
    found = seam.parse("table of listeners", struct.pack("=I", 1) + third, True)
    assert found == [row(38148, host="::1", v6=True)]
    assert seam.parse("table of listeners", struct.pack("=I", 0), False) == []
    assert seam.parse("table of listeners", b"", True) == []


@pytest.mark.skipif(struct.calcsize("P") != 8, reason="the layouts are those for 64 bits")
def test_the_table_of_processes_and_what_is_told_of_one():
    rows = (0, 0, 0, ""), (4, 0, 50, "System"), (38144, 700, 134401184012447350, "服务器.exe")
    found = seam.parse("processes", *table(*rows))
    assert found == {pid: (parent, start, program) for pid, parent, start, program in rows}
    assert seam.parse("processes", b"", 0) == {}
    text = "C:\\项目\\python.exe".encode("utf-16-le")
    assert seam.parse("text", struct.pack("<HH4xQ", len(text), len(text) + 2, PLACE + 16) + text + b"x\0", PLACE) == (
        "C:\\项目\\python.exe"
    )
    assert seam.parse("text", b"", 0) == ""
    sid = bytes((1, 5, 0, 0, 0, 0, 0, 5)) + struct.pack("<5I", 21, 397955417, 626881126, 188441444, 1010)
    assert seam.parse("user", struct.pack("<QI4x", PLACE + 16, 0) + sid + bytes(9), PLACE) == (
        "S-1-5-21-397955417-626881126-188441444-1010"
    )
    assert seam.parse("user", b"", 0) == ""


@pytest.mark.parametrize(("needed", "asked"), [(1 << 9, [16]), (1 << 17, [16, 20]), (1 << 30, [16, 20, 23])])
def test_a_buffer_grows_until_all_fits(monkeypatch, needed, asked):
    """A part of the processes would be no answer."""
    monkeypatch.setattr(ctypes, "WinDLL", lambda name: None, raising=False)
    sizes = []

    def ask(library, handle, buffer, size, place):
        sizes.append(size.bit_length() - 1)
        buffer[0] = b"x"
        return 0 if size >= needed else 122

    data, _ = seam.answer_of_windows(ask)
    assert sizes == asked and len(data) == (1 << sizes[-1] if 1 << sizes[-1] >= needed else 0)


@pytest.mark.parametrize(
    ("tables", "netstat", "found"),
    [
        ([row(38144)], "", [row(38144)]),
        ([row(None), row(8, 8001)], told(), [row(38144)]),
        ([row(8), row(None, host="::", v6=True)], told("german"), [row(8), row(38144, host="::", v6=True)]),
        ([row(None), row(None, host="127.0.0.2")], told("french"), [row(38144), row(None, host="127.0.0.2")]),
        ([row(None)], "", [row(None)]),
        ([row(None, 8100)], told(), []),
        ([], "", []),
        (None, told("chinese"), None),
    ],
    ids=["told", "not told", "one is told", "another is not", "nobody tells", "another port", "nobody", "no table"],
)
def test_cannot_tell_is_not_nobody(monkeypatch, tables, netstat, found):
    living(monkeypatch)
    seam.stand_in(monkeypatch, "tables of Windows", lambda: tables)
    seam.stand_in(monkeypatch, "run a tool", lambda tool, *words: seam.answer(0, netstat, ""))
    assert seam.sockets("windows", 8000) == found


@pytest.mark.parametrize(
    ("rows", "pids"),
    [
        ([(38144, 0, 5, "python.exe"), (38148, 38144, 6, "python.exe")], [38144]),
        ([(38148, 38144, 6, "python.exe"), (38152, 38144, 7, "python.exe")], [38148, 38152]),
        ([(38148, 38144, 6, "python.exe"), (38152, 38144, 7, "conhost.exe")], [38148]),
        ([(38148, 38144, 6, "python.exe"), (38152, 38144, 7, "node.exe")], [None]),
        ([(500, 4, 1, "explorer.exe")], [None]),
        ([], [38144]),
    ],
    ids=["the owner", "its heirs", "no console", "several programs", "no heir", "cannot be read"],
)
def test_the_heirs_of_an_owner_that_has_ended(monkeypatch, rows, pids):
    living(monkeypatch, *rows)
    seam.stand_in(monkeypatch, "tables of Windows", lambda: [row(38144)])
    assert [each.pid for each in seam.sockets("windows", 8000)] == pids


def test_a_parent_counts_if_it_began_before_its_child(monkeypatch):
    """808 began before 800, which is a later process with the PID of its parent."""
    starts = {4: 0, 700: 50, 800: 60, 804: 60, 808: 55}
    parents = {4: 0, 700: 600, 800: 700, 804: 800, 808: 800}
    living(monkeypatch, *((pid, parents[pid], starts[pid], "a.exe") for pid in starts))
    found = seam.reader("windows")(0)
    assert {pid: each.parent for pid, each in found.items()} == {4: 0, 700: 0, 800: 700, 804: 800, 808: 0}
    assert not found[4].start and found[4].started is None and found[700].start == 50
    assert -11644473600 < found[700].started < -11644473599, "counted in 100 ns since 1601"


@pytest.mark.parametrize(
    ("answers", "firmly", "asked", "error"),
    [
        ([(0, "SUCCESS", "")], False, [""], None),
        ([(1, "", "FEHLER: ... nur erzwungen ... (mit /F-Option)."), (0, "", "")], False, ["", "/F"], None),
        ([(128, "Error: Could not find", ""), (0, "", "")], False, ["", "/F"], None),
        ([(1, "", "ERROR: Access is denied.")], False, [""], "Access is denied"),
        ([(1, "", "(/F)"), (1, "", "Access is denied.")], False, ["", "/F"], "Access is denied"),
        ([None], True, ["/F"], "nothing"),
        ([(0, "", "")], True, ["/F"], None),
    ],
    ids=["asked", "forced at once", "no window under wine", "refused", "refused firmly", "no answer", "forced"],
)
def test_taskkill(monkeypatch, answers, firmly, asked, error):
    calls = []

    def run(tool, *words, timeout):
        assert os.path.basename(tool) == "taskkill.exe" and "System32" in tool and words[:2] == ("/PID", "38144")
        calls.append("".join(words[2:]))
        answer = answers[len(calls) - 1]
        return answer and seam.answer(*answer)

    living(monkeypatch, (38144, 0, 5, "python.exe"))
    seam.stand_in(monkeypatch, "run a tool", run)
    if error:
        with pytest.raises(OSError, match=error):
            seam.ask_to_stop("windows", 38144, firmly, 5)
    else:
        seam.ask_to_stop("windows", 38144, firmly, 5)
    assert calls == asked


@pytest.mark.parametrize(
    ("rows", "error"),
    [([(38144, 0, 6, "a.exe")], ProcessLookupError), ([(700, 0, 6, "a.exe")], ProcessLookupError), ([], OSError)],
    ids=["another process", "it has ended", "cannot tell"],
)
@pytest.mark.parametrize("asked", [False, True])
def test_taskkill_meets_only_what_is_still_the_same(monkeypatch, rows, error, asked):
    """Also between the request, which takes a moment, and the forced end that follows where it cannot be asked."""
    calls = []

    def run(tool, *words, timeout):
        calls.append("".join(words[2:]))
        living(monkeypatch, *rows)
        return seam.answer(1, "", "ERROR: ... (with /F option).")

    living(monkeypatch, *([(38144, 0, 5, "python.exe")] if asked else rows))
    seam.stand_in(monkeypatch, "run a tool", run)
    with pytest.raises(error) as raised:
        seam.ask_to_stop("windows", 38144, False, 5)
    assert calls == [""] * asked and (error is not OSError or not isinstance(raised.value, ProcessLookupError))


@pytest.mark.parametrize(
    ("rows", "start", "exited"),
    [
        ([], 5, None),
        ([(8, 0, 5, "a.exe")], 5, True),
        ([(38144, 0, 5, "a.exe")], 5, False),
        ([(38144, 0, 6, "a.exe")], 5, True),
        ([(38144, 0, 0, "a.exe")], 5, None),
        ([(38144, 0, 5, "a.exe")], 0, None),
    ],
)
def test_without_a_handle_the_start_time_tells(monkeypatch, rows, start, exited):
    living(monkeypatch, *rows)
    assert seam.has_exited(38144, "windows", start) is exited


def test_whose_process_it_is(monkeypatch):
    monkeypatch.setattr(os, "getlogin", lambda: "alice")
    assert [seam.other_user("windows", user) for user in ("alice", "S-1-5-18", "")] == ["", "S-1-5-18", None]


@pytest.mark.parametrize(
    ("ends", "name", "command"),
    [
        (True, "cmd.exe", r"C:\Windows\System32\cmd.exe"),
        (True, "cmd.exe", "cmd /K npm start"),
        (True, "cmd.exe", ""),
        (False, "CMD.EXE", r"C:\Windows\System32\CMD.EXE /D /S /C npm start"),
        (True, "powershell.exe", r'powershell.exe -noexit -command try { . "C:\VS Code\shellIntegration.ps1" } catch'),
        (False, "pwsh.exe", "pwsh -NoProfile -Command Start-Sleep 9"),
        (True, "bash.exe", r"C:\Git\bin\bash.exe --login -i"),
        (True, "WindowsTerminal.exe", "wt"),
        (False, "conhost.exe", r"\??\C:\Windows\system32\conhost.exe 0x4"),
        (True, "conhost.exe", r"C:\Windows\system32\conhost.exe --headless --width 80 --height 30 --signal 0x9"),
        (True, "OpenConsole.exe", "OpenConsole.exe --headless --width 80"),
        (False, "chrome.exe", "chrome.exe --headless"),
        (False, "python.exe", "python app.py"),
    ],
)
def test_somebodys_terminal(monkeypatch, ends, name, command):
    assert seam.ends_a_terminal(monkeypatch, name, command) is ends


def test_the_system_is_protected():
    assert "PID 0 is the system itself" in seam.protected("", system="windows", pid=0)
    assert "http.sys" in seam.protected("System", system="windows", pid=4)


def test_a_process_that_may_not_be_opened_is_told_by_its_start_alone(monkeypatch):
    """Another user's or a service's: it is looked at, and no handle is held."""

    def refuse(*_):
        raise PermissionError(13, "Access is denied", None, 5)

    seam.stand_in(monkeypatch, "calls of Windows", lambda: SimpleNamespace(OpenProcess=refuse))
    other = seam.process(38144, 0, "svchost.exe")
    seam.readings(monkeypatch, "windows", lambda pid: {38144: other})
    assert seam.hold("windows", 38144) is None
    assert seam.describe("windows", other) == ("", "", "")
