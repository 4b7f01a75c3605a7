"""What an estimate is told: the device, the tokens, and rates that were seen before.

The API fills these from worker rows, the token report and ended jobs; the trainer from the device that it
stands on.
"""

from typing import Annotated, Literal

from pydantic import Field

from luthier.spec.base import Frozen


class DeviceFacts(Frozen):
    """A device as planning sees it.

    Attributes:
        total_bytes: of its memory, for the CPU of the machine's; None where nobody knows.
        free_bytes: of that, what a run may take now; None means all of it.
        has_bf16: whether it has instructions for bf16, so that "auto" precision means bf16.
        cores: of a CPU, those that a run computes on.
    """

    kind: Literal["cuda", "cpu"]
    name: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    has_bf16: bool = True
    cores: int = 2

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    @property
    def available_bytes(self) -> int | None:
        """What a run may take."""
        return self.total_bytes if self.free_bytes is None else self.free_bytes


class TokenFacts(Frozen):
    """How many rows and tokens the training data has, after the over-long rule.

    Attributes:
        row_count: rows that can be trained on, by weight, before any are held out.
        token_count: their tokens.
        trained_token_count: of these, the ones that the loss is taken over.
        longest: tokens of the longest row.
        truncated_row_count: rows that lost tokens.
        is_exact: whether all rows were tokenised.
        relative_error: of the counts, where they were told from a sample.
        validation_row_count, validation_token_count: of a validation file of its own.
        disagreements: sentences on where the template that counted them and the model differ.
    """

    row_count: Annotated[int, Field(ge=1)]
    token_count: Annotated[int, Field(ge=1)]
    trained_token_count: Annotated[int, Field(ge=0)]
    longest: Annotated[int, Field(ge=1)]
    truncated_row_count: int = 0
    is_exact: bool = True
    relative_error: float = 0.0
    validation_row_count: int = 0
    validation_token_count: int = 0
    disagreements: tuple[str, ...] = ()

    @property
    def trained_share(self) -> float:
        return min(1.0, self.trained_token_count / self.token_count)


class RateFacts(Frozen):
    """What ended runs of the same model, method and device did; it is better than any formula.

    Attributes:
        tokens_per_second: of real tokens, in training, the median over the runs.
        start_seconds: from the child's start to its first step; None where not known.
        run_count: how many runs these come from.
    """

    tokens_per_second: Annotated[float, Field(gt=0)]
    start_seconds: float | None = None
    run_count: Annotated[int, Field(ge=1)] = 1
