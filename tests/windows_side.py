"""What tests/test_wine.py runs inside of Windows: holders of ports, and scenarios that say whether they passed.

    python windows_side.py SCENARIO FOLDER    (where port_manager.py and run_backend.py are)

A holder writes the row that netstat shall print for it, with the state in German; the stand-in for netstat
(.ci/netstat.c) prints the row as long as the process that has the socket lives.
"""

import contextlib
import ctypes
import faulthandler
import io
import json
import locale
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback

ROWS = r"C:\netstat.rows"
ME = os.path.abspath(__file__)
FOLDER = sys.argv[-1]
ENCODING = locale.getpreferredencoding(False)  # of pipes


def hold(port, host="127.0.0.1"):
    """A server, of which netstat tells as long as it lives."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.bind((host, int(port)))
    sock.listen(16)
    told(sock)
    print("listening", flush=True)
    time.sleep(120)


def told(sock):
    """Have netstat tell of the socket."""
    host, port = sock.getsockname()[:2]
    local, remote = (f"[{host}]:{port}", "[::]:0") if ":" in host else (f"{host}:{port}", "0.0.0.0:0")
    with open(ROWS, "ab", buffering=0) as rows:
        row = f"{os.getpid()} {created()}\t  TCP    {local:<22} {remote:<22} ABHÖREN         {os.getpid()}\r\n"
        rows.write(row.encode("cp850"))


def created():
    kernel, times = ctypes.WinDLL("kernel32"), (ctypes.c_uint64 * 4)()
    kernel.GetProcessTimes(ctypes.c_void_p(-1), *(ctypes.byref(times, 8 * place) for place in range(4)))
    return times[0]


def desktop():
    """Keep the desktop, which the first program that asks for windows starts (taskkill does), with its own stderr."""
    ctypes.WinDLL("user32").GetDesktopWindow()
    print("ready", flush=True)
    time.sleep(3600)


def serve():
    """Live until Ctrl+C, and take a moment to close."""
    print("serving", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("closed", flush=True)
        sys.exit(9)


def hang():
    """Do not end; nor does a child, which has the same pipes."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], stdout=sys.stdout, stderr=sys.stderr)
    time.sleep(120)


