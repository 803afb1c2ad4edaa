"""run_backend: what a repository declares or shows, the command that follows, and the start of it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

import port_manager
import run_backend

from . import apps
from .apps import DJANGO, FACTORY, FASTAPI, FLASK, SANIC, asked
from .conftest import LINUX, PORT_MANAGER, ROOT_USER, RUN_BACKEND, can_bind, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")

WSGI = apps.WSGI.replace("app(", "application(")
SERVERS = "uvicorn hypercorn granian daphne gunicorn waitress flask litestar sanic django"
OPTIONS = "print('--host --port --reload --workers --log-config --preload --debug --threads --app-dir --chdir')\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty repository that the calls are made in; project({path: text}) writes its files."""
    monkeypatch.chdir(tmp_path)

    def write(files):
        for path, text in files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder with packages of these servers' names, which only know their options."""

    @lru_cache(maxsize=None)
    def make(names):
        folder = tmp_path_factory.mktemp("installed")
        for name in names.split():
            (folder / name).mkdir()
            (folder / name / "__init__.py").touch()
            (folder / name / "__main__.py").write_text(OPTIONS)
        return str(folder)

    return make


@pytest.fixture
def call(installed):
    """Run ``python run_backend.py …`` to its end: § stands for the port, NAME=VALUE is a variable."""

    def run(words, port=0, present=SERVERS, python=(), program=RUN_BACKEND):
        words = shlex.split(words.replace("§", str(port)))
        variables = dict(word.split("=", 1) for word in words if re.match("[A-Z_]+=", word))
        words = [word for word in words if word.partition("=")[0] not in variables]
        python = python if present == SERVERS else ["-S"]  # leaves out what this Python has
        environ = {**os.environ, "PYTHONPATH": installed(present), **variables}
        command = [sys.executable, *python, program, *words]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False, env=environ)

    return run


# The command that follows from a folder, from words and from which servers are installed: the last line of --dry-run.
# § stands for the port, and uvicorn APP and gunicorn APP for all that these two are started with.

