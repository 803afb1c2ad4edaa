"""Every example of the README, of the two helps and of the docstrings is run, so that it stays true."""

from __future__ import annotations

import doctest
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import port_manager
import run_backend

from .apps import ASGI, DJANGO, FASTAPI, FLASK, NODE, WSGI, asked
from .conftest import LINUX, PATIENCE, PORT_MANAGER, ROOT, RUN_BACKEND, can_bind, eventually

pytestmark = pytest.mark.skipif(not LINUX, reason="the examples show Linux")

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [match.groups() for match in re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]


def blocks(language: str, containing: str = "") -> list[str]:
    return [text for kind, text in BLOCKS if kind == language and containing in text]


def test_examples_in_docstrings():
    failed, tried = doctest.testmod(port_manager)
    assert tried > 3 and failed == 0


# Projects for the examples to run in

ROUTE = "app.get('/')(lambda: str(__import__('os').getpid()))\n"
PACKAGE = '{"name": "web", "scripts": {"dev": "node server.js", "start": "node server.js"}}'
SERVER = WSGI + "import sys, wsgiref.simple_server as s\ns.make_server('', int(sys.argv[-1]), app).serve_forever()\n"
STAND_IN = {"src/main.py": FASTAPI, "uvicorn/__init__.py": "", "uvicorn/__main__.py": SERVER}  # where uvicorn is absent


class Project:
    """A new user's folder with the two files, a shell that speaks of ``python3``, and the port 8000 replaced."""

    def __init__(self, folder: Path, port: int, start) -> None:
        self.folder, self.port, self._start, self.log = folder, port, start, folder / "log"
        python = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
        self.write({".git/HEAD": "ref: refs/heads/main\n", "bin/python": python, "bin/python3": python})
        for file in (PORT_MANAGER, RUN_BACKEND):
            shutil.copy(file, folder)
        home = {"HOME": str(folder.parent), "XDG_RUNTIME_DIR": str(folder)}  # gunicorn writes there
        path = os.pathsep.join([str(folder / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]])
        self.environ = {**os.environ, **home, "PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "80", "PORT": str(port)}

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("8000", str(self.port)))
            file.chmod(0o755)

    def start(self, command: str):
        """Start a command of the README in a shell; its output goes to a file of its own."""
        self.log = self.log.with_name(f"{self.log.name}+")
        command = re.sub(r"\b(8000|9000|3000)\b", str(self.port), command)
        with open(self.log, "w") as log:
            return self._start("sh", "-c", command, cwd=self.folder, env=self.environ, stdout=log)

    def ends(self, command: str, status: int = 0) -> None:
        assert self.start(command).wait(PATIENCE) == status, self.log.read_text()

    def answers(self, *but: str) -> str:
        """What its port comes to answer, other than that."""
        assert eventually(lambda: asked(self.port) not in ("", *but)), self.log.read_text()
        return asked(self.port)


@pytest.fixture
def project(tmp_path, port, start):
    return Project(tmp_path / "shop", port, start)


def shown(line: str, port: int) -> str:
    """A line of the README as a pattern: PIDs, names and times are what they are on this machine."""
    pattern = re.escape(re.sub("python3 -m uvicorn .+?8000", "<command>", line)).replace(r"\ ", " ")
    for example, real in (
        ("<command>", r"\S*python.+"), ("8000", str(port)), ("38146", r"\d+"), ("alice: zsh → python3", ".+"),
        ("alice", r"\S+"), ("2 h", r"\d+ \w+"), (r"0\.1 s", r"\d+\.\d s"), (r"\~/shop", r"\S+"),
    ):  # fmt: skip
        pattern = pattern.replace(example, real)
    return re.sub(" +", r"\\s+", pattern)


@pytest.mark.parametrize("text", blocks("console"), ids=lambda text: text.splitlines()[0][2:40])
def test_what_a_terminal_shows(project, text):
    project.write(STAND_IN)
    project.start("python3 run_backend.py")
    former = project.answers()
    for step in text.split("$ ")[1:]:
        command, *lines = step.splitlines()
        if "-m tests" in command:  # it is what runs this test
            subprocess.run(shlex.split("python3 -m tests --version"), cwd=ROOT, env=project.environ, check=True)
            continue
        process = project.start(command)
        others = r"\n(?:.*\n)*" if "list" in command else r"\n"  # ports of other programs may stand between
        expected = re.compile(f"^{others.join(shown(line, project.port) for line in lines)}$", re.MULTILINE)
        assert eventually(lambda: expected.search(project.log.read_text())), project.log.read_text()  # noqa: B023
        if "run_backend" in command and "production" not in command:
            former = project.answers(former)
        else:
            assert process.wait(PATIENCE) == (1 if "production" in command or " check" in command else 0)
            rest = project.log.read_text().splitlines()[len(lines) :]
            assert "list" in command or not lines or rest == []


def commands() -> list[str]:
    """Every command that starts a backend, in the README and in run_backend's help."""
    texts = re.findall(r"(?:`|: |^)(python run_backend\.py[^`\n]*)", README, re.MULTILINE)
    texts += ["python " + line.strip() for line in run_backend.USAGE.splitlines() if "  run_backend.py" in line]
    texts += [shlex.join(json.loads(words)) for words in re.findall("^CMD (.+)", README, re.MULTILINE)]
    for launch in (launch for text in blocks("json", "debugpy") for launch in json.loads(text)["configurations"]):
        texts.append(shlex.join(["python", launch["program"].replace("${workspaceFolder}/", ""), *launch["args"]]))
    found = {re.split(" {2,}", text)[0] for text in texts}
    return sorted(command for command in found if not {"--next", "--dry-run"} & {*command.split()})  # nobody is stopped


