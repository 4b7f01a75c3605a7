"""`luthier train`: the trainer without a server, on the tiny model, with its exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.local_job import LocalJob
from luthier.cli.local_run import plan_training
from luthier.spec import BaseModelRef, JobRequest, PreparedData, PreparedSplit, TrainSpec

ROWS = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(12)
]


@pytest.fixture
def job_file(tmp_path: Path, data_dir: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job on the tiny model, with its data beside it."""
    monkeypatch.setenv("LUTHIER_MODEL_DIR", str(model_dir))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = tmp_path / "job.yaml"
    path.write_text(
        "model: tiny\ntraining_file: rows.jsonl\nhyperparameters: {batch_size: 2}\n"
        "qlora: {r: 4, max_seq_length: 64, max_steps: 40, eval_steps: 20, save_steps: 99, logging_steps: 1}\n"
        "dataset: {validation_split: 0.2}\n"
    )
    return path


@pytest.mark.full
def test_a_run_that_is_stopped_goes_on_from_its_checkpoint(job_file: Path, tmp_path: Path) -> None:
    options = ["-o", str(tmp_path / "out"), "--threads", "1"]
    command = [sys.executable, "-P", "-m", "luthier.cli", "train", str(job_file), *options]
    with subprocess.Popen(
        command,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("step 3/40"):
            assert line, "the run ended before its third step"
        process.send_signal(signal.SIGINT)
        rest = process.communicate()
    assert process.returncode == 85, rest
    assert re.search(r"Stopped, step-\d+ is kept; go on with: .* --threads=1 .* --resume", rest[1])

    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "step 3/40" not in resumed.stdout
    assert "answer at step 40: " in resumed.stdout
    assert (tmp_path / "out" / "artifacts" / "adapter" / "adapter_model.safetensors").is_file()
    metrics = (tmp_path / "out" / "artifacts" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in metrics[1:]] == [str(step) for step in range(41)]


@pytest.mark.full
def test_a_run_that_is_stopped_while_it_loads_claims_no_checkpoint(job_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "luthier.cli", "train", str(job_file), "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not (tmp_path / "out" / "spec.json").is_file():
            assert process.poll() is None, "the run ended before its training began"
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 85, told
    assert "Stopped before the first checkpoint; start again with" in told


def test_a_seed_is_taken_as_asked_or_drawn_once(tmp_path: Path) -> None:
    split = PreparedSplit(path="train.parquet", sha256="0", row_count=9, token_count=9, trained_token_count=9)

    (tmp_path / "rows.jsonl").write_text("{}\n")

    def plan(**asked: int) -> TrainSpec:
        request = JobRequest(model="tiny", training_file=str(tmp_path / "rows.jsonl"), **asked)
        job = LocalJob(request, tmp_path, tmp_path)
        model, data = BaseModelRef(id="tiny", path="/tiny"), PreparedData(train=(split,))
        return plan_training(tmp_path, job, model, data, max_seq_length=8, device="cpu")

    assert plan(seed=5).hyperparameters.seed == 5
    first = plan()
    (tmp_path / "spec.json").write_text(first.model_dump_json())
    assert plan().hyperparameters.seed == first.hyperparameters.seed


def test_bad_data_end_it_with_their_line_and_exit_code(luthier: Callable[..., Any], job_file: Path) -> None:
    with (job_file.parent / "rows.jsonl").open("a") as file:
        file.write('{"messages": []}\n')
    result = luthier("train", job_file, "-o", job_file.parent / "out")
    assert result.exit_code == 65
    assert "13" in result.output


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("qlora.r=0", "Invalid value for 'qlora.r': 0. Expected a value of at least 1."),
        ("qlora.rank=8", "Unknown parameter: 'qlora.rank'. Did you mean"),
        ("qlora.target_modules=q_prj", "Supported: 'all-linear' or a list of module names"),
        ("training_file=file-abc", "without a server it must be a path"),
    ],
)
def test_a_bad_job_is_refused_before_anything_is_done(
    luthier: Callable[..., Any], job_file: Path, setting: str, message: str
) -> None:
    result = luthier("train", job_file, "-o", job_file.parent / "out", "--set", setting)
    assert result.exit_code == 2
    assert message in result.output
    assert not (job_file.parent / "out").exists()


def test_a_path_of_a_setting_starts_at_the_working_folder(
    luthier: Callable[..., Any], job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(job_file.parent)
    (job_file.parent / "data").mkdir()
    (job_file.parent / "rows.jsonl").rename(job_file.parent / "data" / "others.jsonl")
    told = luthier("train", job_file, "--dry-run", "--set", "training_file=data/others.jsonl")
    assert told.exit_code == 0, told.output
    missing = luthier("train", job_file, "--dry-run", "--set", "training_file=data/none.jsonl")
    assert (missing.exit_code, "there is no file data/none.jsonl" in missing.output) == (2, True)


def test_an_unknown_model_is_told_with_the_way_to_one(luthier: Callable[..., Any], job_file: Path) -> None:
    ways = {
        "nothing": "Models here: tiny.",
        "tinny": "did you mean tiny?",
        "smollm2-135m-instruct": "luthier models add-sample smollm2-135m-instruct",
        "Qwen/Qwen3-0.6B": "luthier models pull Qwen/Qwen3-0.6B",
    }
    for model, way in ways.items():
        result = luthier("train", job_file, "--dry-run", "--set", f"model={model}")
        assert result.exit_code == 1
        assert way in result.output


def test_a_dry_run_tells_that_template_and_model_disagree(
    luthier: Callable[..., Any], job_file: Path
) -> None:
    told = luthier("train", job_file, "--dry-run", "--set", "dataset.template=llama3", "--set", "seed=7")
    assert told.exit_code == 0, told.output
    assert "warning: The template llama3 ends a turn with <|eot_id|>" in told.output


def test_modules_that_the_model_lacks_are_told_before_anything_is_done(
    luthier: Callable[..., Any], job_file: Path
) -> None:
    asked = ("--set", "qlora.target_modules=[q_prj]")
    result = luthier("train", job_file, "-o", job_file.parent / "out", *asked)
    assert result.exit_code == 1
    assert "names q_prj, which the model does not have. It has: down_proj" in result.output
    assert not (job_file.parent / "out").exists()


def test_a_folder_with_a_run_is_not_overwritten(luthier: Callable[..., Any], job_file: Path) -> None:
    (job_file.parent / "out").mkdir()
    (job_file.parent / "out" / "spec.json").write_text("{}")
    result = luthier("train", job_file, "-o", job_file.parent / "out")
    assert result.exit_code == 1
    assert "choose another --output" in result.output
