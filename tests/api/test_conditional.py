"""ETags: 304 for who has seen it, 412 for who changes what has changed."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier import events
from luthier.installation import Installation
from luthier.service import recording
from tests.factories import NOW, claim, create_file, create_job, create_prepared_job

_JOB = "/v1/fine_tuning/jobs/ftjob-1"


@pytest.fixture
def app_database_url(database_url: str) -> str:
    return database_url


def _again(client: TestClient, path: str, etag: str) -> Any:
    return client.get(path, headers={"If-None-Match": etag})


@pytest.mark.parametrize("path", [_JOB, "/v1/fine_tuning/jobs", "/v1/files/file-train", "/v1/files"])
def test_what_has_not_changed_is_304_without_a_body(
    client: TestClient, installation: Installation, path: str
) -> None:
    with installation.database.transaction() as session:
        create_job(session)
    first = client.get(path)
    etag = first.headers["etag"]
    assert etag.startswith('W/"')
    again = _again(client, path, f'"other", {etag}')
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert _again(client, path, "*").status_code == 304
    assert _again(client, path, '"other"').json() == first.json()


def test_every_change_of_a_job_makes_another_etag(client: TestClient, installation: Installation) -> None:
    def etag() -> str:
        return str(client.get(_JOB).headers["etag"])

    with installation.database.transaction() as session:
        create_prepared_job(session)
    seen = [etag()]
    client.patch(_JOB, json={"name": "a-name"})
    seen.append(etag())
    client.patch(_JOB, json={"metadata": {"a": "b"}})
    seen.append(etag())
    with installation.database.transaction() as session:
        create_job(session, "ftjob-2", priority=5)
    client.patch(_JOB, json={"priority": 3})
    seen.append(etag())
    with installation.database.transaction() as session:
        taken = claim(session)
        assert taken is not None
        assert taken.job.id == "ftjob-1"
    seen.append(etag())
    for line in (
        events.RunStarted(),
        events.PhaseChanged(phase="evaluating"),
        events.ProgressMade(done=5, unit="rows"),
        events.StepLogged(step=1, total_steps=9, epoch=0.1, train_loss=2.0),
    ):
        with installation.database.transaction() as session:
            recording.record_events(session, taken.lease, [line], offset=1, now=NOW)
        seen.append(etag())
    client.post(f"{_JOB}/cancel")
    seen.append(etag())
    assert len(set(seen)) == len(seen)
    assert _again(client, _JOB, seen[-1]).status_code == 304


def test_a_place_in_the_queue_that_moves_makes_another_etag(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session, "ftjob-0")
        create_prepared_job(session)
    before = client.get(_JOB)
    client.post("/v1/fine_tuning/jobs/ftjob-0/cancel")
    after = _again(client, _JOB, before.headers["etag"])
    assert (before.json()["queue"]["position"], after.json()["queue"]["position"]) == (2, 1)


def test_a_change_is_refused_where_the_owner_changed_the_job_meanwhile(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session)
        taken = claim(session)
        assert taken is not None
    etag = client.get(_JOB).headers["etag"]
    with installation.database.transaction() as session:
        recording.record_events(session, taken.lease, [events.RunStarted()], offset=1, now=NOW)
    # That the run got on is no reason to refuse.
    assert client.patch(_JOB, json={"name": "mine"}, headers={"If-Match": etag}).status_code == 200
    late = client.patch(_JOB, json={"name": "theirs"}, headers={"If-Match": etag})
    assert (late.status_code, late.json()["error"]["code"]) == (412, "precondition_failed")
    assert client.get(_JOB).json()["name"] == "mine"
    newest = client.get(_JOB).headers["etag"]
    for tags in (f'"x", {newest}', "*", newest.removeprefix("W/")):
        assert client.patch(_JOB, json={"name": "mine"}, headers={"If-Match": tags}).status_code == 200


def test_another_files_etag_is_another(client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_file(session, "file-a")
        create_file(session, "file-b")
    etag = client.get("/v1/files/file-a").headers["etag"]
    assert _again(client, "/v1/files/file-b", etag).status_code == 200


def test_nobody_learns_that_a_job_of_another_project_has_not_changed(
    client: TestClient, installation: Installation, make_key: Callable[..., str]
) -> None:
    with installation.database.transaction() as session:
        create_job(session)
    headers = {"If-None-Match": "*", "Authorization": f"Bearer {make_key('proj-other')}"}
    assert client.get(_JOB, headers=headers).status_code == 404


def test_what_has_not_changed_is_counted_under_its_route(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session)
        claim(session)
    etag = client.get(_JOB).headers["etag"]
    assert _again(client, _JOB, etag).status_code == 304
    told = client.get("/metrics", headers={"Host": "localhost"}).text
    assert (
        'luthier_http_requests_total{method="GET",route="/v1/fine_tuning/jobs/{job_id}",status="3xx"} 1.0'
        in told
    )
