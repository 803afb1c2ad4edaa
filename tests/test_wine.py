"""Real CPythons for Windows, under Wine: the public calls, the command line and run_backend.py, against real processes.

.ci/wine makes the Windows; TESTS_PORT_MANAGER_WINE names its folder. Sockets, processes, handles, signals, encodings and exit
statuses are Wine's own. Two things are not as in Windows: a stand-in for netstat.exe knows the owners of listeners, and
no process tells its command line, so that the name of its program stands for it.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
WINE = os.environ.get("PORT_MANAGER_WINE", "")
FOUND_HERE = [name[len("python") :] for name in os.listdir(WINE) if name.startswith("python")] if WINE else [""]
VERSIONS = sorted(FOUND_HERE, key=lambda version: [int(part) for part in version.split(".") if part])
ENVIRON = {
    **{name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "PORT", "ENVIRONMENT"))},
    "WINEPREFIX": os.path.join(WINE, "prefix"),
    "WINEDEBUG": "-all",
    "WINEDLLOVERRIDES": "mscoree,mshtml=;netstat.exe=n",
    "LC_ALL": "C.UTF-8",  # names of files are UTF-8 to Wine; the code page of Windows is 1252, and 437 for its tools
    "LOCPATH": os.path.join(WINE, "locales"),
}
# With another input, or without a pipe, a program dies at start.
PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
TIMEOUT = 120  # seconds for a scenario; it shows its stacks ten seconds before
KEPT = []  # the process that keeps the desktop
FOUND = {}  # what a scenario has found is asked by several tests
STALLS = []  # scenarios that did not end in time, and were played again
PATIENCE = 2  # how many may be, in a whole run

in_each = pytest.mark.parametrize("version", VERSIONS)  # the newest runs them all
pytestmark = pytest.mark.skipif(not WINE, reason="TESTS_PORT_MANAGER_WINE names no folder that .ci/wine has made")


@pytest.fixture(scope="module", autouse=True)
def server(request):
    """The one process that is Windows for all others; it would end and begin with each of them."""
    rows = os.path.join(WINE, "prefix/drive_c/netstat.rows")
    open(rows, "wb").close()
    chinese = os.path.join(WINE, "prefix/drive_c/项目 一/python")
    if not os.path.exists(chinese):
        shutil.copytree(os.path.join(WINE, f"python{VERSIONS[-1]}"), chinese)
        os.rename(os.path.join(chinese, "python.exe"), os.path.join(chinese, "项目.exe"))
    begin()
    yield
    end()
    if STALLS:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\nplayed again, since Wine stalled: {', '.join(STALLS)}")


def kill():
    subprocess.run(["wineserver", "-k"], env=ENVIRON, check=False, timeout=60)


def end():
    kill()
    while KEPT:
        with KEPT.pop():
            pass


def begin():
    """Start Windows, its services and its desktop, which are slow to start and keep the pipes of whoever starts them."""
    end()
    nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for command in ("wineserver -w", "wineserver -p", "wine cmd /c exit"):
        subprocess.run(command.split(), env=ENVIRON, check=False, timeout=120, **nothing)
    KEPT.append(subprocess.Popen([*words_of(VERSIONS[-1]), "desktop"], env=ENVIRON, **PIPES))
    with ended_by(TIMEOUT):
        KEPT[0].stdout.readline()


@contextlib.contextmanager
def ended_by(seconds):
    """Windows, and with it whatever runs there, is ended if the block takes longer."""
    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def words_of(version):
    return ["wine", os.path.join(WINE, f"python{version}", "python.exe"), f"Z:{HERE}/windows_side.py"]


@pytest.fixture()
def version():
    return VERSIONS[-1]


def driven(words, environ):
    """The lines that a scenario prints, up to its result."""
    said = []
    with ended_by(TIMEOUT), subprocess.Popen(words, env={**ENVIRON, **environ}, **PIPES) as driver:
        for line in driver.stdout:
            said.append(line.decode(errors="replace"))
            if line.startswith(b"{"):  # a holder may keep the pipe open
                break
    return said


@pytest.fixture()
def windows(version):
    """What a scenario of windows_side.py finds."""

    def play(scenario, **environ):
        key = (version, scenario, *environ.items())
        if key in FOUND:
            return FOUND[key]
        words = [*words_of(version), scenario, f"Z:{os.path.dirname(HERE)}"]
        said = driven(words, environ)
        while has_stalled(said) and len(STALLS) < PATIENCE:
            STALLS.append(f"{scenario} {version}")
            begin()
            said = driven(words, environ)
        assert said and said[-1].startswith("{"), "".join(said)[-3000:]
        FOUND[key] = json.loads(said[-1])
        assert "error" not in FOUND[key], FOUND[key]["error"]
        return FOUND[key]

    return play


def has_stalled(said):
    """Whether the timer ended Windows; where the scenario had begun, it has shown its stacks before that."""
    return not said or said[0].startswith("Timeout (")


@in_each
def test_a_free_port(windows):
    found = windows("free")
    assert found["answer"][0] is True and "is available" in found["answer"][2]
    assert found["bound"] and found["shared"] == 10013, "SO_REUSEADDR of another steals a port that is not exclusive"
    assert found["next"] >= 1 and found["found"] and found["nobody"] == []


@in_each
def test_a_plain_server_is_taken_over_within_a_second(windows):
    found = windows("take_over")
    answer, seconds, said = found["answer"]
    assert answer is True and found["stopped"] and found["free"]
    assert seconds < max(1.0, 5 * found["beside"]), "0.4 s on an idle machine"
    assert found["bystander"], "a server on another port, and the client of this one, live on"
    assert "is already in use" in said and str(found["pid"]) in said and "is now available" in said
    assert "SIG" not in said, "Windows has no signals"


@in_each
def test_what_is_told_of_a_holder(windows):
    found = windows("take_over")
    (holder,) = found["holder"]
    assert (holder["pid"], holder["parent"], holder["name"]) == (found["pid"], found["here"], "python.exe")
    assert (holder["command"], holder["user"], holder["cwd"]) == ("python.exe", found["me"], "")
    before, after = found["between"]
    assert before - 1 < holder["started"] < after + 1
    assert [address[0] for address in holder["addresses"]] == ["127.0.0.1"]


def test_ipv6(windows):
    assert windows("ipv6")["answer"][0] is True
    assert windows("ipv6")["stopped"] and windows("ipv6")["bystander"]


@in_each
@pytest.mark.parametrize("scenario", ["family", "dead_owner"])
def test_who_inherited_the_listener_goes_too(windows, scenario):
    found = windows(scenario)
    owner, heir = found["pids"]
    assert found["seen"] == [heir if scenario == "dead_owner" else owner]
    assert found["answer"][0] is True and found["left"] == [False, False]


def test_a_holder_that_is_not_told_is_not_nobody(windows):
    found = windows("unnamed")
    assert found["seen"] == [None] and found["answer"][0] is False
    assert "sudo" not in found["answer"][2], "Windows has none"


def test_an_ancestor_is_left_alone(windows):
    found = windows("ancestor")
    assert found["itself"][0] is False and "is left alone: it is this very process" in found["itself"][2]
    assert found["status"] == 1 and re.search(r"rocess \d+ .*is left alone: it is an ancestor of this", found["said"])


def test_a_terminal_below_a_holder_lives(windows):
    """Such as that of an editor's server; it is told by a shell that was started without a command."""
    found = windows("terminal")
    assert found["answer"][0] is False and f"would also end a terminal (cmd.exe {found['shell']})" in found["answer"][2]
    assert found["lived"]


