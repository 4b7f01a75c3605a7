"""The service through the real `openai` packages alone: three releases, both clients, every answer validated.

`calls.py` makes the calls in the environment of each release; here stands which of them went wrong, and how.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.contract.calls import CASES
from tests.contract.conftest import Running
from tests.contract.environments import environment

_CALLS = Path(__file__).with_name("calls.py")
_RELEASES = ("openai-1", "openai-2", "openai-3")
_CLIENTS = ("sync", "async")

Call = Callable[[str], dict[Any, str | None]]


@pytest.fixture(scope="session")
def call(running: Running) -> Call:
    """Makes all calls with a release, once; gives by client and case what went wrong."""

    @cache
    def make(release: str) -> dict[Any, str | None]:
        # The newest one is the project's own.
        interpreter = Path(sys.executable) if release == "openai-3" else environment(release)
        models = [running.expendable.pop() for _ in _CLIENTS]
        there = json.dumps(asdict(running) | {"expendable": models})
        clean = {name: os.environ[name] for name in os.environ if not name.startswith(("PYTHON", "OPENAI_"))}
        done = subprocess.run(
            [interpreter, "-P", _CALLS, there],
            env=clean,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        first, *lines = map(json.loads, done.stdout.splitlines())
        assert first["version"].split(".")[0] == release.partition("-")[2]
        return {(line["client"], line["case"]): line["wrong"] for line in lines}

    return make


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
@pytest.mark.parametrize("client", _CLIENTS)
@pytest.mark.parametrize("release", _RELEASES)
def test_a_release_of_the_client_finds_what_it_expects(
    call: Call, release: str, client: str, case: str
) -> None:
    wrong = call(release)[client, case]
    assert wrong is None, wrong
