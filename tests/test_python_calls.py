"""The calls from Python: waiting, picking, keeping a port, and what their errors carry."""

import contextlib  # noqa: I001
import errno
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import port_manager
from port_manager import CannotTell, Endpoint, PortError, PortManager, PortResult, PortTimeout, bind_port
from port_manager import ensure_port_available, find_free_port, find_listeners, preview_port
from port_manager import wait_until_free, wait_until_listening

from . import seam
from .apart import boxed
from .conftest import LINUX, PATIENCE, PORT_MANAGER, ROOT, can_bind, ensured, eventually, project

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")
IN_USE, DENIED, FULL = OSError(errno.EADDRINUSE, "no"), OSError(errno.EACCES, "no"), OSError(errno.EMFILE, "no")


def error(call, *words, **named):
    """What a call raises: its class, its reason, the port and the host."""
    with pytest.raises(PortError) as caught:
        call(*words, **named)
    return type(caught.value), caught.value.reason, caught.value.port, caught.value.host


def test_errors_carry_what_a_caller_needs(port, hold, monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "production")
    held = hold(port)
    with pytest.raises(PortError) as caught:
        bind_port(port, "127.0.0.1")
    error = caught.value
    assert (error.port, error.host, [holder.pid for holder in error.holders]) == (port, "127.0.0.1", [held.pid])
    assert error.reason == str(error) and "outside development nothing is stopped" in error.reason
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.reason, again.port, again.host) == (PortError, error.reason, port, "127.0.0.1")
    assert issubclass(PortTimeout, TimeoutError) and CannotTell.__base__ is PortError and PortError.__base__ is OSError
    bare = PortError("it is held")
    assert (str(bare), bare.reason, bare.port, bare.host, bare.holders) == ("it is held", "it is held", 0, "", ())


@pytest.mark.parametrize("call", [
    ensure_port_available, preview_port, find_listeners, find_free_port, bind_port, PortManager, wait_until_free,
    wait_until_listening,
], ids=lambda call: call.__name__)  # fmt: skip
def test_what_is_no_port_or_host(call):
    for ask in (call, PortManager().is_port_in_use, PortManager().get_process_using_port):
        for port in (-1, 65536, 10**9, 0, "8000", 80.5, True, b"80", [80], None):
            if (ask, port) not in ((bind_port, 0), (find_listeners, None)):
                kind = ValueError if type(port) is int else TypeError
                with pytest.raises(kind, match="a port is an integer from 1 to 65535, not "):
                    ask(port)
    with pytest.raises(TypeError, match="a host is a text such as '127.0.0.1', not 127"):
        call(8000, 127)


@pytest.mark.parametrize("grace", [float("inf"), float("nan"), -1, 1e6, "5", None])
def test_a_grace_period_or_policy_that_is_none_stops_nobody(port, hold, grace):
    held = hold(port)
    for call in (ensure_port_available, preview_port, bind_port, PortManager):
        with pytest.raises(ValueError, match="a grace period is a number of seconds, not "):
            call(port, grace=grace)
        with pytest.raises(ValueError, match="a policy is one of kill, own, ask, refuse, not 'kil'"):
            call(port, policy="kil")
    assert held.alive() == [held.pid]


@pytest.mark.parametrize(("host", "shown"), [
    ("192.0.2.1", "192.0.2.1 is not an address of this machine"), ("x\0y", "host name 'x?y' is unknown"),
    *((host, f"host name '{host}' is unknown") for host in ("no-such-host.invalid", "a" * 70 + ".b")),
], ids=["elsewhere", "nul", "unknown", "too-long"])  # fmt: skip
def test_a_host_that_cannot_be_had_is_one_error_everywhere(host, shown, monkeypatch, said):
    asked, resolve = [], socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: asked.append(words) or resolve(*words, **more))
    calls = (wait_until_free, wait_until_listening, bind_port, find_free_port, find_listeners)
    for call in calls[: 4 if host == "192.0.2.1" else 5]:
        asked.clear()
        assert error(call, 60000, host) == (PortError, shown, 60000, host), call
        assert len(asked) == (host != "192.0.2.1"), call
    assert ensure_port_available(60000, host) is False and said().splitlines()[-1].lower() == f"❌ {shown}"


