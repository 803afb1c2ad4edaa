"""Is the port free? The probe answers what a server would be answered."""

import errno
import socket
from itertools import chain, repeat
from unittest.mock import Mock, call

import pytest

from port_manager import CannotTell, PortManager, ensure_port_available

from . import seam
from .conftest import can_bind

EVERYWHERE = ("", "0.0.0.0", "127.0.0.1", "localhost", "::1", "[::1]", "::")  # ways to write this machine


def test_free_port_is_available(port, said):
    assert [ensure_port_available(port, host) for host in EVERYWHERE] == [True] * 7
    assert ensure_port_available(port=port) is True
    assert said().splitlines() == [f"✅ Port {port} is available"] * 8


@pytest.mark.parametrize(("held", "asked", "in_the_way"), [
    *(("127.0.0.1", asked, True) for asked in ("0.0.0.0", "", "127.0.0.1", "[127.0.0.1]", "localhost", "::")),
    *(("::1", asked, asked not in ("", "0.0.0.0", "127.0.0.1")) for asked in EVERYWHERE),
])  # fmt: skip
def test_in_use(port, held, asked, in_the_way, hold, monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "production")
    hold((held, port))
    assert seam.probe(port, asked) == (f"port {port} is already in use" if in_the_way else None)
    assert ensure_port_available(port, asked) is not in_the_way


@pytest.mark.parametrize("off", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT])
def test_localhost_where_a_family_is_off(port, off, hold, monkeypatch):
    def without_ipv6(family, address):
        return OSError(off, "off") if family == socket.AF_INET6 else seam.bind_error(family, address)

    seam.stand_in(monkeypatch, "bind", without_ipv6)
    assert seam.probe(port, "localhost") is None and "::1" in seam.probe(port, "::1")
    hold(port)
    assert seam.probe(port, "localhost") == f"port {port} is already in use"
    seam.stand_in(monkeypatch, "bind", lambda *_: OSError(off, "off"))
    assert seam.probe(port, "localhost").startswith("::1 ")


@pytest.mark.parametrize(("error", "host", "port", "sentence", "held"), [
    ((errno.EADDRNOTAVAIL, "no"), "192.0.2.1", 80, "192.0.2.1 is not an address of this machine", False),
    ((errno.EACCES, "no"), "", 1023, "No permission to bind port 1023: ports below 1024 need root; choose a", False),
    ((errno.EPERM, "no"), "", 1024, "No permission to bind port 1024: a rule of this system forbids it", False),
    ((errno.EAFNOSUPPORT, "no"), "::1", 80, "::1 cannot be used: its address family is switched off on this", False),
    ((errno.EPROTONOSUPPORT, "no"), "::1", 80, "::1 cannot be used: its address family is switched off on this", False),
    ((errno.ENOBUFS, "No space"), "", 80, "0.0.0.0 port 80 cannot be bound: No space", False),
    (("odd",), "::1", 80, "::1 port 80 cannot be bound: odd", False),
    ((errno.EADDRINUSE, "no"), "", 65535, "Port 65535 is already in use", True),
    ((errno.EMFILE, "no"), "", 1, "Port 1 cannot be checked: too many files are open", None),
    ((errno.ENFILE, "no"), "", 80, "Port 80 cannot be checked: too many files are open", None),
])  # fmt: skip
def test_the_troubles_have_messages_of_their_own(monkeypatch, said, error, host, port, sentence, held):
    monkeypatch.setenv("ENVIRONMENT", "production")
    seam.stand_in(monkeypatch, "bind", lambda *_: OSError(*error))
    assert ensure_port_available(port, host) is False
    assert said().startswith(f"⚠️  {sentence}" if held else f"❌ {sentence}"), said()
    if held is None:  # nobody is looked for, and nobody is stopped
        with pytest.raises(CannotTell, match=f"^p{sentence[1:]}$") as caught:
            PortManager(host=host).is_port_in_use(port)
        assert (caught.value.port, caught.value.host) == (port, host)
    else:
        assert PortManager(host=host).is_port_in_use(port) is held


def test_where_a_conflict_cannot_be_told(monkeypatch):
    assert seam.conflict("fe80::1%2", "fe80::1") is seam.conflict("::", "127.0.0.1") is None
    assert seam.conflict("fe80::1%2", "fe80::2") is seam.conflict("::", "127.0.0.1", v6only=True) is False
    monkeypatch.setattr(socket, "socket", Mock(side_effect=OSError(errno.EAFNOSUPPORT, "off")))
    assert seam.conflict("127.0.0.1", "::") is False, "where IPv6 is off, nothing is dual"


def test_time_wait_counts_as_free(port):
    with socket.create_server(("127.0.0.1", port)) as server:
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()  # the server's side closes first, and stays in TIME_WAIT
        client.close()
    assert not can_bind(port, reuse=0)  # what a probe without SO_REUSEADDR would say
    assert ensure_port_available(port, "127.0.0.1") is True


def test_a_host_name_stands_for_all_its_addresses(port, hold, monkeypatch):
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (5, 6, 6)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    assert seam.probe(port, "my-laptop") is None
    addresses.append((*addresses[0][:4], ("192.0.2.1", port)))
    assert seam.probe(port, "my-laptop") == "192.0.2.1 is not an address of this machine"
    hold(("127.0.0.6", port))
    assert seam.probe(port, "my-laptop") == f"port {port} is already in use"


def test_a_name_that_is_forgotten_meanwhile(port, hold, monkeypatch, said):
    """The name server answered for the bind probe, and not for the look: an answer, not an exception."""
    held, known = hold(port), socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)
    answers = Mock(side_effect=chain([known], repeat(socket.gaierror(-2, "Name or service not known"))))
    monkeypatch.setattr(socket, "getaddrinfo", answers)
    assert ensure_port_available(port, "flaky") is False and held.alive() == [held.pid]
    assert answers.call_count > 1 and "Host name 'flaky' is unknown" in said()


def test_windows_is_asked_for_the_port_exclusively(port, monkeypatch):
    """And does not listen, not even for a moment."""
    made, exclusively = Mock(), call.setsockopt(socket.SOL_SOCKET, -5, 1)
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    monkeypatch.setattr(socket, "socket", made)
    assert seam.probe(port, "127.0.0.1") is None
    assert made.return_value.method_calls == [exclusively, call.bind(("127.0.0.1", port)), call.close()]
