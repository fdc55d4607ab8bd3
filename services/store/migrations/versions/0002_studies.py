"""Studies: named groups of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("request_hash", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_studies_project", ondelete="CASCADE"),
        sa.UniqueConstraint("project", "idempotency_key", name="uq_studies_project_idempotency_key"),
    )
    op.create_index("ix_studies_project_created_at_id", "studies", ["project", "created_at", "id"])
