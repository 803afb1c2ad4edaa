# SPDX-License-Identifier: MIT
"""End "Address already in use": free a TCP port, and never stop the wrong process.

One file for any repository; it needs Python 3.8 or newer and nothing else.

    from port_manager import ensure_port_available

    if not ensure_port_available(port=8000, host="0.0.0.0"):
        raise SystemExit(1)

In development (ENVIRONMENT is unset, or one of dev, development, local, test, testing, debug) whoever
holds the port is asked to stop, made to stop after a grace period, and the release is verified. Anywhere
else nothing is touched: the holder is named, and the answer is False. From a shell:

    python port_manager.py check 8000
    python port_manager.py free 8000

The file reads in the order in which things happen: values; words; is the port free?; who holds it?; who is
that?; may we stop it?; stop it; the calls people use; the command line.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from functools import lru_cache
from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import namedtuple
    from typing import Any, Callable, Iterable, Iterator, Mapping, NoReturn, Sequence, TextIO

__version__ = "1.0.0"

__all__ = [
    "CannotTell",
    "Endpoint",
    "Holder",
    "PortError",
    "PortManager",
    "PortTimeout",
    "bind_port",
    "ensure_port_available",
    "find_free_port",
    "find_listeners",
    "guard",
    "is_development",
    "main",
    "server_endpoints",
    "wait_until_free",
    "wait_until_listening",
]

DEVELOPMENT_NAMES = ("", "dev", "development", "local", "test", "testing", "debug")
POLICIES = ("kill", "own", "ask", "refuse")  # from the freest to the strictest

GRACE = 5.0  # seconds between the polite request and the firm one
FIRM_WAIT = 2.0  # seconds in which the system must have carried out the firm one
RESTART_WATCH = 2.0  # seconds in which a supervisor would have started its server again
TOOL_TIMEOUT = 2.0  # seconds after which a tool counts as one that cannot tell
ROUNDS = 8  # looks at the port in one call; each stops what it finds, or gives up

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40  # logging's numbers, without its import


# ----------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------


if not TYPE_CHECKING:

    class _Named(tuple):
        __slots__ = ()
        _fields = ()

        def __new__(cls, *values, **named):
            if named:
                values += tuple(named.pop(field) for field in cls._fields[len(values) :] if field in named)
            if named or len(values) != len(cls._fields):
                raise TypeError(f"{cls.__name__} takes {', '.join(cls._fields)}")
            return tuple.__new__(cls, values)

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(map('{}={!r}'.format, self._fields, self))})"

        def _asdict(self):
            return dict(zip(self._fields, self))

        def _replace(self, **changes):
            return type(self)(**{**self._asdict(), **changes})

    def namedtuple(name, fields):
        """What is used here of collections.namedtuple, which compiles code: 0.1 ms for each, at every start."""
        names = fields.split()
        members = {field: property(itemgetter(place)) for place, field in enumerate(names)}
        return type(name, (_Named,), {**members, "__slots__": (), "_fields": tuple(names)})


class Endpoint(namedtuple("Endpoint", "host port")):
    """A numeric address and a port, printed the way servers print them.

    >>> str(Endpoint("127.0.0.1", 8000)), str(Endpoint("::1", 8000))
    ('127.0.0.1:8000', '[::1]:8000')
    """

    __slots__ = ()
    if TYPE_CHECKING:
        host: str
        port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Holder(namedtuple("Holder", "pid parent user name command cwd started addresses")):
    """A process that holds a port; what the system does not tell is None (a text: empty).

    ``pid`` is None for a process that may not be seen; its ``user`` is known on Linux even then.
    ``started`` counts seconds since 1970. ``addresses`` are the endpoints that it listens on. Texts come
    from another process: unprintable characters in them have been replaced by ``?``.

    >>> Holder(38146, 900, "alice", "python", "python app.py", "/srv", 0.0, ()).pid
    38146
    """

    __slots__ = ()
    if TYPE_CHECKING:
        pid: int | None
        parent: int | None
        user: str
        name: str
        command: str
        cwd: str
        started: float | None
        addresses: tuple[Endpoint, ...]


class PortError(OSError):
    """A port cannot be had: ``port``, ``host``, ``holders`` (of type Holder) and the ``reason``, a sentence.

    >>> PortError("it is held", 8000, "0.0.0.0").reason
    'it is held'
    """

    def __init__(self, reason: str, port: int = 0, host: str = "", holders: Sequence[Holder] = ()) -> None:
        super().__init__(reason)
        self.reason, self.port, self.host, self.holders = reason, port, host, tuple(holders)


class PortTimeout(PortError, TimeoutError):
    """A wait came to its end before what it waited for; attributes as in PortError."""


class CannotTell(PortError):
    """Nobody on this system could say who holds the port, which is not the same as "nobody holds it"."""


# A TCP socket of this machine, as one way of asking describes it. peer: None where it is not connected;
# v6only: None where it was not told; inode: 0 where it was not told.
_Socket = namedtuple("_Socket", "address port listening peer pid uid inode v6only")

# What can be learned of any process. birth: a value that no later process with this PID will share;
# parent: None where it was not told; group and tty: None where the system has no such thing; leader: of a
# session that has a terminal.
_Process = namedtuple("_Process", "pid parent group tty birth started user name command zombie kernel leader")

# How one call went. stopped: the PIDs; reason: None when the port is available.
_Outcome = namedtuple("_Outcome", "port host available holders stopped reason")

if TYPE_CHECKING:
    _Rows = list[_Socket]
    _Known = dict[int, _Process]  # by PID, as far as they have been read
    _Addresses = list[tuple[int, tuple[Any, ...]]]  # (family, address), as bind() takes them


class _Pin(namedtuple("_Pin", "pid birth handle")):
    """A process held fast, so that a signal reaches the one that was looked at.

    Every signal goes to a pin, and there is no pin for a PID below 2: kill() takes 0 and -1 for whole
    groups of processes, and 1 is the system itself.
    """

    __slots__ = ()

    def __new__(cls, pid: int, birth: object, handle: int | None) -> _Pin:  # noqa: PYI034
        if pid <= 1:
            raise ValueError(f"PID {pid} is never signalled")
        return super().__new__(cls, pid, birth, handle)


# ----------------------------------------------------------------------------------------------------
# Words: what is said, and to whom
# ----------------------------------------------------------------------------------------------------


def _say(level: int, text: str) -> None:
    """Log a line; a process that has configured no logging gets it on standard error."""
    logging = sys.modules.get("logging")  # where it was never imported, nobody can have configured it
    if logging is None:
        if level >= INFO:
            _write(sys.stderr, text)
        return
    logger = logging.getLogger("port_manager")
    if logger.hasHandlers():
        if logger.isEnabledFor(level):
            logger.log(level, _fitting(text, _streams(logger)))
    elif not logger.disabled and level >= (logger.level or INFO) and level > logger.manager.disable:
        _write(sys.stderr, text)


def _streams(logger: Any) -> Iterator[TextIO]:
    while logger is not None:
        yield from (handler.stream for handler in logger.handlers if getattr(handler, "stream", None))
        logger = logger.parent if logger.propagate else None


def _fitting(text: str, streams: Iterable[TextIO]) -> str:
    """The text, or its plain form where one of the streams could not encode it."""
    for stream in streams:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except (UnicodeError, LookupError):
            for symbol, plain in (("️", ""), ("✅ ", ""), ("⚠  ", ""), ("💡 ", ""), ("🚨 ", ""), ("❌ ", ""),
                                  ("⏳ ", ""), ("←", "<-"), ("…", "...")):  # fmt: skip
                text = text.replace(symbol, plain)
            text = text.encode("ascii", "backslashreplace").decode()
    return text


def _write(stream: TextIO | None, text: str, end: str = "\n") -> str | None:
    """Write a line, and say why it could not be written; a closed stream and a reader that has gone are no failure.

    Python's own streams are written past their buffer: what fails there stays in it, fails again at exit,
    and makes the status 120.
    """
    if stream is None:  # descriptor 1 or 2 was closed at the start, and pythonw.exe has none
        return None
    try:
        text = _fitting(text, [stream]) + end
        stream.flush()
        if any(stream is own for own in (sys.__stdout__, sys.__stderr__)):
            with open(stream.fileno(), "w", encoding=stream.encoding, closefd=False) as unbuffered:
                unbuffered.write(text)
        else:
            stream.write(text)
            stream.flush()
    except (BrokenPipeError, ValueError):
        return None
    except OSError as error:
        return error.strerror or str(error)
    return None


def _status(text: str) -> None:
    """Show one passing line on a terminal; an empty text removes it."""
    try:
        width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
    except (OSError, ValueError):
        width = 60
    _write(sys.stderr, "\r" + text[:width].ljust(width) + ("" if text else "\r"), end="")


def _on_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _clean(text: str) -> str:
    """The text without control characters, which another process may have put there for our terminal."""
    return text if text.isprintable() else text.translate({ord(c): "?" for c in set(text) if not c.isprintable()})


def _sentence(reason: str) -> str:
    return reason[0].upper() + reason[1:]


def _complain(reason: str) -> None:
    _say(ERROR, f"❌ {_sentence(reason)}")


def _shortened(text: str, width: int = 160) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _span(seconds: float) -> str:
    """
    >>> _span(8), _span(7300), _span(200000)
    ('8 s', '2 h', '2 d')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def _title(holder: Holder, children: Sequence[Holder] = (), more: str = "") -> str:
    """Whom a sentence is about: ``38146 (python app.py) and its child 38147``."""
    command = _shortened(holder.command or holder.name or "unknown")
    return f"{holder.pid or '?'} ({command}{more}){_and_children(children)}"


def _full_title(holder: Holder, children: Sequence[Holder] = ()) -> str:
    """The same with all that helps a person to recognise it."""
    user = f", user {holder.user}" if holder.user else ""
    started = f", started {_span(time.time() - holder.started)} ago" if holder.started else ""
    folder = f", in {holder.cwd}" if holder.cwd else ""
    return _title(holder, children, user + started + folder)


# ----------------------------------------------------------------------------------------------------
# Is the port free? A bind probe asks what the server will ask.
# ----------------------------------------------------------------------------------------------------


def _checked(port: int, host: str) -> None:
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"a port is an integer from 1 to 65535, not {port!r}")
    if not 1 <= port <= 65535:
        raise ValueError(f"a port is an integer from 1 to 65535, not {port!r}")
    if not isinstance(host, str):
        raise TypeError(f"a host is a text such as '127.0.0.1', not {host!r}")


def _addresses(host: str, port: int) -> _Addresses:
    """Every (family, address) that a server binds when it is given this host.

    >>> _addresses("", 80) == _addresses("0.0.0.0", 80) == [(socket.AF_INET, ("0.0.0.0", 80))]
    True
    """
    host = host or "0.0.0.0"
    if host == "localhost":
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            numeric = socket.inet_ntop(family, socket.inet_pton(family, host))
        except (OSError, ValueError):
            continue
        return [(family, (numeric, port))]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _resolved(host: str, port: int) -> _Addresses:
    try:
        return _addresses(host, port)
    except (OSError, UnicodeError, ValueError):  # the last two: what no host name may contain
        raise PortError(f"host name {_clean(host)!r} is unknown", port, host) from None


def _is_bsd() -> bool:
    """macOS, the BSDs and the like: with SO_REUSEADDR, two sockets exclude each other only when their addresses are equal."""
    return sys.platform not in ("win32", "linux", "android")


_SHADOWS = {"0.0.0.0": "127.0.0.1", "127.0.0.1": "0.0.0.0", "::": "::1", "::1": "::"}
_FAMILY_IS_OFF = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


def _shadowed(addresses: _Addresses) -> _Addresses:
    """What must be free too: with SO_REUSEADDR, macOS and the BSDs let loopback and wildcard hide each other."""
    if not _is_bsd():
        return []
    return [(family, (_SHADOWS[address[0]], address[1])) for family, address in addresses if address[0] in _SHADOWS]


def _bind_error(family: int, address: tuple[Any, ...], v6only: bool | None = None) -> OSError | None:
    """Bind the way servers do: TIME_WAIT counts as free on POSIX, and Windows may not share the port."""
    exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, exclusive, 1)
            if v6only is not None:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
            probe.bind(address)
    except OSError as error:
        return error
    return None


def _obstacle(port: int, host: str) -> tuple[bool, str] | None:
    """What keeps a server from binding here: (is it somebody?, the sentence); None when nothing does."""
    try:
        addresses = _resolved(host, port)
    except PortError as unknown:
        return False, unknown.reason
    absent = 0
    for family, address in addresses:
        error = _bind_error(family, address)
        if error is None:
            continue
        if host == "localhost" and error.errno in (errno.EADDRNOTAVAIL, *_FAMILY_IS_OFF):
            absent += 1  # one family of the two may be switched off
            if absent < len(addresses):
                continue
        return _explained(error, address[0], port)
    for family, address in _shadowed(addresses):
        error = _bind_error(family, address)
        if error is not None and error.errno == errno.EADDRINUSE:
            return _explained(error, address[0], port)
    return None


