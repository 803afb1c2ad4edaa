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

import ast
import os
import re
import sys
import warnings
from functools import lru_cache
from glob import escape, glob
from importlib.machinery import PathFinder
from os import chdir, curdir, environ, getcwd, listdir, sep
from os.path import abspath, basename, dirname, isdir, isfile, relpath
from posixpath import join  # on Windows, too
from types import SimpleNamespace

sys.path.insert(0, dirname(__file__) or curdir)  # python -P and -I leave it out

from port_manager import (
    SERVERS,
    Endpoint,
    Holder,
    PortError,
    Server,
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
    from typing import Any, Sequence

    Words = Sequence[str]  # of a command line

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
    "flask wsgi": "Flask APIFlask Eve FlaskApp connexion.App flask_openapi3.OpenAPI",
    "dash": "Dash",
    "quart asgi": "Quart",
    "litestar asgi": "Litestar",
    "sanic asgi": "Sanic",
    "": "aiohttp.web.Application tornado.web.Application celery.Celery typer.Typer",
}
MAKERS = {maker: kinds for kinds, makers in KINDS.items() for maker in makers.split()}
# What runs a server until it ends, and the same in a line at a module's top, which runs when it is imported.
RUNS = (
    r"\b(?:run_app|run_server|serve_forever|start_server|launch|quickstart|"
    r"(?:run|serve)(?=\((?:app|host|port|server|reloader))|"
    r"(?:uvicorn|bottle|ui|socketio|reactor|app|application|server|api)\.run|waitress\.serve|panel\.serve|"
    r"wsgi\.server|(?:app|application|server)\.(?:listen|start)|IOLoop\.(?:current|instance)\(\)\.start)(?=\()"
)
RUN_BY = r"(?m)^(?:import|from) (streamlit|chainlit|flet|shiny|solara|marimo)\b"  # as in: streamlit run FILE
RUNS_AT_ONCE = rf"(?m)^(?!def |async |class |if __name__|[\s#]).*?{RUNS}"
IN_A_THREAD = r"def (\w+)\(.*\n\s+\w+\.run\([^\0]*\bThread\(\s*target\s*=\s*\1\b"  # a part of another program

# fastapi's and flask's own search, and ours: the first of these that has an app is taken.
CONVENTIONS = ("src/main.py", "main.py", "wsgi.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py",
               "src/app.py", "asgi.py")  # fmt: skip
NAMES = ("app", "application", "api", "server", "create_app", "make_app")
BESIDE = ("backend", "server")  # folders that are no packages: another program than the one at the top lives there
CODE = (".py", ".ipynb", ".js", ".mjs", ".ts", ".jsx", ".tsx", ".vue", ".go", ".rs", ".rb", ".java", ".kt", ".scala",
        ".php", ".cs", ".ex", ".c", ".cpp", ".dart", ".swift", ".lua", ".pl", ".sh", "pyproject.toml",
        "package.json")  # fmt: skip
ENTRIES, MODULES = 5000, 400  # how many files and folders are looked at, how many modules read: the highest first

PROGRAM = abspath(__file__)
SCRIPT = basename(PROGRAM)
OURS = {"tests", "test", "conftest.py", "port_manager.py", SCRIPT}  # no code of the repository's own program
NOT_OURS = {"node_modules", "venv", "env", "site-packages"}
SKIPPED = {*OURS, *NOT_OURS, "migrations", "alembic", "docs", "build", "dist", "setup.py", "example", "examples",
           "demo", "demos", "sample", "samples", "benchmark", "benchmarks"}  # fmt: skip
NO_APPS = r"(?<![a-zA-Z])[Tt]est|\.[^/]*/"  # tests, and what stands in a folder that no import can name
OTHERS = {"package.json": "npm run dev", "development.ini": "pserve development.ini"}  # programs that name themselves
FLAGS = ("", "--reload", "--debug", "--factory", "--preload", "--app", "-A")  # what may stand before the app
VARIABLE = r"""^\s*(?:export\s+)?(\w+)[ \t]*=[ \t]*["']?(.*?)["']?\s*$"""
ENTRYPOINT = r"""(?m)^\[tool\.fastapi\]\s*\n(?:(?!\[).*\n)*?\s*entrypoint\s*=\s*["'](.+?)["']"""
ELSEWHERE = {"--app-dir", "--chdir", "--pythonpath"}  # options that let a server look for the app in another folder


