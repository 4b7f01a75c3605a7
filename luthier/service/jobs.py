"""How jobs come to be: submitted, and queued once their files are checked; and work that serves others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import Table, delete, insert
from sqlalchemy.orm import Session

from luthier import repository
from luthier.audit import Actor, current_actor, log_new
from luthier.datasets.format_strings import is_format_string
from luthier.errors import Failure, LuthierError, invalid
from luthier.inserting import insert_values
from luthier.service import capacity, lineage, project_secrets
from luthier.service.notifications import tell
from luthier.service.queue_order import ERRAND_PRIORITY, queue_key
from luthier.service.transitions import Told, begin, move, note, note_failure, ring
from luthier.spec import DatasetRequest, JobRequest
from luthier.status import LEASED, LIVE, QUEUE_OF_KIND, DesiredState, Kind, Phase, State
from luthier.tables import File, Job, JobFile, JobMetadata
from luthier.webhooks import EventType

_JOB_FILES = cast(Table, JobFile.__table__)
_INSERT_JOB_FILES = insert(_JOB_FILES)
_INSERT_PAIRS = insert(cast(Table, JobMetadata.__table__))
_UNCLAIMED = LIVE - LEASED
_QUEUED = ("job_queued", "Files validated, moving job to queued state")
# What validation calls rows whose keys it does not know, or knows in part.
_UNKNOWN_FORM, _FIELD_MISSING = "schema.unknown", ".field_missing"


@dataclass(frozen=True)
class Caller:
    """Who asks: the project that everything belongs to, and the key that was shown."""

    organization_id: str
    project_id: str
    api_key_id: str


@dataclass(frozen=True)
class Entry:
    """A training job that is about to be inserted.

    Attributes:
        is_checked: its files have been validated, so that it can be queued.
        work_id: id of its preparation.
        notes: how the request was understood, for the job's events.
        absence: what to tell where no worker that could run it is at work.
        actor: to whom it is put down.
    """

    job: Job
    uses: Sequence[JobFile]
    is_checked: bool
    work_id: str
    notes: Sequence[str] = ()
    absence: str | None = None
    actor: Actor | None = field(default_factory=current_actor)


def submit(session: Session, caller: Caller, request: JobRequest, **given: Any) -> Job:
    """Make a training job of a checked request; `given` and errors are those of `plan`."""
    entry = plan(session, caller, request, **given)
    enter(session, [entry], now=entry.job.created_at)
    return entry.job


def plan(
    session: Session,
    caller: Caller,
    request: JobRequest,
    *,
    job_id: str,
    work_id: str,
    seed: int,
    now: datetime,
    notes: Sequence[str] = (),
) -> Entry:
    """What a checked request comes to. Its files stay as they are until the transaction ends.

    Args:
        job_id: id of the new job.
        work_id: id of its preparation.
        seed: drawn by the caller; used where the request names none.
        notes: how the request was understood, for the job's events.
    Raises:
        LuthierError: a file or the secret is unknown, a file not meant for fine-tuning, or was found invalid;
            or no known worker has what the job asks for.
    """
    parent = lineage.find_parent(session, caller.project_id, request.model)
    if parent is not None:
        request = lineage.inherit(request, parent)
    files = files_of(session, caller, request, are_held=True)
    if request.hub_token is not None:
        project_secrets.require(
            session, caller.project_id, request.hub_token.secret, param="hub_token.secret"
        )
    absence = capacity.require_capacity(session, request.resources, now=now)
    job = Job(
        id=job_id,
        project_id=caller.project_id,
        api_key_id=caller.api_key_id,
        kind=Kind.TRAIN,
        queue=QUEUE_OF_KIND[Kind.TRAIN],
        parent_job_id=parent.id if parent else None,
        priority=request.priority,
        queue_key=queue_key(request.priority, now),
        name=request.name,
        gpu_count=request.resources.gpus,
        memory_bytes=capacity.asked_memory_bytes(request.resources),
        labels=",".join(sorted(set(request.resources.labels))),
        request=request.model_dump(mode="json"),
        model=parent.model if parent else request.model,
        training_file=request.training_file,
        validation_file=request.validation_file,
        suffix=request.suffix,
        seed=seed_of(request, seed),
        user_metadata=request.metadata,
        created_at=now,
    )
    return Entry(
        job,
        [used.row(job) for used in files],
        is_checked=all(used.file.status != "uploaded" for used in files),
        notes=notes,
        work_id=work_id,
        absence=absence,
    )


def enter(session: Session, entries: Sequence[Entry], *, now: datetime) -> None:
    """Insert new training jobs, one at least, by as many statements as one takes.

    A job is queued, with its preparation beside it, when its files are validated; else it waits for that.
    """
    new: list[tuple[Job, Told]] = []
    for entry in entries:
        new += _begun(entry)
    ring(session, *(job for job, _ in new if job.kind == Kind.PREPARE), now=now)
    begin(session, new)
    trained = [entry.job for entry in entries]
    log_new(session, [(entry.job, entry.actor) for entry in entries])
    tell(session, *trained, kind=EventType.CREATED, number=1, now=now)
    # Rows, since nobody looks at the objects: these would cost several times as much. A job of an older
    # release that is tried again may have none.
    insert_values(session, _INSERT_JOB_FILES, [_values_of(use) for entry in entries for use in entry.uses])
    insert_values(session, _INSERT_PAIRS, [pair for job in trained for pair in _pairs_of(job)])
    for entry in entries:
        if entry.absence is not None:
            capacity.tell_absence(session, entry.job, entry.absence, now=now)


def _begun(entry: Entry) -> list[tuple[Job, Told]]:
    """A new job, and its preparation where that can begin, each with its first events."""
    job = entry.job
    told = [
        ("job_created", f"Created fine-tuning job: {job.id}"),
        *(("setting_noted", text) for text in entry.notes),
        ("validation_started", f"Validating training file: {job.training_file}"),
    ]
    if not entry.is_checked:
        job.state, job.phase = State.VALIDATING, Phase.VALIDATING_FILES
        return [(job, told)]
    job.state, job.phase, job.queued_at = State.QUEUED, Phase.TOKENIZING, job.created_at
    work = _preparation(job, work_id=entry.work_id, now=job.created_at)
    return [(job, [*told, _QUEUED]), (work, _told_of_work(work))]


def seed_of(request: JobRequest, drawn: int) -> int:
    """The seed that a request names, else the one that was drawn for it."""
    asked = request.seed if request.seed is not None else request.qlora.seed
    return drawn if asked is None else asked


def queue_for_training(session: Session, job: Job, *, work_id: str, now: datetime) -> None:
    """Queue a training job whose files are validated, and its preparation; one that is to pause does so."""
    if not move(session, job, [State.VALIDATING], State.QUEUED, now=now, phase=Phase.TOKENIZING):
        return
    note(session, job, *_QUEUED, now=now)
    add_work(session, _preparation(job, work_id=work_id, now=now))
    if job.desired_state == DesiredState.PAUSE:
        move(session, job, [State.QUEUED], State.PAUSED, now=now)
        note(session, job, "job_paused", "The job is paused", now=now)


def add_work(session: Session, work: Job) -> Job:
    """Queue work that serves others."""
    ring(session, work, now=work.created_at)
    begin(session, [(work, _told_of_work(work))])
    return work


def new_work(
    project_id: str,
    kind: Kind,
    *,
    work_id: str,
    now: datetime,
    job: Job | None = None,
    file: File | None = None,
    model: str | None = None,
    request: dict[str, Any] | None = None,
    work_key: str | None = None,
    priority: int = 0,
) -> Job:
    """Work that serves a job (`prepare`), a file (`validate`), or who waits for it (`errands`)."""
    return Job(
        id=work_id,
        project_id=project_id,
        kind=kind,
        queue=QUEUE_OF_KIND[kind],
        subject_job_id=job.id if job else None,
        subject_file_id=file.id if file else None,
        work_key=work_key,
        model=job.model if job else model,
        state=State.QUEUED,
        priority=priority,
        queue_key=queue_key(priority, now),
        request=job.request if job else (request or {}),
        created_at=now,
        queued_at=now,
        # What a training job names, too, so that one statement inserts both.
        gpu_count=0,
        labels="",
        seed=0,
    )


def _preparation(job: Job, *, work_id: str, now: datetime) -> Job:
    # Urgent jobs are prepared first, yet never before what somebody waits for.
    priority = min(job.priority, ERRAND_PRIORITY - 1)
    return new_work(job.project_id, Kind.PREPARE, work_id=work_id, job=job, priority=priority, now=now)


def _told_of_work(work: Job) -> Told:
    return [("job_created", f"Queued {work.kind} work")]


def annotate(session: Session, job: Job, changes: Mapping[str, Any]) -> None:
    """Give a job another `name` or `metadata`, whatever its state; None takes it away."""
    if "name" in changes:
        job.name = changes["name"]
    if "metadata" in changes:
        job.user_metadata = changes["metadata"]
        session.execute(delete(JobMetadata).where(JobMetadata.job_id == job.id))
        insert_values(session, _INSERT_PAIRS, _pairs_of(job))
    session.flush()


def _pairs_of(job: Job) -> list[dict[str, Any]]:
    """Rows of `JobMetadata`."""
    shared = {"job_id": job.id, "project_id": job.project_id, "created_at": job.created_at}
    return [shared | {"key": key, "value": value} for key, value in (job.user_metadata or {}).items()]


def _values_of(row: JobFile) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in _JOB_FILES.columns}


def fail(session: Session, job: Job, failure: Failure, *, now: datetime) -> None:
    """End a job that nobody works on as failed; nothing happens where it has ended."""
    if move(session, job, _UNCLAIMED, State.FAILED, now=now, failure=failure):
        note_failure(session, job, failure, now=now)


@dataclass(frozen=True)
class UsedFile:
    """A file as a job uses it; `position` counts the files of one role."""

    file: File
    role: Literal["training", "validation"]
    position: int = 0
    weight: float = 1.0

    @property
    def param(self) -> Literal["training_file", "validation_file", "dataset.files"]:
        """Where the request names it."""
        return param_of(self.role, self.position)

    def row(self, job: Job) -> JobFile:
        return JobFile(
            job_id=job.id,
            role=self.role,
            position=self.position,
            project_id=job.project_id,
            file_id=self.file.id,
            weight=self.weight,
            entry=self.file.dataset_entry,
        )


def param_of(role: str, position: int) -> Literal["training_file", "validation_file", "dataset.files"]:
    """The field of a request that names a file."""
    if role == "validation":
        return "validation_file"
    return "training_file" if position == 0 else "dataset.files"


def files_of(
    session: Session, caller: Caller, request: JobRequest, *, are_held: bool = False
) -> list[UsedFile]:
    """The files that a request names.

    Args:
        are_held: so that whoever ends the validation of one, or deletes it, waits until the new job is there
            to be seen.
    Raises:
        LuthierError: one is unknown, not meant for fine-tuning, or was found invalid; `param` names it.
    """
    places = {file.id: f"dataset.files[{index}].id" for index, file in enumerate(request.dataset.files)}
    places[request.training_file] = "training_file"

    def find(file_id: str, param: str) -> File:
        return _file_for(session, caller, request, file_id, param, is_held=are_held)

    files = [
        UsedFile(find(file_id, places[file_id]), "training", position, weight)
        for position, (file_id, weight) in enumerate(request.training_files.items())
    ]
    if request.validation_file is not None:
        files.append(UsedFile(find(request.validation_file, "validation_file"), "validation"))
    return files


def is_usable(rules: DatasetRequest, file: File) -> bool:
    """Whether a checked file can be used: valid, or with mistakes that the rules explain or pass over."""
    is_mapped = rules.columns is not None or file.dataset_entry is not None
    has_format = rules.template is not None and is_format_string(rules.template)
    drops = rules.on_bad_row == "drop" and has_good_rows(file.report or {})
    return file.status != "error" or drops or (needs_mapping(file) and (is_mapped or has_format))


def needs_mapping(file: File) -> bool:
    """Whether all that is wrong with a file is that nobody has said what its columns are."""
    return file.status == "error" and is_of_unknown_form(file.report or {})


def has_good_rows(report: Mapping[str, Any]) -> bool:
    """Whether a validation report tells of a row without a mistake."""
    return bool((report.get("statistics") or {}).get("characters"))


def is_of_unknown_form(report: Mapping[str, Any]) -> bool:
    """Whether a report has no error but this one, and in every row: its keys are of no known form."""
    codes = report.get("error_counts", {})
    is_only_keys = all(code == _UNKNOWN_FORM or code.endswith(_FIELD_MISSING) for code in codes)
    return bool(codes) and is_only_keys and report.get("error_count", 0) >= report.get("row_count", 0)


def _file_for(
    session: Session, caller: Caller, request: JobRequest, file_id: str, param: str, *, is_held: bool
) -> File:
    code = "invalid_validation_file" if param == "validation_file" else "invalid_training_file"
    try:
        file = repository.get_file(session, caller.project_id, file_id, is_held=is_held)
    except LuthierError as error:
        raise invalid(f"invalid {param}: {error.message}", param, code) from error
    if file.purpose != "fine-tune":
        raise invalid(
            f"invalid {param}: {file.id} was uploaded with purpose {file.purpose!r}; use purpose 'fine-tune'",
            param,
            code,
        )
    if not is_usable(request.dataset, file):
        raise invalid(f"invalid {param}: {file.status_details}", param, code)
    return file
