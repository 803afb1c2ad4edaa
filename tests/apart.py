"""Tests that run in a process of their own, as they change what that may do or see; and what they need there."""

from __future__ import annotations

import array
import contextlib
import ctypes
import functools
import json
import logging
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any, Callable

import pytest

from .conftest import ROOT_USER, told_by_a_fork
from .holder import change_command

NETLINK = ({"x86_64": 41, "aarch64": 198}.get(platform.machine(), -1), 16)  # the number of socket(), and AF_NETLINK
root_and_ip = pytest.mark.skipif(not (ROOT_USER and shutil.which("ip")), reason="needs root and ip")
KILL = os.kill  # what a test itself ends does not count as sent


def apart(test: Callable[..., None], *, box: bool = False) -> Callable[..., None]:
    """Run a test in a fork of this process, in a session of its own; its failure or skip is this one's."""

    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        def told() -> tuple[str, str]:
            try:
                os.setsid()
                signal.alarm(100)  # nothing outlives a test run that was cut short
                ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans end with the test, too
                if box:
                    _enter_a_box()
                test(*args, **named)
            except BaseException as error:  # noqa: BLE001 (a forked test run must not go on)
                skipped = type(error).__name__ == "Skipped"
                return type(error).__name__, str(error) if skipped else traceback.format_exc()
            finally:
                with contextlib.suppress(OSError):
                    _end_children()
            return "", ""

        line = told_by_a_fork(told).decode()
        kind, text = json.loads(line or '["killed", "the test was killed, or ended without a word"]')
        if kind:
            (pytest.skip if kind == "Skipped" else pytest.fail)(text)

    return run


def boxed(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test apart, in new namespaces of PIDs, mounts and networks: each port is free, all ends with the test."""
    return root_and_ip(apart(test, box=True))  # type: ignore[no-any-return]


def _enter_a_box() -> None:
    if ctypes.CDLL(None).unshare(0x00020000 | 0x20000000 | 0x40000000):  # CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET
        pytest.skip("no namespaces can be made here")
    init = os.fork()
    if init:
        os.waitpid(init, 0)
        os._exit(0)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    test = os.fork()  # the test itself is not PID 1, whose end is the end of all the others
    if test:
        while os.wait()[0] != test:
            pass
        os._exit(0)
    script = "mount --make-rprivate /; mount -t proc proc /proc; ip link set lo up"
    subprocess.run(["sh", "-ec", script], check=True)


def _end_children() -> None:
    while True:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if not children:
            return
        for pid in map(int, children):
            KILL(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def refuse_call(error: int, number: int, first: int | None = None) -> None:
    """From here on the kernel refuses a system call (with that first argument) to this process: a seccomp filter."""
    only = [] if first is None else [(0x20, 0, 0, 16), (0x15, 0, 1, first)]
    ends = [(0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000)]
    steps = [(0x20, 0, 0, 0), (0x15, 0, len(only) + 1, number), *only, *ends]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    program = ctypes.create_string_buffer(code, len(code))
    rules = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, rules, 0, 0):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
        pytest.skip("this kernel has no seccomp filters")


def forked(act: Callable[[], Any], pid: int | None = None) -> int:
    """A child of this process, with this PID if one is given (in a box), which does something and then waits."""
    if pid is not None:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            change_command()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            act()
            os.write(write, b"1")
            time.sleep(60)
        finally:
            os._exit(0)
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.close(read)
    assert pid in (None, child)
    return child


class InFlight:
    """A listener that no process holds: it lies in a Unix socket until it is taken out, or that is closed."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.ends = socket.socketpair()
        self.listener = socket.create_server((host, port))

    def send_off(self) -> None:
        descriptor = array.array("i", [self.listener.fileno()])
        self.ends[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)])
        self.listener.close()

    def take_out(self) -> int:
        data = self.ends[1].recvmsg(1, socket.CMSG_SPACE(4))[1][0][2]
        return array.array("i", data)[0]

    def close(self) -> None:
        for end in (self.listener, *self.ends):
            end.close()


def when_it_says(text: str, act: Callable[[], None]) -> None:
    """Do something as soon as port_manager logs a line that contains a text, once."""
    logger, acts = logging.getLogger("port_manager"), [act]

    def noticed(record: logging.LogRecord) -> bool:
        if acts and text in record.getMessage():
            acts.pop()()
        return True

    logger.addFilter(noticed)
    logger.setLevel(10)


def swapped(port: int, name: str) -> tuple[int, Callable[[], None]]:
    """A holder, and a call that ends it and gives its PID and its very socket to another program, of that name."""
    flight = InFlight(port)
    pid = forked(lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    flight.send_off()
    time.sleep(0.05)  # start times are told in hundredths of a second

    def swap() -> None:
        KILL(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        descriptor = flight.take_out()
        forked(lambda: Path("/proc/self/comm").write_text(name), pid)
        os.close(descriptor)

    return pid, swap


def mounted(folder: Path) -> int:
    """Mount a FUSE file system in which there is nothing (see linux/fuse.h), and tell the PID of its server."""
    try:
        handle = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("there is no FUSE here")
    options = f"fd={handle},rootmode=40000,user_id=0,group_id=0".encode()
    if ctypes.CDLL(None).mount(b"dead", str(folder).encode(), b"fuse", 0, options):
        pytest.skip("nothing can be mounted here")
    server = os.fork()
    while server == 0:
        _, kind, unique = struct.unpack_from("=IIQ", os.read(handle, 1 << 17))
        body = {
            26: struct.pack("=IIIIHHIIHH8I", 7, 31, 65536, 0, 16, 16, 65536, 1, 0, 0, *[0] * 8),  # INIT
            3: struct.pack("=QII6Q10I", *[0] * 3, 1, *[0] * 5, *[0] * 3, 0o40755, 2, 0, 0, 0, 4096, 0),  # GETATTR
        }.get(kind, b"")
        os.write(handle, struct.pack("=IiQ", 16 + len(body), 0 if body else -38, unique) + body)
    os.close(handle)
    return server
