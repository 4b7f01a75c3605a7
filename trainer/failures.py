"""Errors of the libraries told as failures of the job, each with its exit code and what to change.

Entered as a context by the recipe, the one border between foreign code and the supervisor. What is not
recognised passes through unchanged and ends in `__main__` as an error of the server.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from luthier.errors import ExitCode, JobFailure
from luthier.spec import Hyperparameters

# No space, no quota, or past the limit that the process has for a file.
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GPU_FAULT_WORDS = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS")
_OUT_OF_MEMORY_WORDS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")


@contextmanager
def told_as_failures(settings: Hyperparameters) -> Iterator[None]:
    """Turn what the body raises into `JobFailure` where the kind is known.

    Raises:
        JobFailure: disk full, out of memory, or a fault of the GPU.
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
    if is_out_of_memory(error):
        return JobFailure(_out_of_memory_message(settings), "out_of_memory", ExitCode.GPU_OUT_OF_MEMORY)
    if isinstance(error, torch.AcceleratorError) or _says(error, _GPU_FAULT_WORDS):
        first_line = str(error).strip().splitlines()[0]
        return JobFailure(
            f"The GPU failed: {first_line}. Retry; if it comes back, look at the device's own log",
            "gpu_fault",
            ExitCode.GPU_FAULT,
        )
    return None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that the disk is full.

    safetensors writes in Rust and tells the number in its text only.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in _DISK_FULL:
            return True
        if any(f"(os error {number})" in str(current) for number in _DISK_FULL):
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


def _out_of_memory_message(settings: Hyperparameters) -> str:
    return (
        f"Out of memory. Lower batch_size (now {settings.batch_size}; raise gradient_accumulation as much "
        f"to keep the step), lower max_seq_length (now {settings.max_seq_length}), or set "
        f"gradient_checkpointing to true (now {settings.gradient_checkpointing})"
    )
