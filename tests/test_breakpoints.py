"""Breakpoints work under run_backend.py: debugpy is driven the way an editor drives it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from .apps import ASGI
from .conftest import LINUX, PATIENCE, RUN_BACKEND, eventually

pytest.importorskip("debugpy", reason="no debugpy; .ci/run installs it")
pytestmark = pytest.mark.skipif(not LINUX, reason="on Linux run_backend.py becomes the server")

LINE = ASGI.partition('"http.response.start"')[0].count("\n") + 1


class Session:
    """One conversation in the debug adapter protocol."""

    def __init__(self, answers, questions) -> None:
        self.answers, self.questions = answers, questions

    def ask(self, command, **arguments):
        data = json.dumps({"seq": 1, "type": "request", "command": command, "arguments": arguments}).encode()
        self.questions.write(b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
        self.questions.flush()

    def told(self, name):
        """What is said next about this, a response or an event."""
        while True:
            size = int(self.answers.readline().rpartition(b":")[2])
            self.answers.readline()
            message = json.loads(self.answers.read(size))
            if name in (message.get("event"), message.get("command")):
                return message.get("body")

    def begin(self, how, configuration, file):
        self.ask("initialize", adapterID="python", pathFormat="path")
        self.told("initialize")
        self.ask(how, **configuration)
        self.told("initialized")
        self.ask("setBreakpoints", source={"path": str(file)}, breakpoints=[{"line": LINE}])
        self.told("setBreakpoints")
        self.ask("configurationDone")


def test_a_breakpoint_in_the_app_is_met(tmp_path, port, start):
    pytest.importorskip("uvicorn")
    (tmp_path / "app.py").write_text(ASGI)
    launch = {"request": "launch", "type": "debugpy", "program": RUN_BACKEND, "args": ["app:app", "--port", str(port)]}
    launch = {**launch, "cwd": str(tmp_path), "console": "internalConsole", "python": [sys.executable]}
    adapter = start(sys.executable, "-m", "debugpy.adapter", stdin=subprocess.PIPE, text=False)
    timer = threading.Timer(PATIENCE, adapter.kill)
    timer.start()
    editor = Session(adapter.stdout, adapter.stdin)
    editor.begin("launch", launch, tmp_path / "app.py")
    server = editor.told("debugpyAttach")  # the server is a process to attach to, although its PID has stayed the same
    with socket.create_connection((server["connect"]["host"], server["connect"]["port"])) as connection:
        stream = connection.makefile("rwb")
        below = Session(stream, stream)
        below.begin("attach", server, tmp_path / "app.py")
        pages: list[bytes] = []

        def visit() -> None:
            with contextlib.suppress(OSError):
                pages.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE).read())

        threading.Thread(target=lambda: eventually(lambda: visit() or pages), daemon=True).start()
        stopped = below.told("stopped")
        assert stopped["reason"] == "breakpoint" and pages == []
        below.ask("continue", threadId=stopped["threadId"])
        assert eventually(lambda: len(pages) == 1 and pages[0].startswith(b"Process "))
    timer.cancel()
    os.kill(server["subProcessId"], 9)
