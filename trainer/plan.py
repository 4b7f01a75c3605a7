"""What planning needs to know of the device that a run stands on, and what it then decides for the run.

The arithmetic is `luthier.planning`'s; this file only looks at the device and at the model's config.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from luthier.planning import DeviceFacts, MemoryEstimate, ModelShape, ShapeError, memory
from luthier.spec import Hyperparameters
from trainer.placement import Placement
from trainer.versions import cpu_computes_bf16

_MEMINFO = Path("/proc/meminfo")


def device_facts(placement: Placement) -> DeviceFacts:
    """The device of a run; what this process holds on it already counts as free."""
    if not placement.is_cuda:
        return DeviceFacts(
            kind="cpu",
            free_bytes=_available_bytes(),
            has_bf16=cpu_computes_bf16(),
            cores=torch.get_num_threads(),
        )
    free, total = torch.cuda.mem_get_info(placement.device)
    return DeviceFacts(
        kind="cuda",
        name=torch.cuda.get_device_name(placement.device),
        total_bytes=total,
        free_bytes=free + torch.cuda.memory_reserved(placement.device),
        has_bf16=torch.cuda.is_bf16_supported(including_emulation=False),
    )


def plan_memory(
    config: Mapping[str, Any],
    settings: Hyperparameters,
    placement: Placement,
    *,
    longest: int,
    row_count: int,
    trained_share: float = 1.0,
) -> MemoryEstimate | None:
    """The memory of a run on its device, activations recomputed or not as the plan has decided.

    Args:
        config: of the model, as `config.to_dict()` gives it.
        longest: tokens of the longest row of the training split.
        row_count: rows of the training split.
    Returns:
        None where the config does not tell the sizes of the model.
    """
    try:
        shape = ModelShape.from_config(config)
    except ShapeError:
        return None
    facts = device_facts(placement)
    # What the run computes in is decided; "auto" is not to be decided again.
    told = settings.model_copy(update={"precision": placement.precision})
    return memory(
        shape, told, longest=longest, device=facts, row_count=row_count, trained_share=trained_share
    )


def _available_bytes() -> int:
    """Memory that a process may still take without pushing others out."""
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
