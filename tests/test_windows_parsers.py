"""What Windows tells, where Wine cannot show it: formats written after its own, and the decisions that hang on them."""

import os
import struct

import pytest

import port_manager as room

HEADS = {  # (title, headings, what LISTENING is called)
    "english": ("Active Connections", "Proto  Local Address          Foreign Address        State", "LISTENING"),
    "german": ("Aktive Verbindungen", "Proto  Lokale Adresse         Remoteadresse          Status", "ABHÖREN"),
    "french": ("Connexions actives", "Proto  Adresse locale         Adresse distante       État", "À L'ÉCOUTE"),
    "chinese": ("活动连接", "协议  本地地址          外部地址        状态           PID", "LISTENING"),
}
ROWS = """
  TCP    127.0.0.1:8000         0.0.0.0:0              {state}       38144
  TCP    0.0.0.0:80             0.0.0.0:0              {state}       4
  TCP    127.0.0.1:52011        127.0.0.1:8000         ESTABLISHED     9120
  TCP    127.0.0.1:52012        127.0.0.1:8000         TIME_WAIT       0
  TCP    0.0.0.0:8100           0.0.0.0:0              {state}       0
  TCP    [::]:8000              [::]:0                 {state}       38144
  TCP    [fe80::1%12]:8001      [::]:0                 {state}       38148
  TCP    [::1]:52013            [::1]:8000             CLOSE_WAIT      9120
  UDP    0.0.0.0:8000           *:*                                    7788
"""


def told(language="english"):
    title, heads, state = HEADS[language]
    return f"\r\n{title}\r\n\r\n  {heads}\r\n" + ROWS.format(state=state).replace("\n", "\r\n")


def row(pid, port=8000, host="127.0.0.1", v6=False):
    return room._Socket(host, port, True, None, pid, None, 0, v6)


def process(pid, parent=0, name="python.exe", start=1):
    return room._Process(pid, parent, None, None, start, None, "", name, "", False, False, False)


@pytest.mark.parametrize("language", HEADS)
def test_netstat_is_judged_by_its_shape(language):
    found = room._parse_netstat_ano(told(language))
    assert [(each.address, each.port, each.pid, each.v6only) for each in found] == [
        ("127.0.0.1", 8000, 38144, False),
        ("0.0.0.0", 80, 4, False),
        ("::", 8000, 38144, True),
        ("fe80::1", 8001, 38148, True),
    ]


@pytest.mark.parametrize("text", ["", "netstat: option", told().partition("TCP")[0], "  TCP  [::]:x  [::]:0  L  12"])
def test_what_is_not_netstats_answer_tells_nothing(text):
    assert room._parse_netstat_ano(text) is None


def test_the_tables_of_listeners():
    port = struct.pack(">H2x", 8000)
    first = struct.pack("=I4s4s4s4sI", 2, b"\x7f\0\0\1", port, bytes(4), bytes(4), 38144)
    second = struct.pack("=I4s4s4s4sI", 2, bytes(4), port, bytes(4), b"\xff\xff\0\0", 0)
    assert room._parse_tcp_table(struct.pack("=I", 2) + first + second + bytes(99), v6=False) == [
        row(38144),
        row(None, host="0.0.0.0"),
    ]
    third = struct.pack("=16sI4s16sI4sII", bytes(15) + b"\1", 0, port, bytes(16), 0, bytes(4), 2, 38148)
    assert room._parse_tcp_table(struct.pack("=I", 1) + third, v6=True) == [row(38148, host="::1", v6=True)]
    assert room._parse_tcp_table(struct.pack("=I", 0), v6=False) == []


def test_an_entry_of_toolhelp():
    name = "服务器.exe\0garbage".encode("utf-16-le")
    entry = struct.pack(room._ENTRY, 568, 0, 38144, 0, 0, 3, 700, 8, 0, name)
    assert room._parse_process_entry(entry) == (38144, 700, "服务器.exe")


