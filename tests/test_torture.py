"""Thousands of mangled listings through every parser: no exception, and no PID or inode out of thin air."""

from __future__ import annotations

import os
import random
import re
import struct

import pytest

from . import seam
from .samples import HEADS, LSOF_BOUND, LSOF_HELD, PS, PS_OF_FREEBSD, SOCKSTAT, netstat_ano

SEED = int(os.environ.get("SEED", "20261123"))
ROUNDS = 3000
PORT = 8000

SS = """\
LISTEN 0      128        127.0.0.1:8000       0.0.0.0:*    users:(("python3",pid=51,fd=3),("python3",pid=60,fd=3)) ino:73 sk:1
LISTEN 0      128            [::1]:8000          [::]:*    users:(("a\\",pid=1,fd=1",pid=52,fd=4)) ino:74 v6only:1 <->
LISTEN 0      128                *:8000             *:*    users:(("node",pid=53,fd=4)) ino:75 sk:9 v6only:0 <->
LISTEN 0      128        127.0.0.1:18000      0.0.0.0:*    users:(("python3",pid=54,fd=3)) ino:76
ESTAB  0      0          127.0.0.1:8000     127.0.0.1:5201 users:(("curl",pid=55,fd=3))
"""
NET_TOOLS = """\
Active Internet connections (only servers)
Proto Recv-Q Send-Q Local Address           Foreign Address         State       User       Inode      PID/Program name
tcp        0      0 127.0.0.1:8000          0.0.0.0:*               LISTEN      1000       73         51/nginx: master
tcp6       0      0 :::8000                 :::*                    LISTEN      0          74         -
tcp        0      0 127.0.0.1:18000         0.0.0.0:*               LISTEN      0          75         53/python3
tcp        0      0 127.0.0.1:8000          127.0.0.1:5201          ESTABLISHED 0          76         54/curl
udp        0      0 127.0.0.1:8000          0.0.0.0:*                           0          77         55/syslogd
"""
BUSYBOX = """\
Active Internet connections (only servers)
Proto Recv-Q Send-Q Local Address           Foreign Address         State       PID/Program name
tcp        0      0 127.0.0.1:8000          0.0.0.0:*               LISTEN      12/python3
tcp        0      0 :::8000                 :::*                    LISTEN      -
tcp        0      0 127.0.0.1:8000          127.0.0.1:5201          ESTABLISHED 13/curl
"""
PROC_NET = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 73 1 0000000000000000 100 0 0 10 0
   1: 0100007F:4650 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 74 1 0000000000000000 100 0 0 10 0
   2: 0100007F:1F40 0100007F:1451 01 00000000:00000000 00:00000000 00000000     0        0 75 1 0000000000000000 20 4 30 10 -1
"""
LISTINGS = {
    "ss": [SS],
    "lsof": [LSOF_HELD, LSOF_BOUND],
    "netstat": [NET_TOOLS, BUSYBOX],
    "sockstat": [SOCKSTAT],
    "netstat -ano": [netstat_ano(language) for language in HEADS],
}


def told(row):
    """What leads from a row to its process: the PID, or on Linux the inode; None where it tells neither."""
    return row.pid or row.inode or None


def justified(name, row, text):
    """Whether a line of the port tells that; for lsof, the last p line before one."""
    pid = None
    for line in text.splitlines():
        pid = line[1:] if line[:1] == "p" else pid
        here = f":{PORT}" in line and str(told(row)) in line
        if (line[:1] == "n" and line.endswith(f":{PORT}") and pid == str(row.pid)) if name == "lsof" else here:
            return True
    return told(row) is None


def mangled(text: str, rng: random.Random) -> str:
    """A few random harms: bytes changed, cut out, doubled or swapped, lines lost, moved, joined or repeated."""
    for _ in range(rng.randrange(1, 6)):
        at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        lines = text.split("\n")
        wrong = rng.choice('0123456789:.*-()",=/\t \0\x1bé²٣pfnT')
        word = rng.choice(["LISTEN", "8000", "127.0.0.1", "0.0.0.0:0", "TCP", "pid="])
        text = rng.choice([
            text[:at] + wrong + text[at + 1 :],
            text[:at] + text[min(end, at + 30) :],
            text[:end] + text[at:],
            text[:at],
            "\n".join(rng.sample(lines, len(lines))),
            "\n".join(line for line in lines if rng.random() > 0.3),
            text.replace("\n", rng.choice(["", " ", "\r\n", "\n\n"]), 3),
            text.replace(word, rng.choice(["", "LISTEN", "8000", "-1", "*"]), 2),
            text[:at] + re.sub("[0-9]", str(rng.randrange(10)), text[at:], count=1),
            text[:at] + re.sub("[0-9]+", rng.choice("01"), text[at:], count=1),
        ])  # fmt: skip
    return text


@pytest.mark.parametrize("name", LISTINGS)
def test_torture(name):
    rng, found = random.Random(SEED), 0
    for text in LISTINGS[name]:  # unharmed ones are read
        rows = seam.on(PORT, seam.parse(name, text))
        assert rows and all(isinstance(row.listening, bool) and justified(name, row, text) for row in rows)
        assert all(not row.v6only or ":" in row.address for row in rows)
        assert all(row.pid is None for row in rows) == (name in ("ss", "netstat"))  # on Linux, /proc tells it
    for _ in range(ROUNDS):
        text = mangled(rng.choice(LISTINGS[name]), rng)
        for row in seam.on(PORT, seam.parse(name, text) or []):
            assert row.port == PORT and (row.pid is None or row.pid >= 2) and justified(name, row, text), (row, text)
            found += told(row) is not None
    assert found > ROUNDS / 6  # the harm is not such that nothing at all is read


@pytest.mark.parametrize("name", LISTINGS)
def test_noise_is_no_answer(name):
    """Nobody and "cannot tell" differ: what is not the tool's output is not read as "nobody"."""
    rng = random.Random(SEED)
    for text in ("garbage", "\0", "1\t/bin/busybox\t/dev/null", "no such option", "Permission denied\n" * 3):
        assert seam.parse(name, text) is None
    for _ in range(300):
        noise = "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(1, 200)))
        assert not seam.parse(name, noise)
    for text in (SS, NET_TOOLS, BUSYBOX, SOCKSTAT, PROC_NET) if name == "lsof" else ():  # of another tool
        assert not seam.parse(name, text)


