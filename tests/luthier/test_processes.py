"""Groups of processes: kept alive, and gone when their parent is."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from luthier.processes import ChildSpec, ProcessGroup
from luthier.settings import Settings

_PARENT = """
import sys
from luthier.processes import ChildSpec, ProcessGroup
group = ProcessGroup(
    [ChildSpec("sleeper", [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])],
    grace_seconds=5, report=print)
group.run()
"""


def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.touch()
    script = f"open({str(marks)!r}, 'a').write('x')"
    lines: list[str] = []
    group = ProcessGroup(
        [ChildSpec("mortal", [sys.executable, "-c", script])], grace_seconds=5, report=lines.append
    )
    group.run(
        while_running=lambda: signal.raise_signal(signal.SIGTERM) if len(marks.read_text()) >= 2 else None
    )
    assert "mortal ended with 0; starting it again in 1 s" in lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_its_parent(number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-P", "-c", _PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"up\n"
    children = psutil.Process(parent.pid).children()
    parent.send_signal(number)
    parent.wait(20)
    parent.stdout.close()
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_settings_that_contradict_each_other_are_told() -> None:
    assert Settings().problems() == []
    wrong = Settings(heartbeat_seconds=100, host="192.0.2.1")
    assert [line.split(" ")[0] for line in wrong.problems()] == ["LUTHIER_SELF_FENCE_SECONDS", "LUTHIER_HOST"]
