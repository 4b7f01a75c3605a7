"""Which files a job uses, which rows it shares with others, and which model it starts from."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.orm import Session

from luthier import repository
from luthier.database import Database
from luthier.errors import LuthierError
from luthier.service import control, files, lineage, prepared
from luthier.spec import DatasetEntry, EntryColumns, EntryTags
from luthier.status import State
from luthier.tables import File, PreparedRows
from tests.factories import NOW, create_file, create_job, create_tuned_job, make_request

_ENTRY = DatasetEntry(formatting="alpaca", columns=EntryColumns(prompt="q", response="a"), tags=EntryTags())
_MODEL = "ft:tiny:org-local::1"


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.transaction() as session:
        yield session


def _two_files(**second: Any) -> dict[str, Any]:
    return {"dataset": {"files": [{"id": "file-train", "weight": 2.0}, {"id": "file-2"} | second]}}


def test_all_files_of_a_job_are_listed_with_weight_and_entry(session: Session) -> None:
    create_file(session)
    files.register(session, create_file(session, "file-2"), name="qa", entry=_ENTRY)
    job = create_job(session, **_two_files(weight=0.5))
    listed = repository.files_of_job(session, job.id)
    assert [(use.file_id, use.role, use.position, use.weight) for use in listed] == [
        ("file-train", "training", 0, 2.0),
        ("file-2", "training", 1, 0.5),
    ]
    assert listed[1].entry is not None
    assert DatasetEntry.model_validate(listed[1].entry) == _ENTRY


@pytest.mark.parametrize("fields", [{}, {"purpose": "fine-tune-results"}, {"report": None}])
def test_a_further_file_that_cannot_be_used_is_named(session: Session, fields: dict[str, Any]) -> None:
    create_file(session)
    if fields:
        file = create_file(session, "file-2", **fields)
        file.status, file.status_details = "error", "Line 7: no"
    with pytest.raises(LuthierError) as caught:
        create_job(session, **_two_files())
    assert (caught.value.code, caught.value.param) == ("invalid_training_file", "dataset.files[1].id")


def test_a_job_waits_for_all_of_its_files(session: Session) -> None:
    create_file(session)
    second = create_file(session, "file-2", report=None)
    job = create_job(session, **_two_files())
    assert job.state == State.VALIDATING
    files.record_validation(session, second, report={}, message=None, new_work_id=lambda: "work-x", now=NOW)
    assert job.state == State.QUEUED


def test_a_further_file_found_invalid_fails_the_job(session: Session) -> None:
    create_file(session)
    second = create_file(session, "file-2", report=None)
    job = create_job(session, **_two_files())
    files.record_validation(
        session, second, report={}, message="Line 7: no", new_work_id=lambda: "work-x", now=NOW
    )
    assert (job.state, job.error_code, job.error_param) == (
        State.FAILED,
        "invalid_training_file",
        "dataset.files",
    )


def test_a_further_file_of_a_live_job_is_not_deleted(session: Session) -> None:
    create_file(session)
    second = create_file(session, "file-2")
    job = create_job(session, **_two_files())
    with pytest.raises(LuthierError, match="used by job ftjob-1"):
        files.delete_file(session, second, now=NOW)
    control.request_cancel(session, job, now=NOW)
    assert files.delete_file(session, second, now=NOW) == ["files/file-2"]


def test_a_name_belongs_to_one_file_of_a_project(session: Session) -> None:
    first, second = create_file(session), create_file(session, "file-2")
    files.register(session, first, name="qa", entry=_ENTRY)
    with pytest.raises(LuthierError, match="belongs to file-train"):
        files.register(session, second, name="qa", entry=_ENTRY)
    files.unregister(session, first)
    files.register(session, second, name="qa", entry=_ENTRY)
    assert repository.find_dataset(session, "proj-default", "qa") is second


def _record(session: Session, file: File, key: str = "key") -> bool:
    return prepared.record_rows(
        session,
        file.project_id,
        key=key,
        file_sha256=file.sha256,
        storage_key=f"prepared/{key}",
        facts={"split": {}, "stats": {}},
        size_bytes=1,
        now=NOW,
    )


def test_prepared_rows_go_with_the_last_file_of_their_content(session: Session) -> None:
    first, twin = create_file(session), create_file(session, "file-2")
    assert _record(session, first)
    assert files.delete_file(session, first, now=NOW) == ["files/file-train"]
    assert files.delete_file(session, twin, now=NOW) == ["files/file-2", "prepared/key"]
    assert session.query(PreparedRows).count() == 0


def test_the_same_rows_are_recorded_once(session: Session) -> None:
    file = create_file(session)
    assert _record(session, file)
    assert _record(session, file)
    assert session.query(PreparedRows).count() == 1


def test_rows_of_a_content_that_is_gone_are_not_recorded(session: Session) -> None:
    file = create_file(session)
    files.delete_file(session, file, now=NOW)
    session.flush()
    assert not _record(session, file)


def test_tuning_again_takes_over_the_shape_of_the_adapter(session: Session) -> None:
    parent = create_tuned_job(session, qlora={"r": 8, "target_modules": ["q_proj"], "use_rslora": True})
    job = create_job(session, "ftjob-2", model=parent.fine_tuned_model, qlora={"learning_rate": 1e-5})
    assert (job.parent_job_id, job.model, job.request["model"]) == (parent.id, "tiny", _MODEL)
    assert job.is_tuned_again
    qlora = job.request["qlora"]
    assert (
        qlora["r"],
        qlora["alpha"],
        qlora["target_modules"],
        qlora["use_rslora"],
        qlora["learning_rate"],
    ) == (
        8,
        16.0,
        ["q_proj"],
        True,
        1e-5,
    )


def test_tuning_again_keeps_method_and_quantisation_unless_told_otherwise(session: Session) -> None:
    parent = create_tuned_job(session, qlora={"method": "lora"})
    taken = lineage.inherit(make_request(model=_MODEL), parent).qlora
    told = lineage.inherit(make_request(model=_MODEL, qlora={"method": "qlora"}), parent).qlora
    assert (taken.method, told.method) == ("lora", "qlora")


@pytest.mark.parametrize(
    ("qlora", "param"),
    [
        ({"r": 16}, "qlora.r"),
        ({"alpha": 64}, "qlora.alpha"),
        ({"target_modules": ["v_proj"]}, "qlora.target_modules"),
        ({"use_dora": True}, "qlora.use_dora"),
        ({"method": "full"}, "qlora.method"),
        ({"method": "lora", "init_lora_weights": "pissa"}, "qlora.init_lora_weights"),
    ],
)
def test_tuning_again_refuses_what_the_adapter_cannot_be(
    session: Session, qlora: dict[str, Any], param: str
) -> None:
    create_tuned_job(session, qlora={"r": 8})
    with pytest.raises(LuthierError) as caught:
        create_job(session, "ftjob-2", model=_MODEL, qlora=qlora)
    assert (caught.value.code, caught.value.param) == ("invalid_value", param)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_tuning_a_pissa_adapter_again_keeps_its_scale(session: Session, use_rslora: bool) -> None:
    pissa = {"method": "lora", "init_lora_weights": "pissa", "r": 4, "alpha": 8, "use_rslora": use_rslora}
    create_tuned_job(session, qlora=pissa)
    asked = create_job(session, "ftjob-2", model=_MODEL).request["qlora"]
    # The scale is alpha / r, and with rsLoRA alpha / sqrt(r).
    power = 0.5 if use_rslora else 1
    assert asked["r"] == 8
    assert asked["alpha"] / asked["r"] ** power == pytest.approx(8 / 4**power)


def test_tuning_again_with_the_same_values_is_no_contradiction(session: Session) -> None:
    create_tuned_job(session, qlora={"r": 8, "target_modules": ["q_proj", "v_proj"]})
    job = create_job(
        session,
        "ftjob-2",
        model=_MODEL,
        qlora={"r": 8, "alpha": 16, "target_modules": ["v_proj", "q_proj"]},
    )
    assert job.state == State.QUEUED


def test_a_tuned_model_that_is_not_there_is_refused(session: Session) -> None:
    create_file(session)
    with pytest.raises(LuthierError, match="no tuned model") as caught:
        create_job(session, model=_MODEL)
    assert caught.value.param == "model"


def test_a_model_of_whole_weights_is_not_tuned_again(session: Session) -> None:
    create_tuned_job(session, qlora={"method": "full"})
    with pytest.raises(LuthierError, match="method 'full'"):
        create_job(session, "ftjob-2", model=_MODEL)