def test_bind_port_frees_and_keeps(port, hold):
    held, six = hold(port), hold(("::1", port))
    with bind_port(port, "127.0.0.1") as listener:
        assert held.alive() == []
        assert listener.getsockname() == ("127.0.0.1", port) and not listener.get_inheritable()
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()  # it is queued for the server to come
        assert not can_bind(port, reuse=0) and not can_bind(port, reuse=1)  # nobody takes it, whatever he sets
    with bind_port(port, "localhost") as listener:
        assert listener.getsockname() == ("127.0.0.1", port)
    assert six.alive() == [six.pid], "it frees no more than it binds"
    with bind_port(port, "::1") as listener:
        assert listener.family == socket.AF_INET6 and six.alive() == []


def test_bind_port_when_somebody_was_quicker(port, monkeypatch, said):
    with socket.create_server(("127.0.0.1", port)):
        freed = PortResult(port, "127.0.0.1", True, [], [], [], None, None, {})
        seam.stand_in(monkeypatch, "freeing", lambda *_: freed)
        reason = f"port {port} is already in use"
        assert error(bind_port, port, "127.0.0.1") == (PortError, reason, port, "127.0.0.1")
    assert said() == f"❌ Port {port} is already in use"


def test_any_free_port_is_bound_and_lives_on_in_a_child(said):
    with bind_port(0, "127.0.0.1") as first, bind_port(0, inheritable=True) as second:
        ports = [listener.getsockname()[1] for listener in (first, second)]
        assert len({*ports, 0}) == 3 and wait_until_listening(ports[0], timeout=0, pid=os.getpid()) is True
        child = "import socket, sys; print(socket.socket(fileno=int(sys.argv[1])).getsockname()[1])"
        words = [sys.executable, "-c", child, str(second.fileno())]
        assert int(subprocess.check_output(words, close_fds=False)) == ports[1] and said() == ""


@pytest.mark.parametrize(("start", "errors", "found"), [
    (80, dict.fromkeys(range(1024), DENIED), 1024), (65530, dict.fromkeys(range(65530, 65535), IN_USE), 65535),
    (1024, {1024: DENIED}, "no permission to bind port 1024: a rule of this system forbids it"),
    (65535, {65535: IN_USE}, "port 65535 is already in use"),
    (8000, {8000: FULL}, "port 8000 cannot be checked: too many files are open"),
])  # fmt: skip
def test_where_the_search_for_a_free_port_ends(monkeypatch, start, errors, found):
    seam.stand_in(monkeypatch, "bind", lambda family, address: errors.get(address[1]))
    if isinstance(found, int):
        assert find_free_port(start) == found
    else:
        assert error(find_free_port, start) == (PortError, found, start, "0.0.0.0")


def test_wait_until_free_returns_the_moment_the_holder_exits(port, hold, monkeypatch):
    """An event, not a step of sleep, which would end after 0.2 or 0.4 s; the best of several: others run beside it."""
    with contextlib.suppress(AttributeError, OSError):  # where there is no pidfd, it looks again and again
        os.close(os.pidfd_open(os.getpid()))
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("a step of sleep"))

    def lag():
        held = hold(port, tells_time=True)
        threading.Timer(0.25, held.process.terminate).start()
        assert wait_until_free(port) is True
        return time.monotonic_ns() - int(held.process.stdout.read())

    assert any(lag() < 1e8 for _ in range(5))


def test_wait_until_free_stops_nobody_and_tells_who_held_it(port, hold, monkeypatch):
    held = hold(port)
    reason = f"port {port} is already in use; gave up after"
    with pytest.raises(PortTimeout, match=f"^{reason} 0 s$") as caught:  # without time it looks once
        wait_until_free(port, timeout=0)
    assert [holder.pid for holder in caught.value.holders] == [held.pid] == held.alive()
    for rows in (None, [seam.listener(None, port, "127.0.0.1", None)]):  # nobody can tell; not by whom
        seam.only(monkeypatch, lambda port, rows=rows: rows)
        told = error(wait_until_free, port, "127.0.0.1", timeout=0.1)
        assert told == (PortTimeout, f"{reason} 0.1 s", port, "127.0.0.1")


def test_wait_until_free_just_in_time(port, monkeypatch):
    """The last probe is made after the time is over: whoever went in between has gone in time."""
    answers = iter([IN_USE])
    seam.stand_in(monkeypatch, "bind", lambda *_: next(answers, None))
    assert wait_until_free(port, timeout=0.01) is True