def _explained(error: OSError, address: str, port: int) -> tuple[bool, str]:
    if error.errno == errno.EADDRINUSE:
        return True, f"port {port} is already in use"
    if getattr(error, "winerror", None) == 10013:
        return True, (
            f"Windows forbids port {port} (error 10013): another program owns it exclusively, or it lies in a "
            "reserved range, which this command shows: netsh int ipv4 show excludedportrange protocol=tcp"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        why = "ports below 1024 need root; choose a higher one" if port < 1024 else "a rule of this system forbids it"
        return False, f"no permission to bind port {port}: {why}"
    if error.errno == errno.EADDRNOTAVAIL:
        return False, f"{address} is not an address of this machine"
    if error.errno in _FAMILY_IS_OFF:
        return False, f"{address} cannot be used: its address family is switched off on this machine"
    return False, f"{address} port {port} cannot be bound: {error.strerror or error}"


# ----------------------------------------------------------------------------------------------------
# Who holds it? Each way of asking is one small function: the sockets on a port (on every port for None), or
# more, as _ask leaves out the others; None for "cannot tell". Each text parser is pure, and answers None to
# what is not its tool's output.
# ----------------------------------------------------------------------------------------------------

_LISTEN = 10  # the states of a TCP socket have numbers, and a question has a bit for each
_LISTENING, _BOUND, _EVERY_STATE = 1 << _LISTEN, 1 << 13, 0xFFFF
_GETSOCK = 18  # TCPDIAG_GETSOCK


def _ask_sock_diag(port: int | None, states: int = _LISTENING) -> _Rows | None:
    """Linux: the kernel's own table, over netlink (see linux/inet_diag.h and sock_diag(7)).

    Its older request is sent, which is answered for both families at once: each walk through the table costs time.
    """
    import struct

    # nlmsghdr: length, TCPDIAG_GETSOCK, REQUEST|DUMP; inet_diag_req: nothing of interest but the port and the states
    request = struct.pack("=IHHII4x", 76, _GETSOCK, 0x301, 0, 0) + struct.pack("!H46x", port or 0)
    rows: _Rows = []
    finished = False
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as kernel:  # 4: NETLINK_SOCK_DIAG
            kernel.send(request + struct.pack("=I4x", states))
            while not finished:
                part, finished = _parse_sock_diag(kernel.recv(65536, socket.MSG_DONTWAIT))  # it is there already
                rows += part
    except (OSError, ValueError, AttributeError):  # refused, garbled, or no netlink at all
        return None
    return sorted(rows, key=lambda row: ":" in row.address)  # the kernel has them in the order of a hash


def _parse_sock_diag(data: bytes) -> tuple[_Rows, bool]:
    """(rows, whether this was the last part); ValueError for an error message or for garbage."""
    import struct

    rows: _Rows = []
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if kind == 3:  # NLMSG_DONE, with an error number where the table could not be read
            if int.from_bytes(data[at + 16 : at + 20], sys.byteorder, signed=True) < 0:
                raise ValueError("sock_diag failed")
            return rows, True
        if kind != _GETSOCK or not 88 <= length <= len(data) - at:
            raise ValueError("not an answer of sock_diag")
        family, state, local, remote = struct.unpack_from("!BBxxHH", data, at + 16)
        uid, inode = struct.unpack_from("=II", data, at + 80)
        if family in (2, 10):
            size, kind_of = (4, socket.AF_INET) if family == 2 else (16, socket.AF_INET6)
            address, peer = (socket.inet_ntop(kind_of, data[at + n : at + n + size]) for n in (24, 40))
            if _is_link_local(address):  # the same on each interface
                address += f"%{int.from_bytes(data[at + 56 : at + 60], sys.byteorder)}"
            other_end = Endpoint(peer, remote) if remote else None
            v6only = _v6only_attribute(data[at + 88 : at + length]) if family == 10 else None
            rows.append(
                _Socket(address, local, state == _LISTEN, other_end, None, uid, inode, v6only)
            )
        at += (length + 3) & ~3
    return rows, False


def _is_link_local(address: str) -> bool:
    """fe80::/10.

    >>> [_is_link_local(address) for address in ("fe80::1%2", "febf::1", "fec0::1", "fe8::1")]
    [True, True, False, False]
    """
    first = address.partition(":")[0]
    return len(first) == 4 and first[:3] in ("fe8", "fe9", "fea", "feb")


def _v6only_attribute(attributes: bytes) -> bool | None:
    while len(attributes) >= 5:
        size = int.from_bytes(attributes[:2], sys.byteorder)
        if int.from_bytes(attributes[2:4], sys.byteorder) == 11:  # INET_DIAG_SKV6ONLY
            return bool(attributes[4])
        attributes = attributes[max(4, (size + 3) & ~3) :]
    return None


def _ask_proc_net(port: int | None, states: int = _LISTENING) -> _Rows | None:
    """Linux: /proc/net/tcp and tcp6, where netlink is refused."""
    rows: _Rows = []
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii", errors="replace") as table:
                if "local_address" not in table.readline():  # WSL 1 has an empty one
                    return None
                rows += _parse_proc_net(table, states)
        except FileNotFoundError:
            if name == "tcp":  # without tcp6, IPv6 is switched off; without tcp, nothing is known
                return None
        except OSError:
            return None
    return rows


def _parse_proc_net(lines: Iterable[str], states: int = _LISTENING) -> _Rows:
    """Rows of /proc/net/tcp{,6}; listeners come first there, so that the kernel need not show the rest."""
    rows = []
    for line in lines:
        fields = line.split()
        try:
            local, remote = _hex_endpoint(fields[1]), _hex_endpoint(fields[2])
            state, uid, inode = int(fields[3], 16), int(fields[7]), int(fields[9])
        except (IndexError, ValueError, OverflowError):  # the header, or not a row
            continue
        if not line.isascii():  # int() takes other digits for digits, too
            continue
        if states == _LISTENING and state != _LISTEN:
            break
        if states >> state & 1:
            peer = remote if remote.port else None
            rows.append(
                _Socket(local.host, local.port, state == _LISTEN, peer, None, uid, inode, None)
            )
    return rows


def _hex_endpoint(text: str) -> Endpoint:
    """
    >>> str(_hex_endpoint("0100007F:1F40" if sys.byteorder == "little" else "7F000001:1F40"))
    '127.0.0.1:8000'
    """
    digits, _, port = text.partition(":")
    if len(digits) not in (8, 32) or len(port) != 4:
        raise ValueError(text)
    words = (int(digits[i : i + 8], 16) for i in range(0, len(digits), 8))
    raw = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return Endpoint(socket.inet_ntop(family, raw), int(port, 16))


def _ask_ss(port: int | None) -> _Rows | None:
    """Linux: ss, from iproute2."""
    answer = _run("ss", "-ltnpeH", *(() if port is None else ("sport", "=", f":{port}")))
    return _parse_ss(answer[1]) if answer and answer[0] == 0 else None


def _parse_ss(text: str) -> _Rows | None:
    rows, known = [], not text.strip()
    for line in text.splitlines():
        fields = line.split()
        local = _endpoint(fields[3]) if len(fields) >= 5 and fields[0] == "LISTEN" else None
        if local is None:
            continue
        known = True
        details = dict(field.split(":", 1) for field in fields[5:] if ":" in field)
        only = {"0": False, "1": True}.get(details.get("v6only", ""))
        if fields[3].startswith("*:"):  # ss writes a dual-stack wildcard in this way
            local, only = Endpoint("::", local.port), False
        inode = _number(details.get("ino", "")) or 0
        # A process may name itself 'a",pid=1,fd=1': every PID in the row is a claim, to be checked.
        pids = [_pid(claim.split(",", 1)[0]) for claim in line.split("pid=")[1:]]
        claims = dict.fromkeys(pid for pid in pids if pid) or [None]
        rows += [_Socket(*local, True, None, pid, None, inode, only) for pid in claims]
    return rows if known else None


def _ask_lsof(port: int | None) -> _Rows | None:
    """macOS, the BSDs, Linux: lsof. It exits with 1 and prints nothing when nobody holds the port."""
    answer = _run("lsof", "-nP", "-iTCP" if port is None else f"-iTCP:{port}", "-F", "pftdPnT")
    if answer is None or answer[0] not in (0, 1):
        return None
    complaints = [line for line in answer[2].splitlines() if line[:1].strip() and "WARNING" not in line]
    return None if complaints and not answer[1].strip() else _parse_lsof(answer[1])


def _ask_macos(port: int | None) -> _Rows | None:
    """macOS: lsof, and netstat for whether a ``::`` takes IPv4, too."""
    rows = _ask_lsof(port)
    if not rows or all(row.address != "::" for row in rows):
        return rows
    kinds = _parse_netstat_bsd(_output("netstat", "-an", "-p", "tcp"))
    return [row._replace(v6only=kinds.get(row.port)) if row.address == "::" else row for row in rows]


def _parse_netstat_bsd(text: str) -> dict[int, bool]:
    """For each port on which ``::`` listens, whether on IPv6 alone; ports that have both kinds are left out."""
    kinds: dict[int, set[bool]] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 6 and fields[0] in ("tcp6", "tcp46") and fields[3][:2] == "*." and fields[5] == "LISTEN":
            port = _number(fields[3][2:])
            if port is not None:
                kinds.setdefault(port, set()).add(fields[0] == "tcp6")
    return {port: True in found for port, found in kinds.items() if len(found) == 1}


def _parse_lsof(text: str) -> _Rows | None:
    """Field output: a letter and its value on each line; p begins a process, f a file of it.

    Without a single p line the text is not lsof's field output: busybox has a lsof of its own, which
    ignores every option and lists every open file of the system.
    """
    rows: _Rows = []
    file: dict[str, str] = {}
    pid, known = None, not text.strip()
    for line in [*text.splitlines(), "f"]:
        key, value = line[:1], line[1:]
        if key in ("p", "f"):
            rows += _lsof_socket(file, pid)
            file = {}
        if key == "p":
            pid = _pid(value)
            known = known or pid is not None
        elif key == "T" and value.startswith("ST="):
            file["state"] = value[3:]
        elif key:
            file[key] = value
    return rows if known else None


def _lsof_socket(file: dict[str, str], pid: int | None) -> _Rows:
    listening = {"LISTEN": True, "CLOSED": False}.get(file.get("state", ""))  # closed: bound alone
    local = _endpoint(file.get("n", ""), v6=file.get("t") == "IPv6")
    if not (pid and local and file.get("P") == "TCP" and file.get("t") in ("IPv4", "IPv6")) or listening is None:
        return []
    return [_Socket(*local, listening, None, pid, None, _number(file.get("d", "")) or 0, None)]


def _ask_netstat(port: int | None) -> _Rows | None:
    """Linux: netstat, from net-tools or busybox (which may have been built without -p)."""
    return _parse_netstat(_output("netstat", "-ltnpe") or _output("netstat", "-ltn"))


def _parse_netstat(text: str) -> _Rows | None:
    rows, known = [], "Proto" in text
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 6 or fields[0] not in ("tcp", "tcp6") or fields[5] != "LISTEN":
            continue
        local = _endpoint(fields[3])
        if local is None:
            continue
        uid = inode = None
        if len(fields) > 8 and fields[6].isdigit() and fields[7].isdigit():  # net-tools: User, Inode, PID/Program
            uid, inode = _number(fields[6]), _number(fields[7])
        owner = fields[8] if inode is not None else (fields[6] if len(fields) > 6 else "-")
        pid = _pid(owner.split("/", 1)[0]) if "/" in owner else None
        rows.append(_Socket(*local, True, None, pid, uid, inode or 0, None))
    return rows if known else None


def _ask_sockstat(port: int | None) -> _Rows | None:
    """FreeBSD: sockstat."""
    return _parse_sockstat(_output("sockstat", "-46l", "-P", "tcp", *(() if port is None else ("-p", str(port)))))


def _parse_sockstat(text: str) -> _Rows | None:
    """Columns: USER COMMAND PID FD PROTO LOCAL FOREIGN; a command may contain blanks."""
    rows, known = [], "PROTO" in text
    for line in text.splitlines():
        fields = line.split()
        protocols = [i for i, field in enumerate(fields) if field in ("tcp4", "tcp6", "tcp46") and i >= 4]
        if not protocols or len(fields) < protocols[-1] + 3:
            continue
        at = protocols[-1]
        local = _endpoint(fields[at + 1], v6=fields[at] != "tcp4")
        pid = _pid(fields[at - 2])
        if pid and local and fields[at + 2] == "*:*":
            only = {"tcp6": True, "tcp46": False}.get(fields[at])
            rows.append(_Socket(*local, True, None, pid, None, 0, only))
    return rows if known else None


def _ask_netstat_ano(port: int | None) -> _Rows | None:
    """Windows, and WSL for the Windows around it: netstat -ano, by its full path."""
    return _parse_netstat_ano(_output(_windows_tool("NETSTAT.EXE"), "-ano"))


def _parse_netstat_ano(text: str) -> _Rows | None:
    """Judged by shape: a TCP row whose foreign address is all zero listens, whatever its state is called.

    A dual-stack socket has a row for each family, so that a row of IPv6 speaks for IPv6 alone.
    """
    rows, known = [], False
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[0] != "TCP":
            continue
        local, number = _endpoint(fields[1]), _number(fields[-1])
        known = known or (local is not None and number is not None)
        if local is None or fields[2] not in ("0.0.0.0:0", "[::]:0"):
            continue
        if number is not None and number >= 2:
            rows.append(_Socket(*local, True, None, number, None, 0, ":" in local.host))
    return rows if known else None


def _endpoint(text: str, v6: bool = False) -> Endpoint | None:
    """The endpoint that a tool printed, or None for what is none (a connection, a name, a mangled row).

    >>> [str(_endpoint(t)) for t in ("*:80", ":::80", "[::1]:80", "127.0.0.1%lo:80", "[fe80::1%12]:80")]
    ['0.0.0.0:80', '[::]:80', '[::1]:80', '127.0.0.1:80', '[fe80::1]:80']
    >>> _endpoint("127.0.0.1:8000->127.0.0.1:52011") or _endpoint("1.2.3:80") or _endpoint("*:99999")
    """
    host, _, digits = text.rpartition(":")
    port = _number(digits)
    host = "::" if host == "*" and v6 else "0.0.0.0" if host == "*" else host.strip("[]").partition("%")[0]
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        host = socket.inet_ntop(family, socket.inet_pton(family, host))
    except (OSError, ValueError):
        return None
    return Endpoint(host, port) if port is not None and port <= 65535 else None


def _number(text: str) -> int | None:
    """A decimal number as tools write it: no sign, no leading zero, no other digits than 0 to 9.

    >>> [_number(text) for text in ("80", "0", "080", "-80", "8_0", "²", "")]
    [80, 0, None, None, None, None, None]
    """
    plain = text.isascii() and text.isdigit() and len(text) <= 10 and (text[0] != "0" or text == "0")
    return int(text) if plain else None


def _pid(text: str) -> int | None:
    number = _number(text)
    return number if number is not None and number >= 2 else None


def _run(tool: str, *options: str, timeout: float | None = None) -> tuple[int, str, str] | None:
    """Start a tool: (exit status, output, complaints); None when it is missing, hangs, or cannot be started."""
    import subprocess

    program = _found(tool)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout or TOOL_TIMEOUT,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        _say(DEBUG, f"{tool} cannot tell: {error}")
        return None
    return done.returncode, _decoded(done.stdout), _decoded(done.stderr)


def _output(tool: str, *options: str, timeout: float | None = None) -> str:
    """What a tool prints; empty where it fails."""
    answer = _run(tool, *options, timeout=timeout)
    return answer[1] if answer and answer[0] == 0 else ""


def _complaint(answer: tuple[int, str, str] | None) -> str:
    """What a tool has to say about its failure, in one line."""
    return _clean(" ".join((answer[2] or answer[1]).split())) if answer else ""


def _found(tool: str) -> str | None:
    """The full path of a tool; shutil.which would look in the current folder first, on Windows."""
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(folder)]
    if sys.platform == "win32":
        tool += "" if tool.lower().endswith(".exe") else ".exe"
    else:
        folders += ["/usr/sbin", "/sbin", "/usr/local/sbin"]
    paths = [tool] if os.path.isabs(tool) else [os.path.join(folder, tool) for folder in folders]
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def _decoded(output: bytes) -> str:
    for encoding in ("utf-8", "oem"):  # the second is Windows's, and what its older tools speak
        try:
            return output.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    return output.decode("utf-8", "backslashreplace")


# On Linux a tool may tell which sockets there are, and /proc alone tells whose they are: whatever PID a tool
# prints, nobody is believed to hold a socket whose descriptor does not show it.

SIBLINGS = 4  # looked at to either side of a find: workers whose master holds nothing were started together


def _owners_by_proc(rows: _Rows, known: _Known, thorough: bool) -> _Rows:
    """The rows again, one for each process that holds them; pid stays None where none may be seen."""
    links = {f"socket:[{row.inode}]": row.inode for row in rows if row.inode}
    found = _walk_proc(links, known, thorough) if links and _proc_is_ours(os.getpid()) else {}
    owned = []
    for row in rows:
        pids: list[int | None] = [pid for pid, inodes in found.items() if row.inode in inodes]
        owned += [row._replace(pid=pid) for pid in pids or [None]]
    return owned


@lru_cache(maxsize=1)
def _proc_is_ours(me: int) -> bool:
    """Whether /proc numbers the processes as kill() does: it may show those of another PID namespace.

    There this process may have the same number by chance, and beside it the one that it has here.
    """
    try:
        return os.readlink("/proc/self") == str(me) and _status_of("self", "NSpid") in ([], [me])  # []: before Linux 4.1
    except OSError:
        return False


def _walk_proc(links: dict[str, int], known: _Known, thorough: bool) -> dict[int, set[int]]:
    """Which process holds which of these sockets: the known ones first, then from the youngest down.

    A development server is young, and its family hangs together: once every socket has an owner, the walk
    goes on along parents, children and siblings. A stranger who shares the socket comes to light when the
    caller looks again after stopping; a thorough walk leaves nobody out.
    """
    found: dict[int, set[int]] = {}
    seen: set[int] = set()

    def look_at(pid: int) -> bool:
        seen.add(pid)
        held = _sockets_of(pid, links)
        if held:
            found[pid] = held
        return bool(held)

    missing = set(links.values())
    for pid in [*known, *_pids_from_the_youngest()]:
        if pid not in seen and look_at(pid):
            missing -= found[pid]
        if not missing and not thorough:
            break
    family = list(found)
    for pid in family:  # grows while it is read
        family += [relative for relative in _relatives(pid, known) - seen if look_at(relative)]
    return found


def _pids_from_the_youngest() -> list[int]:
    """PIDs are given upwards and begin again from below: those above the one given last are the oldest."""
    try:
        pids = list(map(int, filter(str.isdigit, os.listdir("/proc"))))
    except OSError:
        return []
    try:
        last = int(_contents("/proc/loadavg").split()[-1])
    except (OSError, ValueError, IndexError):  # a /proc that shows processes alone
        last = 1 << 30
    pids.sort(reverse=True)
    youngest = next((at for at, pid in enumerate(pids) if pid <= last), 0)
    return pids[youngest:] + pids[:youngest]


def _sockets_of(pid: int, links: dict[str, int]) -> set[int]:
    """Those of the sockets that this process holds: none where it has gone or may not be read."""
    held = _sockets_in(f"/proc/{pid}/fd", links)
    if held is None:  # as of a process whose first thread has ended; the others may have theirs
        others = (_sockets_in(f"/proc/{pid}/task/{thread}/fd", links) for thread in _threads_of(pid) if thread != str(pid))
        held = next(filter(None, others), set())
    return held


def _sockets_in(path: str, links: dict[str, int]) -> set[int] | None:
    """Those of the sockets that are in a folder of descriptors; None where no descriptor is seen."""
    held: set[int] = set()
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        descriptors = os.listdir(folder)
        for descriptor in descriptors:
            try:
                inode = links.get(os.readlink(descriptor, dir_fd=folder))
            except FileNotFoundError:  # closed in the meantime
                continue
            if inode is not None:
                held.add(inode)
                if len(held) == len(links):  # a busy server has a descriptor for each connection, too
                    break
    except OSError:  # gone
        return held
    finally:
        os.close(folder)
    return held if descriptors else None


