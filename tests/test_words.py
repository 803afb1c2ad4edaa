"""What is said: once, to those who should hear it, and in what their console can show."""

import errno
import io
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

import port_manager

from . import seam
from .conftest import ensured


def program(code, port):
    """Run a program of a user, and give what it prints: on its standard output, on its standard error."""
    done = ensured(".", port, code.replace("{port}", str(port)))
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


ASK = "import port_manager; port_manager.ensure_port_available({port})"
PLAIN, LOGGED = "Port {port} is available\n", "INFO:port_manager:"
SAID = f"✅ {PLAIN}"
LOGGER, ASCII = "log = logging.getLogger('port_manager'); ", "sys.stderr.reconfigure(encoding='ascii')"
CONFIGURED = {  # what a program does before: (its standard output, its standard error)
    "pass": ("", SAID),
    "import logging": ("", SAID),  # and not configured
    "logging.basicConfig(level='INFO')": ("", LOGGED + SAID),
    "logging.basicConfig()": ("", ""),  # its level is WARNING
    LOGGER + "log.addHandler(logging.NullHandler())": ("", ""),
    LOGGER + "log.setLevel('ERROR')": ("", ""),
    "logging.disable(logging.CRITICAL)": ("", ""),
    LOGGER + "log.disabled = True": ("", ""),
    f"import sys; {ASCII}": ("", PLAIN),
    f"{LOGGER}{ASCII}; log.setLevel('INFO'); log.addHandler(logging.StreamHandler())": ("", PLAIN),
    "sys.stdout.reconfigure(encoding='ascii'); logging.basicConfig(level=20, stream=sys.stdout)": (LOGGED + PLAIN, ""),
}


@pytest.mark.parametrize("configure", CONFIGURED)
def test_who_configured_logging_gets_it_his_way(port, configure):
    imports = "" if "logging." not in configure else "import logging, sys; "
    expected = tuple(part.replace("{port}", str(port)) for part in CONFIGURED[configure])
    assert program(f"{imports}{configure}; {ASK}", port) == expected


CONSOLES = {
    **dict.fromkeys(("ascii", "no-such-codec"), "No... -> \\u9879\\u76ee"),
    "cp1252": "No… -> \\u9879\\u76ee",
    "cp936": "No… → 项目",
}


@pytest.mark.parametrize("encoding", CONSOLES)
def test_a_console_that_cannot_show_symbols_gets_plain_text(encoding):
    console = Mock(encoding=encoding, isatty=bool)
    for line in ("✅ Port 80 is free", "⚠️  Port 80 is in use", "💡 Development", "🚨 Conflict", "❌ No… → 项目"):
        assert seam.write(console, line) is None
    told = "".join(call.args[0] for call in console.write.call_args_list).splitlines()
    assert told == ["Port 80 is free", "Port 80 is in use", "Development", "Conflict", CONSOLES[encoding]]


def test_what_was_printed_before_comes_first(port):
    code = "import port_manager, sys; sys.stdout.write('first '); port_manager.write_line(sys.stdout, 'second')"
    assert program(code, port) == ("first second\n", "")


def test_a_closed_or_missing_or_broken_stream_is_no_trouble(port):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        assert seam.write(stream, "✅ said") is None and not seam.on_terminal(stream)
    hardly = ({}, {"isatty": lambda: True}, {"flush": bool}, {"flush": bool, "encoding": None})
    for has, reached in zip(hardly, (0, 0, 1, 1)):  # a stand-in for a stream
        shown: list[str] = []
        stream = SimpleNamespace(write=shown.append, **has)
        assert seam.write(stream, "✅ said") is None and len(shown) == reached
        assert seam.on_terminal(stream) is ("isatty" in has)
    for number, trouble in ((errno.EPIPE, None), (errno.EINVAL, None), (errno.ENOSPC, "no room")):
        broken = Mock(**{"write.side_effect": OSError(number, "no room")})
        assert seam.write(broken, "✅ said") == trouble
    handler = "logging.basicConfig(level=20); logging.raiseExceptions = False; sys.stderr.close()"
    for code in ("sys.stderr.close()", "sys.stderr = None", "os.close(2)", handler):
        program(f"import logging, os, sys; {code}; {ASK}", port)


def test_spans():
    spans = {None: "", -3: "0 s", 59: "59 s", 60: "1 min", 3599: "59 min", 3600: "1 h", 86399: "23 h", 86400: "1 d"}
    ages = {None: None, **{seconds: time.time() - seconds for seconds in spans if seconds}}
    told = {each: seam.age(port_manager.Holder(9, 1, "", "", "", "", began, ())) for each, began in ages.items()}
    assert told == spans


def test_a_passing_line_is_removed_without_a_trace(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for text in ("Waiting for port 80", "x" * 90, ""):
        seam.status(text)
    first, cut = "Waiting for port 80".ljust(60), f"{'x' * 29}…{'x' * 29} "
    assert sys.stderr.getvalue() == f"\r{first}\r{cut}\r{' ' * 60}\r"


def test_a_folder_for_people(monkeypatch):
    shown = {
        "/home/ann/shop": "~/shop", "/home/ann": "~", "/home/anna": "/home/anna",
        "/srv/a-long-name/of/a/project/in/a/folder": "…/of/a/project/in/a/folder",
        "/srv/项目/客户项目/用户中心/backend": "…/客户项目/用户中心/backend",
        "/srv/" + "x" * 40: f"…/{'x' * 12}…{'x' * 14}",
    }  # fmt: skip
    monkeypatch.setenv("HOME", "/home/ann")
    assert {folder: seam.short_folder(folder) for folder in shown} == shown
    monkeypatch.setenv("HOME", "/")
    assert seam.short_folder("/") == "/"


def test_titles_are_short_and_complete():
    holder = port_manager.Holder(7, 1, "alice", "node", "node " + "x" * 500, "/srv/api", None, ())
    assert seam.title(holder) == f"7 (node {'x' * 24}…{'x' * 29}, in /srv/api)"
    started = holder._replace(command="node -r x web.js", started=time.time() - 7300)
    assert seam.title(started, full=True) == "7 (node -r x web.js, user alice, started 2 h ago, in /srv/api)"
    spaces = holder._replace(command='"C:\\Program Files\\nodejs\\node.exe" C:\\shop\\server.js 8000', cwd="")
    assert seam.title(spaces) == "7 (node.exe server.js 8000)"
    hidden = port_manager.Holder(None, None, "", "", "", "", None, ())
    assert seam.title(hidden) == "? (unknown)" and seam.title(hidden._replace(user="root")) == "? (unknown, user root)"
