"""The command line: what it shows, where, and with which status it ends."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import unicodedata

import pytest

import port_manager

from . import seam
from .conftest import LINUX, PATIENCE, PORT_MANAGER, ROOT, can_bind, command_line, eventually, shown_until_closed

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")


@pytest.mark.parametrize("words", [("check",), ()], ids=["check", "alone"])
def test_check_of_a_free_port(port, words):
    done = command_line(*words, str(port))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"✅ Port {port} is available\n", "")


def test_python_m(port):
    done = subprocess.run(
        [sys.executable, "-m", "port_manager", str(port)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"✅ Port {port} is available\n")


@pytest.mark.parametrize(
    "wrong", ["0", "-1", "65536", "http", "", "80.5", "²", "3010-3000", "3000-", "-", "0-5", "8000,8001", "+80", "١", "9" * 30]
)
@pytest.mark.parametrize("verb", [(), ("check",), ("free",)], ids=["alone", "check", "free"])
def test_a_wrong_call_is_one_clear_line(verb, wrong, capsys):
    assert port_manager.main([*verb, wrong]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("port_manager: ") and err.count("\n") == 1 and wrong in err


def test_a_wrong_call_from_a_shell():
    done = command_line("check", "http")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "port_manager: 'http' is not a port; a port is a number from 1 to 65535, a range is 3000-3010\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("fre", "80"), "did you mean free?"),
        (("lst",), "did you mean list?"),
        (("zzz",), "there are list, check, free, wait, pick"),
        (("free", "80", "--jsn"), "did you mean --json?"),
        (("free", "80", "--dryrun"), "did you mean --dry-run?"),
        (("check", "80", "--grace", "5"), "check has no option --grace"),
        (("free", "80", "--grace", "soon"), "'soon' is not a number of seconds"),
        (("free", "80", "--grace", "-1"), "--grace"),
        (("free", "80", "--grace", "nan"), "'nan' is not a number of seconds"),
        (("free", "80", "--signal", "NONSENSE"), "'NONSENSE' is none of TERM, INT"),
        (("free", "80", "--policy", "kil"), "'kil' is none of kill, own, ask, refuse"),
        (("free", "80", "--host"), "--host"),
        (("wait", "80", "--until", "gone"), "'gone' is none of free, listening"),
        (("free",), "free needs at least one port"),
        (("check", "--json"), "check needs at least one port"),
        (("wait",), "wait needs one port"),
        (("wait", "80", "81"), "wait needs one port"),
        (("pick", "80", "81"), "pick needs one port"),
        (("list", "80"), "list takes no port"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_word_is_told_and_the_near_one_suggested(words, hint, capsys):
    assert port_manager.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == "" and hint in err and err.count("\n") == 1


def test_help_begins_with_examples_and_fits_a_screen():
    for words in (("--help",), ("-h",), ("free", "--help")):
        done = command_line(*words)
        assert (done.returncode, done.stdout, done.stderr) == (0, seam.HELP, "")
    lines = seam.HELP.splitlines()
    assert len(lines) < 24 and max(map(len, lines)) < 80
    assert lines[2].strip().startswith("port_manager.py ")
    bare = command_line()
    assert (bare.returncode, bare.stdout, bare.stderr) == (2, "", seam.HELP)
    assert command_line("--version").stdout == f"port_manager {port_manager.__version__}\n"


def test_check_tells_the_story(ports, hold, tmp_path):
    port = ports()
    held = hold(("127.0.0.1", port), children=2, cwd=str(tmp_path))
    client = hold(("127.0.0.1", ports()), connect=("127.0.0.1", port))
    done = command_line("check", str(port))
    assert done.returncode == 1 and done.stderr == ""
    story = dict(line.strip().split(None, 1) for line in done.stdout.splitlines()[1:])
    assert done.stdout.startswith(f"⚠️  Port {port} is already in use\n")
    assert story["process"].startswith(f"{held.pid} (") and "and its 2 children" in story["process"]
    assert story["folder"] == str(tmp_path)
    assert story["listens"] == f"on 127.0.0.1:{port}"
    assert re.search(rf"\d s ago \(.*\), by \S+ {os.getpid()}", story["started"])
    assert re.match(rf"1: 127\.0\.0\.1:\d+ \(\S+ {client.pid}\)", story["clients"])
    assert story["free"].startswith(f"would stop process {held.pid} (") and story["free"].endswith(": SIGTERM, and SIGKILL after 5 s")
    assert held.alive() == [held.pid, *held.children]


def test_check_tells_what_keeps_free_from_it(port, hold):
    held = hold(("127.0.0.1", port), name="ssh")
    assert eventually(lambda: port_manager.find_listeners(port)[0].name == "ssh")
    assert f"would refuse: process {held.pid} (" in command_line("check", str(port)).stdout
    production = command_line("check", str(port), env={**os.environ, "ENVIRONMENT": "production"})
    assert "would refuse: ENVIRONMENT is 'production'" in production.stdout


def test_check_of_a_host_that_is_none():
    done = command_line("check", "8000", "--host", "192.0.2.1")
    assert done.returncode == 1
    assert done.stdout == "❌ 192.0.2.1 is not an address of this machine\n"


def test_a_policy_that_is_none_is_told_once(ports):
    """The way to go about it is the same for every port of a call."""
    done = command_line("check", str(ports()), str(ports()), env={**os.environ, "PORT_MANAGER_POLICY": "kil"})
    assert done.stderr.count("PORT_MANAGER_POLICY is 'kil', which is none of") == 1


def test_check_minds_the_host(port, hold):
    hold(("127.0.0.2", port))
    assert command_line("check", str(port), "--host", "127.0.0.1").returncode == 0
    assert command_line("check", str(port), "--host=127.0.0.2").returncode == 1
    assert command_line("check", str(port)).returncode == 1


def test_ranges_and_options_in_any_order(ports):
    low = next(p for p in iter(ports, None) if can_bind(p + 1) and can_bind(p + 2))
    done = command_line("--host", "127.0.0.1", "check", f"{low}-{low + 2}", "--quiet")
    assert (done.returncode, done.stdout) == (0, "")
    done = command_line("check", f"{low + 1}", "--host", "127.0.0.1", f"{low}-{low + 2}")
    assert [line.split()[2] for line in done.stdout.splitlines()] == [str(low + 1), str(low), str(low + 2)]


def test_the_status_is_the_worst(ports, hold):
    free, held = ports(), ports()
    hold(("127.0.0.1", held))
    assert command_line("check", str(free), str(held)).returncode == 1


def test_free(port, hold):
    held = hold(("127.0.0.1", port))
    done = command_line("free", str(port))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[-1] == f"✅ Port {port} is now available"
    assert held.alive() == []


def test_free_dry_run_stops_nothing(ports, hold):
    free, held, kept = ports(), ports(), ports()
    holder, stays = hold(("127.0.0.1", held)), hold(("127.0.0.1", kept), name="ssh")
    assert eventually(lambda: port_manager.find_listeners(kept)[0].name == "ssh")
    done = command_line("free", str(free), str(held), "--dry-run", "--grace", "0.5", "--signal", "int")
    assert done.returncode == 0 and done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == f"Port {free}: available"
    assert second.startswith(f"Port {held}: would stop process {holder.pid} (")
    assert second.endswith(": SIGINT, and SIGKILL after 0.5 s")
    refused = command_line("free", str(kept), "--dry-run")
    assert refused.returncode == 1
    assert refused.stdout.startswith(f"Port {kept}: would refuse: process {stays.pid} (")
    assert [holder.alive(), stays.alive()] == [[holder.pid], [stays.pid]]


@pytest.mark.parametrize("policy", ["refuse", "own", "ask"])
def test_free_dry_run_minds_the_policy(port, hold, policy, tmp_path):
    held = hold(("127.0.0.1", port), cwd=str(tmp_path))
    done = command_line("free", str(port), "--dry-run", f"--policy={policy}")
    expected = {"refuse": "the policy 'refuse'", "own": "not started from this project", "ask": "would ask, then stop"}
    assert expected[policy] in done.stdout and done.returncode == (0 if policy == "ask" else 1)
    assert held.alive() == [held.pid]


def test_free_with_another_polite_signal(port, start):
    code = (
        "import os, signal, socket, sys; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen();"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "signal.signal(signal.SIGUSR1, lambda *_: (os.write(1, b'told\\n'), os._exit(0)));"
        "print('ready', flush=True); signal.pause()"
    )
    holder = start(sys.executable, "-c", code, str(port))
    holder.stdout.readline()
    done = command_line("free", str(port), "--signal", "SIGUSR1")
    assert done.returncode == 0 and holder.stdout.readline() == "told\n"


def keys(entry):
    return sorted(entry)


HOLDER_KEYS = ["addresses", "command", "cwd", "name", "parent", "pid", "started", "user"]
PORT_KEYS = ["available", "holders", "host", "port", "reason", "stopped", "would_stop"]


def test_json_of_check_and_free(ports, hold, tmp_path):
    free, held = ports(), ports()
    holder = hold(("127.0.0.1", held), cwd=str(tmp_path))
    checked = command_line("check", str(free), str(held), "--json")
    first, second = json.loads(checked.stdout)["ports"]
    assert checked.returncode == 1 and checked.stderr == ""
    assert keys(first) == keys(second) == PORT_KEYS and keys(second["holders"][0]) == HOLDER_KEYS
    assert first == {
        "port": free, "host": "0.0.0.0", "available": True, "holders": [], "stopped": [], "would_stop": [], "reason": None,
    }  # fmt: skip
    assert (second["available"], second["would_stop"], second["stopped"]) == (False, [holder.pid], [])
    assert second["reason"] == f"port {held} is already in use"
    assert second["holders"][0]["pid"] == holder.pid and second["holders"][0]["cwd"] == str(tmp_path)
    assert second["holders"][0]["addresses"] == [f"127.0.0.1:{held}"]
    dry = json.loads(command_line("free", str(held), "--json", "--dry-run").stdout)["ports"][0]
    assert (dry["would_stop"], dry["reason"], dry["stopped"]) == ([holder.pid], f"port {held} is already in use", [])
    freed = command_line("free", str(held), "--json")
    entry = json.loads(freed.stdout)["ports"][0]
    assert (entry["available"], entry["stopped"], entry["reason"]) == (True, [holder.pid], None)
    assert "Successfully killed" in freed.stderr


def test_json_of_a_refusal(port, hold):
    held = hold(("127.0.0.1", port), name="sshd")
    assert eventually(lambda: port_manager.find_listeners(port)[0].name == "sshd")
    for words in (("free",), ("free", "--dry-run"), ("check",)):
        entry = json.loads(command_line(*words, str(port), "--json").stdout)["ports"][0]
        assert (entry["available"], entry["stopped"], entry["would_stop"]) == (False, [], [])
        assert "SSH login" in entry["reason"]
    assert held.alive() == [held.pid]


def test_json_of_list(port, hold):
    held = hold(("127.0.0.1", port))
    done = command_line("list", "--json")
    mine = [entry for entry in json.loads(done.stdout)["ports"] if entry["port"] == port]
    assert done.returncode == 0 and len(mine) == 1 and keys(mine[0]) == PORT_KEYS
    assert [holder["pid"] for holder in mine[0]["holders"]] == [held.pid]


def test_list(ports, hold, tmp_path):
    low, high = sorted((ports(), ports()))
    project = tmp_path / "api"
    (project / ".git").mkdir(parents=True)
    (project / "src").mkdir()
    second = hold(("127.0.0.1", high), ("::1", high), cwd=str(project / "src"))
    first = hold(("0.0.0.0", low), children=3)
    done = command_line("list")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].split() == ["PORT", "ADDRESS", "PID", "USER", "UP", "FOLDER", "COMMAND"]
    row = {line.split()[0]: line for line in lines}
    assert f" {first.pid} +3 " in row[str(low)] and f" {second.pid} " in row[str(high)]
    assert "127.0.0.1, ::1" in row[str(high)] and f" {project} " in row[str(high)]
    numbers = [int(line.split()[0]) for line in lines[1:]]
    assert numbers == sorted(numbers)
    at = lines[0].index("PID")
    assert all(line[at - 2 : at] == "  " for line in lines if line.isascii())


@pytest.mark.parametrize("columns", [200, 100, 80, 60])
def test_list_fits_the_terminal(port, hold, columns, tmp_path):
    folder = tmp_path / ("项目" * 12)
    folder.mkdir()
    hold(("127.0.0.1", port), cwd=str(folder))
    done = command_line("list", env={**os.environ, "COLUMNS": str(columns)})
    widths = [width_of(line) for line in done.stdout.splitlines()]
    assert max(widths) <= columns
    assert "…" in done.stdout
    free = command_line("list").stdout
    assert str(folder) in free and "…" not in free  # a pipe has no width


def width_of(text):
    """How many columns of a terminal a text takes."""
    wide = (unicodedata.east_asian_width(c) in "WF" for c in text)
    return sum(map(int, wide)) + sum(not unicodedata.combining(c) for c in text)


def test_wide_characters_align(ports, hold, tmp_path):
    """A wide character takes two columns, a combining one none."""
    wanted = [ports() for _ in range(3)]
    for port, name in zip(wanted, ("项目", "api", "cafe\u0301")):
        (tmp_path / name).mkdir()
        hold(("127.0.0.1", port), cwd=str(tmp_path / name))
    lines = command_line("list").stdout.splitlines()
    rows = [line for line in lines[1:] if int(line.split()[0]) in wanted]
    at = {width_of(line[: line.index(sys.executable)]) for line in rows}
    assert len(rows) == 3 and at == {lines[0].index("COMMAND")}


buffered_or_not = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@buffered_or_not
@pytest.mark.parametrize("words", ["list", "check {port}", "pick {port}", "check {port} --json", "--help", "--version"])
def test_data_that_cannot_be_written_is_told_once(port, words, unbuffered):
    with open("/dev/full", "w") as full:
        done = command_line(*words.format(port=port).split(), stdout=full, PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stderr) == (1, "❌ Standard output cannot be written: No space left on device\n")
        silent = command_line(*words.format(port=port).split(), stdout=full, stderr=full, PYTHONUNBUFFERED=unbuffered)
        assert silent.returncode == 1


@buffered_or_not
def test_a_reader_that_has_gone_away_is_no_trouble(ports, hold, unbuffered):
    free, held = ports(), ports()
    hold(("127.0.0.1", held))
    for words, status in ((["list"], 0), (["check", free], 0), (["check", held], 1), (["--help"], 0)):
        read, write = os.pipe()
        os.close(read)
        done = command_line(*map(str, words), stdout=write, PYTHONUNBUFFERED=unbuffered)
        os.close(write)
        assert (done.returncode, done.stderr) == (status, "")


@buffered_or_not
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_descriptors_that_are_closed_or_full_leave_the_status(ports, hold, closed, unbuffered):
    free, held = ports(), ports()
    hold(("127.0.0.1", held), name="sshd")
    assert eventually(lambda: port_manager.find_listeners(held)[0].name == "sshd")
    for words, status in ((["check", free], 0), (["free", free], 0), (["free", held], 1), (["free", "http"], 2)):
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, PORT_MANAGER, *map(str, words)]
        environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(shell, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == status and "Exception" not in done.stdout + done.stderr, done


def test_colour_only_on_a_terminal(port, hold):
    pty = pytest.importorskip("pty")
    for environ, coloured in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "xterm", "NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)):
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(sys.executable, [sys.executable, PORT_MANAGER, "check", str(port)], {**os.environ, **environ})
        shown = os.read(terminal, 4096)
        os.waitpid(pid, 0)
        os.close(terminal)
        assert (b"\033[32m" in shown) is coloured
    assert "\033" not in command_line("check", str(port)).stdout


def test_quiet_and_verbose(ports, hold, monkeypatch):
    port, other = ports(), ports()
    for quiet in (("check", str(port), "--quiet"), ("free", str(port), "--quiet"), ("list", "--quiet")):
        done = command_line(*quiet)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    hold(("127.0.0.1", port))
    assert command_line("check", str(port), "--quiet").returncode == 1
    assert command_line("free", str(port), "--dry-run", "--quiet").stdout == ""
    done = command_line("free", str(port), "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "is available" in command_line("free", str(other), "--verbose").stderr


# wait and pick


def test_wait_until_free(port, hold):
    held = hold(("127.0.0.1", port), exit_after=0.6)
    done = command_line("wait", str(port), "--timeout", "50")
    assert done.returncode == 0 and done.stdout == "" and done.stderr == f"✅ Port {port} is free\n"
    assert held.alive() == []


def test_wait_until_listening(port, hold, start):
    waiter = start(sys.executable, PORT_MANAGER, "wait", str(port), "--host", "127.0.0.1", "--until", "listening", "--timeout", "60")
    time.sleep(0.3)
    assert waiter.poll() is None
    hold(("127.0.0.1", port))
    assert waiter.wait(PATIENCE) == 0


@pytest.mark.parametrize("until", ["free", "listening"])
def test_wait_ends_after_its_time(port, hold, until):
    if until == "free":
        hold(("127.0.0.1", port))
    done = command_line("wait", str(port), "--until", until, "--timeout", "0.3")
    assert done.returncode == 1 and "still after 0.3 s" in done.stderr and done.stderr.count("\n") == 1


def test_wait_sleeps_instead_of_running_in_circles(port, hold):
    hold(("127.0.0.1", port))
    for until in ("free", "listening"):
        before = os.times()
        command_line("wait", str(port), "--until", until, "--timeout", "1.5")
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        assert used < 0.9


def test_wait_shows_a_line_on_a_terminal(port, hold):
    pty = pytest.importorskip("pty")
    hold(("127.0.0.1", port))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, PORT_MANAGER, "wait", str(port), "--timeout", "3"])
    shown = shown_until_closed(terminal)
    os.waitpid(pid, 0)
    assert re.search(rf"Waiting for port {port} to be free: [12] s", shown)


def test_pick(ports, hold):
    port = ports()
    assert command_line("pick", str(port)).stdout == f"{port}\n"
    hold(("127.0.0.1", port))
    picked = command_line("pick", str(port))
    assert picked.returncode == 0 and port < int(picked.stdout) <= port + 50
    assert int(command_line("pick").stdout) >= 8000
    elsewhere = command_line("pick", "8000", "--host", "192.0.2.1")
    assert elsewhere.returncode == 1 and "not an address of this machine" in elsewhere.stderr


def test_pick_where_none_is_left(monkeypatch, said):
    seam.stand_in(monkeypatch, "bind", lambda *_: OSError(errno.EADDRINUSE, "in use"))
    assert port_manager.main(["pick", "65535"]) == 1
    assert said() == "❌ Port 65535 is already in use"


# Machines that lack something


@pytest.mark.parametrize("lacking", ["PATH", "HOME", "everything"])
def test_an_environment_without(port, hold, lacking):
    held = hold(("127.0.0.1", port))
    environ = {} if lacking == "everything" else {k: v for k, v in os.environ.items() if k != lacking}
    environ["PYTHONIOENCODING"] = "utf-8"
    for words in (("check",), ("list",), ("free",)):
        done = command_line(*words, *([] if words == ("list",) else [str(port)]), env=environ)
        assert "Traceback" not in done.stderr
    assert held.alive() == []


def test_without_a_terminal_and_in_a_folder_with_a_chinese_name(port, hold, tmp_path):
    folder = tmp_path / "我的项目"
    folder.mkdir()
    held = hold(("127.0.0.1", port), cwd=str(folder))
    done = command_line("check", str(port), cwd=folder, start_new_session=True, stdin=subprocess.DEVNULL)
    assert str(folder) in done.stdout
    plain = command_line("check", str(port), cwd=folder, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert "\\u6211" in plain.stdout and plain.returncode == 1
    done = command_line("free", str(port), "--policy", "own", cwd=folder)
    assert done.returncode == 0 and held.alive() == []


def test_a_folder_that_has_been_removed(port, hold, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    held = hold(("127.0.0.1", port), cwd=str(folder))
    shutil.rmtree(folder)
    assert "(deleted)" in command_line("check", str(port)).stdout
    # -S: coverage, which .ci/run starts in every process, cannot be imported where there is no folder
    free = f"'{sys.executable}' -S '{PORT_MANAGER}' free {port} --policy own"
    shell = f"mkdir {folder}; cd {folder}; rmdir {folder}; {free}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert held.alive() == [held.pid]


def test_main_in_process(port, capsys, said):
    assert port_manager.main([str(port)]) == 0
    assert port_manager.main(["free", str(port)]) == 0
    assert port_manager.main(["pick", "http"]) == 2
    out, err = capsys.readouterr()
    assert out == f"✅ Port {port} is available\n" and "'http' is not a port" in err
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", port))
        mine.listen()
        assert port_manager.main(["free", str(port)]) == 1
        assert port_manager.main(["check", str(port)]) == 1
