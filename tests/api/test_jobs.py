"""Jobs as clients see them, from submission to their end, on SQLite and on Postgres."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, select
from starlette.testclient import TestClient

from api.dependencies import Submission
from api.submitting import Submits, Submitted
from luthier import events
from luthier.audit import Actor, acting_as
from luthier.errors import Failure
from luthier.installation import Installation
from luthier.request_errors import parse_job
from luthier.service import access, endings, recording
from luthier.service.idempotency import Mark
from luthier.service.jobs import Caller
from luthier.status import Queue
from luthier.tables import AuditLog, File, Job, Project
from tests.factories import NOW, claim, create_job, create_prepared_job, create_tuned_job, prepare

_URL = "/v1/fine_tuning/jobs"


@pytest.fixture
def app_database_url(database_url: str) -> str:
    return database_url


@pytest.fixture
def submit(client: TestClient, file_id: str) -> Callable[..., Any]:
    """Submits a job with the least that it needs, and what is given."""

    def send(**fields: Any) -> Any:
        response = client.post(_URL, json={"model": "tiny", "training_file": file_id} | fields)
        assert response.status_code == 200, response.text
        return response.json()

    return send


def test_a_job_over_a_processed_file_is_queued_and_shows_what_was_asked(submit: Callable[..., Any]) -> None:
    job = submit(suffix="faq", metadata={"team": "a"}, qlora={"r": 4}, dataset={"validation_split": 0.5})
    assert (job["status"], job["phase"], job["queue"]) == (
        "queued",
        "tokenizing",
        {"position": 1, "wait_seconds": None},
    )
    assert (job["user_provided_suffix"], job["metadata"], job["attempts"]) == ("faq", {"team": "a"}, 0)
    assert job["hyperparameters"] == dict.fromkeys(
        ("n_epochs", "batch_size", "learning_rate_multiplier"), "auto"
    )
    assert (job["qlora"]["r"], job["qlora"]["max_steps"], job["dataset"]["validation_split"]) == (
        4,
        None,
        0.5,
    )
    assert 0 <= job["seed"] == job["qlora"]["seed"] < 2**31
    assert (job["trained_tokens"], job["result_files"], job["error"]) == (None, [], None)


def test_a_new_job_takes_few_statements(submit: Callable[..., Any], installation: Installation) -> None:
    """They are what it costs (docs/performance.md). SQLite is told of a BEGIN, Postgres of the waker, too."""
    submit()
    sent: list[str] = []
    event.listen(installation.database.engine, "before_cursor_execute", lambda *asked: sent.append(asked[2]))
    submit()
    assert len(sent) == (11 if installation.database.is_sqlite else 12)


def test_submits_at_once_share_a_commit_and_one_that_fails_leaves_the_others_alone(
    file_id: str, installation: Installation
) -> None:
    def asked(**fields: Any) -> Submission:
        return Submission(parse_job({"model": "tiny", "training_file": file_id} | fields), [], None)

    async def submit_as(key_id: str, submission: Submission) -> Submitted:
        with acting_as(Actor(access.DEFAULT_ORGANIZATION, key_id)):
            return await submits.submit(submission, replace(caller, api_key_id=key_id))

    async def all_of(**submissions: Submission) -> list[Any]:
        each = (submit_as(key_id, submission) for key_id, submission in submissions.items())
        return await asyncio.gather(*each, return_exceptions=True)

    caller = Caller(access.DEFAULT_ORGANIZATION, access.DEFAULT_PROJECT, "")
    submits, commits = Submits(installation), list[object]()
    event.listen(installation.database.engine, "commit", commits.append)
    good = asyncio.run(all_of(key_a=asked(), key_b=asked(), key_c=asked()))
    assert len(commits) == 1
    assert [each.job.queue.position for each in good] == [1, 2, 3]
    mixed = asyncio.run(all_of(key_a=asked(), key_b=asked(training_file="file-none"), key_c=asked()))
    assert [getattr(each, "code", None) for each in mixed] == [None, "invalid_training_file", None]
    assert (mixed[0].job.queue.position, mixed[2].job.queue.position) == (4, 5)
    with installation.database.reading() as session:
        log = session.execute(select(AuditLog.resource_id, AuditLog.api_key_id))
        makers = {job_id: key_id for job_id, key_id in log if job_id.startswith("ftjob-")}
    made = [good[0], good[1], good[2], mixed[0], mixed[2]]
    assert [makers[each.job.id] for each in made] == ["key_a", "key_b", "key_c", "key_a", "key_c"]


def test_of_submits_at_once_with_one_key_one_makes_the_job(file_id: str, installation: Installation) -> None:
    async def submit_all() -> list[Submitted]:
        submits = Submits(installation)
        return await asyncio.gather(*(submits.submit(asked, caller) for _ in range(3)))

    caller = Caller(access.DEFAULT_ORGANIZATION, access.DEFAULT_PROJECT, "key")
    asked = Submission(parse_job({"model": "tiny", "training_file": file_id}), [], Mark("a-key", "0" * 64))
    submitted = asyncio.run(submit_all())
    assert [each.is_replayed for each in submitted] == [False, True, True]
    assert len({each.job.id for each in submitted}) == 1


def test_of_submits_at_once_no_more_than_the_quota_pass(file_id: str, installation: Installation) -> None:
    async def submit_all() -> list[Any]:
        submits = Submits(installation)
        return await asyncio.gather(
            *(submits.submit(asked, caller) for _ in range(4)), return_exceptions=True
        )

    with installation.database.transaction() as session:
        session.get_one(Project, access.DEFAULT_PROJECT).quotas = {"queued_jobs": 2}
    caller = Caller(access.DEFAULT_ORGANIZATION, access.DEFAULT_PROJECT, "key")
    asked = Submission(parse_job({"model": "tiny", "training_file": file_id}), [], None)
    outcomes = asyncio.run(submit_all())
    codes = [getattr(outcome, "code", None) for outcome in outcomes]
    assert codes == [None, None, "quota_exceeded", "quota_exceeded"]


def test_the_seed_that_was_asked_for_is_taken(submit: Callable[..., Any]) -> None:
    assert (submit(seed=7)["seed"], submit(qlora={"seed": 8})["seed"]) == (7, 8)


def test_what_auto_became_is_shown_once_the_rows_are_counted(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session, qlora={"warmup_ratio": 0.5})
    job = client.get(f"{_URL}/ftjob-1").json()
    assert job["hyperparameters"] == {"n_epochs": 3, "batch_size": 2, "learning_rate_multiplier": 1.0}
    assert job["method"]["supervised"]["hyperparameters"] == job["hyperparameters"]
    assert (job["qlora"]["max_steps"], job["qlora"]["warmup_steps"], job["qlora"]["warmup_ratio"]) == (
        96,
        48,
        None,
    )
    assert (job["phase"], job["progress"]["total_steps"]) == ("waiting", 96)


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "lora", "init_lora_weights": "pissa", "optimizer": "adafactor", "bias": "all"},
        {"method": "full", "trainable_layers": 1, "lr_scheduler": "cosine", "lr_restarts": 2},
        {"early_stopping": {"patience": 3, "min_delta": 0.1, "metric": "eval_loss"}, "packing": True},
        {"samples": {"count": 1, "max_new_tokens": 8}, "use_dora": True, "neftune_alpha": 5.0},
        {"quantization": "int8", "loraplus_lr_ratio": 16.0, "auto_fit": True, "min_lr_ratio": 0.1},
    ],
)
def test_settings_of_every_method_are_shown_as_they_were_asked_for(
    client: TestClient, installation: Installation, asked: dict[str, Any]
) -> None:
    with installation.database.transaction() as session:
        create_job(session, qlora=asked)
    before = client.get(f"{_URL}/ftjob-1").json()["qlora"]
    with installation.database.transaction() as session:
        prepare(session)
    after = client.get(f"{_URL}/ftjob-1").json()["qlora"]
    assert [{name: shown[name] for name in asked} for shown in (before, after)] == [asked, asked]


def test_a_job_on_several_files_shows_them(submit: Callable[..., Any], file_id: str) -> None:
    files = [{"id": file_id, "weight": 0.5}]
    assert submit(dataset={"files": files})["dataset"]["files"] == files


def test_a_job_on_one_of_our_models_shows_it_and_starts_from_it(
    client: TestClient, submit: Callable[..., Any], installation: Installation
) -> None:
    with installation.database.transaction() as session:
        model = create_tuned_job(session, qlora={"r": 4}).fine_tuned_model
    job = submit(model=model)
    assert (job["model"], job["qlora"]["r"]) == (model, 4)
    body = {"model": model, "training_file": job["training_file"], "qlora": {"r": 8}}
    refused = client.post(_URL, json=body).json()["error"]
    assert (refused["param"], "4" in refused["message"], "8" in refused["message"]) == ("qlora.r", True, True)


def test_a_queued_job_is_cancelled_at_once_and_again_without_effect(
    client: TestClient, submit: Callable[..., Any]
) -> None:
    url = f"{_URL}/{submit()['id']}/cancel"
    headers = {"Content-Type": "application/json"}
    first, again = (client.post(url, headers=headers) for _ in range(2))
    assert (first.status_code, first.json()["status"]) == (200, "cancelled")
    assert (again.status_code, again.json()) == (200, first.json())


def test_a_running_job_shows_its_progress_and_is_cancelled_at_its_next_step(
    client: TestClient, installation: Installation
) -> None:
    with installation.database.transaction() as session:
        create_prepared_job(session)
        taken = claim(session)
        assert taken is not None
        step = events.StepLogged(
            step=24, total_steps=96, epoch=0.75, train_loss=1.5, seconds_remaining=60, trained_token_count=99
        )
        recording.record_events(session, taken.lease, [events.RunStarted(), step], offset=1, now=NOW)
    job = client.get(f"{_URL}/ftjob-1").json()
    assert (job["status"], job["queue"], job["attempts"], job["trained_tokens"]) == ("running", None, 1, None)
    assert (job["progress"]["percent"], job["progress"]["epoch"], job["progress"]["train_loss"]) == (
        25.0,
        0.75,
        1.5,
    )
    assert job["estimated_finish"] > job["created_at"]
    cancelling = client.post(f"{_URL}/ftjob-1/cancel").json()
    assert (cancelling["status"], cancelling["phase"]) == ("running", "cancelling")
    with installation.database.transaction() as session:
        endings.stop_run(session, taken.lease, exit_code=85, now=NOW)
    cancelled = client.get(f"{_URL}/ftjob-1").json()
    assert (cancelled["status"], cancelled["trained_tokens"]) == ("cancelled", 99)


def test_a_succeeded_job_shows_model_and_result_file(client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        finish(session, create_prepared_job(session, suffix="faq"))
    job = client.get(f"{_URL}/ftjob-1").json()
    assert (job["status"], job["result_files"], job["trained_tokens"]) == ("succeeded", ["file-result"], 12)
    assert (job["fine_tuned_model"], job["estimated_finish"]) == ("ft:tiny:org-local:faq:1", None)
    tuned = client.get(f"/v1/models/{job['fine_tuned_model']}").json()
    assert (tuned["id"], tuned["owned_by"]) == (job["fine_tuned_model"], "org-local")
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny", tuned["id"]]


def finish(session: Any, job: Job) -> None:
    """Run a prepared job to its good end."""
    taken = claim(session)
    assert taken is not None
    endings.start_finalizing(session, taken.lease, now=NOW)
    result_file = File(
        id="file-result", project_id=job.project_id, filename="metrics.csv", purpose="fine-tune-results",
        size_bytes=1, sha256="1" * 64, storage_key="files/file-result", status="processed", created_at=NOW,
    )  # fmt: skip
    result = {"trained_token_count": 12}
    endings.succeed_training(
        session, taken.lease, artifacts=[], result=result, result_file=result_file, now=NOW
    )


def test_a_failed_job_tells_why(client: TestClient, installation: Installation) -> None:
    with installation.database.transaction() as session:
        create_job(session)
        work = claim(session, Queue.CPU)
        assert work is not None
        details = [{"loc": "training_file", "line": 3, "message": "no assistant turn"}]
        failure = Failure("invalid_training_file", "Line 3: no assistant turn", "training_file", details)
        endings.fail_run(session, work.lease, failure, exit_code=65, now=NOW)
    job = client.get(f"{_URL}/ftjob-1").json()
    assert (job["status"], job["error"]) == ("failed", vars(failure))


def test_jobs_are_listed_newest_first_with_their_places_in_the_queue(
    client: TestClient, submit: Callable[..., Any]
) -> None:
    ids = [submit()["id"] for _ in range(3)]
    first = client.get(_URL, params={"limit": 2}).json()
    second = client.get(_URL, params={"limit": 2, "after": first["last_id"]}).json()
    rows = first["data"] + second["data"]
    assert [(job["id"], job["queue"]["position"]) for job in rows] == list(
        zip(ids[::-1], (3, 2, 1), strict=True)
    )
    assert (first["has_more"], second["has_more"]) == (True, False)


def test_jobs_are_found_by_their_metadata(client: TestClient, submit: Callable[..., Any]) -> None:
    red = submit(metadata={"colour": "red", "team": "a"})["id"]
    submit(metadata={"colour": "blue"})
    plain = submit()["id"]

    def found(query: str) -> list[str]:
        return [job["id"] for job in client.get(f"{_URL}?{query}").json()["data"]]

    assert found("metadata%5Bcolour%5D=red&metadata[team]=a") == [red]
    assert found("metadata[it's]=x") == []
    assert found("metadata=null") == [plain]


def test_a_model_that_will_be_pulled_is_taken(submit: Callable[..., Any]) -> None:
    job = submit(model="Qwen/Qwen2.5-0.5B", qlora={"max_seq_length": 100_000})
    assert job["model"] == "Qwen/Qwen2.5-0.5B"
