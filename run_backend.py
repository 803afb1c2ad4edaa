# SPDX-License-Identifier: MIT
"""Start this repository's backend, whatever still holds its port.

    python run_backend.py                            find the app, free port 8000, become its server
    python run_backend.py src.main:app --port 9000 --reload
    python run_backend.py --port 3000 -- npm run dev

HOST, PORT and APP in the environment say what the command line does not. On POSIX this process becomes the
server: nothing of this program stays behind.
"""

from __future__ import annotations

import os
import sys

from port_manager import (
    Endpoint,
    PortError,
    __version__,
    _beside,
    _nearest,
    _print,
    _resolved,
    _write,
    bind_port,
    ensure_port_available,
    find_free_port,
    server_endpoints,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    import socket
    from typing import Any, Callable, Iterator, Sequence

__all__ = ["app_kind", "find_app", "main", "server_command"]

CANDIDATES = ("src/main.py", "main.py", "app/main.py", "src/app.py", "app.py", "asgi.py", "wsgi.py")
PACKAGES = ("app/__init__.py", "src/__init__.py")
NAMES = ("app", "application")

# Who makes an app of which kind, by name; and, where that says nothing, which imports tell the kind of a module.
WSGI_MAKERS = ("APIFlask", "Bottle", "Flask", "WSGIApplication", "default_app", "get_wsgi_application", "make_wsgi_app")
ASGI_MAKERS = ("ASGIApp", "WsgiToAsgi", "get_asgi_application")
ASGI_FRAMEWORKS = ("fastapi", "litestar", "quart", "starlette")
WSGI_FRAMEWORKS = ("bottle", "cherrypy", "django", "falcon", "flask", "pyramid", "webob", "werkzeug")

USAGE = """\
Start this repository's backend, whatever still holds its port.

  run_backend.py                            find the app, free port 8000, start it
  run_backend.py src.main:app --port 9000   this app; other options go to its server
  run_backend.py 'app:create_app()'         the app that a function makes
  run_backend.py --reload                   uvicorn's reloader, the port freed first
  run_backend.py --port 3000 -- npm run dev any command, with HOST and PORT exported

  --host HOST       where to listen (else HOST, else 0.0.0.0)
  -p, --port PORT   the port to listen on (else PORT, else 8000)
  --next            take the next free port instead of stopping anyone

The app is the argument, else APP, else an app or application in src/main.py,
main.py, app/main.py, src/app.py, app.py, asgi.py or wsgi.py, else a manage.py.
With none of these a small page is served.
"""

OURS = ("--host", "--port", "--next")
THEIRS = ("--policy", "--grace", "--force", "--dry-run", "--signal", "--json")  # no server knows them

# Options that let a server look for the app in another folder.
ELSEWHERE = ("--app-dir", "--chdir", "--pythonpath")


class _WrongCall(Exception):
    """The call is wrong, and how: status 2."""


class _CannotStart(Exception):
    """Why there is no server: (the reason, the status)."""


# ----------------------------------------------------------------------------------------------------
# The call
# ----------------------------------------------------------------------------------------------------


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str], list[str] | None]:
    """(our own options, what goes to the server, the command behind ``--`` or None).

    >>> _split(["src.main:app", "--port=9000", "--reload"])
    ({'port': '9000'}, ['src.main:app', '--reload'], None)
    >>> _split(["--port", "3000", "--", "npm", "run", "dev"])
    ({'port': '3000'}, [], ['npm', 'run', 'dev'])
    >>> _split(["-p", "9000", "-p", "web.pid"])  # the second is gunicorn's
    ({'port': '9000'}, ['-p', 'web.pid'], None)
    """
    left, command = list(words), None
    if "--" in left:
        at = left.index("--")
        left, command = left[:at], left[at + 1 :]
    ours: dict[str, str] = {}
    rest = []
    while left:
        word = left.pop(0)
        option, equals, value = word.partition("=")
        if option[:2] == "-p" and (option[2:] or "".join(left[:1])).isdigit():
            option, equals, value = "--port", option[2:], option[2:]
        if option in ("--host", "--port") and not equals and not left:
            raise _WrongCall(f"{option} needs a value")
        if option in ("--host", "--port"):
            ours[option[2:]] = value if equals else left.pop(0)
        elif word == "--next":
            ours["next"] = word
        elif option == "--next":
            raise _WrongCall("--next takes no value; name the port to begin with by --port")
        elif option in THEIRS:
            instead = "here, set PORT_MANAGER_POLICY" if option == "--policy" else "run that before this"
            raise _WrongCall(f"{option} belongs to port_manager.py free; {instead}")
        elif option.startswith("--") and _nearest(option, OURS, surely=True):
            raise _WrongCall(f"there is no {option}{_nearest(option, OURS, surely=True)}")
        else:
            rest.append(word)
    return ours, rest, command


