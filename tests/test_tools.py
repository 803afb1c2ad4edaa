"""Asking through tools: lsof, ss, netstat of net-tools and of busybox, for real where they are installed."""

import os
import shutil
from unittest.mock import Mock

import pytest

from port_manager import ensure_port_available, find_listeners

from . import seam
from .apart import apart
from .conftest import LINUX, birth

pytestmark = pytest.mark.skipif(not LINUX, reason="the tools of Linux")
SBIN = os.pathsep.join(["/usr/sbin", "/sbin", "/usr/local/sbin"])


@pytest.fixture(params=["ss", "lsof", "netstat"])
def tool(request, monkeypatch):
    """Neither sock_diag nor /proc/net is asked, but this tool."""
    if not shutil.which(request.param, path=f"{os.environ['PATH']}{os.pathsep}{SBIN}"):
        pytest.skip(f"{request.param} is not installed")
    seam.only(monkeypatch, request.param)
    return request.param


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A maker of tools that come first on PATH; nobody waits for whoever they leave unseen."""
    seam.one_look(monkeypatch)

    def plant(name, script):
        tool = tmp_path / name
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return plant


def test_a_tool_finds_what_the_kernel_tells(port, hold, tool):
    held, addresses = hold(("127.0.0.1", port), ("::1", port), children=2), {f"127.0.0.1:{port}", f"[::1]:{port}"}
    bystanders = [hold(("127.0.0.2", port)), hold(("127.0.0.1", port), udp=True)]
    bystanders.append(hold(("127.0.0.1", 0), connect=("127.0.0.1", port)))
    holders = find_listeners(port, "localhost")
    assert {holder.pid for holder in holders} == {held.pid, *held.children}
    for all_told in (holders, find_listeners()):
        assert [{*map(str, each.addresses)} for each in all_told if each.pid == held.pid] == [addresses]
    assert ensure_port_available(port, "localhost") is True
    assert (held.alive(), find_listeners(port, "localhost")) == ([], [])
    assert all(bystander.alive() for bystander in bystanders)


def test_a_dual_stack_wildcard_goes_and_one_of_ipv6_alone_lives(port, hold, tool):
    """ss tells one from the other; without it nobody is stopped in doubt."""
    held, alone = hold(("0.0.0.0", port)), hold(("::", port), v6only=True)
    assert ensure_port_available(port) is True and held.alive() == [] and alone.alive() == [alone.pid]
    alone.end()
    held = hold(("::", port), v6only=False)
    assert ensure_port_available(port) is (tool == "ss") and held.alive() == [held.pid] * (tool != "ss")
    assert ensure_port_available(port, "::") is True and held.alive() == []


ROW = "printf '%s\\t%s\\t%s\\n' ${p#/proc/} /bin/busybox $(readlink $f)"
PLANTED = {  # is it an answer; the tool, and what it is
    "fail": (False, "ss", "echo State Recv-Q; exit 3"),
    # busybox lsof ignores every option and lists every open file: xargs kill then kills the container
    "alpine": (False, "lsof", f"for p in /proc/1 /proc/{{held}}; do for f in $p/fd/*; do {ROW}; done; done"),
    "pid1": (False, "lsof", "printf '%s\\n' p1 f3 tIPv4 PTCP 'n*:{port}' TST=LISTEN"),
    "lsof": (True, "lsof", "printf '%s\\n' p{bystander} f3 tIPv4 d99 PTCP n127.0.0.1:{port} TST=LISTEN"),
    # some builds of its netstat have no -p; none tells an inode, so that the holder is not confirmed, and not stopped
    "busybox": (True, "netstat", 'exec busybox netstat "$@"'),
    "busybox -p": (True, "netstat", r"[ $1 = -ltn ] && printf 'Proto\ntcp 0 0 *:{port} *:* LISTEN {bystander}/x\n'"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_tool_costs_no_bystander_its_life(ports, hold, planted, monkeypatch, said, what):
    port, (told, name, script) = ports(), PLANTED[what]
    if "exec busybox" in script and not shutil.which("busybox"):
        pytest.skip("busybox is not installed")
    held, bystander = hold(("127.0.0.1", port)), hold(("127.0.0.1", ports()))
    for word, number in {"{port}": port, "{bystander}": bystander.pid, "{held}": held.pid}.items():
        script = script.replace(word, str(number))
    planted(name, script)
    seam.only(monkeypatch, name)
    assert (seam.ask(name, port) is not None) == told
    for environment in ("", "production"):
        monkeypatch.setenv("ENVIRONMENT", environment)
        assert ensure_port_available(port) is False
    if told:
        assert [holder.pid for holder in find_listeners(port)] == [None]
    else:
        assert f"❌ Nothing on this system could tell who holds port {port}: it is treated as held" in said()
        assert "Process using port: unknown (nothing on this system could tell" in said()
    assert bystander.alive() == [bystander.pid] and held.alive() == [held.pid]


def test_tools_are_found_in_sbin_and_not_in_relative_folders(monkeypatch):
    asked = []
    monkeypatch.setattr(os.path, "isfile", asked.append)
    for path in ("", ".", "relative", "/nowhere", "/bin:/usr/bin"):
        monkeypatch.setenv("PATH", path)
        if path == os.defpath:
            monkeypatch.delenv("PATH")
        asked.clear()
        assert seam.run("ip") is None
        folders = [folder for folder in f"{path}{os.pathsep}{SBIN}".split(os.pathsep) if folder[:1] == "/"]
        assert asked == [f"{folder}/ip{kind}" for folder in folders for kind in ("", ".exe")]


@apart
def test_the_runner(planted, tmp_path, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    (tmp_path / "typed").write_text("typed")
    os.dup2(os.open(tmp_path / "typed", os.O_RDONLY), 0)
    planted("speaks", 'printf "%s|$LC_ALL|$1" "$(cat)"; echo complaint >&2; exit 4')
    assert seam.run("speaks", "a b") == (4, "|C|a b", "complaint\n")  # what stands on standard input is not for it
    planted("bytes", "printf 'caf\\351 \\344\\270\\255'")
    assert seam.run("bytes")[1] == "caf\\xe9 中"
    for real in ("utf-8", "cp850"):  # Windows has an encoding with the name oem, which its older tools speak
        output = Mock(decode=lambda name, real=real: "ABHÖREN".encode(real).decode(name.replace("oem", "cp850")))
        assert seam.decoded(output) == "ABHÖREN"
    planted("broken", "")
    (tmp_path / "broken").write_bytes(b"\x7fELF and nothing more")
    assert seam.run("broken") is None and "broken cannot tell: [Errno 8]" in caplog.text
    planted("hangs", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    seam.limits(monkeypatch, tool_timeout=1.0)
    assert seam.run("hangs") is None
    assert birth(int((tmp_path / "pid").read_text())) is None
