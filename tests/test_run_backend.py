"""run_backend: find the app, free its port, become its server."""

from __future__ import annotations

import contextlib
import http.client
import importlib.machinery
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import port_manager
import run_backend
from port_manager import Endpoint
from run_backend import CANDIDATES, app_kind, find_app, main, server_command

from . import seam
from .conftest import LINUX, PATIENCE, PORT_MANAGER, ROOT, RUN_BACKEND, can_bind, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")

FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n"
FLASK = "from flask import Flask\napp = Flask(__name__)\n"
WSGI = """
import os
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"Process {os.getpid()} says {greeting} on {environ['SERVER_PORT']}".encode()]
greeting = "hello"
"""
# run_backend.py as it is where no server is installed, whatever the tests' own interpreter has.
BARE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import pytest, run_backend
from tests import seam
seam.stand_in(pytest.MonkeyPatch(), "installed", lambda module: False)
raise SystemExit(run_backend.main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """What a test starts in this process must neither replace it nor serve for ever."""
    for part in ("become", "serve here"):
        seam.stand_in(monkeypatch, part, lambda *words, part=part: pytest.fail(f"{part}{words}"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty repository that the calls are made in; project({path: text}) writes its files."""
    monkeypatch.chdir(tmp_path)

    def write(files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
        return tmp_path

    write.folder = tmp_path
    return write


@pytest.fixture
def attempts(monkeypatch):
    """What would have been started, as (command or None for this process, endpoints, wanted)."""
    made = []
    seam.stand_in(monkeypatch, "start", lambda *words: made.append(words[:3]) or 0)
    seam.stand_in(monkeypatch, "start here", lambda _, wanted, *__: made.append((None, [wanted], wanted)) or 0)
    return made


def installed(monkeypatch, names):
    seam.stand_in(monkeypatch, "installed", lambda module: module in names.split())


def call(*words, code=None):
    """Run ``python run_backend.py …`` (or Python code instead) to its end."""
    program = ["-c", code] if code else [RUN_BACKEND]
    return subprocess.run(
        [sys.executable, *program, *words], capture_output=True, encoding="utf-8", timeout=PATIENCE, check=False
    )


def asked(port, host="127.0.0.1"):
    """What the server on a port answers; nothing while there is none."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=PATIENCE)) as connection:
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""


def served_by(process, port):
    """Whether this very process comes to answer there; an answer ends the wait, and so does its end."""
    eventually(lambda: f"Process {process.pid} " in asked(port) or process.poll() is not None)
    return f"Process {process.pid} " in asked(port)


def name_of(pid):
    return Path(f"/proc/{pid}/comm").read_text().strip()


# The built-in page


@pytest.mark.parametrize("told", ["--port", "PORT"])
def test_the_next_run_takes_the_page_over(project, port, start, monkeypatch, told):
    words = ["--port", str(port)] if told == "--port" else []
    monkeypatch.setenv("PORT", "http" if words else str(port))
    first = start(sys.executable, RUN_BACKEND, *words)
    assert served_by(first, port)
    second = start(sys.executable, RUN_BACKEND, *words)
    assert served_by(second, port)
    assert first.wait(PATIENCE) == -signal.SIGTERM
    assert f"✅ Starting server on 0.0.0.0:{port}\n" in first.stdout.read()
    os.kill(second.pid, signal.SIGTERM)
    assert second.wait(PATIENCE) == -signal.SIGTERM
    said = second.stdout.read()
    assert f"Process using port: {first.pid} ({sys.executable}" in said
    assert said.index("No app was found here") < said.index("now available") < said.index("✅ Starting server on")
    assert "Traceback" not in said
    assert can_bind(port, "0.0.0.0")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"main.py": "print('a tool')"}, "main.py shows no app or application at its top; name the app as in src.main:app"),
        ({"app/__init__.py": "x = 1"}, "app/__init__.py shows no"),
        ({"app.py": "from flask import Flask\ndef create_app(): ..."},
         "app.py shows no app or application at its top, but create_app: name it as 'app:create_app()'"),
        ({"src/__init__.py": "def make_app(): ..."}, "name it as 'src:make_app()'"),
    ],
    ids=["tool", "package", "factory", "packages-factory"],
)  # fmt: skip
def test_nobody_is_stopped_for_the_page_where_there_is_a_program(project, port, hold, capsys, files, said):
    project(files)
    held = hold(("127.0.0.1", port))
    assert main(["--port", str(port)]) == 1
    assert said in capsys.readouterr().err and held.alive() == [held.pid]


def test_an_app_that_a_function_makes(project, port, start):
    """Served by the standard library, where nothing else is installed."""
    project({"app.py": WSGI.replace("def application", "def answer") + "def create_app(): return answer\nif False: import flask\n"})
    server = start(sys.executable, "-c", BARE, "app:create_app()", "--port", str(port))
    assert served_by(server, port)


def test_one_who_listens_beside_is_told_of(project, port, hold, capsys, monkeypatch):
    """What binds localhost or :: would meet it; what binds 0.0.0.0 does not: it lives, and the person knows."""
    seam.stand_in(monkeypatch, "become", lambda *_: 0)
    beside = hold(("::1", port), v6only=True)
    assert main(["--port", str(port), "--", "true"]) == 0
    said = capsys.readouterr()
    assert f"⚠️  [::1]:{port} is held by process {beside.pid} (" in said.err
    assert "a server that binds localhost or :: would fail" in said.err
    assert beside.alive() == [beside.pid]


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"run_backend {port_manager.__version__}\n"


def test_ctrl_c_ends_the_page_without_a_traceback(project, port, start):
    server = start(sys.executable, RUN_BACKEND, "--port", str(port), "--host", "127.0.0.1")
    assert served_by(server, port)
    os.kill(server.pid, signal.SIGINT)
    assert server.wait(PATIENCE) == 130
    said = server.stdout.read()
    assert f"✅ Starting server on 127.0.0.1:{port}\n" in said and "Traceback" not in said


