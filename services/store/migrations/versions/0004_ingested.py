"""Whose a data set is, and which job ingested it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("project", sa.String(), nullable=True))
    op.add_column("datasets", sa.Column("job", sa.String(), nullable=True))
