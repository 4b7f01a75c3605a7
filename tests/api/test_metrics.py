"""What Prometheus is told, on SQLite and on Postgres."""

from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from luthier import events
from luthier.database import clock
from luthier.installation import Installation
from luthier.service import control, endings, leadership, recording, workers
from luthier.status import BlockedOn, Queue
from tests.factories import NOW, claim, create_file, create_job, create_prepared_job


@pytest.fixture
def app_database_url(database_url: str) -> str:
    return database_url


def _scrape(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples by name and labels."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name.removeprefix("luthier_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_tell_of_every_kind_of_job(client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session, "ftjob-runs")
        taken = claim(session, now=NOW + timedelta(seconds=40))
        assert taken is not None
        create_job(session, "ftjob-waits", qlora={"method": "lora"})
        create_file(session, "file-large", report=None)
        lines = [
            events.RunStarted(),
            events.StepLogged(at=1_800_000_000, step=7, total_steps=96, epoch=0.1, trained_token_count=50),
        ]
        recording.record_events(session, taken.lease, lines, offset=1, now=NOW)
        now = clock(session)
        for worker_id, at in (("host/gpu0", now), ("host/gpu1", now - timedelta(hours=1))):
            workers.record_worker(
                session, worker_id, instance_id="i", host="host", queue=Queue.TRAIN, device="cpu",
                version="1", resources={}, state="active", now=at,
            )  # fmt: skip
    found = _scrape(client)
    assert found["jobs", (("status", "running"),)] == found["jobs", (("status", "queued"),)] == 1
    assert found["jobs_created_total", (("method", "lora"),)] == 1
    assert found["queue_depth", (("queue", "cpu"),)] == 2
    assert found["queue_depth", (("queue", "train"),)] == 0
    assert found["worker_slots_busy", (("queue", "train"),)] == 1
    assert found["workers_online", (("queue", "train"),)] == 1
    assert found["last_step_timestamp_seconds", ()] == 1_800_000_000
    assert found["train_steps_total", (("method", "qlora"),)] == 7
    assert found["train_tokens_total", (("method", "qlora"),)] == 0
    assert found["job_queue_wait_seconds_bucket", (("le", "30.0"), ("queue", "train"))] == 0
    assert found["job_queue_wait_seconds_bucket", (("le", "60.0"), ("queue", "train"))] == 1
    assert found["job_queue_wait_seconds_sum", (("queue", "train"),)] == pytest.approx(40, abs=0.01)
    assert found["uploads_bytes", ()] == 20
    assert found["storage_free_bytes", ()] > 0


def test_metrics_tell_of_those_who_keep_jobs_going(client: TestClient, installation: Installation) -> None:
    before = _scrape(client)
    with installation.database.transaction() as session:
        create_prepared_job(session)
        now = clock(session)
        leadership.lead(session, "a", lease_seconds=60, now=now)
        for state in ("active", "sick", "stopped"):
            workers.record_worker(
                session, f"host/{state}", instance_id="i", host="host", queue=Queue.TRAIN, device="cpu",
                version="1", resources={}, state=state, now=now,
            )  # fmt: skip
    found = _scrape(client)
    doorbell = (("topic", "doorbell"),)
    assert before["dispatcher_leads", ()] == before["outbox_waiting", doorbell] == 0
    assert before["workers", (("queue", "train"), ("state", "sick"))] == 0
    assert found["dispatcher_leads", ()] == 1
    assert found["workers", (("queue", "train"), ("state", "sick"))] == 1
    assert found["outbox_waiting", doorbell] == 2
    assert found["outbox_oldest_age_seconds", doorbell] > 0
    assert found["jobs_by_state", (("state", "queued"),)] == 1
    assert found["jobs_by_state", (("state", "blocked"),)] == 0


def test_metrics_tell_what_jobs_wait_for(client: TestClient, installation: Installation) -> None:
    assert _scrape(client)["jobs_waiting", (("reason", "retry"),)] == 0
    with installation.database.transaction() as session:
        create_prepared_job(session)
        taken = claim(session)
        assert taken is not None
        endings.block_run(
            session, taken.lease, blocked_on=BlockedOn.DISK, message="full", exit_code=73, now=NOW
        )
        leadership.lead(session, "a", lease_seconds=60, now=NOW)
        session.flush()
        leadership.lead(session, "b", lease_seconds=60, now=NOW + timedelta(hours=1))
    found = _scrape(client)
    assert found["jobs_waiting", (("reason", "disk"),)] == 1
    assert found["dispatcher_changes_total", ()] == 2
    assert found["disk_has_room", ()] == 1


def test_metrics_count_what_has_ended(client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session)
        taken = claim(session)
        assert taken is not None
        lines = [
            events.RunStarted(),
            events.StepLogged(step=7, total_steps=96, epoch=0.1, trained_token_count=50),
        ]
        recording.record_events(session, taken.lease, lines, offset=1, now=NOW)
        control.request_cancel(session, taken.job, now=NOW)
        endings.stop_run(session, taken.lease, exit_code=85, now=NOW + timedelta(seconds=100))
        create_file(session, "file-large", report=None)
        work = claim(session, Queue.CPU)
        assert work is not None
        endings.start_finalizing(session, work.lease, now=NOW)
        endings.succeed_validation(
            session, work.lease, report={"valid": False}, message="bad", new_work_id=lambda: "work-x", now=NOW
        )
    found = _scrape(client)
    assert found["jobs_finished_total", (("error_class", ""), ("status", "cancelled"))] == 1
    assert found["train_tokens_total", (("method", "qlora"),)] == 50
    labels = (("method", "qlora"), ("status", "cancelled"))
    assert found["job_run_seconds_sum", labels] == pytest.approx(100, abs=0.01)
    assert found["job_run_seconds_bucket", (("le", "+Inf"), *labels)] == 1
    assert found["dataset_validations_total", (("result", "invalid"),)] == 1


def test_every_metric_has_the_prefix_and_no_label_has_an_id(client: TestClient) -> None:
    text = client.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    assert all(family.name.startswith("luthier_") for family in families)
    labels = {name for family in families for sample in family.samples for name in sample.labels}
    assert labels <= {
        "status", "state", "method", "error_class", "queue", "topic", "kind", "result", "version", "le",
            "reason",
    }  # fmt: skip
