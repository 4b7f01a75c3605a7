"""The life of a job in the database, the same on SQLite and on Postgres."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from luthier import events, metrics, repository
from luthier.database import Database
from luthier.errors import Failure, LuthierError
from luthier.service import control, endings, files, recording, runs, sweep
from luthier.service.retries import Limits
from luthier.service.transitions import LeaseLostError
from luthier.status import DesiredState, Queue, State
from luthier.tables import File, Outbox
from tests.factories import NOW, claim, create_file, create_job, create_prepared_job, create_tuned_job

LATER = NOW + timedelta(seconds=181)
LIMITS = Limits(5, 5, 3)


def sweep_all(session: Session, limits: Limits = LIMITS, *, now: datetime) -> list[str]:
    return sweep.sweep(session, limits=limits, jitter=0, now=now, at_most=None)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def test_a_submitted_job_is_queued_with_its_preparation_and_a_doorbell(session: Session) -> None:
    job = create_job(session)
    work = repository.find_open_work(session, job_id=job.id)
    assert (job.state, [item.kind for item in work]) == (State.QUEUED, ["prepare"])
    assert [message.key for message in session.query(Outbox)] == ["cpu"]


def test_a_training_job_cannot_be_claimed_before_its_data_is_prepared(session: Session) -> None:
    create_job(session)
    assert claim(session, Queue.TRAIN) is None


def test_preparation_gives_the_job_its_numbers(session: Session) -> None:
    job = create_prepared_job(session, qlora={"r": 8})
    assert job.hyperparameters is not None
    assert (job.hyperparameters["r"], job.hyperparameters["n_epochs"], job.total_steps) == (8, 3, 96)


def test_a_claim_takes_the_oldest_of_the_highest_priority_once(session: Session) -> None:
    create_prepared_job(session, "ftjob-1")
    create_prepared_job(session, "ftjob-2", now=NOW + timedelta(seconds=1), priority=5)
    claimed = [claim(session), claim(session), claim(session)]
    assert [item.job.id if item else None for item in claimed] == ["ftjob-2", "ftjob-1", None]


def test_a_file_that_is_not_validated_lets_the_job_wait(session: Session) -> None:
    file = create_file(session, report=None)
    job = create_job(session)
    assert job.state == State.VALIDATING
    files.record_validation(
        session, file, report={"valid": True}, message=None, new_work_id=lambda: "work-x", now=NOW
    )
    assert job.state == State.QUEUED


def test_a_file_found_invalid_fails_the_jobs_that_wait_for_it(session: Session) -> None:
    file = create_file(session, report=None)
    job = create_job(session)
    files.record_validation(
        session, file, report={}, message="Line 7: no", new_work_id=lambda: "work-x", now=NOW
    )
    assert (job.state, job.error_code, job.error_message) == (
        State.FAILED,
        "invalid_training_file",
        "Line 7: no",
    )


def test_a_file_that_is_checked_again_in_another_way_lets_the_jobs_go_that_waited(session: Session) -> None:
    file = create_file(session, report=None)
    job = create_job(session)
    files.set_report(
        session, file, report={"valid": True}, message=None, new_work_id=lambda: "work-x", now=NOW
    )
    assert job.state == State.QUEUED


def test_a_job_on_a_file_in_error_is_refused(session: Session) -> None:
    file = create_file(session, report=None)
    files.record_validation(
        session, file, report={}, message="Line 7: no", new_work_id=lambda: "work-x", now=NOW
    )
    with pytest.raises(LuthierError, match="Line 7"):
        create_job(session)


def test_cancel_of_a_queued_job_ends_it_and_its_preparation(session: Session) -> None:
    job = create_job(session)
    control.request_cancel(session, job, now=NOW)
    assert job.state == State.CANCELLED
    assert not repository.find_open_work(session, job_id=job.id)


def test_cancel_of_a_running_job_is_a_wish_that_the_heartbeat_tells(session: Session) -> None:
    job = create_prepared_job(session)
    taken = claim(session)
    assert taken is not None
    control.request_cancel(session, job, now=NOW)
    assert job.phase == "cancelling"
    assert runs.heartbeat(session, taken.lease, lease_seconds=180, now=NOW) == DesiredState.CANCEL


def test_a_cancel_may_be_asked_for_twice(session: Session) -> None:
    job = create_job(session)
    for _ in range(2):
        assert control.request_cancel(session, job, now=NOW).state == State.CANCELLED
    kinds = [event.kind for event in repository.list_events_after(session, job.id, after=0, limit=20)]
    assert kinds.count("job_cancelled") == 1


def test_cancel_of_a_job_that_has_succeeded_is_refused(session: Session) -> None:
    job = create_tuned_job(session)
    with pytest.raises(LuthierError, match="already ended"):
        control.request_cancel(session, job, now=NOW)


def test_the_sweep_requeues_a_job_whose_lease_ran_out(session: Session) -> None:
    job = create_prepared_job(session)
    claim(session)
    assert sweep_all(session, now=NOW) == []
    assert sweep_all(session, now=LATER) == [job.id]
    assert (job.state, job.lease_owner) == (State.QUEUED, None)


def test_a_swept_job_that_was_to_be_cancelled_is_cancelled(session: Session) -> None:
    job = create_prepared_job(session)
    claim(session)
    control.request_cancel(session, job, now=NOW)
    sweep_all(session, now=LATER)
    assert job.state == State.CANCELLED


def test_a_job_that_is_lost_too_often_fails(session: Session) -> None:
    job = create_prepared_job(session)
    for hour in (1, 3):
        claim(session, now=NOW + timedelta(hours=hour))
        sweep_all(session, Limits(2, 2, 2), now=NOW + timedelta(hours=hour + 1))
    assert (job.state, job.error_code) == (State.FAILED, "worker_lost")


def test_a_stale_worker_can_write_nothing(session: Session) -> None:
    job = create_prepared_job(session)
    stale = claim(session)
    assert stale is not None
    sweep_all(session, now=LATER)
    fresh = claim(session, now=LATER)
    assert fresh is not None
    with pytest.raises(LeaseLostError):
        runs.heartbeat(session, stale.lease, lease_seconds=180, now=LATER)
    with pytest.raises(LeaseLostError):
        recording.record_events(
            session, stale.lease, [events.PhaseChanged(phase="training")], offset=1, now=LATER
        )
    with pytest.raises(LeaseLostError):
        endings.fail_run(session, stale.lease, Failure("server_error", "no"), exit_code=1, now=LATER)
    assert (job.state, job.lease_epoch) == (State.STARTING, 2)


def test_a_new_instance_takes_back_what_the_old_one_held(session: Session) -> None:
    job = create_prepared_job(session)
    claim(session, owner="host/gpu0#old")
    assert sweep.release_previous(session, "host/gpu1", limits=LIMITS, jitter=0, now=NOW) == []
    assert sweep.release_previous(session, "host/gpu0", limits=LIMITS, jitter=0, now=NOW) == [job.id]


def test_a_resumed_run_supersedes_what_the_lost_one_logged_later(session: Session) -> None:
    job = create_prepared_job(session)
    first = claim(session)
    assert first is not None
    lines: list[events.AnyEvent] = [events.RunStarted()]
    lines += [events.StepLogged(step=n, total_steps=4, epoch=0, train_loss=n) for n in (1, 2, 3)]
    recording.record_events(session, first.lease, lines, offset=10, now=NOW)
    sweep_all(session, now=LATER)
    second = claim(session, now=LATER)
    assert second is not None
    lines = [
        events.RunStarted(resumed_from_step=2),
        events.StepLogged(step=3, total_steps=4, epoch=0, train_loss=9),
    ]
    recording.record_events(session, second.lease, lines, offset=10, now=LATER)
    assert [row.train_loss for row in metrics.list_metrics(session, job.id)] == [1, 2, 9]


def test_events_and_metrics_are_numbered_in_one_sequence(session: Session) -> None:
    job = create_prepared_job(session)
    taken = claim(session)
    assert taken is not None
    lines = [events.RunStarted(), events.StepLogged(step=1, total_steps=4, epoch=0, train_loss=2.5)]
    recording.record_events(session, taken.lease, lines, offset=10, now=NOW)
    page = repository.list_events(session, job, before=None, limit=100)
    numbers = [row.number for row in page.data]
    assert numbers == sorted(range(1, len(numbers) + 1), reverse=True)


def test_the_steps_and_the_answers_that_a_child_tells_are_stored(session: Session) -> None:
    job = create_prepared_job(session)
    taken = claim(session)
    assert taken is not None
    plan = events.PlanChosen(
        engine="trl",
        precision="bf16",
        total_steps=17,
        trainable_parameter_count=1,
        parameter_count=2,
        train_row_count=8,
        eval_row_count=2,
        gradient_checkpointing=False,
        summary="17 steps",
        packing_efficiency=0.97,
    )
    answer = events.SampleGenerated(step=3, index=1, prompt="Why?", text="Since.", reference="Because.")
    recording.record_events(session, taken.lease, [events.RunStarted(), plan, answer], offset=10, now=NOW)
    stored = next(
        row
        for row in repository.list_events(session, job, before=None, limit=100).data
        if row.kind == "sample_generated"
    )
    assert (job.total_steps, job.plan["packing_efficiency"]) == (17, 0.97)
    assert stored.message == "Sample 2 at step 3: Since."
    assert (stored.data["text"], stored.data["index"], stored.data["reference"]) == ("Since.", 1, "Because.")


def test_success_shows_model_artifacts_and_result_file_together(session: Session) -> None:
    job = create_prepared_job(session, suffix="faq")
    taken = claim(session)
    assert taken is not None
    endings.start_finalizing(session, taken.lease, now=NOW)
    result_file = File(
        id="file-result", project_id=job.project_id, filename="metrics.csv", purpose="fine-tune-results",
        size_bytes=1, sha256="1" * 64, storage_key="x", status="processed", created_at=NOW,
    )  # fmt: skip
    endings.succeed_training(
        session,
        taken.lease,
        artifacts=[endings.NewArtifact("metrics.csv", "metrics", 1, "1" * 64, "x")],
        result={"trained_token_count": 12},
        result_file=result_file,
        now=NOW,
    )
    assert (job.state, job.fine_tuned_model) == (State.SUCCEEDED, "ft:tiny:org-local:faq:1")
    assert [item.name for item in repository.list_artifacts(session, job.id)] == ["metrics.csv"]


def test_a_file_in_use_is_not_deleted(session: Session) -> None:
    create_job(session)
    with pytest.raises(LuthierError, match="used by job ftjob-1"):
        files.delete_file(session, repository.get_file(session, "proj-default", "file-train"), now=NOW)


def test_a_cancelled_job_is_not_touched_by_its_preparation(session: Session) -> None:
    job = create_job(session)
    work = claim(session, Queue.CPU)
    assert work is not None
    control.request_cancel(session, job, now=NOW)
    endings.fail_run(session, work.lease, Failure("invalid_training_file", "bad"), exit_code=65, now=NOW)
    assert job.state == State.CANCELLED


def test_a_validation_that_was_called_off_says_nothing_by_failing(session: Session) -> None:
    file = create_file(session, report=None)
    job = create_job(session)
    work = claim(session, Queue.CPU)
    assert work is not None
    files.set_report(session, file, report=None, message=None, new_work_id=lambda: "work-again", now=NOW)
    endings.fail_run(session, work.lease, Failure("server_error", "broken"), exit_code=1, now=NOW)
    assert (file.status, job.state) == ("uploaded", State.VALIDATING)


@pytest.mark.parametrize(
    ("losses", "keep", "kept"),
    [
        ([None, None, None], 1, [3]),
        ([1.0, 2.0, 3.0], 1, [3, 1]),
        ([2.0, 1.0, 3.0], 2, [3, 2]),
        ([1.0, 1.0, 2.0], 1, [3, 1]),
        ([3.0, 2.0, 1.0], 1, [3]),
        ([1.0, None, None], 2, [3, 2, 1]),
    ],
)
def test_the_newest_checkpoints_and_the_best_are_kept(
    session: Session, losses: list[float | None], keep: int, kept: list[int]
) -> None:
    job = create_prepared_job(session)
    work = claim(session)
    assert work is not None
    for step, loss in enumerate(losses, start=1):
        runs.record_checkpoint(
            session, work.lease, step=step, storage_key=f"k{step}", manifest_sha256="0" * 64, size_bytes=5,
            metrics={"train_loss": 3.0, "eval_loss": loss}, now=NOW,
        )  # fmt: skip
    session.flush()

    dropped = runs.drop_checkpoints(session, work.lease, keep=keep)

    assert [item.step for item in repository.all_checkpoints(session, job.id)] == kept
    assert sorted(dropped) == [f"k{step}" for step in (1, 2, 3) if step not in kept]


def test_of_many_tuned_models_the_newest_are_listed(session: Session) -> None:
    for number in (1, 2, 3):
        create_tuned_job(session, f"ftjob-{number}", now=NOW + timedelta(seconds=number))
    listed = repository.list_tuned_jobs(session, "proj-default", limit=2)
    assert [job.id for job in listed] == ["ftjob-3", "ftjob-2"]
