"""Estimates: what a job would be and cost, with nothing submitted."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.database import clock
from luthier.installation import Installation
from luthier.service import workers
from luthier.status import Kind, Queue
from luthier.tables import Job, Run
from tests.factories import create_tuned_job
from worker.agent import Agent

_URL = "/v1/fine_tuning/jobs"


def _training_jobs(installation: Installation) -> int:
    with installation.database.reading() as session:
        return session.query(Job).filter(Job.kind == Kind.TRAIN).count()


@pytest.fixture
def body(file_id: str) -> dict[str, Any]:
    """A job's body."""
    return {"model": "tiny", "training_file": file_id, "qlora": {"r": 4, "max_seq_length": 64}}


@pytest.fixture
def gpu(installation: Installation) -> None:
    """An agent with a GPU of 80 GiB says that it is there, and so does one with a CPU and more memory."""
    with installation.database.transaction() as session:
        for device, size in (("GPU-1", 80), ("cpu", 500)):
            workers.record_worker(
                session, f"host/train-{device}", instance_id="i", host="host", queue=Queue.TRAIN,
                device=device, version="0", resources={"name": "NVIDIA H100", "memory_bytes": size << 30},
                state="active", now=clock(session),
            )  # fmt: skip


def test_an_estimate_tells_what_a_job_would_be(
    client: TestClient, body: Any, agent: Agent, gpu: None, installation: Installation
) -> None:
    answer = client.post(f"{_URL}/estimate", json=body)
    told = answer.json()
    assert (answer.status_code, told["valid"], told["problems"]) == (200, True, [])
    assert (told["examples"], told["steps"], told["tokens"]["is_exact"]) == (4, 12, True)
    assert (told["resolved_qlora"]["r"], told["queue"]["position"]) == (4, 1)
    assert (told["memory"]["fits"], told["memory"]["available_mb"]) == (True, 80 << 10)
    assert 0 < told["seconds"]["p50"] <= told["seconds"]["p90"]
    assert _training_jobs(installation) == 0


def test_time_is_told_from_jobs_on_the_same_kind_of_device(
    client: TestClient, body: Any, agent: Agent, gpu: None, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        create_tuned_job(session).progress = {"tokens_per_second": 1000.0}
    assert client.post(f"{_URL}/estimate", json=body).json()["seconds"]["basis"] == "formula, measured device"
    with installation.database.transaction() as session:
        session.query(Run).update({Run.device: "GPU-1"})
    assert client.post(f"{_URL}/estimate", json=body).json()["seconds"]["basis"] == "past runs"


def test_a_dry_run_is_an_estimate(
    client: TestClient, body: Any, agent: Agent, installation: Installation
) -> None:
    estimate = client.post(f"{_URL}/estimate", json=body).json()
    assert client.post(f"{_URL}?dry_run=true", json=body).json() == estimate
    assert _training_jobs(installation) == 0


def test_data_that_was_prepared_is_counted_exactly_and_not_measured_again(
    client: TestClient, body: Any, make_agent: Callable[[], Agent], installation: Installation
) -> None:
    client.post(_URL, json=body)
    make_agent().drain()
    told = client.post(f"{_URL}/estimate", json=body).json()
    assert (told["examples"], told["train_tokens"], told["tokens"]["is_exact"]) == (64, 1920, True)
    assert told["queue"]["position"] == 2
    with installation.database.reading() as session:
        assert session.query(Job).filter(Job.work_key.is_not(None)).count() == 0


def test_a_model_that_is_not_here_leaves_numbers_open(client: TestClient, body: Any) -> None:
    told = client.post(f"{_URL}/estimate", json=body | {"model": "Qwen/Qwen3-0.6B"}).json()
    assert (told["steps"], told["memory"]) == (None, None)
    assert "not on this machine" in told["unavailable_reason"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"qlora": {"r": 0}}, "qlora.r"),
        ({"training_file": "file-nobody"}, "training_file"),
        ({"dataset": {"files": [{"id": "file-nobody"}]}}, "dataset.files[0].id"),
        ({"dataset": {"template": "no-such-template"}}, "dataset.template"),
        ({"model": "nobody"}, "model"),
        ({"model": "ft:tiny:org-local::x"}, "model"),
    ],
)
def test_what_a_job_would_be_refused_for_is_refused_here(
    client: TestClient, body: Any, change: Any, param: str
) -> None:
    for path in (_URL, f"{_URL}/estimate", f"{_URL}?dry_run=true"):
        answer = client.post(path, json=body | change)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
