"""The servers that people run, each started for real: its port is taken over, and its whole family goes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shlex
import shutil
import site
import socket
import subprocess
import sys
import textwrap
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest

from port_manager import ensure_port_available, find_listeners

from .apps import ASGI, CLUSTER, DASH, DJANGO, FASTAPI, FLASK, LITESTAR, NGINX, NODE, QUART, SANIC, WSGI, asked
from .conftest import LINUX, PATIENCE, ROOT, RUN_BACKEND, birth, can_bind, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")

GRACE = 1.5  # an idle client keeps some of the servers from ending by themselves
QUIET = 0.7  # seconds in which whoever respawns its workers would have done so


class Server(NamedTuple):
    """needs: modules and programs; processes: how many its family has, multiprocessing's helper included."""

    needs: str
    command: str
    files: dict[str, str]
    processes: int = 1
    ask: Callable[[int], str] = asked

    def with_words(self, words: str, processes: int) -> Server:
        return self._replace(command=f"{self.command} {words}", processes=processes)

    def guarded(self) -> Server:
        files = {name: f"import port_manager; port_manager.guard()\n{text}" for name, text in self.files.items()}
        return self._replace(files=files)


APP = {"app.py": ASGI}
UVICORN = Server("uvicorn", "python -m uvicorn app:app --port {port}", APP)
GUNICORN = Server("gunicorn", "python -m gunicorn app:app -b 127.0.0.1:{port} -w 4", {"app.py": WSGI}, 5)
HYPERCORN = Server("hypercorn", "python -m hypercorn app:app -b 127.0.0.1:{port}", APP, 3)
GRANIAN = Server("granian", "python -m granian --interface asgi app:app --port {port} --workers 2", APP, 3)
program = functools.partial(shutil.which, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
NGINX_COMMAND = "nginx -p {folder} -e stderr -c {folder}/nginx.conf"
REDIS = "redis-server --port {port} --bind 127.0.0.1 --save '' --dir {folder}"
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
    "redis": Server("redis-server", REDIS, {}, 1, lambda port: "" if can_bind(port) else "PONG"),
    "nginx": Server("nginx", NGINX_COMMAND, {"nginx.conf": NGINX}, 3),  # root's has workers of another user
}


class Run(NamedTuple):
    """A server that was started in a session of its own, and everybody in that session."""

    process: subprocess.Popen[str]
    log: Path

    def alive(self) -> list[int]:
        def belongs(pid: int) -> bool:
            with contextlib.suppress(ProcessLookupError):
                return os.getsid(pid) == self.process.pid and birth(pid) is not None
            return False

        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if belongs(pid)]

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def __repr__(self) -> str:
        """For the message of an assertion that failed."""
        return f"<{self.process.args} status {self.process.poll()}, alive {self.alive()}, said:\n{self.text()}>"

    def serves(self, port: int, server: Server) -> bool:
        """Whether the whole family is there, and the answer comes from it."""
        answer, family = server.ask(port), self.alive()
        pid = answer.partition("Process ")[2].partition(" ")[0]
        return bool(answer) and len(family) >= server.processes and (not pid.isdigit() or int(pid) in family)

    def is_gone(self) -> bool:
        return eventually(lambda: not self.alive())

    def listens(self, port: int) -> bool:
        """Whether nobody else does."""
        family = set(self.alive())
        return bool(family) and {holder.pid for holder in find_listeners(port, thorough=True)} <= family


@pytest.fixture
def serve(start, tmp_path):
    """Start a server in the test's folder; it has answered when this returns, unless told not to wait."""
    count = itertools.count()

    def run(server: Server, port: int, wait: bool = True) -> Run:
        for name in server.needs.split():
            if not (program(name) if name in ("node", "nginx", "redis-server") else find_spec(name)):
                pytest.skip(f"{name} is not installed")
        filled = lambda text: text.replace("{port}", str(port)).replace("{folder}", str(tmp_path))

        for name, text in server.files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():  # a reloader would take a second writing for a change
                path.write_text(filled(text))
        first, *words = map(filled, shlex.split(server.command))
        first = sys.executable if first == "python" else program(first)
        home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}  # gunicorn keeps a socket there
        python = {"USERBASE": site.getuserbase(), "PATH": str(ROOT), "IOENCODING": "utf-8", "UNBUFFERED": "1"}
        environ = {**os.environ, **home, **{f"PYTHON{name}": value for name, value in python.items()}}
        log = tmp_path / f"log-{next(count)}"
        with open(log, "w") as output:
            begun = Run(start(first, *words, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=output, env=environ), log)
        if wait:
            assert eventually(lambda: begun.process.poll() is not None or begun.serves(port, server)), begun
            assert begun.process.poll() is None, begun
        return begun

    return run


