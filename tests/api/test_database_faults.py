"""What clients hear when the database fails: busy, full, or silent about a commit."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pysqlite3
import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from api.app import create_app
from luthier.database import Database
from luthier.installation import Installation
from luthier.tables import File, Job
from tests.api.conftest import ROWS, jsonl
from tests.faults import Fault, by_chance, failing_commits


@pytest.fixture
def app_database_url(database_url: str) -> str:
    """Each kind of database."""
    return database_url


def _submit(client: TestClient, file_id: str) -> Any:
    return client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id})


def _count(installation: Installation, table: type[Job] | type[File]) -> int:
    query = select(func.count()).select_from(table)
    if table is Job:
        query = query.where(Job.kind == "train")
    with installation.database.reading() as session:
        return session.scalar(query) or 0


def _always(fault: Fault) -> Any:
    return lambda: fault


def test_a_submit_whose_commit_was_not_heard_of_is_answered_with_its_job(
    client: TestClient, installation: Installation, file_id: str
) -> None:
    with failing_commits(installation.database, _always(Fault.AFTER)):
        answer = _submit(client, file_id)
        cancelled = client.post(f"/v1/fine_tuning/jobs/{answer.json()['id']}/cancel")
    assert (answer.status_code, cancelled.status_code) == (200, 200)
    assert cancelled.json()["status"] == "cancelled"
    assert _count(installation, Job) == 1


@pytest.mark.parametrize("path", ["projects/proj-default/api_keys", "admin_api_keys"])
def test_a_key_whose_commit_was_not_heard_of_is_shown_all_the_same(
    client: TestClient, installation: Installation, path: str
) -> None:
    url = f"/v1/organization/{path}"
    with failing_commits(installation.database, _always(Fault.AFTER)):
        made = client.post(url, json={"name": "a"}).json()
        rotated = client.post(f"{url}/{made['id']}/rotate").json()
    for key in (made, rotated):
        answer = client.get("/v1/files", headers={"Authorization": f"Bearer {key['value']}"})
        assert answer.status_code == 200


def test_a_submit_that_was_not_stored_is_503_and_may_be_sent_again(
    client: TestClient, installation: Installation, file_id: str
) -> None:
    with failing_commits(installation.database, _always(Fault.BEFORE)):
        answer = _submit(client, file_id)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert "retry-after" in answer.headers
    assert _count(installation, Job) == 0
    assert _submit(client, file_id).status_code == 200


@pytest.mark.parametrize(("fault", "status", "count"), [(Fault.AFTER, 200, 1), (Fault.BEFORE, 503, 0)])
def test_an_upload_keeps_its_bytes_as_long_as_its_row_may_be_there(
    client: TestClient, installation: Installation, fault: Fault, status: int, count: int
) -> None:
    form: dict[str, Any] = {"file": ("rows.jsonl", io.BytesIO(jsonl(*ROWS)))}
    with failing_commits(installation.database, _always(fault)):
        answer = client.post("/v1/files", data={"purpose": "fine-tune"}, files=form)
    assert (answer.status_code, _count(installation, File)) == (status, count)
    assert len(list((installation.storage.root / "files").iterdir())) == 1


def test_a_delete_that_was_not_heard_of_removes_the_bytes(
    client: TestClient, installation: Installation, file_id: str
) -> None:
    with failing_commits(installation.database, _always(Fault.AFTER)):
        assert client.delete(f"/v1/files/{file_id}").json() == {
            "id": file_id,
            "object": "file",
            "deleted": True,
        }
    assert not installation.storage.path(f"files/{file_id}").exists()


def test_a_client_that_looks_before_it_sends_again_makes_each_job_once(
    client: TestClient, installation: Installation, file_id: str
) -> None:
    accepted: set[str] = set()
    with failing_commits(installation.database, by_chance(seed=3, probability=0.5)):
        for number in range(1, 21):
            while len(accepted) < number:
                answer = _submit(client, file_id)
                if answer.status_code == 200:
                    accepted.add(answer.json()["id"])
    assert _count(installation, Job) == len(accepted) == 20


@pytest.fixture
def impatient(sqlite_url: str, installation: Installation, key: str) -> Iterator[TestClient]:
    """A client of an application that waits 50 ms for another writer."""
    database = Database(str(installation.database.url), busy_timeout_seconds=0.05, reserve_bytes=4096)
    with TestClient(
        create_app(replace(installation, database=database)), headers={"Authorization": f"Bearer {key}"}
    ) as client:
        yield client
    database.close()


class TestSqlite:
    """What only SQLite has."""

    @pytest.fixture
    def app_database_url(self, sqlite_url: str) -> str:
        return sqlite_url

    def test_a_writer_in_the_way_is_503_with_retry_after_and_reads_go_on(
        self, impatient: TestClient, installation: Installation, file_id: str
    ) -> None:
        other = pysqlite3.connect(str(installation.database.file), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answer, listed = _submit(impatient, file_id), impatient.get("/v1/fine_tuning/jobs")
        other.execute("ROLLBACK")
        other.close()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert listed.status_code == 200
        assert _submit(impatient, file_id).status_code == 200

    def test_nothing_new_is_taken_while_the_reserve_is_spent_and_cancels_go_on(
        self, impatient: TestClient, installation: Installation, file_id: str
    ) -> None:
        job_id = _submit(impatient, file_id).json()["id"]
        assert installation.database.file is not None
        reserve = installation.database.file.with_name("luthier.db.reserve")
        reserve.touch()
        refused = _submit(impatient, file_id)
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
        assert impatient.get("/readyz").status_code == 503
        assert impatient.post(f"/v1/fine_tuning/jobs/{job_id}/cancel").status_code == 200