class Found(SimpleNamespace):
    """An app, what makes one, or the command that a repository declares.

    app: src.main:app, app:create_app('dev'), manage.py; of a command its program. kinds: the best first; none where a
    function needs arguments. why: how it is known. path: the module that binds it. call: "" for an app, "class" for a
    class, for a function the arguments that it needs, as in "()". server, options: what is declared; typed: the options
    of the command line. port: the repository's own. asked: it is named, and started only when it is typed.
    """

    app = kinds = why = path = call = server = ""
    asked = False
    options: Words = ()
    typed: Words = ()
    command: Words = ()
    port = 8000


class _CannotStart(PortError):
    """Why there is no server."""

    def __init__(self, reason: str, status: int = 1) -> None:
        super().__init__(reason)
        self.status = status


def _say(text: str) -> None:
    write_line(sys.stdout, text)


# ----------------------------------------------------------------------------------------------------
# The call
# ----------------------------------------------------------------------------------------------------


def _read_call(words: Words) -> SimpleNamespace:
    """Our own options, the words for the server, and the command after ``--`` (None: there is no --).

    >>> call = _read_call(["src.main:app", "--port=9000", "--reload", "--next", "--", "npm", "run", "dev"])
    >>> call.port, call.next, call.words, call.command
    ('9000', True, ['src.main:app', '--reload'], ['npm', 'run', 'dev'])
    """
    end = words.index("--") if "--" in words else len(words)
    hosts, rest = take_options(words[:end], "--host")
    ports, rest = take_options(rest, "-p --port")
    to_next, rest = take_options(rest, "--next", flags=True)
    dry_run, rest = take_options(rest, "--dry-run", flags=True)
    if "" in hosts + ports:
        raise _CannotStart(f"--{'host' if '' in hosts else 'port'} needs a value", 2)
    return SimpleNamespace(
        host=[environ.get("HOST") or "0.0.0.0", *hosts][-1].strip("[]"),
        port=[environ.get("PORT", ""), *ports][-1],
        names_port=bool(ports + to_next) or end == len(words),  # else a command after -- says its own
        next=bool(to_next),
        dry_run=bool(dry_run),
        words=rest,
        command=words[end + 1 :] if end < len(words) else None,
    )


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,8}", text) or not 1 <= int(text) <= 65535:
        raise _CannotStart(f"a port is a number from 1 to 65535, not {text!r}", 2)
    return int(text)


def _app_in(words: Words) -> str:
    """The word that names the app; "" where none does.

    >>> [_app_in([word]) for word in ("src.main:app", "main.py", "my-app:make('x')", "localhost:80", "debug")]
    ['src.main:app', 'main.py', "my-app:make('x')", '', '']
    >>> _app_in(["--log-config", "log.py", "--loop", "uvloop:new_event_loop", "--reload", "main.py"])
    'main.py'
    """
    for before, word in zip(["", *words], words):
        place, colon, _ = word.partition(":")
        free = before[:1] != "-" or before in FLAGS  # no option's value
        if free and (names_app(word) or place.endswith(".py")):
            return word
        if (free or colon) and word[:1] != "-" and _file_of(place):
            return word
    return ""


# ----------------------------------------------------------------------------------------------------
# Modules as syntax: importing them is their server's business
# ----------------------------------------------------------------------------------------------------


