"""Is the port free? The probe answers what a server would be answered."""

from __future__ import annotations

import errno
import os
import random
import socket

import pytest

from port_manager import ensure_port_available

from . import seam
from .conftest import ROOT_USER, as_nobody, eventually

TEST_NET = "192.0.2.1"  # set aside for documentation: no machine has it


def test_free_port_is_available(port, said):
    assert ensure_port_available(port) is True
    assert ensure_port_available(port=port, host="127.0.0.1") is True
    assert said() == f"✅ Port {port} is available\n✅ Port {port} is available"


@pytest.mark.parametrize(
    ("words", "error", "what"),
    [
        *(([port], ValueError, "1 to 65535") for port in (0, -1, 65536, 10**9)),
        *(([port], TypeError, "1 to 65535") for port in ("8000", 80.5, None, True, b"80", [80])),
        ([8000, 127], TypeError, "host"),
    ],
)
def test_what_is_no_port_or_host(words, error, what):
    with pytest.raises(error, match=what):
        ensure_port_available(*words)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "127.0.0.1", "localhost", "::1", "[::1]", "::"])
def test_every_way_to_write_this_machine(port, host):
    assert ensure_port_available(port, host) is True


@pytest.mark.parametrize(
    ("held", "asked", "in_the_way"),
    [
        *(("127.0.0.1", asked, True) for asked in ("0.0.0.0", "127.0.0.1", "localhost", "::")),
        ("::1", "127.0.0.1", False),
        ("::1", "localhost", True),  # which means both families
    ],
)
def test_in_use(port, held, asked, in_the_way, hold, monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "production")
    hold((held, port))
    assert seam.probe(port, asked) == (f"port {port} is already in use" if in_the_way else None)
    assert ensure_port_available(port, asked) is not in_the_way


@pytest.mark.parametrize("off", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_localhost_where_ipv6_is_off(port, off, hold, monkeypatch):
    def without_ipv6(family, address):
        return OSError(off, "off") if family == socket.AF_INET6 else seam.bind_error(family, address)

    seam.stand_in(monkeypatch, "bind", without_ipv6)
    assert seam.probe(port, "localhost") is None
    assert "::1" in seam.probe(port, "::1")
    hold(port)
    assert seam.probe(port, "localhost") == f"port {port} is already in use"


def test_localhost_where_no_family_is_on(port, monkeypatch):
    seam.stand_in(monkeypatch, "bind", lambda *_: OSError(errno.EADDRNOTAVAIL, "off"))
    assert seam.probe(port, "localhost") == "::1 is not an address of this machine"


def test_the_troubles_have_messages_of_their_own(port, said, monkeypatch):
    assert ensure_port_available(port, TEST_NET) is False
    assert ensure_port_available(port, "no.such.host.invalid") is False
    assert ensure_port_available(port, "a" * 80) is False  # longer than a label of a name may be
    assert ensure_port_available(port, "nul\0byte") is False
    seam.stand_in(monkeypatch, "bind", lambda *_: PermissionError(errno.EACCES, "Permission denied"))
    assert ensure_port_available(80) is False
    seam.stand_in(monkeypatch, "bind", lambda *_: OSError(errno.EAFNOSUPPORT, "not supported"))
    assert ensure_port_available(port, "::1") is False
    seam.stand_in(monkeypatch, "bind", lambda *_: OSError(errno.ENOBUFS, "No buffer space"))
    assert ensure_port_available(port) is False
    assert said().splitlines() == [
        f"❌ {TEST_NET} is not an address of this machine",
        "❌ Host name 'no.such.host.invalid' is unknown",
        f"❌ Host name '{'a' * 80}' is unknown",
        "❌ Host name 'nul?byte' is unknown",
        "❌ No permission to bind port 80: ports below 1024 need root; choose a higher one",
        "❌ ::1 cannot be used: its address family is switched off on this machine",
        f"❌ 0.0.0.0 port {port} cannot be bound: No buffer space",
    ]


@pytest.mark.skipif(not ROOT_USER, reason="only root may become somebody else")
def test_no_permission_for_real():
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as limit:
        if int(limit.read()) < 82:
            pytest.skip("this system lets everybody bind low ports")
    sentence = as_nobody(lambda: seam.probe(81, "127.0.0.1"))
    assert sentence[:29] == "no permission to bind port 81"


def test_time_wait_counts_as_free(port):
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the server's side closes first, and stays in TIME_WAIT
        client.close()
    with socket.socket() as naive:
        assert eventually(lambda: naive.connect_ex(("127.0.0.1", port)) != 0)
        with socket.socket() as strict, pytest.raises(OSError):
            strict.bind(("127.0.0.1", port))  # this is what a probe without SO_REUSEADDR would say
    assert ensure_port_available(port, "127.0.0.1") is True


def test_the_tests_take_no_port_that_somebody_holds(ports, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        held = listener.getsockname()[1]
        drawn = iter([held])
        monkeypatch.setattr(random, "randrange", lambda *_: next(drawn, None) or random.randint(11000, 31999))
        assert ports() != held


def test_the_probe_leaves_nothing_behind(port):
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(50):
        assert ensure_port_available(port)
    after = os.listdir("/proc/self/fd") if before else []
    assert len(after) == len(before)
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", port))  # without SO_REUSEADDR: nothing lingers on the port


def test_a_host_name_stands_for_all_its_addresses(port, hold, monkeypatch):
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (5, 6, 6)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    assert seam.probe(port, "my-laptop") is None
    hold(("127.0.0.6", port))
    assert seam.probe(port, "my-laptop") == f"port {port} is already in use"


def test_macos_probes_what_the_wildcard_shadows(port, hold, monkeypatch):
    """There SO_REUSEADDR lets a wildcard be bound beside 127.0.0.1, and the other way round."""
    seam.on_system(monkeypatch, "darwin", "me")
    asked = []
    seam.stand_in(monkeypatch, "bind", lambda family, address: asked.append(address[0]))
    for host in ("0.0.0.0", "127.0.0.1", "127.0.0.2", "localhost", "::"):
        assert seam.probe(port, host) is None
    assert asked == [
        *("0.0.0.0", "127.0.0.1"),
        *("127.0.0.1", "0.0.0.0"),
        "127.0.0.2",
        *("127.0.0.1", "0.0.0.0", "::1", "::"),
        *("::", "::1"),
    ]


def test_windows_is_asked_for_the_port_exclusively(port, monkeypatch):
    options = []

    class Recorder(socket.socket):
        def setsockopt(self, level, option, value):
            options.append((level, option, value))

    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    monkeypatch.setattr(socket, "socket", Recorder)
    assert seam.probe(port, "127.0.0.1") is None
    assert options == [(socket.SOL_SOCKET, -5, 1)]


def test_a_port_that_shares_digits_is_another(ports, hold):
    port = ports(1100, 3200)
    ranges = (port * 10, port * 10 + 10), (20000 + port, 20001 + port)
    neighbours = [hold(("127.0.0.1", ports(*numbers))) for numbers in ranges]
    assert ensure_port_available(port)
    mine = hold(port)
    assert ensure_port_available(port)
    assert [held.alive() != [] for held in (*neighbours, mine)] == [True, True, False]


def test_a_name_that_is_forgotten_meanwhile(port, hold, monkeypatch, said):
    """The name server answered for the bind probe, and not for the look: an answer, not an exception."""
    held = hold(port)
    answers = iter([socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)])

    def resolved(*_, **__):
        for answer in answers:
            return answer
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    assert ensure_port_available(port, "flaky") is False and held.alive() == [held.pid]
    assert "Host name 'flaky' is unknown" in said()
