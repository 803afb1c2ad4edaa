"""What holds for every input, tried with random ones: a failure shows the seed, and TESTS_SEED=NUMBER tries others."""

import contextlib
import itertools
import os
import random
import re
import shlex
import socket
import struct

import pytest

from port_manager import SERVERS, find_listeners, find_server, server_endpoints

from . import samples, seam
from .conftest import LINUX, TELLS_BOUND, can_bind
from .test_guard_call import ENDPOINTS

SEED = int(os.environ.get("SEED", "20261125"))
ROUNDS = 3000
PORT = 8000


HOSTS = ("0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1", "::ffff:127.0.0.1")
ADDRESSES = [*((host, None) for host in HOSTS if host != "::"), ("::", False), ("::", True)]  # and whether v6-only
WAYS = [*itertools.product((True, False) if TELLS_BOUND else (True,), (True, False))]  # listening, with SO_REUSEADDR


@pytest.mark.skipif(not LINUX, reason="real sockets on Linux")
@pytest.mark.parametrize(("listening", "reuse"), WAYS)
@pytest.mark.parametrize(("address", "v6only"), ADDRESSES)
def test_two_sockets_exclude_each_other_as_the_kernel_says(port, hold, address, v6only, listening, reuse):
    held = hold((address, port), v6only=v6only, listen=listening, reuse=reuse)
    for wanted in HOSTS:
        kernel = not can_bind(port, wanted)
        found = [holder.pid for holder in find_listeners(port, wanted)]
        assert found == [held.pid] * kernel, (wanted, kernel)
        if listening or not reuse:  # with it, sockets share an address until one of them listens
            assert seam.conflict(address, wanted, v6only) is kernel, wanted


def told(pid, address, v6only=None, port=PORT, **more):
    return seam.listener(pid, port, address, v6only)._replace(**more)


LISTINGS = [  # a tool, what it prints, and what is read there
    ("ss", samples.SS, [
        told(None, "127.0.0.1", uid=1000, inode=73), told(None, "::1", True, inode=74),
        told(None, "::", False, inode=75), told(None, "::", False, 18000, inode=76),
    ]),
    ("lsof", samples.LSOF_HELD, [told(38146, "0.0.0.0"), told(778, "::1", None, 18000)]),
    ("lsof", samples.LSOF_BOUND, [told(38146, "0.0.0.0", listening=False)]),
    ("netstat", samples.NET_TOOLS, [
        told(None, "127.0.0.1", uid=1000, inode=73), told(None, "::", uid=0, inode=74),
        told(None, "127.0.0.1", None, 18000, uid=0, inode=75),
    ]),
    ("netstat", samples.BUSYBOX, [told(None, "127.0.0.1"), told(None, "::")]),
    ("sockstat", samples.SOCKSTAT, [
        told(38146, "127.0.0.1"), told(38146, "::1", True), told(38147, "::", False), told(812, "::", True),
        told(None, "127.0.0.1"), told(900, "127.0.0.1", None, 18000),
    ]),
    ("netstat of macOS", f"{samples.NETSTAT_BSD}tcp46 0 0 *.٨٠٠٥ *.* LISTEN", [
        told(None, "0.0.0.0"), told(None, "::", True, 8001), told(None, "127.0.0.1", None, 8002),
        told(None, "::", False, 8003), told(None, "::", True, 8003), told(None, "::", False, 8006),
        told(None, "::", False, 8007), told(None, "0.0.0.0", None, 8007),
    ]),
    *(("netstat -ano", samples.netstat_ano(state), [
        told(38144, "127.0.0.1", False), told(4, "0.0.0.0", False, 80), told(None, "0.0.0.0", False, 8100),
        told(38144, "::", True), told(38148, "fe80::1", True, 8001),
    ]) for state in samples.STATES),
]  # fmt: skip
TOOLS = {tool: [text for name, text, _ in LISTINGS if name == tool] for tool, *_ in LISTINGS}


@pytest.mark.parametrize(("tool", "text", "rows"), LISTINGS, ids=[tool for tool, *_ in LISTINGS])
def test_a_listing_is_read(tool, text, rows):
    """On Linux, the PID of a row is not read: /proc tells it. Windows' state may be in any language."""
    assert seam.parse(tool, text) == rows