class _Module:
    """What a module binds at its top, and what its imports stand for, wherever they are."""

    def __init__(self, path: str) -> None:
        self.path, self.source, self.error = path, _text(path), ""
        self.imports: dict[str, str] = {}  # by name: shop.create_app, .db
        self.bound: dict[str, list[Any]] = {}  # by name: the statements, the last one first
        self.known: dict[str, Found | None] = {}
        try:
            tree = ast.parse(self.source, path)
        except (SyntaxError, ValueError, RecursionError) as error:
            self.error = str(error)
            return
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
                node.body = []  # no server runs that
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                place = f"{'.' * node.level}{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    self.imports[name] = place + (alias.name if alias.asname else name)
        self._bind(tree)

    def _bind(self, block: ast.AST, within: Any = None) -> None:
        """Note the names that are bound at the top, not in functions and classes, each with its statement."""
        node: Any
        for node in ast.iter_child_nodes(block):
            statement = node if isinstance(node, ast.stmt) else within
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            elif isinstance(node, ast.alias):
                name = node.asname or node.name.partition(".")[0]
            elif hasattr(node, "decorator_list"):
                name = node.name
            else:
                self._bind(node, statement)
                continue
            self.bound.setdefault(name, []).insert(0, statement)

    def name(self, node: Any) -> str:
        """The full name of what an expression names."""
        if hasattr(node, "attr"):
            return f"{self.name(node.value)}.{node.attr}"
        return self.imports.get(node.id, node.id) if hasattr(node, "id") else "?"

    def find(self, name: str) -> Found | None:
        """What a full name stands for: one of MAKERS, or what a module of this repository binds."""
        place, dot, last = name.rpartition(".")
        kinds = MAKERS.get(name, MAKERS.get(last))
        if kinds is not None:
            return Found(kinds=kinds, why=f"{last} object in {self.path}", call="class")
        return (_read(_file_of(place, self.path)) if dot else self).made(last)

    def made(self, name: str) -> Found | None:
        """What a name at the top stands for, by the last statement that tells."""
        if name not in self.known:
            self.known[name] = None  # names that stand for each other make nothing
            told = (self._made_by(statement, name) for statement in self.bound.get(name, []))
            self.known[name] = next(filter(None, told), None)
        return self.known[name]

    def _made_by(self, statement: Any, name: str) -> Found | None:
        """What a statement that binds a name makes: the first app that it calls the maker of."""
        if hasattr(statement, "names"):
            return self.find(self.imports[name])
        inside = [*ast.walk(statement)]
        used = [node.value for node in inside if isinstance(node, ast.Attribute)]  # create_app().test_client()
        makers = [node.func for node in inside if isinstance(node, ast.Call) and node not in used]
        call = ""
        if hasattr(statement, "bases"):
            makers, call = statement.bases, "class"
        elif hasattr(statement, "args"):
            needs = [argument.arg for argument in statement.args.args]
            kinds = MAKERS.get(",".join(needs))
            if kinds:
                return Found(kinds=kinds, why=f"callable object in {self.path}")
            if ast.Return not in map(type, inside):
                return None
            needs = needs[: -len(statement.args.defaults) or None]
            call = "class" if needs and statement.args.kwarg else f"({', '.join(needs)})"  # main(settings, **more)
        made = [*filter(None, map(self.find, map(self.name, makers)))]
        return Found(**{**vars(made[0]), "call": call}) if made else None

    def root(self) -> str:
        """The folder that the imports begin in: the top one, unless only another has what is imported."""
        names = {name.partition(".")[0] for name in self.imports.values()}
        for folder in _folders(self.path):
            here = {name.replace(".py", "") for name in listdir(folder or curdir)}
            if folder and names & here:
                return folder
            names -= here
        return ""


_read = lru_cache(maxsize=None)(_Module)


def _readable(path: str) -> _Module:
    module = _read(path)
    if module.error:
        raise _CannotStart(f"{path} cannot be read: {module.error}")
    return module