def test_two_copied_files_are_enough(project, port, start):
    for file in (RUN_BACKEND, PORT_MANAGER):
        shutil.copy(file, project.folder)
    assert sorted(os.listdir(project.folder)) == ["port_manager.py", "run_backend.py"]
    server = start(sys.executable, "run_backend.py", "--port", str(port))
    assert served_by(server, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", ["page", "wsgi"])
def test_the_servers_of_the_standard_library(kind, host, port):
    if not can_bind(port, host):
        pytest.skip(f"{host} is switched off here")
    namespace = {}
    exec(WSGI, namespace)
    handle = seam.page_server if kind == "page" else seam.wsgi_server(namespace["application"])
    made, heard = [], {}

    def ask(server):
        heard["get"] = asked(port, host)
        with socket.create_connection((host, port), timeout=PATIENCE) as raw:
            raw.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            heard["head"] = b"".join(iter(lambda: raw.recv(4096), b""))
        server.shutdown()

    def serve(listener):
        made.append(handle(listener))
        asking.start()
        return made[0]

    asking = threading.Thread(target=lambda: ask(made[0]))
    listener = port_manager.bind_port(port, host)
    assert seam.serve_here(serve, listener) == 0
    asking.join()
    assert f"Process {os.getpid()} " in heard["get"] and f"on {'port ' * (kind == 'page')}{port}" in heard["get"]
    head, _, body = heard["head"].decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.0 200 OK\r\n") and f"Content-Length: {len(heard['get'])}" in head
    assert kind == "wsgi" or body == ""  # to HEAD, a WSGI app answers as it thinks right
    assert listener.fileno() == -1


def test_ctrl_c_in_the_servers_of_the_standard_library(port):
    def interrupted():
        raise KeyboardInterrupt

    def serve(listener):
        server = seam.page_server(listener)
        server.service_actions = interrupted
        return server

    listener = port_manager.bind_port(port, "127.0.0.1")
    assert seam.serve_here(serve, listener) == 130
    assert listener.fileno() == -1


# The call


@pytest.mark.parametrize(
    ("words", "environ", "endpoint"),
    [
        ("", {}, "0.0.0.0:8000"),
        ("", {"PORT": "", "HOST": ""}, "0.0.0.0:8000"),
        ("", {"PORT": "9000", "HOST": "127.0.0.1"}, "127.0.0.1:9000"),
        ("--port 9001", {"PORT": "9000", "HOST": "127.0.0.1"}, "127.0.0.1:9001"),
        ("--port=9001 --host=::1", {"PORT": "http", "HOST": "127.0.0.1"}, "[::1]:9001"),
        ("--host localhost", {"PORT": "9000"}, "localhost:9000"),
        ("--host=", {"HOST": "127.0.0.1"}, "127.0.0.1:8000"),
        ("--host [::1]", {}, "[::1]:8000"),
        ("", {"HOST": "[::]"}, "[::]:8000"),
        ("--port 1 --port 2", {}, "0.0.0.0:2"),
        ("-p 9001", {"PORT": "9000"}, "0.0.0.0:9001"),
        ("-p9001", {}, "0.0.0.0:9001"),
        ("--port 1", {}, "0.0.0.0:1"),
        ("--port 65535", {}, "0.0.0.0:65535"),
    ],
    ids=lambda value: " ".join(f"{name}={text}" for name, text in value.items()) if isinstance(value, dict) else value,
)
def test_host_and_port(project, attempts, monkeypatch, words, environ, endpoint):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(words.split()) == 0
    ((_, endpoints, wanted),) = attempts
    assert str(wanted) == endpoint and endpoints == [wanted]


def test_without_words_it_reads_its_own_command_line(project, attempts, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_backend.py", "--port", "9000"])
    assert main() == 0
    assert attempts[0][2].port == 9000


@pytest.mark.parametrize(
    ("words", "port_variable", "said"),
    [
        *(
            (["--port", wrong], None, f"--port is {wrong!r}; a port is a number from 1 to 65535")
            for wrong in ("0", "-1", "65536", "http", "", "80.5", "²", " 80", "8" * 5000, "--next")
        ),
        (["--port="], None, "--port is ''; a port is a number from 1 to 65535"),
        ([], "http", "PORT is 'http'; a port is a number from 1 to 65535"),
        ([], "0", "PORT is '0'; a port is a number from 1 to 65535"),
        (["--port"], None, "--port needs a value"),
        (["--host"], None, "--host needs a value"),
        (["--port", "--", "true"], None, "--port needs a value"),
        (["9000"], None, "'9000' is no app; did you mean --port 9000?"),
        (["--next=9000"], None, "--next takes no value; name the port to begin with by --port"),
        (["--dry-run"], None, "--dry-run belongs to port_manager.py free; run that before this"),
        (["--policy=own"], None, "--policy belongs to port_manager.py free; here, set PORT_MANAGER_POLICY"),
        (["npm", "run", "dev"], None, "'npm' is no app; name it as in src.main:app, or put a command behind --"),
        (["--reload"], None, "there is no app here to be served with --reload; name it as in src.main:app"),
        (["-p", "web.pid"], None, "there is no app here to be served with -p; name it as in src.main:app"),
        (["-p", "0"], None, "--port is '0'; a port is a number from 1 to 65535"),
        (["-p65536"], None, "--port is '65536'; a port is a number from 1 to 65535"),
        (["--prot", "9000"], None, "there is no --prot; did you mean --port?"),
        (["--post=9000"], None, "there is no --post; did you mean --port?"),
        (["--hots", "::1"], None, "there is no --hots; did you mean --host?"),
        (["--"], None, "there is no command behind --"),
        (["--port", "9000", "--"], None, "there is no command behind --"),
        (["src.main:app", "--", "true"], None,
         "src.main:app stands before the --; what belongs to the command stands behind it"),
    ],
    ids=lambda value: (" ".join(value)[:20] or "none") if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_call(project, attempts, monkeypatch, capsys, words, port_variable, said):
    if port_variable is not None:
        monkeypatch.setenv("PORT", port_variable)
    assert main(words) == 2
    assert capsys.readouterr() == ("", f"run_backend: {said}\n")
    assert attempts == []


def test_a_host_that_is_a_platform(project, attempts, monkeypatch, capsys):
    """conda's compilers export such a HOST."""
    monkeypatch.setenv("HOST", "x86_64-conda-linux-gnu.invalid")
    assert main([]) == 1 and attempts == []
    said = capsys.readouterr().err
    assert "HOST is 'x86_64-conda-linux-gnu.invalid', which is no host name that is known; name the host" in said
    assert main(["--host", "127.0.0.1"]) == 0 and attempts


def test_the_app_is_in_the_folder_of_the_script(project, attempts, monkeypatch, capsys):
    """Called from the folder above, nobody is stopped for a page that says "It works"."""
    folder = project({"backend/main.py": "from fastapi import FastAPI\napp = FastAPI()\n"}) / "backend"
    monkeypatch.setattr(run_backend, "__file__", str(folder / "run_backend.py"))
    assert main([]) == 1 and attempts == []
    assert f"and there is one in {folder.resolve()}: start it there (cd {folder.resolve()})" in capsys.readouterr().err


def test_a_wrong_call_from_a_shell(project, monkeypatch):
    monkeypatch.setenv("PORT", "http")
    done = call()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run_backend: PORT is 'http'; a port is a number from 1 to 65535\n"


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["src.main:app", "-h"], ["--port", "x", "--help", "--", "true"]])
def test_help(project, attempts, capsys, words):
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out == run_backend.USAGE and err == ""
    assert all(path in out for path in CANDIDATES) and attempts == []


def test_help_from_a_shell(project):
    assert call("--help").stdout == call("-h").stdout == run_backend.USAGE


def test_the_commands_own_help(project, port):
    done = call("--port", str(port), "--", "echo", "-h", "--help")
    assert (done.returncode, done.stdout) == (0, "✅ Starting echo, which names no port\n-h --help\n")


def test_an_address_of_another_machine(project, port, capsys, said):
    for words in ([], ["--next"]):
        assert main(["--port", str(port), "--host", "192.0.2.1", *words]) == 1
        assert "192.0.2.1 is not an address of this machine" in said() + capsys.readouterr().err


def test_an_interrupted_call(project, port, monkeypatch, capsys):
    for message, line in (("", "Interrupted\n"), ("Interrupted; nobody", "Interrupted; nobody\n")):

        def interrupted(*_, message=message, **__):
            raise KeyboardInterrupt(*[message] * bool(message))

        monkeypatch.setattr(run_backend, "bind_port", interrupted)
        assert main(["--port", str(port)]) == 130
        assert capsys.readouterr().err == line


# Which app is it?


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        # by who makes it
        (FASTAPI, "asgi"),
        ("import fastapi\napp = fastapi.FastAPI(title='x')", "asgi"),
        ("from starlette.applications import Starlette\napp = Starlette()", "asgi"),
        (FLASK, "wsgi"),
        ("import flask\napp = flask.Flask(__name__)", "wsgi"),
        ("from flask import Flask as F\napp = F(__name__)", "wsgi"),
        ("app = get_wsgi_application()", "wsgi"),
        ("app = bottle.default_app()", "wsgi"),
        ("from flask import Flask\napp = Flask(__name__)\napp.wsgi_app = fixed\napp = ProxyFix(app)", "wsgi"),
        ("from shop.factory import create_app\napp = create_app()", "asgi"),
        ("from flask import Flask\ndef create_app(): ...\napp = create_app()", "wsgi"),
        ("from pyramid.config import Configurator\nwith Configurator() as c:\n    app = c.make_wsgi_app()", "wsgi"),
        # an ASGI app beside which a WSGI framework is imported
        ("from fastapi import FastAPI\nfrom flask import Flask\nold = Flask(__name__)\napp = FastAPI()", "asgi"),
        ("from werkzeug.security import check_password_hash\nfrom fastapi import FastAPI\napp = FastAPI()", "asgi"),
        ("import django\nfrom starlette.applications import Starlette\napp = Starlette()", "asgi"),
        ("from django.core.asgi import get_asgi_application\napp = get_asgi_application()", "asgi"),
        ("from flask import Flask\nfrom asgiref.wsgi import WsgiToAsgi\napp = WsgiToAsgi(Flask(__name__))", "asgi"),
        ("import falcon.asgi\napp = falcon.asgi.App()", "asgi"),
        ("import falcon\napp = falcon.App()", "wsgi"),
        # by how it is called
        ("def app(environ, start_response): ...", "wsgi"),
        ("def app(environ, start_response, /): ...", "wsgi"),
        ("def app(scope, receive, send): ...", "asgi"),
        ("async def app(scope, receive, send): ...", "asgi"),
        ("async def app(*words): ...", "asgi"),
        ("app = lambda environ, start_response: []", "wsgi"),
        ("app = lambda scope, receive, send: None", "asgi"),
        ("from webob.dec import wsgify\n@wsgify\ndef app(request): ...", "wsgi"),
        ("def app(): ...", "asgi"),
        ("class app:\n    def __call__(self, environ, start_response): ...", "wsgi"),
        ("class app:\n    def __call__(self, scope, receive, send): ...", "asgi"),
        ("class app:\n    async def __call__(self, *words): ...", "asgi"),
        ("class app:\n    name = 'x'", "asgi"),
        ("class App:\n    def __call__(self, environ, start_response): ...\napp = App()", "wsgi"),
        ("class App:\n    async def __call__(self, scope, receive, send): ...\napp = App()", "asgi"),
        ("import bottle\nclass App(bottle.Bottle):\n    name = 'x'\napp = App()", "wsgi"),
        ("def simple(environ, start_response): ...\napp = simple", "wsgi"),
        # where it is bound
        ("from .factory import app", "asgi"),
        ("from shop import web as app", "asgi"),
        ("from flask import request\nfrom shop import app", "wsgi"),
        ("from shop import app as web", None),
        ("import app", None),
        ("app: Flask = Flask(__name__)", "wsgi"),
        ("app: 'FastAPI'", "asgi"),
        ("application = app = Flask(__name__)", "wsgi"),
        ("if debug:\n    app = Flask('a')\nelse:\n    app = None", "asgi"),
        ("if debug: pass\nelif test:\n    app = Flask('a')", "wsgi"),
        ("try:\n    app = Flask('a')\nfinally:\n    pass", "wsgi"),
        ("try:\n    pass\nexcept ValueError:\n    app = Flask('a')", "wsgi"),
        ("try:\n    pass\nexcept ValueError:\n    pass\nelse:\n    app = Flask('a')", "wsgi"),
        ("try:\n    pass\nfinally:\n    if x:\n        with y:\n            app = Flask('a')", "wsgi"),
        ("with settings:\n    app = Flask('a')", "wsgi"),
        ("app = Flask('a')\napp = Starlette()", "asgi"),
        ("def make():\n    app = Flask('a')\nclass Shop:\n    app = Flask('b')", None),
        ("apps = app.config = shop['app'] = Flask('a')", None),
        ("app, db = Flask(__name__), 1\nimport flask", "wsgi"),
        ("import flask\nwith made() as app: pass", "wsgi"),
        ("import flask\nif (app := made()): pass", "wsgi"),
        ("import flask\nfor app in made(): pass", "wsgi"),
        ("while True:\n    app = Flask('a')\n    break", "wsgi"),
        ("import other as app", "asgi"),
        ("from flask import Flask\nimport socketio\napp = socketio.ASGIApp(sio)", "asgi"),
        ("print('app')", None),
        ("", None),
        ("# -*- coding: latin-1 -*-\napp = Flask('\ufffd')", "wsgi"),
    ],
    ids=lambda value: value.splitlines()[-1].strip() if value and "\n" in value else value or "none",
)  # fmt: skip
def test_the_kind_of_an_app(source, kind):
    assert app_kind(source, "app") == kind


