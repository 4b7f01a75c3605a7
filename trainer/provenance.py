"""What a run was done with: this build, the libraries, the machine.

Entered by `software` and `hardware`, for the run's manifest. What this machine does not tell is left out,
and nothing is asked of a network.
"""

import os
import platform
import subprocess
from pathlib import Path

import torch

import luthier
from luthier.spec.manifest import ManifestHardware, ManifestSoftware
from trainer import versions
from trainer.placement import Placement

_ROOT = Path(__file__).resolve().parent.parent
# Set where an image is built, since no checkout is in it.
_COMMIT_VARIABLE = "LUTHIER_COMMIT"
_GIT_SECONDS = 5


def software() -> ManifestSoftware:
    """The versions that decide what a run computes."""
    return ManifestSoftware(
        luthier_version=luthier.__version__,
        luthier_commit=commit(),
        python_version=platform.python_version(),
        platform=platform.platform(),
        libraries=versions.library_versions(),
    )


def hardware(place: Placement) -> ManifestHardware:
    """The device of a run and the machine around it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if place.is_cuda:
        gpu = torch.cuda.get_device_properties(place.device)
        name, device_memory = gpu.name, gpu.total_memory
    else:
        name, device_memory = _cpu_name(), memory
    return ManifestHardware(
        device=place.device.type,
        device_name=name,
        device_memory_bytes=device_memory,
        cpu_count=len(os.sched_getaffinity(0)),
        memory_bytes=memory,
    )


def commit() -> str | None:
    """The commit of this source, as the build or the checkout says; None where neither does."""
    if given := os.environ.get(_COMMIT_VARIABLE):
        return given
    if not (_ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(_ROOT), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
