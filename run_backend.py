# SPDX-License-Identifier: MIT
"""Start this repository's backend, whatever still holds its port.

    python run_backend.py                            find the app, free its port, become its server
    python run_backend.py src.main:app --port 9000 --reload
    python run_backend.py --port 3000 -- npm run dev

What a repository declares (Procfile, FLASK_APP, [tool.fastapi]) goes before what its syntax shows; no module of it
is imported. On POSIX this process becomes the server: nothing of this program stays behind.

The file reads in the order in which things happen: the call; modules as syntax; who builds an app; what is
declared; which app is it; which command serves it; start it; two small servers; the command line.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from functools import lru_cache
from os import chdir, curdir, environ, getcwd, listdir, pardir, sep
from os.path import abspath, basename, dirname, isdir, isfile, join, normpath, relpath
from typing import Any, Callable, Iterator, NamedTuple, Sequence

sys.path.insert(0, dirname(__file__) or curdir)  # python -P and -I leave it out

from port_manager import (
    SERVERS,
    Endpoint,
    PortError,
    __version__,
    bind_port,
    ensure_port_available,
    find_free_port,
    find_listeners,
    find_server,
    preview_port,
    server_endpoints,
    shell_commands,
    write_line,
)

del sys.path[0]

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

# Kinds of app, the best first ("": no server's), and who makes them, by full name or by the last part of that.
KINDS = {
    "asgi": "FastAPI Starlette Lilya Esmerald FastHTML fast_app Air AsyncApp ASGIApp WsgiToAsgi http_app "
    "get_asgi_application ProtocolTypeRouter falcon.asgi.App blacksheep.Application",
    "wsgi": "Bottle default_app get_wsgi_application make_wsgi_app WSGIApplication WSGIApp DispatcherMiddleware "
    "wsgifunc falcon.App falcon.API Dash",
    "flask wsgi": "Flask APIFlask Eve FlaskApp flask_openapi3.OpenAPI",
    "quart asgi": "Quart",
    "litestar asgi": "Litestar",
    "sanic asgi": "Sanic",
    "": "aiohttp.web.Application tornado.web.Application celery.Celery typer.Typer",
}
MAKERS = {maker: kinds for kinds, makers in KINDS.items() for maker in makers.split()}

# fastapi's and flask's own search, and ours: the first of these that has an app is taken.
CONVENTIONS = ("src/main.py", "main.py", "wsgi.py", "app.py", "api.py", "app/main.py", "app/app.py", "app/api.py",
               "src/app.py", "asgi.py")  # fmt: skip
NAMES = ("app", "application", "api", "server")
BESIDE = ("backend", "server", "api")  # folders in which another program than the one at the top may live
OWN = (*CONVENTIONS, "manage.py", "Procfile", "requirements.txt", "pyproject.toml")  # what shows that it does
NO_SOURCE = ("tests", "test", "migrations", "alembic", "node_modules", "venv", "env", "docs", "examples", "build",
             "dist", "src")  # fmt: skip
NO_MODULE = ("setup.py", "conftest.py", "port_manager.py", basename(__file__))
CODE = (".py", ".js", ".ts", ".go", ".rs", ".rb", ".java", ".kt", ".php", ".cs", ".ex", ".c", ".cpp")

PROGRAM = abspath(__file__)
SCRIPT = basename(PROGRAM)
OURS = ("--host", "--port", "--next", "--dry-run")
THEIRS = ("--policy", "--grace", "--force", "--signal", "--json")  # no server knows them
FLAGS = ("--reload", "--debug", "--factory", "--preload", "--app", "-A")  # before the app, or before no value
ELSEWHERE = ("--app-dir", "--chdir", "--pythonpath")  # options that let a server look for the app in another folder


class Found(NamedTuple):
    """An app, or the command that a repository declares, and how it is served."""

    app: str  # src.main:app, app:create_app('dev'), manage.py; "" for a command
    kinds: str  # the best first
    why: str  # how it is known
    root: str = ""  # the folder that its imports begin in
    options: tuple[str, ...] = ()  # for whichever server
    server: str = ""  # the declared one
    declared: tuple[str, ...] = ()  # its options
    port: int = 8000  # the repository's own
    command: tuple[str, ...] = ()


class _CannotStart(Exception):
    """Why there is no server."""

    def __init__(self, reason: str, status: int = 1) -> None:
        self.reason, self.status = reason, status


def _say(text: str) -> None:
    write_line(sys.stdout, text)


# ----------------------------------------------------------------------------------------------------
# The call
# ----------------------------------------------------------------------------------------------------


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str], list[str] | None]:
    """(our own options, what goes to the server, the command behind ``--`` or None).

    >>> _split(["src.main:app", "--port=9000", "--reload"])
    ({'port': '9000'}, ['src.main:app', '--reload'], None)
    >>> _split(["-p", "9000", "-p", "web.pid", "--", "npm", "run", "dev"])  # the second -p is gunicorn's
    ({'port': '9000'}, ['-p', 'web.pid'], ['npm', 'run', 'dev'])
    """
    end = words.index("--") if "--" in words else len(words)
    left, ours, rest = list(words[:end]), {}, []
    while left:
        word = left.pop(0)
        option, equals, value = word.partition("=")
        if word[:2] == "-p" and (word[2:] or "".join(left[:1])).isdigit():
            option, equals, value = "--port", word[2:], word[2:]
        if option in OURS[:2]:
            if not equals and not left:
                raise _CannotStart(f"{option} needs a value", 2)
            ours[option[2:]] = value if equals else left.pop(0)
        elif word in OURS:
            ours[word[2:]] = word
        else:
            rest.append(_checked(word))
    return ours, rest, list(words[end + 1 :]) if end < len(words) else None


def _checked(word: str) -> str:
    """A word for the server, unless it is meant for us."""
    import difflib

    option = word.partition("=")[0]
    near = difflib.get_close_matches(option, OURS, 1, 0.8) if option.startswith("--") else []
    if option in THEIRS:
        instead = "here, set PORT_MANAGER_POLICY" if option == "--policy" else "run that before this"
        raise _CannotStart(f"{option} belongs to port_manager.py free; {instead}", 2)
    if near:
        raise _CannotStart(f"there is no {word}; did you mean {near[0]}?", 2)
    return word


def _port(text: str, source: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= 65535):
        raise _CannotStart(f"{source} is {text!r}; a port is a number from 1 to 65535", 2)
    return int(text)


def _app_in(words: Sequence[str]) -> str:
    """The word that names the app; "" where none does.

    >>> [_app_in([word]) for word in ("src.main:app", "main.py", "my-app:make('x')", "localhost:80", "debug")]
    ['src.main:app', 'main.py', "my-app:make('x')", '', '']
    >>> _app_in(["--log-config", "log.py", "--loop", "uvloop:new_event_loop", "--reload", "main.py"])
    'main.py'
    """
    for before, word in zip(["", *words], words):
        place, _, name = word.partition(":")
        if word.startswith("-"):
            continue
        free = before[:1] != "-" or before in FLAGS  # no option's value
        plain = place.replace(".", "").replace("-", "_").isidentifier()
        here = plain and not place.endswith(".py") and _file_of(place)
        if here and (free or name) or free and (place.endswith(".py") or plain and name[:1].isidentifier()):
            return word
    return ""


# ----------------------------------------------------------------------------------------------------
# Modules as syntax: importing them is their server's business
# ----------------------------------------------------------------------------------------------------


class _Module:
    """What a module binds at its top: the statements, by name; and what its imports stand for, wherever they are."""

    def __init__(self, path: str, source: str, error: str = "") -> None:
        self.path, self.source, self.error = path, source, error
        self.bound: dict[str, list[Any]] = {}
        self.imports: dict[str, str] = {}
        tree = ast.parse(source)
        # A script that does something with its app when it is imported, such as fill a database.
        self.acts = any(isinstance(node, ast.With) or isinstance(getattr(node, "value", 0), ast.Call)
                        for node in tree.body if not hasattr(node, "targets"))  # fmt: skip
        for node in ast.walk(tree):
            place = f"{'.' * node.level}{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
                name = alias.name if place or alias.asname else alias.name.partition(".")[0]
                self.imports[alias.asname or name] = place + name
        for node, statement in _top(tree):
            names = getattr(node, "asname", None), getattr(node, "name", None), getattr(node, "id", None)
            if not isinstance(getattr(node, "ctx", None), ast.Load) and any(names):
                self.bound.setdefault(next(filter(None, names)), []).append(statement)


def _top(block: ast.AST, within: ast.AST | None = None) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    """What stands at a module's top, and in which statement: not in functions, nor what no server runs."""
    for node in ast.iter_child_nodes(block):
        statement = node if isinstance(node, ast.stmt) else within
        yield node, statement
        if isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
            node = ast.Module(node.orelse, [])
        if not (hasattr(node, "decorator_list") or isinstance(node, ast.Lambda)):
            yield from _top(node, statement)


