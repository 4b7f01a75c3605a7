"""Scale: metadata that jobs can be found by, and indexes for lists and sums over very many jobs."""

import sqlalchemy as sa
from alembic import op

from luthier.tables import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

PLAIN = sa.text("user_metadata IS NULL AND kind = 'train'")
SUCCEEDED = sa.text("state = 'succeeded' AND kind = 'train'")
ENDED = sa.text("finished_at IS NOT NULL")
ERRANDS = sa.text("work_key IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "job_metadata",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("value", sa.String(length=512), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_metadata_job_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_job_metadata_project_id")),
        sa.PrimaryKeyConstraint("job_id", "key", name=op.f("pk_job_metadata")),
    )
    _fill_metadata()
    op.create_index(
        "ix_job_metadata_pair", "job_metadata", ["project_id", "key", "value", "created_at", "job_id"]
    )
    op.drop_index(op.f("ix_jobs_work_key"), "jobs")
    op.create_index("ix_jobs_work_key", "jobs", ["work_key"], postgresql_where=ERRANDS, sqlite_where=ERRANDS)
    columns = ["project_id", "created_at", "id"]
    op.create_index("ix_jobs_plain", "jobs", columns, postgresql_where=PLAIN, sqlite_where=PLAIN)
    columns = ["project_id", "model", "created_at", "id"]
    op.create_index(
        "ix_jobs_succeeded", "jobs", columns, postgresql_where=SUCCEEDED, sqlite_where=SUCCEEDED
    )
    op.create_index("ix_jobs_ended", "jobs", ["finished_at"], postgresql_where=ENDED, sqlite_where=ENDED)


def downgrade() -> None:
    op.drop_index("ix_jobs_ended", "jobs", postgresql_where=ENDED, sqlite_where=ENDED)
    op.drop_index("ix_jobs_succeeded", "jobs", postgresql_where=SUCCEEDED, sqlite_where=SUCCEEDED)
    op.drop_index("ix_jobs_plain", "jobs", postgresql_where=PLAIN, sqlite_where=PLAIN)
    op.drop_index("ix_jobs_work_key", "jobs", postgresql_where=ERRANDS, sqlite_where=ERRANDS)
    op.create_index(op.f("ix_jobs_work_key"), "jobs", ["work_key"])
    op.drop_table("job_metadata")


def _fill_metadata() -> None:
    each = "jsonb_each_text" if op.get_bind().dialect.name == "postgresql" else "json_each"
    op.execute(
        "INSERT INTO job_metadata (job_id, key, project_id, value, created_at) "
        f"SELECT jobs.id, pair.key, jobs.project_id, pair.value, jobs.created_at FROM jobs, {each}(user_metadata) "
        "AS pair WHERE jobs.kind = 'train' AND user_metadata IS NOT NULL"
    )
