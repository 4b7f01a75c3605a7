"""The devices of this host, found without torch: NVIDIA GPUs, or their MIG parts, by UUID, else the CPU.

A UUID names the same card for every process, whatever CUDA_VISIBLE_DEVICES says elsewhere. What the driver
knows is read from `nvidia-smi -q -x`; the UUIDs of MIG parts stand in `nvidia-smi -L` alone. A GPU that is
split into parts is no device of its own: CUDA would take the first part for it.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from luthier.errors import invalid

CPU = "cpu"
_TIMEOUT_SECONDS = 20
_CPUINFO = Path("/proc/cpuinfo")
# What oneDNN asks for before it computes in bf16 on x86; seen with torch 2.13 under ONEDNN_MAX_CPU_ISA.
_X86_FLAGS = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
_ARM_FLAG = "bf16"
_SIZE = re.compile(r"(\d+) MiB")
_LISTED_GPU = re.compile(r"GPU \d+: .*\(UUID: (GPU-[^)]+)\)")
_LISTED_PART = re.compile(r"\s+MIG (\S+)\s+Device\s+(\d+):\s+\(UUID: (MIG-[^)]+)\)")
# What `nvidia-smi` says of a GPU that is not there, or has fallen off the bus.
_MISSING = ("No devices were found", "Unable to determine the device handle", "GPU is lost")


class DeviceMissingError(Exception):
    """The driver answers, and does not show the device any more."""


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        id: UUID of a GPU or of a MIG part, or `cpu`.
        memory_bytes: of a GPU in all, or of the machine; 0 where nobody knows.
        has_bf16: whether matrix products in bf16 are fast on it; taken for granted of a GPU.
        parent: UUID of the GPU that a MIG part belongs to.
        instance: the part's GPU instance, which is how the driver speaks of it.
    """

    id: str
    name: str
    index: int = 0
    memory_bytes: int = 0
    parent: str | None = None
    instance: str | None = None
    has_bf16: bool = True

    @property
    def is_gpu(self) -> bool:
        return self.id != CPU

    def environment(self) -> dict[str, str]:
        """What a child process needs to see this device and no other."""
        return {"CUDA_VISIBLE_DEVICES": self.id if self.is_gpu else ""}


@dataclass(frozen=True)
class Usage:
    """How a GPU is used at the moment, by whomever.

    Attributes:
        free_bytes: None where the driver does not tell.
        pids: processes with memory on it, as this host numbers them; a container may see other numbers.
    """

    free_bytes: int | None
    pids: frozenset[int]


def this_cpu() -> Device:
    """The CPU of this machine with the memory beside it."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        told = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    return Device(CPU, "CPU", memory_bytes=memory_bytes, has_bf16=computes_bf16(told))


def computes_bf16(cpuinfo: str) -> bool:
    """Whether the trainer computes in bf16 on a CPU; it asks torch, which `luthier` does not know.

    Args:
        cpuinfo: text of /proc/cpuinfo, on x86-64 or aarch64; an empty one is a no.
    """
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    flags = {
        flag for name, _, value in lines if name.strip() in ("flags", "Features") for flag in value.split()
    }
    return flags >= _X86_FLAGS or _ARM_FLAG in flags


def list_gpus() -> list[Device]:
    """The GPUs that the driver shows, MIG parts in the place of those that are split; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return []
    answer = _ask("-q", "-x")
    if answer is None or answer.returncode != 0:
        return []
    gpus = list(_gpus(answer.stdout))
    is_split = any(_is_split(gpu) for gpu in gpus)
    listed = _ask("-L") if is_split else None
    part_ids = _part_ids(listed.stdout.splitlines()) if listed is not None else {}
    return [device for index, gpu in enumerate(gpus) for device in _devices_of(gpu, index, part_ids)]


