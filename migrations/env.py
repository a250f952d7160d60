"""Alembic's entry: run the migrations in one transaction under an advisory lock."""

import sqlalchemy as sa
from alembic import context

from dicom_node.db import metadata

#: Any fixed number: two nodes that start together must not migrate together.
LOCK = 0xD1C0


def run() -> None:
    """Upgrade or downgrade the database named by the caller."""
    engine = sa.create_engine(context.config.attributes["url"], poolclass=sa.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata)
        with context.begin_transaction():
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            context.run_migrations()


run()