# The port of a server that knows nothing of port_manager


@pytest.mark.parametrize("name", SERVERS)
def test_the_whole_family_goes_and_nobody_else(name, serve, port, ports, hold, said):
    server = SERVERS[name]
    old = serve(server, port)
    neighbour = hold(("127.0.0.1", ports()))
    client = hold(("127.0.0.1", ports()), connect=("127.0.0.1", port))
    assert old.listens(port)
    assert ensure_port_available(port, grace=GRACE, policy="kill") is True, (said(), old)
    assert can_bind(port) and can_bind(port, "0.0.0.0"), (said(), old)
    assert old.is_gone(), (said(), old)
    assert not eventually(lambda: not can_bind(port, "0.0.0.0") or old.alive(), QUIET), (said(), old)
    new = serve(server, port)
    assert new.listens(port), new
    assert client.alive() == [client.pid] and neighbour.alive() == [neighbour.pid]


# An app that begins with guard(), where the server binds first; how many workers load it, where servers may share the
# port: their masters bind with SO_REUSEPORT and do not listen, and the port is theirs when a worker loads the app.

BINDS_FIRST = {
    **{name: (SERVERS[name], 0) for name in ("uvicorn-reload", "uvicorn-workers", "gunicorn", "hypercorn")},
    "hypercorn-alone": (HYPERCORN.with_words("--workers 0", 1), 0),
    "hypercorn-workers": (SERVERS["hypercorn-workers"], 3),
    "granian": (GRANIAN, 2),
}
# They load it one after the other, as happens where it is large, or where one of them is started anew.
IN_TURN = """\
import fcntl, os, time
turn = open("turn", "w")
fcntl.flock(turn, fcntl.LOCK_EX)
%s
print("worker", os.getpid(), "has loaded it", flush=True)
import threading
threading.Timer(0.5, turn.close).start()
"""


@pytest.mark.parametrize("name", BINDS_FIRST)
def test_guard_stops_nobody_where_the_server_binds_first(name, serve, port, said):
    """The port is an ancestor's, or its own, when the app is loaded; a second server fails before, or shares it."""
    server, workers = BINDS_FIRST[name][0].guarded(), BINDS_FIRST[name][1]
    if workers:
        server = server._replace(files={"app.py": IN_TURN % server.files["app.py"]})
    first = serve(server, port)
    assert eventually(lambda: first.text().count("has loaded it") == workers), first
    family = first.alive()
    second = serve(server, port, wait=bool(workers))
    if workers:
        assert eventually(lambda: second.text().count("has loaded it") == workers), (first, second)
        assert len(second.alive()) >= server.processes, (first, second)
    else:
        assert second.process.wait(PATIENCE) != 0 and "ddress already in use" in second.text(), second
    assert set(family) <= set(first.alive()) and eventually(lambda: first.serves(port, server)), (first, second)
    assert f"ort {port} is" not in first.text() + second.text(), (first, second)
    assert ensure_port_available(port, grace=GRACE) is True, (said(), first, second)
    assert first.is_gone() and second.is_gone() and can_bind(port), (said(), first, second)


# Take-overs: by guard(), where the app is loaded before the bind, and by run_backend.py, which becomes the server

BACKEND = f"python {shlex.quote(RUN_BACKEND)} --port {{port}}"
IN_A_PACKAGE = {"src/shop/web.py": "from shop import x\n" + FASTAPI, "src/shop/__init__.py": "x = 1"}
FACTORY = {"shop/__init__.py": "def make():\n" + textwrap.indent(FLASK + "return app\n", "    ")}


def backend(needs: str, files: dict[str, str], processes: int = 1, words: str = "", web: str = "") -> Server:
    return Server(needs, f"{BACKEND} {words}", {**files, **({"Procfile": f"web: {web}"} if web else {})}, processes)


