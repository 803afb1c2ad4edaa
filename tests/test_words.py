"""What is said: once, to those who should hear it, and in what their console can show."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys

import pytest

import port_manager

from . import seam
from .conftest import ROOT

ASK = "import port_manager; port_manager.ensure_port_available({port})"


def program(code, port, **environ):
    """Run a program of a user, and give (stdout, stderr)."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **environ}
    done = subprocess.run(
        [sys.executable, "-c", code.replace("{port}", str(port))], env=environ, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout, done.stderr


SAID = "✅ Port {port} is available\n"
LOGGER = "log = logging.getLogger('port_manager'); "
TO_STDOUT = LOGGER + "log.setLevel('INFO'); log.addHandler(logging.StreamHandler(sys.stdout)); "
CONFIGURED = {  # what a program does before: (its standard output, its standard error)
    "pass": ("", SAID),
    "import logging": ("", SAID),  # and not configured
    "logging.basicConfig(level='INFO', format='%(name)s|%(message)s')": ("", f"port_manager|{SAID}"),
    "logging.basicConfig(level='INFO', stream=sys.stdout, format='%(levelname)s %(message)s')": (f"INFO {SAID}", ""),
    "logging.basicConfig()": ("", ""),  # its level is WARNING
    LOGGER + "log.addHandler(logging.NullHandler())": ("", ""),
    LOGGER + "log.setLevel('ERROR')": ("", ""),
    "logging.disable(logging.CRITICAL)": ("", ""),
    LOGGER + "log.disabled = True": ("", ""),
    TO_STDOUT + "logging.basicConfig(stream=sys.stdout, format='root %(message)s')": (f"{SAID}root {SAID}", ""),
    TO_STDOUT + "log.propagate = False; logging.basicConfig(stream=sys.stdout)": (SAID, ""),
}


@pytest.mark.parametrize("configure", CONFIGURED)
def test_who_configured_logging_gets_it_his_way(port, configure):
    imports = "" if "logging." not in configure else "import logging, sys; "
    got = program(f"{imports}{configure}; {ASK}", port)
    assert [part.decode() for part in got] == [part.replace("{port}", str(port)) for part in CONFIGURED[configure]]


@pytest.mark.parametrize("encoding", ["ascii", "cp936", "cp1252", "latin-1", "no-such-codec"])
def test_a_console_that_cannot_show_symbols_gets_plain_text(encoding):
    """What it can show is kept."""

    class Console(io.TextIOWrapper):
        encoding = property(lambda self: name)

    name, raw = encoding, io.BytesIO()
    real = "ascii" if encoding == "no-such-codec" else encoding
    stream = Console(raw, encoding=real, errors="strict")
    for line in ("✅ Port 80 is available", "⚠️  Port 80 is already in use", "💡 Development", "🚨 Conflict", "❌ No…"):
        seam.write(stream, line)
    last = "No…" if encoding in ("cp936", "cp1252") else "No..."
    told = raw.getvalue().decode(real).splitlines()
    assert told == ["Port 80 is available", "Port 80 is already in use", "Development", "Conflict", last]


def test_a_strict_ascii_console_of_a_real_process(port):
    configured = "import logging, sys; logging.basicConfig(level=20, stream=sys.stdout, format='%(message)s'); "
    for code in (ASK, configured + ASK):
        out, err = program(code, port, PYTHONIOENCODING="ascii:strict", PYTHONUTF8="0")
        assert out + err == b"Port %d is available\n" % port


def test_other_letters_are_escaped_where_they_cannot_be_shown():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    seam.write(stream, "❌ in /srv/项目")
    assert stream.buffer.getvalue() == b"in /srv/\\u9879\\u76ee\n"


def test_a_closed_or_missing_or_broken_stream_is_no_trouble(port):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    closed = io.StringIO()
    closed.close()
    for stream in (closed, None, Broken()):
        seam.write(stream, "✅ said")
        assert not seam.on_terminal(stream)
    for code in ("sys.stderr.close()", "sys.stderr = None", "os.close(2)"):
        program(f"import os, sys; {code}; {ASK}", port)


def test_a_handler_on_a_closed_stream_raises_nothing(monkeypatch):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("port_manager")
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    stream.close()
    seam.say(logging.ERROR, "✅ said")


def test_clean_text():
    assert seam.clean("plain 项目 é") == "plain 项目 é"
    assert seam.clean("a\x1b[31m\x07\r\nb\u202e\x9b\udce9") == "a?[31m???b???"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (0.4, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (90000, "1 d")]
)
def test_spans(seconds, text):
    assert seam.span(seconds) == text


def test_titles_are_short_and_complete():
    holder = port_manager.Holder(7, 1, "alice", "node", "node " + "x" * 500, "/srv/api", None, ())
    short = seam.title(holder)
    assert len(short) < 90 and "x…x" in short and short.endswith("x, in /srv/api)")
    assert seam.title(holder, full=True).endswith("x, user alice, in /srv/api)")
    unknown = port_manager.Holder(None, None, "", "", "", "", None, ())
    assert seam.title(unknown) == seam.title(unknown, full=True) == "? (unknown)"
