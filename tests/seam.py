"""The one place where the tests know the inside of the two files: what is renamed there is renamed here.

``patch`` is pytest's monkeypatch; a system is "linux", "macos", "freebsd" or "windows". Sockets have the fields
address, port, listening, pid, inode and v6only; processes pid, parent, name, command, zombie, kernel and leader.
"""

from __future__ import annotations

import functools
import signal
import sys
from typing import Any, Callable, Iterable

import port_manager as pm
import run_backend as rb
from port_manager import Holder

HELP = pm.HELP
ROUNDS = pm.ROUNDS
SOURCES: dict[str, Callable[..., Any]] = {
    "sock_diag": pm._ask_sock_diag, "bound": lambda port: pm._ask_sock_diag(port, pm._BOUND),
    "proc_net": pm._ask_proc_net, "ss": pm._ask_ss, "lsof": pm._ask_lsof, "netstat": pm._ask_netstat,
    "sockstat": pm._ask_sockstat, "netstat -ano": pm._ask_netstat_ano,
}  # fmt: skip
PARSERS: dict[str, Callable[..., Any]] = {
    "sock_diag": pm._parse_sock_diag, "proc_net": pm._parse_proc_net, "ss": pm._parse_ss, "lsof": pm._parse_lsof,
    "netstat": pm._parse_netstat, "sockstat": pm._parse_sockstat, "netstat -ano": pm._parse_netstat_ano,
    "netstat of macOS": pm._parse_netstat_bsd, "ps": pm._parse_ps, "v6only": pm._v6only_attribute,
}  # fmt: skip
# What has the same form on both sides: the text that is shown; what is asked and told of the system; what guard() asks.
write, say, on_terminal = pm._write, pm._say, pm._on_terminal
clean, span, title, full_title, decoded = pm._clean, pm._span, pm._title, pm._full_title, pm._decoded
bind_error, run, found, windows_tool = pm._bind_error, pm._run, pm._found, pm._windows_tool
on, read_by_ps, proc_is_ours, forget = pm._on, pm._read_ps, pm._proc_is_ours, pm._proc_is_ours.cache_clear
roots_first, families, is_in_the_family = pm._roots_first, pm._families, pm._is_in_the_family

# run_backend.py
become, serve_here, page_server, wsgi_server = rb._become, rb._serve_here, rb._page_server, rb._wsgi_server
start, imported, exists, installed, pip = rb._start, rb._imported, rb._exists, rb._installed, rb._pip
say_the_start, CannotStart = rb._say, rb._CannotStart

# What a test may put in the place of a part: stand_in(patch, "bind", answer).
PARTS: dict[str, tuple[Any, str]] = {
    "bind": (pm, "_bind_error"),  # (family, address) -> OSError or None
    "run a tool": (pm, "_run"),  # (tool, *options) -> (status, output, complaints) or None
    "find a tool": (pm, "_found"),  # (tool) -> its path or None
    "sock_diag": (pm, "_ask_sock_diag"),  # (port) -> sockets or None
    "question": (pm, "_disagreement"),  # (...) -> None for a yes, or a sentence
    "stop": (pm, "_stop"),  # (...) -> (holders that went, why others did not)
    "become": (rb, "_become"),  # (command, endpoint) -> status
    "start": (rb, "_start"),  # (command, endpoints, endpoint wanted, ...) -> status
    "start here": (rb, "_start_here"),  # (server, endpoint wanted, ...) -> status
    "serve here": (rb, "_serve_here"),  # (server, listener) -> status
    "installed": (rb, "_installed"),  # (module) -> whether it is
}


def stand_in(patch: Any, part: str, answer: Callable[..., Any]) -> None:
    """Let the function answer stand for a part of the two modules."""
    patch.setattr(*PARTS[part], answer)


def taken_before_the_bind(patch: Any) -> None:
    """Let every port count as freed, whoever holds it."""
    patch.setattr(pm, "_ensure", lambda port, host, _: pm._Outcome(port, host, True, [], [], None))


def limits(patch: Any, **limits: float) -> None:
    """Set tool_timeout, firm_wait, restart_watch (seconds) or rounds."""
    for name, value in limits.items():
        patch.setattr(pm, name.upper(), value)


