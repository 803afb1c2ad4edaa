"""The command line: the words it takes, what it shows and where, and with which status it ends."""

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from unittest.mock import Mock

import pytest

import port_manager
from port_manager import Endpoint, Holder, Manager, PortResult, main

from . import seam
from .conftest import LINUX, PATIENCE, PORT_MANAGER, can_bind, command_line, eventually, holding, on_a_terminal, project

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")
NO_PATH = {"PYTHONIOENCODING": "utf-8"}  # an environment that has no PATH and no HOME


def facts(screen):
    """What check tells about one holder, by label."""
    return {line[2:12].strip(): line[14:] for line in screen.splitlines() if line[:2] == "  " and line[2] != " "}


def entries(*words):
    return json.loads(command_line(*words, "--json").stdout)["ports"]


def columns(text):
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


TYPED = {  # the address that is held, and the exit status
    ("127.0.0.1", 1): [
        "{0}", "check {0}", "{0} check", ":{0}", "localhost:{0}", "http://localhost:{0}/", "{0},{0}", "{0},",
        "http://127.0.0.1:{0}/docs?x=1", "check --port={0}", "-p {0}", "{0}-{0}", "--host localhost {0}",
        "--host=127.0.0.1 check {0}", "stop {0} -n --policy=refuse", "--policy refuse -n kill {0}",
    ],
    ("127.0.0.2", 1): ["127.0.0.2:{0}", "{0}", "{0} --host=127.0.0.2"],
    ("127.0.0.2", 0): ["localhost:{0}", "[::1]:{0}", "{0} --host 127.0.0.1"],
}  # fmt: skip


@pytest.mark.parametrize(("at", "status", "words"), [(*key, words) for key, every in TYPED.items() for words in every])
def test_what_people_type_for_a_port(port, hold, capsys, at, status, words):
    held = hold((at, port))
    assert main(words.format(port).split()) == status
    out, err = capsys.readouterr()
    assert out.startswith(f"⚠️  Port {port} is already in use\n" if status else f"✅ Port {port} is available\n")
    assert (f" {held.pid} (" in out) is (out.count("already in use") == 1) is bool(status)
    assert err == "" and held.alive() == [held.pid]


NO_PORTS = ["0", "-1", "65536", "http", "", "80.5", "²", "3010-3000", "3000-", "-", "0-5", "+80", "١", "9" * 30,
            "8000/udp", "::1", "80,,81", ",", "localhost:", "http://localhost/", "8000x"]  # fmt: skip


@pytest.mark.parametrize(("words", "hint"), [
    *((f"{verb}{wrong}", "' is neither a port nor a verb") for verb in ("", "check ", "free ") for wrong in NO_PORTS),
    ("check http", "'http' is neither a port nor a verb or option; a port is a number from 1 to 65535, a range is 3"),
    ("free 80 -x", "'-x' is neither a port nor a verb or option; no verb has this option"),
    ("fre 80", "'fre' is neither a port nor a verb or option; did you mean free?"), ("free 80 --for", "mean --force?"),
    ("free 80 --jsn=yes", "mean --json?"), ("kill -9 80", "; a signal is named with -s 9"),
    ("free", ": type port_manager.py free PORT..., such as 8000"), ("free 80 --grace=", "a value, SECONDS"),
    ("free 80 --grace 1e3", "--grace: '1e3' is not a number of seconds"),
    ("free 80 --grace 1000000", "'1000000' is not a number"), ("free 80 --grace 1.2.3", "'1.2.3' is not a number"),
    ("free 80 -s 77", "--signal: '77' is none of TERM"), ("free 80 --policy kil", "none of kill, own, ask, refuse"),
    ("free 80 --host --force", "it takes a value, HOST"), ("free 80 --force=yes", "--force: it takes no value"),
    ("80 --policy kill", "--policy is an option of free, not of check"), ("wait 80-81", ".py wait PORT, such as 8000"),
    ("wait 80 --json", "--json is an option of list, check, free, not of wait"), ("pick 80,81", "pick [PORT or range]"),
])  # fmt: skip
def test_a_wrong_call_ends_with_status_2_and_a_hint(words, hint, capsys):
    assert main(words.split(" ")) == 2
    out, err = capsys.readouterr()
    assert hint in err and err.startswith("port_manager: ") and err.count("\n") == 1
    assert main([*words.split(" "), "--json"]) == 2
    both, err = capsys.readouterr()
    assert json.loads(both) == {"error": err[len("port_manager: ") : -1]} and (out == "" or "--json" in words)


