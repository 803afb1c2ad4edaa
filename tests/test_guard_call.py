"""guard(): one line at the top of an app module, which acts only where a server is about to bind."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import port_manager
from port_manager import PortTimeout, server_endpoints, wait_until_free, wait_until_listening

from . import seam
from .apart import boxed
from .conftest import LINUX, bound_is_told, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")
GUARD = "import os, port_manager; port_manager.guard({})\nprint('loaded', __name__, flush=True)\n"

# Where a server listens, by its words, and by the variables before them; "": they name no port.
ENDPOINTS = {
    "127.0.0.1:8000": [
        "bash -e --rcfile rc -c 'uvicorn main:app'", "runner --fd=3 uvicorn main:app", "manage.py runserver -v 2",
        "/lib/uvicorn/__main__.py main:app", r"C:/venv/Scripts/uvicorn.exe main:app",
        "sh -c 'echo \"\" && uvicorn main:app'", "sh -c 'uvicorn main:app\npg_isready --port 5432'",
        "./wait-for-it.sh -h db -p 5432 -- uvicorn main:app", "uv run --with gunicorn uvicorn main:app",
        "uvicorn main:app --env-file f",
        "PORT=9000 HOST=:: uvicorn main:app",  # uvicorn does not read these
    ],
    "127.0.0.1:9000": [
        'sh -c "uvicorn main:app --port \'9000\'"', "gunicorn main:app --bi 127.0.0.1:9000",
        "gunicorn main:app -b tcp://127.0.0.1:9000", "bash -c 'exec uvicorn main:app --port 9000$THERE_IS_NONE'",
        "honcho run flask --app main --debug run -p 9000",
        "nohup bash -lc 'cd api && exec uvicorn main:app --port ${PORT:-9000} >log 2>&1 &'",
    ],
    "0.0.0.0:9000": [
        "PORT=9000 python run.py uvicorn", "gunicorn -b :9000", "PORT=9000 sudo --preserve-env PORT gunicorn main:app",
        "python server.py --port 9000", "waitress-serve --listen=*:9000 main:app",
        "sudo -u alice gunicorn shop.wsgi -b :9000", "PORT=9000 sh -c 'gunicorn main:app -b :$PORT'",
        "PORT=9000 sh -c 'gunicorn main:app -b :${PORT:-9001}'",
    ],
    "": [
        "tool uvicorn -x:app", "gunicorn main:app -b ''", "cp uvicorn a/b:c", "gunicorn main:app -b unix:/tmp/s",
        "uvicorn --help", "gunicorn main:app --print-config", "gunicorn main:app -cconf.py", "sh -c 'echo \"'",
        "flask run --host unix:///tmp/f.sock", *(f"{elsewhere} web uvicorn main:app --port 80" for elsewhere in (
            "docker run", "docker-compose exec", "podman run", "podman-compose run", "nerdctl run", "kubectl exec",
            "vagrant ssh", "ssh")),
        "pip install uvicorn gunicorn", "PORT=9000 manage.py migrate", "LISTEN_FDS=1 gunicorn main:app",
        "GUNICORN_CMD_ARGS='--bind 127.0.0.1:9000 --workers 4' gunicorn main:app",
        "UVICORN_UDS=/tmp/s uvicorn main:app", "UVICORN_FD=3 uvicorn main:app", "GRANIAN_UDS=/tmp/s granian main:app",
        "uvicorn main:app --port 65536", "uvicorn main:app --port 0",  # no port; any port
        "manage.py runserver --retries 80",  # a port, or the value of an option?
        "ssh host uvicorn main:app --port 9000",  # on another machine
        "PORT=8000 sh -c 'PORT=9000; uvicorn main:app --port $PORT'",  # its shell alone can tell
        "PORT=8000 sh -c '. ./.env && gunicorn main:app -b :${PORT:-9000}'", "sh -c 'uvicorn main:app --port `port`'",
        "sh -c 'if x; then uvicorn main:app; else uvicorn main:app --port 1; fi'", "flask -e x run", "PORT=1 a.py -h",
        *(f"sh -c '{setting} gunicorn main:app'" for setting in (
            "export PORT=9000; exec", "set -a; . ./.env; exec", "export $(xargs < .env);", "(PORT=9000;", "env $MORE")),
        "sh -c 'unset PORT; for P in 1 2; do uvicorn main:app --port ${PORT:-$P}; done'",
        "sh -c 'uvicorn main:app --host $(hostname) --port 9000'", "sh -c 'P=9000; manage.py runserver $P'",
        "UVICORN_PORT=9000 uvicorn main:app --env-file f",  # it reads that for the app alone
    ],
    "0.0.0.0:3000": ["PORT=3000 sh -c ' ; '", "PORT=8000 make run PORT=3000", "sh -c 'PORT=3000 python main.py'"],
    "localhost:3000": [
        "next dev -p3000", "vite --host --port 3000", "vite --port 3000 --host", "PORT=1 npm run dev -- --port 3000",
        "HOST=0.0.0.0 npm run dev -- --port 3000",
    ],
    "0.0.0.0:8000": ["python -m http.server -d 9000 /srv", "PORT=8000 wait-for-it db:5432 -t 5"],
    "[::1]:9000": [f"node server.{kind} --port=9000 --host ::1" for kind in ("js", "mjs", "cjs", "ts")],
    "localhost:8000": ["hypercorn -b localhost main:app"],
    "127.0.0.1:65535": ["uvicorn main:app --port 65535"], "127.0.0.1:1024": ["manage.py runserver --insecure 1024"],
    "127.0.0.1:3000": ["npx vite --port=3000 --host 127.0.0.1"],
    "0.0.0.0:80": ["manage.py runserver --noreload 0.0.0.0:80", "python -m http.server 80"],
    "127.0.0.1:9000 [::1]:9001": ["waitress-serve --listen '127.0.0.1:9000 [::1]:9001' main:app"],
}  # fmt: skip


@pytest.mark.parametrize(("where", "command"), [(where, each) for where, every in ENDPOINTS.items() for each in every])
def test_where_a_server_will_listen(where, command):
    words = shlex.split(command)
    variables = [*itertools.takewhile(re.compile("[A-Z_]+=").match, words)]
    environ = dict(variable.split("=", 1) for variable in variables)
    assert " ".join(map(str, server_endpoints(words[len(variables) :], environ))) == where


# What each server documents: its default address; the options for a host, for a port, and for both in one; what names a
# socket without a port; its variables for a host and a port.
DOCUMENTED = {
    "uvicorn main:app": ("127.0.0.1:8000", "--host", "--port", "", "--uds --fd", "UVICORN_HOST UVICORN_PORT"),
    "hypercorn main:app": ("127.0.0.1:8000", "", "", "-b --bind", "-c --config", ""),
    "granian main:app": ("127.0.0.1:8000", "--host", "--port", "", "--uds", "GRANIAN_HOST GRANIAN_PORT"),
    "daphne main:app": ("127.0.0.1:8000", "-b --bind", "-p --port", "", "-u --unix-socket -e --endpoint --fd", ""),
    "gunicorn main:app": ("127.0.0.1:8000", "", "", "-b --bind", "-c --config", ""),
    "waitress-serve main:app": ("0.0.0.0:8080", "--host", "--port", "--listen", "--unix-socket", ""),
    "python -m waitress main:app": ("0.0.0.0:8080", "--host", "--port", "--listen", "--unix-socket", ""),
    "flask run": ("127.0.0.1:5000", "-h --host", "-p --port", "", "", "FLASK_RUN_HOST FLASK_RUN_PORT"),
    "manage.py runserver_plus": ("", "", "", "-b", "-6 --ipv6", ""),
    **dict.fromkeys(("manage.py runserver", "django-admin runserver", "django runserver"),
                    ("127.0.0.1:8000", "", "", "--noreload", "-6 --ipv6", "")),
    "litestar run": ("127.0.0.1:8000", "-H --host", "-p --port", "",
                     "-U --uds --unix-domain-socket -F --fd --file-descriptor", "LITESTAR_HOST LITESTAR_PORT"),
    "sanic main:app": ("127.0.0.1:8000", "-H --host", "-p --port", "", "-u --unix", ""),
    "quart run": ("127.0.0.1:5000", "-h --host", "-p --port", "", "", "QUART_RUN_HOST QUART_RUN_PORT"),
    "fastapi dev": ("127.0.0.1:8000", "--host", "--port", "", "", "- PORT"),
    "fastapi run": ("0.0.0.0:8000", "--host", "--port", "", "", "- PORT"),
    "python -m http.server": ("0.0.0.0:8000", "-b --bind", "", "", "", ""),
    **dict.fromkeys(("next dev", "next start"), ("localhost:3000", "-H --hostname", "-p --port", "", "", "- PORT")),
    "php": ("", "", "", "-S", "", ""),
    **dict.fromkeys(("npm start", "pnpm dev", "yarn dev", "bun dev", "vite"), ("", "", "--port", "", "", "- PORT")),
}  # fmt: skip


@pytest.mark.parametrize("command", DOCUMENTED)
def test_what_each_server_documents(command):
    default, hosts, ports, binds, elsewhere, variables = DOCUMENTED[command]
    host, _, port = default.rpartition(":")

    def told(*words, **environ):
        return " ".join(map(str, server_endpoints([*command.split(), *words], environ)))

    assert told() == default
    assert {told(option, "192.0.2.7") for option in hosts.split()} <= {f"192.0.2.7:{port}"}
    assert {told(option, "9000") for option in ports.split()} <= {f"{host or 'localhost'}:9000"}
    assert {told(option, "192.0.2.7:9000") for option in binds.split()} <= {"192.0.2.7:9000"}
    assert {told(option) for option in elsewhere.split()} <= {""}
    names = variables.replace("-", "").split()[::-1]
    if names:
        environ = dict(zip(names, ("9000", "192.0.2.7")))
        assert told(**environ) == f"{'192.0.2.7' if names[1:] else host or 'localhost'}:9000"


@pytest.mark.parametrize(("name", "text", "command", "where"), [
    (".env", "SECRET_KEY=x\n", "flask run", "127.0.0.1:5000"),
    (".env", "SECRET_KEY=x\nFLASK_RUN_PORT=5001\n", "flask run", ""),
    (".flaskenv", "SECRET_KEY=x\nFLASK_RUN_PORT=5001\n", "flask run", ""),
    ("../.env", "QUART_RUN_PORT=5001\n", "quart run", ""),
    (".env", "LITESTAR_PORT=5001\n", "litestar run", ""),
    (".flaskenv", "FLASK_RUN_PORT=5001\n", "flask run -p 9000", "127.0.0.1:9000"),
    ("gunicorn.conf.py", "from settings import *", "PORT=5000 gunicorn main:app", ""),
    ("gunicorn.conf.py", "from settings import *", "gunicorn main:app -b :9000", "0.0.0.0:9000"),
])  # fmt: skip
def test_a_file_may_name_another_port(tmp_path, monkeypatch, name, text, command, where):
    (tmp_path / "app").mkdir()
    monkeypatch.chdir(tmp_path / "app")
    (tmp_path / "app" / name).write_text(text)
    assert " ".join(map(str, server_endpoints(command.split(), {}))) == where


LAUNCH = """\
import subprocess, sys
if "--worker" in sys.argv:
    import main