def test_a_file_named_asgi_is_asgi_where_the_syntax_does_not_say():
    source = "from django.conf import settings\nfrom shop import application"
    assert app_kind(source, "application", "shop/wsgi.py") == "wsgi"
    assert app_kind(source, "application", "shop/asgi.py") == "asgi"
    assert app_kind(FLASK, "app", "asgi.py") == "wsgi"


def test_reading_a_module_warns_of_nothing():
    """What the parser thinks of a pattern such as this is the server's business; here, warnings are errors."""
    assert app_kind("pattern = '\\d'\n" + FLASK, "app") == "wsgi"


def test_the_candidates_in_their_order(project):
    names = [("application", "app")[at % 2] for at in range(len(CANDIDATES))]
    project({"manage.py": "", **{path: f"{name} = 1" for path, name in zip(CANDIDATES, names)}})
    found = []
    for path in CANDIDATES:
        found.append(find_app())
        os.remove(project.folder / path)
    modules = ("src.main", "main", "app.main", "src.app", "app", "asgi", "wsgi")
    assert found == [(f"{module}:{name}", "asgi") for module, name in zip(modules, names)]
    assert find_app() == ("manage.py", "django")
    os.remove(project.folder / "manage.py")
    assert find_app() is None


def test_the_app_of_a_package(project):
    project({"app/__init__.py": FLASK})
    assert find_app() == ("app:app", "wsgi")


