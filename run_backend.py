# SPDX-License-Identifier: MIT
# Copyright (c) the port_manager authors
"""Start this repository's backend; in development, free its port first. None of its modules is imported to find it."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from functools import lru_cache
from glob import escape, glob
from importlib import import_module, machinery
from itertools import accumulate, islice, takewhile
from operator import attrgetter
from os import chdir, curdir, environ, getcwd, sep
from os.path import abspath, basename, dirname, isdir, isfile, relpath
from posixpath import join  # on Windows, too
from types import SimpleNamespace

sys.path.insert(0, dirname(__file__) or curdir)  # python -P and -I leave it out
from port_manager import (  # noqa: I001
    SERVERS, Endpoint, PortError, Server, __version__, bind_port, ensure_port_available, find_free_port, find_server,
    is_development, names_app, preview_port, server_endpoints, shell_commands, take_options, write_line,
)  # fmt: skip

del sys.path[0]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Iterator, Sequence

__all__ = ["main"]

USAGE = """\
  run_backend.py                           find the app, free its port, start it
  run_backend.py src.main:app --port 9000  this app; other options: its server's
  run_backend.py --port 3000 -- npm start  any command, given HOST and PORT

  --host HOST       where to listen (else HOST, else 0.0.0.0)
  -p, --port PORT   the port (else PORT, else the repository's own, else 8000)
  --next            take the next free port instead of stopping anyone
  --dry-run         stop nobody, start nothing; the last line is the command
  --version, --help

The app is the argument, else APP, a Procfile's web line, FLASK_APP (.flaskenv
and .env, too), [tool.fastapi] entrypoint, or the one that the modules build.
ENVIRONMENT (else that of .env): unset, dev, development, local, test, testing,
  debug: whoever holds the port is stopped. Else nobody is: the start fails.
PORT_MANAGER_POLICY: kill, own, ask or refuse (see port_manager.py --help)
Exit status: the server's own; 1 no app, no server or no port; 2 a wrong call;
  126 and 127 a command that cannot be started; 130 interrupted.
