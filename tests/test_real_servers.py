"""The servers that people run, each started for real: its port is taken over, and its whole family goes."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import os
import shlex
import shutil
import signal
import site
import socket
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, NamedTuple

import pytest

from port_manager import ensure_port_available, find_listeners

from .apps import ASGI, CLUSTER, DASH, DJANGO, FASTAPI, FLASK, LITESTAR, NGINX, NODE, QUART, SANIC, WSGI
from .conftest import LINUX, NOBODY, PATIENCE, ROOT, ROOT_USER, RUN_BACKEND, birth, can_bind, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")

GRACE = 1.5  # an idle client keeps some of the servers from ending by themselves
QUIET = 0.7  # seconds in which whoever respawns its workers would have done so

GUARDED = "import port_manager; port_manager.guard()\n"


def ask_http(port: int, path: str = "/") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def ask_redis(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).decode()
    except OSError:
        return ""


class Server(NamedTuple):
    """needs: modules and programs; processes: how many its family has, multiprocessing's helper included."""

    needs: str
    command: str
    files: dict[str, str]
    processes: int = 1
    ask: Callable[[int], str] = ask_http

    def with_words(self, words: str, processes: int) -> Server:
        return self._replace(command=f"{self.command} {words}", processes=processes)


def dropped_user() -> str:
    import grp, pwd  # noqa: I001 (no such thing on Windows)

    account = pwd.getpwuid(NOBODY)
    return f"user {account.pw_name} {grp.getgrgid(account.pw_gid).gr_name};"


def nginx(user: str) -> Server:
    return Server("nginx", "{nginx} -p {folder} -e stderr -c {folder}/nginx.conf", {"nginx.conf": NGINX % user}, 3)


UVICORN = Server("uvicorn", "python -m uvicorn app:app --port {port}", {"app.py": ASGI})
GUNICORN = Server("gunicorn", "python -m gunicorn app:app -b 127.0.0.1:{port} -w 4", {"app.py": WSGI}, 5)
HYPERCORN = Server("hypercorn", "python -m hypercorn app:app -b 127.0.0.1:{port}", {"app.py": ASGI}, 3)
GRANIAN = Server("granian", "python -m granian --interface asgi app:app --port {port} --workers 2", {"app.py": ASGI}, 3)
SERVERS = {
    "uvicorn": UVICORN,
    "uvicorn-reload": UVICORN.with_words("--reload", 3),
    "uvicorn-workers": UVICORN.with_words("--workers 3", 5),
    "gunicorn": GUNICORN,
    "gunicorn-reuse-port": GUNICORN.with_words("-w 2 --reuse-port", 3),  # its master holds nothing
    "hypercorn": HYPERCORN,
    "hypercorn-workers": HYPERCORN.with_words("-w 3", 5),
    "granian": GRANIAN,
    "granian-respawning": GRANIAN.with_words("--respawn-failed-workers", 3),
    "flask-debug": Server("flask", "python -m flask --app app run --debug -p {port}", {"app.py": FLASK}, 2),
    "django": Server("django", "python manage.py runserver {port}", {"manage.py": DJANGO}, 2),
    "waitress": Server("waitress", "python -m waitress --listen=127.0.0.1:{port} app:app", {"app.py": WSGI}),
    "http.server": Server("http", "python -m http.server {port} --bind 127.0.0.1", {}),
    "node": Server("node", "node server.js {port}", {"server.js": NODE}),
    "node-cluster": Server("node", "node cluster.js {port}", {"cluster.js": CLUSTER}, 4),
    "redis": Server(
        "redis-server", "redis-server --port {port} --bind 127.0.0.1 --save '' --dir {folder}", {}, 1, ask_redis
    ),
    "nginx": nginx("user root;" if ROOT_USER else ""),
}
if ROOT_USER:
    with contextlib.suppress(KeyError):  # no such user here
        SERVERS["nginx-of-another-user"] = nginx(dropped_user())