START = {"uvicorn": "-m uvicorn {} --host 0.0.0.0 --port §", "gunicorn": "-m gunicorn {} --bind 0.0.0.0:§"}
MAIN, APP = {"main.py": FASTAPI}, {"app.py": FLASK}
IMPORTED = "from shop import create_app\n"
IF_MAIN = "if __name__ == '__main__':\n    "
MADE = IMPORTED + "app = create_app()\n"
SHOP = {"shop/__init__.py": FACTORY}
NEEDY = FACTORY.replace("=None", "")
NEEDY_SHOP = {"shop/__init__.py": NEEDY}
FROM_DB, FROM_SHOP = (f"from {place} import x\n{FASTAPI}" for place in ("db", "shop.db"))
MAKE = "from fastapi import FastAPI\ndef make(name):\n    return FastAPI()\n"
ENTRY = {"pyproject.toml": "[tool.fastapi]\nx = [1]\nentrypoint = 'b:app'"}
RUNS_ITSELF = f"import uvicorn\n{FASTAPI}{IF_MAIN}uvicorn.run(app)\n"
CALLED_API = FASTAPI.replace("app =", "api =")
GET_WSGI = "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()"
SETTINGS = "import django.core.management, os\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings')\n"
DJANGOS = {"manage.py": DJANGO, "shop/wsgi.py": GET_WSGI}
DASH = "from dash import Dash\napp = Dash('x')\n"
UNGUARDED = "from bottle import Bottle, run\napp = Bottle()\nrun(app, port=8080)\n"
KEEP_ALIVE = FLASK + "def run():\n    app.run(port=8080)\n\ndef keep_alive():\n    Thread(target=run).start()\n"
SKIPPED = """setup conftest test_web port_manager run_backend tests/a test/a migrations/a alembic/a node_modules/a venv/a
env/a site-packages/a docs/a build/a dist/a example/a examples/a demo/a sample/a benchmark/a load_tests/a"""
FOLDERS = [
    # by the conventions of fastapi and flask, and by ours
    ("uvicorn src.main:app", {
      "src/main.py": "from src.db import x\nopen('imported', 'w')\n" + FASTAPI, "src/db.py": "", "main.py": FLASK}),
    ("gunicorn app:app", {"app.py": FACTORY + "app = create_app()\n", "other.py": FLASK}),
    ("uvicorn main:app", {"main.py": "\ufeffimport os.path\n" + FASTAPI, "api.py": "x = = 1"}),
    ("gunicorn wsgi:application", {"wsgi.py": "from app import app as application\n", **APP}),
    # a module of any name, and any name in it
    ("uvicorn server:api", {"server.py": CALLED_API}),
    ("gunicorn api.index:app", {"api/index.py": FLASK, "vercel.json": "{}"}),
    ("uvicorn web:service", {"web.py": "from starlette.applications import Starlette\nservice = Starlette()"}),
    # in a package: an object, or a factory
    ("uvicorn latest.asgi:app", {"latest/__init__.py": "", "latest/asgi.py": FASTAPI}),
    ("gunicorn shop:create_app()", SHOP),
    ("gunicorn shop.core:app", {"shop/__init__.py": "from .core import *\n", "shop/core.py": FLASK}),
    # where imports begin
    ("PYTHONPATH=src python uvicorn shop.main:app", {
      "src/shop/__init__.py": "", "src/shop/main.py": FROM_SHOP, "src/shop/db.py": ""}),
    ("PYTHONPATH=shop python gunicorn shop:app", {
      "shop/__init__.py": "import top\nfrom db import x\n" + FLASK, "shop/db.py": "", "top.py": ""}),
    # who builds it, through the imports of this repository
    ("gunicorn run:app", {**SHOP, "run.py": f"{IMPORTED}{IF_MAIN}fill()\nelse:\n    app = create_app()\n"}),
    ("gunicorn shop:create_app()", {
      **SHOP, "start.py": f"{IMPORTED}{IF_MAIN}app = create_app()\n    serve(app)\n"}),
    ("gunicorn shop:app", {
      "microblog.py": "from shop import app, db\n", "shop/__init__.py": FLASK + "db = 1\nfrom shop import routes\n",
      "shop/routes.py": "from shop import app\n"}),
    ("gunicorn manage:app", {
      **NEEDY_SHOP, "manage.py": "import flask_script as f\nimport shop.x\napp = shop.create_app(1)\nf.Manager(app)"}),
    ("gunicorn run:app", {"shop/__init__.py": FLASK, "run.py": f"from shop import app\n{IF_MAIN}app.run()\n"}),
    ("uvicorn web:shop", {"web.py": "from fastapi import FastAPI\nclass Shop(FastAPI):\n    pass\nshop = Shop()\n"}),
    ("gunicorn app:app", {"app.py": FLASK + "from werkzeug.middleware.proxy_fix import ProxyFix\napp = ProxyFix(app)"}),
    ("uvicorn app:app", {"app.py": FLASK + "from asgiref.wsgi import WsgiToAsgi\napp = WsgiToAsgi(app)\n"}),
    ("gunicorn wsgi:app", {
      "wsgi.py": "import pyramid\nif 1:\n    with pyramid.Configurator() as c:\n        app = c.make_wsgi_app()"}),
    ("gunicorn web:application", {"web.py": WSGI}),
    ("uvicorn shop.web:app", {"shop/__init__.py": "", "shop/web.py": FASTAPI,
      "main.py": f"import uvicorn\n{IF_MAIN}uvicorn.run('shop.web:app', port=int(PORT))\n"}),
    ("gunicorn shop.web:app", {**{f"{name}.py": FASTAPI for name in SKIPPED.split()}, "shop/web.py": FLASK}),
    ("gunicorn app:create_app()", {
      "app.py": IMPORTED, "shop/__init__.py": "from .app import create_app\n",
      "shop/app.py": FACTORY.replace("config=None", "**config")}),
    ("gunicorn shop.app:app", {**SHOP, "shop/app.py": MADE.replace("shop", ".")}),
    ("uvicorn --factory main:make", {"main.py": "import fastapi\n@cache\ndef make():\n    return fastapi.FastAPI()\n"}),
    # the package hides the module of its name
    ("gunicorn app:create_app()", {"app.py": MADE.replace("shop", "app"), "app/__init__.py": FACTORY}),
    ("gunicorn web:app", {"web.py": FLASK, "old/web.py": FLASK, "broken.py": "= 1"}),
    # one module or folder deeper, beside other code
    ("uvicorn backend.main:app", {"backend/__init__.py": "", "backend/main.py": FASTAPI}),
    ("gunicorn pp:app", {".env": "FLASK_APP=pp", "pp/__init__.py": "from config import *\n", "config.py": FLASK}),
    ("uvicorn backend.main:app", {"backend/main.py": "from .db import x\n" + FASTAPI, "backend/db.py": ""}),
    ("uvicorn backend.main:app", {"backend/main.py": "from backend.db import x\n" + FASTAPI, "backend/db.py": ""}),
    ("uvicorn src.server.api.app:app", {"src/server/api/app.py": FASTAPI, "src/server/routes.py": ""}),
    ("gunicorn web:app", {"web.py": "if x:\n    from . import x\n" + FLASK, "backend/main.py": FASTAPI}),
    ("uvicorn server.main:app", {"server/main.py": "from engine.game import x\n" + FASTAPI, "engine/game.py": ""}),
    ("PYTHONPATH=my-shop python uvicorn shop.main:app", {
      "my-shop/shop/main.py": FROM_SHOP, "my-shop/shop/db.py": ""}, "my-shop.shop.main:app"),
    ("gunicorn web:app", {"web.py": FLASK, "shop/manage.py": DJANGO}),
    ("shop/manage.py runserver 0.0.0.0:§", {"shop/manage.py": DJANGO, "shop/shop/wsgi.py": GET_WSGI}),
    # it runs itself, but not when it is imported
    ("uvicorn main:app", {"main.py": RUNS_ITSELF}),
    ("gunicorn web:app", {"web.py": FLASK + "if __name__ == '__main__': app.run()\n"}),
    ("gunicorn web:application", {"web.py": "from bottle import default_app\napplication = default_app()\n"}),
    ("gunicorn manage:app", {"shop/__init__.py": FLASK, "manage.py": f"from shop import app\n{IF_MAIN}app.run()\n"}),
    ("manage.py runserver 0.0.0.0:§", {"manage.py": SETTINGS, "src/shop/settings.py": "", "a.py": ""}),
    ("gunicorn server:app", {"server.py": "import connexion\napp = connexion.App('x')\n"}),
    # frameworks with servers of their own
    ("manage.py runserver 0.0.0.0:§", {**DJANGOS, "seed.py": "from django.core.management import call_command\n"}),
    ("-m litestar --app app:app run --host 0.0.0.0 --port §", {"app.py": "import litestar as l\napp = l.Litestar()"}),
    ("-m sanic app:app --host 0.0.0.0 --port § --fast", {"app.py": SANIC}, "--fast"),
    ("-m sanic --factory m:make --host 0.0.0.0 --port §", {"m.py": "import sanic\ndef make():\n return sanic.Sanic()"}),
    ("gunicorn app:server", {"app.py": DASH + "server = app.server\n"}),
    *(("-m waitress --listen 0.0.0.0:§ app:app.server", {"app.py": DASH}, words) for words in ("", "app:app.server")),
    ("-m flask --app app:app run --host 0.0.0.0 --port § --debug", APP, "--debug"),
    ("gunicorn app:app", APP, "FLASK_DEBUG=1"),
    ("gunicorn app:app --workers 2", {**APP, ".env": "FLASK_APP=app\nFLASK_DEBUG=1"}, "--workers 2"),
    # declared
    *((command, {**files, "Procfile": f"worker: x\nweb: {web}\n"}) for command, web, files in [
      ("gunicorn shop.wsgi:application --workers 2", "gunicorn shop.wsgi --workers 2 -b 0.0.0.0:$PORT", DJANGOS),
      ("-m waitress --listen 0.0.0.0:§ --threads=2 app:app", "waitress-serve --port=$PORT --threads=2 app:app", APP),
      ("-m waitress --listen 0.0.0.0:§ --call app:create_app", "waitress-serve --call app:create_app", {
        "app.py": FACTORY}),
      ("gunicorn shop:app", "flask --app shop run -p $PORT", {**APP, ".env": "FLASK_APP=app", "shop.py": FLASK}),
      ("gunicorn shop:app", "flask run", {**APP, ".flaskenv": "FLASK_APP=shop", "shop.py": FLASK, "run.py": ""}),
      ("-m hypercorn a:app --bind 0.0.0.0:§", "quart -A a run", {**APP, "a.py": "import quart\napp = quart.Quart()"}),
      ("gunicorn app:app", "cd no-such && gunicorn app:app", {**APP, "gunicorn.py": ""}),
      ("server.py", "python3 server.py", {"server.py": "import http.server"}),
      ("-m http.server § app", "python -m http.server $PORT app", APP),
      ("A=1 2 python server.py -b :§", "A='1 2' exec python server.py -b :${PORT} > log 2>&1 # it logs", {"server.py": ""}),
      ("gunicorn app:app -w 2", "gunicorn app:app -w 2 -b :$PORT 2>&1 | tee log", APP),
      ("gunicorn app:app", "gunicorn app:app --workers $WORKERS_THAT_NOBODY_SETS", APP),
      ("gunicorn app:app", "sh -c 'python run_backend.py'", APP),
      ("manage.py runserver 0.0.0.0:§", "python manage.py runserver 0.0.0.0:$PORT", DJANGOS),
      ("uvicorn a.b:app --app-dir backend", "uvicorn a.b:app --app-dir backend --port $PORT", {"backend/a/b.py": ""}),
      ("cd backend && python gunicorn a:app -k gevent", "cd backend && exec gunicorn -k gevent a:app", {
        "backend/a.py": FLASK}),
      ("gunicorn a.wsgi:application --chdir backend", "gunicorn a.wsgi --chdir backend", {"backend/a/wsgi.py": WSGI}),
      ("gunicorn shop:app", "python run_backend.py shop:app", {**APP, "shop.py": FLASK}),
      ("gunicorn app:app", "python run_backend.py", APP),
      ("gunicorn app:app -w 2", "python run_backend.py -- gunicorn app:app -w 2", APP),
      ("gunicorn app:app", ";", APP)]),
    ("gunicorn shop:app", {**APP, **ENTRY, ".flaskenv": "FLASK_APP = shop\nFLASK_DEBUG=0", "shop/__init__.py": FLASK}),
    ('gunicorn shop:make("dev")', {
      ".env": "export FLASK_APP='shop.py:make(\"dev\")'", "shop.py": FLASK + "def make(name):\n    return app\n"}),
    *(("-m flask --app a:app run --host 0.0.0.0 --port §", {
      ".env": f"FLASK_APP=a\nFLASK_DEBUG={yes}", "a.py": FLASK}) for yes in ("1", "True", "yes", "on")),
    ("uvicorn shop.web:api", {**MAIN, "shop/web.py": CALLED_API,
      "pyproject.toml": "[project]\nentrypoint = 'x'\n[tool.fastapi]\nentrypoint = \"shop.web:api\"\n"}),
    ("uvicorn b:app", {**MAIN, **ENTRY, "b.py": FASTAPI}),
    # named on the command line
    ("gunicorn shop.web:app", {"shop/web.py": FLASK}, "APP=nosuch:app shop/web.py"),
    ("uvicorn main:app", {"main.py": "from json.tool import *\n"}, "main.py"),
    ("uvicorn src.shop.main:app", {"src/shop/main.py": FASTAPI}, "shop.main:app"),
    ("gunicorn shop:create_app('dev')", SHOP, "\"shop:create_app('dev')\""),
    ("gunicorn shop:create_app()", SHOP, "shop:create_app"),
    ("uvicorn main:app --log-config debug", {**MAIN, "debug.py": ""}, "--log-config debug"),
    ("uvicorn main:app --workers 2 --reload", MAIN, "--workers 2 main.py --reload"),
    ("uvicorn main:app --new", {**MAIN, "uvicorn/__main__.py": "1/0", "uvicorn/__init__.py": ""}, "--new"),
    ("-m hypercorn main:make('x') --bind 0.0.0.0:§", {"main.py": MAKE}, "\"main:make('x')\""),  # uvicorn takes no words
    ("manage.py runserver 0.0.0.0:§ --noreload", {"manage.py": DJANGO}, "manage.py --noreload"),
    ("uvicorn json.tool:main", {}, "json.tool:main"),  # of an installed package
    ("gunicorn web:app", {**MAIN, "web.py": FLASK}, "APP=web:app"),
    ("--page --host 0.0.0.0 --port §", {"README.md": FASTAPI, "tests/x.py": "", "test/x.py": "", "venv/x.py": ""}),
    # the first that is installed
    ("-m hypercorn main:app --bind 0.0.0.0:§", MAIN, "", "hypercorn granian daphne"),
    ("-m granian --interface asgi main:app --host ::1 --port §", MAIN, "--host [::1]", "granian daphne"),
    ("-m daphne -b 127.0.0.1 -p § main:app", MAIN, "HOST=127.0.0.1", "daphne"),
    ("-m waitress --listen 0.0.0.0:§ app:app", APP, "", "waitress"),
    ("-m waitress --listen 0.0.0.0:§ --call app:create_app", {"app.py": FACTORY}, "", "waitress"),
    ("-m waitress --listen 0.0.0.0:§ app:app", {"Procfile": "web: gunicorn app:app --preload", **APP}, "", "waitress"),
    ("--wsgiref app:app --host 0.0.0.0 --port §", APP, "", ""),
]  # fmt: skip