def _port(text: str, source: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= 65535):
        raise _WrongCall(f"{source} is {text!r}; a port is a number from 1 to 65535")
    return int(text)


def _is_app(word: str) -> bool:
    """
    >>> [_is_app(word) for word in ("src.main:app", "main.py", "my-app:make()", "localhost:80", "--reload", "debug")]
    [True, True, True, False, False, False]
    """
    module, colon, attribute = word.partition(":")
    if word.startswith("-") or module.endswith(".py"):
        return not word.startswith("-")
    attribute = attribute[:-2] if attribute.endswith("()") else attribute
    module = module.replace(".", "").replace("-", "_")
    return bool(colon) and module.isidentifier() and attribute.replace(".", "").isidentifier()


# ----------------------------------------------------------------------------------------------------
# Which app is it? Its module is read as syntax: importing it is its server's business.
# ----------------------------------------------------------------------------------------------------


def find_app(folder: str = ".") -> tuple[str, str] | None:
    """The app of a repository: (``src.main:app``, asgi or wsgi), or (``manage.py``, django), or None.

    >>> find_app("/nowhere") is None
    True
    """
    for path in (*CANDIDATES, "manage.py", *PACKAGES):
        if path == "manage.py" and os.path.isfile(os.path.join(folder, path)):
            return path, "django"
        source = _source(os.path.join(folder, path))
        for name in NAMES if source else ():
            kind = app_kind(source, name, path)
            if kind:
                return f"{_module(path)}:{name}", kind
    return None


def _given_app(word: str, options: Sequence[str] = ()) -> tuple[str, str]:
    """The same for an app that was named: ``src.main:app``, ``src/main.py``, or ``app:create_app()``, which makes it."""
    place, _, name = word.partition(":")
    if place.endswith(".py") and os.path.relpath(place).startswith(os.pardir):
        raise _CannotStart(f"{place} lies outside of this folder; start it from its own", 1)
    if os.path.basename(place) == "manage.py" and os.path.isfile(place):
        return place, "django"
    path = place if place.endswith(".py") else place.replace(".", "/") + ".py"
    if not os.path.isfile(path) and os.path.isfile(path[:-3] + "/__init__.py"):
        path = path[:-3] + "/__init__.py"
    if place.endswith(".py") and not os.path.isfile(path):
        raise _CannotStart(f"there is no file {place}", 1)
    source = _source(path)
    module = _module(place) if place.endswith(".py") else place
    name, call = (name[:-2], "()") if name.endswith("()") else (name, "")
    for candidate in [name] if name else NAMES:
        kind = app_kind(source, candidate.partition(".")[0], path)
        factory = kind and not call and "--factory" not in options and _is_factory(_statements(source, path), candidate)
        if factory and kind == "wsgi":
            raise _CannotStart(f"{candidate} in {path} makes the app when it is called: name it as '{module}:{candidate}()'", 1)
        if kind:
            return f"{module}:{candidate}{'()' if factory else call}", kind
    if name and source and _may_be_bound(source, name):
        return f"{module}:{name}{call}", _kind_by_imports(_statements(source, path), path)
    if place.endswith(".py") or (name and source):
        raise _CannotStart(f"{path} has no {name or ' or '.join(NAMES)} at its top", 1)
    if not name:
        raise _WrongCall(f"{word!r} is no app; name it as in src.main:app")
    if not any(option.partition("=")[0] in ELSEWHERE for option in options) and not _exists(place.partition(".")[0]):
        raise _CannotStart(f"there is no module {place} here", 1)
    return word, "asgi"  # an installed package, perhaps: its server will tell


