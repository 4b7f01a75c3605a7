"""What a job will be and cost, before it is submitted: the answer of `jobs/estimate` and `--dry-run`.

Entered by `estimate`. A problem is what would make the job fail; a warning is what its owner may not have
meant. Both name the field and what to do.
"""

from collections.abc import Iterator
from typing import Any

from luthier.planning import steps
from luthier.planning.advice import Fix, advice, told_of
from luthier.planning.facts import DeviceFacts, RateFacts, TokenFacts
from luthier.planning.footprint import MIB, MemoryEstimate, memory_of_rows
from luthier.planning.pace import saved_bytes, time
from luthier.planning.shape import ModelShape
from luthier.spec import (
    HYPERPARAMETERS_PATH,
    Hyperparameters,
    HyperparametersRequest,
    JobRequest,
    QloraRequest,
)
from luthier.spec.base import Frozen

# Prepared rows on disk as the trainer maps them: an int32 id and a byte of mask for each token.
_BYTES_PER_TOKEN = 5
_MANY_TRUNCATED = 0.05


class Remark(Frozen):
    """A problem or a warning.

    Attributes:
        param: dotted field of the job's body, or None.
    """

    code: str
    message: str
    param: str | None = None


class MemoryReport(Frozen):
    """Memory needed against memory there, in MiB; `available_mb` and `fits` are None where nobody knows."""

    needed_mb: int
    available_mb: int | None
    fits: bool | None
    breakdown: dict[str, int]


class Seconds(Frozen):
    """From the start of the trainer to its end: half, and nine of ten, of runs are done by then."""

    p50: float
    p90: float
    basis: str


class Estimate(Frozen):
    """What a job will be and cost.

    Attributes:
        train_tokens: real tokens that the steps go over, all epochs together.
        examples: rows of the training files, by weight.
        truncated_examples: of these, the ones that lose tokens.
        resolved_hyperparameters: OpenAI's three.
        resolved_qlora: all others, with `gradient_checkpointing` as the trainer would decide it.
        memory, seconds: None where the model's shape is not known.
        disk_mb: the most that the run's folder takes.
        advice: what would make it fit; empty where it does.
    """

    valid: bool
    problems: tuple[Remark, ...]
    warnings: tuple[Remark, ...]
    train_tokens: int
    examples: int
    truncated_examples: int
    steps: int
    resolved_hyperparameters: dict[str, Any]
    resolved_qlora: dict[str, Any]
    memory: MemoryReport | None
    seconds: Seconds | None
    disk_mb: int | None
    advice: tuple[Fix, ...]


def estimate(
    request: JobRequest,
    shape: ModelShape | None,
    tokens: TokenFacts,
    device: DeviceFacts | None,
    *,
    max_seq_length: int | None = None,
    rates: RateFacts | None = None,
    settings: Hyperparameters | None = None,
) -> Estimate:
    """Plan a job without starting it.

    Args:
        shape: of its model; None where config.json did not tell one.
        device: the one that it would run on; None where no worker is known, which leaves a GPU without limit.
        max_seq_length: as the rows were measured; None for what the request and the model's context give.
        rates: of earlier runs of the same model, method and device.
        settings: of a run that is repeated; None where they follow from the request.
    """
    context = shape.context_length if shape else None
    length = max_seq_length or steps.max_seq_length(request.qlora.max_seq_length, context)
    seed = request.seed if request.seed is not None else request.qlora.seed
    is_seed_open = settings is None and seed is None
    settings = settings or steps.resolve(
        request, tokens.row_count, length, seed or 0, token_count=tokens.token_count, longest=tokens.longest
    )
    place = device or DeviceFacts(kind="cuda")
    needed = memory_of_rows(shape, settings, tokens, place) if shape else None
    report = _report(needed, device) if needed else None
    is_too_large = report is not None and report.fits is False
    fixes = advice(shape, settings, tokens, place) if shape and is_too_large else ()
    problems = tuple(_problems(shape, settings, tokens, report, fixes))
    return Estimate(
        valid=not problems,
        problems=problems,
        warnings=tuple(_warnings(request, shape, settings, tokens, place)),
        train_tokens=_train_tokens(settings, tokens),
        examples=tokens.row_count,
        truncated_examples=tokens.truncated_row_count,
        steps=settings.max_steps,
        memory=report,
        seconds=_seconds(shape, settings, tokens, place, needed=needed, rates=rates),
        disk_mb=_disk_mb(shape, settings, tokens) if shape else None,
        advice=fixes,
        **_resolved(settings, needed, is_seed_open=is_seed_open),
    )


