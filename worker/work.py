"""What each kind of job is for its supervisor: the child that does it, and what its end means.

`settle` turns what the child left into rows, in the transaction that ends the job. Bytes are in storage
before a row speaks of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

from luthier import repository
from luthier.artifacts import Manifest, sha256_of
from luthier.database import clock
from luthier.datasets.row_tally import LEAKAGE
from luthier.errors import ExitCode, JobFailure
from luthier.events import RunEnded
from luthier.ids import new_id
from luthier.models import find_model, shape_of
from luthier.planning import ModelShape
from luthier.processes import module_command
from luthier.service import endings, prepared
from luthier.service.claims import Claim
from luthier.service.endings import NewArtifact
from luthier.spec import (
    ConvertSpec,
    MeasureSpec,
    PreparedData,
    PreparedSplit,
    PrepareSpec,
    PreviewSpec,
    SourceFile,
    TrainSpec,
    ValidateSpec,
)
from luthier.status import Kind
from luthier.storage import discard
from luthier.tables import File, Job, JobEvent
from worker import cache
from worker.place import Place
from worker.specs import AnySpec

_VALIDATION = "validation"
_RESULT_FILENAME = "step_metrics.csv"
_CONVERTED = "artifacts/rows.jsonl"
_KINDS = {
    "adapter": "adapter",
    "model": "model",
    "metrics.csv": "metrics",
    "training_loss.png": "plot",
    "training_eval_loss.png": "plot",
    "trainer_log.jsonl": "log",
    "all_results.json": "results",
    "train_results.json": "results",
    "eval_results.json": "results",
    "run.json": "manifest",
    "README.md": "model_card",
}


def needs_model(job: Job) -> bool:
    """Whether the work needs the base model on this machine."""
    return job.model is not None


def child_command(kind: Kind, folder: Path) -> list[str]:
    """The command line of the child for a kind of work."""
    match kind:
        case Kind.TRAIN:
            return module_command("trainer", str(folder))
        case Kind.PREPARE | Kind.VALIDATE:
            return module_command("luthier.datasets", str(folder))
        case _:
            assert_never(kind)


def settle(place: Place, claim: Claim, spec: AnySpec, ended: RunEnded) -> None:
    """End a job whose child is done: publish what it left, then write the rows, in one transaction."""
    match spec:
        case TrainSpec():
            _settle_training(place, claim, spec, ended)
        case PrepareSpec():
            _settle_preparation(place, claim, spec, ended)
        case ConvertSpec():
            _settle_conversion(place, claim, ended)
        case ValidateSpec() if spec.view is None:
            _settle_validation(place, claim, ended)
        case ValidateSpec() | PreviewSpec() | MeasureSpec():
            _settle_look(place, claim, ended)


def _settle_training(place: Place, claim: Claim, spec: TrainSpec, ended: RunEnded) -> None:
    key = f"{place.prefix}/artifacts"
    manifest = place.storage.put_sealed(place.folder / "artifacts", key, {"job_id": claim.job.id})
    metrics = next((entry for entry in manifest.files if entry.name == "metrics.csv"), None)
    if metrics is None:
        raise JobFailure("The trainer left no metrics.csv", "server_error", ExitCode.DONE)
    file_id = new_id("file")
    place.storage.copy(f"{key}/{metrics.name}", f"files/{file_id}")
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
        endings.succeed_training(
            session,
            claim.lease,
            artifacts=_artifacts(manifest, key),
            result=ended.result
            | {"trained_token_count": ended.trained_token_count, "base_revision": spec.model.revision},
            result_file=result_file,
            now=now,
        )


def _settle_preparation(place: Place, claim: Claim, spec: PrepareSpec, ended: RunEnded) -> None:
    """Put what was made into the cache, and give the job its data; rows of a deleted file go again."""
    project_id = claim.job.project_id
    made = PreparedData.model_validate({name: ended.result.get(name) for name in PreparedData.model_fields})
    with place.database.reading() as session:
        raised = repository.list_warnings(session, claim.job.id)
    leaks = {event.message: _told(event) for event in raised if _is_of_two_files(event)}
    of_one_file = [event for event in raised if not _is_of_two_files(event)]
    kept = _keep(place, claim, spec, ended, made, raised=of_one_file)
    with place.database.transaction() as session:
        now = clock(session)
        orphans = [
            rows.storage_key
            for rows in kept.values()
            if not prepared.record_rows(session, project_id, now=now, **vars(rows))
        ]
        facts = {
            name: kept[name].facts if name in kept else prepared.use(session, project_id, source, now=now)
            for name, source, _ in _named(spec, made)
        }
        stats = {name: told["stats"] for name, told in facts.items()}
        endings.succeed_preparation(
            session,
            claim.lease,
            prepared=_data_of(spec, made, facts),
            stats={"stats": stats, "cached": [name for name in facts if name not in kept]},
            warnings=[*_told_once(facts.values()), *leaks.values()],
            max_seq_length=spec.max_seq_length,
            shape=_shape(place, spec),
            threads=place.settings.trainer_threads,
            now=now,
        )
        # A folder that was found whole may have been taken for an orphan before its rows were recorded.
        for rows in kept.values():
            if rows.storage_key not in orphans:
                place.storage.manifest(rows.storage_key)
    discard(place.storage, orphans)


def _shape(place: Place, spec: PrepareSpec) -> ModelShape | None:
    model = find_model(place.settings.models, spec.model.id)
    return None if model is None else shape_of(model)


def _keep(
    place: Place,
    claim: Claim,
    spec: PrepareSpec,
    ended: RunEnded,
    made: PreparedData,
    *,
    raised: Sequence[JobEvent],
) -> dict[str, cache.Kept]:
    """What the child has made, in the cache, by the names that it gave; with what it warned of."""
    stats = ended.result.get("stats", {})
    return {
        name: cache.keep(
            place.storage,
            claim.job.project_id,
            source,
            made=place.folder / split.path,
            split=split,
            told={
                "stats": stats.get(name, {}),
                "chat_template": made.chat_template,
                "warnings": [_told(event) for event in raised if _is_about(event, source)],
            },
        )
        for name, source, split in _named(spec, made)
        if source.prepared is None
    }


def _data_of(spec: PrepareSpec, made: PreparedData, facts: Mapping[str, Mapping[str, Any]]) -> PreparedData:
    """The job's data by storage keys, with its own weights."""
    splits = {
        name: PreparedSplit.model_validate(facts[name]["split"] | {"weight": source.weight})
        for name, source, _ in _named(spec, made)
    }
    validation = splits.pop(_VALIDATION, None)
    chat_template = next(iter(facts.values()))["chat_template"]
    return PreparedData(train=tuple(splits.values()), validation=validation, chat_template=chat_template)