@pytest.mark.parametrize("row", FOLDERS, ids=lambda row: "-".join(row[1])[:99])
def test_the_command_for_a_folder(project, port, call, row):
    expected, files, words, present = (*row, *("", SERVERS)[len(row) - 2 :])
    project(files)
    done = call(f"--port § {words} --dry-run", port, present)
    assert done.returncode == 0 and can_bind(port) and not os.path.exists("imported"), done  # modules are only read
    started = re.compile(r"\b(uvicorn|gunicorn) ((?:--factory )?\S+)")
    expected = started.sub(lambda found: START[found[1]].format(found[2]), expected, count=1)
    python = os.path.basename(sys.executable)
    words = [word if "=" in word else re.sub("^/.*/", "", word) for word in shlex.split(done.stdout.splitlines()[-1])]
    shown = re.sub(f"^{re.escape(python)} (run_backend.py )?", "", " ".join(words))
    assert shown == expected.replace("§", str(port)).replace("python ", f"{python} ")


# The exit status, and what is said, where nobody is stopped; § stands for the port, and PID for who holds it.

AIOHTTP = {"app.py": "from aiohttp import web\napp = web.Application()\n"}
HTTP_SERVER = {"Procfile": "web: python -m http.server 8001"}
NONE = "No app was found at the top, in src or one folder down"
HELD = "process PID ("
NO_APP = "as src.main:app is; a port needs --port, a command --"
STOPS_NOBODY = [
    # there is nothing to start
    (1, "Several apps were found; try:\n  python run_backend.py one:app", {"one.py": FLASK, "two.py": FASTAPI}),
    (1, "There is no old:app in this folder; try:\n  python run_backend.py app:app  #", {
      **APP, "Procfile": "web: gunicorn old:app"}),
    (1, "no-such-yarn is not installed, or not on PATH; try:\n  python run_backend.py app:app  #", {
      **APP, "Procfile": "web: no-such-yarn app"}),
    (1, "Several apps were found; try:\n  python run_backend.py one:app", {"one.py": FLASK, "bot.py": UNGUARDED}),
    (1, "No app starts by itself: Flask object in shop/__init__.py; try:\n  python run_backend.py seed:app", {
      **SHOP, "seed.py": MADE + "with app.app_context():\n    x"}),
    *((1, NONE, files) for files in [
      {"main.py": "class Shop:\n    def __init__(self):\n        self.app = FastAPI()\nserver = Shop()\n"},
      {"main.py": FASTAPI.replace("app", "_app")},
      {"main.py": MAKE.replace("return", "app =")},
      {"main.py": "from . import config\n" + FASTAPI},
      {f"{name}.py": f"{GET_WSGI}\n{SETTINGS}" for name in ("manage", "wsgi")},  # of a project that is not here
      {"jobs.py": "from celery import Celery\napp = Celery()\n"}]),
    (1, "run_backend.py -- python serve.py", {
      "serve.py": "from waitress import serve\nfrom shop import make\napp = make()\nserve(app.server, port=8049)\n",
      "shop.py": "from dash import Dash\ndef make():\n    return Dash('x')\n"}),
    (1, "app.py has no app at its top that a server can serve", AIOHTTP, "app:app"),
    (1, "at its top that a server can serve, or call without arguments; ", {"shop.py": NEEDY}, "shop:create_app"),
    (1, "cd server && python ", {"server/app.py": FLASK, "server/requirements.txt": "flask"}),
    (1, "try:\n  cd backend && python ../run_backend.py main:app  # FastAPI object in backend/main.py\n", {
      "backend/main.py": RUNS_ITSELF}),
    (1, "try:\n  cd backend && python ../run_backend.py main:app  #", {
      "backend/main.py": FASTAPI, "backend_old/main.py": FROM_DB, "backend_old/db.py": ""}),
    (1, "; try:\n  python run_backend.py -- python app.py  #", {"Procfile": "web: gunicorn app.py",
      "app.py": FLASK + "app.run(debug=True)\n"}),
    (1, "python run_backend.py -- npm run dev", {"package.json": "{}"}),
    (1, "try:\n  python run_backend.py services.web.api.main:app  #", {"services/web/api/main.py": FASTAPI}),
    (1, "try:\n  python run_backend.py shop/manage.py  # Django's shop/manage.py\n  python run_backend.py web.a:app", {
      "web/a.py": FASTAPI, "shop/manage.py": DJANGO}),
    (1, "try:\n  cd backend && python ../run_backend.py manage.py  #", {
      "backend/manage.py": DJANGO, "backend/shop/wsgi.py": GET_WSGI}),
    # what starts a server of its own is named
    *((1, f"try:\n  python run_backend.py -- {command}", files) for command, files in [
      ("python run.py", {"run.py": UNGUARDED}),
      ("python web/app.py", {"web/app.py": f"from bottle import run\n{IF_MAIN}run(host='x')\n"}),
      ("python entry.py", {**AIOHTTP, "entry.py": "from app import app\nif 1:\n    web.run_app(app)\n"}),
      ("python server.py", {"server.py": "def main():\n    app.listen(80)\n    IOLoop.current().start()\n"}),
      ("python web.py", {"web.py": "import gradio as gr\nwith gr.Blocks() as demo:\n    pass\ndemo.launch()\n"}),
      ("python main.py", {"main.py": "from nicegui import app, ui\nui.run()\n"}),
      *(("python app.py", {"app.py": f"{FLASK}{run}\n"}) for run in (
        "app.run(debug=True)", "IOLoop.current().start()", "cherrypy.quickstart()")),
      ("python app.py", {"app.py": f"{FLASK}{IF_MAIN}connect_to_db(app)\n    app.run()\n"}),  # only then
      ("python main.py", {"main.py": f"import uvicorn\n{FASTAPI}uvicorn.run('main:app', port=80)\n"}),
      ("python a/b/c/serve.py", {"a/b/c/serve.py": "with HTTPServer() as server:\n    server.serve_forever()\n"}),
      ("python -m shop.serve", {"shop/__init__.py": "", "shop/serve.py": "from . import app\nuvicorn.run(app)\n"}),
      ("python shop/serve.py", {"shop/__init__.py": "", "shop/routes.py": "",
        "shop/serve.py": "import routes\nuvicorn.run(app)\n"}),
      ("python -m shop", {"shop/__main__.py": "from .cli import main\nmain()\n", "shop/cli.py": ""}),
      ("chainlit run shop/chat.py", {"shop/chat.py": "import chainlit as cl\n", "shop/__init__.py": ""}),
      ("streamlit run ui.py", {"ui.py": "import streamlit as st\nst.title('x')\n"}),
      ("python app.py", {"app.py": "load_plugins()\n"}),
      ("python run.py", {**NEEDY_SHOP, "run.py": f"{IMPORTED}{IF_MAIN}app = create_app(x)\n    app.run()"}),
      ("pserve development.ini", {"development.ini": "", "shop/__init__.py":
        "from pyramid.config import Configurator\ndef main(global_config, **settings):\n"
        "    return Configurator(settings=settings).make_wsgi_app()\n"})]),
    (1, "try:\n  python run_backend.py z:app  # Flask object in z.py\n  python run_backend.py -- python alive.py  #", {
      "alive.py": KEEP_ALIVE, "main.py": "bot()\n", "z.py": FLASK}),
    # code, but nothing to start
    (1, f"{NONE}; name one, as in src.main:app, or put a command", {"docs/a/b/x.go": "", "b.py": "app.run() = 1"}),
    (1, "run_backend.py -- python src/main.py  # invalid syntax (main.py, line 3) in", {"src/main.py": "import os\n\napp = = 1\n"}),
    (1, "src/main.py cannot be read: invalid syntax (main.py, line 1)", {"src/main.py": "app = = 1\n"}, "src.main:app"),
    (1, "main.py has no nope at its top", MAIN, "main:nope"),
    (1, "There is no mian:app in this folder; try:", {"main.py": "= 1"}, "mian:app"),
    (1, "There is no api in this folder; try:", APP, "FLASK_APP=api"),
    (1, "There is no no.py in this folder\n", {}, "-- python no.py"),
    (1, "app.py has no () at its top", APP, "'app:()'"),
    (1, "There is no mian:app in this folder", {"Procfile": "web: gunicorn mian:app --pythonpath /no-such-folder"}),
    (1, "There is no ../main.py in this folder", MAIN, "../main.py"),
    *((1, "There is no nosuch.py in this folder", MAIN, f"{before} nosuch.py")
      for before in ("--reload", "--debug", "--factory", "--preload", "--app", "-A")),
    (2, "uvicorn has no option --no-such-option", MAIN, "--no-such-option"),
    (2, "uvicorn has no option --worker\n", {**MAIN, "Procfile": "web: uvicorn main:app --worker 2"}),
    # a wrong call
    *((2, f"run_backend: a port is a number from 1 to 65535, not {wrong!r}\n", {}, f"{option}'{wrong}'")
      for option, wrong in zip(["PORT=", "-p ", *["--port="] * 4], ["http", "0", "65536", "²", " 80", "8" * 5000])),
    *((2, "run_backend: a value is missing after --host or --port, or a command after --\n", {}, words)
      for words in ("--port", "--port ''", "--host -- true", "--")),
    *((2, f"run_backend: {word!r} is not an app, {NO_APP}\n", {"manage.py": DJANGO}, words) for word, words in [
      ("9000", "9000"), ("npm", "npm run dev"), ("runserver", "manage.py runserver 90"), ("a:b", "a:b -- true"),
      ("--reload", "--reload -- true")]),
    (1, "There is no My Shop in this folder", {"manage.py": DJANGO}, "APP='My Shop'"),
    # the module is imported before the port is freed
    *((1, f"{error}\n", {"wsgi.py": f"{WSGI}raise {crash}"}, "", "") for error, crash in [
      ("RuntimeError: no database", "RuntimeError('no database')"),
      ("FileNotFoundError: [Errno 2] No such file: 'db'", "FileNotFoundError(2, 'No such file', 'db')")]),
    # it cannot be started
    (127, "no-such-program is not installed, or not on PATH", {}, "-- no-such-program x"),
    (126, "./tool.py is not executable", {"tool.py": ""}, "-- ./tool.py"),
    (0, f"{sys.executable} -m x\n", {}, f"PATH=/nowhere --dry-run -- {os.path.basename(sys.executable)} -m x"),
    (1, "Host name 'no-such-host.invalid' is unknown", MAIN, "--host no-such-host.invalid"),
    (1, "PRODUCTION", MAIN, "main.py ENVIRONMENT=production"),
    (1, "so a small page is served, for which nobody else is stopped\n⚠️  Port § is already in use", {}),
    (1, f"main:app needs uvicorn, which is not installed: {sys.executable} -m pip install uvicorn\n",
      {**MAIN, "lib/uvicorn/folder": ""}, "PYTHONPATH=lib", ""),
    (1, "app:app needs gunicorn, which is not installed: ", APP, "--workers 2", ""),
    (1, "manage.py needs django, which is not installed: ", {"manage.py": DJANGO}, "", ""),
    # it is only shown, or started elsewhere
    (0, f"Found main:app: FastAPI object in main.py\nPort §: {HELD}", {**MAIN,
      ".venv/lib/python3.9/site-packages/uvicorn/__init__.py": ""}, "--dry-run"),  # without a Python of its own
    (0, f"Found json.tool:app: as named\nPort §: {HELD}", {}, "json.tool:app --dry-run"),
    (0, f"Found sh: Procfile web line\nPort §: {HELD}", {"Procfile": "web: sh start"}, "--dry-run"),
    (1, "the policy 'refuse' stops nobody\n", {}, "--dry-run"),
    (0, "): stop PID: SIGTERM, then SIGKILL after 5 s\n", {"manage.py": DJANGO}, "--dry"),  # as argparse has it
    (1, "outside development", MAIN, "--dry-run ENVIRONMENT=production"),
    (1, "outside development", {**MAIN, ".env": "ENVIRONMENT=production"}, "--dryrun"),
    (1, "outside development", {".env": "ENVIRONMENT=dev", "Procfile": "web: cd b && uvicorn a:app", "b/a.py": FASTAPI,
      "b/.env": "ENVIRONMENT=x"}, "--dryrun"),
    (1, "outside development", {".env": "ENVIRONMENT=dev\nFLASK_APP=a", "Procfile": "web: cd b && flask run",
      "b/a.py": FLASK, "b/.env": "ENVIRONMENT=x"}, "--dryrun"),
    (1, "outside development", {"Procfile": "web: gunicorn a:app --chdir b", "b/a.py": "", "b/.env": "ENVIRONMENT=x"}),
    *((status, said, {**APP, ".env": "ENVIRONMENT=dev", "Procfile": "web: ENVIRONMENT=x FLASK_APP=app flask run"}, words)
      for status, said, words in [(1, "outside development", ""), (0, "): stop PID", "ENVIRONMENT=dev --dry-run")]),
    (0, f"Port §: {HELD}", {}, "--host 127.0.0.1 --next --dry-run"),
    (0, "Port §: available", {}, "--host 127.0.0.2 --next --dry-run"),
    *((2, "the command itself names port 8001, not ", files, words) for files, words in [
      ({}, "-- python -m http.server 8001"), (HTTP_SERVER, ""), (HTTP_SERVER, "PORT=1"),
      ({"Procfile": "web: sleep -p 8001"}, "")]),
    (1, "the policy 'refuse' stops nobody\nPort §: available\n", {},
      f"PORT_MANAGER_POLICY=refuse --dry-run -- {sys.executable} -m waitress --listen '127.0.0.1:§ 127.0.0.2:§' a:app"),
]  # fmt: skip


