"""The service as a whole against a small model of it: submits, claims, endings, wishes, clocks in any order.

Each step is one transaction, on both databases, as an API, several agents and a dispatcher would make it;
leases stay in the hands of those who lost them. The model knows states, wishes, epochs and budgets, and is
written from docs/architecture.md, not from the code. After each step rows and model are compared, and what
must always hold is checked from the database alone. The short form runs with a fixed seed; the long one,
marked `full`, looks for new ways each time.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from luthier import events
from luthier.database import Database
from luthier.errors import Failure, LuthierError
from luthier.service import blocking, claims, control, endings, files, jobs, recording, runs, sweep, webhooks
from luthier.service.retries import Ending, Limits
from luthier.service.transitions import Lease, LeaseLostError
from luthier.spec import PreparedData, PreparedSplit
from luthier.status import FINAL, LEASED, QUEUE_OF_KIND, BlockedOn, DesiredState, Kind, Queue, State
from luthier.tables import File, Job, JobEvent, Metric, Outbox, Run
from luthier.webhooks import EVENT_TYPES, EventType, new_secret
from tests.factories import CALLER, NOW, create_file, make_request

SHORT = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    # To make a failure small takes longer than a test may; the long form does.
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
LONG = settings(SHORT, max_examples=300, stateful_step_count=80, derandomize=False, phases=tuple(Phase))
LIMITS = Limits(max_infra_restarts=4, max_user_failures=3, max_deaths=2)
LEASE_SECONDS = 180
WORKERS = ("host/gpu0", "host/gpu1")
WAITING = (State.QUEUED, State.RETRY_WAIT, State.BLOCKED)
UNCLAIMED = (*WAITING, State.PAUSED, State.VALIDATING)
END_OF_STATE = {
    State.SUCCEEDED: "fine_tuning.job.succeeded",
    State.FAILED: "fine_tuning.job.failed",
    State.QUARANTINED: "fine_tuning.job.failed",
    State.CANCELLED: "fine_tuning.job.cancelled",
}
ENDS = frozenset(END_OF_STATE.values())
ROWS = PreparedSplit(
    path="prepared/train.parquet", sha256="0" * 64, row_count=64, token_count=640, trained_token_count=320
)


@dataclass
class Model:
    """What a job should be.

    Attributes:
        used: bad runs since the last new checkpoint: of machines, of passing reasons, deaths.
        file_id: of the training job.
        serves: the training job that a preparation is for.
    """

    id: str
    kind: Kind
    state: State
    file_id: str = "file-train"
    serves: "Model | None" = None
    wish: DesiredState = DesiredState.RUN
    is_prepared: bool = False
    epoch: int = 0
    owner: str | None = None
    lease_until: datetime = NOW
    wait_until: datetime | None = None
    used: Counter[str] = field(default_factory=Counter)
    checkpoint_step: int = 0
    last_ending: Ending | None = None

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    @property
    def is_claimable(self) -> bool:
        return self.state == State.QUEUED and (self.kind == Kind.PREPARE or self.is_prepared)

    def leave(self, state: State) -> None:
        """Go to a state without a lease."""
        self.state, self.owner, self.wait_until = state, None, None

    def end_early(self, ending: Ending, jitter: float, now: datetime) -> None:
        """As docs/architecture.md says."""
        was_oom = self.last_ending == ending == Ending.OUT_OF_HOST_MEMORY and self.used["infra"] > 0
        self.last_ending = ending
        if self.wish != DesiredState.RUN:
            self.leave(State.PAUSED if self.wish == DesiredState.PAUSE else State.CANCELLED)
            return
        match ending:
            case Ending.STOPPED:
                self.leave(State.QUEUED)
                return
            case Ending.DISK_FULL:
                self.block(now + timedelta(seconds=30))
                return
            case Ending.UNAVAILABLE:
                self.used["user"] += 1
                wait = min(60 * 2 ** (self.used["user"] - 1), 3600)
            case _:
                self.used["infra"] += 1
                wait = min(15 * 2 ** (self.used["infra"] - 2), 900) if self.used["infra"] > 1 else 0
        is_death = ending in (Ending.CRASHED, Ending.HUNG)
        self.used["deaths"] += is_death
        is_spent = (
            self.used["user"] >= LIMITS.max_user_failures
            or self.used["infra"] >= LIMITS.max_infra_restarts
            or was_oom
        )
        if is_death and self.used["deaths"] >= LIMITS.max_deaths:
            self.give_up(State.QUARANTINED)
        elif is_spent:
            self.give_up(State.FAILED)
        elif jitter * wait > 0:
            self.leave(State.RETRY_WAIT)
            self.wait_until = now + timedelta(seconds=jitter * wait)
        else:
            self.leave(State.QUEUED)

    def block(self, until: datetime) -> None:
        """Wait for room, and have the training job that waits for it show so."""
        self.leave(State.BLOCKED)
        self.wait_until = until
        if self.serves is not None and self.serves.state == State.QUEUED:
            self.serves.block(until)

    def give_up(self, state: State) -> None:
        """End badly, and with it the training job that waits for it."""
        self.leave(state)
        if self.serves is not None and self.serves.state in UNCLAIMED:
            self.serves.leave(State.FAILED)


class ServiceMachine(RuleBasedStateMachine):
    """The rules; see the module."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        # One transaction holds the whole example and is rolled back: no database has to be made anew.
        self._connection: Connection = database.engine.connect()
        self._outer = self._connection.begin()
        self._numbers = itertools.count(1)
        self.now = NOW
        self.jobs: dict[str, Model] = {}
        self.leases: list[Lease] = []
        self.ended: dict[str, tuple[Any, ...]] = {}
        self.rung: Counter[str] = Counter()
        self.claimable: set[str] = set()

    def teardown(self) -> None:
        self._outer.rollback()
        self._connection.close()

    @contextmanager
    def session(self) -> Iterator[Session]:
        with (
            Session(
                self._connection, join_transaction_mode="create_savepoint", expire_on_commit=False
            ) as session,
            session.begin(),
        ):
            yield session

    @initialize()
    def start(self) -> None:
        with self.session() as session:
            create_file(session)
            webhooks.create_endpoint(
                session, CALLER, endpoint_id="whep_1", name="all", url="https://example.com/",
                event_types=EVENT_TYPES, secret=new_secret(), installation_key=b"0" * 64, now=NOW,
            )  # fmt: skip
        for _ in range(3):
            self._submit(is_checked=True)
            self._claim(Queue.CPU, WORKERS[0])
            self._succeed(self.leases[-1])

    # The clock and the owner.

    @rule(seconds=st.sampled_from([1, 14, 40, 181, 3700, -3600]))
    def let_time_pass(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: len(self.jobs) < 16)
    @rule(is_checked=st.booleans())
    def submit(self, is_checked: bool) -> None:
        self._submit(is_checked=is_checked)

    def _submit(self, *, is_checked: bool) -> None:
        number = next(self._numbers)
        file_id = "file-train" if is_checked else f"file-{number}"
        with self.session() as session:
            if not is_checked:
                create_file(session, file_id, report=None, work_id=f"work-file-{number}", now=self.now)
                # Its validation is told of by hand.
                control.request_cancel(session, session.get_one(Job, f"work-file-{number}"), now=self.now)
            request = make_request(training_file=file_id)
            names = {"job_id": f"ftjob-{number}", "work_id": f"work-{number}"}
            jobs.submit(session, CALLER, request, seed=7, now=self.now, **names)
        self._entered(number, file_id, is_checked=is_checked)

    def _entered(self, number: int, file_id: str, *, is_checked: bool) -> None:
        job = Model(f"ftjob-{number}", Kind.TRAIN, State.QUEUED if is_checked else State.VALIDATING, file_id)
        self.jobs[job.id] = job
        if is_checked:
            self._add_preparation(job, f"work-{number}")

    def _add_preparation(self, job: Model, work_id: str) -> None:
        self.jobs[work_id] = Model(work_id, Kind.PREPARE, State.QUEUED, serves=job)

    @precondition(lambda self: self._in(State.VALIDATING))
    @rule(data=st.data(), is_valid=st.booleans())
    def finish_validation(self, data: st.DataObject, is_valid: bool) -> None:
        chosen = data.draw(st.sampled_from(self._in(State.VALIDATING)))
        waiting = [job for job in self._in(State.VALIDATING) if job.file_id == chosen.file_id]
        work_ids = [f"work-{next(self._numbers)}" for _ in waiting]
        message = None if is_valid else "Line 1: no"
        with self.session() as session:
            file = session.get_one(File, chosen.file_id)
            files.record_validation(
                session,
                file,
                report={"valid": is_valid},
                message=message,
                new_work_id=iter(work_ids).__next__,
                now=self.now,
            )
            made = {row.subject_job_id: row.id for row in (session.get(Job, key) for key in work_ids) if row}
        for job in waiting:
            if is_valid:
                job.leave(State.PAUSED if job.wish == DesiredState.PAUSE else State.QUEUED)
                self._add_preparation(job, made[job.id])
            else:
                job.leave(State.FAILED)

    @precondition(lambda self: self._training())
    @rule(data=st.data(), wish=st.sampled_from(["pause", "resume", "pause", "resume", "cancel"]))
    def wish(self, data: st.DataObject, wish: str) -> None:
        job = data.draw(st.sampled_from(self._training()))
        {"pause": self._pause, "resume": self._resume, "cancel": self._cancel}[wish](job)

    def _pause(self, job: Model) -> None:
        if self._ask(job, control.request_pause) and job.wish == DesiredState.RUN:
            job.wish = DesiredState.PAUSE
            if job.state in WAITING:
                job.leave(State.PAUSED)

    def _resume(self, job: Model) -> None:
        if self._ask(job, control.resume) and job.wish == DesiredState.PAUSE:
            job.wish = DesiredState.RUN
            if job.state == State.PAUSED:
                job.leave(State.QUEUED)

    def _cancel(self, job: Model) -> None:
        with self.session() as session:
            try:
                control.request_cancel(session, session.get_one(Job, job.id), now=self.now)
            except LuthierError:
                assert job.is_final
                assert job.state != State.CANCELLED
                return
        if job.state == State.CANCELLED:
            return
        assert not job.is_final
        for one in (job, *self._preparations(job)):
            if not one.is_final:
                one.wish = DesiredState.CANCEL
                if one.state in UNCLAIMED:
                    one.leave(State.CANCELLED)

    def _ask(self, job: Model, ask: Callable[..., Job]) -> bool:
        """Ask for a pause or its end; False where that was refused, and rightly."""
        with self.session() as session:
            try:
                ask(session, session.get_one(Job, job.id), now=self.now)
            except LuthierError:
                assert job.is_final or job.wish == DesiredState.CANCEL
                return False
        assert not job.is_final
        return True

    @precondition(lambda self: len(self.jobs) < 16 and self._training())
    @rule(data=st.data(), from_=st.sampled_from(["checkpoint", "start"]))
    def retry(self, data: st.DataObject, from_: Any) -> None:
        job = data.draw(st.sampled_from(self._training()))
        number = next(self._numbers)
        names = {"job_id": f"ftjob-{number}", "work_id": f"work-{number}"}
        with self.session() as session:
            row = session.get_one(Job, job.id)
            file = session.get_one(File, row.training_file)
            may = job.is_final and job.state != State.SUCCEEDED and file.status != "error"
            try:
                again = control.retry(session, CALLER, row, from_=from_, seed=1, now=self.now, **names)
            except LuthierError:
                assert not may
                return
            has_checkpoint = again.resume_from is not None
            step = again.checkpoint_step
        assert may
        assert not (from_ == "start" and has_checkpoint)
        self._entered(number, file.id, is_checked=file.status == "processed")
        self.jobs[f"ftjob-{number}"].checkpoint_step = step

    @precondition(lambda self: self._training())
    @rule(
        data=st.data(),
        priority=st.sampled_from([None, 0, 1]),
        place=st.sampled_from([None, "front", "back"]),
    )
    def move(self, data: st.DataObject, priority: int | None, place: str | None) -> None:
        job = data.draw(st.sampled_from(self._training()))
        with self.session() as session:
            row = session.get_one(Job, job.id)
            try:
                control.reprioritise(session, row, priority=priority, place=place, now=self.now)
            except LuthierError:
                assert job.is_final or job.state in LEASED or job.wish == DesiredState.CANCEL

    # The agents.

    @precondition(lambda self: self._queues())
    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def claim(self, data: st.DataObject, worker: str) -> None:
        self._claim(data.draw(st.sampled_from(self._queues())), worker)

    def _queues(self) -> list[Queue]:
        """Those where a claim finds something."""
        kinds = {job.kind for job in self.jobs.values() if job.is_claimable}
        return [QUEUE_OF_KIND[kind] for kind in Kind if kind in kinds]

    def _claim(self, queue: Queue, worker: str) -> None:
        owner = f"{worker}#{next(self._numbers)}"
        with self.session() as session:
            taken = claims.claim(
                session, queue, owner=owner, host="host", device="cpu", lease_seconds=LEASE_SECONDS,
                now=self.now,
            )  # fmt: skip
        kind = Kind.TRAIN if queue == Queue.TRAIN else Kind.PREPARE
        if taken is None:
            assert not [job for job in self.jobs.values() if job.is_claimable and job.kind == kind]
            return
        job = self.jobs[taken.job.id]
        assert job.is_claimable
        assert job.kind == kind
        job.epoch, job.owner, job.state = job.epoch + 1, owner, State.STARTING
        job.lease_until = self.now + timedelta(seconds=LEASE_SECONDS)
        assert taken.lease == Lease(job.id, job.epoch, owner)
        self.leases.append(taken.lease)

    def _draw_lease(self, data: st.DataObject) -> Lease:
        """One that stands, or now and then any that was ever given."""
        standing = [lease for lease in self.leases if self._stands(lease)]
        is_any = not standing or data.draw(st.integers(0, 4)) == 4
        return data.draw(st.sampled_from(self.leases if is_any else standing))

    def _write(self, lease: Lease, write: Callable[[Session], object]) -> Model | None:
        """Do what a lease allows; None where it no longer stands, and rightly."""
        job = self.jobs[lease.job_id]
        stands = self._stands(lease)
        try:
            with self.session() as session:
                write(session)
        except LeaseLostError:
            assert not stands
            return None
        assert stands
        return job

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), step=st.integers(1, 6), what=st.sampled_from(["beat", "report", "save", "save"]))
    def work(self, data: st.DataObject, step: int, what: str) -> None:
        {"beat": self._beat, "report": self._report, "save": self._save}[what](self._draw_lease(data), step)

    def _beat(self, lease: Lease, _step: int) -> None:
        wishes: list[DesiredState] = []
        job = self._write(
            lease,
            lambda session: wishes.append(
                runs.heartbeat(session, lease, lease_seconds=LEASE_SECONDS, now=self.now)
            ),
        )
        if job is not None:
            job.lease_until = self.now + timedelta(seconds=LEASE_SECONDS)
            assert wishes == [job.wish]

    def _report(self, lease: Lease, step: int) -> None:
        batch = [
            events.RunStarted(resumed_from_step=step - 1),
            events.StepLogged(step=step, total_steps=9, epoch=0, train_loss=1),
        ]
        job = self._write(
            lease, lambda session: recording.record_events(session, lease, batch, offset=1, now=self.now)
        )
        if job is not None and job.state == State.STARTING:
            job.state = State.RUNNING

    def _save(self, lease: Lease, step: int) -> None:
        job = self._write(
            lease,
            lambda session: runs.record_checkpoint(
                session, lease, step=step, storage_key="k", manifest_sha256="0" * 64, size_bytes=1,
                metrics={}, now=self.now,
            ),
        )  # fmt: skip
        if job is not None and step > job.checkpoint_step:
            job.checkpoint_step, job.used = step, Counter()

    @precondition(lambda self: self.leases)
    @rule(
        data=st.data(),
        ending=st.sampled_from([one for one in Ending if one != Ending.BLOCKED]),
        jitter=st.sampled_from([0.0, 0.5]),
    )
    def end_early(self, data: st.DataObject, ending: Ending, jitter: float) -> None:
        lease = self._draw_lease(data)
        job = self._write(
            lease,
            lambda session: endings.requeue_run(
                session, lease, ending=ending, message="no", exit_code=1, limits=LIMITS, jitter=jitter,
                now=self.now,
            ),
        )  # fmt: skip
        if job is not None:
            job.end_early(ending, jitter, self.now)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), how=st.sampled_from(["succeed", "succeed", "as wished", "block", "fail"]))
    def end(self, data: st.DataObject, how: str) -> None:
        lease = self._draw_lease(data)
        match how:
            case "succeed":
                self._succeed(lease)
            case "as wished":
                self._end_as(Ending.STOPPED, lease, endings.stop_run, exit_code=85)
            case "block":
                words = {"blocked_on": BlockedOn.DISK, "message": "no"}
                self._end_as(Ending.DISK_FULL, lease, endings.block_run, exit_code=73, **words)
            case "fail":
                self._fail(lease)

    def _end_as(self, ending: Ending, lease: Lease, write: Callable[..., None], **words: Any) -> None:
        job = self._write(lease, lambda session: write(session, lease, now=self.now, **words))
        if job is not None:
            job.end_early(ending, 0, self.now)

    def _fail(self, lease: Lease) -> None:
        failure = Failure("nan_loss", "no")
        job = self._write(
            lease, lambda session: endings.fail_run(session, lease, failure, exit_code=78, now=self.now)
        )
        if job is not None:
            job.give_up(State.FAILED)

    def _succeed(self, lease: Lease) -> None:
        job = self._write(lease, lambda session: self._write_success(session, lease))
        if job is not None:
            job.leave(State.SUCCEEDED)
            if job.serves is not None and job.serves.state in UNCLAIMED:
                job.serves.is_prepared = True

    def _write_success(self, session: Session, lease: Lease) -> None:
        endings.start_finalizing(session, lease, now=self.now)
        if self.jobs[lease.job_id].kind == Kind.PREPARE:
            data = PreparedData(train=(ROWS,))
            endings.succeed_preparation(
                session, lease, prepared=data, stats={}, max_seq_length=128, now=self.now
            )
            return
        result_file = File(
            id=f"file-of-{lease.job_id}", project_id=CALLER.project_id, filename="m.csv",
            purpose="fine-tune-results", size_bytes=1, sha256="1" * 64, storage_key="x", status="processed",
            created_at=self.now,
        )  # fmt: skip
        endings.succeed_training(
            session, lease, artifacts=[], result={}, result_file=result_file, now=self.now
        )

    @precondition(lambda self: any(job.owner for job in self.jobs.values()))
    @rule(worker=st.sampled_from(WORKERS))
    def restart_worker(self, worker: str) -> None:
        held = [job for job in self.jobs.values() if job.owner and job.owner.startswith(f"{worker}#")]
        with self.session() as session:
            taken = sweep.release_previous(session, worker, limits=LIMITS, jitter=0, now=self.now)
        assert set(taken) == {job.id for job in held}
        self._lost(taken)

    # The dispatcher.

    @precondition(lambda self: any(job.owner for job in self.jobs.values()))
    @rule(at_most=st.sampled_from([None, 1]), seconds=st.sampled_from([0, 181]))
    def take_back(self, at_most: int | None, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        lost = {job.id for job in self.jobs.values() if job.owner and job.lease_until < self.now}
        with self.session() as session:
            taken = sweep.sweep(session, limits=LIMITS, jitter=0, now=self.now, at_most=at_most)
        assert set(taken) <= lost
        assert len(taken) == min(len(lost), at_most or len(lost))
        self._lost(taken)

    def _lost(self, taken: list[str]) -> None:
        for index, job_id in enumerate(taken):
            self.jobs[job_id].end_early(Ending.LOST, index * 0.618034 % 1, self.now)

    @precondition(lambda self: self._in(State.RETRY_WAIT))
    @rule(seconds=st.sampled_from([0, 3600]))
    def wake(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        due = [job for job in self._in(State.RETRY_WAIT) if job.wait_until and job.wait_until <= self.now]
        with self.session() as session:
            woken = sweep.wake_waiting(session, now=self.now, limit=99)
        assert set(woken) == {job.id for job in due}
        for job in due:
            job.leave(State.QUEUED)

    @precondition(lambda self: self._in(State.BLOCKED))
    @rule(seconds=st.sampled_from([0, 60]))
    def make_room(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        blocked = [job for job in self._in(State.BLOCKED) if job.wait_until and job.wait_until <= self.now]
        with self.session() as session:
            freed = blocking.unblock(session, blocked_on=BlockedOn.DISK, now=self.now, limit=99)
        assert set(freed) == {job.id for job in blocked}
        for job in blocked:
            job.leave(State.QUEUED)

    # What must hold after every step.

    @invariant()
    def the_promises_hold(self) -> None:
        with self.session() as session:
            rows = list(session.scalars(select(Job).where(Job.id.in_(self.jobs))))
            assert len(rows) == len(self.jobs)
            for row in rows:
                self._check_against_model(row, self.jobs[row.id])
                self._check_row(row)
                self._check_unchanged_end(row)
            self._check_events(session, rows)
            self._check_runs(session)
            self._check_doorbells(session)
            self._check_webhooks(session)

    def _check_against_model(self, row: Job, job: Model) -> None:
        assert (row.state, row.desired_state, row.lease_epoch) == (job.state, job.wish, job.epoch), job
        assert (row.lease_owner, row.checkpoint_step) == (job.owner, job.checkpoint_step), job
        used = (row.infra_restarts, row.user_failures, row.no_progress_deaths)
        assert used == (job.used["infra"], job.used["user"], job.used["deaths"]), job
        assert (row.prepared_at is not None) == job.is_prepared, job
        assert row.not_before == job.wait_until, job

    def _check_row(self, row: Job) -> None:
        """Leases, waits and budgets fit the state."""
        state = State(row.state)
        assert (state in LEASED) == (row.lease_owner is not None) == (row.lease_expires_at is not None)
        assert (state == State.BLOCKED) == (row.blocked_on is not None)
        assert (state in (State.RETRY_WAIT, State.BLOCKED)) == (row.not_before is not None)
        assert (state in FINAL) == (row.finished_at is not None)
        assert (state in (State.FAILED, State.QUARANTINED)) == (row.error_code is not None)
        if state not in FINAL:
            assert row.infra_restarts < LIMITS.max_infra_restarts
            assert row.user_failures < LIMITS.max_user_failures
            assert row.no_progress_deaths < LIMITS.max_deaths

    def _check_unchanged_end(self, row: Job) -> None:
        """What has ended stays as it is, and nothing is told of it any more."""
        if State(row.state) in FINAL:
            end = (row.state, row.finished_at, row.next_number, row.error_code, row.lease_epoch)
            assert self.ended.setdefault(row.id, end) == end

    def _check_events(self, session: Session, rows: list[Job]) -> None:
        """Every fact has its number, and success comes once."""
        told = session.execute(select(JobEvent.job_id, JobEvent.kind)).all()
        counts = Counter(job_id for job_id, _ in told)
        counts.update(session.scalars(select(Metric.job_id)))
        assert all(counts[row.id] == row.next_number - 1 for row in rows)
        succeeded = sorted(job_id for job_id, kind in told if kind == "job_succeeded")
        assert succeeded == sorted(job.id for job in self._in(State.SUCCEEDED))

    def _check_runs(self, session: Session) -> None:
        """Every claim is a run with an epoch of its own, and only the one with the lease is open."""
        found = session.execute(select(Run.job_id, Run.epoch, Run.outcome).order_by(Run.epoch)).all()
        for job in self.jobs.values():
            outcomes = {epoch: outcome for job_id, epoch, outcome in found if job_id == job.id}
            assert list(outcomes) == list(range(1, job.epoch + 1))
            is_open = [epoch for epoch, outcome in outcomes.items() if outcome is None]
            assert is_open == ([job.epoch] if job.owner else [])

    def _check_doorbells(self, session: Session) -> None:
        """Whatever becomes claimable rings."""
        payloads = session.scalars(select(Outbox.payload).where(Outbox.topic == "doorbell"))
        rung = Counter(payload["job_id"] for payload in payloads)
        claimable = {job.id for job in self.jobs.values() if job.is_claimable}
        assert all(rung[job_id] > self.rung[job_id] for job_id in claimable - self.claimable)
        self.rung, self.claimable = rung, claimable

    def _check_webhooks(self, session: Session) -> None:
        """Every training job is told to be there once, and to have ended once it has, as it has."""
        payloads = session.scalars(select(Outbox.payload).where(Outbox.topic == "webhook")).all()
        told = Counter((payload["object_id"], payload["type"]) for payload in payloads)
        assert len({payload["event_id"] for payload in payloads}) == len(payloads)
        assert {job_id for job_id, _ in told} == {job.id for job in self._training()}
        for job in self._training():
            assert told[job.id, EventType.CREATED] == 1
            ends = {kind: told[job.id, kind] for kind in ENDS if told[job.id, kind]}
            assert ends == ({END_OF_STATE[job.state]: 1} if job.is_final else {}), job
            assert not (job.state == State.PAUSED and not told[job.id, EventType.PAUSED])

    def _stands(self, lease: Lease) -> bool:
        job = self.jobs[lease.job_id]
        return job.state in LEASED and (job.epoch, job.owner) == (lease.epoch, lease.owner)

    def _in(self, state: State) -> list[Model]:
        return [job for job in self.jobs.values() if job.state == state]

    def _training(self) -> list[Model]:
        return [job for job in self.jobs.values() if job.kind == Kind.TRAIN]

    def _preparations(self, job: Model) -> list[Model]:
        return [one for one in self.jobs.values() if one.serves is job]


def _run(database: Database, chosen: settings) -> None:
    # A round trip for each statement makes Postgres several times slower; the logic is the same.
    share = 1 if database.engine.dialect.name == "sqlite" else 5
    fitting = settings(chosen, max_examples=chosen.max_examples // share)
    run_state_machine_as_test(lambda: ServiceMachine(database), settings=fitting)


def test_any_order_of_events_keeps_the_promises(database: Database) -> None:
    _run(database, SHORT)


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_any_order_of_events_keeps_the_promises_for_long(database: Database) -> None:
    _run(database, LONG)