def _text(path: str) -> str:
    """What stands in a file; nothing where there is none."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _file_of(dotted: str, importer: str = "") -> str:
    """The file of a module as another one imports it: ``.factory``, ``shop.factory``; "" outside of this repository."""
    folders = _folders(importer)
    folders = folders[::-1] if dotted[:1] == "." else [*folders, "src"]
    path = dotted.strip(".").replace(".", "/")
    ends = "/__init__.py", ".py"  # a package hides a module of its name
    return next(filter(isfile, (join(folder, path).rstrip("/") + end for folder in folders for end in ends)), "")


def _folders(path: str) -> list[str]:
    """The folders that a file stands in, from the top down.

    >>> _folders("src/shop/main.py")
    ['', 'src', 'src/shop']
    """
    return ["", *(path[: slash.start()] for slash in re.finditer("/", path))]


# ----------------------------------------------------------------------------------------------------
# The guess: one scan of the modules at the top, in src and one folder down, and of those below where it finds none
# ----------------------------------------------------------------------------------------------------


def find_app() -> list[Found]:
    """The apps that the modules here build: one of a usual place alone, else all, the best first.

    Where there is none at the top, in src or one folder down: those below, and the programs that start a server of
    their own.
    """
    near = [path for pattern in ("*.py", "*/*.py", "src/*/*.py", "src/*/*/*.py") for path in sorted(glob(pattern))]
    sources = _sources(near, SKIPPED)
    for path in filter(sources.__contains__, CONVENTIONS):
        usual = _app_of(_readable(path))
        if usual:
            return [usual]
    modules = [*map(_read, sources)]
    found = _best([*filter(None, map(_app_of, modules))])
    part = any(re.search(IN_A_THREAD, module.source) for module in modules)
    if found and found[0].kinds and not part and not any(map(_beside, found)):
        return found
    below = map(_read, _sources(_walk(), OURS)[:MODULES])
    found = [*filter(None, (_app_of(module) or _program_of(module) for module in below))]
    for each in found:
        begins = _read(each.path).root() or glob(join(dirname(each.path), "__init__.py"))  # its imports, for certain
        each.asked = bool(each.command or (each.kinds and (_beside(each) or not begins)))
    return _best(found)


def _best(every: list[Found]) -> list[Found]:
    """The best first; it alone, and started, where none is as good, or all as good are made in one place."""
    parts = {
        _file_of(name.rpartition(".")[0], found.path) for found in every for name in _read(found.path).imports.values()
    } - {""}  # of another app here

    def rank(found: Found) -> Any:
        """No script (such as one that fills a database), a whole app, at the top: the best first."""
        script = "\nwith " in _read(found.path).source
        part = found.path in parts or found.why.startswith("get_")  # Django's, of a manage.py
        return script, part, "/" in (found.path or found.app)

    every.sort(key=lambda found: (not found.kinds, rank(found), found.app))
    best = {found.why for found in every if every[0].asked or rank(found) == rank(every[0])}
    return every if len(best) > 1 else every[:1]


def _sources(paths: list[str], skipped: set[str]) -> list[str]:
    """The modules among these files that may have an app."""
    found = [path.replace(sep, "/") for path in paths if path.endswith(".py") and not re.search(NO_APPS, path)]
    return [path for path in found if skipped.isdisjoint(path.split("/")) and not isfile(path[:-3] + "/__init__.py")]


def _walk() -> list[str]:
    """What stands here, the highest first, without hidden folders, node_modules and virtual environments."""
    found = sorted(glob("*"))
    for path in found:  # what stands in a folder is added at the end
        if len(found) < ENTRIES and basename(path) not in NOT_OURS:
            found += sorted(glob(join(escape(path), "*")))
    return found


def _beside(found: Found) -> str:
    """The folder with another program than the one at the top, which is no package of it."""
    folder = (found.path or found.app).split("/")[0]
    return folder if folder in BESIDE and not glob(join(folder, "__*__.py")) else ""


def _app_of(module: _Module) -> Found | None:
    """The app that a module makes or runs; an imported one counts where it is run, or in a usual place."""
    path, source = module.path, module.source
    if path.endswith("manage.py") and "django.core.management" in source:
        return Found(app=path, kinds="django", why=f"Django's {path}")
    if re.search(IN_A_THREAD, source):
        return None
    usual = path in CONVENTIONS
    names = [name for name in module.bound if usual or name not in module.imports or f"{name}.run(" in source]
    names = [*filter(names.__contains__, NAMES), *names]
    apps = [found for found in (_found(module, name) for name in names if name[0] != "_") if found]
    if apps:
        return min(apps, key=lambda found: found.call)  # an app before what makes one
    run = re.search(r"""\brun\(\s*["'](([\w.]+):\w+)["']([^)]*\bport\s*=\s*(\d+))?""", source)
    if not run or _file_of(run[2]) in ("", path):
        return None
    launched = _named(run[1])  # uvicorn.run("app.main:app", port=8080)
    launched.port = int(run[4] or 8000)
    return launched


def _program_of(module: _Module) -> Found | None:
    """A module that starts a server of its own, or a usual program, as the command to paste: no server can load it."""
    path, runs = module.path, re.search(f"{RUN_BY}|{RUNS}", module.source)
    if module.error or not (runs or path in CONVENTIONS or path.endswith("/__main__.py")):
        return None
    command = ["python", path]
    if runs and runs[1]:
        command = [runs[1], "run", path]
    elif glob(join(dirname(path), "__*__.py")) and not module.root():  # of a package
        command = ["python", "-m", path[:-3].replace("/", ".").replace(".__main__", "")]
    why = runs[0] if runs else "program"
    return Found(command=command, path=path, kinds=why if runs else "", why=f"{why} in {path}")


def _found(module: _Module, name: str, unknown: Found | None = None) -> Found | None:
    """An app as its server is told of it; None where the name is no app's."""
    called = re.split("[(.]", name)[0]
    made = module.made(called) or unknown
    there = {called, "*", "__getattr__"} & {*module.bound}
    if not (made and made.kinds and there) or made.call == "class" or (made.call and made.kinds == "dash"):
        return None
    if re.search(RUNS_AT_ONCE, module.source):  # another server could not import it
        return None
    kinds = made.kinds
    if name == called and kinds == "dash":
        name, kinds = ("server", "wsgi") if "server" in module.bound else (f"{name}.server", kinds)
    elif name == called and made.call:
        name, kinds = name + made.call, kinds if made.call == "()" else ""
    place = module.path[:-3].replace("/", ".").replace(".__init__", "")
    return Found(**{**vars(made), "app": f"{place}:{name}", "kinds": kinds, "path": module.path})


# ----------------------------------------------------------------------------------------------------
# What is named, and what the repository declares
# ----------------------------------------------------------------------------------------------------


def _named(word: str, options: Words = ()) -> Found:
    """An app that was named: ``src.main:app``, ``src/main.py``, ``shop.wsgi``, or ``app:create_app()``."""
    place, _, name = word.partition(":")
    if place.endswith(".py"):
        place = relpath(place)[:-3].replace(sep, ".")
    usual = "application" if place.endswith(("asgi", "wsgi")) else "app"
    package = place.partition(".")[0]  # "" above this folder
    path = _file_of(place) if package else ""
    kinds = "wsgi" if re.search("wsgi|flask|dash|bottle", place + _text(path)) else "asgi"
    unknown = Found(app=f"{place}:{name or usual}", kinds=kinds, why="as named")
    if not path:
        elsewhere = {option.partition("=")[0] for option in options} & ELSEWHERE
        if not (elsewhere or (package and _interpreter(package))):
            raise _CannotStart(f"There is no {word} in this folder")
        return unknown
    module = _readable(path)
    found = (None if name else _app_of(module)) or _found(module, name or usual, unknown)
    if not found:
        what = f"{name or usual} at its top that a server can serve"
        raise _CannotStart(f"{path} has no {what}; as a program: python {SCRIPT} -- python {path}")
    return found


def _declared() -> Found | None:
    """What the repository says itself, if anything: its Procfile, flask's variables, fastapi's entry point."""
    web = re.search(r"^\s*web\s*:(.+)", _text("Procfile"), re.MULTILINE)
    found = _of_procfile(web[1]) if web else None
    if found:
        return found
    variables = re.findall(VARIABLE, _text(".env") + "\n" + _text(".flaskenv"), re.MULTILINE)
    told = {**dict(variables), **environ}
    flask = told.get("FLASK_APP")
    if flask:
        environ.update(told)  # as flask run does: the app may need them
        found = _named(flask)
        found.why, found.port = f"FLASK_APP={flask}", _port(told.get("FLASK_RUN_PORT") or "8000")
        if told.get("FLASK_DEBUG", "").lower() in ("1", "true", "yes", "on"):
            found.server, found.options = "flask run", ["--debug"]
        return found
    entry = re.search(ENTRYPOINT, _text("pyproject.toml"))
    if entry:
        found = _named(entry[1])
        found.why = "[tool.fastapi] entrypoint"
    return found


def _of_procfile(line: str) -> Found | None:
    """The web line of a Procfile, of which no shell is asked: the known server in it, else its last command."""
    commands = shell_commands(["sh", "-c", line], environ)
    for words in commands:
        if words[0] == "cd" and isdir(words[-1]):
            chdir(words[-1])
    words = next(filter(find_server, commands), commands[-1] if commands else [""])
    itself = SCRIPT in line  # this program, in its own Procfile
    words = [word for word in words if basename(word) != SCRIPT]
    if words[0].startswith("python"):
        words[0] = _interpreter("")
    key, at = find_server(words) or ("", 0)
    server, verb, told = SERVERS.get(key), key.partition(" ")[2], server_endpoints(words, {})
    rest = words[at + 1 :]
    if verb:
        rest.remove(verb)
    app = words[at] if words[at].endswith(".py") else _app_in(rest)
    if not (app and (itself or verb or (server and server.serves))):
        found = None if itself or verb == "run" else _command(words)
    else:
        found = _named(app, rest)
        if server and not verb:
            options = take_options(rest, f"{server.hosts} {server.ports} {server.binds}")[1]
            found.server, found.options = key, [word for word in options if word != app]
    if found:
        found.why, found.port = "Procfile web line", told[0].port if told else 8000
    return found


def _command(words: Words) -> Found | None:
    """A command as it is, with a program that is on PATH, or beside this Python, which may not be activated."""
    import shutil

    program = shutil.which(words[0]) or shutil.which(words[0], path=dirname(sys.executable))
    return Found(app=words[0], command=[program, *words[1:]]) if program else None


# ----------------------------------------------------------------------------------------------------
# Which command serves it?
# ----------------------------------------------------------------------------------------------------


def server_command(found: Found, where: Endpoint) -> tuple[list[str], str]:
    """The command that serves an app, and the server's name; _CannotStart where there is none."""
    if found.command:
        return [*found.command, *found.typed], found.app
    reloads, missing = {"--debug", "--reload"} & {*found.typed}, ""
    kinds = [found.server, *(kind for kind in found.kinds.split() if reloads or kind != "flask")]
    for key in (key for kind in kinds for key in SERVERS if kind in (key, *SERVERS[key].serves.split())):
        words = _filled(SERVERS[key], found.app, where)
        if not words or (key == "gunicorn" and os.name != "posix"):
            continue
        package = {"runserver": "django", "--wsgiref": "", "--page": ""}.get(words[1], words[1])
        python = _interpreter(package)
        if python and (package or not found.typed):  # the standard library's server has no options
            if "sgi" in SERVERS[key].serves:  # the help of a framework is not of this one command
                _check_options([python, *words[:2]], found.typed)
            declared = found.options if key == found.server else ()
            return [python, *words, *declared, *found.typed], key.partition(" ")[0]
        missing = missing or package
    if not missing:
        raise _CannotStart(f"{found.app} needs arguments: name it with them, as in \"app:create_app('dev')\"")
    pip = f"{sys.executable} -m pip install {missing}"
    raise _CannotStart(f"{found.app} needs {missing}, which is not installed: {pip}")


def _filled(server: Server, app: str, where: Endpoint) -> list[str]:
    """The words that start a server: those of its row, with the app and the address; none where it cannot serve it."""
    start = server.start
    if app.endswith("()") and server.factory[:1] == "-":
        start, app = start.replace("APP", f"{server.factory} APP"), app[:-2]
    if "(" in app and server.factory != "()":
        return []
    values = {"APP": app, "HOST": where.host, "PORT": str(where.port), "ADDRESS": str(where), SCRIPT: PROGRAM}
    return [values.get(word, word) for word in start.split()]


def _check_options(server: list[str], options: Words) -> None:
    """Nobody is stopped for a server that would refuse its call: its own help has the options."""
    import subprocess

    named = [option.partition("=")[0] for option in options if option.startswith("--")]
    if named:
        told = subprocess.run([*server, "--help"], capture_output=True, check=False).stdout
        unknown = [option for option in named if option.encode() not in told]
        if unknown and b"--" in told:
            raise _CannotStart(f"{server[-1]} has no option {unknown[0]}", 2)


def _interpreter(package: str) -> str:
    """The Python that has a package: that of a virtual environment here, or this one; "" where neither has."""
    posix = ("bin/python", "lib/*/site-packages")
    program, packages = posix if os.name == "posix" else ("Scripts/python.exe", "Lib/site-packages")
    own = {sys.executable: sys.path}
    beside = {abspath(join(name, program)): glob(join(name, packages)) for name in (".venv", "venv")}
    activated = sys.prefix != sys.base_prefix
    for python, path in ({**own, **beside} if activated else {**beside, **own}).items():
        spec = PathFinder.find_spec(package, path)
        if isfile(python) and (not package or (spec and spec.origin)):  # a mere folder of this name has none
            return python
    return ""


# ----------------------------------------------------------------------------------------------------
# Start it
# ----------------------------------------------------------------------------------------------------


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
    import signal
    import subprocess

    if os.name == "posix":
        for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and its successor would inherit that
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        try:
            os.execv(command[0], command)  # noqa: S606
        except OSError as error:
            raise _CannotStart(f"{command[0]} cannot be started: {error.strerror}", 126) from None
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the console has told the child as well
            continue


def _preview(command: list[str], shown: str, endpoints: Sequence[Endpoint]) -> int:
    """--dry-run: who would be stopped, and the command as the last line."""
    import shlex

    seen = [preview_port(port, host) for host, port in endpoints]
    for each in seen:
        who = f"{_who(each.holders)}: " if each.plan else ""
        _say(f"Port {each.port}: {who}{each.plan or each.reason or 'available'}")
    _say(shown + " ".join(map(shlex.quote, command)))
    return 0 if all(each.available or each.plan for each in seen) else 1


def _who(holders: Sequence[Holder]) -> str:
    """Who has a port: the children of a server go with it."""
    pids = {holder.pid for holder in holders}
    return ", ".join(f"process {holder}" for holder in holders if holder.parent not in pids)


# ----------------------------------------------------------------------------------------------------
# The standard library's server: this program starts itself again, so that its command line says what it is
# ----------------------------------------------------------------------------------------------------


def _serve(call: SimpleNamespace) -> int:
    """``--page`` or ``--wsgiref APP``, then --host and --port."""
    import signal
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    where, app = Endpoint(call.host, _port(call.port)), _page
    if call.words == ["--page"]:
        _leave_others_alone(where)
    else:
        app = _imported(call.words[1])  # before anybody is stopped
    with Server(where, WSGIRequestHandler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = bind_port(where.port, where.host)
        server.server_name, server.server_port = where
        server.setup_environ()
        server.set_app(app)
        _say(_announced([where], "a small page" if app is _page else "wsgiref, no reload"))
        if os.getpid() == 1:  # the first process of a container, which no signal ends by itself
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        server.serve_forever()
    return 0


def _leave_others_alone(where: Endpoint) -> None:
    """Nobody but another small page is stopped for one."""
    pages = [f"{SCRIPT} --page" in holder.command for holder in preview_port(where.port, where.host).holders]
    if not (pages and all(pages)):  # whoever takes a free port in the meantime keeps it
        environ["PORT_MANAGER_POLICY"] = "refuse"


def _page(environ: Any, start_response: Any) -> list[bytes]:
    """The small page, a WSGI app."""
    page = (
        "<!doctype html><meta charset=utf-8><title>It works</title>"
        f"<h1>It works</h1><p>Process {os.getpid()} serves this page on port {environ['SERVER_PORT']}. "
        "Start run_backend.py again, and the next process takes the port over from this one.</p>"
    ).encode()
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(page)))])
    return [page] if environ["REQUEST_METHOD"] != "HEAD" else []