def _may_be_bound(source: str, name: str) -> bool:
    """Whether a module may have a name at its top in some way that its syntax does not show."""
    return any(text in source for text in (name.partition(".")[0], "import *", "__getattr__", "globals("))


def _exists(module: str) -> bool:
    from importlib.machinery import PathFinder
    from importlib.util import find_spec

    try:
        return (PathFinder.find_spec(module, [os.getcwd()]) or find_spec(module)) is not None
    except ValueError:  # a module that has no spec
        return True


def _without_an_app() -> str | None:
    """What to say where a file should have had the app and has none, or another folder has it; else None."""
    for path in (*CANDIDATES, *PACKAGES):
        source = _source(path)
        if not source.strip():
            continue
        top, nothing = _statements(source, path), f"{path} shows no {' or '.join(NAMES)} at its top"
        maker = next((maker for maker in ("create_app", "make_app", "get_app") if _binding(top, maker)), None)
        if maker:
            return f"{nothing}, but {maker}: name it as '{_module(path)}:{maker}()'"
        return f"{nothing}; name the app as in src.main:app"
    home = os.path.dirname(os.path.realpath(__file__))
    if home != os.path.realpath(os.curdir) and find_app(home):
        return f"No app was found in {os.getcwd()}, and there is one in {home}: start it there (cd {home})"
    return None


def _module(path: str) -> str:
    module = os.path.splitext(os.path.relpath(path))[0].replace(os.sep, ".").replace("/", ".")
    return module[: -len(".__init__")] if module.endswith(".__init__") else module


def _source(path: str) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError:
        return ""
    return raw.decode("utf-8-sig", "replace")


def app_kind(source: str, name: str, path: str = "app.py") -> str | None:
    """What the module binds to a name at its top: asgi, wsgi, or None when there is no such name.

    >>> app_kind("from fastapi import FastAPI\\napp = FastAPI()", "app")
    'asgi'
    >>> app_kind("def application(environ, start_response): ...", "application")
    'wsgi'
    """
    top = _statements(source, path)
    binding = _binding(top, name)
    if binding is None:
        return None
    return _kind(binding, top) or _kind_by_imports(top, path)


def _kind_by_imports(top: list[ast.stmt], path: str) -> str:
    modules = [module.split(".") for node in top for module in _imports(node)]
    imported = {parts[0] for parts in modules}
    if imported & set(ASGI_FRAMEWORKS) or any("asgi" in parts for parts in modules):
        return "asgi"
    return "wsgi" if imported & set(WSGI_FRAMEWORKS) and "asgi" not in os.path.basename(path) else "asgi"


def _is_factory(top: list[ast.stmt], name: str) -> bool:
    """Whether the name is a plain function that can be called without arguments, and so is no app itself."""
    node: Any = _binding(top, name)
    if type(node).__name__ != "FunctionDef" or node.decorator_list or node.args.vararg:
        return False
    return len(node.args.posonlyargs + node.args.args) == len(node.args.defaults)


def _statements(source: str, path: str) -> list[ast.stmt]:
    """The statements at a module's top; _CannotStart where it is no Python."""
    import ast
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for the server to show
            return list(_top(ast.parse(source).body))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise _CannotStart(f"{path} cannot be read: line {line}: {getattr(error, 'msg', error)}", 1) from None


def _binding(top: list[ast.stmt], name: str) -> ast.stmt | None:
    return next((node for node in reversed(top) if name in _bound(node)), None)


def _top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements at a module's top, those in its if, try, with, match and loop blocks included."""
    for node in body:
        yield node
        if type(node).__name__ not in ("If", "Try", "TryStar", "With", "For", "While", "Match"):
            continue
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            for inner in getattr(node, block, []):
                yield from _top(inner.body if type(inner).__name__ in ("ExceptHandler", "match_case") else [inner])


