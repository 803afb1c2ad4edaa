"""``python3 -m tests``: run the tests, in a virtual environment of their own where pytest is missing."""

from __future__ import annotations

import configparser
import importlib.util
import os
import subprocess
import sys

from .environ import made

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")


def packages() -> list[str]:
    """What the tests need, from its one list."""
    config = configparser.ConfigParser()
    config.read(os.path.join(ROOT, "setup.cfg"), encoding="utf-8")
    return config["options.extras_require"]["test"].split()


def missing() -> bool:
    return any(importlib.util.find_spec(name.replace("-", "_")) is None for name in packages())


def environment() -> str:
    """The interpreter of .venv, made for this Python when it is not there; SystemExit says what to do instead."""
    python = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin", "python")
    version = "import sys; print(sys.version_info[:2])"
    try:
        made_for = subprocess.run([python, "-c", version], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        made_for = ""
    if made_for != str(sys.version_info[:2]):
        print(f"Making {VENV} for the tests", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=False).returncode:
            raise SystemExit(
                "A virtual environment cannot be made with this Python (on Debian and Ubuntu: apt install "
                f"python3-venv). Or install the packages yourself: {sys.executable} -m pip install {' '.join(packages())}"
            )
    imports = "import " + ", ".join(name.replace("-", "_") for name in packages())
    if subprocess.run([python, "-c", imports], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        return python
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages()]
    if subprocess.run(pip, check=False).returncode:
        raise SystemExit(f"{' and '.join(packages())} could not be installed; is there a network?")
    return python


def main() -> int:
    os.chdir(ROOT)
    python = environment() if missing() else sys.executable
    return subprocess.run([python, "-m", "pytest", *sys.argv[1:]], env=made(), check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
