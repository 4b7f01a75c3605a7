"""Where a run computes and in which numbers: device and compute type, decided once from the spec.

The rule for "auto": CUDA where there is one, else the CPU; bf16 where the device has instructions for it,
else fp32. Adapters, their gradients and the optimizer are fp32 in every case; the choice is about the frozen
weights and the matrix products.
"""

import resource
from dataclasses import dataclass
from typing import Literal

import torch

from luthier.errors import ExitCode, JobFailure
from trainer.versions import cpu_computes_bf16

# Below this many parameters the activations of a run on the CPU fit in ordinary memory.
_CPU_CHECKPOINTING_FROM_PARAMETERS = 1_000_000_000


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
        return "bf16" if self.dtype is torch.bfloat16 else "fp32"


def choose(device: Literal["auto", "cpu", "cuda"], precision: Literal["auto", "bf16", "fp32"]) -> Placement:
    """The placement that a spec asks for.

    bf16 that is asked for by name on a CPU without it is done, slowly.

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
    has_bf16 = torch.cuda.is_bf16_supported() if on_cuda else cpu_computes_bf16()
    if precision == "bf16" and on_cuda and not has_bf16:
        raise JobFailure(
            f"{torch.cuda.get_device_name()} does not compute in bf16: set precision to 'fp32' or 'auto'",
            "invalid_spec",
            ExitCode.BAD_SPEC,
            "qlora.precision",
        )
    wants_bf16 = has_bf16 if precision == "auto" else precision == "bf16"
    dtype = torch.bfloat16 if wants_bf16 else torch.float32
    return Placement(torch.device("cuda", 0) if on_cuda else torch.device("cpu"), dtype)


def wants_checkpointing(setting: bool | Literal["auto"], placement: Placement, parameter_count: int) -> bool:
    """Whether activations are recomputed in the backward pass instead of kept.

    "auto" means on for CUDA, where memory is what runs out, and off on the CPU below 10^9 parameters, where
    time is.
    """
    if setting != "auto":
        return setting
    return placement.is_cuda or parameter_count >= _CPU_CHECKPOINTING_FROM_PARAMETERS


def is_emulated(placement: Placement) -> bool:
    """Whether the device lacks instructions for the chosen type, which makes a run tens of times slower."""
    return not placement.is_cuda and placement.dtype is torch.bfloat16 and not cpu_computes_bf16()


def peak_memory_bytes(placement: Placement) -> int:
    """The most memory held so far: of the GPU's allocator, or of the process."""
    if placement.is_cuda:
        return torch.cuda.max_memory_reserved(placement.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