def justified(name, row, text):
    """Whether a line of the port tells its PID, or on Linux its inode; for lsof, the last p line before one."""
    pid, who = None, row.pid or row.inode
    for line in text.splitlines():
        pid = line[1:] if line[:1] == "p" else pid
        here = f":{PORT}" in line and str(who) in line
        if (line[:1] == "n" and line.endswith(f":{PORT}") and pid == str(row.pid)) if name == "lsof" else here:
            return True
    return not who


def mangled(*listings):
    """Many, each with a few random harms: bytes changed, cut out or doubled, lines lost, moved, joined or repeated."""
    rng = random.Random(SEED)
    for _ in range(ROUNDS):
        text = rng.choice(listings)
        for _ in range(rng.randrange(1, 6)):
            at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
            lines = text.split("\n")
            word = rng.choice(["LISTEN", "8000", "127.0.0.1", "0.0.0.0:0", "TCP", "pid="])
            text = rng.choice([
                text[:at] + rng.choice('0123456789:.*-()",=/\t \0\x1bé²٣pfnT') + text[at + 1 :],
                text[:at] + text[end:],
                text[:end] + text[at:],
                "\n".join(rng.sample(lines, len(lines))),
                "\n".join(line for line in lines if rng.random() > 0.3),
                text.replace("\n", rng.choice(["", " ", "\r\n", "\n\n"]), 3),
                text.replace(word, rng.choice(["", "LISTEN", "8000", "-1", "*"]), 2),
                text[:at] + re.sub("[0-9]+", rng.choice("01"), text[at:], count=1),
            ])  # fmt: skip
        yield text


@pytest.mark.parametrize("tool", TOOLS)
def test_a_mangled_listing_names_nobody_else(tool):
    """No exception, and no PID or inode out of thin air."""
    found = 0
    for text in mangled(*TOOLS[tool]):
        for row in seam.on(PORT, seam.parse(tool, text) or []):
            assert row.port == PORT and (row.pid is None or row.pid >= 2) and justified(tool, row, text), (row, text)
            found += bool(row.pid or row.inode)
    assert found > ROUNDS / 6 or tool == "netstat of macOS"  # the harm is not such that nothing at all is read


@pytest.mark.parametrize("tool", TOOLS)
def test_noise_is_no_answer(tool):
    """Nobody and "cannot tell" differ: what is not the tool's output is not read as "nobody"."""
    rng = random.Random(SEED)
    windows = samples.netstat_ano().partition("TCP")[0], "  TCP  1.2.3.4:5  [::]:0  L  x"
    for text in ("garbage", "\0", "1\t/bin/busybox\t/dev/null", "no such option", "Permission denied\n" * 3, *windows):
        assert seam.parse(tool, text) is None
    for _ in range(300):
        noise = "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(1, 200)))
        assert not seam.parse(tool, noise)


def test_ps():
    processes = seam.parse("ps", samples.PS_OF_FREEBSD.format(me=9999))
    assert [pid for pid, process in processes.items() if process.leader] == [701]
    assert [processes[pid].tty for pid in (1, 701)] == ["", "pts/0"]
    assert (processes[12].command, processes[12].start, processes[12].started) == ("[intr]", "", 0.0)
    for text in mangled(samples.PS, samples.PS_OF_FREEBSD):
        for pid, process in seam.parse("ps", text.replace("{me}", "9999"), samples.COMM.replace("o", "\x1b")).items():
            assert pid == process.pid and (process.user + process.name + process.command).isprintable()