@pytest.mark.parametrize(
    ("tables", "netstat", "found"),
    [
        ([row(38144)], "", [row(38144)]),
        ([row(None)], told(), [row(38144), row(38144, host="::", v6=True)]),
        ([row(None)], "", [row(None)]),
        ([row(None), row(8, 8001)], told("german"), [row(38144), row(38144, host="::", v6=True)]),
        ([row(None, 8100)], "", []),
        ([], "", []),
        (None, told("chinese"), [row(38144), row(38144, host="::", v6=True)]),
        (None, "", None),
    ],
    ids=["told", "not told", "nobody tells", "in german", "another port", "nobody", "no table", "no source"],
)
def test_cannot_tell_is_not_nobody(monkeypatch, tables, netstat, found):
    monkeypatch.setattr(room, "_tcp_tables", lambda: tables)
    monkeypatch.setattr(room, "_output", lambda tool, *options: netstat)
    assert room._Windows().sockets(8000) == found


@pytest.mark.parametrize(
    ("living", "pids"),
    [
        ([process(38144), process(38148, 38144)], [38144]),
        ([process(38148), process(38152)], [38148, 38152]),
        ([process(38148), process(38152, name="conhost.exe")], [38148]),
        ([process(38148), process(38152, name="node.exe")], [None]),
        ([process(500, name="explorer.exe")], [None]),
        ([], [38144]),
    ],
    ids=["the owner", "its heirs", "no console", "several programs", "no heir", "cannot be read"],
)
def test_the_heirs_of_an_owner_that_has_ended(living, pids):
    system = room._Windows()
    system.known.update({each.pid: each for each in living})
    system.born_of = {each.pid: 38144 for each in living if each.pid >= 38148}
    system.read = lambda pid: {}
    assert [each.pid for each in system.owners([row(38144)], True)] == pids


def test_a_parent_counts_if_it_began_before_its_child(monkeypatch):
    family = [(4, 0), (700, 600), (800, 700), (804, 800), (808, 804)]
    starts = {700: 50, 800: 60, 804: 55, 808: 55}  # 800 is a later process with the PID of 804's parent
    monkeypatch.setattr(room, "_snapshot", lambda: [(pid, parent, "a.exe") for pid, parent in family])
    monkeypatch.setattr(room, "_with_handle", lambda pid, ask: starts.get(pid))
    system = room._Windows()
    found = system.read(0)
    assert {pid: each.parent for pid, each in found.items()} == {4: 0, 700: 0, 800: 700, 804: 0, 808: 804}
    assert found[4].start is None and found[700].start == 50 and system.born_of[804] == 800
    system.known.update(found)
    assert system.children(804) == [808]


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
        return answer and room._Answer(*answer)

    monkeypatch.setattr(room, "_run", run)
    system = room._Windows()
    system.has_exited = lambda pin: False
    pin = room._Pin(38144, 1, 77)
    if error:
        with pytest.raises(OSError, match=error):
            system.stop(pin, None, firmly)
    else:
        system.stop(pin, None, firmly)
    assert calls == asked


@pytest.mark.parametrize(("exited", "error"), [(True, ProcessLookupError), (None, OSError)])
def test_taskkill_meets_only_what_is_still_the_same(monkeypatch, exited, error):
    monkeypatch.setattr(room, "_run", lambda *words, **options: pytest.fail("somebody was stopped"))
    system = room._Windows()
    system.has_exited = lambda pin: exited
    with pytest.raises(error):
        system.stop(room._Pin(38144, 1, None), None, True)


@pytest.mark.parametrize(
    ("seen", "start", "exited"),
    [([], 1, None), ([process(8)], 1, True), ([process(38144)], 1, False), ([process(38144, start=2)], 1, True),
     ([process(38144, start=None)], 1, None), ([process(38144)], None, None)],
)  # fmt: skip
def test_without_a_handle_the_start_time_tells(seen, start, exited):
    system = room._Windows()
    system.read = lambda pid: {each.pid: each for each in seen}
    assert system.has_exited(room._Pin(38144, start, None)) is exited


@pytest.mark.parametrize(("pid", "name", "sentence"), [(0, "", "PID 0 is the system itself"), (4, "System", "http.sys")])
def test_the_system_is_protected(pid, name, sentence):
    assert sentence in room._Windows().protects(room.Holder(pid, 0, "", name, "", "", None, ()))