TAKES_OVER = {
    "guard, gunicorn-preload": GUNICORN.with_words("--preload", 5).guarded(),
    "guard, flask": Server("flask", "python -m flask --app app run -p {port}", {"app.py": FLASK}).guarded(),
    **{f"guard, {name}": SERVERS[name].guarded() for name in ("flask-debug", "django", "waitress")},
    "fastapi-in-a-package": backend("fastapi uvicorn", IN_A_PACKAGE, 3, "--reload"),
    "hypercorn": backend("fastapi hypercorn", {"main.py": FASTAPI}, web="hypercorn main:app -b :$PORT"),
    "granian": backend("fastapi granian", {"main.py": FASTAPI}, web="granian --interface asgi main:app"),
    "flask-gunicorn": backend("flask gunicorn", {"app.py": FLASK}, 2),
    "flask-factory": backend("flask gunicorn", {**FACTORY, ".flaskenv": "FLASK_APP=shop:make()"}, 2),
    "flask-waitress": backend("flask waitress", {"app.py": FLASK}, web="waitress-serve --listen=*:$PORT app:app"),
    "flask-debug": backend("flask", {"app.py": FLASK}, 2, "--debug"),
    "django": backend("django", {"manage.py": DJANGO}, 2),
    "litestar": backend("litestar uvicorn", {"app.py": LITESTAR}),
    "quart": backend("quart hypercorn", {"app.py": QUART}),
    "sanic": backend("sanic", {"app.py": SANIC}),
    "dash": backend("dash gunicorn", {"app.py": DASH}, 2),
    "node": backend("node", {"server.js": NODE}, 1, "-- node server.js"),
}


@pytest.mark.parametrize("name", TAKES_OVER)
def test_a_server_takes_over_from_its_previous_run(name, serve, port):
    first, second = (serve(TAKES_OVER[name], port) for _ in range(2))
    assert first.is_gone() and second.listens(port) and second.process.poll() is None, (first, second)
    assert f"✅ Port {port} is now available" in second.text()
    assert name.startswith("guard") != ("✅ Starting server on 0.0.0.0:" in second.text())
    assert not [pid for pid in second.alive() if RUN_BACKEND in Path(f"/proc/{pid}/cmdline").read_text()]


# Breakpoints: debugpy is driven the way an editor drives it

ANSWERS = ASGI.partition('"http.response.start"')[0].count("\n") + 1  # a line of the app


class Session(NamedTuple):
    """One conversation in the debug adapter protocol."""

    answers: Any
    questions: Any

    def ask(self, command, **arguments):
        data = json.dumps({"seq": 1, "type": "request", "command": command, "arguments": arguments}).encode()
        self.questions.write(b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
        self.questions.flush()

    def told(self, name):
        """What is said next about this, a response or an event."""
        message = {}
        while name not in (message.get("event"), message.get("command")):
            size = int(self.answers.readline().rpartition(b":")[2])
            message = json.loads(self.answers.read(2 + size))  # with the end of the line before it
        return message.get("body")

    def begin(self, how, configuration, file):
        self.ask("initialize", adapterID="python", pathFormat="path")
        self.ask(how, **configuration)
        self.told("initialized")
        self.ask("setBreakpoints", source={"path": str(file)}, breakpoints=[{"line": ANSWERS}])
        self.ask("configurationDone")


def test_a_breakpoint_in_the_app_is_met(tmp_path, port, start):
    pytest.importorskip("uvicorn")
    pytest.importorskip("debugpy", reason="no debugpy; .ci/run installs it")
    (tmp_path / "app.py").write_text(ASGI)
    launch = {"request": "launch", "type": "debugpy", "program": RUN_BACKEND, "args": ["app:app", "--port", str(port)],
              "cwd": str(tmp_path), "console": "internalConsole", "python": [sys.executable]}  # fmt: skip
    adapter = start(sys.executable, "-m", "debugpy.adapter", stdin=subprocess.PIPE, text=False)
    timer = threading.Timer(PATIENCE, adapter.kill)
    timer.start()
    editor = Session(adapter.stdout, adapter.stdin)
    editor.begin("launch", launch, tmp_path / "app.py")
    server = editor.told("debugpyAttach")  # the server is a process to attach to, although its PID has stayed the same
    with socket.create_connection((server["connect"]["host"], server["connect"]["port"])) as connection:
        stream = connection.makefile("rwb")
        below = Session(stream, stream)
        below.begin("attach", server, tmp_path / "app.py")
        pages = [""]
        visit = lambda: pages.append(asked(port)) or pages[-1]
        threading.Thread(target=eventually, args=(visit,), daemon=True).start()
        stopped = below.told("stopped")
        assert stopped["reason"] == "breakpoint" and not any(pages)
        below.ask("continue", threadId=stopped["threadId"])
        assert eventually(lambda: pages[-1].startswith("Process "))
    timer.cancel()
    os.kill(server["subProcessId"], 9)
