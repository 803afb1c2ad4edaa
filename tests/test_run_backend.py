"""run_backend: what a repository declares or shows, the command that follows, and the start of it."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import port_manager
import run_backend

from .conftest import LINUX, PORT_MANAGER, ROOT_USER, RUN_BACKEND, can_bind, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")

FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n"
FLASK = "from flask import Flask\napp = Flask(__name__)\n"
FACTORY = "from flask import Flask\ndef create_app(config=None):\n    app = Flask(__name__)\n    return app\n"
DJANGO = "import sys\nfrom django.core.management import execute_from_command_line\nexecute_from_command_line(sys.argv)\n"
WSGI = """
import os
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"Process {os.getpid()} says hello on {environ['SERVER_PORT']}".encode()]
"""
SERVERS = ("uvicorn", "hypercorn", "granian", "daphne", "gunicorn", "waitress", "flask", "litestar", "sanic", "django")
HELP = "print('--host --port --reload --workers --log-config --preload --debug --bind')\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty repository that the calls are made in; project({path: text}) writes its files."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def write(files):
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        return folder

    write.folder = folder
    return write


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """PYTHONPATH with packages of these servers' names, which only know their options."""

    def make(*names):
        folder = tmp_path_factory.mktemp("installed")
        for name in names:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text("")
            (folder / name / "__main__.py").write_text(HELP)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def all_servers(installed):
    return installed(*SERVERS)


def call(*words, python=(), program=RUN_BACKEND, **environ):
    """Run ``python run_backend.py …`` to its end."""
    return subprocess.run(
        [sys.executable, *python, program, *words],
        capture_output=True, encoding="utf-8", timeout=60, check=False, env={**os.environ, **environ},
    )  # fmt: skip


def command_of(done):
    """The last line of a dry run, without the interpreter's folder."""
    words = shlex.split(done.stdout.splitlines()[-1]) if done.stdout else []
    return " ".join(word if "=" in word else os.path.basename(word) if word.startswith("/") else word for word in words)