@pytest.mark.parametrize("told", [True, False], ids=["sockets", "probe"])  # by the probe where nothing tells of sockets
def test_wait_until_listening(port, hold, monkeypatch, told):
    def vain(*host, **named):
        nobody = PortTimeout, f"nobody listens on port {port}; gave up after 0.1 s", port, (*host, "127.0.0.1")[0]
        return error(wait_until_listening, port, *host, timeout=0.1, **named) == nobody

    if not told:
        seam.only(monkeypatch, lambda port: None)
    assert vain()
    bound = hold(port, listen=False, reuse=False)
    assert not told or vain()
    bound.end()
    timer = threading.Timer(0.1, lambda: hold(port))
    timer.start()
    assert wait_until_listening(port, timeout=PATIENCE) is wait_until_listening(port, None, timeout=0) is True
    timer.join()
    assert vain("127.0.0.2") and vain("::1") and (told or vain(pid=os.getpid()))
    seam.stand_in(monkeypatch, "bind", lambda *_: FULL)
    assert not told or vain("127.0.0.2"), "it goes on where nothing can be probed for the moment"
    seam.only(monkeypatch, lambda port: [seam.listener(None, port, "127.0.0.1", None)._replace(listening=False)])
    assert vain()


def test_a_wait_for_a_process_of_ours_or_one_below_it(ports, hold):
    port, other = ports(), ports()
    held, _ = hold(port, children=1, silent_parent=True), hold(("127.0.0.2", port))
    for pid, host in ((held.pid, "127.0.0.1"), (held.pid, None), (held.children[0], None)):
        assert wait_until_listening(port, host, timeout=0, pid=pid) is True
    nobody = f"nobody listens on port {other}; gave up after 0 s"
    assert error(wait_until_listening, other, None, timeout=0, pid=held.pid) == (PortTimeout, nobody, other, "")


def test_a_wait_for_a_process_ends_when_it_has_ended_or_another_listens(ports, hold, start):
    port, other = ports(), ports()
    ended, lives, held = start(sys.executable, "-c", "import time; time.sleep(0.3)"), start("sleep", "60"), hold(other)
    gone = f"process {ended.pid} has ended, and does not listen on port {port}"
    theirs = f"port {other} is held by process {find_listeners(other)[0]}, and not by process {lives.pid}"
    for host in ("127.0.0.1", None):  # first it is a zombie, until its parent waits for it
        for at, server, reason in ((port, ended, gone), (other, lives, theirs)):
            told = error(wait_until_listening, at, host, timeout=PATIENCE, pid=server.pid)
            assert told == (PortError, reason, at, host or "")
        ended.wait()
    assert held.alive() == [held.pid]


def test_a_port_manager(port, hold, monkeypatch, said):
    manager = PortManager(port, "127.0.0.1", grace=0)
    assert (manager.port, manager.host, manager.is_port_in_use(port)) == (port, "127.0.0.1", False)
    held = hold(port, ignore_term=True)
    assert PortManager(port, policy="refuse").check_and_clean_port() is False
    assert PortManager(port, "127.0.0.2").check_and_clean_port() is True
    assert manager.is_port_in_use(port) is True
    assert manager.check_and_clean_port() is True and held.alive() == []
    assert PortManager().port == 8000 and PortManager().host == "0.0.0.0"
    held, answers, asking = hold(port), iter([False, True]), PortManager(port, policy="ask")
    seam.stand_in(monkeypatch, "terminal", lambda: True)
    seam.stand_in(monkeypatch, "question", lambda _: next(answers))
    assert (asking.kill_process(held.pid), held.alive()) == (False, [held.pid])
    assert "the answer was no: nobody was stopped" in said().lower()
    assert (asking.kill_process(held.pid), held.alive()) == (True, [])
    seam.only(monkeypatch, lambda port: [seam.listener(None, port, "127.0.0.1", None)])
    hidden = f"port {port} is held by a process that may not be seen"
    with pytest.raises(CannotTell, match=f"^{hidden}$") as told:
        manager.get_process_using_port(port)
    assert (told.value.port, told.value.host, [each.pid for each in told.value.holders]) == (port, "127.0.0.1", [None])


def test_a_preview_tells_what_would_be_done_and_does_nothing(port, hold, said):
    assert preview_port(port) == PortResult(port, "0.0.0.0", True, [], [], [], None, None, {})
    held, family = hold(port, children=1), find_listeners(port)
    plan = f"stop {held.pid} and its child {held.children[0]}: SIGTERM, then SIGKILL after 2 s"
    told = family, [], [held.pid, *held.children], f"port {port} is already in use", plan, {}
    assert preview_port(port, grace=2) == PortResult(port, "0.0.0.0", False, *told)
    assert (preview_port(port, policy="refuse").would_stop, preview_port(port, policy="refuse").plan) == ([], None)
    assert held.alive() == [held.pid, *held.children] and said() == ""


