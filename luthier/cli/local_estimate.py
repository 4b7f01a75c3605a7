"""What a job of this machine would be and cost, for `luthier train --dry-run`; nothing is left of the look.

Its files are read whole and checked, as a server does on upload, and their first rows become tokens.
"""

from collections.abc import Sequence
from typing import Any

from luthier import planning
from luthier.cli.local_job import LocalJob
from luthier.cli.local_look import RUN, run_look
from luthier.cli.local_run import sources_of
from luthier.client import Estimate
from luthier.devices import Device
from luthier.models import BaseModel, shape_of
from luthier.planning import SAMPLED_ROWS, DeviceFacts, TokenFacts
from luthier.spec import BaseModelRef, MeasureSpec, ModelView, SourceFile, ValidateSpec


def estimate_local(job: LocalJob, model: BaseModel, device: Device, threads: int) -> Estimate:
    """An estimate for this machine; a file or a model that cannot be read at all ends the command."""
    sources = sources_of(job)
    checks = [run_look(ValidateSpec(**RUN, file=source)) for source in sources]
    if problems := _problems(job, sources, [check["message"] for check in checks]):
        return Estimate(valid=False, problems=problems)
    length = planning.max_seq_length(job.request.qlora.max_seq_length, model.context_length)
    tokens = _tokens(job, model, sources, [check["report"]["row_count"] for check in checks], length)
    if tokens is None:
        text = "No row is left to train on: look at the file's preview, and at dataset.overlength"
        problem = {"code": "nothing_to_train", "message": text, "param": "training_file"}
        return Estimate(valid=False, problems=[problem])
    told = planning.estimate(
        job.request,
        shape_of(model),
        tokens,
        _facts_of(device, threads),
        max_seq_length=length,
        settings=job.hyperparameters,
    )
    counted = {"is_exact": tokens.is_exact, "relative_error": tokens.relative_error}
    return Estimate.model_validate(told.model_dump(mode="json") | {"tokens": counted})


def _problems(
    job: LocalJob, sources: Sequence[SourceFile], messages: Sequence[str | None]
) -> list[dict[str, Any]]:
    """Files that preparation would refuse."""
    if job.request.dataset.on_bad_row == "drop":
        return []
    return [
        {
            "code": f"invalid_{'validation' if source.param == 'validation_file' else 'training'}_file",
            "message": f"{source.filename}: {message}",
            "param": source.param,
        }
        for source, message in zip(sources, messages, strict=True)
        if message is not None
    ]


def _tokens(
    job: LocalJob, model: BaseModel, sources: Sequence[SourceFile], row_counts: Sequence[int], length: int
) -> TokenFacts | None:
    """Rows and tokens of the files, from the first rows of each; None where none are left."""
    rules = job.request.dataset
    reference = BaseModelRef(id=model.id, path=str(model.path), revision=model.revision)
    view = ModelView(model=reference, dataset=rules, max_seq_length=length)
    found = run_look(MeasureSpec(**RUN, files=tuple(sources), view=view, max_rows=SAMPLED_ROWS))["files"]
    pairs = [
        (planning.counted_by_sample(report, row_count, length), source)
        for report, row_count, source in zip(found, row_counts, sources, strict=True)
    ]
    train = [(count, source.weight) for count, source in pairs if source.param != "validation_file"]
    validation = next((count for count, source in pairs if source.param == "validation_file"), None)
    return planning.token_facts(train, validation, rules.max_samples)


def _facts_of(device: Device, threads: int) -> DeviceFacts:
    return DeviceFacts(
        kind="cuda" if device.is_gpu else "cpu",
        name=device.name,
        total_bytes=device.memory_bytes or None,
        has_bf16=device.has_bf16,
        cores=threads,
    )
