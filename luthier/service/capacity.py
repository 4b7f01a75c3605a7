"""Whether any worker could ever run a job: what it needs against what the known devices have.

What the request says is checked at submit (`require_capacity`); the memory that the run will take is known
once the rows are counted (`plan`). Without a known worker nothing is refused: one may still come. Workers
that are set aside or away count, for they may come back; where only such ones fit, the job is told so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import Row, Table, bindparam, select
from sqlalchemy.orm import Session

from luthier import planning
from luthier.errors import Failure, LuthierError
from luthier.planning import Counted, DeviceFacts, ModelShape, RateFacts, TokenFacts
from luthier.planning.advice import advice, told_of
from luthier.planning.footprint import memory_of_rows
from luthier.service import estimates
from luthier.service.recent import Recent
from luthier.service.transitions import note
from luthier.service.workers import SICK
from luthier.spec import Hyperparameters, JobRequest, PreparedData, PreparedSplit, ResourcesRequest
from luthier.status import Queue
from luthier.tables import Job, Worker

GIB, MIB = 1 << 30, 1 << 20
# A worker that was away for less may come back.
_KNOWN_SECONDS = 24 * 3600
# The driver keeps some of a device for itself.
_USABLE_SHARE = 0.98
_MOST_TOLD = 3
# Built once, and of rows, since each new job asks for it: objects of them cost several times as much.
_WORKERS = cast(Table, Worker.__table__)
_KNOWN = (
    select(_WORKERS)
    .where(_WORKERS.c.queue == str(Queue.TRAIN), _WORKERS.c.heartbeat_at >= bindparam("since"))
    .order_by(_WORKERS.c.id)
)


def require_capacity(session: Session, resources: ResourcesRequest, *, now: datetime) -> str | None:
    """Refuse what none of the known workers could run.

    Returns:
        What to tell where all that could are set aside or away; None where one is at work, or none is known.
    Raises:
        LuthierError: `capacity_exceeded`; `param` names the field that rules the last ones out.
    """
    demands = _demands(resources)
    # Of hundreds of workers, one that does is mostly found at once; only "none does" must not be out of date.
    recent = _RECENT.get(session, lambda: _known_workers(session, now))
    if any(_is_at_work(worker, now) and _has_all(worker, demands) for worker in recent):
        return None
    workers = _known_workers(session, now)
    for name, has_it, text in demands:
        able = [worker for worker in workers if has_it(worker)]
        if workers and not able:
            told = text(workers)
            raise LuthierError(
                f"No worker could run this job: {told}", "capacity_exceeded", f"resources.{name}"
            )
        workers = able
    return _absence(workers, now)


def asked_memory_bytes(resources: ResourcesRequest) -> int | None:
    """What the request says that a device must have free."""
    return None if resources.memory_gb is None else int(resources.memory_gb * GIB)


def plan(
    session: Session,
    job: Job,
    prepared: PreparedData,
    *,
    shape: ModelShape | None,
    threads: int,
    now: datetime,
) -> Failure | None:
    """Set what a job whose rows are counted needs of a device, and how long it will take.

    Args:
        shape: of its model; None where nobody knows, which leaves memory and time open.
        threads: CPU threads of a training process.
    Returns:
        Why no known device could run it; None where one could, or none is known. Where those that could are
        set aside or away, the job is told.
    """
    tokens = _tokens(prepared)
    if shape is None or tokens is None:
        return None
    settings = Hyperparameters.model_validate(job.hyperparameters)
    device = estimates.device_facts(session, threads=threads, now=now)
    run = _Run(shape, settings, tokens, device or DeviceFacts(kind="cuda"))
    rates = estimates.rate_facts(
        session, job.project_id, model=job.model or "", method=settings.method, device=device
    )
    job.estimated_seconds = run.seconds(rates)
    resources = JobRequest.model_validate(job.request, strict=False).resources
    asked = asked_memory_bytes(resources)
    job.memory_bytes = run.least_bytes() if asked is None else asked
    if asked is not None:
        return None
    demands = _demands(resources)
    workers = [worker for worker in _known_workers(session, now) if _has_all(worker, demands)]
    able = [worker for worker in workers if (_usable_bytes(worker) or job.memory_bytes) >= job.memory_bytes]
    if workers and not able:
        return run.too_large_for(max(_usable_bytes(worker) or 0 for worker in workers))
    # Where all of them are away it was told at the submit.
    if _absence(workers, now) is None and (text := _absence(able, now)) is not None:
        tell_absence(session, job, text, now=now)
    return None


def tell_absence(session: Session, job: Job, text: str, *, now: datetime) -> None:
    """Store that no worker which could run a job is at work now."""
    note(session, job, "no_worker_now", text, now=now, level="warn")


@dataclass(frozen=True)
class _Run:
    """A training run before it starts, on the best device that is known."""

    shape: ModelShape
    settings: Hyperparameters
    tokens: TokenFacts
    device: DeviceFacts

    def seconds(self, rates: RateFacts | None) -> float:
        recomputes = planning.wants_checkpointing(
            self.shape, self.settings, self.device, longest=self.tokens.longest
        )
        told = planning.time(
            self.shape, self.settings, self.tokens, self.device, checkpointing=recomputes, rates=rates
        )
        return told.p50

    def least_bytes(self) -> int:
        """What it takes where memory is scarce: "auto" then recomputes activations."""
        return memory_of_rows(self.shape, self.settings, self.tokens, self._device_of(None)).needed_bytes

    def too_large_for(self, size_bytes: int) -> Failure:
        """That it does not fit, and what would make it."""
        fixes = told_of(advice(self.shape, self.settings, self.tokens, self._device_of(size_bytes)))
        ways = "; or ".join(fix.message for fix in fixes) or "use a smaller model or a larger device"
        text = (
            f"The run needs about {round(self.least_bytes() / MIB):,} MiB and the largest device has "
            f"{round(size_bytes / MIB):,} MiB to give: {ways}"
        )
        details = [
            {"loc": field, "message": fix.message, "value": value}
            for fix in fixes
            for field, value in fix.changes.items()
        ]
        return Failure("capacity_exceeded", text, details[0]["loc"] if details else "model", details)

    def _device_of(self, size_bytes: int | None) -> DeviceFacts:
        return self.device.model_copy(update={"total_bytes": size_bytes, "free_bytes": None})


def _tokens(prepared: PreparedData) -> TokenFacts | None:
    def counted(split: PreparedSplit) -> Counted:
        return planning.counted_exactly(split, {})

    validation = counted(prepared.validation) if prepared.validation else None
    return planning.token_facts([(counted(each), each.weight) for each in prepared.train], validation, None)


def _known_workers(session: Session, now: datetime) -> list[Row[Any]]:
    return list(session.execute(_KNOWN, {"since": now - timedelta(seconds=_KNOWN_SECONDS)}).all())


_RECENT: Recent[list[Row[Any]]] = Recent()


def _absence(able: Sequence[Row[Any]], now: datetime) -> str | None:
    """That all workers which could run a job are set aside or away; None where one is not."""
    reasons = [_why_absent(worker, now) for worker in able]
    missing = [reason for reason in reasons if reason is not None]
    if not able or len(missing) < len(able):
        return None
    more = f", and {len(missing) - _MOST_TOLD} more" if len(missing) > _MOST_TOLD else ""
    told = "; ".join(missing[:_MOST_TOLD])
    return f"The job waits: no worker that could run it is at work now. {told}{more}"


def _is_at_work(worker: Row[Any], now: datetime) -> bool:
    return _why_absent(worker, now) is None


def _why_absent(worker: Row[Any], now: datetime) -> str | None:
    since = now - timedelta(seconds=estimates.PRESENT_SECONDS)
    if worker.state == SICK:
        return f"{worker.id} is set aside: {worker.reason}"
    if worker.state == "stopped" or worker.heartbeat_at < since:
        return f"{worker.id} was last heard of at {worker.heartbeat_at:%Y-%m-%d %H:%M} UTC"
    return None


_Demand = tuple[str, Callable[[Row[Any]], bool], Callable[[Sequence[Row[Any]]], str]]


def _demands(resources: ResourcesRequest) -> list[_Demand]:
    """What a request asks for, each as field, test and explanation."""
    labels, memory = set(resources.labels), asked_memory_bytes(resources)

    def missing(workers: Sequence[Row[Any]]) -> str:
        carried = ", ".join(sorted(set().union(*map(_labels, workers)))) or "none"
        asked = ", ".join(sorted(labels))
        return f"no worker carries all of the labels {asked}; those that there are: {carried}"

    def too_small(workers: Sequence[Row[Any]]) -> str:
        largest = max(_memory_bytes(worker) or 0 for worker in workers) / GIB
        return f"it asks for {resources.memory_gb:g} GiB of memory, and the largest device has {largest:.1f}"

    def too_few(workers: Sequence[Row[Any]]) -> str:
        most = max(_gpu_count(worker) for worker in workers)
        return f"it asks for {resources.gpus} GPUs, and a worker gives a job at most {most}"

    return [
        ("gpus", lambda worker: resources.gpus <= _gpu_count(worker), too_few),
        ("labels", lambda worker: labels <= _labels(worker), missing),
        (
            "memory_gb",
            lambda worker: memory is None or memory <= (_memory_bytes(worker) or memory),
            too_small,
        ),
    ]


def _has_all(worker: Row[Any], demands: Sequence[_Demand]) -> bool:
    return all(has_it(worker) for _, has_it, _ in demands)


def _gpu_count(worker: Row[Any]) -> int:
    return int(worker.resources.get("gpu_count") or 1)


def _labels(worker: Row[Any]) -> set[str]:
    return {label for label in worker.labels.split(",") if label}


def _memory_bytes(worker: Row[Any]) -> int | None:
    """Of its device; None where it is not counted, as on the CPU."""
    return worker.resources.get("memory_bytes") or None


def _usable_bytes(worker: Row[Any]) -> int | None:
    size = _memory_bytes(worker)
    return None if size is None else int(_USABLE_SHARE * size)