@pytest.mark.parametrize("row", STOPS_NOBODY, ids=lambda row: f"{'-'.join(row[2])} {' '.join(row[3:4])}".strip())
def test_nobody_is_stopped_where_there_is_nothing_to_start(project, port, hold, call, row):
    status, said, files, words, present = (*row, *("", SERVERS)[len(row) - 3 :])
    project(files)
    held = hold(("127.0.0.1", port))
    done = call(words if words.startswith("PORT=") else f"--port § {words}", port, present)
    said = said.replace("§", str(port)).replace("PID", str(held.pid))
    assert done.returncode == status and said in done.stdout + done.stderr, done
    assert ("Traceback" in done.stderr) == ("raise" in files.get("wsgi.py", "")), done
    assert "Starting" not in done.stdout and held.alive() == [held.pid]


def test_a_page_is_for_folders_without_code(project, call, capsys):
    for name in ("a.py", "docs/a.rs", "examples/a.ts", "pyproject.toml", "package.json", "index.html"):
        folder = project({name: ""})
        assert run_backend.main(["--dry-run"]) == 1 and "No app was found" in capsys.readouterr().err, name
        (folder / name).unlink()
    project({"README.md": "", "notes.txt": "", "Dockerfile": "", "tests/a.py": "", ".git/hook.py": ""})
    assert "small page" in call("--dry-run --host 127.0.0.3").stdout


