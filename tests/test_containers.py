"""Real docker: what a container runs is stopped by docker alone; inside a container the tool does its work.

Real systemd, in a container: a unit is named with the command that stops it, and left alone; a scope is nobody's.
"""

from __future__ import annotations  # noqa: I001

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from .conftest import NOBODY, PORT_MANAGER, ROOT_USER, eventually
from .scenes import BUSYBOX, DEBIAN, docker, engines, free, inside, listening, listening_inside, main_process
from .scenes import needs_docker, run_container, serve_inside, wait_for, wait_inside, witness

pytestmark = needs_docker

PAGE = ("/bin/busybox", "httpd", "-f", "-h", "/www", "-p")
SERVER = ("python3", "-m", "http.server", "8000")
IDLE = ("sleep", "infinity")
CHILD = ("sh", "-c", "python3 -m http.server 8000 & sleep 999")
BARE = ("-u", "1000:1000", "--cap-drop=ALL", "--read-only", "-e", "PYTHONDONTWRITEBYTECODE=1")


@pytest.fixture
def container():
    """A maker of containers, which are gone when the test ends."""
    names = []

    def run(image, *options, command=IDLE, engine="docker"):
        names.append((engine, run_container(image, options, command, engine)))
        return names[-1][1]

    yield run
    for engine, name in names:
        subprocess.run([engine, "kill", name], capture_output=True, check=False)  # podman rm would ask it first
        docker("rm", "-fv", name, engine=engine)


