"""Bodies of the calls that look at a file, convert it, or give it a name.

How rows are read and cut is `dataset`, in the words of a job's body, so that what is shown is what a job
would do.
"""

from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator

from luthier.spec import Columns, DatasetRequest, Request

MAX_PREVIEW_ROWS = 100
# Rows times their longest length: an answer of some 20 MiB at most.
MAX_PREVIEW_TOKENS = 262_144
_MAX_ROWS_OF_A_FILE = 1_000_000_000

ModelId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
MaxSeqLength = Annotated[int, Field(ge=8, le=1_048_576)]


class ViewRequest(Request):
    """For whom a file is looked at: a model, and the rules of `dataset` as in a job.

    Attributes:
        max_seq_length: in tokens; default: as a job would have it, 2048 or the model's context.
    """

    model: ModelId
    dataset: DatasetRequest = DatasetRequest()
    max_seq_length: MaxSeqLength | None = None

    @field_validator("dataset")
    @classmethod
    def _one_file(cls, rules: DatasetRequest) -> DatasetRequest:
        if rules.files:
            raise ValueError("dataset.files is for jobs: a look is at one file, leave it out")
        return rules


class ReportRequest(ViewRequest):
    """For whom a file is reported on.

    Attributes:
        against: the id of a validation file; a warning tells of rows that both have.
    """

    against: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None


class PreviewRequest(ViewRequest):
    """Which rows to show: `rows` of them, behind the first `offset`."""

    rows: Annotated[int, Field(ge=1, le=MAX_PREVIEW_ROWS)] = 5
    offset: Annotated[int, Field(ge=0, le=_MAX_ROWS_OF_A_FILE)] = 0


class ConvertRequest(Request):
    """Which columns of a file become instruction, input and output.

    Attributes:
        columns: our field to the file's column; None where the file has a form that is known.
        filename: of the new file; default: the old name with `.prepared.jsonl`.
    """

    columns: Columns | None = None
    filename: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None


class RegisterRequest(Request):
    """A name for a file, and its entry of LLaMA-Factory's dataset_info.json as it stands there.

    Attributes:
        replace: take the name from another file that has it, once this one is found to fit the entry.
    """

    name: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f,]+$")]
    entry: dict[str, Any] = Field(default_factory=dict)
    replace: bool = False
