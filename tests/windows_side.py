"""What tests/test_wine.py runs inside of Windows: holders of ports, and scenarios whose findings are printed as JSON.

    python windows_side.py SCENARIO FOLDER

FOLDER has port_manager.py and run_backend.py. A holder writes the row that netstat shall print for it, with the state
in German; the stand-in for netstat (.ci/netstat.c) prints the row as long as the process that has the socket lives.
"""

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
ENCODING = os.environ.get("PYTHONIOENCODING") or locale.getpreferredencoding(False)  # of pipes


# Holders: processes of their own, which live until they are stopped.


def listener(port, host="127.0.0.1"):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.bind((host, port))
    sock.listen(16)
    return sock


def told(sock, lives=None):
    """Have netstat tell of the socket, as one of this process, as long as the process `lives` does (PID; this one)."""
    host, port = sock.getsockname()[:2]
    local, remote = (f"[{host}]:{port}", "[::]:0") if ":" in host else (f"{host}:{port}", "0.0.0.0:0")
    process = lives or os.getpid()
    with open(ROWS, "ab", buffering=0) as rows:
        row = f"{process} {created(process)}\t  TCP    {local:<22} {remote:<22} ABHÖREN         {os.getpid()}\r\n"
        rows.write(row.encode("cp850"))


def hold(port, host="127.0.0.1"):
    """A plain server."""
    sock = listener(int(port), host)
    told(sock)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    time.sleep(120)


def hold_with_an_heir(port, ends):
    """A server whose child inherits the listener; `ends`: it is gone before anybody looks."""
    sock = listener(int(port))
    os.set_handle_inheritable(sock.fileno(), True)
    heir = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], close_fds=False)
    told(sock, lives=heir.pid)
    sys.stdout.write(f"{heir.pid}\n")
    sys.stdout.flush()
    if ends == "no":
        time.sleep(120)


