"""What a job needs of a device, told before it takes one."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from luthier.database import Database
from luthier.errors import LuthierError
from luthier.planning import ModelShape
from luthier.service import workers
from luthier.status import Queue, State
from luthier.tables import JobEvent, Worker
from tests.factories import NOW, create_job, prepare

GIB = 1 << 30
# The sizes of Llama 2 7B (Touvron et al. 2023, arXiv 2307.09288).
SEVEN_B = ModelShape.from_config(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    }
)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _create_worker(session: Session, device: str = "GPU-1", labels: str = "", **resources: Any) -> None:
    worker = workers.record_worker(
        session, f"host/{device}", instance_id="i", host="host", queue=Queue.TRAIN, device=device,
        version="0", resources=resources, state="active", now=NOW,
    )  # fmt: skip
    worker.labels = labels
    session.flush()


@pytest.mark.parametrize(
    ("asked", "param", "told"),
    [
        ({"gpus": 2}, "resources.gpus", "at most 1"),
        ({"labels": ["eu", "fast"]}, "resources.labels", "eu, quiet"),
        ({"memory_gb": 25}, "resources.memory_gb", "24.0"),
        ({"labels": ["quiet"], "memory_gb": 20}, "resources.memory_gb", "16.0"),
    ],
)
def test_what_no_known_worker_could_run_is_refused_by_its_field(
    session: Session, asked: dict[str, Any], param: str, told: str
) -> None:
    create_job(session, "ftjob-0", resources=asked)
    _create_worker(session, "GPU-1", "eu", memory_bytes=24 * GIB)
    _create_worker(session, "GPU-2", "quiet", memory_bytes=16 * GIB)
    with pytest.raises(LuthierError, match=told) as caught:
        create_job(session, resources=asked)
    assert (caught.value.code, caught.value.param) == ("capacity_exceeded", param)
    assert create_job(session, "ftjob-2", resources=asked, now=NOW + timedelta(days=2)).state == State.QUEUED


def test_a_worker_that_appears_is_there_for_the_next_job(session: Session) -> None:
    asked = {"labels": ["eu"]}
    _create_worker(session, "GPU-1")
    with pytest.raises(LuthierError):
        create_job(session, "ftjob-0", resources=asked)
    _create_worker(session, "GPU-2", "eu")
    assert create_job(session, "ftjob-1", resources=asked).state == State.QUEUED


def _told(session: Session) -> list[str]:
    return [event.message for event in session.query(JobEvent).filter_by(kind="no_worker_now")]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"state": "sick", "reason": "ECC"}, "host/GPU-1 is set aside: ECC"),
        ({"state": "stopped"}, "host/GPU-1 was last heard of at 2026-01-01 00:00 UTC"),
        ({"heartbeat_at": NOW - timedelta(hours=1)}, "host/GPU-1 was last heard of at 2025-12-31 23:00 UTC"),
        ({"state": "draining"}, None),
    ],
)
def test_a_job_that_only_an_absent_worker_could_run_is_accepted_and_told_so(
    session: Session, fields: dict[str, Any], told: str | None
) -> None:
    _create_worker(session, "GPU-1", "eu", memory_bytes=24 * GIB)
    _create_worker(session, "GPU-2", "quiet", memory_bytes=16 * GIB)
    session.execute(update(Worker).where(Worker.id == "host/GPU-1").values(**fields))
    job = create_job(session, resources={"labels": ["eu"]})
    create_job(session, "ftjob-2")
    assert job.state == State.QUEUED
    assert [text.rpartition("now. ")[2] for text in _told(session)] == ([] if told is None else [told])


def test_once_its_memory_is_known_a_job_is_told_that_only_an_absent_worker_has_it(session: Session) -> None:
    _create_worker(session, "GPU-1", memory_bytes=24 * GIB)
    _create_worker(session, "GPU-2", memory_bytes=2 * GIB)
    workers.set_aside(session, "host/GPU-1", "ECC")
    job = create_job(session)
    assert _told(session) == []
    prepare(session, shape=SEVEN_B)
    assert (job.state, len(_told(session))) == (State.QUEUED, 1)
    assert "host/GPU-1 is set aside: ECC" in _told(session)[0]


def test_a_worker_on_the_cpu_has_memory_for_all(session: Session) -> None:
    _create_worker(session, "cpu", memory_bytes=0)
    job = create_job(session, resources={"memory_gb": 500})
    assert (job.memory_bytes, job.gpu_count, job.state) == (500 * GIB, 1, State.QUEUED)


def test_a_prepared_job_knows_its_memory_and_its_time(session: Session) -> None:
    _create_worker(session, name="NVIDIA L4", memory_bytes=24 * GIB)
    job = create_job(session)
    prepare(session, shape=SEVEN_B)
    assert job.state == State.QUEUED
    assert job.memory_bytes is not None
    # Four-bit weights of 6.7e9 parameters take 3.4e9 bytes; scales, adapters and activations come on top.
    assert 3.5e9 < job.memory_bytes < 10e9
    assert job.estimated_seconds is not None
    assert job.estimated_seconds > 1


def test_what_the_request_says_about_memory_stands(session: Session) -> None:
    _create_worker(session, memory_bytes=4 * GIB)
    job = create_job(session, resources={"memory_gb": 3.5})
    prepare(session, shape=SEVEN_B)
    assert (job.state, job.memory_bytes) == (State.QUEUED, int(3.5 * GIB))


def test_a_job_that_no_known_device_has_memory_for_fails_with_what_to_change(session: Session) -> None:
    _create_worker(session, memory_bytes=12 * GIB)
    job = create_job(session, qlora={"method": "full"})
    prepare(session, shape=SEVEN_B)
    assert (job.state, job.error_code) == (State.FAILED, "capacity_exceeded")
    assert "the largest device has 12,042 MiB" in (job.error_message or "")
    assert "qlora.quantization" in json.dumps(job.error_details)
    assert (job.error_message or "").count("MiB, which") == 3


def test_without_a_known_worker_a_job_waits_for_one(session: Session) -> None:
    job = create_job(session, qlora={"method": "full"})
    prepare(session, shape=SEVEN_B)
    assert job.state == State.QUEUED