@pytest.mark.parametrize("files", [
    {"backend/app/main.py": "from app.db import x\n" + FASTAPI, "backend/app/db.py": ""},
    {"backend/manage.py": DJANGO, "backend/shop/wsgi.py": GET_WSGI, "server/shop.py": FACTORY},
    {"one/main.py": FROM_DB, "one/db.py": "", "two/main.py": FASTAPI, "The Shop/app.py": FLASK},
    {"a/b/c.py": FLASK, "my-shop/web/api.py": FACTORY, "v1.0/app.py": FLASK, "My Tools/serve.py": UNGUARDED},
    {"shop/manage.py": DJANGO, "web.py": KEEP_ALIVE, "main.py": "bot()", "jobs.py": NEEDY},
], ids="-".join)  # fmt: skip
def test_each_line_that_is_printed_works(project, port, call, installed, files):
    folder = project(files)
    for file in (RUN_BACKEND, PORT_MANAGER):
        shutil.copy(file, folder)
    told = call("--port §", port, program="run_backend.py").stderr
    lines = re.findall("^  (.+?)  #", told, re.MULTILINE)
    assert lines and len({*lines}) == len(lines) and "(config)" not in told and f"cd {folder}" not in told
    environ = {**os.environ, "PYTHONPATH": installed(SERVERS)}
    for line in lines:
        typed = line.replace("run_backend.py", f"run_backend.py --dry-run --port {port}")
        typed = typed.replace("python ", f"{shlex.quote(sys.executable)} ", 1)
        done = subprocess.run(["sh", "-c", typed], capture_output=True, encoding="utf-8", check=False, env=environ)
        assert done.returncode == 0, (line, done)


