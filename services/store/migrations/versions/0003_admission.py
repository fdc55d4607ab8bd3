"""When an attempt left its queue."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("admitted_at", sa.DateTime(timezone=True), nullable=True))
    # By the version before, what had a driver or had ended waits for no queue.
    op.execute("UPDATE attempts SET admitted_at = submitted_at WHERE beat IS NOT NULL OR finished_at IS NOT NULL")
