"""The calls from Python: waiting, picking, keeping a port, and what their errors carry."""

from __future__ import annotations

import errno
import http.client
import http.server
import os
import pickle
import socket
import subprocess
import sys
import threading
import time

import pytest

import port_manager
from port_manager import (
    CannotTell,
    Endpoint,
    Holder,
    PortError,
    PortManager,
    PortTimeout,
    bind_port,
    ensure_port_available,
    find_free_port,
    find_listeners,
    preview_port,
    wait_until_free,
    wait_until_listening,
)

from . import seam
from .conftest import LINUX, PATIENCE, PORT_MANAGER, ROOT, command_line, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")


def test_errors_carry_what_a_caller_needs(port, hold, monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "production")
    held = hold(("127.0.0.1", port))
    with pytest.raises(PortError) as caught:
        bind_port(port, "127.0.0.1")
    error = caught.value
    assert (error.port, error.host, [holder.pid for holder in error.holders]) == (port, "127.0.0.1", [held.pid])
    assert error.reason == str(error) and "outside development nothing is stopped" in error.reason
    assert isinstance(error, OSError) and not isinstance(error, TimeoutError)
    again = pickle.loads(pickle.dumps(error))
    assert (again.reason, again.port, again.host) == (error.reason, port, "127.0.0.1")
    assert issubclass(PortTimeout, TimeoutError) and issubclass(CannotTell, PortError)


def test_bind_port_frees_and_keeps(port, hold):
    held = hold(("127.0.0.1", port))
    with bind_port(port, "127.0.0.1") as listener:
        assert held.alive() == []
        assert listener.getsockname() == ("127.0.0.1", port) and not listener.get_inheritable()
        for option in (0, 1):  # nobody takes it, whatever he sets
            with socket.socket() as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, option)
                with pytest.raises(OSError):
                    thief.bind(("127.0.0.1", port))
    with bind_port(port, "localhost", inheritable=True) as listener:
        assert listener.get_inheritable() and listener.family == socket.AF_INET
    with bind_port(port, "::1") as listener:
        assert listener.family == socket.AF_INET6


def test_bind_port_when_somebody_was_quicker(port, monkeypatch):
    """Between the check and the bind, another took it."""
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", port))
        thief.listen()
        seam.taken_before_the_bind(monkeypatch)
        with pytest.raises(PortError, match="already in use"):
            bind_port(port, "127.0.0.1")