@pytest.mark.parametrize(("name", "present"), [(".venv", ""), ("venv", "uvicorn")])
def test_the_interpreter_beside_the_app(project, call, installed, name, present):
    """What the app needs is installed there; and perhaps also here, where no environment is activated."""
    folder = project({**MAIN, f"{name}/pyvenv.cfg": "", f"{name}/bin/python": ""})
    shutil.copytree(installed("uvicorn"), f"{name}/lib/python3.12/site-packages")
    os.chmod(f"{name}/bin/python", 0o755)
    done = call("--dry-run", present=present)
    assert done.returncode == 0 and f"with {name}/bin/python" in done.stdout
    assert shlex.split(done.stdout.splitlines()[-1])[0] == str(folder / name / "bin/python")
    project({"Procfile": "web: python main.py"})
    assert call("--dry-run", present="").stdout.endswith(f"/{name}/bin/python main.py\n")
    assert call("--dry-run -- python main.py", present="").stdout.endswith(f"/{name}/bin/python main.py\n")


OF_5006 = {**APP, "Procfile": "web: gunicorn app:app -b :5006"}


@pytest.mark.parametrize(("freed", "words", "files"), [
    # the repository's own, unless another is told
    ("8000", "", APP),
    ("5006", "", OF_5006),
    ("5007", "", {**APP, "Procfile": "web: gunicorn app:app -b :${PORT:-5007}"}),
    ("5008", "", {**APP, ".flaskenv": "FLASK_APP=app\nFLASK_RUN_PORT=5008"}),
    ("8000", "", {**APP, ".flaskenv": "FLASK_APP=app"}),
    ("5009", "", {**APP, "Procfile": "web: FLASK_APP=app flask run -p 5009"}),
    *(("5010", "", {**APP, "Procfile": f"web: python run_backend.py {words}"})
      for words in ("app:app --port 5010", "-p 5010 app:app", " --port 5010", "--port=5010 -- sleep 5010")),
    ("5010", "", {**APP, "Procfile": "web: PORT=5010 python run_backend.py app:app"}),
    ("5010", "", {**APP, "Procfile": "web: python -m run_backend -p 5010 app:app"}),
    *((port, "", {"Procfile": f"web: {words}"}) for port, words in [
      ("61000", "sleep -p 61000"), ("443", "sleep --port 443"), ("5013", "PORT=5013 exec sleep 5013")]),
    ("5011", "", {"Procfile": f"web: {sys.executable} -m http.server 5011"}),
    ("8000", "", {**APP, "Procfile": "web: . ./env; gunicorn app:app -b :$WEB $MORE"}),
    ("5012", "", {**APP, ".env": "FLASK_APP=app\nX=a\0\nFLASK_RUN_PORT=5012", ".flaskenv": "FLASK_RUN_PORT=1"}),
    ("1", "PORT=1", OF_5006),
    ("65535", "PORT=9000 --port=65535", OF_5006),
    # that of a given command
    ("§", "--port § -- sleep 0", {}),
    ("§", "--port § -- sh -c 'true ${PORT:-8000}'", {}),
    ("§", f"--port § -- {sys.executable} manage.py runserver_plus", {}),
    ("§", "--port § -- nohup uvicorn m:app --port §", {}),
    ("§", "PORT=§ -- sleep 0", {}),
    ("", "-- sleep 0", {}),
    ("§", "-- nice -n 5 uvicorn m:app --port §", {}),
    ("", f"PORT=§ -- {sys.executable} manage.py migrate", {}),
])  # fmt: skip
def test_the_port_that_is_freed(project, port, call, freed, words, files):
    project(files)
    done = call(f"--dry-run {words}", port)
    freed = freed.replace("§", str(port))
    assert re.findall("^Port (.+?): ", done.stdout, re.MULTILINE) == freed.split()
    assert not files or freed in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("words", "where"), [("uvicorn m:app --port §", "127.0.0.1:§"), ("", "0.0.0.0:§")])
