"""A worker whose storage is a bucket: what it needs is fetched and checked, what it leaves is published."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from luthier import repository
from luthier.database import clock
from luthier.installation import Installation
from luthier.service import sweep
from luthier.settings import Settings
from luthier.status import Queue, State
from luthier.storage import S3Storage
from luthier.tables import File, Job
from tests.factories import create_file, create_job
from tests.luthier.storage.faulty_proxy import BUSY, FaultyProxy, faulty_proxy
from tests.s3 import S3Server
from worker.agent import Agent

MakeAgent = Callable[..., Agent]
JobOf = Callable[[str], Job]


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server.url) as proxy:
        yield proxy


@pytest.fixture
def worker_storage_fields(s3_server: S3Server, proxy: FaultyProxy) -> dict[str, Any]:
    """A storage of its own in the bucket, behind the proxy."""
    fields = s3_server.settings(f"test-{os.urandom(6).hex()}") | {"s3_endpoint_url": proxy.url}
    return fields | {"s3_attempts": 1, "storage_patience_seconds": 0.1}


def _read(installation: Installation, key: str) -> bytes:
    return b"".join(installation.storage.read_range(key, 0, installation.storage.find_size(key) or 0))


def _submit(installation: Installation, job_id: str, **fields: Any) -> str:
    with installation.database.transaction() as session:
        return create_job(session, job_id, **{"model": "tiny", **fields}).id


def _damage(installation: Installation, folder: str, name: str, tmp_path: Path) -> None:
    """Put other bytes where a file of a stored folder lies."""
    stored = next(file.key for file in installation.storage.list_files(folder) if file.key.endswith(name))
    (tmp_path / "other").write_bytes(b"other")
    installation.storage.put(tmp_path / "other", stored)


@contextmanager
def _stopped_in_training(stopping: threading.Event, phase: Callable[[], str | None]) -> Iterator[None]:
    """Set `stopping` as soon as the job is in its training phase."""

    def watch() -> None:
        for _ in range(400):
            if phase() == "training":
                break
            threading.Event().wait(0.05)
        stopping.set()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


def test_a_job_leaves_artifacts_result_checkpoint_and_log_in_the_bucket(
    installation: Installation, settings: Settings, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "done").drain()
    job = job_of(prepared_job)
    assert (job.state, job.error_message) == (State.SUCCEEDED, None)
    with installation.database.reading() as session:
        artifacts = repository.list_artifacts(session, job.id)
        (checkpoint,) = repository.all_checkpoints(session, job.id)
        result_file = session.get_one(File, job.result_file)
    csv = next(item for item in artifacts if item.name == "metrics.csv")
    assert _read(installation, csv.storage_key) == _read(installation, result_file.storage_key)
    assert installation.storage.verify(checkpoint.storage_key).meta["step"] == 2
    assert _read(installation, f"{prepared_job}/e0001/log.txt") == b"the child speaks\n"
    assert isinstance(installation.storage, S3Storage)
    assert not settings.storage.exists()
    assert list(settings.runs.rglob("*.*")) == []


def test_prepared_rows_are_found_by_the_next_job_and_made_anew_when_damaged(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf, tmp_path: Path
) -> None:
    second = _submit(installation, "ftjob-2")
    make_agent(Queue.CPU, "crash").drain()
    assert job_of(second).prepared == job_of(prepared_job).prepared
    _damage(installation, "prepared", "rows.parquet", tmp_path)
    third = _submit(installation, "ftjob-3")
    make_agent(Queue.CPU, "done").drain()
    make_agent(Queue.TRAIN, "done").drain()
    assert [job_of(job_id).state for job_id in (second, third)] == [State.SUCCEEDED] * 2


def test_rows_that_are_damaged_after_preparation_fail_the_job_and_say_what_to_do(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf, tmp_path: Path
) -> None:
    _damage(installation, "prepared", "rows.parquet", tmp_path)
    make_agent(Queue.TRAIN, "done").drain()
    job = job_of(prepared_job)
    assert (job.state, job.error_code) == (State.FAILED, "invalid_training_file")
    assert "Retry the job" in (job.error_message or "")


def test_a_validation_file_is_fetched_too(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    with installation.storage.receive() as incoming:
        incoming.write(b'{"messages": []}\n')
        installation.storage.keep(incoming, "files/file-2")
    with installation.database.transaction() as session:
        create_file(session, "file-2", sha256="2" * 64)
    second = _submit(installation, "ftjob-2", validation_file="file-2")
    make_agent(Queue.CPU, "done").drain()
    make_agent(Queue.TRAIN, "done").drain()
    assert job_of(second).state == State.SUCCEEDED


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_stopped_run_goes_on_from_its_checkpoint_where_that_is_whole(
    installation: Installation,
    make_agent: MakeAgent,
    prepared_job: str,
    job_of: JobOf,
    tmp_path: Path,
    is_damaged: bool,
) -> None:
    stopping = threading.Event()
    agent = make_agent(Queue.TRAIN, "wait", stopping)
    with _stopped_in_training(stopping, lambda: job_of(prepared_job).phase):
        agent.drain()
    if is_damaged:
        _damage(installation, f"{prepared_job}/e0001/checkpoints", "adapter.txt", tmp_path)
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.reading() as session:
        found = repository.list_runs(session, prepared_job)
    assert [(run.outcome, run.from_step) for run in found] == [
        ("stopped", 0),
        ("succeeded", 0 if is_damaged else 3),
    ]


def test_a_job_on_a_tuned_model_gets_its_adapter(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "done").drain()
    second = _submit(installation, "ftjob-2", model=job_of(prepared_job).fine_tuned_model)
    make_agent(Queue.CPU, "done").drain()
    make_agent(Queue.TRAIN, "done").drain()
    job = job_of(second)
    assert (job.state, job.error_message) == (State.SUCCEEDED, None)
    folder = Path(json.loads(json.dumps(job.result))["adapter_from"])
    assert (folder.name, folder.is_relative_to(installation.settings.runs)) == ("adapter", True)


def test_a_bucket_that_is_away_costs_a_try_and_not_the_job(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf, proxy: FaultyProxy
) -> None:
    installation.storage._bucket._client._endpoint.http_session.close()  # type: ignore[attr-defined]
    proxy.faults.append(BUSY)
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.transaction() as session:
        sweep.wake_waiting(session, now=clock(session) + timedelta(hours=1), limit=1)
        session.get_one(Job, prepared_job).not_before = None
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.reading() as session:
        found = repository.list_runs(session, prepared_job)
    assert [run.outcome for run in found] == ["unavailable", "succeeded"]
    assert job_of(prepared_job).state == State.SUCCEEDED


def test_a_file_whose_bytes_are_gone_fails_its_job_and_is_named(
    installation: Installation, make_agent: MakeAgent, job_of: JobOf
) -> None:
    installation.storage.delete("files/file-train")
    job_id = _submit(installation, "ftjob-1")
    make_agent(Queue.CPU, "done").drain()
    job = job_of(job_id)
    assert (job.state, job.error_code) == (State.FAILED, "invalid_training_file")
    assert "rows.jsonl" in (job.error_message or "")
