"""Shared by the tests with real containers, services and managers: a call of the tool, and what it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, Sequence

import pytest

from .conftest import PATIENCE, PORT_MANAGER, ROOT, birth, eventually

TOOL = (sys.executable, PORT_MANAGER)


class Answer:
    """What ``port_manager.py free PORT… --json`` said about the first port: status, fields, all of its words."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status, self.words = done.returncode, done.stdout + done.stderr
        assert done.stdout.startswith("{"), self.words
        ports = json.loads(done.stdout)["ports"]
        self.holders: list[dict[str, Any]] = ports[0]["holders"]
        self.reason = str(ports[0]["reason"])
        self.stopped = [pid for port in ports for pid in port["stopped"]]

    def names(self, command: str) -> None:
        """Nobody was stopped, and the command is told that stops it where it is managed, to people and in JSON."""
        self.refuses(command)
        told = [holder["manager"]["stop"] for holder in self.holders if holder.get("manager")]
        assert any(command in stop for stop in told), self.words

    def refuses(self, *texts: str) -> None:
        assert (self.status, self.stopped) == (1, []), self.words
        assert [text for text in texts if text not in self.reason] == [], self.words

    def frees(self, *pids: int) -> None:
        assert self.status == 0 and self.stopped and {*pids} <= {*self.stopped}, self.words


def free(*ports: int, cwd: Any = None, before: Sequence[str] = TOOL, host: str = "", **environ: str) -> Answer:
    """Type ``free PORT…`` in a folder; before: the words that start the tool."""
    words = [*before, "free", *map(str, ports), "--json", "--grace", "2", *(["--host", host] if host else [])]
    options = {"env": {**os.environ, **environ}, "capture_output": True, "text": True, "timeout": PATIENCE}
    return Answer(subprocess.run(words, cwd=cwd, check=False, **options))


def listening(port: int, host: str = "127.0.0.1") -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((host, port), 1).close()
        return True
    return False


def wait_for(*ports: int) -> None:
    assert all(eventually(lambda port=port: listening(port)) for port in ports), "the scene did not come up"


@contextlib.contextmanager
def witness(*pids: int) -> Iterator[None]:
    """Processes that must be the same ones at the end of what is done with them."""
    births = {pid: birth(pid) for pid in pids}
    assert all(births.values()), births
    yield
    assert {pid: birth(pid) for pid in pids} == births


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def below(pid: int) -> list[int]:
    """All descendants of a process."""
    return [found for child in children(pid) for found in (child, *below(child))]


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(program), reason=f"no {program}; .ci/managers installs it")


# Docker and podman: whichever the clients find; .ci/containers starts them and makes the images.

BUSYBOX, DEBIAN = "port_manager:busybox", "port_manager:debian"


def docker(*words: str, check: bool = True, engine: str = "docker") -> str:
    done = subprocess.run([engine, *words], capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


def _needs(engine: str, *images: str) -> pytest.MarkDecorator:
    """A skip with the reason why there is nothing to test with, where there is nothing."""
    why = "" if shutil.which(engine) else f"no {engine}"
    for words in (["image", "inspect", *images], ["run", "--rm", BUSYBOX, "/bin/busybox", "true"]):
        asked = None if why else subprocess.run([engine, *words], capture_output=True, text=True, check=False)
        if asked and asked.returncode:
            why = f"{engine} {words[0]}: {asked.stderr.strip().splitlines()[0]} (.ci/containers makes what is needed)"
    return pytest.mark.skipif(bool(why), reason=why)


needs_docker = _needs("docker", BUSYBOX, DEBIAN)
engines = pytest.mark.parametrize("engine", ["docker", pytest.param("podman", marks=_needs("podman", BUSYBOX))])


def run_container(image: str, options: Sequence[str], command: Sequence[str], engine: str = "docker") -> str:
    """Start a container in which the repository is /tool; its name."""
    name = f"pm-{os.getpid()}-{os.urandom(3).hex()}"
    docker("run", "-d", "--name", name, "-v", f"{ROOT}:/tool:ro", *options, image, *command, engine=engine)
    return name


def main_process(name: str, engine: str = "docker") -> int:
    """The PID of a container's main process, as the host sees it; 0 where the container has ended."""
    return int(docker("inspect", "-f", "{{.State.Pid}}", name, engine=engine))


def inside(name: str, *options: str) -> tuple[str, ...]:
    """The words that start the tool in a container."""
    return ("docker", "exec", *options, name, "python3", "/tool/port_manager.py")


def listening_inside(name: str, port: int) -> bool:
    code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1); print('yes')"
    return docker("exec", name, "python3", "-c", code, check=False) == "yes"


def wait_inside(name: str, port: int) -> None:
    assert eventually(lambda: listening_inside(name, port), 20), docker("logs", name)


def serve_inside(name: str, port: int) -> None:
    docker("exec", "-d", name, "python3", "-m", "http.server", str(port))
    wait_inside(name, port)
