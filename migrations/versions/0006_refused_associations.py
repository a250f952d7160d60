"""Refused associations with called title, contexts, TLS, and the reason as a word of its own"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"

_TABLE = "refused_association"
_KEY = "pk_refused_association"


def upgrade() -> None:
    """What was refused before has no word for its reason: it goes, and is kept again when it calls.

    Nothing but the list of `status` reads it, and a caller that still fails comes back.
    """
    op.execute(f"DELETE FROM {_TABLE}")
    op.add_column(_TABLE, sa.Column("called_ae_title", sa.Text(), nullable=False))
    op.add_column(_TABLE, sa.Column("detail", sa.Text(), nullable=False))
    op.add_column(_TABLE, sa.Column("tls", sa.Boolean(), nullable=False))
    op.add_column(_TABLE, sa.Column("contexts", JSONB(), nullable=False))
    op.alter_column(_TABLE, "count", type_=sa.BigInteger())
    op.drop_constraint(_KEY, _TABLE)
    key = ["calling_ae_title", "called_ae_title", "address", "reason", "detail", "tls"]
    op.create_primary_key(_KEY, _TABLE, key)


def downgrade() -> None:
    """Drop what tells two refusals of one caller apart, and so the refusals."""
    op.execute(f"DELETE FROM {_TABLE}")
    op.drop_constraint(_KEY, _TABLE)
    for name in ("called_ae_title", "detail", "tls", "contexts"):
        op.drop_column(_TABLE, name)
    op.alter_column(_TABLE, "count", type_=sa.Integer())
    op.create_primary_key(_KEY, _TABLE, ["calling_ae_title", "address", "reason"])
