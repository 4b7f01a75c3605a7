"""The arithmetic of a plan: settings, steps, memory and time, known before a device is taken.

`resolve` makes numbers of a request; `memory` and `time` say what these will cost on a device; `estimate`
puts all of it together with what is wrong and what to change. The trainer plans with the same functions.
Nothing here looks at a device or a file: facts come in, models go out.
"""

from luthier.planning.advice import Fix
from luthier.planning.counts import SAMPLED_ROWS, Counted, counted_by_sample, counted_exactly, token_facts
from luthier.planning.estimates import Estimate, MemoryReport, Remark, Seconds, estimate, unfit_adapters
from luthier.planning.facts import DeviceFacts, RateFacts, TokenFacts
from luthier.planning.footprint import MemoryEstimate, memory, wants_checkpointing
from luthier.planning.pace import TimeEstimate, time
from luthier.planning.shape import ModelShape, ShapeError
from luthier.planning.steps import (
    BASE_LEARNING_RATES,
    DEFAULT_WARMUP_RATIO,
    max_seq_length,
    packed_row_count,
    resolve,
    split_row_counts,
    with_max_steps,
)

__all__ = [
    "BASE_LEARNING_RATES",
    "DEFAULT_WARMUP_RATIO",
    "SAMPLED_ROWS",
    "Counted",
    "DeviceFacts",
    "Estimate",
    "Fix",
    "MemoryEstimate",
    "MemoryReport",
    "ModelShape",
    "RateFacts",
    "Remark",
    "Seconds",
    "ShapeError",
    "TimeEstimate",
    "TokenFacts",
    "counted_by_sample",
    "counted_exactly",
    "estimate",
    "max_seq_length",
    "memory",
    "packed_row_count",
    "resolve",
    "split_row_counts",
    "time",
    "token_facts",
    "unfit_adapters",
    "wants_checkpointing",
    "with_max_steps",
]
