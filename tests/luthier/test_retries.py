"""What becomes of a job whose run ended early: by its budgets, by deaths, and by what its owner wants."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy.orm import Session

from luthier import repository
from luthier.database import Database
from luthier.service import blocking, control, endings, retries, runs, sweep
from luthier.service.claims import Claim
from luthier.service.retries import Ending, Limits
from luthier.status import BlockedOn, DesiredState, Queue, State
from luthier.tables import Job, JobEvent, Outbox
from tests.factories import NOW, claim, create_file, create_job, create_prepared_job, prepare

LIMITS = Limits(max_infra_restarts=5, max_user_failures=4, max_deaths=3)


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _job(wish: DesiredState = DesiredState.RUN, *, infra: int = 0, user: int = 0, deaths: int = 0) -> Job:
    return Job(desired_state=wish, infra_restarts=infra, user_failures=user, no_progress_deaths=deaths)


def _claim(session: Session, **fields: object) -> Claim:
    taken = claim(session, **fields)  # type: ignore[arg-type]
    assert taken is not None
    return taken


def _end(session: Session, taken: Claim, ending: Ending, *, jitter: float = 0.0) -> None:
    endings.requeue_run(
        session, taken.lease, ending=ending, message="It ended", exit_code=1, limits=LIMITS, jitter=jitter,
        now=NOW,
    )  # fmt: skip


def _checkpoint(session: Session, taken: Claim, step: int) -> str:
    return runs.record_checkpoint(
        session, taken.lease, step=step, storage_key=f"k{step}", manifest_sha256="0" * 64, size_bytes=1,
        metrics={}, now=NOW,
    ).id  # fmt: skip


@pytest.mark.parametrize(
    ("infra_before", "seconds"), [(0, 0), (1, 7.5), (2, 15), (3, 30)]
)  # half of 0, 15, 30, 60
def test_losses_wait_longer_and_longer_but_not_the_first(infra_before: int, seconds: float) -> None:
    decision = retries.decide(_job(infra=infra_before), Ending.LOST, LIMITS, 0.5)
    assert decision.wait_seconds == seconds
    assert decision.state == (State.RETRY_WAIT if seconds else State.QUEUED)


@pytest.mark.parametrize(("user_before", "seconds"), [(0, 30), (1, 60), (2, 120)])
def test_what_does_not_answer_is_asked_again_after_minutes(user_before: int, seconds: float) -> None:
    decision = retries.decide(_job(user=user_before), Ending.UNAVAILABLE, LIMITS, 0.5)
    assert (decision.wait_seconds, decision.counters.infra_restarts) == (seconds, 0)


@pytest.mark.parametrize("ending", [Ending.LOST, Ending.UNAVAILABLE])
def test_no_wait_is_longer_than_its_bound(ending: Ending) -> None:
    many = Limits(100, 100, 100)
    decision = retries.decide(_job(infra=60, user=60), ending, many, 0.999)
    assert decision.wait_seconds < {Ending.LOST: 900, Ending.UNAVAILABLE: 3600}[ending]


@pytest.mark.parametrize(
    ("ending", "infra", "user", "code"),
    [
        (Ending.LOST, 4, 0, "worker_lost"),
        (Ending.IO_ERROR, 4, 0, "io_error"),
        (Ending.GPU_FAULT, 4, 0, "gpu_fault"),
        (Ending.UNAVAILABLE, 0, 3, "remote_unavailable"),
    ],
)
def test_a_spent_budget_fails_the_job(ending: Ending, infra: int, user: int, code: str) -> None:
    decision = retries.decide(_job(infra=infra, user=user), ending, LIMITS, 0.5, message="Gone")
    assert decision.failure is not None
    assert (decision.state, decision.failure.code) == (State.FAILED, code)
    assert ": Gone. Once the cause is gone, retry the job" in decision.failure.message


@pytest.mark.parametrize("ending", [Ending.CRASHED, Ending.HUNG])
def test_the_third_death_without_progress_quarantines(ending: Ending) -> None:
    assert retries.decide(_job(infra=1, deaths=1), ending, LIMITS, 0.5).state == State.RETRY_WAIT
    assert retries.decide(_job(infra=2, deaths=2), ending, LIMITS, 0.5).state == State.QUARANTINED


def test_a_lost_worker_is_no_death_of_the_job() -> None:
    assert retries.decide(_job(deaths=2), Ending.LOST, LIMITS, 0.5).counters.no_progress_deaths == 2


@pytest.mark.parametrize(
    ("wish", "state"), [(DesiredState.CANCEL, State.CANCELLED), (DesiredState.PAUSE, State.PAUSED)]
)
@pytest.mark.parametrize("ending", list(Ending))
def test_what_the_owner_wants_goes_before_every_ending(
    ending: Ending, wish: DesiredState, state: State
) -> None:
    decision = retries.decide(_job(wish, infra=4, user=3, deaths=2), ending, LIMITS, 0.5)
    assert (decision.state, decision.counters.infra_restarts) == (state, 4)


def test_a_run_that_made_room_costs_nothing_and_goes_in_front(session: Session) -> None:
    job, other = create_prepared_job(session), create_prepared_job(session, "ftjob-2")
    _end(session, _claim(session), Ending.STOPPED)
    assert (job.state, job.infra_restarts, job.user_failures) == (State.QUEUED, 0, 0)
    assert job.queue_key < other.queue_key


def test_a_new_checkpoint_sets_the_budgets_back_and_an_old_one_does_not(session: Session) -> None:
    job = create_prepared_job(session)
    _end(session, _claim(session), Ending.CRASHED)
    second = _claim(session)
    _checkpoint(session, second, 2)
    assert (job.infra_restarts, job.no_progress_deaths, job.checkpoint_step) == (0, 0, 2)
    _end(session, second, Ending.CRASHED)
    _checkpoint(session, _claim(session), 2)
    assert (job.infra_restarts, job.no_progress_deaths) == (1, 1)


def test_a_checkpoint_that_is_told_of_twice_has_one_row_and_one_event(session: Session) -> None:
    job = create_prepared_job(session)
    taken = _claim(session)
    assert _checkpoint(session, taken, 2) == _checkpoint(session, taken, 2)
    rows = repository.list_events(session, job, before=None, limit=100).data
    assert [row.kind for row in rows if not hasattr(row, "step")].count("checkpoint_created") == 1


def test_a_job_that_dies_again_and_again_is_set_aside(session: Session) -> None:
    job = create_prepared_job(session)
    for _ in range(3):
        _end(session, _claim(session), Ending.CRASHED)
    assert (job.state, job.error_code, job.lease_owner) == (State.QUARANTINED, "process_crashed", None)
    newest = repository.list_events(session, job, before=None, limit=1).data[0]
    assert newest.kind == "job_quarantined"


def test_a_host_without_memory_is_tried_once_more(session: Session) -> None:
    job = create_prepared_job(session)
    _end(session, _claim(session), Ending.OUT_OF_HOST_MEMORY)
    assert job.state == State.QUEUED
    _end(session, _claim(session), Ending.OUT_OF_HOST_MEMORY)
    assert (job.state, job.error_code) == (State.FAILED, "out_of_host_memory")


def test_a_run_says_how_it_ended_and_why(session: Session) -> None:
    job = create_prepared_job(session)
    _end(session, _claim(session), Ending.UNAVAILABLE)
    run = repository.list_runs(session, job.id)[0]
    assert (run.outcome, run.reason, run.exit_code) == ("unavailable", "It ended", 1)


def test_a_wait_ends_with_a_doorbell_and_not_before(session: Session) -> None:
    job = create_prepared_job(session)
    _end(session, _claim(session), Ending.UNAVAILABLE, jitter=0.5)
    bells = session.query(Outbox).count()
    assert (job.state, job.phase, job.not_before) == (
        State.RETRY_WAIT,
        "backing_off",
        NOW + timedelta(seconds=30),
    )
    assert sweep.wake_waiting(session, now=NOW + timedelta(seconds=29), limit=9) == []
    assert sweep.wake_waiting(session, now=NOW + timedelta(seconds=30), limit=9) == [job.id]
    assert (job.state, job.not_before, session.query(Outbox).count()) == (State.QUEUED, None, bells + 1)


def test_jobs_lost_together_do_not_come_back_together(session: Session) -> None:
    found = [create_prepared_job(session, f"ftjob-{number}") for number in range(3)]
    for job in found:
        job.infra_restarts = 1
        _claim(session)
    sweep.sweep(session, limits=LIMITS, jitter=0.1, now=NOW + timedelta(hours=1), at_most=None)
    assert len({job.not_before for job in found}) == 3


def test_a_sweep_takes_back_at_most_so_many_the_longest_lost_first(session: Session) -> None:
    create_prepared_job(session)
    create_prepared_job(session, "ftjob-2")
    first = _claim(session, now=NOW - timedelta(seconds=9))
    _claim(session)
    late = NOW + timedelta(hours=1)
    assert sweep.sweep(session, limits=LIMITS, jitter=0, now=late, at_most=1) == [first.job.id]


def test_a_full_disk_blocks_the_job_until_there_is_room(session: Session) -> None:
    job = create_prepared_job(session)
    _end(session, _claim(session), Ending.DISK_FULL)
    assert (job.state, job.blocked_on, job.infra_restarts) == (State.BLOCKED, "disk", 0)
    assert blocking.unblock(session, blocked_on=BlockedOn.MODEL, now=NOW, limit=9) == []
    assert blocking.unblock(session, blocked_on=BlockedOn.DISK, now=NOW, limit=9) == []
    later = NOW + timedelta(minutes=1)
    assert blocking.unblock(session, blocked_on=BlockedOn.DISK, now=later, limit=9) == [job.id]
    assert (job.state, job.blocked_on) == (State.QUEUED, None)


def _block_on_model(session: Session, queue: Queue = Queue.TRAIN) -> None:
    taken = _claim(session, queue=queue)
    endings.block_run(
        session, taken.lease, blocked_on=BlockedOn.MODEL, message="The hub is down", exit_code=69, now=NOW
    )


def test_a_job_waits_longer_each_time_for_a_model_and_uses_no_budget(session: Session) -> None:
    job = create_prepared_job(session)
    waits = []
    for _ in range(6):
        _block_on_model(session)
        assert (job.state, job.blocked_on, job.user_failures) == (State.BLOCKED, "model", 0)
        assert job.not_before is not None
        waits.append((job.not_before - NOW).total_seconds())
        assert blocking.unblock(session, blocked_on=BlockedOn.MODEL, now=NOW, limit=9) == []
        assert blocking.unblock(session, blocked_on=BlockedOn.MODEL, now=job.not_before, limit=9) == [job.id]
    assert waits == [60, 120, 240, 480, 900, 900]
    assert {run.outcome for run in repository.list_runs(session, job.id)} == {"blocked"}


def test_a_job_shows_what_its_preparation_waits_for_and_both_go_on_when_the_model_is_there(
    session: Session,
) -> None:
    job = create_job(session)
    work = repository.find_open_work(session, job_id=job.id)[0]
    _block_on_model(session, Queue.CPU)
    assert (work.state, job.state, job.blocked_on) == (State.BLOCKED, State.BLOCKED, "model")
    told = session.query(JobEvent).filter_by(job_id=job.id, kind="job_blocked").one()
    assert told.message == "The hub is down"
    assert blocking.unblock_model(session, "another", now=NOW, limit=9) == []
    assert set(blocking.unblock_model(session, "tiny", now=NOW, limit=9)) == {job.id, work.id}
    assert (work.state, job.state, job.phase) == (State.QUEUED, State.QUEUED, "tokenizing")


def test_a_blocked_job_can_be_cancelled(session: Session) -> None:
    job = create_prepared_job(session)
    _end(session, _claim(session), Ending.DISK_FULL)
    control.request_cancel(session, job, now=NOW)
    assert (job.state, job.blocked_on) == (State.CANCELLED, None)


def test_a_preparation_that_dies_too_often_fails_its_job(session: Session) -> None:
    job = create_job(session)
    for _ in range(3):
        _end(session, _claim(session, queue=Queue.CPU), Ending.CRASHED)
    assert (job.state, job.error_code) == (State.FAILED, "process_crashed")


def test_a_preparation_that_waits_is_cancelled_with_its_job(session: Session) -> None:
    job = create_job(session)
    _end(session, _claim(session, queue=Queue.CPU), Ending.UNAVAILABLE, jitter=0.5)
    control.request_cancel(session, job, now=NOW)
    assert not repository.find_open_work(session, job_id=job.id)


def test_a_lease_without_an_end_counts_as_lost(session: Session) -> None:
    create_file(session)
    job = create_job(session)
    prepare(session)
    _claim(session).job.lease_expires_at = None
    session.flush()
    assert sweep.sweep(session, limits=LIMITS, jitter=0, now=NOW, at_most=None) == [job.id]
