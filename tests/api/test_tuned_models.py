"""Models and checkpoints that jobs have made: listed, deleted, and shown to other projects."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.installation import Installation
from luthier.service import endings, runs
from luthier.status import State
from luthier.tables import Artifact, Checkpoint, CheckpointPermission, File, Job
from tests.factories import NOW, claim, create_prepared_job

_MODEL = "ft:tiny:org-local:faq:1"
_CHECKPOINTS = [f"{_MODEL}:ckpt-step-{step}" for step in (10, 20)]


def _keep(installation: Installation, key: str) -> None:
    with installation.storage.receive() as incoming:
        incoming.write(b"weights")
        installation.storage.keep(incoming, key)


@pytest.fixture
def tuned(installation: Installation) -> str:
    """A job that has left a model, two checkpoints, and their bytes."""
    names = {"adapter/adapter_model.safetensors": "adapter", "metrics.csv": "metrics"}
    for key in (*(f"ftjob-1/e0001/artifacts/{name}" for name in names), "files/file-result"):
        _keep(installation, key)
    with installation.database.transaction() as session:
        job = create_prepared_job(session, suffix="faq")
        run = claim(session)
        assert run is not None
        for step in (10, 20):
            key = f"ftjob-1/e0001/checkpoints/step-{step:06}"
            _keep(installation, key)
            runs.record_checkpoint(
                session, run.lease, step=step, storage_key=key, manifest_sha256="0" * 64, size_bytes=7,
                metrics={}, now=NOW,
            )  # fmt: skip
        endings.start_finalizing(session, run.lease, now=NOW)
        result_file = File(
            id="file-result", project_id=job.project_id, filename="m.csv", purpose="fine-tune-results",
            size_bytes=7, sha256="1" * 64, storage_key="files/file-result", status="processed",
            created_at=NOW,
        )  # fmt: skip
        artifacts = [
            endings.NewArtifact(name, kind, 7, "1" * 64, f"ftjob-1/e0001/artifacts/{name}")
            for name, kind in names.items()
        ]
        endings.succeed_training(
            session, run.lease, artifacts=artifacts, result={}, result_file=result_file, now=NOW
        )
    return job.id


def _models(client: TestClient) -> list[str]:
    return [model["id"] for model in client.get("/v1/models").json()["data"]]


def _error(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def _stored(installation: Installation) -> set[str]:
    return {file.key.rpartition("/")[2] for file in installation.storage.list_files()}


@pytest.mark.usefixtures("tuned")
def test_models_and_checkpoints_are_listed_and_read(client: TestClient) -> None:
    assert sorted(_models(client)) == sorted(["tiny", _MODEL, *_CHECKPOINTS])
    shown = client.get("/v1/fine_tuning/jobs/ftjob-1/checkpoints").json()["data"]
    assert [item["fine_tuned_model_checkpoint"] for item in shown] == _CHECKPOINTS[::-1]
    for name in (_MODEL, *_CHECKPOINTS):
        assert client.get(f"/v1/models/{name}").json()["id"] == name
    unknown = [f"{_MODEL}:ckpt-step-11", "ft:tiny:org-local:other:1:ckpt-step-10", "ft:x:ckpt-step-1", "ft:%"]
    assert [client.get(f"/v1/models/{name}").status_code for name in unknown] == [404] * 4


def test_a_deleted_model_takes_its_weights_and_leaves_its_job(
    client: TestClient, tuned: str, installation: Installation
) -> None:
    answer = client.delete(f"/v1/models/{_MODEL}")
    assert answer.json() == {"id": _MODEL, "object": "model", "deleted": True}
    assert client.get(f"/v1/models/{_MODEL}").status_code == 404
    assert _error(client.delete(f"/v1/models/{_MODEL}")) == (404, "model_not_found", "model")
    job = client.get(f"/v1/fine_tuning/jobs/{tuned}").json()
    assert (job["status"], job["fine_tuned_model"]) == ("succeeded", _MODEL)
    artifacts = client.get(f"/v1/fine_tuning/jobs/{tuned}/artifacts").json()["data"]
    assert [item["name"] for item in artifacts] == ["metrics.csv"]
    assert _stored(installation) == {"metrics.csv", "file-result", "step-000010", "step-000020"}


@pytest.mark.usefixtures("tuned")
def test_a_deleted_checkpoint_takes_its_bytes_and_is_logged_with_its_permissions(
    client: TestClient, installation: Installation, make_key: Callable[..., str]
) -> None:
    make_key("proj-other")
    _permit(client, _CHECKPOINTS[0], "proj-other")
    assert client.delete(f"/v1/models/{_CHECKPOINTS[0]}").json()["deleted"]
    assert sorted(_models(client)) == sorted(["tiny", _MODEL, _CHECKPOINTS[1]])
    assert "step-000010" not in _stored(installation)
    assert len(client.get("/v1/fine_tuning/jobs/ftjob-1/checkpoints").json()["data"]) == 1
    logged = client.get("/v1/organization/audit_logs").json()["data"]
    deleted = {line["type"] for line in logged if line["type"].endswith(".deleted")}
    assert deleted == {"checkpoint.deleted", "checkpoint.permission.deleted"}


def test_a_base_model_is_not_the_callers_to_delete(client: TestClient) -> None:
    assert _error(client.delete("/v1/models/tiny")) == (403, "insufficient_permissions", "model")
    assert _models(client) == ["tiny"]


@pytest.mark.usefixtures("tuned")
def test_what_a_live_job_needs_is_not_deleted(
    client: TestClient, installation: Installation, file_id: str
) -> None:
    with installation.database.transaction() as session:
        parent = session.get_one(Job, "ftjob-1")
        parent.hyperparameters = {
            "r": 4, "alpha": 8, "target_modules": "all-linear", "bias": "none", "use_rslora": False,
            "use_dora": False, "method": "lora", "quantization": "none",
        }  # fmt: skip
    job = client.post("/v1/fine_tuning/jobs", json={"model": _MODEL, "training_file": file_id}).json()
    with installation.database.transaction() as session:
        session.get_one(Job, job["id"]).resume_from = session.query(Checkpoint.id).filter_by(step=10).scalar()
    for name in (_MODEL, _CHECKPOINTS[0]):
        assert _error(client.delete(f"/v1/models/{name}")) == (400, "model_in_use", "model")
    client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    for name in (_MODEL, _CHECKPOINTS[0]):
        assert client.delete(f"/v1/models/{name}").status_code == 200


def test_the_checkpoints_of_a_job_that_has_not_ended_stay(
    client: TestClient, tuned: str, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        session.get_one(Job, tuned).state = State.PAUSED
    assert _error(client.delete(f"/v1/models/{_CHECKPOINTS[1]}")) == (400, "model_in_use", "model")


def _permit(client: TestClient, name: str, *projects: str) -> Any:
    path = f"/v1/fine_tuning/checkpoints/{name}/permissions"
    return client.post(path, json={"project_ids": list(projects)})


@pytest.mark.usefixtures("tuned")
def test_a_permission_lets_another_project_see_a_checkpoint_until_it_is_taken_back(
    client: TestClient, stranger: TestClient
) -> None:
    name = _CHECKPOINTS[1]
    assert stranger.get(f"/v1/models/{name}").status_code == 404
    given = _permit(client, name, "proj-other").json()
    assert [item["project_id"] for item in given["data"]] == ["proj-other"]
    assert _permit(client, name, "proj-other").json() == given
    assert (_models(stranger), stranger.get(f"/v1/models/{name}").json()["id"]) == (["tiny", name], name)
    assert _error(stranger.delete(f"/v1/models/{name}")) == (403, "insufficient_permissions", "model")
    path = f"/v1/fine_tuning/checkpoints/{name}/permissions"
    assert _error(stranger.get(path)) == (404, "model_not_found", "checkpoint")
    permission = given["data"][0]["id"]
    assert stranger.delete(f"{path}/{permission}").status_code == 404
    deleted = client.delete(f"{path}/{permission}").json()
    assert deleted == {"id": permission, "object": "checkpoint.permission", "deleted": True}
    assert (_models(stranger), client.get(path).json()["data"]) == (["tiny"], [])
    assert _error(client.delete(f"{path}/{permission}")) == (404, "not_found", "permission_id")


@pytest.mark.usefixtures("tuned", "stranger")
def test_permissions_are_listed_in_pages_both_ways(client: TestClient, make_key: Any) -> None:
    make_key("proj-third")
    given = _permit(client, _MODEL, "proj-other", "proj-third").json()["data"]
    path = f"/v1/fine_tuning/checkpoints/{_MODEL}/permissions"
    first = client.get(path, params={"limit": 1}).json()
    second = client.get(path, params={"limit": 1, "after": first["last_id"]}).json()
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert {item["id"] for item in first["data"] + second["data"]} == {item["id"] for item in given}
    ascending = client.get(path, params={"order": "ascending"}).json()["data"]
    assert ascending == second["data"] + first["data"]
    of_one = client.get(path, params={"project_id": "proj-third"}).json()["data"]
    assert [item["project_id"] for item in of_one] == ["proj-third"]
    assert _error(client.get(path, params={"after": "perm_x"})) == (400, "invalid_value", "after")


@pytest.mark.usefixtures("tuned")
def test_permissions_are_for_models_and_projects_that_are_there(client: TestClient) -> None:
    assert _error(_permit(client, "ft:no:such:model:1", "proj-default"))[:2] == (404, "model_not_found")
    assert _error(_permit(client, _MODEL, "proj-nobody")) == (400, "invalid_value", "project_ids")
    assert _error(_permit(client, _MODEL)) == (400, "invalid_value", "project_ids")


@pytest.mark.usefixtures("tuned", "stranger")
def test_the_permissions_of_a_model_go_with_it(client: TestClient, installation: Installation) -> None:
    _permit(client, _MODEL, "proj-other")
    client.delete(f"/v1/models/{_MODEL}")
    with installation.database.reading() as session:
        assert session.query(CheckpointPermission).count() == 0
        assert session.query(Artifact).count() == 1