@lru_cache(maxsize=None)
def _read(path: str) -> _Module:
    import warnings

    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for the server to show
            return _Module(path, file.read().decode("utf-8-sig", "replace"))
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        return _Module(path, "", f"line {getattr(error, 'lineno', None) or 1}: {getattr(error, 'msg', error)}")


def _file_of(dotted: str, importer: str = "") -> str:
    """The file of a module as another one imports it: ``.factory``, ``shop.factory``; "" outside of this repository."""
    level = len(dotted) - len(dotted.lstrip("."))
    folders = _folders(importer)
    for folder in folders[-level:][:1] if level else [*folders, "src"]:
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
# Who builds an app?
# ----------------------------------------------------------------------------------------------------


class _Made(NamedTuple):
    """What makes an app, and where; what follows its name where a server is told of it: ``()``, ``.server``."""

    kinds: str
    maker: str
    path: str
    line: int
    behind: str = ""


def _full_name(node: Any, module: _Module) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, module)}.{node.attr}"
    return module.imports.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def _definition(full_name: str, module: _Module, depth: int = 0) -> tuple[Any, str, _Module]:
    """The last statement here that binds what a full name stands for (None: none does), its name and its module."""
    place, dot, name = full_name.rpartition(".")
    other = _read(_file_of(place or ".", module.path)) if dot else module
    node = other.bound.get(name, [None])[-1]
    if isinstance(node, (ast.ImportFrom, ast.Import)):
        return _definition(other.imports.get(name, "?"), other, depth + 1) if depth < 9 else (None, name, other)
    return node, name, other


