"""What holds for every input, tried with random ones: a failure shows the seed, and TESTS_SEED=NUMBER tries others."""

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

from . import seam
from .conftest import LINUX, TELLS_BOUND, can_bind
from .samples import NETSTAT_BSD

SEED = int(os.environ.get("SEED", "20261125"))
on_linux = pytest.mark.skipif(not LINUX, reason="real sockets on Linux")

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


def test_netstat_of_macos_tells_only_of_ports_that_it_lists():
    rng = random.Random(SEED)
    for _ in range(3000):
        letters = list(NETSTAT_BSD)
        for _ in range(rng.randrange(1, 9)):
            letters[rng.randrange(len(letters))] = rng.choice([*" .*:46\n\0²", "LISTEN", "", "tcp6", "*.8004"])
        text = "".join(letters)
        for port, v6only in seam.parse("netstat of macOS", text).items():
            kinds = {line.split()[0] for line in text.splitlines() if f"*.{port}" in line and "LISTEN" in line}
            assert {"tcp6" if v6only else "tcp46"} <= kinds, (SEED, text)


@pytest.mark.parametrize(("v6", "size"), [(False, 24), (True, 56)])
def test_the_tables_of_windows_tell_only_of_pids_that_stand_in_them(v6, size):
    rng = random.Random(SEED)
    for _ in range(2000):
        rows = [bytes(rng.randrange(256) for _ in range(size)) for _ in range(rng.randrange(4))]
        data = struct.pack("=I", len(rows)) + b"".join(rows) + bytes(rng.randrange(size))
        found = seam.parse("table of listeners", data, v6)
        pids = [int.from_bytes(row[-4:], sys.byteorder) for row in rows]
        assert [row.pid or 0 for row in found] == pids and all(0 <= row.port <= 65535 for row in found), (SEED, data)


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
