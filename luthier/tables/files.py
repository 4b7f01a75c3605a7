"""Files of users, those that are on their way in, and what was prepared of them."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    String,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from luthier.tables.base import Base, Id, partial_index


class File(Base):
    """A file that a user sent, or a result that Luthier made; its bytes lie at `storage_key`.

    Attributes:
        sha256: empty while a conversion is still writing the file.
        dataset_name: under which it is registered, and `dataset_entry`, how its rows are then read: a
            `DatasetEntry`.
    """

    __tablename__ = "files"
    __table_args__ = (
        Index(None, "project_id", "created_at", "id"),
        partial_index(
            "uq_files_dataset_name",
            "project_id",
            "dataset_name",
            where="dataset_name IS NOT NULL",
            unique=True,
        ),
        Index(None, "project_id", "sha256"),
        partial_index("ix_files_expiring", "expires_at", where="expires_at IS NOT NULL"),
    )
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str | None] = mapped_column(Id)
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger, active_history=True)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(512))
    status: Mapped[str] = mapped_column(String(16))
    status_details: Mapped[str | None] = mapped_column(Text)
    report: Mapped[dict[str, Any] | None]
    dataset_name: Mapped[str | None] = mapped_column(String(128))
    dataset_entry: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class PreparedRows(Base):
    """The rows of a file as tokens, for one model and one set of rules; all jobs of the project share them.

    Attributes:
        key: of all that the rows depend on, from `luthier.datasets.cache`.
        file_sha256: of the source; the rows go when the last file of that content goes.
        storage_key: a sealed folder.
        facts: `split`, a `PreparedSplit` with a storage key for a path and weight 1; `stats`; the
            `chat_template` that a model trained on them has to carry; and `warnings`.
    """

    __tablename__ = "prepared_data"
    __table_args__ = (Index(None, "project_id", "file_sha256"), Index(None, "last_used_at"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    file_sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(512))
    facts: Mapped[dict[str, Any]]
    size_bytes: Mapped[int] = mapped_column(BigInteger, active_history=True)
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime]


class Upload(Base):
    """A file that is sent in parts; it becomes a `File` when it is completed.

    Attributes:
        size_bytes: of the whole file, as it was announced.
        file_expires_seconds: how long the file is kept once it is there; null is for good.
        on_bad_row: as the form of a whole file has it.
        status: `pending`, `completed` or `cancelled`; a pending one whose time is over has expired.
        part_ids: in the order of the file, and `file_id`, what was made of them, once completed.
    """

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "expires_at"),)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    api_key_id: Mapped[str | None] = mapped_column(Id)
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    file_expires_seconds: Mapped[int | None]
    on_bad_row: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    part_ids: Mapped[list[str] | None]
    file_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class UploadPart(Base):
    """Bytes of an upload that lie in storage; the order of parts is told when it is completed."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index(None, "upload_id"),)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    size_bytes: Mapped[int] = mapped_column(BigInteger, active_history=True)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(512))
    created_at: Mapped[datetime]