def _made(node: Any, module: _Module, depth: int = 0) -> _Made | None:
    """What a statement makes: the first maker of apps that it calls, or that is called in what it calls."""
    calls = []
    used = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Attribute)]  # create_app().test_client()
    for inner in (inner for inner in ast.walk(node) if inner not in used):
        for called in (getattr(inner, "func", None), getattr(inner, "returns", None), *getattr(inner, "bases", [])):
            name = _full_name(called, module)
            last = name.rpartition(".")[2]
            kinds = MAKERS.get(name, MAKERS.get(last))
            if kinds is not None:
                return _Made(kinds, last, module.path, getattr(inner, "lineno", 0), ".server" if last == "Dash" else "")
            calls.append(name)
    deeper = (_definition(name, module) for name in calls if depth < 5 and name != "?")
    made = (_made(inner, other, depth + 1) for inner, _, other in deeper if hasattr(inner, "decorator_list"))
    return next(filter(None, made), None)


def _bound(name: str, module: _Module) -> _Made | None:
    """The app that a name stands for at a module's top, or that the function of that name makes."""
    node, name, module = _definition(name, module)
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        statements = [each for each in reversed(module.bound.get(name, [])) if not hasattr(each, "decorator_list")]
        return next(filter(None, (_made(statement, module) for statement in statements)), None)
    names = [argument.arg for argument in node.args.args]
    kinds = {("scope", 3): "asgi", ("environ", 2): "wsgi", ("env", 2): "wsgi"}.get(("".join(names[:1]), len(names)))
    if kinds:  # a server calls it itself
        return _Made(kinds, "callable", module.path, node.lineno)
    returns = not node.decorator_list and any(isinstance(inner, ast.Return) for inner in ast.walk(node))
    made = _made(node, module) if returns else None
    needed = ", ".join(names[: len(names) - len(node.args.defaults)])
    return made and made._replace(behind=f"({needed})")


def _apps(module: _Module) -> dict[str, _Made]:
    """The apps of a module, as a server is told of them: that of a usual name, else all, else what functions make."""
    every = {name: _bound(name, module) for name in module.bound if not name.startswith("_")}
    apps = {name: made for name, made in every.items() if made and made.kinds}
    objects = {name: made for name, made in apps.items() if not made.behind.startswith("(")} or apps
    usual = [name for name in NAMES if name in objects][:1] or objects
    if "server" in module.bound and any(objects[name].behind == ".server" for name in usual):
        return {"server": next(objects[name] for name in usual)}
    return {name + objects[name].behind: objects[name] for name in usual}


# ----------------------------------------------------------------------------------------------------
# The guess: one scan of the modules at the top, in src, and one folder down
# ----------------------------------------------------------------------------------------------------


def find_app() -> list[Found]:
    """The apps that the modules here build: one of a usual place alone, else all, the best first."""
    sources = _sources()
    for path in filter(sources.__contains__, CONVENTIONS):
        found = _candidates(_readable(path))
        if found:
            return found[:1]
    modules = [_read(path) for path in sources]
    for module in modules:
        if module.path.endswith("manage.py") and "django.core.management" in module.source:
            return [Found(module.path, "django", f"Django's {module.path}")]
    return _distinct([(module, found) for module in modules for found in _candidates(module)])


