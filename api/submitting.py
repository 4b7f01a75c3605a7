"""New jobs: those that come while others are written wait for them, and are then written together.

So many submits at once cost one transaction, one commit and one thread. What fails for one leaves the others
alone.
"""

import secrets
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from api import model_checks
from api.dependencies import Submission
from api.job_view import show_jobs
from api.schemas.jobs import JobObject, job_object
from api.together import Together
from luthier import repository
from luthier.database import clock
from luthier.disk import require_room
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.service import idempotency, jobs, queue, quotas
from luthier.service.idempotency import Mark
from luthier.service.jobs import Caller, Entry
from luthier.service.queue import Place
from luthier.settings import Settings
from luthier.spec import MAX_SEED
from luthier.tables import Job

_AT_ONCE = 16


@dataclass(frozen=True)
class Submitted:
    """What a submit is answered with; `is_replayed` where an earlier one of the same key made it."""

    job: JobObject
    is_replayed: bool = False


@dataclass(frozen=True)
class _Written:
    job: Job
    now: datetime
    is_replayed: bool = False

    def shown(self, caller: Caller, places: Mapping[str, Place]) -> Submitted:
        place = places.get(self.job.id)
        return Submitted(job_object(self.job, caller, place=place, now=self.now), self.is_replayed)


@dataclass(frozen=True, eq=False)
class _New:
    """One submit; `context` tells the audit log whose it is."""

    asked: Submission
    caller: Caller
    context: Context = field(default_factory=copy_context)
    job_id: str = field(default_factory=lambda: new_id("ftjob"))
    work_id: str = field(default_factory=lambda: new_id("work"))
    seed: int = field(default_factory=lambda: secrets.randbelow(MAX_SEED + 1))


class Submits:
    """Makes jobs. For one event loop."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._together = Together(self._submit_all, at_once=_AT_ONCE)

    async def submit(self, asked: Submission, caller: Caller) -> Submitted:
        """Make the job that was asked for, unless an earlier request of the same key has.

        Raises:
            LuthierError: the model or a file cannot be used, or there is no room.
        """
        outcome = await self._together.get(_New(asked, caller))
        if isinstance(outcome, Submitted):
            return outcome
        raise outcome or RuntimeError("a submit was left without an outcome")

    def _submit_all(self, asked: Sequence[_New]) -> dict[_New, Submitted | Exception]:
        outcomes: dict[_New, Submitted | Exception] = {}
        for new in asked:
            try:
                if (known := self._prepare(new)) is not None:
                    outcomes[new] = known
            except Exception as error:  # noqa: BLE001, it is raised where this one was asked for
                outcomes[new] = error
        ready = [new for new in asked if new not in outcomes]
        written: dict[_New, _Written] = {}
        made = self._installation.database.run_all(ready, self._write, recall=_recall)
        for new, outcome in zip(ready, made, strict=True):
            if isinstance(outcome, _Written):
                written[new] = outcome
            else:
                outcomes[new] = outcome
        return outcomes | self._show(written)

    def _prepare(self, new: _New) -> Submitted | None:
        """Refuse what can be refused before a transaction; an earlier submit's job, where there is one."""
        if new.asked.mark is not None and (known := self._find_known(new.caller, new.asked.mark)):
            return Submitted(known, is_replayed=True)
        model_checks.check_model(self._installation, new.caller, new.asked.request)
        require_room(self._installation, 0)
        return None

    def _find_known(self, caller: Caller, mark: Mark) -> JobObject | None:
        """The job that the same request made before, whatever has become of its files and models since."""
        with self._installation.database.reading() as session:
            now = clock(session)
            job_id = idempotency.find(session, caller.project_id, mark, now=now)
            if job_id is None:
                return None
            job = repository.get_job(session, caller.project_id, job_id)
            return show_jobs(session, caller, [job], now)[0]

    def _write(self, session: Session, asked: Sequence[_New]) -> list[_Written]:
        now = clock(session)
        room, written, entries = _Room(session, self._installation.settings), list[_Written](), list[Entry]()
        for new in asked:
            if known := _take_mark(session, new, now):
                written.append(_Written(known, now, is_replayed=True))
                continue
            room.require(new.caller.project_id)
            # They stand in the queue in the order in which they came.
            at = now + timedelta(microseconds=len(entries))
            entries.append(new.context.run(_plan, session, new, at))
            written.append(_Written(entries[-1].job, now))
        if entries:
            jobs.enter(session, entries, now=now)
        return written

    def _show(self, written: Mapping[_New, _Written]) -> dict[_New, Submitted]:
        """Behind the commit: places in the queue are nothing that other writers should wait for."""
        by_project: dict[str, list[_Written]] = defaultdict(list)
        for made in written.values():
            by_project[made.job.project_id].append(made)
        places: dict[str, Place] = {}
        with self._installation.database.reading() as session:
            for all_made in by_project.values():
                places |= queue.places(session, [made.job for made in all_made], now=all_made[-1].now)
        return {new: made.shown(new.caller, places) for new, made in written.items()}


class _Room:
    """What projects may still submit within one transaction."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session, self._limits = session, quotas.limits_of(settings)
        self._entering: Counter[str] = Counter()
        self._is_ample: dict[str, bool] = {}

    def require(self, project_id: str) -> None:
        """Let one more job of the project in."""
        if project_id not in self._is_ample:
            self._is_ample[project_id] = quotas.has_ample_room(self._session, project_id, self._limits)
        if not self._is_ample[project_id]:
            entering = self._entering[project_id]
            quotas.require_queue_room(self._session, project_id, self._limits, entering=entering)
        self._entering[project_id] += 1


def _take_mark(session: Session, new: _New, now: datetime) -> Job | None:
    """The job that the same request has made meanwhile; else it is noted that this one does."""
    if new.asked.mark is None:
        return None
    project_id = new.caller.project_id
    known = idempotency.take(session, project_id, new.asked.mark, object_id=new.job_id, now=now)
    return repository.get_job(session, project_id, known) if known else None


def _plan(session: Session, new: _New, now: datetime) -> Entry:
    return jobs.plan(
        session,
        new.caller,
        new.asked.request,
        job_id=new.job_id,
        work_id=new.work_id,
        seed=new.seed,
        now=now,
        notes=new.asked.notes,
    )


def _recall(session: Session, new: _New) -> _Written | None:
    job = repository.find_job(session, new.job_id)
    return None if job is None else _Written(job, clock(session))
