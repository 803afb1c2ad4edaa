# SPDX-License-Identifier: MIT
# Copyright (c) the port_manager authors
"""Start this repository's backend, whatever still holds its port.

    python run_backend.py                            find the app, free its port, become its server
    python run_backend.py src.main:app --port 9000 --reload
    python run_backend.py --port 3000 -- npm run dev

What a repository declares (Procfile, FLASK_APP, [tool.fastapi]) goes before what its syntax shows; no module of it
is imported. On POSIX this process becomes the server: nothing of this program stays behind.

The file reads in the order in which things happen: the call; modules as syntax; the apps of a module; the guess;
what is named or declared; which command serves it; start it; two small servers; the command line.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from os import chdir, curdir, environ, getcwd, listdir, sep
from os.path import abspath, basename, dirname, isdir, isfile, join, normpath, relpath
from types import SimpleNamespace

sys.path.insert(0, dirname(__file__) or curdir)  # python -P and -I leave it out

from port_manager import (
    SERVERS,
    Endpoint,
    Holder,
    PortError,
    __version__,
    bind_port,
    ensure_port_available,
    find_free_port,
    find_server,
    names_app,
    preview_port,
    server_endpoints,
    shell_commands,
    take_options,
    write_line,
)

del sys.path[0]

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from typing import Any, Callable, Iterator, Sequence

__all__ = ["Found", "find_app", "main", "server_command"]

USAGE = """\
Start this repository's backend, whatever still holds its port.

  run_backend.py                           find the app, free its port, start it
  run_backend.py src.main:app --port 9000  this app; other options: its server's
  run_backend.py "app:create_app('dev')"   the app that a function makes
  run_backend.py --reload                  with the server's reloader
  run_backend.py --dry-run                 say what would be started and stopped
  run_backend.py --port 3000 -- npm start  any command, given HOST and PORT

  --host HOST       where to listen (else HOST, else 0.0.0.0)
  -p, --port PORT   the port (else PORT, else the repository's own, else 8000)
  --next            take the next free port instead of stopping anyone
  --dry-run         stop nobody, start nothing; the last line is the command
  --version, --help

The app is the argument, else APP, else a Procfile's web line, FLASK_APP (from
.flaskenv and .env, too), [tool.fastapi] entrypoint of pyproject.toml, else the
one that the modules here build. Where that cannot be told, they are listed.
In a folder without any code a small page is served.

ENVIRONMENT: unset, dev, development, local, test, testing, debug: whoever holds
  the port is stopped. Anything else: nobody is, and the start fails.
PORT_MANAGER_POLICY: kill, own, ask or refuse (see port_manager.py --help)

