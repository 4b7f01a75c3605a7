"""From a dataset to an adapter, through real processes and the stock `openai` package."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai.types.fine_tuning import FineTuningJob

from tests.end_to_end.conftest import Service
from tests.s3 import S3Server
from tests.waiting import wait_for

_FINAL = ("succeeded", "failed", "cancelled")
_LOAD_IN_PEFT = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
print(sum(p.abs().sum().item() for n, p in model.named_parameters() if "lora_B" in n) > 0)
"""


def _submit(service: Service, data: Path, *, steps: int, **qlora: Any) -> FineTuningJob:
    client = service.client
    with data.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="fine-tune")
    settings = {"max_steps": steps, "max_seq_length": 64, "r": 4, "logging_steps": 1, "eval_steps": steps}
    return client.fine_tuning.jobs.create(
        model="tiny",
        training_file=uploaded.id,
        method={"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 2}}},
        extra_body={"qlora": settings | qlora, "dataset": {"validation_split": 0.02}},
    )


def _wait_until_ended(service: Service, job_id: str) -> FineTuningJob:
    def ended() -> FineTuningJob | None:
        job = service.client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in _FINAL else None

    job: FineTuningJob = wait_for(ended, 180, f"the end of {job_id} (see {service.folder})")
    return job


def _events(service: Service, job_id: str) -> list[Any]:
    """All events of a job, the first one first."""
    return list(service.client.fine_tuning.jobs.list_events(job_id, limit=50))[::-1]


def _assert_complete(service: Service, job: FineTuningJob, steps: int) -> None:
    """Metrics of every step, events in order, one success."""
    assert job.status == "succeeded", job.error
    metrics = json.loads(service.get(f"/v1/fine_tuning/jobs/{job.id}/metrics"))
    logged = [
        s for s, loss in zip(metrics["data"]["step"], metrics["data"]["train_loss"], strict=True) if loss
    ]
    assert logged == list(range(1, steps + 1))
    messages = [event.message for event in _events(service, job.id) if event.type == "message"]
    assert messages[0] == f"Created fine-tuning job: {job.id}"
    assert messages[-1] == "The job has successfully completed"
    assert messages.count("The job has successfully completed") == 1


def _download(service: Service, job_id: str, folder: Path) -> None:
    """The artifacts as one .tar, each checked against the list."""
    with tarfile.open(
        fileobj=BytesIO(service.get(f"/v1/fine_tuning/jobs/{job_id}/artifacts.tar"))
    ) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
    listed = json.loads(service.get(f"/v1/fine_tuning/jobs/{job_id}/artifacts"))["data"]
    for item in listed:
        assert hashlib.sha256((folder / item["name"]).read_bytes()).hexdigest() == item["sha256"], item[
            "name"
        ]
    assert {"metrics.csv", "training_loss.png", "run.json"} <= {item["name"] for item in listed}


def _loads_in_peft(model: Path, adapter: Path) -> bool:
    """Whether stock peft, in a fresh process, finds a trained adapter."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", _LOAD_IN_PEFT, str(model), str(adapter)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return answer.stdout.strip().endswith("True")


@pytest.mark.full
@pytest.mark.timeout(400)
def test_separate_processes_with_postgres_redis_and_celery(
    service: Service, postgres_url: str, redis_url: str, faq: Path, model_dir: Path, tmp_path: Path
) -> None:
    service.environment |= {"LUTHIER_DATABASE_URL": postgres_url, "LUTHIER_REDIS_URL": redis_url}
    for command in ("api", "dispatcher", "worker"):
        service.start(command)
    service.wait_until_ready()
    job = _wait_until_ended(service, _submit(service, faq, steps=6, save_steps=3).id)
    _assert_complete(service, job, 6)
    assert job.result_files
    csv = service.client.files.content(job.result_files[0]).text
    assert csv.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    _download(service, job.id, tmp_path / "artifacts")
    assert _loads_in_peft(model_dir / "tiny", tmp_path / "artifacts" / "adapter")
    steps = [item.step_number for item in service.client.fine_tuning.jobs.checkpoints.list(job.id)]
    assert steps == [6, 3]


@pytest.mark.full
@pytest.mark.timeout(400)
def test_one_command_and_a_job_that_is_cancelled(service: Service, faq: Path, tmp_path: Path) -> None:
    service.start("up")
    service.wait_until_ready()
    job = _wait_until_ended(service, _submit(service, faq, steps=4).id)
    _assert_complete(service, job, 4)
    _download(service, job.id, tmp_path / "artifacts")

    long_job = _submit(service, faq, steps=100_000)
    jobs = service.client.fine_tuning.jobs
    wait_for(lambda: jobs.retrieve(long_job.id).to_dict().get("phase") == "training", what="training")
    jobs.cancel(long_job.id)
    assert _wait_until_ended(service, long_job.id).status == "cancelled"
    assert jobs.checkpoints.list(long_job.id).data


@pytest.mark.full
@pytest.mark.timeout(400)
def test_a_killed_worker_costs_no_step_and_ends_the_job_once(service: Service, faq: Path) -> None:
    up = service.start("up")
    service.wait_until_ready()
    steps = 150
    job_id = _submit(service, faq, steps=steps, save_steps=10).id
    checkpoints = service.client.fine_tuning.jobs.checkpoints
    wait_for(lambda: checkpoints.list(job_id).data, what="the first checkpoint")
    agent = next(
        child
        for child in psutil.Process(up.pid).children(recursive=True)
        if "worker.agent" in child.cmdline() and "train" in child.cmdline()
    )
    trainer = agent.children()[0]
    agent.send_signal(signal.SIGKILL)
    assert psutil.wait_procs([trainer], timeout=5)[1] == []
    job = _wait_until_ended(service, job_id)
    _assert_complete(service, job, steps)
    messages = [event.message for event in _events(service, job_id)]
    assert any(message.startswith("Resumed from step") for message in messages)


@pytest.mark.full
@pytest.mark.timeout(400)
def test_postgres_and_a_bucket_keep_all_of_a_job(
    service: Service, postgres_url: str, s3_server: S3Server, faq: Path, tmp_path: Path
) -> None:
    prefix = f"test-{os.urandom(6).hex()}"
    service.environment |= s3_server.environment(prefix) | {"LUTHIER_DATABASE_URL": postgres_url}
    service.environment["LUTHIER_S3_PRESIGN"] = "true"
    service.start("up")
    service.wait_until_ready()
    job = _wait_until_ended(service, _submit(service, faq, steps=6, save_steps=3).id)
    _assert_complete(service, job, 6)
    assert job.result_files
    assert service.client.files.content(job.result_files[0]).text.startswith("step,train_loss")
    _download(service, job.id, tmp_path / "artifacts")
    _download_in_two(service, job.id)
    assert not (tmp_path / "data" / "storage").exists()


def _download_in_two(service: Service, job_id: str) -> None:
    """One artifact in two ranges, by the signed address that the API sends the client to."""
    url = f"/v1/fine_tuning/jobs/{job_id}/artifacts"
    model = next(
        item for item in json.loads(service.get(url))["data"] if item["name"].endswith("model.safetensors")
    )
    parts = []
    for asked in ("bytes=0-999", "bytes=1000-"):
        answer = service.client.get(
            f"{url.removeprefix('/v1')}/{model['name']}",
            cast_to=httpx.Response,
            options={"headers": {"Range": asked}},
        )
        parts.append(answer.content)
    assert [len(part) for part in parts] == [1000, model["bytes"] - 1000]
    assert hashlib.sha256(b"".join(parts)).hexdigest() == model["sha256"]
