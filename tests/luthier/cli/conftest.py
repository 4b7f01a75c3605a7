"""The command line as a test calls it, on a data folder of its own."""

import os
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
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "data"


@pytest.fixture
def luthier(data_dir: Path) -> Luthier:
    """`luthier("keys", "list")`."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
