"""DELETE of a job: what goes, what stays, and when it is refused; on SQLite and on Postgres."""

from pathlib import Path

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from luthier import accounts
from luthier.installation import Installation
from luthier.service import access, control, endings, runs
from luthier.tables import Artifact, Job, JobEvent, JobFile, Metric, Project, Run
from tests.factories import CALLER, NOW, claim, create_job, create_prepared_job, create_tuned_job

_JOBS = "/v1/fine_tuning/jobs"
_JOB = f"{_JOBS}/ftjob-1"


@pytest.fixture
def app_database_url(database_url: str) -> str:
    return database_url


@pytest.fixture
def tuned(installation: Installation) -> Job:
    """A job that has succeeded, with something of everything in storage."""
    with installation.database.transaction() as session:
        job = create_tuned_job(session, metadata={"team": "a"}, name="mine", suffix="mine")
        artifact = Artifact(
            job_id=job.id, name="adapter/w.bin", project_id=job.project_id, epoch=1, kind="adapter",
            size_bytes=7, sha256="0" * 64, storage_key="ftjob-1/e0001/artifacts/adapter/w.bin",
            created_at=NOW,
        )  # fmt: skip
        session.add(artifact)
    for name in ("e0001/artifacts/adapter/w.bin", "e0001/artifacts/metrics.csv", "e0001/log.txt"):
        path = Path(installation.storage.root, "ftjob-1", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
    return job


def test_a_deleted_job_is_gone_with_its_model_and_its_bytes(
    client: TestClient, installation: Installation, tuned: Job
) -> None:
    model = client.get(_JOB).json()["fine_tuned_model"]
    answer = client.delete(_JOB)
    assert answer.json() == {"id": "ftjob-1", "object": "fine_tuning.job", "deleted": True}
    gone = [
        _JOB,
        f"{_JOB}/events",
        f"{_JOB}/metrics",
        f"{_JOB}/logs",
        f"{_JOB}/artifacts",
        f"/v1/models/{model}",
    ]
    assert {path: client.get(path).status_code for path in gone} == dict.fromkeys(gone, 404)
    assert (
        client.get(_JOBS).json()["data"]
        == client.get(_JOBS, params={"metadata[team]": "a"}).json()["data"]
        == []
    )
    assert client.delete(_JOB).status_code == 404
    assert [path for path in Path(installation.storage.root, "ftjob-1").rglob("*") if path.is_file()] == []
    with installation.database.reading() as session:
        for table in (JobEvent, Metric, Run, JobFile, Artifact):
            assert session.scalar(select(func.count()).select_from(table)) == 0, table
        assert session.scalar(select(func.count()).select_from(Job)) == 1
        project = session.get_one(Project, access.DEFAULT_PROJECT)
        assert project.storage_bytes == accounts.recount(session, project.id)


def test_its_files_stay(client: TestClient, tuned: Job) -> None:
    client.delete(_JOB)
    assert {file["purpose"] for file in client.get("/v1/files").json()["data"]} == {
        "fine-tune",
        "fine-tune-results",
    }


def test_no_counter_shrinks_with_a_deleted_job(client: TestClient, tuned: Job) -> None:
    def counters() -> list[str]:
        lines = client.get("/metrics").text.splitlines()
        return [
            line
            for line in lines
            if line.split("{")[0].split(" ")[0].endswith(("_total", "_count", "_bucket"))
            and not line.startswith("luthier_http_requests")
        ]

    before = counters()
    client.delete(_JOB)
    assert counters() == before


def test_a_job_that_has_not_ended_is_not_deleted(client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session)
    refused = client.delete(_JOB)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "job_not_ended")
    client.post(f"{_JOB}/cancel")
    assert client.delete(_JOB).status_code == 200


def test_a_model_that_a_live_job_tunes_again_is_kept(
    client: TestClient, installation: Installation, tuned: Job
) -> None:
    with installation.database.transaction() as session:
        create_job(session, "ftjob-2", model=tuned.fine_tuned_model)
    refused = client.delete(_JOB)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "job_in_use")
    assert "ftjob-2" in refused.json()["error"]["message"]
    client.post(f"{_JOBS}/ftjob-2/cancel")
    assert client.delete(_JOB).status_code == 200


def test_a_checkpoint_that_a_retry_starts_from_is_kept(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session)
        taken = claim(session)
        assert taken is not None
        runs.record_checkpoint(
            session, taken.lease, step=1, storage_key="k1", manifest_sha256="0" * 64, size_bytes=5,
            metrics={}, now=NOW,
        )  # fmt: skip
        job = control.request_cancel(session, taken.job, now=NOW)

        endings.stop_run(session, taken.lease, exit_code=85, now=NOW)
        control.retry(
            session, CALLER, job, from_="checkpoint", job_id="ftjob-2", work_id="work-again", seed=1, now=NOW
        )
    assert client.delete(_JOB).json()["error"]["code"] == "job_in_use"
    client.post(f"{_JOBS}/ftjob-2/cancel")
    assert client.delete(_JOB).status_code == 200
    assert client.post(f"{_JOBS}/ftjob-2/retry").status_code == 200


def test_a_job_of_another_project_is_not_there_to_delete(stranger: TestClient, tuned: Job) -> None:
    assert stranger.delete(_JOB).status_code == 404


def test_a_list_goes_on_behind_a_job_that_was_deleted_meanwhile(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        for number in range(4):
            create_job(session, f"ftjob-{number}")
    first = client.get(_JOBS, params={"limit": 2}).json()
    client.post(f"{_JOBS}/{first['last_id']}/cancel")
    client.delete(f"{_JOBS}/{first['last_id']}")
    second = client.get(_JOBS, params={"limit": 2, "after": first["last_id"]}).json()
    shown = [job["id"] for job in (*first["data"], *second["data"])]
    assert shown == ["ftjob-3", "ftjob-2", "ftjob-1", "ftjob-0"]
