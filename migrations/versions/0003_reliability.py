"""Reliability: budgets, blocked and paused jobs, places in the queue, what a device must have, quotas."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from luthier.tables import UtcDateTime

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
QUEUED = sa.text("state = 'queued'")
LEASED = sa.text("state IN ('finalizing', 'running', 'starting')")
CLAIMABLE = sa.text("state = 'queued' AND (kind <> 'train' OR prepared_at IS NOT NULL)")
WAITING = sa.text("state IN ('blocked', 'retry_wait')")
LIVE = sa.text(
    "state IN ('blocked', 'finalizing', 'paused', 'queued', 'retry_wait', 'running', 'starting', 'validating')"
)
COUNTERS = ('infra_restarts', 'user_failures', 'no_progress_deaths', 'checkpoint_step', 'gpu_count')


def upgrade() -> None:
    op.add_column('projects', sa.Column('quotas', JSON, nullable=True))
    op.add_column('projects', sa.Column('storage_bytes', sa.BigInteger(), server_default='0', nullable=False))
    op.add_column('projects', sa.Column('train_turn_at', UtcDateTime(), nullable=True))
    op.add_column('projects', sa.Column('cpu_turn_at', UtcDateTime(), nullable=True))
    op.add_column('runs', sa.Column('reason', sa.Text(), nullable=True))
    op.add_column('runs', sa.Column('boot_id', sa.String(length=64), nullable=True))
    op.add_column('workers', sa.Column('labels', sa.String(length=512), server_default='', nullable=False))
    op.add_column('workers', sa.Column('reason', sa.Text(), nullable=True))
    op.drop_index('ix_jobs_claimable', 'jobs', postgresql_where=QUEUED, sqlite_where=QUEUED)
    with op.batch_alter_table('jobs') as jobs:
        for name in COUNTERS:
            jobs.add_column(sa.Column(name, sa.Integer(), server_default='0', nullable=False))
        jobs.add_column(sa.Column('queue_key', sa.BigInteger(), server_default='0', nullable=False))
        jobs.add_column(sa.Column('blocked_on', sa.String(length=16), nullable=True))
        jobs.add_column(sa.Column('memory_bytes', sa.BigInteger(), nullable=True))
        jobs.add_column(sa.Column('labels', sa.String(length=512), server_default='', nullable=False))
        jobs.add_column(sa.Column('estimated_seconds', sa.Float(), nullable=True))
        jobs.add_column(sa.Column('name', sa.String(length=128), nullable=True))
        jobs.add_column(sa.Column('resume_from', sa.String(length=128), nullable=True))
        jobs.drop_constraint(op.f('ck_jobs_desired_state'), type_='check')
        jobs.create_check_constraint(op.f('ck_jobs_desired_state'), "desired_state IN ('run', 'pause', 'cancel')")
        jobs.create_check_constraint(op.f('ck_jobs_blocked'), "(state = 'blocked') = (blocked_on IS NOT NULL)")
    _fill_jobs()
    op.create_index(
        'ix_jobs_claimable', 'jobs', ['queue', 'project_id', 'queue_key', 'id'],
        postgresql_where=CLAIMABLE, sqlite_where=CLAIMABLE,
    )
    op.create_index(
        'ix_jobs_waiting', 'jobs', ['state', 'not_before'], postgresql_where=WAITING, sqlite_where=WAITING,
    )
    op.drop_index('ix_jobs_leased', 'jobs', postgresql_where=LEASED, sqlite_where=LEASED)
    op.create_index(
        'ix_jobs_leased', 'jobs', ['lease_expires_at', 'queue', 'project_id'],
        postgresql_where=LEASED, sqlite_where=LEASED,
    )
    op.create_index(
        'ix_jobs_live', 'jobs', ['project_id', 'kind', 'state', 'queue_key', 'id'],
        postgresql_where=LIVE, sqlite_where=LIVE,
    )
    op.create_table('idempotency_keys',
    sa.Column('project_id', sa.String(length=64), nullable=False),
    sa.Column('key', sa.String(length=255), nullable=False),
    sa.Column('request_sha256', sa.String(length=64), nullable=False),
    sa.Column('object_id', sa.String(length=64), nullable=True),
    sa.Column('created_at', UtcDateTime(), nullable=False),
    sa.Column('expires_at', UtcDateTime(), nullable=False),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_idempotency_keys_project_id')),
    sa.PrimaryKeyConstraint('project_id', 'key', name=op.f('pk_idempotency_keys'))
    )
    op.create_index(op.f('ix_idempotency_keys_expires_at'), 'idempotency_keys', ['expires_at'])


def downgrade() -> None:
    op.drop_table('idempotency_keys')
    op.drop_index('ix_jobs_leased', 'jobs', postgresql_where=LEASED, sqlite_where=LEASED)
    op.create_index(
        'ix_jobs_leased', 'jobs', ['lease_expires_at'], postgresql_where=LEASED, sqlite_where=LEASED,
    )
    op.drop_index('ix_jobs_live', 'jobs', postgresql_where=LIVE, sqlite_where=LIVE)
    op.drop_index('ix_jobs_waiting', 'jobs', postgresql_where=WAITING, sqlite_where=WAITING)
    op.drop_index('ix_jobs_claimable', 'jobs', postgresql_where=CLAIMABLE, sqlite_where=CLAIMABLE)
    op.execute("UPDATE jobs SET state = 'queued', blocked_on = NULL WHERE state IN ('retry_wait', 'paused', 'blocked')")
    op.execute("UPDATE jobs SET desired_state = 'run' WHERE desired_state = 'pause'")
    with op.batch_alter_table('jobs') as jobs:
        jobs.drop_constraint(op.f('ck_jobs_blocked'), type_='check')
        jobs.drop_constraint(op.f('ck_jobs_desired_state'), type_='check')
        jobs.create_check_constraint(op.f('ck_jobs_desired_state'), "desired_state IN ('run', 'cancel')")
        for name in (
            'resume_from', 'name', 'estimated_seconds', 'labels', 'memory_bytes', 'blocked_on', 'queue_key', *COUNTERS,
        ):
            jobs.drop_column(name)
    op.create_index(
        'ix_jobs_claimable', 'jobs', ['queue', 'priority', 'created_at'],
        postgresql_where=QUEUED, sqlite_where=QUEUED,
    )
    op.drop_column('workers', 'reason')
    op.drop_column('workers', 'labels')
    op.drop_column('runs', 'boot_id')
    op.drop_column('runs', 'reason')
    op.drop_column('projects', 'cpu_turn_at')
    op.drop_column('projects', 'train_turn_at')
    op.drop_column('projects', 'storage_bytes')
    op.drop_column('projects', 'quotas')


def _fill_jobs() -> None:
    """Older jobs keep their order; what was used of a budget is not known and is forgotten."""
    if op.get_bind().dialect.name == 'postgresql':
        micros = "CAST(EXTRACT(EPOCH FROM created_at) * 1000000 AS BIGINT)"
    else:
        micros = "CAST(ROUND((julianday(created_at) - 2440587.5) * 86400000000.0) AS INTEGER)"
    # As luthier/service/queue_order.py makes it.
    op.execute(f"UPDATE jobs SET queue_key = {micros} - priority * {1 << 55}")
    op.execute(
        "UPDATE jobs SET checkpoint_step = COALESCE("
        "(SELECT MAX(step) FROM checkpoints WHERE checkpoints.job_id = jobs.id), 0)"
    )
    for table in ('files', 'prepared_data', 'checkpoints', 'artifacts'):
        op.execute(
            "UPDATE projects SET storage_bytes = storage_bytes + COALESCE("
            f"(SELECT SUM(size_bytes) FROM {table} WHERE {table}.project_id = projects.id), 0)"
        )