"""

# Kinds of app ("": no server's), and who makes them: by full name, by the last part of that, or by the arguments of a
# function that is an app itself. A framework's own server is preferred: it is the one in SERVERS of the same name.
KINDS = {
    "asgi": "FastAPI Starlette Quart Litestar Sanic Lilya Esmerald FastHTML fast_app Air AsyncApp ASGIApp WsgiToAsgi "
    "http_app get_asgi_application ProtocolTypeRouter falcon.asgi.App blacksheep.Application scope,receive,send",
    "wsgi": "Bottle default_app get_wsgi_application make_wsgi_app WSGIApplication WSGIApp DispatcherMiddleware "
    "wsgifunc falcon.App falcon.API environ,start_response env,start_response",
    "flask wsgi": "Flask APIFlask Eve FlaskApp connexion.App flask_openapi3.OpenAPI",
    "dash": "Dash",
    "": "aiohttp.web.Application tornado.web.Application celery.Celery typer.Typer",
}
MAKERS = {each: kind and f"{each.lower()} {kind}" for kind, makers in KINDS.items() for each in makers.split()}
# Calls that run a server until it ends, and programs that run a module which imports them: streamlit run FILE.
RUNS = r"(?<!subprocess)(?<!asyncio)\.(run|serve|run_app|run_server|serve_forever|launch|quickstart)$|IOLoop.*\.start$"
RUNNERS = ("streamlit", "chainlit", "flet", "shiny", "solara", "marimo")
IMPORTS = (ast.Import, ast.ImportFrom)

# fastapi's and flask's own search, and ours: the first of these that has an app is taken; then the nearest.
PLACES = ("src/main.py", "main.py", "wsgi.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py",
          "src/app.py", "asgi.py", "run.py", "server.py", "autoapp.py", "application.py", "manage.py", "__main__.py",
          "*.py", "*/*.py", "src/*/*.py", "src/*/*/*.py")  # fmt: skip
ENTRIES, MODULES = 5000, 400  # how many files and folders are looked at, how many modules read: the highest first

PROGRAM, SCRIPT = abspath(__file__), basename(__file__)
# Patterns of paths: nothing of the app's program; no module of the app, also because no import could name it.
OURS = rf"(^|/)(tests?|conftest\.py|port_manager\.py|{SCRIPT}|venv|env|node_modules|site-packages)(/|$)"
SKIPPED = rf"{OURS}|(?<![a-zA-Z])[Tt]est|\.[^/]*/|[^\w/.-]|(^|/)(migrations|alembic|docs|build|dist|setup\.py|"
SKIPPED += "(example|demo|sample|benchmark)s?)(/|$)"
OTHERS = {"package.json": "npm run dev", "development.ini": "pserve development.ini"}  # programs that name themselves
FLAGS = ("", "--reload", "--debug", "--factory", "--preload", "--app", "-A")  # what may stand before the app
VARIABLE = r"""(?m)^\s*(?:export\s+)?(\w+)[ \t]*=[ \t]*["']?([^\0\n]*?)["']?\s*$"""
ENTRYPOINT = r"""(?m)^\[tool\.fastapi\]\s*\n(?:(?!\[).*\n)*?\s*entrypoint\s*=\s*["'](.+?)["']"""


class Found(SimpleNamespace):
    """An app, what makes one, or the command that a repository declares.

    app: src.main:app, app:create_app('dev'), manage.py; a command's program. kinds: the best first. why: how it is
    known. path: the module that binds it. call: "" of an app, "()" of what makes one, "(...)" of what needs arguments
    for that. server, options, lead (variables): what is declared. port: the repository's own.
    """

    app = kinds = why = path = call = server = lead = ""
    options: Sequence[str] = ()
    command: Sequence[str] = ()
    port = 8000


class _CannotStart(PortError):
    def __init__(self, reason: str, status: int = 1) -> None:
        super().__init__(reason)
        self.status = status


# ---- The call --------------------------------------------------------------------------------------
def _read_call(words: Sequence[str]) -> SimpleNamespace:
    """Our own options, the words for the server, and the command after ``--``."""
    end = [*words, "--"].index("--")
    call = SimpleNamespace(command=words[end + 1 :])
    hosts, rest = take_options(words[:end], "--host")
    ports, rest = take_options(rest, "-p --port")
    call.next, rest = take_options(rest, "--next", flags=True)
    call.dry_run, call.words = take_options(rest, "--dry-run --dryrun --dry_run", flags=True)
    if "" in hosts + ports or words[end:] == ["--"]:
        raise _CannotStart("a value is missing after --host or --port, or a command after --", 2)
    try:
        call.top = getcwd()
    except FileNotFoundError:
        raise _CannotStart("The working directory has been removed: cd into the repository again") from None
    call.host = [environ.get("HOST") or "0.0.0.0", *hosts][-1].strip("[]")
    port = [environ.get("PORT", ""), *ports][-1]
    call.port = _port(port)  # 0: none is told
    if port and not call.port:
        raise _CannotStart(f"a port is a number from 1 to 65535, not {port!r}", 2)
    call.tells = bool(ports or call.next or not call.command)  # else a command after -- says its own port
    return call


def _port(text: str) -> int:
    return int(text) if re.fullmatch("[1-9][0-9]{0,4}", text) and int(text) < 65536 else 0


def _app_in(words: Sequence[str]) -> str:
    """The word that names the app; "" if none does."""
    for before, word in zip(["", *words], words):
        place, colon, _ = word.partition(":")
        free = before[:1] != "-" or before in FLAGS  # no option's value
        if (free and (names_app(word) or place.endswith(".py"))) or ((free or colon) and _file_of(place)):
            return word
    return ""


# ---- Modules as syntax: importing them is their server's business -----------------------------------
@lru_cache(maxsize=None)  # each is read once
class _Module:
    """The names that a module binds at its top, the servers that it runs, and the full names of its imports."""

    def __init__(self, path: str) -> None:
        self.path, self.source, self.error = path, _text(path), ""
        self.folders = ["", *accumulate(path.split("/")[:-1], join)]  # that it stands in: "", src, src/shop
        self.imports: dict[str, str] = {}  # by name: shop.create_app, .db
        self.bound: dict[str, list[Any]] = {}  # by name: the statements, the last one first
        self.known: dict[str, Found | None] = {}
        try:
            tree = ast.parse(self.source, path)
        except (SyntaxError, ValueError, RecursionError) as error:
            tree, self.error = ast.parse(""), str(error)
        for node in ast.walk(tree):
            if isinstance(node, IMPORTS):
                place = f"{'.' * node.level}{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
                self.imports.update((alias.asname or alias.name, place + alias.name) for alias in node.names)
        self.needs = {name.partition(".")[0] for name in self.imports.values()}  # the first name of each; "": relative
        for name, statement in _bindings(tree.body):
            self.bound.setdefault(name, []).insert(0, statement)
        # No server can import what runs one; what runs one in a thread is a part of another program.
        parts = self.bound.keys() - {"__main__"} if "Thread(" in self.source else {""}
        self.alone = self._run_by(statement for name in parts for statement in self.bound.get(name, []))
        self.runs = self._run_by([tree])
        steps = (step for step in self.bound.get("__main__", []) if not self._run_by([step]))
        self.unready = {getattr(node, "id", "") for step in steps for node in ast.walk(step)}  # what a script sets up

    def _run_by(self, statements: Iterable[ast.AST]) -> str:
        """The first call in these statements that runs a server until it ends."""
        calls = (self.name(node) for each in statements for node in ast.walk(each) if isinstance(node, ast.Call))
        return next(filter(re.compile(RUNS).search, calls), "")

    def name(self, node: Any) -> str:
        """The full name of what an expression names or calls."""
        node = getattr(node, "func", node)
        if hasattr(node, "attr"):
            return f"{self.name(node.value)}.{node.attr}"
        return self.imports.get(node.id, node.id) if hasattr(node, "id") else "?"

    def find(self, name: str) -> Found | None:
        """What a full name means: one of MAKERS, or an app that a module of this repository binds."""
        place, dot, last = name.rpartition(".")
        kinds = MAKERS.get(name, MAKERS.get(last))
        if kinds is not None:
            return Found(kinds=kinds, why=f"{last} object in {self.path}", call="(...)")
        if dot:
            return _Module(_file_of(place, self.folders)).find(last)
        if name not in self.known:
            self.known[name] = None  # for names that refer to each other
            told = (self._made_by(statement, name) for statement in self.bound.get(name) or self.bound.get("*", []))
            self.known[name] = next(filter(None, told), None)
        return self.known[name]

    def _made_by(self, statement: Any, name: str) -> Found | None:
        """The app that a statement binds to a name: the first one whose maker it calls."""
        if isinstance(statement, IMPORTS):
            return self.find(self.imports.get(name) or self.imports["*"][:-1] + name)
        inside = [*ast.walk(statement)]
        makers = getattr(statement, "bases", [node for node in inside if isinstance(node, ast.Call)])
        call = "(...)" if hasattr(statement, "decorator_list") else ""
        if hasattr(statement, "args"):
            needs = [argument.arg for argument in statement.args.args]
            if ",".join(needs) in MAKERS:
                return Found(kinds=MAKERS[",".join(needs)], why=f"callable object in {self.path}")
            if len(needs) == len(statement.args.defaults) and ast.Return in map(type, inside):
                call = "()"
        made = next(filter(None, map(self.find, map(self.name, makers))), None)
        return made and Found(kinds=made.kinds, why=made.why, call=call)

    def app(self, name: str, unknown: Found | None = None) -> Found | None:
        """An app by the name that its server takes; None if the name is not an app's."""
        called = re.split("[(.]", name)[0]
        made = self.find(called) or unknown
        if not (made and made.kinds and {called, "*", "__getattr__"} & self.bound.keys() - {""}) or self.alone:
            return None
        kinds, call = made.kinds, made.call
        if name == called:
            if call == "(...)" or (call and "dash" in kinds):
                return None
            name += call
            if "dash" in kinds:
                name, kinds = ("server", "wsgi") if "server" in self.bound else (f"{name}.server", kinds)
        place = self.path[:-3].replace("/", ".").replace(".__init__", "")
        return Found(app=f"{place}:{name}", kinds=kinds, why=made.why, path=self.path, call=call)

    def best(self) -> Found | None:
        """The app that it makes, or launches; in a usual place also one that it imports."""
        if self.path.endswith("manage.py") and "django.core.management" in self.source:
            return Found(app=self.path, kinds="django", why=f"Django's {self.path}", path=self.path)
        usual, own = self.path in PLACES, self.bound.keys() - self.imports.keys()
        names = [name for name in ("app", "create_app", *self.bound) if name[:1] not in "_" and (usual or name in own)]
        apps = [found for name in names if (found := self.app(name)) and name not in self.unready]
        launched = re.search(r"""\brun\(\s*["'](([\w.]+):\w+)["']""", self.source)  # uvicorn.run("app.main:app")
        if not apps and launched and _file_of(launched[2]) not in ("", self.path):
            return _named(launched[1])
        return min(apps, key=lambda found: found.call, default=None)  # an app before what makes one

    def offer(self) -> Found | None:
        """Its app, else a command to paste; none if it is of a package, or of a Django project, that is not here."""
        settings = re.search(r"""DJANGO_SETTINGS_MODULE["'], ["'](\w+)""", self.source)
        known = not settings or any(settings[1] in _importable(folder) for folder in (*self.folders, "src"))
        if not known or ("/" not in self.path and re.search(r"(?m)^from +\.", self.source)):
            return None
        runner = next(filter(self.needs.__contains__, RUNNERS), "")
        command = f"{runner} run {self.path}" if runner else f"python {self.path}"
        if not runner and self.needs & {"", *self.folders[1:2]}:  # it imports from its package
            command = "python -m " + self.path[:-3].replace("/", ".").replace(".__main__", "")
        why = runner or self.runs or self.error * (self.path in PLACES)
        program = Found(app=f"-- {command}", kinds=why, why=f"{why or 'program'} in {self.path}")
        return self.best() or (program if why or basename(self.path) in map(basename, PLACES) else None)

    def root(self) -> str:
        """The folder in which the imports begin: the top one, unless only a lower one has the imported modules."""
        names = self.needs - _importable("")
        return next((folder for folder in self.folders[1:] if names & _importable(folder)), "")

    def beside(self) -> str:
        """backend or server, where it holds another program than the one at the top: it is no package of that."""
        folder = self.path.partition("/")[0]
        package = glob(f"{folder}/__*__.py") or self.needs & ({"", folder, *_importable("")} - _importable(folder))
        return folder if folder in ("backend", "server") and not package else ""


def _bindings(block: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The names that statements at the top of a module bind; "": of one that may run, "__main__": only in a script."""
    for node in block:
        if isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
            yield from (("__main__", step) for step in node.body if isinstance(step, ast.Expr))
            yield from _bindings(node.orelse)
        elif hasattr(node, "decorator_list"):
            yield node.name, node
        elif isinstance(node, IMPORTS):
            yield from ((alias.asname or alias.name, node) for alias in node.names)
        elif hasattr(node, "body") or hasattr(node, "cases"):
            yield from _bindings(ast.iter_child_nodes(node))
        elif hasattr(node, "value"):
            stored = (each for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store))
            yield from ((name, node) for name in ("", *(each.id for each in stored)))


def _text(path: str) -> str:
    """The contents of a file; empty if there is none."""
    with suppress(OSError), open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.read()
    return ""


def _file_of(dotted: str, importer: Sequence[str] = ("",)) -> str:
    """The file of ``.factory`` or ``shop.factory`` as a module in these folders imports it; "" outside of them."""
    folders = importer[:0:-1] if dotted[:1] == "." else [*importer, "src"]
    places = [f"{folder}/{dotted.strip('.').replace('.', '/')}".strip("/") for folder in folders]
    return next(filter(isfile, (place + end for place in places for end in ("/__init__.py", ".py"))), "")


@lru_cache(maxsize=None)
def _importable(folder: str) -> set[str]:
    """The names of the modules in a folder; all else has no name that an import could have."""
    return {basename(path).replace(".py", "") for path in glob(join(escape(folder), "*"))}


# ---- The guess: the only app of the first place that has one; else all that could be typed -----------
def _guessed() -> Found:
    """The only app of the first place that has one; the page if there is no code; else an error with what to type."""
    found = next(filter(None, ([each for each in _offers(paths) if each.kinds] for paths in map(glob, PLACES))), [])
    one = min(found, key=lambda each: (each.call, each.app), default=Found())
    module = _Module(one.path)
    script = "\nwith " in module.source and one.path not in PLACES  # such as one that fills a database
    if one.path and len({each.why for each in found}) == 1 and not (script or module.beside()):
        return one
    why = f"No app starts by itself: {one.why}" if found else "No app was found at the top, in src or one folder down"
    if found or any(not re.search(rf"{OURS}|(^|/)[^.]+$|\.(md|rst|txt)$", path) for path in _walk()):  # not mere text
        raise _CannotStart("Several apps were found" if len(found) > 1 else why)
    why = "this folder has no code of its own, so a small page is served, for which nobody else is stopped"
    return Found(app="no app", kinds="page", why=why)


def _ways() -> list[str]:
    """What to type for each app and program, at any depth, the best first, in the folder of its program."""
    ways = []
    for each in sorted(_offers(_walk()), key=lambda each: (not each.path, not each.kinds, each.call)):
        folder, app = _Module(each.path).beside(), each.app.replace("()", "")
        line = f"cd {folder} && python ../{SCRIPT} {app[len(folder) + 1 :]}" if folder else f"python {SCRIPT} {app}"
        ways.append(f"{line}  # {each.why}")
    ways += [f"python {SCRIPT} -- {command}" for file, command in OTHERS.items() if isfile(file)]
    return [*dict.fromkeys(ways)][:20]


def _offers(paths: list[str]) -> list[Found]:
    """The apps and programs of these modules; a package hides the module of its name."""
    sources = (path.replace(sep, "/") for path in paths if path.endswith(".py"))
    sources = (path for path in sources if not re.search(SKIPPED, path) and not isfile(path[:-3] + "/__init__.py"))
    return [*filter(None, (_Module(path).offer() for path in islice(sources, MODULES)))]


def _walk() -> list[str]:
    """Every file and folder, the highest first, without hidden ones, packages of others and virtual environments."""
    found = sorted(glob("*"))
    for path in found:  # the contents of a folder are added at the end
        if len(found) < ENTRIES and not re.search(OURS, path):
            found += sorted(each.replace(sep, "/") for each in glob(join(escape(path), "*")))
    return found


# ---- What is named, and what the repository declares -------------------------------------------------
def _named(word: str, options: Sequence[str] = ()) -> Found:
    """An app that was named: ``src.main:app``, ``src/main.py``, ``shop.wsgi``, or ``app:create_app()``."""
    place, _, name = word.partition(":")
    if place.endswith(".py"):
        place = relpath(place)[:-3].replace(sep, ".")
    module, package = _Module(_file_of(place)), place.partition(".")[0]  # "" above this folder
    folders = take_options(options, "--app-dir --chdir --pythonpath", whole=True)[0]
    if not (module.path or any(map(isdir, folders)) or (package and _interpreter(package))):
        raise _CannotStart(f"There is no {word} in this folder")
    if module.error:
        raise _CannotStart(f"{module.path} cannot be read: {module.error}")
    found = None if name else module.best()
    name = name or ("application" if place.endswith(("asgi", "wsgi")) else "app")
    kinds = "wsgi" if re.search("wsgi|flask|dash|bottle", place + module.source) else "asgi"
    unknown = Found(app=f"{place}:{name}", kinds=kinds, why="as named")
    found = found or (module.app(name, unknown) if module.path else unknown)
    if not found:
        raise _CannotStart(f"{module.path} has no {name} at its top that a server can serve, or call without arguments")
    return found


def _declared() -> Found | None:
    """What the repository declares, as command lines: by its Procfile, flask's variables, fastapi's entry point."""
    told = {**dict(re.findall(VARIABLE, f"{_text('.flaskenv')}\n{_text('.env')}")), **environ}
    procfile = re.sub(r"\s(\d*>&\d|\d*>>?\s*[^\s&]+|\|\s.*|#.*)", "", _text("Procfile"))  # as if typed alone
    procfile = re.sub(r"\$PORT\b|\$\{PORT\}", "${PORT:-8000}", procfile)
    lines = [("Procfile web line", line) for line in re.findall(r"(?m)^\s*web\s*:(.+)", procfile)]
    lines += [(f"FLASK_APP={told.get('FLASK_APP')}", "flask run")]
    lines += [("[tool.fastapi]", f"fastapi run {app}") for app in re.findall(ENTRYPOINT, _text("pyproject.toml"))]
    return next(filter(None, (_of_line(line, told, why) for why, line in lines)), None)


def _of_line(line: str, told: dict[str, str], why: str) -> Found | None:
    """What a declared line starts, of which no shell is asked: the known server in it, else its last command."""
    commands = shell_commands(["sh", "-c", line], environ)
    for words in commands:
        if words[0] == "cd" and isdir(words[-1]):
            chdir(words[-1])
    words = next(filter(find_server, commands), commands[-1] if commands else [])
    lead = len([*takewhile(re.compile(r"\w+=|(exec|env)$").match, words)])
    key, at = find_server(words) or ("", lead)
    assigned = dict(re.findall(r"(?m)^(\w+)=(.*)", "\n".join(words[:at])))
    environ.update(assigned)
    pairs = enumerate(zip(["", *words], words))
    own = [at for at, pair in pairs if re.search(rf"\b{SCRIPT}", pair[1]) or pair == ("-m", SCRIPT[:-3])]
    if own and not key:  # it starts this very program: these words are a call like ours
        call = _read_call(words[own[0] + 1 :])
        app = _app_in(call.words)
        found = _named(app, call.words) if app else _command(call.command) if call.command else _guessed()
        found.why, found.port = why, call.port or _port(assigned.get("PORT", "")) or Found.port
        return found
    server, verb = SERVERS.get(key, Server("", None)), key.partition(" ")[2]
    rest = [word for word in words[at + 1 :] if word != verb]
    told = {**told, **assigned}
    named = told.get("FLASK_APP", "") if key == "flask run" else ""
    app = words[at] if key.startswith("manage.py") else _app_in(rest) or named
    if not words or (verb == "run" and not app):
        return None
    found = _named(app, rest) if app and (verb or server.serves) else _command(words[lead:])
    if key == "flask run":
        environ.update(told)  # flask does so, too: the app may need them
        found.kinds = "flask wsgi"
        found.server = "flask run" if re.match("(?i)1|t|y|on", told.get("FLASK_DEBUG", "")) else ""
    elif app and not verb:
        clear = [] if "$" in line.replace("${PORT", "") else rest  # a variable may be unset
        options = take_options(clear, f"{server.hosts} {server.ports} {server.binds}")[1]
        found.server, found.options = key, [word for word in options if word != app]
    known = server_endpoints(words, {"FLASK_RUN_PORT": told.get("FLASK_RUN_PORT") or "8000"})
    other = filter(None, map(_port, take_options(rest, "-p --port")[0]))  # of any program
    found.lead = "".join(f"{name}={shlex.quote(value)} " for name, value in assigned.items() if name != "PORT")
    found.why, found.port = why, [*(port for _, port in known), *other, Found.port][0]
    return found


def _command(words: Sequence[str]) -> Found:
    """A command as it is, with a program that is on PATH, or beside the Python of this project."""
    import shutil

    if re.match("python|node", words[0]) and words[1:2] and re.search(r"\.(py|js)$", words[1]) and not isfile(words[1]):
        raise _CannotStart(f"There is no {words[1]} in this folder")
    python = _interpreter("")
    known = python if words[0].startswith("python") else shutil.which(words[0])
    program = known or shutil.which(words[0], path=dirname(python))
    if not program:  # no process is stopped for a missing program
        what, status = ("executable", 126) if isfile(words[0]) else ("installed, or not on PATH", 127)
        raise _CannotStart(f"{words[0]} is not {what}", status)
    return Found(app=words[0], command=[program, *words[1:]])


# ---- Which command serves it, and its start ---------------------------------------------------------
def server_command(found: Found, typed: Sequence[str], where: Endpoint) -> list[str]:
    """The command that serves an app: by the declared server, else by the first of SERVERS that is installed."""
    values = {"HOST": where.host, "PORT": str(where.port), "ADDRESS": str(where), SCRIPT: PROGRAM}
    debug = {"--debug", "--reload"} & {*typed} if typed else found.server == "flask run"
    kinds = [kind for kind in (found.server, *found.kinds.split()) if debug or not kind.startswith("flask")]
    missing = ""
    for key in (key for kind in kinds for key in SERVERS if kind in (key, *SERVERS[key].serves.split())):
        server, start, app = SERVERS[key], SERVERS[key].start, found.app
        if app.endswith("()") and server.factory[:1] == "-":
            start, app = start.replace("APP", f"{server.factory} APP"), app[:-2]
        if ("(" in app and server.factory != "()") or (key == "gunicorn" and os.name != "posix"):
            continue
        words = [{**values, "APP": app}.get(word, word) for word in start.split()]
        package = {"runserver": "django", "--wsgiref": "", "--page": ""}.get(words[1], words[1])
        python = _interpreter(package)
        if python and (package or not typed):  # the standard library's server has no options
            break
        missing = missing or package
    else:
        pip = f"{sys.executable} -m pip install {missing}"
        raise _CannotStart(f"{found.app} needs {missing}, which is not installed: {pip}")
    options = [word for word in found.options if key == found.server and word != server.factory] + [*typed]
    if options and "sgi" in server.serves:  # its help lists its own; the help of a framework is not of this command
        told = subprocess.run([python, *words[:2], "--help"], capture_output=True, check=False, errors="replace").stdout
        named = re.findall(r"(?<!\S)--[\w-]+", " ".join(options))
        unknown = [option for option in named if not re.search(rf"{option}(?![\w-])", told)]
        if unknown and "--" in told:
            raise _CannotStart(f"{words[1]} has no option {unknown[0]}", 2)
    found.server = key
    at = len(words) - (start.split()[-1] == "APP")  # waitress reads no options after the app
    return [python, *words[:at], *options, *words[at:]]


def _interpreter(package: str) -> str:
    """The Python that has a package: an activated one, that of a virtual environment here, this one; else ""."""
    posix = ("bin/python", "lib/*/site-packages")
    program, packages = posix if os.name == "posix" else ("Scripts/python.exe", "Lib/site-packages")
    beside = [(abspath(join(name, program)), glob(join(name, packages))) for name in (".venv", "venv")]
    own = [(sys.executable, sys.path)]
    for python, path in beside + own if sys.prefix == sys.base_prefix else own + beside:
        spec = machinery.PathFinder.find_spec(package, path)
        if os.access(python, os.X_OK) and (not package or (spec and spec.origin)):  # a mere folder has none
            return python
    return ""


def _announced(endpoints: Sequence[Endpoint], what: str) -> str:
    if not endpoints:
        return f"✅ Starting {what}, which names no port"
    host, port = endpoints[0]
    url = Endpoint({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)
    return f"✅ Starting server on {', '.join(map(str, endpoints))}: http://{url} ({what})"


def _become(command: list[str]) -> int:
    """Turn into the command (POSIX), or wait for it and give its status (Windows, which has no exec)."""
    try:
        if os.name == "posix":
            for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and its successor would inherit that
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            os.execv(command[0], command)  # noqa: S606
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the console sends Ctrl+C to the command, whose end is waited for
        return subprocess.call(command)
    except OSError as error:
        raise _CannotStart(f"{command[0]} cannot be started: {error.strerror}", 126) from None


def _preview(command: str, endpoints: Sequence[Endpoint]) -> int:
    """--dry-run: who would be stopped, and the command as the last line."""
    seen = [preview_port(port, host) for host, port in endpoints]
    for each in seen:
        who = f"process {each.holders[0]}: " if each.plan else ""  # its children go with it
        write_line(sys.stdout, f"Port {each.port}: {who}{each.plan or each.reason or 'available'}")
    write_line(sys.stdout, command)
    return int(not all(each.available or each.plan for each in seen))


# ---- The standard library's server: this program starts itself again, so that its command line says what it is ----
def _serve(call: SimpleNamespace) -> int:
    """``--page`` or ``--wsgiref APP``, then --host and --port."""
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Threaded(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    def page(environ: Any, start_response: Any) -> list[bytes]:
        text = f"It works. Process {os.getpid()} serves this page on port {environ['SERVER_PORT']}. "
        body = f"{text}Start {SCRIPT} again, and the next process takes the port over from this one.\n".encode()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body] if environ["REQUEST_METHOD"] != "HEAD" else []

    where, app, what = Endpoint(call.host, call.port or Found.port), page, "a small page"
    if call.words == ["--page"]:
        _leave_others_alone(where)
    else:  # before anybody is stopped
        sys.path.insert(0, getcwd())
        what = "wsgiref, no reload"
        place, name, *made = re.split("[:(]", call.words[1], maxsplit=2)
        app = attrgetter(name)(import_module(place))
        app = app(*ast.literal_eval(f"[{made[0][:-1]}]")) if made else app
    with Threaded(where, WSGIRequestHandler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = bind_port(where.port, where.host)
        server.server_name, server.server_port = where
        server.setup_environ()
        server.set_app(app)
        write_line(sys.stdout, _announced([where], what))
        if os.getpid() == 1:  # the first process of a container, which no signal ends by itself
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        server.serve_forever()
    return 0


def _leave_others_alone(where: Endpoint) -> None:
    """A small page takes a port over from another small page only."""
    pages = [f"{SCRIPT} --page" in holder.command for holder in preview_port(where.port, where.host).holders]
    if not (pages and all(pages)):  # a program that takes a free port in the meantime keeps it
        environ["PORT_MANAGER_POLICY"] = "refuse"


# ---- The command line --------------------------------------------------------------------------------
def _run(call: SimpleNamespace) -> int:
    given = environ.get("ENVIRONMENT")
    found = _chosen(call)
    port = call.port or found.port
    if call.next:
        environ["PORT_MANAGER_POLICY"] = "refuse"  # a program that was faster keeps the port
        seen, port = preview_port(port, call.host), find_free_port(port, call.host)
        if port != seen.port:
            write_line(sys.stdout, f"Port {seen.port}: {seen.reason or 'it cannot be had'}: {port} is taken instead")
    where = Endpoint(call.host, port)
    if found.kinds == "page":
        _leave_others_alone(where)
    shown = found.lead if getcwd() == call.top else f"cd {relpath(getcwd(), call.top)} && {found.lead}"
    root = _Module(found.path).root()
    if root:
        found.app = re.sub(rf"^{root.replace('/', '.')}\.", "", found.app)  # a package is no module of its own folder
        shown += f"PYTHONPATH={root} "
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [abspath(root), environ.get("PYTHONPATH")]))
    line = [*found.command, *call.words] if found.command else server_command(found, call.words, where)
    if not call.command:
        python = "" if found.command or line[0] == sys.executable else f", with {relpath(line[0])}"
        write_line(sys.stdout, f"Found {found.app}: {found.why}{python}")
    texts = [_text(join(at, ".env")) for at in (call.top, getcwd(), *take_options(line, "--chdir --app-dir")[0])]
    said = [environ.get("ENVIRONMENT"), *(dict(re.findall(VARIABLE, text)).get("ENVIRONMENT") for text in texts)]
    if given or any(said):  # of several, the one that stops nobody
        environ["ENVIRONMENT"] = given or min(filter(None, said), key=lambda it: is_development({"ENVIRONMENT": it}))
    if call.tells:
        environ.update(HOST=where.host, PORT=str(where.port))
    endpoints = server_endpoints(line) or [where] * call.tells
    own = found.command and found.why and str(found.port) in line  # the word of a declared command, whatever option
    named = [found.port] if own else [port for _, port in endpoints]
    if call.tells and where.port not in named:
        raise _CannotStart(f"the command itself names port {named[0]}, not {where.port}", 2)
    if call.dry_run:
        return _preview(shown + shlex.join(line), endpoints)
    if PROGRAM not in line:  # it frees its port itself, when its app has been imported
        if not all(ensure_port_available(port, host) for host, port in endpoints):
            return 1
        write_line(sys.stdout, _announced(endpoints, found.server or basename(found.app)))
    return _become(line)


def _chosen(call: SimpleNamespace) -> Found:
    """The command or the app to start; the words of the call are then the options for its server."""
    warnings.simplefilter("ignore")  # those of the modules here are for their server to show
    if call.port:
        environ["PORT"] = str(call.port)  # for what the repository declares
    app = "" if call.command else _app_in(call.words) or environ.get("APP", "")
    call.words = [word for word in call.words if word != app]
    if call.words and (call.command or call.words[0][:1] != "-"):
        raise _CannotStart(f"{call.words[0]!r} is not an app, as src.main:app is; a port needs --port, a command --", 2)
    if call.command:
        return _command(call.command)
    try:
        return _named(app, call.words) if app else _declared() or _guessed()
    except _CannotStart as error:
        ways = _ways()
        how = "\n  ".join(["try:", *ways]) if ways else "name one, as in src.main:app, or put a command after --"
        raise _CannotStart(f"{error.reason}; {how}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; it returns only if this process does not become the server."""
    try:
        words = sys.argv[1:] if argv is None else argv
        if {"--help", "-h", "--version"} & {*takewhile("--".__ne__, words)}:
            write_line(sys.stdout, f"run_backend {__version__}" if "--version" in words else USAGE.rstrip())
            return 0
        call = _read_call(words)
        return _serve(call) if {"--page", "--wsgiref"} & {*call.words[:1]} else _run(call)
    except PortError as error:
        status = getattr(error, "status", 1)
        write_line(sys.stderr, ("run_backend: " if status == 2 else "❌ ") + error.reason)
        return status
    except KeyboardInterrupt as interruption:
        write_line(sys.stderr, str(interruption) or "Interrupted")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