def _relatives(pid: int, known: _Known) -> set[int]:
    """The parent, the children and the nearest siblings, without looking at every process of the machine."""
    process = _process(LINUX, pid, known)
    if process is None:  # gone
        return set()
    siblings = sorted(_children_of(process.parent))
    at = siblings.index(pid) if pid in siblings else 0
    return {process.parent, *siblings[max(0, at - SIBLINGS) : at + SIBLINGS + 1], *_children_of(pid)}


def _children_of(pid: int) -> set[int]:
    children: set[int] = set()
    try:
        for thread in _threads_of(pid):
            children.update(map(int, _contents(f"/proc/{pid}/task/{thread}/children").split()))
    except OSError:  # gone, or a kernel built without this file
        pass
    return children


def _threads_of(pid: int) -> list[str]:
    """The numbers of a process's threads, the first of which is its own; none where it has gone."""
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


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


def _owners_as_told(rows: _Rows, known: _Known, thorough: bool) -> _Rows:
    """macOS, the BSDs: the tool's PIDs; they are asked for again just before the signal."""
    return rows


def _owners_by_handle(rows: _Rows, known: _Known, thorough: bool) -> _Rows:
    """Windows: where the owner is dead, its children hold the handle that they inherited.

    Children of different programs are no family: one of them may be of an earlier owner of that PID.
    """
    if rows and not known:
        known.update(_read_windows(None))
    owned = []
    for row in rows:
        heirs = [heir for heir in known.values() if heir.parent == row.pid and heir.name != "conhost.exe"]
        pids = [heir.pid for heir in heirs] if len({heir.name for heir in heirs}) == 1 else [None]
        dead = known and row.pid not in known
        owned += [row._replace(pid=pid) for pid in (pids if dead else [row.pid])]
    return owned


# ----------------------------------------------------------------------------------------------------
# Who is that? What the system tells of a process.
# ----------------------------------------------------------------------------------------------------


def _read_proc(pid: int | None) -> _Known:
    """Linux: one process, from /proc/PID/stat (see proc(5); the name may contain blanks and brackets)."""
    try:
        head, _, tail = _contents(f"/proc/{pid}/stat").rpartition(b")")
        field = tail.split()
        name = os.fsdecode(head.partition(b"(")[2])
        state, (parent, group, session, tty), flags = field[0], map(int, field[1:5]), int(field[6])
        threads, born = int(field[17]), int(field[19])
        up = born / os.sysconf("SC_CLK_TCK")
        started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + up
    except (OSError, IndexError, ValueError, AttributeError):
        return {}
    gone, kernel = state in (b"Z", b"X", b"x") and threads <= 1, bool(flags & 0x00200000)  # PF_KTHREAD
    leader = session == pid and tty != 0
    return {pid or 0: _Process(pid, parent, group, tty, born, started, "", _clean(name), "", gone, kernel, leader)}


def _describe_proc(process: _Process) -> tuple[str, str, str]:
    """Linux: (user, command line, working directory)."""
    user = command = cwd = ""
    try:
        user = _user_name(_status_of(process.pid, "Uid")[1])  # the folder's owner is root where it gave up rights
        command = " ".join(_words_of(process.pid))
        cwd = os.readlink(f"/proc/{process.pid}/cwd")
    except (OSError, IndexError):  # gone, or another user's
        pass
    return user, _clean(command), _clean(cwd)


def _status_of(pid: int | str | None, field: str) -> list[int]:
    """Linux: the numbers in a field of /proc/PID/status (Uid: real, effective, saved, of the file system)."""
    try:
        line = _contents(f"/proc/{pid}/status").partition(f"\n{field}:".encode())[2].partition(b"\n")[0]
        return [int(number) for number in line.split()]
    except (OSError, ValueError):
        return []


def _words_of(pid: int) -> list[str]:
    """Linux: the words of a process's command line."""
    return os.fsdecode(_contents(f"/proc/{pid}/cmdline").rstrip(b"\0")).split("\0")