def program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def need(names: str) -> None:
    for name in names.split():
        if not (program(name) if name in ("node", "nginx", "redis-server") else find_spec(name)):
            pytest.skip(f"{name} is not installed")


class Run:
    """A server that was started in a session of its own, and everybody in that session."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.pid, self.log = process, process.pid, log
        self.births: dict[int, str | None] = {}
        self.has_served = False

    def family(self) -> list[int]:
        """Who lives in the session now; whoever was seen there once is remembered by its birth."""
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{int(entry)}/stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] not in "ZX":
                    found.append(int(entry))
                    self.births[int(entry)] = fields[19]
        return sorted(found)

    def alive(self) -> list[int]:
        now = self.family()
        return sorted({*now, *(pid for pid, born in self.births.items() if birth(pid) == born)})

    def commands(self) -> list[str]:
        """What the members run, without the numbers that differ each time."""
        lines = []
        for pid in self.family():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                lines.append(" ".join(word for word in words if not any(letter.isdigit() for letter in word)))
        return sorted(lines)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def __repr__(self) -> str:
        """For the message of an assertion that failed."""
        return f"<{self.process.args} status {self.process.poll()}, alive {self.alive()}, said:\n{self.text()}>"

    def serves(self, port: int, server: Server) -> bool:
        """Whether the whole family is there, and the answer comes from it."""
        answer = server.ask(port)
        family = self.family()
        _, _, pid = answer.partition("Process ")
        pid = pid.partition(" ")[0]
        whole = len(family) >= server.processes and (not pid.isdigit() or int(pid) in family)
        self.has_served = self.has_served or (bool(answer) and whole)
        return bool(answer) and whole

    def status(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end: {self!r}") from None


def listener_pids(port: int) -> set[int | None]:
    return {holder.pid for holder in find_listeners(port, thorough=True)}


def is_gone(run: Run) -> bool:
    return eventually(lambda: not run.alive())


def stays_free(port: int, run: Run) -> bool:
    end = time.monotonic() + QUIET
    while time.monotonic() < end:
        if not can_bind(port, "0.0.0.0") or run.alive():
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def serve(start, tmp_path):
    """Start a server in the test's folder; it has answered when this returns, unless told not to wait."""
    count = itertools.count()

    def run(server: Server, port: int, wait: bool = True, **environ: str) -> Run:
        need(server.needs)
        places = {"{port}": str(port), "{folder}": str(tmp_path), "{nginx}": program("nginx") or ""}
        filled = lambda text: functools.reduce(lambda done, place: done.replace(*place), places.items(), text)

        for name, text in server.files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():  # a reloader would take a second writing for a change
                path.write_text(filled(text))
        log = tmp_path / f"log-{next(count)}"
        with open(log, "w") as output:
            process = start(
                *(sys.executable if word == "python" else filled(word) for word in shlex.split(server.command)),
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=output,
                env={
                    **os.environ,
                    "HOME": str(tmp_path),  # gunicorn keeps a control socket in one of these
                    "XDG_RUNTIME_DIR": str(tmp_path),
                    "PYTHONUSERBASE": site.getuserbase(),
                    "PYTHONPATH": str(ROOT),
                    "PYTHONIOENCODING": "utf-8",
                    "PYTHONUNBUFFERED": "1",
                    **environ,
                },
            )
        begun = Run(process, log)
        if wait:
            eventually(lambda: process.poll() is not None or begun.serves(port, server))
            assert begun.has_served and process.poll() is None, begun
        return begun

    return run


# The port of a server that knows nothing of port_manager