def held(port, *host, python=sys.executable, script=ME):
    process = subprocess.Popen([python, script, "hold", str(port), *host], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def heard(call, *words, **options):
    """(what a call returned, seconds, what it said)."""
    said, began = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stderr(said):
        try:
            answer = call(*words, **options)
        except OSError as error:
            answer = str(error)
    return answer, time.perf_counter() - began, said.getvalue()


def command(*words, tool="port_manager.py", folder=FOLDER, **options):
    """(exit status, output, complaints) of the command line."""
    done = subprocess.run(
        [sys.executable, os.path.join(folder, tool), *map(str, words)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=100, check=False, **options,
    )  # fmt: skip
    return [done.returncode, *(text.decode(ENCODING).replace("\r", "") for text in (done.stdout, done.stderr))]


def free(manager):
    """A port that nobody has; while we have it, SO_REUSEADDR of another would steal it if it were not exclusive."""
    port = free_port()
    answer, _, said = heard(manager.ensure_port_available, port, "127.0.0.1")
    assert answer is True and "is available" in said
    with manager.bind_port(port, "127.0.0.1") as sock, socket.socket() as rival:
        assert sock.getsockname()[1] == port
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        error, *_ = heard(rival.bind, ("127.0.0.1", port))
        assert "WinError 10013" in error
        assert manager.find_free_port(port, "127.0.0.1") > port
        told(sock)
        assert [holder.pid for holder in manager.find_listeners(port)] == [os.getpid()]
    assert manager.find_listeners(free_port()) == []


def take_over(manager):
    """A plain server is forced at once; one on the same port of IPv6, and one that is its client, live on."""
    port, before = free_port(), time.time()
    server, after = held(port), time.time()
    bystander = held(port, "::1")
    with socket.create_connection(("127.0.0.1", port)):
        (holder,) = manager.find_listeners(port, "127.0.0.1")
        answer, seconds, said = heard(manager.ensure_port_available, port, "127.0.0.1", grace=60)
    server.wait(10)
    assert answer is True and manager.ensure_port_available(port, "127.0.0.1") is True
    assert bystander.poll() is None and seconds < 60
    assert "is already in use" in said and str(server.pid) in said and "is now available" in said
    assert "SIG" not in said, "Windows has no signals"
    facts = (server.pid, os.getpid(), os.getlogin(), "python.exe", "python.exe", "")
    assert holder[:6] == facts and before - 1 < holder.started < after + 1
    assert [address.host for address in holder.addresses] == ["127.0.0.1"]
    assert manager.ensure_port_available(port, "::1") is True
    bystander.wait(10)


def backend(manager):
    """run_backend.py: the exit status of the command, the port that it gives to it, and who is in the way."""
    port = free_port()
    server = held(port)
    say = "import os, sys; print(os.environ['PORT'], sys.argv[1:]); sys.exit(7)"
    at = ("--port", port, "--host", "127.0.0.1", "--")
    status, out, said = command(*at, sys.executable, "-c", say, "a b", 'c"d', tool="run_backend.py")
    assert status == 7 and f"{port} ['a b', 'c\"d']" in out and "is now available" in said
    server.wait(10)
    status, _, said = command(*at, "no-such-program", tool="run_backend.py")
    assert status == 127 and "no-such-program" in said


def interrupted(manager):
    """Ctrl+C reaches run_backend.py and its command: the command's own end is waited for, and its status given."""
    kernel = ctypes.WinDLL("kernel32")
    kernel.FreeConsole()
    kernel.AllocConsole()  # started through pipes alone, we had none that could send it
    words = ["--port", str(free_port()), "--host", "127.0.0.1", "--", sys.executable, ME, "serve"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    child = subprocess.Popen([sys.executable, os.path.join(FOLDER, "run_backend.py"), *words], **pipes)
    while b"serving" not in child.stdout.readline():
        pass
    with contextlib.suppress(KeyboardInterrupt):
        kernel.GenerateConsoleCtrlEvent(0, 0)  # Ctrl+C, to everybody on this console
        time.sleep(20)
    assert (child.stdout.read().decode().split(), child.wait(20)) == (["closed"], 9)


def chinese(manager):
    """A project, a server and a Python under Chinese names; pipes speak the encoding that this process has."""
    folder = r"C:\项目 一"
    for name in ("port_manager.py", "run_backend.py"):
        shutil.copy(os.path.join(FOLDER, name), folder)
    server = shutil.copy(ME, os.path.join(folder, "服务器.py"))
    python = os.path.join(folder, "python", "项目.exe")
    port = free_port()
    holder = held(port, python=python, script=server)
    at, there = (port, "--host", "127.0.0.1"), {"folder": folder, "cwd": folder}
    status, check, _ = command("check", *at, **there)
    assert status == 1 and str(holder.pid) in check
    assert ("项目.exe" if ENCODING == "cp936" else r"\u9879\u76ee.exe") in check
    (result,) = json.loads(command("list", str(port), "--json", **there)[1])["ports"]
    assert [(each["pid"], each["name"]) for each in result["holders"]] == [(holder.pid, "项目.exe")]
    status, _, said = command("free", *at, **there)
    assert status == 0 and "is now available" in said
    holder.wait(10)
    words = ("--port", *at, "--", python, "-c", "print('项目')")
    status, out, _ = command(*words, tool="run_backend.py", **there)
    if ENCODING == "cp936":
        assert status == 0 and "项目" in out


def hung_tool(manager):
    answer, seconds, _ = heard(manager._run, sys.executable, ME, "hang", timeout=2)
    assert answer is None and seconds < 60, "a child of it has its pipes for 120 s"


def main(scenario, folder):
    sys.path.insert(0, folder)
    import port_manager

    faulthandler.dump_traceback_later(110)  # the test waits for 120 seconds
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print("encoding:", ENCODING)
        scenario(port_manager)
    except Exception as error:  # noqa: BLE001 (the test shows it; a holder that is left may keep our pipe open)
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        print("".join(told.format()) + "\nfailed", flush=True)
    else:
        print("passed", flush=True)


if __name__ == "__main__":
    act = globals()[sys.argv[1]]
    act(*sys.argv[2:]) if act in (hold, desktop, serve, hang) else main(act, *sys.argv[2:])