@lru_cache(maxsize=None)
def _user_name(uid: int) -> str:
    """Asked once for each user: it may take a look at the whole of /etc/passwd, or a directory server."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _read_ps(pid: int | None) -> _Known:
    """macOS, the BSDs: every process, from ps; once more for the names, which may contain blanks."""
    keys = ("pid", "ppid", "pgid", "stat", "tty", "user", "lstart", "command")
    options = [word for key in keys for word in ("-o", f"{key}=")]  # FreeBSD takes all after a = for a heading
    return _parse_ps(_output("ps", "-axww", *options), _output("ps", "-axww", "-o", "pid=", "-o", "comm="))


def _parse_ps(text: str, names: str = "") -> _Known:
    programs = dict(line.split(None, 1) for line in names.splitlines() if len(line.split(None, 1)) == 2)
    processes = {}
    for line in text.splitlines():
        fields = line.split(None, 11)
        pid, parent, group = map(_number, fields[:3]) if len(fields) >= 11 else (None, None, None)
        if pid is None or parent is None or group is None:
            continue
        birth = " ".join(fields[6:11])  # lstart: Mon Nov 23 10:15:00 2026
        try:
            started = time.mktime(time.strptime(birth, "%a %b %d %H:%M:%S %Y"))
        except (ValueError, OverflowError):
            continue
        command = _clean("".join(fields[11:]).strip())
        program = programs.get(fields[0]) or command.split(" ", 1)[0]
        name = _clean(program.partition(": ")[0].rstrip(": ").rpartition("/")[2])  # ssh: /run/socket [mux]
        zombie, leader = fields[3][0] == "Z", "s" in fields[3] and fields[4].strip("?-") != ""
        processes[pid] = _Process(
            pid, parent, group, fields[4], birth, started, fields[5], name, command, zombie, False, leader
        )
    return processes


def _describe_ps(process: _Process) -> tuple[str, str, str]:
    answer = _run("lsof", "-a", "-p", str(process.pid), "-d", "cwd", "-F", "n")
    lines = answer[1].splitlines() if answer else []
    return process.user, process.command, _clean(_unescaped(next((line[1:] for line in lines if line[:1] == "n"), "")))


def _unescaped(text: str) -> str:
    """What lsof wrote with LC_ALL=C.

    >>> _unescaped(r"/Users/alice/\\xe9\\xa1\\xb9\\xe7\\x9b\\xae"), _unescaped("/项目")
    ('/Users/alice/项目', '/项目')
    """
    try:
        return text.encode("ascii").decode("unicode_escape").encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


_CIM_QUERY = (  # the code page would stay changed in the user's console
    "$before = [Console]::OutputEncoding; [Console]::OutputEncoding = [Text.Encoding]::UTF8; "
    "Get-CimInstance Win32_Process | Select-Object ProcessId, ParentProcessId, "
    "@{n='Created'; e={$_.CreationDate.ToFileTimeUtc()}}, Name, CommandLine | ConvertTo-Csv -NoTypeInformation; "
    "[Console]::OutputEncoding = $before"
)


def _read_windows(pid: int | None) -> _Known:
    """Windows: every process, from PowerShell; without it, from tasklist, which knows no parents."""
    shell = _windows_tool(r"WindowsPowerShell\v1.0\powershell.exe")
    told = _output(shell, "-NoProfile", "-NonInteractive", "-Command", _CIM_QUERY, timeout=5 * TOOL_TIMEOUT)
    return _parse_cim(told) or _parse_tasklist(_output(_windows_tool("tasklist.exe"), "/FO", "CSV", "/NH"))


def _parse_cim(text: str) -> _Known:
    processes = {}
    for pid, parent, created, name, command in (row for row in _csv_rows(text) if len(row) == 5):
        number = _number(pid)
        if number is not None and _number(parent) is not None:
            # A file time counts 100 ns since 1601.
            started = int(created) / 1e7 - 11644473600 if created.isdigit() and created.isascii() else None
            processes[number] = _Process(
                number, int(parent), None, None, created, started, "", _clean(name), _clean(command), False, False, False
            )
    return processes


def _parse_tasklist(text: str) -> _Known:
    processes = {}
    for row in _csv_rows(text):
        pid = _number(row[1]) if len(row) >= 5 else None
        if pid is not None:
            user = _clean(row[6]) if len(row) >= 9 else ""
            processes[pid] = _Process(pid, None, None, None, None, None, user, _clean(row[0]), "", False, False, False)
    return processes


def _csv_rows(text: str) -> list[list[str]]:
    import csv

    try:
        return list(csv.reader(text.replace("\0", "").splitlines()))
    except csv.Error:
        return []


def _describe_windows(process: _Process) -> tuple[str, str, str]:
    verbose = ("/V", "/FO", "CSV", "/NH", "/FI", f"PID eq {process.pid}")
    told = _output(_windows_tool("tasklist.exe"), *verbose, timeout=5 * TOOL_TIMEOUT)
    told_of = _parse_tasklist(told).get(process.pid)
    return (told_of.user if told_of else ""), process.command or process.name, ""


def _windows_tool(name: str) -> str:
    """The full path of a tool of Windows: a bare name would be searched in the current folder first."""
    if sys.platform == "win32":
        return os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", name)
    return f"{_windows_drive()}/Windows/System32/{name}".replace("\\", "/")


def _windows_drive() -> str:
    """WSL: where the Windows system drive is mounted."""
    try:
        with open("/proc/mounts", encoding="utf-8", errors="replace") as mounts:
            for device, folder, *_ in (line.split() for line in mounts):
                if device.upper().startswith("C:"):
                    return folder
    except (OSError, ValueError):
        pass
    return "/mnt/c"


def _on_wsl() -> bool:
    return sys.platform == "linux" and "microsoft" in os.uname().release.lower()


def _windows_shares_ports() -> bool:
    """WSL: with mirrored networking, a program of Windows holds a port for both; with NAT, the default, never."""
    return _output("wslinfo", "--networking-mode").strip() == "mirrored"


def _process(system: Any, pid: int | None, known: _Known) -> _Process | None:
    """A process, remembered in ``known``: one look at a port reads nobody twice.

    Linux reads one at a time; elsewhere a reading tells of everybody, and who is not in it has gone.
    """
    if pid is not None and pid not in known and (system is LINUX or not known):
        known.update(system.read(pid))
    return known.get(pid) if pid is not None else None


def _above(system: Any, pid: int | None, known: _Known) -> list[int]:
    """The ancestors of a process, nearest first; the last one is where the line ends, or may not be seen."""
    line: list[int] = []
    process = _process(system, pid, known)
    while process and process.parent and process.parent not in (pid, *line):
        line.append(process.parent)
        process = _process(system, process.parent, known)
    return line


def _ancestry(system: Any, known: _Known) -> list[int] | None:
    """This process and its ancestors, nearest first; None where the system will not tell them."""
    for _ in range(ROUNDS):
        line = [os.getpid(), *_above(system, os.getpid(), known)]
        top = _process(system, line[-1], known)
        if top and not (top.zombie and not top.parent):
            return line if top.parent is not None else None
        if system is WINDOWS and len(line) > 1:  # a dead parent stays a parent there
            return line
        if system is not LINUX or len(line) == 1:
            return None
        child = system.read(line[-2]).get(line[-2])
        if child and child.parent == line[-1] and not top:  # it is there, and may not be seen
            return None
        for pid in line:  # it ended, and left its child to one of the others above
            known.pop(pid, None)
    return None


# ----------------------------------------------------------------------------------------------------
# The look: all of the above, for one port
# ----------------------------------------------------------------------------------------------------

# One row per system; to add a way of asking, write its function and name it here, the quickest first.
_System = namedtuple("_System", "name ways owners read describe")

_LINUX_WAYS = (_ask_sock_diag, _ask_proc_net, _ask_ss, _ask_lsof, _ask_netstat)
LINUX = _System("linux", _LINUX_WAYS, _owners_by_proc, _read_proc, _describe_proc)
MACOS = _System("macos", (_ask_macos,), _owners_as_told, _read_ps, _describe_ps)
FREEBSD = _System("freebsd", (_ask_sockstat, _ask_lsof), _owners_as_told, _read_ps, _describe_ps)
WINDOWS = _System("windows", (_ask_netstat_ano,), _owners_by_handle, _read_windows, _describe_windows)
OTHER = _System("other", (_ask_lsof,), _owners_as_told, _read_ps, _describe_ps)  # the other BSDs package lsof

# What one look found. sockets: those that block, a row per holder; ancestry: this process and those above
# it; known: what was learned of processes; pins: the holders, held fast, by PID.
_Look = namedtuple("_Look", "system sockets holders ancestry known pins")


def _system() -> Any:
    if sys.platform in ("linux", "android"):
        return LINUX
    if sys.platform.startswith("freebsd"):
        return FREEBSD
    return {"darwin": MACOS, "win32": WINDOWS}.get(sys.platform, OTHER)


def _ask(system: Any, port: int | None) -> _Rows | None:
    for way in system.ways:
        rows: _Rows | None = way(port)
        if rows is not None:
            return _on(port, rows)
    return None


def _on(port: int | None, rows: _Rows) -> _Rows:
    """Those on the port: not every way of asking leaves out the others."""
    return [row for row in rows if port in (None, row.port)]


def _blocking(rows: _Rows, addresses: _Addresses | None) -> _Rows:
    """The sockets that keep a server from binding one of the addresses (None: any); those that may, where no other does."""
    if addresses is None:
        return rows
    verdicts = [(row, _conflicts(row, addresses)) for row in rows]
    sure = [row for row, conflicts in verdicts if True in conflicts]
    return sure or [row for row, conflicts in verdicts if None in conflicts]


def _conflicts(row: _Socket, addresses: _Addresses) -> list[bool | None]:
    return [_conflict(row, _zoned(address)) for _, address in addresses]


def _zoned(address: tuple[Any, ...]) -> str:
    zone = address[3] if len(address) > 3 else 0
    return f"{address[0].partition('%')[0]}%{zone}" if zone else str(address[0])


def _conflict(row: _Socket, wanted: str) -> bool | None:
    """Whether a socket and a bind to the wanted address exclude each other; None for "cannot tell".

    >>> rows = [_Socket(a, 80, True, None, 2, 0, 1, v) for a, v in (("127.0.0.1", None), ("::", True))]
    >>> [[_conflict(row, wanted) for wanted in ("0.0.0.0", "127.0.0.1", "127.0.0.2", "::1")] for row in rows]
    [[True, True, False, False], [False, False, False, True]]
    """
    held, wanted = _undressed(row.address), _undressed(wanted)
    if (":" in held) == (":" in wanted):
        if _is_link_local(held) and held != wanted and held.partition("%")[0] == wanted.partition("%")[0]:
            return False if "%" in held and "%" in wanted else None  # the same address, on which interface?
        if _is_bsd():
            return held == wanted or _SHADOWS.get(wanted) == held
        return held == wanted or held in ("0.0.0.0", "::") or wanted in ("0.0.0.0", "::")
    if held == "::":
        return None if row.v6only is None else not row.v6only
    return wanted == "::" and _wildcard_is_dual()


def _undressed(address: str) -> str:
    """The IPv4 address in IPv6 clothes (::ffff:127.0.0.1), or what it is."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def _wildcard_is_dual() -> bool:
    """Whether a server that binds ``::`` takes the IPv4 port too, which is a setting of the system."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            return not probe.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    except OSError:
        return False


def _search(port: int | None, host: str | None, thorough: bool) -> tuple[Any, _Rows] | None:
    """(system, the sockets on a port that keep a server from binding the host); None for "cannot tell"."""
    system, addresses = _system(), _resolved(host, port or 0) if host is not None else None
    rows = _ask(system, port)
    if rows is None:
        return None
    rows = _blocking(rows, addresses)
    if system is LINUX and port is not None and (thorough or not rows):
        bound = _on(port, _ask_sock_diag(port, _BOUND) or [])  # takes ten times as long as listeners do
        rows = rows + _blocking(bound, addresses)
    elsewhere = not rows and port is not None and _on_wsl() and _obstacle(port, host or "0.0.0.0")
    if elsewhere and not _every_socket(port or 0) and _windows_shares_ports():
        system, rows = WINDOWS, _blocking(_ask(WINDOWS, port) or [], addresses)
    return system, rows


def _keeps_its_address(row: _Socket) -> bool:
    """Whether a bound socket keeps others from its address: with SO_REUSEADDR it shares that until it listens."""
    error = _bind_error(socket.AF_INET6 if ":" in row.address else socket.AF_INET, (row.address, row.port), row.v6only)
    return error is not None and error.errno == errno.EADDRINUSE


def _look_at(port: int, host: str, *, pin: bool = False, thorough: bool = False) -> _Look | None:
    """Who keeps a server from binding here: nobody is an empty look, "cannot tell" is None."""
    try:
        system, rows, known = _owned(port, host, thorough)
    except CannotTell:
        return None
    ancestry = _ancestry(system, known) if rows and system is _system() else []
    pins: dict[int, _Pin] = {}
    if pin:
        pins = _pinned(system, dict.fromkeys(row.pid for row in rows if row.pid and row.pid > 1), known)
    return _Look(system, rows, _holders(system, rows, known), ancestry, known, pins)


def _without_idle(system: Any, rows: _Rows, known: _Known) -> _Rows:
    """Without the sockets that are bound, do not listen, and keep nobody from binding.

    Where a listener has the address, too, a bind probe would not tell: only their master's counts then, who would
    start them again; if another's is in the way, the look after the listeners have gone finds it.
    """
    listening = [row for row in rows if row.listening]
    if len(listening) == len(rows):
        return rows
    masters = {_master(system, row.pid, known) for row in listening}

    def counts(row: _Socket) -> bool:
        if row in listening or row.pid in masters:
            return True
        return all(_conflict(other, row.address) is False for other in listening) and _keeps_its_address(row)

    return list(filter(counts, rows))


def _master(system: Any, pid: int | None, known: _Known) -> int | None:
    """The parent of a worker, which runs the same command or was spawned by multiprocessing; other parents are none."""
    worker = _process(system, pid, known)
    parent = _process(system, worker.parent, known) if worker else None
    if worker is None or parent is None:
        return None
    command = system.describe(worker)[1]
    same = "multiprocessing" in command or command == system.describe(parent)[1]
    return int(parent.pid) if command and same else None


def _holders(system: Any, rows: _Rows, known: _Known) -> list[Holder]:
    """The rows gathered by process and described, parents before their children."""
    grouped: dict[tuple[int | None, int | None], _Rows] = {}
    for row in rows:
        grouped.setdefault((row.pid, row.uid if row.pid is None else None), []).append(row)
    holders = []
    for (pid, uid), own in grouped.items():
        process = _process(system, pid, known)
        addresses = tuple(dict.fromkeys(Endpoint(row.address, row.port) for row in own))
        if process:
            user, command, cwd = system.describe(process)
            facts = (process.parent, user, process.name, command or process.name, cwd, process.started)
            holders.append(Holder(pid, *facts, addresses))
        elif pid is None or not _has_gone(system, pid, known):  # who has just exited holds nothing any more
            user = _user_name(uid) if uid is not None else ""
            holders.append(Holder(pid, None, user, "", "", "", None, addresses))
    return _roots_first(holders)


def _has_gone(system: Any, pid: int, known: _Known) -> bool:
    """Whether a process that could not be read has ended."""
    return bool(known) if system is not LINUX else not os.path.exists(f"/proc/{pid}")  # without a descriptor


def _roots_first(holders: list[Holder]) -> list[Holder]:
    parents = {holder.pid: holder.parent for holder in holders}

    def depth(pid: int | None) -> int:
        steps = 0
        while pid in parents and steps <= len(parents):
            pid, steps = parents[pid], steps + 1
        return steps

    return sorted(holders, key=lambda holder: depth(holder.pid))


def _families(holders: list[Holder]) -> list[tuple[Holder, list[Holder]]]:
    """Each root with its descendants; a root is a holder whose parent is none."""
    families: dict[int | None, list[Holder]] = {}  # by the PID of each of its members
    found = []
    for holder in holders:  # roots come first
        family = families.get(holder.parent) if holder.parent else None  # None is the PID of all who are hidden
        if family is None:
            family = []
            found.append((holder, family))
        else:
            family.append(holder)
        families[holder.pid] = family
    return found


def _every_socket(port: int) -> _Rows:
    """Linux: the sockets on a port, in whatever state."""
    rows = _ask_sock_diag(port, _EVERY_STATE)
    return _on(port, (_ask_proc_net(port, _EVERY_STATE) if rows is None else rows) or [])


def _why_nobody(port: int, host: str, reason: str = "") -> str:
    """The bind says "in use" and no holder was found: what else there is to say."""
    if "10013" in reason:
        return reason
    if _system() is not LINUX:
        return f"port {port} is held by a process that cannot be named from here; run with more rights to find out"
    rows = _blocking([row for row in _every_socket(port) if row.peer], _resolved(host, port))
    for row in _owners_by_proc([row for row in rows if row.inode], {}, True):
        holder = next(iter(_holders(LINUX, [row], {})), None)
        whom = "a process that you may not see" if holder is None or not holder.pid else f"process {_title(holder)}"
        return (
            f"port {port} is the local end of a connection from {whom} to {row.peer}; a client is never stopped: "
            "close that connection, or choose another port"
        )
    if rows:
        return f"the system is still closing connections of a former server on port {port}; try again in a minute"
    hint = "on a kernel before 6.8, a socket that is bound and not listening cannot be named either"
    if _on_wsl() and _windows_shares_ports() and _ask_netstat_ano(port) is None:
        hint = "a Windows program may hold it, and WSL's interoperability, which would tell, is switched off"
    return f"nobody who may be seen holds port {port}; another user, container or namespace may ({hint})"


# ----------------------------------------------------------------------------------------------------
# May we stop it? A guard answers why not, in a sentence about "it", or None.
# ----------------------------------------------------------------------------------------------------


def is_development(environ: Mapping[str, str] | None = None) -> bool:
    """Whether ENVIRONMENT, as it is at this moment, allows to stop the holder of a port.

    >>> [is_development({"ENVIRONMENT": name}) for name in ("", "Dev", "production", "developement")]
    [True, True, False, False]
    """
    value = (os.environ if environ is None else environ).get("ENVIRONMENT", "")
    return value == "" or value.strip().lower() in DEVELOPMENT_NAMES[1:]


def _because_of_the_environment() -> str | None:
    if is_development():
        return None
    return f"ENVIRONMENT is {_clean(os.environ['ENVIRONMENT'])!r}: outside development nothing is stopped"


# Programs that hold ports for others or must not end unasked, and what a person can do about each. Names are
# compared whole (Linux cuts them to 15 characters, Windows adds .exe); a text with a slash is looked for in the
# command.
SQUATTERS = (
    (("sshd", "sshd-session", "dropbear"), "it forwards the port for an SSH login; log in without -R, or end that login"),
    (("ssh", "autossh"), "it is an SSH tunnel; end that ssh, or cancel the forwarding with ssh -O cancel"),
    (("kubectl",), "it forwards the port to a cluster; end that kubectl where it runs"),
    (("Xvnc", "Xtigervnc"), "it is a desktop, whose programs would all end with it"),
    (("systemd",), "it keeps the port for a socket unit; systemctl list-sockets names it, systemctl stop NAME.socket"),
    (
        ("tmux: server", "tmux", "screen", "SCREEN", "zellij", "dtach"),
        "it is a terminal multiplexer, whose sessions would all end with it",
    ),
    (("launchd",), "it keeps the port for a service; launchctl list names it, launchctl bootout ends it"),
    (
        ("ControlCenter", "ControlCe"),
        "it is the AirPlay Receiver, which comes back when killed; choose another port, or switch it off in "
        + "System Settings, General, AirDrop & Handoff",
    ),
    (("System", "Registry"), "it is the Windows kernel (http.sys); netsh http show servicestate names the service"),
    (
        ("svchost.exe", "services.exe", "lsass.exe", "wininit.exe", "spoolsv.exe"),
        "it is a service of Windows, perhaps a port proxy; netsh interface portproxy show all lists those",
    ),
    (("wslrelay", "wslhost", "wsl.exe"), "it relays the port to a program in WSL; stop that program in WSL"),
    (
        ("code", "code-insiders", "code - insiders", "code-tunnel", "codium", "vscodium", "cursor", "windsurf", "zed",
         "zed-editor", "/Visual Studio Code", "/VSCodium.app/", "/Cursor.app/", "/Windsurf.app/", "/Zed.app/",
         "/.vscode-server/", "/.cursor-server/", "/.vscodium-server/", "/.windsurf-server/", "/.openvscode-server/",
         "/vscode-server/", "/code-server/", "/.vscode/cli/", "/usr/lib/code/", "/jbr/bin/java", "idea", "idea64",
         "pycharm", "pycharm64", "webstorm", "webstorm64", "phpstorm", "phpstorm64", "goland", "goland64", "rubymine",
         "rubymine64", "rider", "rider64", "clion", "clion64", "rustrover", "rustrover64", "datagrip", "datagrip64",
         "code-oss", "trae", "sublime_text", "emacs", "emacs-gtk", "vi", "vim", "gvim", "nvim", "hx", "nano"),
        "it is an editor or its server, perhaps forwarding the port; remove the port in the editor's Ports view, or quit it",
    ),
    (
        ("firefox", "firefox-bin", "firefox-esr", "librewolf", "chrome", "Google Chrome", "chromium", "chromium-browse",
         "msedge", "Microsoft Edge", "brave", "brave-browser", "Brave Browser", "Safari", "opera", "vivaldi-bin"),
        "it is a browser; close it there",
    ),
)  # fmt: skip

# Programs that hold a published port of a container.
CONTAINER_PROXIES = (
    "docker-proxy", "dockerd", "rootlesskit", "rootlessport", "pasta", "pasta.avx2", "passt", "slirp4netns", "conmon",
    "com.docker.backend", "vpnkit", "gvproxy", "limactl", "OrbStack", "OrbStack Helper",
)  # fmt: skip

_Case = namedtuple("_Case", "look policy port host")


def _because_unseen(holder: Holder, case: Any) -> str | None:
    if holder.pid is not None:
        return None
    user = f"of user {holder.user} " if holder.user else ""
    if _is_superuser():
        return f"held by a process {user}that cannot be seen from here, perhaps one of another container or namespace"
    return (
        f"held by a process {user}that you may not see; run with sudo to find out: "
        f"sudo python port_manager.py check {case.port}"  # sudo with free would stop it
    )


def _because_of_the_system(holder: Holder, case: Any) -> str | None:
    if holder.pid in (0, 1) or (case.look.system is WINDOWS and holder.pid == 4):
        squatter = _because_a_squatter(holder, case)
        return squatter or f"PID {holder.pid} is the system itself"
    return None


def _because_ourselves(holder: Holder, case: Any) -> str | None:
    return "it is this very process" if _is_here(case) and holder.pid == os.getpid() else None


def _because_an_ancestor(holder: Holder, case: Any) -> str | None:
    if not _is_here(case):
        return None
    if case.look.ancestry is None:
        return "it may be one of our own parents, which this system will not tell; stop it by hand if you know better"
    if holder.pid in case.look.ancestry:
        return "it is an ancestor of this process, which would die with it; stop it from another terminal"
    return None


def _because_a_kernel_thread(holder: Holder, case: Any) -> str | None:
    process = case.look.known.get(holder.pid)
    return "it is a thread of the kernel" if process and process.kernel else None


def _because_a_squatter(holder: Holder, case: Any) -> str | None:
    for names, remedy in SQUATTERS:
        if _is_named(holder, names):
            return remedy
    return None


def _because_of_a_namespace(holder: Holder, case: Any) -> str | None:
    depth = len(_status_of(holder.pid, "NSpid")) if case.look.system is LINUX else 0
    if depth > len(_status_of(os.getpid(), "NSpid")):
        return "it runs in a container or sandbox of its own (a PID namespace); stop it there"
    return None


def _because_of_its_terminal(holder: Holder, case: Any) -> str | None:
    process = case.look.known.get(holder.pid)
    inherited = holder.parent in _pids(case.look.holders) or (process and process.name.lstrip("-") in _INTERACTIVE)
    if process and process.leader and inherited:
        return "it runs on a terminal of its own, and has only inherited the port; end it there"
    return None


def _because_a_container(holder: Holder, case: Any) -> str | None:
    engine, container = _container_of(holder, case)
    if container:
        stop = f"{engine} stop {container}" if engine in ("docker", "podman") else "the tool that runs it"
        return f"it runs in the container {container}; stop that with: {stop}"
    if _is_named(holder, CONTAINER_PROXIES):
        return (
            "it publishes the port of a container, and is of no use without it; find the container with "
            f"docker ps --filter publish={case.port} (or podman ps), and stop that"
        )
    return None


_LOGINS_AND_JOBS = ("ssh", "sshd", "getty", "serial-getty", "cron", "crond", "atd")  # they start what is not their own


def _because_a_service(holder: Holder, case: Any) -> str | None:
    process = case.look.known.get(holder.pid)
    for path in _foreign_cgroups(holder, case):
        parts = path.split("/")
        users = any(part.startswith("user@") for part in parts)
        units = [part[: -len(".service")] for part in parts if part.endswith(".service") and not part.startswith("user@")]
        if not units or units[-1].partition("@")[0] in _LOGINS_AND_JOBS:
            continue
        desktop = units[-1].startswith("dbus-") or (units[-1].startswith("app-") and "@" in units[-1])
        if users and (desktop or (process and process.tty)):  # a terminal is a unit, too; what was started there is none
            continue
        stop = f"systemctl {'--user ' if users else ''}stop {units[-1]}"
        return f"it is the systemd service {units[-1]}; stop that with: {stop}"
    return None


def _because_a_launchd_job(holder: Holder, case: Any) -> str | None:
    jobs = _output("launchctl", "list") if case.look.system is MACOS else ""
    for line in jobs.splitlines():
        pid, _, label = line.partition("\t")
        label = _clean(label.rpartition("\t")[2])
        if pid == str(holder.pid) and label.startswith("application."):
            return "it is an application, not a server; quit it there"
        if pid == str(holder.pid):
            domain = "system" if _is_superuser() else f"gui/{os.getuid()}"
            return f"launchd runs it, and may start it again; stop it with: launchctl bootout {domain}/{label}"
    return None


def _because_of_the_other_family(holder: Holder, case: Any) -> str | None:
    ipv4_alone = case.look.sockets and not any(":" in endpoint.host for endpoint in holder.addresses)
    if ipv4_alone and all(address[0] == "::" for _, address in _resolved(case.host, case.port)):
        return "it listens on IPv4 alone, beside which many servers can listen on ::; to stop it, name the host 0.0.0.0"
    return None


def _because_it_may_not_be_in_the_way(holder: Holder, case: Any) -> str | None:
    rows = [row for row in case.look.sockets if row.pid == holder.pid and ":" in row.address]
    wanted = _resolved(case.host, case.port) if rows else []
    for row in rows:
        conflicts = _conflicts(row, wanted)
        if None in conflicts and True not in conflicts:
            return (
                f"it cannot be told whether its {row.address} keeps {_clean(case.host)} from being bound; if it does, free that: "
                f"port_manager.py free {case.port} --host {row.address}"
            )
    return None


def _because_another_users(holder: Holder, case: Any) -> str | None:
    mine = _my_name(case.look.system)
    if case.look.system is LINUX:
        uids = _status_of(holder.pid, "Uid")
        if not uids:
            return "it cannot be told whose it is; it may be ending: try again"
        same = set(uids) == {os.geteuid()}
        others = {row.uid for row in case.look.sockets if row.pid == holder.pid} - {None, os.geteuid()}
        if same and others and not _is_superuser():
            other = _user_name(max(others))
            return f"its socket was opened by user {other}, whose processes may hold it, too; only that user should stop it"
    else:
        same = holder.user == mine or (case.look.system is WINDOWS and holder.user.lower() == mine.lower())
    if same and holder.user:
        return None
    if not holder.user:
        return "it cannot be told whose it is"
    family = {other.pid: other for other in case.look.holders}
    if _is_superuser() and holder.parent in family:  # a worker of our own server that gave up its rights
        return _because_another_users(family[holder.parent], case)
    return f"it belongs to user {holder.user}, and you are {mine}; only that user should stop it"


def _because_of_the_policy(holder: Holder, case: Any) -> str | None:
    return "the policy 'refuse' stops nobody" if case.policy == "refuse" else None


def _because_not_of_this_project(holder: Holder, case: Any) -> str | None:
    if case.policy != "own":
        return None
    try:
        here, there = os.path.realpath(os.getcwd()), _folder_of(holder, case)
    except OSError:  # our own folder has been removed, or the holder has gone
        here = there = ""
    if here and (there == here or there.startswith(here.rstrip(os.sep) + os.sep)):
        return None
    where = f"it runs in {holder.cwd}" if holder.cwd else "its folder is not known"
    return f"it was not started from this project: {where}, and the policy 'own' wants {_clean(here) or 'a folder'}"


def _folder_of(holder: Holder, case: Any) -> str:
    """The working directory of a process, when its path leads to the same folder from here; else an empty text."""
    if case.look.system is not LINUX:
        return os.path.realpath(holder.cwd) if holder.cwd else ""
    link = f"/proc/{holder.pid}/cwd"
    path = os.readlink(link)
    return path if os.path.exists(path) and os.path.samefile(link, path) else ""


GUARDS: tuple[Callable[[Holder, Any], str | None], ...] = (
    _because_unseen,
    _because_of_the_system,
    _because_ourselves,
    _because_an_ancestor,
    _because_a_kernel_thread,
    _because_a_squatter,
    _because_a_container,
    _because_of_a_namespace,
    _because_of_its_terminal,
    _because_a_service,
    _because_a_launchd_job,
    _because_of_the_other_family,
    _because_it_may_not_be_in_the_way,
    _because_another_users,
    _because_of_the_policy,
    _because_not_of_this_project,
)


def _refusal(case: Any) -> str | None:
    """Why nobody of these holders is stopped: one who must stay keeps the port, so that the others stay too."""
    for holder in case.look.holders:
        for guard_ in GUARDS:
            why = guard_(holder, case)
            if why and holder.pid is None:
                return f"port {case.port} is {why}"
            if why:
                windows = "Windows " if case.look.system is WINDOWS and _on_wsl() else ""
                return f"{windows}process {_title(holder)} is left alone: {why}"
    return None


def _is_here(case: Any) -> bool:
    """Whether the holder's PID is of our own system: on WSL, Windows has PIDs of its own."""
    return case.look.system is _system()