def test_bind_port_with_the_standard_librarys_server(port):
    listener = bind_port(port, "127.0.0.1")
    server = http.server.HTTPServer(listener.getsockname(), http.server.BaseHTTPRequestHandler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        client.request("GET", "/")
        assert client.getresponse().status == 501  # this handler knows no GET; it answers, though
        client.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_inheritable_socket_lives_on_in_a_child(port):
    with bind_port(port, "127.0.0.1", inheritable=True) as listener:
        child = "import socket, sys; print(socket.socket(fileno=int(sys.argv[1])).getsockname()[1])"
        command = [sys.executable, "-c", child, str(listener.fileno())]
        said = subprocess.run(command, close_fds=False, capture_output=True, text=True, check=True).stdout
    assert int(said) == port


def test_find_free_port(ports, hold):
    port = ports()
    assert find_free_port(port) == port
    hold(("127.0.0.1", port))
    assert find_free_port(port, "127.0.0.2") == port
    assert find_free_port(port) > port
    for wrong in (0, 65536):
        with pytest.raises(ValueError):
            find_free_port(wrong)


def test_find_free_port_steps_over_what_may_not_be_bound(monkeypatch):
    def probe(family, address):
        return PermissionError(errno.EACCES, "denied") if address[1] < 1024 else None

    seam.stand_in(monkeypatch, "bind", probe)
    assert find_free_port(80) == 1024


def test_wait_until_free_returns_the_moment_the_holder_exits(port, hold):
    """An event, not a step of sleep; the best of several, as the machine may be busy."""
    done: list[float] = []
    lags = []
    for _ in range(3):
        held = hold(("127.0.0.1", port), exit_after=0.2)
        waiter = threading.Thread(target=lambda: done.append(wait_until_free(port) and time.monotonic()))
        waiter.start()
        held.process.wait()
        gone = time.monotonic()
        waiter.join(PATIENCE)
        lags.append(done[-1] - gone)
    assert min(lags) < 0.1


def test_wait_until_free_stops_nobody_and_tells_who_held_it(port, hold):
    held = hold(("127.0.0.1", port))
    with pytest.raises(PortTimeout, match="gave up after 0.2 s") as caught:
        wait_until_free(port, timeout=0.2)
    assert [holder.pid for holder in caught.value.holders] == [held.pid] and held.alive() == [held.pid]
    with pytest.raises(PortTimeout):  # without time it looks once
        wait_until_free(port, "127.0.0.1", timeout=0)
    assert wait_until_listening(port, timeout=0) is True


def test_wait_until_free_where_nobody_can_be_pinned(port, hold, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    for _ in range(2):
        hold(("127.0.0.1", port), exit_after=0.2)
        assert wait_until_free(port, timeout=PATIENCE) is True
        seam.only(monkeypatch, lambda port: None)


def test_wait_until_free_just_in_time(port, monkeypatch):
    """The last probe is made after the time is over: whoever went in between has gone in time."""
    answers = iter([OSError(errno.EADDRINUSE, "in use")])
    seam.stand_in(monkeypatch, "bind", lambda *_: next(answers, None))
    assert wait_until_free(port, timeout=0.01) is True


def test_wait_until_listening(port, hold):
    with pytest.raises(PortTimeout, match=f"nobody listens on port {port}; gave up after 0.1 s"):
        wait_until_listening(port, timeout=0.1)
    bound = hold(("127.0.0.1", port), listen=False, reuse=False)
    with pytest.raises(PortTimeout):
        wait_until_listening(port, timeout=0.1)
    bound.end()
    timer = threading.Timer(0.1, lambda: hold(("127.0.0.1", port)))
    timer.start()
    assert wait_until_listening(port, timeout=PATIENCE) is True
    timer.join()


def test_waits_check_their_port():
    for call in (wait_until_free, wait_until_listening, preview_port, find_free_port, PortManager, bind_port):
        for number in (-1, 65536, *([] if call is bind_port else [0])):
            with pytest.raises(ValueError, match="1 to 65535"):
                call(number)
        with pytest.raises(TypeError, match="1 to 65535"):
            call("8000")


def test_a_port_manager(port, hold):
    manager = PortManager(port, "127.0.0.1", grace=0.2)
    assert (manager.port, manager.host, manager.is_port_in_use(port)) == (port, "127.0.0.1", False)
    held = hold(("127.0.0.1", port), ignore_term=True)
    assert manager.is_port_in_use(port) is True and manager.get_process_using_port(port) == held.pid
    assert manager.check_and_clean_port() is True
    assert held.alive() == [] and manager.get_process_using_port(port) is None
    assert PortManager().port == 8000 and PortManager().host == "0.0.0.0"
    assert PortManager(host="192.0.2.1").is_port_in_use(port) is False  # no such address is not "in use"
    with pytest.raises(ValueError, match="a policy is one of"):
        PortManager(policy="kil")


def test_an_endpoint_reads_as_servers_print_it():
    assert (str(Endpoint("127.0.0.1", 80)), str(Endpoint("::", 80))) == ("127.0.0.1:80", "[::]:80")
    for words, named in (("::",), {}), (("::", 80, 81), {}), (("::",), {"port": 80, "other": 1}):
        with pytest.raises(TypeError, match="Endpoint takes host, port"):
            Endpoint(*words, **named)


LOADED = [  # (what a program has done, what it does then, the modules that this may load; None: all but the heavy ones)
    ("import logging, socket", "import port_manager", {"port_manager", "__future__", "errno"}),
    ("import port_manager", "port_manager.ensure_port_available({port})", set()),
    ("import socket", "import port_manager; port_manager.main(['check', '{port}'])", None),
]
HEAVY = {"argparse", "json", "logging", "difflib", "shutil", "subprocess", "typing", "re"}


@pytest.mark.parametrize(("before", "then", "allowed"), LOADED, ids=["import", "call", "command line"])
def test_little_is_loaded(port, before, then, allowed):
    """What would make it slower to start: a parser, JSON, logging and the like."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {before}; before = set(sys.modules); {then};"
    code = code.replace("{port}", str(port)) + "print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    *said, loaded = done.stdout.split("\n")[:-1]
    assert not set(loaded.split()) - allowed if allowed is not None else not set(loaded.split()) & HEAVY
    assert said == ([f"✅ Port {port} is available"] if "check" in then else [])


def test_public_names_are_listed_documented_and_typed():
    for name in port_manager.__all__:
        public = getattr(port_manager, name)
        assert name == "SERVERS" or (public.__doc__ and public.__module__ == "port_manager"), name
    assert len(set(port_manager.__all__)) == len(port_manager.__all__)
    assert port_manager.__version__.count(".") == 2
    with open(port_manager.__file__, encoding="utf-8") as file:
        assert file.readline() == "# SPDX-License-Identifier: MIT\n"


def test_threads_may_ask_at_the_same_time(ports, hold):
    wanted = [ports() for _ in range(4)]
    held = [hold(("127.0.0.1", port)) for port in wanted]
    answers: list[bool] = []
    ask = lambda port: answers.append(ensure_port_available(port))
    threads = [threading.Thread(target=ask, args=(port,)) for port in wanted * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 12 and not any(holder.alive() for holder in held)


def test_the_watch_does_not_read_a_dead_holder_for_an_unknown_one(port, hold):
    """A process on its way out has let go of its descriptors while its socket is still in the kernel's table."""
    for _ in range(20):
        held = hold(("127.0.0.1", port), exit_after=0.01)
        assert ensure_port_available(port) is True
        assert eventually(lambda held=held: held.alive() == [])


def test_an_unknown_host_ends_the_search_for_a_free_port(monkeypatch):
    asked = []
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: asked.append(words) or resolve(*words, **more))
    with pytest.raises(PortError, match="host name 'permission.invalid' is unknown") as unknown:
        find_free_port(60000, "permission.invalid")
    assert len(asked) == 1 and (unknown.value.port, unknown.value.host) == (60000, "permission.invalid")


def test_two_hidden_holders_are_no_family():
    hidden = [Holder(None, None, user, "", "", "", None, ()) for user in ("root", "alice")]
    assert seam.families(hidden) == [(holder, []) for holder in hidden]


def test_parents_in_a_circle_come_to_an_end():
    """PIDs are used again, and on Windows a parent may be younger than its child."""
    known = {10: seam.process(10, 20), 20: seam.process(20, 10)}
    assert seam.parents(10, known) == [20]


def test_bind_port_frees_no_more_than_it_binds(port, hold):
    six = hold(("::1", port))
    with bind_port(port, "localhost") as listener:
        assert listener.getsockname() == ("127.0.0.1", port)
    assert six.alive() == [six.pid]


@pytest.mark.parametrize("grace", [float("inf"), float("nan"), -1, 1e9, "5", None])
def test_a_grace_period_that_is_none_stops_nobody(port, hold, grace):
    held = hold(("127.0.0.1", port))
    with pytest.raises(ValueError, match="a grace period is a number of seconds"):
        ensure_port_available(port, grace=grace)
    assert held.alive() == [held.pid]


HOSTS = {
    **dict.fromkeys(["no-such-host.invalid", "a" * 70 + ".b", "x\0y"], "is unknown"),
    "192.0.2.1": "192.0.2.1 is not an address of this machine",
}


@pytest.mark.parametrize("host", HOSTS, ids=["unknown", "too-long", "nul", "elsewhere"])
def test_a_host_that_cannot_be_had_is_one_error_everywhere(host):
    """And a wait for it ends at once."""
    for call in (wait_until_free, wait_until_listening, bind_port, find_free_port, find_listeners):
        if host != "192.0.2.1" or call is not find_listeners:
            with pytest.raises(PortError, match=HOSTS[host]):
                call(8000, host)
    for until in ("free", "listening"):
        done = command_line("wait", "8000", "--host", host.replace("\0", "?"), "--until", until, "--timeout", "9")
        assert done.returncode == 1 and HOSTS[host] in done.stderr


def test_the_command_line_file_is_the_one_that_is_tested():
    assert os.path.samefile(port_manager.__file__, PORT_MANAGER)


# Waiting for this very server


def test_a_wait_for_a_process_of_ours_or_one_below_it(ports, hold):
    port = ports()
    held = hold(("127.0.0.1", port), children=1, silent_parent=True)
    assert wait_until_listening(port, timeout=0, pid=held.pid) is True
    assert wait_until_listening(port, None, timeout=0, pid=held.children[0]) is True
    with pytest.raises(PortTimeout, match="nobody listens"):
        wait_until_listening(ports(), timeout=0.1, pid=held.pid)


def test_a_wait_for_a_process_ends_when_it_has_ended(port, start):
    """At once, with the reason, and not after the time that was given."""
    server = start(sys.executable, "-c", "import time; time.sleep(0.3)")
    reason = f"process {server.pid} has ended, and does not listen on port {port}"
    with pytest.raises(PortError, match=reason) as caught:
        wait_until_listening(port, timeout=PATIENCE, pid=server.pid)  # it is a zombie, until its parent waits for it
    assert not isinstance(caught.value, PortTimeout)
    server.wait()
    with pytest.raises(PortError, match=f"process {server.pid} has ended"):
        wait_until_listening(port, timeout=PATIENCE, pid=server.pid)


def test_a_wait_for_a_process_ends_when_another_listens(port, hold, start):
    other, server = hold(("127.0.0.1", port)), start("sleep", "60")
    reason = f"port {port} is held by process {other.pid} .*, and not by process {server.pid}"
    with pytest.raises(PortError, match=reason):
        wait_until_listening(port, timeout=PATIENCE, pid=server.pid)
    assert other.alive() == [other.pid]


# What the calls answer


def test_any_free_port_is_bound(hold):
    with bind_port(0, "127.0.0.1") as first, bind_port(0, inheritable=True) as second:
        ports = {listener.getsockname()[1] for listener in (first, second)}
        assert len(ports) == 2 and 0 not in ports and second.get_inheritable()
        assert wait_until_listening(first.getsockname()[1], timeout=0, pid=os.getpid()) is True
    with pytest.raises(PortError, match="not an address of this machine"):
        bind_port(0, "192.0.2.1")


def test_a_preview_tells_what_would_be_done_and_does_nothing(port, hold, said, monkeypatch):
    assert preview_port(port)._asdict() == {
        "port": port, "host": "0.0.0.0", "available": True, "holders": [], "stopped": [], "would_stop": [],
        "reason": None, "plan": None, "managers": {},
    }  # fmt: skip
    held = hold(("127.0.0.1", port), children=1)
    found = preview_port(port, grace=2)
    family = [held.pid, *held.children]
    assert ([holder.pid for holder in found.holders], found.would_stop, found.stopped) == (family, family, [])
    assert found.plan == f"stop {held.pid} and its child {held.children[0]}: SIGTERM, then SIGKILL after 2 s"
    assert not found.available and found.reason == f"port {port} is already in use"
    refused = preview_port(port, policy="refuse")
    assert (refused.would_stop, refused.plan) == ([], None) and "the policy 'refuse' stops nobody" in refused.reason
    monkeypatch.setenv("ENVIRONMENT", "production")
    assert "outside development nothing is stopped" in preview_port(port).reason and preview_port(port).plan is None
    assert preview_port(8000, "192.0.2.1").reason == "192.0.2.1 is not an address of this machine"
    assert held.alive() == family and said() == ""


# Where little works


def asked(code, *words, **options):
    """The answer of a process of its own, where ensure(port) is at hand."""
    start = "import os, sys; from port_manager import ensure_port_available as ensure; port = int(sys.argv[1])\n"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", start + code, *map(str, words)],
        env=environ, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=PATIENCE, **options,
    )  # fmt: skip


