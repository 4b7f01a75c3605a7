"""Every argument of LLaMA-Factory (0.9.6, for `train` and `eval`), and what becomes of it here.

Names and defaults are those of its `hparams` and of transformers 4.55 to 5.x; the page
docs/llamafactory.md is printed from these rows.
"""

from collections.abc import Mapping

from luthier.llamafactory.table.data import DATA
from luthier.llamafactory.table.finetuning import (
    FREEZE,
    LORA,
    LOW_MEMORY_OPTIMIZERS,
    METHOD,
    OFT,
    PREFERENCES,
    SWANLAB,
)
from luthier.llamafactory.table.model import EXPORT, INFERENCE, KTRANSFORMERS, MODEL, MULTIMODAL, QUANTIZATION
from luthier.llamafactory.table.rows import Argument, Group, Treatment
from luthier.llamafactory.table.running import (
    DISTRIBUTION,
    EVAL_COMMAND,
    EVALUATION,
    GENERATION,
    LOGGING,
    PROFILING,
    SAVING,
    WHAT,
)
from luthier.llamafactory.table.training import PRECISION, SCHEDULE

__all__ = ["ARGUMENTS", "GROUPS", "Argument", "Group", "Treatment"]

GROUPS: tuple[Group, ...] = (
    MODEL,
    QUANTIZATION,
    WHAT,
    METHOD,
    LORA,
    FREEZE,
    DATA,
    SCHEDULE,
    PRECISION,
    EVALUATION,
    SAVING,
    LOGGING,
    DISTRIBUTION,
    GENERATION,
    EVAL_COMMAND,
    EXPORT,
    INFERENCE,
    MULTIMODAL,
    OFT,
    PREFERENCES,
    LOW_MEMORY_OPTIMIZERS,
    SWANLAB,
    KTRANSFORMERS,
    PROFILING,
)

ARGUMENTS: Mapping[str, Argument] = {
    argument.name: argument for group in GROUPS for argument in group.arguments
}