def test_proc_net():
    lines = iter(samples.PROC_NET.splitlines() * 2)
    read = [(row.uid, row.inode, row.peer) for row in seam.parse("proc_net", lines)]
    assert read == [(1000, 73, None), (0, 74, None)]
    assert len([*lines]) == 4  # listeners come first, and the kernel need not show the rest
    assert [row.inode for row in seam.parse("proc_net", samples.PROC_NET.splitlines(), True)] == [73, 74, 75]
    assert [row.inode for row in seam.parse("proc_net", samples.PROC_NET.replace(" 73 ", " 7٣ ").splitlines())] == [74]
    whole, cut = (samples.PROC_NET.replace("0100007F:1F40", end) for end in (4 * "B80D0120" + ":1F40", "0100007F:1F4"))
    assert seam.parse("proc_net", whole.splitlines())[0].address == "2001:db8:2001:db8:2001:db8:2001:db8"
    assert [row.inode for row in seam.parse("proc_net", cut.splitlines())] == [74]
    for text in mangled(samples.PROC_NET):
        for row in seam.on(PORT, seam.parse("proc_net", text.splitlines())):
            assert (row.port, row.listening, row.pid) == (PORT, True, None)
            assert any(":1F40" in line and str(row.inode) in line for line in text.upper().splitlines())


FOUR = struct.pack("!BBxxHH", 2, 10, PORT, 0) + bytes([127, 0, 0, 1]) + bytes(52) + struct.pack("=II", 1000, 73)
SIX = struct.pack("!BBxxHH", 10, 10, PORT, 0) + bytes(56) + struct.pack("=IIHHB3x", 1000, 74, 5, 11, 1)
SOCK_DIAG = b"".join(struct.pack("=IHHII", 16 + len(part), 18, 2, 0, 0) + part for part in (FOUR, SIX))
SOCK_DIAG += struct.pack("=IHHIII", 20, 3, 2, 0, 0, 0)


def test_sock_diag(monkeypatch):
    rng = random.Random(SEED)
    rows, finished = seam.parse("sock_diag", SOCK_DIAG)
    assert [(row.address, row.inode, row.v6only) for row in rows] == [("127.0.0.1", 73, None), ("::", 74, True)]
    assert seam.parse("sock_diag", SOCK_DIAG[:-20]) == (rows, False)  # more is to come
    another_family = SOCK_DIAG[:16] + b"\1" + SOCK_DIAG[17:]
    assert finished is True and seam.parse("sock_diag", another_family) == (rows[1:], True)
    # NLMSG_ERROR; the kernel's module for TCP cannot be loaded
    for garbage in (struct.pack("=IH90x", 96, 2), SOCK_DIAG[:-4] + struct.pack("=i", -1)):
        with pytest.raises(ValueError, match="sock_diag"):
            seam.parse("sock_diag", garbage)
    monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    assert seam.ask("sock_diag", 80) is None
    for _ in range(ROUNDS):
        data = bytearray(SOCK_DIAG)
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with contextlib.suppress(ValueError):  # and with no other error
            rows, _ = seam.parse("sock_diag", bytes(data[: rng.randrange(1, 2 * len(data))]))
            assert all(row.pid is None for row in rows)


def test_a_v6only_attribute_that_is_cut_or_endless():
    for attributes in (b"", b"\x05\0\x0b\0", b"\0\0\x01\0\x01", b"\x01\0\x07\0\x09" * 5, b"\xff\xff\x0c\0\x09"):
        assert seam.parse("v6only", attributes) is None
    assert seam.parse("v6only", b"\x05\0\x08\0\0\0\0\0\x05\0\x0b\0\x01\0\0\0") is True


def test_a_command_line_names_no_port_that_it_does_not_contain(tmp_path, monkeypatch):
    """A port stands in its words, in a variable, or is the default of the server that it starts; words of several."""
    monkeypatch.chdir(tmp_path)
    rng, told = random.Random(SEED), 0
    known = [shlex.split(command) for every in ENDPOINTS.values() for command in every]
    for _ in range(5000):
        words = rng.choice(known) + rng.choice(known)
        words = rng.sample(words, rng.randrange(len(words))) if rng.random() < 0.3 else words[rng.randrange(3) :]
        variables = dict(word.split("=", 1) for word in words if re.match("[A-Z_]+=", word))
        named = {*map(int, re.findall("[0-9]+", " ".join(words)))}
        named |= {server.port for key, server in SERVERS.items() if any(key.split()[0] in word for word in words)}
        for environ in ({}, variables):
            for endpoint in server_endpoints(words, environ):
                assert endpoint.port in named and 1 <= endpoint.port <= 65535, (SEED, words, environ)
                told += 1
        found = find_server(words)
        assert found is None or found[0] in SERVERS and found[1] < len(words), (SEED, words)
    assert told > 500
