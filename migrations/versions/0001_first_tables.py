"""First tables"""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Empty database -> the node's tables; needs the extension pgvector."""
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "installation",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_installation"),
    )
    op.create_table(
        "process",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("facts", JSONB(), nullable=False),
        sa.Column(
            "started_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column(
            "last_seen", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("name", name="pk_process"),
    )
    op.create_table(
        "refused_association",
        sa.Column("calling_ae_title", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column(
            "first", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column(
            "last", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint(
            "calling_ae_title", "address", "reason", name="pk_refused_association"
        ),
    )
    op.create_table(
        "study",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("patient_key", sa.Text(), nullable=False),
        sa.Column(
            "received_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column(
            "ready_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column(
            "settle_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("study_instance_uid", name="pk_study"),
    )
    op.create_index("ix_study_state_settle_at", "study", ["state", "settle_at"], unique=False)
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("from", sa.Text(), nullable=True),
        sa.Column("to", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"], ["study.study_instance_uid"], name="fk_event_study_instance_uid"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
    )
    op.create_index(
        "ix_event_study_instance_uid_id", "event", ["study_instance_uid", "id"], unique=False
    )
    op.create_table(
        "instance",
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("calling_ae_title", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column(
            "received_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["study.study_instance_uid"],
            name="fk_instance_study_instance_uid",
        ),
        sa.PrimaryKeyConstraint(
            "study_instance_uid", "sop_instance_uid", "revision", name="pk_instance"
        ),
    )
    op.create_index(
        "ix_instance_calling_ae_title_received_at",
        "instance",
        ["calling_ae_title", "received_at"],
        unique=False,
    )
    op.create_index("ix_instance_sop_instance_uid", "instance", ["sop_instance_uid"], unique=False)
    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("claims", sa.Integer(), server_default="0", nullable=False),
        sa.Column("choice", JSONB(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column(
            "due_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column(
            "created_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("started_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("nudged_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("lease_until", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("ended_at", TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"], ["study.study_instance_uid"], name="fk_job_study_instance_uid"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.UniqueConstraint(
            "study_instance_uid",
            "revision",
            "model",
            name="uq_job_study_instance_uid_revision_model",
        ),
    )
    op.create_index("ix_job_state_due_at", "job", ["state", "due_at"], unique=False)
    op.create_table(
        "draft",
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("series_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("inputs", JSONB(), nullable=False),
        sa.Column("record", JSONB(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("superseded_by", sa.Text(), nullable=True),
        sa.Column(
            "created_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_draft_job_id"),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"], ["study.study_instance_uid"], name="fk_draft_study_instance_uid"
        ),
        sa.ForeignKeyConstraint(
            ["superseded_by"], ["draft.sop_instance_uid"], name="fk_draft_superseded_by"
        ),
        sa.PrimaryKeyConstraint("sop_instance_uid", name="pk_draft"),
    )
    op.create_index("ix_draft_study_instance_uid", "draft", ["study_instance_uid"], unique=False)
    op.create_table(
        "delivery",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("draft_uid", sa.Text(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("claims", sa.Integer(), server_default="0", nullable=False),
        sa.Column("proof", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column(
            "created_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column(
            "due_at", TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("nudged_at", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("lease_until", TIMESTAMP(timezone=True), nullable=True),
        sa.Column("sent_at", TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["draft_uid"], ["draft.sop_instance_uid"], name="fk_delivery_draft_uid"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_delivery"),
        sa.UniqueConstraint("draft_uid", "peer", name="uq_delivery_draft_uid_peer"),
    )
    op.create_index("ix_delivery_state_due_at", "delivery", ["state", "due_at"], unique=False)
    op.create_table(
        "embedding",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("study_instance_uid", sa.Text(), nullable=False),
        sa.Column("draft_uid", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("vector", Vector(), nullable=False),
        sa.ForeignKeyConstraint(
            ["draft_uid"], ["draft.sop_instance_uid"], name="fk_embedding_draft_uid"
        ),
        sa.ForeignKeyConstraint(
            ["study_instance_uid"],
            ["study.study_instance_uid"],
            name="fk_embedding_study_instance_uid",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_embedding"),
        sa.UniqueConstraint("draft_uid", "kind", name="uq_embedding_draft_uid_kind"),
    )
    op.create_index("ix_embedding_digest_kind", "embedding", ["digest", "kind"], unique=False)

    # Made once, never changed: names this installation in every object it writes.
    op.execute("INSERT INTO installation (id) VALUES (gen_random_uuid())")


def downgrade() -> None:
    """Drop everything but the extension, which others may use."""
    op.drop_index("ix_embedding_digest_kind", table_name="embedding")
    op.drop_table("embedding")
    op.drop_index("ix_delivery_state_due_at", table_name="delivery")
    op.drop_table("delivery")
    op.drop_index("ix_draft_study_instance_uid", table_name="draft")
    op.drop_table("draft")
    op.drop_index("ix_job_state_due_at", table_name="job")
    op.drop_table("job")
    op.drop_index("ix_instance_sop_instance_uid", table_name="instance")
    op.drop_index("ix_instance_calling_ae_title_received_at", table_name="instance")
    op.drop_table("instance")
    op.drop_index("ix_event_study_instance_uid_id", table_name="event")
    op.drop_table("event")
    op.drop_index("ix_study_state_settle_at", table_name="study")
    op.drop_table("study")
    op.drop_table("refused_association")
    op.drop_table("process")
    op.drop_table("installation")