def asked(port, host="127.0.0.1"):
    """What the server on a port answers; nothing while there is none."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=5)) as connection:
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return ""


def served_by(process, port):
    """Whether this very process comes to answer there; an answer ends the wait, and so does its end."""
    eventually(lambda: f"Process {process.pid} " in asked(port) or process.poll() is not None, 10)
    return f"Process {process.pid} " in asked(port)


# What a folder has, and the command that follows: the last line of --dry-run. § stands for the port.

UVICORN = "-m uvicorn {} --host 0.0.0.0 --port §"
GUNICORN = "-m gunicorn {} --bind 0.0.0.0:§"
FOLDERS = [
    # by the conventions of fastapi and flask, and by ours
    ({"main.py": FASTAPI}, "", UVICORN.format("main:app")),
    ({"src/main.py": FASTAPI, "main.py": FLASK}, "", UVICORN.format("src.main:app")),
    ({"src/main.py": "from src.db import x\n" + FASTAPI, "src/db.py": "x = 1"}, "", UVICORN.format("src.main:app")),
    ({"app.py": FLASK, "other.py": FLASK}, "", GUNICORN.format("app:app")),
    ({"api.py": "x = = 1", "main.py": FASTAPI}, "", UVICORN.format("main:app")),
    ({"wsgi.py": "from app import app as application\n", "app.py": FLASK}, "", GUNICORN.format("wsgi:application")),
    # a module of any name, and any name in it
    ({"server.py": FASTAPI.replace("app =", "api =")}, "", UVICORN.format("server:api")),
    ({"hello.py": FLASK}, "", GUNICORN.format("hello:app")),
    ({"api/index.py": FLASK, "vercel.json": "{}"}, "", GUNICORN.format("api.index:app")),
    ({"web.py": "from starlette.applications import Starlette\nservice = Starlette()"}, "", UVICORN.format("web:service")),
    # in a package: an object, or a factory
    ({"shop/__init__.py": "", "shop/asgi.py": FASTAPI}, "", UVICORN.format("shop.asgi:app")),
    ({"shop/__init__.py": FACTORY}, "", GUNICORN.format("shop:create_app()")),
    ({"shop/__init__.py": "from .core import *\n", "shop/core.py": FLASK}, "", GUNICORN.format("shop.core:app")),
    ({"main.py": "from fastapi import FastAPI\ndef create_app() -> FastAPI:\n    return FastAPI()\n"}, "",
     "-m uvicorn --factory main:create_app --host 0.0.0.0 --port §"),
    # where imports begin
    ({"src/shop/__init__.py": "", "src/shop/main.py": "from shop.db import x\n" + FASTAPI, "src/shop/db.py": "x = 1"}, "",
     "PYTHONPATH=src python " + UVICORN.format("shop.main:app")),
    ({"app/main.py": "from database import x\n" + FASTAPI, "app/database.py": "x = 1"}, "",
     "PYTHONPATH=app python " + UVICORN.format("main:app")),
    # who builds it, through the imports of this repository
    ({"run.py": "from shop import create_app\napp = create_app()\n", "shop/__init__.py": FACTORY}, "", GUNICORN.format("run:app")),
    ({"run.py": "from shop import create_app\nif __name__ == '__main__':\n    app = create_app()\n    app.run()\n",
      "shop/__init__.py": FACTORY}, "", GUNICORN.format("shop:create_app()")),
    ({"run.py": "from shop import create_app\nif __name__ == '__main__':\n    create_app('x').run()\nelse:\n    app = create_app()\n",
      "shop/__init__.py": FACTORY}, "", GUNICORN.format("run:app")),
    ({"seed.py": "from shop import create_app\napp = create_app()\nwith app.app_context():\n    fill()\n",
      "ask.py": "from shop import create_app\nclient = create_app().test_client()\n", "shop/__init__.py": FACTORY}, "",
     GUNICORN.format("shop:create_app()")),
    ({"microblog.py": "from shop import app, db\n", "shop/__init__.py": FLASK + "db = 1\nfrom shop import routes\n",
      "shop/routes.py": "from shop import app\n"}, "", GUNICORN.format("shop:app")),
    ({"manage.py": "from flask_script import Manager\nfrom shop import create_app\napp = create_app('dev')\nManager(app).run()\n",
      "shop/__init__.py": FACTORY.replace("config=None", "config")}, "", GUNICORN.format("manage:app")),
    ({"web.py": "from fastapi import FastAPI\nclass Shop(FastAPI):\n    pass\nshop = Shop()\n"}, "", UVICORN.format("web:shop")),
    ({"one.py": "from two import app as two\n" + FASTAPI, "two.py": FASTAPI}, "", UVICORN.format("one:app")),
    ({"app.py": FLASK + "from werkzeug.middleware.proxy_fix import ProxyFix\napp = ProxyFix(app)\n"}, "", GUNICORN.format("app:app")),
    ({"app.py": FLASK + "from asgiref.wsgi import WsgiToAsgi\napp = WsgiToAsgi(app)\n"}, "", UVICORN.format("app:app")),
    ({"wsgi.py": "from pyramid.config import Configurator\nwith Configurator() as c:\n    app = c.make_wsgi_app()\n"}, "",
     GUNICORN.format("wsgi:app")),
    ({"web.py": WSGI}, "", GUNICORN.format("web:application")),
    ({"app.py": "try:\n    import fastapi\nexcept ImportError:\n    raise\nelse:\n    app = fastapi.FastAPI()\n"}, "",
     UVICORN.format("app:app")),
    ({"main.py": "import uvicorn\nif __name__ == '__main__':\n    uvicorn.run('shop.web:app', port=int(PORT))\n",
      "shop/__init__.py": "", "shop/web.py": FASTAPI}, "", UVICORN.format("shop.web:app")),
    ({"tests/test_web.py": FASTAPI, "examples/one.py": FASTAPI, "node_modules/x/a.py": FASTAPI, "web.py": FLASK}, "",
     GUNICORN.format("web:app")),
    ({"app.py": "from app import create_app\napp = create_app()\n", "app/__init__.py": FACTORY}, "",
     GUNICORN.format("app:create_app()")),  # the package hides the module of its name
    ({"web.py": FLASK, "old/web.py": FLASK}, "", GUNICORN.format("web:app")),
    ({"web.py": FLASK, "broken.py": "= 1"}, "", GUNICORN.format("web:app")),
    # frameworks with servers of their own
    ({"manage.py": DJANGO, "shop/wsgi.py": "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()"},
     "", "manage.py runserver 0.0.0.0:§"),
    ({"shop/manage.py": DJANGO}, "", "shop/manage.py runserver 0.0.0.0:§"),
    ({"app.py": "from litestar import Litestar\napp = Litestar([])"}, "", "-m litestar --app app:app run --host 0.0.0.0 --port §"),
    ({"app.py": "from quart import Quart\napp = Quart('x')"}, "", "-m hypercorn app:app --bind 0.0.0.0:§"),
    ({"app.py": "from sanic import Sanic\napp = Sanic('x')"}, "", "-m sanic app:app --host 0.0.0.0 --port §"),
    ({"app.py": "from sanic import Sanic\napp = Sanic('x')"}, "--fast", "-m sanic app:app --host 0.0.0.0 --port § --fast"),
    ({"app.py": "from dash import Dash\napp = Dash('x')\nserver = app.server\n"}, "", GUNICORN.format("app:server")),
    ({"app.py": "from dash import Dash\napp = Dash('x')\n"}, "", "-m waitress --listen 0.0.0.0:§ app:app.server"),
    ({"app.py": FLASK}, "--debug", "-m flask --app app:app run --host 0.0.0.0 --port § --debug"),
    # declared
    ({"Procfile": "worker: x\nweb: gunicorn shop.wsgi --workers 2 -b 0.0.0.0:$PORT\n", "manage.py": DJANGO,
      "shop/wsgi.py": "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()"}, "",
     GUNICORN.format("shop.wsgi:application") + " --workers 2"),
    ({"Procfile": "web: python manage.py migrate && exec gunicorn -k uvicorn.workers.UvicornWorker main:app", "main.py": FASTAPI}, "",
     GUNICORN.format("main:app") + " -k uvicorn.workers.UvicornWorker"),
    ({"Procfile": "web: hypercorn main:app --bind=0.0.0.0:$PORT", "main.py": FASTAPI}, "", "-m hypercorn main:app --bind 0.0.0.0:§"),
    ({"Procfile": "web: waitress-serve --port=$PORT --threads=2 app:app", "app.py": FLASK}, "",
     "-m waitress --listen 0.0.0.0:§ app:app --threads=2"),
    ({"Procfile": "web: flask --app shop run -p $PORT", "shop.py": FLASK, "app.py": FLASK}, "", GUNICORN.format("shop:app")),
    ({"Procfile": "web: flask run", ".flaskenv": "FLASK_APP=shop", "shop.py": FLASK, "run.py": FLASK}, "", GUNICORN.format("shop:app")),
    ({"Procfile": "web: gunicorn shop:app", "shop.py": FLASK, "gunicorn.py": ""}, "", GUNICORN.format("shop:app")),
    ({"Procfile": "web: no-such-yarn server", "server.py": FLASK}, "", GUNICORN.format("server:app")),
    ({"Procfile": "web: python server.py", "server.py": "import http.server"}, "", "server.py"),
    ({"Procfile": "web: uvicorn shop.main:app --app-dir backend --port $PORT", "backend/shop/main.py": FASTAPI}, "",
     UVICORN.format("shop.main:app") + " --app-dir backend"),
    ({"Procfile": "web: cd backend && gunicorn app:app", "backend/app.py": FLASK}, "",
     "cd backend && python " + GUNICORN.format("app:app")),
    ({"Procfile": "web: python run_backend.py shop:app", "shop.py": FLASK, "app.py": FLASK}, "", GUNICORN.format("shop:app")),
    ({"Procfile": "web: python run_backend.py", "app.py": FLASK}, "", GUNICORN.format("app:app")),
    ({"Procfile": "web: python run_backend.py -- gunicorn app:app -w 2", "app.py": FLASK}, "",
     GUNICORN.format("app:app") + " -w 2"),
    ({"Procfile": "web: no-such-server shop.ini", "manage.py": DJANGO}, "", "manage.py runserver 0.0.0.0:§"),
    ({".flaskenv": "FLASK_APP = shop\nFLASK_DEBUG=0", "shop/__init__.py": FLASK, "app.py": FLASK}, "", GUNICORN.format("shop:app")),
    ({".env": "export FLASK_APP='shop.py:make(\"dev\")'", "shop.py": FLASK + "def make(name):\n    return app\n"}, "",
     GUNICORN.format('shop:make("dev")')),
    ({".flaskenv": "FLASK_APP=shop\nFLASK_DEBUG=1", "shop.py": FLASK}, "",
     "-m flask --app shop:app run --host 0.0.0.0 --port § --debug"),
    ({"pyproject.toml": "[project]\nentrypoint = 'x'\n[tool.fastapi]\nentrypoint = \"shop.web:api\"\n", "main.py": FASTAPI,
      "shop/web.py": FASTAPI.replace("app =", "api =")}, "", UVICORN.format("shop.web:api")),
    ({"pyproject.toml": "[tool.fastapi]\nx = [1]\nentrypoint = 'web:app'\n", "main.py": FASTAPI, "web.py": FASTAPI}, "",
     UVICORN.format("web:app")),
    ({"Procfile": "web: ;", "web.py": FLASK}, "", GUNICORN.format("web:app")),
    ({"Procfile": "web: gunicorn app:app --chdir backend", "backend/app.py": FLASK}, "", GUNICORN.format("app:app") + " --chdir backend"),
    # named on the command line
    ({"shop/web.py": FLASK}, "shop/web.py", GUNICORN.format("shop.web:app")),
    ({"shop/wsgi.py": WSGI}, "shop.wsgi", GUNICORN.format("shop.wsgi:application")),
    ({"shop.py": FACTORY}, "shop:create_app('dev')", GUNICORN.format("shop:create_app('dev')")),
    ({"shop.py": FACTORY}, "shop:create_app", GUNICORN.format("shop:create_app()")),
    ({"main.py": FASTAPI, "log.py": ""}, "--log-config log.py", UVICORN.format("main:app") + " --log-config log.py"),
    ({"main.py": FASTAPI, "debug.py": ""}, "--log-config debug", UVICORN.format("main:app") + " --log-config debug"),
    ({"main.py": FASTAPI}, "--reload main:app --workers 2", UVICORN.format("main:app") + " --reload --workers 2"),
    ({"manage.py": DJANGO}, "manage.py --noreload", "manage.py runserver 0.0.0.0:§ --noreload"),
    ({}, "json.tool:app", UVICORN.format("json.tool:app")),  # of an installed package
    ({}, "", "--page --host 0.0.0.0 --port §"),
    ({"README.md": "", "tests/test_x.py": ""}, "", "--page --host 0.0.0.0 --port §"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "words", "command"), FOLDERS, ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_the_command_for_a_folder(project, port, all_servers, files, words, command):
    project(files)
    done = call("--port", str(port), *words.split(), "--dry-run", PYTHONPATH=all_servers)
    expected = command.replace("§", str(port)).replace("python ", os.path.basename(sys.executable) + " ")
    assert done.returncode == 0, done.stderr
    shown = command_of(done).split(" ")
    interpreter = shown[:1] == [os.path.basename(sys.executable)]
    assert " ".join(shown[interpreter + ("run_backend.py" in shown) :]) == expected
    assert can_bind(port)


@pytest.mark.parametrize(
    ("files", "words", "said"),
    [
        ({"one.py": FLASK, "two.py": FASTAPI}, "", "Several apps were found; name one:\n  python run_backend.py one:app"),
        ({"main.py": "print('a tool')"}, "", "No app was found"),
        ({"app.py": "from aiohttp import web\napp = web.Application()\n"}, "", "No app was found"),
        ({"jobs.py": "from celery import Celery\napp = Celery()\n"}, "", "No app was found"),
        ({"app.py": "from aiohttp import web\napp = web.Application()\n"}, "app:app", "app.py has no app at its top that a server can serve"),
        ({"shop.py": FACTORY.replace("config=None", "config")}, "", "shop:create_app(config) needs arguments: name it with them"),
        ({"backend/main.py": FASTAPI, "frontend/package.json": "{}"}, "", "cd backend && python "),
        ({"server/app.py": FLASK, "server/requirements.txt": "flask"}, "", "cd server && python "),
        ({"package.json": "{}"}, "", "python run_backend.py -- npm run dev"),
        ({"main.go": "package main"}, "", "No app was found"),
        ({"main.py": "class Shop:\n    def __init__(self):\n        self.app = FastAPI()\nserver = Shop()\n"}, "", "No app was found"),
        ({"main.py": FASTAPI.replace("app", "_app")}, "", "No app was found"),
        ({"src/main.py": "import os\n\napp = = 1\n"}, "", "src/main.py cannot be read: invalid syntax (main.py, line 3)"),
        ({"src/main.py": "app = = 1\n"}, "src.main:app", "src/main.py cannot be read: invalid syntax (main.py, line 1)"),
        ({"main.py": FASTAPI}, "main:nope", "main.py has no nope at its top"),
        ({"main.py": FASTAPI}, "mian:app", "There is no mian:app in this folder"),
        ({"main.py": FASTAPI}, "nosuch.py", "There is no nosuch.py in this folder"),
        ({"main.py": FASTAPI}, "../main.py", "There is no ../main.py in this folder"),
        ({"main.py": FASTAPI}, "--no-such-option", "uvicorn has no option --no-such-option"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value[:30],
)  # fmt: skip
def test_nobody_is_stopped_where_there_is_nothing_to_start(project, port, hold, all_servers, files, words, said):
    project(files)
    held = hold(("127.0.0.1", port))
    done = call("--port", str(port), *words.split(), PYTHONPATH=all_servers)
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr
    assert held.alive() == [held.pid]


@pytest.mark.parametrize(
    ("present", "files", "words", "outcome"),
    [
        ("uvicorn hypercorn granian daphne", {"main.py": FASTAPI}, "", "-m uvicorn main:app --host 0.0.0.0 --port §"),
        ("hypercorn granian", {"main.py": FASTAPI}, "", "-m hypercorn main:app --bind 0.0.0.0:§"),
        ("granian", {"main.py": FASTAPI}, "", "-m granian --interface asgi main:app --host 0.0.0.0 --port §"),
        ("daphne", {"main.py": FASTAPI}, "", "-m daphne -b 0.0.0.0 -p § main:app"),
        ("", {"main.py": FASTAPI}, "", "main:app needs uvicorn, which is not installed: {python} -m pip install uvicorn"),
        ("waitress", {"app.py": FLASK}, "", "-m waitress --listen 0.0.0.0:§ app:app"),
        ("waitress", {"app.py": FACTORY}, "", "-m waitress --listen 0.0.0.0:§ --call app:create_app"),
        ("", {"app.py": FLASK}, "", "--wsgiref app:app --host 0.0.0.0 --port §"),
        ("", {"app.py": FLASK}, "--workers 2", "app:app needs gunicorn, which is not installed"),
        ("", {"manage.py": DJANGO}, "", "manage.py needs django, which is not installed"),
        ("waitress", {"Procfile": "web: gunicorn app:app --preload", "app.py": FLASK}, "", "-m waitress --listen 0.0.0.0:§ app:app"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value[:20],
)  # fmt: skip
def test_the_first_installed_server(project, port, installed, present, files, words, outcome):
    """-S leaves out what this Python has."""
    project(files)
    done = call("--port", str(port), *words.split(), "--dry-run", python=["-S"], PYTHONPATH=installed(*present.split()))
    outcome = outcome.replace("{python}", sys.executable)
    if "needs" in outcome:
        assert done.returncode == 1 and outcome in done.stderr
    else:
        assert done.returncode == 0 and command_of(done).endswith(outcome.replace("§", str(port)))


def test_the_interpreter_beside_the_app(project, port, installed):
    """What the app needs is installed there."""
    project({"main.py": FASTAPI, ".venv/pyvenv.cfg": "", ".venv/bin/python": ""})
    packages = project.folder / ".venv" / "lib" / "python3.12" / "site-packages"
    shutil.copytree(installed("uvicorn"), packages)
    os.chmod(".venv/bin/python", 0o755)
    done = call("--port", str(port), "--dry-run", python=["-S"])
    assert done.returncode == 0 and "with .venv/bin/python" in done.stdout
    assert shlex.split(done.stdout.splitlines()[-1])[0] == str(project.folder / ".venv/bin/python")


@pytest.mark.parametrize(
    ("files", "environ", "words", "port"),
    [
        ({"app.py": FLASK}, {}, [], "8000"),
        ({"Procfile": "web: gunicorn app:app -b :5006", "app.py": FLASK}, {}, [], "5006"),
        ({"Procfile": "web: gunicorn app:app -b :${PORT:-5007}", "app.py": FLASK}, {}, [], "5007"),
        ({".flaskenv": "FLASK_APP=app\nFLASK_RUN_PORT=5008", "app.py": FLASK}, {}, [], "5008"),
        ({"run.py": "import uvicorn\nuvicorn.run('web:app', port=8081)", "web/__init__.py": FASTAPI}, {}, [], "8081"),
        ({"Procfile": "web: gunicorn app:app -b :5006", "app.py": FLASK}, {"PORT": "9000"}, [], "9000"),
        ({"Procfile": "web: gunicorn app:app -b :5006", "app.py": FLASK}, {"PORT": "9000"}, ["--port=9001"], "9001"),
    ],
    ids=["ours", "procfile", "default", "flask", "launcher", "PORT", "told"],
)  # fmt: skip
def test_the_repositorys_own_port(project, all_servers, files, environ, words, port):
    project(files)
    done = call(*words, "--dry-run", PYTHONPATH=all_servers, **environ)
    assert f"Port {port}: " in done.stdout + done.stderr and port in command_of(done)


def test_app_in_the_environment(project, port, all_servers):
    project({"main.py": FASTAPI, "web.py": FLASK})
    done = call("--port", str(port), "--dry-run", PYTHONPATH=all_servers, APP="web:app")
    assert command_of(done).endswith(f"gunicorn web:app --bind 0.0.0.0:{port}")
    done = call("--port", str(port), "--dry-run", PYTHONPATH=all_servers, APP="My Shop")
    assert done.returncode == 2 and "'My Shop' is not an app" in done.stderr


def test_a_module_is_read_and_never_imported(project, port, all_servers):
    project({"src/main.py": "open('imported', 'w').close()\n" + FASTAPI})
    assert call("--port", str(port), "--dry-run", PYTHONPATH=all_servers).returncode == 0
    assert not os.path.exists("imported")


# --dry-run, --next, and what a given command names


def test_a_dry_run_says_who_would_be_stopped(project, port, hold, all_servers):
    project({"main.py": FASTAPI})
    held = hold(("127.0.0.1", port))
    done = call("--port", str(port), "--dry-run", PYTHONPATH=all_servers)
    assert done.returncode == 0 and "Found main:app: FastAPI object in main.py" in done.stdout
    assert f"Port {port}: process {held.pid} (" in done.stdout and "SIGTERM" in done.stdout
    done = call("--port", str(port), "--dry-run", PYTHONPATH=all_servers, ENVIRONMENT="production")
    assert done.returncode == 1 and "outside development" in done.stdout
    assert held.alive() == [held.pid]


@pytest.mark.parametrize("how", ["page", "command"])
def test_next_takes_another_port_and_says_who_has_the_wanted_one(project, port, hold, how):
    held = hold(("127.0.0.1", port))
    words = ["--", "true"] if how == "command" else []
    done = call("--host", "127.0.0.1", "--next", "--port", str(port), "--dry-run", *words)
    assert done.returncode == 0 and f"Port {port} is held by process {held.pid} (" in done.stdout
    assert held.alive() == [held.pid]


def test_next_stops_nobody_for_a_command_with_a_port_of_its_own(project, port, hold):
    held = hold(("127.0.0.1", port))
    command = [sys.executable, "-m", "http.server", str(port)]
    done = call("--next", "--port", str(port), "--", *command)
    assert done.returncode == 1 and "The command itself names" in done.stderr and held.alive() == [held.pid]


@pytest.mark.parametrize(
    ("words", "environ", "named"),
    [
        ("--port P -- sleep 0", {}, "P"),
        ("--port P -- sh -c 'true ${PORT:-8000}'", {}, "P"),
        ("--port P -- {python} manage.py runserver_plus", {}, "P"),
        ("--port P -- nohup uvicorn m:app --port 7", {}, "P"),  # the named port is the port
        ("-- sleep 0", {"PORT": "P"}, "P"),
        ("-- sleep 0", {}, ""),
        ("-- nice -n 5 uvicorn m:app --port P", {}, "P"),
        ("-- env uvicorn m:app --uds /tmp/x", {"PORT": "P"}, ""),
        ("-- {python} manage.py migrate", {"PORT": "P"}, ""),
    ],
)  # fmt: skip
def test_the_port_that_is_freed_for_a_command(project, port, words, environ, named):
    words = words.replace("P ", f"{port} ").replace("{python}", sys.executable)
    words = shlex.split(words[:-1] + str(port) if words.endswith(" P") else words)
    environ = {name: value.replace("P", str(port)) for name, value in environ.items()}
    done = call(*words[: words.index("--")], "--dry-run", *words[words.index("--") :], **environ)
    assert done.returncode == 0 and (f"Port {port}: available" in done.stdout) == bool(named), done
    assert ("The command itself names" in done.stderr) == (words[-1] in ("7", "runserver_plus"))


# The call


@pytest.mark.parametrize(
    ("words", "environ", "said"),
    [
        *((["--port", wrong], {}, f"a port is a number from 1 to 65535, not {wrong!r}")
          for wrong in ("0", "-1", "65536", "http", "80.5", "²", " 80", "8" * 5000)),
        ([], {"PORT": "http"}, "a port is a number from 1 to 65535, not 'http'"),
        (["--port"], {}, "--port needs a value"),
        (["--port", ""], {}, "--port needs a value"),
        (["--host", "--", "true"], {}, "--host needs a value"),
        (["9000"], {}, "'9000' is not an app; name it as in src.main:app, a port by --port, or put a command after --"),
        (["npm", "run", "dev"], {}, "'npm' is not an app; name it as in src.main:app, a port by --port, or put a command after --"),
        (["-p", "0"], {}, "a port is a number from 1 to 65535, not '0'"),
        (["--"], {}, "a command is needed after --, and before it nothing but --host, --port, --next and --dry-run"),
        (["src.main:app", "--", "true"], {}, "a command is needed after --, and before it nothing but --host, --port, --next and --dry-run"),
        (["manage.py", "runserver", "9000"], {}, "'runserver' is not an app; name it as in src.main:app, a port by --port, or put a command after --"),
    ],
    ids=lambda value: (" ".join(value)[:20] or "none") if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_call(project, monkeypatch, capsys, words, environ, said):
    project({"manage.py": DJANGO} if "manage.py" in words else {})
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert run_backend.main(words) == 2
    assert capsys.readouterr() == ("", f"run_backend: {said}\n")


def test_the_help_fits_and_tells_what_matters(capsys):
    assert run_backend.main(["src.main:app", "-h"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert all(word in out for word in ("ENVIRONMENT", "PORT_MANAGER_POLICY", "Exit status", "--dry-run", "Procfile", "FLASK_APP"))
    assert run_backend.main(["--version"]) == 0
    assert capsys.readouterr().out == f"run_backend {port_manager.__version__}\n"


@pytest.mark.parametrize("option", ["-I", "-P"])
def test_a_path_without_the_scripts_folder(project, option):
    if option == "-P" and sys.version_info < (3, 11):
        pytest.skip("-P is of Python 3.11")
    assert call("--version", python=[option]).stdout == f"run_backend {port_manager.__version__}\n"


def test_a_working_directory_that_has_been_removed(project):
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", sys.executable, RUN_BACKEND],
        capture_output=True, encoding="utf-8", check=False, cwd=project.folder,
    )  # fmt: skip
    assert done.returncode == 1 and "The working directory has been removed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--", "no-such-program", "x"], 127, "no-such-program is not installed, or not on PATH"),
        (["--", "./tool.py"], 126, "./tool.py is not executable"),
        (["--", "./server"], 126, "./server cannot be started: "),
        (["--host", "no-such-host.invalid"], 1, "is unknown"),
        (["--host", "192.0.2.1"], 1, "192.0.2.1 is not an address of this machine"),
    ],
)
def test_what_cannot_be_started(project, port, words, status, said):
    project({"tool.py": "", "server": "#!/no/such/interpreter\n"})
    os.chmod("server", 0o755)
    if "--" not in words:
        os.remove("tool.py")
    done = call("--port", str(port), *words)
    assert done.returncode == status and said in done.stderr.replace("Host", "host") and "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["main.py"], ["--", "true"]], ids=["app", "command"])
def test_production(project, port, hold, all_servers, words):
    project({"main.py": FASTAPI})
    held = hold(("127.0.0.1", port))
    done = call("--port", str(port), *words, ENVIRONMENT="production", PYTHONPATH=all_servers)
    assert done.returncode == 1 and "Starting" not in done.stdout and "PRODUCTION" in done.stderr
    assert held.alive() == [held.pid]


# The page and the server of the standard library


@pytest.mark.parametrize("kind", ["page", "wsgiref"])
def test_the_next_run_takes_the_port_over(project, port, start, kind):
    project({"wsgi.py": WSGI} if kind == "wsgiref" else {})
    command = [sys.executable, "-S", RUN_BACKEND, "--port", str(port)]
    first = start(*command)
    assert served_by(first, port)
    assert f"--{kind if kind == 'page' else 'wsgiref wsgi:application'}" in Path(f"/proc/{first.pid}/cmdline").read_text().replace("\0", " ")
    second = start(*command)
    assert served_by(second, port) and first.wait(10) == -signal.SIGTERM
    os.kill(second.pid, signal.SIGINT)
    assert second.wait(10) == 130
    said = second.stdout.read()
    what = "a small page" if kind == "page" else "wsgiref, no reload"
    assert f"✅ Starting server on 0.0.0.0:{port}: http://127.0.0.1:{port} ({what})" in said and "Traceback" not in said


def test_nobody_but_another_page_is_stopped_for_the_page(project, port, hold):
    held = hold(("127.0.0.1", port))
    done = call("--port", str(port))
    assert done.returncode == 1 and "a small page is served, for which nobody else is stopped" in done.stdout
    assert f"process {held.pid} (" in done.stderr and "is left alone" in done.stderr
    assert held.alive() == [held.pid]


def test_an_app_that_crashes_stops_nobody(project, port, hold):
    """The module is imported before the port is freed."""
    project({"wsgi.py": WSGI + "raise RuntimeError('no database')"})
    held = hold(("127.0.0.1", port))
    done = call("--port", str(port), python=["-S"])
    assert done.returncode == 1 and done.stderr.endswith("RuntimeError: no database\n") and held.alive() == [held.pid]


def test_head_has_no_body(project, port, start):
    page = start(sys.executable, RUN_BACKEND, "--port", str(port), "--host", "::1")
    assert eventually(lambda: asked(port, "::1"), 10)
    with contextlib.closing(http.client.HTTPConnection("::1", port, timeout=5)) as connection:
        connection.request("HEAD", "/")
        answer = connection.getresponse()
        assert answer.status == 200 and int(answer.headers["Content-Length"]) > 100 and answer.read() == b""
    assert page.poll() is None


@pytest.mark.skipif(not (ROOT_USER and shutil.which("unshare")), reason="needs root and unshare")
@pytest.mark.parametrize("files", [{}, {"wsgi.py": WSGI}], ids=["page", "wsgiref"])
def test_sigterm_ends_the_first_process_of_a_container(project, port, start, files):
    project(files)
    inside = start("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-S", RUN_BACKEND, "--port", str(port))
    assert eventually(lambda: asked(port), 10)
    first = int(Path(f"/proc/{inside.pid}/task/{inside.pid}/children").read_text().split()[0])
    os.kill(first, signal.SIGTERM)
    assert inside.wait(10) == 128 + signal.SIGTERM


def test_two_copied_files_are_enough(project, port, start):
    for file in (RUN_BACKEND, PORT_MANAGER):
        shutil.copy(file, project.folder)
    assert served_by(start(sys.executable, "run_backend.py", "--port", str(port)), port)


def test_the_app_is_in_the_folder_of_the_program(project, port):
    folder = project({"shop/main.py": FASTAPI, "elsewhere/README": ""}) / "shop"
    for file in (RUN_BACKEND, PORT_MANAGER):
        shutil.copy(file, folder)
    os.chdir("elsewhere")
    done = call("--port", str(port), program=str(folder / "run_backend.py"))
    assert done.returncode == 1 and f"cd {folder} && python run_backend.py" in done.stderr


# Become the command


def test_it_becomes_the_command(project, port, hold, start):
    held = hold(("127.0.0.1", port))
    code = "import os; print(os.getpid(), os.getppid(), os.environ['HOST'], os.environ['PORT']); raise SystemExit(7)"
    server = start(sys.executable, RUN_BACKEND, "--port", str(port), "--", sys.executable, "-c", code)
    out, _ = server.communicate(timeout=20)
    name = os.path.basename(sys.executable)
    assert out.splitlines()[-2:] == [
        f"✅ Starting server on 0.0.0.0:{port}: http://127.0.0.1:{port} ({name})",
        f"{server.pid} {os.getpid()} 0.0.0.0 {port}",  # no process of ours stands between
    ]
    assert server.returncode == 7 and held.alive() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_reaches_the_command(project, port, start, number):
    server = start(sys.executable, RUN_BACKEND, "--port", str(port), "--", "sleep", "60")
    assert eventually(lambda: Path(f"/proc/{server.pid}/comm").read_text().strip() == "sleep")
    os.kill(server.pid, number)
    assert server.wait(10) == -number


def test_the_command_inherits_no_ignored_signal(project, port):
    done = call("--port", str(port), "--", "grep", "SigIgn", "/proc/self/status")
    ignored = int(done.stdout.split()[-1], 16)
    assert [n.name for n in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (n - 1) & 1] == []


def test_a_command_that_names_no_port_frees_none(project):
    assert call("--", "true").stdout == "✅ Starting true, which names no port\n"


class OtherSystem:
    name = "nt"

    def __getattr__(self, attribute):
        return getattr(os, attribute)


def test_windows_waits_for_the_command_and_names_it_in_full(project, port, monkeypatch):
    """It has no exec; npm is npm.cmd there; and the console has told the child of Ctrl+C as well."""

    class Child:
        started: list = []  # noqa: RUF012
        waits = iter([KeyboardInterrupt, 3])

        def __init__(self, command):
            self.started.append((command, os.environ["PORT"]))

        def wait(self):
            outcome = next(self.waits)
            if outcome is KeyboardInterrupt:
                raise KeyboardInterrupt
            return outcome

    monkeypatch.setattr(run_backend, "os", OtherSystem())
    monkeypatch.setattr(shutil, "which", lambda program: rf"C:\node\{program}.CMD")
    monkeypatch.setattr(subprocess, "Popen", Child)
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("HOST", "127.0.0.1")
    assert run_backend.main(["--port", str(port), "--", "npm", "run", "dev"]) == 3
    assert Child.started == [([r"C:\node\npm.CMD", "run", "dev"], str(port))]


def test_a_console_of_ascii(project, port, start, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = call("--port", str(port), "--", "true")
    assert done.stdout == f"Starting server on 0.0.0.0:{port}: http://127.0.0.1:{port} (true)\n" and done.returncode == 0


# Real servers, where they are installed

PAGE = {
    "fastapi": "from fastapi import FastAPI\nimport os\napp = FastAPI()\n@app.get('/')\ndef page(): return f'Process {os.getpid()} '\n",
    "flask": "from flask import Flask\nimport os\napp = Flask('x')\n@app.get('/')\ndef page(): return f'Process {os.getpid()} '\n",
    "litestar": "from litestar import Litestar, get\n@get('/')\nasync def page() -> str: return 'hello'\napp = Litestar([page])\n",
    "quart": "from quart import Quart\napp = Quart('x')\n@app.get('/')\nasync def page(): return 'hello'\n",
    "sanic": "from sanic import Sanic, text\napp = Sanic('x')\n@app.get('/')\nasync def page(request): return text('hello')\n",
    "dash": "from dash import Dash, html\napp = Dash('x')\napp.layout = html.P('hello')\nserver = app.server\n",
    "django": "import os, sys\nfrom django.conf import settings\nfrom django.http import HttpResponse\nfrom django.urls import path\n"
    "settings.configure(DEBUG=True, ROOT_URLCONF=__name__, ALLOWED_HOSTS=['*'], SECRET_KEY='x')\n"
    "urlpatterns = [path('', lambda request: HttpResponse('hello'))]\n"
    "from django.core.management import execute_from_command_line\nexecute_from_command_line(sys.argv)\n",
}


@pytest.mark.parametrize(
    ("framework", "server", "files", "words"),
    [
        ("fastapi", "uvicorn", {"main.py": PAGE["fastapi"]}, []),
        ("fastapi", "uvicorn", {"src/shop/web.py": "from shop import x\n" + PAGE["fastapi"], "src/shop/__init__.py": "x = 1"}, ["--reload"]),
        ("fastapi", "hypercorn", {"main.py": PAGE["fastapi"], "Procfile": "web: hypercorn main:app -b :$PORT"}, []),
        ("fastapi", "granian", {"main.py": PAGE["fastapi"], "Procfile": "web: granian --interface asgi main:app"}, []),
        ("flask", "gunicorn", {"shop/__init__.py": "def make():\n" + "".join(f"    {x}\n" for x in PAGE["flask"].splitlines())
                               + "    return app\n", ".flaskenv": "FLASK_APP=shop:make()"}, []),
        ("flask", "waitress", {"app.py": PAGE["flask"], "Procfile": "web: waitress-serve --listen=*:$PORT app:app"}, []),
        ("flask", "flask", {"app.py": PAGE["flask"]}, ["--debug"]),
        ("django", "django", {"manage.py": PAGE["django"]}, ["--noreload"]),
        ("litestar", "uvicorn", {"app.py": PAGE["litestar"]}, []),
        ("quart", "hypercorn", {"app.py": PAGE["quart"]}, []),
        ("sanic", "sanic", {"app.py": PAGE["sanic"]}, []),
        ("dash", "gunicorn", {"app.py": PAGE["dash"]}, []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_real_start_and_a_take_over(project, port, start, framework, server, files, words):
    for package in (framework, server):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    project(files)
    command = [sys.executable, RUN_BACKEND, "--port", str(port), "--host", "127.0.0.1", *words]
    first = start(*command)
    assert eventually(lambda: asked(port) or first.poll() is not None, 20) and asked(port)
    second = start(*command)
    assert eventually(lambda: first.poll() is not None, 20)
    assert eventually(lambda: asked(port) or second.poll() is not None, 20) and asked(port), second.stdout.read()
