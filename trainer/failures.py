"""Errors of the libraries told as failures of the job, each with its exit code and what to change.

Entered as a context by the recipe, the one border between foreign code and the supervisor. What is not
recognised passes through unchanged and ends in `__main__` as an error of the server.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from luthier.errors import ExitCode, JobFailure
from luthier.spec import HYPERPARAMETERS_PATH, Hyperparameters

# No space, no quota, or past the limit that the process has for a file.
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GPU_FAULT_WORDS = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS")
_OUT_OF_MEMORY_WORDS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")


@dataclass(frozen=True)
class Shortage:
    """Where memory ran out.

    Attributes:
        step: counted from 1; the step that was being computed or, in the probe, the next one.
        peak_memory_bytes: the most that was held before.
        longest_row_tokens: of the examples in the step.
        batch_size: rows in a micro-batch.
    """

    step: int
    peak_memory_bytes: int
    longest_row_tokens: int
    batch_size: int
    is_on_gpu: bool

    def facts(self) -> dict[str, int]:
        """What a program may want to know."""
        return {
            "step": self.step,
            "peak_memory_bytes": self.peak_memory_bytes,
            "longest_row_tokens": self.longest_row_tokens,
            "micro_batch_rows": self.batch_size,
        }


@contextmanager
def told_as_failures(settings: Hyperparameters) -> Iterator[None]:
    """Turn what the body raises into `JobFailure` where the kind is known.

    Raises:
        JobFailure: disk full or broken, out of memory, or a fault of the GPU.
    """
    try:
        yield
    except JobFailure:
        raise
    except Exception as error:
        failure = failure_of(error, settings)
        if failure is None:
            raise
        raise failure from error


def failure_of(error: BaseException, settings: Hyperparameters) -> JobFailure | None:
    """The failure that a foreign error means, or None where it is not known."""
    if is_disk_full(error):
        return JobFailure(
            "The disk of the worker is full; the last whole checkpoint is kept. Free space, or lower "
            "save_total_limit, and retry",
            "disk_full",
            ExitCode.DISK_FULL,
        )
    if is_io_error(error):
        return JobFailure(
            "A disk of the worker failed to read or write; the last whole checkpoint is kept. Look at the "
            "device's own log",
            "io_error",
            ExitCode.IO_ERROR,
        )
    if is_out_of_memory(error):
        return out_of_memory(settings)
    if isinstance(error, torch.AcceleratorError) or _says(error, _GPU_FAULT_WORDS):
        first_line = str(error).strip().splitlines()[0]
        return JobFailure(
            f"The GPU failed: {first_line}. Retry; if it comes back, look at the device's own log",
            "gpu_fault",
            ExitCode.GPU_FAULT,
        )
    return None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that the disk is full."""
    return _has_number(error, _DISK_FULL)


def is_io_error(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that a disk failed."""
    return _has_number(error, frozenset({errno.EIO}))


def _has_number(error: BaseException, numbers: frozenset[int]) -> bool:
    """Whether the system gave one of these numbers; safetensors, which is Rust, tells it in its text only."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in numbers:
            return True
        if any(f"(os error {number})" in str(current) for number in numbers):
            return True
        current = current.__cause__
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _says(error, _OUT_OF_MEMORY_WORDS)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def out_of_memory(settings: Hyperparameters, shortage: Shortage | None = None) -> JobFailure:
    """The failure of a run that does not fit, with what to change, the most useful first.

    Args:
        shortage: None where memory ran out outside of a step, as in loading the model.
    """
    advice = _memory_advice(settings, is_on_gpu=shortage is None or shortage.is_on_gpu)
    where = f" at step {shortage.step}" if shortage else ""
    facts = [{"loc": "memory", "message": f"Memory ran out{where}", **shortage.facts()}] if shortage else []
    seen = (
        f" ({shortage.peak_memory_bytes / 2**30:.1f} GiB at the peak; the longest example of the step has "
        f"{shortage.longest_row_tokens} tokens, micro-batches have {shortage.batch_size} rows)"
        if shortage
        else ""
    )
    steps = "; ".join(f"{number}. {text}" for number, (_, text) in enumerate(advice, start=1))
    return JobFailure(
        f"Out of memory{where}{seen}. Change, in this order: {steps}",
        "out_of_memory",
        ExitCode.GPU_OUT_OF_MEMORY,
        advice[0][0],
        [*facts, *({"loc": loc, "message": text} for loc, text in advice)],
    )


def _memory_advice(settings: Hyperparameters, *, is_on_gpu: bool) -> list[tuple[str, str]]:
    """Settings to change and how; only what is not set so already, so there is always the last one."""
    per_step = settings.batch_size * settings.gradient_accumulation
    recomputes = settings.gradient_checkpointing is True or (
        settings.gradient_checkpointing == "auto" and is_on_gpu
    )
    length = settings.max_seq_length
    shorter = 512 if length > 512 else max(8, length // 2)
    advice = [
        (
            settings.quantization not in ("nf4", "fp4"),
            "qlora.method",
            f"train over a base in 4 bit: method 'qlora' with quantization 'nf4' (now {settings.method}, "
            f"{settings.quantization})",
        ),
        (
            settings.batch_size > 1,
            f"{HYPERPARAMETERS_PATH}.batch_size",
            f"set batch_size to 1 (now {settings.batch_size}) and gradient_accumulation to {per_step} (now "
            f"{settings.gradient_accumulation}), which keeps the step; qlora.auto_fit halves it by itself",
        ),
        (
            not recomputes,
            "qlora.gradient_checkpointing",
            f"set gradient_checkpointing to true (now {settings.gradient_checkpointing})",
        ),
        (True, "qlora.max_seq_length", f"set max_seq_length to {shorter} (now {length})"),
    ]
    return [(loc, text) for applies, loc, text in advice if applies]
