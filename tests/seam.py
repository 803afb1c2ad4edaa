"""The one place where the tests know the inside of port_manager.py: what is renamed there is renamed here.

``patch`` is pytest's monkeypatch; a system is "linux", "macos", "freebsd" or "windows". Sockets have the fields
address, port, listening, pid, inode and v6only; processes pid, parent, name, command, zombie, kernel and leader.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable

import port_manager as pm
from port_manager import Holder

SYSTEMS: dict[str, Any] = {
    "linux": pm._Linux, "macos": pm._MacOS, "freebsd": pm._FreeBSD, "bsd": pm._BSD, "windows": pm._Windows,
}  # fmt: skip
SOURCES: dict[str, Callable[..., Any]] = {
    "sock_diag": pm._ask_sock_diag, "proc_net": pm._ask_proc_net, "ss": pm._ask_ss, "lsof": pm._ask_lsof,
    "netstat": pm._ask_netstat, "sockstat": pm._ask_sockstat,
    "bound": lambda port: [row for row in pm._Linux().every_socket(port) if not row.listening and row.peer is None],
}  # fmt: skip
PARSERS: dict[str, Callable[..., Any]] = {
    "sock_diag": pm._parse_sock_diag, "proc_net": pm._parse_proc_net, "ss": pm._parse_ss, "lsof": pm._parse_lsof,
    "netstat": pm._parse_netstat, "sockstat": pm._parse_sockstat, "netstat of macOS": pm._parse_netstat_bsd,
    "ps": pm._parse_ps, "v6only": pm._v6only_attribute,
    "netstat -ano": lambda text: _rows(pm._parse_netstat_ano(text)),
}  # fmt: skip
# What has the same form on both sides: the text that is shown; what is asked and told of the system; what guard() asks.
write, status, on_terminal = pm.write_line, pm._status, pm._on_terminal
title, age, decoded, short_folder = pm._title, pm._age, pm._decoded, pm._short_folder
bind_error, run, answer = pm._bind_error, pm._run, pm._Answer
youngest_first = pm._pids_from_the_youngest  # the PIDs, in the order in which they are looked at
proc_is_ours, forget, system_of = pm._proc_is_ours, pm._proc_is_ours.cache_clear, pm._system_of
is_in_the_family, ancestors = pm._is_a_worker, pm._Ancestry

# What a test may put in the place of a part: stand_in(patch, "bind", answer).
PARTS: dict[str, tuple[Any, str]] = {
    "bind": (pm, "_bind_error"),  # (family, address) -> OSError or None
    "run a tool": (pm, "_run"),  # (tool, *options) -> (status, output, complaint) or None
    "find a tool": (pm, "_found"),  # (tool) -> its path or None
    "sock_diag": (pm, "_ask_sock_diag"),  # (port) -> sockets or None
    "terminal": (pm, "_can_ask"),  # whether there is one to ask on
    "question": (pm, "_agreed"),  # (question) -> whether the person says yes
    "preview": (pm, "_preview"),  # (port, host, options) -> PortResult
    "freeing": (pm, "_ensure"),  # (port, host, options) -> PortResult
    "must stay": (pm, "_must_stay"),  # (look, holder, …) -> an iterator over the reasons
    "contents": (pm, "_contents"),  # (path) -> bytes
    "ancestry": (pm._Linux, "ancestry"),  # (system) -> this process and those above it, as in ancestors
    "superuser": (pm._Linux, "is_superuser"),  # (system) -> whether this process counts as root
    "folder": (pm._Linux, "folder"),  # (system, pid, cwd) -> its working directory, None: out of reach
}


def stand_in(patch: Any, part: str, answer: Callable[..., Any]) -> None:
    """Let the function answer stand for a part of the module."""
    patch.setattr(*PARTS[part], answer)
    if part == "sock_diag":
        patch.setattr(pm._Linux, "sources", (answer, *pm._Linux.sources[1:]))


def limits(patch: Any, **limits: float) -> None:
    """Set tool_timeout, forced_wait, restart_watch (seconds) or rounds."""
    for name, value in limits.items():
        patch.setattr(pm, name.upper(), value)
    if "tool_timeout" in limits:  # the default of a parameter was made when the module was loaded
        patch.setitem(run.__kwdefaults__, "timeout", limits["tool_timeout"])


def one_look(patch: Any, then: Callable[[], Any] = bool) -> None:
    """Let a look be taken once where somebody may be just exiting: who is hidden stays so, and costs a second."""
    patch.setattr(pm, "_settled", lambda *words: (pm._look(*words), then())[0])


# ---- Is the port free? ----
def probe(port: int, host: str) -> str | None:
    """What keeps a server from binding here, as a sentence."""
    obstacle = pm._probe(port, host)
    return obstacle.reason if obstacle else None


def conflict(address: str, wanted: str, v6only: bool | None = None) -> bool | None:
    """Whether a listener at the address keeps another from binding the wanted one."""
    return pm._conflict(pm._Socket(address, 80, True, None, 9, None, 0, v6only), wanted)


# ---- Tools and sources ----
def on(port: int | None, rows: list[Any]) -> list[Any]:
    """Those on the port."""
    return [row for row in rows if port in (None, row.port)]


def ask(source: str, port: int | None) -> list[Any] | None:
    """The sockets that one source tells of, those on the port alone where one is named; None where it cannot tell."""
    rows = SOURCES[source](port)
    return None if rows is None else on(port, rows)


def parse(source: str, text: Any, *more: Any) -> Any:
    """The rows of a listing; None where it is no output of this tool."""
    return PARSERS[source](text, *more)


def only(patch: Any, *sources: Any) -> None:
    """Let Linux ask these sources alone, by name; a function of the port stands for one of its own."""
    ways = tuple(SOURCES.get(source, source) if isinstance(source, str) else source for source in sources)
    patch.setattr(pm._Linux, "sources", ways)


# ---- Systems and their processes ----
def on_system(patch: Any, platform: str, me: str) -> None:
    """Make the module believe that it runs there, as the user me."""
    patch.setattr(pm, "_ThisSystem", pm._system_of(platform))
    patch.setattr(pm, "_user_name", lambda uid: me)


def reader(system: str) -> Any:
    """What reads the processes of a system."""
    return SYSTEMS[system]().read


def readings(patch: Any, system: str, read: Callable[[int | None], dict[int, Any]]) -> None:
    """Let read(pid) stand for it."""
    patch.setattr(SYSTEMS[system], "read", lambda self, pid: read(pid))


def owners_answer(patch: Any, answer: Callable[..., Any]) -> None:
    """Let answer(rows) stand for the search for the owners of sockets; it is given what the real one found."""
    real = pm._Linux.owners
    patch.setattr(pm._Linux, "owners", lambda *words: answer(real(*words)))


def listener(pid: int | None, port: int, host: str, v6only: bool | None) -> Any:
    """A listener that does not exist."""
    return pm._Socket(host, port, True, None, pid, None, 0, v6only)


def _rows(pids: dict[Any, int | None]) -> list[Any] | None:
    """Endpoints and who listens on each, as sockets."""
    return [listener(pid, told.port, told.host, ":" in told.host) for told, pid in pids.items() if told] or None


def sockets(system: str, port: int) -> list[Any] | None:
    """The listeners on a port that a system tells of."""
    return SYSTEMS[system]().sockets(port)


def process(pid: int, parent: int | None, name: str = "python", tty: object = 0) -> Any:
    """A process that does not exist."""
    return pm._Process(pid, parent, pid, tty, 1, 1.0, "", name, "", False, False, False, False)


def read(pid: int) -> Any:
    """A process of this machine; None where there is none."""
    return pm._Linux().read(pid).get(pid)


def ancestry() -> list[int] | None:
    """This process and those above it; None where that cannot be told."""
    found = pm._Linux().ancestry()
    return found.pids if found.hidden < 0 else None


def masters(system: str, known: list[Any]) -> tuple[int | None, list[int]]:
    """Of the first of these processes, which listens: its master, and whom of the others a look adds to it."""
    asked = SYSTEMS[system]()
    asked.known.update({process.pid: process for process in known})
    return pm._master(asked, known[0].pid)[0], pm._masters(asked, [listener(known[0].pid, 80, "0.0.0.0", None)])


# ---- Who must stay ----
def protected(name: str, command: str = "", system: str = "linux", pid: int = 77) -> str | None:
    """Why a program of that name is left alone, whatever it holds the port for."""
    holder = Holder(pid, 1, "alice", name, command, "", None, ())
    manager = pm._published(holder, 80) if name in pm._PROXIES else None
    return SYSTEMS[system]().protects(holder) or (manager and f"{manager.name}: {manager.stop}")


def in_cgroups(patch: Any, paths: dict[Any, str]) -> None:
    """Let these processes be in control groups of that path; "self": this one."""
    real = pm._file_of
    told = {pid: f"12:pids:/\n0::/{path}\n".encode() for pid, path in paths.items()}
    patch.setattr(pm, "_file_of", lambda pid, name: told[pid] if name == "cgroup" and pid in told else real(pid, name))


# ---- Stop and verify ----
def _options() -> Any:
    return pm._options([80], 5.0, "kill")


def _pin(pid: int, system: str, start: object = None) -> Any:
    known = SYSTEMS[system]().read(pid) if start is None and pid > 1 else {}
    return pm._Pin(pid, known[pid].start if pid in known else start, None)


def on_signal(patch: Any, instead: Callable[[int, bool, Callable[[], None]], Any]) -> None:
    """Let instead(pid, whether it is SIGKILL, a function that sends it) stand for each signal."""
    real = pm._Linux.signal

    def signal(self: Any, pin: Any, options: Any, firmly: bool) -> None:
        instead(pin.pid, firmly, lambda: real(self, pin, options, firmly))

    patch.setattr(pm._Linux, "signal", signal)


def at_the_last_check(patch: Any, before: Callable[[], Any] = bool, after: Callable[[], Any] = bool) -> None:
    """Call these around the check of who still holds the port."""
    real = pm._Linux.still_hold
    patch.setattr(pm._Linux, "still_hold", lambda *words: (before(), real(*words), after())[1])


def ask_to_stop(system: str, pid: int, firmly: bool, start: object = "unknown") -> None:
    """Ask a process with this start time to stop, or force it."""
    SYSTEMS[system]().stop(_pin(pid, system, start), _options(), firmly)


def sleep(system: str, handles: Iterable[int | None], seconds: float) -> None:
    """Wait until one of the processes with these handles, which are their PIDs as well, exits."""
    SYSTEMS[system]().sleep([pm._Pin(handle or 9, "start", handle) for handle in handles], seconds)


def taken_again(port: int, host: str, suspect: int, then: Callable[[], Any]) -> str:
    """What is said where the port was taken again, and this happened to a process above the former holder."""
    freeing = pm._Freeing(port, host, _options())
    freeing.supervisors.append(_pin(suspect, "linux"))
    then()
    with pm._ThisSystem() as system:
        return str(freeing.taken_again(pm._look(system, port, host)))
