"""Files, as OpenAI's API shows them."""

from typing import Literal

from pydantic import BaseModel

from api.schemas.pages import Named, optional_seconds, unix_seconds
from luthier.tables import File


class FileObject(Named):
    """`status` is `uploaded` while the file is being checked, then `processed` or `error`.

    `dataset_name` is the one that it is registered under.
    """

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None
    dataset_name: str | None


class FileDeleted(BaseModel):
    """The answer to DELETE."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def file_object(file: File) -> FileObject:
    """What a row shows."""
    return FileObject(
        id=file.id,
        bytes=file.size_bytes,
        created_at=unix_seconds(file.created_at),
        expires_at=optional_seconds(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
        status=file.status,
        status_details=file.status_details,
        dataset_name=file.dataset_name,
    )
