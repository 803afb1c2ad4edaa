"""guard(): one line at the top of an app module, which acts only where a server is about to bind."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import pytest

import port_manager
from port_manager import server_endpoints

from . import seam
from .conftest import LINUX

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")


# Where a server listens, by its words alone; "": they name no port.
ENDPOINTS = {
    "127.0.0.1:8000": [
        "uvicorn main:app", "/lib/uvicorn/__main__.py main:app", "gunicorn main:app", "hypercorn main:app",
        "fastapi dev main.py", "manage.py runserver", "manage.py runserver -v 2", "poetry run uvicorn main:app",
        "uv run -v uvicorn main:app", "uvicorn main:app --env-file f",
        "sh -c 'pg_isready -p 5432 && exec uvicorn main:app'", "sh -c 'echo \"\" && uvicorn main:app'",
        "sh -c 'cd api\nuvicorn main:app'", "./wait-for-it.sh -h db -p 5432 -- uvicorn main:app",
        "python -X dev -m uvicorn main:app", "uvx uvicorn main:app", "uv run --with uvloop uvicorn main:app",
        "nohup uvicorn main:app", "env -u X uvicorn main:app", "setsid -w gunicorn main:app",
        "nice -n 5 stdbuf -oL hypercorn main:app", r"C:/venv/Scripts/uvicorn.exe main:app",
    ],
    "127.0.0.1:9000": [
        "/venv/bin/uvicorn main:app --port 9000", "gunicorn main:app -b127.0.0.1:9000",
        "gunicorn main:app -c conf.py -b 127.0.0.1:9000", "granian --interface asgi main:app --port 9000",
        "python manage.py runserver 9000", "python -m http.server 9000 --bind 127.0.0.1", "flask --app run run -p 9000",
        "uvicorn main:app --env-file f --port 9000", "gunicorn main:app -b tcp://127.0.0.1:9000",
        "gunicorn main:app --bi 127.0.0.1:9000", "bash -c 'exec uvicorn main:app --port 9000'",
        "sh -c 'cd api; uvicorn main:app --port 9000 || echo failed'",
        "sh -c 'manage.py migrate; manage.py runserver 9000'", "manage.py runserver --settings a.b 9000",
        "python -m debugpy --listen 5678 -m uvicorn main:app --port 9000", "timeout 60 uvicorn main:app --port 9000",
        "strace -f -o trace uvicorn main:app --port 9000", "coverage run -m uvicorn main:app --port 9000",
        "watchmedo auto-restart -d . -p '*.py' -- uvicorn main:app --port 9000",
        "honcho run flask --app main --debug run -p 9000",
        "nohup bash -lc 'cd api && exec uvicorn main:app --port ${PORT:-9000} >log 2>&1 &'",
        "timeout 9 manage.py runserver_plus 9000", "litestar --app main:app run --port 9000", "sanic main:app -p 9000",
    ],
    "0.0.0.0:9000": [
        "uvicorn main:app --port=9000 --host=0.0.0.0 --reload", "gunicorn main:app -b 0.0.0.0:9000 -p 7777",
        "hypercorn --bind 0.0.0.0:9000 main:app", "flask --app main run -p 9000 -h 0.0.0.0", "fastapi run --port 9000",
        "daphne -b 0.0.0.0 -p 9000 main:app", "waitress-serve --port=9000 main:app",
        "waitress-serve --listen=*:9000 main:app", "python manage.py runserver 0.0.0.0:9000 --noreload",
        "python server.py --port 9000", "sudo -u alice gunicorn shop.wsgi -b :9000",
        "dotenv run -- waitress-serve --port 9000 main:app",
    ],
    "[::1]:8000": ["uvicorn --host ::1 main:app"],
    "": [
        "uvicorn main:app --uds /tmp/s", "uvicorn main:app --fd=3",
        "uvicorn main:app --port 0",  # any port will do
        "gunicorn main:app -b unix:/tmp/s", "gunicorn main:app -b :0", "gunicorn main:app -c conf.py",
        "hypercorn --config hypercorn.toml main:app", "flask shell", "daphne -e tcp:port=9000 main:app", "npm run dev",
        "make -p 4", "docker run -p 8000:80 web", "pytest -p no:cacheprovider", "server --port http",
        "server --port 99999", "server --port", "",
        "flask --app run routes",  # a value is no verb
        "gunicorn main:app --check-config", "gunicorn main:app --print-config", "gunicorn main:app -cconf.py",
        "gunicorn main:app --conf conf.py", "uvicorn --help", "manage.py help runserver", "manage.py test runserver",
        "manage.py runserver --help",
        "manage.py runserver --retries 80",  # a port, or the value of an option?
        "manage.py runserver -6", "manage.py runserver --ipv6 9000", "flask run --host unix:///tmp/f.sock",
        "dockerize -wait tcp://db:5432 -p 5432", "pg_isready -p 5432", "redis-benchmark -p 6379",
        "server --port 9000 -- child --port 5432",  # what is not known may be a client of that port
        "psql --port 5432",  # it connects there
        "redis-cli -p 6379", "ssh -p 2222 host",
        "ssh host uvicorn main:app --port 9000",  # on another machine
        "docker run -p 8000:80 web uvicorn main:app --port 80", "sh -c 'echo \"'", "pip install uvicorn gunicorn",
        "python main.py migrate", "env A=b python -X dev main.py",
    ],
    "localhost:8000": ["hypercorn -b localhost main:app"],
    "127.0.0.1:5000": ["flask run", "uv run flask run"],
    "0.0.0.0:8080": ["waitress-serve main:app"],
    "0.0.0.0:80": ["manage.py runserver --verbosity 2 0.0.0.0:80", "python -m http.server 80"],
    "[::1]:9000": ["./manage.py runserver [::1]:9000", "node server.js --port=9000 --host ::1"],
    "0.0.0.0:8000": ["python -m http.server", "python -m http.server -d 9000"],
    "localhost:9000": ["php -S localhost:9000"],
    "127.0.0.1:3000": ["npx vite --port=3000 --host 127.0.0.1", "env UVICORN_PORT=3000 uvicorn main:app"],
    "0.0.0.0:3000": [
        "next dev -p 3000", "next dev -p3000", "vite --host --port 3000", "vite --port 3000 --host",
    ],
    "127.0.0.1:80": ["manage.py runserver 80"],
    "127.0.0.1:9000 [::1]:9001": ["waitress-serve --listen '127.0.0.1:9000 [::1]:9001' main:app"],
}  # fmt: skip
# The variables that are read, and those that are not.
ENVIRONMENTS = [
    ("python -m uvicorn main:app", {"UVICORN_PORT": "9001", "UVICORN_HOST": "::"}, "[::]:9001"),
    ("python3.11 -m uvicorn main:app --port 9000", {"UVICORN_PORT": "9001"}, "127.0.0.1:9000"),
    ("uvicorn main:app", {"PORT": "9000", "HOST": "::"}, "127.0.0.1:8000"),  # uvicorn does not read these
    ("uvicorn main:app", {"UVICORN_PORT": "http"}, ""),
    ("gunicorn main:app", {"PORT": "9000"}, "0.0.0.0:9000"),
    ("gunicorn main:app -b :9000 --bind=[::1]:9001", {"PORT": "1"}, "0.0.0.0:9000 [::1]:9001"),
    ("gunicorn main:app", {"GUNICORN_CMD_ARGS": "--bind 127.0.0.1:9000 --workers 4"}, ""),
    ("granian main:app", {"GRANIAN_HOST": "0.0.0.0", "GRANIAN_PORT": "9000"}, "0.0.0.0:9000"),
    ("flask run", {"FLASK_RUN_PORT": "9000"}, "127.0.0.1:9000"),
    ("flask db upgrade", {"PORT": "9000"}, ""),
    ("fastapi run", {"PORT": "9000"}, "0.0.0.0:9000"),
    ("manage.py migrate", {"PORT": "9000"}, ""),
    ("npm run dev", {"PORT": "3000"}, "0.0.0.0:3000"),
    ("npm run dev -- --port 3000", {"PORT": "1"}, "0.0.0.0:3000"),
    ("gunicorn main:app -b :9001", {"GUNICORN_CMD_ARGS": "--bind 127.0.0.1:9000"}, "0.0.0.0:9001"),
    ("env PORT=3000 node e.js", {"PORT": "8000"}, "0.0.0.0:3000"),
    ("bash -c 'PORT=3000 node e.js'", {"PORT": "8000"}, "0.0.0.0:3000"),
    ("npx cross-env PORT=3000 vite", {"PORT": "8000"}, "0.0.0.0:3000"),
    ("make run PORT=3000", {"PORT": "8000"}, "0.0.0.0:3000"),
    ("env PORT=any node e.js", {"PORT": "8000"}, ""),
    ("node --env-file=.env e.js", {"PORT": "8000"}, "0.0.0.0:8000"),
    ("uvicorn main:app", {"UVICORN_UDS": "/tmp/s"}, ""),
    ("uvicorn main:app", {"UVICORN_FD": "3"}, ""),
    ("uvicorn main:app --env-file f", {"UVICORN_PORT": "9000"}, ""),  # it reads that for the app alone
    ("granian main:app", {"GRANIAN_UDS": "/tmp/s"}, ""),
    ("gunicorn main:app", {"LISTEN_FDS": "1"}, ""),
    ("sh -c 'npm run dev'", {"PORT": "3000"}, "0.0.0.0:3000"),
    ("sh", {"PORT": "3000"}, "0.0.0.0:3000"),
    ("sh -c ' ; '", {"PORT": "3000"}, "0.0.0.0:3000"),
    ("wait-for-it db:5432 -t 5", {"PORT": "8000"}, "0.0.0.0:8000"),  # PORT is a port that was named
    ("python -W ignore manage.py migrate", {"PORT": "9000"}, ""),
    ("sh -c 'gunicorn main:app -b :$PORT'", {"PORT": "9000"}, "0.0.0.0:9000"),
    ("gunicorn -c conf.py main:app", {"PORT": "9000"}, "0.0.0.0:9000"),
]


@pytest.mark.parametrize(
    ("command", "environ", "endpoints"),
    [*((command, {}, where) for where, commands in ENDPOINTS.items() for command in commands), *ENVIRONMENTS],
)
def test_where_a_server_will_listen(command, environ, endpoints):
    assert " ".join(map(str, server_endpoints(shlex.split(command), environ))) == endpoints


@pytest.mark.parametrize("name", [".env", ".flaskenv"])
def test_a_file_of_variables_may_name_the_port_of_flask(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("SECRET_KEY=x\n")
    assert [str(e) for e in server_endpoints(["flask", "run"], {})] == ["127.0.0.1:5000"]
    (tmp_path / name).write_text("SECRET_KEY=x\nFLASK_RUN_PORT=5001\n")
    assert server_endpoints(["flask", "run"], {}) == []
    assert [str(e) for e in server_endpoints(["flask", "run", "-p", "9000"], {})] == ["127.0.0.1:9000"]


def test_a_configuration_file_of_gunicorn_may_say_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gunicorn.conf.py").write_text("from settings import *")
    assert server_endpoints(["gunicorn", "main:app"], {}) == []
    assert [str(e) for e in server_endpoints(["gunicorn", "main:app", "-b", ":9000"], {})] == ["0.0.0.0:9000"]


def test_the_environment_is_read_by_default(monkeypatch):
    monkeypatch.setenv("UVICORN_PORT", "9123")
    assert server_endpoints(["uvicorn", "a:b"])[0].port == 9123


@pytest.fixture
def app(tmp_path):
    """A project whose app module begins with the one line, and a server of its own that loads it."""
    shutil.copy(port_manager.__file__, tmp_path)
    (tmp_path / "main.py").write_text("import port_manager; port_manager.guard()\nprint('loaded', __name__, flush=True)\n")
    (tmp_path / "manage.py").write_text("import main\nimport port_manager; port_manager.guard(); print('done')\n")
    for name in ("uvicorn", "pytest_like"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "__main__.py").write_text("import sys; __import__(sys.argv[1].split(':')[0])\n")

    def run(*words, **environ):
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
            input=environ.pop("INPUT", ""),
        )

    run.folder = tmp_path
    return run


def test_a_servers_command_line_frees_its_port(app, port, hold):
    held, other = hold(port, cwd=app.folder), hold(("127.0.0.2", port), cwd=app.folder)
    done = app("-m", "uvicorn", "main:app", "--port", str(port), ENVIRONMENT="production")
    assert done.returncode == 1 and "loaded" not in done.stdout
    assert "❌ Cannot start: port is not available" in done.stderr and "Traceback" not in done.stderr
    assert held.alive() == [held.pid]
    done = app("-m", "uvicorn", "main:app", "--port", str(port))
    assert done.returncode == 0 and "loaded main" in done.stdout
    assert f"✅ Port {port} is now available" in done.stderr
    assert held.alive() == [] and other.alive() == [other.pid]


def with_a_port(app, port):
    source = (app.folder / "main.py").read_text()
    (app.folder / "main.py").write_text(source.replace("guard()", f"guard(port={port}, host='127.0.0.1')"))


@pytest.mark.parametrize("how", ["--port", "guard"])
def test_a_script_that_names_its_port(app, port, hold, how):
    held = hold(port, cwd=app.folder)
    if how == "guard":
        with_a_port(app, port)
    done = app("main.py", *(["--port", str(port)] if how == "--port" else []))
    assert done.returncode == 0 and "loaded __main__" in done.stdout
    assert held.alive() == []


def test_a_server_that_has_not_told_its_port_has_that_of_the_call(app, port, hold):
    """It may stand in a configuration file."""
    (app.folder / "uvicorn").rename(app.folder / "gunicorn")
    held = hold(port, cwd=app.folder)
    assert app("-m", "gunicorn", "main:app", "-c", "conf.py").returncode == 0 and held.alive() == [held.pid]
    with_a_port(app, port)
    assert app("-m", "gunicorn", "main:app", "-c", "conf.py").returncode == 0 and held.alive() == []


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["main.py", "migrate"], id="no-port"),  # a script that names none, whatever PORT is
        pytest.param(["-m", "pytest_like", "main:app", "--port", "{port}"], id="test-runner"),
        pytest.param(["-c", "import main", "--port", "{port}"], id="import"),
        pytest.param(["-c", "import port_manager; port_manager.guard()", "--port", "{port}"], id="command"),
        pytest.param(["manage.py", "migrate", "--port", "{port}"], id="migrate"),
        pytest.param(["-m", "uvicorn", "main:app", "--uds", "/tmp/socket", "--port", "{port}"], id="uds"),
        pytest.param(["-i", "-c", "import sys; sys.argv = ['']; import main", "--port", "{port}"], id="repl"),
        pytest.param(["-"], id="stdin"),
    ],
)
def test_elsewhere_it_does_nothing(app, port, hold, words):
    held = hold(port, cwd=app.folder)
    text = "import main\n" if words == ["-"] else ""
    done = app(*(word.replace("{port}", str(port)) for word in words), INPUT=text, PORT=str(port))
    assert done.returncode == 0 and "available" not in done.stderr
    assert held.alive() == [held.pid]


# uvicorn --reload and --workers bind in the parent, before the app is imported in a child.
BINDS_FIRST = """
import os, socket, sys
s = socket.socket(); s.setsockopt(1, 2, 1)
s.bind(("127.0.0.1", int(sys.argv[3])))
if "--listen" in sys.argv: s.listen()
statuses = []
for _ in range(2):
    if os.fork() == 0:
        import main
        os._exit(0)
    statuses.append(os.wait()[1])