def unfit_adapters(shape: ModelShape, settings: Hyperparameters | QloraRequest) -> Iterator[Remark]:
    """What makes adapters impossible on a model: modules that it lacks, or an r above its layers' sides."""
    if settings.method == "full":
        return
    names = [linear.name for linear in shape.linears]
    unknown = (
        [] if isinstance(settings.target_modules, str) else sorted({*settings.target_modules} - {*names})
    )
    if unknown and shape.is_exact:
        yield Remark(
            code="invalid_value",
            message=f"target_modules names {', '.join(unknown)}, which the model does not have. It has: "
            f"{', '.join(sorted(names))}",
            param="qlora.target_modules",
        )
    sides = [
        (min(linear.in_features, linear.out_features), linear.name)
        for linear in shape.targets(settings.target_modules)
    ]
    side, name = min(sides, default=(settings.r, ""))
    if settings.r > side:
        yield Remark(
            code="invalid_value",
            message=f"r is {settings.r} and the smallest target module, {name}, has a side of {side}: set "
            f"qlora.r to {side} or less",
            param="qlora.r",
        )


def _report(needed: MemoryEstimate, device: DeviceFacts | None) -> MemoryReport:
    available = device.available_bytes if device else None
    return MemoryReport(
        needed_mb=round(needed.needed_bytes / MIB),
        available_mb=None if available is None else round(available / MIB),
        fits=None if available is None else needed.needed_bytes <= available,
        breakdown={name: round(size / MIB) for name, size in needed.breakdown.items()},
    )


def _seconds(
    shape: ModelShape | None,
    settings: Hyperparameters,
    tokens: TokenFacts,
    device: DeviceFacts,
    *,
    needed: MemoryEstimate | None,
    rates: RateFacts | None,
) -> Seconds | None:
    if shape is None or needed is None:
        return None
    told = time(shape, settings, tokens, device, checkpointing=needed.gradient_checkpointing, rates=rates)
    return Seconds(p50=told.p50, p90=told.p90, basis=told.basis)


