"""Jobs that their owners deleted: the row stays for the sums, marked."""

import sqlalchemy as sa
from alembic import op

from luthier.tables import UtcDateTime

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deleted_at", UtcDateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "deleted_at")
