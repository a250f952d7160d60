"""What retention did: deleted pixels keep their rows"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TIMESTAMP

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Mark deleted pixels; find the studies that still have theirs, the oldest first."""
    op.add_column(
        "instance", sa.Column("pixels_deleted_at", TIMESTAMP(timezone=True), nullable=True)
    )
    for name, default in (("has_pixels", "true"), ("unlinking", "false")):
        op.add_column(
            "study", sa.Column(name, sa.Boolean(), server_default=sa.text(default), nullable=False)
        )
    op.create_index(
        "ix_study_received_at_has_pixels",
        "study",
        ["received_at"],
        postgresql_where=sa.text("has_pixels"),
    )
    op.create_index(
        "ix_study_unlinking", "study", ["unlinking"], postgresql_where=sa.text("unlinking")
    )
    op.create_index("ix_report_path", "report", ["path"])


def downgrade() -> None:
    """Forget what was deleted: rows then name files that are gone."""
    op.drop_index("ix_report_path", "report")
    op.drop_index("ix_study_unlinking", "study")
    op.drop_index("ix_study_received_at_has_pixels", "study")
    for name in ("unlinking", "has_pixels"):
        op.drop_column("study", name)
    op.drop_column("instance", "pixels_deleted_at")