NEEDS = {  # a word of the command: (what must be installed, the project)
    "create_app": ("gunicorn", {"app.py": WSGI + "def create_app(name=''): return app\nif False: import flask"}),
    "fastapi": ("fastapi_cli", {"src/main.py": FASTAPI}),
    "runserver": ("django", {"manage.py": DJANGO}),
    "flask": ("flask", {"app.py": FLASK}),
    "gunicorn": ("gunicorn", {"app.py": WSGI}),
    "npm": ("npm", {"server.js": NODE, "package.json": PACKAGE}),
    "reload": ("uvicorn", {"src/main.py": ASGI}),
    "src.main": ("uvicorn", {"src/main.py": ASGI}),
    "": ("", {"app.py": WSGI}),
}
(IN_CHINESE, DROP_IN) = sorted(blocks("python", "# src/main.py"), key=len)
(FLASK_SCRIPT,) = blocks("python", "debug=True")
(KEPT_SOCKET,) = blocks("python", "sockets=[bind_port")
(UVICORN, SCRIPT) = re.findall("# for: (python .+)", DROP_IN)
AN_APP = {"src/main.py": DROP_IN.replace("app = FastAPI()", "app = FastAPI()\n" + ROUTE)}
STARTS = [
    *((command, *next(NEEDS[word] for word in NEEDS if word in command)) for command in commands()),
    (UVICORN, "fastapi uvicorn", AN_APP),
    (SCRIPT, "fastapi uvicorn", AN_APP),
    (UVICORN, "fastapi uvicorn", {"src/main.py": IN_CHINESE + FASTAPI}),
    ("python app.py", "flask", {"app.py": FLASK_SCRIPT.replace("(__name__)", f"(__name__)\n{ROUTE}", 1)}),
    ("exec python serve.py", "uvicorn", {"src/main.py": ASGI, "serve.py": KEPT_SOCKET}),
]


@pytest.mark.parametrize("row", STARTS, ids=lambda row: row[0])
def test_what_starts_a_backend(project, row):
    command, needed, files = row
    for name in needed.split():
        if not (shutil.which(name) if name == "npm" else find_spec(name)):
            pytest.skip(f"{name} is not installed")
    project.write(files)
    project.start(command)
    first = project.answers()
    project.start(command)
    project.answers(first)


def test_the_pytest_fixture(project):
    (recipe,) = blocks("python", "# conftest.py")
    test = "from urllib.request import urlopen\ndef test_page(server):\n    assert urlopen(server).read()\n"
    project.write({**STAND_IN, "conftest.py": recipe, "test_page.py": test})
    project.ends("python -m pytest -q -p no:cacheprovider")


def test_the_dockerfile_compiles(project):
    (line,) = [line for text in blocks("dockerfile") for line in text.splitlines() if "compileall" in line]
    project.environ.update(PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX="")
    project.ends(line.partition(" ")[2])
    assert [*project.folder.glob("__pycache__/port_manager.*.pyc")]


def test_the_session_in_python(port):
    (text,) = blocks("pycon")
    example = doctest.DocTestParser().get_doctest(text.replace("8000", str(port)), {}, "README", None, None)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 8 and result.failed == 0


def test_the_shape_of_the_json(project):
    (text,) = blocks("json", '"would_stop"')
    project.write(STAND_IN)
    project.start("python3 run_backend.py --port 8000")
    project.answers()

    def shape(value):
        if isinstance(value, dict):
            return {key: shape(inner) for key, inner in value.items()}
        return [shape(inner) for inner in value[:1]] if isinstance(value, list) else type(value)

    project.ends(f"python3 port_manager.py check {project.port} --json", status=1)
    assert shape(json.loads(project.log.read_text())) == shape(json.loads(text))


def calls() -> list[str]:
    """Every call of port_manager.py in its helps and in the README's plain blocks."""
    text = "".join([Path(PORT_MANAGER).read_text(encoding="utf-8"), *blocks("sh")])
    return sorted(set(re.findall(r"^ *(?:python )?(port_manager\.py .*?)(?: {2}|$)", text, re.MULTILINE)))


@pytest.mark.parametrize("words", calls())
def test_a_call_of_the_command_line(project, hold, words):
    hold(("127.0.0.1", project.port))
    words = re.sub(r"\d000-\d+", f"{project.port}-{project.port + 9}", words.replace(" 9229", ""))
    words += " --timeout 1" if " wait " in words else ""
    fails = re.match(r"port_manager.py (check|\d|wait (?!.*listening))", words)
    project.ends(f"python3 {words}", status=1 if fails else 0)
    assert can_bind(project.port) == (" free 8000" in words and "-n" not in words)


def test_a_take_over_is_shown_in_one_wording():
    (block,) = [text for text in blocks("console", "💡") if "Found" in text]
    assert blocks("text") == [block.partition("\n")[2]]
    for name in ("take-over", "take-over-dark"):
        picture = (ROOT / ".github" / f"{name}.svg").read_text(encoding="utf-8")
        told = [html.unescape(text) for text in re.findall("<text[^>]*>(.*?)</text>", picture)]
        assert told[1:] == [re.sub(r"^\W+", "", line) for line in block.splitlines()]


def test_every_link_inside_the_page_leads_somewhere():
    titles = [title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)]
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert links and set(links) <= set(titles)
    files = re.findall(r"\]\(([^#)]+)\)|(?:srcset|src)=\"([^\"]+)\"", README)
    assert all((ROOT / (link or picture)).exists() for link, picture in files)
