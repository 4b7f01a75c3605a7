"""The lock files agree with pyproject.toml: checked from the files alone, without a network.

`make lock` writes them. They name releases and hashes, and never an index, a host or a path.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("lock", "server", "worker")
CLIENTS = ("openai-1", "openai-2", "wandb", "litellm", "node")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def project() -> dict[str, Any]:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    table: dict[str, Any] = data["project"]
    return table


def asked(extras: list[str]) -> list[Requirement]:
    """What the project asks for with some extras; an extra that names others stands for them."""
    optional: dict[str, list[str]] = project()["optional-dependencies"]
    lines = [*project()["dependencies"]]
    for extra in extras:
        own = [Requirement(line) for line in optional[extra]]
        inner = [name for requirement in own if requirement.name == "luthier" for name in requirement.extras]
        lines += [line for name in inner or [extra] for line in optional[name]]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != "luthier"]


def pins(name: str) -> dict[str, str]:
    """Versions by name of one file of requirements/."""
    found = PIN.findall((ROOT / "requirements" / f"{name}.txt").read_text("utf-8"))
    return {canonicalize_name(package): version for package, version in found}


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("lock", list(project()["optional-dependencies"])), ("server", ["server"]), ("worker", ["all"])],
)
def test_what_pyproject_asks_for_is_locked(lock: str, extras: list[str]) -> None:
    have = pins(lock) | pins("torch")
    wrong = [
        str(r) for r in asked(extras) if not r.specifier.contains(have.get(canonicalize_name(r.name), "0"))
    ]
    assert not wrong, f"requirements/{lock}.txt does not hold {wrong}; run `make lock`"


def test_all_locks_hold_the_same_releases() -> None:
    whole = pins("lock").items()
    assert [dict(pins(name).items() - whole) for name in LOCKS] == [{}, {}, {}]


@pytest.mark.parametrize("name", [*LOCKS, *CLIENTS])
def test_a_lock_names_releases_and_hashes_only(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8").splitlines()
    shape = re.compile(r"[A-Za-z0-9._-]+==\S+( ; [^@:/]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [line for line in lines if not shape.fullmatch(line)] == []


def test_torch_is_in_no_lock_and_what_builds_us_is() -> None:
    assert [name for name in LOCKS if "torch" in pins(name)] == []
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    assert [line for line in build if pins("lock").get(line.split("==")[0]) != line.split("==")[1]] == []
