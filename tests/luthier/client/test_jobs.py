"""Jobs through both clients: what is sent, and how they are followed."""

import json
from typing import Any

import pytest

from luthier.client import ApiError


def job(status: str) -> dict[str, Any]:
    return {"id": "ftjob-1", "status": status, "created_at": 1, "model": "tiny", "training_file": "file-1"}


def event(number: int) -> dict[str, Any]:
    return {"id": f"e{number}", "created_at": number, "level": "info", "message": f"event {number}"}


def events(*numbers: int, has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": [event(number) for number in numbers], "has_more": has_more}


def frames(*told: tuple[int | None, str, dict[str, Any]]) -> bytes:
    """Server-sent events by id, name and data."""
    text = "retry: 3000\n\n: beat\n\n"
    for number, name, data in told:
        text += "" if number is None else f"id: {number}\n"
        text += f"event: {name}\ndata: {json.dumps(data)}\n\n"
    return text.encode()


@pytest.fixture
def no_stream(error_reply: Any) -> Any:
    """The answer of a server without event streams."""
    return error_reply(404, "There is nothing", "not_found")


def test_following_without_a_stream_tells_every_event_once_and_in_order(
    server: Any, client: Any, no_stream: Any
) -> None:
    server.answer(
        no_stream,
        *(job("running"), events(2, 1)),
        *(job("running"), events(2, 1)),
        *(job("succeeded"), events(5, 4, has_more=True), events(3, 2, 1)),
    )
    updates = list(client.jobs.follow("ftjob-1", every_seconds=0.25))
    assert [[event.id for event in update.events] for update in updates] == [
        ["e1", "e2"],
        [],
        ["e3", "e4", "e5"],
    ]
    assert updates[-1].job.is_final
    assert server.pauses == [0.25, 0.25]
    assert server.asked[-1].path.endswith("/events?limit=1000&after=e4")


def test_a_job_that_has_not_changed_is_not_sent_again(server: Any, client: Any, no_stream: Any) -> None:
    first = server.reply(json.dumps(job("running")).encode(), headers={"ETag": 'W/"1"'})
    server.answer(no_stream, first, events(1), server.reply(b"", 304), events(1), job("failed"), events(2, 1))
    statuses = [update.job.status for update in client.jobs.follow("ftjob-1")]
    assert statuses == ["running", "running", "failed"]
    assert [asked.headers.get("if-none-match") for asked in server.asked[1::2]] == [None, 'W/"1"', 'W/"1"']


def test_a_stream_that_breaks_goes_on_after_the_last_event(server: Any, client: Any) -> None:
    status = {"id": "ftjob-1", "object": "fine_tuning.job.status", "status": "running", "phase": "training"}
    server.answer(
        server.reply(frames((1, "message", event(1)), (2, "metrics", event(2)))[:-7]),
        job("running"),
        server.reply(frames((2, "message", event(2)), (None, "status", status), (3, "done", status))),
        job("succeeded"),
    )
    updates = list(client.jobs.follow("ftjob-1"))
    assert [event.id for update in updates for event in update.events] == ["e1", "e2"]
    assert (updates[1].job.phase, updates[-1].job.status) == ("training", "succeeded")
    first, again = (asked for asked in server.asked if "stream" in asked.path)
    assert (first.headers.get("last-event-id"), again.headers["last-event-id"]) == (None, "1")


def test_events_are_not_lost_where_the_job_cannot_be_read(server: Any, client: Any, error_reply: Any) -> None:
    told = server.reply(frames((1, "message", event(1)), (1, "done", job("succeeded"))))
    server.answer(told, error_reply(500), told, job("running"), job("succeeded"))
    updates = list(client.jobs.follow("ftjob-1"))
    assert [event.id for update in updates for event in update.events] == ["e1"]
    assert server.asked[2].headers.get("last-event-id") is None


def test_events_alone_come_after_the_one_that_is_known(server: Any, client: Any) -> None:
    server.answer(
        server.reply(frames((8, "message", event(8)), (8, "done", job("succeeded")))), job("succeeded")
    )
    assert [event.id for event in client.jobs.stream("ftjob-1", after="e7")] == ["e8"]
    assert server.asked[0].path.endswith("/events/stream?after=e7")


def test_a_stream_that_is_over_ends(server: Any, client: Any) -> None:
    server.answer(server.reply(b"", 204), job("succeeded"))
    assert list(client.jobs.stream("ftjob-1", after="e7")) == []


def test_a_job_that_is_not_there_is_not_followed(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(error_reply(404, "No such fine-tuning job", "fine_tune_not_found"))
    with pytest.raises(ApiError, match="No such"):
        list(client.jobs.follow("ftjob-1"))
    assert len(server.asked) == 1


def log(content: bytes, name: str, offset: int = 0) -> dict[str, Any]:
    return {"body": content, "headers": {"X-Log": name, "X-Log-Offset": str(offset)}}


def test_a_log_is_followed_from_its_tail_through_its_runs(server: Any, client: Any) -> None:
    server.answer(
        *(job("queued"), server.reply(b"")),
        *(job("running"), server.reply(**log(b"one two ", "e1", 90), cut_after=4)),
        *(job("running"), server.reply(**log(b"two ", "e1", 94))),
        *(job("succeeded"), server.reply(**log(b"anew", "e2"))),
    )
    assert b"".join(client.jobs.follow_logs("ftjob-1", tail=2)) == b"one two anew"
    asked = [asked.path.rpartition("?")[2] for asked in server.asked if "/logs" in asked.path]
    assert asked == [
        "stream=true&tail=2&log=newest",
        "stream=true&tail=2&log=newest",
        "stream=true&log=e1&offset=94",
        "stream=true&log=e1&offset=98",
    ]


def test_who_follows_waits_for_a_server_that_starts_again(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(
        *(job("running"), server.reply(**log(b"one ", "e1"))),
        *[error_reply(502)] * 20,
        *(job("succeeded"), server.reply(**log(b"two", "e1", 4))),
    )
    told: list[ApiError] = []
    assert b"".join(client.jobs.follow_logs("ftjob-1", on_outage=told.append)) == b"one two"
    assert [error.status for error in told] == [502]
    assert max(server.pauses) <= 5


def test_a_server_that_was_never_there_is_not_waited_for(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(error_reply(502))
    with pytest.raises(ApiError):
        list(client.jobs.follow_logs("ftjob-1"))
    assert len(server.asked) == 4


def test_a_job_that_is_sent_again_keeps_its_key(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(error_reply(503), job("queued"))
    assert client.jobs.create({"model": "tiny"}).id == "ftjob-1"
    first, second = (asked.headers["idempotency-key"] for asked in server.asked)
    assert first == second
    client.jobs.create({"model": "tiny"})
    assert server.asked[2].headers["idempotency-key"] != first
    client.jobs.create({"model": "tiny"}, idempotency_key="mine")
    assert server.asked[3].headers["idempotency-key"] == "mine"


def test_a_quota_is_told_at_once(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(error_reply(429, "too many", "quota_exceeded", **{"Retry-After": "30"}))
    with pytest.raises(ApiError, match="too many") as caught:
        client.jobs.create({"model": "tiny"})
    assert (caught.value.retry_after_seconds, server.pauses) == (30, [])


def test_wishes_and_changes_go_to_their_paths(server: Any, client: Any) -> None:
    server.answer(job("queued"))
    client.jobs.pause("ftjob-1")
    client.jobs.resume("ftjob-1")
    client.jobs.retry("ftjob-1", "start")
    client.jobs.update("ftjob-1", priority=3, place="front")
    client.jobs.delete("ftjob-1")
    assert [(asked.method, asked.path.rpartition("ftjob-1")[2], asked.body) for asked in server.asked] == [
        ("POST", "/pause", b""),
        ("POST", "/resume", b""),
        ("POST", "/retry", b'{"from":"start"}'),
        ("PATCH", "", b'{"priority":3,"place":"front"}'),
        ("DELETE", "", b""),
    ]


def test_metadata_that_others_change_meanwhile_is_kept(server: Any, client: Any, error_reply: Any) -> None:
    def version(number: int, **metadata: str) -> Any:
        body = json.dumps(job("queued") | {"metadata": metadata}).encode()
        return server.reply(body, headers={"ETag": f'W/"{number}"'})

    server.answer(
        version(1, a="1", c="3"),
        error_reply(412, code="precondition_failed"),
        version(2, a="1", b="2", c="3"),
        version(3),
    )
    client.jobs.annotate("ftjob-1", {"a": "one", "c": None})
    assert [asked.headers.get("if-match") for asked in server.asked] == [None, 'W/"1"', None, 'W/"2"']
    assert json.loads(server.asked[-1].body) == {"metadata": {"a": "one", "b": "2"}}


def test_a_cancel_is_repeated_when_the_server_is_busy(server: Any, client: Any, error_reply: Any) -> None:
    server.answer(error_reply(503), job("cancelled"))
    assert client.jobs.cancel("ftjob-1").status == "cancelled"
    assert [asked.method for asked in server.asked] == ["POST", "POST"]


def test_a_job_is_sent_as_it_was_given(server: Any, client: Any) -> None:
    server.answer(job("queued"))
    request = {"model": "tiny", "training_file": "file-1", "qlora": {"r": 8}}
    client.jobs.create(request)
    assert json.loads(server.asked[0].body) == request


def test_fields_of_a_newer_server_are_kept(server: Any, client: Any) -> None:
    server.answer(job("running") | {"progress": {"step": 3, "total_steps": 9, "mood": "good"}, "hue": "red"})
    found = client.jobs.get("ftjob-1")
    assert found.progress is not None
    assert found.progress.step == 3
    assert found.model_extra == {"hue": "red"}