def test_a_factory_of_an_asgi_app_is_called_by_its_server(project, attempts, monkeypatch):
    installed(monkeypatch, "uvicorn")
    project({"main.py": "from fastapi import FastAPI\ndef create_app(): return FastAPI()"})
    assert main(["main:create_app"]) == main(["main:create_app", "--factory"]) == 0
    assert [command[3:] for command, *_ in attempts] == [
        ["main:create_app", "--host", "0.0.0.0", "--port", "8000", "--factory"]
    ] * 2


def test_a_module_that_an_import_hook_finds_exists(monkeypatch):
    """Packages that were installed in editable mode, say."""
    found = importlib.machinery.ModuleSpec("found_by_a_hook", None)

    class Hook:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return found if name == "found_by_a_hook" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Hook])
    assert seam.exists("found_by_a_hook") and seam.exists("json")
    assert not seam.exists("found_by_nobody")
    monkeypatch.setitem(sys.modules, "without_a_spec", object())
    assert seam.exists("without_a_spec")


def test_a_candidate_without_an_app_is_passed_over(project):
    project({"src/main.py": "print('a tool')", "main.py": "", "app/main.py": "def main(): ...", "wsgi.py": WSGI})
    (project.folder / "app.py").mkdir()
    assert find_app() == ("wsgi:application", "wsgi")


def test_of_both_names_app_is_the_first(project):
    project({"main.py": "def application(environ, start_response): ...\nasync def app(scope, receive, send): ..."})
    assert find_app() == ("main:app", "asgi")


def test_the_app_of_another_folder(project, tmp_path_factory):
    project({"src/main.py": FLASK})
    assert find_app(str(tmp_path_factory.mktemp("empty"))) is None
    os.chdir(str(tmp_path_factory.mktemp("elsewhere")))
    assert find_app(str(project.folder)) == ("src.main:app", "wsgi")


def test_a_byte_order_mark(project):
    (project.folder / "main.py").write_bytes(b"\xef\xbb\xbf" + FLASK.encode())
    assert find_app() == ("main:app", "wsgi")


def test_bytes_that_are_not_utf8(project):
    (project.folder / "main.py").write_bytes(b"# -*- coding: latin-1 -*-\nname = 'caf\xe9'\n" + FLASK.encode())
    assert find_app() == ("main:app", "wsgi")


@pytest.mark.parametrize(
    ("text", "line"), [(b"import os\n\napp = = 1\n", 3), (b"app = 1\x00", 1)], ids=["syntax", "null-byte"]
)
@pytest.mark.parametrize("how", ["found", "named"])
def test_a_module_that_cannot_be_read(project, attempts, capsys, how, text, line):
    project({"src/main.py": ""})
    (project.folder / "src/main.py").write_bytes(text)
    assert main(["src.main:app"] if how == "named" else []) == 1
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"❌ src/main\.py cannot be read: line {line}: [^\n]+\n", err) and out == ""
    assert attempts == []


@pytest.mark.parametrize("words", [[], ["src.main:app"], ["src/main.py"]], ids=["found", "module", "file"])
def test_a_module_is_read_and_never_imported(project, attempts, monkeypatch, words):
    installed(monkeypatch, "uvicorn")
    project({"src/main.py": "open('imported', 'w').close()\n" + FASTAPI})
    before = set(sys.modules)
    assert main(words) == 0
    assert attempts[0][0][3] == "src.main:app"
    assert not os.path.exists("imported") and not {"src", "src.main"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    ("word", "app", "kind"),
    [
        ("src.main:app", "src.main:app", "asgi"),
        ("src/main.py", "src.main:app", "asgi"),
        ("./src/main.py", "src.main:app", "asgi"),
        ("src/main.py:app", "src.main:app", "asgi"),
        ("src/main.py:", "src.main:app", "asgi"),
        ("src/main.py:admin", "src.main:admin", "wsgi"),
        ("src.main:admin", "src.main:admin", "wsgi"),
        ("{folder}/src/main.py", "src.main:app", "asgi"),
        ("web.py", "web:application", "wsgi"),
        ("shop:app", "shop:app", "wsgi"),
        ("shop:app.wsgi_app", "shop:app.wsgi_app", "wsgi"),
        ("shop:make()", "shop:make()", "wsgi"),
        ("my-app:app", "my-app:app", "asgi"),
        ("shop/__init__.py:app", "shop:app", "wsgi"),
        ("服务.py", "服务:app", "wsgi"),
        ("服务:app", "服务:app", "wsgi"),
        ("email.message:app", "email.message:app", "asgi"),  # of an installed package
        ("loose:made.later", "loose:made.later", "asgi"),
        ("loose.py:app", "loose:app", "asgi"),
        ("hidden:app", "hidden:app", "wsgi"),
        ("manage.py", "manage.py", "django"),
        ("site/manage.py", "site/manage.py", "django"),
    ],
)
def test_an_app_that_is_named(project, attempts, monkeypatch, word, app, kind):
    installed(monkeypatch, "uvicorn waitress gunicorn")
    project(
        {
            "src/main.py": FASTAPI + "def admin(environ, start_response): ...",
            "web.py": WSGI,
            "shop/__init__.py": FLASK + "def make(): ...",
            "服务.py": FLASK,
            "my-app.py": FASTAPI,
            "loose.py": "from somewhere import *",
            "hidden.py": "import flask\nglobals()['app'] = flask.Flask('x')",
            "manage.py": "",
            "site/manage.py": "",
        }
    )
    word = word.replace("{folder}", str(project.folder))
    monkeypatch.setenv("APP", "web.py")
    assert main([word, "--workers=2"]) == 0
    expected = server_command(app, kind, "0.0.0.0", 8000, ["--workers=2"])
    assert attempts == [(expected, [Endpoint("0.0.0.0", 8000)], Endpoint("0.0.0.0", 8000))]


@pytest.mark.parametrize(("word", "app"), [("web", "web:app"), ("./web.py", "web:app"), ("web:api", "web:api")])
def test_an_app_of_the_environment(project, attempts, monkeypatch, word, app):
    """It may be a module, too, which on the command line would be anything."""
    installed(monkeypatch, "uvicorn")
    project({"web.py": FASTAPI + "api = app\n"})
    monkeypatch.setenv("APP", word)
    assert main([]) == 0
    assert attempts[0][0][3] == app


def test_the_app_may_stand_between_options(project, attempts, monkeypatch):
    installed(monkeypatch, "uvicorn")
    project({"src/main.py": FASTAPI})
    assert main(["--reload", "src.main:app", "--port", "9000", "--log-level", "debug"]) == 0
    command = [sys.executable, "-m", "uvicorn", "src.main:app", "--host", "0.0.0.0", "--port", "9000"]
    assert attempts[0][0] == [*command, "--reload", "--log-level", "debug"]


# Which command serves it?


