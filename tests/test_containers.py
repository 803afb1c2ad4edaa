"""Real docker: what a container runs is stopped by docker alone; inside a container the tool does its work.

Real systemd, in a container: a unit is named with the command that stops it, and left alone; a scope is nobody's.
"""

from __future__ import annotations  # noqa: I001

import subprocess

import pytest

from port_manager import find_listeners

from .conftest import eventually
from .scenes import BUSYBOX, DEBIAN, docker, engines, free, inside, listening, listening_inside, main_process
from .scenes import needs_docker, run_container, serve_inside, wait_for, wait_inside, witness

pytestmark = needs_docker

PAGE = ("/bin/busybox", "httpd", "-f", "-h", "/www", "-p")
SERVER = ("python3", "-m", "http.server", "8000")
IDLE = ("sleep", "infinity")
CHILD = ("sh", "-c", "python3 -m http.server 8000 & sleep 999")
ITSELF = "it is this container's main process: restart the container"
WAITED_FOR = "it would also end this container, whose first process waits for it; restart the container"
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


@engines
@pytest.mark.parametrize("options", ["-p {1}:80", "-p 127.0.0.1:{1}:80", "-p {0}-{1}:79-80", "--network host"])
def test_a_port_of_a_container_is_named_and_left_alone(container, ports, tmp_path, options, engine):
    lower = next(port for port in iter(ports, None) if not listening(port + 1))
    port = lower + 1
    command = [*PAGE, "80" if "-p" in options else str(port)]
    name = container(BUSYBOX, *options.format(lower, port).split(), command=command, engine=engine)
    wait_for(port)
    with witness(main_process(name, engine), *(holder.pid for holder in find_listeners(port))):
        free(port, cwd=tmp_path, PORT_MANAGER_POLICY="kill").names(f"{engine} stop {name}")
    assert listening(port)


@pytest.mark.parametrize("same", ["port", "address"])
def test_the_right_one_of_two_containers_is_named(container, ports, tmp_path, same):
    first = ("127.0.0.2", ports())
    second = ("127.0.0.3", first[1]) if same == "port" else ("127.0.0.2", ports())
    names = [container(BUSYBOX, "-p", f"{host}:{port}:80", command=[*PAGE, "80"]) for host, port in (first, second)]
    assert all(eventually(lambda at=at: listening(at[1], at[0])) for at in (first, second))
    answer = free(second[1], cwd=tmp_path, host=second[0])
    answer.names(f"docker stop {names[1]}")
    assert names[0] not in answer.words


# Inside


@pytest.mark.parametrize("options", [(), BARE, ("--cgroupns=private",), ("--cgroupns=host",), ("--init",)])
@pytest.mark.parametrize("command", [IDLE, CHILD], ids=["by docker exec", "by the main process"])
def test_what_runs_in_the_same_container_is_freed(container, options, command):
    name = container(DEBIAN, *options, command=command)
    if command == IDLE:
        serve_inside(name, 8000)
    wait_inside(name, 8000)
    with witness(main_process(name)):
        free(8000, before=inside(name)).frees()
    assert not listening_inside(name, 8000)


@pytest.mark.parametrize(("options", "command", "sentence"), [
    *((options, SERVER, ITSELF) for options in ((), BARE, ("--cgroupns=private",))),
    (("--init",), SERVER, WAITED_FOR),
    ((), ("sh", "-c", "cd /srv; python3 -m http.server 8000; exit $?"), WAITED_FOR),
])  # fmt: skip
def test_the_main_process_of_the_container(container, options, command, sentence):
    name = container(DEBIAN, *options, command=command)
    wait_inside(name, 8000)
    with witness(main_process(name)):
        free(8000, before=inside(name)).refuses(sentence)


def test_a_toolbox_on_the_host_frees_its_own_and_not_another_container_s(container, ports, tmp_path):
    """What docker exec has started there is the container's, as the host sees it."""
    mine, theirs = ports(), ports()
    toolbox = container(DEBIAN, "--network", "host", "--pid", "host")
    other = container(DEBIAN, "--network", "host", command=[*SERVER[:-1], str(theirs)])
    serve_inside(toolbox, mine)
    wait_for(theirs)
    with witness(main_process(other), main_process(toolbox)):
        free(theirs, before=inside(toolbox)).refuses()
        free(mine, cwd=tmp_path).names(f"docker stop {toolbox}")
        assert listening(mine) and listening(theirs)
        told = docker("exec", toolbox, "python3", "/tool/run_backend.py", "--port", str(mine), "--", "echo", "started")
        assert told.endswith("started") and not listening(mine)


@pytest.mark.parametrize("options", [(), ("--cgroupns=private",)])
@pytest.mark.parametrize("sees", ["network", "network pid"])
def test_another_container_of_the_same_pod(container, sees, options):
    web = container(DEBIAN, command=CHILD)
    wait_inside(web, 8000)
    beside = container(DEBIAN, *(f"--{part}=container:{web}" for part in sees.split()), *options)
    free(8000, before=inside(beside)).refuses()
    assert listening_inside(web, 8000)


