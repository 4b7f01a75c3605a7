"""`/v1/files/{id}/...`: what is in a training file, how a model sees it, and other forms of it.

What takes more than a moment is an errand of the cpu queue, which a call waits for and finds again: see
`luthier.service.errands` and `api.waiting`.
"""

from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from sqlalchemy.orm import Session

from api import model_checks, waiting
from api.dependencies import CallerOf, InstallationOf, body_of
from api.file_checks import check_file
from api.openapi import json_body
from api.schemas.file_requests import (
    MAX_PREVIEW_TOKENS,
    ConvertRequest,
    PreviewRequest,
    RegisterRequest,
    ReportRequest,
    ViewRequest,
)
from api.schemas.files import FileObject, file_object
from api.schemas.looks import PreviewObject, RegistrationObject, ValidationObject, validation_object
from api.stored_heads import head_of
from luthier import repository
from luthier.database import clock
from luthier.datasets.containers import is_plain_text
from luthier.datasets.entries import resolve_entry
from luthier.datasets.examples import DatasetError
from luthier.datasets.reading import PLAIN, Reading, read_examples
from luthier.errors import LuthierError, invalid, printable
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.models import BaseModel
from luthier.service import errands, files, jobs
from luthier.service.errands import ConvertErrand, ErrandFile, PreviewErrand, ReportErrand
from luthier.service.jobs import Caller
from luthier.spec import Columns, DatasetEntry, DatasetRequest, SourceFile
from luthier.tables import File

router = APIRouter(prefix="/v1/files/{file_id}", tags=["files"])

# No row is longer than 16 MiB; the first may come behind a header.
_FIRST_ROW_BYTES = 17 << 20


@router.get("/validation", operation_id="get_file_validation")
def get_validation(file_id: str, installation: InstallationOf, caller: CallerOf) -> ValidationObject:
    """What was found when the file was checked: errors by line, warnings, statistics.

    A file that is still being checked answers 503 with `not_done_yet`.
    """
    with installation.database.reading() as session:
        file = repository.get_file(session, caller.project_id, file_id)
    if file.status == "uploaded":
        raise waiting.not_done_yet()
    if file.report is None:
        raise _unreadable(file, f"its purpose is {file.purpose!r}, and it was not checked")
    return validation_object(file, file.report or {})