def test_a_working_directory_that_was_removed(ports, hold, tmp_path):
    port, other, gone, theirs = ports(), ports(), tmp_path / "gone", tmp_path / "theirs"
    gone.mkdir()
    (theirs / ".git").mkdir(parents=True)
    plain, project = hold(("127.0.0.1", port), cwd=str(tmp_path)), hold(("127.0.0.1", other), cwd=str(theirs))
    done = asked("os.rmdir(os.getcwd()); print(ensure(port), ensure(int(sys.argv[2])))", port, other, cwd=gone)
    assert (done.stdout, plain.alive(), project.alive()) == ("True False\n", [], [project.pid]), done.stderr
    assert "it belongs to another project" in done.stderr and "Traceback" not in done.stderr


def test_out_of_descriptors_is_neither_held_nor_free(port, hold):
    """Nobody is looked for, and nobody is stopped, because this process can open no socket."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); print(ensure(port)); "
        "import port_manager as p; print(p.preview_port(port).reason); p.PortManager(port).is_port_in_use(port)"
    )
    held = hold(("127.0.0.1", port))
    done = asked(code, port)
    reason = f"port {port} cannot be checked: too many files are open"
    assert done.stdout == f"False\n{reason}\n" and f"CannotTell: {reason}" in done.stderr
    assert "already in use" not in done.stderr and held.alive() == [held.pid]


# In the child of a reloader, the port is its parent's


RELOADER = """
import socket, subprocess, time

