"""Looks at files over HTTP, done by a real agent whose child is scripted."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from api import waiting
from luthier.database import clock
from luthier.errors import Failure, LuthierError
from luthier.installation import Installation
from luthier.service import endings, files
from luthier.settings import Settings
from luthier.status import Queue
from luthier.tables import File, Job
from tests.api.conftest import ROWS, jsonl
from tests.factories import claim
from worker.agent import Agent

_VIEW = {"model": "tiny"}
_QA = jsonl(*[{"question": f"Q{number}?", "context": "", "answer": "A"} for number in range(12)])
_QA_COLUMNS = {"instruction": "question", "input": "context", "output": "answer"}
_OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
}
_ENTRY = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": _OPENAI_TAGS}

Upload = Callable[..., Any]


@pytest.fixture
def impatient(settings: Settings) -> None:
    """Callers wait no longer than a moment."""
    object.__setattr__(settings, "errand_wait_seconds", 0.1)


def _works(installation: Installation) -> int:
    with installation.database.reading() as session:
        return session.query(Job).count()


def test_the_report_of_an_upload_can_be_read(client: TestClient, file_id: str) -> None:
    report = client.get(f"/v1/files/{file_id}/validation").json()
    assert (report["object"], report["file_id"], report["valid"], report["row_count"]) == (
        "file.validation",
        file_id,
        True,
        4,
    )


def test_a_report_for_a_model_tells_of_tokens(client: TestClient, file_id: str, agent: Agent) -> None:
    report = client.post(f"/v1/files/{file_id}/validation", json=_VIEW).json()
    assert report["tokens"]["trained_token_count"] == 20


def test_a_file_is_held_against_another(
    client: TestClient, file_id: str, upload: Upload, installation: Installation, agent: Agent
) -> None:
    other = upload().json()["id"]
    call = f"/v1/files/{file_id}/validation"
    missing = client.post(call, json=_VIEW | {"against": "file-none"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "against")
    assert client.post(call, json=_VIEW | {"against": other}).status_code == 200
    with installation.database.reading() as session:
        (work,) = session.query(Job)
    assert work.request["against"]["file_id"] == other


def test_a_preview_shows_the_rows_asked_for(client: TestClient, file_id: str, agent: Agent) -> None:
    answer = client.post(f"/v1/files/{file_id}/preview", json={"model": "tiny", "rows": 2, "offset": 1})
    assert answer.status_code == 200, answer.text
    assert [row["line"] for row in answer.json()["data"]] == [2, 3]
    assert answer.json()["max_seq_length"] > 0


def test_the_same_preview_again_is_answered_at_once_and_makes_no_work(
    client: TestClient, file_id: str, agent: Agent, installation: Installation
) -> None:
    first = client.post(f"/v1/files/{file_id}/preview", json=_VIEW)
    works, started = _works(installation), time.monotonic()
    assert client.post(f"/v1/files/{file_id}/preview", json=_VIEW).json() == first.json()
    assert _works(installation) == works
    assert time.monotonic() - started < 1


def test_who_has_waited_long_enough_is_told_to_ask_again(
    client: TestClient, file_id: str, impatient: None, make_agent: Callable[[], Agent]
) -> None:
    answer = client.post(f"/v1/files/{file_id}/preview", json=_VIEW)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_done_yet")
    assert int(answer.headers["retry-after"]) > 0
    make_agent().drain()
    assert client.post(f"/v1/files/{file_id}/preview", json=_VIEW).status_code == 200


def test_a_preview_that_fails_says_why_and_leaves_the_file_as_it_was(
    client: TestClient, upload: Upload, agent: Agent
) -> None:
    file = upload(filename="broken.jsonl").json()
    answer = client.post(f"/v1/files/{file['id']}/preview", json=_VIEW)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "Line 3: no")
    assert client.get(f"/v1/files/{file['id']}").json() == file


def test_a_conversion_makes_a_file_once(
    client: TestClient, upload: Upload, agent: Agent, installation: Installation
) -> None:
    file_id = upload(_QA).json()["id"]
    body = {"columns": _QA_COLUMNS, "filename": "qa.jsonl"}
    made = client.post(f"/v1/files/{file_id}/prepare", json=body).json()
    assert (made["filename"], made["status"], made["bytes"] > 0) == ("qa.jsonl", "processed", True)
    assert b"instruction" in client.get(f"/v1/files/{made['id']}/content").content
    assert client.post(f"/v1/files/{file_id}/prepare", json=body).json()["id"] == made["id"]
    with installation.database.reading() as session:
        assert session.query(File).count() == 2


def test_a_conversion_that_takes_long_is_answered_with_the_file_to_come(
    client: TestClient, file_id: str, impatient: None, make_agent: Callable[[], Agent]
) -> None:
    made = client.post(f"/v1/files/{file_id}/prepare", json={}).json()
    assert (made["filename"], made["status"], made["bytes"]) == ("rows.prepared.jsonl", "uploaded", 0)
    assert client.get(f"/v1/files/{made['id']}/content").status_code == 404
    make_agent().drain()
    assert client.get(f"/v1/files/{made['id']}").json()["status"] == "processed"


def test_a_conversion_that_fails_leaves_no_file(
    client: TestClient, upload: Upload, agent: Agent, installation: Installation
) -> None:
    file_id = upload(filename="broken.jsonl").json()["id"]
    answer = client.post(f"/v1/files/{file_id}/prepare", json={})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "Line 3: no")
    with installation.database.reading() as session:
        assert [file.id for file in session.query(File)] == [file_id]


def test_all_who_wait_for_a_conversion_that_fails_are_told_why(
    client: TestClient, upload: Upload, impatient: None, make_agent: Any, installation: Installation
) -> None:
    source = upload(filename="broken.jsonl").json()["id"]
    made = client.post(f"/v1/files/{source}/prepare", json={}).json()["id"]
    make_agent().drain()
    # Two callers who asked before it failed, one behind the other: the first takes the file back.
    for _ in range(2):
        with pytest.raises(LuthierError, match="Line 3: no") as raised:
            waiting.converted_file(installation, made)
        assert (raised.value.code, raised.value.param) == ("invalid_file", "columns")
    assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [source]


def test_who_waits_for_a_conversion_whose_file_was_deleted_is_told_so(
    client: TestClient, file_id: str, impatient: None, make_agent: Any, installation: Installation
) -> None:
    made = client.post(f"/v1/files/{file_id}/prepare", json={}).json()["id"]
    make_agent().drain()
    client.delete(f"/v1/files/{made}")
    with pytest.raises(LuthierError, match="deleted while it was made"):
        waiting.converted_file(installation, made)


def test_a_registered_file_is_found_by_its_name(client: TestClient, file_id: str, upload: Upload) -> None:
    other = upload().json()["id"]
    body = {"name": "chats", "entry": _ENTRY}
    registered = client.post(f"/v1/files/{file_id}/register", json=body).json()
    assert (registered["name"], registered["entry"]["formatting"]) == ("chats", "sharegpt")
    assert [file["id"] for file in client.get("/v1/files?name=chats").json()["data"]] == [file_id]
    taken = client.post(f"/v1/files/{other}/register", json=body)
    assert (taken.status_code, taken.json()["error"]["param"]) == (400, "name")
    assert client.delete(f"/v1/files/{file_id}/register").json()["dataset_name"] is None
    assert client.get("/v1/files?name=chats").json()["data"] == []


def test_rows_of_unknown_keys_are_kept_until_somebody_says_what_they_are(
    client: TestClient, upload: Upload
) -> None:
    file = upload(_QA).json()
    assert (file["status"], "question, context, answer" in file["status_details"]) == ("error", True)
    job = {"model": "tiny", "training_file": file["id"]}
    refused = client.post("/v1/fine_tuning/jobs", json=job)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_training_file")
    taken = client.post("/v1/fine_tuning/jobs", json=job | {"dataset": {"columns": _QA_COLUMNS}})
    assert taken.json()["status"] == "queued"


def test_a_file_with_bad_rows_is_kept_where_it_was_asked_for_and_serves_jobs_that_drop_them(
    client: TestClient,
) -> None:
    data, files = (
        {"purpose": "fine-tune", "on_bad_row": "drop"},
        {"file": ("r.jsonl", jsonl(*ROWS, b"{bad\n"))},
    )
    file = client.post("/v1/files", data=data, files=files).json()
    assert (file["status"], "Line 5" in file["status_details"]) == ("error", True)
    job = {"model": "tiny", "training_file": file["id"]}
    assert client.post("/v1/fine_tuning/jobs", json=job).status_code == 400
    taken = client.post("/v1/fine_tuning/jobs", json=job | {"dataset": {"on_bad_row": "drop"}})
    assert taken.json()["status"] == "queued"


def test_a_file_of_unknown_keys_is_processed_once_it_is_registered(
    client: TestClient, upload: Upload
) -> None:
    file_id = upload(_QA).json()["id"]
    columns = {"prompt": "question", "query": "context", "response": "answer"}
    client.post(f"/v1/files/{file_id}/register", json={"name": "qa", "entry": {"columns": columns}})
    assert client.get(f"/v1/files/{file_id}").json()["status"] == "processed"
    client.delete(f"/v1/files/{file_id}/register")
    assert client.get(f"/v1/files/{file_id}").json()["status"] == "error"


_TAGGED = [
    {"conversations": [{"who": "customer", "text": f"Q{number}"}, {"who": "agent", "text": "A"}]}
    for number in range(4)
]
_TAGS = {"role_tag": "who", "content_tag": "text", "user_tag": "customer", "assistant_tag": "agent"}


def test_rows_that_only_an_entry_explains_are_kept_where_it_was_asked_for(client: TestClient) -> None:
    form = {"purpose": "fine-tune", "on_bad_row": "keep"}
    file = client.post("/v1/files", data=form, files={"file": ("a.jsonl", jsonl(*_TAGGED))}).json()
    entry = {"formatting": "sharegpt", "tags": _TAGS}
    url = f"/v1/files/{file['id']}"
    answer = client.post(f"{url}/register", json={"name": "talks", "entry": entry})
    assert answer.status_code == 200, answer.text
    assert (file["status"], client.get(url).json()["status"]) == ("error", "processed")
    assert client.delete(f"{url}/register").json()["status"] == "error"


def test_a_file_that_is_still_being_checked_is_checked_anew_by_its_entry(
    client: TestClient, upload: Upload, settings: Settings, installation: Installation, make_agent: Any
) -> None:
    object.__setattr__(settings, "whole_check_bytes", 1)
    file_id = upload(_QA).json()["id"]
    entry = {"columns": {"prompt": "question", "query": "context", "response": "answer"}}
    answer = client.post(f"/v1/files/{file_id}/register", json={"name": "qa", "entry": entry})
    assert answer.status_code == 200, answer.text
    with installation.database.reading() as session:
        works = session.query(Job).order_by(Job.created_at).all()
    assert sorted(work.state for work in works) == ["cancelled", "queued"]
    make_agent().drain()
    assert client.get(f"/v1/files/{file_id}").json()["status"] == "processed"


def test_a_name_passes_to_a_file_that_fits_its_entry_or_stays(client: TestClient, upload: Upload) -> None:
    old, other, new = (upload().json()["id"] for _ in range(3))
    body = {"name": "talks", "entry": _ENTRY}
    client.post(f"/v1/files/{old}/register", json=body)
    unfit = {"name": "talks", "entry": {}, "replace": True}
    assert client.post(f"/v1/files/{other}/register", json=unfit).status_code == 400
    assert [file["id"] for file in client.get("/v1/files?name=talks").json()["data"]] == [old]
    for _ in range(2):
        assert client.post(f"/v1/files/{new}/register", json=body | {"replace": True}).status_code == 200
    assert [file["id"] for file in client.get("/v1/files?name=talks").json()["data"]] == [new]
    assert client.get(f"/v1/files/{old}").json()["status"] == "processed"


def test_an_entry_that_does_not_fit_the_rows_is_refused(client: TestClient, file_id: str) -> None:
    answer = client.post(f"/v1/files/{file_id}/register", json={"name": "qa", "entry": {}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_file")
    assert client.get("/v1/files?name=qa").json()["data"] == []


def test_columns_that_are_not_there_are_told_at_once(client: TestClient, upload: Upload) -> None:
    file_id = upload(_QA).json()["id"]
    body = {"columns": {"instruction": "query", "output": "answer"}}
    error = client.post(f"/v1/files/{file_id}/prepare", json=body).json()["error"]
    assert (error["param"], "query" in error["message"]) == ("columns", True)


def test_deleting_a_file_drops_what_was_found_in_it(
    client: TestClient, file_id: str, agent: Agent, installation: Installation
) -> None:
    client.post(f"/v1/files/{file_id}/preview", json=_VIEW)
    client.delete(f"/v1/files/{file_id}")
    assert _works(installation) == 0
    assert not list(installation.storage.root.glob("work-*"))


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("preview", {"model": "nobody"}, 400, "model"),
        ("preview", {"model": "../etc"}, 400, "model"),
        ("preview", {"model": "Qwen/Qwen3-0.6B"}, 404, "model"),
        ("preview", {"model": "ft:tiny:org::x"}, 400, "model"),
        ("preview", {"model": "tiny", "rows": 0}, 400, "rows"),
        ("preview", {"model": "tiny", "rows": 101}, 400, "rows"),
        ("preview", {"model": "tiny", "offset": 4}, 400, "offset"),
        ("preview", {"model": "tiny", "offset": 10**15}, 400, "offset"),
        ("preview", {"model": "tiny", "max_seq_length": 10**6}, 400, "max_seq_length"),
        ("preview", {"model": "tiny", "dataset": {"columns": {"q": "a"}}}, 400, "dataset.columns.q"),
        ("preview", {"model": "tiny", "dataset": {"files": [{"id": "file-1"}]}}, 400, "dataset"),
        ("preview", {"rowz": 1, "model": "tiny"}, 400, "rowz"),
        ("preview", {}, 400, "model"),
        ("validation", {"model": "nobody"}, 400, "model"),
        ("prepare", {"columns": {}}, 400, "columns"),
        ("prepare", {"columns": {"instruction": 7}}, 400, "columns.instruction"),
        ("register", {"entry": {}}, 400, "name"),
        ("register", {"name": "a,b", "entry": {}}, 400, "name"),
        ("register", {"name": "a", "entry": {"formatting": "xml"}}, 400, "entry"),
    ],
)  # fmt: skip
def test_a_bad_look_is_refused_at_once_and_leaves_nothing(
    client: TestClient,
    installation: Installation,
    file_id: str,
    path: str,
    body: Any,
    status: int,
    param: str,
) -> None:
    started = time.monotonic()
    answer = client.post(f"/v1/files/{file_id}/{path}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert time.monotonic() - started < 5, "an answer takes well under a second on an idle machine"
    assert _works(installation) == 0


@pytest.mark.parametrize("path", ["preview", "validation", "prepare", "register"])
def test_a_file_of_somebody_else_is_not_there(stranger: TestClient, file_id: str, path: str) -> None:
    body = {"preview": _VIEW, "validation": _VIEW, "prepare": {}, "register": {"name": "a", "entry": {}}}[
        path
    ]
    answer = stranger.post(f"/v1/files/{file_id}/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")


def test_a_look_at_a_file_that_is_deleted_meanwhile_says_so(
    client: TestClient, file_id: str, impatient: None, installation: Installation
) -> None:
    client.post(f"/v1/files/{file_id}/preview", json=_VIEW)
    with installation.database.transaction() as session:
        taken = claim(session, Queue.CPU, now=clock(session))
        assert taken is not None
        files.delete_file(session, session.get_one(File, file_id), now=clock(session))
        endings.stop_run(session, taken.lease, exit_code=None, now=clock(session))
    with pytest.raises(LuthierError, match="deleted meanwhile") as raised:
        waiting.result_of(installation, taken.job.id)
    assert raised.value.code == "file_not_found"


def test_a_file_that_could_not_be_checked_says_why(
    client: TestClient, upload: Upload, settings: Settings, installation: Installation
) -> None:
    object.__setattr__(settings, "whole_check_bytes", 1)
    file_id = upload(jsonl(*ROWS)).json()["id"]
    with installation.database.transaction() as session:
        taken = claim(session, Queue.CPU, now=clock(session))
        assert taken is not None
        failure = Failure("worker_lost", "The job was lost 3 times")
        endings.fail_run(session, taken.lease, failure, exit_code=None, now=clock(session))
    report = client.get(f"/v1/files/{file_id}/validation").json()
    assert (report["valid"], report["error_count"]) == (False, 1)
    assert report["errors"][0]["message"] == "The job was lost 3 times"


def test_a_file_that_is_not_checked_yet_cannot_be_looked_at(
    client: TestClient, upload: Upload, settings: Settings
) -> None:
    object.__setattr__(settings, "whole_check_bytes", 1)
    file_id = upload(jsonl(*ROWS)).json()["id"]
    assert client.post(f"/v1/files/{file_id}/preview", json=_VIEW).json()["error"]["code"] == "invalid_file"
    assert client.get(f"/v1/files/{file_id}/validation").json()["error"]["code"] == "not_done_yet"