def _bound(node: ast.stmt) -> list[str]:
    kind = type(node).__name__
    if kind in ("FunctionDef", "AsyncFunctionDef", "ClassDef"):
        return [getattr(node, "name", "")]
    if kind == "ImportFrom":
        return [alias.asname or alias.name for alias in getattr(node, "names", [])]
    if kind == "Import":
        return [alias.asname for alias in getattr(node, "names", []) if alias.asname]
    import ast

    targets = [*getattr(node, "targets", []), getattr(node, "target", None), getattr(node, "test", None)]
    targets += [item.optional_vars for item in getattr(node, "items", [])]
    inner = [name for target in targets if target is not None for name in ast.walk(target)]
    return [name.id for name in inner if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]


def _imports(node: ast.stmt) -> list[str]:
    if type(node).__name__ == "Import":
        return [alias.name for alias in getattr(node, "names", [])]
    return [getattr(node, "module", None) or ""] if type(node).__name__ == "ImportFrom" else []


def _kind(node: Any, top: list[ast.stmt]) -> str | None:
    """asgi or wsgi, by who makes the app or how it is called; None when the syntax does not say."""
    kind = type(node).__name__
    if kind == "AsyncFunctionDef":
        return "asgi"
    if kind in ("FunctionDef", "Lambda"):
        return {2: "wsgi", 3: "asgi"}.get(len(node.args.posonlyargs + node.args.args))
    if kind == "ClassDef":  # the name is a class: a server calls its instances, or makes them
        call = next((inner for inner in node.body if getattr(inner, "name", "") == "__call__"), None)
        if call is None:
            return None
        return "asgi" if type(call).__name__ == "AsyncFunctionDef" or len(call.args.args) == 4 else "wsgi"
    value: Any = getattr(node, "value", None)
    if type(value).__name__ == "Lambda":
        return _kind(value, top)
    if type(value).__name__ == "Name":  # another name of what was bound above
        above = top[: top.index(node)]
        named = _binding(above, value.id)
        return _kind(named, above) if named else None
    if type(value).__name__ != "Call":
        return None
    maker = getattr(value.func, "id", None) or getattr(value.func, "attr", "")
    if maker in WSGI_MAKERS or maker in ASGI_MAKERS:
        return "wsgi" if maker in WSGI_MAKERS else "asgi"
    made_here = next((other for other in top if type(other).__name__ == "ClassDef" and maker in _bound(other)), None)
    return _kind(made_here, top) if made_here else None


# ----------------------------------------------------------------------------------------------------
# Which command serves it?
# ----------------------------------------------------------------------------------------------------


def server_command(app: str, kind: str, host: str, port: int, options: Sequence[str] = ()) -> list[str] | None:
    """The command that serves an app; None for a WSGI app where only the standard library can."""
    address = str(Endpoint(host, port))
    script = _source(app) if kind == "django" else ""
    if "django" in script and "sys.path" not in script and not _installed("django"):
        raise _CannotStart(f"{app} needs Django, which is not installed: {_pip('django')}", 1)
    if kind == "django":
        return [sys.executable, app, "runserver", address, *options]
    if kind == "asgi":
        if not _installed("uvicorn"):
            raise _CannotStart(f"{app} is an ASGI app, and uvicorn is not installed: {_pip('uvicorn')}", 1)
        name, made = (app[:-2], ["--factory"]) if app.endswith("()") else (app, [])
        return [sys.executable, "-m", "uvicorn", name, "--host", host, "--port", str(port), *made, *options]
    if os.name == "posix" and _installed("gunicorn"):
        return [sys.executable, "-m", "gunicorn", app, "--bind", address, *options]
    if _installed("waitress"):
        name, made = (app[:-2], ["--call"]) if app.endswith("()") else (app, [])
        return [sys.executable, "-m", "waitress", f"--listen={address}", *made, *options, name]
    if options:
        what = "gunicorn" if os.name == "posix" else "waitress"
        raise _CannotStart(f"{' '.join(options)} needs a real server, and {what} is not installed: {_pip(what)}", 1)
    return None


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    spec = find_spec(module)
    return spec is not None and spec.origin is not None  # a mere folder of that name has none