def test_help(capsys):
    def told(*words):
        assert main([*words]) == (0 if words else 2)
        return capsys.readouterr()

    general = told("--help").out
    assert told() == ("", general) and told("-h") == (general, "")
    screens = {verb: told(verb, "--help").out for verb in ("list", "check", "free", "wait", "pick")}
    for verb, screen in screens.items():
        assert screen.startswith(f"port_manager.py {verb} ") and f"\n  port_manager.py {verb}" in general
        assert "\nExit status: 0 " in screen and ";\n2 a wrong call, 130 interrupted\n\n  " in screen
    for screen in (general, *screens.values()):
        assert len(screen.splitlines()) < 24 and max(map(len, screen.splitlines())) < 80
    own = {verb: set(re.findall(r"--[a-z-]+", screen)) for verb, screen in screens.items()}
    assert {"--dry-run", "--grace", "--signal", "--policy", "--force"} <= own["free"] - own["check"]
    assert {"--until", "--timeout"} <= own["wait"] - own["free"] and "--quiet" in own["pick"]
    assert told("help", "stop").out == screens["free"] and ", ".join(port_manager.DEVELOPMENT_NAMES[1:]) in general
    for words in (("--version",), ("free", "-V")):
        assert told(*words) == (f"port_manager {port_manager.__version__}\n", "")


@pytest.mark.parametrize(("git", "head", "branch"), [
    (".git", "ref: refs/heads/a/b", "a/b"), (".git", "0123456789ab", "0123456"), ("of/pay", "ref: refs/heads/x", "x"),
], ids=["branch", "detached", "worktree"])  # fmt: skip
def test_check_tells_the_family_and_its_branch(port, hold, tmp_path, git, head, branch):
    (tmp_path / git).mkdir(parents=True)
    (tmp_path / git / "HEAD").write_text(f"{head}\n")
    if git != ".git":
        (tmp_path / ".git").write_text(f"gitdir: {git}\n")
    (tmp_path / "src").mkdir()
    held = hold(port, children=2, cwd=tmp_path / "src")
    told = facts(command_line("check", str(port)).stdout)
    assert told["children"] == ", ".join(map(str, sorted(held.children)))
    assert told["folder"] == f"{tmp_path / 'src'} ({branch})"
    assert re.fullmatch(r"\d+ (s|min) ago by \S+: (\S+ → )+\S+", told["started"])
    assert re.fullmatch(rf"stop {held.pid}\b.*: SIGTERM, then SIGKILL after 5 s", told["free would"])
    assert held.alive() == [held.pid, *held.children]


@pytest.mark.parametrize(("name", "variable", "why"), [
    ("ssh", "ENVIRONMENT=dev", "leave {} alone: it is a tunnel"),
    ("node", "ENVIRONMENT=production", "refuse: ENVIRONMENT is 'production': outside development nothing"),
    ("node", "PORT_MANAGER_POLICY=refuse", "leave {} alone: the policy 'refuse' stops nobody"),
])  # fmt: skip
def test_check_and_a_dry_run_tell_what_keeps_free_from_it(port, hold, monkeypatch, capsys, name, variable, why):
    held = hold(port, name=name)
    monkeypatch.setenv(*variable.split("="))
    for words in ("check", "free -n"):
        assert main([*words.split(), str(port)]) == 1
        assert facts(capsys.readouterr().out)["free would"].startswith(why.format(held.pid))
    for words in ("check", "free -n", "free"):
        assert main([*words.split(), str(port), "--json"]) == 1
        (told,) = json.loads(capsys.readouterr().out)["ports"]
        assert (told["available"], told["stopped"], told["would_stop"]) == (False, [], []), words
        assert why.rpartition(": ")[2] in told["reason"]
    seam.stand_in(monkeypatch, "terminal", lambda: True)
    if name == "node":  # what is said to --force and to a person who can be asked
        assert main(["free", "-n", "--force", "--policy", "ask", str(port)]) == 0
        assert facts(capsys.readouterr().out)["free would"].startswith(f"ask, then stop {held.pid}: SIGTERM")
    assert held.alive() == [held.pid]