def _sources() -> list[str]:
    tops = [curdir, *filter(isdir, ["src"])]
    names = [(top, name) for top in tops for name in sorted(listdir(top))]
    below = [join(top, name) for top, name in names if name not in NO_SOURCE and name[0] != "."]
    beside = [join(curdir, folder) for folder in filter(_has_program, BESIDE)]
    folders = [*tops, *(folder for folder in below if isdir(folder) and folder not in beside)]
    paths = [normpath(join(folder, name)) for folder in folders for name in sorted(listdir(folder))]
    hidden = [dirname(path) + ".py" for path in paths if path.endswith("__init__.py")]  # a package hides a module
    left_out = [*hidden, *(path for path in paths if basename(path) in NO_MODULE or "test" in path)]
    return [path for path in paths if path.endswith(".py") and path not in left_out]


def _has_program(folder: str) -> bool:
    """Whether a folder has a program of its own, and is no package of this one."""
    names = () if isfile(join(folder, "__init__.py")) else OWN
    return any(isfile(join(folder, name)) for name in names)


def _candidates(module: _Module) -> list[Found]:
    root, found = _root(module), []
    for name, made in _apps(module).items():
        runs = f"{name}.run(" in module.source or module.path in CONVENTIONS
        if name not in module.imports or (runs and sep not in module.path):
            app = f"{_module_name(module.path, root)}:{name}"
            found.append(Found(app, made.kinds, f"{made.maker} object in {made.path}", root))
    run = re.search(r"""\brun\(\s*["']([\w.]+:\w+)["']([^)]*\bport\s*=\s*(\d+))?""", module.source)
    if run and not found and _file_of(run[1].partition(":")[0]):  # uvicorn.run("app.main:app", port=8080)
        launched = _named(run[1])
        why = f"{module.path} runs the {launched.why}"
        found.append(launched._replace(why=why, port=int(run[3] or 8000)))
    return found


def _distinct(candidates: list[tuple[_Module, Found]]) -> list[Found]:
    """One for each app that is made: where it is run, or at least bound; without those that another imports."""
    best: dict[str, tuple[bool, bool, bool, bool, bool, str, Found]] = {}
    parts = set()
    for module, found in candidates:
        made = found.why.rpartition(" ")[2]
        runs = f"{found.app.rpartition(':')[2]}.run(" in module.source or " runs " in found.why
        incomplete = "(" in found.app and not found.app.endswith("()")
        rank = (incomplete, not runs, module.acts, "(" in found.app, made != module.path, module.path, found)
        best[made] = min(best.get(made, rank), rank)
        parts |= {_file_of(name.rpartition(".")[0], module.path) for name in module.imports.values()}
    ranked = sorted(best.values())
    whole = [rank for rank in ranked if rank[-2] not in parts] or ranked
    top = [rank for rank in whole if sep not in rank[-2]]  # another one further down is another program's
    return [rank[-1] for rank in (top if len(top) == 1 else whole)]


def _root(module: _Module) -> str:
    """The folder that a module's imports begin in: the top one, unless only another has what it imports."""
    names = {name.partition(".")[0] for name in module.imports.values()} - {""}
    for folder in _folders(module.path)[1:]:
        if any(_has(folder, name) and not _has("", name) for name in names):
            return folder
    packaged = module.path.count(sep) > 1 and not isfile("src/__init__.py") and "src" not in names
    return "src" if packaged and module.path.startswith("src") else ""


def _has(folder: str, name: str) -> bool:
    return isfile(join(folder, f"{name}.py")) or isdir(join(folder, name))


def _module_name(path: str, root: str) -> str:
    """
    >>> _module_name("src/shop/__init__.py", "src"), _module_name("app/main.py", "")
    ('shop', 'app.main')
    """
    name = relpath(path, root or curdir)[:-3].replace(sep, ".")
    return name[:-9] if name.endswith(".__init__") else name


# ----------------------------------------------------------------------------------------------------
# What is named, and what the repository declares
# ----------------------------------------------------------------------------------------------------


def _named(word: str, options: Sequence[str] = ()) -> Found:
    """An app that was named: ``src.main:app``, ``src/main.py``, ``shop.wsgi``, or ``app:create_app()``."""
    place, _, name = word.partition(":")
    path = relpath(place) if place.endswith(".py") else _file_of(place)
    package = join(path[:-3], "__init__.py")  # hides a module of its name
    path = package if isfile(package) else path
    elsewhere = {word.partition("=")[0] for word in options} & set(ELSEWHERE)
    if not path and (elsewhere or _interpreter(place.partition(".")[0])):  # or of an installed package, perhaps
        return Found(f"{place}:{name or 'application'}", "wsgi" if place.endswith("wsgi") else "asgi", "as named")
    if not isfile(path) or path.startswith(pardir):
        raise _CannotStart(f"There is no {'file' if place.endswith('.py') else 'module'} {place} in this folder")
    module = _readable(path)
    if basename(path) == "manage.py" and "django.core.management" in module.source:
        return Found(path, "django", "as named")
    name = name or next(iter(_apps(module)), "")
    called = re.split("[(.]", name)[0]
    made = _bound(called, module)
    if called not in module.bound and not {"*", "__getattr__"} & set(module.bound) or (made and not made.kinds):
        raise _CannotStart(f"{path} has no {called or 'app'} at its top that a server can serve{_instead(module)}")
    name += made.behind if made and name == called and name != "server" else ""
    root = _root(module) if place.endswith(".py") or _file_of(place) != _file_of(f".{place}", "x") else ""
    imported = {full.partition(".")[0] for full in module.imports.values()}
    wsgi = imported & {"flask", "django", "bottle", "falcon", "werkzeug"}
    why = f"{made.maker} object in {made.path}" if made else "as named"
    return Found(f"{_module_name(path, root)}:{name}", made.kinds if made else "wsgi" if wsgi else "asgi", why, root)