@pytest.mark.parametrize(
    ("system", "present", "call", "command"),
    [
        ("posix", "uvicorn", ("m:app", "asgi", "0.0.0.0", 80), "-m uvicorn m:app --host 0.0.0.0 --port 80"),
        ("nt", "uvicorn", ("m:app", "asgi", "::1", 80, ["--reload"]), "-m uvicorn m:app --host ::1 --port 80 --reload"),
        ("posix", "", ("manage.py", "django", "::", 80, ["--noreload"]), "manage.py runserver [::]:80 --noreload"),
        ("posix", "uvicorn", ("m:make()", "asgi", "::1", 80), "-m uvicorn m:make --host ::1 --port 80 --factory"),
        ("posix", "gunicorn", ("m:make()", "wsgi", "::1", 80), "-m gunicorn m:make() --bind [::1]:80"),
        ("posix", "waitress", ("m:make()", "wsgi", "::1", 80), "-m waitress --listen=[::1]:80 --call m:make"),
        ("posix", "gunicorn waitress", ("m:app", "wsgi", "::1", 80, ["-w", "2"]),
         "-m gunicorn m:app --bind [::1]:80 -w 2"),
        ("posix", "waitress", ("m:app", "wsgi", "1.2.3.4", 80, ["--threads=2"]),
         "-m waitress --listen=1.2.3.4:80 --threads=2 m:app"),
        ("nt", "gunicorn waitress", ("m:app", "wsgi", "1.2.3.4", 80), "-m waitress --listen=1.2.3.4:80 m:app"),
        ("nt", "gunicorn", ("m:app", "wsgi", "1.2.3.4", 80), None),
        ("posix", "uvicorn", ("m:app", "wsgi", "1.2.3.4", 80), None),
    ],
)  # fmt: skip
def test_the_command_of_a_server(monkeypatch, system, present, call, command):
    on(monkeypatch, system)
    installed(monkeypatch, present)
    assert server_command(*call) == ([sys.executable, *command.split()] if command else None)


def on(monkeypatch, system):
    """Let run_backend, and nobody else, believe that it runs on another system."""

    class Other:
        name = system

        def __getattr__(self, attribute):
            return getattr(os, attribute)

    monkeypatch.setattr(run_backend, "os", Other())


@pytest.mark.parametrize(
    ("system", "kind", "options", "said"),
    [
        ("posix", "asgi", [], "m:app is an ASGI app, and uvicorn is not installed: {pip} uvicorn"),
        ("nt", "asgi", ["--reload"], "m:app is an ASGI app, and uvicorn is not installed: {pip} uvicorn"),
        ("posix", "wsgi", ["-w", "2"], "-w 2 needs a real server, and gunicorn is not installed: {pip} gunicorn"),
        ("nt", "wsgi", ["-x"], "-x needs a real server, and waitress is not installed: {pip} waitress"),
    ],
)
def test_a_server_that_is_not_installed(monkeypatch, system, kind, options, said):
    on(monkeypatch, system)
    installed(monkeypatch, "")
    with pytest.raises(seam.CannotStart) as caught:
        server_command("m:app", kind, "0.0.0.0", 80, options)
    assert caught.value.args == (said.replace("{pip}", seam.pip("")[:-1]), 1)


def test_the_interpreter_that_a_hint_names_is_this_one(monkeypatch, tmp_path):
    """Another python may come first on PATH, and what is installed there would not be found here."""
    python = tmp_path / "python3"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    assert seam.pip("uvicorn") == f"{python} -m pip install uvicorn"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert seam.pip("uvicorn") == "python3 -m pip install uvicorn"


def test_django_is_asked_for_before_anybody_is_stopped(project, monkeypatch):
    project({"manage.py": "from django.core.management import execute_from_command_line"})
    installed(monkeypatch, "")
    with pytest.raises(seam.CannotStart, match="manage.py needs Django, which is not installed"):
        server_command("manage.py", "django", "0.0.0.0", 80)
    installed(monkeypatch, "django")
    assert server_command("manage.py", "django", "0.0.0.0", 80)


