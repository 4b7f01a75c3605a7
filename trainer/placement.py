"""Where a run computes and in which numbers: device and compute type, decided once from the spec.

The rule for "auto": CUDA where there is one, else the CPU; bf16 where the device has instructions for it,
else fp32. Trained weights, their gradients and the optimizer are fp32 in every case; the choice is about the
frozen weights and the matrix products. fp16 needs a loss scale, which the engine keeps.
"""

import resource
from dataclasses import dataclass
from typing import Literal

import torch

from luthier.errors import ExitCode, JobFailure
from luthier.events import WarningRaised
from luthier.spec import Precision
from trainer.versions import cpu_computes_bf16

# Below this many parameters the activations of a run on the CPU fit in ordinary memory.
_CPU_CHECKPOINTING_FROM_PARAMETERS = 1_000_000_000
# The first compute capability with instructions for fp16.
_FP16_CAPABILITY = (5, 3)
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Placement:
    """The device of a run and the type that its matrix products are computed in."""

    device: torch.device
    dtype: torch.dtype

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        return _NAMES[self.dtype]


def choose(device: Literal["auto", "cpu", "cuda"], precision: Precision) -> Placement:
    """The placement that a spec asks for.

    bf16 that is asked for by name on a CPU without it is done, slowly; fp16 where there is none becomes fp32.
    `precision_warning` tells of both.

    Raises:
        JobFailure: "cuda" is asked for and there is none, or bf16 on a GPU that lacks it.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise JobFailure(
            "The run is meant for a GPU and this worker sees no CUDA device: check the driver and "
            "CUDA_VISIBLE_DEVICES, or run on 'cpu'",
            "gpu_fault",
            ExitCode.UNAVAILABLE,
            "device",
        )
    on_cuda = has_cuda and device != "cpu"
    return Placement(
        torch.device("cuda", 0) if on_cuda else torch.device("cpu"), _compute_type(precision, on_cuda)
    )


def precision_warning(placement: Placement, asked: Precision) -> WarningRaised | None:
    """What the user should know of the chosen type: that another was asked for, or that it is slow here."""
    if asked == "fp16" and placement.precision != "fp16":
        return WarningRaised(
            code="precision_unavailable",
            message=f"precision fp16 is for GPUs that compute in it, and this run is on "
            f"{placement.device.type}: it goes on in {placement.precision}. Set precision to 'auto'",
            data={"asked": asked, "used": placement.precision},
        )
    if not placement.is_cuda and placement.precision == "bf16" and not cpu_computes_bf16():
        return WarningRaised(
            code="slow_precision",
            message="This CPU has no bf16 instructions, so bf16 is slow on it: set precision to 'auto' or "
            "'fp32'",
        )
    return None


def wants_checkpointing(setting: bool | Literal["auto"], placement: Placement, parameter_count: int) -> bool:
    """Whether activations are recomputed in the backward pass instead of kept.

    "auto" means on for CUDA, where memory is what runs out, and off on the CPU below 10^9 parameters, where
    time is.
    """
    if setting != "auto":
        return setting
    return placement.is_cuda or parameter_count >= _CPU_CHECKPOINTING_FROM_PARAMETERS


def peak_memory_bytes(placement: Placement) -> int:
    """The most memory held so far: of the GPU's allocator, or of the process."""
    if placement.is_cuda:
        return torch.cuda.max_memory_reserved(placement.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _compute_type(precision: Precision, on_cuda: bool) -> torch.dtype:
    if precision == "fp16":
        has_fp16 = on_cuda and torch.cuda.get_device_capability() >= _FP16_CAPABILITY
        return torch.float16 if has_fp16 else torch.float32
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_cuda else cpu_computes_bf16()
    if precision == "bf16" and on_cuda and not has_bf16:
        raise JobFailure(
            f"{torch.cuda.get_device_name()} does not compute in bf16: set precision to 'fp16', 'fp32' or "
            "'auto'",
            "invalid_spec",
            ExitCode.BAD_SPEC,
            "qlora.precision",
        )
    wants_bf16 = has_bf16 if precision == "auto" else precision == "bf16"
    return torch.bfloat16 if wants_bf16 else torch.float32
