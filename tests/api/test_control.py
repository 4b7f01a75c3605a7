"""What owners do with jobs over HTTP: pause, resume, retry, move; limits and requests that come twice."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier.database import clock
from luthier.errors import Failure
from luthier.installation import Installation
from luthier.service import endings, runs, workers
from luthier.status import Queue
from luthier.tables import Job, Project
from tests.factories import CALLER, NOW, claim, create_prepared_job

_URL = "/v1/fine_tuning/jobs"
_EMPTY = {"Content-Type": "application/json", "Content-Length": "0"}


@pytest.fixture
def app_database_url(database_url: str) -> str:
    return database_url


@pytest.fixture
def submit(client: TestClient, file_id: str) -> Callable[..., Any]:
    def send(headers: dict[str, str] | None = None, **fields: Any) -> Any:
        body = {"model": "tiny", "training_file": file_id} | fields
        return client.post(_URL, json=body, headers=headers)

    return send


@pytest.fixture
def quotas_of(installation: Installation) -> Iterator[Callable[..., None]]:
    """Sets the limits of the default project."""

    def change(**quotas: int) -> None:
        with installation.database.transaction() as session:
            session.get_one(Project, CALLER.project_id).quotas = quotas

    return change


def _order(client: TestClient) -> list[tuple[str, int]]:
    page = client.get("/v1/fine_tuning/queue").json()
    return [(job["id"], job["queue"]["position"]) for job in page["data"]]


def test_a_queued_job_is_paused_and_goes_on_in_front(client: TestClient, submit: Callable[..., Any]) -> None:
    first, second = (submit().json()["id"] for _ in range(2))
    paused = client.post(f"{_URL}/{second}/pause", headers=_EMPTY).json()
    assert (paused["status"], paused["queue"]) == ("paused", None)
    resumed = client.post(f"{_URL}/{second}/resume", headers=_EMPTY).json()
    assert (resumed["status"], resumed["queue"]["position"]) == ("queued", 1)
    assert _order(client) == [(second, 1), (first, 2)]


def test_a_running_job_shows_that_it_will_pause(client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session)
        claim(session)
    job = client.post(f"{_URL}/ftjob-1/pause").json()
    assert (job["status"], job["phase"]) == ("running", "pausing")


def test_an_ended_job_cannot_be_paused(client: TestClient, submit: Callable[..., Any]) -> None:
    url = f"{_URL}/{submit().json()['id']}"
    client.post(f"{url}/cancel")
    for act in ("pause", "resume"):
        response = client.post(f"{url}/{act}")
        assert (response.status_code, response.json()["error"]["code"]) == (400, "job_already_terminal")
        assert response.headers["x-should-retry"] == "false"


def _fail_after_a_checkpoint(installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session, name="mine", priority=3)
        taken = claim(session)
        assert taken is not None
        runs.record_checkpoint(
            session, taken.lease, step=7, storage_key="k", manifest_sha256="0" * 64, size_bytes=5, metrics={},
            now=NOW,
        )  # fmt: skip
        endings.fail_run(session, taken.lease, Failure("nan_loss", "no"), exit_code=78, now=NOW)


@pytest.mark.parametrize(("body", "resumes"), [(None, True), ({}, True), ({"from": "start"}, False)])
def test_a_failed_job_is_tried_again_as_a_new_one(
    client: TestClient, installation: Installation, body: dict[str, str] | None, resumes: bool
) -> None:
    _fail_after_a_checkpoint(installation)
    again = client.post(f"{_URL}/ftjob-1/retry", json=body) if body is not None else client.post(
        f"{_URL}/ftjob-1/retry", headers=_EMPTY
    )  # fmt: skip
    job = again.json()
    assert (again.status_code, job["status"], job["parent_job_id"]) == (200, "queued", "ftjob-1")
    assert (job["name"], job["priority"]) == ("mine", 3)
    with installation.database.reading() as session:
        assert (session.get_one(Job, job["id"]).resume_from is not None) == resumes


@pytest.mark.parametrize("body", [{"from": "middle"}, {"form": "start"}])
def test_a_retry_from_nowhere_is_refused(client: TestClient, body: dict[str, str]) -> None:
    response = client.post(f"{_URL}/ftjob-1/retry", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, next(iter(body)))


def test_a_job_that_has_not_ended_is_not_tried_again(client: TestClient, submit: Callable[..., Any]) -> None:
    response = client.post(f"{_URL}/{submit().json()['id']}/retry", headers=_EMPTY)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "job_not_retryable")


def test_waiting_jobs_change_places(client: TestClient, submit: Callable[..., Any]) -> None:
    a, b, c = (submit().json()["id"] for _ in range(3))
    for job_id, change in ((c, {"place": "front"}), (b, {"place": c}), (a, {"priority": 7})):
        assert client.patch(f"{_URL}/{job_id}", json=change).status_code == 200
    assert _order(client) == [(a, 1), (b, 2), (c, 3)]
    client.patch(f"{_URL}/{a}", json={"priority": 0, "place": "back"})
    assert _order(client) == [(b, 1), (c, 2), (a, 3)]


def test_the_request_of_a_job_makes_another_one(client: TestClient, submit: Callable[..., Any]) -> None:
    asked = {
        "qlora": {"r": 4, "learning_rate": 0.001},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        "dataset": {"validation_split": 0.1},
        "metadata": {"a": "b"},
    }
    job = submit(**asked).json()
    request = client.get(f"{_URL}/{job['id']}/request").json()
    assert request == asked | {"model": "tiny", "training_file": job["training_file"]}
    again = client.post(_URL, json=request).json()
    assert client.get(f"{_URL}/{again['id']}/request").json() == request


def test_name_and_metadata_change_in_any_state(client: TestClient, submit: Callable[..., Any]) -> None:
    job_id = submit(name="old", metadata={"a": "b"}).json()["id"]
    client.post(f"{_URL}/{job_id}/cancel")
    job = client.patch(f"{_URL}/{job_id}", json={"name": "new"}).json()
    assert (job["name"], job["metadata"]) == ("new", {"a": "b"})
    assert client.patch(f"{_URL}/{job_id}", json={"metadata": None}).json()["metadata"] is None
    moved = client.patch(f"{_URL}/{job_id}", json={"name": "newer", "priority": 1})
    assert moved.json()["error"]["code"] == "job_already_terminal"
    assert client.get(f"{_URL}/{job_id}").json()["name"] == "new"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"priority": 101}, "priority"),
        ({"place": "first"}, "place"),
        ({"seed": 1}, "seed"),
        ({"name": " "}, "name"),
    ],
)
def test_a_change_that_is_none_is_refused(
    client: TestClient, submit: Callable[..., Any], body: dict[str, Any], param: str | None
) -> None:
    response = client.patch(f"{_URL}/{submit().json()['id']}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/pause"), ("POST", "/resume"), ("POST", "/retry"), ("PATCH", "")],
)
def test_jobs_of_others_are_not_found(
    stranger: TestClient, submit: Callable[..., Any], method: str, path: str
) -> None:
    url = f"{_URL}/{submit().json()['id']}{path}"
    response = stranger.request(method, url, json={"name": "x"} if method == "PATCH" else {})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "fine_tune_not_found")


def test_the_queue_is_paged_and_of_the_own_project(
    client: TestClient, stranger: TestClient, submit: Callable[..., Any]
) -> None:
    ids = [submit().json()["id"] for _ in range(3)]
    first = client.get("/v1/fine_tuning/queue?limit=2").json()
    second = client.get(f"/v1/fine_tuning/queue?limit=2&after={first['last_id']}").json()
    assert [job["id"] for job in first["data"] + second["data"]] == ids
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert stranger.get("/v1/fine_tuning/queue").json()["data"] == []
    assert client.get("/v1/fine_tuning/queue?after=no").status_code == 400


def test_workers_are_shown(client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        workers.record_worker(
            session, "host/train-GPU-1", instance_id="i", host="host", queue=Queue.TRAIN, device="GPU-1",
            version="0", resources={"name": "NVIDIA L4", "memory_bytes": 5}, state="active",
            now=clock(session),
        ).labels = "eu,fast"  # fmt: skip
    (worker,) = client.get("/v1/fine_tuning/workers").json()["data"]
    assert (worker["id"], worker["device_name"], worker["labels"]) == (
        "host/train-GPU-1",
        "NVIDIA L4",
        ["eu", "fast"],
    )
    assert (worker["memory_bytes"], worker["free_memory_bytes"], worker["state"]) == (5, None, "active")


def test_a_sick_worker_names_its_job_to_the_jobs_own_project(
    client: TestClient, stranger: TestClient, installation: Installation, submit: Callable[..., Any]
) -> None:
    job_id = submit().json()["id"]
    with installation.database.transaction() as session:
        worker = workers.record_worker(
            session, "host/train-GPU-1", instance_id="i", host="host", queue=Queue.TRAIN, device="GPU-1",
            version="0", resources={}, state="active", now=clock(session),
        )  # fmt: skip
        session.flush()
        workers.set_aside(session, worker.id, workers.fault_of_job("The GPU is lost", job_id))
    told = [one.get("/v1/fine_tuning/workers").json()["data"][0]["reason"] for one in (client, stranger)]
    assert told == [f"The GPU is lost (job {job_id})", "The GPU is lost"]


def test_too_many_jobs_are_refused_for_a_while(
    submit: Callable[..., Any], client: TestClient, quotas_of: Callable[..., None]
) -> None:
    quotas_of(queued_jobs=1)
    job_id = submit().json()["id"]
    refused = submit()
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "quota_exceeded")
    assert (refused.headers["retry-after"], "x-should-retry" in refused.headers) == ("30", False)
    client.post(f"{_URL}/{job_id}/cancel")
    assert submit().status_code == 200


def test_a_full_project_is_told_before_its_upload_comes(
    upload: Callable[..., Any], client: TestClient, quotas_of: Callable[..., None]
) -> None:
    size = upload().json()["bytes"]
    quotas_of(storage_bytes=size + 5)
    refused = upload()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert refused.headers["x-should-retry"] == "false"
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_the_same_key_finds_the_same_job(submit: Callable[..., Any], client: TestClient) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first, second = submit(headers), submit(headers)
    assert first.json()["id"] == second.json()["id"]
    assert (first.headers.get("idempotent-replayed"), second.headers["idempotent-replayed"]) == (None, "true")
    other = submit(headers, suffix="x")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert submit({"Idempotency-Key": "order-2"}).json()["id"] != first.json()["id"]
    assert len(client.get(_URL).json()["data"]) == 2


def test_a_refused_request_leaves_its_key_free(submit: Callable[..., Any]) -> None:
    headers = {"Idempotency-Key": "order-1"}
    assert submit(headers, training_file="file-none").status_code == 400
    assert submit(headers).status_code == 200


@pytest.mark.parametrize("sent", ["", "a b", "x" * 256, "ü"])
def test_a_strange_key_is_refused(submit: Callable[..., Any], sent: str) -> None:
    response = submit({"Idempotency-Key": sent.encode("latin-1")})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_of_fifty_at_once_with_one_key_one_makes_a_job(
    submit: Callable[..., Any], client: TestClient
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: submit({"Idempotency-Key": "k"}), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(client.get(_URL).json()["data"]) == 1


def test_what_a_client_sends_again_by_itself_makes_no_second_job(submit: Callable[..., Any]) -> None:
    first = submit({"x-stainless-retry-count": "0"}).json()["id"]
    assert submit({"x-stainless-retry-count": "1"}).json()["id"] == first
    deliberate = submit({"x-stainless-retry-count": "0"}).json()["id"]
    assert deliberate != first
    assert submit({"x-stainless-retry-count": "2"}).json()["id"] == deliberate
    assert submit().json()["id"] not in (first, deliberate)


def test_what_no_worker_has_is_refused(
    client: TestClient, submit: Callable[..., Any], installation: Installation
) -> None:
    with installation.database.transaction() as session:
        workers.record_worker(
            session, "host/train-GPU-1", instance_id="i", host="host", queue=Queue.TRAIN, device="GPU-1",
            version="0", resources={"memory_bytes": 1 << 34}, state="active", now=NOW.replace(year=2100),
        )  # fmt: skip
    refused = submit(resources={"memory_gb": 17}).json()["error"]
    assert (refused["code"], refused["param"]) == ("capacity_exceeded", "resources.memory_gb")
