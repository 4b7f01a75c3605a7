"""The devices of this host, found without torch: NVIDIA GPUs by UUID, else the CPU.

A UUID names the same card for every process, whatever CUDA_VISIBLE_DEVICES says elsewhere.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import invalid

CPU = "cpu"
_QUERY = "index,uuid,name,memory.total"
_TIMEOUT_SECONDS = 20
_CPUINFO = Path("/proc/cpuinfo")
# What oneDNN asks for before it computes in bf16 on x86; seen with torch 2.13 under ONEDNN_MAX_CPU_ISA.
_X86_FLAGS = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
_ARM_FLAG = "bf16"


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        id: a GPU's UUID, or `cpu`.
        memory_bytes: of a GPU, or of the machine; 0 where nobody knows.
        has_bf16: whether matrix products in bf16 are fast on it; taken for granted of a GPU.
    """

    id: str
    name: str
    index: int = 0
    memory_bytes: int = 0
    has_bf16: bool = True

    @property
    def is_gpu(self) -> bool:
        return self.id != CPU

    def environment(self) -> dict[str, str]:
        """What a child process needs to see this device and no other."""
        return {"CUDA_VISIBLE_DEVICES": self.id if self.is_gpu else ""}


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
    """The GPUs that the driver shows; empty where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    if answer.returncode != 0:
        return []
    return [_parse(line) for line in answer.stdout.splitlines() if line.strip()]


def choose_devices(wanted: str, gpus: list[Device]) -> list[Device]:
    """The devices that a setting such as `auto`, `cpu` or `0,GPU-4f…` names.

    Raises:
        LuthierError: it names a GPU that is not there.
    """
    cpu = this_cpu()
    if wanted == "auto":
        return gpus or [cpu]
    if wanted == CPU:
        return [cpu]
    by_name = {str(gpu.index): gpu for gpu in gpus} | {gpu.id: gpu for gpu in gpus}
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    missing = [name for name in names if name not in by_name]
    if missing or not names:
        there = ", ".join(f"{gpu.index} ({gpu.id})" for gpu in gpus) or "none"
        raise invalid(f"LUTHIER_GPUS names {', '.join(missing) or 'nothing'}; GPUs here: {there}; or use cpu")
    return [by_name[name] for name in names]


def _parse(line: str) -> Device:
    index, uuid, name, memory_mib = (part.strip() for part in line.split(","))
    return Device(uuid, name, int(index), int(memory_mib) << 20)
