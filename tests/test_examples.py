"""Every example of the README, of the two helps and of the docstrings is run, so that it stays true."""

from __future__ import annotations

import contextlib
import doctest
import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

import port_manager
import run_backend

from . import seam
from .conftest import LINUX, PATIENCE, PORT_MANAGER, ROOT, RUN_BACKEND, can_bind, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="the examples show Linux")

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [match.groups() for match in re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]


def blocks(language: str, containing: str = "") -> list[str]:
    return [text for kind, text in BLOCKS if kind == language and containing in text]


@pytest.mark.parametrize("module", [port_manager, run_backend])
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried > 3 and failed == 0


# Projects for the examples to run in. What a server answers is the PID that answers.

ASGI = """
import os
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % os.getpid()})
"""
WSGI = """
import os
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
"""
FLASK = """
import os
from flask import Flask
app = Flask(__name__)
app.route("/")(lambda: str(os.getpid()))
"""
DJANGO = """
import os, sys
from django.conf import settings
from django.http import HttpResponse
settings.configure(DEBUG=True, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
from django.core.management import execute_from_command_line
from django.urls import path
urlpatterns = [path("", lambda request: HttpResponse(str(os.getpid())))]
if __name__ == "__main__":
    execute_from_command_line(sys.argv)
"""
NODE = "require('http').createServer((q, a) => a.end(String(process.pid))).listen(process.env.PORT, process.env.HOST)"
PACKAGE = '{"name": "web", "scripts": {"dev": "node server.js"}}'
SERVER = """
import http.server, os, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"%d" % os.getpid())
http.server.HTTPServer(("0.0.0.0", int(sys.argv[-1])), Page).serve_forever()
"""
STAND_IN = {"src/main.py": ASGI, "uvicorn/__init__.py": "", "uvicorn/__main__.py": SERVER}  # where uvicorn is absent


@pytest.fixture
def project(tmp_path, port, start):
    """A new user's folder with the two files, a shell that speaks of ``python3``, and the port 8000 replaced."""
    shutil.copy(PORT_MANAGER, tmp_path)
    shutil.copy(RUN_BACKEND, tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "python3"):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / name).chmod(0o755)
    return Project(tmp_path, port, start)


class Project:
    def __init__(self, folder: Path, port: int, start) -> None:
        self.folder, self.port, self._start, self.started = folder, port, start, 0
        home = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}  # gunicorn writes there
        path = os.pathsep.join([str(folder / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]])
        self.environ = {**os.environ, **home, "PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "500", "PORT": str(port)}

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            file = self.folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text.replace("8000", str(self.port)))

    def start(self, command: str):
        """Start a command of the README in a shell; its output goes to a file."""
        self.started += 1
        command = re.sub("8000|9000|3000", str(self.port), command)
        self.log = self.folder / f"log{self.started}"
        with open(self.log, "w") as log:
            return self._start("sh", "-c", command, cwd=self.folder, env=self.environ, stdout=log)

    def answer(self) -> str:
        with contextlib.suppress(OSError, http.client.HTTPException), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=PATIENCE) as page:
            return page.read().decode()
        return ""

    def takes_over_from_itself(self, command: str) -> None:
        served: list[str] = []
        for _ in range(2):
            self.start(command)
            assert eventually(lambda: self.answer() not in ("", *served)), self.log.read_text()
            served.append(self.answer())


def shown(line: str, port: int) -> str:
    """A line of the README as a pattern: PIDs, names and times are what they are on this machine."""
    pattern = re.escape(line).replace(r"\ ", " ")
    for example, real in (
        ("8000", str(port)), ("38146", r"\d+"), ("by bash 900 ← tmux 871", ".+"), ("alice", r"\S+"), ("2 h", r"\d+ \w+"),
        ("/srv/api", r"\S+"), (r"2026\-11\-24 09:30:00", r"[\d-]+ [\d:]+"), (r"python3 \-m", r"\S*python\S* \-m"),
    ):  # fmt: skip
        pattern = pattern.replace(example, real)
    return re.sub(" +", r"\\s+", pattern)


def matched(expected: list[str], output: str, between: str = r"\n") -> bool:
    """Whether the lines stand in the output one after the other."""
    return bool(re.search("^" + between.join(expected) + "$", output, re.MULTILINE))


@pytest.mark.parametrize("text", blocks("console"), ids=lambda text: text.splitlines()[0][2:40])
def test_what_a_terminal_shows(project, text):
    project.write(STAND_IN)
    project.start("python3 run_backend.py")
    assert eventually(project.answer), project.log.read_text()
    for step in text.split("$ ")[1:]:
        command, *lines = step.splitlines()
        if "-m tests" in command:  # it is what runs this test
            subprocess.run(shlex.split("python3 -m tests --version"), cwd=ROOT, env=project.environ, check=True)
            continue
        former = project.answer()
        process = project.start(command)
        expected = [shown(line, project.port) for line in lines]
        others = r"\n(?:.*\n)*" if "list" in command else r"\n"  # ports of other programs may stand between
        assert eventually(lambda: matched(expected, project.log.read_text(), others)), project.log.read_text()  # noqa: B023
        if "run_backend" in command and "production" not in command:
            assert eventually(lambda: project.answer() not in ("", former)), project.log.read_text()  # noqa: B023
        else:
            assert process.wait(PATIENCE) == (1 if "production" in command or " check" in command else 0)
            rest = project.log.read_text().splitlines()[len(lines) :]
            assert "list" in command or not lines or rest == []