def _train_tokens(settings: Hyperparameters, tokens: TokenFacts) -> int:
    """Tokens of the rows that the steps take; the last step of an epoch may be short."""
    rows, _ = steps.split_row_counts(tokens.row_count, settings.validation_split, settings.validation_rows)
    of_epoch = tokens.token_count * rows / tokens.row_count
    units = rows
    if settings.packing:
        units = steps.packed_row_count(rows, round(of_epoch), tokens.longest, settings.max_seq_length)
    per_epoch = -(-units // (settings.batch_size * settings.gradient_accumulation))
    return round(of_epoch * settings.max_steps / per_epoch)


def _disk_mb(shape: ModelShape, settings: Hyperparameters, tokens: TokenFacts) -> int:
    """Checkpoints that are kept and one that is being written, the artifacts, and the rows."""
    saved = saved_bytes(shape, settings)
    kept = (settings.save_total_limit + 1) * saved + saved // 3
    return -(-(kept + _BYTES_PER_TOKEN * tokens.token_count) // MIB)


def _resolved(
    settings: Hyperparameters, needed: MemoryEstimate | None, *, is_seed_open: bool
) -> dict[str, dict[str, Any]]:
    numbers = settings.model_dump(mode="json")
    if is_seed_open:
        # It is drawn when the job is submitted.
        numbers["seed"] = None
    if needed is not None:
        numbers["gradient_checkpointing"] = needed.gradient_checkpointing
    of_openai = {name: numbers.pop(name) for name in HyperparametersRequest.model_fields}
    return {"resolved_hyperparameters": of_openai, "resolved_qlora": numbers}


def _problems(
    shape: ModelShape | None,
    settings: Hyperparameters,
    tokens: TokenFacts,
    report: MemoryReport | None,
    fixes: tuple[Fix, ...],
) -> Iterator[Remark]:
    if tokens.trained_token_count == 0:
        yield Remark(
            code="nothing_to_train",
            message="No row has a token that is trained on: look at the file's preview and dataset.train_on",
            param="training_file",
        )
    if shape is not None:
        yield from unfit_adapters(shape, settings)
        context = shape.context_length
        if context is not None and settings.max_seq_length > context:
            yield Remark(
                code="context_exceeded",
                message=f"max_seq_length is {settings.max_seq_length} and the model's context {context}: set "
                f"qlora.max_seq_length to {context} or less",
                param="qlora.max_seq_length",
            )
    if report is not None and report.fits is False:
        ways = "; or ".join(fix.message for fix in told_of(fixes)) or "use a smaller model or a larger device"
        yield Remark(
            code="capacity.vram",
            message=f"The run needs about {report.needed_mb:,} MiB and the device has "
            f"{report.available_mb:,} MiB: {ways}",
        )


def _warnings(
    request: JobRequest,
    shape: ModelShape | None,
    settings: Hyperparameters,
    tokens: TokenFacts,
    device: DeviceFacts,
) -> Iterator[Remark]:
    if shape is None:
        yield Remark(
            code="unknown_shape",
            message="The model's config.json does not tell its sizes, so memory and time are not estimated",
            param="model",
        )
    elif not shape.is_exact:
        yield Remark(
            code="unknown_family",
            message=f"model_type {shape.family} is not known and was counted as Llama's layout: memory and "
            "time may be off by a quarter",
            param="model",
        )
    for text in tokens.disagreements:
        yield Remark(
            code="template_mismatch", message=f"{text[0].upper()}{text[1:]}", param="dataset.template"
        )
    yield from _about_length(request, settings, tokens)
    yield from _about_rows(settings, tokens)
    if settings.precision == "bf16" and not device.has_bf16:
        yield Remark(
            code="slow_precision",
            message="The device has no instructions for bf16, so it is slow: set qlora.precision to 'auto' "
            "(in LLaMA-Factory's form, leave bf16 out)",
            param="qlora.precision",
        )


def _about_length(request: JobRequest, settings: Hyperparameters, tokens: TokenFacts) -> Iterator[Remark]:
    asked, length = request.qlora.max_seq_length, settings.max_seq_length
    if asked is not None and asked > length:
        yield Remark(
            code="context_exceeded",
            message=f"max_seq_length {asked} is more than the model's context, so {length} is used",
            param="qlora.max_seq_length",
        )
    if tokens.truncated_row_count > _MANY_TRUNCATED * tokens.row_count:
        share = tokens.truncated_row_count / tokens.row_count
        yield Remark(
            code="many_truncated",
            message=f"{share:.0%} of the rows are longer than {length} tokens: raise qlora.max_seq_length, "
            "or choose dataset.overlength",
            param="qlora.max_seq_length",
        )


def _about_rows(settings: Hyperparameters, tokens: TokenFacts) -> Iterator[Remark]:
    if not tokens.is_exact:
        yield Remark(
            code="sampled",
            message=f"Tokens were told from a sample of the rows: they may be off by "
            f"{tokens.relative_error:.0%}",
            param="training_file",
        )
    per_step = settings.batch_size * settings.gradient_accumulation
    rows, _ = steps.split_row_counts(tokens.row_count, settings.validation_split, settings.validation_rows)
    if rows < per_step and not settings.packing:
        yield Remark(
            code="few_rows",
            message=f"There are {rows} rows to train on and a step takes {per_step}: every step is a whole "
            "epoch. Lower batch_size or qlora.gradient_accumulation",
            param=f"{HYPERPARAMETERS_PATH}.batch_size",
        )
