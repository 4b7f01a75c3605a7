"""Secrets over HTTP: they go in, and nothing gives them back."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from starlette.testclient import TestClient

from api.app import create_app
from luthier.installation import Installation, open_installation, prepare
from luthier.settings import Settings
from luthier.tables import Secret

_VALUE = "hf_CanaryCanaryCanary"


def test_a_secret_is_set_replaced_listed_and_deleted_and_never_shown(
    client: TestClient, stranger: TestClient, installation: Installation
) -> None:
    answers = [
        client.post("/v1/secrets", json={"name": "hf_token", "value": value}) for value in ("x", _VALUE)
    ]
    first, second = (answer.json() for answer in answers)
    assert (first["id"], second["name"]) == (second["id"], "hf_token")
    answers += [client.get("/v1/secrets"), client.get("/v1/secrets/hf_token")]
    assert [each["name"] for each in answers[2].json()["data"]] == ["hf_token"]
    assert stranger.get("/v1/secrets/hf_token").json()["error"]["code"] == "secret_not_found"
    assert stranger.delete("/v1/secrets/hf_token").status_code == 404
    with installation.database.reading() as session:
        assert _VALUE not in session.query(Secret).one().sealed
    answers.append(client.delete("/v1/secrets/hf_token"))
    assert [answer.status_code for answer in answers] == [200] * 5
    assert not [answer for answer in answers if _VALUE in answer.text]
    assert client.get("/v1/secrets").json()["data"] == []


def test_what_is_refused_is_not_repeated(client: TestClient) -> None:
    for body in (
        {"name": "a b", "value": _VALUE},
        {"name": "a", "value": f"{_VALUE} {_VALUE}"},
        {"name": "a", "value": _VALUE * 300},
        {"name": "a", "value": "b", _VALUE: 1},
        {"name": _VALUE * 9, "value": "b"},
    ):
        response = client.post("/v1/secrets", json=body)
        assert response.status_code == 400
        assert _VALUE not in response.text or body.get(_VALUE)


def test_a_job_that_names_a_secret_which_its_project_lacks_is_refused(
    client: TestClient, stranger: TestClient, file_id: str
) -> None:
    stranger.post("/v1/secrets", json={"name": "mine", "value": _VALUE})
    body = {"model": "tiny", "training_file": file_id, "hub_token": {"secret": "mine"}}
    refused = client.post("/v1/fine_tuning/jobs", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (
        404,
        "secret_not_found",
        "hub_token.secret",
    )
    client.post("/v1/secrets", json={"name": "mine", "value": _VALUE})
    assert client.post("/v1/fine_tuning/jobs", json=body).status_code == 200


def test_those_who_set_a_new_secret_at_once_all_succeed(postgres_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres_url, allowed_hosts="testserver")
    installation = open_installation(settings)
    with closing(installation.database):
        key = prepare(installation).first_key
        headers = {"Authorization": f"Bearer {key}"}
        secret = {"name": "a", "value": _VALUE}
        # Entered, so that all four come to one event loop.
        with TestClient(create_app(installation), headers=headers) as client, ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/secrets", json=secret), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.json()["id"] for answer in answers}) == 1
