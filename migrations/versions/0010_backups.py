"""Backups: a note of the last one, where every host finds it."""

import sqlalchemy as sa
from alembic import op

from luthier.tables import UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "backups",
        sa.Column("made_at", UtcDateTime(), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("folder", sa.String(length=4096), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_backups_project_id")),
        sa.PrimaryKeyConstraint("made_at", name=op.f("pk_backups")),
    )


def downgrade() -> None:
    op.drop_table("backups")