def _readable(path: str) -> _Module:
    module = _read(path)
    if module.error:
        raise _CannotStart(f"{path} cannot be read: {module.error}")
    return module


def _instead(module: _Module) -> str:
    """What to say of a module whose app no server can serve."""
    made = {name: _bound(name, module) for name in module.bound}
    other = [f"{name} is made by {each.maker}" for name, each in made.items() if each and not each.kinds]
    return f": {other[0]}, which speaks neither ASGI nor WSGI; put its command behind --" if other else ""


def _declared() -> Found | None:
    """What the repository says itself: its Procfile, flask's variables, fastapi's entry point."""
    web = _pairs("Procfile", ":").get("web")
    found = _of_procfile(web) if web else None
    if found:
        return found
    told = {**_pairs(".env"), **_pairs(".flaskenv"), **environ}
    if told.get("FLASK_APP"):
        environ.update(told)  # as flask run does: the app may need them
        place, colon, name = told["FLASK_APP"].partition(":")
        word = place + ".py" * isfile(place + ".py") + colon + name
        port = _port(told.get("FLASK_RUN_PORT") or "8000", "FLASK_RUN_PORT")
        debug = ("--debug",) if told.get("FLASK_DEBUG", "0").lower() in ("1", "true", "yes", "on") else ()
        return _named(word)._replace(why=f"FLASK_APP={told['FLASK_APP']}", port=port, options=debug)
    entry = _pairs("pyproject.toml", "=", "[tool.fastapi]").get("entrypoint")
    return _named(entry)._replace(why="[tool.fastapi] entrypoint") if entry else None


def _pairs(path: str, sign: str = "=", table: str = "") -> dict[str, str]:
    """The names and values of a file of lines, or of one of its tables; Python 3.8 has no reader of TOML."""
    lines, current, pairs = [], "", {}
    if isfile(path):
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = [line.strip() for line in file]
    for line in lines:
        name, found, value = line.partition(sign)
        current = line if line.startswith("[") else current
        name = name.replace("export ", "").strip()
        if found and table in ("", current) and name.isidentifier():
            pairs[name] = value.strip().strip("'\"")
    return pairs


def _of_procfile(line: str) -> Found | None:
    """The web line of a Procfile, of which no shell is asked: the known server in it, else its last command."""
    commands = shell_commands(["sh", "-c", line], environ)
    for words in commands:
        if words[0] == "cd" and isdir(words[-1]):
            chdir(words[-1])
    words = next(filter(find_server, commands), commands[-1] if commands else ["true"])
    if SCRIPT in map(basename, words) and "--" not in words:  # this program, in its own Procfile
        named = _app_in([word for word in words if basename(word) != SCRIPT])
        return _named(named)._replace(why="Procfile web line") if named else None
    key, at = find_server(words) or ("", 0)
    told = server_endpoints(words, {})
    own = Found("", "", "Procfile web line", port=told[0].port if told else 8000, command=tuple(words))
    verb = key.partition(" ")[2]
    rest = [word for word in _without_address(words[at + 1 :], key) if word != verb]
    app = words[at] if verb == "runserver" else _app_in(rest) or (key == "gunicorn" and rest and rest[0]) or ""
    if not (app and key) or not (SERVERS[key].serves or key.startswith("fastapi")):
        return own if key != "flask run" and _interpreter("") and _is_program(words[0]) else None
    key = "waitress" if key == "waitress-serve" else key if SERVERS[key].start and not verb else ""
    options = tuple(word for word in rest if key and word != app)
    return _named(app, rest)._replace(why=own.why, port=own.port, server=key, declared=options)


def _is_program(word: str) -> bool:
    import shutil

    return word.startswith("python") or shutil.which(word) is not None


def _without_address(words: Sequence[str], key: str) -> list[str]:
    """The words without what tells a server where to listen."""
    server = SERVERS.get(key)
    options = f"{server.hosts} {server.ports} {server.binds}".split() if server else []
    kept, value = [], False
    for word in words:
        name = word.partition("=")[0]
        joined = word[:2] in options and len(word) > 2 and word[1] != "-"
        if not (value or joined or name in options or ("*" in options and word.rpartition(":")[2].isdigit())):
            kept.append(word)
        value = word in options
    return kept


