# SPDX-License-Identifier: MIT
# Copyright (c) the port_manager authors
"""End "Address already in use": free a TCP port, and never stop the wrong process.

One file for any repository; it needs Python 3.8 or newer and nothing else.

    from port_manager import ensure_port_available

    if not ensure_port_available(port=8000, host="0.0.0.0"):
        raise SystemExit(1)

In development (ENVIRONMENT is unset, or one of dev, development, local, test, testing, debug) the process
that holds the port is asked to stop, forced after a grace period, and the release is verified. Anywhere
else nothing is stopped: the holder is named, and False is returned. From a shell:

    python port_manager.py check 8000
    python port_manager.py free 8000

The file reads in the order in which things happen: values; messages; is the port free?; tools; systems;
one look; what must stay; stop and verify; the calls people use; servers; the command line.
"""

from __future__ import annotations

import codecs
import errno
import os
import socket
import sys
import time
from functools import lru_cache, partial
from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Collection, Iterable, Iterator, Mapping, NamedTuple, Sequence, TextIO

__version__ = "1.1.0"

__all__ = [
    "SERVERS", "CannotTell", "Endpoint", "Holder", "Manager", "PortError", "PortManager", "PortResult", "PortTimeout",
    "Server", "bind_port", "ensure_port_available", "find_free_port", "find_listeners", "find_server", "guard",
    "is_development", "main", "names_app", "preview_port", "server_endpoints", "shell_commands", "take_options",
    "wait_until_free", "wait_until_listening", "write_line",
]  # fmt: skip

DEVELOPMENT_NAMES = ("", "dev", "development", "local", "test", "testing", "debug")
POLICIES = ("kill", "own", "ask", "refuse")  # from the least strict to the strictest

GRACE = 5.0  # seconds between the request to stop and the forced stop
FORCED_WAIT = 2.0  # seconds within which a forced stop must take effect
RESTART_WATCH = 2.0  # seconds to watch for a supervisor that restarts its server
TOOL_TIMEOUT = 2.0  # seconds after which a tool counts as "cannot tell"
FILE_TIMEOUT = 0.5  # seconds after which a file system counts as unresponsive
ROUNDS = 8  # looks at the port in one call; each stops the holders it finds, or gives up

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40  # the levels of logging, without its import


# ----------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------


if not TYPE_CHECKING:

    class NamedTuple(tuple):
        """The part of typing.NamedTuple used here: importing typing takes as long as all other imports."""

        def __init_subclass__(cls):
            cls._fields = tuple(cls.__annotations__)
            for place, field in enumerate(cls._fields):
                setattr(cls, field, property(itemgetter(place)))

        def __new__(cls, *values, **named):
            missing = cls._fields[len(values) :]
            if len(values) > len(cls._fields) or {*missing} != {*named}:
                raise TypeError(f"{cls.__name__} takes {', '.join(cls._fields)}")
            return tuple.__new__(cls, (*values, *map(named.get, missing)))

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(map('{}={!r}'.format, self._fields, self))})"

        def _asdict(self):
            return dict(zip(self._fields, self))

        def _replace(self, **changes):
            return type(self)(**{**self._asdict(), **changes})


class Endpoint(NamedTuple):
    """A numeric address and a port, printed the way servers print them.

    >>> str(Endpoint("127.0.0.1", 8000)), str(Endpoint("::1", 8000))
    ('127.0.0.1:8000', '[::1]:8000')
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Holder(NamedTuple):
    """A process that holds a port. An unknown field is None, or empty if it is a text.

    ``pid`` is None for a process that is hidden from this user; on Linux its ``user`` is known even then.
    ``started`` is in seconds since 1970. ``addresses`` are the endpoints that it listens on. Texts come
    from another process: unprintable characters in them are replaced by ``?``.
    """

    pid: int | None
    parent: int | None
    user: str
    name: str
    command: str
    cwd: str
    started: float | None
    addresses: tuple[Endpoint, ...]

    def __str__(self) -> str:
        """The process as messages name it: ``38146 (python server.py, in ~/shop)``."""
        return _title(self)


class Manager(NamedTuple):
    """What runs a process: ``the docker container web``; the command to stop it: ``docker stop web``, or empty."""

    name: str
    stop: str


class PortResult(NamedTuple):
    """The state of a port, or the outcome of freeing it.

    ``available``: a server can bind it now. ``holders`` prevent that. ``stopped`` and ``would_stop`` are
    the PIDs that were, or would be, stopped. ``reason`` says why the port is not available or, if freeing
    it would be refused, why. ``plan`` says what freeing it would do; None: nothing, or it is refused.
    ``managers`` maps the PID of a holder (None: a hidden process) to what runs it.
    """

    port: int
    host: str
    available: bool
    holders: list[Holder]
    stopped: list[int]
    would_stop: list[int]
    reason: str | None
    plan: str | None
    managers: dict[int | None, Manager]


class PortError(OSError):
    """A port is not available: ``port``, ``host``, ``holders`` (of type Holder) and the ``reason``, a sentence.

    >>> PortError("it is held", 8000, "0.0.0.0").reason
    'it is held'
    """

    def __init__(self, reason: str, port: int = 0, host: str = "", holders: Sequence[Holder] = ()) -> None:
        super().__init__(reason)
        self.reason, self.port, self.host, self.holders = reason, port, host, tuple(holders)


class PortTimeout(PortError, TimeoutError):
    """A wait reached its timeout; attributes as in PortError."""


class CannotTell(PortError):
    """No source on this system could say which process holds the port; that does not mean that none does."""


class _Socket(NamedTuple):
    """A TCP socket of this machine, as one source describes it."""

    address: str
    port: int
    listening: bool
    peer: Endpoint | None  # None: not connected
    pid: int | None  # None: unknown
    uid: int | None  # None: unknown
    inode: int  # 0: unknown
    v6only: bool | None  # None: unknown


class _Process(NamedTuple):
    """A process as the system reports it."""

    pid: int
    parent: int | None  # None: unknown
    group: int | None  # None: this system has no process groups
    tty: object  # without a terminal: 0, None or ""
    start: object  # the system's own start time: no later process with this PID has the same
    started: float | None  # the same in seconds since 1970
    user: str
    name: str
    command: str
    zombie: bool
    kernel: bool  # a thread of the kernel
    forked: bool  # it runs what its parent ran: no program was started in it since the fork
    leader: bool  # the leader of a session that has a terminal


class _Pin(NamedTuple):
    """A reference to one process: if its PID is reused, no signal reaches the later process."""

    pid: int
    start: object
    handle: int | None  # a pidfd or a Windows handle; None: only the start time identifies the process


class _Options(NamedTuple):
    """How to free a port."""

    grace: float  # seconds
    polite: str  # the name of the first signal
    policy: str  # one of POLICIES, or "" for the default of a start: kill, but ask about another project's server
    force: bool  # also outside development
    starting: bool  # a server starts on the port afterwards
    ports: tuple[int, ...]  # the ports named in the call


class _Obstacle(NamedTuple):
    """Why a server cannot bind."""

    held: bool | None  # True: a process holds the port; False: neither waiting nor stopping helps; None: cannot tell
    reason: str
    error: str  # the name of the system's error


class _Answer(NamedTuple):
    """What a tool returned: its exit status, standard output and standard error."""

    status: int
    output: str
    complaint: str


class _Ancestry(NamedTuple):
    """This process and its ancestors, nearest first."""

    pids: list[int]
    hidden: float  # a process started no later than this may be an ancestor that is hidden; -1: none is hidden


if TYPE_CHECKING:
    _Address = tuple[int, tuple[Any, ...]]  # (family, address), as bind() takes them
    _Sockets = list[_Socket]
    _MaybeSockets = list[_Socket] | None  # None: cannot tell, which does not mean "none"
    _Pids = Collection[int]
    _Processes = dict[int, _Process]
    _Managers = dict[int | None, Manager]  # by PID; None: of a hidden process


# ----------------------------------------------------------------------------------------------------
# Messages
# ----------------------------------------------------------------------------------------------------


def _say(level: int, text: str) -> None:
    """Log a line; without any logging configured, write it to standard error."""
    logging = sys.modules.get("logging")  # if it was never imported, it cannot have been configured
    wanted = level >= INFO
    if logging:
        logger = logging.getLogger("port_manager")
        if logger.hasHandlers():
            for handler in (*logger.handlers, *logging.root.handlers):
                text = _encodable(text, getattr(handler, "stream", None))
            logger.log(level, text)
            return
        wanted = not logger.disabled and level >= (logger.level or INFO) and level > logger.manager.disable
    if wanted:
        write_line(sys.stderr, text)


_PLAIN = {**dict.fromkeys("✅⚠\ufe0f💡🚨❌⏳", ""), "→": "->", "…": "..."}


def _in_plain(error: Any) -> tuple[str | bytes, int]:
    """Replace a character that a stream cannot encode; a symbol is dropped with the blanks after it."""
    symbol, rest = error.object[error.start], error.object[error.start + 1 :]
    if symbol not in _PLAIN:
        return codecs.backslashreplace_errors(error)
    return _PLAIN[symbol], len(error.object) - len(rest if _PLAIN[symbol] else rest.lstrip(" "))


codecs.register_error("port_manager", _in_plain)


def _encodable(text: str, stream: TextIO | None) -> str:
    """The text, with a plain form of each character that the stream cannot encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        return text.encode(encoding, "port_manager").decode(encoding)
    except (LookupError, TypeError):
        return text.encode("ascii", "port_manager").decode()


def write_line(stream: TextIO | None, text: str, end: str = "\n") -> str | None:
    """Write a line, and return why that failed; a closed stream or pipe is not a failure.

    Python's own streams are written past their buffer: a text that fails stays there, fails again at exit: status 120.
    """
    if stream is None:  # its descriptor was closed at startup, or this is pythonw.exe
        return None
    try:
        text = _encodable(_painted(text, stream), stream) + end
        stream.flush()
        if any(stream is own for own in (sys.__stdout__, sys.__stderr__)):
            with open(stream.fileno(), "w", encoding=stream.encoding, closefd=False) as unbuffered:
                unbuffered.write(text)
        else:
            stream.write(text)
            stream.flush()
    except (ValueError, AttributeError):  # closed; not a real stream
        return None
    except OSError as error:
        gone = error.errno in (errno.EPIPE, errno.EINVAL)  # the latter on Windows
        return None if gone else error.strerror or str(error)
    return None


def _status(text: str) -> None:
    """Show a status line on a terminal; an empty text removes it."""
    write_line(sys.stderr, "\r" + _cut(text, 60).ljust(60) + ("" if text else "\r"), end="")


def _on_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (ValueError, AttributeError):  # closed; not a real stream
        return False


