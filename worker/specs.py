"""From a claimed row to the spec that its child reads: every file, model and number found on this machine.

Entered by `build_spec`. Files are read as the job or the errand says, and looked up in the cache of prepared
rows; where that leaves nothing to do, `known_outcome` tells how the work ends without a child.
"""

from typing import Any, Literal, assert_never

from luthier import planning, repository
from luthier.artifacts import ManifestError
from luthier.database import clock
from luthier.datasets.cache import cache_key
from luthier.datasets.examples import DatasetError
from luthier.errors import ExitCode, JobFailure, LuthierError
from luthier.events import RunEnded
from luthier.inspection import check_config
from luthier.models import BaseModel, find_model
from luthier.service import errands, runs
from luthier.service.claims import Claim
from luthier.service.errands import ConvertErrand, ErrandFile, MeasureErrand, PreviewErrand, ReportErrand
from luthier.service.jobs import param_of
from luthier.service.transitions import note
from luthier.spec import (
    BaseModelRef,
    ConvertSpec,
    DatasetEntry,
    DatasetSpec,
    Hyperparameters,
    JobRequest,
    MeasureSpec,
    ModelView,
    PreparedData,
    PreparedSplit,
    PrepareSpec,
    PreviewSpec,
    SourceFile,
    TrainSpec,
    ValidateSpec,
    data_origin,
)
from luthier.status import Kind
from luthier.tables import Checkpoint, File, Job, JobFile
from worker import cache
from worker.place import Place

AnySpec = TrainSpec | DatasetSpec
_VALIDATION = "validation"
_ADAPTER = "adapter"
_ADAPTER_CONFIG = f"{_ADAPTER}/adapter_config.json"


def build_spec(place: Place, claim: Claim) -> AnySpec:
    """Resolve a claimed job into the spec that its child reads.

    Raises:
        JobFailure: a file or the model is gone.
    """
    job = claim.job
    if job.task is not None:
        return _errand_spec(place, claim)
    match Kind(job.kind):
        case Kind.TRAIN:
            return _train_spec(place, claim)
        case Kind.PREPARE:
            return _prepare_spec(place, claim)
        case Kind.VALIDATE:
            return ValidateSpec(**_run_of(claim), file=_uploaded(place, job.subject_file_id))
        case kind:
            assert_never(kind)


def known_outcome(spec: AnySpec) -> RunEnded | None:
    """How the work ends where nothing is left to do: every file was prepared before. No child is needed.

    With a validation file there is: whether its rows are in the training files, too, a child has to find out.
    """
    if not isinstance(spec, PrepareSpec) or spec.validation is not None:
        return None
    train = [source.prepared for source in spec.train]
    if any(split is None for split in train):
        return None
    data = PreparedData.model_validate({"train": train})
    return RunEnded(outcome="done", result=data.model_dump(mode="json") | {"stats": {}})


def _run_of(claim: Claim) -> dict[str, Any]:
    """What every spec says about its run."""
    return {"job_id": claim.job.id, "run": claim.number, "epoch": claim.lease.epoch}


def _train_spec(place: Place, claim: Claim) -> TrainSpec:
    job = claim.job
    request = JobRequest.model_validate(job.request, strict=False)
    stored = PreparedData.model_validate(job.prepared)
    model = _model_ref(_model(place, job))
    with place.database.reading() as session:
        uses = repository.files_of_job(session, job.id)
    sources = [_source_of_job(place, use, request) for use in uses]
    return TrainSpec(
        **_run_of(claim),
        model=model,
        data=PreparedData(
            train=tuple(_located(place, split) for split in stored.train),
            validation=_located(place, stored.validation) if stored.validation else None,
            chat_template=stored.chat_template,
        ),
        hyperparameters=Hyperparameters.model_validate(job.hyperparameters),
        adapter_from=_parents_adapter(place, claim, model) if job.is_tuned_again else None,
        resume_from=_newest_checkpoint(place, claim),
        **data_origin(request.dataset, sources),
    )


