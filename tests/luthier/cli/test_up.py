"""`luthier up`: one command starts everything, refuses what cannot work, and leaves no process behind."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import text

from luthier.client import Client
from luthier.database import Database

Luthier = Callable[..., Any]


@contextmanager
def started(until: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`luthier up` on a free port, and what it has said up to a line that begins with `until`."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "luthier.cli", "up", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith(until):
            break
    with process:
        yield process, lines
        process.kill()
        process.stdout.read()


def test_it_starts_with_a_key_shown_once_and_ends_with_all_its_children(
    data_dir: Path, luthier: Luthier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(until="ready: ") as (process, lines):
        (key,) = (line for line in lines if line.startswith("LUTHIER_API_KEY="))
        monkeypatch.setenv(*key.split("="))
        # Without arguments the client finds the server by the data folder.
        with Client() as client:
            assert client.jobs.list().page().data == []
            assert client.connection.url == lines[-1].split()[1]
        children = psutil.Process(process.pid).children(recursive=True)
        second = luthier("up", "--port", "0")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert len(children) == 5
    assert psutil.wait_procs(children, timeout=0)[1] == []
    assert second.exit_code == 1
    assert f"as process {process.pid}" in second.output
    assert not (data_dir / "server.json").exists()

    with started(until="Luthier listens") as (_, lines):
        assert not any("lk_" in line for line in lines)


def test_a_port_that_is_taken_is_told(luthier: Luthier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = luthier("up", "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert "choose another with --port" in result.output


def test_settings_that_contradict_each_other_are_refused(
    luthier: Luthier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_LEASE_SECONDS", "10")
    result = luthier("up", "--host", "::", "--port", "0")
    assert result.exit_code == 1
    assert "LUTHIER_LEASE_SECONDS" in result.output
    assert "LUTHIER_PUBLIC_URL" in result.output


def test_a_device_that_is_not_there_is_refused(luthier: Luthier, data_dir: Path) -> None:
    result = luthier("up", "--gpus", "GPU-none", "--port", "0")
    assert result.exit_code == 1
    assert "LUTHIER_GPUS names GPU-none" in result.output
    assert not data_dir.exists()


def test_a_data_folder_of_a_newer_release_is_refused(luthier: Luthier, data_dir: Path) -> None:
    luthier("db", "upgrade")
    database = Database(f"sqlite:///{data_dir / 'luthier.db'}")
    with database.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    result = luthier("up", "--port", "0")
    assert result.exit_code == 1
    assert re.search("revision 9999.*newer Luthier", result.output)