def _nothing() -> Found:
    """Say what to type where no app was found; nothing to be found where there is no code at all."""
    home = dirname(PROGRAM)
    sources = _sources()
    for folder in filter(_has_program, [*BESIDE, *({home} - {getcwd()})]):
        script = relpath(join(home, SCRIPT), folder)
        raise _CannotStart(f"No app was found here, and a program in {folder}:\n  cd {folder} && python {script}")
    if isfile("package.json"):
        raise _CannotStart(f"No Python app was found here, but a package.json:\n  python {SCRIPT} -- npm run dev")
    if sources or any(name.endswith(CODE) for name in listdir(curdir) if name not in NO_MODULE):
        why = next(filter(None, map(_instead, map(_read, sources))), "")
        ways = f"  python {SCRIPT} src.main:app\n  python {SCRIPT} -- COMMAND"
        looked = f"{len(sources)} modules at the top, in src and one folder down"
        raise _CannotStart(f"No app was found in {looked}{why}\n{ways}")
    return Found("", "", "")


# ----------------------------------------------------------------------------------------------------
# Which command serves it?
# ----------------------------------------------------------------------------------------------------


def server_command(found: Found, where: Endpoint) -> tuple[list[str], str]:
    """The command that serves an app, and the server's name; _CannotStart where there is none."""
    if found.command:
        plain = found.command[0].startswith("python")
        words = [_interpreter("") if plain else found.command[0], *found.command[1:], *found.options]
        return words, found.command[plain]
    debug = {"--debug", "--reload"} & {*found.options}
    kinds = [kind for kind in found.kinds.split() if kind != "flask" or debug]
    keys = [found.server, *(key for kind in kinds for key in SERVERS if kind in SERVERS[key].serves.split())]
    keys = [key for key in keys if key and SERVERS[key].start and _can_serve(key, found.app)]
    for key in keys:
        python = _interpreter(_package(key))
        if python and not (key == "wsgiref" and found.options):
            _check_options(python, key, found.options)
            declared = found.declared if key == found.server else ()
            return [python, *_filled(key, found.app, where), *declared, *found.options], key.partition(" ")[0]
    if not keys:
        raise _CannotStart(f"{found.app} needs arguments: name it with them, as in \"app:create_app('dev')\"")
    package = _package(keys[0])
    pip = f"{sys.executable} -m pip install {package}"
    raise _CannotStart(f"{found.app} needs {package}, which is not installed: {pip}")


def _can_serve(key: str, app: str) -> bool:
    """Whether a server runs here, and takes an app as it is named: an attribute, or what a function makes."""
    factory, (name, call, arguments) = SERVERS[key].factory, app.partition("(")
    plain = not call and ("." not in name.partition(":")[2] or factory != "()")
    made = arguments == ")" and factory or factory == "()" and arguments and not arguments[:-1].isidentifier()
    return bool(plain or made) and (key != "gunicorn" or os.name == "posix")


def _package(key: str) -> str:
    first, second = SERVERS[key].start.split()[:2]
    return {"-m": second, "APP": "django"}.get(first, "")


def _filled(key: str, app: str, where: Endpoint) -> list[str]:
    """The words that start a server: those of its row, with the app and the address."""
    factory = SERVERS[key].factory
    served = [factory, app[:-2]] if "(" in app and factory != "()" else [app]
    values = {"APP": served, "HOST": [where.host], "PORT": [str(where.port)], "ADDRESS": [str(where)]}
    values["run_backend.py"] = [PROGRAM]
    return [filled for word in SERVERS[key].start.split() for filled in values.get(word, [word])]


def _check_options(python: str, key: str, options: Sequence[str]) -> None:
    """Nobody is stopped for a server that would refuse its call: its own help has the options."""
    import subprocess

    named = [option.partition("=")[0] for option in options if option.startswith("--")]
    words = [python, *SERVERS[key].start.split()[:2], *key.split()[1:], "--help"]
    if named and {"asgi", "wsgi"} & {*SERVERS[key].serves.split()}:  # the help of others is shortened
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
        unknown = [option for option in named if option not in done.stdout]
        if unknown and done.returncode == 0 and "--" in done.stdout:
            raise _CannotStart(f"{words[2]} has no option {unknown[0]} (see python {' '.join(words[1:])})", 2)


