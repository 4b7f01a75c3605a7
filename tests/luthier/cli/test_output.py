"""Tables in a terminal: as wide as it is, on one line a row, and whole in a pipe."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

_CODE = """
from luthier.cli.job_lists import _JOBS
from luthier.cli.output import Format, show_rows
from luthier.client import Job

job = Job(id="ftjob-9aB", status="running", created_at=0, model="base", training_file="file-1",
          name="a name \\x1b[31mthat is longer than the terminal")
show_rows([job], _JOBS, Format.TABLE)
"""


@pytest.fixture
def in_terminal(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of a list of one job in a terminal of 60 columns."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    command = [sys.executable, "-P", "-c", _CODE]
    # Given by hand: readline puts COLUMNS where `os.environ` does not see it.
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=follower, env=dict(os.environ), check=True)
    os.close(follower)
    told = os.read(leader, 100_000).decode()
    os.close(leader)
    return told.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()


def test_a_table_fits_the_terminal_and_cannot_steer_it(in_terminal: list[str]) -> None:
    header, row = in_terminal
    assert max(map(len, in_terminal)) <= 60
    assert row.startswith("ftjob-9aB  running ")
    assert "…" in row
    assert "\x1b" not in header + row


def test_in_a_pipe_nothing_is_cut(data_dir: Path) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _CODE], capture_output=True, text=True, check=True)
    assert "that is longer than the terminal" in done.stdout
