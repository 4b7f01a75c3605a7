"""The command line as a test calls it: in this process, or in one of its own where processes matter."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from luthier.cli import app

Luthier = Callable[..., Result]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own, fresh data folder, and no other setting of Luthier."""
    for name in [name for name in os.environ if name.startswith("LUTHIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LUTHIER_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def luthier(data_dir: Path) -> Luthier:
    """`luthier("keys", "list")`."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def luthier_process(data_dir: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same in a process of its own; `environment` is added to ours."""

    def run(
        *arguments: object, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "luthier.cli", *(str(argument) for argument in arguments)]
        return subprocess.run(
            command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
        )

    return run