Exit status: the server's own; 1 no app, no server or no port; 2 a wrong call;
126 and 127 a command that cannot be started; 130 interrupted.
"""

# Kinds of app, the best first ("": no server's), and who makes them: by full name, by the last part of that, or by
# the arguments of a function that is an app itself.
KINDS = {
    "asgi": "FastAPI Starlette Lilya Esmerald FastHTML fast_app Air AsyncApp ASGIApp WsgiToAsgi http_app "
    "get_asgi_application ProtocolTypeRouter falcon.asgi.App blacksheep.Application scope,receive,send",
    "wsgi": "Bottle default_app get_wsgi_application make_wsgi_app WSGIApplication WSGIApp DispatcherMiddleware "
    "wsgifunc falcon.App falcon.API environ,start_response env,start_response",
    "flask wsgi": "Flask APIFlask Eve FlaskApp flask_openapi3.OpenAPI",
    "dash": "Dash",
    "quart asgi": "Quart",
    "litestar asgi": "Litestar",
    "sanic asgi": "Sanic",
    "": "aiohttp.web.Application tornado.web.Application celery.Celery typer.Typer",
}
MAKERS = {maker: kinds for kinds, makers in KINDS.items() for maker in makers.split()}

# fastapi's and flask's own search, and ours: the first of these that has an app is taken.
CONVENTIONS = [*map(normpath, ("src/main.py", "main.py", "wsgi.py", "app.py", "api.py", "app/main.py", "app/app.py",
                               "app/api.py", "src/app.py", "asgi.py"))]  # fmt: skip
NAMES = ("app", "application", "api", "server")
BESIDE = ("backend", "server", "api")  # folders in which another program than the one at the top may live
OWN = (*CONVENTIONS, "manage.py", "Procfile", "requirements.txt", "pyproject.toml")  # what shows that it does
NO_SOURCE = "tests test migrations alembic node_modules venv env docs examples build dist"
NO_MODULE = ("setup.py", "conftest.py", "port_manager.py", basename(__file__))
CODE = ".py .js .ts .go .rs .rb .java .kt .php .cs .ex .c .cpp"

PROGRAM = abspath(__file__)
SCRIPT = basename(PROGRAM)
FLAGS = "--reload --debug --factory --preload --app -A"  # before the app, or before no value
ELSEWHERE = {"--app-dir", "--chdir", "--pythonpath"}  # options that let a server look for the app in another folder


class Found(SimpleNamespace):
    """An app, or the command that a repository declares, and how it is served."""

    app: str  # src.main:app, app:create_app('dev'), manage.py; of a command its program or script
    kinds: str = ""  # or a declared server, the best first; none where a function needs arguments
    why: str = ""  # how it is known
    path: str = ""  # the module that binds it
    origin: str = ""  # the module that makes it
    root: str = ""  # the folder that its imports begin in
    options: Sequence[str] = ()
    typed: Sequence[str] = ()  # those of the options that the command line has
    port: int = 8000  # the repository's own
    command: Sequence[str] = ()  # instead of an app


class _CannotStart(Exception):
    """Why there is no server."""

    def __init__(self, reason: str, status: int = 1) -> None:
        self.reason, self.status = reason, status


def _say(text: str) -> None:
    write_line(sys.stdout, text)


# ----------------------------------------------------------------------------------------------------
# The call
# ----------------------------------------------------------------------------------------------------


class _Call(SimpleNamespace):
    """Our own options, the words for the server, and the command after ``--`` (None: there is no --)."""

    host: str | None
    port: str | None
    next: bool
    dry_run: bool
    words: list[str]
    command: list[str] | None


def _read_call(words: Sequence[str]) -> _Call:
    """
    >>> call = _read_call(["src.main:app", "--port=9000", "--reload", "--next", "--", "npm", "run", "dev"])
    >>> call.port, call.next, call.words, call.command
    ('9000', True, ['src.main:app', '--reload'], ['npm', 'run', 'dev'])
    """
    end = words.index("--") if "--" in words else len(words)
    hosts, rest = take_options(words[:end], "--host")
    ports, rest = take_options(rest, "-p --port")
    if "" in hosts + ports:
        raise _CannotStart(f"--{'host' if '' in hosts else 'port'} needs a value", 2)
    return _Call(
        host=hosts[-1] if hosts else None,
        port=ports[-1] if ports else None,
        next="--next" in rest,
        dry_run="--dry-run" in rest,
        words=[word for word in rest if word not in ("--next", "--dry-run")],
        command=list(words[end + 1 :]) if end < len(words) else None,
    )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= 65535):
        raise _CannotStart(f"a port is a number from 1 to 65535, not {text!r}", 2)
    return int(text)


def _app_in(words: Sequence[str]) -> str:
    """The word that names the app; "" where none does.

    >>> [_app_in([word]) for word in ("src.main:app", "main.py", "my-app:make('x')", "localhost:80", "debug")]
    ['src.main:app', 'main.py', "my-app:make('x')", '', '']
    >>> _app_in(["--log-config", "log.py", "--loop", "uvloop:new_event_loop", "--reload", "main.py"])
    'main.py'
    """
    for before, word in zip(["", *words], words):
        place, colon, _ = word.partition(":")
        free = before[:1] != "-" or before in FLAGS.split()  # no option's value
        here = word[:1] != "-" and _file_of(place)
        if (here and (free or colon)) or (free and (names_app(word) or place.endswith(".py"))):
            return word
    return ""


# ----------------------------------------------------------------------------------------------------
# Modules as syntax: importing them is their server's business
# ----------------------------------------------------------------------------------------------------


class _Made(SimpleNamespace):
    """What a name stands for: an app, or what makes one."""

    kinds: str
    maker: str
    path: str  # of the module that calls the maker
    call: str  # "" for an app, class for a class; for a function the arguments that it needs, as in ()


class _Module:
    """What a module binds at its top: the statements, by name; and what its imports stand for, wherever they are."""

    def __init__(self, path: str, source: str, error: str = "") -> None:
        import ast

        self.path, self.source, self.error = path, source, error
        self.imports: dict[str, str] = {}
        self.bound: dict[str, list[ast.AST | None]] = {}
        self.known: dict[str, _Made | None] = {}
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
                node.body = []  # no server runs that
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                place = f"{'.' * node.level}{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
                for alias in node.names:
                    name = alias.name if place or alias.asname else alias.name.partition(".")[0]
                    self.imports[alias.asname or name] = place + name
        for name, statement in _bindings(tree):
            self.bound.setdefault(name, []).append(statement)

    def name(self, node: Any) -> str:
        """The full name of what an expression names."""
        if hasattr(node, "attr"):
            return f"{self.name(node.value)}.{node.attr}"
        return self.imports.get(node.id, node.id) if hasattr(node, "id") else "?"

    def find(self, name: str) -> _Made | None:
        """What a full name stands for: one of MAKERS, or what a module of this repository binds."""
        place, dot, last = name.rpartition(".")
        kinds = MAKERS.get(name, MAKERS.get(last))
        if kinds is not None:
            return _Made(kinds=kinds, maker=last, path=self.path, call="class")
        return (_read(_file_of(place, self.path)) if dot else self).made(last)

    def made(self, name: str) -> _Made | None:
        """What a name at the top stands for, by the last statement that tells."""
        if name not in self.known:
            self.known[name] = None  # names that stand for each other make nothing
            told = (self._made_by(statement, name) for statement in reversed(self.bound.get(name, [])))
            self.known[name] = next(filter(None, told), None)
        return self.known[name]

    def _made_by(self, statement: Any, name: str) -> _Made | None:
        """What a statement that binds a name makes: the first app that it calls the maker of."""
        import ast

        if hasattr(statement, "names"):
            return self.find(self.imports[name])
        inside: list[Any] = list(ast.walk(statement))
        used = [node.value for node in inside if hasattr(node, "attr")]  # create_app().test_client()
        called = [node.func for node in inside if hasattr(node, "func") and node not in used]
        call = "class" if hasattr(statement, "bases") else ""
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [argument.arg for argument in statement.args.args]
            itself = MAKERS.get(",".join(names))
            if itself:
                return _Made(kinds=itself, maker="callable", path=self.path, call="")
            if statement.decorator_list or not any(isinstance(node, ast.Return) for node in inside):
                return None
            call = f"({', '.join(names[: len(names) - len(statement.args.defaults)])})"
        made = [self.find(self.name(node)) for node in [*getattr(statement, "bases", []), *called]]
        best = min((each for each in made if each and each.call), key=lambda each: not each.kinds, default=None)
        return best and _Made(kinds=best.kinds, maker=best.maker, path=best.path, call=call)

    def apps(self) -> dict[str, _Made]:
        """The apps here: that of a usual name, else all, else the functions that make one."""
        every = {name: self.made(name) for name in self.bound if name[0] != "_"}
        apps = {name: made for name, made in every.items() if made and made.kinds and made.call != "class"}
        apps = {name: made for name, made in apps.items() if not made.call} or apps
        usual = next(filter(apps.__contains__, NAMES), "")
        return {usual: apps[usual]} if usual else apps

    def root(self) -> str:
        """The folder that the imports begin in: the top one, unless only another has what is imported."""
        names, folders = {name.partition(".")[0] for name in self.imports.values()}, _folders(self.path)
        has = [names & {name.replace(".py", "") for name in listdir(folder or curdir)} for folder in folders]
        return next((folder for folder, found in zip(folders, has) if found - has[0]), "")


def _bindings(block: Any, within: Any = None) -> Iterator[tuple[str, Any]]:
    """The names that are bound at a module's top, not in its functions and classes, each with the statement."""
    import ast

    inner: Any
    for inner in ast.iter_child_nodes(block):
        statement = inner if isinstance(inner, ast.stmt) else within
        if hasattr(inner, "decorator_list"):
            yield inner.name, inner
        elif isinstance(inner, ast.alias):
            yield inner.asname or inner.name.partition(".")[0], statement
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id, statement
        else:
            yield from _bindings(inner, statement)


