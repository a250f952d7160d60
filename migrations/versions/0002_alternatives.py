"""Alternatives of a draft, and which object a peer got"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what a peer gets that does not take the draft itself."""
    op.add_column("draft", sa.Column("alternative_of", sa.Text(), nullable=True))
    op.create_foreign_key(
        "fk_draft_alternative_of", "draft", "draft", ["alternative_of"], ["sop_instance_uid"]
    )
    op.create_index("ix_draft_alternative_of", "draft", ["alternative_of"])
    op.add_column("delivery", sa.Column("sent_uid", sa.Text(), nullable=True))
    op.create_foreign_key(
        "fk_delivery_sent_uid", "delivery", "draft", ["sent_uid"], ["sop_instance_uid"]
    )
    # What was sent until now was the draft itself.
    op.execute("UPDATE delivery SET sent_uid = draft_uid WHERE sent_at IS NOT NULL")


def downgrade() -> None:
    """Forget the alternatives: their files stay, and the peers keep what they got."""
    op.drop_constraint("fk_delivery_sent_uid", "delivery")
    op.drop_column("delivery", "sent_uid")
    op.execute("DELETE FROM draft WHERE alternative_of IS NOT NULL")
    op.drop_index("ix_draft_alternative_of", "draft")
    op.drop_constraint("fk_draft_alternative_of", "draft")
    op.drop_column("draft", "alternative_of")