# systemd

SYSTEM = "--cap-add SYS_ADMIN --cap-add SYS_PTRACE --security-opt seccomp=unconfined --cgroupns=private"
PLACES = "--tmpfs /run --tmpfs /tmp -e container=docker"

# A service whose child serves (shell); socket units whose service is not running (lazy), is running (busy), is started
# for each connection to two addresses (echo); a user's service, socket unit and scope.
SET_UP = r"""
set -e
serve() { systemd-run --quiet "${@:2}" python3 -m http.server "$1"; }
serve 8001 --unit=web --property=Restart=always --property=RestartSec=100ms
serve 8005 --unit=worker@8005
serve 8008 --scope >/dev/null 2>&1 &
python3 -m http.server 8010 >/dev/null 2>&1 &
systemd-run --quiet --unit=shell sh -c 'python3 -m http.server 8012; true'
systemd-run --quiet --unit=lazy --socket-property=ListenStream=8003 true
systemd-run --quiet --unit=busy --socket-property=ListenStream=8004 sleep 999
systemctl start busy.service
systemd-run --quiet --unit=echo --socket-property=ListenStream=127.0.0.{1,2}:8011 --socket-property=Accept=yes cat
useradd --create-home dev
loginctl enable-linger dev
until [ -S /run/user/$(id -u dev)/bus ]; do sleep 0.1; done
runuser -u dev -- env XDG_RUNTIME_DIR=/run/user/$(id -u dev) sh -c '
    systemd-run --quiet --user --unit=mine python3 -m http.server 8006
    systemd-run --quiet --user --unit=us --socket-property=ListenStream=8007 true
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
        for port in (8001, 8004, 8005, 8006, 8008, 8009, 8010, 8012):  # the others' services would be started
            wait_inside(name, port)
        yield name
    finally:
        docker("rm", "-fv", name)


def login(user):
    """Options of docker exec: as a user with what a login sets."""
    return ("-u", user, "-e", "XDG_RUNTIME_DIR=/run/user/1000", "-w", "/home/dev") if user != "root" else ()


def state(machine, user, units):
    """What tells whether units were touched."""
    systemctl = ["systemctl", *["--user"] * (user != "root"), "show", *units.split()]
    facts = "ActiveState,SubState,MainPID,NRestarts,InvocationID"
    return docker("exec", *login(user), machine, *systemctl, "-p", facts)


@pytest.mark.parametrize(("port", "units", "user", "policy"), [
    *((8001, "web.service", "root", policy) for policy in ("kill", "own", "ask")),
    (8003, "lazy.socket lazy.service", "root", ""),
    (8004, "busy.socket busy.service", "root", ""),  # either of them alone leaves the port held
    (8005, "worker@8005.service", "root", ""),
    (8006, "mine.service", "dev", ""),
    (8007, "us.socket us.service", "dev", ""),
    (8011, "echo.socket", "root", ""),
    (8012, "shell.service", "root", ""),
])  # fmt: skip
def test_a_unit_is_named_and_left_alone(machine, port, units, user, policy):
    before = state(machine, user, units)
    assert "ActiveState=active" in before
    answer = free(port, before=inside(machine, *login(user), "-e", f"PORT_MANAGER_POLICY={policy}"))
    answer.names(f"systemctl {'--user ' if user != 'root' else ''}stop {units}")
    assert state(machine, user, units) == before


@pytest.mark.parametrize(("port", "unit", "user"), [(8006, "mine.service", "root"), (8007, "us.socket", "dev")])
def test_a_user_s_unit_is_not_stopped_where_its_systemd_cannot_be_asked(machine, port, unit, user):
    """By root; and after su or docker exec, as no XDG_RUNTIME_DIR tells where it is."""
    before = state(machine, "dev", unit)
    free(port, before=inside(machine, "-u", user)).refuses(*["mine.service"] * (port == 8006))
    assert state(machine, "dev", unit) == before and "ActiveState=active" in before


@pytest.mark.parametrize(("port", "user"), [(8008, "root"), (8009, "dev"), (8010, "root")])
def test_what_is_of_no_unit_is_freed(machine, port, user):
    """A scope is nobody's; nor is what was typed beside the units."""
    free(port, before=inside(machine, *login(user))).frees()
    assert not listening_inside(machine, port)


def test_what_runs_in_the_same_unit_is_freed(machine):
    job = "python3 -m http.server 8013 & sleep 1; python3 /tool/port_manager.py free 8013 && echo freed"
    words = ["exec", machine, "systemd-run", "--quiet", "--wait", "--pipe", "--unit=job", "sh", "-c", job]
    assert docker(*words, check=False).endswith("freed")