def hold_with_a_shell(port):
    """A server that runs a shell for somebody, as an editor does."""
    shell = subprocess.Popen([os.environ["COMSPEC"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    sock = listener(int(port))
    told(sock)
    sys.stdout.write(f"{shell.pid}\n")
    sys.stdout.flush()
    time.sleep(120)


def supervise(port):
    """A program that starts its server again whenever that ends."""
    while True:
        server, _ = start("hold", port)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        server.wait()


def desktop():
    """Keep the desktop, which the first program that asks for windows starts (taskkill does), with its own stderr."""
    ctypes.WinDLL("user32").GetDesktopWindow()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    time.sleep(3600)


def start(*words, **options):
    """A holder, once it holds: (process, its first line)."""
    process = subprocess.Popen([sys.executable, ME, *map(str, words)], stdout=subprocess.PIPE, **options)
    return process, process.stdout.readline().decode().strip()


def created(pid):
    """When a process was created; None where it does not live."""
    kernel = ctypes.WinDLL("kernel32")
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle, times = ctypes.c_void_p(kernel.OpenProcess(0x00101000, False, pid)), (ctypes.c_uint64 * 4)()
    places = [ctypes.byref(times, 8 * place) for place in range(4)]
    lives = handle and kernel.WaitForSingleObject(handle, 0) == 0x102 and kernel.GetProcessTimes(handle, *places)
    kernel.CloseHandle(handle)
    return times[0] if lives else None


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def heard(call, *words, **options):
    """(what a call returned, seconds, what it said)."""
    before, sys.stderr = sys.stderr, io.StringIO()
    began = time.perf_counter()
    try:
        answer = call(*words, **options)
    except Exception as error:  # noqa: BLE001 (the test wants to see it)
        answer = f"{type(error).__name__}: {error}"
    finally:
        took, said, sys.stderr = time.perf_counter() - began, sys.stderr.getvalue(), before
    return answer, took, said


def command(*words, tool="port_manager.py", folder=FOLDER, **options):
    """(exit status, output, complaints) of the command line."""
    done = subprocess.run(
        [sys.executable, os.path.join(folder, tool), *map(str, words)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=100, check=False, **options,
    )  # fmt: skip
    return [done.returncode, *(text.decode(ENCODING).replace("\r", "") for text in (done.stdout, done.stderr))]


# Scenarios


def free(manager):
    port = free_port()
    answer = heard(manager.ensure_port_available, port, "127.0.0.1")
    with manager.bind_port(port, "127.0.0.1") as sock:
        bound = sock.getsockname()[1] == port
        rival = socket.socket()
        try:
            rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            rival.bind(("127.0.0.1", port))
            shared = True
        except OSError as error:
            shared = error.winerror
        next_one = manager.find_free_port(port, "127.0.0.1")
        told(sock)
        found = [holder.pid for holder in manager.find_listeners(port)]
    return {
        "answer": answer, "bound": bound, "shared": shared, "next": next_one - port, "found": found == [os.getpid()],
        "nobody": manager.find_listeners(free_port()),
    }  # fmt: skip


def take_over(manager):
    """A plain server, with a bystander on the next port, and one that is a client of it."""
    port, other = free_port(), free_port()
    before = time.time()
    holder, _ = start("hold", port)
    after = time.time()
    bystander, _ = start("hold", other)
    began = time.perf_counter()
    for _ in range(4):  # what a machine that is busy with other things needs to start and end programs
        subprocess.run([os.environ["COMSPEC"], "/c", "exit"], check=False)
    beside = time.perf_counter() - began
    with socket.create_connection(("127.0.0.1", port)):
        seen = manager.find_listeners(port, "127.0.0.1")
        answer = heard(manager.ensure_port_available, port, "127.0.0.1")
    found = {
        "answer": answer, "stopped": holder.wait(10) is not None, "bystander": bystander.poll() is None,
        "holder": [each._asdict() for each in seen], "pid": holder.pid, "here": os.getpid(),
        "me": os.getlogin(), "beside": beside, "between": [before, after],
        "free": manager.ensure_port_available(port, "127.0.0.1"),
    }  # fmt: skip
    bystander.kill()
    return found


def ipv6(manager):
    """Who listens on the same port of IPv4 is not in the way."""
    port = free_port()
    bystander, _ = start("hold", port)
    holder, _ = start("hold", port, "::1")
    answer = heard(manager.ensure_port_available, port, "::1")
    found = {"answer": answer, "stopped": holder.wait(10) is not None, "bystander": bystander.poll() is None}
    bystander.kill()
    return found


def family(manager, ends="no"):
    port = free_port()
    holder, heir = start("hold_with_an_heir", port, ends)
    if ends == "yes":
        holder.wait()
    seen = [each.pid for each in manager.find_listeners(port)]
    answer = heard(manager.ensure_port_available, port, "127.0.0.1")
    left = [holder.poll() is None, created(int(heir)) is not None]
    return {"answer": answer, "seen": seen, "pids": [holder.pid, int(heir)], "left": left}


def dead_owner(manager):
    return family(manager, "yes")


def unnamed(manager):
    """A holder of which no source tells the PID."""
    port = free_port()
    with listener(port):
        seen = [each.pid for each in manager.find_listeners(port)]
        return {"answer": heard(manager.ensure_port_available, port, "127.0.0.1"), "seen": seen}


def ancestor(manager):
    """The tool is started by the very process that holds the port, through one between them."""
    port = free_port()
    with listener(port) as sock:
        told(sock)
        itself = heard(manager.ensure_port_available, port, "127.0.0.1")
        tool = os.path.join(FOLDER, "port_manager.py")
        shell = [os.environ["COMSPEC"], "/c", sys.executable, tool, "free", str(port)]
        done = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, timeout=100, check=False)
    return {"itself": itself, "status": done.returncode, "said": done.stderr.decode()}


def production(manager):
    port = free_port()
    holder, _ = start("hold", port)
    os.environ["ENVIRONMENT"] = "production"
    answer = heard(manager.ensure_port_available, port, "127.0.0.1")
    status = command("free", port, "--host", "127.0.0.1")
    lived = holder.poll() is None
    del os.environ["ENVIRONMENT"]
    policy = heard(manager.ensure_port_available, port, "127.0.0.1", policy="refuse")
    lived = lived and holder.poll() is None
    holder.kill()
    return {"answer": answer, "status": status, "policy": policy, "lived": lived, "pid": holder.pid}


def verbs(manager):
    port, idle = free_port(), free_port()
    holder, _ = start("hold", port)
    at = ("--host", "127.0.0.1")
    found = {
        "pid": holder.pid, "port": port, "idle": command("check", idle, *at), "held": command("check", port, *at),
        "json": command("check", port, *at, "--json"), "dry": command("free", port, *at, "--dry-run"),
        "list": command("list"), "list json": command("list", "--json"), "pick": command("pick", port, *at),
        "listening": command("wait", port, *at, "--until", "listening", "--timeout", "5"),
        "late": command("wait", port, *at, "--timeout", "0.3"), "wrong": command("check", "80000"),
        "lived": holder.poll() is None,
    }  # fmt: skip
    waiting = subprocess.Popen([sys.executable, os.path.join(FOLDER, "port_manager.py"), "wait", str(port), *at])
    found["freed"] = command("free", port, *at, "--json")
    found["waited"] = waiting.wait(20)
    found["stopped"] = holder.wait(10) is not None
    return found


def backend(manager):
    """run_backend.py: the exit status of the command, the port that it gives to it, and who is in the way."""
    port = free_port()
    holder, _ = start("hold", port)
    say = "import os, sys; print(os.environ['PORT'], sys.argv[1:]); sys.exit(7)"
    at = ("--port", port, "--host", "127.0.0.1", "--")
    found = {
        "status": command(*at, sys.executable, "-c", say, "a b", 'c"d', tool="run_backend.py"),
        "stopped": holder.wait(10) is not None, "port": port,
        "missing": command(*at, "no-such-program", tool="run_backend.py"),
    }  # fmt: skip
    return found


def interrupted(manager):
    """Ctrl+C reaches run_backend.py and its command alike: the command's own end is waited for, and its status given."""
    kernel = ctypes.WinDLL("kernel32")
    kernel.FreeConsole()
    kernel.AllocConsole()  # started through pipes alone, we had none that could send it
    server = """if True:
        import sys, time
        print("serving", flush=True)
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(0.5)
            print("closed", flush=True)
            sys.exit(9)
    """
    words = ["--port", str(free_port()), "--host", "127.0.0.1", "--", sys.executable, "-c", server]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    child = subprocess.Popen([sys.executable, os.path.join(FOLDER, "run_backend.py"), *words], **pipes)
    while b"serving" not in child.stdout.readline():
        pass
    try:
        kernel.GenerateConsoleCtrlEvent(0, 0)  # Ctrl+C, to everybody on this console
        time.sleep(20)
    except KeyboardInterrupt:
        pass
    return {"said": child.stdout.read().decode().split(), "status": child.wait(20)}


def chinese(manager):
    """A project, a server and a Python under Chinese names; pipes speak the encoding that this process has."""
    folder = r"C:\项目 一"
    for name in os.listdir(FOLDER):
        if name.endswith(".py"):
            shutil.copy(os.path.join(FOLDER, name), folder)
    server = shutil.copy(ME, os.path.join(folder, "服务器.py"))
    python = os.path.join(folder, "python", "项目.exe")
    port = free_port()
    holder = subprocess.Popen([python, server, "hold", str(port)], stdout=subprocess.PIPE, cwd=folder)
    holder.stdout.readline()
    at, there = (port, "--host", "127.0.0.1"), {"folder": folder, "cwd": folder}
    found = {
        "encoding": ENCODING, "pid": holder.pid, "check": command("check", *at, **there),
        "json": command("check", *at, "--json", **there), "free": command("free", *at, **there),
        "stopped": holder.wait(10) is not None,
        "run": command("--port", *at, "--", python, "-c", "print('项目')", tool="run_backend.py", **there),
    }  # fmt: skip
    return found


def terminal(manager):
    port = free_port()
    holder, shell = start("hold_with_a_shell", port)
    answer = heard(manager.ensure_port_available, port, "127.0.0.1")
    lived = holder.poll() is None and created(int(shell)) is not None
    holder.kill()
    return {"answer": answer, "shell": int(shell), "lived": lived}


def restarted(manager):
    """A program that starts its server again whenever that ends."""
    port = free_port()
    boss, _ = start("supervise", port)
    answer = heard(manager.ensure_port_available, port, "127.0.0.1")
    boss.kill()
    again = manager.find_listeners(port)
    return {"answer": answer, "boss": boss.pid, "again": [holder.name for holder in again]}


def hung_tool(manager):
    """A tool that does not end, and a child of it that has its pipes."""
    say = """if True:
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], stdout=sys.stdout, stderr=sys.stderr)
        time.sleep(120)
    """
    return dict(zip(("answer", "seconds"), heard(manager._run, sys.executable, "-c", say, timeout=2)))


def light(manager):
    """What an import and a check of a free port load."""
    say = f"""if True:
        import sys
        sys.path.insert(0, {FOLDER!r})
        import port_manager
        port_manager.ensure_port_available({free_port()}, "127.0.0.1")
        print(sorted(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", say], capture_output=True, timeout=100, check=False)
    return {"loaded": done.stdout.decode()}


def preview(manager):
    port = free_port()
    holder, _ = start("hold", port)
    idle, held = (manager.preview_port(each, "127.0.0.1") for each in (free_port(), port))
    lived = holder.poll() is None
    holder.kill()
    return {
        "pid": holder.pid, "idle": [idle.available, idle.plan, idle.would_stop], "lived": lived,
        "held": [held.available, held.plan, held.would_stop],
    }  # fmt: skip


def main(scenario, folder):
    sys.path.insert(0, folder)
    import port_manager

    faulthandler.dump_traceback_later(110)  # the test waits for 120 seconds
    for name in ("ENVIRONMENT", "PORT_MANAGER_POLICY", "PORT", "HOST"):
        os.environ.pop(name, None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found = globals()[scenario](port_manager)
    except Exception:  # noqa: BLE001 (the test shows it; a holder that is left may keep our pipe open)
        found = {"error": traceback.format_exc()}
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    if sys.argv[1].startswith(("hold", "supervise", "desktop")):
        globals()[sys.argv[1]](*sys.argv[2:])
    else:
        main(*sys.argv[1:])
