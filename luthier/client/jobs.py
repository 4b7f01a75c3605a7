"""Fine-tuning jobs: make one, follow it, take home what it leaves."""

import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.client.connection import ApiError, Connection, OnBytes
from luthier.client.objects import Artifact, Checkpoint, Estimate, Event, Job, Metrics, Page

_PATH = "/fine_tuning/jobs"
_EVENTS_A_PAGE = 100


@dataclass(frozen=True)
class Update:
    """A job as it is now, and what has happened since the update before, oldest first."""

    job: Job
    events: Sequence[Event]


class Jobs:
    """`/v1/fine_tuning/jobs`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job.

        Where the connection breaks it is sent again, under one key: no second job comes of it.

        Args:
            request: the body, as `luthier.spec.JobRequest` describes it.
            idempotency_key: visible ASCII, such as a UUID, for callers who may submit the same again
                themselves: within a day it finds the first job. Default: a new one.
        """
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        response = self._connection.request(
            "POST", _PATH, is_repeatable=True, json=dict(request), headers=headers
        )
        return Job.model_validate_json(response.content)

    def estimate(self, request: Mapping[str, Any]) -> Estimate:
        """What a job of that body would be and cost; nothing is submitted."""
        response = self._connection.request(
            "POST", f"{_PATH}/estimate", is_repeatable=True, json=dict(request)
        )
        return Estimate.model_validate_json(response.content)

    def list(self, *, after: str | None = None, limit: int = 20) -> Page[Job]:
        """One page, newest first."""
        return Page[Job].model_validate_json(self._page(_PATH, after, limit))

    def get(self, job_id: str) -> Job:
        return Job.model_validate_json(self._connection.request("GET", f"{_PATH}/{job_id}").content)

    def cancel(self, job_id: str) -> Job:
        """Ask for an end: at once for a queued job, after its current step for a running one."""
        return self._wish(job_id, "cancel")

    def pause(self, job_id: str) -> Job:
        """Ask for a pause: at once for a job that waits, after its current step for a running one."""
        return self._wish(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        """Let a paused job go on, before the others of its priority."""
        return self._wish(job_id, "resume")

    def retry(self, job_id: str, origin: str = "checkpoint") -> Job:
        """A new job of one that failed or was cancelled, from its newest `checkpoint` or its `start`."""
        response = self._connection.request("POST", f"{_PATH}/{job_id}/retry", json={"from": origin})
        return Job.model_validate_json(response.content)

    def update(self, job_id: str, **changes: Any) -> Job:
        """Change `priority`, `place` (front, back, or a job's id), `name` or `metadata`."""
        response = self._connection.request("PATCH", f"{_PATH}/{job_id}", is_repeatable=True, json=changes)
        return Job.model_validate_json(response.content)

    def queue(self, *, after: str | None = None, limit: int = 20) -> Page[Job]:
        """One page of the jobs that wait, the next one first."""
        return Page[Job].model_validate_json(self._page("/fine_tuning/queue", after, limit))

    def events(self, job_id: str, *, after: str | None = None, limit: int = 20) -> Page[Event]:
        """One page, newest first."""
        return Page[Event].model_validate_json(self._page(f"{_PATH}/{job_id}/events", after, limit))

    def checkpoints(self, job_id: str, *, after: str | None = None, limit: int = 10) -> Page[Checkpoint]:
        """One page, newest first."""
        return Page[Checkpoint].model_validate_json(self._page(f"{_PATH}/{job_id}/checkpoints", after, limit))

    def metrics(self, job_id: str) -> Metrics:
        return Metrics.model_validate_json(
            self._connection.request("GET", f"{_PATH}/{job_id}/metrics").content
        )

    def artifacts(self, job_id: str) -> Sequence[Artifact]:
        """What a succeeded job has left; empty before."""
        response = self._connection.request("GET", f"{_PATH}/{job_id}/artifacts")
        return Page[Artifact].model_validate_json(response.content).data

    def download(
        self, job_id: str, artifact: Artifact, folder: Path, on_bytes: OnBytes | None = None
    ) -> Path:
        """Put one artifact under its name into `folder`, and check its SHA-256; returns where it lies."""
        target = folder / artifact.name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ApiError(f"The server names an artifact outside the folder: {artifact.name!r}")
        path = f"{_PATH}/{job_id}/artifacts/{artifact.name}"
        self._connection.download(path, target, sha256=artifact.sha256, on_bytes=on_bytes)
        return target

    def download_tar(self, job_id: str, target: Path, on_bytes: OnBytes | None = None) -> None:
        """Put all artifacts into one .tar file."""
        self._connection.download(f"{_PATH}/{job_id}/artifacts.tar", target, on_bytes=on_bytes)

    def log_tail(self, job_id: str, lines: int) -> str:
        """The last lines of the output of the job's last run, or of its preparation before there was one."""
        response = self._connection.request("GET", f"{_PATH}/{job_id}/logs", params={"tail": lines})
        return response.content.decode(errors="replace")

    def logs(self, job_id: str) -> Iterator[bytes]:
        """The same output in full, in pieces."""
        return self._connection.read(f"{_PATH}/{job_id}/logs")

    def follow(self, job_id: str, *, every_seconds: float = 1.0) -> Iterator[Update]:
        """Updates until the job has ended; the last one holds its final status and all events before it."""
        newest: str | None = None
        while True:
            # The job is read first: what it has become by then stands in the events that are read after.
            job = self.get(job_id)
            events = self._events_since(job_id, newest)
            newest = events[-1].id if events else newest
            yield Update(job, events)
            if job.is_final:
                return
            self._connection.pause(every_seconds)

    def _events_since(self, job_id: str, newest: str | None) -> Sequence[Event]:
        """Events behind `newest`, oldest first."""
        found: deque[Event] = deque()
        after: str | None = None
        while True:
            page = self.events(job_id, after=after, limit=_EVENTS_A_PAGE)
            for event in page.data:
                if event.id == newest:
                    return tuple(found)
                found.appendleft(event)
            if not page.has_more or not page.data:
                return tuple(found)
            after = page.data[-1].id

    def _wish(self, job_id: str, name: str) -> Job:
        response = self._connection.request("POST", f"{_PATH}/{job_id}/{name}", is_repeatable=True)
        return Job.model_validate_json(response.content)

    def _page(self, path: str, after: str | None, limit: int) -> bytes:
        params: dict[str, str | int] = {"limit": limit} if after is None else {"limit": limit, "after": after}
        return self._connection.request("GET", path, params=params).content
