"""All calls of the `openai` package, by whichever release of it is installed, for both of its clients.

A program of its own, whose argument is a `Running` of conftest.py in JSON. Each case is a function; what
came of it is a line of JSON, with the traceback of a case that failed. Both clients go through the same
lines: `got` awaits what has to be awaited. Every answer is validated strictly.
"""

import asyncio
import hashlib
import inspect
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

_ROW = b'{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n'
_DATA = _ROW * 4


@dataclass
class World:
    """A client, and what there is on the server.

    Attributes:
        lenient: the same client without strict validation.
        poor: a client whose project may have no jobs.
        base: a base model with a slash in its name; `tuned`, a job that has ended well; `expendable`, a
            model that may be deleted.
    """

    client: Any
    lenient: Any
    poor: Any
    base: str
    tuned: str
    expendable: str


async def got(answer: Any) -> Any:
    """The answer of either client."""
    return await answer if inspect.isawaitable(answer) else answer


async def rows(pages: Any) -> list[Any]:
    """All rows of all pages."""
    return [row async for row in pages] if hasattr(pages, "__aiter__") else list(pages)


async def refused(call: Callable[[], Any], kind: Any, code: str | None, param: str | None) -> Any:
    """The error of a call that must be refused so."""
    error = await _error_of(call, kind)
    assert (error.code, error.param) == (code, param), (error.code, error.param, error.message)
    assert error.request_id.startswith("req-"), error.request_id
    return error


async def _error_of(call: Callable[[], Any], kind: Any) -> Any:
    try:
        await got(call())
    except kind as error:
        return error
    raise AssertionError(f"it was not refused with {kind.__name__}")


async def files(world: World) -> None:
    files = world.client.files
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(_DATA)
        named = await got(files.create(file=path, purpose="fine-tune"))
    expiry = {"anchor": "created_at", "seconds": 3600}
    unnamed = await got(files.create(file=_DATA, purpose="fine-tune", expires_after=expiry))
    assert (named.filename, unnamed.filename, named.bytes) == ("rows.jsonl", "upload", len(_DATA))
    assert unnamed.expires_at - unnamed.created_at == 3600
    assert named._request_id.startswith("req-")
    assert (await got(files.wait_for_processing(named.id))).status == "processed"
    assert (await got(files.retrieve(named.id))).model_dump() == named.model_dump()
    answer = await got(files.content(named.id))
    assert answer.content == _DATA
    listed = [file.id for file in await rows(files.list(limit=5, purpose="fine-tune"))]
    assert len(set(listed)) == len(listed)
    assert listed.index(unnamed.id) < listed.index(named.id)
    upwards = [file.id for file in await rows(files.list(order="asc", limit=2, after=named.id))]
    assert unnamed.id in upwards
    assert named.id not in upwards
    assert (await got(files.delete(named.id))).deleted
    await refused(lambda: files.retrieve(named.id), openai.NotFoundError, "file_not_found", "id")
    await got(files.delete(unnamed.id))


async def bad_files(world: World) -> None:
    files = world.client.files
    bad = openai.BadRequestError
    error = await refused(
        lambda: files.create(file=b"{}\nno json\n", purpose="fine-tune"), bad, "invalid_file", "file"
    )
    assert "Line" in error.message
    await refused(lambda: files.create(file=_DATA, purpose="batch"), bad, "invalid_value", "purpose")
    await refused(lambda: files.list(after="file-x"), bad, "invalid_value", "after")


