"""What owners wish of their jobs: pause, resume, another try, another place in the queue."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from luthier import events, repository
from luthier.database import Database
from luthier.errors import Failure, LuthierError
from luthier.service import control, endings, files, recording, runs, sweep
from luthier.service.claims import Claim
from luthier.service.retries import Ending, Limits
from luthier.status import DesiredState, Queue, State
from luthier.tables import Job, JobFile
from tests.factories import CALLER, NOW, claim, create_file, create_job, create_prepared_job, create_tuned_job

LIMITS = Limits(5, 5, 3)
LATER = NOW + timedelta(hours=1)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _claim(session: Session, queue: Queue = Queue.TRAIN) -> Claim:
    taken = claim(session, queue)
    assert taken is not None
    return taken


def _kinds(session: Session, job: Job) -> list[str]:
    rows = repository.list_events(session, job, before=None, limit=100).data
    return [row.kind for row in reversed(rows) if hasattr(row, "kind")]


def _retry(session: Session, job: Job, from_: str = "checkpoint", job_id: str = "ftjob-again") -> Job:
    names = {"job_id": job_id, "work_id": f"work-{job_id}"}
    return control.retry(session, CALLER, job, from_=from_, seed=99, now=LATER, **names)  # type: ignore[arg-type]


def _failed_job(session: Session, *, step: int | None = 4, **fields: object) -> Job:
    """A job whose only run made a checkpoint and failed."""
    job = create_prepared_job(session, **fields)
    taken = _claim(session)
    if step is not None:
        runs.record_checkpoint(
            session, taken.lease, step=step, storage_key=f"k{step}", manifest_sha256="0" * 64, size_bytes=1,
            metrics={}, now=NOW,
        )  # fmt: skip
    endings.fail_run(session, taken.lease, Failure("nan_loss", "no"), exit_code=78, now=NOW)
    return job


def test_a_queued_job_pauses_at_once_and_cannot_be_claimed(session: Session) -> None:
    job = create_prepared_job(session)
    control.request_pause(session, job, now=NOW)
    assert (job.state, claim(session)) == (State.PAUSED, None)


@pytest.mark.parametrize("ending", [Ending.UNAVAILABLE, Ending.DISK_FULL])
def test_a_job_that_waits_pauses_at_once(session: Session, ending: Ending) -> None:
    job = create_prepared_job(session)
    lease = _claim(session).lease
    endings.requeue_run(
        session, lease, ending=ending, message="no", exit_code=1, limits=LIMITS, jitter=0.5, now=NOW
    )
    control.request_pause(session, job, now=NOW)
    assert (job.state, job.not_before, job.blocked_on) == (State.PAUSED, None, None)


def test_a_job_whose_files_are_being_checked_pauses_once_they_are(session: Session) -> None:
    file = create_file(session, report=None)
    job = create_job(session)
    control.request_pause(session, job, now=NOW)
    assert job.state == State.VALIDATING
    files.record_validation(
        session, file, report={"valid": True}, message=None, new_work_id=lambda: "work-x", now=NOW
    )
    assert job.state == State.PAUSED


def test_the_data_of_a_paused_job_is_prepared_and_it_can_go_on(session: Session) -> None:
    job = create_job(session)
    control.request_pause(session, job, now=NOW)
    control.resume(session, job, now=NOW)
    assert (job.state, job.phase, claim(session)) == (State.QUEUED, "tokenizing", None)
    control.request_pause(session, job, now=NOW)
    create_prepared_job(session, "ftjob-2")
    assert (job.state, job.prepared_at) == (State.PAUSED, NOW)


def test_a_running_job_pauses_as_its_run_ends(session: Session) -> None:
    job = create_prepared_job(session)
    lease = _claim(session).lease
    control.request_pause(session, job, now=NOW)
    assert (job.state, job.phase) == (State.STARTING, "pausing")
    recording.record_events(session, lease, [events.PhaseChanged(phase="training")], offset=1, now=NOW)
    assert job.phase == "pausing"
    endings.stop_run(session, lease, exit_code=85, now=NOW)
    assert (job.state, job.lease_owner) == (State.PAUSED, None)
    assert repository.list_runs(session, job.id)[0].outcome == "paused"


def test_a_wish_to_pause_that_was_taken_back_lets_the_job_go_on(session: Session) -> None:
    job = create_prepared_job(session)
    lease = _claim(session).lease
    control.request_pause(session, job, now=NOW)
    control.resume(session, job, now=NOW)
    assert runs.desired_state(session, lease) == DesiredState.RUN
    endings.stop_run(session, lease, exit_code=85, now=NOW)
    assert (job.state, repository.list_runs(session, job.id)[0].outcome) == (State.QUEUED, "stopped")


def test_a_job_to_pause_whose_worker_is_lost_is_paused(session: Session) -> None:
    job = create_prepared_job(session)
    _claim(session)
    control.request_pause(session, job, now=NOW)
    sweep.sweep(session, limits=LIMITS, jitter=0, now=LATER, at_most=None)
    assert job.state == State.PAUSED


def test_a_resumed_job_goes_in_front(session: Session) -> None:
    create_prepared_job(session)
    job = create_prepared_job(session, "ftjob-2")
    control.request_pause(session, job, now=NOW)
    control.resume(session, job, now=NOW)
    assert job.queue_key < repository.get_job(session, "proj-default", "ftjob-1").queue_key
    assert _kinds(session, job)[-3:] == ["pause_requested", "job_paused", "job_resumed"]


def test_asking_twice_tells_once(session: Session) -> None:
    job = create_prepared_job(session)
    control.request_pause(session, job, now=NOW)
    told = _kinds(session, job)
    control.request_pause(session, job, now=NOW)
    assert _kinds(session, job) == told
    control.resume(session, job, now=NOW)
    told = _kinds(session, job)
    control.resume(session, job, now=NOW)
    assert _kinds(session, job) == told


def test_a_cancel_is_not_taken_back_by_a_pause_or_a_resume(session: Session) -> None:
    job = create_prepared_job(session)
    _claim(session)
    control.request_cancel(session, job, now=NOW)
    for wish in (control.request_pause, control.resume):
        with pytest.raises(LuthierError, match="is being cancelled"):
            wish(session, job, now=NOW)
    assert job.desired_state == DesiredState.CANCEL


def test_a_cancel_goes_before_a_pause(session: Session) -> None:
    job = create_prepared_job(session)
    lease = _claim(session).lease
    control.request_pause(session, job, now=NOW)
    control.request_cancel(session, job, now=NOW)
    endings.stop_run(session, lease, exit_code=85, now=NOW)
    assert (job.state, repository.list_runs(session, job.id)[0].outcome) == (State.CANCELLED, "cancelled")


def test_a_paused_job_can_be_cancelled(session: Session) -> None:
    job = create_prepared_job(session)
    control.request_pause(session, job, now=NOW)
    assert control.request_cancel(session, job, now=NOW).state == State.CANCELLED


def test_an_ended_job_has_no_wishes(session: Session) -> None:
    job = create_job(session)
    control.request_cancel(session, job, now=NOW)
    for wish in (control.request_pause, control.resume):
        with pytest.raises(LuthierError, match="already ended") as caught:
            wish(session, job, now=NOW)
        assert caught.value.code == "job_already_terminal"


def test_a_cancelled_job_stays_so_when_it_is_cancelled_again(session: Session) -> None:
    job = create_job(session)
    for _ in range(2):
        assert control.request_cancel(session, job, now=NOW).state == State.CANCELLED
    assert _kinds(session, job).count("job_cancelled") == 1


def test_a_job_that_has_ended_otherwise_is_not_cancelled(session: Session) -> None:
    with pytest.raises(LuthierError, match="already ended"):
        control.request_cancel(session, _failed_job(session), now=NOW)


def test_a_retry_is_a_new_job_that_goes_on_from_the_newest_checkpoint(session: Session) -> None:
    job = _failed_job(session, suffix="faq", priority=3, metadata={"a": "b"})
    again = _retry(session, job)
    assert (again.parent_job_id, again.resume_from) == (job.id, "ftckpt_1-1-4")
    assert (again.request, again.seed, again.suffix, again.priority) == (job.request, job.seed, "faq", 3)
    assert (again.state, job.state, again.user_metadata) == (State.QUEUED, State.FAILED, {"a": "b"})
    assert [use.file_id for use in repository.files_of_job(session, again.id)] == ["file-train"]


def test_a_retry_reads_its_files_as_the_job_did(session: Session) -> None:
    job = _failed_job(session)
    session.get_one(JobFile, (job.id, "training", 0)).entry = {"columns": {}}
    session.flush()
    assert repository.files_of_job(session, _retry(session, job).id)[0].entry == {"columns": {}}


def test_a_retry_from_the_start_has_no_checkpoint_and_another_seed(session: Session) -> None:
    again = _retry(session, _failed_job(session), "start")
    assert (again.resume_from, again.checkpoint_step, again.seed) == (None, 0, 99)


def test_a_retry_without_a_checkpoint_starts_anew_with_the_same_seed(session: Session) -> None:
    again = _retry(session, _failed_job(session, step=None))
    assert (again.resume_from, again.seed) == (None, 7)


def test_a_retry_of_a_retry_that_made_no_checkpoint_uses_the_first_ones(session: Session) -> None:
    again = _retry(session, _failed_job(session))
    control.request_cancel(session, again, now=LATER)
    assert _retry(session, again, job_id="ftjob-third").resume_from == "ftckpt_1-1-4"


def test_a_retry_of_a_job_that_tunes_a_model_again_still_starts_from_that_model(session: Session) -> None:
    tuned = create_tuned_job(session)
    job = create_job(session, "ftjob-2", model=tuned.fine_tuned_model)
    control.request_cancel(session, job, now=NOW)
    again = _retry(session, job)
    assert (again.is_tuned_again, again.model, again.parent_job_id) == (True, "tiny", "ftjob-2")
    assert again.request["model"] == tuned.fine_tuned_model


def test_only_a_job_that_ended_without_success_is_tried_again(session: Session) -> None:
    tuned, live = create_tuned_job(session), create_job(session, "ftjob-2")
    for job, words in ((tuned, "has succeeded"), (live, "has not ended")):
        with pytest.raises(LuthierError, match=words) as caught:
            _retry(session, job)
        assert caught.value.code == "job_not_retryable"


def test_a_retry_needs_the_files_still(session: Session) -> None:
    job = _failed_job(session)
    files.delete_file(session, repository.get_file(session, "proj-default", "file-train"), now=NOW)
    session.flush()
    with pytest.raises(LuthierError, match="invalid training_file"):
        _retry(session, job)


def _line(session: Session) -> list[str]:
    """Ids of queued training jobs in the order of their keys."""
    rows = session.query(Job).where(Job.state == State.QUEUED, Job.kind == "train")
    return [job.id.removeprefix("ftjob-") for job in rows.order_by(Job.queue_key, Job.id)]


def _four(session: Session) -> list[Job]:
    # Two of them side by side, without room between.
    times = [NOW, NOW + timedelta(microseconds=1), NOW + timedelta(seconds=1), NOW + timedelta(seconds=2)]
    return [create_prepared_job(session, f"ftjob-{n}", now=at) for n, at in enumerate(times, start=1)]


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("front", "4123"),
        ("ftjob-1", "4123"),
        ("ftjob-2", "1423"),
        ("ftjob-3", "1243"),
        ("back", "1234"),
    ],
)
def test_a_job_moves_to_a_place_in_its_queue(session: Session, place: str, line: str) -> None:
    last = _four(session)[-1]
    control.reprioritise(session, last, priority=None, place=place, now=LATER)
    assert "".join(_line(session)) == line


def test_moves_to_the_front_stack_up(session: Session) -> None:
    first, second, third, _ = _four(session)
    for job in (third, second, first, third):
        control.reprioritise(session, job, priority=None, place="front", now=LATER)
    assert "".join(_line(session)) == "3124"


def test_a_job_moves_to_the_back(session: Session) -> None:
    control.reprioritise(session, _four(session)[0], priority=None, place="back", now=LATER)
    assert "".join(_line(session)) == "2341"


def test_a_higher_priority_goes_first_and_keeps_the_order_within(session: Session) -> None:
    _, second, third, fourth = _four(session)
    for job in (fourth, third):
        control.reprioritise(session, job, priority=5, place=None, now=LATER)
    assert "".join(_line(session)) == "3412"
    control.reprioritise(session, second, priority=5, place="ftjob-4", now=LATER)
    assert "".join(_line(session)) == "3241"


def test_a_place_that_there_is_not_is_refused(session: Session) -> None:
    first, second, *_ = _four(session)
    second.priority = 1
    session.flush()
    for place, words in (("ftjob-1", "does not wait beside"), ("ftjob-2", "has priority 1")):
        with pytest.raises(LuthierError, match=words):
            control.reprioritise(session, first, priority=None, place=place, now=LATER)
    with pytest.raises(LuthierError, match="Use -100 to 100"):
        control.reprioritise(session, first, priority=101, place=None, now=LATER)


def test_a_job_that_is_being_worked_on_has_no_place(session: Session) -> None:
    job = create_prepared_job(session)
    _claim(session)
    with pytest.raises(LuthierError) as caught:
        control.reprioritise(session, job, priority=1, place=None, now=NOW)
    assert caught.value.code == "job_not_waiting"