# Is the port free?


def probe(port: int, host: str) -> str | None:
    """What keeps a server from binding here, as a sentence."""
    obstacle = pm._obstacle(port, host)
    return obstacle[1] if obstacle else None


def conflict(address: str, wanted: str, v6only: bool | None = None) -> bool | None:
    """Whether a listener at the address keeps another from binding the wanted one."""
    return pm._conflict(pm._Socket(address, 80, True, None, 9, None, 0, v6only), wanted)


# Tools and sources


def ask(source: str, port: int | None) -> list[Any] | None:
    """The sockets that one source tells of, those on the port alone where one is named; None where it cannot tell."""
    rows = SOURCES[source](port)
    return None if rows is None else pm._on(port, rows)


def parse(source: str, text: Any, *more: Any) -> Any:
    """The rows of a listing; None where it is no output of this tool."""
    return PARSERS[source](text, *more)


def only(patch: Any, *sources: Any) -> None:
    """Let Linux ask these sources alone, by name; a function of the port stands for one of its own."""
    ways = tuple(SOURCES.get(source, source) if isinstance(source, str) else source for source in sources)
    patch.setattr(pm, "LINUX", pm.LINUX._replace(ways=ways))


# Systems and their processes


def _system(name: str | None) -> Any:
    """The system of that name, or this machine's."""
    return getattr(pm, name.upper()) if name else pm._system()


def system_name() -> str:
    """The system that this machine counts as."""
    return str(pm._system().name)


def on_system(patch: Any, platform: str, me: str) -> None:
    """Make the module believe that it runs there, as the user me."""
    patch.setattr(sys, "platform", platform)
    patch.setattr(pm, "_my_name", lambda system: me)


def reader(system: str) -> Any:
    """What reads the processes of a system."""
    return _system(system).read


def readings(patch: Any, system: str, read: Callable[[int | None], dict[int, Any]]) -> None:
    """Let read(pid) stand for it."""
    patch.setattr(pm, system.upper(), _system(system)._replace(read=read))


def owners_answer(patch: Any, answer: Callable[..., Any]) -> None:
    """Let answer(rows) stand for the search for the owners of sockets; it is given what the real one found."""
    real = pm.LINUX.owners
    patch.setattr(pm, "LINUX", pm.LINUX._replace(owners=lambda *words: answer(real(*words))))


def process(pid: int, parent: int | None, name: str = "python", tty: object = 0) -> Any:
    """A process that does not exist."""
    return pm._Process(pid, parent, pid, tty, 1, 1.0, "", name, "", False, False, False)


def play_windows(patch: Any, rows: Iterable[tuple[int, int, int, str, str]], user: str) -> None:
    """Let Windows have these processes of one user: (pid, parent, file time of its start, name, command)."""
    known = {
        pid: process(pid, parent, name)._replace(
            group=None, tty=None, birth=str(time), started=time / 1e7 - 11644473600 if time else None, command=command
        )
        for pid, parent, time, name, command in rows
    }
    describe = lambda each: (user, each.command, "")
    patch.setattr(pm, "_read_windows", lambda pid: dict(known))
    patch.setattr(pm, "WINDOWS", pm.WINDOWS._replace(read=pm._read_windows, describe=describe))


def read(pid: int) -> Any:
    """A process of this machine; None where there is none."""
    return pm._read_proc(pid).get(pid)


def ancestry(system: str | None = None) -> list[int] | None:
    """This process and those above it; None where that cannot be told."""
    return pm._ancestry(_system(system), {})


def youngest_first(patch: Any, contents: Callable[[str], bytes]) -> list[int]:
    """The PIDs in the order in which they are looked at, where contents(path) stands for reading /proc."""
    patch.setattr(pm, "_contents", contents)
    return pm._pids_from_the_youngest()


# Who must stay


def _case(holder: Holder, system: Any, known: dict[int, Any], ancestry: list[int] | None) -> Any:
    """A holder of 0.0.0.0:80 that a call has found."""
    return pm._Case(pm._Look(system, [], [holder], ancestry, known, {}), "kill", 80, "0.0.0.0")


