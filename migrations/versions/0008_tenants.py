"""Tenants: what keys may do and until when, their counted requests, archived projects, audit log, secrets."""

import sqlalchemy as sa
from alembic import op

from luthier.tables import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ALL = "admin,read,write"


def upgrade() -> None:
    op.add_column("projects", sa.Column("archived_at", UtcDateTime(), nullable=True))
    op.add_column(
        "api_keys", sa.Column("scopes", sa.String(length=64), server_default=ALL, nullable=False)
    )
    op.add_column("api_keys", sa.Column("expires_at", UtcDateTime(), nullable=True))
    op.add_column("api_keys", sa.Column("rotated_to", sa.String(length=64), nullable=True))
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.Integer(), nullable=True))
    op.create_index("ix_api_keys_project_id_created_at_id", "api_keys", ["project_id", "created_at", "id"])
    _create_request_counts()
    _create_secrets()
    _create_audit_logs()


def downgrade() -> None:
    op.drop_table("audit_logs")
    op.drop_table("secrets")
    op.drop_table("request_counts")
    op.drop_index("ix_api_keys_project_id_created_at_id", "api_keys")
    for column in ("requests_per_minute", "rotated_to", "expires_at", "scopes"):
        op.drop_column("api_keys", column)
    op.drop_column("projects", "archived_at")


def _create_request_counts() -> None:
    op.create_table(
        "request_counts",
        sa.Column("api_key_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_request_counts_project_id")),
        sa.PrimaryKeyConstraint("api_key_id", name=op.f("pk_request_counts")),
    )


def _create_secrets() -> None:
    op.create_table(
        "secrets",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_secrets_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_secrets")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_secrets_project_id_name")),
    )


def _create_audit_logs() -> None:
    op.create_table(
        "audit_logs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("resource_id", sa.String(length=256), nullable=False),
        sa.Column("api_key_id", sa.String(length=64), nullable=True),
        sa.Column("actor_name", sa.String(length=128), nullable=True),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_logs")),
    )
    op.create_index(
        "ix_audit_logs_organization_id_created_at_id", "audit_logs", ["organization_id", "created_at", "id"]
    )
    op.create_index("ix_audit_logs_created_at", "audit_logs", ["created_at"])
