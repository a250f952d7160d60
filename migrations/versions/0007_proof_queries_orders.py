"""Proven delivery, studies fetched by query, orders, and the spool of audit messages"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0007"
down_revision = "0006"


def _time(name: str, *, default: bool = False) -> sa.Column:
    server_default = sa.text("now()") if default else None
    return sa.Column(
        name, TIMESTAMP(timezone=True), server_default=server_default, nullable=not default
    )


def _text(*names: str, nullable: bool = False) -> list[sa.Column]:
    return [sa.Column(name, sa.Text(), nullable=nullable) for name in names]


def _id() -> sa.Column:
    return sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False)


def _work() -> list[sa.Column]:
    """What a row has that one worker at a time takes in hand."""
    return [
        *_text("state"),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("claims", sa.Integer(), nullable=False, server_default="0"),
        *_text("reason", "worker", nullable=True),
        _time("due_at", default=True),
        _time("nudged_at"),
        _time("lease_until"),
        _time("ended_at"),
    ]


def upgrade() -> None:
    """Add them; deliveries of before have routine priority."""
    op.add_column(
        "delivery", sa.Column("priority", sa.Integer(), nullable=False, server_default="0")
    )
    op.create_index("ix_delivery_peer_state", "delivery", ["peer", "state"])
    op.add_column("job", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "circuit",
        *_text("peer"),
        sa.Column("failures", sa.Integer(), nullable=False),
        *_text("reason"),
        _time("opened_at"),
        _time("open_until"),
        sa.PrimaryKeyConstraint("peer", name="pk_circuit"),
    )
    op.create_table(
        "commitment",
        *_text("transaction_uid"),
        sa.Column("delivery_id", sa.BigInteger(), nullable=True),
        *_text("peer", "sop_class_uid", "sop_instance_uid"),
        _time("requested_at", default=True),
        _time("accepted_at"),
        _time("answered_at"),
        *_text("outcome", nullable=True),
        sa.Column("failure_reason", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["delivery.id"],
            name="fk_commitment_delivery_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("transaction_uid", name="pk_commitment"),
    )
    op.create_index("ix_commitment_delivery_id", "commitment", ["delivery_id"])
    op.create_table(
        "commitment_request",
        _id(),
        *_text("transaction_uid", "peer", "address"),
        sa.Column("references", JSONB(), nullable=False),
        _time("received_at", default=True),
        *_work(),
        sa.PrimaryKeyConstraint("id", name="pk_commitment_request"),
        sa.UniqueConstraint(
            "peer", "transaction_uid", name="uq_commitment_request_peer_transaction_uid"
        ),
    )
    op.create_index("ix_commitment_request_state_due_at", "commitment_request", ["state", "due_at"])
    op.create_table(
        "study_fetch",
        _id(),
        *_text("study_instance_uid", "peer", "purpose"),
        *_text("prior_of", nullable=True),
        *_text("study_date"),
        _time("found_at", default=True),
        *_work(),
        _time("started_at"),
        _time("claimed_at"),
        sa.PrimaryKeyConstraint("id", name="pk_study_fetch"),
        sa.UniqueConstraint("study_instance_uid", name="uq_study_fetch_study_instance_uid"),
    )
    op.create_index("ix_study_fetch_state_due_at", "study_fetch", ["state", "due_at"])
    op.create_index("ix_study_fetch_prior_of", "study_fetch", ["prior_of"])
    op.create_table(
        "prior_search",
        _id(),
        *_text("study_instance_uid", "state"),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        *_text("reason", nullable=True),
        _time("created_at", default=True),
        _time("due_at", default=True),
        _time("nudged_at"),
        sa.PrimaryKeyConstraint("id", name="pk_prior_search"),
        sa.UniqueConstraint("study_instance_uid", name="uq_prior_search_study_instance_uid"),
    )
    op.create_index("ix_prior_search_state_due_at", "prior_search", ["state", "due_at"])
    op.create_table(
        "reconciled_day",
        *_text("peer", "study_date"),
        _time("asked_at", default=True),
        sa.Column("found", sa.Integer(), nullable=False),
        sa.Column("missing", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("peer", "study_date", name="pk_reconciled_day"),
    )
    op.create_table(
        "imaging_order",
        _id(),
        *_text("source", "peer", "order_key", "study_instance_uid"),
        *_text("patient_id_key", "patient_issuer_key", "accession_key", "accession_issuer_key"),
        *_text("indication", "indication_source"),
        sa.Column("priority", sa.Integer(), nullable=False),
        *_text("state"),
        _time("received_at", default=True),
        _time("changed_at", default=True),
        sa.PrimaryKeyConstraint("id", name="pk_imaging_order"),
        sa.UniqueConstraint(
            "source", "peer", "order_key", name="uq_imaging_order_source_peer_order_key"
        ),
    )
    op.create_index("ix_imaging_order_study_instance_uid", "imaging_order", ["study_instance_uid"])
    op.create_index("ix_imaging_order_accession_key", "imaging_order", ["accession_key"])
    op.create_table(
        "worklist_answer",
        *_text("peer"),
        _time("answered_at"),
        sa.Column("entries", sa.Integer(), nullable=False, server_default="0"),
        _time("failed_at"),
        *_text("fault", nullable=True),
        sa.PrimaryKeyConstraint("peer", name="pk_worklist_answer"),
    )
    op.create_table(
        "audit_message",
        _id(),
        _time("at", default=True),
        *_text("message"),
        sa.PrimaryKeyConstraint("id", name="pk_audit_message"),
    )


def downgrade() -> None:
    """Forget what was asked and answered; what was delivered stays delivered."""
    for name in (
        "audit_message",
        "worklist_answer",
        "imaging_order",
        "reconciled_day",
        "prior_search",
        "study_fetch",
        "commitment_request",
        "commitment",
        "circuit",
    ):
        op.drop_table(name)
    op.drop_index("ix_delivery_peer_state", "delivery")
    op.drop_column("delivery", "priority")
    op.drop_column("job", "priority")
