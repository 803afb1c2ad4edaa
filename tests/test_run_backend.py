"""run_backend: what a repository declares or shows, the command that follows, and the start of it."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import port_manager
import run_backend

from . import apps
from .apps import DJANGO, FACTORY, FASTAPI, FLASK
from .conftest import LINUX, PORT_MANAGER, ROOT_USER, RUN_BACKEND, can_bind, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")

WSGI = apps.WSGI.replace("app(", "application(")
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


# The command that follows from what a folder has and from words: the last line of --dry-run. § stands for the port, and
# uvicorn APP and gunicorn APP for all that these two are started with.

START = {"uvicorn": "-m uvicorn {} --host 0.0.0.0 --port §", "gunicorn": "-m gunicorn {} --bind 0.0.0.0:§"}
IMPORTED = "from shop import create_app\n"
MADE = IMPORTED + "app = create_app()\n"
GET_WSGI = "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()"
UNGUARDED = "from bottle import Bottle, run\napp = Bottle()\nrun(app, port=8080)\n"
KEEP_ALIVE = FLASK + """
def run():
    app.run(port=8080)

def keep_alive():
    Thread(target=run).start()
"""
FOLDERS = [
    # by the conventions of fastapi and flask, and by ours
    ("uvicorn main:app", {"main.py": FASTAPI}),
    ("uvicorn src.main:app", {"src/main.py": FASTAPI, "main.py": FLASK}),
    ("uvicorn src.main:app", {"src/main.py": "from src.db import x\n" + FASTAPI, "src/db.py": "x = 1"}),
    ("gunicorn app:app", {"app.py": FLASK, "other.py": FLASK}),
    ("uvicorn main:app", {"api.py": "x = = 1", "main.py": FASTAPI}),
    ("gunicorn wsgi:application", {"wsgi.py": "from app import app as application\n", "app.py": FLASK}),
    # a module of any name, and any name in it
    ("uvicorn server:api", {"server.py": FASTAPI.replace("app =", "api =")}),
    ("gunicorn hello:app", {"hello.py": FLASK}),
    ("gunicorn api.index:app", {"api/index.py": FLASK, "vercel.json": "{}"}),
    ("uvicorn web:service", {"web.py": "from starlette.applications import Starlette\nservice = Starlette()"}),
    # in a package: an object, or a factory
    ("uvicorn shop.asgi:app", {"shop/__init__.py": "", "shop/asgi.py": FASTAPI}),
    ("gunicorn shop:create_app()", {"shop/__init__.py": FACTORY}),
    ("gunicorn shop.core:app", {"shop/__init__.py": "from .core import *\n", "shop/core.py": FLASK}),
    ("uvicorn --factory main:create_app", {
      "main.py": "from fastapi import FastAPI\ndef create_app() -> FastAPI:\n    return FastAPI()\n"}),
    # where imports begin
    ("PYTHONPATH=src python uvicorn shop.main:app", {"src/shop/__init__.py": "",
      "src/shop/main.py": "from shop.db import x\n" + FASTAPI, "src/shop/db.py": "x = 1"}),
    ("PYTHONPATH=shop python gunicorn shop:app", {"shop/__init__.py": "from db import x\n" + FLASK, "shop/db.py": "x = 1"}),
    ("PYTHONPATH=app python uvicorn main:app", {"app/main.py": "from database import x\n" + FASTAPI,
      "app/database.py": "x = 1"}),
    # who builds it, through the imports of this repository
    ("gunicorn run:app", {"run.py": MADE, "shop/__init__.py": FACTORY}),
    ("gunicorn shop:create_app()", {
      "run.py": IMPORTED + "if __name__ == '__main__':\n    app = create_app()\n    app.run()\n",
      "shop/__init__.py": FACTORY}),
    ("gunicorn run:app", {
      "run.py": IMPORTED + "if __name__ == '__main__':\n    create_app('x').run()\nelse:\n    app = create_app()\n",
      "shop/__init__.py": FACTORY}),
    ("gunicorn shop:create_app()", {
      "seed.py": MADE + "with app.app_context():\n    fill()\n", "shop/__init__.py": FACTORY,
      "ask.py": IMPORTED + "client = create_app().test_client()\n"}),
    ("gunicorn shop:app", {"microblog.py": "from shop import app, db\n",
      "shop/__init__.py": FLASK + "db = 1\nfrom shop import routes\n", "shop/routes.py": "from shop import app\n"}),
    ("gunicorn manage:app", {
      "manage.py": f"from flask_script import Manager\n{IMPORTED}app = create_app('dev')\nManager(app).run()\n",
      "shop/__init__.py": FACTORY.replace("=None", "")}),
    ("uvicorn web:shop", {"web.py": "from fastapi import FastAPI\nclass Shop(FastAPI):\n    pass\nshop = Shop()\n"}),
    ("uvicorn one:app", {"one.py": "from two import app as two\n" + FASTAPI, "two.py": FASTAPI}),
    ("gunicorn app:app", {
      "app.py": FLASK + "from werkzeug.middleware.proxy_fix import ProxyFix\napp = ProxyFix(app)\n"}),
    ("uvicorn app:app", {"app.py": FLASK + "from asgiref.wsgi import WsgiToAsgi\napp = WsgiToAsgi(app)\n"}),
    ("gunicorn wsgi:app", {
      "wsgi.py": "from pyramid.config import Configurator\nwith Configurator() as c:\n    app = c.make_wsgi_app()\n"}),
    ("gunicorn web:application", {"web.py": WSGI}),
    ("uvicorn app:app", {
      "app.py": "try:\n    import fastapi\nexcept ImportError:\n    raise\nelse:\n    app = fastapi.FastAPI()\n"}),
    ("uvicorn shop.web:app", {
      "main.py": "import uvicorn\nif __name__ == '__main__':\n    uvicorn.run('shop.web:app', port=int(PORT))\n",
      "shop/__init__.py": "", "shop/web.py": FASTAPI}),
    ("gunicorn app:create_app()", {"app.py": IMPORTED, "shop/__init__.py": "from .app import create_app\n",
      "shop/app.py": FACTORY}),
    ("gunicorn shop.app:app", {"shop/__init__.py": FACTORY, "shop/app.py": MADE.replace("shop", ".")}),
    ("uvicorn --factory main:make_app", {
      "main.py": "from fastapi import FastAPI\n@lru_cache\ndef make_app():\n    return FastAPI()\n"}),
    ("gunicorn web:app", {"tests/test_web.py": FASTAPI, "examples/one.py": FASTAPI, "node_modules/x/a.py": FASTAPI,
      "web.py": FLASK}),
    # the package hides the module of its name
    ("gunicorn app:create_app()", {"app.py": MADE.replace("shop", "app"), "app/__init__.py": FACTORY}),
    ("gunicorn web:app", {"web.py": FLASK, "old/web.py": FLASK}),
    ("gunicorn web:app", {"web.py": FLASK, "broken.py": "= 1"}),
    # one module or folder deeper, beside other code
    ("PYTHONPATH=src python uvicorn shop.web.main:app", {"src/shop/web/main.py": "from shop.db import x\n" + FASTAPI,
      "src/shop/db.py": "x = 1"}),
    ("PYTHONPATH=api python uvicorn main:app", {"api/main.py": "from database import x\n" + FASTAPI,
      "api/database.py": "x = 1", "api/requirements.txt": "fastapi", "package.json": "{}"}),
    ("uvicorn backend.main:app", {"backend/__init__.py": "", "backend/main.py": FASTAPI}),
    ("uvicorn src.server.app:app", {"src/server/app.py": FASTAPI, "src/server/routes.py": ""}),
    ("gunicorn web:app", {"web.py": FLASK, "backend/main.py": FASTAPI}),
    ("PYTHONPATH=shop-api python uvicorn app.main:app", {"shop-api/app/main.py": "from app.db import x\n" + FASTAPI,
      "shop-api/app/db.py": "x = 1", "package.json": "{}"}),
    ("gunicorn web:app", {"web.py": FLASK, "shop/manage.py": DJANGO}),
    ("shop/manage.py runserver 0.0.0.0:§", {"shop/manage.py": DJANGO, "shop/wsgi.py": GET_WSGI}),
    ("gunicorn web:app", {"web.py": FLASK, "chat.py": UNGUARDED, "latest/tool.py": ""}),
    # it runs itself, but not when it is imported
    ("uvicorn main:app", {"main.py": f"import uvicorn\n{FASTAPI}if __name__ == '__main__':\n    uvicorn.run(app)\n"}),
    ("gunicorn web:app", {"web.py": FLASK + "def main():\n    app.run()\n"}),
    ("gunicorn web:app", {"web.py": FLASK + "if __name__ == '__main__': app.run()\n"}),
    ("gunicorn web:application", {"web.py": "from bottle import default_app\napplication = default_app()\n",
      "local.py": "import bottle\nfrom bottle import run\napp = bottle.default_app()\nrun(reloader=True)\n"}),
    ("gunicorn server:app", {"server.py": "import connexion\napp = connexion.App('x')\n"}),
    # frameworks with servers of their own
    ("manage.py runserver 0.0.0.0:§", {"manage.py": DJANGO, "shop/wsgi.py": GET_WSGI}),
    ("shop/manage.py runserver 0.0.0.0:§", {"shop/manage.py": DJANGO}),
    ("-m litestar --app app:app run --host 0.0.0.0 --port §", {
      "app.py": "from litestar import Litestar\napp = Litestar([])"}),
    ("-m hypercorn app:app --bind 0.0.0.0:§", {"app.py": "from quart import Quart\napp = Quart('x')"}),
    ("-m sanic app:app --host 0.0.0.0 --port §", {"app.py": "from sanic import Sanic\napp = Sanic('x')"}),
    ("-m sanic app:app --host 0.0.0.0 --port § --fast", {"app.py": "from sanic import Sanic\napp = Sanic('x')"}, "--fast"),
    ("gunicorn app:server", {"app.py": "from dash import Dash\napp = Dash('x')\nserver = app.server\n"}),
    ("-m waitress --listen 0.0.0.0:§ app:app.server", {"app.py": "from dash import Dash\napp = Dash('x')\n"}),
    ("-m flask --app app:app run --host 0.0.0.0 --port § --debug", {"app.py": FLASK}, "--debug"),
    # declared
    ("gunicorn shop.wsgi:application --workers 2", {
      "Procfile": "worker: x\nweb: gunicorn shop.wsgi --workers 2 -b 0.0.0.0:$PORT\n", "manage.py": DJANGO,
      "shop/wsgi.py": GET_WSGI}),
    ("gunicorn main:app -k uvicorn.workers.UvicornWorker", {
      "Procfile": "web: python manage.py migrate && exec gunicorn -k uvicorn.workers.UvicornWorker main:app",
      "main.py": FASTAPI}),
    ("-m hypercorn main:app --bind 0.0.0.0:§", {"Procfile": "web: hypercorn main:app --bind=0.0.0.0:$PORT",
      "main.py": FASTAPI}),
    ("-m waitress --listen 0.0.0.0:§ app:app --threads=2", {
      "Procfile": "web: waitress-serve --port=$PORT --threads=2 app:app", "app.py": FLASK}),
    ("gunicorn shop:app", {"Procfile": "web: flask --app shop run -p $PORT", "shop.py": FLASK, "app.py": FLASK}),
    ("gunicorn shop:app", {"Procfile": "web: flask run", ".flaskenv": "FLASK_APP=shop", "shop.py": FLASK,
      "run.py": FLASK}),
    ("gunicorn shop:app", {"Procfile": "web: gunicorn shop:app", "shop.py": FLASK, "gunicorn.py": ""}),
    ("gunicorn server:app", {"Procfile": "web: no-such-yarn server", "server.py": FLASK}),
    ("server.py", {"Procfile": "web: python server.py", "server.py": "import http.server"}),
    ("uvicorn shop.main:app --app-dir backend", {
      "Procfile": "web: uvicorn shop.main:app --app-dir backend --port $PORT", "backend/shop/main.py": FASTAPI}),
    ("cd backend && python gunicorn app:app", {"Procfile": "web: cd backend && gunicorn app:app",
      "backend/app.py": FLASK}),
    ("gunicorn shop:app", {"Procfile": "web: python run_backend.py shop:app", "shop.py": FLASK, "app.py": FLASK}),
    ("gunicorn app:app", {"Procfile": "web: python run_backend.py", "app.py": FLASK}),
    ("gunicorn app:app -w 2", {"Procfile": "web: python run_backend.py -- gunicorn app:app -w 2", "app.py": FLASK}),
    ("manage.py runserver 0.0.0.0:§", {"Procfile": "web: no-such-server shop.ini", "manage.py": DJANGO}),
    ("gunicorn shop:app", {".flaskenv": "FLASK_APP = shop\nFLASK_DEBUG=0", "shop/__init__.py": FLASK, "app.py": FLASK}),
    ('gunicorn shop:make("dev")', {".env": "export FLASK_APP='shop.py:make(\"dev\")'",
      "shop.py": FLASK + "def make(name):\n    return app\n"}),
    ("-m flask --app shop:app run --host 0.0.0.0 --port § --debug", {".flaskenv": "FLASK_APP=shop\nFLASK_DEBUG=1",
      "shop.py": FLASK}),
    ("uvicorn shop.web:api", {
      "pyproject.toml": "[project]\nentrypoint = 'x'\n[tool.fastapi]\nentrypoint = \"shop.web:api\"\n",
      "main.py": FASTAPI, "shop/web.py": FASTAPI.replace("app =", "api =")}),
    ("uvicorn web:app", {
      "pyproject.toml": "[tool.fastapi]\nx = [1]\nentrypoint = 'web:app'\n", "main.py": FASTAPI, "web.py": FASTAPI}),
    ("gunicorn web:app", {"Procfile": "web: ;", "web.py": FLASK}),
    ("gunicorn app:app --chdir backend", {"Procfile": "web: gunicorn app:app --chdir backend", "backend/app.py": FLASK}),
    # named on the command line
    ("gunicorn shop.web:app", {"shop/web.py": FLASK}, "shop/web.py"),
    ("gunicorn shop.wsgi:application", {"shop/wsgi.py": WSGI}, "shop.wsgi"),
    ("gunicorn shop:create_app('dev')", {"shop.py": FACTORY}, "shop:create_app('dev')"),
    ("gunicorn shop:create_app()", {"shop.py": FACTORY}, "shop:create_app"),
    ("uvicorn main:app --log-config log.py", {"main.py": FASTAPI, "log.py": ""}, "--log-config log.py"),
    ("uvicorn main:app --log-config debug", {"main.py": FASTAPI, "debug.py": ""}, "--log-config debug"),
    ("uvicorn main:app --reload --workers 2", {"main.py": FASTAPI}, "--reload main:app --workers 2"),
    ("manage.py runserver 0.0.0.0:§ --noreload", {"manage.py": DJANGO}, "manage.py --noreload"),
    ("uvicorn json.tool:app", {}, "json.tool:app"),  # of an installed package
    ("--page --host 0.0.0.0 --port §", {}),
    ("--page --host 0.0.0.0 --port §", {"README.md": "", "tests/test_x.py": ""}),
]  # fmt: skip


@pytest.mark.parametrize("row", FOLDERS, ids=lambda row: "-".join(row[1]))
def test_the_command_for_a_folder(project, port, all_servers, row):
    command, files, words = (*row, "")[:3]
    project(files)
    done = call("--port", str(port), *words.split(), "--dry-run", PYTHONPATH=all_servers)
    started = re.compile(r"\b(uvicorn|gunicorn) ((?:--factory )?\S+)")
    expected = started.sub(lambda found: START[found[1]].format(found[2]), command, count=1)
    expected = expected.replace("§", str(port)).replace("python ", os.path.basename(sys.executable) + " ")
    assert done.returncode == 0, done.stderr
    shown = command_of(done).split(" ")
    interpreter = shown[:1] == [os.path.basename(sys.executable)]
    assert " ".join(shown[interpreter + ("run_backend.py" in shown) :]) == expected
    assert can_bind(port)


# The exit status, and what is said, where nobody is stopped; § stands for the port, and PID for who holds it.

AIOHTTP = {"app.py": "from aiohttp import web\napp = web.Application()\n"}
MAIN = {"main.py": FASTAPI}
HELD = "process PID ("
STOPS_NOBODY = [
    # there is nothing to start
    (1, "Several apps were found; name one:\n  python run_backend.py one:app", {"one.py": FLASK, "two.py": FASTAPI}),
    (1, "No app was found", {"main.py": "print('a tool')"}),
    (1, "No app was found", {"main.go": "package main"}),
    (1, "No app was found", {
      "main.py": "class Shop:\n    def __init__(self):\n        self.app = FastAPI()\nserver = Shop()\n"}),
    (1, "No app was found", {"main.py": FASTAPI.replace("app", "_app")}),
    (1, "run_backend.py -- python serve.py", {
      "serve.py": "from waitress import serve\nfrom shop import make\napp = make()\nserve(app.server, port=8049)\n",
      "shop.py": "from dash import Dash\ndef make():\n    return Dash('x')\n"}),
    (1, "No app was found", {"jobs.py": "from celery import Celery\napp = Celery()\n"}),
    (1, "No app was found", AIOHTTP),
    (1, "app.py has no app at its top that a server can serve", AIOHTTP, "app:app"),
    (1, "shop:create_app(config) needs arguments: name it with them", {"shop.py": FACTORY.replace("=None", "")}),
    (1, "cd backend && python ", {"backend/main.py": FASTAPI, "frontend/package.json": "{}"}),
    (1, "cd server && python ", {"server/app.py": FLASK, "server/requirements.txt": "flask"}),
    (1, "try:\n  cd backend && python ../run_backend.py main:app  # FastAPI object in backend/main.py\n", {
      "backend/main.py": f"import uvicorn\n{FASTAPI}if __name__ == '__main__':\n    uvicorn.run(app)\n"}),
    (1, "name one:\n  cd backend && python ../run_backend.py main:app  #", {
      "backend/main.py": FASTAPI, "backend_old/main.py": "from db import x\n" + FASTAPI, "backend_old/db.py": "x = 1"}),
    (1, "can serve; as a program: python run_backend.py -- python app.py\n", {"Procfile": "web: gunicorn app.py",
      "app.py": FLASK + "app.run(debug=True)\n"}),
    (1, "python run_backend.py -- npm run dev", {"package.json": "{}"}),
    (1, "cd backend && python ../run_backend.py shop.web:app  #", {"backend/shop/web.py": FASTAPI, "run.py": "call()"}),
    (1, "try:\n  python run_backend.py services.web.api.main:app  #", {"services/web/api/main.py": FASTAPI}),
    (1, "name one:\n  python run_backend.py shop/manage.py  # Django's shop/manage.py\n  python run_backend.py web.main:app",
      {"web/main.py": FASTAPI, "shop/manage.py": DJANGO}),
    (1, "name one:\n  cd backend && python ../run_backend.py manage.py  #", {
      "backend/manage.py": DJANGO, "backend/shop/wsgi.py": GET_WSGI}),
    # what starts a server of its own is named
    *((1, f"try:\n  python run_backend.py -- {command}", files) for command, files in [
      ("python run.py", {"run.py": UNGUARDED}),
      ("python web/app.py", {"web/app.py": "from bottle import run\nif __name__ == '__main__':\n    run(host='x')\n"}),
      ("python entry.py", {**AIOHTTP, "entry.py": "from app import app\nif 1:\n    web.run_app(app)\n"}),
      ("python server.py", {"server.py": "def main():\n    app.listen(80)\n    IOLoop.current().start()\n"}),
      ("python web.py", {"web.py": "import gradio as gr\nwith gr.Blocks() as demo:\n    pass\ndemo.launch()\n"}),
      ("python main.py", {"main.py": "from nicegui import app, ui\nui.run()\n"}),
      ("python app.py", {"app.py": FLASK + "app.run(debug=True)\n"}),
      ("python main.py", {"main.py": f"import uvicorn\n{FASTAPI}uvicorn.run('main:app', port=80)\n"}),
      ("python a/b/c/serve.py", {"a/b/c/serve.py": "with HTTPServer() as server:\n    server.serve_forever()\n"}),
      ("python -m shop.serve", {"shop/__init__.py": "", "shop/serve.py": "from . import app\nuvicorn.run(app)\n"}),
      ("python shop/serve.py", {"shop/__init__.py": "", "shop/routes.py": "",
        "shop/serve.py": "import routes\nuvicorn.run(app)\n"}),
      ("python main.py", {"main.py": KEEP_ALIVE + "keep_alive()\nbot()\n"}),
      ("python -m shop", {"shop/__main__.py": "from .cli import main\nmain()\n", "shop/cli.py": ""}),
      ("chainlit run shop/chat.py", {"shop/chat.py": "import chainlit as cl\n", "shop/__init__.py": ""}),
      ("streamlit run ui.py", {"ui.py": "import streamlit as st\nst.title('x')\n"}),
      ("python app.py", {"app.py": "load_plugins()\n"}),
      ("python run.py", {"run.py": IMPORTED + "if __name__ == '__main__':\n    app = create_app(Config)\n    app.run()\n",
        "shop/__init__.py": FACTORY.replace("=None", "")}),
      ("pserve development.ini", {"development.ini": "", "shop/__init__.py":
        "from pyramid.config import Configurator\ndef main(global_config, **settings):\n"
        "    return Configurator(settings=settings).make_wsgi_app()\n"})]),
    (1, "# program in main.py", {"keep_alive.py": KEEP_ALIVE, "main.py": "from keep_alive import keep_alive\nbot()\n"}),
    (1, "try:\n  python run_backend.py example.one:app  #", {"example/one.py": FLASK, "shop/__init__.py": "x = 1"}),
    # code, but nothing to start
    *((1, "No app was found at the top, in src or one folder down; name it, as in src.main:app, or put a command after",
       {path: ""}) for path in ("a/b/c/d/tool.go", "a.ipynb", "pyproject.toml", "docs/conf.py", "examples/one.py", "x/lib.py")),
    (1, "src/main.py cannot be read: invalid syntax (main.py, line 3)", {"src/main.py": "import os\n\napp = = 1\n"}),
    (1, "src/main.py cannot be read: invalid syntax (main.py, line 1)", {"src/main.py": "app = = 1\n"}, "src.main:app"),
    (1, "main.py has no nope at its top", MAIN, "main:nope"),
    (1, "There is no mian:app in this folder", MAIN, "mian:app"),
    (1, "There is no nosuch.py in this folder", MAIN, "nosuch.py"),
    (1, "There is no ../main.py in this folder", MAIN, "../main.py"),
    (2, "uvicorn has no option --no-such-option", MAIN, "--no-such-option"),
    (2, "'My Shop' is not an app", MAIN, "", {"APP": "My Shop"}),
    # it cannot be started
    (127, "no-such-program is not installed, or not on PATH", {}, "-- no-such-program x"),
    (126, "./tool.py is not executable", {"tool.py": ""}, "-- ./tool.py"),
    (1, "Host name 'no-such-host.invalid' is unknown", MAIN, "--host no-such-host.invalid"),
    (1, "192.0.2.1 is not an address of this machine", MAIN, "--host 192.0.2.1"),
    (1, "PRODUCTION", MAIN, "main.py", {"ENVIRONMENT": "production"}),
    (1, "PRODUCTION", {}, "-- true", {"ENVIRONMENT": "production"}),
    (1, "a small page is served, for which nobody else is stopped\n⚠️  Port § is already in use", {}),
    # it is only shown, or started elsewhere
    (0, f"Found main:app: FastAPI object in main.py\nPort §: {HELD}", MAIN, "--dry-run"),
    (0, f"Found manage.py: Django's manage.py\nPort §: {HELD}", {"manage.py": DJANGO}, "--dry"),  # as argparse has it
    (1, "outside development", MAIN, "--dry-run", {"ENVIRONMENT": "production"}),
    (0, f"Port § is held by {HELD}", {}, "--host 127.0.0.1 --next --dry-run"),
    (0, f"Port § is held by {HELD}", {}, "--host 127.0.0.1 --next --dry-run -- true"),
    (2, "leave out --next", {}, "--next -- python -m http.server §"),
]  # fmt: skip


@pytest.mark.parametrize("row", STOPS_NOBODY, ids=lambda row: f"{'-'.join(row[2])} {' '.join(row[3:4])}".strip())
def test_nobody_is_stopped_where_there_is_nothing_to_start(project, port, hold, all_servers, row):
    status, said, files, words, environ = (*row, *("", {})[len(row) - 3 :])
    project(files)
    held = hold(("127.0.0.1", port))
    done = call("--port", str(port), *words.replace("§", str(port)).split(), PYTHONPATH=all_servers, **environ)
    said = said.replace("§", str(port)).replace("PID", str(held.pid))
    assert done.returncode == status and said in done.stdout + done.stderr and "Traceback" not in done.stderr, done
    assert "Starting" not in done.stdout and held.alive() == [held.pid]


@pytest.mark.parametrize(
    "files",
    [
        {"backend/app/main.py": "from app.db import x\n" + FASTAPI, "backend/app/db.py": "x = 1"},
        {"backend/manage.py": DJANGO, "backend/shop/wsgi.py": GET_WSGI, "server/shop.py": FACTORY},
        {"one/main.py": "from db import x\n" + FASTAPI, "one/db.py": "", "two/main.py": FASTAPI, "The Shop/app.py": FLASK},
        {"a/b/c.py": FLASK, "my-shop/web/api.py": FACTORY, "v1.0/app.py": FLASK, "My Tools/serve.py": UNGUARDED},
        {"shop/manage.py": DJANGO, "web.py": KEEP_ALIVE, "main.py": "bot()", "jobs.py": FACTORY.replace("=None", "")},
    ],
    ids=lambda files: "-".join(files),
)  # fmt: skip
def test_each_line_that_is_printed_works(project, port, all_servers, files):
    folder = project(files)
    for file in (RUN_BACKEND, PORT_MANAGER):
        shutil.copy(file, folder)
    environ = {**os.environ, "PYTHONPATH": all_servers}
    told = call(program="run_backend.py", **environ).stderr
    lines = re.findall("^  (.+?)  #", told, re.MULTILINE)
    assert lines and len({*lines}) == len(lines) and "(config)" not in told
    for line in lines:
        typed = line.replace("run_backend.py", f"run_backend.py --dry-run --port {port}").replace(
            "python ", f"{shlex.quote(sys.executable)} ", 1
        )
        done = subprocess.run(["sh", "-c", typed], capture_output=True, encoding="utf-8", check=False, env=environ)
        assert done.returncode == 0, (line, done)


@pytest.mark.parametrize(
    ("present", "files", "words", "outcome"),
    [
        ("uvicorn hypercorn granian daphne", {"main.py": FASTAPI}, "", "-m uvicorn main:app --host 0.0.0.0 --port §"),
        ("hypercorn granian", {"main.py": FASTAPI}, "", "-m hypercorn main:app --bind 0.0.0.0:§"),
        ("granian", {"main.py": FASTAPI}, "", "-m granian --interface asgi main:app --host 0.0.0.0 --port §"),
        ("daphne", {"main.py": FASTAPI}, "", "-m daphne -b 0.0.0.0 -p § main:app"),
        ("", {"main.py": FASTAPI}, "",
         "main:app needs uvicorn, which is not installed: {python} -m pip install uvicorn"),
        ("waitress", {"app.py": FLASK}, "", "-m waitress --listen 0.0.0.0:§ app:app"),
        ("waitress", {"app.py": FACTORY}, "", "-m waitress --listen 0.0.0.0:§ --call app:create_app"),
        ("", {"app.py": FLASK}, "", "--wsgiref app:app --host 0.0.0.0 --port §"),
        ("", {"app.py": FLASK}, "--workers 2", "app:app needs gunicorn, which is not installed"),
        ("", {"manage.py": DJANGO}, "", "manage.py needs django, which is not installed"),
        ("waitress", {"Procfile": "web: gunicorn app:app --preload", "app.py": FLASK}, "",
         "-m waitress --listen 0.0.0.0:§ app:app"),
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


def test_a_module_is_read_and_never_imported(project, port, all_servers):
    project({"src/main.py": "open('imported', 'w').close()\n" + FASTAPI})
    assert call("--port", str(port), "--dry-run", PYTHONPATH=all_servers).returncode == 0
    assert not os.path.exists("imported")


# What a given command names


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


NO_APP = "is not an app; name it as in src.main:app, a port by --port, or put a command after --"
NO_COMMAND = "a command is needed after --, and before it nothing but --host, --port, --next and --dry-run"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *((["--port", wrong], f"a port is a number from 1 to 65535, not {wrong!r}")
          for wrong in ("0", "-1", "65536", "http", "80.5", "²", " 80", "8" * 5000)),
        (["PORT=http"], "a port is a number from 1 to 65535, not 'http'"),
        (["-p", "0"], "a port is a number from 1 to 65535, not '0'"),
        (["--port"], "--port needs a value"),
        (["--port", ""], "--port needs a value"),
        (["--host", "--", "true"], "--host needs a value"),
        (["9000"], f"'9000' {NO_APP}"),
        (["npm", "run", "dev"], f"'npm' {NO_APP}"),
        (["manage.py", "runserver", "9000"], f"'runserver' {NO_APP}"),
        (["--"], NO_COMMAND),
        (["src.main:app", "--", "true"], NO_COMMAND),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_call(project, monkeypatch, capsys, words, said):
    project({"manage.py": DJANGO} if "manage.py" in words else {})
    if words == ["PORT=http"]:
        monkeypatch.setenv(*words.pop().split("="))
    assert run_backend.main(words) == 2
    assert capsys.readouterr() == ("", f"run_backend: {said}\n")


def test_the_help_fits_and_tells_what_matters(capsys):
    assert run_backend.main(["src.main:app", "-h"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for word in ("ENVIRONMENT", "PORT_MANAGER_POLICY", "Exit status", "--dry-run", "Procfile", "FLASK_APP"):
        assert word in out
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
    assert done.returncode == 1 and "The working directory has been removed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_whose_interpreter_is_missing(project, port):
    project({"server": "#!/no/such/interpreter\n"})
    os.chmod("server", 0o755)
    done = call("--port", str(port), "--", "./server")
    assert done.returncode == 126 and "./server cannot be started: " in done.stderr and "Traceback" not in done.stderr


# The page and the server of the standard library


@pytest.mark.parametrize("kind", ["page", "wsgiref"])
def test_the_next_run_takes_the_port_over(project, port, start, kind):
    project({"wsgi.py": WSGI} if kind == "wsgiref" else {})
    command = [sys.executable, "-S", RUN_BACKEND, "--port", str(port)]
    first = start(*command)
    assert served_by(first, port)
    option = "--page" if kind == "page" else "--wsgiref\0wsgi:application"
    assert option in Path(f"/proc/{first.pid}/cmdline").read_text()
    second = start(*command)
    assert served_by(second, port) and first.wait(10) == -signal.SIGTERM
    os.kill(second.pid, signal.SIGINT)
    assert second.wait(10) == 130
    said = second.stdout.read()
    what = "a small page" if kind == "page" else "wsgiref, no reload"
    assert f"✅ Starting server on 0.0.0.0:{port}: http://127.0.0.1:{port} ({what})" in said and "Traceback" not in said


@pytest.mark.parametrize("error", ["RuntimeError: no database", "FileNotFoundError: [Errno 2] No such file: 'db'"])
def test_an_app_that_crashes_stops_nobody(project, port, hold, error):
    """The module is imported before the port is freed."""
    crash = "FileNotFoundError(2, 'No such file', 'db')" if "Errno" in error else "RuntimeError('no database')"
    project({"wsgi.py": f"{WSGI}raise {crash}"})
    held = hold(("127.0.0.1", port))
    done = call("--port", str(port), python=["-S"])
    assert done.returncode == 1 and done.stderr.endswith(f"{error}\n") and held.alive() == [held.pid]


def test_a_page_stops_nobody_who_was_faster(project, port, hold, monkeypatch):
    """The port is free at first, and another program takes it before the page does."""
    bind = run_backend.bind_port

    def late(port, host):
        held = hold(port)
        with pytest.raises(port_manager.PortError):
            bind(port, host).close()
        sys.exit(" ".join(map(str, held.alive())))

    monkeypatch.setattr(run_backend, "bind_port", late)
    monkeypatch.setenv("PORT_MANAGER_POLICY", "")
    with pytest.raises(SystemExit, match=r"\d"):
        run_backend.main(["--page", "--port", str(port)])


def test_the_next_port_where_nobody_holds_the_first(project, port, hold):
    """A browser would meet who listens at ::1."""
    hold(("::1", port))
    said = call("--port", str(port), "--next", "--dry-run").stdout
    assert said.startswith(f"Port {port} cannot be had: ") and " is taken instead\n" in said


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
    said = f"Starting server on 0.0.0.0:{port}: http://127.0.0.1:{port} (true)\n"
    assert (done.stdout, done.returncode) == (said, 0)