def test_torture_of_ps():
    rng = random.Random(SEED)
    for turn in range(ROUNDS):
        listing = (PS, PS_OF_FREEBSD)[turn % 2].replace("{me}", "9999")
        for pid, process in seam.parse("ps", mangled(listing, rng)).items():
            assert pid == process.pid >= 0
            assert (process.name + process.command).isprintable()


def test_torture_of_proc_net():
    rng, lines = random.Random(SEED), iter(PROC_NET.splitlines() * 2)
    assert [(row.uid, row.inode) for row in seam.parse("proc_net", lines)] == [(1000, 73), (0, 74)]
    assert len([*lines]) == 4  # listeners come first, and the kernel need not show the rest
    assert [row.inode for row in seam.parse("proc_net", PROC_NET.splitlines(), True)] == [73, 74, 75]
    assert [row.inode for row in seam.parse("proc_net", PROC_NET.replace(" 73 ", " 7٣ ").splitlines())] == [74]
    for _ in range(ROUNDS):
        text = mangled(PROC_NET, rng)
        for row in seam.on(PORT, seam.parse("proc_net", text.splitlines())):
            assert (row.port, row.listening, row.pid) == (PORT, True, None)
            assert any(":1F40" in line and str(row.inode) in line for line in text.upper().splitlines())


def sock_diag(port: int) -> bytes:
    body = struct.pack("!BBxxHH", 2, 10, port, 0) + bytes([127, 0, 0, 1]) + bytes(52) + struct.pack("=II", 1000, 73)
    body6 = struct.pack("!BBxxHH", 10, 10, port, 0) + bytes(56) + struct.pack("=IIHHB3x", 1000, 74, 5, 11, 1)
    messages = [struct.pack("=IHHII", 16 + len(part), 18, 2, 0, 0) + part for part in (body, body6)]
    return b"".join(messages) + struct.pack("=IHHIII", 20, 3, 2, 0, 0, 0)


def test_torture_of_sock_diag():
    rng = random.Random(SEED)
    rows, finished = seam.parse("sock_diag", sock_diag(PORT))
    assert finished
    assert [(row.address, row.inode, row.v6only) for row in rows] == [("127.0.0.1", 73, None), ("::", 74, True)]
    for _ in range(ROUNDS):
        data = bytearray(sock_diag(PORT))
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data
        try:
            rows, _ = seam.parse("sock_diag", bytes(data))
        except ValueError:
            continue
        assert all(0 <= row.port <= 65535 and row.pid is None for row in rows)


def test_a_v6only_attribute_that_is_cut_or_endless():
    for attributes in (b"", b"\x05\0\x0b\0", b"\0\0\x01\0\x01", b"\x01\0\x07\0\x09" * 5, b"\xff\xff\x0c\0\x09"):
        assert seam.parse("v6only", attributes) is None
    assert seam.parse("v6only", b"\x05\0\x08\0\0\0\0\0\x05\0\x0b\0\x01\0\0\0") is True
