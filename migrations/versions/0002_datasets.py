"""Datasets: registered files, jobs of several files, prepared data that jobs share, errands on files."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from luthier.tables import UtcDateTime

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
NAMED = sa.text("dataset_name IS NOT NULL")


def upgrade() -> None:
    op.add_column('files', sa.Column('dataset_name', sa.String(length=128), nullable=True))
    op.add_column('files', sa.Column('dataset_entry', JSON, nullable=True))
    op.create_index(
        'uq_files_dataset_name', 'files', ['project_id', 'dataset_name'],
        unique=True, postgresql_where=NAMED, sqlite_where=NAMED,
    )
    op.create_index(op.f('ix_files_project_id_sha256'), 'files', ['project_id', 'sha256'])
    op.add_column('jobs', sa.Column('work_key', sa.String(length=64), nullable=True))
    op.create_index(op.f('ix_jobs_work_key'), 'jobs', ['work_key'])
    op.add_column('jobs', sa.Column('error_details', JSON, nullable=True))
    op.create_table('prepared_data',
    sa.Column('project_id', sa.String(length=64), nullable=False),
    sa.Column('key', sa.String(length=64), nullable=False),
    sa.Column('file_sha256', sa.String(length=64), nullable=False),
    sa.Column('storage_key', sa.String(length=512), nullable=False),
    sa.Column('facts', JSON, nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('created_at', UtcDateTime(), nullable=False),
    sa.Column('last_used_at', UtcDateTime(), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_prepared_data_project_id')),
    sa.PrimaryKeyConstraint('project_id', 'key', name=op.f('pk_prepared_data'))
    )
    op.create_index(op.f('ix_prepared_data_project_id_file_sha256'), 'prepared_data', ['project_id', 'file_sha256'])
    op.create_table('job_files',
    sa.Column('job_id', sa.String(length=64), nullable=False),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('position', sa.Integer(), autoincrement=False, nullable=False),
    sa.Column('project_id', sa.String(length=64), nullable=False),
    sa.Column('file_id', sa.String(length=64), nullable=False),
    sa.Column('weight', sa.Float(), nullable=False),
    sa.Column('entry', JSON, nullable=True),
    sa.ForeignKeyConstraint(['job_id'], ['jobs.id'], name=op.f('fk_job_files_job_id')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_job_files_project_id')),
    sa.PrimaryKeyConstraint('job_id', 'role', 'position', name=op.f('pk_job_files'))
    )
    op.create_index(op.f('ix_job_files_file_id'), 'job_files', ['file_id'])
    _fill_job_files()


def downgrade() -> None:
    op.drop_index(op.f('ix_job_files_file_id'), 'job_files')
    op.drop_table('job_files')
    op.drop_index(op.f('ix_prepared_data_project_id_file_sha256'), 'prepared_data')
    op.drop_table('prepared_data')
    op.drop_column('jobs', 'error_details')
    op.drop_index(op.f('ix_jobs_work_key'), 'jobs')
    op.drop_column('jobs', 'work_key')
    op.drop_index(op.f('ix_files_project_id_sha256'), 'files')
    op.drop_index('uq_files_dataset_name', 'files', postgresql_where=NAMED, sqlite_where=NAMED)
    op.drop_column('files', 'dataset_entry')
    op.drop_column('files', 'dataset_name')


def _fill_job_files() -> None:
    """The files of the jobs that are there: one for training each, and perhaps one for validation."""
    for role in ('training', 'validation'):
        op.execute(
            "INSERT INTO job_files (job_id, role, position, project_id, file_id, weight) "
            f"SELECT id, '{role}', 0, project_id, {role}_file, 1.0 FROM jobs "
            f"WHERE kind = 'train' AND {role}_file IS NOT NULL"
        )
