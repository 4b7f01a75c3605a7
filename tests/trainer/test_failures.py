"""Errors of the libraries, told as failures of the job."""

import errno
import resource
import signal
from pathlib import Path

import pytest
import torch

from luthier.errors import ExitCode, JobFailure
from trainer.failures import failure_of


@pytest.fixture
def settings(make_run):
    return make_run().spec.hyperparameters


@pytest.fixture
def no_room():
    """Files may not grow past 100 kB: room for the adapter of the tiny model, not for its optimizer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_known_from_pythons_error(settings):
    with pytest.raises(OSError, match="No space") as error:
        Path("/dev/full").write_text("x")

    failure = failure_of(error.value, settings)
    assert (failure.code, failure.exit_code) == ("disk_full", ExitCode.DISK_FULL)


def test_a_checkpoint_without_room_ends_the_run_and_leaves_no_half(make_run, no_room):
    run = make_run()

    with pytest.raises(JobFailure) as failure:
        run.train()

    assert (failure.value.code, failure.value.exit_code) == ("disk_full", ExitCode.DISK_FULL)
    assert run.events("checkpoint_saved") == []
    assert list((run.folder / "checkpoints").iterdir()) == []


def test_a_cause_counts_as_the_error(settings):
    error = RuntimeError("while saving")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")

    assert failure_of(error, settings).code == "disk_full"


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), RuntimeError("I/O error: x (os error 5)")]
)
def test_a_broken_disk_is_no_full_one(settings, error):
    failure = failure_of(error, settings)

    assert (failure.code, failure.exit_code) == ("io_error", ExitCode.IO_ERROR)


def test_out_of_memory_names_what_to_change(settings):
    failure = failure_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), settings)

    assert (failure.code, failure.exit_code) == ("out_of_memory", ExitCode.GPU_OUT_OF_MEMORY)
    assert "1. set batch_size to 1 (now 2) and gradient_accumulation to 4 (now 2)" in failure.message
    assert "2. set max_seq_length to 64 (now 128)" in failure.message
    assert [detail["loc"] for detail in failure.details] == [
        "method.supervised.hyperparameters.batch_size",
        "qlora.max_seq_length",
    ]


def test_the_advice_for_memory_comes_in_the_order_of_its_effect(make_run):
    settings = {
        "method": "lora",
        "quantization": "none",
        "gradient_checkpointing": False,
        "max_seq_length": 2048,
    }

    failure = failure_of(MemoryError(), make_run(**settings).spec.hyperparameters)

    said = [failure.message.index(text) for text in ("4 bit", "batch_size to 1", "checkpointing", "to 512")]
    assert said == sorted(said)


def test_a_fault_of_the_gpu_is_told_with_its_first_line(settings):
    error = RuntimeError(
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."
    )

    failure = failure_of(error, settings)

    assert (failure.code, failure.exit_code) == ("gpu_fault", ExitCode.GPU_FAULT)
    assert "illegal memory access" in failure.message
    assert "might be" not in failure.message


def test_what_is_not_known_stays_what_it_is(settings):
    assert failure_of(ValueError("CUDA error in a sentence of the user"), settings) is None