def _pip(package: str) -> str:
    import shutil

    short = os.path.basename(sys.executable)
    return f"{short if shutil.which(short) == sys.executable else sys.executable} -m pip install {package}"


def _checked_program(command: list[str]) -> list[str]:
    """The command, when its program exists: nobody is stopped for a server that cannot start."""
    import shutil

    if not command:
        raise _WrongCall("there is no command behind --")
    if os.path.isfile(command[0]) and os.path.dirname(command[0]) and not os.access(command[0], os.X_OK):
        raise _CannotStart(f"{command[0]} is not executable", 126)
    if shutil.which(command[0]) is None:
        raise _CannotStart(f"{command[0]} is not installed, or not on PATH", 127)
    return command


def _environ(wanted: Endpoint) -> dict[str, str]:
    return {**os.environ, "HOST": wanted.host, "PORT": str(wanted.port)}


def _endpoints(command: list[str], ours: dict[str, str], wanted: Endpoint) -> list[Endpoint]:
    """Where a given command will listen; _WrongCall when that is not where it was told to."""
    endpoints = server_endpoints(command, _environ(wanted))
    if ("port" in ours or "next" in ours) and any(endpoint.port != wanted.port for endpoint in endpoints):
        raise _WrongCall(
            f"the command listens on {endpoints[0]}, not on port {wanted.port}; "
            f"name the port behind the --, or leave out {'--port' if 'port' in ours else '--next'}"
        )
    return endpoints


# ----------------------------------------------------------------------------------------------------
# Start it
# ----------------------------------------------------------------------------------------------------


def _become(command: list[str], wanted: Endpoint) -> int:
    """Turn into the command (POSIX), or wait for it and give its status (Windows, which has no exec)."""
    environ = _environ(wanted)
    if os.name == "posix":
        import signal

        for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and its successor would inherit that
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        try:
            os.execvpe(command[0], command, environ)  # noqa: S606
        except OSError as error:
            raise _CannotStart(f"{command[0]} cannot be started: {error.strerror or error}", 126) from None
    import shutil
    import subprocess

    found = shutil.which(command[0]) or command[0]  # npm is npm.cmd there, which only its full name starts
    child = subprocess.Popen([found, *command[1:]], env=environ)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the console has told the child as well
            continue


def _serve_here(handle: Callable[[socket.socket], Any], listener: socket.socket) -> int:
    """Serve with the standard library, in this process."""
    server = handle(listener)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 130
    finally:
        server.server_close()
    return 0


def _page_server(listener: socket.socket) -> Any:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    page = (
        "<!doctype html><meta charset=utf-8><title>It works</title>"
        f"<h1>It works</h1><p>Process {os.getpid()} serves this page on port {listener.getsockname()[1]}. "
        "Start run_backend.py again, and the next process takes the port over from this one.</p>"
    ).encode()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(page)

        do_HEAD = do_GET

    return _taking(listener, ThreadingHTTPServer, Page)


def _wsgi_server(app: Any) -> Callable[[socket.socket], Any]:
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    def serve(listener: socket.socket) -> Any:
        server = _taking(listener, Server, WSGIRequestHandler)
        server.server_name, server.server_port = listener.getsockname()[:2]
        server.setup_environ()
        server.set_app(app)
        return server

    return serve


