"""Uploads in parts: their bodies, and what is shown of them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from api.multipart import MAX_SECONDS, MIN_SECONDS
from api.schemas.files import FileObject, file_object
from api.schemas.pages import Named, unix_seconds
from luthier.service.uploads import MAX_PARTS, status_of
from luthier.spec import Request
from luthier.tables import File, Upload, UploadPart

_PartId = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class ExpiresAfter(Request):
    """How long the finished file is kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_SECONDS, le=MAX_SECONDS)]


class UploadRequest(Request):
    """What is going to be sent.

    Attributes:
        bytes: of the whole file.
        mime_type: taken as OpenAI's API does; the content decides.
        on_bad_row: as in the form of `POST /v1/files`.
    """

    bytes: Annotated[int, Field(ge=1, le=2**63 - 1)]
    filename: Annotated[str, StringConstraints(min_length=1, max_length=5000)]
    mime_type: Annotated[str, StringConstraints(max_length=255)]
    purpose: Literal["fine-tune"]
    expires_after: ExpiresAfter | None = None
    on_bad_row: Literal["refuse", "drop", "keep"] = "refuse"


class CompleteRequest(Request):
    """Which parts make the file.

    Attributes:
        part_ids: in the order of the file.
        md5, sha256: of the whole file, in hexadecimal; bytes that have another one are not kept.
    """

    part_ids: Annotated[list[_PartId], Field(max_length=MAX_PARTS)]
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{32}$")] | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$")] | None = None


class UploadObject(Named):
    """`bytes` is the announced length; `file` is there once the upload is completed."""

    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None


class PartObject(Named):
    """A part as it arrived."""

    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
    bytes: int
    sha256: str


class UploadWithParts(UploadObject):
    """An upload with the parts that have arrived, in the order in which they came."""

    parts: Sequence[PartObject]


def upload_object(upload: Upload, file: File | None, now: datetime) -> UploadObject:
    """What a row shows."""
    return UploadObject(
        id=upload.id,
        bytes=upload.size_bytes,
        created_at=unix_seconds(upload.created_at),
        expires_at=unix_seconds(upload.expires_at),
        filename=upload.filename,
        purpose=upload.purpose,
        status=status_of(upload, now),
        file=None if file is None else file_object(file),
    )


def part_object(part: UploadPart) -> PartObject:
    """What a row shows."""
    return PartObject(
        id=part.id,
        created_at=unix_seconds(part.created_at),
        upload_id=part.upload_id,
        bytes=part.size_bytes,
        sha256=part.sha256,
    )
