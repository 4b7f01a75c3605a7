"""Checks of what is installed: Python, our own packages, and the libraries in their supported ranges.

The ranges are those of the distribution's own metadata, so they stand in pyproject.toml alone.
"""

import json
import operator
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import luthier
from luthier.cli.doctor.finding import Finding, failed, ok, warning

PACKAGES = ("luthier", "api", "worker", "trainer", "migrations")
_OLDEST_PYTHON = (3, 11)
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?\s*(?P<range>[^;]*?)\s*(;(?P<marker>.*))?")
_BOUND = re.compile(r"(>=|<=|==|<|>)\s*([0-9.]+)")
_RELATIONS = {">=": operator.ge, "<=": operator.le, "==": operator.eq, "<": operator.lt, ">": operator.gt}
_SHOWN = ("torch", "transformers", "trl", "peft", "bitsandbytes")
_FIND_PACKAGES = (
    "import json, sys; from importlib.util import find_spec; "
    "print(json.dumps({name: getattr(find_spec(name), 'origin', None) for name in sys.argv[1:]}))"
)


def check_python() -> Finding:
    text = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < _OLDEST_PYTHON:
        return failed("python", text, "install Python 3.11 or newer and make the environment anew")
    return ok("python", text)


def check_packages() -> Iterator[Finding]:
    """That our package names lead to our distribution, for us and for child processes."""
    home = Path(luthier.__file__).parents[1]
    ours = {name: getattr(find_spec(name), "origin", None) for name in PACKAGES}
    yield _resolution("packages", ours, home)
    # Children start with -P, where the working folder cannot shadow a package but PYTHONPATH still can.
    command = [sys.executable, "-P", "-c", _FIND_PACKAGES, *PACKAGES]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        yield failed("child packages", answer.stderr.strip()[-200:], "reinstall Luthier in this environment")
    else:
        yield _resolution("child packages", json.loads(answer.stdout), home)


def check_libraries() -> Iterator[Finding]:
    """That the libraries of each extra are there, in the supported ranges."""
    for extra, is_needed in (("", True), ("server", True), ("trainer", False)):
        wanted = dict(_requirements(extra))
        check = f"{extra or 'base'} libraries"
        absent = [name for name in wanted if _version(name) is None]
        wrong = [
            f"{name} {_version(name)} (supported: {wanted[name]})"
            for name in wanted
            if name not in absent and not _is_within(_version(name) or "", wanted[name])
        ]
        install = f"pip install 'luthier[{extra}]'" if extra else "pip install luthier"
        if wrong:
            yield failed(check, f"outside the supported range: {', '.join(wrong)}", f"{install} --upgrade")
        elif absent and is_needed:
            yield failed(check, f"missing: {', '.join(absent)}", install)
        elif absent:
            yield warning(check, f"missing: {', '.join(absent)}; this machine cannot train", install)
        else:
            named = [f"{name} {_version(name)}" for name in _SHOWN if name in wanted]
            yield ok(check, ", ".join(named) or f"{len(wanted)} in their supported ranges")


def _resolution(check: str, origins: dict[str, str | None], home: Path) -> Finding:
    missing = [name for name, origin in origins.items() if origin is None]
    if missing:
        return failed(check, f"not importable: {', '.join(missing)}", "reinstall Luthier in this environment")
    foreign = [
        f"{name} is {origin}" for name, origin in origins.items() if Path(str(origin)).parents[1] != home
    ]
    if foreign:
        remedy = "take the folder off PYTHONPATH, or uninstall the package that brings it"
        return failed(check, f"another package has our name: {', '.join(foreign)}", remedy)
    return ok(check, f"{', '.join(origins)} from {home}")


def _requirements(extra: str) -> Iterator[tuple[str, str]]:
    """Names and ranges that the distribution asks for, of one extra or of the base (``""``)."""
    for line in requires("luthier") or []:
        match = _REQUIREMENT.fullmatch(line)
        if match is None:
            continue
        marker = match["marker"] or ""
        named = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", marker)
        is_elsewhere = "platform_system" in marker and platform.system() not in marker
        if (named[1] if named else "") == extra and match["name"] != "luthier" and not is_elsewhere:
            yield match["name"], match["range"]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_within(installed: str, bounds: str) -> bool:
    return all(
        _RELATIONS[relation](_release(installed), _release(bound))
        for relation, bound in _BOUND.findall(bounds)
    )


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version; what stands behind them (`rc1`, `+cpu`) does not count."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
