"""From the lines of `events.jsonl` to rows: what a child reports becomes events, metrics and progress.

One batch is one transaction. The read offset is stored with it, so that a line is recorded once, whatever
happens between two batches.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from luthier import events
from luthier.service.runs import get_leased
from luthier.service.transitions import Lease, move, note, take_numbers
from luthier.status import DesiredState, Phase, State
from luthier.tables import Job, Metric, Run


def record_events(
    session: Session, lease: Lease, batch: Sequence[events.AnyEvent], *, offset: int, now: datetime
) -> None:
    """Store a batch of a run's events and how far its file has been read.

    Checkpoints and the end of a run are not recorded here: they become true only once what they speak of is
    published (see `runs`).

    Raises:
        LeaseLostError: the lease no longer stands; nothing is stored.
    """
    job = get_leased(session, lease)
    for event in batch:
        _record(session, lease, job, event, now)
    run = session.get(Run, (lease.job_id, lease.epoch))
    if run is not None:
        run.event_offset = offset
    session.flush()


def _record(session: Session, lease: Lease, job: Job, event: events.AnyEvent, now: datetime) -> None:
    match event:
        case events.RunStarted():
            _start(session, lease, job, event, now)
        case events.PhaseChanged():
            if job.desired_state == DesiredState.RUN:
                job.phase = event.phase
        case events.PlanChosen():
            job.plan = event.model_dump(mode="json", exclude={"at", "type"})
            job.total_steps = event.total_steps
            note(session, job, "plan_chosen", event.summary, now=_time(event), data=job.plan)
        case events.ProgressMade():
            job.progress = event.model_dump(mode="json", exclude={"at", "type"})
        case events.StepLogged():
            _record_step(session, lease, job, event)
        case events.EvalLogged():
            values = {
                "eval_loss": event.eval_loss,
                "eval_mean_token_accuracy": event.eval_mean_token_accuracy,
            }
            _add_metric(session, lease, job, event, values)
        case events.SampleGenerated():
            data = event.model_dump(mode="json", exclude={"at", "type"})
            text = f"Sample {event.index + 1} at step {event.step}: {event.text}"
            note(session, job, "sample_generated", text, now=_time(event), data=data)
        case events.WarningRaised():
            data = {"code": event.code, **event.data}
            note(session, job, "warning_raised", event.message, now=_time(event), level="warn", data=data)
        case events.CheckpointSaved() | events.RunEnded():
            pass


def _start(session: Session, lease: Lease, job: Job, event: events.RunStarted, now: datetime) -> None:
    """The child lives. What a lost run logged after the step that this one starts from no longer stands."""
    # A batch whose commit was in doubt may tell of it twice.
    if job.state == State.STARTING:
        move(session, job, [State.STARTING], State.RUNNING, now=now, lease=lease, phase=_phase(job))
    run = session.get(Run, (lease.job_id, lease.epoch))
    if run is not None:
        run.from_step = event.resumed_from_step
    session.execute(
        update(Metric)
        .where(Metric.job_id == job.id, Metric.epoch < lease.epoch, Metric.step > event.resumed_from_step)
        .values(is_superseded=True)
        .execution_options(synchronize_session=False)
    )
    text = (
        "Fine-tuning job started"
        if event.resumed_from_step == 0
        else f"Resumed from step {event.resumed_from_step}"
    )
    data = {"device": event.device, "versions": event.versions}
    note(session, job, "run_started", text, now=_time(event), data=data)


def _phase(job: Job) -> Phase | str | None:
    """A wish that is about to be carried out stays visible."""
    return Phase.LOADING_MODEL if job.desired_state == DesiredState.RUN else job.phase


def _record_step(session: Session, lease: Lease, job: Job, event: events.StepLogged) -> None:
    names = ("train_loss", "train_mean_token_accuracy", "learning_rate", "grad_norm", "tokens_per_second")
    values = {name: getattr(event, name) for name in names}
    _add_metric(session, lease, job, event, values)
    job.step, job.total_steps = event.step, event.total_steps
    job.progress = {
        "epoch": event.epoch,
        "tokens_per_second": event.tokens_per_second,
        "seconds_remaining": event.seconds_remaining,
        "elapsed_seconds": event.elapsed_seconds,
        "peak_memory_bytes": event.peak_memory_bytes,
        "trained_tokens": event.trained_token_count,
        "train_loss": event.train_loss,
    }


def _add_metric(
    session: Session,
    lease: Lease,
    job: Job,
    event: events.StepLogged | events.EvalLogged,
    values: dict[str, Any],
) -> None:
    session.add(
        Metric(
            job_id=job.id,
            number=take_numbers(session, job.id, 1),
            project_id=job.project_id,
            epoch=lease.epoch,
            at=_time(event),
            step=event.step,
            total_steps=event.total_steps,
            **values,
        )
    )


def _time(event: events.Event) -> datetime:
    return datetime.fromtimestamp(event.at, UTC)
