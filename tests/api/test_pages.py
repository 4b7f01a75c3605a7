"""Pages: nothing comes twice and nothing is passed over while rows arrive; on SQLite and on Postgres."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier import events
from luthier.installation import Installation
from luthier.service import recording, runs
from tests.factories import NOW, claim, create_file, create_job, create_prepared_job

_JOB = "/v1/fine_tuning/jobs/ftjob-run"


@pytest.fixture
def app_database_url(database_url: str) -> str:
    return database_url


def _walk(client: TestClient, path: str, arrive: Callable[[int], object], **params: Any) -> list[str]:
    """The ids of all pages; something arrives between two of them."""
    ids: list[str] = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    for number in range(1, 100):
        after = {"after": page["last_id"]} if page["last_id"] else {}
        page = client.get(path, params={"limit": 2, **params, **after}).json()
        shown = [row["id"] for row in page["data"]]
        assert (page["first_id"], page["last_id"]) == (shown[0], shown[-1]) if shown else (None, None)
        ids += shown
        if not page["has_more"]:
            return ids
        arrive(number)
    raise AssertionError("the pages never end")


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/v1/fine_tuning/jobs", {}),
        ("/v1/fine_tuning/jobs", {"metadata[a]": "b"}),
        ("/v1/fine_tuning/queue", {}),
        ("/v1/files", {}),
    ],
)
def test_rows_that_arrive_disturb_no_page(
    client: TestClient, installation: Installation, path: str, params: dict[str, str]
) -> None:
    def arrive(number: int) -> None:
        with installation.database.transaction() as session:
            create_file(session, f"file-late-{number}", now=NOW + timedelta(seconds=number))
            # In front of the queue, and newest in the list.
            create_job(
                session,
                f"ftjob-late-{number}",
                now=NOW + timedelta(seconds=number),
                priority=9,
                metadata={"a": "b"},
            )

    # Some of one moment, whose order the ids decide.
    for number in (-1, -2, -3, -4, -5):
        with installation.database.transaction() as session:
            now = NOW - timedelta(seconds=abs(number) // 2)
            create_file(session, f"file{number}", now=now)
            create_job(session, f"ftjob{number}", now=now, metadata={"a": "b"})
    wanted = [row["id"] for row in client.get(path, params={"limit": 100, **params}).json()["data"]]
    assert _walk(client, path, arrive, **params) == wanted


def test_files_of_the_oldest_first_end_with_those_that_came_meanwhile(
    client: TestClient, installation: Installation
) -> None:
    def arrive(number: int) -> None:
        if number < 3:
            with installation.database.transaction() as session:
                create_file(session, f"file-late-{number}", now=NOW + timedelta(seconds=number))

    with installation.database.transaction() as session:
        for number in range(4):
            create_file(session, f"file-{number}")
    found = _walk(client, "/v1/files", arrive, order="asc")
    assert found == ["file-0", "file-1", "file-2", "file-3", "file-late-1", "file-late-2"]


def test_events_and_checkpoints_that_arrive_disturb_no_page(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session, "ftjob-run")
        taken = claim(session)
        assert taken is not None
        lease = taken.lease

    def arrive(number: int) -> None:
        with installation.database.transaction() as session:
            line = events.StepLogged(step=number, total_steps=99, epoch=0.1)
            recording.record_events(session, lease, [line], offset=number, now=NOW)
            runs.record_checkpoint(
                session, lease, step=number, storage_key=f"k{number}", manifest_sha256="0" * 64, size_bytes=5,
                metrics={}, now=NOW,
            )  # fmt: skip

    for number in range(1000, 1005):
        arrive(number)
    for part in ("events", "checkpoints"):
        wanted = [row["id"] for row in client.get(f"{_JOB}/{part}", params={"limit": 100}).json()["data"]]
        assert _walk(client, f"{_JOB}/{part}", arrive) == wanted, part


def test_a_page_of_the_queue_goes_on_behind_a_job_that_left_it(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        for number in range(4):
            create_prepared_job(session, f"ftjob-{number}", now=NOW + timedelta(seconds=number))
    first = client.get("/v1/fine_tuning/queue", params={"limit": 1}).json()
    with installation.database.transaction() as session:
        assert claim(session) is not None
    second = client.get("/v1/fine_tuning/queue", params={"after": first["last_id"]}).json()
    assert [job["id"] for job in second["data"]] == ["ftjob-1", "ftjob-2", "ftjob-3"]


@pytest.mark.parametrize("after", ["nothing", "", "'; DROP TABLE jobs; --", "x" * 10_000])
def test_a_page_behind_nothing_is_refused(client: TestClient, installation: Installation, after: str) -> None:
    with installation.database.transaction() as session:
        create_job(session, "ftjob-run")
    lists = ("/v1/files", "/v1/fine_tuning/jobs", "/v1/fine_tuning/queue")
    for path in (*lists, f"{_JOB}/events", f"{_JOB}/checkpoints"):
        refused = client.get(path, params={"after": after})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after"), path
        assert len(refused.content) < 1000


def test_a_limit_that_is_none_is_refused_and_a_large_one_is_cut(client: TestClient) -> None:
    for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/fine_tuning/queue"):
        for limit in ("0", "-1", "1.5", "x", ""):
            refused = client.get(path, params={"limit": limit})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit"), (path, limit)
        assert client.get(path, params={"limit": "9" * 30}).status_code == 200


def test_some_numbers_of_a_job_are_asked_for_by_name(client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session, "ftjob-run")
        taken = claim(session)
        assert taken is not None
        lines = [
            events.StepLogged(step=1, total_steps=2, epoch=0.5, train_loss=3.0, learning_rate=1e-4),
            events.EvalLogged(step=2, total_steps=2, eval_loss=2.5),
        ]
        recording.record_events(session, taken.lease, lines, offset=1, now=NOW)
    some = client.get(f"{_JOB}/metrics", params={"keys": "eval_loss"}).json()
    assert (some["keys"], some["data"]) == (["eval_loss"], {"step": [2], "eval_loss": [2.5]})
    table = client.get(f"{_JOB}/metrics", params={"keys": "learning_rate, train_loss", "format": "csv"}).text
    assert table == "step,learning_rate,train_loss\n1,0.0001,3.0\n"
    for unknown in ("loss", "", "train_loss,", "step"):
        refused = client.get(f"{_JOB}/metrics", params={"keys": unknown})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "keys"), unknown