def choose_devices(wanted: str, gpus: list[Device]) -> list[Device]:
    """The devices that a setting such as `auto`, `cpu` or `0,GPU-4f…` names; a GPU that is split, all parts.

    Raises:
        LuthierError: it names a GPU that is not there.
    """
    cpu = this_cpu()
    if wanted == "auto":
        return gpus or [cpu]
    if wanted == CPU:
        return [cpu]
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    found = {name: [gpu for gpu in gpus if name in (str(gpu.index), gpu.id, gpu.parent)] for name in names}
    missing = [name for name, devices in found.items() if not devices]
    if missing or not names:
        there = ", ".join(f"{gpu.index} ({gpu.id})" for gpu in gpus) or "none"
        raise invalid(f"LUTHIER_GPUS names {', '.join(missing) or 'nothing'}; GPUs here: {there}; or use cpu")
    chosen = {device.id: device for devices in found.values() for device in devices}
    return list(chosen.values())


def read_usage(device: Device) -> Usage | None:
    """Free memory and processes of a GPU now; None where the driver does not answer.

    Raises:
        DeviceMissingError: the driver does not show it any more.
    """
    answer = _ask("-q", "-x", "-i", device.parent or device.id)
    if answer is None:
        return None
    if any(words in answer.stdout for words in _MISSING):
        raise DeviceMissingError(answer.stdout.strip().splitlines()[0])
    if answer.returncode != 0:
        return None
    gpu = next(_gpus(answer.stdout), None)
    memory = gpu if gpu is None or device.instance is None else _part(gpu, device.instance)
    if gpu is None or memory is None:
        raise DeviceMissingError(f"nvidia-smi does not list {device.id}")
    return Usage(_bytes(memory, "fb_memory_usage/free"), frozenset(_pids(gpu, device.instance)))


def _ask(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    """What `nvidia-smi` answers; None where it cannot be started, or hangs in a broken driver."""
    try:
        process = subprocess.Popen(
            ["nvidia-smi", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError:
        return None
    try:
        output, _ = process.communicate(timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        # Not waited for: one that hangs inside the driver does not even hear this.
        process.kill()
        return None
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def _gpus(text: str) -> Iterator[ElementTree.Element]:
    try:
        # The text comes from the driver's own program on this machine.
        document = ElementTree.fromstring(text)  # noqa: S314
    except ElementTree.ParseError:
        return
    yield from document.iterfind("gpu")


def _devices_of(
    gpu: ElementTree.Element, index: int, part_ids: dict[tuple[str, int], tuple[str, str]]
) -> Iterator[Device]:
    uuid, name = _text(gpu, "uuid"), _text(gpu, "product_name")
    if not _is_split(gpu):
        yield Device(uuid, name, index, _bytes(gpu, "fb_memory_usage/total") or 0)
        return
    for part in gpu.iterfind("mig_devices/mig_device"):
        profile, part_id = part_ids.get((uuid, int(_text(part, "index"))), ("", ""))
        if part_id:
            memory = _bytes(part, "fb_memory_usage/total") or 0
            instance = _text(part, "gpu_instance_id")
            yield Device(part_id, f"{name} MIG {profile}", index, memory, uuid, instance)


def _part_ids(lines: Iterable[str]) -> dict[tuple[str, int], tuple[str, str]]:
    """Profile and UUID of each part, by its GPU's UUID and its number there."""
    found, gpu = {}, ""
    for line in lines:
        if (match := _LISTED_GPU.match(line)) is not None:
            gpu = match[1]
        elif (match := _LISTED_PART.match(line)) is not None:
            found[gpu, int(match[2])] = (match[1], match[3])
    return found


def _is_split(gpu: ElementTree.Element) -> bool:
    return _text(gpu, "mig_mode/current_mig") == "Enabled"


def _part(gpu: ElementTree.Element, instance: str) -> ElementTree.Element | None:
    parts = gpu.iterfind("mig_devices/mig_device")
    return next((part for part in parts if _text(part, "gpu_instance_id") == instance), None)


def _pids(gpu: ElementTree.Element, instance: str | None) -> Iterator[int]:
    for process in gpu.iterfind("processes/process_info"):
        if instance in (None, _text(process, "gpu_instance_id")) and _text(process, "pid").isdigit():
            yield int(_text(process, "pid"))


def _bytes(element: ElementTree.Element, path: str) -> int | None:
    match = _SIZE.fullmatch(_text(element, path))
    return int(match[1]) << 20 if match else None


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