def test_installed(tmp_path, monkeypatch):
    """A folder that only shares a server's name, with its configuration perhaps, is no package of it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "served_by_this").mkdir()
    (tmp_path / "served_by_this" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "a_mere_folder").mkdir()
    (tmp_path / "a_mere_folder" / "conf.py").write_text("")
    names = ("json", "served_by_this", "no_such_package", "a_mere_folder")
    assert [seam.installed(name) for name in names] == [True, True, False, False]


# Nobody is stopped for a server that cannot start


@pytest.mark.parametrize(
    ("present", "words", "status", "said"),
    [
        ("", [], 1, "❌ src.main:app is an ASGI app, and uvicorn is not installed: {python} -m pip install uvicorn"),
        ("", ["web.py", "-w", "2"], 1,
         "❌ -w 2 needs a real server, and gunicorn is not installed: {python} -m pip install gunicorn"),
        ("uvicorn", ["nosuch.py"], 1, "❌ there is no file nosuch.py"),
        ("uvicorn", ["nosuch/main.py:app"], 1, "❌ there is no file nosuch/main.py"),
        ("uvicorn", ["src/main.py:admin"], 1, "❌ src/main.py has no admin at its top"),
        ("uvicorn", ["tool.py"], 1, "❌ tool.py has no app or application at its top"),
        ("uvicorn", ["broken.py"], 1, "❌ broken.py cannot be read: line 2: invalid syntax"),
        ("uvicorn", ["nosuch/manage.py"], 1, "❌ there is no file nosuch/manage.py"),
        ("", ["--", "no-such-program", "x"], 127, "❌ no-such-program is not installed, or not on PATH"),
        ("", ["--", "./tool.py"], 126, "❌ ./tool.py is not executable"),
        ("uvicorn", ["src.main:nope"], 1, "❌ src/main.py has no nope at its top"),
        ("uvicorn", ["mian:app"], 1, "❌ there is no module mian here"),
        ("uvicorn", ["maker.py:create_app"], 1,
         "❌ create_app in maker.py makes the app when it is called: name it as 'maker:create_app()'"),
        ("", ["manage.py", "runserver", "9000"], 2,
         "run_backend: runserver is implied; name the port with --port, or put the whole command behind --"),
        ("", ["--", "{program}", "-m", "uvicorn", "m:app", "--port", "9"], 2,
         "run_backend: the command listens on 127.0.0.1:9, not on port {port}; {instead}"),
        ("", ["--next", "--", "{program}", "-m", "uvicorn", "m:app", "--port", "9"], 2, None),
        ("", ["--", "{program}", "-m", "uvicorn", "m:app", "--port", "http"], None, None),
    ],
    ids=lambda value: (" ".join(value)[:40] or "found") if isinstance(value, list) else "",
)  # fmt: skip
def test_nobody_is_stopped_for_what_cannot_start(
    project, port, hold, monkeypatch, capsys, present, words, status, said
):  # fmt: skip
    installed(monkeypatch, present)
    project({"src/main.py": FASTAPI, "web.py": FLASK, "tool.py": "x = 1", "broken.py": "\n= 1", "manage.py": "",
             "maker.py": "from flask import Flask\ndef create_app(name='x'): return Flask(name)"})  # fmt: skip
    instead = "name the port behind the --, or leave out --port"
    held = hold(("127.0.0.1", port))
    words = [word.replace("{program}", sys.executable) for word in words]
    if status is None:  # it names no port that can be had: nothing is freed, and its server will tell
        seam.stand_in(monkeypatch, "become", lambda *_: 7)
        status, said = 7, ""
    assert main(["--port", str(port), "--host", "127.0.0.1", *words]) == status
    err = capsys.readouterr().err
    if said is None:
        assert err.count("\n") == 1 and err.endswith(f"; {instead}\n")
    else:
        python = seam.pip("").partition(" ")[0]
        for name, value in (("python", python), ("port", str(port)), ("instead", instead)):
            said = said.replace(f"{{{name}}}", value)
        assert err == (f"{said}\n" if said else "")
    assert held.alive() == [held.pid]


def test_nobody_is_stopped_for_next_with_another_port(project, port, hold, capsys, monkeypatch):
    monkeypatch.setenv("PORT", str(port))
    held = hold(("127.0.0.1", port))
    command = [sys.executable, "-m", "uvicorn", "m:app", "--port", str(port)]
    assert main(["--next", "--host", "127.0.0.1", "--", *command]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"run_backend: the command listens on 127.0.0.1:{port}, not on port ")
    assert err.endswith("; name the port behind the --, or leave out --next\n")
    assert held.alive() == [held.pid]


def test_nobody_is_stopped_for_an_app_variable_that_names_no_app(project, port, hold, monkeypatch, capsys):
    installed(monkeypatch, "uvicorn")
    monkeypatch.setenv("APP", "shop")  # many a program uses this name for a title
    held = hold(("127.0.0.1", port))
    assert main(["--port", str(port), "--host", "127.0.0.1"]) == 2
    assert capsys.readouterr().err == "run_backend: 'shop' is no app; name it as in src.main:app\n"
    assert held.alive() == [held.pid]


def test_nobody_is_stopped_for_an_app_of_another_folder(project, port, hold, monkeypatch, capsys):
    """Its module would have no name that a server could import."""
    installed(monkeypatch, "uvicorn")
    project({"main.py": FASTAPI, "here/x": ""})
    monkeypatch.chdir(project.folder / "here")
    held = hold(("127.0.0.1", port))
    assert main(["--port", str(port), "--host", "127.0.0.1", "../main.py"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("❌ ../main.py") and err.count("\n") == 1
    assert held.alive() == [held.pid]


def test_an_app_that_crashes_stops_nobody(project, port, hold):
    """The standard library serves in this process, so that its module is imported before the port is freed."""
    project({"wsgi.py": WSGI + "raise RuntimeError('no database')"})
    held = hold(("127.0.0.1", port))
    done = call("--port", str(port), code=BARE)
    assert done.returncode == 1 and done.stderr.endswith("RuntimeError: no database\n")
    assert held.alive() == [held.pid]


@pytest.mark.parametrize("words", [[], ["main.py"], ["--", "true"]], ids=["page", "app", "command"])
def test_production(project, port, hold, monkeypatch, capsys, said, words):
    installed(monkeypatch, "uvicorn")
    monkeypatch.setenv("ENVIRONMENT", "production")
    project({"main.py": FASTAPI} if words == ["main.py"] else {})
    held = hold(("127.0.0.1", port))
    assert main(["--port", str(port), *words]) == 1
    assert "🚨 Port conflict in PRODUCTION environment!" in said() and f"Process using port: {held.pid} (" in said()
    out, err = capsys.readouterr()
    assert "Starting" not in out and err == ""  # the reason is said once
    assert held.alive() == [held.pid]


def test_production_from_a_shell(project, port, hold, monkeypatch):
    monkeypatch.setenv("ENVIRONMENT", "production")
    held = hold(("127.0.0.1", port))
    done = call("--port", str(port), "--", "touch", "started")
    assert done.returncode == 1 and done.stdout == "" and not os.path.exists("started")
    assert "❌ Cannot start: port is not available\n" in done.stderr and "Traceback" not in done.stderr
    assert held.alive() == [held.pid]


def test_a_port_that_is_lost_between_the_look_and_the_bind(project, port, hold, monkeypatch, capsys, said):
    """The failure has a reason, and it is shown."""
    hold(("127.0.0.1", port))
    seam.taken_before_the_bind(monkeypatch)
    assert main(["--port", str(port)]) == 1
    assert f"port {port} is already in use" in (said() + capsys.readouterr().err).lower()


# --next


def starting_on(process):
    """The endpoint that a process says it starts on."""
    for line in process.stdout:
        if "Starting server on" in line:
            return line.rpartition(":")[2].strip()
    return ""


@pytest.mark.parametrize("how", ["page", "command"])
def test_next_takes_another_port(project, port, hold, start, how):
    held = hold(("127.0.0.1", port))
    code = "import os; print(os.environ['HOST'], os.environ['PORT'], flush=True)"
    words = ["--", sys.executable, "-c", code] if how == "command" else []
    server = start(sys.executable, RUN_BACKEND, "--host", "127.0.0.1", "--next", "--port", str(port), *words)
    taken = int(starting_on(server))
    assert port < taken < port + 50
    if how == "page":
        assert served_by(server, taken)
    else:
        assert server.stdout.readline() == f"127.0.0.1 {taken}\n" and server.wait(PATIENCE) == 0
    assert held.alive() == [held.pid]


@pytest.mark.parametrize(
    ("options", "endpoints"),
    [(["--uds", "s"], []), (["--fd=3"], []), (["--reload"], ["0.0.0.0:8000"])],
    ids=["unix-socket", "descriptor", "port"],
)
def test_a_server_that_is_told_to_listen_elsewhere_frees_no_port(project, attempts, monkeypatch, options, endpoints):
    project({"main.py": FASTAPI})
    installed(monkeypatch, "uvicorn")
    assert main(["main:app", *options]) == 0
    assert [list(map(str, found)) for _, found, _ in attempts] == [endpoints]


def test_next_takes_a_free_port_as_it_is(project, port, attempts):
    assert main(["--next", "--port", str(port)]) == 0
    assert attempts[0][2] == Endpoint("0.0.0.0", port)


@pytest.mark.parametrize("how", ["page", "command"])
def test_next_stops_nobody_who_was_faster(project, port, hold, monkeypatch, how):
    """Two are started at once, and both see the same free port: the second must not stop the first."""
    held = hold(("127.0.0.1", port))
    find, answers = run_backend.find_free_port, iter([port])
    monkeypatch.setattr(run_backend, "find_free_port", lambda *words: next(answers, None) or find(*words))
    seam.stand_in(monkeypatch, "become", lambda *_: 0)
    seam.stand_in(monkeypatch, "serve here", lambda _, listener: listener.close() or 0)
    words = ["--", "true"] if how == "command" else []
    main(["--next", "--port", str(port), "--host", "127.0.0.1", *words])
    assert held.alive() == [held.pid]


# Become the command


def test_it_becomes_the_command(project, port, hold, start):
    held = hold(("127.0.0.1", port))
    code = "import os; print(os.getpid(), os.getppid(), os.environ['HOST'], os.environ['PORT']); raise SystemExit(7)"
    server = start(sys.executable, RUN_BACKEND, "--port", str(port), "--", sys.executable, "-c", code)
    out, _ = server.communicate(timeout=PATIENCE)
    assert out.splitlines()[-2:] == [
        f"✅ Starting server on 0.0.0.0:{port}",
        f"{server.pid} {os.getpid()} 0.0.0.0 {port}",  # no process of ours stands between
    ]
    assert server.returncode == 7
    assert held.alive() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_reaches_the_command(project, port, start, number):
    server = start(sys.executable, RUN_BACKEND, "--port", str(port), "--", "sleep", "60")
    assert eventually(lambda: name_of(server.pid) == "sleep")
    os.kill(server.pid, number)
    assert server.wait(PATIENCE) == -number


def test_the_command_inherits_no_ignored_signal(project, port):
    done = call("--port", str(port), "--", "cat", "/proc/self/status")
    ignored = int(re.search(r"^SigIgn:\s*([0-9a-f]+)$", done.stdout, re.MULTILINE).group(1), 16)
    assert [n.name for n in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (n - 1) & 1] == []


def test_the_port_that_the_command_names(project, port, hold, start):
    held = hold(("127.0.0.1", port))
    project({"index.html": "found"})
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    server = start(sys.executable, RUN_BACKEND, "--", *command)
    assert eventually(lambda: asked(port) == "found")
    assert held.alive() == [] and server.poll() is None
    assert Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")[1:-1] == command[1:]


@pytest.mark.parametrize(
    ("words", "environ", "endpoints", "wanted"),
    [
        ("--port 9000 -- true", {}, "0.0.0.0:9000", "0.0.0.0:9000"),
        ("-- true", {"PORT": "9000", "HOST": "127.0.0.1"}, "127.0.0.1:9000", "127.0.0.1:9000"),
        ("-- true --port 9000", {}, "0.0.0.0:9000", "0.0.0.0:8000"),
        ("-- true --port 9000 --host ::1", {"PORT": "1"}, "[::1]:9000", "0.0.0.0:1"),
        ("--port 9000 -- true --port 9000", {"PORT": "1"}, "0.0.0.0:9000", "0.0.0.0:9000"),
        ("--port 9000 -- python3 -m gunicorn m:app", {}, "0.0.0.0:9000", None),  # which reads PORT
        ("-- python3 -m gunicorn m:app -b :9000 -b :9001", {}, "0.0.0.0:9000 0.0.0.0:9001", None),
        ("-- python3 -m uvicorn m:app", {"PORT": "9000"}, "127.0.0.1:8000", None),  # which reads no PORT
        ("-- python3 -m uvicorn m:app --uds /tmp/x", {}, "", "0.0.0.0:8000"),
        ("-- env A=b true", {"PORT": "9000"}, "0.0.0.0:9000", "0.0.0.0:9000"),
    ],
    ids=lambda value: " ".join(f"{name}={text}" for name, text in value.items()) if isinstance(value, dict) else value,
)
def test_where_a_command_will_listen(project, attempts, monkeypatch, words, environ, endpoints, wanted):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(words.split()) == 0
    ((command, found, given),) = attempts
    assert command == words.split()[words.split().index("--") + 1 :]
    assert " ".join(map(str, found)) == endpoints
    assert wanted is None or str(given) == wanted


@pytest.mark.parametrize("reached", [True, False], ids=["free", "not-free"])
def test_start_frees_every_endpoint_and_becomes_the_first(monkeypatch, capsys, reached):
    freed, became = [], []
    answers = iter([True, reached])
    monkeypatch.setattr(run_backend, "ensure_port_available", lambda *words, **_: freed.append(words) or next(answers))
    seam.stand_in(monkeypatch, "become", lambda *words: became.append(words) or 5)
    endpoints = [Endpoint("127.0.0.1", 9000), Endpoint("::1", 9001)]
    assert seam.start(["gunicorn"], endpoints, Endpoint("0.0.0.0", 8000)) == (5 if reached else 1)
    assert freed == [(9000, "127.0.0.1"), (9001, "::1")]
    assert became == ([(["gunicorn"], endpoints[0])] if reached else [])
    assert capsys.readouterr().out == ("✅ Starting server on 127.0.0.1:9000, [::1]:9001\n" if reached else "")


def test_a_command_that_names_no_port_frees_none(project, monkeypatch, capsys):
    monkeypatch.setattr(run_backend, "ensure_port_available", lambda *_, **__: pytest.fail("a port was freed"))
    seam.stand_in(monkeypatch, "become", lambda command, wanted: 3 if wanted.port == 8000 else 4)
    assert main(["--", sys.executable, "manage.py", "migrate"]) == 3
    assert capsys.readouterr().out == f"✅ Starting {sys.executable}, which names no port\n"


@pytest.mark.parametrize("text", ["echo started\n", "#!/no/such/interpreter\n"], ids=["no-shebang", "no-interpreter"])
def test_a_program_that_the_system_cannot_start(project, port, text):
    project({"server": text})
    os.chmod("server", 0o755)
    done = call("--port", str(port), "--", "./server")
    assert done.returncode == 126 and "Traceback" not in done.stderr
    assert re.search(r"^❌ \./server cannot be started: [^\n]+\n\Z", done.stderr, re.MULTILINE)


@pytest.fixture
def same_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGPIPE, signal.SIGXFSZ)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_program_that_is_gone_when_its_turn_comes(project, port, monkeypatch, capsys, same_signals):
    project({"server": "#!/bin/sh\n"})
    os.chmod("server", 0o755)
    seam.stand_in(monkeypatch, "become", seam.become)
    monkeypatch.setattr(run_backend, "ensure_port_available", lambda *_, **__: os.remove("server") or True)
    assert main(["--port", str(port), "--", "./server"]) == 126
    assert capsys.readouterr().err == "❌ ./server cannot be started: No such file or directory\n"


def test_becoming(monkeypatch, same_signals):
    class Became(BaseException):
        pass

    def execvpe(program, command, environ):
        handlers = [signal.getsignal(number) for number in (signal.SIGPIPE, signal.SIGXFSZ)]
        raise Became(program, command, environ["HOST"], environ["PORT"], environ["OTHER"], handlers)

    monkeypatch.setattr(os, "execvpe", execvpe)
    monkeypatch.setenv("OTHER", "kept")
    monkeypatch.setenv("PORT", "1")
    with pytest.raises(Became) as caught:
        seam.become(["npm", "run"], Endpoint("::1", 9000))
    assert caught.value.args == ("npm", ["npm", "run"], "::1", "9000", "kept", [signal.SIG_DFL] * 2)
    assert os.environ["PORT"] == "1" and "HOST" not in os.environ


# Windows has no exec


def test_windows_waits_for_the_command(monkeypatch):
    on(monkeypatch, "nt")
    code = "import os, sys; sys.exit(7 if (os.environ['HOST'], os.environ['PORT']) == ('::1', '9000') else 1)"
    assert seam.become([sys.executable, "-c", code], Endpoint("::1", 9000)) == 7


def test_windows_waits_on_when_the_console_interrupts(monkeypatch):
    class Child:
        waits = iter([KeyboardInterrupt, KeyboardInterrupt, 3])

        def __init__(self, command, env):
            assert env["PORT"] == "9000"

        def wait(self):
            outcome = next(self.waits)
            if outcome is KeyboardInterrupt:
                raise KeyboardInterrupt
            return outcome

    on(monkeypatch, "nt")
    monkeypatch.setattr(subprocess, "Popen", Child)
    assert seam.become(["uvicorn"], Endpoint("0.0.0.0", 9000)) == 3


def test_windows_is_given_the_program_that_was_found(project, port, monkeypatch):
    """There, npm is npm.cmd: it is on PATH, and only its full name can be started."""
    started = []

    class Child:
        def __init__(self, command, env):
            started.append(command)

        def wait(self):
            return 0

    on(monkeypatch, "nt")
    monkeypatch.setattr(shutil, "which", lambda program: rf"C:\node\{program}.CMD")
    monkeypatch.setattr(subprocess, "Popen", Child)
    seam.stand_in(monkeypatch, "become", seam.become)
    assert main(["--port", str(port), "--", "npm", "run", "dev"]) == 0
    assert started == [[r"C:\node\npm.CMD", "run", "dev"]]


# Real servers


def test_a_wsgi_app_under_the_standard_library(project, port, start):
    project({"wsgi.py": WSGI})
    command = [sys.executable, "-c", BARE, "--port", str(port), "--host", "127.0.0.1"]
    first = start(*command)
    assert served_by(first, port)
    second = start(*command)
    assert served_by(second, port) and first.wait(PATIENCE) == -signal.SIGTERM
    assert asked(port) == f"Process {second.pid} says hello on {port}"
    os.kill(second.pid, signal.SIGINT)
    assert second.wait(PATIENCE) == 130 and "Traceback" not in second.stdout.read()


@pytest.mark.parametrize("how", ["page", "wsgi"])
def test_the_port_is_kept_from_the_look_on(project, port, hold, monkeypatch, capsys, how):
    """What serves in this process is given a socket that listens already."""
    seen = []

    def serve(handle, listener):
        server = handle(listener)
        seen.extend([server.socket is listener, listener.getsockname(), can_bind(port)])
        server.server_close()
        return 9

    installed(monkeypatch, "")
    seam.stand_in(monkeypatch, "serve here", serve)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if how == "wsgi":
        project({"served_in_this_test.py": WSGI})
    held = hold(("127.0.0.1", port))
    words = ["served_in_this_test.py"] if how == "wsgi" else []
    try:
        assert main(["--port", str(port), "--host", "127.0.0.1", *words]) == 9
    finally:
        sys.modules.pop("served_in_this_test", None)
    assert seen == [True, ("127.0.0.1", port), False] and held.alive() == []
    out = capsys.readouterr().out
    assert out.endswith(f"✅ Starting server on 127.0.0.1:{port}\n") and ("No app" in out) == (how == "page")


def test_the_app_that_is_imported_may_be_an_attribute(project, monkeypatch):
    project({"app_of_this_test.py": "class state:\n    app = 'found'\n"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        assert seam.imported("app_of_this_test:state.app") == "found"
    finally:
        sys.modules.pop("app_of_this_test", None)


UVICORN = """
import http.server, importlib, os, sys
app, words = sys.argv[1], sys.argv[2:]
module, _, name = app.partition(":")
app = getattr(importlib.import_module(module), name)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"Process {os.getpid()} says {app.title}: {' '.join(words)}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

