"""What an estimate is made of, as far as the database knows it: the device, and how fast others were."""

from datetime import datetime, timedelta
from statistics import median

from sqlalchemy.orm import Session

from luthier import repository
from luthier.devices import CPU
from luthier.planning import DeviceFacts, RateFacts
from luthier.spec import Method
from luthier.tables import Job, Worker

PRESENT_SECONDS = 120


def device_facts(session: Session, *, threads: int, now: datetime) -> DeviceFacts | None:
    """The best device that a present agent trains on; None where there is no agent."""
    since = now - timedelta(seconds=PRESENT_SECONDS)
    workers = repository.list_training_workers(session, since=since)
    # A CPU has more memory beside it than most GPUs have, and is no better for that.
    best = max(
        workers, key=lambda each: (each.device != CPU, each.resources.get("memory_bytes") or 0), default=None
    )
    return None if best is None else _facts_of(best, threads)


def rate_facts(
    session: Session, project_id: str, *, model: str, method: Method, device: DeviceFacts | None
) -> RateFacts | None:
    """How fast the last jobs of the same model, method and kind of device were; None without any."""
    if device is None:
        return None
    jobs = repository.list_succeeded_jobs(session, project_id, model=model, limit=20)
    rates = [
        job.progress["tokens_per_second"]
        for job in jobs
        if job.progress
        and job.progress.get("tokens_per_second")
        and (job.hyperparameters or {}).get("method") == method
        and _ran_on(session, job) == device.kind
    ]
    return RateFacts(tokens_per_second=median(rates), run_count=len(rates)) if rates else None


def _ran_on(session: Session, job: Job) -> str | None:
    run = repository.find_newest_run(session, job.id)
    return None if run is None else "cpu" if run.device == CPU else "cuda"


def _facts_of(worker: Worker, threads: int) -> DeviceFacts:
    told = worker.resources
    is_gpu = worker.device != CPU
    return DeviceFacts(
        kind="cuda" if is_gpu else "cpu",
        name=told.get("name"),
        total_bytes=told.get("memory_bytes") or None,
        has_bf16=told.get("has_bf16", is_gpu),
        cores=threads,
    )