def commands() -> list[str]:
    """Every command that starts a backend, in the README and in run_backend's help."""
    found = [c for c in re.findall(r"`(python run_backend\.py[^`]*)`", README) if "python run_backend.py`" not in c]
    found += ["python " + line.strip().split("   ")[0] for line in run_backend.USAGE.splitlines() if "  run_backend.py" in line]
    found += [line.split(": ", 1)[1] for text in blocks("procfile") for line in text.splitlines()]
    found += [line.split(": ", 1)[1] for text in blocks("yaml") for line in text.splitlines() if "command:" in line]
    for text in blocks("json", "configurations"):
        for launch in json.loads(text)["configurations"]:
            found.append("python " + launch["program"].replace("${workspaceFolder}/", "") + " " + " ".join(launch["args"]))
    return sorted({command for command in found if "--next" not in command})  # that takes nothing over


NEEDS = {  # a word of the command: (what must be installed, the project)
    "create_app": ("gunicorn", {"app.py": WSGI + "def create_app(): return app\nif False: import flask"}),
    "flask": ("flask", {"app.py": FLASK}),
    "gunicorn": ("gunicorn", {"app.py": WSGI}),
    "npm": ("npm", {"server.js": NODE, "package.json": PACKAGE}),
    "reload": ("uvicorn", {"src/main.py": ASGI}),
    "src.main": ("uvicorn", {"src/main.py": ASGI}),
}


@pytest.mark.parametrize("command", commands())
def test_a_command_that_starts_a_backend(project, command):
    needed, files = next((needs for word, needs in NEEDS.items() if word in command), (None, {"app.py": WSGI}))
    if needed and not (shutil.which(needed) if needed == "npm" else find_spec(needed)):
        pytest.skip(f"{needed} is not installed")
    project.write(files)
    project.takes_over_from_itself(command)


def test_django_is_found(project):
    pytest.importorskip("django")
    project.write({"manage.py": DJANGO})
    project.takes_over_from_itself("python run_backend.py --port 8000")


@pytest.mark.parametrize(
    "command", ["python -m uvicorn src.main:app --host 0.0.0.0 --port 8000", "PORT=8000 python src/main.py"]
)
def test_the_drop_in_recipe(project, command):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    (recipe,) = blocks("python", "# src/main.py")
    assert f"# for: {command.replace('PORT=8000 ', '')}" in recipe
    page = "app = FastAPI()\napp.get('/')(lambda: os.getpid())"
    project.write({"src/main.py": recipe.replace("app = FastAPI()", page)})
    project.takes_over_from_itself(command)


@pytest.mark.parametrize("text", blocks("python", "import bind_port"), ids=["uvicorn", "http.server"])
def test_the_socket_that_is_kept(project, text):
    if "import uvicorn" in text:
        pytest.importorskip("uvicorn")
    project.write({"src/main.py": ASGI, "serve.py": text})
    for _ in range(2):
        process = project.start("exec python serve.py")
        assert eventually(project.answer) and process.poll() is None, project.log.read_text()


def test_the_session_in_python(port):
    (text,) = blocks("pycon")
    example = doctest.DocTestParser().get_doctest(text.replace("8000", str(port)), {}, "README", None, None)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 8 and result.failed == 0


def test_the_shape_of_the_json(project):
    (text,) = blocks("json", '"would_stop"')
    project.write(STAND_IN)
    project.start("python3 run_backend.py --port 8000")
    assert eventually(project.answer), project.log.read_text()

    def shape(value):
        if isinstance(value, dict):
            return {key: shape(inner) for key, inner in value.items()}
        return [shape(inner) for inner in value] if isinstance(value, list) else type(value)

    project.start(f"python3 port_manager.py check {project.port} --json").wait(PATIENCE)
    assert shape(json.loads(project.log.read_text())) == shape(json.loads(text))


@pytest.mark.parametrize("line", [line for line in seam.HELP.splitlines() if line.startswith("  port_manager.py")])
def test_an_example_of_the_help(project, hold, line):
    words = re.split(" {2,}", line.strip())[0]
    hold(("127.0.0.1", project.port))
    words = words.replace("3000-3010", f"{project.port}-{project.port}").replace("--timeout 30", "--timeout 1")
    process = project.start(f"python3 {words}")
    assert process.wait(PATIENCE) == (1 if " check " in words else 0), project.log.read_text()
    assert can_bind(project.port) == (" free 8000" in words)


def test_troubleshooting_quotes_messages_that_exist():
    section = README.partition("## Troubleshooting")[2].partition("\n## ")[0]
    quotes = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    source = Path(PORT_MANAGER).read_text(encoding="utf-8")
    source = re.sub(r'"\s*\+?\s*f?"', "", source)  # a text that continues on the next line
    source = re.sub(r"\{[^{}]*\}", "…", source)
    assert len(quotes) > 12
    for quote in quotes:
        for part in quote.replace("of user root ", "…").split("…"):
            assert part.strip() in source, quote


def test_every_link_inside_the_page_leads_somewhere():
    titles = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)]
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert links and set(links) <= set(titles)
