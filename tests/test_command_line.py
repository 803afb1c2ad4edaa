"""The command line: the words it takes, what it shows and where, and with which status it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import unicodedata

import pytest

import port_manager

from .conftest import HOLDER, LINUX, PATIENCE, PORT_MANAGER, can_bind, command_line, eventually, shown_until_closed

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")


def facts(screen):
    """What check tells about one holder, by label."""
    return {line[2:12].strip(): line[14:] for line in screen.splitlines() if line[:2] == "  " and line[2] != " "}


def entries(*words):
    return json.loads(command_line(*words, "--json").stdout)["ports"]


def columns(text):
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def named(hold, port, name):
    """A holder whose process has a name, such as that of one which is never stopped."""
    held = hold(("127.0.0.1", port), name=name)
    assert eventually(lambda: port_manager.find_listeners(port)[0].name == name)
    return held


def three_in_a_row(ports):
    return next(p for p in iter(ports, None) if can_bind(p + 1) and can_bind(p + 2))


def in_shell(script, **environ):
    """What a script does in which PM stands for the command line."""
    shell = ["bash", "-c", script.replace("PM", f"'{sys.executable}' -m port_manager")]
    environ = {**os.environ, "PYTHONPATH": os.path.dirname(PORT_MANAGER), **environ}
    return subprocess.run(shell, capture_output=True, text=True, check=False, env=environ)


# The words people type


PORT_WORDS = [
    "{0}", "check {0}", "{0} check", ":{0}", "localhost:{0}", "127.0.0.1:{0}", "http://localhost:{0}/", "{0},{0}",
    "{0},", "http://127.0.0.1:{0}/docs?x=1", "--port {0}", "check --port={0}", "-p {0}", "-p{0}", "{0}-{0}",
    "check {0} -v", "--host localhost {0}", "--host=127.0.0.1 check {0}", "free -n {0} --policy refuse",
    "stop {0} -n --policy=refuse", "kill -n {0} --policy refuse", "--policy refuse -n kill {0}",
]  # fmt: skip


@pytest.mark.parametrize("words", PORT_WORDS)
def test_what_people_type_for_a_port(port, hold, capsys, words):
    held = hold(("127.0.0.1", port))
    assert port_manager.main(words.format(port).split()) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"⚠️  Port {port} is already in use\n") and f" {held.pid} (" in out and err == ""
    assert out.count("already in use") == 1 and held.alive() == [held.pid]


@pytest.mark.parametrize(
    ("words", "status"),
    [("127.0.0.2:{0}", 1), ("localhost:{0}", 0), ("{0}", 1), ("[::1]:{0}", 0), ("{0} --host 127.0.0.1", 0),
     ("{0} --host=127.0.0.2", 1)],
)  # fmt: skip
def test_the_host_counts_also_in_the_word(port, hold, words, status):
    hold(("127.0.0.2", port))
    assert port_manager.main(words.format(port).split()) == status


@pytest.mark.parametrize(
    "wrong",
    ["0", "-1", "65536", "http", "", "80.5", "²", "3010-3000", "3000-", "-", "0-5", "+80", "١", "9" * 30, "8000/udp",
     "::1", "80,,81", ",", "localhost:", "http://localhost/", "8000x"],
)  # fmt: skip
@pytest.mark.parametrize("verb", [(), ("check",), ("free",)], ids=["alone", "check", "free"])
def test_a_wrong_port_is_one_clear_line(verb, wrong, capsys):
    assert port_manager.main([*verb, wrong]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("port_manager: '") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("check http", "'http' is neither a port nor a verb or option; a port is a number from 1 to 65535, a range "),
        ("http", "; a port is a number from 1 to 65535, a range is 3000-3010"),
        ("fre 80", "'fre' is neither a port nor a verb or option; did you mean free?"), ("lst", "did you mean list?"),
        ("zzz", "'zzz' is neither a port nor a verb or option; a port is a number from 1 to 65535"),
        ("free 80 --jsn", "'--jsn' is neither a port nor a verb or option; did you mean --json?"),
        ("free 80 --dryrun", "did you mean --dry-run?"), ("free 80 --for", "did you mean --force?"),
        ("check 80 --grace 5", "--grace is an option of free, not of check"),
        ("free 80 -x", "'-x' is neither a port nor a verb or option; "), ("kill -9 80", "a signal is named with -s 9"),
        ("free 80 --grace soon", "--grace: 'soon' is not a number of seconds"),
        ("free 80 --grace -1", "'-1' is not a number of seconds"),
        ("free 80 --grace nan", "'nan' is not a number of seconds"),
        ("free 80 --signal NONSENSE", "'NONSENSE' is none of TERM, INT"),
        ("free 80 -s 77", "--signal: '77' is none of TERM, INT"),
        ("free 80 --policy kil", "'kil' is none of kill, own, ask, refuse"),
        ("free 80 --host", "--host: it takes a value, HOST"), ("free 80 --host --force", "--host: it takes a value"),
        ("80 --policy kill", "--policy is an option of free, not of check"),
        ("free 80 --force=yes", "--force: it takes no value"),
        ("wait 80 --until gone", "'gone' is none of free, listening"),
        ("free", "type port_manager.py free PORT..., such as 8000"),
        ("wait", "type port_manager.py wait PORT, such as 8000"),
        ("wait 80 81", "type port_manager.py wait PORT,"), ("wait 80-81", "type port_manager.py wait PORT,"),
        ("wait 80 --json", "--json is an option of list, check, free, not of wait"),
        ("pick 80 81", "type port_manager.py pick [PORT or range], such as 8000"),
        ("pick 80,81", "type port_manager.py pick [PORT or range]"), ("list http", "'http' is neither a port nor"),
    ],
)  # fmt: skip
def test_a_wrong_call_ends_with_status_2_and_a_hint(words, hint, capsys):
    assert port_manager.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert hint in err and err.startswith("port_manager: ") and err.count("\n") == 1
    assert port_manager.main([*words.split(), "--json"]) == 2
    both, err = capsys.readouterr()
    assert json.loads(both) == {"error": err[len("port_manager: ") : -1]} and (out == "" or "--json" in words)


def test_help(capsys):
    def told(*words):
        assert port_manager.main([*words]) == (0 if words else 2)
        return capsys.readouterr()

    general = told("--help").out
    assert told() == ("", general) and told("-h") == (general, "")
    screens = {verb: told(verb, "--help").out for verb in ("list", "check", "free", "wait", "pick")}
    for verb, screen in screens.items():
        assert f"port_manager.py {verb} " in screen and f"port_manager.py {verb}" in general
        assert "Exit status: 0 " in screen and "130 interrupted" in screen and "--quiet" in screen
    for screen in (general, *screens.values()):
        assert len(screen.splitlines()) < 24 and max(map(len, screen.splitlines())) < 80
    own = {verb: set(re.findall(r"--[a-z-]+", screen)) for verb, screen in screens.items()}
    assert {"--dry-run", "--grace", "--signal", "--policy", "--force"} <= own["free"] - own["check"]
    assert {"--until", "--timeout"} <= own["wait"] - own["free"]
    assert told("help", "stop").out == screens["free"] and ", ".join(port_manager.DEVELOPMENT_NAMES[1:]) in general
    for words in (("--version",), ("free", "-V")):
        assert told(*words) == (f"port_manager {port_manager.__version__}\n", "")


# check


@pytest.mark.parametrize(
    ("git", "head", "branch"),
    [(".git", "ref: refs/heads/a/b", "a/b"), (".git", "0123456789ab", "0123456"), ("of/pay", "ref: refs/heads/x", "x")],
    ids=["branch", "detached", "worktree"],
)
def test_check_tells_each_fact_once(ports, hold, tmp_path, git, head, branch):
    port = ports()
    (tmp_path / git).mkdir(parents=True)
    (tmp_path / git / "HEAD").write_text(f"{head}\n")
    if git != ".git":
        (tmp_path / ".git").write_text(f"gitdir: {git}\n")
    (tmp_path / "src").mkdir()
    held = hold(("127.0.0.1", port), children=2, cwd=str(tmp_path / "src"))
    done = command_line("check", str(port))
    assert (done.returncode, done.stderr) == (1, "") and done.stdout.startswith(f"⚠️  Port {port} is already in use\n")
    told = facts(done.stdout)
    assert re.match(rf"{held.pid} \(python[\d.]* -S -E holder.py ", told["process"]), told
    assert told["children"] == ", ".join(map(str, sorted(held.children)))
    assert told["folder"] == f"{tmp_path / 'src'} ({branch})"
    assert re.fullmatch(r"\d+ (s|min) ago by \S+: (\S+ → )+\S+", told["started"])
    assert told["listens on"] == f"127.0.0.1:{port}"
    assert re.fullmatch(rf"stop {held.pid}\b.*: SIGTERM, then SIGKILL after 5 s", told["free would"])
    assert list(told)[-1] == "free would" and "state" not in told and held.alive() == [held.pid, *held.children]


@pytest.mark.parametrize(
    ("name", "environ", "expected"),
    [
        ("ssh", {}, r"leave {pid} alone: it is a tunnel"),
        ("node", {"ENVIRONMENT": "production"}, r"refuse: ENVIRONMENT is 'production': outside development "),
        ("node", {"PORT_MANAGER_POLICY": "refuse"}, r".*the policy 'refuse'"),
    ],
    ids=["guard", "production", "policy"],
)
def test_check_tells_what_keeps_free_from_it(port, hold, name, environ, expected):
    held = named(hold, port, name)
    for words in (("check",), ("free", "--dry-run")):
        done = command_line(*words, str(port), **environ)
        assert done.returncode == 1, done
        assert re.match(expected.format(pid=held.pid), facts(done.stdout)["free would"]), done.stdout
    assert held.alive() == [held.pid]


def test_check_tells_of_a_suspended_and_of_a_replaced_program(ports, hold, start, tmp_path):
    port, other = ports(), ports()
    held = hold(("127.0.0.1", port))
    os.kill(held.pid, signal.SIGSTOP)
    python = shutil.copy(os.path.realpath(sys.executable), tmp_path / "server")
    spec = json.dumps({"bind": [["127.0.0.1", other]]})
    assert start(python, "-S", HOLDER, spec, env={**os.environ, "PYTHONHOME": sys.base_prefix}).stdout.readline()
    os.unlink(python)
    assert eventually(lambda: facts(command_line(str(port)).stdout).get("state") == "suspended (Ctrl+Z)")
    assert facts(command_line(str(other)).stdout)["state"] == "its program was deleted or replaced"
    assert [entry["holders"][0]["state"] for entry in entries("check", f"{port},{other}")] == ["suspended", "deleted"]


def test_check_tells_who_else_has_the_number(ports, hold):
    udp, beside = ports(), ports()
    hold(("0.0.0.0", udp), udp=True)
    held = hold(("::1", beside), v6only=True)
    for port, told in (
        (udp, "a UDP program has the same number, and is not in the way"),
        (beside, f"[::1]:{beside} is held by process {held.pid} ("),
    ):
        done = command_line("check", str(port))
        assert done.returncode == 0 and facts(done.stdout)["beside it"].startswith(told)


def test_several_ports_and_ranges(ports, hold):
    low, alone = three_in_a_row(ports), ports()
    held = hold(("127.0.0.1", low + 1))
    done = command_line("check", f"{low}-{low + 2}", str(alone), PORT_MANAGER_POLICY="kil")
    first, second, third = done.stdout.split("\n\n")
    assert done.returncode == 1 and first == f"{low}-{low + 2}: 1 held, 2 available"
    assert second.startswith(f"⚠️  Port {low + 1} is already in use\n  process     {held.pid} (")
    assert third == f"✅ Port {alone} is available\n" and done.stderr.count("PORT_MANAGER_POLICY is 'kil'") == 1
    held.end()
    done = command_line(f"{low}-{low + 2}", str(alone))
    assert (done.returncode, done.stdout) == (0, f"{low}-{low + 2}: 3 available\n✅ Port {alone} is available\n")


@pytest.mark.parametrize("width", [80, 60])
def test_a_screen_fits_its_terminal(port, start, tmp_path, width):
    folder = tmp_path / "客户项目" / "用户中心" / "backend"
    folder.mkdir(parents=True)
    spec = json.dumps({"bind": [["127.0.0.1", port]], "children": 9})
    program = (sys.executable, "-S", HOLDER, spec, "src.main:app", "--reload", "--port", str(port))
    start(*program, cwd=folder).stdout.readline()
    screen = command_line("check", str(port), COLUMNS=str(width)).stdout
    told = facts(screen)
    assert max(map(columns, screen.splitlines()[:-1])) <= width, screen
    assert told["folder"].endswith("/用户中心/backend")
    assert told["process"].endswith(f"--port {port})") and "…" in told["process"]
    lines = command_line("list", str(port), COLUMNS=str(width)).stdout.splitlines()
    assert max(map(columns, lines)) <= width and re.search(r" \+9 .*backend.* \d+$", lines[1])
    assert "…" not in command_line("list", str(port)).stdout.partition("holder.py")[2]  # a pipe has no width


# free


def test_free(port, hold):
    held = hold(("127.0.0.1", port))
    done = command_line("stop", f"localhost:{port}")
    assert (done.returncode, done.stdout) == (0, "") and held.alive() == []
    assert done.stderr.startswith(f"⚠️  Port {port} is already in use\n")
    assert done.stderr.splitlines()[-1] == f"✅ Port {port} is now available"


@pytest.mark.parametrize(
    ("words", "plan"),
    [("", "SIGTERM, then SIGKILL after 5 s"), ("--grace 0.5 --signal int", "SIGINT, then SIGKILL after 0.5 s"),
     ("-s SIGINT", "SIGINT, then"), ("-s2", "SIGINT, then"), ("--signal=HUP", "SIGHUP, then"), ("-s 9", "SIGKILL"),
     ("-s 1", "SIGHUP,")],
)  # fmt: skip
def test_free_dry_run_stops_nobody(ports, hold, words, plan):
    free, held = ports(), ports()
    holder = hold(("127.0.0.1", held))
    done = command_line("free", str(free), str(held), "-n", *words.split())
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith(f"✅ Port {free} is available\n\n")
    assert facts(done.stdout)["free would"].startswith(f"stop {holder.pid}: {plan}") and holder.alive() == [holder.pid]


@pytest.mark.parametrize(
    ("words", "number"), [("--signal SIGUSR1", signal.SIGUSR1), ("-s 9", signal.SIGKILL), ("", signal.SIGTERM)]
)
def test_free_sends_the_signal_that_was_named(port, hold, words, number):
    held = hold(("127.0.0.1", port))
    assert command_line("free", str(port), "--grace", "30", *words.split()).returncode == 0
    assert held.process.wait(PATIENCE) == -number


def test_quiet_says_only_why_not(ports, hold):
    port, kept = ports(), ports()
    hold(("127.0.0.1", port))
    stays = named(hold, kept, "sshd")
    for words, status in (("check -q", 1), ("free -q -n", 0), ("free --quiet", 0), ("list -q", 0)):
        done = command_line(*words.split(), str(port))
        assert (done.returncode, done.stdout, done.stderr) == (status, "", ""), words
    for words in (("free", "-q"), ("free", "-q", "-n")):
        done = command_line(*words, str(kept))
        assert done.returncode == 1 and done.stdout == "" and "a tunnel" in done.stderr
    assert stays.alive() == [stays.pid] and "is available" in command_line("free", str(port), "--verbose").stderr


# JSON and list


HOLDER_KEYS = {*port_manager.Holder._fields, "project", "branch", "ancestry", "manager", "state"}
PORT_KEYS = {"available", "holders", "host", "port", "reason", "stopped", "would_stop"}


def test_json_of_check_and_free(ports, hold, tmp_path):
    free, held, folder = ports(), ports(), tmp_path / "src"
    folder.mkdir()
    (tmp_path / "pyproject.toml").touch()
    holder = hold(("127.0.0.1", held), cwd=str(folder))
    first, second = entries("check", str(free), str(held))
    nobody = {"holders": [], "stopped": [], "would_stop": [], "reason": None}
    assert first == {"port": free, "host": "0.0.0.0", "available": True, **nobody}
    assert (second["available"], second["would_stop"], second["stopped"]) == (False, [holder.pid], [])
    told = second["holders"][0]
    assert set(second) == PORT_KEYS and set(told) == HOLDER_KEYS and told["command"].startswith("/")
    assert (told["pid"], told["cwd"], told["addresses"]) == (holder.pid, str(folder), [f"127.0.0.1:{held}"])
    assert (told["project"], told["manager"], told["state"]) == (str(tmp_path), None, None)
    assert told["ancestry"][-1]["pid"] == os.getpid() and told["ancestry"][-1]["name"]
    dry = entries("free", str(held), "--dry-run")[0]
    assert (dry["would_stop"], dry["stopped"]) == ([holder.pid], [])
    freed = entries("free", str(held))[0]
    assert (freed["available"], freed["stopped"], freed["reason"]) == (True, [holder.pid], None)


def test_json_of_a_refusal_and_of_list(port, hold):
    held = named(hold, port, "sshd")
    for words in (("free",), ("free", "--dry-run"), ("check",)):
        entry = entries(*words, str(port))[0]
        assert (entry["available"], entry["stopped"], entry["would_stop"]) == (False, [], [])
        assert "a tunnel" in entry["reason"]
    for words in (("list",), ("list", str(port))):
        mine = [entry for entry in entries(*words) if entry["port"] == port]
        assert len(mine) == 1 and set(mine[0]) == PORT_KEYS and mine[0]["host"] is None
        assert [holder["pid"] for holder in mine[0]["holders"]] == [held.pid]


def test_list(ports, hold, tmp_path):
    low, high = sorted((ports(), ports()))
    project = tmp_path / "项目"
    (project / "src").mkdir(parents=True)
    (project / ".git").mkdir()
    second = hold(("127.0.0.1", high), ("::1", high), cwd=str(project / "src"))
    first = hold(("0.0.0.0", low), children=3)
    done = command_line("list")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].split() == ["PORT", "ADDRESS", "PID", "UP", "USER", "FOLDER", "COMMAND"]
    row = {line.split()[0]: line for line in lines}
    assert f" {first.pid} +3 " in row[str(low)] and "+N: N child" in done.stderr
    assert f" {second.pid} " in row[str(high)]
    assert "127.0.0.1, ::1" in row[str(high)] and "/项目 " in row[str(high)] and " holder.py " in row[str(low)]
    starts = {columns(line[: line.rindex("  ")]) for line in (lines[0], row[str(low)], row[str(high)])}
    numbers = [int(line.split()[0]) for line in lines[1:]]
    assert len(starts) == 1 and numbers == sorted(numbers)
    both = command_line("list", f":{low}", str(high)).stdout.splitlines()
    assert [line.split()[0] for line in both] == ["PORT", str(low), str(high)]
    nobody = command_line("list", str(ports()))
    assert (nobody.returncode, nobody.stdout, nobody.stderr) == (0, "", "Nobody listens on these ports\n")


# wait and pick


def test_wait_until_free(port, hold):
    held = hold(("127.0.0.1", port), exit_after=0.4)
    done = command_line("wait", str(port), "--timeout", "20")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"✅ Port {port} is free\n")
    assert eventually(lambda: held.alive() == []), "a port is free a moment before its process is gone"


def test_wait_until_listening(port, hold, start):
    places = (f"--host=127.0.0.1 {port}", f"localhost:{port}", f"{port}")
    words = ["--until", "listening", "--timeout", "60"]
    waiters = [start(sys.executable, PORT_MANAGER, "wait", *place.split(), *words) for place in places]
    time.sleep(0.3)
    assert [waiter.poll() for waiter in waiters] == [None] * 3
    hold(("127.0.0.1", port))
    assert [waiter.wait(PATIENCE) for waiter in waiters] == [0] * 3


@pytest.mark.parametrize("until", ["free", "listening"])
def test_wait_ends_after_its_time_and_sleeps_until_then(port, hold, until):
    if until == "free":
        hold(("127.0.0.1", port))
    before = os.times()
    done = command_line("wait", str(port), "--until", until, "--timeout", "1")
    after = os.times()
    assert done.returncode == 1 and "gave up after 1 s" in done.stderr and done.stderr.count("\n") == 1
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.7


def test_pick(ports, hold):
    low = three_in_a_row(ports)
    assert command_line("pick", str(low)).stdout == command_line("pick", f"{low}-{low + 2}").stdout == f"{low}\n"
    hold(("127.0.0.1", low))
    hold(("::1", low + 1), v6only=True)  # a browser that asks for localhost may meet this one
    picked = command_line("pick", f":{low}")
    assert picked.returncode == 0 and low + 1 < int(picked.stdout) <= low + 50
    assert command_line("pick", f"{low}-{low + 2}").stdout == f"{low + 2}\n"
    none = command_line("pick", f"{low}-{low + 1}")
    assert (none.returncode, none.stdout) == (1, "") and f"❌ No port from {low} to {low + 1} is free" in none.stderr
    foreign = command_line("check", "8000", "--host", "192.0.2.1")
    assert (foreign.returncode, foreign.stdout) == (1, "❌ 192.0.2.1 is not an address of this machine\n")
    elsewhere = command_line("pick", "8000", "--host", "192.0.2.1")
    assert elsewhere.returncode == 1 and "not an address of this machine" in elsewhere.stderr
    assert int(command_line("pick").stdout) >= 8000


# Where it is shown


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.skipif(not (os.path.exists("/dev/full") and shutil.which("bash")), reason="needs /dev/full and bash")
def test_output_that_cannot_be_written(ports, hold, buffered):
    free, held = ports(), ports()
    hold(("127.0.0.1", held))
    checks = (f"check {free}", f"check {held} --json", f"check {free} {held}")
    for words in ("list", *checks, f"pick {free}", "--help", f"free -n {held}"):
        done = in_shell(f"PM {words} >/dev/full", PYTHONUNBUFFERED=buffered)
        told = "❌ Standard output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, told), words
    done = in_shell("PM fre --json >/dev/full", PYTHONUNBUFFERED=buffered)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for script, status in (  # a reader has gone away, or there is nobody to hear
        (f"PM check {held} | true", 1), (f"PM check {held} --json | true", 1), (f"PM {free} | true", 0),
        ("PM list -h | true", 0), (f"PM {held} >&-", 1), (f"PM {free} >&- 2>&-", 0), (f"PM free {free} 2>/dev/full", 0),
        ("PM fre 2>/dev/full", 2), ("PM fre 2>&-", 2),
    ):  # fmt: skip
        done = in_shell(f"{script}; exit ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED=buffered)
        assert (done.returncode, done.stdout, done.stderr) == (status, "", ""), script


def on_a_terminal(*words, typed=b"", **environ):
    """(what a terminal shows, the exit status); something is typed after a question."""
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        environ = {**os.environ, "TERM": "xterm", **environ}
        os.execve(sys.executable, [sys.executable, PORT_MANAGER, *words], environ)
    asked = ""
    while typed and "[y/N]" not in asked:
        asked += os.read(terminal, 4096).decode("utf-8", "replace")
    while typed:  # a Ctrl+C that comes just before the program reads is not noticed: a person types it again
        os.write(terminal, typed)
        typed = b"" if typed != b"\x03" or select.select([terminal], [], [], 5)[0] else typed
    shown = asked + shown_until_closed(terminal)
    return shown, os.WEXITSTATUS(os.waitpid(pid, 0)[1])


def waits(pid):
    """Whether it has come to wait for the exit of a holder; without a pidfd nothing shows that."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(FileNotFoundError):
        return "anon_inode:[pidfd]" in [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
    return False


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_only_for_the_verdict_and_only_on_a_terminal(ports, hold, environ, coloured):
    free, held = ports(), ports()
    hold(("127.0.0.1", held))
    shown, status = on_a_terminal("check", str(free), str(held), **{"NO_COLOR": "", **environ})
    assert status == 1 and (f"\033[32m✅ Port {free} is available\033[0m" in shown) is coloured
    assert shown.count("\033") == (4 if coloured else 0) and "\033" not in command_line("check", str(free)).stdout


def test_a_wait_on_a_terminal_and_control_c(port, hold, start):
    held = hold(("127.0.0.1", port))
    shown, status = on_a_terminal("wait", str(port), "--timeout", "1.5")
    assert status == 1 and re.search(rf"Waiting for port {port} to be free: \d+ s", shown)
    shown, status = on_a_terminal("free", str(port), "--policy", "ask", typed=b"\x03")
    assert status == 130 and shown.splitlines()[-1] == "Interrupted" and held.alive() == [held.pid]
    waiter = start(sys.executable, PORT_MANAGER, "wait", str(port))
    eventually(lambda: waits(waiter.pid), PATIENCE if hasattr(os, "pidfd_open") else 1)
    os.kill(waiter.pid, signal.SIGINT)
    assert waiter.wait(20) == 130 and waiter.stdout.read() == "Interrupted\n"


def test_in_a_folder_with_a_chinese_name_and_without_a_terminal(port, hold, tmp_path):
    folder = tmp_path / "我的项目"
    folder.mkdir()
    held = hold(("127.0.0.1", port), cwd=str(folder))
    done = command_line("check", str(port), cwd=folder, start_new_session=True, stdin=subprocess.DEVNULL)
    assert facts(done.stdout)["folder"] == str(folder)
    for encoding, expected in (("ascii", "\\u6211"), ("gbk", "我的项目")):
        plain = command_line("check", str(port), env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
        assert expected in plain.stdout and plain.returncode == 1
    assert command_line("free", str(port), "--policy", "own", cwd=folder).returncode == 0 and held.alive() == []


@pytest.mark.parametrize("lacking", ["PATH", "HOME", "everything"])
def test_an_environment_without(port, hold, tmp_path, lacking):
    environ = {} if lacking == "everything" else {k: v for k, v in os.environ.items() if k != lacking}
    environ["PYTHONIOENCODING"] = "utf-8"
    held = hold(("127.0.0.1", port), cwd=str(tmp_path))
    tmp_path.rmdir()
    assert "(deleted)" in facts(command_line("check", str(port), env=environ).stdout)["folder"]
    for words in (("list",), ("free",)):
        assert command_line(*words, str(port), env=environ).returncode == 0
    assert held.alive() == []
