"""Jobs and files through the client: uploads, events in their order, artifacts in their folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.client import ApiError, Artifact
from luthier.client.connection import Connection
from luthier.client.files import Files
from luthier.client.jobs import Jobs


def job(status: str) -> dict[str, Any]:
    return {"id": "ftjob-1", "status": status, "created_at": 1, "model": "tiny", "training_file": "file-1"}


def events(*numbers: int, has_more: bool = False) -> dict[str, Any]:
    data = [{"id": f"e{n}", "created_at": n, "level": "info", "message": f"event {n}"} for n in numbers]
    return {"object": "list", "data": data, "has_more": has_more}


def test_an_upload_is_watched_and_names_its_purpose_first(
    server: Any, connection: Connection, tmp_path: Path
) -> None:
    server.answer(
        {"id": "file-1", "bytes": 300_000, "created_at": 1, "filename": "a.jsonl", "purpose": "fine-tune"}
    )
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 300_000)
    seen: list[int] = []
    assert Files(connection).upload(path, on_bytes=seen.append).id == "file-1"
    body = server.asked[0].body
    assert body.index(b'name="purpose"') < body.index(b'name="file"; filename="a.jsonl"')
    assert len(seen) > 2
    assert seen[-1] == 300_000


def test_following_tells_every_event_once_and_in_order(server: Any, connection: Connection) -> None:
    server.answer(
        *(job("running"), events(2, 1)),
        *(job("running"), events(2, 1)),
        *(job("succeeded"), events(5, 4, has_more=True), events(3, 2, 1)),
    )
    updates = list(Jobs(connection).follow("ftjob-1", every_seconds=0.25))
    assert [[event.id for event in update.events] for update in updates] == [
        ["e1", "e2"],
        [],
        ["e3", "e4", "e5"],
    ]
    assert updates[-1].job.is_final
    assert server.pauses == [0.25, 0.25]
    assert server.asked[-1].path.endswith("/events?limit=100&after=e4")


def test_a_job_that_is_sent_again_keeps_its_key(
    server: Any, connection: Connection, error_reply: Any
) -> None:
    server.answer(error_reply(503), job("queued"))
    assert Jobs(connection).create({"model": "tiny"}).id == "ftjob-1"
    first, second = (asked.headers["idempotency-key"] for asked in server.asked)
    assert first == second
    Jobs(connection).create({"model": "tiny"})
    assert server.asked[2].headers["idempotency-key"] != first
    Jobs(connection).create({"model": "tiny"}, idempotency_key="mine")
    assert server.asked[3].headers["idempotency-key"] == "mine"


def test_a_quota_is_told_at_once(server: Any, connection: Connection, error_reply: Any) -> None:
    server.answer(error_reply(429, "too many", "quota_exceeded", **{"Retry-After": "30"}))
    with pytest.raises(ApiError, match="too many") as caught:
        Jobs(connection).create({"model": "tiny"})
    assert (caught.value.retry_after_seconds, server.pauses) == (30, [])


def test_wishes_and_changes_go_to_their_paths(server: Any, connection: Connection) -> None:
    server.answer(job("queued"))
    jobs = Jobs(connection)
    jobs.pause("ftjob-1")
    jobs.resume("ftjob-1")
    jobs.retry("ftjob-1", "start")
    jobs.update("ftjob-1", priority=3, place="front")
    assert [(asked.method, asked.path.rpartition("ftjob-1")[2], asked.body) for asked in server.asked] == [
        ("POST", "/pause", b""),
        ("POST", "/resume", b""),
        ("POST", "/retry", b'{"from":"start"}'),
        ("PATCH", "", b'{"priority":3,"place":"front"}'),
    ]


def test_a_cancel_is_repeated_when_the_server_is_busy(
    server: Any, connection: Connection, error_reply: Any
) -> None:
    server.answer(error_reply(503), job("cancelled"))
    assert Jobs(connection).cancel("ftjob-1").status == "cancelled"
    assert [asked.method for asked in server.asked] == ["POST", "POST"]


def test_a_job_is_sent_as_it_was_given(server: Any, connection: Connection) -> None:
    server.answer(job("queued"))
    request = {"model": "tiny", "training_file": "file-1", "qlora": {"r": 8}}
    Jobs(connection).create(request)
    assert json.loads(server.asked[0].body) == request


def test_an_artifact_cannot_leave_its_folder(server: Any, connection: Connection, tmp_path: Path) -> None:
    evil = Artifact(name="../evil", bytes=1, sha256="0" * 64)
    with pytest.raises(ApiError, match="outside"):
        Jobs(connection).download("ftjob-1", evil, tmp_path / "folder")
    assert server.asked == []


def test_fields_of_a_newer_server_are_kept(server: Any, connection: Connection) -> None:
    server.answer(job("running") | {"progress": {"step": 3, "total_steps": 9, "mood": "good"}, "hue": "red"})
    found = Jobs(connection).get("ftjob-1")
    assert found.progress is not None
    assert found.progress.step == 3
    assert found.model_extra == {"hue": "red"}
