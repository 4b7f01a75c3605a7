"""Groups of processes: kept alive, and gone when their parent is."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from luthier.devices import Device, choose_devices, computes_bf16
from luthier.errors import LuthierError
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


def test_devices_are_chosen_by_index_or_uuid() -> None:
    gpus = [Device("GPU-a", "A", 0, 1), Device("GPU-b", "B", 1, 1)]
    assert choose_devices("auto", gpus) == gpus
    assert choose_devices("1, GPU-a", gpus) == [gpus[1], gpus[0]]
    assert [device.id for device in choose_devices("auto", [])] == ["cpu"]
    with pytest.raises(LuthierError, match="LUTHIER_GPUS names 7"):
        choose_devices("7", gpus)


@pytest.mark.parametrize(
    ("cpuinfo", "is_told"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512dq avx512bw avx512vl", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("Features\t: fp asimd i8mm bf16", True),
        ("", False),
    ],
)
def test_a_cpu_tells_whether_it_computes_in_bf16(cpuinfo: str, *, is_told: bool) -> None:
    assert computes_bf16(cpuinfo) is is_told


def test_the_cpu_is_a_device_with_the_memory_of_the_machine() -> None:
    (cpu,) = choose_devices("cpu", [])
    assert cpu.memory_bytes > 1 << 28


def test_settings_that_contradict_each_other_are_told() -> None:
    assert Settings().problems() == []
    wrong = Settings(heartbeat_seconds=100, host="192.0.2.1")
    assert [line.split(" ")[0] for line in wrong.problems()] == ["LUTHIER_SELF_FENCE_SECONDS", "LUTHIER_HOST"]
