"""What a child of a run gets from its parent."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from worker.child import LOG_NAME, Child

_SCRIPT = "import marker; print(marker.PLACE, flush=True)"


def test_a_child_imports_from_where_its_parent_does_and_never_from_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("source", "run"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "marker.py").write_text(f"PLACE = {place!r}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}source")

    child = Child(
        [sys.executable, "-P", "-c", _SCRIPT],
        folder=tmp_path / "run",
        environment={},
        keep_open=[],
        max_log_bytes=1000,
        mark="job/e0001",
    )
    psutil.Process(child.pid).wait(20)
    child.end(20)

    assert (tmp_path / "run" / LOG_NAME).read_text() == "source\n"


def test_a_child_knows_the_builds_commit_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_COMMIT", "abc123")
    monkeypatch.setenv("LUTHIER_SECRET_KEY", "hidden")
    script = "import os; print(sorted(n for n in os.environ if n.startswith('LUTHIER_')), flush=True)"
    command = [sys.executable, "-P", "-c", script]
    child = Child(command, folder=tmp_path, environment={}, keep_open=[], max_log_bytes=1000, mark="m")
    psutil.Process(child.pid).wait(20)
    child.end(20)
    assert (tmp_path / LOG_NAME).read_text() == "['LUTHIER_COMMIT', 'LUTHIER_RUN']\n"