def _told_once(facts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The warnings of all files, those that they share once."""
    warnings = (warning for told in facts for warning in told["warnings"])
    return list({warning["message"]: warning for warning in warnings}.values())


def _told(event: JobEvent) -> dict[str, Any]:
    return {"message": event.message, "data": event.data}


def _is_of_two_files(event: JobEvent) -> bool:
    """Whether a warning is about a job's pair of files, so that it is not kept with the rows of either."""
    return event.data.get("code") == LEAKAGE


def _is_about(event: JobEvent, source: SourceFile) -> bool:
    """Whether a warning of preparation speaks of a file, or of none and so of all of them."""
    filename = event.data.get("filename")
    return filename is None or (filename, event.data.get("param")) == (source.filename, source.param)


def _named(spec: PrepareSpec, made: PreparedData) -> list[tuple[str, SourceFile, PreparedSplit]]:
    """Sources with what became of them, under the names that the child gives them."""
    names = [f"train-{number:03d}" for number in range(len(spec.train))]
    named = list(zip(names, spec.train, made.train, strict=True))
    if spec.validation is not None and made.validation is not None:
        named.append((_VALIDATION, spec.validation, made.validation))
    return named


def _settle_conversion(place: Place, claim: Claim, ended: RunEnded) -> None:
    path, key = place.folder / _CONVERTED, f"files/{claim.job.subject_file_id}"
    with place.database.reading() as session:
        is_wanted = session.get(File, claim.job.subject_file_id) is not None
    # Without a file, no bytes: where the commit's answer is lost, nobody would take them away again.
    if is_wanted:
        place.storage.put(path, key)
    with place.database.transaction() as session:
        is_kept = endings.succeed_conversion(
            session,
            claim.lease,
            row_count=ended.result["row_count"],
            size_bytes=path.stat().st_size,
            sha256=sha256_of(path),
            work_id=new_id("work"),
            now=clock(session),
        )
    if not is_kept:
        discard(place.storage, [key])


def _settle_look(place: Place, claim: Claim, ended: RunEnded) -> None:
    with place.database.transaction() as session:
        endings.succeed_work(
            session, claim.lease, result=ended.result, message="The file was looked at", now=clock(session)
        )


def _settle_validation(place: Place, claim: Claim, ended: RunEnded) -> None:
    report: dict[str, Any] = ended.result["report"]
    with place.database.transaction() as session:
        endings.succeed_validation(
            session,
            claim.lease,
            report=report,
            message=None if report["valid"] else ended.result["message"],
            new_work_id=lambda: new_id("work"),
            now=clock(session),
        )


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