@pytest.mark.parametrize("name", SERVERS)
def test_the_whole_family_goes_and_nobody_else(name, serve, port, ports, hold, said):
    server = SERVERS[name]
    old = serve(server, port)
    neighbour = hold(("127.0.0.1", ports()))
    client = hold(("127.0.0.1", ports()), connect=("127.0.0.1", port))
    assert listener_pids(port) <= set(old.family())
    assert ensure_port_available(port, grace=GRACE, policy="kill") is True, (said(), old)
    assert can_bind(port) and can_bind(port, "0.0.0.0"), (said(), old)
    assert is_gone(old) and stays_free(port, old), (said(), old)
    assert client.alive() == [client.pid] and neighbour.alive() == [neighbour.pid]
    new = serve(server, port)
    assert listener_pids(port) <= set(new.family()) and new.alive(), new
    assert client.alive() == [client.pid] and neighbour.alive() == [neighbour.pid]


READER = """
import socket, sys, time
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
s.sendall(b"GET /endless HTTP/1.1\\r\\nHost: here\\r\\n\\r\\n")
while b"more" not in s.recv(4096): pass
print("reads", flush=True)
try:
    while s.recv(4096): pass
except ConnectionError: pass
time.sleep(60)
"""


def test_an_endless_answer_does_not_keep_the_server(serve, port, start, said):
    """uvicorn waits for its last answer, without end where nobody told it otherwise."""
    old = serve(UVICORN, port)
    client = start(sys.executable, "-S", "-E", "-c", READER, str(port))
    assert client.stdout.readline() == "reads\n"
    begun = time.monotonic()
    assert ensure_port_available(port, grace=0.5) is True, (said(), old)
    assert 0.5 <= time.monotonic() - begun < PATIENCE
    assert f"Process {old.pid} did not stop within 0.5 s: forced" in said()
    assert is_gone(old) and old.status() == -signal.SIGKILL and stays_free(port, old)
    assert client.poll() is None
    serve(UVICORN, port)


def test_gunicorns_orphans_go_at_once(serve, port, said):
    """Their master was killed by hand, and they have not noticed yet."""
    old = serve(GUNICORN, port)
    old.process.kill()
    old.process.wait()
    orphans = old.alive()
    assert len(orphans) == 4 and listener_pids(port) == set(orphans), old
    assert ensure_port_available(port, grace=GRACE) is True, (said(), old)
    assert can_bind(port) and is_gone(old) and stays_free(port, old), (said(), old)
    serve(GUNICORN, port)


# An app that begins with guard(), or calls port_manager itself

PLAIN_UVICORN = "python -m uvicorn src.main:app --host 0.0.0.0 --port {port}"
MAIN = {"src/main.py": ASGI}


def guarded(server: Server) -> Server:
    return server._replace(files={name: GUARDED + text for name, text in server.files.items()})


def script(run: str) -> Server:
    calls = f"""
if __name__ == "__main__":
    import sys, uvicorn
    from port_manager import bind_port, ensure_port_available
    port, host = int(sys.argv[1]), "0.0.0.0"
    {run}
"""
    return Server("uvicorn", "python src/main.py {port}", {"src/main.py": ASGI + calls})


TAKES_OVER = {  # how often
    "uvicorn": (5, guarded(Server("uvicorn", PLAIN_UVICORN, MAIN))),
    "gunicorn-preload": (3, guarded(GUNICORN.with_words("--preload", 5))),
    "flask": (3, guarded(Server("flask", "python -m flask --app app run -p {port}", {"app.py": FLASK}))),
    **{name: (2, guarded(SERVERS[name])) for name in ("flask-debug", "django")},
    "waitress": (3, guarded(SERVERS["waitress"])),
    "ensure_port_available": (
        5, script("ensure_port_available(port=port, host=host) or sys.exit(1); uvicorn.run(app, host=host, port=port)")
    ),
    "bind_port": (3, script("uvicorn.Server(uvicorn.Config(app)).run(sockets=[bind_port(port, host)])")),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKES_OVER)
def test_an_app_takes_over_where_it_is_loaded_before_the_bind(name, serve, port):
    times, server = TAKES_OVER[name]
    runs = [serve(server, port)]
    for _ in range(times - 1):
        runs.append(serve(server, port))
        assert is_gone(runs[-2]), runs
        assert f"✅ Port {port} is now available" in runs[-1].text()
        assert listener_pids(port) <= set(runs[-1].family())
    assert runs[-1].process.poll() is None


