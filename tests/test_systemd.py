"""Real systemd, in a container: a unit is named with the command that stops it, and left alone; a scope is nobody's."""

from __future__ import annotations

import pytest

from .conftest import eventually
from .scenes import DEBIAN, docker, free, inside, listening_inside, needs_docker, run_container

pytestmark = needs_docker

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
        for port in (8001, 8002, 8003, 8004, 8005, 8006, 8007, 8008, 8009, 8010, 8012):
            if port not in (8003, 8007):  # a connection would start their services
                assert eventually(lambda port=port: listening_inside(name, port), 20), port
        yield name
    finally:
        docker("rm", "-fv", name)


def free_there(machine, port, user, *options):
    """As root, or as a user with what a login sets."""
    who = ("-u", user, "-e", "XDG_RUNTIME_DIR=/run/user/1000", "-w", "/home/dev") if user != "root" else ()
    return free(port, before=inside(machine, *who, *options))


def state(machine, unit, user="root"):
    """What tells whether a unit was touched."""
    words = ["exec", machine, "systemctl"] if user == "root" else [
        *["exec", "-u", user, "-e", "XDG_RUNTIME_DIR=/run/user/1000", machine, "systemctl", "--user"]
    ]  # fmt: skip
    return docker(*words, "show", "-p", "ActiveState,SubState,MainPID,NRestarts,InvocationID", unit)


@pytest.mark.parametrize(
    ("port", "unit", "user"),
    [
        (8001, "web.service", "root"),
        (8002, "always.service", "root"),
        (8003, "lazy.socket", "root"),
        (8004, "busy.socket", "root"),
        (8005, "worker@8005.service", "root"),
        (8006, "mine.service", "dev"),
        (8007, "us.socket", "dev"),
        (8010, "transient.service", "root"),
        (8011, "echo.socket", "root"),
        (8012, "shell.service", "root"),
    ],
)
def test_a_unit_is_named_and_left_alone(machine, port, unit, user):
    before = state(machine, unit, user)
    assert "ActiveState=active" in before
    free_there(machine, port, user).names(f"systemctl {'--user ' if user != 'root' else ''}stop {unit}")
    assert state(machine, unit, user) == before


def test_both_units_are_named_where_a_socket_s_service_runs(machine):
    answer = free_there(machine, 8004, "root")
    answer.refuses("busy.socket", "busy.service")  # either of them alone leaves the port held


@pytest.mark.parametrize("policy", ["kill", "own", "ask"])
def test_no_policy_stops_a_unit(machine, policy):
    before = state(machine, "web.service")
    free_there(machine, 8001, "root", "-e", f"PORT_MANAGER_POLICY={policy}").names("systemctl stop web.service")
    assert state(machine, "web.service") == before


def test_a_user_s_unit_is_not_stopped_by_root(machine):
    before = state(machine, "mine.service", "dev")
    free_there(machine, 8006, "root").refuses("mine.service")
    assert state(machine, "mine.service", "dev") == before


def test_a_user_s_socket_unit_stays_also_where_its_systemd_cannot_be_asked(machine):
    # after su or docker exec no XDG_RUNTIME_DIR tells where the user's systemd is
    free(8007, before=inside(machine, "-u", "dev")).refuses()
    assert "active" in state(machine, "us.socket", "dev")


@pytest.mark.parametrize(("port", "user"), [(8008, "root"), (8009, "dev")])
def test_a_scope_is_freed(machine, port, user):
    free_there(machine, port, user).frees()
    assert not listening_inside(machine, port)


def test_a_server_that_was_typed_beside_the_units_is_freed(machine):
    docker("exec", "-d", machine, "python3", "-m", "http.server", "8020")
    assert eventually(lambda: listening_inside(machine, 8020), 20)
    free_there(machine, 8020, "root").frees()


def test_what_runs_in_the_same_unit_is_freed(machine):
    job = "python3 -m http.server 8013 & sleep 1; python3 /tool/port_manager.py free 8013 && echo freed"
    words = ["exec", machine, "systemd-run", "--quiet", "--wait", "--pipe", "--unit=job", "sh", "-c", job]
    assert docker(*words, check=False).endswith("freed")
