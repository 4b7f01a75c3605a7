"""From the lines of `events.jsonl` to rows: what a child reports becomes events, metrics and progress.

One batch is one transaction of four statements, however long it is: the job's row, the metrics, the events,
the run's read offset. The offset is stored with the rest, so that a line is recorded once, whatever happens
between two batches. Only the first batch of a run, which tells that the child lives, costs more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import Table, case, insert, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.util import identity_key

from luthier import events
from luthier.service.runs import get_leased
from luthier.service.transitions import Lease, LeaseLostError, held, move
from luthier.status import DesiredState, Phase, State
from luthier.tables import Job, JobEvent, Metric, Run

# Statements about tables cost half of what those about classes do, and a thousand runs report every second.
_JOBS, _RUNS = cast(Table, Job.__table__), cast(Table, Run.__table__)
_MEASURED_AT_STEP = (
    "train_loss",
    "train_mean_token_accuracy",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
)
_MEASURED_AT_EVAL = ("eval_loss", "eval_mean_token_accuracy")
# Every row of one INSERT names the same columns.
_NOT_MEASURED: dict[str, Any] = dict.fromkeys((*_MEASURED_AT_STEP, *_MEASURED_AT_EVAL))


def record_events(
    session: Session, lease: Lease, batch: Sequence[events.AnyEvent], *, offset: int, now: datetime
) -> None:
    """Store a batch of a run's events and how far its file has been read.

    Checkpoints and the end of a run are not recorded here: they become true only once what they speak of is
    published (see `runs`).

    Raises:
        LeaseLostError: the lease no longer stands; nothing is stored.
    """
    rows = _Rows()
    for event in batch:
        rows.add(event)
    session.flush()
    run_changes: dict[str, Any] = {"event_offset": offset}
    if rows.resumed_from_step is not None:
        _start(session, lease, rows.resumed_from_step, now)
        run_changes["from_step"] = rows.resumed_from_step
    project_id, number = _change_job(session, lease, rows)
    common = {"job_id": lease.job_id, "project_id": project_id, "epoch": lease.epoch}
    _insert(session, Metric, rows.metrics, number, common)
    _insert(session, JobEvent, rows.facts, number, common)
    run = update(_RUNS).where(Run.job_id == lease.job_id, Run.epoch == lease.epoch)
    session.execute(run.values(run_changes))
    _forget(session, Job, lease.job_id)
    _forget(session, Run, (lease.job_id, lease.epoch))


@dataclass
class _Rows:
    """What a batch comes to.

    Attributes:
        metrics, facts: columns of the new metrics and events; `number` counts both from 0, in the order of
            the batch.
        changes: columns of the job.
        phase: the last one that was told.
        resumed_from_step: where the batch tells that the run has started.
    """

    metrics: list[dict[str, Any]] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    phase: str | None = None
    resumed_from_step: int | None = None

    @property
    def count(self) -> int:
        return len(self.metrics) + len(self.facts)

    def add(self, event: events.AnyEvent) -> None:
        match event:
            case events.RunStarted():
                self._add_start(event)
            case events.PhaseChanged():
                self.phase = event.phase
            case events.PlanChosen():
                self.changes |= {"plan": _body(event), "total_steps": event.total_steps}
                self._note(event, "plan_chosen", event.summary, self.changes["plan"])
            case events.ProgressMade():
                self.changes["progress"] = _body(event)
            case events.StepLogged():
                self._measure(event, _MEASURED_AT_STEP)
                self.changes |= {"step": event.step, "total_steps": event.total_steps}
                self.changes["progress"] = _progress(event)
            case events.EvalLogged():
                self._measure(event, _MEASURED_AT_EVAL)
            case events.SampleGenerated():
                text = f"Sample {event.index + 1} at step {event.step}: {event.text}"
                self._note(event, "sample_generated", text, _body(event))
            case events.WarningRaised():
                data = {"code": event.code, **event.data}
                self._note(event, "warning_raised", event.message, data, level="warn")
            case events.CheckpointSaved() | events.RunEnded():
                pass

    def _add_start(self, event: events.RunStarted) -> None:
        self.phase, step = None, event.resumed_from_step
        self.resumed_from_step = step
        text = "Fine-tuning job started" if step == 0 else f"Resumed from step {step}"
        self._note(event, "run_started", text, {"device": event.device, "versions": event.versions})

    def _measure(self, event: events.StepLogged | events.EvalLogged, names: Sequence[str]) -> None:
        self.metrics.append(
            _NOT_MEASURED
            | {name: getattr(event, name) for name in names}
            | {
                "number": self.count,
                "at": _time(event),
                "step": event.step,
                "total_steps": event.total_steps,
                "is_superseded": False,
            }
        )

    def _note(
        self, event: events.Event, kind: str, message: str, data: dict[str, Any], *, level: str = "info"
    ) -> None:
        values = {"number": self.count, "at": _time(event), "kind": kind, "level": level}
        self.facts.append({**values, "message": message, "data": data})


def _start(session: Session, lease: Lease, from_step: int, now: datetime) -> None:
    """The child lives. What a lost run logged after the step that this one starts from no longer stands."""
    job = get_leased(session, lease)
    # A batch whose commit was in doubt may tell of it twice.
    if job.state == State.STARTING:
        # A wish that is about to be carried out stays visible.
        phase = Phase.LOADING_MODEL if job.desired_state == DesiredState.RUN else job.phase
        move(session, job, [State.STARTING], State.RUNNING, now=now, lease=lease, phase=phase)
    session.execute(
        update(Metric)
        .where(Metric.job_id == job.id, Metric.epoch < lease.epoch, Metric.step > from_step)
        .values(is_superseded=True)
        .execution_options(synchronize_session=False)
    )


def _change_job(session: Session, lease: Lease, rows: _Rows) -> tuple[str, int]:
    """Write what the batch changes of the job; returns its project and the first of the batch's numbers.

    The row's lock keeps the numbers in order.
    """
    changes = rows.changes | {"next_number": Job.next_number + rows.count}
    if rows.phase is not None:
        # A wish that is about to be carried out stays visible.
        changes["phase"] = case((Job.desired_state == DesiredState.RUN, rows.phase), else_=Job.phase)
    query = update(_JOBS).where(*held(lease)).values(changes).returning(Job.project_id, Job.next_number)
    found = session.execute(query).one_or_none()
    if found is None:
        raise LeaseLostError(lease.job_id)
    return found.project_id, found.next_number - rows.count


def _insert(
    session: Session,
    table: type[Metric | JobEvent],
    rows: Sequence[dict[str, Any]],
    first_number: int,
    common: dict[str, Any],
) -> None:
    """Insert rows in one statement."""
    if not rows:
        return
    numbered = [row | common | {"number": first_number + row["number"]} for row in rows]
    session.execute(insert(cast(Table, table.__table__)), numbered)


def _forget(session: Session, table: type[Job | Run], key: Any) -> None:
    """Have the session read a row anew, where it knows it."""
    known = session.identity_map.get(identity_key(table, key))
    if known is not None:
        session.expire(known)


def _body(event: events.Event) -> dict[str, Any]:
    return event.model_dump(mode="json", exclude={"at", "type"})


def _progress(event: events.StepLogged) -> dict[str, Any]:
    return {
        "epoch": event.epoch,
        "tokens_per_second": event.tokens_per_second,
        "seconds_remaining": event.seconds_remaining,
        "elapsed_seconds": event.elapsed_seconds,
        "peak_memory_bytes": event.peak_memory_bytes,
        "trained_tokens": event.trained_token_count,
        "train_loss": event.train_loss,
    }


def _time(event: events.Event) -> datetime:
    return datetime.fromtimestamp(event.at, UTC)
