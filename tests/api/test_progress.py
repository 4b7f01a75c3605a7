"""Events, metrics, checkpoints and logs of a job, on SQLite and on Postgres."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from luthier import events
from luthier.installation import Installation
from luthier.service import recording, runs
from luthier.status import Queue
from tests.factories import NOW, claim, create_job, create_prepared_job

_URL = "/v1/fine_tuning/jobs/ftjob-1"
_LINES = [
    events.RunStarted(),
    events.EvalLogged(step=0, total_steps=2, eval_loss=4.0),
    events.StepLogged(step=1, total_steps=2, epoch=0.5, train_loss=3.0, learning_rate=1e-4),
    events.StepLogged(step=2, total_steps=2, epoch=1, train_loss=None, train_mean_token_accuracy=0.5),
    events.EvalLogged(step=2, total_steps=2, eval_loss=2.5, eval_mean_token_accuracy=0.25),
]


@pytest.fixture
def app_database_url(database_url: str) -> str:
    return database_url


@pytest.fixture
def lease(installation: Installation) -> runs.Lease:
    """The lease of a running job that has reported some numbers."""
    with installation.database.transaction() as session:
        create_prepared_job(session)
        taken = claim(session)
        assert taken is not None
        recording.record_events(session, taken.lease, _LINES, offset=1, now=NOW)
        return taken.lease


def _write_log(folder: Path, epoch: int, text: bytes, job_id: str = "ftjob-1") -> None:
    path = folder / job_id / f"e{epoch:04d}" / "log.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)


def test_events_and_metrics_are_one_list_newest_first(client: TestClient, lease: runs.Lease) -> None:
    rows = client.get(f"{_URL}/events", params={"limit": 100}).json()["data"]
    assert [row["message"] for row in rows[:4]] == [
        "Step 2/2: validation loss=2.50", "Step 2/2",
        "Step 1/2: training loss=3.00", "Step 0/2: validation loss=4.00",
    ]  # fmt: skip
    assert rows[0]["data"] == {
        "step": 2, "total_steps": 2, "valid_loss": 2.5, "full_valid_loss": 2.5,
        "valid_mean_token_accuracy": 0.25, "full_valid_mean_token_accuracy": 0.25,
    }  # fmt: skip
    assert rows[2]["data"] == {"step": 1, "total_steps": 2, "train_loss": 3.0}
    assert (rows[0]["type"], rows[-1]["type"]) == ("metrics", "message")
    assert rows[-1]["message"] == "Created fine-tuning job: ftjob-1"


def test_events_are_read_page_by_page_without_gap_or_repetition(
    client: TestClient, lease: runs.Lease
) -> None:
    whole = client.get(f"{_URL}/events", params={"limit": 100}).json()
    ids: list[str] = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = {"after": page["last_id"]} if page["last_id"] else {}
        page = client.get(f"{_URL}/events", params={"limit": 3, **after}).json()
        ids += [row["id"] for row in page["data"]]
    assert ids == [row["id"] for row in whole["data"]]
    assert (whole["first_id"], whole["last_id"]) == (f"ftevent-1-{len(ids)}", "ftevent-1-1")


def test_samples_of_the_model_are_events(
    client: TestClient, lease: runs.Lease, installation: Installation
) -> None:
    sample = events.SampleGenerated(step=2, prompt="Q", text="A tuning fork.")
    with installation.database.transaction() as session:
        recording.record_events(session, lease, [sample], offset=99, now=NOW)
    shown = client.get(f"/v1/fine_tuning/jobs/{lease.job_id}/events?limit=1").json()["data"][0]
    assert shown["message"] == "Sample 1 at step 2: A tuning fork."
    assert (shown["data"]["prompt"], shown["data"]["step"]) == ("Q", 2)


def test_an_event_of_elsewhere_is_no_cursor(client: TestClient, lease: runs.Lease) -> None:
    for after in ("ftevent-2-1", "ftevent-1-", "ftevent-1-01", "x", "ftevent-1-1\n"):
        response = client.get(f"{_URL}/events", params={"after": after})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "after"), after


def test_metrics_are_columns_with_one_entry_a_step(client: TestClient, lease: runs.Lease) -> None:
    metrics = client.get(f"{_URL}/metrics").json()
    assert (metrics["job_id"], metrics["last_step"], metrics["is_final"]) == ("ftjob-1", 2, False)
    assert metrics["data"]["step"] == [0, 1, 2]
    assert metrics["data"]["train_loss"] == [None, 3.0, None]
    assert metrics["data"]["eval_loss"] == [4.0, None, 2.5]
    assert ["step", *metrics["keys"]] == list(metrics["data"])


def test_metrics_come_as_csv_and_between_two_steps(client: TestClient, lease: runs.Lease) -> None:
    response = client.get(f"{_URL}/metrics", params={"format": "csv", "from_step": 1, "to_step": 2**31 - 1})
    header, *lines = response.text.splitlines()
    assert response.headers["content-type"].startswith("text/csv")
    assert header.startswith("step,train_loss,")
    assert lines == ["1,3.0,,,,0.0001,,", "2,,0.5,2.5,0.25,,,"]


def test_many_metrics_are_thinned_and_csv_has_all(
    client: TestClient, lease: runs.Lease, installation: Installation
) -> None:
    lines = [
        events.StepLogged(step=step, total_steps=3000, epoch=1, train_loss=9.0 if step == 1500 else 1.0)
        for step in range(3, 3001)
    ]
    with installation.database.transaction() as session:
        recording.record_events(session, lease, lines, offset=2, now=NOW)
    thinned = client.get(f"{_URL}/metrics", params={"max_points": 100}).json()["data"]
    assert (len(thinned["step"]) <= 102, max(filter(None, thinned["train_loss"]))) == (True, 9.0)
    assert len(client.get(f"{_URL}/metrics").json()["data"]["step"]) < 2002
    assert len(client.get(f"{_URL}/metrics?format=csv").text.splitlines()) == 3002
    refused = client.get(f"{_URL}/metrics", params={"max_points": 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_points")


def test_checkpoints_have_openais_names_and_metrics(
    client: TestClient, lease: runs.Lease, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        for step in (1, 2):
            runs.record_checkpoint(
                session, lease, step=step, storage_key=f"k{step}", manifest_sha256="0" * 64, size_bytes=5,
                metrics={"train_loss": 3.0, "eval_loss": None}, now=NOW,
            )  # fmt: skip
    page = client.get(f"{_URL}/checkpoints", params={"limit": 1}).json()
    last = client.get(f"{_URL}/checkpoints", params={"after": page["last_id"]}).json()
    shown = page["data"][0]
    assert (shown["step_number"], shown["metrics"]) == (2, {"step": 2, "train_loss": 3.0})
    assert shown["fine_tuned_model_checkpoint"] == "ft:tiny:org-local::1:ckpt-step-2"
    assert ([row["step_number"] for row in last["data"]], last["has_more"]) == ([1], False)


def test_the_log_of_a_running_job_is_read_where_it_runs(
    client: TestClient, lease: runs.Lease, installation: Installation
) -> None:
    _write_log(installation.settings.runs, lease.epoch, b"one\ntwo\nthree\n")
    assert client.get(f"{_URL}/logs").text == "one\ntwo\nthree\n"
    assert client.get(f"{_URL}/logs", params={"tail": 2}).text == "two\nthree\n"
    part = client.get(f"{_URL}/logs", headers={"Range": "bytes=4-"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (
        206,
        "two\nthree\n",
        "bytes 4-13/14",
    )
    assert client.head(f"{_URL}/logs").headers["content-length"] == "14"


def test_the_kept_log_of_the_newest_run_comes_first(
    client: TestClient, lease: runs.Lease, installation: Installation
) -> None:
    _write_log(installation.settings.runs, lease.epoch, b"local")
    _write_log(installation.storage.root, lease.epoch, b"kept")
    assert client.get(f"{_URL}/logs").text == "kept"


def test_before_the_first_run_the_log_is_that_of_the_preparation(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        create_job(session)
    missing = client.get(f"{_URL}/logs")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    with installation.database.transaction() as session:
        work = claim(session, Queue.CPU)
        assert work is not None
    _write_log(installation.storage.root, work.lease.epoch, b"preparing", work.job.id)
    assert client.get(f"{_URL}/logs").text == "preparing"