def test_check_tells_of_a_suspended_and_of_a_replaced_program(ports, hold, start, tmp_path):
    port, other = ports(), ports()
    (tmp_path / "gone").mkdir()
    held = hold(port, cwd=tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    os.kill(held.pid, signal.SIGSTOP)
    python = shutil.copy(os.path.realpath(sys.executable), tmp_path / "server")
    there = {**os.environ, "PYTHONHOME": sys.base_prefix}
    assert start(python, "-S", *holding(other)[3:], env=there).stdout.readline()
    os.unlink(python)
    assert eventually(lambda: facts(command_line(str(port)).stdout).get("state") == "suspended (Ctrl+Z)")
    assert "(deleted)" in facts(command_line(str(port), env=NO_PATH).stdout)["folder"]
    assert facts(command_line(str(other)).stdout)["state"] == "its program was deleted or replaced"
    assert [entry["holders"][0]["state"] for entry in entries("check", f"{port},{other}")] == ["suspended", "deleted"]


def test_check_tells_who_else_has_the_number(ports, hold):
    udp, beside = ports(), ports()
    hold(("0.0.0.0", udp), udp=True)
    held = hold(("::1", beside), v6only=True)
    sentence = "a UDP program has the same number, and is not in the way"
    for port, told in ((udp, sentence), (beside, f"[::1]:{beside} is held by process {held.pid} (")):
        done = command_line("check", str(port))
        assert done.returncode == 0 and facts(done.stdout)["beside it"].startswith(told)
        assert facts(command_line("check", f"127.0.0.1:{port}").stdout) == {}  # a server there would meet nobody


def test_several_ports_and_ranges(ports, hold, capsys):
    low = next(port for port in iter(ports, None) if can_bind(port + 1) and can_bind(port + 2))
    alone = ports()
    held = hold(low + 1, low + 2)
    done = command_line("check", f"{low}-{low + 2}", str(alone), PORT_MANAGER_POLICY="kil")
    first, *screens, last = done.stdout.split("\n\n")
    assert done.returncode == 1 and first == f"{low}-{low + 2}: 2 held, 1 available" and len(screens) == 2
    for port, screen in enumerate(screens, low + 1):
        assert screen.startswith(f"⚠️  Port {port} is already in use\n  process     {held.pid} (")
    assert last == f"✅ Port {alone} is available\n" and done.stderr.count("PORT_MANAGER_POLICY is 'kil'") == 1
    assert command_line("free", "-n", str(alone), "--policy", "kill", PORT_MANAGER_POLICY="kil").stderr == ""
    held.end()
    assert main([f"{low}-{low + 2}", str(alone)]) == 0
    assert capsys.readouterr().out == f"{low}-{low + 2}: 3 available\n✅ Port {alone} is available\n"
    assert main(["80-82", "--host", "192.0.2.1"]) == main(["192.0.2.1:8000"]) == 1
    elsewhere = "❌ 192.0.2.1 is not an address of this machine\n"
    assert capsys.readouterr() == (f"80-82: 3 cannot be bound\n{elsewhere}{elsewhere}", "")


HIDDEN = Holder(None, None, "root", "", "", "", None, (Endpoint("0.0.0.0", 80),))
PLAIN = Holder(2**22 + 1, 1, "", "node", "/bin/node /srv/app.js", "/nowhere/at/all", None, (Endpoint("::", 80),))
WEB = Manager("the docker container web", "docker stop web")


@pytest.fixture
def told_of(monkeypatch, capsys):
    """What a call prints where port 80 is held by processes that do not exist."""

    def call(words, *holders, reason="because", managers=None):
        result = PortResult(80, "0.0.0.0", False, [*holders], [], [], reason, None, managers or {})
        seam.stand_in(monkeypatch, "bind", lambda *_: OSError(errno.EADDRINUSE, "in use"))
        seam.stand_in(monkeypatch, "preview", lambda *_: result)
        monkeypatch.setattr(port_manager, "find_listeners", lambda: [*holders])
        assert main(words.split()) == words.startswith("check")
        return capsys.readouterr()

    return call


def test_what_the_system_does_not_tell(told_of):
    lines = ["  process     one that you may not see", "  started     by root", "  listens on  0.0.0.0:80"]
    for reason, more in (("because", [f"  managed by  {WEB.name}"]), (f"{WEB.name} runs it", [])):
        shown = told_of("check 80", HIDDEN, reason=reason, managers={None: WEB}).out.splitlines()
        assert shown == ["⚠️  Port 80 is already in use", *lines, *more, f"  free would  refuse: {reason}"]
    nothing = {**dict.fromkeys(["project", "branch", "state"]), "ancestry": []}
    for holder, manager in ((HIDDEN, WEB), (PLAIN, None)):
        (told,) = json.loads(told_of("check 80 --json", holder, managers={None: WEB}).out)["ports"]
        known = {"addresses": [str(holder.addresses[0])], "manager": manager and WEB._asdict()}
        assert told["holders"] == [{**holder._asdict(), **nothing, **known}]


def test_a_screen_fits_its_terminal(told_of, monkeypatch):
    """To the column: what has room is not cut."""
    whole, short = PLAIN.cwd, "…/at/all"
    cuts = (35, whole, "node app.js"), (34, whole, "node…p.js"), (29, whole, "no…js"), (28, short, "n…s")
    for width, folder, command in cuts:
        monkeypatch.setenv("COLUMNS", str(width))
        told = facts(told_of("check 80", PLAIN).out)
        assert (told["folder"], told["process"]) == (folder, f"{PLAIN.pid} ({command})")
    folder, command = "/home/客户项目/用户中心/后端服务/backend", f"python -m {'x' * 50} src.main:app --port 8000"
    long = PLAIN._replace(cwd=folder, command=command)
    family = [long, *(long._replace(pid=PLAIN.pid + 1 + child, parent=PLAIN.pid) for child in range(9))]
    for width in (80, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        screen, (heads, line) = told_of("check 80", *family).out, told_of("list 80", *family).out.splitlines()
        told = facts(screen)
        assert max(map(columns, [*screen.splitlines()[:-1], heads, line])) <= width
        assert told["process"].endswith("--port 8000)") and told["folder"].endswith("/后端服务/backend")
        assert "…" in told["process"] and re.search(r" \+9 .*backend  .* 8000$", line)
    monkeypatch.delenv("COLUMNS")  # a pipe has no width
    assert "…" not in told_of("check 80", long).out
    monkeypatch.setattr(shutil, "get_terminal_size", lambda _: os.terminal_size((0, 0)))  # a terminal that tells none
    assert columns(told_of("list 80", long).out.splitlines()[1]) == 79


def test_the_columns_of_a_list(told_of, monkeypatch):
    def shown(width, *holders, words="list"):
        monkeypatch.setenv("COLUMNS", str(width))
        out, err = told_of(words, *holders)
        return out.splitlines(), err

    legend = "+N: N child processes hold the port, too; -: a process that you may not see\n"
    family = PLAIN._replace(user="alice", started=time.time() - 7300), PLAIN._replace(pid=9, parent=PLAIN.pid)
    wide = ["PORT  ADDRESS  PID         UP   USER   FOLDER           COMMAND",
            "80    ::       4194305 +1  2 h  alice  /nowhere/at/all  node app.js"]  # fmt: skip
    assert shown(100, *family) == (wide, legend)
    assert shown(99, *family) == ([line[:27] + line[39:] for line in wide], legend)
    assert shown(59, PLAIN) == (["PORT  ADDRESS  PID      FOLDER    COMMAND",
                                 "80    ::       4194305  …/at/all  node app.js"], "")  # fmt: skip
    assert shown(200, PLAIN._replace(command=f"node {'x' * 90}"))[0][1].endswith(f"  node {'x' * 90}")
    assert shown(52, PLAIN._replace(cwd=""))[0][1:] == ["80    ::       4194305  -       node app.js"]
    assert shown(39, PLAIN._replace(cwd=""))[0][1:] == ["80    ::       4194305  -       nod….js"]
    assert shown(38, PLAIN._replace(cwd=""))[0][1:] == ["80    ::       419…5  -       nod….js"]
    for cwd, folder in ((f"/{'a' * 27}/b", f"/{'a' * 27}/b"), (f"/{'a' * 28}/b", "…/b")):
        assert shown(200, PLAIN._replace(cwd=cwd))[0][1].split()[5] == folder
    assert shown(100, HIDDEN)[0][1] == "80    0.0.0.0  -    -   root  -       (user root)"
    assert shown(100, HIDDEN._replace(user=""))[0][1] == "80    0.0.0.0  -    -   -     -       (user unknown)"
    assert [len(lines) for lines in shown(80, HIDDEN, HIDDEN._replace(user="alice"))] == [3, len(legend)]  # no family
    both = PLAIN._replace(addresses=(*PLAIN.addresses, Endpoint("127.0.0.1", 81)))
    assert [line.split()[:2] for line in shown(80, both)[0][1:]] == [["80", "::"], ["81", "127.0.0.1"]]
    assert len(shown(80, both, words="list 80")[0]) == 2
    assert shown(80, PLAIN, words="list 81") == ([], "Nobody listens on these ports\n")
    assert shown(80) == ([], "Nobody listens on any TCP port\n")


@pytest.mark.parametrize(("words", "number"), [
    ("", 15), ("--grace 30.5", 15), ("--signal usr1", 10), ("-s SIGINT", 2), ("-s2", 2), ("--signal=HUP", 1),
    ("-s 1", 1), ("-s 3", 3), ("-s 9", 9), ("-s 15", 15),
])  # fmt: skip
def test_free_sends_what_a_dry_run_says(ports, hold, capsys, words, number):
    free, held, name = ports(), ports(), signal.Signals(number).name
    then = "" if number == 9 else f", then SIGKILL after {'30.5' if 'grace' in words else '5'} s"
    holder = hold(held)
    assert main(["free", str(free), str(held), "-n", *words.split()]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(f"✅ Port {free} is available\n\n") and holder.alive() == [holder.pid]
    assert facts(out)["free would"] == f"stop {holder.pid}: {name}{then}"
    if number == signal.SIGQUIT:  # the system would write a core
        return
    done = command_line("stop", f"localhost:{held}", *words.split(), env=NO_PATH)
    assert (done.returncode, done.stdout, holder.alive(), holder.process.wait(PATIENCE)) == (0, "", [], -number)
    assert done.stderr.startswith(f"⚠️  Port {held} is already in use\n")
    assert done.stderr.splitlines()[-1] == f"✅ Port {held} is now available"


def test_quiet_says_only_why_not(ports, hold):
    """And the other ports are freed."""
    port, kept = ports(), ports()
    goes, stays = hold(port), hold(kept, name="sshd")
    for words, status in (("check -q", 1), ("free -q -n", 0), ("list -q", 0)):
        done = command_line(*words.split(), str(port))
        assert (done.returncode, done.stdout, done.stderr) == (status, "", ""), words
    for words, begins in (("free -q -n", f"❌ Port {kept}: process "), ("free --quiet", f"❌ Process {stays.pid} ")):
        assert goes.alive() == [goes.pid]
        done = command_line(*words.split(), str(kept), str(port))
        assert (done.returncode, done.stdout) == (1, "") and re.fullmatch(f"{begins}.* it is a tunnel.*\n", done.stderr)
    assert stays.alive() == [stays.pid] and goes.alive() == []


def test_verbose_says_which_tool_could_not_tell(port, monkeypatch, caplog):
    caplog.set_level(0, "port_manager")
    seam.stand_in(monkeypatch, "find a tool", lambda tool: "/no/such/tool")
    seam.only(monkeypatch, "ss")
    for words, told in (("list", False), ("list --verbose", True), ("list -q", False), ("list -v", True)):
        caplog.clear()
        main([*words.split(), str(port)])
        assert ("ss cannot tell: " in caplog.text) is told, words


def test_json_of_check_and_free(ports, hold, tmp_path):
    free, held, root = ports(), ports(), tmp_path / "a\nb"  # what is shown of it is not its name
    (root / "src").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    holder = hold(held, cwd=root / "src")
    first, second = entries("check", str(free), str(held))
    nobody = {"holders": [], "stopped": [], "would_stop": []}
    assert first == {"port": free, "host": "0.0.0.0", "available": True, "reason": None, **nobody}
    assert (second["available"], second["would_stop"], second["stopped"]) == (False, [holder.pid], [])
    told, shown = second["holders"][0], f"{tmp_path}/a?b"
    assert (told["pid"], told["cwd"], told["addresses"]) == (holder.pid, f"{shown}/src", [f"127.0.0.1:{held}"])
    assert told["project"] == shown and told["command"].startswith("/")
    above = [process["pid"] for process in told["ancestry"]]
    assert above[-1] == os.getpid() and 1 not in above and all(process["name"] for process in told["ancestry"])
    freed = entries("free", str(held))[0]
    assert (freed["available"], freed["stopped"], freed["reason"]) == (True, [holder.pid], None)


def test_an_ancestry_begins_at_the_shell_of_a_terminal(port, hold, tmp_path, monkeypatch, capsys):
    (tmp_path / "pyproject.toml").touch()
    seam.stand_in(monkeypatch, "folder", lambda *_: None)  # from this process, and not from those that it starts
    script = f"timeout 60 {shlex.join(holding(port))}; true"
    for terminal in (True, False):
        (shell,) = hold(starts=["sh", "-c", script], terminal=terminal, cwd=tmp_path).children
        assert eventually(lambda: not can_bind(port))
        (told,) = entries("check", str(port))[0]["holders"]
        *above, first, second = told["ancestry"]
        assert (first, second["name"], above == []) == ({"pid": shell, "name": "sh"}, "timeout", terminal)
        assert main(["check", str(port), "--json"]) == 1 and '"project": null' in capsys.readouterr().out
        (told,) = entries("free", str(port))[0]["holders"]
        assert told["project"] == str(tmp_path), "it is told also of one that has been stopped"


def test_list(ports, hold, tmp_path):
    low, high = sorted((ports(), ports()))
    src = project(tmp_path / "项目") / "src"
    src.mkdir()
    first, second = hold(("0.0.0.0", low), children=3), hold(high, ("::1", high), cwd=src)
    done = command_line("list", "--verbose", env=NO_PATH)
    heads, *lines = done.stdout.splitlines()
    numbers = [int(line.split()[0]) for line in lines]
    ours = one, other = [line for line in lines if line.split()[0] in (str(low), str(high))]
    assert done.returncode == 0 and f" {first.pid} +3 " in one and numbers == sorted(numbers)
    assert f" {second.pid} " in other and "127.0.0.1, ::1" in other and "/项目 " in other
    assert len({columns(line[: line.rindex("  ")]) for line in (heads, *ours)}) == 1
    for words in (("list",), ("list", f":{low}", str(high))):
        told = {entry["port"]: entry for entry in entries(*words)}
        assert told[high]["host"] is None and (len(words) == 1 or [*told] == [low, high])
        assert {holder["pid"] for holder in told[low]["holders"]} == {first.pid, *first.children}


def test_wait(ports, hold):
    port, other = ports(), ports()
    held, _ = hold(port), hold(("::1", other))
    for words, status in ((f"{other}", 0), (f"localhost:{other}", 0), (f"{other} --host=127.0.0.1", 1)):
        assert main(["wait", *words.split(), "--until", "listening", "--timeout", "0"]) == status, words
    threading.Timer(0.4, held.process.terminate).start()
    done = command_line("wait", str(port), "--timeout", "60")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"✅ Port {port} is free\n")
    assert eventually(lambda: held.alive() == []), "a port is free a moment before its process is gone"


@pytest.mark.parametrize("until", ["free", "listening"])
def test_wait_ends_after_its_time_and_sleeps_until_then(port, hold, until):
    if until == "free":
        hold(port)
    spent = lambda: sum(os.times()[2:4])  # by children
    before = spent()
    done = command_line("wait", str(port), "--until", until, "--timeout", "1")
    assert spent() - before < 0.7
    assert done.returncode == 1 and "gave up after 1 s" in done.stderr and done.stderr.count("\n") == 1
    assert "Waiting" not in done.stderr, "a line that passes is for a terminal"


def test_pick(capsys, monkeypatch, said):
    """A step at random keeps two starts apart; it goes no further than the range, and to no port that is held."""
    errors = {}
    seam.stand_in(monkeypatch, "bind", lambda _, address: errors.get(address))

    def picked(words, step=3, held=()):
        errors.update((address, OSError(errno.EADDRINUSE, "in use")) for address in held)
        monkeypatch.setattr(os, "urandom", lambda _: bytes([step]))
        assert main(f"pick {words}".split()) == 0
        return int(capsys.readouterr().out)

    assert (picked(""), picked("8000-8002"), picked("65535")) == (8000, 8000, 65535)
    assert picked("8000-8001", held=[("0.0.0.0", 8000)]) == picked("8000-8003") == 8001
    assert [picked(words) for words in (":8000", "8000-8004")] == [8004, 8004]
    assert [picked("8000", step) for step in (0, 1, 2, 4)] == [8001, 8002, 8003, 8001]
    assert picked("127.0.0.2:8000", held=[("127.0.0.2", 8000), ("127.0.0.2", 8004), ("127.0.0.1", 8001)]) == 8001
    # A browser that asks for localhost may meet these.
    assert picked("8000", 2, held=[("::1", 8001), ("::1", 8004)]) == picked("8000", 0) == 8002
    assert picked("65532", held=[("0.0.0.0", 65532)]) == 65533
    errors["192.0.2.1", 8000] = OSError(errno.EADDRNOTAVAIL, "no")
    assert main(["pick", "8000-8001"]) == main(["pick", "192.0.2.1:8000"]) == 1
    assert said() == "❌ No port from 8000 to 8001 is free\n❌ 192.0.2.1 is not an address of this machine"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.skipif(not (os.path.exists("/dev/full") and shutil.which("bash")), reason="needs /dev/full and bash")
def test_output_that_cannot_be_written(ports, hold, buffered):
    def done(script):
        shell = ["bash", "-c", script.replace("PM", f"'{sys.executable}' -m port_manager")]
        environ = {**os.environ, "PYTHONPATH": os.path.dirname(PORT_MANAGER), "PYTHONUNBUFFERED": buffered}
        done = subprocess.run(shell, capture_output=True, text=True, check=False, env=environ)
        return done.returncode, done.stdout, done.stderr

    free, held = ports(), ports()
    hold(held)
    checks = (f"check {free}", f"check {held} --json", f"check {free} {held}")
    for words in ("list", *checks, f"pick {free}", "--help", f"free -n {held}"):
        told = "❌ Standard output cannot be written: No space left on device\n"
        assert done(f"PM {words} >/dev/full") == (1, "", told), words
    status, _, told = done("PM fre --json >/dev/full")
    assert status == 2 and told.count("\n") == 1
    for script, status in (  # a reader has gone away, or there is nobody to hear
        (f"PM check {held} | true", 1), (f"PM check {held} --json | true", 1), (f"PM {free} | true", 0),
        ("PM list -h | true", 0), (f"PM {held} >&-", 1), (f"PM {free} >&- 2>&-", 0), (f"PM free {free} 2>/dev/full", 0),
        ("PM fre 2>/dev/full", 2), ("PM fre 2>&-", 2),
    ):  # fmt: skip
        assert done(f"{script}; exit ${{PIPESTATUS[0]}}") == (status, "", ""), script


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}, {"NO_COLOR": ""}, {"TERM": "dumb"}], ids=str)
def test_colour_only_for_the_verdict_and_only_on_a_terminal(ports, hold, environ):
    free, held = ports(), ports()
    hold(held)
    _, shown, status = on_a_terminal(PORT_MANAGER, "check", str(free), str(held), **environ)
    coloured = environ in ({}, {"NO_COLOR": ""})
    verdicts = [f"\033[32m✅ Port {free} is available\033[0m", f"\n\033[33m⚠️  Port {held} is already in use\033[0m"]
    assert status == 1 and [verdict in shown.replace("\r", "") for verdict in verdicts] == [coloured] * 2
    assert shown.count("\033") == (4 if coloured else 0) and "\033" not in command_line("check", str(free)).stdout


def test_control_c(port, hold, monkeypatch, capsys, said):
    held = hold(port)
    wait, free = ["wait", str(port)], ["free", str(port), "--policy", "ask"]
    for words, typed_after in ((wait, f"Waiting for port {port} to be free: 1 s"), (free, " [y/N] ")):
        _, after, status = on_a_terminal(PORT_MANAGER, *words, answer=b"\x03", question=typed_after)
        *_, before, last = after.splitlines()
        assert (status, before.strip("^C "), last) == (130, "", "Interrupted") and held.alive() == [held.pid]
        assert words == free or re.search(r"\r {60}\r", after), "the line that passes is wiped"
    for call in ("wait_until_free", "ensure_port_available"):
        monkeypatch.setattr(port_manager, call, Mock(side_effect=KeyboardInterrupt))
    assert main(wait) == 130 and capsys.readouterr() == ("", "Interrupted\n")  # no terminal, no line to end
    monkeypatch.setattr(sys, "argv", ["uvicorn", "main:app"])
    with pytest.raises(SystemExit, match="^130$"):
        port_manager.guard()
    assert said() == "Interrupted"