def proxies(port):
    """The PIDs of docker's that publish a port, by address."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            if words[0].endswith("docker-proxy") and str(port) in words:
                found[words[words.index("-host-ip") + 1]] = int(pid)
    return found


@engines
@pytest.mark.parametrize(
    ("options", "policy"),
    [("-p {}:80", ""), ("-p 127.0.0.1:{}:80", ""), ("--network host", ""), ("--network host", "kill")],
)
def test_a_port_of_a_container_is_named_and_left_alone(container, port, tmp_path, options, policy, engine):
    inner = "80" if "-p" in options else str(port)
    name = container(BUSYBOX, *options.format(port).split(), command=[*PAGE, inner], engine=engine)
    wait_for(port)
    with witness(main_process(name, engine), **proxies(port)):
        free(port, cwd=tmp_path, PORT_MANAGER_POLICY=policy).names(f"{engine} stop {name}")
    assert listening(port)


def test_a_port_within_a_published_range(container, ports, tmp_path):
    port = next(port for port in iter(ports, None) if not (listening(port + 1) or listening(port + 2)))
    name = container(BUSYBOX, "-p", f"{port}-{port + 2}:80-82", command=[*PAGE, "81"])
    wait_for(port + 1)
    with witness(main_process(name), proxies(port + 1)["0.0.0.0"], proxies(port)["0.0.0.0"]):
        free(port + 1, cwd=tmp_path).names(f"docker stop {name}")


@pytest.mark.parametrize("same", ["port", "address"])
def test_the_right_one_of_two_containers_is_named(container, ports, tmp_path, same):
    first = ("127.0.0.2", ports())
    second = ("127.0.0.3", first[1]) if same == "port" else ("127.0.0.2", ports())
    names = [container(BUSYBOX, "-p", f"{host}:{port}:80", command=[*PAGE, "80"]) for host, port in (first, second)]
    assert all(eventually(lambda at=at: listening(at[1], at[0])) for at in (first, second))
    answer = free(second[1], cwd=tmp_path, host=second[0])
    answer.names(f"docker stop {names[1]}")
    assert names[0] not in answer.words


def test_what_docker_exec_started_on_the_host_s_network(container, port, tmp_path):
    name = container(DEBIAN, "--network", "host")
    serve_inside(name, port)
    free(port, cwd=tmp_path).names(f"docker stop {name}")
    assert listening(port)


@pytest.mark.skipif(not ROOT_USER, reason="takes root, to be a user without docker")
@pytest.mark.parametrize("holder", ["docker-proxy", "another program of root"])
def test_a_hidden_holder_of_root_is_not_guessed_to_be_a_proxy(container, start, port, holder):
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if not python:
        pytest.skip("no python3 that a normal user may start")
    if holder == "docker-proxy":
        container(BUSYBOX, "-p", f"{port}:80", command=[*PAGE, "80"])
    else:
        start(python, "-m", "http.server", str(port))
    wait_for(port)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", python)
        answer = free(port, cwd=folder, before=(*user, shutil.copy(PORT_MANAGER, folder)), HOME=folder)
    answer.refuses("may not see")
    assert "docker" not in answer.words.lower() and "proxy" not in answer.words.lower() and listening(port)


# Inside


@pytest.mark.parametrize("command", [IDLE, CHILD], ids=["by docker exec", "by the main process"])
@pytest.mark.parametrize("options", [(), BARE, ("--cgroupns=private",), ("--cgroupns=host",), ("--init",)])
def test_what_runs_in_the_same_container_is_freed(container, options, command):
    name = container(DEBIAN, *options, command=command)
    if command == IDLE:
        serve_inside(name, 8000)
    wait_inside(name, 8000)
    with witness(main_process(name)):
        free(8000, before=inside(name)).frees()
    assert not listening_inside(name, 8000)


@pytest.mark.parametrize("options", [(), BARE, ("--cgroupns=private",)])
def test_the_main_process_of_the_container(container, options):
    name = container(DEBIAN, *options, command=SERVER)
    wait_inside(name, 8000)
    with witness(main_process(name)):
        free(8000, before=inside(name)).refuses("it is this container's main process: restart the container")


def test_a_toolbox_on_the_host_frees_its_own_and_not_another_container_s(container, ports):
    mine, theirs = ports(), ports()
    toolbox = container(DEBIAN, "--network", "host", "--pid", "host")
    other = container(DEBIAN, "--network", "host", command=[*SERVER[:-1], str(theirs)])
    serve_inside(toolbox, mine)
    wait_for(theirs)
    with witness(main_process(other), main_process(toolbox)):
        free(theirs, before=inside(toolbox)).refuses()
        assert listening(theirs)
        free(mine, before=inside(toolbox)).frees()


@pytest.mark.parametrize("options", [(), ("--cgroupns=private",)])
@pytest.mark.parametrize("sees", ["network", "network pid"])
def test_another_container_of_the_same_pod(container, sees, options):
    web = container(DEBIAN, command=CHILD)
    wait_inside(web, 8000)
    beside = container(DEBIAN, *(f"--{part}=container:{web}" for part in sees.split()), *options)
    free(8000, before=inside(beside)).refuses()
    assert listening_inside(web, 8000)


def test_a_container_that_may_ask_docker_has_ports_of_its_own(container, port):
    """What another container publishes on the host is not what listens here."""
    client, address = "/usr/bin/docker", os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not address.startswith("unix://") or not os.access(client, os.X_OK):
        pytest.skip("no docker client of this Debian")
    published = container(BUSYBOX, "-p", f"{port}:80", command=[*PAGE, "80"])
    name = container(DEBIAN, "-v", f"{client}:{client}:ro", "-v", f"{address[7:]}:/var/run/docker.sock")
    serve_inside(name, port, "-u", "1000")  # whom root there may not see
    assert published in docker("exec", name, client, "ps", "--format", "{{.Names}}")
    answer = free(port, before=inside(name))
    answer.refuses()
    assert published not in answer.words


def test_run_backend_takes_over_inside(container):
    name = container(DEBIAN)

    def holder():
        told = docker("exec", name, "python3", "/tool/port_manager.py", "check", "8000", "--json", check=False)
        return next((one["pid"] for port in json.loads(told or "{}").get("ports", []) for one in port["holders"]), None)

    def take_over():
        docker("exec", "-d", name, "python3", "/tool/run_backend.py", "--port", "8000", "--", *SERVER)

    take_over()
    assert eventually(holder, 20)
    first = holder()
    take_over()
    assert eventually(lambda: holder() not in (None, first), 20)
    assert not eventually(lambda: docker("exec", name, "sh", "-c", f"kill -0 {first} && echo alive", check=False), 0.2)


def test_the_small_page_ends_at_docker_stop(container):
    name = container(DEBIAN, "-w", "/srv", command=["python3", "/tool/run_backend.py", "--port", "8000"])
    wait_inside(name, 8000)
    began = time.monotonic()
    docker("stop", name)
    assert time.monotonic() - began < 3  # after 10 s it would have been killed
    assert docker("inspect", "-f", "{{.State.ExitCode}}", name) in ("0", "143")


# systemd

SYSTEM = "--cap-add SYS_ADMIN --cap-add SYS_PTRACE --security-opt seccomp=unconfined --cgroupns=private"
PLACES = "--tmpfs /run --tmpfs /tmp -e container=docker"

# Ports: 8001 a service, 8002 one that is restarted, 8003 a socket unit whose service is not running, 8004 one whose
# service is, 8005 a template, 8006 and 8007 a user's service and socket, 8008 and 8009 scopes of root and of a user,
# 8010 a transient service, 8011 a socket unit for a service per connection (two addresses), 8012 a child of a service.
SET_UP = r"""
set -e
put() { # FOLDER UNIT SECTION LINE...
    mkdir -p "$1"
    printf '%s\n' "[$3]" "${@:4}" >"$1/$2"
}
system=/etc/systemd/system
serve="ExecStart=/usr/bin/python3 -m http.server"
put $system web.service Service "$serve 8001"
put $system always.service Service "$serve 8002" Restart=always RestartSec=100ms
put $system lazy.socket Socket ListenStream=8003
put $system lazy.service Service ExecStart=/bin/true
put $system busy.socket Socket ListenStream=8004
put $system busy.service Service "ExecStart=/usr/bin/python3 /busy.py"
put $system worker@.service Service "$serve %i"
put $system echo.socket Socket ListenStream=127.0.0.1:8011 ListenStream=127.0.0.2:8011 Accept=yes
put $system echo@.service Service ExecStart=/bin/cat StandardInput=socket
put $system shell.service Service "ExecStart=/bin/sh -c 'python3 -m http.server 8012; true'"
cat >/busy.py <<'END'
import socket
listener = socket.socket(fileno=3)
while True:
    listener.accept()[0].close()
