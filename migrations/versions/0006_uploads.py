"""Uploads in parts, permissions on checkpoints, and models that their owner has deleted."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from luthier.tables import UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("api_key_id", sa.String(length=64), nullable=True),
        sa.Column("filename", sa.String(length=512), nullable=False),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_expires_seconds", sa.Integer(), nullable=True),
        sa.Column("on_bad_row", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("part_ids", JSON, nullable=True),
        sa.Column("file_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_uploads_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_expires_at"), "uploads", ["expires_at"])
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("upload_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("storage_key", sa.String(length=512), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name=op.f("fk_upload_parts_upload_id")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_upload_parts_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload_parts")),
    )
    op.create_index(op.f("ix_upload_parts_upload_id"), "upload_parts", ["upload_id"])
    op.create_table(
        "checkpoint_permissions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=512), nullable=False),
        sa.Column("granted_project_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_checkpoint_permissions_project_id")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_checkpoint_permissions_job_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["granted_project_id"], ["projects.id"], name=op.f("fk_checkpoint_permissions_granted_project_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoint_permissions")),
        sa.UniqueConstraint(
            "project_id", "model", "granted_project_id",
            name=op.f("uq_checkpoint_permissions_project_id_model_granted_project_id"),
        ),
    )
    op.create_index(
        op.f("ix_checkpoint_permissions_granted_project_id_model"),
        "checkpoint_permissions",
        ["granted_project_id", "model"],
    )
    op.add_column("jobs", sa.Column("model_deleted_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    op.execute(
        "UPDATE projects SET storage_bytes = storage_bytes - COALESCE("
        "(SELECT SUM(size_bytes) FROM upload_parts WHERE upload_parts.project_id = projects.id), 0)"
    )
    op.drop_column("jobs", "model_deleted_at")
    op.drop_table("checkpoint_permissions")
    op.drop_table("upload_parts")
    op.drop_table("uploads")
