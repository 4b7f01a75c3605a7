"""The queue and the workers, as far as whoever waits wants to know."""

from typing import Literal

from api.schemas.pages import Named, unix_seconds
from luthier.tables import Worker


class WorkerObject(Named):
    """An agent: one device, or one place on the CPU. Memory is null where it is not counted."""

    object: Literal["fine_tuning.worker"] = "fine_tuning.worker"
    host: str
    queue: str
    device: str
    device_name: str | None
    state: str
    reason: str | None
    labels: list[str]
    memory_bytes: int | None
    free_memory_bytes: int | None
    version: str
    heartbeat_at: int


def worker_object(worker: Worker, reason: str | None) -> WorkerObject:
    """What a row shows, with its reason as the caller may know it."""
    told = worker.resources
    return WorkerObject(
        id=worker.id,
        host=worker.host,
        queue=worker.queue,
        device=worker.device,
        device_name=told.get("name"),
        state=worker.state,
        reason=reason,
        labels=[label for label in worker.labels.split(",") if label],
        memory_bytes=told.get("memory_bytes") or None,
        free_memory_bytes=told.get("free_memory_bytes"),
        version=worker.version,
        heartbeat_at=unix_seconds(worker.heartbeat_at),
    )
