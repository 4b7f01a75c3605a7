"""Prepared data is shared: made once, checked before it is used, made again where it is damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from luthier import repository
from luthier.artifacts import verify
from luthier.installation import Installation
from luthier.service import files
from luthier.spec import DatasetEntry, EntryColumns, EntryTags, PreparedData
from luthier.status import Queue, State
from luthier.tables import File, Job, JobEvent, PreparedRows
from tests.factories import create_file, create_job
from worker.agent import Agent

MakeAgent = Callable[..., Agent]
JobOf = Callable[[str], Job]


def _rows(installation: Installation) -> list[PreparedRows]:
    with installation.database.reading() as session:
        return list(session.scalars(select(PreparedRows).order_by(PreparedRows.key)).all())


def _submit(installation: Installation, job_id: str, **fields: Any) -> str:
    with installation.database.transaction() as session:
        return create_job(session, job_id, **{"model": "tiny", **fields}).id


def _add_file(installation: Installation, file_id: str, **fields: Any) -> None:
    path = installation.storage.path(f"files/{file_id}")
    path.write_bytes(b'{"messages": []}\n')
    with installation.database.transaction() as session:
        create_file(session, file_id, sha256=file_id.ljust(64, "0"), **fields)


def _train_path(job: Job) -> str:
    return PreparedData.model_validate(job.prepared).train[0].path


def test_prepared_rows_are_put_into_the_cache(
    installation: Installation, prepared_job: str, job_of: JobOf
) -> None:
    (rows,) = _rows(installation)
    assert _train_path(job_of(prepared_job)) == f"{rows.storage_key}/rows.parquet"
    verify(installation.storage.path(rows.storage_key))


def test_a_second_job_on_the_same_data_is_prepared_without_a_child(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    second = _submit(installation, "ftjob-2")
    make_agent(Queue.CPU, "crash").drain()
    assert job_of(second).prepared == job_of(prepared_job).prepared
    told = _prepared_events(installation)
    assert [event.data["cached"] for event in told] == [[], ["train-000"]]
    assert told[0].data["stats"] == told[1].data["stats"]


def test_other_rules_are_prepared_anew(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    second = _submit(installation, "ftjob-2", dataset={"train_on": "all"})
    make_agent(Queue.CPU, "done").drain()
    assert _train_path(job_of(second)) != _train_path(job_of(prepared_job))


def test_weight_and_split_share_the_rows(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    dataset = {"files": [{"id": "file-train", "weight": 0.5}], "validation_split": 0.1}
    second = _submit(installation, "ftjob-2", dataset=dataset)
    make_agent(Queue.CPU, "crash").drain()
    split = PreparedData.model_validate(job_of(second).prepared).train[0]
    assert (split.path, split.weight) == (_train_path(job_of(prepared_job)), 0.5)


def test_damaged_rows_are_prepared_anew(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    installation.storage.path(_train_path(job_of(prepared_job))).write_bytes(b"other")
    second = _submit(installation, "ftjob-2")
    make_agent(Queue.CPU, "done").drain()
    assert job_of(second).prepared_at is not None
    verify(installation.storage.path(_rows(installation)[0].storage_key))


def test_of_several_files_only_the_new_one_is_prepared(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    _add_file(installation, "file-2")
    _add_file(installation, "file-3")
    dataset = {"files": [{"id": "file-2", "weight": 2.0}]}
    second = _submit(installation, "ftjob-2", dataset=dataset, validation_file="file-3")
    make_agent(Queue.CPU, "done").drain()
    data = PreparedData.model_validate(job_of(second).prepared)
    assert data.train[0].path == _train_path(job_of(prepared_job))
    assert [split.weight for split in data.train] == [1.0, 2.0]
    assert data.validation is not None
    assert len(_rows(installation)) == 3
    make_agent(Queue.TRAIN, "done").drain()
    assert job_of(second).state == State.SUCCEEDED


def test_rows_of_both_files_are_told_by_every_job_that_has_both(
    installation: Installation, make_agent: MakeAgent, prepared_job: str
) -> None:
    _add_file(installation, "file-2")
    told = [_submit(installation, f"ftjob-{number}", validation_file="file-2") for number in (2, 3)]
    make_agent(Queue.CPU, "done").drain()
    silent = _submit(installation, "ftjob-4")
    make_agent(Queue.CPU, "done").drain()
    leak = "2 rows are in both"
    assert [_warnings(installation, job_id).count(leak) for job_id in (*told, silent)] == [1, 1, 0]


def test_a_job_is_told_what_was_odd_about_its_own_files_once(
    installation: Installation, make_agent: MakeAgent
) -> None:
    _add_file(installation, "file-2", filename="more-rows.jsonl")
    _add_file(installation, "file-3", filename="held-out.jsonl")
    _submit(installation, "ftjob-1", dataset={"files": [{"id": "file-2"}]}, validation_file="file-3")
    make_agent(Queue.CPU, "done").drain()
    _submit(installation, "ftjob-2")
    make_agent(Queue.CPU, "crash").drain()
    about = {name: f"2 of 64 rows of {name}.jsonl were cut" for name in ("rows", "more-rows", "held-out")}
    of_all = "The template is another one"
    leak = "2 rows are in both"
    assert sorted(_warnings(installation, "ftjob-1")) == sorted([*about.values(), of_all, leak])
    assert sorted(_warnings(installation, "ftjob-2")) == sorted([about["rows"], of_all])


def _warnings(installation: Installation, job_id: str) -> list[str]:
    with installation.database.reading() as session:
        return [event.message for event in repository.list_warnings(session, job_id)]


def test_a_file_is_read_by_its_entry_unless_the_job_gives_columns(
    installation: Installation, make_agent: MakeAgent
) -> None:
    entry = DatasetEntry(formatting="alpaca", columns=EntryColumns(prompt="q"), tags=EntryTags())
    with installation.database.transaction() as session:
        files.register(session, session.get_one(File, "file-train"), name="qa", entry=entry)
    _submit(installation, "ftjob-1")
    _submit(installation, "ftjob-2", dataset={"columns": {"instruction": "q"}})
    make_agent(Queue.CPU, "done").drain()
    told = [event.data["stats"]["train-000"] for event in _prepared_events(installation)]
    assert [(stats["entry"], stats["columns"]) for stats in told] == [
        (entry.model_dump(mode="json"), None),
        (None, {"instruction": "q"}),
    ]


def _prepared_events(installation: Installation) -> list[JobEvent]:
    query = select(JobEvent).where(JobEvent.kind == "data_prepared").order_by(JobEvent.job_id)
    with installation.database.reading() as session:
        return list(session.scalars(query).all())


def test_the_trainer_is_told_which_files_its_manifest_names(
    installation: Installation, make_agent: MakeAgent, job_of: JobOf
) -> None:
    _add_file(installation, "file-2", filename="more-rows.jsonl")
    dataset = {"files": [{"id": "file-2", "weight": 2.0}], "train_on": "all"}
    job_id = _submit(installation, "ftjob-1", dataset=dataset)
    make_agent(Queue.CPU, "done").drain()
    make_agent(Queue.TRAIN, "done").drain()
    result = job_of(job_id).result or {}
    told = [(file["param"], file["filename"], file["sha256"], file["weight"]) for file in result["files"]]
    assert told == [
        ("training_file", "rows.jsonl", "0" * 64, 1.0),
        ("dataset.files", "more-rows.jsonl", "file-2".ljust(64, "0"), 2.0),
    ]
    assert (result["rules"]["train_on"], result["rules"]["files"]) == ("all", [])


def test_a_job_on_a_tuned_model_starts_from_its_adapter(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "done").drain()
    parent = job_of(prepared_job)
    second = _submit(installation, "ftjob-2", model=parent.fine_tuned_model)
    make_agent(Queue.CPU, "done").drain()
    make_agent(Queue.TRAIN, "done").drain()
    job = job_of(second)
    assert (job.state, job.parent_job_id) == (State.SUCCEEDED, prepared_job)
    with installation.database.reading() as session:
        result = session.get_one(Job, second).result
    assert result is not None
    folder = Path(result["adapter_from"])
    assert json.loads((folder / "adapter_config.json").read_text()) == {}
    assert folder.is_relative_to(installation.storage.root)


def test_a_damaged_adapter_fails_the_job_that_starts_from_it(
    installation: Installation, make_agent: MakeAgent, prepared_job: str, job_of: JobOf
) -> None:
    make_agent(Queue.TRAIN, "done").drain()
    with installation.database.reading() as session:
        adapter = repository.get_artifact(session, prepared_job, "adapter/adapter_config.json")
    installation.storage.path(adapter.storage_key).write_text("{ }", encoding="utf-8")
    second = _submit(installation, "ftjob-2", model=job_of(prepared_job).fine_tuned_model)
    make_agent(Queue.CPU, "done").drain()
    make_agent(Queue.TRAIN, "done").drain()
    job = job_of(second)
    assert (job.state, job.error_code, job.error_param) == (State.FAILED, "model_load_failed", "model")