@lru_cache(maxsize=None)
def _read(path: str) -> _Module:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for the server to show
            return _Module(path, _text(path))
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        return _Module(path, "", f"line {getattr(error, 'lineno', None) or 1}: {getattr(error, 'msg', error)}")


def _text(path: str) -> str:
    """What stands in a file; nothing where there is none."""
    if not isfile(path):
        return ""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.read()


def _readable(path: str) -> _Module:
    module = _read(path)
    if module.error:
        raise _CannotStart(f"{path} cannot be read: {module.error}")
    return module


def _file_of(dotted: str, importer: str = "") -> str:
    """The file of a module as another one imports it: ``.factory``, ``shop.factory``; "" outside of this repository."""
    relative, folders = dotted.startswith("."), _folders(importer)
    for folder in reversed(folders) if relative else [*folders, "src"]:
        place = join(folder, *filter(None, dotted.split(".")))
        for file in (join(place, "__init__.py"), place + ".py"):  # a package hides a module of its name
            if isfile(file):
                return file
    return ""


def _folders(path: str) -> list[str]:
    """The folders that a file stands in, from the top down.

    >>> _folders("src/shop/main.py")
    ['', 'src', 'src/shop']
    """
    parts = path.split(sep)
    return [sep.join(parts[:depth]) for depth in range(len(parts))]


