"""``python3 -m tests``: run the tests, in a virtual environment of their own where something is missing.

They need pytest; with ``--servers`` also the servers that some of them start for real. All other words are pytest's.
Without any, the modules run in a few processes at once, since the tests wait most of their time.
"""

from __future__ import annotations

import configparser
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE

from .held import ROOT, clean_environ

VENV = os.path.join(ROOT, ".venv")


def packages(*groups: str) -> list[str]:
    """What the tests need, from its one list."""
    config = configparser.ConfigParser()
    config.read(os.path.join(ROOT, "setup.cfg"), encoding="utf-8")
    return [name for group in groups for name in config["options.extras_require"][group].split()]


def works(*command: str) -> bool:
    return subprocess.run(command, stdout=DEVNULL, stderr=DEVNULL, check=False).returncode == 0


def environment(needed: list[str]) -> str:
    """The interpreter of .venv, made for this Python when it is not there; SystemExit says what to do instead."""
    python = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin", "python")
    same = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    if not os.path.exists(python) or not works(python, "-c", same):
        print(f"Making {VENV} for the tests", flush=True)
        if not works(sys.executable, "-m", "venv", "--clear", VENV):
            why = "No virtual environment can be made by this Python (on Debian and Ubuntu: apt install python3-venv)"
            raise SystemExit(f"{why}; by hand: {sys.executable} -m pip install {' '.join(needed)}")
    if not works(python, "-c", "import " + ", ".join(needed).replace("-", "_")):
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *needed]
        if subprocess.run(pip, check=False).returncode:
            raise SystemExit(f"{', '.join(needed)} could not be installed; is there a network?")
    return python


def shares() -> list[list[str]]:
    """The modules in as many shares as run at once; the longest first, each to the share that has least so far."""
    modules = {str(path): path.stat().st_size for path in Path("tests").glob("test_*.py")}
    found: list[list[str]] = [[] for _ in range(2 + min(4, os.cpu_count() or 1))]
    for module in sorted(modules, key=modules.__getitem__, reverse=True):
        min(found, key=lambda share: sum(map(modules.__getitem__, share))).append(module)
    return found


def main() -> int:
    os.chdir(ROOT)
    words = [word for word in sys.argv[1:] if word != "--servers"]
    needed = packages("test", *(["servers"] if "--servers" in sys.argv[1:] else []))
    present = all(importlib.util.find_spec(name.replace("-", "_")) for name in needed)
    pytest = [sys.executable if present else environment(needed), "-m", "pytest"]
    environ = {**clean_environ(), **{name: value for name, value in os.environ.items() if name.startswith("TESTS_")}}
    if words:
        return subprocess.run([*pytest, *words], env=environ, check=False).returncode
    if sys.stdout.isatty():
        pytest.append("--color=yes")
    parts = [subprocess.Popen([*pytest, *share], env=environ, stdout=PIPE) for share in shares()]
    print(f"The tests run in {len(parts)} processes at once; each is shown when it has ended.", flush=True)
    for part in parts:
        sys.stdout.buffer.write(part.communicate()[0])  # whatever sys.stdout may encode
        sys.stdout.flush()
    return next((part.returncode for part in parts if part.returncode), 0)


if __name__ == "__main__":
    raise SystemExit(main())