def refusal(ancestry: list[int] | None) -> str | None:
    """Why a process of which nothing is known is left alone."""
    return pm._refusal(_case(Holder(77, None, "", "", "", "", None, ()), pm._system(), {}, ancestry))


def protected(name: str, command: str = "", system: str = "linux") -> str | None:
    """Why a program of that name is left alone, whatever it holds the port for."""
    holder = Holder(77, 1, "alice", name, command, "", None, ())
    case = _case(holder, _system(system), {}, [])
    return pm._because_a_squatter(holder, case) or pm._because_a_container(holder, case)


def managed(patch: Any, cgroup: str, tty: object = None) -> str | None:
    """Why a process in that control group (on that terminal) is left alone, where ours is in none."""
    patch.setattr(pm, "_cgroups", lambda pid: {} if pid == "self" else {"": cgroup})
    holder = Holder(77, 1, "alice", "python", "", "", None, ())
    case = _case(holder, pm.LINUX, {} if tty is None else {77: process(77, 1, tty=tty)}, [])
    return pm._because_a_container(holder, case) or pm._because_a_service(holder, case)


def managed_by_launchd(patch: Any, pid: int) -> str | None:
    """Why a process that launchd has started is left alone, where we are a normal user."""
    patch.setattr(pm, "_is_superuser", lambda: False)
    holder = Holder(pid, 1, "alice", "x", "x", "", None, ())
    return pm._because_a_launchd_job(holder, _case(holder, pm.MACOS, {}, []))


def precious(patch: Any, pid: int) -> None:
    """Let this process be one who must stay."""
    patch.setattr(pm, "GUARDS", (lambda holder, case: "it is precious" if holder.pid == pid else None,))


# Stop and verify


def _pin(pid: int, system: str | None, start: object = None) -> Any:
    known = _system(system).read(pid) if start is None and pid > 1 else {}
    return pm._Pin(pid, known[pid].birth if pid in known else start, None)


def send(pid: int, number: int, start: object = None) -> None:
    """Signal a process without a handle, if it has this start time (its own where none is given)."""
    pm._signal(_pin(pid, None, start), number)


def on_signal(patch: Any, instead: Callable[[int, bool, Callable[[], None]], Any]) -> None:
    """Let instead(pid, whether it is SIGKILL, a function that sends it) stand for each signal."""
    real = pm._signal
    patch.setattr(
        pm, "_signal", lambda pin, *all: instead(pin.pid, signal.SIGKILL in all, functools.partial(real, pin, *all))
    )


def at_the_last_check(patch: Any, before: Callable[[], Any] = bool, after: Callable[[], Any] = bool) -> None:
    """Call these around the check that the process still holds the port."""
    real = pm._still_holds
    patch.setattr(pm, "_still_holds", lambda *words: (before(), real(*words), after())[1])


def ask_to_stop(system: str, pid: int, firmly: bool) -> None:
    """Ask a process whose start time is unknown to stop."""
    pm._request(_system(system), _pin(pid, system, "unknown"), pm._manner(), firmly)


def hold(system: str, pid: int) -> Any:
    """The handle of a process that is held fast, or None."""
    return pm._pinned(_system(system), [pid], {})[pid].handle


def has_exited(pid: int, system: str = "linux", start: object = None) -> bool | None:
    """Whether the process with this start time (its own where none is given) has ended; None: cannot tell."""
    return pm._has_exited(_system(system), _pin(pid, system, start))


def sleep(system: str, pids: Iterable[int], seconds: float) -> None:
    """Wait until one of these exits."""
    pm._nap(_system(system), [pm._Pin(pid, "start", pid) for pid in pids], seconds)


def taken_again(port: int, host: str, suspect: int) -> str:
    """What is said where the port has been taken again while this process lives."""
    look, pins = pm._look_at(port, host), pm._pinned(pm.LINUX, [suspect], {})
    assert look
    why = pm._why_taken_again(port, host, look, list(pins.values()))
    pm._unpin(pins.values())
    return why


def supervisors(holder: Holder, known: dict[int, Any]) -> list[int]:
    """Who may start the holder again, of the processes that are known."""
    return [pin.pid for pin in pm._supervisors(pm._Look(pm.WINDOWS, [], [holder], [], known, {}))]