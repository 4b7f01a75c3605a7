"""How an estimate is put together: what the database knows, a measurement where it must, and the arithmetic.

Entered by `estimate_job`. Nothing is queued but the measurement, which is found again by the next estimate.
"""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from api import model_checks, waiting
from api.schemas.estimates import EstimateObject, estimate_object, unavailable
from luthier import planning, repository
from luthier.database import clock
from luthier.ids import new_id
from luthier.installation import Installation
from luthier.models import BaseModel, find_model, shape_of
from luthier.planning import SAMPLED_ROWS, Counted, TokenFacts
from luthier.service import errands, estimates, jobs, lineage, queue
from luthier.service.errands import ErrandFile, MeasureErrand
from luthier.service.jobs import Caller, UsedFile
from luthier.spec import DatasetEntry, JobRequest, PreparedSplit, SourceFile


@dataclass(frozen=True)
class _Asked:
    """A request as a job would have it: settings taken over from a tuned model, its files, its place."""

    request: JobRequest
    base: str
    files: list[UsedFile]
    position: int


def estimate_job(installation: Installation, caller: Caller, body: JobRequest) -> EstimateObject:
    """What a job would be and cost.

    Raises:
        LuthierError: the request would be refused; or `not_done_yet`, while files are checked or measured.
    """
    with installation.database.reading() as session:
        asked = _asked(session, caller, body)
    model = find_model(installation.settings.models, asked.base)
    if model is None:
        text = f"the model {asked.base} is not on this machine yet: its first job pulls it"
        return unavailable(text, [], asked.position)
    length = planning.max_seq_length(asked.request.qlora.max_seq_length, model.context_length)
    tokens = _tokens(installation, model, asked, length)
    if tokens is None:
        text = "No row is left to train on: look at the file's preview, and at dataset.overlength"
        problem = {"code": "nothing_to_train", "message": text, "param": "training_file"}
        return unavailable("there are no rows to train on", [problem], asked.position)
    with installation.database.reading() as session:
        threads, method = installation.settings.trainer_threads, asked.request.qlora.method
        device = estimates.device_facts(session, threads=threads, now=clock(session))
        rates = estimates.rate_facts(session, caller.project_id, model=model.id, method=method, device=device)
    told = planning.estimate(
        asked.request, shape_of(model), tokens, device, max_seq_length=length, rates=rates
    )
    return estimate_object(told, tokens, asked.position)


def _asked(session: Session, caller: Caller, body: JobRequest) -> _Asked:
    parent = lineage.find_parent(session, caller.project_id, body.model)
    request = body if parent is None else lineage.inherit(body, parent)
    base = body.model if parent is None else parent.model or ""
    files = jobs.files_of(session, caller, request)
    return _Asked(request, base, files, queue.next_position(session, caller.project_id, now=clock(session)))


def _tokens(installation: Installation, model: BaseModel, asked: _Asked, length: int) -> TokenFacts | None:
    """Rows and tokens of the files: from the cache where all of them are there, else measured."""
    rules = asked.request.dataset
    sources = [_source(used, asked.request) for used in asked.files]
    keys = [model_checks.rows_key(model, source, rules, length) for source in sources]
    counted = _from_cache(installation, asked, keys)
    if counted is None:
        errand, asked_ids = _errand(model, asked, sources, length), [used.file.id for used in asked.files]
        counted = _measured(installation, asked.files, errand, errands.key_of("measure", asked_ids, keys))
    pairs = list(zip(counted, asked.files, strict=True))
    train = [(count, used.weight) for count, used in pairs if used.role == "training"]
    validation = next((count for count, used in pairs if used.role == "validation"), None)
    return planning.token_facts(train, validation, rules.max_samples)


def _from_cache(installation: Installation, asked: _Asked, keys: list[str]) -> list[Counted] | None:
    with installation.database.reading() as session:
        rows = [
            repository.find_prepared(session, used.file.project_id, key)
            for used, key in zip(asked.files, keys, strict=True)
        ]
    found = [
        planning.counted_exactly(PreparedSplit.model_validate(each.facts["split"]), each.facts["stats"])
        for each in rows
        if each is not None
    ]
    return found if len(found) == len(rows) else None


def _errand(model: BaseModel, asked: _Asked, sources: list[SourceFile], length: int) -> MeasureErrand:
    """The measurement of the first rows of each file."""
    fields = {"param", "weight", "columns", "entry"}
    files = [
        ErrandFile(file_id=used.file.id, **source.model_dump(include=fields))
        for used, source in zip(asked.files, sources, strict=True)
    ]
    return MeasureErrand(
        model=model.id,
        dataset=asked.request.dataset,
        max_seq_length=length,
        files=tuple(files),
        max_rows=SAMPLED_ROWS,
    )


def _measured(
    installation: Installation, files: list[UsedFile], errand: MeasureErrand, key: str
) -> list[Counted]:
    """Counts from a measurement, by a child of the cpu agent."""
    if any(used.file.status == "uploaded" for used in files):
        raise waiting.not_done_yet()
    with installation.database.transaction() as session:
        now, work_id = clock(session), new_id("work")
        work = errands.ask(session, errand, key=key, subject=files[0].file, work_id=work_id, now=now)
    found = waiting.result_of(installation, work.id)["files"]
    return [
        planning.counted_by_sample(told, (used.file.report or {}).get("row_count", 0), errand.max_seq_length)
        for told, used in zip(found, files, strict=True)
    ]


def _source(used: UsedFile, request: JobRequest) -> SourceFile:
    """A file as the job would read it."""
    columns = request.dataset.columns
    entry = used.file.dataset_entry if columns is None else None
    return SourceFile(
        path="",
        filename=used.file.filename,
        param=used.param,
        weight=used.weight,
        columns=columns,
        entry=DatasetEntry.model_validate(entry) if entry else None,
        sha256=used.file.sha256,
    )
