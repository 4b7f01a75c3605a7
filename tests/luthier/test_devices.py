"""Devices as the driver tells of them: what `nvidia-smi` said on real machines, said again by a script."""

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.devices import (
    Device,
    DeviceMissingError,
    Usage,
    choose_devices,
    computes_bf16,
    list_gpus,
    read_usage,
)
from luthier.errors import LuthierError

_RECORDED = Path(__file__).with_name("nvidia_smi")
_SPLIT = "GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0"
_PARTS = ["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"]
_WHOLE = "GPU-11111111-6756-fd30-cd4a-1e6da3caf9b0"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts an `nvidia-smi` first on the path that is a shell script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def put(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)

    return put


def _says(name: str) -> str:
    """A script that lists the parts for `-L`, and else tells of the machine `name`."""
    return f'case "$1" in -L) cat {_RECORDED}/{name}.list ;; *) cat {_RECORDED}/{name}.xml ;; esac'


def test_a_gpu_has_its_uuid_name_and_memory(driver: Callable[[str], None]) -> None:
    driver(_says("one"))
    (gpu,) = list_gpus()
    assert gpu == Device("GPU-498cc3e4-d0a6-69bb-bae2-cebc46c3cf40", "NVIDIA H100 80GB HBM3", 0, 81559 << 20)
    assert gpu.environment() == {"CUDA_VISIBLE_DEVICES": gpu.id}


def test_free_memory_and_processes_include_those_of_others(driver: Callable[[str], None]) -> None:
    driver(_says("one"))
    assert read_usage(list_gpus()[0]) == Usage(79437 << 20, frozenset({445}))


def test_the_parts_of_a_split_gpu_stand_in_its_place(driver: Callable[[str], None]) -> None:
    driver(_says("split"))
    gpus = list_gpus()
    assert [(gpu.id, gpu.name, gpu.memory_bytes >> 20) for gpu in gpus] == [
        (_PARTS[0], "NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19968),
        (_PARTS[1], "NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19968),
        (_WHOLE, "NVIDIA A100-SXM4-40GB", 40960),
    ]
    assert gpus[1].environment() == {"CUDA_VISIBLE_DEVICES": _PARTS[1]}


def test_a_part_has_memory_and_processes_of_its_own(driver: Callable[[str], None]) -> None:
    driver(_says("split"))
    first, second, _ = list_gpus()
    assert read_usage(first) == Usage(19931 << 20, frozenset())
    assert read_usage(second) == Usage(15835 << 20, frozenset({9001}))


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [("0", _PARTS), (_SPLIT, _PARTS), (_PARTS[1], _PARTS[1:]), ("1,0", [_WHOLE, *_PARTS])],
)
def test_an_index_or_uuid_of_a_split_gpu_means_all_its_parts(
    driver: Callable[[str], None], wanted: str, chosen: list[str]
) -> None:
    driver(_says("split"))
    assert [device.id for device in choose_devices(wanted, list_gpus())] == chosen


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


@pytest.mark.parametrize(
    "script",
    [
        "echo 'No devices were found'; exit 6",
        "echo 'Unable to determine the device handle for GPU0: 0000:36:00.0: Unknown Error'; exit 15",
        "echo '<nvidia_smi_log></nvidia_smi_log>'",
    ],
)
def test_a_gpu_that_the_driver_no_longer_shows_is_missing(driver: Callable[[str], None], script: str) -> None:
    driver(script)
    with pytest.raises(DeviceMissingError):
        read_usage(Device("GPU-a", "A"))


@pytest.mark.parametrize("script", ["echo 'Failed to initialize NVML'; exit 18", "echo half a doc"])
def test_a_driver_that_does_not_answer_shows_no_gpus_and_no_usage(
    driver: Callable[[str], None], script: str
) -> None:
    driver(f"{script}; exit 18")
    assert list_gpus() == []
    assert read_usage(Device("GPU-a", "A")) is None


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpus() == []
    assert read_usage(Device("GPU-a", "A")) is None
