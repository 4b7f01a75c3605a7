"""Retention: indexes for what is looked for because its time is over, or because a job still needs it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SENT = sa.text("sent_at IS NOT NULL")
EXPIRING = sa.text("expires_at IS NOT NULL")
RESUMING = sa.text("resume_from IS NOT NULL")


def upgrade() -> None:
    op.create_index("ix_outbox_sent", "outbox", ["sent_at"], postgresql_where=SENT, sqlite_where=SENT)
    op.create_index(
        "ix_files_expiring", "files", ["expires_at"], postgresql_where=EXPIRING, sqlite_where=EXPIRING
    )
    op.create_index(
        "ix_jobs_resume_from", "jobs", ["resume_from"], postgresql_where=RESUMING, sqlite_where=RESUMING
    )
    op.create_index(op.f("ix_prepared_data_last_used_at"), "prepared_data", ["last_used_at"])


def downgrade() -> None:
    op.drop_index(op.f("ix_prepared_data_last_used_at"), "prepared_data")
    op.drop_index("ix_jobs_resume_from", "jobs", postgresql_where=RESUMING, sqlite_where=RESUMING)
    op.drop_index("ix_files_expiring", "files", postgresql_where=EXPIRING, sqlite_where=EXPIRING)
    op.drop_index("ix_outbox_sent", "outbox", postgresql_where=SENT, sqlite_where=SENT)