async def uploads(world: World) -> None:
    uploads = world.client.uploads
    upload = await got(
        uploads.create(bytes=len(_DATA), filename="rows.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    )
    assert (upload.status, upload.bytes, upload.file) == ("pending", len(_DATA), None)
    second = await got(uploads.parts.create(upload.id, data=_DATA[100:]))
    first = await got(uploads.parts.create(upload.id, data=_DATA[:100]))
    assert (first.upload_id, first.object) == (upload.id, "upload.part")
    there = await got(world.client.get(f"/uploads/{upload.id}", cast_to=object))
    assert [part["id"] for part in there["parts"]] == [second.id, first.id]
    await refused(
        lambda: uploads.complete(upload.id, part_ids=[first.id, "part_x"]),
        openai.BadRequestError, "invalid_value", "part_ids",
    )  # fmt: skip
    md5 = hashlib.md5(_DATA, usedforsecurity=False).hexdigest()
    done = await got(uploads.complete(upload.id, part_ids=[first.id, second.id], md5=md5))
    assert (done.status, done.file.bytes, done.file.status) == ("completed", len(_DATA), "processed")
    again = await got(uploads.complete(upload.id, part_ids=[first.id, second.id], md5=md5))
    assert again.file.id == done.file.id
    answer = await got(world.client.files.content(done.file.id))
    assert answer.content == _DATA
    await refused(lambda: uploads.cancel(upload.id), openai.BadRequestError, "upload_not_pending", None)


async def uploads_in_chunks(world: World) -> None:
    uploads = world.client.uploads
    about = {"mime_type": "text/jsonl", "purpose": "fine-tune", "part_size": 100}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(_DATA)
        from_disk = await got(uploads.upload_file_chunked(file=path, **about))
    from_memory = await got(
        uploads.upload_file_chunked(file=_DATA, filename="rows.jsonl", bytes=len(_DATA), **about)
    )
    for upload in (from_disk, from_memory):
        assert (upload.file.filename, upload.file.bytes) == ("rows.jsonl", len(_DATA))


async def cancelled_uploads(world: World) -> None:
    uploads = world.client.uploads
    upload = await got(
        uploads.create(bytes=9, filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    )
    assert (await got(uploads.cancel(upload.id))).status == "cancelled"
    await refused(
        lambda: uploads.parts.create(upload.id, data=b"x"), openai.BadRequestError, "upload_not_pending", None
    )


async def jobs(world: World) -> None:
    jobs = world.client.fine_tuning.jobs
    file = await got(world.client.files.create(file=_DATA, purpose="fine-tune"))
    created = await got(
        jobs.create(
            model="tiny",
            training_file=file.id,
            validation_file=file.id,
            suffix="faq",
            seed=7,
            metadata={"run": file.id},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
            extra_body={"qlora": {"r": 4}},
        )
    )
    older_form = await got(
        jobs.create(model="tiny", training_file=file.id, hyperparameters={"n_epochs": "auto"})
    )
    assert (created.status, created.seed, created.hyperparameters.n_epochs) == ("queued", 7, 2)
    assert (created.method.type, created.metadata) == ("supervised", {"run": file.id})
    assert (await got(jobs.retrieve(created.id))).id == created.id
    listed = [job.id for job in await rows(jobs.list(limit=4))]
    assert listed.index(older_form.id) < listed.index(created.id)
    assert len(set(listed)) == len(listed)
    assert [job.id for job in await rows(jobs.list(metadata={"run": file.id}))] == [created.id]
    # The package's own type has no word for a paused job, though its description shows one.
    assert (await got(world.lenient.fine_tuning.jobs.pause(created.id))).status == "paused"
    assert (await got(jobs.resume(created.id))).status == "queued"
    assert (await got(jobs.cancel(created.id))).status == "cancelled"
    events = await rows(jobs.list_events(created.id, limit=2))
    assert events[-1].message == f"Created fine-tuning job: {created.id}"
    assert events[0].message == "The job was cancelled"
    await got(jobs.cancel(older_form.id))
    bad = openai.BadRequestError
    assert (await got(jobs.cancel(created.id))).status == "cancelled"
    await refused(lambda: jobs.pause(created.id), bad, "job_already_terminal", None)


async def bad_jobs(world: World) -> None:
    jobs, bad = world.client.fine_tuning.jobs, openai.BadRequestError
    await refused(
        lambda: jobs.create(model="tiny", training_file="file-x"),
        bad, "invalid_training_file", "training_file",
    )  # fmt: skip
    epochs = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}
    await refused(
        lambda: jobs.create(model="tiny", training_file="file-x", method=epochs),
        bad, "invalid_value", "method.supervised.hyperparameters.n_epochs",
    )  # fmt: skip
    await refused(
        lambda: jobs.create(model="tiny", training_file="file-x", extra_body={"qlora": {"rank": 4}}),
        bad, "unknown_parameter", "qlora.rank",
    )  # fmt: skip
    missing = openai.NotFoundError
    await refused(lambda: jobs.retrieve("ftjob-x"), missing, "fine_tune_not_found", "fine_tune_id")
    await refused(lambda: jobs.cancel("ftjob-x"), missing, "fine_tune_not_found", "fine_tune_id")
    await refused(lambda: jobs.list_events("ftjob-x"), missing, "fine_tune_not_found", "fine_tune_id")


async def a_finished_job(world: World) -> None:
    jobs = world.client.fine_tuning.jobs
    done = await got(jobs.retrieve(world.tuned))
    assert (done.status, done.error, done.trained_tokens) == ("succeeded", None, 12)
    events = await rows(jobs.list_events(done.id, limit=3))
    assert events[0].message == "The job has successfully completed"
    measured = [event for event in events if event.type == "metrics"]
    assert [event.data["step"] for event in measured] == [4, 3, 2, 1]
    checkpoint = (await rows(jobs.checkpoints.list(done.id, limit=1)))[0]
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (2, 2.0)
    answer = await got(world.client.files.content(done.result_files[0]))
    assert answer.content.startswith(b"step,train_loss")


async def models(world: World) -> None:
    models = world.client.models
    done = await got(world.client.fine_tuning.jobs.retrieve(world.tuned))
    checkpoint = (await rows(world.client.fine_tuning.jobs.checkpoints.list(done.id)))[0]
    names = {"tiny", world.base, done.fine_tuned_model, checkpoint.fine_tuned_model_checkpoint}
    assert names <= {model.id for model in await rows(models.list())}
    for name in names:
        assert (await got(models.retrieve(name))).id == name
    deleted = await got(models.delete(world.expendable))
    assert (deleted.id, deleted.deleted) == (world.expendable, True)
    missing = openai.NotFoundError
    await refused(lambda: models.retrieve(world.expendable), missing, "model_not_found", "model")
    denied = openai.PermissionDeniedError
    await refused(lambda: models.delete(world.base), denied, "insufficient_permissions", "model")


async def checkpoint_permissions(world: World) -> None:
    checkpoint = (await rows(world.client.fine_tuning.jobs.checkpoints.list(world.tuned)))[0]
    name = checkpoint.fine_tuned_model_checkpoint
    permissions = world.client.fine_tuning.checkpoints.permissions
    given = await rows(permissions.create(name, project_ids=["proj-poor"]))
    assert [permission.project_id for permission in given] == ["proj-poor"]
    # Releases before 2 call the list otherwise.
    found = await got(getattr(permissions, "list", permissions.retrieve)(name, limit=1))
    assert [permission.id for permission in found.data] == [given[0].id]
    assert (await got(world.poor.models.retrieve(name))).id == name
    gone = await got(permissions.delete(given[0].id, fine_tuned_model_checkpoint=name))
    assert gone.deleted
    await refused(lambda: world.poor.models.retrieve(name), openai.NotFoundError, "model_not_found", "model")


async def errors(world: World) -> None:
    client = world.client
    await refused(
        client.with_options(api_key="lk_wrong").models.list,
        openai.AuthenticationError, "invalid_api_key", None,
    )  # fmt: skip
    await refused(lambda: client.get("/nothing", cast_to=object), openai.NotFoundError, "not_found", None)
    error = await refused(
        lambda: client.put("/models", cast_to=object), openai.APIStatusError, "method_not_allowed", None
    )
    assert error.status_code == 405
    file = await got(world.poor.files.create(file=_DATA, purpose="fine-tune"))
    await refused(
        lambda: world.poor.fine_tuning.jobs.create(model="tiny", training_file=file.id),
        openai.RateLimitError, "quota_exceeded", None,
    )  # fmt: skip


CASES = (
    files, bad_files, uploads, uploads_in_chunks, cancelled_uploads, jobs, bad_jobs, a_finished_job, models,
    checkpoint_permissions, errors,
)  # fmt: skip


async def run(kind: str, there: dict[str, Any]) -> None:
    """All cases with one kind of client."""
    make: Any = openai.OpenAI if kind == "sync" else openai.AsyncOpenAI
    strict = make(
        base_url=there["url"], api_key=there["key"], max_retries=0, _strict_response_validation=True
    )
    lenient = make(base_url=there["url"], api_key=there["key"], max_retries=0)
    poor = strict.with_options(api_key=there["poor_key"])
    world = World(strict, lenient, poor, there["base"], there["tuned"], there["expendable"].pop())
    for case in CASES:
        wrong = None
        try:
            await case(world)
        except Exception:  # noqa: BLE001, it is told
            wrong = traceback.format_exc()
        print(json.dumps({"client": kind, "case": case.__name__, "wrong": wrong}), flush=True)
    await got(strict.close())
    await got(lenient.close())


def main(there: dict[str, Any]) -> None:
    print(json.dumps({"version": openai.__version__}), flush=True)
    for kind in ("sync", "async"):
        asyncio.run(run(kind, there))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