def _taking(listener: socket.socket, kind: Any, handler: Any) -> Any:
    """A server of the standard library on a socket that listens already."""
    server = kind(listener.getsockname(), handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    return server


def _imported(app: str) -> Any:
    import importlib

    sys.path.insert(0, os.getcwd())
    module, _, attributes = app.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.replace("()", "").split("."):
        found = getattr(found, attribute)
    return found() if app.endswith("()") else found


def _say(text: str) -> None:
    """Print a line; where that fails, the server still starts."""
    _write(sys.stdout, text)


def _run(words: Sequence[str]) -> int:
    ours, rest, command = _split(words)
    host = ours.get("host") or os.environ.get("HOST") or "0.0.0.0"
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    told = ours.get("port", os.environ.get("PORT") or "8000")
    port = _port(told, "--port" if "port" in ours else "PORT")
    policy = "refuse" if "next" in ours else None  # whoever was faster keeps the port
    if "next" in ours:
        port = find_free_port(port, host)
    wanted = Endpoint(host, port)
    if command is not None:
        if rest:
            raise _WrongCall(f"{rest[0]} stands before the --; what belongs to the command stands behind it")
        endpoints = _endpoints(_checked_program(command), ours, wanted)
        return _start(command, endpoints, wanted, policy, _warn_of_those_beside)
    if "host" not in ours and os.environ.get("HOST"):
        _checked_name(host, port)
    app = next((word for word in rest if _is_app(word)), None)
    if app is None and rest and not rest[0].startswith("-"):
        meant = f"; did you mean --port {rest[0]}?" if rest[0].isdigit() else ""
        raise _WrongCall(f"{rest[0]!r} is no app{meant or '; name it as in src.main:app, or put a command behind --'}")
    options = [word for word in rest if word is not app]
    app = app or os.environ.get("APP")
    found = _given_app(app, options) if app else find_app()
    if found is None and options:
        raise _WrongCall(f"there is no app here to be served with {options[0]}; name it as in src.main:app")
    missing = _without_an_app() if found is None else None
    if missing:
        raise _CannotStart(missing, 1)
    if found is None:
        _say(f"No app was found here, in {os.getcwd()}: a small page is served (see run_backend.py --help)")
        return _start_here(_page_server, wanted, policy)
    if found[1] == "django" and options[:1] == ["runserver"]:
        raise _WrongCall("runserver is implied; name the port with --port, or put the whole command behind --")
    command = server_command(*found, host, port, options)
    if command:
        return _start(command, server_endpoints(command, {}), wanted, policy)
    return _start_here(_wsgi_server(_imported(found[0])), wanted, policy)


def _checked_name(host: str, port: int) -> None:
    try:
        _resolved(host, port)
    except PortError:  # conda's compilers set HOST to the name of a platform
        raise _CannotStart(f"HOST is {host!r}, which is no host name that is known; name the host with --host", 1) from None


def _start(
    command: list[str],
    endpoints: list[Endpoint],
    wanted: Endpoint,
    policy: str | None = None,
    warn: Callable[[Endpoint], None] = lambda endpoint: None,
) -> int:
    if not all(ensure_port_available(endpoint.port, endpoint.host, policy=policy) for endpoint in endpoints):
        return 1
    for endpoint in endpoints:
        warn(endpoint)
    where = ", ".join(map(str, endpoints))
    _say(f"✅ Starting server on {where}" if where else f"✅ Starting {command[0]}, which names no port")
    return _become(command, endpoints[0] if endpoints else wanted)


def _warn_of_those_beside(endpoint: Endpoint) -> None:
    """A command of which nothing is known may bind localhost or ::, where others can be in its way."""
    for sentence in _beside(*reversed(endpoint)):
        _write(sys.stderr, f"⚠️  {sentence}; a server that binds localhost or :: would fail")


def _start_here(handle: Callable[[socket.socket], Any], wanted: Endpoint, policy: str | None = None) -> int:
    try:
        listener = bind_port(wanted.port, wanted.host, policy=policy)
    except PortError:  # the reason has been logged
        return 1
    _say(f"✅ Starting server on {wanted}")
    return _serve_here(handle, listener)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; it returns only where this process does not become the server.

    >>> main(["--port", "http"])
    2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    before = words[: words.index("--")] if "--" in words else words
    try:
        if "--help" in before or "-h" in before:
            _print(USAGE.rstrip())
            return 0
        if before == ["--version"]:
            _print(f"run_backend {__version__}")
            return 0
        return _run(words)
    except _WrongCall as wrong:
        _write(sys.stderr, f"run_backend: {wrong}")
        return 2
    except _CannotStart as error:
        reason, status = error.args
        _write(sys.stderr, f"❌ {reason}")
        return int(status)
    except PortError as error:
        _write(sys.stderr, f"❌ {error.reason}")
        return 1
    except KeyboardInterrupt as interruption:
        _write(sys.stderr, str(interruption) or "Interrupted")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