# ----------------------------------------------------------------------------------------------------
# The guess: one scan of the modules at the top, in src, and one folder down
# ----------------------------------------------------------------------------------------------------


def find_app() -> list[Found]:
    """The apps that the modules here build: one of a usual place alone, else all, the best first."""
    sources = _sources()
    for path in filter(sources.__contains__, CONVENTIONS):
        usual = _apps_of(_readable(path))
        if usual:
            return usual[:1]
    every = sorted((found for path in sources for found in _apps_of(_read(path))), key=_rank)
    django = [found for found in every if found.kinds == "django"]
    best: dict[str, Found] = {}
    for found in every:
        best.setdefault(found.origin, found)
    names = [(found.path, name) for found in every for name in _read(found.path).imports.values()]
    parts = {_file_of(name.rpartition(".")[0], path) for path, name in names}  # of another app here
    whole = [found for found in best.values() if found.path not in parts] or list(best.values())
    top = [found for found in whole if sep not in found.path]  # one further down is another program's
    return django[:1] or (top if len(top) == 1 else whole)


def _rank(found: Found) -> tuple[object, ...]:
    """The best first: an app where it is run or bound, before the function that makes it."""
    acts = "\nwith " in _read(found.path).source  # when it is imported: such as a script that fills a database
    return not found.kinds, acts, "(" in found.app, found.origin == found.path, found.app


def _sources() -> list[str]:
    from glob import glob

    skipped = {*NO_SOURCE.split(), *filter(_has_program, BESIDE)}
    found = [path for pattern in ("*.py", "*/*.py", "src/*/*.py") for path in sorted(glob(pattern))]
    found = [path for path in found if not skipped & {*dirname(path).split(sep)} and basename(path) not in NO_MODULE]
    return [path for path in found if "test" not in path and not isfile(join(path[:-3], "__init__.py"))]


def _has_program(folder: str) -> bool:
    """Whether a folder has a program of its own, and is no package of this one."""
    return not isfile(join(folder, "__init__.py")) and any(isfile(join(folder, name)) for name in OWN)


def _apps_of(module: _Module) -> list[Found]:
    """The apps that a module makes or runs; an imported one counts where it is run, or in a usual place."""
    path, source = module.path, module.source
    if path.endswith("manage.py") and "django.core.management" in source:
        return [Found(app=path, kinds="django", why=f"Django's {path}", path=path, origin=path)]
    found = [
        _found(module, name, made)
        for name, made in module.apps().items()
        if name not in module.imports or path in CONVENTIONS or (sep not in path and f"{name}.run(" in source)
    ]
    if found or "run(" not in source:
        return found
    import re

    run = re.search(r"""\brun\(\s*["'](([\w.]+):\w+)["']([^)]*\bport\s*=\s*(\d+))?""", source)
    if run and _file_of(run[2]):  # uvicorn.run("app.main:app", port=8080)
        launched = _named(run[1])
        launched.why, launched.path, launched.port = f"{path} runs the {launched.why}", path, int(run[4] or 8000)
        return [launched]
    return []


def _found(module: _Module, name: str, made: _Made) -> Found:
    """An app as its server is told of it."""
    root, kinds = module.root(), made.kinds
    if name.isidentifier():
        if kinds == "dash" and "server" in module.bound:
            name, kinds = "server", "wsgi"
        elif kinds == "dash":
            name += ".server"
        elif made.call.startswith("("):
            name, kinds = name + made.call, kinds if made.call == "()" else ""
    place = relpath(module.path, root or curdir)[:-3].replace(sep, ".").replace(".__init__", "")
    why = f"{made.maker} object in {made.path}"
    return Found(app=f"{place}:{name}", kinds=kinds, why=why, path=module.path, origin=made.path, root=root)


# ----------------------------------------------------------------------------------------------------
# What is named, and what the repository declares
# ----------------------------------------------------------------------------------------------------