print("ended", statuses, flush=True)
"""
# granian and hypercorn let every worker bind for itself: nothing that an ancestor holds tells of the family.
EACH_BINDS = """
import os, socket, sys
def worker():
    import main
    s = socket.socket(); s.setsockopt(1, 15, 1)
    s.bind(("127.0.0.1", int(sys.argv[3]))); s.listen()
    os.write(ready, b"1"); os.read(over, 1); os._exit(0)
wait, ready = os.pipe()
over, end = os.pipe()
for _ in range(2):
    if os.fork() == 0:
        os.close(end); worker()
    os.read(wait, 1)
os.close(end)
print("ended", [os.wait()[1] for _ in range(2)])
"""


@pytest.mark.parametrize(("master", "more"), [(BINDS_FIRST, []), (BINDS_FIRST, ["--listen"]), (EACH_BINDS, [])])
def test_in_a_masters_child_the_port_is_the_family_s(app, port, master, more):
    (app.folder / "uvicorn" / "__main__.py").write_text(master)
    done = app("-m", "uvicorn", "main:app", "--port", str(port), *more)
    assert done.stdout.count("loaded main") == 2 and "ended [0, 0]" in done.stdout, done
    assert done.stderr == "" or master == EACH_BINDS


def test_a_spawned_child_of_a_script_does_nothing(app, port, hold):
    """multiprocessing imports the script again, under another name."""
    (app.folder / "main.py").write_text(
        "import port_manager; port_manager.guard()\n"
        "import multiprocessing as mp, sys\n"
        "def work(): print('worked', flush=True)\n"
        "if __name__ == '__main__':\n"
        "    import socket; s = socket.create_server(('127.0.0.1', int(sys.argv[2])))\n"
        "    child = mp.get_context('spawn').Process(target=work); child.start(); child.join(); print('exit', child.exitcode)\n"
    )
    held = hold(port, cwd=app.folder)
    done = app("main.py", "--port", str(port))
    assert "worked\nexit 0\n" in done.stdout and done.returncode == 0
    assert held.alive() == []


def test_where_nobody_can_tell_it_says_so(app, port, hold, monkeypatch):
    """guard() itself must not fail where the look does."""
    hold(port, cwd=app.folder)
    seam.only(monkeypatch, lambda port: None)
    assert seam.is_in_the_family("uvicorn", "127.0.0.1", port) is False


def test_guard_asks_no_tool_for_a_free_port_elsewhere(port, monkeypatch):
    seam.on_system(monkeypatch, "darwin", "alice")
    seam.stand_in(monkeypatch, "run a tool", lambda *_: pytest.fail("a tool was started"))
    assert seam.is_in_the_family("uvicorn", "127.0.0.2", port) is False