def _imported(app: str) -> Any:
    """The app that a module binds, or that a function in it makes."""
    from importlib import import_module
    from operator import attrgetter

    sys.path.insert(0, getcwd())
    place, _, name = app.partition(":")
    name, call, arguments = name.partition("(")
    found = attrgetter(name)(import_module(place))
    return found(*ast.literal_eval(f"[{arguments[:-1]}]")) if call else found


# ----------------------------------------------------------------------------------------------------
# The command line
# ----------------------------------------------------------------------------------------------------


def _run(call: SimpleNamespace) -> int:
    top = getcwd()
    warnings.simplefilter("ignore")  # those of the modules here are for their server to show
    found = _chosen(call.words) if call.command is None else _given(call)
    where = Endpoint(call.host, _port(call.port or str(found.port)))
    if call.next:
        environ["PORT_MANAGER_POLICY"] = "refuse"  # whoever was faster keeps the port
        where = _next(where)
    if found.kinds == "page":
        _leave_others_alone(where)
    shown = f"cd {relpath(getcwd(), top)} && " if getcwd() != top else ""
    root = _read(found.path).root()
    if root:
        if found.path != f"{root}/__init__.py":  # a package is no module of its own folder
            found.app = found.app[len(root) + 1 :]
        shown += f"PYTHONPATH={root} "
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [abspath(root), environ.get("PYTHONPATH")]))
    line, what = server_command(found, where)
    if call.command is None:
        python = "" if found.command or line[0] == sys.executable else f", with {relpath(line[0])}"
        _say(f"Found {found.app}: {found.why}{python}")
    endpoints = _to_free(line, where, call if call.names_port and found.command else None)
    if call.dry_run:
        return _preview(line, shown, endpoints)
    if PROGRAM not in line:  # it frees its port itself, when its app has been imported
        if not all(ensure_port_available(port, host) for host, port in endpoints):
            return 1
        _say(_announced(endpoints, basename(what)))
    return _become(line)


