"""Processes of a run are found and ended however they hide."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_for
from worker import process_tree
from worker.process_tree import MARK, end_members, killed_for_memory_count, members

# A child that leaves a daemon: forked twice, in a session of its own, with an environment of its own.
_DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sleep", ["sleep", "600"], {name})
    os._exit(0)
os.wait()
"""
# An agent's process: it adopts, starts such a child in a session of its own, and ends what is left of it.
_AGENT = """
import subprocess, sys, time
from worker.process_tree import adopt_orphans, end_members, members
adopt_orphans()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
child.wait()
print(*(process.pid for process in members("other/e0001", child.pid)), flush=True)
print(end_members("other/e0001", child.pid, seconds=20))
"""


def test_a_daemon_is_found_by_the_mark_that_it_inherited() -> None:
    mark = f"job-{os.getpid()}/e0001"
    script = _DAEMON.replace("{name}", "dict(os.environ)")
    subprocess.run([sys.executable, "-c", script], env=os.environ | {MARK: mark}, check=True)
    wait_for(lambda: len(members(mark)) == 1)
    (daemon,) = members(mark)
    assert end_members(mark, None, seconds=20) == []
    assert not psutil.pid_exists(daemon.pid) or psutil.Process(daemon.pid).status() == psutil.STATUS_ZOMBIE


def test_a_daemon_that_dropped_the_mark_is_adopted_and_ended() -> None:
    script = _DAEMON.replace("{name}", "{}")
    agent = subprocess.run(
        [sys.executable, "-P", "-c", _AGENT, script], capture_output=True, text=True, timeout=60, check=True
    )
    pids, left = agent.stdout.splitlines()
    assert (len(pids.split()), left) == (1, "[]")
    assert not psutil.pid_exists(int(pids))


def test_other_runs_are_left_alone() -> None:
    environment = os.environ | {MARK: "another/e0001"}
    with subprocess.Popen(["sleep", "600"], env=environment) as other:
        assert end_members("another/e00011", None, seconds=1) == []
        assert other.poll() is None
        other.kill()


def test_what_the_kernel_killed_for_want_of_memory_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_tree, "_PROC", tmp_path)
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 3\n", encoding="ascii")
    assert killed_for_memory_count() == 3