def _named(word: str, options: Sequence[str] = ()) -> Found:
    """An app that was named: ``src.main:app``, ``src/main.py``, ``shop.wsgi``, or ``app:create_app()``."""
    place, _, name = word.partition(":")
    dotted = relpath(place)[:-3].replace(sep, ".") if place.endswith(".py") else place
    package = dotted.partition(".")[0]  # "" above this folder
    path = _file_of(dotted) if package else ""
    elsewhere = {option.partition("=")[0] for option in options} & ELSEWHERE
    if not path and (elsewhere or (package and _interpreter(package))):
        kinds = "wsgi" if place.endswith("wsgi") else "asgi"
        return Found(app=f"{place}:{name or 'application'}", kinds=kinds, why="as named")
    if not path:
        raise _CannotStart(f"There is no {place} in this folder")
    module = _readable(path)
    apps = _apps_of(module) if not name else []
    if apps:
        return apps[0]
    name = name or next(filter(module.bound.__contains__, NAMES), NAMES[0])
    called = name.partition("(")[0].partition(".")[0]
    made = module.made(called)
    if not {called, "*", "__getattr__"} & {*module.bound} or (made and not made.kinds):
        raise _CannotStart(f"{path} has no {called} at its top that a server can serve; put other commands after --")
    wsgi = any(word in module.source for word in ("wsgi", "flask", "dash", "bottle"))
    return _found(module, name, made or _Made(kinds="wsgi" if wsgi else "asgi", maker="named", path=path, call=""))


def _declared() -> list[Found]:
    """What the repository says itself, if anything: its Procfile, flask's variables, fastapi's entry point."""
    web = _pairs(_text("Procfile"), ":").get("web")
    found = _of_procfile(web) if web else None
    if found:
        return [found]
    told = {**_pairs(_text(".env")), **_pairs(_text(".flaskenv")), **environ}
    flask = told.get("FLASK_APP")
    entry = _pairs(_text("pyproject.toml").partition("[tool.fastapi]")[2].partition("\n[")[0]).get("entrypoint")
    if not (flask or entry):
        return []
    found = _named(flask or entry or "")
    found.why = f"FLASK_APP={flask}" if flask else "[tool.fastapi] entrypoint"
    if flask:
        environ.update(told)  # as flask run does: the app may need them
        found.port = _port(told.get("FLASK_RUN_PORT") or "8000")
        found.options = ["--debug"] if told.get("FLASK_DEBUG", "0").lower() in ("1", "true", "yes", "on") else []
    return [found]


def _pairs(text: str, sign: str = "=") -> dict[str, str]:
    """The names and values of lines; Python 3.8 has no reader of TOML.

    >>> _pairs("release: migrate\\n web: gunicorn app:app\\n", ":")["web"], _pairs("export FLASK_APP = 'shop'")
    ('gunicorn app:app', {'FLASK_APP': 'shop'})
    """
    import re

    lines = re.findall(rf"^\s*(?:export )?\s*(\w+)\s*{sign}(.*)$", text, re.MULTILINE)
    return {name: value.strip().strip("'\"") for name, value in lines}


def _of_procfile(line: str) -> Found | None:
    """The web line of a Procfile, of which no shell is asked: the known server in it, else its last command."""
    import shutil

    commands = shell_commands(["sh", "-c", line], environ)
    for words in commands:
        if words[0] == "cd" and isdir(words[-1]):
            chdir(words[-1])
    words = next(filter(find_server, commands), commands[-1] if commands else [""])
    itself = SCRIPT in map(basename, words)  # this program, in its own Procfile
    words = [word for word in words if basename(word) != SCRIPT]
    key, at = find_server(words) or ("", -1)
    server, verb, told = SERVERS.get(key), key.partition(" ")[2], server_endpoints(words, {})
    rest = [word for word in words[at + 1 :] if word != verb]
    app = words[at] if verb and words[at].endswith(".py") else _app_in(rest)
    if app and (itself or verb or (server and server.serves)):
        found = _named(app, rest)
        if server and server.serves and not verb and found.kinds and _interpreter(_package(key)):
            options = take_options(rest, f"{server.hosts} {server.ports} {server.binds}")[1]
            found.kinds, found.options = f"{key} {found.kinds}", [word for word in options if word != app]
    elif itself or verb == "run" or not (words[0].startswith("python") or shutil.which(words[0])):
        return None
    else:
        python = len(words) > 1 and words[0].startswith("python")
        found = Found(app=words[python], command=[_interpreter("") if python else words[0], *words[1:]])
    found.why, found.port = "Procfile web line", told[0].port if told else 8000
    return found


# ----------------------------------------------------------------------------------------------------
# Which command serves it?
# ----------------------------------------------------------------------------------------------------