def listen():
    s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(("127.0.0.1", port)); s.listen(); return s

if sys.argv[2] == "sibling":
    r, w = os.pipe()
    sibling = os.fork()
    if not sibling: s = listen(); os.write(w, b"1"); time.sleep(60)
    os.read(r, 1)
s = listen() if sys.argv[2] == "parent" else None
child = "import port_manager, sys; print(port_manager.ensure_port_available(int(sys.argv[1])))"
environ = {**os.environ, **({sys.argv[3]: "true"} if sys.argv[3] else {})}
print(subprocess.run([sys.executable, "-c", child, str(port)], env=environ, stdout=-1, text=True).stdout, end="")
if sys.argv[2] == "sibling":
    print(os.waitpid(sibling, os.WNOHANG)[0] == 0); os.kill(sibling, 9)
"""


@pytest.mark.parametrize("mark", ["WERKZEUG_RUN_MAIN", "RUN_MAIN", None])
@pytest.mark.parametrize("holder", ["parent", "sibling", "stranger"])
def test_a_reloaders_child_finds_its_port_available(port, hold, mark, holder):
    """As in a Flask script with app.run(debug=True): the parent has bound the port before its child asks for it."""
    stranger = hold(("127.0.0.1", port)) if holder == "stranger" else None
    done = asked(RELOADER, port, holder, mark or "")
    if mark and holder != "stranger":
        assert done.stdout.split() == ["True", *(["True"] if holder == "sibling" else [])] and done.stderr == "", done
    elif holder == "parent":
        assert done.stdout.split() == ["False"] and "it is an ancestor of this process" in done.stderr
    elif holder == "sibling":
        assert done.stdout.split() == ["True", "False"]
    else:
        assert done.stdout.split() == ["True"] and stranger.alive() == []