def _is_superuser() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _is_named(holder: Holder, names: Iterable[str]) -> bool:
    program = holder.command.split(" ", 1)[0] if "/extensions/" in holder.command else holder.command  # what an editor debugs
    if holder.name.lower().endswith(".exe"):
        return any(holder.name.lower() in (name.lower(), f"{name.lower()}.exe") for name in names)
    return any(holder.name in (name, name[:15]) or ("/" in name and name in program) for name in names)


def _my_name(system: Any) -> str:
    if system is WINDOWS:
        return _clean(_output(_windows_tool("whoami.exe")).strip())
    return _user_name(os.geteuid())


def _cgroups(pid: int | str) -> dict[str, str]:
    try:
        lines = _contents(f"/proc/{pid}/cgroup").decode("utf-8", "replace").rstrip("\n").split("\n")
        return {kind: path for _, kind, path in (line.split(":", 2) for line in lines)}
    except (OSError, ValueError):
        return {}


def _foreign_cgroups(holder: Holder, case: Any) -> list[str]:
    """The control groups that a process does not share with us: what runs beside us is not foreign."""
    if case.look.system is not LINUX or not holder.pid:
        return []
    ours = _cgroups("self")
    return [_clean(path) for kind, path in _cgroups(holder.pid).items() if ours.get(kind) != path]


def _container_of(holder: Holder, case: Any) -> tuple[str, str]:
    """(engine, container) of a process that runs in a container of its own, by its control group."""
    return next((found for found in map(_container_in, _foreign_cgroups(holder, case)) if found[1]), ("", ""))


def _container_in(path: str) -> tuple[str, str]:
    """
    >>> _container_in(f"/system.slice/docker-{'0123456789abcdef' * 4}.scope")
    ('docker', '0123456789ab')
    """
    parts = path.split("/")
    for above, part in zip([""] + parts, parts):
        prefix, _, identity = part.replace(".scope", "").rpartition("-")
        engine = {"docker": "docker", "libpod": "podman", "libpod-conmon": "podman"}.get(prefix or above, "")
        if len(identity) == 64 and not identity.strip("0123456789abcdef"):
            return engine or prefix or "container", identity[:12]
        if part.startswith("lxc.payload.") or above == "lxc":
            return "lxc", part.replace("lxc.payload.", "")
        if part.startswith("machine-") and part.endswith(".scope"):
            return "machinectl", part[len("machine-") : -len(".scope")]
    return "", ""


def _in_a_container() -> bool:
    """Whether we run in one: the engine that we may reach has other containers, in networks that are not ours."""
    marked = any(os.path.exists(mark) for mark in ("/.dockerenv", "/run/.containerenv"))
    return marked or any(_container_in(path)[1] for path in _cgroups("self").values())


# ----------------------------------------------------------------------------------------------------
# Stop it: pinned, politely, firmly, and verified
# ----------------------------------------------------------------------------------------------------

# How to go about it. grace: seconds; polite: the name of the first signal; force: also outside development.
_Manner = namedtuple("_Manner", "grace polite policy force")

_INTERACTIVE = ("bash", "zsh", "fish", "sh", "dash", "ksh", "tcsh", "csh", "ash", "nu", "xonsh", "elvish", "pwsh",
                "cmd.exe", "powershell.exe", "pwsh.exe", "explorer.exe", "WindowsTerminal.exe")  # fmt: skip
_SYNCHRONIZE = 0x00100000  # the right to wait for a Windows process


def _pinned(system: Any, pids: Iterable[int], known: _Known) -> dict[int, _Pin]:
    """The processes, held fast, without those that cannot be read. Where there is no handle, the birth tells them apart."""
    handles: dict[int, int | None] = {}
    for pid in pids:
        known.pop(pid, None)  # what is read from here on is true of the pinned process
        try:
            handles[pid] = _handle(system, pid)
        except ProcessLookupError:
            continue
        except OSError:  # refused by a sandbox or an old kernel
            handles[pid] = None
    if system is not LINUX:  # where one reading tells of everybody, it is made anew
        known.clear()
    pins = {}
    for pid, handle in handles.items():
        process = _process(system, pid, known)
        pins[pid] = _Pin(pid, process.birth if process else None, handle)
    _unpin(pin for pin in pins.values() if pin.pid not in known)
    return {pid: pin for pid, pin in pins.items() if pid in known}


def _handle(system: Any, pid: int) -> int | None:
    if system is WINDOWS and sys.platform == "win32":
        return int(_winapi().OpenProcess(_SYNCHRONIZE, False, pid))
    return os.pidfd_open(pid) if system is LINUX and hasattr(os, "pidfd_open") else None


def _unpin(pins: Iterable[_Pin]) -> None:
    for pin in pins:
        if pin.handle is not None:
            (os.close if sys.platform != "win32" else _winapi().CloseHandle)(pin.handle)


def _winapi() -> Any:
    import importlib

    return importlib.import_module("_winapi")  # CPython's own; multiprocessing waits for processes with it


def _has_exited(system: Any, pin: _Pin) -> bool | None:
    """Whether the pinned process has ended (a zombie has, although kill() still succeeds on it); None for "cannot tell"."""
    if pin.handle is not None and system is WINDOWS:
        return bool(_winapi().WaitForSingleObject(pin.handle, 0) == 0)
    if pin.handle is not None:
        return bool(_poll([pin], 0))
    processes = system.read(pin.pid)
    if not processes and system is not LINUX:  # ps or PowerShell did not answer
        return None
    process = processes.get(pin.pid)
    return process is None or process.zombie or process.birth != pin.birth


def _poll(pins: Iterable[_Pin], seconds: float) -> list[Any]:
    import select

    poll = select.poll()
    for pin in pins:
        poll.register(pin.handle or 0, select.POLLIN)
    return poll.poll(int(seconds * 1000 + 0.999))


def _nap(system: Any, pins: list[_Pin], seconds: float) -> None:
    """Sleep until one of the processes exits, at most so many seconds."""
    pinned = all(pin.handle is not None for pin in pins)
    if pinned and system is WINDOWS:
        _winapi().WaitForMultipleObjects([pin.handle for pin in pins[:63]], False, int(seconds * 1000))  # it takes no more
    elif pinned:
        _poll(pins, seconds)
    elif system in (LINUX, WINDOWS):  # an old kernel; WSL's Windows
        time.sleep(min(seconds, 0.002 if system is LINUX else 0.2))
    else:
        _nap_by_kqueue(pins, seconds)


def _nap_by_kqueue(pins: list[_Pin], seconds: float) -> None:
    """macOS, the BSDs: the kernel's queue of events."""
    import select

    events: Any = select  # this part of it is not on every system
    queue = events.kqueue()
    try:
        flags = events.KQ_EV_ADD | events.KQ_EV_ONESHOT
        exits = [events.kevent(pin.pid, events.KQ_FILTER_PROC, flags, events.KQ_NOTE_EXIT) for pin in pins]
        queue.control(exits, 1, seconds)
    except ProcessLookupError:  # one has exited already
        pass
    finally:
        queue.close()


def _wait_for_exit(system: Any, pins: list[_Pin], seconds: float) -> list[_Pin]:
    """Wait until the processes have exited; those that are left when the time is over."""
    begun, left, shown = time.monotonic(), list(pins), False
    terminal = _on_terminal(sys.stderr)
    try:
        while True:
            left = [pin for pin in left if not _has_exited(system, pin)]
            waited = time.monotonic() - begun
            if not left or waited >= seconds:
                return left
            if terminal and waited > 0.4:
                shown = True
                _status(f"⏳ Waiting {waited:.1f} of {seconds:g} s for process {_listed(left)} to stop")
            _nap(system, left, min(seconds - waited, 0.2 if terminal else seconds))
    finally:
        if shown:
            _status("")


def _is_still_the_same(system: Any, pin: _Pin) -> bool:
    """Whether it is sure that the PID is still the process that was looked at; OSError where the system does not tell."""
    exited = pin.handle is None and _has_exited(system, pin)
    if exited is None:
        raise OSError(0, "it could not be verified that it is still the same process")
    return not exited


def _signal(pin: _Pin, *numbers: int) -> None:
    """Send signals to the pinned process: the one place in this file that does."""
    import signal

    if not _is_still_the_same(_system(), pin):
        return
    for number in numbers:
        if pin.handle is not None:
            signal.pidfd_send_signal(pin.handle, number)
        else:
            os.kill(pin.pid, number)


def _request(system: Any, pin: _Pin, manner: _Manner, firmly: bool) -> None:
    """Ask a process to stop, or make it stop; PermissionError says who may not."""
    import signal

    try:
        if system is WINDOWS:
            return _taskkill(pin, firmly)
        if firmly:
            return _signal(pin, signal.SIGKILL)
        _signal(pin, getattr(signal, manner.polite), signal.SIGCONT)  # stopped by Ctrl+Z, it could not obey
    except ProcessLookupError:
        pass  # it exited by itself, which is what we want
    except OSError as error:
        raise PermissionError(f"process {pin.pid} may not be stopped: {error.strerror or error}") from None


def _taskkill(pin: _Pin, firmly: bool) -> None:
    """Windows: a console program cannot be asked, and taskkill says at once that /F is needed."""
    if not _is_still_the_same(WINDOWS, pin):
        return
    tool = _windows_tool("taskkill.exe")
    answer = _run(tool, "/PID", str(pin.pid), *(["/F"] if firmly else []), timeout=5 * TOOL_TIMEOUT)
    if answer and answer[0] == 1 and not firmly and "/F" in answer[1] + answer[2]:
        answer = _run(tool, "/PID", str(pin.pid), "/F", timeout=5 * TOOL_TIMEOUT)
    done = answer is not None and answer[0] in (0, 128)  # 128: there is no such process any more
    if not done and not _has_exited(WINDOWS, pin):  # a worker may go with its master
        said = (_complaint(answer) or "nothing") if answer else "it did not answer"
        raise OSError(f"taskkill says: {said}")


def _still_holds(look: _Look, pin: _Pin, port: int) -> bool:
    """Whether the pinned process holds the socket for which it was looked at, now."""
    if look.system is LINUX:
        inodes = {f"socket:[{row.inode}]": row.inode for row in look.sockets if row.pid == pin.pid}
        return bool(_sockets_of(pin.pid, inodes))
    rows = look.system.owners(_ask(look.system, port) or [], {}, False)
    return any(row.pid == pin.pid for row in rows)


def _stop(look: _Look, port: int, manner: _Manner) -> tuple[list[Holder], str | None]:
    """Stop the holders of a look, parents first: (those that went, why others did not)."""
    pins = [look.pins[holder.pid] for holder in look.holders if holder.pid in look.pins]
    pins = [pin for pin in pins if _still_holds(look, pin, port)]
    left, why = _stop_pins(look.system, pins, manner)
    gone = {pin.pid for pin in pins} - {pin.pid for pin in left}
    stopped = [holder for holder in look.holders if holder.pid in gone]
    for root, children in _families(stopped):
        _say(INFO, f"✅ Successfully killed process {root.pid}{_and_children(children)}")
    return stopped, why


def _stop_pins(system: Any, pins: list[_Pin], manner: _Manner) -> tuple[list[_Pin], str | None]:
    """Ask the pinned processes to stop, wait, and force the rest: (those that are left, why)."""
    asked: list[_Pin] = []
    try:
        for pin in pins:
            _request(system, pin, manner, firmly=False)
            asked.append(pin)
        left = _wait_for_exit(system, pins, manner.grace)
        if left:
            _say(WARNING, f"Process {_listed(left)} did not stop within {manner.grace:g} s: forced")
        for pin in left:
            _request(system, pin, manner, firmly=True)
        left = _wait_for_exit(system, left, FIRM_WAIT)
    except PermissionError as error:
        return _wait_for_exit(system, pins, 0), f"{error}; asked to stop before that: {_listed(asked) or 'nobody'}"
    except KeyboardInterrupt:
        names = _listed(pins[: len(asked) + 1]) or "nobody"  # the next one may have been asked, too
        raise KeyboardInterrupt(f"Interrupted; asked to stop, and maybe still stopping: {names}") from None
    if left:
        return left, f"process {_listed(left)} does not end even when forced; it may wait for a disk or device"
    return [], None


def _listed(processes: Sequence[Holder | _Pin]) -> str:
    return ", ".join(str(process.pid) for process in processes[:8]) + ("…" if len(processes) > 8 else "")


def _and_children(children: Sequence[Holder]) -> str:
    if not children:
        return ""
    return f" and its {'child' if len(children) == 1 else f'{len(children)} children'} {_listed(children)}"


def _supervisors(look: _Look) -> list[_Pin]:
    """Living processes above the holders that hold nothing, and might start the server again.

    No interactive shell is among them: it gives each job a process group of its own, which a script's
    loop does not do. Nor is init, a user's systemd, or anybody who started us too.
    """
    found: dict[int, _Pin] = {}
    for root, _ in _families(look.holders):
        child = _process(look.system, root.pid, look.known)
        for pid in _above(look.system, root.pid, look.known):
            parent = _process(look.system, pid, look.known)
            if child is None or parent is None or parent.zombie or pid <= 1 or pid in (look.ancestry or ()):
                break
            shell = parent.name.lstrip("-") in _INTERACTIVE and (parent.group is None or parent.group != child.group)
            if shell or parent.kernel or parent.name in ("systemd", "launchd", "init"):
                break
            found[pid] = _Pin(pid, parent.birth, None)
            child = parent
    return list(found.values())


def _taken_again(port: int, host: str, look: _Look, supervisors: list[_Pin]) -> str | None:
    """Watch, as long as a supervisor lives, whether it starts its server again: the sentence if so."""
    end = time.monotonic() + RESTART_WATCH
    while time.monotonic() < end and not all(_has_exited(look.system, pin) for pin in supervisors):
        if _obstacle(port, host):
            return _why_taken_again(port, host, look, supervisors)
        time.sleep(0.05)
    return None


def _why_taken_again(port: int, host: str, look: _Look, supervisors: list[_Pin]) -> str:
    again = _look_at(port, host)
    taker = f" by process {_title(again.holders[0])}" if again and again.holders else ""
    living = [pin.pid for pin in supervisors if not _has_exited(look.system, pin)]
    if again and again.holders:
        above = _above(again.system, again.holders[0].pid, again.known)
        living = [pid for pid in living if pid in above]
    boss = _process(look.system, living[0], look.known) if living else None
    if boss is None:
        return f"port {port} was taken again{taker} while it was being freed"
    command = look.system.describe(boss)[1] or boss.name
    return (
        f"port {port} was taken again{taker}: its supervisor {boss.pid} ({_shortened(command)}) starts it anew; "
        f"stop process {boss.pid} first"
    )


# A container's published port is freed through the container's own tool, never through its proxy.


def _containers(tool: str) -> list[tuple[str, str, str]]:
    """(id, name, published ports) of what docker or podman runs; empty where there is no such tool."""
    lines = _output(tool, "ps", "--no-trunc", "--format", "{{.ID}}\t{{.Names}}\t{{.Ports}}").splitlines()
    return [(parts[0], parts[1], parts[2]) for parts in (line.split("\t") for line in lines) if len(parts) == 3]