host, port = (words[words.index(option) + 1] for option in ("--host", "--port"))
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture
def fastapi_project(project, monkeypatch):
    """A repository of the usual shape, and beside it packages that pass for FastAPI and uvicorn."""
    project(
        {
            "packages/fastapi.py": "class FastAPI:\n    def __init__(self, title): self.title = title\n",
            "packages/uvicorn/__init__.py": "",
            "packages/uvicorn/__main__.py": UVICORN,
            "项目/src/main.py": "from fastapi import FastAPI\n\napp = FastAPI(title='你好')\n",
        }
    )
    monkeypatch.setenv("PYTHONPATH", str(project.folder / "packages"))
    monkeypatch.chdir(project.folder / "项目")


def test_five_runs_take_the_port_over_from_each_other(fastapi_project, port, start):
    runs = []
    for run in range(5):
        words = [[], ["src.main:app"], ["src/main.py"], ["--reload"], ["src/main.py:app", "--reload"]][run]
        runs.append(start(sys.executable, RUN_BACKEND, "--port", str(port), *words))
        assert served_by(runs[-1], port)
        reload = " --reload" if "--reload" in words else ""
        assert asked(port) == f"Process {runs[-1].pid} says 你好: --host 0.0.0.0 --port {port}{reload}"
        assert all(earlier.wait(PATIENCE) == -signal.SIGTERM for earlier in runs[:-1])