@router.post("/validation", operation_id="validate_file", openapi_extra=json_body(ReportRequest))
def validate_for_model(
    file_id: str,
    body: Annotated[ReportRequest, Depends(body_of(ReportRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> ValidationObject:
    """The same report, and `tokens`: what the rows are for a model.

    Lengths, the share cut, answers lost; with `against`, also which rows a validation file has too. Waits
    some seconds, then answers 503 with `not_done_yet`: the work goes on, and the same call finds it.
    """
    model, length = _view(installation, caller, body)
    with installation.database.transaction() as session:
        file = _readable_file(session, caller, file_id, body.dataset)
        errand = ReportErrand(
            file=_errand_file(file, body),
            against=_errand_file(_held_out_file(session, caller, body), body) if body.against else None,
            model=model.id,
            dataset=body.dataset,
            max_seq_length=length,
        )
        work_id = _ask(session, file, model, errand)
    return validation_object(file, waiting.result_of(installation, work_id)["report"])


@router.post(
    "/preview",
    operation_id="preview_file",
    openapi_extra=json_body(PreviewRequest),
)
def preview_file(
    file_id: str,
    body: Annotated[PreviewRequest, Depends(body_of(PreviewRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> PreviewObject:
    """Some rows as the model would see them: rendered text, tokens, and which of them are trained on.

    Waits some seconds, then answers 503 with `not_done_yet`: the same call finds the answer later.
    """
    model, length = _view(installation, caller, body)
    with installation.database.transaction() as session:
        file = _readable_file(session, caller, file_id, body.dataset)
        _check_window(file, body, length)
        errand = PreviewErrand(
            file=_errand_file(file, body),
            model=model.id,
            dataset=body.dataset,
            max_seq_length=length,
            offset=body.offset,
            count=body.rows,
        )
        work_id = _ask(session, file, model, errand)
    rows = waiting.result_of(installation, work_id)["rows"]
    return PreviewObject(
        file_id=file.id, model=body.model, offset=body.offset, max_seq_length=length, data=rows
    )


@router.post("/prepare", operation_id="prepare_file", openapi_extra=json_body(ConvertRequest))
def prepare_file(
    file_id: str,
    body: Annotated[ConvertRequest, Depends(body_of(ConvertRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> FileObject:
    """Make a new training file of instruction, input and output, from a file with other columns.

    The new file is answered when it is checked or, after some seconds, while it is still `uploaded`: then it
    becomes `processed` or `error`. The same call answers the same file for an hour.
    """
    with installation.database.transaction() as session:
        source = repository.get_file(session, caller.project_id, file_id)
        _require_rows(source)
        errand = ConvertErrand(file=_file_read_with(source, body.columns))
        _check_first_row(installation, source, errand.file)
        name = printable(body.filename or f"{PurePath(source.filename).stem}.prepared.jsonl", 200)
        made = files.convert(
            session,
            caller,
            source,
            errand,
            key=errands.key_of("convert", source.id, errand.model_dump(mode="json"), name),
            filename=name,
            file_id=new_id("file"),
            work_id=new_id("work"),
            now=clock(session),
        )
    return file_object(waiting.converted_file(installation, made.id) or made)


@router.post("/register", operation_id="register_file", openapi_extra=json_body(RegisterRequest))
def register_file(
    file_id: str,
    body: Annotated[RegisterRequest, Depends(body_of(RegisterRequest))],
    installation: InstallationOf,
    caller: CallerOf,
) -> RegistrationObject:
    """Name a file, and have its rows read as an entry of LLaMA-Factory's dataset_info.json says.

    The file is checked again by the entry: a small one at once, and refused where it does not fit. Jobs that
    are submitted from now on read it so; `warnings` tell what is odd about the entry. With `replace` the name
    passes from another file to this one, or nothing changes.
    """
    try:
        entry, issues = resolve_entry(body.entry, body.name)
    except DatasetError as error:
        raise invalid(str(error), "entry") from error
    report, message = _check_again(installation, caller, file_id, Reading(entry=entry))
    former = _find_other(installation, caller, file_id, body.name) if body.replace else None
    found = _check_again(installation, caller, former, PLAIN) if former else (None, None)
    with installation.database.transaction() as session:
        file = repository.get_file(session, caller.project_id, file_id)
        other = repository.find_dataset(session, caller.project_id, body.name)
        if other is not None and other.id == former:
            _unregister(session, other, *found)
        files.register(session, file, name=body.name, entry=entry)
        _set_report(session, file, report, message)
    warnings = [issue.message for issue in issues]
    return RegistrationObject(file_id=file.id, name=body.name, entry=entry, warnings=warnings)


@router.delete("/register", operation_id="unregister_file")
def unregister_file(file_id: str, installation: InstallationOf, caller: CallerOf) -> FileObject:
    """Take a file's name and entry away; it is checked again by what its rows say themselves.

    Where they make no sense without the entry, its status becomes `error`.
    """
    with installation.database.reading() as session:
        file = repository.get_file(session, caller.project_id, file_id)
    if file.dataset_name is None:
        return file_object(file)
    report, message = _check_again(installation, caller, file_id, PLAIN)
    with installation.database.transaction() as session:
        file = repository.get_file(session, caller.project_id, file_id)
        _unregister(session, file, report, message)
    return file_object(file)


def _find_other(installation: Installation, caller: Caller, file_id: str, name: str) -> str | None:
    """The id of another file that has the name."""
    with installation.database.reading() as session:
        file = repository.find_dataset(session, caller.project_id, name)
    return None if file is None or file.id == file_id else file.id


def _unregister(session: Session, file: File, report: dict[str, Any] | None, message: str | None) -> None:
    """Take a file's name away; it stands as what was found in it without its entry."""
    files.unregister(session, file)
    _set_report(session, file, report, message)


def _view(installation: Installation, caller: Caller, body: ViewRequest) -> tuple[BaseModel, int]:
    """The model that a look is for, and how long its rows may be."""
    with installation.database.reading() as session:
        base = model_checks.base_of(session, caller, body.model)
    model = model_checks.require_here(installation.settings, base)
    return model, model_checks.length_of_look(model, body.max_seq_length)


def _ask(session: Session, file: File, model: BaseModel, look: PreviewErrand | ReportErrand) -> str:
    """The id of the work that answers a look at one file."""
    read_with = {"columns": look.file.columns, "entry": look.file.entry, "sha256": file.sha256}
    source = SourceFile.model_validate({"path": "", "filename": "", "param": "file"} | read_with)
    rows_key = model_checks.rows_key(model, source, look.dataset, look.max_seq_length)
    key = errands.key_of(rows_key, look.model_dump(mode="json"))
    return errands.ask(session, look, key=key, subject=file, work_id=new_id("work"), now=clock(session)).id


def _errand_file(file: File, body: ViewRequest) -> ErrandFile:
    return _file_read_with(file, body.dataset.columns)


def _file_read_with(file: File, columns: Columns | None) -> ErrandFile:
    """A file read by columns or, without them, by the entry that it is registered with."""
    fields: dict[str, Any] = {"file_id": file.id, "columns": columns}
    if columns is None and file.dataset_entry is not None:
        fields["entry"] = DatasetEntry.model_validate(file.dataset_entry)
    return ErrandFile(**fields)


def _readable_file(session: Session, caller: Caller, file_id: str, rules: DatasetRequest) -> File:
    """A training file that can be read by some rules.

    Raises:
        LuthierError: `invalid_file`, where it is still being checked or was found wanting.
    """
    file = repository.get_file(session, caller.project_id, file_id)
    _require_rows(file)
    if not jobs.is_usable(rules, file):
        raise _unreadable(file, file.status_details or "it has mistakes")
    return file


def _held_out_file(session: Session, caller: Caller, body: ReportRequest) -> File:
    """The file that another one is held against.

    Raises:
        LuthierError: there is none, or it cannot be read; `param` is `against`.
    """
    try:
        return _readable_file(session, caller, body.against or "", body.dataset)
    except LuthierError as error:
        raise LuthierError(error.message, error.code, "against") from error


def _require_rows(file: File) -> None:
    """Refuse a result, a file that is still being checked, and one whose mistakes no rules mend."""
    _require_bytes(file)
    if file.status == "uploaded":
        raise _unreadable(file, "it is still being checked; ask again when its status is 'processed'")
    if file.status == "error" and not (jobs.needs_mapping(file) or jobs.has_good_rows(file.report or {})):
        raise _unreadable(file, file.status_details or "it has mistakes")


def _require_bytes(file: File) -> None:
    """Refuse a result, and a file that a conversion is still writing."""
    if file.purpose != "fine-tune":
        raise _unreadable(file, f"it has purpose {file.purpose!r}, and only those for 'fine-tune' have rows")
    if not file.sha256:
        raise _unreadable(file, "it is still being made; ask again when its status is 'processed'")


def _unreadable(file: File, why: str) -> LuthierError:
    return LuthierError(f"File {file.id} cannot be used: {why}", "invalid_file", "file_id")


def _check_again(
    installation: Installation, caller: Caller, file_id: str, reading: Reading
) -> tuple[dict[str, Any] | None, str | None]:
    """What is in a file by other rules, as `check_file` tells it; without rules it may make no sense.

    Raises:
        LuthierError: `invalid_file`, where it does not fit the rules.
    """
    with installation.database.reading() as session:
        file = repository.get_file(session, caller.project_id, file_id)
    _require_bytes(file)
    most = installation.settings.whole_check_bytes
    # One byte more shows that there is more, which is then not judged here.
    with head_of(installation.storage, file.storage_key, most + 1) as path:
        return check_file(path, file.filename, most, reading, keeps_all=reading.is_plain)


def _set_report(session: Session, file: File, report: dict[str, Any] | None, message: str | None) -> None:
    now = clock(session)
    files.set_report(
        session, file, report=report, message=message, new_work_id=lambda: new_id("work"), now=now
    )


def _check_first_row(installation: Installation, source: File, read_with: ErrandFile) -> None:
    """Tell at once that columns are not there; of what is not plain text the child will tell.

    Raises:
        LuthierError: `invalid_value`, in the words of the first row.
    """
    report = source.report or {}
    if not is_plain_text(report.get("container"), report.get("compression")):
        return
    reading = Reading(columns=read_with.columns, entry=read_with.entry, max_rows=1)
    try:
        with head_of(installation.storage, source.storage_key, _FIRST_ROW_BYTES) as path:
            next(read_examples(path, reading), None)
    except DatasetError as error:
        raise invalid(str(error), "columns") from error


def _check_window(file: File, body: PreviewRequest, length: int) -> None:
    """Refuse to look behind the last row, and at more than an answer holds."""
    row_count = (file.report or {}).get("row_count", 0)
    if body.offset >= max(row_count, 1):
        text = f"Invalid value for 'offset': {body.offset}. The file has {row_count} rows; ask for less."
        raise invalid(text, "offset")
    if body.rows * length > MAX_PREVIEW_TOKENS and body.rows > 1:
        most = max(1, MAX_PREVIEW_TOKENS // length)
        text = f"Invalid value for 'rows': {body.rows}. At {length} tokens a row, ask for at most {most}."
        raise invalid(text, "rows")
