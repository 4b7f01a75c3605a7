"""How "auto" becomes numbers, and how many steps a run will take.

Entered by the service when a dataset is prepared, and by `luthier train`. The rules are few and stated, so
that a user can foretell them. With packing, and where rows are held out from files of different weight, the
rows of a step can only be estimated here; the trainer, which packs and mixes, makes `max_steps` exact.
"""

import math
from typing import Any

from luthier.spec import Hyperparameters, JobRequest, Method, QloraRequest, SharedSteps, StepRule

# What learning_rate_multiplier multiplies.
BASE_LEARNING_RATES: dict[Method, float] = {"qlora": 2e-4, "lora": 2e-4, "full": 2e-5}
_DEFAULT_MAX_SEQ_LENGTH = 2048
DEFAULT_WARMUP_RATIO = 0.03
_AUTO_EPOCHS = 3
_AUTO_EXAMPLES_PER_STEP = 16
_AUTO_MICRO_BATCH = 8
_AUTO_STEPS_PER_EPOCH = 32
_AUTO_SAVE_STEPS = 500
_AUTO_EVALS, _AUTO_EVAL_STEPS = 8, 10
# How full packed rows are where rows are short beside `max_seq_length`; best-fit packing leaves 1 to 3 %.
PACKED_FILL = 0.97
# What is neither resolved nor chosen.
_AS_ASKED = (
    "method",
    "epochs",
    "r",
    "dropout",
    "target_modules",
    "bias",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "trainable_layers",
    "double_quant",
    "precision",
    "packing",
    "optimizer",
    "loraplus_lr_ratio",
    "lr_scheduler",
    "lr_restarts",
    "min_lr_ratio",
    "weight_decay",
    "gradient_checkpointing",
    "max_grad_norm",
    "save_total_limit",
    "early_stopping",
    "neftune_alpha",
    "samples",
    "auto_fit",
    "engine",
)
# Rows count as alike where their mean length is this share of the longest.
_ALIKE = 0.9


def split_row_counts(
    row_count: int, validation_split: float, validation_rows: int | None = None
) -> tuple[int, int]:
    """Rows for training and for validation; with a split, at least one of each where two rows exist."""
    if (validation_split <= 0 and validation_rows is None) or row_count < 2:
        return row_count, 0
    asked = round(row_count * validation_split) if validation_rows is None else validation_rows
    held_out = min(max(1, asked), row_count - 1)
    return row_count - held_out, held_out


def max_seq_length(asked: int | None, context_length: int | None) -> int:
    """The asked length, or 2048, and never more than the model's context."""
    length = asked or _DEFAULT_MAX_SEQ_LENGTH
    return length if context_length is None else min(length, context_length)