def _interpreter(module: str) -> str:
    """The Python that has a module: this one, or that of a virtual environment here; "" where none has."""
    from glob import glob
    from importlib.machinery import PathFinder

    pythons = {sys.executable: sys.path}
    for name in (".venv", "venv"):
        python = abspath(join(name, "Scripts/python.exe" if os.name == "nt" else "bin/python"))
        pythons.update({python: glob(f"{name}/[Ll]ib/**/site-packages", recursive=True)} if isfile(python) else {})
    specs = {each: PathFinder.find_spec(module, path) if module else None for each, path in pythons.items()}
    able = [each for each, spec in specs.items() if not module or (spec and spec.origin)]  # a mere folder has none
    return able[0 if sys.prefix != sys.base_prefix else -1] if able else ""





# ----------------------------------------------------------------------------------------------------
# Start it
# ----------------------------------------------------------------------------------------------------


def _start(command: list[str], what: str, endpoints: Sequence[Endpoint], policy: str | None) -> int:
    if PROGRAM in command:  # it frees its port itself, when its app has been imported
        return _become(command)
    if not all(ensure_port_available(port, host, policy=policy) for host, port in endpoints):
        return 1
    for holder in find_listeners(endpoints[0].port) if endpoints and command[0] == what else ():
        beside = f"{holder.addresses[0]} is held by {_title(holder)}"
        write_line(sys.stderr, f"⚠️  {beside}; a server that binds localhost or :: would fail")
    _say(_announced(endpoints, basename(what)))
    return _become(command)


def _title(holder: Any) -> str:
    return f"process {holder.pid} ({holder.command or holder.name}, in {holder.cwd})"


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
        who = "".join(f"{_title(holder)}: " for holder in each.holders)
        _say(f"Port {each.port}: {who}{'available' if each.available else each.plan or each.reason}")
    _say(shown + " ".join(map(shlex.quote, command)))
    return 0 if all(each.available or each.plan for each in seen) else 1


# ----------------------------------------------------------------------------------------------------
# The standard library's server: this program starts itself again, so that its command line says what it is
# ----------------------------------------------------------------------------------------------------


def _serve(words: Sequence[str]) -> int:
    """``--page`` or ``--wsgiref APP``, then --host, --port and perhaps --next."""
    import signal
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    ours, rest, _ = _split(words)
    where = Endpoint(ours["host"], int(ours["port"]))
    app = _imported(rest[1]) if rest[1:] else _page  # before anybody is stopped
    if app is _page:
        _leave_others_alone(where)
    listener = bind_port(where.port, where.host, policy="refuse" if "next" in ours else None)
    server = Server(listener.getsockname()[:2], WSGIRequestHandler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.server_name, server.server_port = where.host, where.port
    server.setup_environ()
    server.set_app(app)
    _say(_announced([where], "a small page" if app is _page else "wsgiref, no reload"))
    signal.signal(signal.SIGTERM, _end)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 130
    finally:
        server.server_close()
    return 0


def _end(number: int, frame: object) -> None:
    """End as SIGTERM ends a process; the first one of a container has to end itself."""
    import signal

    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)


def _leave_others_alone(where: Endpoint) -> None:
    for holder in preview_port(where.port, where.host).holders:
        if f"{SCRIPT} --page" not in holder.command:
            why = f"port {where.port} is held by {_title(holder)}"
            raise _CannotStart(f"There is no app here, and nobody is stopped for a small page: {why}")


def _page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    page = (
        "<!doctype html><meta charset=utf-8><title>It works</title>"
        f"<h1>It works</h1><p>Process {os.getpid()} serves this page on port {environ['SERVER_PORT']}. "
        "Start run_backend.py again, and the next process takes the port over from this one.</p>"
    ).encode()
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(page)))])
    return [page] if environ["REQUEST_METHOD"] != "HEAD" else []


def _imported(app: str) -> Any:
    import importlib

    sys.path.insert(0, getcwd())
    place, _, name = app.partition(":")
    name, call, arguments = name.partition("(")
    found: Any = importlib.import_module(place)
    for attribute in name.split("."):
        found = getattr(found, attribute)
    return found(*ast.literal_eval(f"[{arguments[:-1]}]")) if call else found


# ----------------------------------------------------------------------------------------------------
# The command line
# ----------------------------------------------------------------------------------------------------


def _run(words: Sequence[str]) -> int:
    ours, rest, command = _split(words)
    top, host = getcwd(), (ours.get("host") or environ.get("HOST") or "0.0.0.0").strip("[]")
    found = _chosen(rest) if command is None else Found("", "", "", command=tuple(command))
    port = _port(ours.get("port", environ.get("PORT") or str(found.port)), "--port" if "port" in ours else "PORT")
    policy = "refuse" if "next" in ours else None  # whoever was faster keeps the port
    where = _next(Endpoint(host, port)) if policy else Endpoint(host, port)
    if command is None:
        line, what = _line(found, where)
        endpoints = server_endpoints(line, {}) if found.options else [where]
    else:
        line, what = _checked_command(command, rest), command[0]
        endpoints = _endpoints(line, where, list(ours))
    shown = f"cd {relpath(getcwd(), top)} && " if getcwd() != top else ""
    if found.root:
        shown += f"PYTHONPATH={found.root} "
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [abspath(found.root), environ.get("PYTHONPATH")]))
    environ.update(HOST=host, PORT=str(where.port))
    line += ["--next"] * bool(policy and PROGRAM in line)
    return _preview(line, shown, endpoints, policy) if "dry-run" in ours else _start(line, what, endpoints, policy)


