"""`luthier demo`: the whole of it, with the real small model and few steps."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.cli.demo import job_body
from luthier.devices import Device
from luthier.spec import JobRequest


@pytest.mark.parametrize("device", [Device("cpu", "CPU"), Device("GPU-1", "some GPU", 0, 80 << 30)])
def test_its_job_is_a_valid_one_on_every_device(device: Device) -> None:
    request = JobRequest.model_validate(job_body("file-1", device, None))
    assert (request.qlora.r, request.qlora.quantization, request.qlora.target_modules) == (
        16,
        "nf4",
        "all-linear",
    )
    assert (request.qlora.max_steps is None) == device.is_gpu


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_it_trains_and_shows_that_the_loss_fell(data_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-P", "-m", "luthier.cli", "demo", "-o", str(output), "--max-steps", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    change = re.search(r"Validation loss: (\d+\.\d+) before, (\d+\.\d+) after", done.stdout)
    assert change is not None
    assert float(change[2]) < float(change[1])
    assert "  tuned: " in done.stdout
    assert (output / "adapter" / "adapter_model.safetensors").is_file()
    assert (output / "training_loss.png").is_file()
    with (output / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(13))