END
useradd --create-home dev
home=/home/dev/.config/systemd/user
put $home mine.service Service "$serve 8006"
put $home us.socket Socket ListenStream=8007
put $home us.service Service ExecStart=/bin/true
chown -R dev /home/dev
loginctl enable-linger dev
systemctl daemon-reload
systemctl start lazy.socket busy.socket echo.socket
systemctl start busy web always worker@8005 shell
systemd-run --quiet --unit=transient python3 -m http.server 8010
systemd-run --quiet --scope python3 -m http.server 8008 >/dev/null 2>&1 &
until [ -S /run/user/$(id -u dev)/bus ]; do sleep 0.1; done
runuser -u dev -- env XDG_RUNTIME_DIR=/run/user/$(id -u dev) sh -c '
    systemctl --user daemon-reload
    systemctl --user start mine us.socket
    systemd-run --quiet --user --scope python3 -m http.server 8009 >/dev/null 2>&1 &'
"""


@pytest.fixture(scope="module")
def machine():
    name = run_container(DEBIAN, [*SYSTEM.split(), *PLACES.split()], ["/sbin/init"])
    try:
        states = ("running", "degraded")
        if not eventually(lambda: docker("exec", name, "systemctl", "is-system-running", check=False) in states, 30):
            pytest.skip("systemd does not run in a container of this machine")
        docker("exec", name, "bash", "-c", SET_UP)
        for port in (8001, 8002, 8004, 8005, 8006, 8008, 8009, 8010, 8012):  # the others' services would be started
            wait_inside(name, port)
        yield name
    finally:
        docker("rm", "-fv", name)


def free_there(machine, port, user, *options):
    """As root, or as a user with what a login sets."""
    who = ("-u", user, "-e", "XDG_RUNTIME_DIR=/run/user/1000", "-w", "/home/dev") if user != "root" else ()
    return free(port, before=inside(machine, *who, *options))


def state(machine, user, *units):
    """What tells whether units were touched."""
    who = ["-u", user, "-e", "XDG_RUNTIME_DIR=/run/user/1000"] if user != "root" else []
    systemctl = [machine, "systemctl", *["--user"] * bool(who), "show"]
    return docker("exec", *who, *systemctl, "-p", "ActiveState,SubState,MainPID,NRestarts,InvocationID", *units)


@pytest.mark.parametrize(
    ("port", "units", "user", "policy"),
    [
        *((8001, "web.service", "root", policy) for policy in ("", "kill", "own", "ask")),
        (8002, "always.service", "root", ""),
        (8003, "lazy.socket lazy.service", "root", ""),
        (8004, "busy.socket busy.service", "root", ""),  # either of them alone leaves the port held
        (8005, "worker@8005.service", "root", ""),
        (8006, "mine.service", "dev", ""),
        (8007, "us.socket us.service", "dev", ""),
        (8010, "transient.service", "root", ""),
        (8011, "echo.socket", "root", ""),
        (8012, "shell.service", "root", ""),
    ],
)
def test_a_unit_is_named_and_left_alone(machine, port, units, user, policy):
    before = state(machine, user, *units.split())
    assert "ActiveState=active" in before
    answer = free_there(machine, port, user, "-e", f"PORT_MANAGER_POLICY={policy}")
    answer.names(f"systemctl {'--user ' if user != 'root' else ''}stop {units}")
    assert state(machine, user, *units.split()) == before


def test_a_user_s_unit_is_not_stopped_by_root(machine):
    before = state(machine, "dev", "mine.service")
    free_there(machine, 8006, "root").refuses("mine.service")
    assert state(machine, "dev", "mine.service") == before


def test_a_user_s_socket_unit_stays_also_where_its_systemd_cannot_be_asked(machine):
    """After su or docker exec no XDG_RUNTIME_DIR tells where the user's systemd is."""
    free(8007, before=inside(machine, "-u", "dev")).refuses()
    assert "active" in state(machine, "dev", "us.socket")


@pytest.mark.parametrize(("port", "user"), [(8008, "root"), (8009, "dev")])
def test_a_scope_is_freed(machine, port, user):
    free_there(machine, port, user).frees()
    assert not listening_inside(machine, port)


def test_a_server_that_was_typed_beside_the_units_is_freed(machine):
    serve_inside(machine, 8020)
    free_there(machine, 8020, "root").frees()


def test_what_runs_in_the_same_unit_is_freed(machine):
    job = "python3 -m http.server 8013 & sleep 1; python3 /tool/port_manager.py free 8013 && echo freed"
    words = ["exec", machine, "systemd-run", "--quiet", "--wait", "--pipe", "--unit=job", "sh", "-c", job]
    assert docker(*words, check=False).endswith("freed")