def test_host_port_and_app_of_the_environment_with_a_real_server(fastapi_project, port, start, monkeypatch):
    for name, value in (("HOST", "127.0.0.1"), ("PORT", str(port)), ("APP", "src.main:app")):
        monkeypatch.setenv(name, value)
    os.rename("src", "elsewhere")  # APP alone says where it is
    monkeypatch.setenv("APP", "elsewhere.main:app")
    server = start(sys.executable, RUN_BACKEND)
    assert served_by(server, port)
    assert asked(port).endswith(f"--host 127.0.0.1 --port {port}")
    assert Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")[1:4] == ["-m", "uvicorn", "elsewhere.main:app"]


# Consoles


def test_a_console_of_ascii(project, port, start, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    server = start(sys.executable, RUN_BACKEND, "--port", str(port), stderr=subprocess.PIPE)
    assert served_by(server, port)
    os.kill(server.pid, signal.SIGINT)
    out, err = server.communicate(timeout=PATIENCE)
    assert out.splitlines()[1:] == [f"Starting server on 0.0.0.0:{port}"]
    assert err.startswith(f"Port {port} is available\n") and "Traceback" not in err and server.returncode == 130


def test_an_error_on_a_console_of_ascii(project, port, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = call("--port", str(port), "nosuch.py")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "there is no file nosuch.py\n")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_line_that_the_console_cannot_show(monkeypatch, capsys, encoding):
    import io

    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    seam.say_the_start("✅ Starting")
    assert console.buffer.getvalue().decode() == ("Starting\n" if encoding == "ascii" else "✅ Starting\n")


def test_a_reader_that_has_gone_does_not_keep_a_server_from_starting(project, port, start):
    read, write = os.pipe()
    os.close(read)
    try:
        server = start(sys.executable, RUN_BACKEND, "--port", str(port), stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert served_by(server, port)


def test_without_a_console(project, port, start):
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    server = start(sys.executable, "-c", code, RUN_BACKEND, "--port", str(port), stderr=subprocess.PIPE)
    assert served_by(server, port)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("words", "where", "status"),
    [
        ("--help", ">/dev/full", 1),
        ("--version", ">/dev/full", 1),
        ("--port http", "2>/dev/full", 2),
        ("--port http", ">&- 2>&-", 2),
        ("--port {port} -- sh -c 'exit 7'", ">/dev/full 2>/dev/full", 7),
        ("--port {port} -- sh -c 'exit 7'", ">&- 2>&-", 7),
    ],
)
def test_streams_that_are_full_or_closed_leave_the_status(project, port, words, where, status, unbuffered):
    shell = f'exec "{sys.executable}" "{RUN_BACKEND}" {words.format(port=port)} {where}'
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["sh", "-c", shell], env=environ, capture_output=True, text=True, check=False)
    told = "❌ standard output cannot be written: No space left on device\n" if status == 1 else ""
    assert (done.returncode, done.stdout, done.stderr) == (status, "", told)