def _chosen(rest: list[str]) -> Found:
    """The app to serve, with the options for its server; none where there is no code."""
    app = _app_in(rest)
    options = [word for word in rest if word != app]
    if (rest and not app and rest[0][0] != "-") or options[:1] == ["runserver"]:
        how = "name it as in src.main:app, a port by --port, or put a command behind --"
        raise _CannotStart(f"{options[0]!r} is no app; {how}", 2)
    variable = "" if app else environ.get("APP", "")
    if variable and not _app_in([variable]):
        raise _CannotStart(f"APP is {variable!r}, which is no app; name it as in src.main:app", 2)
    if app or variable:
        return _named(app or variable, options)._replace(options=tuple(options))
    declared = _declared()
    found = [declared] if declared else find_app()
    if len(found) > 1:
        lines = "\n".join(f"  python {SCRIPT} {each.app}  # {each.why}" for each in found)
        raise _CannotStart(f"Several apps were found; name one:\n{lines}")
    return found[0]._replace(options=(*found[0].options, *options)) if found else _nothing()


def _line(found: Found, where: Endpoint) -> tuple[list[str], str]:
    """The command for an app, or for the small page where there is none; it is said what was found."""
    if not found.why:
        _say("There is no app and no other code here: a small page")
        _leave_others_alone(where)
        return [sys.executable, PROGRAM, "--page", "--host", where.host, "--port", str(where.port)], ""
    line, what = server_command(found, where)
    python = "" if line[0] in (sys.executable, what) else f", with {relpath(line[0])}"
    _say(f"Found {found.app or what}: {found.why}{python}")
    return line, what


def _next(wanted: Endpoint) -> Endpoint:
    """The next free port; it is said who has the one that was wanted."""
    port = find_free_port(wanted.port, wanted.host)
    if port != wanted.port:
        holders = ", ".join(map(_title, preview_port(wanted.port, wanted.host).holders))
        _say(f"Port {wanted.port} is held by {holders}: {port} is taken instead")
    return Endpoint(wanted.host, port)


def _checked_command(command: list[str], before: Sequence[str]) -> list[str]:
    """A given command: nobody is stopped for a program that is not there."""
    import shutil

    if before or not command:
        wrong = f"{before[0]} stands before the --; it belongs behind it" if before else "there is no command behind --"
        raise _CannotStart(wrong, 2)
    if shutil.which(command[0]) is None:
        there = isfile(command[0])
        what = "executable" if there else "installed, or not on PATH"
        raise _CannotStart(f"{command[0]} is not {what}", 126 if there else 127)
    return command


def _endpoints(command: list[str], where: Endpoint, ours: Sequence[str]) -> list[Endpoint]:
    """Where a given command will listen: on the port that was named here, else where the command says itself."""
    if not {"port", "next"} & set(ours):
        return server_endpoints(command)
    told = server_endpoints(command, {**environ, "HOST": where.host, "PORT": str(where.port)})
    same = [endpoint for endpoint in told if endpoint.port == where.port]
    if told and not same and "next" in ours:
        raise _CannotStart(f"the command listens on {told[0]}, not on port {where.port}; leave out --next", 2)
    if told and not same:
        write_line(sys.stderr, f"⚠️  The command itself names {told[0]}; name port {where.port} behind the --, too")
    return same or [where]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; it returns only where this process does not become the server.

    >>> main(["--port", "http"])
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    before = words[: words.index("--")] if "--" in words else words
    if "--help" in before or "-h" in before or before == ["--version"]:
        _say(f"run_backend {__version__}" if before == ["--version"] else USAGE.rstrip())
        return 0
    try:
        if words[:1] in (["--page"], ["--wsgiref"]):
            return _serve(words)
        return _run(words)
    except _CannotStart as error:
        write_line(sys.stderr, ("run_backend: " if error.status == 2 else "❌ ") + error.reason)
        return error.status
    except PortError as error:
        write_line(sys.stderr, f"❌ {error.reason}")
        return 1
    except FileNotFoundError:
        write_line(sys.stderr, "❌ The working directory has been removed: cd into the repository again")
        return 1
    except KeyboardInterrupt as interruption:
        write_line(sys.stderr, str(interruption) or "Interrupted")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
