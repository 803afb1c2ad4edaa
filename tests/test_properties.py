"""What holds for every input, tried with random ones: a failure shows the seed, and TESTS_SEED=NUMBER tries others."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shlex
import socket
import struct
import sys

import pytest

from port_manager import SERVERS, find_listeners, find_server, server_endpoints

from . import samples, seam
from .conftest import LINUX, TELLS_BOUND, can_bind

SEED = int(os.environ.get("SEED", "20261125"))
ROUNDS = 3000
PORT = 8000
on_linux = pytest.mark.skipif(not LINUX, reason="real sockets on Linux")


# Two sockets, against the kernel's own word


HOSTS = ("0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1", "::ffff:127.0.0.1")
ADDRESSES = [*((host, None) for host in HOSTS if host != "::"), ("::", False), ("::", True)]  # and whether v6-only
WAYS = [*itertools.product((True, False) if TELLS_BOUND else (True,), (True, False))]  # listening, with SO_REUSEADDR


@contextlib.contextmanager
def bound(port, host, v6only=None, listening=False, reuse=True):
    """A socket that is bound as the kernel lets it be; OSError where it does not."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        if v6only is not None:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        made.bind((host, port))
        if listening:
            made.listen()
        yield


@on_linux
@pytest.mark.parametrize(("listening", "reuse"), WAYS)
@pytest.mark.parametrize(("address", "v6only"), ADDRESSES)
def test_two_sockets_exclude_each_other_as_the_kernel_says(port, address, v6only, listening, reuse):
    with bound(port, address, v6only, listening, reuse):
        for wanted in HOSTS:
            kernel = not can_bind(port, wanted)
            found = [holder.pid for holder in find_listeners(port, wanted)]
            assert found == [os.getpid()] * kernel, (wanted, kernel)
            if listening or not reuse:  # with it, sockets share an address until one of them listens
                assert seam.conflict(address, wanted, v6only) is kernel, wanted


@on_linux
def test_among_several_sockets_a_holder_is_found_where_the_kernel_refuses(ports):
    """And nobody where it does not, unless one only has bound the port: that one may be named although it shares it."""
    rng, port = random.Random(SEED), ports()
    for _ in range(100):
        made = [(*rng.choice(ADDRESSES), *rng.choice(WAYS)) for _ in range(rng.randrange(2, 5))]
        with contextlib.ExitStack() as stack:
            held = []
            for each in made:
                with contextlib.suppress(OSError):
                    stack.enter_context(bound(port, *each))
                    held.append(each)
            shared = any(not listening and reuse for *_, listening, reuse in held)
            for wanted in rng.sample(HOSTS, 2):  # each look walks through every process of the machine
                found, kernel = bool(find_listeners(port, wanted)), not can_bind(port, wanted)
                assert found == kernel or (found and shared), (SEED, held, wanted)


# Listings: no exception, and no PID or inode out of thin air


def told(pid, address, v6only=None, port=PORT, **more):
    return seam.listener(pid, port, address, v6only)._replace(**more)


