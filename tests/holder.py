"""A program that holds a port in the way its argument (JSON) says, and tells on one line when it does.

It is started by the tests as a real process of its own. Keys: bind (list of [host, port]), reuse, reuseport, v6only,
listen, udp, connect ([host, port], from the first bound address), stand_by (bind as soon as that can be done),
ignore_term, drain (close the listener on SIGTERM, and live on), says (a text, on SIGTERM, after 0.2 s), tells_time (as
its last deed, on SIGTERM), children (how many share the listener), own_sockets (each child binds for itself with
SO_REUSEPORT), master_binds (and their parent, too, without listening), orphans (the parent dies once its children run),
strangers (how many processes without the socket are started after each child), respawns (a new child for each that
ends, until SIGTERM), silent_parent (the parent closes the listener and waits), starts (a program, and with terminal on
one of its own; with leaks it inherits the listener), runs (a shell's command, before it tells), name (of the process),
first (the name of the first child), uid (to change to; or the real, effective and saved one), exit_after (seconds),
double_fork, first_thread_ends (of a child; another thread lives on), generations (on SIGTERM it leaves the socket to a
child, so often), forks (for requests that come one after another).
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time

STOP = []  # has something in it once SIGTERM has come


def listeners(spec):
    found = []
    for host, port in spec["bind"]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM if spec.get("udp") else socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(spec.get("reuse", True)))
        if spec.get("reuseport"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and spec.get("v6only") is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(spec["v6only"]))
        sock.bind((host, port))
        if spec.get("connect"):
            sock.connect(tuple(spec["connect"]))
        elif spec.get("listen", True) and not spec.get("udp"):
            sock.listen(16)
        found.append(sock)
    return found


def behave(spec, socks):
    on_term = {
        "ignore_term": signal.SIG_IGN,
        "generations": lambda *_: leave_the_socket_to_a_child(spec),
        "drain": lambda *_: [sock.close() for sock in socks],
        "says": lambda *_: (time.sleep(0.2), os.write(1, spec["says"].encode()), os._exit(0)),
        "tells_time": lambda *_: (os.write(1, b"%d" % time.monotonic_ns()), os._exit(0)),
        "respawns": lambda *_: STOP.append(1),
    }
    for key in filter(spec.get, on_term):
        signal.signal(signal.SIGTERM, on_term[key])
    if spec.get("name"):
        with open("/proc/self/comm", "w") as comm:
            comm.write(spec["name"])
    if spec.get("uid"):
        os.setresuid(*(spec["uid"] if isinstance(spec["uid"], list) else [spec["uid"]] * 3))


def leave_the_socket_to_a_child(spec):
    spec["generations"] -= 1
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # Python forgets what a child gets at its very beginning
    if not spec["generations"] or os.fork():
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def live_without_the_first_thread(spec):
    import ctypes
    import platform
    import threading

    threading.Thread(target=live, args=(spec,)).start()
    exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]  # the number of the call
    ctypes.CDLL(None).syscall(exit_thread, 0)


def change_command():
    """Write over this process's command line: a fork of the same command would pass for its parent's worker."""
    import ctypes

    with open("/proc/self/stat", errors="replace") as stat:
        start, end = map(int, stat.read().rpartition(")")[2].split()[45:47])
    ctypes.memset(start, ord("x"), end - start - 1)


def live(spec):
    while spec.get("forks"):
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        if os.fork() == 0:
            time.sleep(0.001)
            os._exit(0)
        time.sleep(0.0005)
    end = time.monotonic() + spec.get("exit_after", 120)
    while time.monotonic() < end:  # nothing outlives a test run that was cut short
        time.sleep(min(1, max(0, end - time.monotonic())))


def respawn(spec):
    while os.wait() and not STOP:
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            live(spec)
            os._exit(0)


def start(spec, socks):
    """Start another program; its PID."""
    import pty
    import subprocess

    for sock in socks:
        sock.set_inheritable(bool(spec.get("leaks")))
    if not spec.get("terminal"):
        null = subprocess.DEVNULL
        return subprocess.Popen(spec["starts"], close_fds=False, stdin=null, stdout=null).pid
    pid, terminal = pty.fork()
    if pid == 0:
        os.write(1, b"here")
        os.execvp(spec["starts"][0], spec["starts"])
    os.read(terminal, 4)
    return pid


def stand_by(spec):
    """Tell at once, and take the port when that can be done."""
    print(json.dumps({"pid": os.getpid(), "children": [], "strangers": []}), flush=True)
    while True:
        with contextlib.suppress(OSError):
            socks = listeners(spec)  # noqa: F841 (they listen as long as this name stands for them)
            return live(spec)
        time.sleep(0.0002)


def forked(spec, socks):
    """A child, and the PID that it (or its own child) tells when it is ready."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        serve(write, spec, socks)
        os._exit(0)
    os.close(write)
    told = int(os.read(read, 16))
    os.close(read)
    return child, told


def serve(pipe, spec, socks):
    if spec.get("double_fork") and os.fork():
        return
    for sock in socks if spec.get("strange") else []:
        sock.close()
    socks = listeners(spec) if spec.get("own_sockets") else socks
    behave(spec, socks)
    os.write(pipe, b"%d" % os.getpid())
    if spec.get("first_thread_ends"):
        live_without_the_first_thread(spec)
    live(spec)


def main():
    spec = json.loads(sys.argv[1])
    if spec.get("stand_by"):
        return stand_by(spec)
    bound = listeners({**spec, "listen": False}) if spec.get("master_binds") else []
    socks = bound if spec.get("own_sockets") else listeners(spec)
    told = {"pid": os.getpid(), "children": [], "strangers": []}
    for number in range(spec.get("children", 0)):
        named = {"name": spec["first"]} if "first" in spec and number == 0 else {}
        child, pid = forked({**spec, **named, "respawns": False}, socks)
        told["children"].append(pid)
        if spec.get("double_fork"):
            os.waitpid(child, 0)
        told["strangers"] += [forked({"strange": True}, socks)[0] for _ in range(spec.get("strangers", 0))]
    for sock in socks if spec.get("silent_parent") else []:
        sock.close()
    if spec.get("starts"):
        told["children"].append(start(spec, socks))
    if spec.get("runs"):
        told["said"] = os.popen(spec["runs"]).read()
    behave(spec, socks)
    print(json.dumps(told), flush=True)
    if spec.get("orphans"):
        os._exit(0)
    return (respawn if spec.get("respawns") else live)(spec)


if __name__ == "__main__":
    main()