def test_the_start_names_the_port_that_the_command_uses(port, call, words, where):
    done = call(f"--port § -- true {words}", port)
    assert done.returncode == 0 and f"✅ Starting server on {where.replace('§', str(port))}: " in done.stdout


# ---- The call ----
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_fits_and_tells_what_matters(capsys, option):
    assert run_backend.main(["src.main:app", option]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for word in ("ENVIRONMENT", "PORT_MANAGER_POLICY", "Exit status", "--dry-run", "Procfile", "FLASK_APP"):
        assert word in out


def test_options_of_python_itself(project, call):
    assert call("PORT=x --version", python=["-I"]).stdout == f"run_backend {port_manager.__version__}\n"
    project({"main.py": f"{FASTAPI}path = '\\d'\n"})  # such a warning is for its server to show
    assert call("--dry-run", python=["-W", "error"]).stderr == ""


def test_ctrl_c_before_anything_has_begun(monkeypatch, capsys):
    monkeypatch.setattr(run_backend, "take_options", mock.Mock(side_effect=KeyboardInterrupt))
    assert run_backend.main([]) == 130 and capsys.readouterr().err == "Interrupted\n"


def test_a_working_directory_that_has_been_removed(tmp_path):
    removed = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", sys.executable, RUN_BACKEND]
    done = subprocess.run(removed, stderr=subprocess.PIPE, encoding="utf-8", check=False, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("❌ The working directory has been removed")


def test_a_program_whose_interpreter_is_missing(project, port, call):
    project({"server": "#!/no/such/interpreter\n"})
    os.chmod("server", 0o755)
    done = call("--port § -- ./server", port)
    assert done.returncode == 126 and "./server cannot be started: " in done.stderr and "Traceback" not in done.stderr


# ---- The page and the server of the standard library ----
@pytest.mark.parametrize(("files", "host", "at", "option", "told"), [
    ({}, "::1", "::1", "--page", "on [::1]:§: http://[::1]:§ (a small page)"),
    ({"wsgi.py": WSGI + "def make(_):\n    return os.environ['X'] and application\n",
      ".env": "FLASK_APP=wsgi:make('x:y')\nX=1"}, "0.0.0.0",
     "127.0.0.1", "--wsgiref\0wsgi:make('x:y')", "on 0.0.0.0:§: http://127.0.0.1:§ (wsgiref, no reload)"),
], ids=["page", "wsgiref"])  # fmt: skip
def test_the_next_run_takes_the_port_over(project, port, start, files, host, at, option, told):
    project(files)
    servers = []
    for _ in range(2):
        servers.append(start(sys.executable, "-S", RUN_BACKEND, "--port", str(port), "--host", host))
        assert eventually(lambda: f"Process {servers[-1].pid} " in asked(port, at), 10)
    first, second = servers
    assert first.wait(10) == -signal.SIGTERM and option in Path(f"/proc/{second.pid}/cmdline").read_text()
    with socket.create_connection((at, port)), socket.create_connection((at, port)) as connection:
        connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
        os.kill(second.pid, signal.SIGINT)
        assert second.wait(10) == 130, "the first client, which says nothing, is not waited for"
    assert files or (re.search(rb" 200 OK(?s:.+)\nContent-Length: \d{3}", head) and body == b"")
    said = second.stdout.read()
    assert f"✅ Starting server {told}".replace("§", str(port)) in said and "Traceback" not in said


def test_a_page_stops_nobody_who_was_faster(project, port, hold, monkeypatch):
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


def test_a_page_beside_another_program_is_no_reason_to_stop_both(project, port, hold, call):
    project({})
    held = [hold(("127.0.0.1", port), more=["run_backend.py --page"]), hold(("127.0.0.2", port))]
    assert call("--port §", port).returncode == 1 and all(each.alive() for each in held)


def test_the_next_port_where_nobody_holds_the_first(project, port, hold, call):
    hold(("::1", port))
    said = call("--port § --next --dry-run", port).stdout
    assert said.startswith(f"Port {port}: it cannot be had: ") and " is taken instead\n" in said
    assert "instead" not in call("--port § --next --dry-run --host 127.0.0.2", port).stdout


@pytest.mark.skipif(not (ROOT_USER and shutil.which("unshare")), reason="needs root and unshare")
def test_sigterm_ends_the_first_process_of_a_container(project, port, start):
    project({})
    inside = start("unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-S", RUN_BACKEND, "--port", str(port))
    assert eventually(lambda: asked(port), 10)
    first = int(Path(f"/proc/{inside.pid}/task/{inside.pid}/children").read_text().split()[0])
    os.kill(first, signal.SIGTERM)
    assert inside.wait(10) == 128 + signal.SIGTERM


# ---- Become the command ----
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


def test_the_command_inherits_no_signal_that_is_ignored_or_blocked(call):
    told = call("-- grep -E 'SigIgn|SigBlk' /proc/self/status").stdout.split()
    blocked, ignored = int(told[-3], 16), int(told[-1], 16)
    assert [n.name for n in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (n - 1) & 1] == []
    assert [n.name for n in (signal.SIGINT, signal.SIGTERM) if blocked >> (n - 1) & 1] == []


@pytest.mark.parametrize(("encoding", "sign"), [("utf-8", "✅ "), ("ascii", "")])
def test_a_command_that_names_no_port_frees_none(call, encoding, sign):
    done = call(f"PYTHONIOENCODING={encoding} -- true")
    assert (done.stdout, done.returncode) == (f"{sign}Starting true, which names no port\n", 0)


def test_windows_has_neither_exec_nor_gunicorn(project, port, installed, monkeypatch, capsys, request):
    waited = mock.Mock(side_effect=lambda command: signal.raise_signal(signal.SIGINT) or 3)  # Ctrl+C meanwhile
    monkeypatch.setattr(run_backend, "os", SimpleNamespace(**{**vars(os), "name": "nt"}))
    monkeypatch.setattr(shutil, "which", lambda program: rf"C:\node\{program}.CMD")
    monkeypatch.setattr(subprocess, "call", waited)
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("HOST", "127.0.0.1")
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    assert run_backend.main(["--port", str(port), "--", "npm", "run", "dev"]) == 3
    assert waited.mock_calls == [mock.call([r"C:\node\npm.CMD", "run", "dev"])] and os.environ["PORT"] == str(port)
    project({"web.py": FLASK})
    monkeypatch.syspath_prepend(installed(SERVERS))
    assert run_backend.main(["--dry-run"]) == 0 and "-m waitress " in capsys.readouterr().out