BINDS_FIRST = {
    **{name: SERVERS[name] for name in ("uvicorn-reload", "uvicorn-workers", "gunicorn", "hypercorn")},
    "hypercorn-alone": HYPERCORN.with_words("--workers 0", 1),
}
# The workers that load the app
SHARES_THE_PORT = {"hypercorn-workers": 3, "granian": 2}

# They load it one after the other, as happens where it is large, or where one of them is started anew.
IN_TURN = """\
import os, time
for turn in range(9):
    try:
        os.close(os.open(f"turn-{os.getppid()}-{turn}", os.O_CREAT | os.O_EXCL))
        break
    except FileExistsError:
        time.sleep(0.3)
%s
open(f"loaded-{os.getppid()}-{os.getpid()}", "w").close()
"""


@pytest.mark.parametrize("name", BINDS_FIRST)
def test_guard_does_nothing_where_the_server_binds_first(name, serve, port):
    """The port is an ancestor's, or its own, when the app is loaded; a second server fails before that."""
    server = guarded(BINDS_FIRST[name])
    first = serve(server, port)
    family = first.family()
    second = serve(server, port, wait=False)
    assert second.status() != 0 and "ddress already in use" in second.text(), second
    assert set(family) <= set(first.family()) and eventually(lambda: first.serves(port, server)), first
    assert f"ort {port} is" not in first.text() + second.text(), (first, second)


@pytest.mark.parametrize("name", SHARES_THE_PORT)
def test_guard_stops_nobody_where_servers_share_the_port(name, serve, port, said, tmp_path):
    """Their masters bind with SO_REUSEPORT and do not listen: the port is theirs when a worker loads the app.

    A second server starts beside the first, with or without guard(), and both answer. They are freed as one.
    """
    server = guarded(SERVERS[name])
    server = server._replace(files={"app.py": IN_TURN % server.files["app.py"]})
    first = serve(server, port)

    def have_loaded(run: Run) -> bool:
        loaded = list(tmp_path.glob(f"loaded-{run.pid}-*"))
        return len(loaded) == SHARES_THE_PORT[name] or run.process.poll() is not None

    assert eventually(lambda: have_loaded(first)), first
    family = first.family()
    assert len(family) >= server.processes, first
    second = serve(server, port)
    assert eventually(lambda: have_loaded(second)), (first, second)
    assert set(family) <= set(first.family()) and len(second.family()) >= server.processes, (first, second)
    assert f"ort {port} is" not in first.text() + second.text(), (first, second)
    assert ensure_port_available(port, grace=GRACE) is True, (said(), first, second)
    assert is_gone(first) and is_gone(second) and can_bind(port), (said(), first, second)


# run_backend.py

BACKEND = f"python {shlex.quote(RUN_BACKEND)} --port {{port}}"
IN_A_PACKAGE = {"src/shop/web.py": "from shop import x\n" + FASTAPI, "src/shop/__init__.py": "x = 1"}
FACTORY = {"shop/__init__.py": "def make():\n" + textwrap.indent(FLASK + "return app\n", "    ")}


def backend(needs: str, files: dict[str, str], processes: int = 1, words: str = "", web: str = "") -> Server:
    return Server(needs, f"{BACKEND} {words}", {**files, **({"Procfile": f"web: {web}"} if web else {})}, processes)