def _parents_adapter(place: Place, claim: Claim, model: BaseModelRef) -> str:
    """The folder of the adapter that the job starts from; a base model that has changed since is told of.

    Raises:
        JobFailure: the adapter is damaged or gone.
    """
    with place.database.reading() as session:
        # By name: the parent of a retry is the job that is tried again, which has no adapter.
        parent = repository.find_tuned_job(session, claim.job.project_id, claim.job.request["model"])
        files_of_parent = repository.list_artifacts(session, parent.id) if parent else []
    config = next((item for item in files_of_parent if item.name == _ADAPTER_CONFIG), None)
    try:
        if parent is None or config is None:
            raise ManifestError(f"its job has no {_ADAPTER_CONFIG}")
        folder = place.fetch_folder(config.storage_key.removesuffix(f"/{_ADAPTER_CONFIG}")) / _ADAPTER
    except ManifestError as error:
        text = f"The adapter of {claim.job.request['model']} cannot be used: {error}"
        raise JobFailure(text, "model_load_failed", ExitCode.MISSING, "model") from error
    before = (parent.result or {}).get("base_revision")
    if before != model.revision:
        text = f"{model.id} is now at commit {model.revision}; the adapter was made for {before}"
        with place.database.transaction() as session:
            job = runs.get_leased(session, claim.lease)
            note(session, job, "base_model_changed", text, now=clock(session), level="warn")
    return str(folder)


def _newest_checkpoint(place: Place, claim: Claim) -> str | None:
    """The folder of the newest checkpoint that is whole; damaged ones are told of and passed over.

    Behind the job's own comes the one that a retry starts from.
    """
    with place.database.reading() as session:
        checkpoints = [*repository.all_checkpoints(session, claim.job.id)]
        origin = session.get(Checkpoint, claim.job.resume_from) if claim.job.resume_from else None
    for checkpoint in [*checkpoints, origin] if origin else checkpoints:
        try:
            folder = place.fetch_folder(checkpoint.storage_key)
        except ManifestError as error:
            with place.database.transaction() as session:
                job = runs.get_leased(session, claim.lease)
                text = f"The checkpoint of step {checkpoint.step} is damaged and is passed over: {error}"
                note(session, job, "checkpoint_damaged", text, now=clock(session), level="warn")
        else:
            return str(folder)
    return None


def _prepare_spec(place: Place, claim: Claim) -> PrepareSpec:
    job = claim.job
    request = JobRequest.model_validate(job.request, strict=False)
    model = _model(place, job)
    length = planning.max_seq_length(request.qlora.max_seq_length, model.context_length)
    with place.database.reading() as session:
        uses = repository.files_of_job(session, job.subject_job_id or "")
    sources: dict[str, list[SourceFile]] = {"training": [], _VALIDATION: []}
    for use in uses:
        source = _source_of_job(place, use, request)
        key = _cache_key(model, source, request, length)
        sources[use.role].append(_looked_up(place, job.project_id, source, key))
    validation = next(iter(sources[_VALIDATION]), None)
    # Rows that were prepared before are read again only where those of the validation file are looked for.
    train = tuple(
        source if source.prepared is not None and validation is None else _fetched(place, source)
        for source in sources["training"]
    )
    return PrepareSpec(
        **_run_of(claim),
        model=_model_ref(model),
        train=train,
        validation=None if validation is None else _fetched(place, validation),
        dataset=request.dataset,
        max_seq_length=length,
    )


def _source_of_job(place: Place, use: JobFile, request: JobRequest) -> SourceFile:
    """A file as a job uses it; columns that the job gives go before the entry that the file has."""
    source = _source(place, use.file_id, param_of(use.role, use.position))
    columns = request.dataset.columns
    entry = DatasetEntry.model_validate(use.entry) if use.entry and columns is None else None
    return source.model_copy(update={"weight": use.weight, "columns": columns, "entry": entry})


def _cache_key(model: BaseModel, source: SourceFile, request: JobRequest, length: int) -> str:
    try:
        return cache_key(source.sha256 or "", model.path, source, request.dataset, length)
    except DatasetError as error:
        raise JobFailure(str(error), "invalid_spec", ExitCode.BAD_SPEC, error.issue.loc or None) from error


def _looked_up(place: Place, project_id: str, source: SourceFile, key: str) -> SourceFile:
    """A source with its cache key and, where its rows were prepared before, those."""
    split = cache.find(place.database, place.storage, project_id, key)
    found = split.model_copy(update={"weight": source.weight}) if split else None
    return source.model_copy(update={"cache_key": key, "prepared": found})