def packed_row_count(row_count: int, token_count: int, longest: int | None, max_seq_length: int) -> int:
    """Rows of `max_seq_length` that packing makes of `row_count` rows, estimated; at least one.

    A packed row is filled to 97 %. As many rows as the longest fits in times always share one, which is the
    most packed rows that there can be; where the rows are nearly alike, it is also what there will be.
    """
    by_tokens = max(1, math.ceil(token_count / (max_seq_length * PACKED_FILL)))
    if not longest:
        return min(row_count, by_tokens)
    at_most = math.ceil(row_count / max(1, max_seq_length // longest))
    are_alike = token_count >= _ALIKE * row_count * longest
    return at_most if are_alike else min(at_most, by_tokens)


def resolve(
    request: JobRequest,
    row_count: int,
    max_seq_length: int,
    seed: int,
    *,
    token_count: int | None = None,
    longest: int | None = None,
) -> Hyperparameters:
    """Every number that steers training.

    Args:
        row_count: rows of the training files that can be trained on, by weight, before the validation split.
        max_seq_length: in tokens, as prepared.
        seed: the one that the job shows, asked for or drawn.
        token_count: of these rows; with packing the steps are estimated from it. Without it a packed row is
            taken to hold one row, which is the most steps that there can be.
        longest: tokens of the longest row; None or 0 where nobody knows.

    With "auto": 3 epochs; as many examples a step as give about 32 steps an epoch, a power of two up to 16,
    up to 8 of them in one micro-batch; 8 evaluations a run, at least 10 steps apart; a checkpoint every 500
    steps and at least 4 a run. With packing an example is a packed row. `max_steps`, where given, is taken
    exactly.
    """
    qlora, dataset = request.qlora, request.dataset
    return Hyperparameters(
        **{name: getattr(qlora, name) for name in _AS_ASKED},
        **_length(request, _train_rows(request, row_count, max_seq_length, token_count, longest)),
        **_learning_rate(request),
        alpha=qlora.alpha if qlora.alpha is not None else 2.0 * qlora.r,
        quantization=qlora.quantization or ("nf4" if qlora.method == "qlora" else "none"),
        max_seq_length=max_seq_length,
        validation_split=dataset.validation_split,
        validation_rows=dataset.validation_rows,
        seed=seed,
    )


def with_max_steps(settings: Hyperparameters, max_steps: int, steps_per_epoch: int) -> Hyperparameters:
    """The settings of a run of so many steps; those that follow from them are counted again."""
    shared = {
        name: _every(name, rule, max_steps, steps_per_epoch) for name, rule in settings.step_shares.items()
    }
    return settings.model_copy(update={"max_steps": max_steps} | shared)


def _train_rows(
    request: JobRequest, row_count: int, max_seq_length: int, token_count: int | None, longest: int | None
) -> int:
    """Examples of an epoch; with packing, packed rows."""
    dataset = request.dataset
    rows, _ = split_row_counts(row_count, dataset.validation_split, dataset.validation_rows)
    if not request.qlora.packing or token_count is None:
        return rows
    share = rows / row_count
    return packed_row_count(rows, math.ceil(token_count * share), longest, max_seq_length)


def _length(request: JobRequest, train_rows: int) -> dict[str, Any]:
    """How many steps there are, of how many rows, and when something is due between them."""
    qlora = request.qlora
    batch_size, accumulation = _batching(request, train_rows)
    steps_per_epoch = math.ceil(train_rows / (batch_size * accumulation))
    n_epochs = _AUTO_EPOCHS if request.asked.n_epochs == "auto" else request.asked.n_epochs
    total = qlora.max_steps or math.ceil(steps_per_epoch * (qlora.epochs or n_epochs))
    names: tuple[SharedSteps, ...] = ("eval_steps", "save_steps", "logging_steps")
    return {
        "batch_size": batch_size,
        "gradient_accumulation": accumulation,
        "n_epochs": max(1, math.ceil(total / steps_per_epoch)),
        "max_steps": total,
        "are_steps_estimated": qlora.max_steps is None
        and (qlora.packing or _is_mixed_after_holding_out(request)),
        "warmup_steps": _warmup_steps(qlora, total),
        **{name: _every(name, getattr(qlora, name), total, steps_per_epoch) for name in names},
        "step_shares": _rules(qlora, names),
    }


def _learning_rate(request: JobRequest) -> dict[str, float]:
    """The rate, and how many times the method's own it is."""
    multiplier = request.asked.learning_rate_multiplier
    base_rate = BASE_LEARNING_RATES[request.qlora.method]
    rate = request.qlora.learning_rate or base_rate * (1.0 if multiplier == "auto" else multiplier)
    return {"learning_rate": rate, "learning_rate_multiplier": rate / base_rate}


def _is_mixed_after_holding_out(request: JobRequest) -> bool:
    """Rows are held out from all files together, so which file loses how many is not known from here."""
    return request.dataset.holds_out_rows and any(weight != 1 for weight in request.training_files.values())


def _batching(request: JobRequest, train_rows: int) -> tuple[int, int]:
    """Examples in a micro-batch and micro-batches in a step."""
    asked_batch, asked_accumulation = request.asked.batch_size, request.qlora.gradient_accumulation
    fitting = max(1, min(_AUTO_EXAMPLES_PER_STEP, train_rows // _AUTO_STEPS_PER_EPOCH))
    per_step = 1 << (fitting.bit_length() - 1)
    batch = asked_batch if asked_batch != "auto" else min(_AUTO_MICRO_BATCH, per_step)
    accumulation = asked_accumulation if asked_accumulation != "auto" else max(1, per_step // batch)
    return batch, accumulation


def _warmup_steps(qlora: QloraRequest, total_steps: int) -> int:
    if qlora.warmup_steps is not None:
        return qlora.warmup_steps
    return _share_of(total_steps, _warmup_ratio(qlora))


def _warmup_ratio(qlora: QloraRequest) -> float:
    return DEFAULT_WARMUP_RATIO if qlora.warmup_ratio is None else qlora.warmup_ratio


def _every(name: SharedSteps, asked: int | StepRule, total_steps: int, steps_per_epoch: int) -> int:
    """The steps between two of a kind."""
    if isinstance(asked, float):
        return _share_of(total_steps, asked)
    if isinstance(asked, str):
        return steps_per_epoch if asked == "epoch" else _auto_steps(name, total_steps)
    return asked


def _auto_steps(name: SharedSteps, total_steps: int) -> int:
    match name:
        case "eval_steps":
            return max(math.ceil(total_steps / _AUTO_EVALS), min(total_steps, _AUTO_EVAL_STEPS))
        case "save_steps":
            return min(_AUTO_SAVE_STEPS, max(1, math.ceil(total_steps / 4)))
        case _:
            return min(10, max(1, total_steps // 200))


def _rules(qlora: QloraRequest, names: tuple[SharedSteps, ...]) -> dict[SharedSteps, StepRule]:
    """What is not a number of steps by itself."""
    asked: dict[SharedSteps, int | StepRule] = {name: getattr(qlora, name) for name in names}
    rules: dict[SharedSteps, StepRule] = {
        name: rule for name, rule in asked.items() if not isinstance(rule, int)
    }
    return rules if qlora.warmup_steps is not None else rules | {"warmup_steps": _warmup_ratio(qlora)}


def _share_of(total_steps: int, share: float) -> int:
    return math.ceil(total_steps * share)