def server_command(found: Found, where: Endpoint) -> tuple[list[str], str]:
    """The command that serves an app, and the server's name; _CannotStart where there is none."""
    if found.command:
        return [*found.command, *found.options], found.app
    debug = {"--debug", "--reload"} & {*found.options}
    kinds = [kind for kind in found.kinds.split() if kind != "flask" or debug]
    missing = []
    for key in (key for kind in kinds for key in SERVERS if kind in (key, *SERVERS[key].serves.split())):
        words, package = _filled(key, found.app, where), _package(key)
        python = _interpreter(package)
        if words and python and (package or not found.options):
            if {"asgi", "wsgi"} & {*SERVERS[key].serves.split()}:  # the help of the others is not of one command
                _check_options([python, *words[:2]], found.typed)
            return [python, *words, *found.options], key.partition(" ")[0]
        missing += [package] if words else []
    if not missing:
        raise _CannotStart(f"{found.app} needs arguments: name it with them, as in \"app:create_app('dev')\"")
    pip = f"{sys.executable} -m pip install {missing[0]}"
    raise _CannotStart(f"{found.app} needs {missing[0]}, which is not installed: {pip}")


def _check_options(server: list[str], options: Sequence[str]) -> None:
    """Nobody is stopped for a server that would refuse its call: its own help has the options."""
    import subprocess

    named = [option.partition("=")[0] for option in options if option.startswith("--")]
    if named:
        done = subprocess.run([*server, "--help"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        unknown = [option for option in named if option.encode() not in done.stdout]
        if unknown and done.returncode == 0 and b"--" in done.stdout:
            raise _CannotStart(f"{server[-1]} has no option {unknown[0]} (see {' '.join(server)} --help)", 2)


def _filled(key: str, app: str, where: Endpoint) -> list[str]:
    """The words that start a server: those of its row, with the app and the address; none where it cannot serve it."""
    start, factory = SERVERS[key].start, SERVERS[key].factory
    if "(" in app and factory != "()":
        start, app = start.replace("APP", f"{factory} APP"), app[:-2] if app.endswith("()") and factory else ""
    values = {"APP": app, "HOST": where.host, "PORT": str(where.port), "ADDRESS": str(where), SCRIPT: PROGRAM}
    runs_here = app and (key != "gunicorn" or os.name == "posix")
    return [values.get(word, word) for word in start.split()] if runs_here else []


def _package(key: str) -> str:
    """What must be installed for a server, if anything."""
    name = SERVERS[key].start.split()[1]
    return {"runserver": "django", "--wsgiref": "", "--page": ""}.get(name, name)


def _interpreter(package: str) -> str:
    """The Python that has a package: that of a virtual environment here, or this one; "" where neither has."""
    from glob import glob
    from importlib.machinery import PathFinder

    program = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    pythons = {sys.executable: sys.path} if sys.prefix != sys.base_prefix else {}  # an activated one goes first
    for name in filter(isdir, (".venv", "venv")):
        pythons[abspath(join(name, program))] = [join(name, "Lib/site-packages"), *glob(f"{name}/lib/*/site-packages")]
    for python, path in {**pythons, sys.executable: sys.path}.items():
        spec = PathFinder.find_spec(package, path) if package else None
        if isfile(python) and (not package or (spec and spec.origin)):  # a mere folder of this name has none
            return python
    return ""


# ----------------------------------------------------------------------------------------------------
# Start it
# ----------------------------------------------------------------------------------------------------


def _start(command: list[str], what: str, endpoints: Sequence[Endpoint], policy: str | None) -> int:
    if PROGRAM in command:  # it frees its port itself, when its app has been imported
        return _become(command)
    if not all(ensure_port_available(port, host, policy=policy) for host, port in endpoints):
        return 1
    _say(_announced(endpoints, basename(what)))
    return _become(command)


def _title(holder: Holder) -> str:
    return f"process {holder}"


def _announced(endpoints: Sequence[Endpoint], what: str) -> str:
    """
    >>> _announced([Endpoint("0.0.0.0", 8000)], "gunicorn")
    '✅ Starting server on 0.0.0.0:8000: http://127.0.0.1:8000 (gunicorn)'
    """
    if not endpoints:
        return f"✅ Starting {what}, which names no port"
    host, port = endpoints[0]
    url = Endpoint({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)
    return f"✅ Starting server on {', '.join(map(str, endpoints))}: http://{url} ({what})"


def _become(command: list[str]) -> int:
    """Turn into the command (POSIX), or wait for it and give its status (Windows, which has no exec)."""
    import shutil
    import signal
    import subprocess

    if os.name == "posix":
        for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and its successor would inherit that
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        try:
            os.execvp(command[0], command)  # noqa: S606
        except OSError as error:
            raise _CannotStart(f"{command[0]} cannot be started: {error.strerror or error}", 126) from None
    found = shutil.which(command[0]) or command[0]  # npm is npm.cmd there, which only its full name starts
    child = subprocess.Popen([found, *command[1:]])
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the console has told the child as well
            continue


def _preview(command: list[str], shown: str, endpoints: Sequence[Endpoint], policy: str | None) -> int:
    """--dry-run: who would be stopped, and the command as the last line."""
    import shlex

    seen = [preview_port(port, host, policy=policy) for host, port in endpoints]
    for each in seen:
        pids = {holder.pid for holder in each.holders}
        roots = [_title(holder) for holder in each.holders if holder.parent not in pids]
        who = "".join(f"{root}: " for root in roots if root not in (each.reason or ""))
        _say(f"Port {each.port}: {who}{'available' if each.available else each.plan or each.reason}")
    _say(shown + " ".join(map(shlex.quote, command)))
    return 0 if all(each.available or each.plan for each in seen) else 1


# ----------------------------------------------------------------------------------------------------
# The standard library's server: this program starts itself again, so that its command line says what it is
# ----------------------------------------------------------------------------------------------------


def _serve(call: _Call) -> int:
    """``--page`` or ``--wsgiref APP``, then --host, --port and perhaps --next."""
    import signal
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    where, page = Endpoint(call.host or "", int(call.port or 0)), "--page" in call.words
    app = _leave_others_alone(where) if page else _imported(call.words[1])  # before anybody is stopped

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads, request_queue_size = True, 128

        def server_bind(self) -> None:
            self.socket.close()
            self.socket = bind_port(where.port, where.host, policy="refuse" if call.next else None)
            self.server_name, self.server_port = where
            self.setup_environ()

    with Server(where, WSGIRequestHandler) as server:
        server.set_app(app)
        _say(_announced([where], "a small page" if page else "wsgiref, no reload"))
        if os.getpid() == 1:  # the first process of a container, which no signal ends by itself
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        server.serve_forever()
    return 0


def _leave_others_alone(where: Endpoint) -> Callable[..., list[bytes]]:
    """The small page, where nobody but another one has the port."""
    for holder in preview_port(where.port, where.host).holders:
        if f"{SCRIPT} --page" not in holder.command:
            why = f"port {where.port} is held by {_title(holder)}"
            raise _CannotStart(f"There is no app here, and nobody is stopped for a small page: {why}")
    return _page


def _page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    page = (
        "<!doctype html><meta charset=utf-8><title>It works</title>"
        f"<h1>It works</h1><p>Process {os.getpid()} serves this page on port {environ['SERVER_PORT']}. "
        "Start run_backend.py again, and the next process takes the port over from this one.</p>"
    ).encode()
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(page)))])
    return [page] if environ["REQUEST_METHOD"] != "HEAD" else []


