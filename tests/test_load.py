"""Again and again, and many at once: what goes wrong once in a hundred times shows here.

The small rounds belong to every run; the large ones are asked for: ``python3 -m tests -m load``.
"""

from __future__ import annotations

import os
import sys

import pytest

from port_manager import ensure_port_available

from .conftest import LINUX, PATIENCE, PORT_MANAGER, ROOT, can_bind

pytestmark = pytest.mark.skipif(not LINUX, reason="real processes on Linux")

ENSURE = "import port_manager, sys; sys.exit(not port_manager.ensure_port_available(int(sys.argv[1])))"


@pytest.fixture(autouse=True)
def large_ones_are_asked_for(request):
    if request.node.get_closest_marker("load") and "load" not in (request.config.getoption("-m") or ""):
        pytest.skip("takes long; ask for it with -m load")


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


def children():
    """Our own children that live or have not been buried; other tests' are started and ended by them."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found.update(file.read().split())
    return found


small_and_large = pytest.mark.parametrize(
    ("times", "workers"),
    [
        (10, 0),
        (3, 8),
        pytest.param(200, 0, marks=pytest.mark.load),
        pytest.param(50, 8, marks=pytest.mark.load),
    ],
)


@small_and_large
def test_take_overs_in_a_row(port, ports, hold, times, workers):
    """One server after the other takes the port: nobody is left behind, and no descriptor."""
    bystander = hold(("127.0.0.1", ports()))
    before = descriptors(), children()
    for _ in range(times):
        held = hold(("0.0.0.0", port), children=workers)
        assert len(held.alive()) == 1 + workers
        assert ensure_port_available(port) is True
        assert held.alive() == []
        assert can_bind(port, "0.0.0.0")
        held.end()
    assert (descriptors(), children()) == before
    assert bystander.alive() == [bystander.pid]


@pytest.mark.parametrize(
    ("callers", "rounds", "workers"),
    [
        (5, 1, 0),
        pytest.param(20, 10, 0, marks=pytest.mark.load),
        pytest.param(20, 3, 8, marks=pytest.mark.load),
    ],
)
def test_many_callers_at_once(port, ports, hold, start, callers, rounds, workers):
    """Each finds the holder, asks it to stop, and sees it go, whoever was first; none takes another for a holder."""
    bystander = hold(("127.0.0.1", ports()))
    calls = ([PORT_MANAGER, "free", str(port)], ["-c", ENSURE, str(port)])
    for _ in range(rounds):
        held = hold(("0.0.0.0", port), children=workers)
        running = [start(sys.executable, *calls[number % 2], cwd=str(ROOT)) for number in range(callers)]
        ends = []
        for call in running:
            said = call.communicate(timeout=PATIENCE)[0]
            ends.append((call.returncode, said))
        assert [end for end in ends if end[0] != 0] == []
        assert can_bind(port, "0.0.0.0")
        assert held.alive() == []
        held.end()
    assert bystander.alive() == [bystander.pid]