else:
    subprocess.run([sys.executable, "-m", "granian", *sys.argv[sys.argv.index("main:app"):], "--worker"])
"""


@pytest.fixture
def app(tmp_path):
    """Modules that begin with the one line, servers that load one of them, and launchers of those."""
    shutil.copy(port_manager.__file__, tmp_path)
    (tmp_path / "main.py").write_text(GUARD.format(""))
    (tmp_path / "named.py").write_text(GUARD.format("int(os.environ['PORT']), '127.0.0.1'"))
    (tmp_path / "manage.py").write_text((tmp_path / "named.py").read_text())
    for name in ("uvicorn", "gunicorn", "hypercorn", "tool"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        load = "import multiprocessing.process, sys; __import__(sys.argv[1].split(':')[0])\n"
        (tmp_path / name / "__main__.py").write_text(load)
    for name in ("bin", "granian"):
        (tmp_path / name).mkdir()
    for name in ("tini", "python", "granian"):
        (tmp_path / "bin" / name).symlink_to(sys.executable)
    for name in ("pipenv", "granian/__main__.py"):
        (tmp_path / name).write_text(LAUNCH)

    def run(*words, **environ):
        words = words if words[0].startswith("bin/") else [sys.executable, *words]
        options = {"input": "import main\n", "env": {**os.environ, **environ}, "capture_output": True, "text": True}
        return subprocess.run(words, cwd=tmp_path, check=False, **options)

    return run


def test_a_servers_command_line_frees_its_port(app, ports, hold, tmp_path):
    """Whatever port the call of guard() names."""
    port, named = ports(), ports()
    held, other, another = (hold(each, cwd=tmp_path) for each in (port, ("127.0.0.2", port), named))
    done = app("-m", "uvicorn", "main:app", "--port", str(port), ENVIRONMENT="production")
    assert done.returncode == 1 and "loaded" not in done.stdout
    assert "❌ Cannot start: port is not available" in done.stderr and "Traceback" not in done.stderr
    assert held.alive() == [held.pid]
    done = app("-m", "uvicorn", "named:app", "--port", str(port), PORT=str(named))
    assert done.returncode == 0 and "loaded named" in done.stdout
    assert f"✅ Port {port} is now available" in done.stderr
    assert held.alive() == [] and other.alive() and another.alive()


FORKS = "import os, sys; sys.argv[0] = 'uvicorn'; os.fork() and os.wait() or __import__('main')"  # as gunicorn does
SPAWNS = (  # what a reloader does
    "import multiprocessing as m, sys; sys.argv[0] = 'uvicorn';"
    "m.get_context('spawn').Process(target=__import__, args=['main']).start()"
)


@pytest.mark.parametrize(("words", "freed"), [
    ("main.py --port {port}", True),
    ("-m gunicorn main:app", True),  # it reads PORT
    ("named.py", True),
    ("-m hypercorn named:app -c conf.py", True),
    ("-m hypercorn main:app -c conf.py", False),  # its port may stand there
    ("-m hypercorn named:app --check-config", False),
    ("-m uvicorn named:app --uds s", False),  # it needs no port
    ("main.py migrate", False),  # a script that names none, whatever PORT is
    ("manage.py migrate --port {port}", False),
    ("-m tool main --port {port}", False),  # another script has loaded the app
    ("-c \"import port_manager; port_manager.guard(); print('loaded')\" main.py --port {port}", False),
    ("-i -c \"import sys; sys.argv = ['']; import main\" --port {port}", False),
    (f'-c "{SPAWNS}" main:app --port {{port}}', False),
    (f'-c "{FORKS}" main:app --port {{port}}', False),
    # A master starts its workers again, and each may bind for itself; a launcher only waits for the server.
    ("bin/tini -m granian main:app --port {port}", True),
    ("bin/python pipenv run granian main:app --port {port}", True),
    ("bin/granian -m granian main:app --port {port}", False),
    ("bin/python -X dev -m granian main:app --port {port}", False),
])  # fmt: skip
def test_whether_it_acts(app, port, hold, tmp_path, words, freed):
    held = hold(port, cwd=tmp_path)
    done = app(*shlex.split(words.replace("{port}", str(port))), PORT=str(port))
    assert done.returncode == 0 and "loaded" in done.stdout and ("available" in done.stderr) == freed, done
    assert held.alive() == ([] if freed else [held.pid])


@pytest.mark.parametrize("listen", [True, pytest.param(False, marks=bound_is_told)])
def test_in_a_masters_child_the_port_is_the_family_s(app, port, hold, tmp_path, listen):
    """uvicorn --reload and --workers bind in the parent, before the app is imported in a child."""
    words = shlex.join([sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)])
    held = hold(port, listen=listen, runs=f"{words} 2>&1", cwd=tmp_path)
    assert held.said == "loaded main\n" and held.alive() == [held.pid]


@boxed
def test_a_daemon_is_no_worker():
    """The process that forked it has ended."""
    read, write = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            eventually(lambda: os.getppid() == 1)
            os.write(write, b"%d" % seam.is_in_the_family("", "127.0.0.1", 8000))
        os._exit(0)
    assert os.read(read, 1) == b"0"


def test_elsewhere_no_tool_is_asked_for_a_port_that_is_free(port, hold, monkeypatch):
    asked = []
    seam.on_system(monkeypatch, "darwin", "alice")
    seam.stand_in(monkeypatch, "run a tool", lambda tool, *_, **__: asked.append(tool))
    with pytest.raises(PortTimeout):
        wait_until_listening(port, timeout=0)
    assert seam.is_in_the_family("uvicorn", "127.0.0.2", port) is False and asked == []
    with pytest.raises(PortTimeout):  # whether it listens at any address, no probe tells
        wait_until_listening(port, None, timeout=0)
    assert "lsof" in asked
    hold(("127.0.0.2", port))
    assert wait_until_listening(port, "127.0.0.2", timeout=0) is True
    asked.clear()
    with pytest.raises(PortTimeout):
        wait_until_free(port, timeout=0.5)
    assert asked == ["lsof"]  # once, for the holders that the error names
    assert seam.is_in_the_family("uvicorn", "127.0.0.2", port) is False and "lsof" in asked[1:]