def _publishes(ports: str, endpoint: Endpoint, dual: bool = False) -> bool:
    """Whether a container's ports, as docker ps shows them, hold this very endpoint (``dual``: a ``::`` takes IPv4, too).

    >>> ports = "127.0.0.1:8000-8002->8000-8002/tcp, 0.0.0.0:80->80/tcp, 0.0.0.0:53->53/udp, 9000/tcp"
    >>> [_publishes(ports, Endpoint(*of)) for of in (("127.0.0.1", 8001), ("127.0.0.2", 80), ("::", 80))]
    [True, True, False]
    """
    hosts = {endpoint.host, "::" if ":" in endpoint.host else "0.0.0.0", "0.0.0.0" if dual else ""}
    for entry in ports.split(","):
        outer, _, inner = entry.strip().partition("->")
        host, _, span = outer.rpartition(":")
        first, _, last = span.partition("-")
        low, high = _number(first), _number(last or first)
        if host.strip("[]") in hosts and inner.endswith("/tcp") and low and high and low <= endpoint.port <= high:
            return True
    return False


def _engine_is_local(tool: str) -> bool:
    """Whether the tool speaks to this machine's engine: its settings may lead to another machine, and stop something there."""
    hosts = [os.environ.get(name, "") for name in ("DOCKER_HOST", "CONTAINER_HOST", "CONTAINER_CONNECTION")]
    if tool == "docker":
        told = _output(tool, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}").strip()
        hosts.append(told or os.environ.get("DOCKER_CONTEXT", ""))
    return all(host.startswith(("unix://", "npipe://")) for host in hosts if host)


def _container_behind(case: Any) -> tuple[str, str] | None:
    """(tool, name) of the one container to stop: every holder runs in it, or stands for an endpoint that it publishes."""
    if case.policy in ("own", "refuse"):
        return None
    inside = {holder: _container_of(holder, case) for holder in case.look.holders}
    dual = any(row.address == "::" and row.v6only is False for row in case.look.sockets)
    for holder, (_, identity) in inside.items():
        hidden = holder.pid is None and holder.user == "root"  # docker-proxy, as a normal user of its machine sees it
        hidden = hidden and not _is_superuser() and not _in_a_container()
        if not (identity or hidden or _is_named(holder, CONTAINER_PROXIES)):
            return None
    for tool in ("docker", "podman"):
        for full, name, ports in _containers(tool):
            fits = (
                engine == tool and full.startswith(identity)
                if identity
                else all(_publishes(ports, endpoint, dual) for endpoint in holder.addresses)
                for holder, (engine, identity) in inside.items()
            )
            if all(fits) and name[:1].isalnum() and _engine_is_local(tool):
                return tool, _clean(name)
    return None


def _stop_container(tool: str, name: str, port: int, host: str, manner: _Manner) -> str | None:
    """Stop a container through its own tool: None when the port is free then, else what to do."""
    _say(INFO, f"Port {port} is published by the container {name}")
    why = _disagreement(manner, f"Stop the container {name}?")
    if why:
        return why
    answer = _run(tool, "stop", name, timeout=manner.grace + 30)
    if answer is None or answer[0] != 0:
        said = _complaint(answer) or "no answer"
        return f"the container {name} could not be stopped ({_shortened(said)}); type: {tool} stop {name}"
    again = f"start it again with: {tool} start {name}"
    end = time.monotonic() + FIRM_WAIT
    while _obstacle(port, host):
        if time.monotonic() >= end:
            return f"the container {name} was stopped, and the port stays held all the same; {again}"
        time.sleep(0.02)
    _say(INFO, f"✅ Stopped the container {name}; {again}")
    return None


# The whole way, for one port.


def _ensure(port: int, host: str, manner: _Manner) -> _Outcome:
    """Make a port available if that is allowed, and say what happens on the way."""
    obstacle = _obstacle(port, host)
    if obstacle is None:
        _say(INFO, f"✅ Port {port} is available")
        return _Outcome(port, host, True, [], [], None)
    held, reason = obstacle
    if not held:
        _complain(reason)
        return _Outcome(port, host, False, [], [], reason)
    _say(WARNING, f"⚠️  Port {port} is already in use")
    forbidden = _because_of_the_environment()
    try:
        if forbidden and not manner.force:
            return _report_conflict(port, host, forbidden)
        _say(INFO, "💡 Told to do so by --force" if forbidden else "💡 Development environment detected")
        _say(INFO, "Attempting to free up port...")
        outcome = _free(port, host, manner, reason)
    except PortError as error:  # the name of the host is not known any more
        outcome = _Outcome(port, host, False, [], [], error.reason)
    if outcome.available:
        _say(INFO, f"✅ Port {port} is now available")
    else:
        _complain(outcome.reason)
        _complain("cannot start: port is not available")
    return outcome


def _report_conflict(port: int, host: str, forbidden: str) -> _Outcome:
    _say(ERROR, "🚨 Port conflict in PRODUCTION environment!")
    look = _look_at(port, host)
    holders = look.holders if look else []
    for family in _families(holders):
        _say(ERROR, f"Process using port: {_full_title(*family)}")
    if not holders:
        _say(ERROR, f"Process using port: unknown ({_why_nobody(port, host) if look else _why_untold(port)})")
    if os.environ["ENVIRONMENT"].strip().lower() not in ("production", "prod"):  # misspelt, perhaps
        _say(ERROR, f"{forbidden} (the names of development are {', '.join(DEVELOPMENT_NAMES[1:])})")
    _complain("cannot start: port is not available")
    reason = f"port {port} is in use, and {forbidden}"
    return _Outcome(port, host, False, holders, [], reason)


def _why_untold(port: int) -> str:
    return f"no way of asking could tell who holds port {port}, so that it is treated as held"


def _free(port: int, host: str, manner: _Manner, reason: str) -> _Outcome:
    """Stop whoever holds the port, looking again until it is free or somebody must stay."""
    began = time.time()
    stopped: list[Holder] = []
    supervisors: list[_Pin] = []
    sockets: set[int] = set()
    look: _Look | None = None
    why: str | None = None
    for _ in range(ROUNDS):
        look = _settled_look(port, host)
        if look is None:
            why = _why_untold(port)
            break
        mine = {row.inode for row in look.sockets if row.inode}
        if not stopped:
            sockets |= {row.inode for row in _every_socket(port) if row.inode} if look.system is LINUX else set()
        try:
            young = any((holder.started or 0) > began for holder in look.holders)
            if stopped and look.holders and not mine & sockets and (sockets or young):
                why = _why_taken_again(port, host, look, supervisors)
            else:
                above = _supervisors(look)
                gone, why = _stop_those_who_may(port, host, look, manner, reason)
                stopped += gone
                supervisors += above if gone else []
        finally:
            _unpin(look.pins.values())
        if _obstacle(port, host) is None:
            if why:  # the port was given up by somebody who lives on
                _say(WARNING, f"⚠️  {_sentence(why)}")
            why = _taken_again(port, host, look, supervisors) if supervisors else None
            break
        if why:
            break
    else:
        why = f"port {port} is still held after {ROUNDS} attempts to free it"
    return _Outcome(port, host, why is None, look.holders if look else [], _pids(stopped), why)


def _stop_those_who_may(
    port: int, host: str, look: _Look, manner: _Manner, reason: str
) -> tuple[list[Holder], str | None]:
    """(who was stopped, why nobody was): all of the holders of a look, or none."""
    if not look.holders:
        return [], _why_nobody(port, host, reason) if _obstacle(port, host) else None
    families = _families(look.holders)
    for root, children in families:
        if root.pid:
            _say(INFO, f"Process using port: {_title(root, children)}")
    case = _Case(look, manner.policy, port, host)
    container = _container_behind(case)
    if container:  # never its proxy
        return [], _stop_container(*container, port, host, manner)
    titles = "; ".join(_title(*family) for family in families)
    why = _refusal(case) or _disagreement(manner, f"Stop process {titles} to free port {port}?")
    if why is None and manner.policy == "ask":  # who held the port when the question was asked may have become another
        again = _look_at(port, host, thorough=True)
        same = again is not None and _pids(again.holders) == _pids(look.holders)
        why = _refusal(case._replace(look=again)) if same else "somebody else holds the port now; try again"
    if why:
        return [], why
    return _stop(look, port, manner)


def _pids(holders: Iterable[Holder]) -> list[int]:
    return list(dict.fromkeys(holder.pid for holder in holders if holder.pid))


def _settled_look(port: int, host: str) -> _Look | None:
    """A thorough look, as all or none are stopped.

    It is repeated for a moment where somebody is just exiting: a socket without an owner, or none at all.
    """
    for pause in (0.01, 0.03, 0.1, 0.3, 0.6, 0.0):
        look = _look_at(port, host, pin=True, thorough=True)
        settled = look is None or (look.holders and all(holder.pid for holder in look.holders))
        if settled or not pause or _obstacle(port, host) is None:
            return look
        _unpin(look.pins.values() if look else ())
        time.sleep(pause)
    return None


def _disagreement(manner: _Manner, question: str) -> str | None:
    """The policy 'ask': the person at the terminal decides, and without a terminal nobody is stopped."""
    if manner.policy != "ask":
        return None
    if not (_on_terminal(sys.stdin) and _on_terminal(sys.stderr)):
        return "the policy 'ask' needs a terminal to ask on"
    _write(sys.stderr, f"{question} [y/N] ", end="")
    try:
        answer = sys.stdin.readline().strip().lower()
    except (OSError, ValueError):  # what is no text is no "yes"
        answer = ""
    return None if answer in ("y", "yes") else "the answer was no"


# ----------------------------------------------------------------------------------------------------
# The calls people use
# ----------------------------------------------------------------------------------------------------


def _manner(grace: float = GRACE, policy: str | None = None, polite: str = "SIGTERM", force: bool = False) -> _Manner:
    """How to go about it: PORT_MANAGER_POLICY says what the caller did not; what is no policy stops nobody."""
    if not isinstance(grace, (int, float)) or not 0 <= grace < 1e6:
        raise ValueError(f"a grace period is a number of seconds, not {grace!r}")
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"a policy is one of {', '.join(POLICIES)}, not {policy!r}")
    wish = os.environ.get("PORT_MANAGER_POLICY", "").strip().lower()
    if policy is None and wish and wish not in POLICIES:
        _say(WARNING, f"PORT_MANAGER_POLICY is {_clean(wish)!r}, which is none of {', '.join(POLICIES)}: nobody is stopped")
        wish = "refuse"
    return _Manner(grace, polite, policy or wish or "kill", force)


def ensure_port_available(
    port: int = 8000, host: str = "0.0.0.0", *, grace: float = GRACE, policy: str | None = None
) -> bool:
    """Say whether a server may bind the port now; in development, stop its holder first.

    ``grace`` is how many seconds the holder has to stop by itself. ``policy`` is kill, own, ask or refuse
    (by default PORT_MANAGER_POLICY, else kill). Trouble at run time is logged and answered with False;
    TypeError and ValueError are for a port that is none.

    >>> ensure_port_available(find_free_port(20000), "127.0.0.1")
    True
    """
    _checked(port, host)
    return bool(_ensure(port, host, _manner(grace, policy)).available)


def find_listeners(port: int | None = None, host: str | None = None, *, thorough: bool = False) -> list[Holder]:
    """Every process that holds the port (or any port), parents before their children.

    With a ``host``, only those that keep a server from binding there. An empty list means nobody; where
    nobody could tell, CannotTell is raised. Usually the search ends when each socket has an owner whose
    family is known; ``thorough`` looks at every process of the machine.

    >>> find_listeners(find_free_port(20000))
    []
    """
    if port is not None:
        _checked(port, host or "")
    return _holders(*_owned(port, host, thorough or port is None))


def _owned(port: int | None, host: str | None, thorough: bool) -> tuple[Any, _Rows, _Known]:
    """(system, the sockets on a port with their owners, what was learned of those); CannotTell where nobody could."""
    found = _search(port, host, thorough)
    if found is None:
        raise CannotTell(_why_untold(port or 0), port or 0, host or "")
    system, rows = found
    known: _Known = {}
    rows = system.owners(rows, known, thorough)
    return system, rows if host is None else _without_idle(system, rows, known), known


def find_free_port(start: int = 8000, host: str = "0.0.0.0") -> int:
    """The first port at or after ``start`` that a server may bind; PortError when there is none.

    >>> 20000 <= find_free_port(20000, "127.0.0.1") <= 65535
    True
    """
    _checked(start, host)
    _resolved(host, start)
    for port in range(start, 65536):
        obstacle = _obstacle(port, host)
        if obstacle is None:
            return port
        held, reason = obstacle
        if not (held or reason.startswith("no permission")):
            break
    raise PortError(reason, start, host)


def bind_port(
    port: int = 8000, host: str = "0.0.0.0", *, inheritable: bool = False, grace: float = GRACE, policy: str | None = None
) -> socket.socket:
    """Free the port and keep it: a socket that is bound and already queues connections for its server.

    Between a check and a bind another program may take the port; nobody can take it from this socket.
    ``inheritable`` lets it live on in a program that this process starts. For localhost it is the IPv4
    one. PortError when the port cannot be had.

    >>> with bind_port(find_free_port(20000, "127.0.0.1"), "127.0.0.1") as listener:
    ...     listener.getsockname()[0]
    '127.0.0.1'
    """
    _checked(port, host)
    first = "127.0.0.1" if host == "localhost" else host
    outcome = _ensure(port, first, _manner(grace, policy))
    if not outcome.available:
        raise PortError(outcome.reason, port, host, outcome.holders)
    family, address = _addresses(first, port)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR), 1)
        listener.bind(address)
        # Bound is not enough: until one of them listens, Linux lets several sockets bind with SO_REUSEADDR.
        listener.listen()
        listener.set_inheritable(inheritable)
    except OSError as error:
        listener.close()
        reason = _explained(error, address[0], port)[1]
        _complain(reason)
        raise PortError(reason, port, host) from error
    return listener


def wait_until_free(port: int, host: str = "0.0.0.0", timeout: float | None = None) -> bool:
    """Wait until a server may bind the port, and return True; PortTimeout after ``timeout`` seconds.

    Nobody is stopped. The wait ends the moment the holder exits, where the system can tell.

    >>> wait_until_free(find_free_port(20000), timeout=1)
    True
    """
    _checked(port, host)
    for left in _waiting(f"port {port} to be free", timeout):
        obstacle = _obstacle(port, host)
        if obstacle is None:
            return True
        held, reason = obstacle
        if not held:  # nobody holds it, and still it cannot be had: that will not change
            raise PortError(reason, port, host)
        look = _look_at(port, host, pin=True) if _system() is LINUX else None  # tools take too long to be asked again and again
        pins = list(look.pins.values()) if look else []
        try:
            if look and pins and all(pin.handle is not None for pin in pins):
                _nap(look.system, pins, min(left, 0.2))
            else:
                time.sleep(min(left, 0.05))
        finally:
            _unpin(pins)
    look = _look_at(port, host)
    raise PortTimeout(f"{reason}, still after {timeout:g} s", port, host, look.holders if look else ())


def wait_until_listening(port: int, host: str | None = "127.0.0.1", timeout: float | None = None) -> bool:
    """Wait until somebody listens on the port, and return True; PortTimeout after ``timeout`` seconds.

    Any address will do where ``host`` is None. No connection is opened: a server that accepts only one would
    not like it.

    >>> with bind_port(find_free_port(20000, "127.0.0.1"), "127.0.0.1") as listener:
    ...     wait_until_listening(listener.getsockname()[1], timeout=1)
    True
    """
    _checked(port, host or "")
    addresses = _resolved(host, port) if host is not None else None
    native = _system() is LINUX
    for left in _waiting(f"somebody to listen on port {port}", timeout):
        # A tool takes too long to be asked again and again, and a probe could be in the way of the server's own bind.
        rows = _ask(_system(), port) if native or host is None or _obstacle(port, host) else []
        if rows is None and _obstacle(port, host or "0.0.0.0"):
            return True
        listening = [row for row in rows or () if row.listening]
        if _blocking(listening, addresses):
            return True
        time.sleep(min(left, 0.02 if native else 0.2))
    raise PortTimeout(f"nobody listens on port {port}, still after {timeout:g} s", port, host or "")


def _waiting(what: str, timeout: float | None) -> Iterator[float]:
    """The seconds left, down to a last look with 0; a terminal shows for what, once that takes a second."""
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


class _AskedEachTime:
    """``IS_DEVELOPMENT`` on the class and on its instances: the environment as it is at this moment."""

    def __get__(self, instance: object, owner: object) -> bool:
        return is_development()


