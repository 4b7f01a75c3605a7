"""What a look at a file finds: its validation report, some rows as a model sees them, its registration.

Reports and rows go out as the cpu agent's child has made them; only what is owed to the API is added.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.spec import DatasetEntry
from luthier.tables import File


class ValidationObject(BaseModel):
    """What was found in a file; `tokens` is there where it was asked for a model.

    `errors` holds the first 100 of each code, `error_count` counts all.
    """

    model_config = ConfigDict(extra="allow")

    object: Literal["file.validation"] = "file.validation"
    file_id: str
    valid: bool
    format: str | None = Field(default=None, examples=["alpaca"])
    row_count: int = 0
    size_bytes: int = 0
    error_count: int = 0
    errors: Sequence[Mapping[str, Any]] = Field(
        default=(),
        examples=[
            [{"line": 7, "loc": "messages[1].content", "code": "chat.content_empty", "message": "..."}]
        ],
    )
    warnings: Sequence[Mapping[str, Any]] = ()
    statistics: Mapping[str, Any] | None = None
    tokens: Mapping[str, Any] | None = None


class PreviewObject(BaseModel):
    """Rows of a file as a model sees them: the rendered text, its tokens, and which are trained on."""

    object: Literal["file.preview"] = "file.preview"
    file_id: str
    model: str
    offset: int
    max_seq_length: int
    data: Sequence[Mapping[str, Any]]


class RegistrationObject(BaseModel):
    """A file under a name, and how its rows are read; `warnings` tell what is odd about the entry."""

    object: Literal["file.registration"] = "file.registration"
    file_id: str
    name: str
    entry: DatasetEntry
    warnings: Sequence[str]


def validation_object(file: File, report: Mapping[str, Any]) -> ValidationObject:
    """What a report shows. Reports of older releases lack some fields.

    A file that could not be read to its end has no report, and its `status_details` say why.
    """
    known = {"valid": file.status != "error"} | dict(report)
    if not report and file.status_details:
        error = {"line": None, "path": "", "code": "file.unchecked", "message": file.status_details}
        known |= {"errors": [error], "error_count": 1}
    return ValidationObject.model_validate(known | {"file_id": file.id})