BACKENDS = {
    "uvicorn": backend("uvicorn", MAIN),
    "uvicorn-reload": backend("uvicorn", MAIN, 3, "src.main:app --reload"),
    "fastapi": backend("fastapi uvicorn", {"main.py": FASTAPI}),
    "fastapi-in-a-package": backend("fastapi uvicorn", IN_A_PACKAGE, 3, "--reload"),
    "hypercorn": backend("fastapi hypercorn", {"main.py": FASTAPI}, web="hypercorn main:app -b :$PORT"),
    "granian": backend("fastapi granian", {"main.py": FASTAPI}, web="granian --interface asgi main:app"),
    "flask-gunicorn": backend("flask gunicorn", {"app.py": FLASK}, 2),
    "flask-factory": backend("flask gunicorn", {**FACTORY, ".flaskenv": "FLASK_APP=shop:make()"}, 2),
    "flask-waitress": backend("flask waitress", {"app.py": FLASK}, web="waitress-serve --listen=*:$PORT app:app"),
    "flask-debug": backend("flask", {"app.py": FLASK}, 2, "--debug"),
    "django": backend("django", {"manage.py": DJANGO}, 2),
    "django-noreload": backend("django", {"manage.py": DJANGO}, 1, "--noreload"),
    "litestar": backend("litestar uvicorn", {"app.py": LITESTAR}),
    "quart": backend("quart hypercorn", {"app.py": QUART}),
    "sanic": backend("sanic", {"app.py": SANIC}),
    "dash": backend("dash gunicorn", {"app.py": DASH}, 2),
    "node": backend("node", {"server.js": NODE}, 1, "-- node server.js"),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_run_backend_takes_over_from_its_previous_run(name, serve, port):
    runs = [serve(BACKENDS[name], port), serve(BACKENDS[name], port)]
    assert is_gone(runs[0]), runs
    assert "✅ Starting server on 0.0.0.0:" in runs[1].text()
    assert listener_pids(port) <= set(runs[1].family())
    if name == "flask-gunicorn":
        assert "Starting gunicorn" in runs[1].text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("name", ["uvicorn", "uvicorn-reload", "flask-gunicorn", "node"])
def test_a_signal_ends_the_server_with_its_own_status(name, number, serve, ports):
    plain = {
        "uvicorn": PLAIN_UVICORN,
        "uvicorn-reload": PLAIN_UVICORN + " --reload",
        "flask-gunicorn": "python -m gunicorn app:app -b 0.0.0.0:{port}",
        "node": "node server.js {port}",
    }
    statuses = []
    for command in (plain[name], BACKENDS[name].command):
        port = ports()
        run = serve(BACKENDS[name]._replace(command=command), port)
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal does
        else:
            os.kill(run.pid, number)
        statuses.append(run.status())
        assert is_gone(run) and can_bind(port, "0.0.0.0"), run
    assert statuses[0] == statuses[1]


@pytest.mark.parametrize("crash", ["raise RuntimeError('broken on purpose')", "import there_is_no_such_module"])
def test_an_app_that_crashes_has_its_servers_status(crash, serve, port):
    need("uvicorn")
    files = {"src/main.py": f"{ASGI}\n{crash}\n"}
    statuses = []
    for command in (PLAIN_UVICORN, BACKEND):
        run = serve(Server("uvicorn", command, files), port, wait=False)
        statuses.append(run.status())
        assert crash.split()[-1].split("(")[0] in run.text() and not run.alive(), run
    assert statuses[0] == statuses[1] != 0


@pytest.mark.parametrize(
    ("option", "processes"), [("", 1), (" --reload", 3), (" --workers 2", 4)], ids=["plain", "reload", "workers"]
)
def test_run_backend_adds_no_process_and_no_memory(option, processes, serve, ports):
    found = []
    for command in (PLAIN_UVICORN + option, BACKEND + " src.main:app" + option):
        run = serve(Server("uvicorn", command, MAIN, processes), ports())
        status = Path(f"/proc/{run.pid}/status").read_text()
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
        assert b"\0uvicorn\0" in Path(f"/proc/{run.pid}/cmdline").read_bytes(), run
        assert len(run.family()) == processes, run
        found.append((run.commands(), memory))
    (commands, memory), (backend_commands, backend_memory) = found
    assert backend_commands == commands
    assert backend_memory < memory + 2048  # KiB; an interpreter that stayed behind has four times as much