def test_a_restart_is_told(windows):
    found = windows("restarted")
    assert found["answer"][0] is False and found["again"] == ["python.exe"]
    assert "taken again" in found["answer"][2] and f"supervisor {found['boss']}" in found["answer"][2]


def test_production_and_refuse_stop_nobody(windows):
    found = windows("production")
    assert found["answer"][0] is False and "PRODUCTION" in found["answer"][2]
    assert found["status"][0] == 1 and str(found["pid"]) in found["status"][2]
    assert found["policy"][0] is False and "policy 'refuse'" in found["policy"][2]
    assert found["lived"]


def test_the_verbs(windows):
    found = windows("verbs")
    pid, port = str(found["pid"]), str(found["port"])
    status = {name: found[name][0] for name in found if isinstance(found[name], list)}
    assert status == {
        "idle": 0, "held": 1, "json": 1, "dry": 0, "list": 0, "list json": 0, "pick": 0, "listening": 0, "late": 1,
        "wrong": 2, "freed": 0,
    }  # fmt: skip
    assert pid in found["held"][1] and f"127.0.0.1:{port}" in found["held"][1]
    assert pid in found["dry"][1] and "forced" in found["dry"][1] and "SIG" not in found["dry"][1]
    assert any(line.split()[0] == port and pid in line for line in found["list"][1].splitlines() if line.strip())
    assert int(found["pick"][1]) > int(port)
    assert found["lived"] and found["stopped"] and found["waited"] == 0


