"""What clients and agents ask of a database with a million jobs, each in a transaction of its own.

`measure` runs a mix of all of it and tells how long each took; `record` stores the numbers of running jobs as
fast as it can; `drain` is an agent without a child: it claims, keeps its lease, records, and ends jobs well.
"""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import scale_rows
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.job_view import show_jobs
from luthier import events, metrics, repository
from luthier.database import Database, clock
from luthier.ids import new_id
from luthier.service import claims, endings, jobs, quotas, recording, runs
from luthier.service.quotas import QuotaLimits
from luthier.service.retries import Ending, Limits
from luthier.service.transitions import Lease
from luthier.status import Queue
from luthier.tables import File, Job, is_leased

LEASE_SECONDS = 180.0
_LIMITS = Limits(5, 5, 3)
_QUOTAS = QuotaLimits(queued_jobs=10_000)

Timings = dict[str, list[float]]


@dataclass(frozen=True)
class Client:
    """One process with its database.

    Attributes:
        job_count: of the database.
        seed: of the random choices.
    """

    database: Database
    job_count: int
    seed: int

    def measure(self, rounds: int) -> Timings:
        """Milliseconds of each operation, which come in another order in every round."""
        draw, found = random.Random(self.seed), defaultdict(list)
        leases = self._leases(limit=50)
        operations: dict[str, Callable[[], object]] = {
            "claim": lambda: self._claim(found),
            "submit": self._submit,
            "list": lambda: self._list(None),
            "list, deep": lambda: self._list(self._ended(draw, in_largest=True)),
            "list, metadata": lambda: self._list(
                None, metadata={"team": f"team-{draw.randrange(0, 100, 2)}"}
            ),
            "list, metadata of one job": lambda: self._list(
                None, metadata={"run": str(draw.randrange(0, self.job_count // 2, 4))}
            ),
            "list, metadata of none": lambda: self._list(None, metadata={"run": "none"}),
            "get, ended": lambda: self._get(self._ended(draw, in_largest=True), 0),
            "get, queued": lambda: self._get_queued(draw),
            "events": lambda: self._events(self._ended(draw, in_largest=True), 0),
            "events of a long run": lambda: self._long_events(draw.choice(leases)),
            "metrics, 1,000 steps": lambda: self._metrics(draw.choice(leases)),
            "heartbeat": lambda: self._heartbeat(draw.choice(leases)),
            "record": lambda: self._record(draw.choice(leases), 1),
        }
        for _ in range(rounds):
            for name in draw.sample(sorted(operations), len(operations)):
                began = time.perf_counter()
                operations[name]()
                if name != "claim":
                    found[name].append(1000 * (time.perf_counter() - began))
        return dict(found)

    def record(self, seconds: float, lines: int, *, share: int, of: int) -> int:
        """Record batches for the jobs of this process, one after the other; returns how many."""
        leases = self._leases(limit=scale_rows.LEASED)[share::of]
        end = time.monotonic() + seconds
        for batches in count():
            if time.monotonic() >= end:
                return batches
            self._record(leases[batches % len(leases)], lines)
        raise AssertionError

    def drain(self, agent: str, at_most: Callable[[], bool]) -> list[str]:
        """Work as an agent for as long as `at_most` says so; returns the jobs that it ended."""
        done = []
        while at_most():
            claim = self._take(agent)
            if claim is None:
                break
            self._work(claim.lease)
            done.append(claim.job.id)
        return done

    def _work(self, lease: Lease) -> None:
        self._record_lines(lease, [events.RunStarted(), events.PhaseChanged(phase="training")])
        for step in range(1, 4):
            self._heartbeat(lease)
            self._record_lines(lease, [_step(step, 3)])
        with self.database.transaction() as session:
            endings.start_finalizing(session, lease, now=clock(session))
        with self.database.transaction() as session:
            endings.succeed_training(
                session, lease, artifacts=[], result={}, result_file=_result_file(session, lease),
                now=clock(session),
            )  # fmt: skip

    def _take(self, agent: str) -> claims.Claim | None:
        with self.database.transaction() as session:
            return claims.claim(
                session, Queue.TRAIN, owner=f"{agent}#1", host="host", device="GPU",
                lease_seconds=LEASE_SECONDS, now=clock(session),
            )  # fmt: skip

    def _claim(self, found: Timings) -> None:
        """Time a claim, and give the job back unmeasured, so that the queue keeps its length."""
        began = time.perf_counter()
        claim = self._take(f"bench{self.seed}/gpu0")
        found["claim"].append(1000 * (time.perf_counter() - began))
        if claim is None:
            raise RuntimeError("the queue is empty: build the database anew")
        with self.database.transaction() as session:
            endings.requeue_run(
                session, claim.lease, ending=Ending.STOPPED, message="", exit_code=85, limits=_LIMITS,
                jitter=0, now=clock(session),
            )  # fmt: skip

    def _submit(self) -> None:
        caller = scale_rows.caller(5)
        request = scale_rows.request().model_copy(update={"training_file": _file_of(5)})
        with self.database.transaction() as session:
            now = clock(session)
            quotas.require_queue_room(session, caller.project_id, _QUOTAS)
            job = jobs.submit(
                session, caller, request, job_id=new_id("ftjob"), work_id=new_id("work"), seed=1, now=now
            )
        with self.database.reading() as session:
            show_jobs(session, caller, [job], clock(session))

    def _list(self, after: str | None, metadata: dict[str, str] | None = None) -> None:
        caller = scale_rows.caller()
        with self.database.reading() as session:
            page = repository.list_jobs(session, caller.project_id, after=after, limit=20, metadata=metadata)
            show_jobs(session, caller, page.data, clock(session))

    def _get(self, job_id: str, project: int) -> None:
        caller = scale_rows.caller(project)
        with self.database.reading() as session:
            job = repository.get_job(session, caller.project_id, job_id)
            show_jobs(session, caller, [job], clock(session))

    def _get_queued(self, draw: random.Random) -> None:
        # Ones that are not claimed meanwhile.
        rank = scale_rows.LEASED + draw.randrange(scale_rows.QUEUED // 2, scale_rows.QUEUED)
        number = self.job_count - 2 * scale_rows.LIVE + 2 * rank
        self._get(scale_rows.job_id(number), number // 2 % 5)

    def _events(self, job_id: str, project: int) -> None:
        with self.database.reading() as session:
            job = repository.get_job(session, scale_rows.project_id(project), job_id)
            repository.list_events(session, job, before=None, limit=20)

    def _long_events(self, lease: Lease) -> None:
        with self.database.reading() as session:
            job = session.get_one(Job, lease.job_id)
            repository.list_events(session, job, before=job.next_number // 2, limit=100)

    def _metrics(self, lease: Lease) -> None:
        with self.database.reading() as session:
            list(metrics.list_metrics(session, lease.job_id, max_points=2000))

    def _heartbeat(self, lease: Lease) -> None:
        with self.database.transaction() as session:
            runs.heartbeat(session, lease, lease_seconds=LEASE_SECONDS, now=clock(session))

    def _record(self, lease: Lease, lines: int) -> None:
        self._record_lines(lease, [_step(step, 10_000) for step in range(1, lines + 1)])

    def _record_lines(self, lease: Lease, lines: Sequence[events.AnyEvent]) -> None:
        with self.database.transaction() as session:
            recording.record_events(session, lease, lines, offset=1, now=clock(session))

    def _ended(self, draw: random.Random, *, in_largest: bool) -> str:
        """A training job that has ended; every fourth number is one of the largest project."""
        step = 4 if in_largest else 2
        return scale_rows.job_id(draw.randrange(0, self.job_count - 2 * scale_rows.LIVE, step))

    def _leases(self, limit: int) -> list[Lease]:
        query = select(Job.id, Job.lease_epoch, Job.lease_owner).where(is_leased())
        query = query.where(Job.lease_owner.like("host%")).order_by(Job.id).limit(limit)
        with self.database.reading() as session:
            return [Lease(*row) for row in session.execute(query)]


def _step(step: int, total: int) -> events.StepLogged:
    return events.StepLogged(
        at=time.time(), step=step, total_steps=total, epoch=0.5, train_loss=2.0, learning_rate=1e-4,
        train_mean_token_accuracy=0.5, grad_norm=1.0, tokens_per_second=9000.0, seconds_remaining=600.0,
        elapsed_seconds=60.0, trained_token_count=1000,
    )  # fmt: skip


def _file_of(project: int) -> str:
    return f"file-own-{project}"


def add_file(session: Session, project: int) -> None:
    """A file that submits of a project use."""
    session.add(
        File(
            id=_file_of(project), project_id=scale_rows.project_id(project), filename="rows.jsonl",
            purpose="fine-tune", size_bytes=1000, sha256="0" * 64, storage_key="x", status="processed",
            created_at=clock(session),
        )
    )  # fmt: skip


def _result_file(session: Session, lease: Lease) -> File:
    return File(
        id=new_id("file"), project_id=session.get_one(Job, lease.job_id).project_id, filename="metrics.csv",
        purpose="fine-tune-results", size_bytes=1, sha256="1" * 64, storage_key="x", status="processed",
        created_at=clock(session),
    )  # fmt: skip
