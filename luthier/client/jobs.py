"""Fine-tuning jobs: make one, follow it, take home what it leaves."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.client.calls import Query, Resource, Runner, call, flow, listing
from luthier.client.downloads import OnBytes, download, read
from luthier.client.errors import ApiError
from luthier.client.following import Feed, LogFeed, Update
from luthier.client.objects import Answer, Artifact, Checkpoint, Estimate, Event, Job, Metrics, Page
from luthier.client.retries import OnOutage
from luthier.client.steps import Flow, Request, Steps, given, segment

_PATH = "/fine_tuning/jobs"
_CHANGED_MEANWHILE = 412


class Jobs(Resource[Runner]):
    """`/v1/fine_tuning/jobs`."""

    @call
    def create(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Steps[Job]:
        """Submit a job.

        Where the connection breaks it is sent again, under one key: no second job comes of it.

        Args:
            request: the body, as `luthier.spec.JobRequest` describes it.
            idempotency_key: visible ASCII, such as a UUID, for callers who may submit the same again
                themselves: within a day it finds the first job. Default: a new one.
        """
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}
        return self._ask(Job, Request("POST", _PATH, {"json": dict(request)}, headers, is_repeatable=True))

    @call
    def estimate(self, request: Mapping[str, Any]) -> Steps[Estimate]:
        """What a job of that body would be and cost; nothing is submitted."""
        body = {"json": dict(request)}
        return self._ask(Estimate, Request("POST", f"{_PATH}/estimate", body, is_repeatable=True))

    @listing
    def list(
        self, *, after: str | None = None, limit: int = 20, metadata: Mapping[str, str] | None = None
    ) -> Query[Job]:
        """Jobs, newest first.

        Args:
            limit: rows of a page.
            metadata: pairs that a job must have.
        """
        pairs = {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        return Query(Page[Job], _PATH, {"after": after, "limit": limit, **pairs})

    @call
    def get(self, job_id: str) -> Steps[Job]:
        """One job."""
        return self._ask(Job, Request("GET", _path(job_id)))

    @call
    def request(self, job_id: str) -> Steps[dict[str, Any]]:
        """What a job was submitted with, without what was left to the server: a body for `create`."""
        reply = yield from self._send(Request("GET", f"{_path(job_id)}/request"))
        return Answer.read(reply.content).model_dump()

    @call
    def cancel(self, job_id: str) -> Steps[Job]:
        """Ask for an end: at once for a queued job, after its current step for a running one."""
        return self._ask(Job, _wish(job_id, "cancel"))

    @call
    def pause(self, job_id: str) -> Steps[Job]:
        """Ask for a pause: at once for a job that waits, after its current step for a running one."""
        return self._ask(Job, _wish(job_id, "pause"))

    @call
    def resume(self, job_id: str) -> Steps[Job]:
        """Let a paused job go on, before the others of its priority."""
        return self._ask(Job, _wish(job_id, "resume"))

    @call
    def retry(self, job_id: str, origin: str = "checkpoint") -> Steps[Job]:
        """A new job of one that failed or was cancelled, from its newest `checkpoint` or its `start`."""
        return self._ask(Job, Request("POST", f"{_path(job_id)}/retry", {"json": {"from": origin}}))

    @call
    def update(self, /, job_id: str, **changes: Any) -> Steps[Job]:
        """Change `priority`, `place` (front, back, or a job's id), `name` or `metadata`."""
        return self._ask(Job, Request("PATCH", _path(job_id), {"json": changes}, is_repeatable=True))

    @call
    def annotate(self, job_id: str, pairs: Mapping[str, str | None]) -> Steps[Job]:
        """Set metadata by key, None taking one away; what others change meanwhile is kept."""
        while True:
            reply = yield from self._send(Request("GET", _path(job_id)))
            told = {**(Job.read(reply.content).metadata or {}), **pairs}
            body = {"metadata": given(told) or None}
            headers = given({"If-Match": reply.headers.get("etag")})
            try:
                return (yield from self._ask(Job, Request("PATCH", _path(job_id), {"json": body}, headers)))
            except ApiError as error:
                if error.status != _CHANGED_MEANWHILE:
                    raise

    @call
    def delete(self, job_id: str) -> Steps[None]:
        """Remove a job that has ended, with its checkpoints, artifacts and tuned model; files stay."""
        yield from self._send(Request("DELETE", _path(job_id)))

    @listing
    def queue(self, *, after: str | None = None, limit: int = 20) -> Query[Job]:
        """The jobs that wait, the next one first."""
        return Query(Page[Job], "/fine_tuning/queue", {"after": after, "limit": limit})

    @listing
    def events(self, job_id: str, *, after: str | None = None, limit: int = 20) -> Query[Event]:
        """What happened to a job, newest first."""
        return Query(Page[Event], f"{_path(job_id)}/events", {"after": after, "limit": limit})

    @listing
    def checkpoints(self, job_id: str, *, after: str | None = None, limit: int = 10) -> Query[Checkpoint]:
        """The checkpoints of a job, newest first."""
        return Query(Page[Checkpoint], f"{_path(job_id)}/checkpoints", {"after": after, "limit": limit})

    @call
    def metrics(
        self,
        job_id: str,
        *,
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int | None = None,
        keys: Sequence[str] | None = None,
    ) -> Steps[Metrics]:
        """A job's numbers by step; where there are more steps than `max_points`, the telling ones.

        Args:
            keys: names of numbers; None for all.
        """
        names = ",".join(keys) if keys else None
        params = given({"from_step": from_step, "to_step": to_step, "max_points": max_points, "keys": names})
        return self._ask(Metrics, Request("GET", f"{_path(job_id)}/metrics", {"params": params}))

    @call
    def artifacts(self, job_id: str) -> Steps[Sequence[Artifact]]:
        """What a succeeded job has left; empty before."""
        page = yield from self._ask(Page[Artifact], Request("GET", f"{_path(job_id)}/artifacts"))
        return page.data

    @call
    def download(
        self, job_id: str, artifact: Artifact, folder: Path, on_bytes: OnBytes | None = None
    ) -> Steps[Path]:
        """Put one artifact under its name into `folder`, and check its SHA-256; returns where it lies."""
        target = folder / artifact.name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ApiError(f"The server names an artifact outside the folder: {artifact.name!r}")
        path = f"{_path(job_id)}/artifacts/{segment(artifact.name)}"
        yield from download(self._runner.policy, path, target, sha256=artifact.sha256, on_bytes=on_bytes)
        return target

    @call
    def download_tar(self, job_id: str, target: Path, on_bytes: OnBytes | None = None) -> Steps[None]:
        """Put all artifacts into one .tar file."""
        return download(self._runner.policy, f"{_path(job_id)}/artifacts.tar", target, on_bytes=on_bytes)

    @call
    def log_tail(self, job_id: str, lines: int) -> Steps[str]:
        """The last lines of the output of the job's last run, or of its preparation before there was one."""
        reply = yield from self._send(Request("GET", f"{_path(job_id)}/logs", {"params": {"tail": lines}}))
        return reply.content.decode(errors="replace")

    @flow
    def logs(self, job_id: str) -> Flow[bytes]:
        """The same output in full, in pieces."""
        return read(self._runner.policy, f"{_path(job_id)}/logs")

    @flow
    def follow_logs(
        self,
        job_id: str,
        *,
        tail: int | None = None,
        every_seconds: float = 1.0,
        on_outage: OnOutage | None = None,
    ) -> Flow[bytes]:
        """The same output as it grows, until the job has ended; that of a new run follows without a break.

        Args:
            tail: only so many lines from the end of what there is.
            every_seconds: between two answers of the server, each of which lasts as long as a log grows.
            on_outage: as for `follow`.
        """
        return LogFeed(self, _path(job_id), every_seconds, tail, on_outage).chunks()

    @flow
    def follow(
        self,
        job_id: str,
        *,
        after: str | None = None,
        every_seconds: float = 1.0,
        on_outage: OnOutage | None = None,
    ) -> Flow[Update]:
        """Updates until the job has ended; the last one holds its final status and all events before it.

        Events come by the server's stream, which is taken up where it broke; where there is none the server
        is asked `every_seconds`.

        Args:
            after: id of the event to go on after; None for all.
            on_outage: called with the error when a server that has answered stays away; it is tried on for
                some minutes.
        """
        return Feed(self, _path(job_id), every_seconds, after, on_outage).updates()

    @flow
    def stream(self, job_id: str, *, after: str | None = None, every_seconds: float = 1.0) -> Flow[Event]:
        """The same events alone, one by one, oldest first."""
        return Feed(self, _path(job_id), every_seconds, after).events()


def _path(job_id: str) -> str:
    return f"{_PATH}/{segment(job_id)}"


def _wish(job_id: str, name: str) -> Request:
    return Request("POST", f"{_path(job_id)}/{name}", is_repeatable=True)