class PortManager:
    """The same for a program that keeps its port and host in one place.

    >>> manager = PortManager(find_free_port(20000), "127.0.0.1")
    >>> manager.is_port_in_use(manager.port), manager.get_process_using_port(manager.port)
    (False, None)
    """

    IS_DEVELOPMENT = _AskedEachTime()

    def __init__(
        self, port: int = 8000, host: str = "0.0.0.0", *, grace: float = GRACE, policy: str | None = None
    ) -> None:
        _checked(port, host)
        _manner(grace, policy)
        self.port, self.host, self.grace, self.policy = port, host, grace, policy

    def is_port_in_use(self, port: int) -> bool:
        """Whether somebody holds the port; "no permission" and "not our address" are no such thing."""
        _checked(port, self.host)
        return (_obstacle(port, self.host) or (False, ""))[0]

    def get_process_using_port(self, port: int) -> int | None:
        """The PID that holds the port, the parent's of a family; None when nobody does.

        CannotTell is raised when somebody holds it whose PID may not be seen.
        """
        _checked(port, self.host)
        system, rows, known = _owned(port, self.host, thorough=False)
        pids: set[int | None] = {row.pid for row in rows}
        if len(pids) == 1 and None not in pids:  # a PID alone need not be described
            return pids.pop()
        holders = _holders(system, rows, known)
        if holders and holders[0].pid is None:
            why = _because_unseen(holders[0], _Case(None, None, port, self.host))
            raise CannotTell(f"port {port} is {why}", port, self.host, holders)
        return holders[0].pid if holders else None

    def kill_process(self, pid: int) -> bool:
        """Stop one process, politely and then firmly, if the guards allow it; True when it is gone.

        Whoever has gone already counts as stopped. Outside development nothing is done. TypeError for a
        PID that is not an integer.
        """
        if not isinstance(pid, int) or isinstance(pid, bool):
            raise TypeError(f"a PID is an integer, not {pid!r}")
        why = _because_of_the_environment() or _kill_one(pid, self)
        if why:
            _complain(f"process {pid} is left alone: {why}")
        return not why

    def check_and_clean_port(self) -> bool:
        """ensure_port_available for this port and host."""
        return ensure_port_available(self.port, self.host, grace=self.grace, policy=self.policy)


def _kill_one(pid: int, manager: PortManager) -> str | None:
    """Why a process was not stopped, or None when it is gone."""
    if pid <= 1:
        return f"PID {pid} stands for the system or for whole groups of processes"
    manner, system = _manner(manager.grace, manager.policy), _system()
    if system is LINUX and (not _proc_is_ours(os.getpid()) or pid not in _pids_from_the_youngest()):
        try:
            os.getpgid(pid)
        except (ProcessLookupError, OverflowError):
            return None
        return "it is a thread of another process, or may not be seen"
    known: _Known = {}
    ancestry = _ancestry(system, known)
    pins = _pinned(system, [pid], known)
    try:
        holders = _holders(system, [_Socket("", 0, False, None, pid, None, 0, None)], known)
        if not holders:
            return None
        if not pins:
            return "it could not be looked at, perhaps because this process has too many open files"
        case = _Case(_Look(system, [], holders, ancestry, known, pins), manner.policy, manager.port, manager.host)
        why = next(filter(None, (guard_(holders[0], case) for guard_ in GUARDS)), None)
        why = why or _disagreement(manner, f"Stop process {_title(holders[0])}?")
        return why or _stop_pins(system, list(pins.values()), manner)[1]
    finally:
        _unpin(pins.values())


# Servers, and how each is told where to listen: (its own host, its own port, the options that say otherwise,
# the variables that do, the options and variables that put the socket where no port is). A key's second word is the
# verb without which the program serves nothing; * among the options stands for a bare [host:]port.
SERVERS: dict[str, tuple[str, int | None, str, str, str]] = {
    "uvicorn": ("127.0.0.1", 8000, "--host --port", "UVICORN_HOST UVICORN_PORT", "--uds --fd UVICORN_UDS UVICORN_FD"),
    "hypercorn": ("127.0.0.1", 8000, "-b --bind", "", "-c --config"),
    "granian": ("127.0.0.1", 8000, "--host --port", "GRANIAN_HOST GRANIAN_PORT", "--uds GRANIAN_UDS"),
    "gunicorn": ("127.0.0.1", 8000, "-b --bind", "- PORT", "-c --config LISTEN_FDS"),
    "flask run": ("127.0.0.1", 5000, "-h --host -p --port", "FLASK_RUN_HOST FLASK_RUN_PORT", ""),
    "fastapi dev": ("127.0.0.1", 8000, "--host --port", "- PORT", ""),
    "fastapi run": ("0.0.0.0", 8000, "--host --port", "- PORT", ""),
    "daphne": ("127.0.0.1", 8000, "-b --bind -p --port", "", "-u --unix-socket -e --endpoint --fd"),
    "waitress-serve": ("0.0.0.0", 8080, "--host --port --listen", "", "--unix-socket"),
    "waitress": ("0.0.0.0", 8080, "--host --port --listen", "", "--unix-socket"),
    "manage.py runserver": ("127.0.0.1", 8000, "*", "", ""),
    "django-admin runserver": ("127.0.0.1", 8000, "*", "", ""),
    "http.server": ("0.0.0.0", 8000, "-b --bind *", "", ""),
    "php": ("127.0.0.1", None, "-S", "", ""),
}
_ANY_PROGRAM = ("0.0.0.0", None, "--host --port -p -b --bind --listen", "HOST PORT", "--uds --fd --unix-socket")
_LAUNCHERS = ("python", "pypy", "py", "uv", "uvx", "pipx", "poetry", "pipenv", "pdm", "hatch", "rye", "run", "env", "exec", "debugpy")

# Programs that connect to a port: one that they name is a server's, and none of theirs.
CLIENTS = (
    "psql", "pg_isready", "pg_dump", "pg_dumpall", "pg_restore", "pgbench", "pgcli", "createdb", "createuser", "dropdb",
    "vacuumdb", "mysql", "mysqladmin", "mysqldump", "mycli", "mariadb", "mariadb-admin", "mariadb-dump", "redis-cli",
    "redis-benchmark", "valkey-cli", "mongo", "mongosh", "mongodump", "mongorestore", "mongoimport", "mongoexport", "cqlsh",
    "clickhouse-client", "mosquitto_pub", "mosquitto_sub", "iperf3", "ssh", "scp", "sftp", "autossh", "telnet", "nc", "ncat",
    "socat", "curl", "wget", "http", "httpie", "kubectl", "docker", "podman", "docker-compose", "ab", "wrk", "hey", "locust",
    "k6", "dockerize",
)  # fmt: skip
_WAITERS = ("wait-for-it", "wait-for-it.sh", "wait-for", "wait-for.sh", "wait-on")  # for a database; the server is behind --

# Options whose value is a word of its own, which is neither a program, nor a verb, nor a port.
_LAUNCHERS_VALUED = ("-X", "-W", "--with", "--python", "--env-file", "--extra", "--group", "--project", "--directory",
                     "--listen")  # fmt: skip
_VALUED = (*_LAUNCHERS_VALUED, "--app", "-A", "-e", "-d", "-v", "--verbosity", "--settings", "--pythonpath")
# With one of these a server serves nothing.
_IDLE = ("--help", "--version", "--check-config", "--print-config")


def server_endpoints(command: Sequence[str], environ: Mapping[str, str] | None = None) -> list[Endpoint]:
    """Where the server of a command line will listen; empty when that names no port, or cannot be told.

    The command line speaks first, then the variables that this server reads, then its own default. A
    program that is not known speaks for itself only by ``--port`` and the like, or by HOST and PORT.

    >>> [str(endpoint) for endpoint in server_endpoints(["python", "-m", "uvicorn", "main:app"], {})]
    ['127.0.0.1:8000']
    >>> server_endpoints(["npm", "run", "dev", "--", "--port=3000"], {})
    [Endpoint(host='0.0.0.0', port=3000)]
    """
    environ = os.environ if environ is None else environ
    name, at = _program(command)
    words = list(command[at + 1 :])
    if name in _INTERACTIVE and "-c" in words[:-1]:
        return server_endpoints(_serving_part(words[words.index("-c") + 1]), environ)
    if name in _WAITERS:
        return server_endpoints(words[words.index("--") + 1 :], environ) if "--" in words else []
    keys = _keys_of(name)
    verb = next(_bare(words), "")
    key = next((key for key in keys if key in (name, f"{name} {verb}")), None)
    if name in CLIENTS or any(word in _IDLE for word in words) or (keys and key is None):  # such as manage.py migrate
        return []
    assigned = (word.partition("=") for word in (command[:at] if key else command))  # env PORT=3000 …; make run PORT=3000
    environ = {**environ, **{variable: value for variable, equals, value in assigned if equals and variable.isidentifier()}}
    _, port, options, variables, elsewhere = SERVERS[key] if key else _ANY_PROGRAM
    host_variable, _, port_variable = variables.partition(" ")
    hosts, ports, binds = _told(words, options.split(), generic=key is None)
    if name == "gunicorn" and not binds:
        words += environ.get("GUNICORN_CMD_ARGS", "").split()
        hosts, ports, binds = _told(words, options.split(), generic=False)
    host = hosts[-1] if hosts else environ.get(host_variable, "") or _own_host(key, words, environ)
    if not binds:
        if host.startswith("unix:") or _is_told_elsewhere(words, environ, elsewhere.split()):
            return []
        if not ports and _is_told_in_a_file(name, words, port_variable in environ):
            return []
        variable = environ.get(port_variable, "")
        binds = [("", ports[-1] if ports else _number(variable) if variable else port)]
    found = (Endpoint(bind[0] or host, bind[1] or 0) for bind in binds if bind)
    return [endpoint for endpoint in found if 1 <= endpoint.port <= 65535]


def _serving_part(script: str) -> list[str]:
    """The words of that command of a shell's line which is a known server's, or of the last.

    >>> _serving_part("cd api && exec uvicorn main:app; echo done")
    ['exec', 'uvicorn', 'main:app']
    """
    commands = [command.split() for command in script.replace("&&", ";").replace("||", ";").split(";") if command.strip()]
    serving = [words for words in commands if _keys_of(_program(words)[0])]
    return (serving or commands or [[]])[-1]


def _keys_of(program: str) -> list[str]:
    """Those of SERVERS that a program has: several where it serves by several verbs."""
    return [key for key in SERVERS if key.split()[0] == program]


def _own_host(key: str | None, words: Sequence[str], environ: Mapping[str, str]) -> str:
    if key == "gunicorn" and "PORT" in environ:
        return "0.0.0.0"
    if key and key.endswith("runserver") and ("-6" in words or "--ipv6" in words):
        return "::1"
    return (SERVERS[key] if key else _ANY_PROGRAM)[0]


def _is_told_elsewhere(words: Sequence[str], environ: Mapping[str, str], elsewhere: Sequence[str]) -> bool:
    """Whether one of these options or variables puts the socket where no port is."""
    return any(_is_option(word, elsewhere) for word in words) or any(environ.get(variable) for variable in elsewhere)


def _is_told_in_a_file(name: str, words: Sequence[str], in_a_variable: bool) -> bool:
    """Whether a file may name the port: gunicorn's own, or one of variables."""
    if name == "uvicorn":  # its variable comes from the file for the app, perhaps, and not for uvicorn itself
        return in_a_variable and any(word.partition("=")[0] == "--env-file" for word in words)
    files = {"gunicorn": [("gunicorn.conf.py", b"bind")], "flask": [(".env", b"FLASK_RUN_"), (".flaskenv", b"FLASK_RUN_")]}
    for path, text in files.get(name, ()):
        try:
            if text in _contents(path):
                return True
        except OSError:
            continue
    return False


def _program(command: Sequence[str]) -> tuple[str, int]:
    """The name of the program that a command line starts in the end, and where it stands there."""
    for at, word in enumerate(command):
        folder, name = os.path.split(word)
        if name == "__main__.py":
            name = os.path.basename(folder)
        name = name[:-4] if name.lower().endswith(".exe") else name
        launcher = name.rstrip("0123456789.tw") in _LAUNCHERS  # python3.13t, pythonw
        if not (launcher or word.startswith("-") or "=" in word or (at and command[at - 1] in _LAUNCHERS_VALUED)):
            return name, at
    return "", len(command)


def _is_value(words: Sequence[str], at: int) -> bool:
    """Whether a word belongs to the option before it."""
    return at > 0 and words[at - 1] in _VALUED


def _bare(words: Sequence[str]) -> Iterator[str]:
    """The words that are neither an option nor the value of one."""
    for at, word in enumerate(words):
        if not (word.startswith("-") or _is_value(words, at)):
            yield word


def _is_option(word: str, options: Sequence[str]) -> bool:
    """Whether a word gives one of the options, also run together with its value (-cconf.py) or shortened (--conf)."""
    name = word.partition("=")[0]
    return (_full_option(name, options) if name.startswith("--") else name[:2]) in options


def _full_option(name: str, options: Sequence[str]) -> str:
    """The option that a word such as ``--bi`` means to argparse, which lets them be shortened."""
    return next((option for option in options if len(name) > 3 and option.startswith(name)), name)


def _told(words: list[str], options: list[str], generic: bool) -> tuple[list[str], list[int], list[Any]]:
    """What the options say: hosts, ports (0 for what is none), and binds (None for what is no TCP address)."""
    hosts: list[str] = []
    ports: list[int] = []
    binds: list[Any] = []
    end = words.index("--") if "--" in words else len(words)
    for at, word in enumerate(words):
        if at == end and (ports or binds):  # the rest belongs to another program
            break
        option, equals, value = word.partition("=")
        if option.startswith("--") and not generic:
            option = _full_option(option, options)
        if option not in options and word[:2] in options and word[1:2] != "-":  # -p9000
            option, value = word[:2], word[2:]
        elif not equals:
            value = words[at + 1] if at + 1 < len(words) else ""
        number = _number(value) or 0
        if option not in options:
            bare = _split_address(word) if "*" in options and not _is_value(words, at) else None
            if bare and bare[1]:  # a small number behind an option may be its value
                sure = bare[1] >= 1024 or ":" in word or at == 0 or not words[at - 1].startswith("-")
                binds.append(bare if sure else None)
        elif option in ("--host", "-h"):
            hosts += [value] if value and not value.startswith("-") else []  # vite has a --host without a value
        elif option in ("--port", "-p"):
            if number >= 1024 or not generic or option == "--port":  # to an unknown program -p may mean anything
                ports.append(number)
        else:
            for bind in map(_split_address, value.split() or [""]):  # waitress takes several in one
                if bind and bind[1] is None:
                    hosts.append(bind[0])
                else:
                    binds.append(bind)
    return hosts, ports, binds


def _split_address(text: str) -> tuple[str, int | None] | None:
    """(host, port) of ``host:port``, ``port`` or ``host``: "" or None for the part that is missing.

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


def guard() -> None:
    """Free the port that the server which is loading this module is about to bind; to be called at its top.

    Put ``import port_manager; port_manager.guard()`` above your app, then ``python -m uvicorn main:app``
    takes its port over from the previous run. It acts only when a server's command line (see SERVERS)
    loads the module, or when the module is run as a script that names a port (--port, or PORT). It does
    nothing in tests, in a REPL, and in the child of a reloader or master, where the port belongs to an
    ancestor. When the port cannot be had, the process ends with status 1.

    >>> guard()  # neither a server nor a script is being started here
    """
    module = sys._getframe(1).f_globals
    script = module.get("__name__") == "__main__" and "__file__" in module
    name = _program(sys.argv[:1])[0]
    if not script and not _keys_of(name):
        return
    try:
        for endpoint in server_endpoints(sys.argv):
            if not _is_in_the_family(name, *endpoint) and not ensure_port_available(endpoint.port, endpoint.host):
                raise SystemExit(1)
    except KeyboardInterrupt as interruption:
        _say(WARNING, str(interruption) or "Interrupted")
        raise SystemExit(130) from None


def _is_command_of(name: str, command: Sequence[str]) -> bool:
    """Whether a command line is this server's own, not that of a launcher which only waits for it.

    >>> [_is_command_of("uvicorn", words.split()) for words in ("python3 -m uvicorn a:b", "uv run uvicorn a:b", "")]
    [True, False, False]
    """
    program, at = _program(command)
    return program == name and all("python" in word for word in _bare(command[:at]))


def _is_in_the_family(name: str, host: str, port: int) -> bool:
    """Whether this is the child of a reloader or master, which has bound the port or is the same server."""
    spawned = sys.modules.get("multiprocessing.process")
    if spawned and spawned.parent_process() is not None:
        return True
    system = _system()
    if system is WINDOWS and any(os.environ.get(name) == "true" for name in ("RUN_MAIN", "WERKZEUG_RUN_MAIN")):
        return True
    if system is not LINUX and _obstacle(port, host) is None:  # nothing to be had without starting a tool
        return False
    known: _Known = {}
    ancestry = _ancestry(system, known) or []
    parent = _process(system, ancestry[1], known) if len(ancestry) > 1 else None
    try:
        words = _words_of(parent.pid) if parent and system is LINUX else parent.command.split() if parent else []
        if system is not WINDOWS and _is_command_of(name, words):  # a venv's python.exe there only starts the real one
            return True
        found = _search(port, host, thorough=True)  # a master may bind, and leave it to its workers to listen
    except OSError:
        return False
    rows = found[1] if found and found[0] is system else []
    return any(row.pid in ancestry for row in system.owners(rows, known, False))


# ----------------------------------------------------------------------------------------------------
# The command line
# ----------------------------------------------------------------------------------------------------

HELP = """\
Who holds a port, and may it be stopped?

  port_manager.py list                      every listening TCP port
  port_manager.py check 8000                who holds it; what free would do
  port_manager.py free 8000                 stop its holder, if that is safe
  port_manager.py free 3000-3010 --dry-run  only say what would be stopped
  port_manager.py wait 8000 --until listening --timeout 30
  port_manager.py pick 8000                 print a free port at or after 8000

  --host HOST       where to bind (0.0.0.0); localhost means both families
  --json            list, check, free: data for programs on standard output
  --dry-run         free: say what would be stopped or refused; stop nothing
  --grace SECONDS   free: time for the holder to stop by itself (5)
  --signal NAME     free: the first, polite signal (TERM)
  --policy POLICY   free: kill, own (what runs in this folder), ask, refuse
  --force           free: also outside development (the guards stay)
  --until STATE     wait: free or listening
  --timeout SECONDS wait: at most so long (else for ever)
  --quiet, --verbose, --help, --version

