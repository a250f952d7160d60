"""Final reports, and what a study is matched by"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0003"
down_revision = "0002"

_IDENTITY = (
    "patient_id_key",
    "patient_issuer_key",
    "accession_key",
    "accession_issuer_key",
    "study_date",
)


def _time(name: str, *, default: bool = False) -> sa.Column:
    server_default = sa.text("now()") if default else None
    return sa.Column(
        name, TIMESTAMP(timezone=True), server_default=server_default, nullable=not default
    )


def upgrade() -> None:
    """Add the reports. Who a study of before is, its next instance tells (null until then)."""
    for name in _IDENTITY:
        op.add_column("study", sa.Column(name, sa.Text(), nullable=True))
    op.create_index("ix_study_received_at", "study", ["received_at"])
    op.create_index("ix_study_accession_key", "study", ["accession_key"])
    op.create_index("ix_study_patient_id_key_study_date", "study", ["patient_id_key", "study_date"])
    op.create_index(
        "ix_instance_sop_class_uid_received_at", "instance", ["sop_class_uid", "received_at"]
    )
    op.create_table(
        "report",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_uid", sa.Text(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("order_key", sa.Text(), nullable=False),
        sa.Column("claimed_study_uid", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in _IDENTITY),
        sa.Column("sections", JSONB(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("author_role", sa.Text(), nullable=False),
        sa.Column("predecessors", JSONB(), nullable=False),
        _time("verified_at"),
        _time("received_at", default=True),
        _time("tried_at", default=True),
        _time("due_at", default=True),
        _time("nudged_at"),
        _time("indexed_at"),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["study.study_instance_uid"],
            name="fk_report_study_instance_uid",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_report"),
        sa.UniqueConstraint(
            "source",
            "source_uid",
            "sha256",
            "part",
            name="uq_report_source_source_uid_sha256_part",
        ),
    )
    op.create_index("ix_report_study_instance_uid", "report", ["study_instance_uid"])
    op.create_index("ix_report_claimed_study_uid", "report", ["claimed_study_uid"])
    op.create_index("ix_report_accession_key", "report", ["accession_key"])
    op.create_index(
        "ix_report_patient_id_key_study_date", "report", ["patient_id_key", "study_date"]
    )
    op.create_index("ix_report_state_due_at", "report", ["state", "due_at"])
    op.create_index("ix_report_source_received_at", "report", ["source", "received_at"])
    op.alter_column("embedding", "draft_uid", nullable=True)
    op.add_column("embedding", sa.Column("report_id", sa.BigInteger(), nullable=True))
    op.create_foreign_key("fk_embedding_report_id", "embedding", "report", ["report_id"], ["id"])
    op.create_unique_constraint("uq_embedding_report_id", "embedding", ["report_id"])
    op.create_index("ix_embedding_study_instance_uid", "embedding", ["study_instance_uid"])


def downgrade() -> None:
    """Forget the reports: the files they came in stay."""
    op.drop_index("ix_embedding_study_instance_uid", "embedding")
    op.drop_constraint("uq_embedding_report_id", "embedding")
    op.drop_constraint("fk_embedding_report_id", "embedding")
    op.execute("DELETE FROM embedding WHERE report_id IS NOT NULL")
    op.drop_column("embedding", "report_id")
    op.alter_column("embedding", "draft_uid", nullable=False)
    op.drop_table("report")
    op.drop_index("ix_instance_sop_class_uid_received_at", "instance")
    op.drop_index("ix_study_patient_id_key_study_date", "study")
    op.drop_index("ix_study_accession_key", "study")
    op.drop_index("ix_study_received_at", "study")
    for name in _IDENTITY:
        op.drop_column("study", name)