def _to_free(line: list[str], where: Endpoint, named: SimpleNamespace | None) -> list[Endpoint]:
    """Where a command will listen, which is told the address by HOST and PORT; the named port of a call is the port."""
    endpoints = server_endpoints(line)
    environ.update(HOST=where.host, PORT=str(where.port))
    if named:
        told = server_endpoints(line)
        endpoints = [endpoint for endpoint in told if endpoint.port == where.port] or [where]
        if told and endpoints[0] not in told:
            other = f"The command itself names {told[0]}, not port {where.port}"
            if named.next:
                raise _CannotStart(f"{other}: leave out --next", 2)
            write_line(sys.stderr, f"⚠️  {other}")
    return endpoints


def _next(wanted: Endpoint) -> Endpoint:
    """The next free port; it is said who has the one that was wanted."""
    port = find_free_port(wanted.port, wanted.host)
    if port != wanted.port:
        who = _who(preview_port(wanted.port, wanted.host).holders)
        _say(f"Port {wanted.port} {f'is held by {who}' if who else 'cannot be had'}: {port} is taken instead")
    return Endpoint(wanted.host, port)


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
    found = _named(app, options) if app else _declared() or _guessed()
    found.typed = options
    return found


def _guessed() -> Found:
    """The only app here; else it is said what to type, and a small page is for a folder without any code."""
    import shlex

    found = find_app()
    if len(found) == 1 and not found[0].asked:
        return found[0]
    ways = []
    for each in found:
        words = shlex.join(["--", *each.command] if each.command else [each.app.replace("()", "")])
        here = f"python {SCRIPT} {words}  # {each.why}"
        folder = _beside(each)
        way = re.sub(f"^python {SCRIPT} {folder}[./]", f"cd {folder} && python ../{SCRIPT} ", here)
        ways += [way] * (each.call in ("", "()"))  # the arguments that others need nobody knows here
    if dirname(PROGRAM) != getcwd() and any(isfile(join(dirname(PROGRAM), name)) for name in CONVENTIONS):
        ways.append(f"cd {dirname(PROGRAM)} && python {SCRIPT}")
    ways += [f"python {SCRIPT} -- {command}" for file, command in OTHERS.items() if isfile(file)]
    title = "No app was found at the top, in src or one folder down"
    if ways:
        title = "Several apps were found; name one:" if any(each.kinds for each in found[1:]) else f"{title}; try:"
        raise _CannotStart("\n  ".join([title, *[*dict.fromkeys(ways)][:20]]))
    if any(path.endswith(CODE) and OURS.isdisjoint(path.split("/")) for path in _walk()):
        raise _CannotStart(f"{title}; name it, as in src.main:app, or put a command after --")
    why = "this folder has no code of its own, so a small page is served, for which nobody else is stopped"
    return Found(app="no app", kinds="page", why=why)


def _given(call: SimpleNamespace) -> Found:
    """The command after ``--``: nobody is stopped for a program that is not there."""
    if call.words or not call.command:
        ours = "--host, --port, --next and --dry-run"
        raise _CannotStart(f"a command is needed after --, and before it nothing but {ours}", 2)
    found = _command(call.command)
    if not found:
        what, status = ("executable", 126) if isfile(call.command[0]) else ("installed, or not on PATH", 127)
        raise _CannotStart(f"{call.command[0]} is not {what}", status)
    return found


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
    except (PortError, FileNotFoundError) as error:
        if error.filename:  # of an app
            raise
        status = getattr(error, "status", 1)
        removed = "The working directory has been removed: cd into the repository again"
        write_line(sys.stderr, ("run_backend: " if status == 2 else "❌ ") + getattr(error, "reason", removed))
        return status
    except KeyboardInterrupt as interruption:
        write_line(sys.stderr, str(interruption) or "Interrupted")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