Status: 0 available, 1 not, 2 a wrong call, 130 interrupted. ENVIRONMENT says
whether this is development; PORT_MANAGER_POLICY is a default for --policy.
"""

_OPTIONS = {
    "list": "--json",
    "check": "--host --json",
    "free": "--host --json --dry-run --grace --signal --policy --force",
    "wait": "--host --until --timeout",
    "pick": "--host",
}
_DEFAULTS: dict[str, Any] = {
    "host": "0.0.0.0", "json": False, "dry_run": False, "grace": GRACE, "signal": "TERM", "policy": None,
    "force": False, "until": "free", "timeout": None, "quiet": False, "verbose": False,
}  # fmt: skip
_SIGNALS = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL")


# What free would do about a port. look: None where nobody holds it, and where nobody could tell; plan: a sentence,
# None for "nothing" or "refuse"; pids: of the processes that it would stop.
_Foreseen = namedtuple("_Foreseen", "outcome look plan pids")


class _WrongCall(Exception):
    """The call is wrong, and how."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status.

    >>> main(["pick", "http"])
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verbs = {"list": _list, "check": _check, "free": _free_all, "wait": _wait, "pick": _pick}
    try:
        if not words:
            _write(sys.stderr, HELP, end="")
            return 2
        if "--help" in words or "-h" in words:
            _print(HELP, end="")
            return 0
        if words == ["--version"]:
            _print(f"port_manager {__version__}")
            return 0
        request = _plain_request(words) or _parsed(words)
        if request.quiet or request.verbose:
            import logging

            logging.getLogger("port_manager").setLevel(logging.CRITICAL if request.quiet else DEBUG)
        return verbs[request.verb](request)
    except _WrongCall as wrong:
        _write(sys.stderr, f"port_manager: {wrong}")
        return 2
    except PortError as error:
        _complain(error.reason)
        return 1
    except KeyboardInterrupt as interruption:
        _write(sys.stderr, str(interruption) or "Interrupted")
        return 130


def _plain_request(words: list[str]) -> Any:
    """A call without options, which needs no parser: loading argparse takes longer than looking at a port."""
    from types import SimpleNamespace

    verb, ports = (words[0], words[1:]) if words[0] in _OPTIONS else ("check", words)
    if not all(word.replace("-", "").isdigit() and word[0] != "-" for word in ports):
        return None
    return SimpleNamespace(verb=verb, ports=_ports(verb, ports), **_DEFAULTS)


def _parsed(words: list[str]) -> Any:
    import argparse

    verb = next((word for word in words if word in _OPTIONS), None)
    if verb is None and words[0][:1].isalpha():
        raise _WrongCall(f"{_clean(words[0])!r} is neither a verb nor a port{_nearest(words[0], _OPTIONS)}")
    if verb:
        words = words[: words.index(verb)] + words[words.index(verb) + 1 :]
    verb = verb or "check"

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise _WrongCall(message)

    parser = Parser(add_help=False, allow_abbrev=False)
    options = [*_OPTIONS[verb].split(), "--quiet", "--verbose"]
    for option in options:
        default = _DEFAULTS[option[2:].replace("-", "_")]
        if default is False:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=_TYPES.get(option, str))
    parser.set_defaults(**_DEFAULTS)
    request, rest = parser.parse_known_args(words)
    unknown = next((word for word in rest if word.startswith("-") and not word[1:2].isdigit() and word != "-"), None)
    if unknown:
        wrong = unknown.partition("=")[0]
        hint = f"; a port is named without it: {verb} 8000" if wrong == "--port" else _nearest(wrong, options)
        raise _WrongCall(f"{verb} has no option {_clean(wrong)}{hint}")
    request.verb, request.ports = verb, _ports(verb, rest)
    return request


def _nearest(word: str, words: Iterable[str], surely: bool = False) -> str:
    import difflib

    near = difflib.get_close_matches(word, list(words), 1, 0.8 if surely else 0.7)
    return f"; did you mean {near[0]}?" if near else "" if surely else f"; there are {', '.join(words)}"


def _seconds(text: str) -> float:
    import argparse

    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{_clean(text)!r} is not a number of seconds")
    return seconds


def _one_of(*allowed: str) -> Callable[[str], str]:
    def chosen(text: str) -> str:
        import argparse

        if text not in allowed:
            raise argparse.ArgumentTypeError(f"{_clean(text)!r} is none of {', '.join(allowed)}")
        return text

    return chosen


def _signal_name(text: str) -> str:
    name = text.upper()
    return _one_of(*_SIGNALS)(name[3:] if name.startswith("SIG") else name)


_TYPES: dict[str, Callable[[str], Any]] = {
    "--grace": _seconds,
    "--timeout": _seconds,
    "--signal": _signal_name,
    "--policy": _one_of(*POLICIES),
    "--until": _one_of("free", "listening"),
}


def _ports(verb: str, words: list[str]) -> list[int]:
    """
    >>> _ports("free", ["80", "3000-3002", "80"])
    [80, 3000, 3001, 3002]
    """
    ports: list[int] = []
    for word in words:
        first, dash, last = word.partition("-")
        low, high = _number(first), _number(last if dash else first)
        if low is None or high is None or not 1 <= low <= high <= 65535:
            raise _WrongCall(f"{_clean(word)!r} is not a port; a port is a number from 1 to 65535, a range is 3000-3010")
        ports.extend(range(low, high + 1))
    if verb == "list" and ports:
        raise _WrongCall("list takes no port; check PORT tells about one")
    if verb == "pick":
        ports = ports or [8000]
    one = verb in ("wait", "pick")
    if (one and len(ports) > 1) or (verb != "list" and not ports):
        raise _WrongCall(f"{verb} needs {'one port' if one else 'at least one port'}, such as 8000")
    return list(dict.fromkeys(ports))


def _print(text: str, end: str = "\n") -> None:
    """Data, on standard output: a full disk, say, is an error; a reader such as head may go away."""
    failure = _write(sys.stdout, text, end)
    if failure:
        raise PortError(f"standard output cannot be written: {failure}")


def _painted(text: str, colour: int) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not _on_terminal(sys.stdout)
    return text if plain or (sys.platform == "win32" and "WT_SESSION" not in os.environ) else f"\033[{colour}m{text}\033[0m"


def _request_manner(request: Any) -> _Manner:
    return _manner(request.grace, request.policy, f"SIG{request.signal}", request.force)


def _foreseen(request: Any) -> list[_Foreseen]:
    """What free would do about each port; --json prints it."""
    manner = _request_manner(request)
    foreseen = [_foresee(port, request.host, manner) for port in request.ports]
    if request.json:
        _json(foreseen)
    return foreseen


def _json(foreseen: Iterable[_Foreseen]) -> None:
    import json

    ports = [
        {
            "port": outcome.port,
            "host": outcome.host,
            "available": outcome.available,
            "holders": [
                {**holder._asdict(), "addresses": [str(address) for address in holder.addresses]}
                for holder in outcome.holders
            ],
            "stopped": outcome.stopped,
            "would_stop": pids,
            "reason": outcome.reason,
        }
        for outcome, _, _, pids in foreseen
    ]
    _print(json.dumps({"ports": ports}, indent=2))


def _free_all(request: Any) -> int:
    if request.dry_run:
        return _foretell(request)
    manner = _request_manner(request)
    outcomes = [_ensure(port, request.host, manner) for port in request.ports]
    if request.json:
        _json(_Foreseen(outcome, None, None, []) for outcome in outcomes)
    return 0 if all(outcome.available for outcome in outcomes) else 1


def _foretell(request: Any) -> int:
    """free --dry-run: status 0 when free would make every port available."""
    foreseen = _foreseen(request)
    for outcome, _, plan, _ in foreseen if not (request.json or request.quiet) else ():
        _print(f"Port {outcome.port}: " + (plan or ("available" if outcome.available else f"would refuse: {outcome.reason}")))
    return 0 if all(each.outcome.available or each.plan for each in foreseen) else 1


def _foresee(port: int, host: str, manner: _Manner) -> _Foreseen:
    """What free would do about a port, if anything is to be done."""
    obstacle = _obstacle(port, host)
    if obstacle is None:
        return _Foreseen(_Outcome(port, host, True, [], [], None), None, None, [])
    held, reason = obstacle
    look = _look_at(port, host, thorough=True) if held else None
    plan, pids, why = _plan(port, host, look, manner, reason) if held else (None, [], reason)
    return _Foreseen(_Outcome(port, host, False, look.holders if look else [], [], why or reason), look, plan, pids)


def _plan(
    port: int, host: str, look: Any, manner: _Manner, reason: str
) -> tuple[str | None, list[int], str | None]:
    """(the deed, the processes that it stops, None), or (None, none, why free would refuse)."""
    why = None if manner.force else _because_of_the_environment()
    if why is None and look is None:
        why = _why_untold(port)
    elif why is None and not look.holders:
        why = _why_nobody(port, host, reason)
    case = _Case(look, manner.policy, port, host)
    container = _container_behind(case) if why is None else None
    if container:
        return f"would stop the container {container[1]}: {container[0]} stop {container[1]}", [], None
    why = why or _refusal(case)
    if why:
        return None, [], why
    families = "; ".join(f"process {_title(*family)}" for family in _families(look.holders))
    asking = "ask, then " if manner.policy == "ask" else ""
    plan = f"would {asking}stop {families}: {manner.polite}, and SIGKILL after {manner.grace:g} s"
    return plan, _pids(look.holders), None


def _check(request: Any) -> int:
    foreseen = _foreseen(request)
    for outcome, look, plan, _ in foreseen if not (request.json or request.quiet) else ():
        if outcome.available:
            _print(_painted(f"✅ Port {outcome.port} is available", 32))
            for sentence in _beside(outcome.port, request.host):
                _print(f"  {'beside it':<11}{sentence}")
        elif look is None:
            _print(_painted(f"❌ {_sentence(outcome.reason)}", 31))
        else:
            _print(_painted(f"⚠️  Port {outcome.port} is already in use", 33))
            for line in _story(outcome.port, look, plan or f"would refuse: {outcome.reason}"):
                _print(line)
    return 0 if all(each.outcome.available for each in foreseen) else 1


def _beside(port: int, host: str) -> list[str]:
    """Who listens on the port at another address, where a server that binds localhost or :: would meet it."""
    rows = (_ask(_system(), port) or []) if host == _DEFAULTS["host"] and _system() is LINUX else []
    holders = _holders(LINUX, _owners_by_proc(rows, {}, False), {}) if rows else []
    return [f"{', '.join(map(str, holder.addresses))} is held by process {_title(holder)}" for holder in holders]


def _story(port: int, look: _Look, plan: str) -> Iterator[str]:
    """What check tells about the holders of one port, a line each."""
    for root, children in _families(look.holders):
        told = {
            "process": _title(root, children),
            "user": root.user,
            "started": _started(look, root),
            "folder": root.cwd,
            "listens on": ", ".join(map(str, root.addresses)),
        }
        yield from (f"  {label:<11}{text}" for label, text in told.items() if text)
    clients = _clients(port) if look.system is LINUX else []
    if clients:
        yield f"  {'clients':<11}{len(clients)}: {', '.join(clients[:5])}{', …' if len(clients) > 5 else ''}"
    yield f"  {'free':<11}{plan}"


def _started(look: _Look, holder: Holder) -> str:
    """When, and by whom: the parents up to the shell or service."""
    if not holder.started:
        return ""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.started))
    line: list[str] = []
    for pid in _above(look.system, holder.pid, look.known)[:12]:
        process = _process(look.system, pid, look.known)
        if process:
            line.append(f"{process.name} {pid}")
        if process and process.name.lstrip("-") in _INTERACTIVE and process.tty:
            break
    by = f", by {' ← '.join(line)}" if line else ""
    return f"{_span(time.time() - holder.started)} ago ({when}){by}"


def _clients(port: int) -> list[str]:
    """Who is connected to a port, by name where it is a process of this machine."""
    rows = _ask_sock_diag(None, 1 << 1) or []  # ESTABLISHED
    peers = [row.peer for row in rows if row.port == port]
    other_ends = _owners_by_proc([row for row in rows if row.peer and row.peer.port == port], {}, True)
    pids = {Endpoint(row.address, row.port): row.pid for row in other_ends}
    told = []
    for peer in peers:
        pid = pids.get(peer)
        process = _read_proc(pid).get(pid) if pid else None
        told.append(f"{peer} ({process.name} {pid})" if process else str(peer))
    return told


def _list(request: Any) -> int:
    holders = find_listeners()
    ports = sorted({address.port for holder in holders for address in holder.addresses})
    held = [(port, [h for h in holders if any(a.port == port for a in h.addresses)]) for port in ports]
    if request.json:
        _json(_Foreseen(_Outcome(port, None, False, on_it, [], None), None, None, []) for port, on_it in held)
        return 0
    rows = []
    for port, on_it in held:
        for root, children in _families(on_it):
            addresses = ", ".join(a.host for a in root.addresses if a.port == port)
            pid = f"{root.pid or '-'}{f' +{len(children)}' if children else ''}"
            up = _span(time.time() - root.started) if root.started else "-"
            rows.append((str(port), addresses, pid, root.user or "-", up, _project(root.cwd), root.command or "-"))
    if not request.quiet:
        for line in _table([("PORT", "ADDRESS", "PID", "USER", "UP", "FOLDER", "COMMAND"), *rows]):
            _print(line)
    return 0


def _project(folder: str) -> str:
    """The project that a folder lies in: the nearest one above it with a mark of a repository."""
    marks = (".git", "pyproject.toml", "setup.cfg", "package.json", "manage.py", "go.mod", "Cargo.toml")
    home, at = os.path.expanduser("~"), folder
    while len(at) > 1 and at != home:
        if any(os.path.exists(os.path.join(at, mark)) for mark in marks):
            folder = at
            break
        at = os.path.dirname(at)
    return "~" + folder[len(home) :] if len(home) > 1 and (folder + "/").startswith(home + "/") else folder or "-"


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Aligned columns; the last two give way until a row fits the terminal (a pipe has no width)."""
    import shutil

    room = shutil.get_terminal_size().columns if _on_terminal(sys.stdout) or "COLUMNS" in os.environ else 10_000
    widths = [max(_columns(cell) for cell in column) for column in zip(*rows)]
    for flexible, least in ((-1, 20), (-2, 12), (-1, 7)):
        excess = sum(widths) + 2 * (len(widths) - 1) - room
        widths[flexible] -= max(0, min(excess, widths[flexible] - least))
    for row in rows:
        yield _fit("  ".join(_fit(cell, width) for cell, width in zip(row, widths)).rstrip(), room).rstrip()


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes: a wide character takes two.

    >>> _columns("api"), _columns("项目")
    (3, 4)
    """
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _fit(text: str, width: int) -> str:
    if _columns(text) > width:
        while _columns(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _columns(text))


def _wait(request: Any) -> int:
    port, host = request.ports[0], request.host
    if request.until == "free":
        wait_until_free(port, host, request.timeout)
    else:
        wait_until_listening(port, None if host == _DEFAULTS["host"] else host, request.timeout)
    _say(INFO, f"✅ Port {port} is {request.until}")
    return 0


def _pick(request: Any) -> int:
    _print(str(find_free_port(request.ports[0], request.host)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