@boxed
def test_find_listeners_of_any_port_looks_at_every_process(hold):
    held = hold(8000, children=10, strangers=8, orphans=True)
    assert eventually(lambda: held.alive() == held.children)
    assert {holder.pid for holder in find_listeners()} == {*held.children}


def test_threads_may_ask_at_the_same_time(ports, hold):
    held = {port: hold(port) for port in (ports(), ports(), ports(), ports())}
    with ThreadPoolExecutor(12) as pool:
        assert [*pool.map(ensure_port_available, [*held] * 3)] == [True] * 12
    assert not any(holder.alive() for holder in held.values())


def test_public_names_are_listed_documented_and_typed():
    for name in port_manager.__all__:
        public = getattr(port_manager, name)
        assert name == "SERVERS" or (public.__doc__ and public.__module__ == "port_manager"), name
    assert port_manager.__version__.count(".") == 2 and os.path.samefile(port_manager.__file__, PORT_MANAGER)


def test_an_endpoint_takes_what_it_has():
    for words, named in (("::",), {}), (("::", 80, 81), {}), (("::",), {"port": 80, "other": 1}):
        with pytest.raises(TypeError, match="Endpoint takes host, port"):
            Endpoint(*words, **named)
    assert repr(Endpoint("::1", 80)) == "Endpoint(host='::1', port=80)"


@pytest.mark.parametrize(("before", "then", "allowed"), [  # what may be loaded; None: all but the heavy ones
    ("import logging, socket", "import port_manager", {"port_manager", "__future__", "errno"}),
    ("import port_manager", "port_manager.ensure_port_available({port})", set()),
    ("import socket", "import port_manager; port_manager.main(['check', '{port}'])", None),
], ids=["import", "call", "command line"])  # fmt: skip
def test_little_is_loaded(port, before, then, allowed):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {before}; before = set(sys.modules); {then};"
    code = code.replace("{port}", str(port)) + "print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    *said, loaded = done.stdout.split("\n")[:-1]
    heavy = {"argparse", "json", "logging", "difflib", "shutil", "subprocess", "typing", "re"}
    assert not set(loaded.split()) - allowed if allowed is not None else not set(loaded.split()) & heavy
    assert said == ([f"✅ Port {port} is available"] if "check" in then else [])


def test_a_working_directory_that_was_removed(ports, hold, tmp_path):
    port, other, gone, theirs = ports(), ports(), tmp_path / "gone", project(tmp_path / "theirs")
    gone.mkdir()
    plain, foreign = hold(port, cwd=tmp_path), hold(other, cwd=theirs)
    ask = "os.rmdir(os.getcwd()); print(*map(port_manager.ensure_port_available, ({}, {})))"
    done = ensured(gone, port, "import os, port_manager; " + ask.format(port, other))
    assert (done.stdout, plain.alive(), foreign.alive()) == ("True False\n", [], [foreign.pid]), done.stderr
    assert "it belongs to another project" in done.stderr and "Traceback" not in done.stderr


def test_whose_port_is_that_of_a_reloader(port, hold, monkeypatch):
    """It may be a child's of the same parent, where that is seen; a stranger's is not, nor is his beside a child's."""
    reloader, read = hold(port, children=1, silent_parent=True), seam.reader("linux")
    monkeypatch.setattr(os, "getppid", lambda: reloader.pid)
    asked = lambda: ensure_port_available(port, policy="refuse")
    assert asked() is False
    monkeypatch.setenv("RUN_MAIN", "true")
    assert asked() is True
    with monkeypatch.context() as patch:  # it is no failure, either, where nobody can tell
        seam.only(patch, lambda port: None)
        assert asked() is False
    stranger = hold(("127.0.0.2", port))
    assert asked() is False and ensure_port_available(port, "127.0.0.2") is True and stranger.alive() == []
    seam.readings(monkeypatch, "linux", lambda pid: {} if pid == reloader.pid else read(pid))
    assert asked() is False
    shell = hold(("127.0.0.3", port), children=1, silent_parent=True, name="bash")  # the variable was left set there
    monkeypatch.setattr(os, "getppid", lambda: shell.pid)
    assert ensure_port_available(port, "127.0.0.3", policy="refuse") is False