def _imported(app: str) -> Any:
    from ast import literal_eval
    from importlib import import_module
    from operator import attrgetter

    sys.path.insert(0, getcwd())
    place, _, name = app.partition(":")
    name, call, arguments = name.partition("(")
    try:
        found = attrgetter(name)(import_module(place))
    except ModuleNotFoundError as error:
        install = f"{sys.executable} -m pip install {error.name}"
        raise _CannotStart(f"{app} needs {error.name}, which is not installed: {install}") from None
    return found(*literal_eval(f"[{arguments[:-1]}]")) if call else found


# ----------------------------------------------------------------------------------------------------
# The command line
# ----------------------------------------------------------------------------------------------------


def _run(call: _Call) -> int:
    top, host = getcwd(), (call.host or environ.get("HOST") or "0.0.0.0").strip("[]")
    found = _chosen(call.words) if call.command is None else _given(call)
    where = Endpoint(host, _port(call.port or environ.get("PORT") or str(found.port)))
    policy = "refuse" if call.next else None  # whoever was faster keeps the port
    where = _next(where) if call.next else where
    if found.kinds == "page":
        _leave_others_alone(where)
    line, what = server_command(found, where)
    if call.command is not None:
        endpoints = _endpoints(line, where, call)
    else:
        endpoints = server_endpoints(line, {}) if found.options else [where]
        python = "" if line[0] in (sys.executable, what) else f", with {relpath(line[0])}"
        _say(f"Found {found.app}: {found.why}{python}")
    shown = f"cd {relpath(getcwd(), top)} && " if getcwd() != top else ""
    if found.root:
        shown += f"PYTHONPATH={found.root} "
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [abspath(found.root), environ.get("PYTHONPATH")]))
    environ.update(HOST=host, PORT=str(where.port))
    line += ["--next"] * (call.next and PROGRAM in line)
    return _preview(line, shown, endpoints, policy) if call.dry_run else _start(line, what, endpoints, policy)


