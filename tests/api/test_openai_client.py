"""The stock `openai` package against a real server, lenient and with every field of every answer checked."""

from pathlib import Path

import openai
import pytest
from openai import OpenAI

from luthier import events
from luthier.installation import Installation
from luthier.service import endings, recording, runs
from luthier.tables import File
from tests.api.conftest import ROWS, jsonl
from tests.factories import NOW, claim, create_prepared_job

_DATA = jsonl(*ROWS)


def test_files_are_created_listed_read_and_deleted(openai_client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(_DATA)
    files = openai_client.files
    with path.open("rb") as file:
        created = files.create(file=file, purpose="fine-tune")
    unnamed = files.create(
        file=_DATA, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert files.wait_for_processing(created.id).status == "processed"
    assert (created.filename, unnamed.filename) == ("rows.jsonl", "upload")
    assert [file.id for file in files.list(limit=1)] == [unnamed.id, created.id]
    assert files.retrieve(created.id) == created
    assert files.content(created.id).content == _DATA
    assert files.delete(created.id).deleted
    with pytest.raises(openai.NotFoundError, match="No such File object"):
        files.retrieve(created.id)


def test_jobs_are_created_listed_read_followed_and_cancelled(openai_client: OpenAI) -> None:
    file = openai_client.files.create(file=_DATA, purpose="fine-tune")
    jobs = openai_client.fine_tuning.jobs
    created = jobs.create(
        model="tiny",
        training_file=file.id,
        suffix="faq",
        metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_body={"qlora": {"r": 4}},
    )
    other = jobs.create(model="tiny", training_file=file.id, hyperparameters={"n_epochs": "auto"})
    assert (created.status, created.hyperparameters.n_epochs, created.metadata) == (
        "queued",
        2,
        {"team": "a"},
    )
    assert jobs.retrieve(created.id).id == created.id
    assert [job.id for job in jobs.list(limit=1)] == [other.id, created.id]
    assert [job.id for job in jobs.list(metadata={"team": "a"})] == [created.id]
    assert jobs.cancel(created.id).status == "cancelled"
    messages = [event.message for event in jobs.list_events(created.id, limit=2)]
    assert messages[0] == "The job was cancelled"
    assert messages[-1] == f"Created fine-tuning job: {created.id}"


def test_events_checkpoints_and_results_of_a_run_are_read(
    openai_client: OpenAI, installation: Installation
) -> None:
    csv = b"step,train_loss\n1,2.5\n"
    with installation.storage.receive() as incoming:
        incoming.write(csv)
        installation.storage.keep(incoming, "files/file-result")
    with installation.database.transaction() as session:
        job = create_prepared_job(session, suffix="faq")
        taken = claim(session)
        assert taken is not None
        step = events.StepLogged(step=1, total_steps=1, epoch=1, train_loss=2.5)
        recording.record_events(session, taken.lease, [events.RunStarted(), step], offset=1, now=NOW)
        runs.record_checkpoint(
            session, taken.lease, step=1, storage_key="k", manifest_sha256="0" * 64, size_bytes=1,
            metrics={"eval_loss": 2.0}, now=NOW,
        )  # fmt: skip
        endings.start_finalizing(session, taken.lease, now=NOW)
        result_file = File(
            id="file-result", project_id=job.project_id, filename="metrics.csv", purpose="fine-tune-results",
            size_bytes=len(csv), sha256=incoming.sha256, storage_key="files/file-result", status="processed",
            created_at=NOW,
        )  # fmt: skip
        endings.succeed_training(
            session, taken.lease, artifacts=[], result={}, result_file=result_file, now=NOW
        )
    jobs = openai_client.fine_tuning.jobs
    done = jobs.retrieve("ftjob-1")
    measured = next(event for event in jobs.list_events("ftjob-1", limit=4) if event.type == "metrics")
    checkpoint = jobs.checkpoints.list("ftjob-1").data[0]
    assert (done.status, done.fine_tuned_model) == ("succeeded", "ft:tiny:org-local:faq:1")
    assert (measured.message, checkpoint.metrics.valid_loss) == ("Step 1/1: training loss=2.50", 2.0)
    assert openai_client.files.content(done.result_files[0]).content == csv
    names = {"tiny", done.fine_tuned_model, checkpoint.fine_tuned_model_checkpoint}
    assert {model.id for model in openai_client.models.list()} == names
    assert openai_client.models.retrieve(done.fine_tuned_model).owned_by == "org-local"


def test_errors_reach_the_exception_with_their_code_and_field(openai_client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.fine_tuning.jobs.create(model="tiny", training_file="file-unknown")
    assert (caught.value.code, caught.value.param) == ("invalid_training_file", "training_file")
    assert "file-unknown" in caught.value.message
    assert caught.value.request_id is not None
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.models.retrieve("Qwen/unknown")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="lk_wrong").models.list()


def test_a_large_upload_without_a_key_hears_why(openai_client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="lk_wrong").files.create(
            file=b"x" * 20_000_000, purpose="fine-tune"
        )