def _errand_spec(place: Place, claim: Claim) -> DatasetSpec:
    """The spec of an errand."""
    errand, run = errands.read_errand(claim.job), _run_of(claim)
    match errand:
        case ConvertErrand():
            return ConvertSpec(**run, file=_errand_source(place, errand.file))
        case PreviewErrand():
            file, view = _errand_source(place, errand.file), _view(place, claim.job, errand)
            return PreviewSpec(**run, file=file, view=view, offset=errand.offset, count=errand.count)
        case ReportErrand():
            file, view = _errand_source(place, errand.file), _view(place, claim.job, errand)
            against = None if errand.against is None else _errand_source(place, errand.against)
            return ValidateSpec(**run, file=file, view=view, against=against)
        case MeasureErrand():
            sources = tuple(_errand_source(place, file) for file in errand.files)
            view = _view(place, claim.job, errand)
            return MeasureSpec(**run, files=sources, view=view, max_rows=errand.max_rows)
        case _:
            assert_never(errand)


def _view(place: Place, job: Job, errand: errands.Look) -> ModelView:
    model = _model_ref(_model(place, job))
    return ModelView(model=model, dataset=errand.dataset, max_seq_length=errand.max_seq_length)


def _errand_source(place: Place, file: ErrandFile) -> SourceFile:
    source = _source(place, file.file_id, file.param)
    given = {"weight": file.weight, "columns": file.columns, "entry": file.entry}
    return _fetched(place, source.model_copy(update=given))


def _uploaded(place: Place, file_id: str | None) -> SourceFile:
    """A file as it is validated: by the entry that it is registered with."""
    source = _source(place, file_id, "file")
    with place.database.reading() as session:
        file = session.get(File, file_id)
    entry = file.dataset_entry if file else None
    read_with = DatasetEntry.model_validate(entry) if entry else None
    return _fetched(place, source.model_copy(update={"entry": read_with}))


def _fetched(place: Place, source: SourceFile) -> SourceFile:
    """A source with its path on this machine."""
    try:
        return source.model_copy(update={"path": str(place.fetch_file(source.path))})
    except FileNotFoundError as error:
        raise _gone(f"The bytes of {source.filename} are not in the storage", source.param) from error


def _source(
    place: Place,
    file_id: str | None,
    param: Literal["training_file", "validation_file", "dataset.files", "file"],
) -> SourceFile:
    """A file as its row tells of it, with its storage key for a path."""
    with place.database.reading() as session:
        file = session.get(File, file_id)
    if file is None:
        raise _gone(f"File {file_id} was deleted", param)
    return SourceFile(path=file.storage_key, filename=file.filename, param=param, sha256=file.sha256)


def _gone(text: str, param: str) -> JobFailure:
    code = "invalid_validation_file" if param == "validation_file" else "invalid_training_file"
    return JobFailure(text, code, ExitCode.BAD_DATA, param)


def _model(place: Place, job: Job) -> BaseModel:
    model = find_model(place.settings.models, job.model or "")
    if model is None:
        raise JobFailure(
            f"The base model {job.model} is not on this machine: run `luthier models pull {job.model}` there",
            "model_not_found",
            ExitCode.MISSING,
            "model",
        )
    try:
        check_config(model.path)
    except LuthierError as error:
        raise JobFailure(error.message, "model_load_failed", ExitCode.MISSING, "model") from error
    return model


def _model_ref(model: BaseModel) -> BaseModelRef:
    return BaseModelRef(id=model.id, path=str(model.path), revision=model.revision)


def _located(place: Place, split: PreparedSplit) -> PreparedSplit:
    """A split with its path on this machine.

    Raises:
        JobFailure: its rows are damaged or gone.
    """
    key, _, name = split.path.rpartition("/")
    try:
        return split.model_copy(update={"path": str(place.fetch_folder(key) / name)})
    except ManifestError as error:
        text = f"The prepared data cannot be used: {error}. Retry the job"
        raise JobFailure(text, "invalid_training_file", ExitCode.MISSING, "training_file") from error
