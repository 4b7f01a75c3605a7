"""What each kind of job is for its supervisor: the spec that its child reads, and what its end means.

`build_spec` resolves a claimed row into files on this machine; `settle` turns what the child left into rows,
in the transaction that ends the job. Bytes are in storage before a row speaks of them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from luthier import planning, repository
from luthier.artifacts import Manifest, ManifestError, verify
from luthier.database import Database, clock
from luthier.errors import ExitCode, JobFailure, LuthierError
from luthier.events import RunEnded
from luthier.ids import new_id
from luthier.inspection import check_config
from luthier.models import BaseModel, find_model
from luthier.processes import module_command
from luthier.service import files, runs
from luthier.service.runs import Claim, NewArtifact
from luthier.service.transitions import note
from luthier.settings import Settings
from luthier.spec import (
    BaseModelRef,
    Hyperparameters,
    JobRequest,
    PreparedData,
    PreparedSplit,
    PrepareSpec,
    SourceFile,
    TrainSpec,
    ValidateSpec,
)
from luthier.status import Kind
from luthier.storage import Storage
from luthier.tables import File, Job

AnySpec = TrainSpec | PrepareSpec | ValidateSpec
_RESULT_FILENAME = "step_metrics.csv"
_KINDS = {
    "adapter": "adapter",
    "metrics.csv": "metrics",
    "training_loss.png": "plot",
    "trainer_log.jsonl": "log",
    "all_results.json": "results",
    "run.json": "manifest",
    "README.md": "model_card",
}


@dataclass(frozen=True)
class Place:
    """Where a run works: database, storage, settings, its folder, and its prefix in storage."""

    settings: Settings
    database: Database
    storage: Storage
    folder: Path
    prefix: str


def run_prefix(job_id: str, epoch: int) -> str:
    """`<job>/e0003`: the name of a run in the run folder and in storage."""
    return f"{job_id}/e{epoch:04d}"


def needs_model(job: Job) -> bool:
    """Whether the work needs the base model on this machine."""
    return job.kind in (Kind.TRAIN, Kind.PREPARE)


def child_command(kind: Kind, folder: Path) -> list[str]:
    """The command line of the child for a kind of work."""
    match kind:
        case Kind.TRAIN:
            return module_command("trainer", str(folder))
        case Kind.PREPARE | Kind.VALIDATE:
            return module_command("luthier.datasets", str(folder))
        case _:
            assert_never(kind)


def build_spec(place: Place, claim: Claim) -> AnySpec:
    """Resolve a claimed job into the spec that its child reads.

    Raises:
        JobFailure: a file or the model is gone.
    """
    job = claim.job
    match Kind(job.kind):
        case Kind.TRAIN:
            return _train_spec(place, claim)
        case Kind.PREPARE:
            return _prepare_spec(place, claim)
        case Kind.VALIDATE:
            source = _source(place, job.subject_file_id, "file")
            return ValidateSpec(job_id=job.id, run=claim.number, epoch=claim.lease.epoch, file=source)
        case kind:
            assert_never(kind)


def settle(place: Place, claim: Claim, spec: AnySpec, ended: RunEnded) -> None:
    """End a job whose child is done: publish what it left, then write the rows, in one transaction."""
    match spec:
        case TrainSpec():
            _settle_training(place, claim, ended)
        case PrepareSpec():
            _settle_preparation(place, claim, spec, ended)
        case ValidateSpec():
            _settle_validation(place, claim, ended)


def _train_spec(place: Place, claim: Claim) -> TrainSpec:
    job = claim.job
    prepared = PreparedData.model_validate(job.prepared)
    return TrainSpec(
        job_id=job.id,
        run=claim.number,
        epoch=claim.lease.epoch,
        model=_model_ref(_model(place, job)),
        data=PreparedData(
            train=tuple(_located(place, split) for split in prepared.train),
            validation=_located(place, prepared.validation) if prepared.validation else None,
            chat_template=prepared.chat_template,
        ),
        hyperparameters=Hyperparameters.model_validate(job.hyperparameters),
        resume_from=_newest_checkpoint(place, claim),
    )


def _prepare_spec(place: Place, claim: Claim) -> PrepareSpec:
    job = claim.job
    request = JobRequest.model_validate(job.request, strict=False)
    model = _model(place, job)
    validation = request.validation_file
    return PrepareSpec(
        job_id=job.id,
        run=claim.number,
        epoch=claim.lease.epoch,
        model=_model_ref(model),
        train=tuple(
            _source(place, file_id, "training_file", weight)
            for file_id, weight in request.training_files.items()
        ),
        validation=_source(place, validation, "validation_file") if validation else None,
        dataset=request.dataset,
        max_seq_length=planning.max_seq_length(request, model.context_length),
    )


def _newest_checkpoint(place: Place, claim: Claim) -> str | None:
    """The folder of the newest checkpoint that is whole; damaged ones are told of and passed over."""
    with place.database.reading() as session:
        checkpoints = repository.all_checkpoints(session, claim.job.id)
    for checkpoint in checkpoints:
        folder = place.storage.path(checkpoint.storage_key)
        try:
            verify(folder)
        except ManifestError as error:
            with place.database.transaction() as session:
                job = runs.get_leased(session, claim.lease)
                text = f"The checkpoint of step {checkpoint.step} is damaged and is passed over: {error}"
                note(session, job, "checkpoint_damaged", text, now=clock(session), level="warn")
        else:
            return str(folder)
    return None


def _settle_training(place: Place, claim: Claim, ended: RunEnded) -> None:
    key = f"{place.prefix}/artifacts"
    manifest = place.storage.put_sealed(place.folder / "artifacts", key, {"job_id": claim.job.id})
    metrics = next((entry for entry in manifest.files if entry.name == "metrics.csv"), None)
    if metrics is None:
        raise JobFailure("The trainer left no metrics.csv", "server_error", ExitCode.DONE)
    file_id = new_id("file")
    place.storage.put(place.storage.path(key) / metrics.name, f"files/{file_id}")
    with place.database.transaction() as session:
        now = clock(session)
        result_file = File(
            id=file_id,
            project_id=claim.job.project_id,
            filename=_RESULT_FILENAME,
            purpose="fine-tune-results",
            size_bytes=metrics.size_bytes,
            sha256=metrics.sha256,
            storage_key=f"files/{file_id}",
            status="processed",
            created_at=now,
        )
        runs.succeed_training(
            session,
            claim.lease,
            artifacts=_artifacts(manifest, key),
            result=ended.result | {"trained_token_count": ended.trained_token_count},
            result_file=result_file,
            now=now,
        )


def _settle_preparation(place: Place, claim: Claim, spec: PrepareSpec, ended: RunEnded) -> None:
    key = f"{place.prefix}/artifacts"
    place.storage.put_sealed(place.folder / "artifacts", key, {"job_id": claim.job.id})
    stats = dict(ended.result)
    local = PreparedData.model_validate({name: stats.pop(name, None) for name in PreparedData.model_fields})
    prepared = PreparedData(
        train=tuple(_stored(split, key) for split in local.train),
        validation=_stored(local.validation, key) if local.validation else None,
        chat_template=local.chat_template,
    )
    with place.database.transaction() as session:
        runs.succeed_preparation(
            session,
            claim.lease,
            prepared=prepared,
            stats=stats,
            max_seq_length=spec.max_seq_length,
            now=clock(session),
        )


def _settle_validation(place: Place, claim: Claim, ended: RunEnded) -> None:
    report: dict[str, Any] = ended.result["report"]
    with place.database.transaction() as session:
        file = session.get(File, claim.job.subject_file_id)
        waiting = len(files.waiting_jobs(session, file)) if file else 0
        runs.succeed_validation(
            session,
            claim.lease,
            report=report,
            message=None if report["valid"] else ended.result["message"],
            work_ids=[new_id("work") for _ in range(waiting)],
            now=clock(session),
        )


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


def _source(place: Place, file_id: str | None, param: Any, weight: float = 1.0) -> SourceFile:
    with place.database.reading() as session:
        file = session.get(File, file_id)
    if file is None:
        code = "invalid_validation_file" if param == "validation_file" else "invalid_training_file"
        raise JobFailure(f"File {file_id} was deleted", code, ExitCode.BAD_DATA, param)
    path = str(place.storage.path(file.storage_key))
    return SourceFile(path=path, filename=file.filename, param=param, weight=weight)


def _located(place: Place, split: PreparedSplit) -> PreparedSplit:
    """A split with its path on this machine."""
    return split.model_copy(update={"path": str(place.storage.path(split.path))})


def _stored(split: PreparedSplit, key: str) -> PreparedSplit:
    """A split with its storage key for a path."""
    return split.model_copy(update={"path": f"{key}/{Path(split.path).name}"})


def _artifacts(manifest: Manifest, key: str) -> list[NewArtifact]:
    return [
        NewArtifact(
            name=entry.name,
            kind=_KINDS.get(entry.name.split("/")[0], "other"),
            size_bytes=entry.size_bytes,
            sha256=entry.sha256,
            storage_key=f"{key}/{entry.name}",
        )
        for entry in manifest.files
    ]