def test_json(windows):
    found = windows("verbs")
    pid = found["pid"]
    (port,) = json.loads(found["json"][1])["ports"]
    assert (port["port"], port["available"], port["would_stop"], port["stopped"]) == (found["port"], False, [pid], [])
    (holder,) = port["holders"]
    assert holder["pid"] == pid and holder["addresses"] == [f"127.0.0.1:{found['port']}"]
    (port,) = json.loads(found["freed"][1])["ports"]
    assert (port["available"], port["stopped"], port["reason"]) == (True, [pid], None)
    everybody = json.loads(found["list json"][1])["ports"]
    assert pid in [holder["pid"] for each in everybody if each["port"] == found["port"] for holder in each["holders"]]


def test_a_preview_stops_nobody(windows):
    found = windows("preview")
    assert found["idle"] == [True, None, []]
    available, plan, stopped = found["held"]
    assert available is False and stopped == [found["pid"]] and found["lived"]
    assert str(found["pid"]) in plan and "asked to stop (forced at once if it cannot be asked)" in plan


@in_each
def test_the_command_gets_the_port_and_its_status_is_given(windows):
    found = windows("backend")
    status, out, said = found["status"]
    assert status == 7 and f"{found['port']} ['a b', 'c\"d']" in out
    assert found["stopped"] and "is now available" in said
    assert found["missing"][0] == 127 and "no-such-program" in found["missing"][2]


def test_ctrl_c_is_left_to_the_command(windows):
    assert windows("interrupted") == {"said": ["closed"], "status": 9}


@pytest.mark.parametrize(
    ("environ", "encoding"),
    [
        ({"LC_ALL": "zh_CN.UTF-8"}, "cp936"),
        ({"LC_ALL": "de_DE.UTF-8"}, "cp1252"),
        ({"PYTHONIOENCODING": "cp437"}, "cp437"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_chinese_names(windows, environ, encoding):
    found = windows("chinese", **environ)
    assert found["encoding"] == encoding
    assert found["check"][0] == 1 and str(found["pid"]) in found["check"][1]
    assert ("项目.exe" if encoding == "cp936" else r"\u9879\u76ee.exe") in found["check"][1]
    (port,) = json.loads(found["json"][1])["ports"]
    assert port["holders"][0]["name"] == "项目.exe"
    assert found["free"][0] == 0 and found["stopped"] and "is now available" in found["free"][2]
    if encoding == "cp936":
        assert found["run"][0] == 0 and "项目" in found["run"][1]


@in_each
def test_a_tool_that_hangs_is_given_up(windows):
    found = windows("hung_tool")
    assert found["answer"] is None and found["seconds"] < 60, "a child of it has its pipes for 120 s"


def test_ctypes_is_loaded_for_a_holder_alone(windows):
    loaded = windows("light")["loaded"]
    assert "'port_manager'" in loaded and "'ctypes'" not in loaded and "'subprocess'" not in loaded