def _chosen(words: list[str]) -> Found:
    """The app to serve, with the options for its server."""
    app = _app_in(words)
    if not app and environ.get("APP"):
        words = [environ["APP"], *words]
        app = _app_in(words)
    options = [word for word in words if word != app]
    if options and options[0][:1] != "-":
        how = "name it as in src.main:app, a port by --port, or put a command after --"
        raise _CannotStart(f"{options[0]!r} is not an app; {how}", 2)
    found = [_named(app, options)] if app else _declared() or find_app()
    if len(found) > 1:
        lines = "\n".join(f"  python {SCRIPT} {each.app}  # {each.why}" for each in found)
        raise _CannotStart(f"Several apps were found; name one:\n{lines}")
    chosen = found[0] if found else _nothing()
    chosen.options, chosen.typed = [*chosen.options, *options], options
    return chosen


def _nothing() -> Found:
    """Say what to type where no app was found; a small page where there is no code at all."""
    folders = filter(_has_program, [*BESIDE, *({dirname(PROGRAM)} - {getcwd()})])
    ways = [f"cd {folder} && python {relpath(PROGRAM, folder)}" for folder in folders]
    code = [name for name in listdir(curdir) if name.endswith(tuple(CODE.split())) and name not in NO_MODULE]
    if isfile("package.json"):
        ways = ways or [f"python {SCRIPT} -- npm run dev"]
    if ways or code or _sources():
        ways = ways or [f"python {SCRIPT} src.main:app", f"python {SCRIPT} -- COMMAND"]
        raise _CannotStart("\n  ".join(["No app was found at the top, in src or one folder down; try:", *ways]))
    return Found(app="no app", kinds="page", why="this folder has no code of its own, so a small page is served")


def _next(wanted: Endpoint) -> Endpoint:
    """The next free port; it is said who has the one that was wanted."""
    port = find_free_port(wanted.port, wanted.host)
    if port != wanted.port:
        holders = ", ".join(map(_title, preview_port(wanted.port, wanted.host).holders))
        _say(f"Port {wanted.port} is held by {holders}: {port} is taken instead")
    return Endpoint(wanted.host, port)


def _given(call: _Call) -> Found:
    """A given command: nobody is stopped for a program that is not there."""
    import shutil

    command = call.command or []
    if call.words or not command:
        ours = "--host, --port, --next and --dry-run"
        raise _CannotStart(f"a command is needed after --, and before it nothing but {ours}", 2)
    if shutil.which(command[0]) is None and isfile(join(dirname(sys.executable), command[0])):
        command = [join(dirname(sys.executable), command[0]), *command[1:]]  # of an environment that is not activated
    if shutil.which(command[0]) is None:
        there = isfile(command[0])
        what = "executable" if there else "installed, or not on PATH"
        raise _CannotStart(f"{command[0]} is not {what}", 126 if there else 127)
    return Found(app=command[0], command=command)


def _endpoints(command: list[str], where: Endpoint, call: _Call) -> list[Endpoint]:
    """Where a given command will listen: on the port that was named here, else where the command says itself."""
    if not (call.port or call.next):
        return server_endpoints(command)
    told = server_endpoints(command, {**environ, "HOST": where.host, "PORT": str(where.port)})
    same = [endpoint for endpoint in told if endpoint.port == where.port]
    if told and not same:
        other = f"The command itself names {told[0]}, not port {where.port}"
        if call.next:
            raise _CannotStart(f"{other}: leave out --next", 2)
        write_line(sys.stderr, f"⚠️  {other}")
    return same or [where]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; it returns only where this process does not become the server.

    >>> main(["--port", "http"])
    2
    """
    try:
        call = _read_call(sys.argv[1:] if argv is None else argv)
        if {"--help", "-h", "--version"} & {*call.words}:
            _say(f"run_backend {__version__}" if "--version" in call.words else USAGE.rstrip())
            return 0
        return _serve(call) if {"--page", "--wsgiref"} & {*call.words[:1]} else _run(call)
    except (_CannotStart, PortError) as error:
        status = getattr(error, "status", 1)
        write_line(sys.stderr, ("run_backend: " if status == 2 else "❌ ") + error.reason)
        return status
    except FileNotFoundError:
        write_line(sys.stderr, "❌ The working directory has been removed: cd into the repository again")
        return 1
    except KeyboardInterrupt as interruption:
        write_line(sys.stderr, str(interruption) or "Interrupted")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
