"""What to change so that a run fits, with the memory that each change would need.

The changes and their order are those that users of such trainers are commonly told when memory runs out: four
bits, one row at a time, recomputed activations, shorter rows; then what only some runs have.
"""

import json
from collections.abc import Iterator
from typing import Any

from luthier.planning.facts import DeviceFacts, TokenFacts
from luthier.planning.footprint import MIB, MemoryEstimate, memory_of_rows
from luthier.planning.shape import ModelShape
from luthier.spec import HYPERPARAMETERS_PATH, Hyperparameters, HyperparametersRequest
from luthier.spec.base import Frozen

_SHORT_LENGTH = 512
_SMALL_RANK = 8
# A change that leaves more than this of the memory is not worth its telling.
_WORTH = 0.98
_FIXES_TOLD = 3


class Fix(Frozen):
    """One change, or several that are needed together.

    Attributes:
        changes: dotted fields of the job's body, and the values that they should have.
        message: the same for people, with the memory that it gives.
        fits: whether the run then fits.
    """

    changes: dict[str, Any]
    message: str
    needed_mb: int
    fits: bool


def advice(
    shape: ModelShape, settings: Hyperparameters, tokens: TokenFacts, device: DeviceFacts
) -> tuple[Fix, ...]:
    """Changes that each lower the memory of a run, in the order to try them.

    Where no single one is enough, the last one is as many of them, from the first on, as are enough together.
    """
    limit = device.available_bytes or 0
    before = memory_of_rows(shape, settings, tokens, device).needed_bytes
    fixes: list[Fix] = []
    combined: dict[str, Any] = {}
    enough: Fix | None = None
    for change in _changes(shape, settings, tokens):
        alone = _try(change, shape, settings, tokens, device)
        if alone.needed_bytes < _WORTH * before:
            fixes.append(_fix(change, alone, limit))
        combined |= change
        together = _try(combined, shape, settings, tokens, device)
        if enough is None and together.needed_bytes <= limit:
            enough = _fix(combined, together, limit)
    if enough is not None and not any(fix.fits for fix in fixes):
        fixes.append(enough)
    return tuple(fixes)


def told_of(fixes: tuple[Fix, ...]) -> tuple[Fix, ...]:
    """The three to name in a message: those that suffice before the others, each kind in its order."""
    return tuple(sorted(fixes, key=lambda fix: not fix.fits)[:_FIXES_TOLD])


def _changes(shape: ModelShape, settings: Hyperparameters, tokens: TokenFacts) -> Iterator[dict[str, Any]]:
    if settings.quantization not in ("nf4", "fp4"):
        yield {"method": "qlora", "quantization": "nf4", "trainable_layers": None}
    if settings.batch_size > 1:
        yield {
            "batch_size": 1,
            "gradient_accumulation": settings.batch_size * settings.gradient_accumulation,
        }
    if settings.gradient_checkpointing is False:
        yield {"gradient_checkpointing": True}
    longest = settings.max_seq_length if settings.packing else min(tokens.longest, settings.max_seq_length)
    if longest > _SHORT_LENGTH:
        yield {"max_seq_length": _SHORT_LENGTH}
    if settings.optimizer == "adamw":
        yield {"optimizer": "paged_adamw_8bit"}
    if settings.method != "full" and settings.r > _SMALL_RANK:
        yield {"r": _SMALL_RANK, "alpha": settings.alpha * _SMALL_RANK / settings.r}
    if settings.method == "full" and settings.trainable_layers is None:
        yield {"trainable_layers": max(1, shape.layers // 4)}


def _try(
    change: dict[str, Any],
    shape: ModelShape,
    settings: Hyperparameters,
    tokens: TokenFacts,
    device: DeviceFacts,
) -> MemoryEstimate:
    return memory_of_rows(shape, settings.model_copy(update=change), tokens, device)


def _fix(change: dict[str, Any], needed: MemoryEstimate, limit: int) -> Fix:
    named = {_place(key): value for key, value in change.items() if value is not None}
    fits = needed.needed_bytes <= limit
    text = ", ".join(f"{field} to {json.dumps(value)}" for field, value in named.items())
    megabytes = round(needed.needed_bytes / MIB)
    outcome = "which fits" if fits else "which is still too much"
    return Fix(
        changes=named,
        message=f"set {text}: {megabytes:,} MiB, {outcome}",
        needed_mb=megabytes,
        fits=fits,
    )


def _place(setting: str) -> str:
    """Where a setting stands in a job's body."""
    group = HYPERPARAMETERS_PATH if setting in HyperparametersRequest.model_fields else "qlora"
    return f"{group}.{setting}"