LISTINGS = [  # a tool, what it prints, and what is read there
    ("ss", samples.SS, [
        told(None, "127.0.0.1", uid=1000, inode=73), told(None, "::1", True, inode=74),
        told(None, "::", False, inode=75), told(None, "127.0.0.1", None, 18000, inode=76),
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


@pytest.mark.parametrize("tool", TOOLS)
def test_a_mangled_listing_names_nobody_else(tool):
    rng, found = random.Random(SEED), 0
    for _ in range(ROUNDS):
        text = mangled(rng.choice(TOOLS[tool]), rng)
        for row in seam.on(PORT, seam.parse(tool, text) or []):
            assert row.port == PORT and (row.pid is None or row.pid >= 2) and justified(tool, row, text), (row, text)
            found += bool(row.pid or row.inode)
    assert found > ROUNDS / 6  # the harm is not such that nothing at all is read


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
    others = [samples.PROC_NET, *(text for other, text, _ in LISTINGS if other != "lsof")]
    for text in others if tool == "lsof" else ():
        assert not seam.parse(tool, text)


def test_netstat_of_macos():
    rng, listing = random.Random(SEED), f"{samples.NETSTAT_BSD}tcp46 0 0 *.٨٠٠٥ *.* LISTEN"
    assert seam.parse("netstat of macOS", listing) == {8000: False, 8001: True}
    for _ in range(ROUNDS):
        text = mangled(samples.NETSTAT_BSD, rng)
        for port, v6only in seam.parse("netstat of macOS", text).items():
            lines = [line for line in text.splitlines() if re.search(rf"\*\.0*{port}\s.*\sLISTEN", line)]
            kinds = {line.split()[0] for line in lines}
            assert {"tcp6" if v6only else "tcp46"} <= kinds, (SEED, text)


def test_ps():
    rng = random.Random(SEED)
    for turn in range(ROUNDS):
        listing = (samples.PS, samples.PS_OF_FREEBSD)[turn % 2].replace("{me}", "9999")
        for pid, process in seam.parse("ps", mangled(listing, rng)).items():
            assert pid == process.pid >= 0
            assert (process.name + process.command).isprintable()


def test_proc_net():
    rng, lines = random.Random(SEED), iter(samples.PROC_NET.splitlines() * 2)
    assert [(row.uid, row.inode) for row in seam.parse("proc_net", lines)] == [(1000, 73), (0, 74)]
    assert len([*lines]) == 4  # listeners come first, and the kernel need not show the rest
    assert [row.inode for row in seam.parse("proc_net", samples.PROC_NET.splitlines(), True)] == [73, 74, 75]
    assert [row.inode for row in seam.parse("proc_net", samples.PROC_NET.replace(" 73 ", " 7٣ ").splitlines())] == [74]
    for _ in range(ROUNDS):
        text = mangled(samples.PROC_NET, rng)
        for row in seam.on(PORT, seam.parse("proc_net", text.splitlines())):
            assert (row.port, row.listening, row.pid) == (PORT, True, None)
            assert any(":1F40" in line and str(row.inode) in line for line in text.upper().splitlines())


def sock_diag(port: int) -> bytes:
    body = struct.pack("!BBxxHH", 2, 10, port, 0) + bytes([127, 0, 0, 1]) + bytes(52) + struct.pack("=II", 1000, 73)
    body6 = struct.pack("!BBxxHH", 10, 10, port, 0) + bytes(56) + struct.pack("=IIHHB3x", 1000, 74, 5, 11, 1)
    messages = [struct.pack("=IHHII", 16 + len(part), 18, 2, 0, 0) + part for part in (body, body6)]
    return b"".join(messages) + struct.pack("=IHHIII", 20, 3, 2, 0, 0, 0)


def test_sock_diag(monkeypatch):
    rng = random.Random(SEED)
    rows, finished = seam.parse("sock_diag", sock_diag(PORT))
    assert finished is True
    # NLMSG_ERROR; the kernel's module for TCP cannot be loaded
    for garbage in (struct.pack("=IH90x", 96, 2), sock_diag(PORT)[:-4] + struct.pack("=i", -2)):
        with pytest.raises(ValueError, match="sock_diag"):
            seam.parse("sock_diag", garbage)
    monkeypatch.delattr(socket, "AF_NETLINK", raising=False)
    assert seam.ask("sock_diag", 80) is None
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


@pytest.mark.parametrize(("v6", "size"), [(False, 24), (True, 56)])
def test_the_tables_of_windows_tell_only_of_pids_that_stand_in_them(v6, size):
    rng = random.Random(SEED)
    for _ in range(2000):
        rows = [bytes(rng.randrange(256) for _ in range(size)) for _ in range(rng.randrange(4))]
        data = struct.pack("=I", len(rows)) + b"".join(rows) + bytes(rng.randrange(size))
        found = seam.parse("table of listeners", data, v6)
        pids = [int.from_bytes(row[-4:], sys.byteorder) for row in rows]
        assert [row.pid or 0 for row in found] == pids and all(0 <= row.port <= 65535 for row in found), (SEED, data)


# Command lines


LAUNCHERS = ["nohup", "timeout 60", "env -u X", "env PORT=7001", "nice -n 5", "sudo", "coverage run", "sh -c",
             "bash -lc", "python -m", "npm run", "cd web &&", "docker run", ""]  # fmt: skip
WORDS = """main:app shop.wsgi manage.py server.js runserver dev --port -p -b --bind --host -h -S --uds --reload
--workers 4 0.0.0.0 127.0.0.1:7002 [::1]:7003 :7004 7005 --port=7006 -p7007 $PORT ${PORT:-7008} 99999 07009 ² unix:/x
= : - -- ' " ; &&"""
VARIABLES = ["PORT", "HOST", "UVICORN_PORT", "FLASK_RUN_PORT", "GUNICORN_CMD_ARGS", "LITESTAR_PORT", "GRANIAN_PORT"]
VALUES = ["", "7010", "0.0.0.0", "http", "-1", "7011 7012", "--bind=:7013", "0", "$PORT", "'"]


def a_command(rng):
    """Some words, with or without a server that is known, and some variables."""
    words = [rng.choice(LAUNCHERS), rng.choice([*SERVERS, "psql", "celery"])]
    words += [rng.choice(WORDS.split()) for _ in range(rng.randrange(7))]
    words = rng.sample(words, len(words)) if rng.random() < 0.3 else words
    if words[0].endswith("c"):  # a script for a shell, as one word
        words = [words[0], shlex.quote(" ".join(words[1:]))]
    try:
        command = shlex.split(" ".join(words))
    except ValueError:
        command = " ".join(words).split()
    return command, {name: rng.choice(VALUES) for name in VARIABLES if rng.random() < 0.3}


def test_a_command_line_names_no_port_that_it_does_not_contain(tmp_path, monkeypatch):
    """A port stands in its words, in a variable, or is the default of the server that it starts."""
    monkeypatch.chdir(tmp_path)
    rng, told = random.Random(SEED), 0
    for _ in range(5000):
        command, environ = a_command(rng)
        text = " ".join([*command, *environ.values()])
        named = set(map(int, re.findall("[0-9]+", text)))
        defaults = {server.port for key, server in SERVERS.items() if key.split()[0] in text}
        for endpoint in server_endpoints(command, environ):
            assert endpoint.port in named | defaults, (SEED, command, environ)
            assert 1 <= endpoint.port <= 65535, (SEED, command, environ)
            told += 1
        found = find_server(command)
        assert found is None or found[0] in SERVERS and found[1] < len(command), (SEED, command)
    assert told > 500