def _clean(text: str) -> str:
    """The text without control characters, with which another process could control our terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _quoted(text: str) -> str:
    """The text as one word for a shell."""
    import shlex

    return shlex.quote(_clean(text))


def _sentence(reason: str) -> str:
    return reason[0].upper() + reason[1:]


def _complain(reason: str) -> None:
    _say(ERROR, f"❌ {_sentence(reason)}")


def _short_command(command: str, width: int = 60) -> str:
    """A command line for display: program and script by base name, the middle of a long one cut out."""
    quoted = command.startswith('"')  # Windows: a path with spaces
    program, _, rest = command[quoted:].partition('"' if quoted else " ")
    words = [program, *rest.split()]
    for at, word in enumerate(words):
        if word[:1] != "-":
            words[at] = word.replace("\\", "/").rpartition("/")[2] or word
            if at:  # the script; the rest are its arguments
                break
    return _cut(" ".join(words), width)


def _short_folder(folder: str, width: int = 30) -> str:
    """A folder for display: ``~`` for the home folder, and only the tail of a long path."""
    home = os.path.expanduser("~")
    if len(home) > 1 and (folder + os.sep).startswith(home + os.sep):
        folder = "~" + folder[len(home) :]
    while _columns(folder) > width and folder.count(os.sep) > 1:
        folder = f"…{os.sep}{folder.split(os.sep, 2)[2]}"
    return _cut(folder, width)


def _branch(folder: str) -> str:
    """The git branch of a folder, or the commit of a detached HEAD; empty outside a repository."""
    git, above = os.path.join(folder, ".git"), os.path.dirname(folder)
    if not os.path.exists(git):
        return _branch(above) if above != folder else ""
    if os.path.isfile(git):  # in a worktree or a submodule: it says where HEAD is
        git = os.path.join(folder, _decoded(_contents(git)).partition("gitdir:")[2].strip())
    head = _decoded(_contents(os.path.join(git, "HEAD"))).strip()
    return _clean(head.partition("refs/heads/")[2] or head[:7])


def _age(holder: Holder) -> str:
    """How long ago a process was started; empty if unknown."""
    if not holder.started:
        return ""
    seconds = int(max(0, time.time() - holder.started))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _title(holder: Holder, children: Sequence[Holder] = (), full: bool = False) -> str:
    """A process as messages name it: ``38146 (python server.py, in ~/shop) and its child 38147``."""
    details = [_short_command(holder.command) or "unknown"]
    if holder.user and (full or not holder.command):
        details.append(f"user {holder.user}")
    if full and holder.started:
        details.append(f"started {_age(holder)} ago")
    if holder.cwd:
        details.append(f"in {_short_folder(holder.cwd)}")
    return f"{holder.pid or '?'} ({', '.join(details)}){_and_children(children)}"


def _and_children(children: Sequence[Holder]) -> str:
    if not children:
        return ""
    return f" and its {'child' if len(children) == 1 else f'{len(children)} children'} {_listed(children)}"


def _columns(text: str) -> int:
    """The width of a text on a terminal: a wide character takes two columns."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _cut(text: str, width: int) -> str:
    """The text, cut to this width. The middle is cut out, since a command often ends with its port."""
    cuts = (f"{text[:half]}…{text[-half:]}" for half in range(width // 2, 0, -1))
    return text if _columns(text) <= width else next((cut for cut in cuts if _columns(cut) <= width), "…")


def _painted(text: str, stream: TextIO) -> str:
    """The text, with each line in the colour of its symbol if this is a terminal that shows colours."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not _ThisSystem.colours
    if plain or not _on_terminal(stream):
        return text
    colours = {"✅": 32, "⚠": 33, "❌": 31, "🚨": 31}
    lines = [(line, colours.get(line[:1])) for line in text.split("\n")]
    return "\n".join(f"\033[{colour}m{line}\033[0m" if colour else line for line, colour in lines)


# ----------------------------------------------------------------------------------------------------
# Is the port free? A probe binds the way the server will.
# ----------------------------------------------------------------------------------------------------


def _checked(port: int, host: str) -> None:
    wrong = f"a port is an integer from 1 to 65535, not {port!r}"
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(wrong)
    if not 1 <= port <= 65535:
        raise ValueError(wrong)
    if not isinstance(host, str):
        raise TypeError(f"a host is a text such as '127.0.0.1', not {host!r}")


def _addresses(host: str, port: int) -> list[_Address]:
    """Every (family, address) that a server binds for this host; PortError for an unknown name.

    >>> _addresses("", 80) == _addresses("0.0.0.0", 80) == [(socket.AF_INET, ("0.0.0.0", 80))]
    True
    """
    if host == "localhost":
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    numeric = _numeric(host.strip("[]") if host else "0.0.0.0")
    if numeric:
        return [(socket.AF_INET6 if ":" in numeric else socket.AF_INET, (numeric, port))]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, ValueError):  # the last two: not a valid host name
        raise PortError(f"host name {_clean(host)!r} is unknown", port, host) from None
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _numeric(host: str) -> str:
    """A numeric address in its shortest form; empty for any other text."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, host))
    except (OSError, ValueError):
        return ""


def _bound(family: int, address: tuple[Any, ...], v6only: bool | None = None, listens: bool = False) -> socket.socket:
    """Bind the way servers do: on POSIX, TIME_WAIT counts as free; on Windows, a port that can be shared does not."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR), 1)
        if v6only is not None:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        listener.bind(address)
        if listens:  # with SO_REUSEADDR, Linux lets several sockets bind until one of them listens
            listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _bind_error(family: int, address: tuple[Any, ...], v6only: bool | None = None) -> OSError | None:
    """The error that a server gets when it binds an address; None if it can."""
    try:
        _bound(family, address, v6only).close()
    except OSError as error:
        return error
    return None


_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)  # localhost: one family may be off


def _probe(port: int, host: str) -> _Obstacle | None:
    """Why a server cannot bind here; None if it can."""
    try:
        addresses = _addresses(host, port)
    except PortError as unknown:
        return _Obstacle(False, unknown.reason, "")
    absent = 0
    for family, address in addresses:
        error, shadow = _bind_error(family, address), _ThisSystem.shadows.get(address[0])
        if shadow and not error:
            error = _bind_error(family, (shadow, port))
            if error and error.errno != errno.EADDRINUSE:
                continue
        if error and error.errno in _ABSENT:
            absent += 1
            if host == "localhost" and absent < len(addresses):
                continue
        if error:
            return _explained(error, address[0], port)
    return None


_REASONS = {
    "EADDRINUSE": "port {port} is already in use",
    "10013": "Windows forbids port {port} (error 10013): another program owns it exclusively, or it lies in a reserved "
    "range, which this command shows: netsh int ipv4 show excludedportrange protocol=tcp",
    **dict.fromkeys(("EACCES", "EPERM"), "no permission to bind port {port}: {rule}"),
    **dict.fromkeys(("EMFILE", "ENFILE"), "port {port} cannot be checked: too many files are open"),
    "EADDRNOTAVAIL": "{address} is not an address of this machine",
    **dict.fromkeys(
        ("EAFNOSUPPORT", "EPROTONOSUPPORT"),
        "{address} cannot be used: its address family is switched off on this machine",
    ),
}


def _explained(error: OSError, address: str, port: int) -> _Obstacle:
    name = "10013" if getattr(error, "winerror", None) == 10013 else errno.errorcode.get(error.errno or 0, "")
    name = name.replace("WSA", "")  # Windows
    held = {"EADDRINUSE": True, "10013": True, "EMFILE": None, "ENFILE": None}.get(name, False)
    rule = "ports below 1024 need root; choose a higher one" if port < 1024 else "a rule of this system forbids it"
    reason = _REASONS.get(name, "{address} port {port} cannot be bound: {error}")
    return _Obstacle(held, reason.format(address=address, port=port, rule=rule, error=error.strerror or error), name)


def _conflict(held: _Socket, wanted: str) -> bool | None:
    """Whether a socket and a bind to the wanted address conflict; None: cannot tell.

    >>> rows = [_Socket(a, 80, True, None, 2, 0, 1, v) for a, v in (("127.0.0.1", None), ("::", True))]
    >>> [[_conflict(row, wanted) for wanted in ("0.0.0.0", "127.0.0.1", "127.0.0.2", "::1")] for row in rows]
    [[True, True, False, False], [False, False, False, True]]
    """
    address, wanted = _unmapped(held.address), _unmapped(wanted)
    if (":" in address) == (":" in wanted):
        if address == wanted:
            return None if address.startswith("fe80:") else True  # on which interface?
        if _ThisSystem.shadows:
            return _ThisSystem.shadows.get(wanted) == address
        return address in ("0.0.0.0", "::") or wanted in ("0.0.0.0", "::")
    if address == "::":
        return None if held.v6only is None else not held.v6only
    return wanted == "::" and _wildcard_is_dual()


def _unmapped(address: str) -> str:
    """The address without its zone; of an IPv4-mapped IPv6 address (::ffff:127.0.0.1), the IPv4 address."""
    address = address.partition("%")[0]
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def _wildcard_is_dual() -> bool:
    """Whether a server that binds ``::`` also takes the IPv4 port; this is a setting of the system."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            return not probe.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    except OSError:
        return False


# ----------------------------------------------------------------------------------------------------
# Tools: only _run starts one, by its full path and with a time limit. Each parser is a pure function. It returns
# None for a text that is not its tool's output: "cannot tell" does not mean "no process".
# ----------------------------------------------------------------------------------------------------


def _run(tool: str, *options: str, timeout: float = TOOL_TIMEOUT) -> _Answer | None:
    """Start a tool and wait for it; None if it is missing, hangs, or cannot be started."""
    import subprocess

    program = _found(tool)
    if program is None:
        return None
    try:
        process = subprocess.Popen(
            [program, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            output, complaint = process.communicate(timeout=timeout)
        finally:
            _let_go(process)
    except (OSError, subprocess.SubprocessError) as error:
        _say(DEBUG, f"{tool} cannot tell: {error}")
        return None
    return _Answer(process.returncode, _decoded(output), _decoded(complaint))


def _let_go(process: Any) -> None:
    """Kill a tool that still runs; on Windows, subprocess.run would wait for every process that has its pipes."""
    for stream in (process.stdout, process.stderr):
        if os.name == "posix":  # elsewhere a thread reads and closes it
            stream.close()
    if process.poll() is None:
        process.kill()
        process.wait(FORCED_WAIT)  # a tool that waits for a disk or device does not end


def _output(tool: str, *options: str) -> str:
    """The output of a tool; empty if it fails."""
    answer = _run(tool, *options)
    return answer.output if answer and answer.status == 0 else ""


def _found(tool: str) -> str | None:
    """The full path of a tool; on Windows, shutil.which would search the current folder first."""
    folders = [folder for folder in os.get_exec_path() if os.path.isabs(folder)]
    folders += ["/usr/sbin", "/sbin", "/usr/local/sbin"] if os.sep == "/" else []
    # An absolute path is not changed by the join.
    paths = [os.path.join(folder, tool + suffix) for folder in folders for suffix in ("", ".exe")]
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def _decoded(output: bytes) -> str:
    for encoding in ("utf-8", "oem"):  # the second: older tools of Windows
        try:
            return output.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    return output.decode("utf-8", "backslashreplace")


def _endpoint(text: str, v6: bool = False) -> Endpoint | None:
    """The endpoint that a tool printed; None for anything else (a connection, a name, a mangled row).

    >>> [str(_endpoint(t)) for t in ("*:80", ":::80", "[::1]:80", "127.0.0.1%lo:80", "[fe80::1%12]:80")]
    ['0.0.0.0:80', '[::]:80', '[::1]:80', '127.0.0.1:80', '[fe80::1]:80']
    >>> _endpoint("127.0.0.1:8000->127.0.0.1:52011") or _endpoint("1.2.3:80") or _endpoint("*:99999")
    """
    host, _, digits = text.rpartition(":")
    port = _number(digits)
    host = "::" if host == "*" and v6 else "0.0.0.0" if host == "*" else host.strip("[]").partition("%")[0]
    host = _numeric(host)
    return Endpoint(host, port) if host and port is not None and port <= 65535 else None


def _number(text: str, least: int = 0) -> int | None:
    """A decimal number as tools write it: no sign, no leading zero, no other digits than 0 to 9.

    >>> [_number(text) for text in ("80", "0", "080", "-80", "8_0", "²", "")]
    [80, 0, None, None, None, None, None]
    """
    try:
        number = int(text[:11])
    except ValueError:
        return None
    return number if str(number) == text and number >= least else None


def _matches(pattern: str, text: str) -> list[dict[str, str]]:
    """The named groups of each line that matches; a blank in the pattern matches one or more blanks or tabs."""
    import re

    row = re.compile(" *" + pattern.replace(" ", "[ \\t]+"), re.ASCII)
    return [found.groupdict("") for found in map(row.match, text.splitlines()) if found]


def _listeners(pattern: str, heading: str, text: str) -> _MaybeSockets:
    """The listeners of a table; None for a text without rows and heading, both given as patterns."""
    rows = []
    for fields in _matches(pattern, text):
        only = fields.get("v6only") or fields["local"].partition(":")[0]  # ss writes a dual-stack wildcard as *
        local = _endpoint(fields["local"], v6=only != "tcp4")
        if local:
            v6only = {"*": False, "0": False, "tcp46": False, "1": True, "tcp6": True}.get(only)
            pid, inode = _number(fields.get("pid", ""), 2), _number(fields.get("inode", ""))
            rows.append(_Socket(*local, True, None, pid, _number(fields.get("uid", "")), inode or 0, v6only))
    return rows if rows or _matches(heading, text) else None


# On Linux, the tools are not asked for PIDs: /proc says which process holds a socket.
def _ask_ss(port: int | None) -> _MaybeSockets:
    """Linux: ss, from iproute2."""
    return _parse_ss(_output("ss", "-ltne"))


_parse_ss = partial(
    _listeners,
    r"LISTEN \d+ \d+ (?P<local>\S+) \S+"
    r"(?=(?:.*? uid:(?P<uid>\d+)(?!\S))?)(?=(?:.*? ino:(?P<inode>\d+)(?!\S))?)"
    r"(?=(?:.*? v6only:(?P<v6only>[01])(?!\S))?)",
    "State Recv-Q",
)


def _ask_netstat(port: int | None) -> _MaybeSockets:
    """Linux: netstat, from net-tools or busybox (which may have been built without -e)."""
    return _parse_netstat(_output("netstat", "-ltne") or _output("netstat", "-ltn"))


_parse_netstat = partial(
    _listeners, r"tcp6? \d+ \d+ (?P<local>\S+) \S+ LISTEN(?!\S)(?: (?P<uid>\d+) (?P<inode>\d+)(?!\S))?", "Proto Recv-Q"
)


def _ask_sockstat(port: int | None) -> _MaybeSockets:
    """FreeBSD: sockstat."""
    return _parse_sockstat(_output("sockstat", "-46lw", "-P", "tcp", *(() if port is None else ("-p", str(port)))))


# Columns: USER COMMAND PID FD PROTO LOCAL FOREIGN. A command may contain blanks, or look like such columns. A row
# without a PID belongs to a hidden process.
_parse_sockstat = partial(
    _listeners, r"\S.* (?P<pid>\S+) \S+ (?P<v6only>tcp4|tcp46|tcp6) (?P<local>\S+) \*:\*\s*$", ".* PROTO"
)


def _ask_lsof(port: int | None) -> _MaybeSockets:
    """macOS, the BSDs, Linux: lsof. It exits with 1 and prints nothing if no process holds the port."""
    answer = _run("lsof", "-nP", "-iTCP" if port is None else f"-iTCP:{port}", "-F", "pftdPnT")
    if answer is None or answer.status not in (0, 1):
        return None
    complaints = [line for line in answer.complaint.splitlines() if line[:1].strip() and "WARNING" not in line]
    return None if complaints and not answer.output.strip() else _parse_lsof(answer.output)


def _parse_lsof(text: str) -> _MaybeSockets:
    """Field output: a letter and its value on each line; p begins a process, f one of its files.

    A text without a p line is not lsof's field output: busybox's lsof ignores all options, and lists every open file.
    """
    rows, known = [], not text.strip()
    for process in "\n".join(["", *text.splitlines()]).split("\np")[1:]:
        head, *files = process.split("\nf")
        pid = _number(head.split("\n")[0], 2)
        known = known or pid is not None
        for file in map(str.splitlines, files if pid else ()):
            fields = {line[:1]: line[1:] for line in file if line[:1] != "T"}
            local = _endpoint(fields.get("n", ""), v6=fields.get("t") == "IPv6")
            listening = "TST=LISTEN" in file
            if local and fields.get("P") == "TCP" and (listening or "TST=CLOSED" in file):  # closed: only bound
                rows.append(_Socket(*local, listening, None, pid, None, _number(fields.get("d", "")) or 0, None))
    return rows if known else None


def _ask_macos(port: int | None) -> _MaybeSockets:
    """macOS: lsof, which hides other users' processes; netstat lists every listener, and whether ``::`` takes IPv4."""
    rows = _ask_lsof(port)
    table = None if rows is None else _parse_netstat_bsd(_output("netstat", "-an", "-p", "tcp"))
    if rows is None or table is None:
        return None
    kinds = [{each.v6only for each in table if each[:2] == row[:2]} for row in rows]
    rows = [row._replace(v6only=kind.pop() if len(kind) == 1 else None) for row, kind in zip(rows, kinds)]
    shown = {row[:2] for row in rows}
    return rows + [row for row in table if row[:2] not in shown]


def _parse_netstat_bsd(text: str) -> _MaybeSockets:
    import re

    row = r"(?P<v6only>tcp4|tcp46|tcp6) \d+ \d+ (?P<local>\S+) \S+ LISTEN(?!\S)"
    return _listeners(row, "Proto Recv-Q", re.sub(r"\.(\d+)(?=\s)", r":\1", text))  # it writes 127.0.0.1.8000


_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"


def _parse_ps(text: str, names: str = "") -> dict[int, _Process]:
    """pid, ppid, pgid, state, tty, user, lstart and command of every process; ``names`` has pid and program."""
    programs = {row["pid"]: row["program"] for row in _matches(r"(?P<pid>\d+) (?P<program>.*\S)", names)}
    # lstart: Mon Nov 23 10:15:00 2026, here without the names of day and month, which strptime expects in the language
    # of this process; FreeBSD prints - for the kernel's own processes
    keys = r"(?P<pid>\d+) (?P<parent>\d+) (?P<group>\d+) (?P<state>\S+) (?P<tty>\S+) (?P<user>\S+)"
    processes = {}
    for row in _matches(keys + r" (?P<start>-|\S+ (?P<month>\S+) (?P<rest>\S+ \S+ \S+))(?P<command> .*|)$", text):
        pid, parent, group = (int(row[key]) for key in ("pid", "parent", "group"))
        command, tty, start = _clean(row["command"].strip()), row["tty"].strip("?-"), row["start"].lstrip("-")
        try:
            month = f"{_MONTHS.index(row['month']) // 3 + 1} {row['rest']}" if start else ""
            started = time.mktime(time.strptime(month, "%m %d %H:%M:%S %Y")) if start else 0.0
        except (ValueError, OverflowError):
            continue
        program = programs.get(row["pid"]) or command.split(" ", 1)[0]
        name = _clean(program.partition(": ")[0].rstrip(": ").rpartition("/")[2])  # ssh: /run/socket [mux]
        zombie, leader = row["state"][0] == "Z", "s" in row["state"] and tty != ""
        rest = (start, started, _clean(row["user"]), name, command, zombie, False, False, leader)
        processes[pid] = _Process(pid, parent, group, tty, *rest)
    return processes


# ----------------------------------------------------------------------------------------------------
# Systems. _System is the contract, and what all systems share; each class below it serves one; _system_of
# chooses the one for this machine. To add a system: write its class, and name it there.
# ----------------------------------------------------------------------------------------------------

# Programs that hold ports for others, recognised only by name, and what the user can do about each.
# Names are compared whole, in lower case; Linux cuts them to 15 characters.
_TUNNEL = "it is a tunnel, which ends at another machine or device; end it where it runs"
_MACHINE = "it forwards the port to a virtual machine; change that machine's settings, or shut it down"
_FORWARDERS = {
    **dict.fromkeys(
        ("ssh", "autossh", "sshd", "sshd-session", "dropbear", "kubectl", "ngrok", "cloudflared", "adb"), _TUNNEL
    ),
    **dict.fromkeys(("virtualboxvm", "vboxheadless", "vboxnetnat", "vmware-vmx", "vmnet-natd"), _MACHINE),
}

# Programs on the host that hold the published ports of containers.
_PROXIES = (
    "docker-proxy", "dockerd", "rootlesskit", "rootlessport", "pasta", "pasta.avx2", "passt", "slirp4netns", "conmon",
    "com.docker.backend", "com.docker.back", "vpnkit", "gvproxy", "limactl", "OrbStack", "OrbStack Helper",
)  # fmt: skip

# Managers that are ordinary programs: how their process or script is called, their own name, and their tool.
_MANAGERS = ((("PM2 v", "pm2"), "PM2", "pm2"), (("supervisord", "supervisor."), "supervisord", "supervisorctl"))


class _Description(NamedTuple):
    """Further facts about a process; an unknown one is empty."""

    user: str
    command: str
    cwd: str


class _System:
    """The questions to an operating system; an instance caches what it read about processes.

    Invariants: "cannot tell" (None) is not "no process" (an empty list). A process is pinned before it is read, and
    recognised before it is signalled. The PIDs that a tool prints are verified if the system allows it.
    """

    sources: Sequence[Callable[..., _MaybeSockets]] = (_ask_lsof,)  # the fastest first
    shadows: Mapping[str, str] = {}  # addresses that hide each other, if only equal addresses conflict
    forwarders: Mapping[str, str] = _FORWARDERS  # names of protected programs, and what to do about each
    first_pids = (0, 1)  # the system itself
    colours = True  # terminals show them
    elevated = "sudo python"  # the beginning of a command with all rights
    redirects = False  # the python of a virtual environment starts the real one, with the same command line
    native = False  # holders are found without starting a tool, so that a wait can poll

    def __init__(self) -> None:
        self.known: _Processes = {}
        self.pins: dict[int, _Pin] = {}  # released at the end of a with block

    def __enter__(self) -> _System:  # noqa: PYI034 (typing.Self is of Python 3.11)
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def sockets(self, port: int | None) -> _MaybeSockets:
        """The listeners on a port (None: on every port); None: cannot tell."""
        answers = (ask(port) for ask in self.sources)
        return next(([row for row in rows if port in (None, row.port)] for rows in answers if rows is not None), None)

    def every_socket(self, port: int) -> _Sockets:
        """The sockets on a port in every state, as far as the system shows them."""
        return []

    def owners(self, sockets: _Sockets, thorough: bool, among: _Pids | None = None) -> _Sockets:
        """The sockets again, one row for each process that holds one; ``pid`` is None if all owners are hidden.

        Unless it is ``thorough``, the search may end when each socket has an owner whose relatives have been
        checked. ``among``: only these processes are checked.
        """
        return sockets

    def listeners_of(self, pids: _Pids) -> _MaybeSockets:
        """The listening sockets of these processes, on every port."""
        rows = self.sockets(None)
        if rows is None:
            return None
        rows = self.owners(rows, True, pids)
        hidden = {row.uid for row in rows if row.pid is None}  # whose sockets may be of a process that cannot be read
        if any(map(hidden.intersection, map(self.unreadable, pids))):
            return None
        return [row for row in rows if row.listening and row.pid in pids]

    def unreadable(self, pid: int) -> list[int]:
        """The user IDs of a process whose sockets cannot be read; none if they can."""
        return []

    def read(self, pid: int) -> _Processes:
        """Read this process again, or all processes if that costs the same; empty: cannot tell."""
        raise NotImplementedError

    def exists(self, pid: int) -> bool | None:
        """Whether there is a process with this PID; None: it is hidden, or a thread of another process."""
        known = self.read(pid)
        return pid in known if known else None

    def process(self, pid: int | None) -> _Process | None:
        """A process, read once; if reading starts a tool, all processes are read at once."""
        if pid is None:
            return None
        if pid not in self.known and (self.native or not self.known):
            self.known.update(self.read(pid))
        return self.known.get(pid)

    def describe(self, process: _Process) -> _Description:
        raise NotImplementedError

    def environ(self, pid: int) -> dict[str, str]:
        """The environment of a process, as far as it can be read."""
        return {}

    def folder(self, pid: int, cwd: str) -> str | None:
        """The working directory of a process, even if it was removed; None: out of reach from here."""
        return os.path.realpath(cwd)

    def parents(self, pid: int | None) -> list[int]:
        """The ancestors of a process, nearest first; the last is the first process, or one that is hidden."""
        line: list[int] = []
        process = self.process(pid)
        while process and process.parent and process.parent not in (pid, *line):
            line.append(process.parent)
            process = self.process(process.parent)
        return line

    def children(self, pid: int) -> list[int]:
        return [process.pid for process in self.known.values() if process.parent == pid != process.pid]

    def descendants(self, pids: Iterable[int]) -> list[int]:
        """These processes and all below them."""
        found = [*pids]
        for pid in found:  # grows while it is read
            found += [child for child in self.children(pid) if child not in found]
        return found

    def started_by(self, pid: int | None) -> list[_Process]:
        """A process and its ancestors, up to the one that is a job of an interactive shell."""
        line = [self.process(each) for each in (pid, *self.parents(pid))]
        found: list[_Process] = []
        for process in line:
            if process is None or (found and _is_job(found[-1], process)):
                break
            found.append(process)
        return found

    def ancestry(self) -> _Ancestry:
        """On native systems, read until nothing changes: when a parent exits, its child gets another parent."""
        line: list[int] = []
        for _ in range(ROUNDS if self.native else 1):
            if self.native:
                self.known.clear()
            before, line = line, [os.getpid(), *self.parents(os.getpid())]
            if line == before:
                break
        seen = [process for process in map(self.process, line) if process]
        complete = len(seen) == len(line) and seen[-1].parent is not None
        return _Ancestry(line, -1.0 if complete else min((process.started or 0.0 for process in seen), default=0.0))

    def hold(self, pids: Iterable[int]) -> None:
        """Pin these processes, then read them, so that what is read is true of them; an unreadable one gets no pin."""
        handles = {pid: self.open(pid) for pid in pids if pid not in self.pins}
        if handles:
            self.known.clear()
        for pid, handle in handles.items():
            process = self.process(pid)
            if process:
                self.pins[pid] = _Pin(pid, process.start, handle)
            elif handle is not None:
                self.close(handle)

    def open(self, pid: int) -> int | None:
        """A handle that refers to this process alone; None if the system has none, or refuses."""
        return None

    def close(self, handle: int) -> None:
        os.close(handle)

    def release(self) -> None:
        while self.pins:
            handle = self.pins.popitem()[1].handle
            if handle is not None:
                self.close(handle)

    def has_gone(self, pid: int | None) -> bool:
        """Whether a pinned process has ended since."""
        pin = self.pins.get(pid or 0)
        return bool(pin and self.has_exited(pin))

    def has_exited(self, pin: _Pin) -> bool | None:
        """Whether a pinned process has ended, even if its PID is used again since; None: cannot tell.

        A zombie has ended, although kill() still succeeds.
        """
        if pin.handle is not None:
            return self.wait([pin.handle], 0)
        processes = self.read(pin.pid)
        now = processes.get(pin.pid)
        if not processes or (now and not (now.start and pin.start)):
            return None
        return now is None or now.zombie or now.start != pin.start

    def wait(self, handles: list[int], seconds: float) -> bool:
        """Wait until the process of one of these handles exits, or the time is over; return whether one has exited."""
        raise NotImplementedError

    def sleep(self, pins: Iterable[_Pin], seconds: float) -> None:
        """Sleep until one of the processes exits, or the time is over; if one has no handle, only briefly."""
        handles = [pin.handle for pin in pins]
        known = [handle for handle in handles if handle is not None]
        if len(known) == len(handles):
            self.wait(known, seconds)
        else:
            time.sleep(min(seconds, 0.01))

    def stop(self, pin: _Pin, options: _Options, firmly: bool) -> None:
        """Ask a pinned process to stop, or force it. Every holder is stopped through this method.

        ProcessLookupError: it has ended already. OSError: no permission, or it might be another process.
        """
        if pin.pid <= 1:  # kill() takes 0 and -1 for whole groups of processes, and 1 is the system itself
            raise OSError(0, f"PID {pin.pid} is never signalled")
        exited = self.has_exited(pin)
        if exited is None:
            raise OSError(0, "it could not be verified that it is still the same process")
        if exited:
            raise ProcessLookupError
        self.signal(pin, options, firmly)

    def way(self, options: _Options) -> str:
        """How a process would be stopped, for messages."""
        return options.polite + (f", then SIGKILL after {options.grace:g} s" if options.polite != "SIGKILL" else "")

    def signal(self, pin: _Pin, options: _Options, firmly: bool) -> None:
        """Send the signals; stop() has recognised the process."""
        import signal

        polite = getattr(signal, options.polite, signal.SIGTERM)
        # A process suspended by Ctrl+Z handles no signal before SIGCONT. Sent last, that might find it gone.
        for number in (signal.SIGKILL,) if firmly else (signal.SIGCONT, polite):
            self.send(pin, number)

    def send(self, pin: _Pin, number: int) -> None:
        os.kill(pin.pid, number)

    def still_hold(self, pids: _Pids, sockets: _Sockets, port: int) -> set[int | None]:
        """Which of these processes still hold one of the sockets."""
        return {row.pid for row in self.owners(sockets if self.native else self.sockets(port) or [], True, pids)}

    def is_superuser(self) -> bool:
        return os.geteuid() == 0

    def other_user(self, holder: Holder, sockets: _Sockets) -> str | None:
        """The owner of a process, if that is another user; empty: it is our own process; None: cannot tell."""
        return (holder.user if holder.user != self.me() else "") if holder.user else None

    def me(self) -> str:
        return _user_name(os.geteuid())

    def managed_by(self, holder: Holder, port: int, pids: _Pids) -> Manager | None:
        """What runs a process, and the command that stops it; ``pids`` are all holders of the port.

        Here: a container engine, which holds a published port by a process of its own; PM2; supervisord.
        """
        if holder.pid is None or holder.name.replace(".exe", "") in _PROXIES:
            return _published(holder, port)
        for above in filter(None, map(self.process, [holder.pid, *self.parents(holder.pid)])):
            command = above.command or self.describe(above).command
            words = [word for word in command.split() if word[:1] != "-"][:2]  # interpreter, script or module
            for marks, name, tool in _MANAGERS:
                if any(word.startswith(marks) for word in (above.name, *map(os.path.basename, words))):
                    run = [pid for pid in pids if pid != above.pid]
                    if not run:  # in cluster mode, PM2 itself holds the ports of its apps
                        run = [pid for pid in self.children(above.pid) if "pm2_env" in self.environ(pid)]
                    programs = {self.program(pid, port) for pid in run} - {""}
                    program = programs.pop() if len(programs) == 1 else f"NAME ({tool} status tells the name)"
                    return Manager(name, f"{tool} stop {program}")
        return None

    def program(self, pid: int, port: int) -> str:
        """The manager's name for a process, quoted for a shell; empty if unknown, or if it serves another port."""
        import json

        environ = self.environ(pid)
        supervised = environ.get("SUPERVISOR_GROUP_NAME"), environ.get("SUPERVISOR_PROCESS_NAME")
        name = ":".join(dict.fromkeys(filter(None, supervised))) or ("pm_id" in environ and environ.get("name"))
        if not name:
            try:  # PM2's cluster mode
                settings = json.loads(environ.get("pm2_env", "{}"))
                name = str(settings.get("PORT", port)) == str(port) and settings.get("name")
            except (ValueError, AttributeError):
                return ""
        return _quoted(str(name)) if name else ""

    def protects(self, holder: Holder) -> str | None:
        """Why a process is protected because of its name or PID; None: it is not."""
        if holder.name.startswith(("qemu-system", "qemu-kvm", "QEMULauncher")):
            return _MACHINE
        system = f"PID {holder.pid} is the system itself" if holder.pid in self.first_pids else None
        return self.forwarders.get(holder.name.lower(), system)

    def ends_a_terminal(self, process: _Process) -> bool:
        """Whether a terminal ends together with this process."""
        return process.leader

    def ends_the_container(self, pids: _Pids, ancestry: _Pids) -> bool:
        """Whether the first process of the container that we are in waits for these, and would end with them."""
        return False

    def state(self, pid: int) -> str:
        """One of "suspended", "deleted" (its program was deleted or replaced), or empty."""
        return ""

    def beside(self, port: int) -> list[str]:
        """What else uses the port number without preventing a bind: one sentence each."""
        return []

    def hint(self, port: int, host: str) -> str:
        """What to say if the port is held and no holder was found."""
        return f"port {port} is held by a process that cannot be named from here; run with more rights to find out"


@lru_cache(maxsize=None)
def _user_name(uid: int) -> str:
    """Cached: it may read the whole of /etc/passwd, or ask a directory server."""
    import pwd

    try:
        return _clean(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)


# Linux: sockets come from the kernel's own table over netlink, or from the next best source. Their owners come from
# /proc alone: a process counts as a holder only if one of its descriptors is the socket.

_LISTEN = 10  # the number of this TCP state; a request has a bit for each state
_GETSOCK = 18  # TCPDIAG_GETSOCK
_SIBLINGS = 4  # checked on either side of a holder: workers whose master holds nothing were started together
_HOST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO in the kernel's proc_ns.h: not that of a container


def _ask_sock_diag(port: int | None, every: bool = False) -> _MaybeSockets:
    """The kernel's table, over netlink (see linux/inet_diag.h and sock_diag(7)): listeners, or every state.

    The older request is used: it returns both families at once, and each walk through the table costs time.
    """
    import struct

    # nlmsghdr: length, TCPDIAG_GETSOCK, REQUEST|DUMP; inet_diag_req: all zero except the port and the states
    wanted = socket.htons(port or 0), 0xFFFF if every else 1 << _LISTEN
    rows: _Sockets = []
    finished = False
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as kernel:  # 4: NETLINK_SOCK_DIAG
            kernel.send(struct.pack("=IHHII4xH46xI4x", 76, _GETSOCK, 0x301, 0, 0, *wanted))
            while not finished:
                part, finished = _parse_sock_diag(kernel.recv(65536, socket.MSG_DONTWAIT))  # it is there already
                rows += part
    except (OSError, ValueError, AttributeError):  # refused, garbled, or no netlink at all
        return None
    return sorted(rows, key=lambda row: ":" in row.address)  # the kernel lists them in hash order


def _parse_sock_diag(data: bytes) -> tuple[_Sockets, bool]:
    """(rows, whether this was the last part); ValueError for an error message or garbage."""
    import struct

    rows: _Sockets = []
    for kind, body in _parts(data, "=IH10x"):  # nlmsghdr
        if kind == 3:  # NLMSG_DONE, with a negative error number if the table could not be read
            if int.from_bytes(body[:4], sys.byteorder, signed=True) < 0:
                raise ValueError("sock_diag failed")
            return rows, True
        if kind != _GETSOCK or len(body) < 72:
            raise ValueError("not an answer of sock_diag")
        # inet_diag_msg: family, state, ports and addresses of both ends; at the end uid and inode
        family, state, *ports, here, there, uid, inode = struct.unpack_from("=BBxxHH16s16s24xII", body)
        if family in (2, 10):
            size, (port, peer_port) = 4 if family == 2 else 16, map(socket.ntohs, ports)
            peer = Endpoint(_address(there[:size]), peer_port) if peer_port else None
            v6only = _v6only_attribute(body[72:]) if family == 10 else None
            rows.append(_Socket(_address(here[:size]), port, state == _LISTEN, peer, None, uid, inode, v6only))
    return rows, False


def _v6only_attribute(attributes: bytes) -> bool | None:
    value = dict(_parts(attributes, "=HH")).get(11)  # INET_DIAG_SKV6ONLY
    return bool(value[0]) if value else None


def _parts(data: bytes, head: str) -> Iterator[tuple[int, bytes]]:
    """The parts of a netlink message: each begins with a header whose first two numbers are length and kind."""
    import struct

    size = struct.calcsize(head)
    while len(data) >= size:
        length, kind = struct.unpack_from(head, data)
        yield kind, data[size:length]
        data = data[max(size, (length + 3) & ~3) :]


def _ask_proc_net(port: int | None, every: bool = False, protocol: str = "tcp") -> _MaybeSockets:
    """/proc/net/tcp and tcp6, if netlink is refused: listeners, or every state."""
    rows: _Sockets = []
    for name in (protocol, f"{protocol}6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii", errors="replace") as table:
                if "local_address" not in table.readline():  # WSL 1 has an empty one
                    return None
                rows += _parse_proc_net(table, every)
        except OSError as error:  # without tcp6, IPv6 is switched off; without tcp, nothing is known
            if name == protocol or not isinstance(error, FileNotFoundError):
                return None
    return rows


def _parse_proc_net(lines: Iterable[str], every: bool = False) -> _Sockets:
    """Rows of /proc/net/tcp{,6}; listeners come first, so the kernel need not print the rest."""
    rows = []
    for line in lines:
        fields = line.split()
        try:
            local, peer = _hex_endpoint(fields[1]), _hex_endpoint(fields[2])
            listening, uid, inode = int(fields[3], 16) == _LISTEN, int(fields[7]), int(fields[9])
        except (IndexError, ValueError, OverflowError):  # the header, or not a row
            continue
        if not line.isascii():  # int() accepts other digits, too
            continue
        if not (listening or every):
            break
        rows.append(_Socket(*local, listening, peer if peer.port else None, None, uid, inode, None))
    return rows


def _hex_endpoint(text: str) -> Endpoint:
    """
    >>> str(_hex_endpoint("0100007F:1F40" if sys.byteorder == "little" else "7F000001:1F40"))
    '127.0.0.1:8000'
    """
    digits, _, port = text.partition(":")
    if len(port) != 4:
        raise ValueError(text)
    words = (int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8))
    return Endpoint(_address(b"".join(words)), int(port, 16))


def _address(raw: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _contents(path: str) -> bytes:
    """All of a file, in half the time that open() takes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        contents = part = os.read(descriptor, 65536)
        while part:
            part = os.read(descriptor, 65536)
            contents += part
        return contents
    finally:
        os.close(descriptor)


def _file_of(pid: int | str, name: str) -> bytes:
    """A file of a process; empty if the process has gone, or is another user's."""
    try:
        return _contents(f"/proc/{pid}/{name}")
    except OSError:
        return b""


def _link(path: str) -> str:
    """The target of a link in /proc; empty if it cannot be read."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _session_of(pid: int) -> int:
    """The session of a process; 0 if it has gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _by_age(process: _Process) -> tuple[float, int]:
    return process.started or 0.0, process.pid


def _numbers(pid: int | str | None, field: str) -> list[int]:
    """The numbers in a field of /proc/PID/status (Uid: real, effective, saved, file system)."""
    line = _file_of(pid or "", "status").partition(f"\n{field}:".encode())[2].partition(b"\n")[0]
    return [int(number) for number in line.split() if number.isdigit()]


class _Linux(_System):
    """Linux and Android."""

    native = True
    sources = (_ask_sock_diag, _ask_proc_net, _ask_ss, _ask_lsof, _ask_netstat)

    def every_socket(self, port: int) -> _Sockets:
        rows = _ask_sock_diag(port, True)
        rows = _ask_proc_net(port, True) if rows is None else rows
        return [row for row in rows or () if row.port == port]

    def owners(self, sockets: _Sockets, thorough: bool, among: _Pids | None = None) -> _Sockets:
        """Known processes are checked first, then the others from the youngest down.

        A development server is young, and its relatives often share its sockets: they come next. An unrelated process
        that shares the socket is found when the caller looks again after stopping; a thorough search checks them all.
        """
        links = {f"socket:[{row.inode}]": row.inode for row in sockets if row.inode}
        if not links or not _proc_is_ours(os.getpid()):
            among = ()
        held: dict[int, set[int]] = {}  # by PID, for each process checked
        family: list[int] = []
        missing, owned = {*links.values()}, []
        others = iter([*self.known, *_pids_from_the_youngest()] if among is None else among)
        while family or missing or thorough:
            pid = family.pop() if family else next(others, None)
            if pid is None:
                break
            if pid not in held:
                held[pid] = _sockets_of(pid, links)
                missing -= held[pid]
                family += self.relatives(pid) if held[pid] and among is None else ()
        for row in sockets:
            pids: list[int | None] = [pid for pid, inodes in held.items() if row.inode in inodes]
            owned += [row._replace(pid=pid) for pid in pids or [None]]
        return owned

    def relatives(self, pid: int) -> set[int]:
        """The parent, the children and the nearest siblings, without reading every process of the machine."""
        process = self.process(pid)
        if process is None or process.parent is None:  # gone
            return set()
        siblings = sorted([pid, *self.children(process.parent)])
        first = max(0, siblings.index(pid) - _SIBLINGS)
        return {process.parent, *siblings[first : first + 2 * (_SIBLINGS + 1)], *self.children(pid)}

    def children(self, pid: int) -> list[int]:
        lists = [_file_of(pid, f"task/{thread}/children").split() for thread in _threads_of(pid)]
        if not any(lists) and not os.path.exists("/proc/thread-self/children"):  # this kernel was built without it
            for each in _pids_from_the_youngest():
                self.process(each)
            return super().children(pid)
        return [int(child) for children in lists for child in children]

    def read(self, pid: int) -> _Processes:
        """From /proc/PID/stat (see proc(5); the name may contain blanks and brackets)."""
        try:
            head, _, tail = _contents(f"/proc/{pid}/stat").rpartition(b")")
            state, *numbers = tail.split()[:20]
            parent, group, session, tty, _, flags, *_, threads, _, start = map(int, numbers)
            started = _boot_time() + start / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            return {}
        name = _clean(os.fsdecode(head.partition(b"(")[2]))
        gone, leader = state in b"ZXx" and threads <= 1, session == pid and tty != 0
        kernel, forked = bool(flags & 0x00200000), bool(flags & 0x40)  # PF_KTHREAD, PF_FORKNOEXEC
        return {pid: _Process(pid, parent, group, tty, start, started, "", name, "", gone, kernel, forked, leader)}

    def unreadable(self, pid: int) -> list[int]:
        hidden = not os.access(f"/proc/{pid}/fd", os.R_OK)
        return _numbers(pid, "Uid") if hidden and _numbers(pid, "VmSize") else []  # without memory, it is exiting

    def exists(self, pid: int) -> bool | None:
        if _proc_is_ours(os.getpid()) and _numbers(pid, "Tgid") == [pid]:
            return True
        try:
            os.getpgid(pid)
        except (ProcessLookupError, OverflowError):
            return False
        return None

    def describe(self, process: _Process) -> _Description:
        uids = _numbers(process.pid, "Uid")  # not the owner of /proc/PID, which is root after setuid
        command = os.fsdecode(_file_of(process.pid, "cmdline").rstrip(b"\0")).replace("\0", " ")
        return _Description(_user_name(uids[1]) if uids else "", _clean(command), _clean(_cwd_of(process.pid)[1]))

    def environ(self, pid: int) -> dict[str, str]:
        variables = os.fsdecode(_file_of(pid, "environ")).split("\0")
        return {name: text for name, _, text in (variable.partition("=") for variable in variables)}

    def folder(self, pid: int, cwd: str) -> str | None:
        link, path = _cwd_of(pid)
        if path.endswith(" (deleted)") and not os.path.exists(path):
            return path[: -len(" (deleted)")]  # another one may stand there again
        return path if os.path.samefile(link, path) else None

    def open(self, pid: int) -> int | None:
        try:
            return os.pidfd_open(pid)
        except (OSError, OverflowError, AttributeError):  # it has gone; an old kernel or Python; a sandbox
            return None

    def has_exited(self, pin: _Pin) -> bool | None:
        return (pin.handle is None and self.exists(pin.pid) is False) or super().has_exited(pin)

    def wait(self, handles: list[int], seconds: float) -> bool:
        import select

        if not hasattr(select, "poll"):  # eventlet removes it
            return bool(select.select(handles, (), (), seconds)[0])
        poll = select.poll()
        for handle in handles:
            poll.register(handle, select.POLLIN)
        return bool(poll.poll(int(seconds * 1000 + 0.999)))

    def send(self, pin: _Pin, number: int) -> None:
        import signal

        if pin.handle is not None:
            try:
                return signal.pidfd_send_signal(pin.handle, number)
            except ProcessLookupError:
                raise
            except OSError:  # another user's, or a sandbox that refuses this one call
                if self.has_exited(pin):
                    raise ProcessLookupError from None
        super().send(pin, number)

    def other_user(self, holder: Holder, sockets: _Sockets) -> str | None:
        uids, mine = {*_numbers(holder.pid, "Uid")}, os.geteuid()
        if uids != {mine}:
            return holder.user if uids else None
        openers = {row.uid for row in sockets if row.pid == holder.pid} - {None, mine} if mine else ()
        return " and ".join(f"{_user_name(uid or 0)}, who opened its socket" for uid in openers)

    def managed_by(self, holder: Holder, port: int, pids: _Pids) -> Manager | None:
        container = _container_of(holder.pid or "")
        if container and container != _container_of("self"):
            return _container_by_identity(*container)
        if len(_numbers(holder.pid, "NSpid")) > len(_numbers("self", "NSpid")):
            return Manager("a container or sandbox of its own (a PID namespace)", "")
        if holder.name == "systemd":
            return _socket_unit(port, "" if holder.pid == 1 else "--user ")
        return super().managed_by(holder, port, pids) or _unit_of(self.process(holder.pid))

    def protects(self, holder: Holder) -> str | None:
        if holder.pid == 1 and _has_own_pids():
            return "it is this container's main process: restart the container"
        return super().protects(holder)

    def ends_the_container(self, pids: _Pids, ancestry: _Pids) -> bool:
        """Of what runs in the session of the first process (docker exec starts another), a shell script waits for its
        youngest child. Another program may end with any child, unless it lives on for this process.
        """
        ending, first = {*pids}, _session_of(1)
        for pid in (pid for pid in pids if _has_own_pids() and _session_of(pid) == first):
            line = self.started_by(pid)
            for child, parent in zip(line, line[1:]):
                others = {*self.children(parent.pid)} - ending
                if _is_shell(os.path.basename(_link(f"/proc/{parent.pid}/exe"))):
                    beside = [self.process(other) for other in others if _session_of(other) == first]
                    waits = all(each is None or _by_age(each) < _by_age(child) for each in beside)
                else:
                    waits = parent.pid != os.getpid() and not others.intersection(ancestry)
                if not waits:
                    break
                ending.add(parent.pid)
        return 1 in ending

    def state(self, pid: int) -> str:
        if _file_of(pid, "stat").rpartition(b")")[2].startswith(b" T"):
            return "suspended"
        return "deleted" if _link(f"/proc/{pid}/exe").endswith(" (deleted)") else ""

    def beside(self, port: int) -> list[str]:
        """Listeners at other addresses, which a server on localhost or :: would meet; and UDP programs."""
        holders = _holders(self, self.owners(self.sockets(port) or [], False))
        found = [f"{', '.join(map(str, holder.addresses))} is held by process {holder}" for holder in holders]
        if any(row.port == port for row in _ask_proc_net(port, True, "udp") or ()):
            found.append("a UDP program has the same number, and is not in the way")
        return found

    def hint(self, port: int, host: str) -> str:
        rows = _blocking([row for row in self.every_socket(port) if row.peer], _addresses(host, port))
        for row in self.owners([row for row in rows if row.inode], True):
            holder = next(iter(_holders(self, [row])), None)
            whom = f"process {holder}" if holder and holder.pid else "a process that you may not see"
            return (
                f"port {port} is the local end of a connection from {whom} to {row.peer}; a client is never stopped: "
                "close that connection, or choose another port"
            )
        if rows:
            return f"the system is still closing connections of a former server on port {port}; try again in a minute"
        why = "on a kernel before 6.8, a socket that is bound and not listening cannot be named either"
        if "microsoft" in os.uname().release.lower():  # WSL
            why = f"a program of Windows may, too; in a terminal of Windows, netstat -ano | findstr :{port} tells"
        return f"nobody who may be seen holds port {port}; another user, container or namespace may ({why})"


@lru_cache(maxsize=None)
def _boot_time() -> float:
    """When Linux was started; cached, so that processes started in the same tick have the same time."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


@lru_cache(maxsize=1)
def _proc_is_ours(me: int) -> bool:
    """Whether /proc numbers processes as kill() does: it may show those of another PID namespace.

    This process may have the same number there by chance; NSpid then lists its number here as well.
    """
    return _link("/proc/self") == str(me) and _numbers("self", "NSpid") in ([], [me])  # []: before Linux 4.1


def _pids_from_the_youngest() -> list[int]:
    """PIDs are assigned upwards and wrap around: those above the last assigned one are the oldest."""
    try:
        pids = sorted(map(int, filter(str.isdigit, os.listdir("/proc"))), reverse=True)
    except OSError:
        return []
    try:
        last = int(_contents("/proc/loadavg").split()[-1])
    except (OSError, ValueError, IndexError):  # a /proc that shows only processes
        return pids
    return [pid for pid in pids if pid <= last] + [pid for pid in pids if pid > last]


def _sockets_of(pid: int, links: dict[str, int], thread: str = "") -> set[int]:
    """The sockets that this process holds, out of these; empty if it has gone or cannot be read.

    If no descriptor is seen, its first thread may have ended: then the other threads are tried.
    """
    held: set[int] = set()
    descriptors: list[str] = []
    try:
        folder = os.open(f"/proc/{pid}{thread}/fd", os.O_RDONLY)
        try:
            descriptors = os.listdir(folder)
            for descriptor in descriptors:
                try:
                    inode = links.get(os.readlink(descriptor, dir_fd=folder))
                except FileNotFoundError:  # closed in the meantime
                    continue
                if inode is not None:
                    held.add(inode)
                    if len(held) == len(links):  # a busy server also has a descriptor for each connection
                        break
        finally:
            os.close(folder)
    except OSError:  # it has gone
        pass
    if descriptors or thread:
        return held
    return next(filter(None, (_sockets_of(pid, links, f"/task/{other}") for other in _threads_of(pid))), held)


def _cwd_of(pid: int) -> tuple[str, str]:
    """The link to the working directory of a process, and its target; if its first thread has ended, another's."""
    first = f"/proc/{pid}/cwd"
    path = _link(first)
    if path:
        return first, path
    links = (f"/proc/{pid}/task/{thread}/cwd" for thread in _threads_of(pid))
    return next(filter(lambda pair: pair[1], ((link, _link(link)) for link in links)), (first, ""))


def _threads_of(pid: int) -> list[str]:
    """The thread IDs of a process, its PID first; empty if it has gone."""
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


# Managers of processes on Linux: container engines, systemd.


def _cgroups(pid: int | str) -> list[str]:
    """The control groups of a process, as paths."""
    lines = _file_of(pid, "cgroup").decode("utf-8", "replace").splitlines()
    return [_clean(line.split(":", 2)[-1]) for line in lines]


def _has_own_pids() -> bool:
    """Whether this process is in a PID namespace other than the host's."""
    return _link("/proc/self/ns/pid") not in ("", _HOST_NAMESPACE)


def _container_of(pid: int | str) -> tuple[str, str] | None:
    """The engine and ID of the container that a process runs in, by its control groups."""
    return next(filter(None, map(_container_in, _cgroups(pid))), None)


def _container_in(path: str) -> tuple[str, str] | None:
    """
    >>> _container_in(f"/docker/{64 * '0'}/system.slice/libpod-{64 * '1'}.scope/web.service") == ("podman", 64 * "1")
    True
    """
    parts = path.split("/")
    for above, part in zip(parts[-2::-1], parts[:0:-1]):  # the innermost first
        name = part[: -len(".scope")] if part.endswith(".scope") else part
        engine, _, identity = name.rpartition("-")
        if len(identity) == 64 and not identity.strip("0123456789abcdef"):
            return {"docker": "docker", "libpod": "podman"}.get(engine or above, ""), identity
        if name.startswith(("lxc.payload.", "machine-")) or above == "lxc":
            return "", name
    return None


def _container(condition: str, otherwise: Manager | None, endpoints: Sequence[Endpoint] = ()) -> Manager | None:
    """The one container that matches, as docker or podman reports it; it is never guessed."""
    for engine in ("docker", "podman"):
        lines = _output(engine, "ps", "--filter", condition, "--format", "{{.Names}}\t{{.Ports}}").splitlines()
        if len(lines) > 1:  # one port on several addresses
            lines = [line for line in lines if any(f"{endpoint}->" in line for endpoint in endpoints)]
        if len(lines) == 1:
            name = _clean(lines[0].partition("\t")[0])
            return Manager(f"the {engine} container {name}", f"{engine} stop {name}")
    return otherwise


def _container_by_identity(engine: str, identity: str) -> Manager | None:
    """The container as its engine names it; if the engine does not answer, by the ID in its control group."""
    if len(identity) != 64:
        return Manager(f"the container {identity}", "")
    stop = f"{engine} stop {identity[:12]}" if engine else ""
    return _container(f"id={identity}", Manager(f"the container {identity[:12]}", stop))


def _published(holder: Holder, port: int) -> Manager | None:
    """The container whose published port this process holds; for a hidden process nothing is guessed."""
    _, podman, words = holder.command.partition(" -c ")
    if holder.name == "conmon" and podman:
        return _container_by_identity("", words.partition(" ")[0])
    if holder.pid is None and (_container_of("self") or _has_own_pids()):
        return None  # an engine publishes ports on the host, not in our network
    ways = f"docker stop NAME (docker ps --filter publish={port} tells the name; podman likewise)"
    engine = Manager("a container's engine", ways) if holder.pid else None
    return _container(f"publish={port}/tcp", engine, holder.addresses)


_LOGINS_AND_JOBS = ("ssh", "sshd", "getty", "serial-getty", "cron", "crond", "atd")  # what they start is not theirs


def _unit_of(process: _Process | None) -> Manager | None:
    """The systemd service that a process belongs to, unless this process belongs to it, too."""
    ours = {part for path in _cgroups("self") for part in path.split("/")}
    for path in _cgroups(process.pid) if process else ():
        services = [part for part in path.split("/") if part.endswith(".service") and not part.startswith("user@")]
        unit, user = services[-1] if services else "", "--user " if "/user@" in path else ""
        if not unit or unit in ours or unit[: -len(".service")].partition("@")[0] in _LOGINS_AND_JOBS:
            continue
        desktop = unit.startswith("dbus-") or (unit.startswith("app-") and "@" in unit)
        if not (user and (desktop or (process and process.tty))):  # a terminal is a unit; a program in it is not
            return Manager(f"the systemd service {unit}", f"systemctl {user}stop {_quoted(unit)}")
    return None


def _socket_unit(port: int, user: str) -> Manager:
    """The socket unit for which systemd holds a port, and its service; columns: LISTEN, UNIT, ACTIVATES."""
    for line in _output("systemctl", *user.split(), "list-sockets", "--all", "--no-legend", "--no-pager").splitlines():
        fields = _clean(line).split()
        if len(fields) >= 3 and fields[0].rpartition(":")[2].partition("%")[0] == str(port):
            units = " ".join(_quoted(unit) for unit in fields[-2:] if unit != "-")
            return Manager(f"systemd, for {fields[-2]},", f"systemctl {user}stop {units}")
    ways = f"systemctl {user}stop NAME.socket (systemctl {user}list-sockets tells it)"
    return Manager("systemd, for a socket unit,", ways)


class _BSD(_System):
    """The BSDs (lsof is one of their packages), and what macOS shares with them: one ps lists every process."""

    # With SO_REUSEADDR, two sockets conflict only if their addresses are equal.
    shadows: Mapping[str, str] = {"0.0.0.0": "127.0.0.1", "127.0.0.1": "0.0.0.0", "::": "::1", "::1": "::"}

    def read(self, pid: int) -> _Processes:
        keys = ("pid", "ppid", "pgid", "state", "tty", "user", "lstart", "command")
        options = [word for key in keys for word in ("-o", f"{key}=")]  # FreeBSD reads all after a = as a heading
        # The second ps lists the programs, whose names may contain blanks.
        return _parse_ps(_output("ps", "-axww", *options), _output("ps", "-axww", "-o", "pid=", "-o", "comm="))

    def describe(self, process: _Process) -> _Description:
        answer = _run("lsof", "-a", "-p", str(process.pid), "-d", "cwd", "-F", "n")
        cwd = answer.output.partition("\nn")[2].partition("\n")[0] if answer else ""
        return _Description(process.user, process.command, _clean(_unescaped(cwd)))

    def sleep(self, pins: Iterable[_Pin], seconds: float) -> None:
        """By the kernel's event queue."""
        import select

        events: Any = select  # kqueue is not on every system
        queue = events.kqueue()
        try:
            flags = events.KQ_EV_ADD | events.KQ_EV_ONESHOT
            exits = [events.kevent(pin.pid, events.KQ_FILTER_PROC, flags, events.KQ_NOTE_EXIT) for pin in pins]
            queue.control(exits, 1, seconds)
        except ProcessLookupError:  # one has exited already
            pass
        finally:
            queue.close()


def _unescaped(text: str) -> str:
    """Undo the escapes that lsof writes with LC_ALL=C.

    >>> _unescaped(r"/Users/alice/\\xe9\\xa1\\xb9\\xe7\\x9b\\xae"), _unescaped("/项目")
    ('/Users/alice/项目', '/项目')
    """
    try:
        return text.encode("ascii").decode("unicode_escape").encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


class _FreeBSD(_BSD):
    """FreeBSD: sockstat is in its base system. Jails are not handled."""

    sources = (_ask_sockstat, _ask_lsof)


class _MacOS(_BSD):
    """macOS: launchctl lists the jobs of launchd."""

    sources = (_ask_macos,)
    listed: Mapping[str, tuple[str, str]] = {}  # what jobs() said, asked once
    forwarders: Mapping[str, str] = {
        **_FORWARDERS,
        "controlcenter": "it is the AirPlay Receiver, which comes back when killed; choose another port, or switch it "
        "off in System Settings, General, AirDrop & Handoff (or Continuity)",
        "launchd": "it keeps the port for a job whose property list names the port; launchctl bootout ends that job",
    }

    def managed_by(self, holder: Holder, port: int, pids: _Pids) -> Manager | None:
        """Also launchd, as an ancestor: its job may be a script that restarts the server."""
        found = super().managed_by(holder, port, pids)
        if found or holder.pid is None:
            return found
        jobs = self.listed = self.listed or self.jobs()
        for process in self.started_by(holder.pid) if jobs else ():
            domain, label = jobs.get(str(process.pid), ("", ""))
            if label[:12] != "application." and label:
                return Manager("launchd", f"launchctl bootout {_quoted(f'{domain}/{label}')}")
            if label and process.pid == holder.pid:  # a terminal is one, too, and not what is started in it
                return Manager("the desktop, as an application,", "")
        return None if jobs else Manager("launchd, perhaps (launchctl list does not answer),", "")

    def jobs(self) -> dict[str, tuple[str, str]]:
        """The domain and the label of launchd's jobs, by PID; over ssh and in tmux, ``list`` shows not all of them."""
        domains = ["system"] if self.is_superuser() else [f"gui/{os.getuid()}", f"user/{os.getuid()}"]
        found: dict[str, tuple[str, str]] = {}
        for domain, *words in (*((each, "print", each) for each in domains), (domains[0], "list")):
            rows = (line.split(None, 2) for line in _output("launchctl", *words).splitlines())
            found.update((row[0], (domain, row[2])) for row in rows if len(row) == 3 and row[0] not in found)
        return found


# Windows: its own tables, with the layouts from its headers. A table points into its own buffer, so a parser also
# takes the buffer's address. Empty data: the call failed.

_ENTRY = "@I28xq16x4xP4xPP"  # SYSTEM_PROCESS_INFORMATION: next entry, start, (name,) PID, parent


def _parse_processes(data: bytes, address: int) -> dict[int, tuple[int, int, str]]:
    """(parent, start, program) of every process, by PID."""
    import struct

    found, place, step = {}, 0, len(data)
    while step:
        step, start, _, pid, parent = struct.unpack_from(_ENTRY, data, place)
        found[pid] = parent, start, _parse_text(data, address, place + 56)
        place += step
    return found


def _parse_text(data: bytes, address: int, place: int = 0) -> str:
    """A UNICODE_STRING: a length in bytes, and the address of the text."""
    import struct

    length, text = struct.unpack_from("@H2xP", data, place) if data else (0, 0)
    return data[text - address : text - address + length].decode("utf-16-le", "replace")


def _parse_user(data: bytes, address: int) -> str:
    """TOKEN_USER: the address of a SID (MS-DTYP, 2.4.2), returned as text: S-1-5-18 is the system."""
    import struct

    if not data:
        return ""
    place = int.from_bytes(data[: struct.calcsize("P")], "little") - address
    return "S-" + "-".join(map(str, struct.unpack_from(f"<B6xB{data[place + 1]}I", data, place)))


def _parse_tcp_table(data: bytes, v6: bool) -> _Sockets:
    """MIB_TCPROW_OWNER_PID or MIB_TCP6ROW_OWNER_PID, all listeners; a dual-stack socket has a row in both tables."""
    import struct

    layout, family = ("=16s4xH30xI", socket.AF_INET6) if v6 else ("=4x4sH10xI", socket.AF_INET)
    rows = data[4 : 4 + struct.calcsize(layout) * int.from_bytes(data[:4], sys.byteorder)]
    return [  # PID 0: unknown
        _Socket(socket.inet_ntop(family, host), socket.ntohs(port), True, None, pid or None, None, 0, v6)
        for host, port, pid in struct.iter_unpack(layout, rows)
    ]


def _parse_netstat_ano(text: str) -> dict[Endpoint | None, int | None]:
    """The PIDs of listeners: TCP rows whose foreign address is zero; their state is in the system's language."""
    import re

    rows = re.findall(r"(?m)^ *TCP +(\S+) +(?:0\.0\.0\.0|\[::\]):0 [^\r\n]* (\d+)\s*$", text)
    return {_endpoint(local): _number(pid, 2) for local, pid in rows}


_WINDOWS_SERVICES = {
    **dict.fromkeys(
        ("svchost.exe", "services.exe", "lsass.exe", "wininit.exe", "spoolsv.exe"),
        "it is a service of Windows, perhaps a port proxy; netsh interface portproxy show all lists those",
    ),
    "system": "it is the Windows kernel (http.sys); netsh http show servicestate names the service",
    **dict.fromkeys(("wslrelay.exe", "wslhost.exe"), "it relays the port to a program in WSL; stop that one there"),
    **{f"{name}.exe": why for name, why in _FORWARDERS.items()},
}


class _Windows(_System):
    """Windows: its own functions through ctypes, netstat if they do not name the owner, and taskkill.

    A process keeps its parent's PID for life, even if another process has that PID since. So a parent that
    has ended is 0 in a _Process; ``born_of`` has the number that Windows keeps.
    """

    first_pids = (0, 4)
    colours = "WT_SESSION" in os.environ  # set by Windows Terminal; the older console must be switched to colours first
    elevated = "as an administrator, python"
    redirects = True
    forwarders = _WINDOWS_SERVICES
    born_of: Mapping[int, int] = {}

    def sockets(self, port: int | None) -> _MaybeSockets:
        rows = _tcp_tables()
        if not rows:
            return rows
        rows = [row for row in rows if port in (None, row.port)]
        if not all(row.pid for row in rows):
            owners = _parse_netstat_ano(_output(_windows_tool("NETSTAT.EXE"), "-ano"))
            rows = [row._replace(pid=row.pid or owners.get(Endpoint(row.address, row.port))) for row in rows]
        self.known = self.read(0) or self.known  # since the last look, a PID may have been reused
        return [row._replace(pid=pid) for row in rows for pid in self.heirs(row.pid)]

    def heirs(self, owner: int | None) -> Iterable[int | None]:
        """The owner; if it has ended, the workers that it passed the socket on to, as multiprocessing starts them.

        Any other child may be one that has no socket, or the child of an earlier process with that PID.
        """
        if owner is None or owner in self.known or not self.known:
            return [owner]
        children = (each for each in self.known.values() if self.born_of.get(each.pid) == owner)
        mark = f"spawn_main(parent_pid={owner},"
        return [child.pid for child in children if mark in self.describe(child).command] or [None]

    def read(self, pid: int) -> _Processes:
        """Every process of the machine: one table has them all."""
        entries = _parse_processes(*_written_by("ntdll", lambda ntdll, *to: ntdll.NtQuerySystemInformation(5, *to)))
        self.born_of = {each: parent for each, (parent, _, _) in entries.items()}
        found = {}
        for each, (parent, start, name) in entries.items():
            parent = parent if parent in entries and not 0 < start < entries[parent][1] else 0
            started = start / 1e7 - 11644473600 if start else None  # a file time counts 100 ns since 1601
            facts = (start, started, "", _clean(name), "", False, False, False, False)
            found[each] = _Process(each, parent, None, None, *facts)
        return found

    def describe(self, process: _Process) -> _Description:
        handle = self.open(process.pid)
        if handle is None:
            return _Description("", "", "")
        # 60: ProcessCommandLineInformation, since Windows 8.1.
        text = _written_by("ntdll", lambda ntdll, of, *to: ntdll.NtQueryInformationProcess(of, 60, *to), handle)
        user = _user_of(handle)
        _winapi().CloseHandle(handle)
        if user and user == _user_of(-1):  # the handle of this process
            user = self.me()
        return _Description(user, _clean(_parse_text(*text)), "")

    def open(self, pid: int) -> int | None:
        """A handle, which keeps the PID from being reused."""
        try:
            return int(_winapi().OpenProcess(0x00101000, False, pid))  # SYNCHRONIZE, PROCESS_QUERY_LIMITED_INFORMATION
        except OSError:  # it has gone, or is another user's
            return None

    def close(self, handle: int) -> None:
        _winapi().CloseHandle(handle)

    def wait(self, handles: list[int], seconds: float) -> bool:
        """Wait only briefly, since one wait takes 63 handles. Ctrl+C ends it; it does not end a wait through ctypes."""
        milliseconds = int(min(seconds, 0.2) * 1000 + 0.999)
        return bool(_winapi().WaitForMultipleObjects(handles[:63], False, milliseconds) != 0x102)  # WAIT_TIMEOUT

    def way(self, options: _Options) -> str:
        return f"asked to stop (forced at once if it cannot be asked), forced after {options.grace:g} s"

    def signal(self, pin: _Pin, options: _Options, firmly: bool) -> None:
        """A console program cannot be asked to stop: taskkill says at once, in any language, that /F is needed."""
        tool, force, limit = _windows_tool("taskkill.exe"), ["/F"] * firmly, 5 * TOOL_TIMEOUT
        answer = _run(tool, "/PID", str(pin.pid), *force, timeout=limit) or _Answer(1, "", f"nothing in {limit:g} s")
        # 128: no such process. If the handle says that it still runs, it has no window to ask.
        if not firmly and answer.status and (answer.status == 128 or "/F" in answer.output + answer.complaint):
            self.stop(pin, options, True)
        elif answer.status and not self.has_exited(pin):
            raise OSError(0, f"taskkill says: {_clean((answer.complaint or answer.output).strip())}")

    def is_superuser(self) -> bool:
        return False

    def managed_by(self, holder: Holder, port: int, pids: _Pids) -> Manager | None:
        line = self.started_by(holder.pid)
        for child, parent in zip(line, line[1:]):  # svchost.exe also starts what a user's task or desktop asks for
            if parent.name.lower() == "services.exe" and child.name.lower() != "svchost.exe":
                return Manager("Windows, as a service,", "")
        return super().managed_by(holder, port, pids)

    def me(self) -> str:
        return os.getlogin()

    def ends_a_terminal(self, process: _Process) -> bool:
        """Whether it is an interactive shell, or a pseudo console (CreatePseudoConsole starts a conhost)."""
        words = {*self.describe(process).command.lower().split()}
        if process.name.lower() in ("conhost.exe", "openconsole.exe"):
            return "--headless" in words
        return _is_shell(process.name) and ("-noexit" in words or not words & {"/c", "-c", "-command"})


def _tcp_tables() -> _MaybeSockets:
    """Every listener; if IPv6 is switched off, it has no table."""
    four, six = (  # 2 and 23: AF_INET and AF_INET6 of Windows; 3: TCP_TABLE_OWNER_PID_LISTENER
        _written_by("iphlpapi", lambda api, rows, _, size, af=af: api.GetExtendedTcpTable(rows, size, 0, af, 3, 0))[0]
        for af in (2, 23)
    )
    return _parse_tcp_table(four, False) + _parse_tcp_table(six, True) if four else None


def _user_of(process: int) -> str:
    """The SID of the user of a process, by its handle; empty: cannot tell."""
    opened, _ = _written_by("advapi32", lambda api, of, token, *_: not api.OpenProcessToken(of, 8, token), process)
    if not opened:
        return ""
    token = int.from_bytes(opened[:8], "little")
    user = _written_by("advapi32", lambda api, of, *buffer: not api.GetTokenInformation(of, 1, *buffer), token)
    _winapi().CloseHandle(token)
    return _parse_user(*user)


def _written_by(library: str, call: Callable[..., int], *handles: int) -> tuple[bytes, int]:
    """What a call writes, and its address. Arguments: library, handles, buffer, size, size needed; 0: success."""
    import ctypes

    windows: Any = ctypes  # WinDLL exists only on Windows
    for size in (1 << 16, 1 << 20, 1 << 23):  # few processes need the second, few machines the third
        buffer, needed = ctypes.create_string_buffer(size), (ctypes.c_uint32 * 1)(size)
        if call(windows.WinDLL(library), *map(ctypes.c_void_p, handles), buffer, size, needed) == 0:
            return buffer.raw, ctypes.addressof(buffer)
    return b"", 0


def _winapi() -> Any:
    import importlib

    return importlib.import_module("_winapi")  # CPython's own; multiprocessing waits for processes with it


def _windows_tool(name: str) -> str:
    """The full path of a tool: a bare name would be looked up in the current folder first."""
    return os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", name)


def _system_of(platform: str) -> type[_System]:
    """The class for a value of sys.platform."""
    systems = {"linux": _Linux, "android": _Linux, "darwin": _MacOS, "freebsd": _FreeBSD, "win32": _Windows}
    return next((system for name, system in systems.items() if platform.startswith(name)), _BSD)


_ThisSystem = _system_of(sys.platform)


# ----------------------------------------------------------------------------------------------------
# One look: the processes that keep a server from binding here, pinned and described
# ----------------------------------------------------------------------------------------------------


class _Look(NamedTuple):
    """The processes that keep a server from binding, at one moment; they are pinned."""

    port: int
    host: str
    system: _System
    sockets: _Sockets
    holders: list[Holder]
    managers: _Managers  # filled by _decide, since finding them may start tools
    ancestry: _Ancestry

    @property
    def pids(self) -> list[int]:
        """The PIDs of the holders that are not hidden."""
        return [holder.pid for holder in self.holders if holder.pid]


def _look(system: _System, port: int, host: str, pid: int | None = None) -> _Look:
    """Look at a port and all of its holders, or at one process; CannotTell if no source lists the sockets."""
    sockets = _search(system, port, host, True) if pid is None else []
    system.hold({row.pid for row in sockets if row.pid} if pid is None else {pid})
    system.hold(_masters(system, sockets))
    holders = _holders(system, sockets, _masters(system, sockets) if pid is None else [pid])
    return _Look(port, host, system, sockets, holders, {}, system.ancestry())


def _search(system: _System, port: int | None, host: str | None, thorough: bool) -> _Sockets:
    """The sockets on a port that keep a server from binding the host, one row per owner."""
    wanted = _addresses(host, port or 0) if host is not None else None
    rows = system.sockets(port)
    if rows is None:
        which = f"port {port}: it is treated as held" if port else "which port"
        raise CannotTell(f"nothing on this system could tell who holds {which}", port or 0, host or "")
    rows = _blocking(rows, wanted)
    if port is not None and (thorough or not rows):
        bound = [row for row in system.every_socket(port) if not row.listening and row.peer is None]
        rows = rows + _blocking(bound, wanted)
    rows = system.owners(rows, thorough)
    return rows if host is None else _without_idle(system, rows)


def _blocking(rows: _Sockets, wanted: list[_Address] | None) -> _Sockets:
    """The sockets that conflict with one of the addresses; if none certainly does, those that might."""
    if wanted is None:
        return rows
    verdicts = [(row, _verdict(row, wanted)) for row in rows]
    return [row for row, found in verdicts if found] or [row for row, found in verdicts if found is None]


def _verdict(row: _Socket, wanted: list[_Address]) -> bool | None:
    """Whether a socket conflicts with one of the addresses; None: cannot tell."""
    found = {_conflict(row, str(address[0])) for _, address in wanted}
    return True if True in found else None if None in found else False


def _without_idle(system: _System, rows: _Sockets) -> _Sockets:
    """Drop the sockets that are bound, do not listen, and prevent no bind.

    Beside a listener at the same address, a bind probe fails in any case. Then only a socket of the listeners' master
    counts, which would restart them: granian's binds without listening, and spawns its workers from Python 3.14 on.
    If another socket is in the way, the next look finds it, without the listeners.
    """
    listening = [row for row in rows if row.listening]
    masters = {_master(system, row.pid, spawned=True)[0] for row in listening if len(listening) < len(rows)}

    def counts(row: _Socket) -> bool:
        if row.listening or row.pid in masters:
            return True
        if not all(_conflict(other, row.address) is False for other in listening):
            return False
        # With SO_REUSEADDR, its address can be shared until it listens.
        family = socket.AF_INET6 if ":" in row.address else socket.AF_INET
        error = _bind_error(family, (row.address, row.port), row.v6only)
        return error is not None and error.errno == errno.EADDRINUSE

    return list(filter(counts, rows))


def _master(system: _System, pid: int | None, spawned: bool = False) -> tuple[int | None, str]:
    """The parent of a worker that was forked, so runs the same command, or was ``spawned``; and its command."""
    worker = system.process(pid)
    parent = system.process(worker.parent) if worker else None
    if worker is None or parent is None:
        return None, ""
    command, above = (process.command or system.describe(process).command for process in (worker, parent))
    same = (spawned and "multiprocessing" in command) or command == above
    return (parent.pid, above) if command and same else (None, "")


def _masters(system: _System, rows: _Sockets) -> list[int]:
    """The masters whose workers bind their own sockets: they would restart them. Each runs a known server's command.

    A test runner that forks servers is no master; nor is a launcher of a virtual environment's python. A server that
    listens itself is the main one of another port, or a holder by its own sockets.
    """
    found = {_master(system, row.pid) for row in rows if not system.redirects}
    masters = [pid for pid, command in found if pid and find_server(command.split())]
    serving = [row.pid for row in system.listeners_of(masters) or ()] if masters else []
    return [pid for pid in masters if pid not in serving]


def _holders(system: _System, rows: _Sockets, others: Sequence[int] = ()) -> list[Holder]:
    """The owners of the sockets, and the other PIDs, described; parents before their children."""
    grouped: dict[tuple[int | None, int | None], list[Endpoint]] = {(pid, None): [] for pid in others}
    for row in rows:
        who = row.pid, row.uid if row.pid is None else None
        grouped.setdefault(who, []).append(Endpoint(row.address, row.port))
    holders = []
    for (pid, uid), addresses in grouped.items():
        process = system.process(pid)
        if process:
            name, (user, command, cwd) = process.name, system.describe(process)
            fields = (process.parent, user, name, command or name, cwd, process.started)
        elif pid is None or system.exists(pid) is not False:
            fields = (None, _user_name(uid) if uid is not None else "", "", "", "", None)
        else:  # it has just exited, and holds nothing any more
            continue
        holders.append(Holder(pid, *fields, tuple(dict.fromkeys(addresses))))
    return _roots_first(holders)


def _roots_first(holders: list[Holder]) -> list[Holder]:
    """Parents before their children, hidden processes last."""
    families = _families(sorted(holders, key=lambda holder: holder.pid is None))
    ordered = [member for root, children in families for member in (root, *children)]
    return ordered if len(ordered) == len(holders) else holders  # reused PIDs may form a circle


def _families(holders: Sequence[Holder]) -> list[tuple[Holder, list[Holder]]]:
    """Each root with its descendants, parents first; a root is a holder whose parent is not one."""
    pids, found = {holder.pid for holder in holders} - {None}, []
    below: dict[int | None, list[Holder]] = {}
    for holder in holders:
        below.setdefault(holder.parent, []).append(holder)
    for root in holders:
        if root.parent not in pids:
            family = [root]
            for member in family:  # grows while it is read
                family += below.pop(member.pid, ()) if member.pid else ()
            found.append((root, family[1:]))
    return found


def _settled(system: _System, port: int, host: str) -> _Look:
    """A look, repeated for a moment if a holder may be exiting: a socket without an owner, or no socket, is found."""
    for pause in (0.01, 0.03, 0.1, 0.3, 0.6, 0.0):
        look = _look(system, port, host)
        if not pause or 0 < len(look.holders) == len(look.pids) or _probe(port, host) is None:
            break
        system.release()
        time.sleep(pause)
    return look


# ----------------------------------------------------------------------------------------------------
# What must stay: one decision for check, dry run, JSON, free and the automatic start
# ----------------------------------------------------------------------------------------------------


def is_development(environ: Mapping[str, str] | None = None) -> bool:
    """Whether ENVIRONMENT, as it is at this moment, allows stopping the holder of a port.

    >>> [is_development({"ENVIRONMENT": name}) for name in ("", "Dev", "production", "developement")]
    [True, True, False, False]
    """
    value = (os.environ if environ is None else environ).get("ENVIRONMENT", "")
    return value == "" or value.strip().lower() in DEVELOPMENT_NAMES[1:]


def _forbidden() -> str | None:
    if is_development():
        return None
    return f"ENVIRONMENT is {_clean(os.environ['ENVIRONMENT'])!r}: outside development nothing is stopped"


class _Whose(NamedTuple):
    """The project or folder that a process belongs to."""

    name: str  # empty: this project
    foreign: bool  # it is, or may be, another project


def _decide(look: _Look, options: _Options) -> tuple[str | None, str]:
    """Why the holders are left alone, and the question to ask before all of them are stopped.

    The first reason to leave one alone counts for all. "Cannot tell" is such a reason: a process that cannot be seen
    or read (_must_stay), a socket that might not be in the way (_is_not_meant), other ports that cannot be listed
    (_would_end_too). If no source lists the sockets, _search raises CannotTell; _System.stop verifies each process.
    """
    if not look.holders:
        return look.system.hint(look.port, look.host), ""
    found = {holder.pid: look.system.managed_by(holder, look.port, look.pids) for holder in look.holders}
    look.managers.update((pid, manager) for pid, manager in found.items() if manager)
    strangers = ""
    for holder in look.holders:
        asked = options.policy in ("own", "")
        whose = _whose(look.system, holder.pid or 0) if asked else _Whose("", False)
        why = next(_must_stay(look, holder, whose, options), None)
        if look.system.has_gone(holder.pid):
            continue
        if why:
            whom = f"process {holder} is left alone" if holder.pid else f"port {look.port} cannot be freed"
            return f"{whom}: {why}", ""
        strangers += f"Process {holder.pid} belongs to {whose.name}. " if whose.foreign else ""
    why = _would_end_too(look, options)
    if why:
        return f"process {look.holders[0]} is left alone: stopping it would also {why}", ""
    if not strangers and options.policy != "ask":
        return None, ""
    titles = "; ".join(_title(*family) for family in _families(look.holders))
    return None, f"{strangers}Stop process {titles} to free port {look.port}? [y/N] "


def _must_stay(look: _Look, holder: Holder, whose: _Whose, options: _Options) -> Iterator[str]:
    """Every reason to leave a holder alone, in the order of the README's list: a condition and a sentence each."""
    system, manager = look.system, look.managers.get(holder.pid)
    if manager:
        yield f"{manager.name} runs it; stop it " + (f"with: {manager.stop}" if manager.stop else "there")
    if holder.pid is None:
        held_by = f"it is held by a process {f'of user {holder.user} ' if holder.user else ''}"
        if system.is_superuser():
            yield f"{held_by}that cannot be seen from here, perhaps one of another container or namespace"
        # The hint is check, not free, which would stop it.
        yield f"{held_by}that you may not see; to find out: {system.elevated} port_manager.py check {look.port}"
        return
    process = system.process(holder.pid)
    protected = system.protects(holder)
    if protected:
        yield protected
    if process is None:
        yield "it could not be looked at, perhaps because this process has too many open files"
        return
    if process.kernel:
        yield "it is a thread of the kernel"
    if holder.pid == os.getpid():
        yield "it is this very process"
    if holder.pid in look.ancestry.pids:
        yield "it is an ancestor of this process, which would end with it; stop it from another terminal"
    if (process.started or 0.0) <= look.ancestry.hidden:
        yield "it may be one of our own ancestors, which this system does not tell; stop it by hand if you know better"
    if process.leader and (holder.parent in look.pids or _is_shell(process.name)):
        yield "it runs on a terminal of its own, and has only inherited the port; end it there"
    yield from _is_not_meant(look, holder, whose, options)


def _is_not_meant(look: _Look, holder: Holder, whose: _Whose, options: _Options) -> Iterator[str]:
    """The rest: it might not be in the way; it is another user's or project's; the policy leaves it alone."""
    rows = [row for row in look.sockets if row.pid == holder.pid]
    wanted = _addresses(look.host, look.port) if rows else []
    if rows and not any(":" in row.address for row in rows) and all(address[0] == "::" for _, address in wanted):
        yield "it listens on IPv4 alone, beside which many servers can listen on ::; to stop it, name the host 0.0.0.0"
    for row in rows:
        if _verdict(row, wanted) is None:
            yield (
                f"it cannot be told whether its {row.address} keeps {_clean(look.host)} from being bound; if it does: "
                f"port_manager.py free {look.port} --host {row.address}"
            )
    user = look.system.other_user(holder, look.sockets)
    if user is None:
        yield "it cannot be told whose it is"
    elif user and not (holder.parent in look.pids and look.system.is_superuser()):  # workers of root's server
        yield f"it belongs to user {user}; only that user should stop it"
    if options.policy == "refuse":
        yield "the policy 'refuse' stops nobody"
    if options.policy == "ask" and not _can_ask():
        yield "the policy 'ask' needs a terminal to ask on"
    if options.policy == "own" and whose.name:
        ours = _clean(_our_project()) or "this project, and this folder is in none"
        yield f"it belongs to {whose.name}, and the policy 'own' stops only what belongs to {ours}"
    if whose.foreign and not _can_ask():
        yield (
            f"it belongs to {whose.name}; take the next free port (--next), or stop it: "
            f"port_manager.py free {look.port} (PORT_MANAGER_POLICY=kill stops it at every start)"
        )


# Interactive shells, and the desktops that start them: each gives a job a process group of its own.
_SHELLS = ("bash", "zsh", "fish", "sh", "dash", "ksh", "tcsh", "csh", "ash", "busybox", "nu", "xonsh", "elvish", "pwsh",
           "cmd", "powershell", "explorer", "windowsterminal")  # fmt: skip


def _is_shell(program: str) -> bool:
    """Whether a program is a shell, by its name (a login shell's name begins with a dash)."""
    return program.lstrip("-").lower().partition(".exe")[0] in _SHELLS


def _is_job(child: _Process, parent: _Process) -> bool:
    """Whether an interactive shell runs it: in a process group of its own, which a script does not make."""
    return _is_shell(parent.name) and (parent.group is None or parent.group != child.group)


def _would_end_too(look: _Look, options: _Options) -> str | None:
    """What else would end with the holders and their descendants: a terminal, or a port that was not named."""
    system, named = look.system, {look.port, *options.ports}
    below = system.descendants(look.pids)
    for process in filter(None, map(system.process, below[len(look.pids) :])):
        if system.ends_a_terminal(process):
            return f"end a terminal ({process.name} {process.pid})"
    if system.ends_the_container(look.pids, look.ancestry.pids):
        return "end this container, whose first process waits for it; restart the container"
    rows = system.listeners_of(below)
    if rows is None:
        return "close other ports, perhaps, which this system does not tell"
    # A server of this project may have other ports, for a debugger or live reload.
    others = {row.port: row.pid for row in rows if row.port not in named and _whose(system, row.pid or 0).name}
    if not others:
        return None
    first = min(others)
    closed = system.process(others[first])
    whose = f" ({closed.name} {closed.pid})" if closed else ""
    ports = " ".join(map(str, sorted({*named, *others})))
    return f"close port {first}{whose}; to stop all: port_manager.py free {ports}"


# A project is the nearest folder, from the working directory upwards, that has one of these.
_MARKS = (".git", "pyproject.toml", "setup.py", "setup.cfg", "package.json", "manage.py", "go.mod", "Cargo.toml",
          "pom.xml", "build.gradle", "Gemfile", "composer.json", "mix.exs")  # fmt: skip


def _whose(system: _System, pid: int) -> _Whose:
    """The project or folder that a process belongs to, by its working directory."""
    folder, ours = _folder_of(system, pid), _our_project()
    if folder is None:
        return _Whose("another project, perhaps, whose folder is out of reach from here", True)
    # A repository inside another is a project of its own, such as a worktree; in a mere folder, any project is.
    marks = (".git",) if _root_of(ours, _MARKS) else _MARKS
    below = ours and (folder + os.sep).startswith(ours + os.sep)
    if below and len(_root_of(folder, marks)) <= len(ours):
        return _Whose("", False)
    theirs = _root_of(folder, _MARKS)
    if theirs:
        return _Whose(f"another project, {_short_folder(_clean(theirs))}", True)
    return _Whose(f"the folder {_short_folder(_clean(folder))}" if folder else "a folder that is not told", False)


def _our_project() -> str:
    """The project that this process is in, or its folder; empty in / and in the home folder."""
    try:
        folder = os.path.realpath(os.getcwd())
    except OSError:  # it has been removed
        return ""
    return _root_of(folder, _MARKS) or ("" if folder in (_home(), os.path.dirname(folder)) else folder)


def _folder_of(system: _System, pid: int) -> str | None:
    """The working directory of a process; empty: unknown; None: known, but out of reach from here."""
    process = system.process(pid)
    cwd = system.describe(process).cwd if process else ""
    return _in_time(lambda: system.folder(pid, cwd), None) if cwd else ""


@lru_cache(maxsize=None)
def _root_of(folder: str, marks: tuple[str, ...]) -> str:
    """The nearest folder, upwards, that has one of these; empty if none below the home folder has.

    If the file system does not answer in time, the folder itself is taken to have one.
    """

    def search() -> str:
        at, home = folder, _home()
        while at not in (home, os.path.dirname(at)):
            if any(os.path.lexists(os.path.join(at, mark)) for mark in marks):
                return at
            at = os.path.dirname(at)
        return ""

    return str(_in_time(search, folder))


def _home() -> str:
    return os.path.realpath(os.path.expanduser("~"))


def _in_time(question: Callable[[], Any], otherwise: Any) -> Any:
    """The answer of a file system, or ``otherwise``: a mount whose server has gone never answers."""
    import threading

    answers = [otherwise]

    def ask() -> None:
        try:
            answers.append(question())
        except (OSError, ValueError):  # the latter: a path with a NUL in it
            return

    asking = threading.Thread(target=ask, daemon=True)
    try:
        asking.start()
        asking.join(FILE_TIMEOUT)
    except RuntimeError:  # no more threads can be started
        pass
    return answers[-1]


def _can_ask() -> bool:
    """Whether a person can answer: in the background, reading from the terminal would suspend this process."""
    try:
        background = os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp()
    except (OSError, ValueError, AttributeError):  # another session's terminal; a stand-in for a stream; Windows
        background = False
    return _on_terminal(sys.stdin) and _on_terminal(sys.stderr) and not background


def _agreed(question: str) -> bool:
    try:
        import termios

        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)  # what was typed before the question is no answer to it
    except (ImportError, OSError, ValueError, AttributeError):  # Windows; a stand-in for a stream
        pass
    write_line(sys.stderr, question, end="")
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except (OSError, ValueError):  # an answer that cannot be decoded is not "yes"
        return False


# ----------------------------------------------------------------------------------------------------
# Stop and verify: polite signal, forced stop, exit, port still free
# ----------------------------------------------------------------------------------------------------


def _stop(system: _System, pins: list[_Pin], options: _Options) -> tuple[dict[int, bool], str | None]:
    """Ask pinned processes to stop, wait, force the rest: (PIDs that have gone: whether we asked them; why not all)."""
    asked: list[_Pin] = []
    left, why = pins, None
    try:
        for firmly, seconds in ((False, options.grace), (True, FORCED_WAIT)):
            if firmly and left:
                _say(WARNING, f"Process {_listed(left)} did not stop within {options.grace:g} s: forced")
            for pin in left:
                if not firmly:  # counted before the signal, so that Ctrl+C names this process, too
                    asked.append(pin)
                try:
                    system.stop(pin, options, firmly)
                except OSError as error:
                    if not firmly:
                        asked.pop()
                    if isinstance(error, ProcessLookupError):  # it has ended by itself, or when it was asked
                        continue
                    why = f"process {pin.pid} may not be stopped: {error.strerror or error}"
                    why += f"; asked to stop before that: {_listed(asked) or 'nobody'}"
                    break
            left = _wait_for_exit(system, left, 0 if why else seconds)
            if why:
                break
    except KeyboardInterrupt:
        names = _listed(asked) or "nobody"
        raise KeyboardInterrupt(f"Interrupted; asked to stop, and maybe still stopping: {names}") from None
    if left and not why:
        why = f"process {_listed(left)} does not end even when forced; it may wait for a disk or device"
    return {pin.pid: pin in asked for pin in pins if pin not in left}, why


def _wait_for_exit(system: _System, pins: list[_Pin], seconds: float) -> list[_Pin]:
    """Wait until the processes have exited; return those left when the time is over."""
    left = pins
    for rest in _waiting(f"process {_listed(pins)} to stop, {seconds:g} s at most", seconds):
        left = [pin for pin in left if not system.has_exited(pin)]
        if not left:
            break
        system.sleep(left, min(rest, 0.2))
    return left


def _waiting(what: str, timeout: float | None) -> Iterator[float]:
    """Yield the seconds left, at last 0; after a second, a terminal shows what is waited for."""
    begun, shown, left = time.monotonic(), 0, 1.0
    try:
        while left:
            waited = time.monotonic() - begun
            if int(waited) > shown and _on_terminal(sys.stderr):
                shown = int(waited)
                _status(f"⏳ Waiting for {what}: {shown} s")
            left = 1.0 if timeout is None else max(0.0, timeout - waited)
            yield left
    finally:
        if shown:
            _status("")


def _listed(processes: Collection[_Pin | Holder]) -> str:
    pids = [str(process.pid) for process in processes]
    return ", ".join(pids[:8]) + ("…" if len(pids) > 8 else "")


class _Freeing:
    """An attempt to free one port: look and stop, again and again, until it is free or a holder must stay."""

    def __init__(self, port: int, host: str, options: _Options) -> None:
        self.port, self.host, self.options, self.began = port, host, options, time.time()
        self.holders: list[Holder] = []  # of the last look
        self.managers: _Managers = {}
        self.agreed: list[object] | None = None  # the processes that the user has just agreed to stop
        self.gone = False  # a holder has ended
        self.stopped: list[int] = []  # PIDs of the ended holders that had been asked to stop
        self.sockets: set[int] = set()  # inodes of the sockets that were on the port before the first stop
        self.supervisors: list[_Pin] = []  # living ancestors of ended holders, which may restart them

    def run(self) -> PortResult:
        for _ in range(ROUNDS):
            free = False
            try:
                with _ThisSystem() as system:
                    look = _settled(system, self.port, self.host)
                    self.holders, self.managers = look.holders, look.managers
                    why = self.taken_again(look) if self.is_new(look) else self.stop(look)
                free = _probe(self.port, self.host) is None
                if free:
                    if why and look.pids:  # a process has given up the port, and lives on
                        _say(WARNING, f"⚠️  {_sentence(why)}")
                    why = self.watch()
            except PortError as error:  # the holders cannot be told, or the host name is no longer known
                why = error.reason
            if why or free:
                break
        else:
            why = f"port {self.port} is still held after {ROUNDS} attempts to free it"
        return PortResult(self.port, self.host, why is None, self.holders, self.stopped, [], why, None, self.managers)

    def is_new(self, look: _Look) -> bool:
        """Whether the port was taken again after a stop, and not held by another process all the time."""
        if not self.gone or all(look.system.has_gone(holder.pid) for holder in look.holders):
            return False
        if self.sockets:  # empty if the system shows no inodes
            return not any(row.inode in self.sockets for row in look.sockets)
        return any((holder.started or 0.0) > self.began for holder in look.holders)

    def stop(self, look: _Look) -> str | None:
        """Stop all holders that a look found, or none; return why one lives on."""
        if not self.gone:
            self.sockets |= {row.inode for row in look.system.every_socket(self.port) if row.inode}
        families = _families(look.holders)
        agreed, self.agreed = self.agreed, None
        roots: list[object] = [(root.pid, root.started) for root, _ in families]
        if agreed and not {*roots} <= {*agreed}:  # some may have ended
            return "somebody else holds the port now: nobody was stopped; try again"
        for root, children in families:
            if root.pid and not agreed:
                _say(INFO, f"Process using port: {_title(root, children)}")
        why, question = _decide(look, self.options._replace(policy="kill") if agreed else self.options)
        if question and _agreed(question):  # another process may have taken the port meanwhile: look again
            self.agreed = roots
            return None
        if why or question:
            return why or "the answer was no: nobody was stopped"
        system, began, above = look.system, time.monotonic(), self.supervisors_of(look)
        held = system.still_hold(look.pids, look.sockets, self.port)
        owners = {row.pid for row in look.sockets}
        held |= {each.parent for each in look.holders if each.pid in held} - owners  # a master that owns no socket
        pins = [system.pins[pid] for pid in look.pids if pid in system.pins and pid in held]
        gone, why = _stop(system, pins, self.options)
        for root, children in _families([holder for holder in look.holders if gone.get(holder.pid or 0)]):
            seconds = f"{time.monotonic() - began:.1f} s"
            _say(INFO, f"✅ Successfully killed process {root.pid}{_and_children(children)} ({seconds})")
        self.stopped += filter(gone.get, gone)
        if gone:
            self.gone = True
            self.supervisors += above
        return why

    def supervisors_of(self, look: _Look) -> list[_Pin]:
        """Living ancestors of the holders that hold no socket, and might restart the server.

        An interactive shell does not count: it gives each job a process group of its own; a script with a loop
        does not. Nor does init, a user's systemd, or an ancestor of this process.
        """
        found = []
        for root, _ in _families(look.holders):
            for parent in look.system.started_by(root.pid)[1:]:
                if parent.zombie or parent.kernel or parent.pid in (1, *look.ancestry.pids):
                    break
                if parent.name in ("systemd", "launchd", "init"):
                    break
                found.append(_Pin(parent.pid, parent.start, None))
        return found

    def watch(self) -> str | None:
        """Watch, while a supervisor lives, whether the port is taken again; if so, return the sentence."""
        end = time.monotonic() + RESTART_WATCH
        with _ThisSystem() as system:
            while time.monotonic() < end and not all(map(system.has_exited, self.supervisors)):
                if _probe(self.port, self.host):
                    return self.taken_again(_look(system, self.port, self.host))
                time.sleep(0.05)
        return None

    def taken_again(self, look: _Look) -> str:
        """The sentence that names the process which took the port, and its supervisor."""
        system, again = look.system, f"port {self.port} was taken again"
        above = [pin.pid for pin in self.supervisors]
        for taker in look.holders[:1]:
            again += f" by process {taker}"
            above = [taker.pid or 0, *system.parents(taker.pid)]
        for pin in self.supervisors:
            boss = system.process(pin.pid)
            if boss and pin.pid in above and not system.has_exited(pin):
                command = _short_command(system.describe(boss).command or boss.name)
                return f"{again}: its supervisor {boss.pid} ({command}) starts it anew; stop process {boss.pid} first"
        return f"{again} while it was being freed"


def _standing(port: int, host: str) -> tuple[_Obstacle | None, PortResult]:
    """Why a server cannot bind here, and the result if nothing is done about it."""
    obstacle = _probe(port, host)
    reason = obstacle.reason if obstacle else None
    return obstacle, PortResult(port, host, obstacle is None, [], [], [], reason, None, {})


def _ensure(port: int, host: str, options: _Options) -> PortResult:
    """Make a port available if that is allowed, and log each step."""
    obstacle, result = _standing(port, host)
    if obstacle is None:
        _say(INFO, f"✅ Port {port} is available")
        return result
    if not obstacle.held:
        _complain(obstacle.reason)
        return result
    if options.starting and _is_reloaded() and _is_of_our_server(port, host):
        return result._replace(available=True, reason=None)
    _say(WARNING, f"⚠️  Port {port} is already in use")
    forbidden = _forbidden()
    if forbidden and not options.force:
        result = _conflict_outside_development(port, host, options, forbidden)
    else:
        _say(INFO, "💡 Told to do so by --force" if forbidden else "💡 Development environment detected")
        _say(INFO, "Attempting to free up port...")
        result = _Freeing(port, host, options).run()
        if result.reason:
            _complain(obstacle.reason if obstacle.error == "10013" and not result.holders else result.reason)
    if result.available:
        _say(INFO, f"✅ Port {port} is now available")
    elif options.starting:
        _complain("cannot start: port is not available")
    return result


def _conflict_outside_development(port: int, host: str, options: _Options, forbidden: str) -> PortResult:
    """Name the holders, and leave them alone."""
    production = os.environ["ENVIRONMENT"].strip().lower() in ("production", "prod")
    _say(ERROR, "🚨 Port conflict in PRODUCTION environment!" if production else f"🚨 Port conflict: {forbidden}")
    found = _preview(port, host, options._replace(force=True))
    titles = [_title(*family, full=True) for family in _families(found.holders)]
    for title in titles or [f"unknown ({found.reason})"]:
        _say(ERROR, f"Process using port: {title}")
    if not production:  # misspelt, perhaps
        _say(ERROR, f"The names of development are {', '.join(DEVELOPMENT_NAMES[1:])}")
    reason = f"port {port} is in use, and {forbidden}"
    return found._replace(available=False, would_stop=[], plan=None, reason=reason)


def _preview(port: int, host: str, options: _Options) -> PortResult:
    """What _ensure would do, by the same look and the same decision; no process is stopped."""
    obstacle, result = _standing(port, host)
    if obstacle is None or not obstacle.held:
        return result
    try:
        with _ThisSystem() as system:
            look = _look(system, port, host)
            why, question = _decide(look, options)
    except PortError as unknown:
        return result._replace(reason=unknown.reason)
    result = result._replace(holders=look.holders, managers=look.managers)
    refusal = (None if options.force else _forbidden()) or why
    if refusal:
        return result._replace(reason=refusal)
    titles = ", ".join(f"{root.pid}{_and_children(children)}" for root, children in _families(look.holders))
    plan = f"{'ask, then ' if question else ''}stop {titles}: {system.way(options)}"
    return result._replace(would_stop=look.pids, plan=plan)


# ----------------------------------------------------------------------------------------------------
# The calls people use
# ----------------------------------------------------------------------------------------------------


def _options(
    ports: Iterable[int],
    grace: float,
    policy: str | None,
    *,
    polite: str = "SIGTERM",
    force: bool = False,
    starting: bool = True,
) -> _Options:
    """PORT_MANAGER_POLICY is used if the caller gives no policy; if it is not a policy, nothing is stopped."""
    if not isinstance(grace, (int, float)) or not 0 <= grace < 1e6:
        raise ValueError(f"a grace period is a number of seconds, not {grace!r}")
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"a policy is one of {', '.join(POLICIES)}, not {policy!r}")
    wish = os.environ.get("PORT_MANAGER_POLICY", "").strip().lower()
    if policy is None and wish and wish not in POLICIES:
        known = ", ".join(POLICIES)
        _say(WARNING, f"PORT_MANAGER_POLICY is {_clean(wish)!r}, which is none of {known}: nobody is stopped")
        wish = "refuse"
    return _Options(grace, polite, policy or wish or ("" if starting else "kill"), force, starting, tuple(ports))


def ensure_port_available(
    port: int = 8000, host: str = "0.0.0.0", *, grace: float = GRACE, policy: str | None = None
) -> bool:
    """Return whether a server can bind the port; in development, stop its holder first.

    ``grace`` is how many seconds the holder has to stop by itself. ``policy`` is kill, own (only this
    project's), ask or refuse; the default is PORT_MANAGER_POLICY, or else kill, except that another
    project's server is stopped only after a question. Errors at run time are logged, and False is returned;
    an invalid port raises TypeError or ValueError. In a reloader's child, its parent may hold the port.
    """
    _checked(port, host)
    return _ensure(port, host, _options([port], grace, policy)).available


def preview_port(
    port: int = 8000, host: str = "0.0.0.0", *, grace: float = GRACE, policy: str | None = None
) -> PortResult:
    """What ensure_port_available would do; nothing is stopped or logged."""
    _checked(port, host)
    return _preview(port, host, _options([port], grace, policy))


def find_listeners(port: int | None = None, host: str | None = None, *, thorough: bool = False) -> list[Holder]:
    """Every process that holds the port (or any port), parents before their children.

    With a ``host``, only those that keep a server from binding there. An empty list means that no process
    does; CannotTell is raised if that is unknown. Usually the search ends when each socket has an owner whose
    relatives have been checked; ``thorough`` checks every process of the machine.
    """
    if port is not None:
        _checked(port, host or "")
    system = _ThisSystem()
    return _holders(system, _search(system, port, host, thorough or port is None))


def find_free_port(start: int = 8000, host: str = "0.0.0.0") -> int:
    """The first port at or after ``start`` that a server can bind; PortError if there is none.

    With the default host, a port whose ::1 is held does not count: a browser would reach that server.
    """
    _checked(start, host)
    _addresses(host, start)
    for port in range(start, 65536):
        obstacle = _probe(port, host) or (_probe(port, "localhost") if host == "0.0.0.0" else None)
        if obstacle is None:
            return port
        if not (obstacle.held or port < 1024):
            break
    raise PortError(obstacle.reason if obstacle else "", start, host)


def bind_port(
    port: int = 8000,
    host: str = "0.0.0.0",
    *,
    inheritable: bool = False,
    grace: float = GRACE,
    policy: str | None = None,
) -> socket.socket:
    """Free the port and keep it: return a socket that already listens, for the server to use.

    Between a check and a bind another process may take the port; it cannot take it from this socket.
    Port 0 is any free port. ``inheritable`` passes the socket on to a program that this process starts.
    For localhost, IPv4 is bound. PortError if the port cannot be bound.

    >>> with bind_port(0, "127.0.0.1") as listener:
    ...     listener.getsockname()[0]
    '127.0.0.1'
    """
    _checked(1 if port == 0 else port, host)
    first = "127.0.0.1" if host == "localhost" else host
    result = _ensure(port, first, _options([port], grace, policy)) if port else None
    if result and not result.available:
        raise PortError(result.reason or "", port, host, result.holders)
    family, address = _addresses(first, port)[0]
    try:
        listener = _bound(family, address, listens=True)
    except OSError as error:
        reason = _explained(error, address[0], port).reason
        _complain(reason)
        raise PortError(reason, port, host) from error
    listener.set_inheritable(inheritable)
    return listener


def wait_until_free(port: int, host: str = "0.0.0.0", timeout: float | None = None) -> bool:
    """Wait until a server can bind the port, and return True; PortTimeout after ``timeout`` seconds.

    No process is stopped. On Linux, the wait ends as soon as the holder exits.
    """
    _checked(port, host)
    reason = ""
    for left in _waiting(f"port {port} to be free", timeout):
        obstacle = _probe(port, host)
        if obstacle is None:
            return True
        reason = obstacle.reason
        if not obstacle.held:  # waiting does not help
            raise PortError(reason, port, host)
        _sleep_until_an_exit(port, host, left)
    try:
        holders = find_listeners(port, host)
    except CannotTell:
        holders = []
    raise PortTimeout(f"{reason}; gave up after {timeout:g} s", port, host, holders)


def _sleep_until_an_exit(port: int, host: str, seconds: float) -> None:
    """Sleep for a moment; on a native system, only until a holder exits."""
    with _ThisSystem() as system:
        try:  # tools take too long to be started again and again
            rows = _search(system, port, host, False) if system.native else []
        except CannotTell:
            rows = []
        system.hold({row.pid for row in rows if row.pid})
        if system.pins:
            system.sleep(system.pins.values(), min(seconds, 0.2))
        else:
            time.sleep(min(seconds, 0.05))


def wait_until_listening(
    port: int, host: str | None = "127.0.0.1", timeout: float | None = None, *, pid: int | None = None
) -> bool:
    """Wait until a process listens on the port, and return True; PortTimeout after ``timeout`` seconds.

    If ``host`` is None, any address counts. With a ``pid``, only that process or its descendants count:
    PortError as soon as it has ended, or another process listens. No connection is opened: a server may
    accept only one.

    >>> with bind_port(0, "127.0.0.1") as listener:
    ...     wait_until_listening(listener.getsockname()[1], timeout=1)
    True
    """
    _checked(port, host or "")
    wanted = _addresses(host, port) if host is not None else None
    unfit = _probe(0, host) if host is not None else None
    if unfit and unfit.held is False:  # such as an address of another machine
        raise PortError(unfit.reason, port, host or "")
    with _ThisSystem() as system:
        system.hold([] if pid is None else [pid])
        for left in _waiting(f"somebody to listen on port {port}", timeout):
            ended = pid is not None and (pid not in system.pins or system.has_gone(pid))
            if _listens(port, host, wanted, pid):
                return True
            if ended:
                raise PortError(f"process {pid} has ended, and does not listen on port {port}", port, host or "")
            time.sleep(min(left, 0.02 if system.native else 0.2))
    raise PortTimeout(f"nobody listens on port {port}; gave up after {timeout:g} s", port, host or "")


def _listens(port: int, host: str | None, wanted: list[_Address] | None, pid: int | None) -> bool:
    """Whether a process listens; PortError if it is neither the named one nor its descendant."""
    system = _ThisSystem()
    # A tool takes too long to be started again and again, and a probe could disturb the server's own bind.
    rows = system.sockets(port) if system.native or host is None or _probe(port, host) else []
    if rows is None:
        return pid is None and _probe(port, host or "0.0.0.0") is not None
    rows = _blocking([row for row in rows if row.listening], wanted)
    if pid is None or not rows:
        return bool(rows)
    rows = system.owners(rows, True)
    if any(pid in (row.pid, *system.parents(row.pid)) for row in rows):
        return True
    others = ", ".join(f"process {holder}" for holder in _holders(system, rows))
    raise PortError(f"port {port} is held by {others}, and not by process {pid}", port, host or "")


class _AskedEachTime:
    """``IS_DEVELOPMENT`` on the class and on its instances: is_development() at the time of the access."""

    def __get__(self, instance: object, owner: object) -> bool:
        return is_development()


class PortManager:
    """The same calls as methods, with one port, host, grace and policy.

    >>> manager = PortManager(find_free_port(20000), "127.0.0.1")
    >>> manager.is_port_in_use(manager.port), manager.get_process_using_port(manager.port)
    (False, None)
    """

    IS_DEVELOPMENT = _AskedEachTime()

    def __init__(
        self, port: int = 8000, host: str = "0.0.0.0", *, grace: float = GRACE, policy: str | None = None
    ) -> None:
        _checked(port, host)
        _options([port], grace, policy)
        self.port, self.host, self.grace, self.policy = port, host, grace, policy

    def is_port_in_use(self, port: int) -> bool:
        """Whether a process holds the port; False for "no permission" or "not our address".

        CannotTell is raised if this process has too many open files.
        """
        _checked(port, self.host)
        obstacle = _probe(port, self.host)
        if obstacle and obstacle.held is None:
            raise CannotTell(obstacle.reason, port, self.host)
        return bool(obstacle and obstacle.held)

    def get_process_using_port(self, port: int) -> int | None:
        """The PID that holds the port, of several related ones the parent's; None if no process holds it.

        CannotTell is raised if the holder's PID is hidden from this user.
        """
        _checked(port, self.host)
        system = _ThisSystem()
        rows = _search(system, port, self.host, False)
        pids = {row.pid for row in rows}
        if len(pids) == 1 and None not in pids:  # a PID alone need not be described
            return pids.pop()
        holders = _holders(system, rows)
        if holders and holders[0].pid is None:
            user = f"of user {holders[0].user} " if holders[0].user else ""
            raise CannotTell(f"port {port} is held by a process {user}that may not be seen", port, self.host, holders)
        return holders[0].pid if holders else None

    def kill_process(self, pid: int) -> bool:
        """Stop one process, unless it must stay: ask it, then force it; True if it has gone, also if it had before.

        Outside development nothing is done. TypeError for a PID that is not an integer.
        """
        if not isinstance(pid, int) or isinstance(pid, bool):
            raise TypeError(f"a PID is an integer, not {pid!r}")
        why = _forbidden() or _stop_process(pid, self.port, self.host, _options([self.port], self.grace, self.policy))
        if why:
            _complain(why)
        return not why

    def check_and_clean_port(self) -> bool:
        """ensure_port_available for this port and host."""
        return ensure_port_available(self.port, self.host, grace=self.grace, policy=self.policy)


def _stop_process(pid: int, port: int, host: str, options: _Options) -> str | None:
    """Why a process was not stopped; None if it has gone."""
    if pid <= 1:
        return f"PID {pid} stands for the system or for whole groups of processes: it is left alone"
    with _ThisSystem() as system:
        look = _look(system, port, host, pid)
        exists = system.exists(pid)
        if exists is False:
            return None
        if not exists or not system.pins:
            return f"process {pid} is left alone: it is a thread of another process, or may not be seen"
        own = [row.port for row in system.listeners_of([pid]) or []]  # naming a process includes its ports
        options = options._replace(ports=(*options.ports, *own))
        why, question = _decide(look, options)
        if question and not _agreed(question):
            return "the answer was no: nobody was stopped"
        if question:  # the answer may have taken a while: decide again about the same process
            system.known.clear()
            why, _ = _decide(look, options._replace(policy="kill"))
        return why or _stop(system, [*system.pins.values()], options)[1]


# ----------------------------------------------------------------------------------------------------
# Servers: where a command line will listen; guard(), the call at the top of an app
# ----------------------------------------------------------------------------------------------------


class Server:
    """The options and variables of a server for its address and its app. Each text is a list, separated by blanks.

    hosts, ports, binds: options for a host, a port, and [host:]port (*: a bare word).
    variables: of the host and of the port. "0.0.0.0 PORT": none of the host; if PORT is set, the host is 0.0.0.0.
    elsewhere: options and variables for a socket without a port (a Unix socket, a descriptor).
    files: files, and options and variables for one, that may set the port (NAME=TEXT: only if the file contains this
    text; for an option: only if this variable is set).
    serves: kinds of app; start: the words that serve APP on HOST and PORT (ADDRESS: both); factory: the option for
    an app factory, "()" if it is given as APP(), "" if it cannot be served.
    """

    hosts = ports = binds = variables = elsewhere = files = serves = start = factory = ""

    def __init__(self, host: str, port: int | None, **texts: str) -> None:
        self.host, self.port = host, port
        self.__dict__.update(texts)


# By program; a second word is the verb without which it serves nothing. For each kind of app, the first one
# installed is preferred. To add a server: write its line here; run_backend.py reads the same table.
SERVERS = {
    "uvicorn": Server("127.0.0.1", 8000, hosts="--host", ports="--port", variables="UVICORN_HOST UVICORN_PORT",
                      elsewhere="--uds --fd UVICORN_UDS UVICORN_FD", files="--env-file=UVICORN_PORT", serves="asgi",
                      start="-m uvicorn APP --host HOST --port PORT", factory="--factory"),
    "hypercorn": Server("127.0.0.1", 8000, binds="-b --bind", files="-c --config", serves="quart asgi",
                        start="-m hypercorn APP --bind ADDRESS", factory="()"),
    "granian": Server("127.0.0.1", 8000, hosts="--host", ports="--port", variables="GRANIAN_HOST GRANIAN_PORT",
                      elsewhere="--uds GRANIAN_UDS", serves="asgi",
                      start="-m granian --interface asgi APP --host HOST --port PORT", factory="--factory"),
    "daphne": Server("127.0.0.1", 8000, hosts="-b --bind", ports="-p --port",
                     elsewhere="-u --unix-socket -e --endpoint --fd", serves="asgi",
                     start="-m daphne -b HOST -p PORT APP"),
    "gunicorn": Server("127.0.0.1", 8000, binds="-b --bind", variables="0.0.0.0 PORT", elsewhere="LISTEN_FDS",
                       files="-c --config GUNICORN_CMD_ARGS gunicorn.conf.py", serves="wsgi",
                       start="-m gunicorn APP --bind ADDRESS", factory="()"),
    **dict.fromkeys(("waitress", "waitress-serve"),
                    Server("0.0.0.0", 8080, hosts="--host", ports="--port", binds="--listen",
                           elsewhere="--unix-socket", serves="wsgi dash", start="-m waitress --listen ADDRESS APP",
                           factory="--call")),
    "wsgiref": Server("0.0.0.0", None, serves="wsgi dash", factory="()",
                      start="run_backend.py --wsgiref APP --host HOST --port PORT"),
    "page": Server("0.0.0.0", None, serves="page", start="run_backend.py --page --host HOST --port PORT"),
    "flask run": Server("127.0.0.1", 5000, hosts="-h --host", ports="-p --port", serves="flask", factory="()",
                        start="-m flask --app APP run --host HOST --port PORT",
                        variables="FLASK_RUN_HOST FLASK_RUN_PORT",
                        files=".env=FLASK_RUN_ .flaskenv=FLASK_RUN_ -e --env-file"),
    "manage.py runserver": Server("127.0.0.1", 8000, binds="*", elsewhere="-6 --ipv6", serves="django",
                                  start="APP runserver ADDRESS"),
    **dict.fromkeys(("django-admin runserver", "django runserver"),
                    Server("127.0.0.1", 8000, binds="*", elsewhere="-6 --ipv6")),
    "manage.py runserver_plus": Server("127.0.0.1", None, binds="*", elsewhere="-6 --ipv6"),  # a setting may name it
    "litestar run": Server("127.0.0.1", 8000, hosts="-H --host", ports="-p --port",
                           variables="LITESTAR_HOST LITESTAR_PORT", files=".env=LITESTAR_",
                           elsewhere="-U --uds --unix-domain-socket -F --fd --file-descriptor", serves="litestar",
                           start="-m litestar --app APP run --host HOST --port PORT"),
    "sanic": Server("127.0.0.1", 8000, hosts="-H --host", ports="-p --port", elsewhere="-u --unix", serves="sanic",
                    start="-m sanic APP --host HOST --port PORT", factory="--factory"),
    "quart run": Server("127.0.0.1", 5000, hosts="-h --host", ports="-p --port",
                        variables="QUART_RUN_HOST QUART_RUN_PORT", files=".env=QUART_RUN_ .quartenv=QUART_RUN_"),
    "fastapi dev": Server("127.0.0.1", 8000, hosts="--host", ports="--port", variables="- PORT"),
    "fastapi run": Server("0.0.0.0", 8000, hosts="--host", ports="--port", variables="- PORT"),
    "http.server": Server("0.0.0.0", 8000, hosts="-b --bind", binds="*"),
    "php": Server("127.0.0.1", None, binds="-S"),
    # Node's servers listen on ::, or where localhost is; who holds either keeps them from that.
    **dict.fromkeys(("next dev", "next start"), Server("localhost", 3000, hosts="-H --hostname", ports="-p --port",
                                                       variables="- PORT")),
    **dict.fromkeys(("npm", "pnpm", "yarn", "bun", "vite"), Server("localhost", None, hosts="--host", ports="--port",
                                                                   variables="- PORT")),
}  # fmt: skip
_SCRIPT = Server("0.0.0.0", None, hosts="--host", ports="--port", variables="HOST PORT", elsewhere="-h")  # any other

# Servers started by these programs listen on another machine, or in a container.
_ON_ANOTHER_MACHINE = ("ssh", "docker", "docker-compose", "podman", "podman-compose", "nerdctl", "kubectl", "vagrant")
# Options whose value is the next word; that word is neither a verb nor a port.
_VALUED = "-A --app -e --env-file -v --verbosity --settings --pythonpath -d --directory"
_SERVES_NOTHING = "--help --version --check-config --print-config"
_WITH_A_VERB = {key.partition(" ")[0] for key in SERVERS if " " in key}


def server_endpoints(command: Sequence[str], environ: Mapping[str, str] | None = None) -> list[Endpoint]:
    """Where the server of a command line will listen; empty if it has no port, or the port is unknown.

    A known server (see SERVERS) is found after any launcher. Its options come first, then the variables that
    it reads, then its default; the default is not assumed if a file may set the port. Any other command has
    the port of the variable PORT; a script also has that of ``--port``.

    >>> [str(endpoint) for endpoint in server_endpoints(["nohup", "python", "-m", "uvicorn", "main:app"], {})]
    ['127.0.0.1:8000']
    >>> server_endpoints(["psql", "--port", "5432"], {})
    []
    """
    environ = dict(os.environ if environ is None else environ)
    commands, script = shell_commands(command, environ), _script_in(command)
    unsure = _set_by(script) if script else set()
    servers = [*filter(find_server, commands)]
    if not servers and any(_program(word) in _WITH_A_VERB for words in commands for word in words):
        return []  # such as manage.py migrate
    told = [_endpoints_of(words, environ, unsure) for words in servers or commands[-1:] or [[]]]
    return told[0] if all(each == told[0] for each in told) else []  # an if and its else may differ


def _endpoints_of(words: Sequence[str], environ: dict[str, str], unsure: set[str]) -> list[Endpoint]:
    """Where one command will listen; ``unsure`` are variables that only its shell can tell ("": any may be)."""
    key, at = find_server(words) or ("", len(words))
    if not key:
        scripts = (at for at, word in enumerate(words) if word.endswith((".py", ".js", ".mjs", ".cjs", ".ts")))
        at = next(scripts, at)
    server = SERVERS.get(key, _SCRIPT)
    port_variable = server.variables.partition(" ")[2]
    hidden = {port_variable: "$"} if unsure & {"", port_variable} else {}
    assigned = (word.partition("=") for word in words[:at])  # env PORT=3000 …; make run PORT=3000
    known = {name: value for name, equals, value in assigned if equals and name.isidentifier()}
    return _endpoints(server, words[at + 1 :], {**environ, **hidden, **known})


def _endpoints(server: Server, words: Sequence[str], environ: Mapping[str, str]) -> list[Endpoint]:
    host_variable, _, port_variable = server.variables.partition(" ")
    named, host = environ.get(port_variable, ""), environ.get(host_variable) or server.host
    if named and host_variable[:1].isdigit():
        host = host_variable
    for value in take_options(words, server.hosts)[0]:
        host = value if value[:1] not in ("", "-") else host  # vite allows a bare --host
    unknown = any("$" in word or "`" in word for word in (host, *words))  # what only its shell can tell
    if unknown or host.startswith("unix:") or _given(f"{_SERVES_NOTHING} {server.elsewhere}", words, environ):
        return []
    binds = [_split_address(bind) for value in take_options(words, server.binds)[0] for bind in value.split() or [""]]
    binds += _bare_addresses(words) if "*" in server.binds.split() else []
    if all(bind and bind[1] is None for bind in binds):
        ports = take_options(words, server.ports)[0]
        if not ports and _may_stand_in_a_file(server, words, environ, named):
            return []
        host = binds[-1][0] if binds and binds[-1] else host
        binds = [("", _number([named, *ports][-1]) if named or ports else server.port)]
    return [Endpoint(bind[0] or host, bind[1]) for bind in binds if bind and bind[1] and bind[1] <= 65535]


def take_options(
    words: Sequence[str], options: str, flags: bool = False, whole: bool = False
) -> tuple[list[str], list[str]]:
    """The values that the words give to these options, and the words that are left.

    flags: these options take no value. whole: they cannot be abbreviated, as argparse allows.

    >>> take_options(["-b", ":80", "-b:81", "main:app", "--bind=:82", "--bi", ":83"], "-b --bind")
    ([':80', ':81', ':82', ':83'], ['main:app'])
    """
    values, rest, left, names = [], [], iter(words), options.split()
    following = iter(()) if flags else left
    for word in left:
        name, equals, value = word.partition("=")
        if len(name) > 3 and (name in names if whole else any(option.startswith(name) for option in names)):
            values.append(value if equals else next(following, ""))
        elif word[:2] in names:
            values.append(word[2:] or next(following, ""))
        else:
            rest.append(word)
    return values, rest


def _given(names: str, words: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether one of these options is given, or one of these variables is set."""
    return bool(take_options(words, names)[0]) or any(environ.get(name) for name in names.split())


def _bare(words: Sequence[str]) -> list[tuple[str, str]]:
    """The words that are neither an option nor an option's value, each with the word before it."""
    rest = take_options(words, _VALUED)[1]
    return [(before, word) for before, word in zip(["", *rest], rest) if not word.startswith("-")]


def _bare_addresses(words: Sequence[str]) -> Iterator[tuple[str, int | None] | None]:
    for before, word in _bare(words):
        bind = _split_address(word)
        if bind and bind[1]:  # a small number after an option may be its value
            yield bind if bind[1] >= 1024 or ":" in word or before[:1] != "-" else None


def _may_stand_in_a_file(server: Server, words: Sequence[str], environ: Mapping[str, str], named: str) -> bool:
    for entry in server.files.split():
        name, _, text = entry.partition("=")
        try:
            # dotenv looks in the folders above, too
            path = os.path.join(_root_of(os.getcwd(), (name,)), name) if "." in name else ""
            there = _given(name, words, environ) or (os.path.isfile(path) and text.encode() in _contents(path))
        except OSError:
            there = True
        # A variable overrides a file, but not gunicorn's. The file of an option may have set it, for the app alone.
        if there and (not text or bool(named) == name.startswith("-")):
            return True
    return False


def find_server(words: Sequence[str]) -> tuple[str, int] | None:
    """The key in SERVERS of the server that a command line starts here, and the index of its program.

    >>> find_server(["timeout", "60", "uvicorn", "main:app"]), find_server(["pip", "install", "uvicorn"])
    (('uvicorn', 2), None)
    """
    for at, word in enumerate(words):
        program, rest = _program(word), words[at + 1 :]
        if program in _ON_ANOTHER_MACHINE:
            return None
        verb = next((each for _, each in _bare(rest)), "")
        if f"{program} {verb}" in SERVERS:
            return f"{program} {verb}", at
        server, before = SERVERS.get(program), words[at - 1] if at else "-m"
        # In any other place, only an app after it shows that it is more than a mention; an option's value is none.
        valued = before[:2] == "--" != before and "=" not in before
        if server and (before == "-m" or (not valued and (server.port is None or any(map(names_app, rest))))):
            return program, at
    return None


def _script_in(command: Sequence[str]) -> str:
    words = iter(command)
    shell = any(_is_shell(_program(word)) for word in words)
    return next(words, "") if shell and any(word[:1] == "-" and word[-1:] == "c" for word in words) else ""


def _set_by(script: str) -> set[str]:
    """The variables that a shell script sets, and "" if it may set any other, such as those of a file that it reads.

    >>> sorted(_set_by("for PORT in 1 2; do A=$B x; done; unset C")), _set_by("export $(xargs < .env); x")
    (['A', 'C', 'PORT'], {''})
    """
    import re

    one, many = r"(?:for|unset)\s+(\w+)|(?:export\s+)?(\w+)=", r"(?:\.|source|eval|read|(?:export|env)\s+[$`]\S*)\s"
    return {name or other for name, other in re.findall(rf"(?:^|[;&|(\s])(?:{one}|{many})", script)}


def shell_commands(command: Sequence[str], environ: Mapping[str, str]) -> list[list[str]]:
    """The command line itself, or the commands of the script in it (``bash -lc '…'``), known variables expanded."""
    script = _script_in(command)
    if not script:
        return [list(command)]
    import re
    import shlex

    own = _set_by(script)  # they stay as they are

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return found[0] if own & {name, ""} else environ.get(name) or found[3] or ""

    script = re.sub(r"\$(\w+)|\$\{(\w+)(?::?-([^}]*))?\}", value, script)
    lexer = shlex.shlex(script.replace("\n", ";"), posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split, lexer.commenters = True, ""
    commands: list[list[str]] = [[]]
    try:
        for word in lexer:
            if word and word[0] in ";&|()":
                commands.append([])
            else:
                commands[-1].append(word)
    except ValueError:  # an unclosed quote
        return [script.split()]
    return list(filter(None, commands))


def _program(word: str) -> str:
    folder, name = os.path.split(word)
    name = os.path.basename(folder) if name == "__main__.py" else name
    return name[:-4] if name.lower().endswith(".exe") else name


def names_app(word: str) -> bool:
    """Whether a word of a server's command line looks like its app.

    >>> [names_app(word) for word in ("shop.main:app", "app:make('x')", "shop.wsgi", "db:5432", "main.py", "-k")]
    [True, True, True, False, False, False]
    """
    module, colon, name = word.partition(":")
    plain = module.replace(".", "").replace("-", "_").isidentifier() and module[:1] != "-"
    return plain and (name[:1].isidentifier() if colon else module.endswith(("wsgi", "asgi")))


def _split_address(text: str) -> tuple[str, int | None] | None:
    """(host, port) of ``host:port``, ``port`` or ``host``; a missing host is "", a missing port None.

    >>> [_split_address(text) for text in ("a.b:80", "[::1]:80", ":80", "*:80")]
    [('a.b', 80), ('::1', 80), ('0.0.0.0', 80), ('0.0.0.0', 80)]
    >>> [_split_address(text) for text in ("80", "a.b", "::1", "unix:/tmp/web.sock")]
    [('', 80), ('a.b', None), ('::1', None), None]
    """
    text = text[6:] if text.startswith("tcp://") else text
    if text.startswith(("unix:", "fd://", "-", "/")) or not text:
        return None
    host, colon, digits = text.rpartition(":")
    port = _number(digits)
    if port is None or (":" in host and not host.startswith("[")):
        return text.strip("[]"), None
    host = host.strip("[]")
    return ("0.0.0.0" if colon and host in ("", "*") else host), port


def guard(port: int | None = None, host: str = "0.0.0.0") -> None:
    """Free the port of the server that is loading the calling module. Call it at the top of that module.

    With ``import port_manager; port_manager.guard()`` above your app, ``python -m uvicorn main:app`` takes
    its port over from the previous run. It acts only if a server's command line (see SERVERS) loads the
    module, or if the module runs as a script with ``--port`` on its command line, or with a port given here:
    ``guard(port=8000)``; a port on the command line comes first. It does nothing in tests, in a REPL, or in
    the child of a reloader or master, where an ancestor has the port. If the port cannot be freed, the
    process exits with status 1.

    >>> guard()  # neither a server nor a script is being started here
    """
    module = sys._getframe(1).f_globals
    script = module.get("__name__") == "__main__" and "__file__" in module
    key, at = find_server(sys.argv) or ("", -1)
    if _is_reloaded() or (at != 0 and not script):  # neither a server's program nor a script has loaded us
        return
    endpoints = server_endpoints(sys.argv, None if at == 0 else {})
    elsewhere = f"{_SERVES_NOTHING} {SERVERS.get(key, _SCRIPT).elsewhere}"  # served there, or nothing is
    idle = _given(elsewhere, sys.argv[at + 1 :], os.environ) or (not key and _program(sys.argv[0]) in _WITH_A_VERB)
    if port is not None and not endpoints and not idle:
        endpoints = [Endpoint(host, port)]
    try:
        for endpoint in endpoints:
            if not _is_a_worker(key, *endpoint) and not ensure_port_available(endpoint.port, endpoint.host):
                raise SystemExit(1)
    except KeyboardInterrupt as interruption:
        _say(WARNING, str(interruption) or "Interrupted")
        raise SystemExit(130) from None


def _is_reloaded() -> bool:
    """Whether this process was started by multiprocessing (as by uvicorn and watchfiles), or by a reloader."""
    spawned = sys.modules.get("multiprocessing.process")
    marked = any(os.environ.get(name) == "true" for name in ("RUN_MAIN", "WERKZEUG_RUN_MAIN"))  # Django's; flask's
    return marked or bool(spawned and spawned.parent_process() is not None)


def _is_a_worker(key: str, host: str, port: int) -> bool:
    """Whether this process is the child of a master: of the same server, or of a process that has its port."""
    system = _ThisSystem()
    if not system.native and _probe(port, host) is None:  # to find out more would start a tool
        return False
    me, parent = (system.process(pid) for pid in (os.getpid(), os.getppid()))
    if me and me.forked and me.parent != 1:  # 1: that of a daemon
        return True
    words = system.describe(parent).command.split() if parent and key and not system.redirects else []
    if words and _is_command_of(key, words):
        return True
    # A master may bind, and let its workers listen.
    return not _pids_on(system, port, None).isdisjoint(system.ancestry().pids)


def _is_command_of(key: str, command: Sequence[str]) -> bool:
    """Whether a command line is the server's own, not that of a launcher that waits for it.

    >>> [_is_command_of("uvicorn", words.split()) for words in ("python3 -X dev -m uvicorn a:b", "uv run uvicorn a:b")]
    [True, False]
    """
    program, at = find_server(command) or ("", 0)
    between = [word for before, word in zip(command, command[1:at]) if word[:1] != "-" and before not in ("-X", "-W")]
    return program == key and not between and (at == 0 or "py" in _program(command[0]))


def _is_of_our_server(port: int, host: str) -> bool:
    """Whether all holders of the port are ancestors of this process, or children of its parent, the reloader."""
    system = _ThisSystem()
    parent = system.process(os.getppid())
    shell = parent is None or _is_shell(parent.name)  # a reloader's variable was left set in a shell
    pids = _pids_on(system, port, host)
    return bool(pids) and pids <= {*system.ancestry().pids, *(() if shell else system.children(os.getppid()))}


def _pids_on(system: _System, port: int, host: str | None) -> set[int | None]:
    """The owners of the sockets on a port, also of those that do not listen; empty if unknown."""
    try:
        return {row.pid for row in _search(system, port, host, True)}
    except PortError:
        return set()


# ----------------------------------------------------------------------------------------------------
# The command line
# ----------------------------------------------------------------------------------------------------


_HELP = """\
Free a TCP port in development, and never stop the wrong process.

  port_manager.py list        who listens, and on which port
  port_manager.py check 8000  who holds a port, and what free would do
  port_manager.py free 8000   stop whoever holds it, if that is safe
  port_manager.py wait 8000   until it is free
  port_manager.py pick 8000   print a free port, 8000 or a later one

PORT: 8000, 3000-3010, 8000,8001, :8000, localhost:8000, http://localhost:8000/
Without a verb: check. Options: port_manager.py free --help
stop and kill mean free.

Exit status: 0 available, 1 not, 2 a wrong call, 130 interrupted.
It is development where ENVIRONMENT is unset, empty or one of
dev, development, local, test, testing, debug."""

_VERBS = {
    "list": """\
[PORT...] [OPTION...]
Show the processes that listen, by port.

  port_manager.py list 8000-8010 --json  only these ports, for programs

Exit status: 0 listed, 1 the system does not tell""",
    "check": """\
PORT... [OPTION...]
Show what holds a port, and what free would do; nothing is stopped.

  port_manager.py check 3000-3100  the held ones of 101 ports

Exit status: 0 every port is available, 1 one is not""",
    "free": """\
PORT... [OPTION...]
Stop what holds a port, if that is safe, and verify that it is free.

  port_manager.py free 8000 9229 -n  only say who would be stopped

Exit status: 0 every port is available (after -n: would be), 1 one is not""",
    "wait": """\
PORT [OPTION...]
Wait until a port is free, or until a server listens on it.

  port_manager.py wait 8000 --until listening  until a server is up

Exit status: 0 the port is in that state, 1 it was not in time""",
    "pick": """\
[PORT or range] [OPTION...]
Print a free port: the one given (8000), a later one, or one of the range.

  port_manager.py pick 3000-3010  print a free one of these

Exit status: 0 the port is printed, 1 none is free""",
}  # fmt: skip
_NAMES = {**{verb: verb for verb in _VERBS}, "stop": "free", "kill": "free"}
# Each option is declared by its line of help: short, long, kind of value; after the bar, the verbs that have it.
_OPTIONS = """\
  -n, --dry-run              stop nobody; say who would be stopped, or why not | free
      --grace SECONDS        time for the holder to stop by itself (5) | free
  -s, --signal TERM/INT/QUIT/HUP/USR1/USR2/KILL  the first, polite one; or 9 | free
      --policy kill/own/ask/refuse  or PORT_MANAGER_POLICY; own: this project | free
      --force                also outside development; overrides nothing else | free
      --until free/listening  what to wait for (free) | wait
      --timeout SECONDS      give up after this time (without it: never) | wait
      --host HOST            where to bind (0.0.0.0); localhost: IPv4 and IPv6 | check, free, wait, pick
      --json                 data for programs, on standard output | list, check, free
  -p, --port PORT            the same as PORT | list, check, free, wait, pick
  -q, --quiet                say only what goes wrong | list, check, free, wait, pick
  -v, --verbose              say more | list, check, free, wait, pick
  -h, --help                 show this | list, check, free, wait, pick
  -V, --version              show the version | list, check, free, wait, pick"""
_SIGNALS = {"1": "HUP", "2": "INT", "3": "QUIT", "9": "KILL", "15": "TERM"}


class _WrongCall(PortError):
    """A wrong command line; exit status 2."""


class _Request(NamedTuple):
    """A parsed command line."""

    verb: str
    targets: dict[tuple[str, int], str]  # (host, port): the range that contains it, or ""
    given: dict[str, str]  # the values of the options, by long name


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit status.

    >>> main(["pick", "http"])
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _called(words)
    except PortError as error:
        wrong = isinstance(error, _WrongCall)
        if wrong:
            write_line(sys.stderr, f"port_manager: {error.reason}")
        else:
            _complain(error.reason)
        if "--json" in words:
            write_line(sys.stdout, _json({"error": error.reason}))
        return 2 if wrong else 1
    except KeyboardInterrupt as interruption:
        line_of_its_own = "\n" if _on_terminal(sys.stderr) else ""
        write_line(sys.stderr, line_of_its_own + (str(interruption) or "Interrupted"))
        return 130


def _called(words: list[str]) -> int:
    if not words:
        write_line(sys.stderr, _HELP)
        return 2
    words, given, options = _parsed(words)
    spoken = next((word for word in words if word in _NAMES), None)
    verb = _NAMES.get(spoken or "", "check")
    own = {name: line for name, (line, verbs) in options.items() if verb in verbs}
    if "--help" in given:
        screen = [f"port_manager.py {verb} {_VERBS[verb]};\n2 a wrong call, 130 interrupted", "", *own.values()]
        _print("\n".join(screen) if spoken else _HELP)
        return 0
    if "--version" in given:
        _print(f"port_manager {__version__}")
        return 0
    level = ERROR if "--quiet" in given else DEBUG if "--verbose" in given else 0
    if level:
        import logging

        logging.getLogger("port_manager").setLevel(level)
    for name in given:
        if name not in own:
            raise _WrongCall(f"{name} is an option of {options[name][1]}, not of {verb}")
    targets = _targets(verb, [word for word in words if word != spoken], given, [*own, *_VERBS])
    run = {"list": _list, "wait": _wait, "pick": _pick}.get(verb, _check_or_free)
    return 0 if run(_Request(verb, targets, given)) else 1


def _parsed(words: list[str]) -> tuple[list[str], dict[str, str], dict[str, tuple[str, str]]]:
    """The words left; the value of each given option, by long name; the help and the verbs of every option."""
    given: dict[str, str] = {}
    options = {}
    words = ["--help" if word == "help" else word for word in words]
    for row in _OPTIONS.splitlines():
        line, _, verbs = row.partition(" | ")
        name, _, kind = line[6:].partition("  ")[0].partition(" ")
        options[name] = (line, verbs)
        values, words = take_options(words, f"{line[2:4]} {name}", flags=not kind, whole=True)
        given.update((name, _checked_value(name, kind, value)) for value in values)
        words += values if kind == "PORT" else []
    return words, given, options


def _checked_value(name: str, kind: str, text: str) -> str:
    if name == "--signal":
        text = text.upper().replace("SIG", "")
        text = _SIGNALS.get(text, text)
    wrong = ""
    if bool(kind) != bool(text) or text[:2] == "--":
        wrong = f"it takes {f'a value, {kind}' if kind else 'no value'}"
    elif "/" in kind and text not in kind.split("/"):
        wrong = f"{_clean(text)!r} is none of {kind.replace('/', ', ')}"
    elif kind == "SECONDS" and not (text.replace(".", "", 1).isdecimal() and float(text) < 1e6):
        wrong = f"{_clean(text)!r} is not a number of seconds"
    if wrong:
        raise _WrongCall(f"{name}: {wrong}")
    return text


def _targets(verb: str, words: list[str], given: dict[str, str], names: list[str]) -> dict[tuple[str, int], str]:
    """The ports that these words name: 8000, :8000, 3000-3010, 80,81, localhost:8000, http://localhost:8000/."""
    parts = [part for word in words for part in word.strip(",").split(",")] or ["8000"] * (verb == "pick")
    targets: dict[tuple[str, int], str] = {}
    for part in parts:
        place = part.rpartition("://")[2]
        host, _, numbers = (place.partition("/")[0] if ":" in part else place).rpartition(":")
        low, dash, high = numbers.partition("-")
        first, last = _number(low) or 0, _number(high if dash else low) or 0
        if not 1 <= first <= last <= 65535 or (":" in host and host[0] != "["):
            raise _no_port(part, names)
        for port in range(first, last + 1):
            targets.setdefault((host or given.get("--host", "0.0.0.0"), port), numbers if first < last else "")
    usage = _VERBS[verb].partition(" [OPTION")[0]
    too_many = "..." not in usage and len(targets if usage == "PORT" else parts) > 1
    if too_many or not (parts or usage[0] == "["):
        raise _WrongCall(f"type port_manager.py {verb} {usage}, such as 8000")
    return targets


def _no_port(word: str, names: list[str]) -> _WrongCall:
    """The error for a word that names no port, with a hint at what could be meant."""
    import difflib

    near = difflib.get_close_matches(word.partition("=")[0], names, 1, 0.7)
    hint = f"did you mean {near[0]}?" if near else "a port is a number from 1 to 65535, a range is 3000-3010"
    if word[:1] == "-" and not near:
        hint = "no verb has this option; port_manager.py free --help lists those of free"
        if word[1:].isdecimal():
            hint = f"a signal is named with -s {word[1:]}"
    return _WrongCall(f"{_clean(word)!r} is neither a port nor a verb or option; {hint}")


def _print(text: str) -> None:
    """Write data to standard output; a reader such as head may close it early, but a full disk is an error."""
    failure = write_line(sys.stdout, text)
    if failure:
        raise PortError(f"standard output cannot be written: {failure}")


def _json(value: object) -> str:
    import json

    return json.dumps(value, indent=2)


def _print_results(results: Iterable[PortResult]) -> None:
    """The JSON of list, check and free."""
    system, ports = _ThisSystem(), []
    for result in results:
        holders = [_holder_as_json(system, result, holder) for holder in result.holders]
        fields = result._asdict()
        del fields["plan"], fields["managers"]
        ports.append({**fields, "host": result.host or None, "holders": holders})
    _print(_json({"ports": ports}))


def _holder_as_json(system: _System, result: PortResult, holder: Holder) -> dict[str, Any]:
    """A holder for JSON; its ancestry begins at a shell, or at the service above it."""
    ancestry: list[dict[str, object]] = []
    for process in map(system.process, system.parents(holder.pid)[:12]):
        if process is None or process.pid == 1:
            break
        ancestry.insert(0, {"pid": process.pid, "name": process.name})
        if _is_shell(process.name) and process.tty:
            break
    (folder, project), manager = _place(system, holder), result.managers.get(holder.pid)
    return {
        **holder._asdict(),
        "addresses": list(map(str, holder.addresses)),
        "project": project or None,
        "branch": _in_time(lambda: folder and _branch(folder), "") or None,
        "ancestry": ancestry,
        "manager": manager and manager._asdict(),
        "state": system.state(holder.pid or 0) or None,
    }


def _place(system: _System, holder: Holder) -> tuple[str, str]:
    """The folder (empty: out of reach from here) and the marked project of a holder, even of one stopped since."""
    current = _folder_of(system, holder.pid or 0)
    folder = "" if current is None else current or holder.cwd
    return folder, _clean(_root_of(folder, _MARKS))


def _check_or_free(request: _Request) -> bool:
    """Free each port; check and the dry run only show what that would do."""
    given, free = request.given, request.verb == "free"
    dry = not free or "--dry-run" in given
    options = _options(
        [port for _, port in request.targets],
        float(given.get("--grace", GRACE)),
        given.get("--policy"),
        polite=f"SIG{given.get('--signal', 'TERM')}",
        force="--force" in given,
        starting=False,
    )
    results = [(_preview if dry else _ensure)(port, host, options) for host, port in request.targets]
    bad = [result for result in results if not (result.available or (free and result.plan))]
    if "--json" in given:
        _print_results(results)
    elif dry and "--quiet" not in given:
        screens = list(_screens(results, list(request.targets.values())))
        _print(("\n\n" if any("\n" in screen for screen in screens) else "\n").join(screens))
    elif dry and free:
        for result in bad:
            _complain(f"port {result.port}: {result.reason}")
    return not bad


def _screens(results: list[PortResult], ranges: list[str]) -> Iterator[str]:
    """A text for each port; for a range, a summary and the held ports."""
    for named in dict.fromkeys(ranges):
        some = [result for result, its_range in zip(results, ranges) if its_range == named]
        if named:
            held = list(filter(_is_held, some))
            bad = [result for result in some if not result.available]
            kinds = {"held": len(held), "cannot be bound": len(bad) - len(held), "available": len(some) - len(bad)}
            yield f"{named}: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
            some = held or bad[:1]
        yield from map(_screen, some)


def _is_held(result: PortResult) -> bool:
    obstacle = None if result.available else _probe(result.port, result.host)
    return bool(obstacle and obstacle.held)


def _screen(result: PortResult) -> str:
    """The output of check for a port: the verdict, the holders, and what free would do."""
    system, port, reason = _ThisSystem(), result.port, result.reason or ""
    if result.available:
        beside = system.beside(port) if result.host == "0.0.0.0" else []
        return "\n  beside it   ".join([f"✅ Port {port} is available", *beside])
    if not _is_held(result):
        return f"❌ {_sentence(reason)}"
    lines, room = [f"⚠️  Port {port} is already in use"], _room()
    for root, children in _families(result.holders):
        about = _about(system, result, root, children, room - 14).items()
        lines += [_cut(f"  {label:10}  {fact}", room) for label, fact in about if fact]
    whom, alone, why = reason.partition(" is left alone: ")
    would = result.plan or (f"leave {whom.split()[1]} alone: {why}" if alone else f"refuse: {reason}")
    return "\n".join([*lines, f"  free would  {would}"])


def _about(system: _System, result: PortResult, root: Holder, children: list[Holder], room: int) -> dict[str, str]:
    """The facts about a holder and its children, by label; empty ones are not shown."""
    data, command = _holder_as_json(system, result, root), _short_command(root.command, room - 10)
    states = {"suspended": "suspended (Ctrl+Z)", "deleted": "its program was deleted or replaced"}
    branch, age, manager = data["branch"], _age(root), data["manager"]
    line = [process["name"] for process in data["ancestry"]]
    return {
        "process": f"{root.pid} ({command})" if root.pid else "one that you may not see",
        "children": _listed(sorted(children)),
        "folder": _short_folder(root.cwd, room) + (f" ({branch})" if branch else ""),
        "started": (f"{age} ago " if age else "")
        + (f"by {root.user}" if root.user else "")
        + (f": {' → '.join([*line, root.name])}" if line else ""),
        "state": states.get(data["state"], ""),
        "listens on": ", ".join(data["addresses"]),
        "managed by": manager["name"] if manager and manager["name"] not in (result.reason or "") else "",
    }


def _room() -> int:
    """The width of the terminal; a pipe has none, unless COLUMNS is set."""
    import shutil

    return shutil.get_terminal_size((10_000, 1)).columns or 80


def _list(request: _Request) -> bool:
    wanted, everyone, results = {port for _, port in request.targets}, find_listeners(), []
    for port in sorted({address.port for holder in everyone for address in holder.addresses}):
        holders = [holder for holder in everyone if port in {address.port for address in holder.addresses}]
        results += [PortResult(port, "", False, holders, [], [], None, None, {})] if port in (wanted or {port}) else []
    if "--json" in request.given:
        _print_results(results)
    elif "--quiet" not in request.given:
        system, room = _ThisSystem(), _room()
        rows = [row for result in results for row in _rows(system, result, min(30, room // 4))]
        if rows:
            _print("\n".join(_table(rows, room)))
        else:
            write_line(sys.stderr, f"Nobody listens on {'these ports' if wanted else 'any TCP port'}")
        if not "".join(["0", *(row[2] for row in rows)]).isdigit():
            write_line(sys.stderr, "+N: N child processes hold the port, too; -: a process that you may not see")
    return True


def _rows(system: _System, result: PortResult, room: int) -> Iterator[list[str]]:
    port = result.port
    for root, children in _families(result.holders):
        addresses = ", ".join(address.host for address in root.addresses if address.port == port)
        pid = f"{root.pid or '-'}{f' +{len(children)}' if children else ''}"
        folder = _short_folder(_place(system, root)[1] or root.cwd or "-", room)
        command = _short_command(root.command, 10_000) or f"(user {root.user or 'unknown'})"
        yield [str(port), addresses, pid, _age(root) or "-", root.user or "-", folder, command]


def _table(rows: list[list[str]], room: int) -> Iterator[str]:
    """Aligned columns; on a narrow terminal, without the least important ones, and with shorter commands."""
    rows = [["PORT", "ADDRESS", "PID", "UP", "USER", "FOLDER", "COMMAND"], *rows]
    if room < 100:
        rows = [[*row[:3], *row[5:]] for row in rows]
    widths = [max(map(_columns, column)) for column in zip(*rows)]
    for *cells, command in rows:
        line = "".join(cell + " " * (width + 2 - _columns(cell)) for cell, width in zip(cells, widths))
        yield _cut(line + _cut(command, max(7, room - _columns(line))), room)


def _wait(request: _Request) -> bool:
    (host, port), timeout = next(iter(request.targets)), request.given.get("--timeout")
    until, seconds = request.given.get("--until", "free"), float(timeout) if timeout else None
    if until == "free":
        wait_until_free(port, host, seconds)
    else:
        wait_until_listening(port, None if host == "0.0.0.0" else host, seconds)
    _say(INFO, f"✅ Port {port} is {until}")
    return True


def _pick(request: _Request) -> bool:
    (host, first), *others = request.targets
    last = others[-1][1] if others else 65535
    port = find_free_port(first, host)
    if port > last:
        raise PortError(f"no port from {first} to {last} is free", first, host)
    # A small random step, so that simultaneous starts may get different ports.
    further = port + os.urandom(1)[0] % 4
    if first < port and further <= last and not (_probe(further, host) or _probe(further, "localhost")):
        port = further
    _print(str(port))
    return True


if __name__ == "__main__":
    raise SystemExit(main())
