"""Real CPythons for Windows, under Wine: the public calls, the command line and run_backend.py, against real processes.

.ci/wine makes the Windows; TESTS_PORT_MANAGER_WINE names its folder. Sockets, processes, handles, signals, encodings
and exit statuses are Wine's own. Two things are not as in Windows: a stand-in for netstat.exe knows the owners of
listeners, and no process tells its command line, so that the name of its program stands for it.
"""

import contextlib
import os
import shutil
import subprocess
import threading

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
WINE = os.environ.get("PORT_MANAGER_WINE", "")
VERSIONS = ("3.8", "3.13")  # those of .ci/wine
ENVIRON = {
    **os.environ,
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
STALLS = []  # scenarios that did not end in time, and were played again
PATIENCE = 2  # how many may be, in a whole run

pytestmark = pytest.mark.skipif(not WINE, reason="TESTS_PORT_MANAGER_WINE names no folder that .ci/wine has made")


@pytest.fixture(scope="module", autouse=True)
def server(request):
    """The one process that is Windows for all others; it would end and begin with each of them."""
    open(os.path.join(WINE, "prefix/drive_c/netstat.rows"), "wb").close()
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
        KEPT.pop().communicate()


def begin():
    """Start Windows, its services and its desktop, which are slow, and keep the pipes of whoever starts them."""
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


def played(version, scenario, environ):
    """The lines that a scenario prints, up to whether it passed; none where Wine stalled before it began."""
    said = []
    words = [*words_of(version), scenario, f"Z:{os.path.dirname(HERE)}"]
    with ended_by(TIMEOUT), subprocess.Popen(words, env={**ENVIRON, **environ}, **PIPES) as driver:
        for line in driver.stdout:
            said.append(line.decode(errors="replace").rstrip())
            if said[-1] in ("passed", "failed"):  # a holder may keep the pipe open
                break
    return said


SCENARIOS = ("free", "take_over", "backend", "hung_tool")  # of windows_side.py: both versions play them
RUNS = [(scenario, version, {}, "") for scenario in SCENARIOS for version in VERSIONS]
RUNS += [("interrupted", VERSIONS[-1], {}, "")]
RUNS += [("chinese", VERSIONS[-1], {"LC_ALL": "zh_CN.UTF-8"}, "cp936")]
RUNS += [("chinese", VERSIONS[-1], {"LC_ALL": "de_DE.UTF-8"}, "cp1252")]
NAMES = [f"{scenario}-{encoding or version}" for scenario, version, _, encoding in RUNS]


@pytest.mark.parametrize(("scenario", "version", "environ", "encoding"), RUNS, ids=NAMES)
def test_in_windows(scenario, version, environ, encoding):
    said = played(version, scenario, environ)
    # Where the timer ended it, a scenario that had begun has shown its stacks before that.
    while (not said or any(line.startswith("Timeout (") for line in said)) and len(STALLS) < PATIENCE:
        STALLS.append(f"{scenario} {version}")
        begin()
        said = played(version, scenario, environ)
    assert said[-1:] == ["passed"], "\n".join(said)[-3000:]
    if encoding:
        assert f"encoding: {encoding}" in said
