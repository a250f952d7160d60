"""Tables and transactions: Postgres is the truth.

Each table has one writing module, named beside it. Only the database's clock is used for state
(``now()``): processes on several machines may disagree about the time, rows may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from pgvector.sqlalchemy import Vector
from sqlalchemy import Column, ForeignKey, Index, Table, Text, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

from dicom_node.database_errors import errors_mapped, first_line
from dicom_node.errors import ConfigurationError, OutOfResources
from dicom_node.kept_connection import KeptConnection

if TYPE_CHECKING:
    from alembic.config import Config


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)


def _time(name: str, *, default: bool = False) -> Column[object]:
    column: Column[object] = Column(
        name,
        TIMESTAMP(timezone=True),
        nullable=not default,
        server_default=func.now() if default else None,
    )
    return column


def _id() -> Column[int]:
    return Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True)


#: One row: this installation's identity, made by the first migration.
installation = Table("installation", metadata, Column("id", sa.Uuid, primary_key=True))

#: Written by ``studies``, at its end by ``retention``. states: receiving, complete, deleting
study = Table(
    "study",
    metadata,
    Column("study_instance_uid", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("revision", sa.Integer, nullable=False),
    Column("patient_key", Text, nullable=False),
    #: see ``storage.Identity``; null until an instance that is no report has told
    Column("patient_id_key", Text),
    Column("patient_issuer_key", Text),
    Column("accession_key", Text),
    Column("accession_issuer_key", Text),
    Column("study_date", Text),
    _time("received_at", default=True),
    _time("ready_at", default=True),
    _time("settle_at", default=True),
    #: has any of its instances a file?
    Column("has_pixels", sa.Boolean, nullable=False, server_default=sa.true()),
    #: files of instances marked ``pixels_deleted_at`` may still be there
    Column("unlinking", sa.Boolean, nullable=False, server_default=sa.false()),
    Index(None, "state", "settle_at"),
    Index(None, "received_at"),
    Index("ix_study_received_at_has_pixels", "received_at", postgresql_where=sa.text("has_pixels")),
    Index(None, "unlinking", postgresql_where=sa.text("unlinking")),
    Index(None, "accession_key"),
    Index(None, "patient_id_key", "study_date"),
)

#: Written by ``studies``; other bytes under a UID are a new revision. Only ``pixels_deleted_at``
#: ever changes, by ``retention``.
instance = Table(
    "instance",
    metadata,
    Column("study_instance_uid", Text, ForeignKey(study.c.study_instance_uid), primary_key=True),
    Column("sop_instance_uid", Text, primary_key=True),
    Column("revision", sa.Integer, primary_key=True),
    Column("series_instance_uid", Text, nullable=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size", sa.BigInteger, nullable=False),
    Column("calling_ae_title", Text, nullable=False),
    Column("address", Text, nullable=False),
    _time("received_at", default=True),
    _time("pixels_deleted_at"),  # the file at ``path`` is gone, or about to go
    Index(None, "sop_instance_uid"),
    Index(None, "sop_class_uid", "received_at"),
    Index(None, "calling_ae_title", "received_at"),
)

#: Written by ``jobs``. states: queued, running, drafted, refused, failed
job = Table(
    "job",
    metadata,
    _id(),
    Column("study_instance_uid", Text, ForeignKey(study.c.study_instance_uid), nullable=False),
    Column("revision", sa.Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("claims", sa.Integer, nullable=False, server_default="0"),
    Column("choice", JSONB),
    Column("reason", Text),
    Column("worker", Text),
    Column("priority", sa.Integer, nullable=False, server_default="0"),  # see ``priorities``
    _time("due_at", default=True),
    _time("created_at", default=True),
    _time("started_at"),
    _time("nudged_at"),
    _time("lease_until"),
    _time("ended_at"),
    UniqueConstraint("study_instance_uid", "revision", "model"),
    Index(None, "state", "due_at"),
)

#: Written by ``drafts``; only ``superseded_by`` ever changes. An alternative says the same in an
#: object that a peer takes which does not take the draft itself.
draft = Table(
    "draft",
    metadata,
    Column("sop_instance_uid", Text, primary_key=True),
    Column("series_instance_uid", Text, nullable=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("study_instance_uid", Text, ForeignKey(study.c.study_instance_uid), nullable=False),
    Column("job_id", sa.BigInteger, ForeignKey(job.c.id), nullable=False),
    Column("model", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("version", sa.Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("inputs", JSONB, nullable=False),
    Column("record", JSONB, nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("superseded_by", Text, ForeignKey("draft.sop_instance_uid")),
    Column("alternative_of", Text, ForeignKey("draft.sop_instance_uid")),
    _time("created_at", default=True),
    Index(None, "study_instance_uid"),
    Index(None, "alternative_of"),
)

#: Written by ``deliveries``. states: due, sending, sent, delivered, failed, withheld, dropped
delivery = Table(
    "delivery",
    metadata,
    _id(),
    Column("draft_uid", Text, ForeignKey(draft.c.sop_instance_uid), nullable=False),
    Column("peer", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("claims", sa.Integer, nullable=False, server_default="0"),
    Column("proof", Text),
    Column("reason", Text),
    Column("worker", Text),
    _time("created_at", default=True),
    _time("due_at", default=True),
    _time("nudged_at"),
    _time("lease_until"),
    _time("sent_at"),
    #: what the peer got: the draft, or an alternative of it
    Column("sent_uid", Text, ForeignKey(draft.c.sop_instance_uid)),
    Column("priority", sa.Integer, nullable=False, server_default="0"),  # see ``priorities``
    UniqueConstraint("draft_uid", "peer"),
    Index(None, "state", "due_at"),
    Index(None, "peer", "state"),
)

#: Written by ``circuits``: a destination that fails again and again is left alone for a while.
circuit = Table(
    "circuit",
    metadata,
    Column("peer", Text, primary_key=True),
    Column("failures", sa.Integer, nullable=False),  # in a row
    Column("reason", Text, nullable=False),  # the last one's
    _time("opened_at"),
    _time("open_until"),  # null: closed
)

#: Written by ``commitments``: what we asked a peer to commit to (PS3.4 J.3), and its answer.
commitment = Table(
    "commitment",
    metadata,
    Column("transaction_uid", Text, primary_key=True),
    #: null: asked for by somebody who only wants to know
    Column("delivery_id", sa.BigInteger, ForeignKey(delivery.c.id, ondelete="CASCADE")),
    Column("peer", Text, nullable=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    _time("requested_at", default=True),
    _time("accepted_at"),  # the peer said that it will report
    _time("answered_at"),  # ... and did
    Column("outcome", Text),  # committed, failed
    Column("failure_reason", sa.Integer),  # PS3.3 C.14.1.1
    Index(None, "delivery_id"),
)

#: Written by ``commitments``: what a peer asked us to commit to. states: due, reporting, reported,
#: failed
commitment_request = Table(
    "commitment_request",
    metadata,
    _id(),
    Column("transaction_uid", Text, nullable=False),
    Column("peer", Text, nullable=False),
    Column("address", Text, nullable=False),  # that it asked from
    Column("references", JSONB, nullable=False),  # [[SOP class, SOP instance], ...]
    Column("state", Text, nullable=False),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("claims", sa.Integer, nullable=False, server_default="0"),
    Column("reason", Text),
    Column("worker", Text),
    _time("received_at", default=True),
    _time("due_at", default=True),
    _time("nudged_at"),
    _time("lease_until"),
    _time("ended_at"),
    UniqueConstraint("peer", "transaction_uid"),
    Index(None, "state", "due_at"),
)

#: Written by ``fetches``, at its end by ``retention``: studies that a peer has and we want. states:
#: due, fetching, fetched, failed, skipped
fetch = Table(
    "study_fetch",  # FETCH is a word of SQL
    metadata,
    _id(),
    Column("study_instance_uid", Text, nullable=False, unique=True),
    Column("peer", Text, nullable=False),
    # missed; incomplete: a part was here; prior; wanted: a prior that is to be read
    Column("purpose", Text, nullable=False),
    Column("prior_of", Text),  # Study Instance UID
    Column("study_date", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("claims", sa.Integer, nullable=False, server_default="0"),
    Column("reason", Text),
    Column("worker", Text),
    _time("found_at", default=True),
    _time("due_at", default=True),
    _time("nudged_at"),
    _time("lease_until"),
    _time("started_at"),  # the first claim since it was queued from scratch
    _time("claimed_at"),  # the latest
    _time("ended_at"),
    Index(None, "state", "due_at"),
    Index(None, "prior_of"),
)

#: Written by ``fetches``, at its end by ``retention``: studies whose patient's earlier ones are
#: looked for, once. states: due, searched, failed
prior_search = Table(
    "prior_search",
    metadata,
    _id(),
    Column("study_instance_uid", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("attempts", sa.Integer, nullable=False, server_default="0"),
    Column("reason", Text),
    _time("created_at", default=True),
    _time("due_at", default=True),
    _time("nudged_at"),
    Index(None, "state", "due_at"),
)

#: Written by ``reconciliation``: which days of which peer were compared.
reconciled_day = Table(
    "reconciled_day",
    metadata,
    Column("peer", Text, primary_key=True),
    Column("study_date", Text, primary_key=True),  # YYYYMMDD
    _time("asked_at", default=True),
    Column("found", sa.Integer, nullable=False),
    Column("missing", sa.Integer, nullable=False),
)

#: Written by ``orders``: what was asked for, from worklists and HL7. states: open, cancelled
imaging_order = Table(
    "imaging_order",
    metadata,
    _id(),
    Column("source", Text, nullable=False),  # worklist, hl7
    Column("peer", Text, nullable=False),
    Column("order_key", Text, nullable=False),  # tells the orders of one source apart
    Column("study_instance_uid", Text, nullable=False),
    #: see ``storage.Identity``
    Column("patient_id_key", Text, nullable=False),
    Column("patient_issuer_key", Text, nullable=False),
    Column("accession_key", Text, nullable=False),
    Column("accession_issuer_key", Text, nullable=False),
    Column("indication", Text, nullable=False),
    Column("indication_source", Text, nullable=False),  # the attribute or field
    Column("priority", sa.Integer, nullable=False),  # see ``priorities``
    Column("state", Text, nullable=False),
    _time("received_at", default=True),
    _time("changed_at", default=True),
    UniqueConstraint("source", "peer", "order_key"),
    Index(None, "study_instance_uid"),
    Index(None, "accession_key"),
)

#: Written by ``worklist``: how the last questions to each peer went.
worklist_answer = Table(
    "worklist_answer",
    metadata,
    Column("peer", Text, primary_key=True),
    _time("answered_at"),
    Column("entries", sa.Integer, nullable=False, server_default="0"),
    _time("failed_at"),  # the first failure since it answered; null: it answered last time
    Column("fault", Text),
)

#: Written by ``audit``: messages (PS3.15 A.5) that the collector has not got yet.
audit_message = Table(
    "audit_message",
    metadata,
    _id(),
    _time("at", default=True),
    Column("message", Text, nullable=False),
)

#: Written by ``reports.store``: every version of every final report that came, whatever became of
#: it. Only state, reason, study and the times of trying and indexing ever change.
#: states: matched, parked, ignored
report = Table(
    "report",
    metadata,
    _id(),
    Column("study_instance_uid", Text, ForeignKey(study.c.study_instance_uid)),
    Column("source", Text, nullable=False),
    Column("source_uid", Text, nullable=False),
    Column("part", sa.Integer, nullable=False),  # OBR of the message, row of the table
    Column("sha256", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("verdict", Text, nullable=False),
    Column("order_key", Text, nullable=False),
    Column("claimed_study_uid", Text, nullable=False),
    #: see ``storage.Identity``
    Column("patient_id_key", Text, nullable=False),
    Column("patient_issuer_key", Text, nullable=False),
    Column("accession_key", Text, nullable=False),
    Column("accession_issuer_key", Text, nullable=False),
    Column("study_date", Text, nullable=False),
    Column("sections", JSONB, nullable=False),
    Column("text", Text, nullable=False),
    Column("author_role", Text, nullable=False),
    Column("predecessors", JSONB, nullable=False),
    _time("verified_at"),
    _time("received_at", default=True),
    _time("tried_at", default=True),  # when a study for it was last looked for
    _time("due_at", default=True),
    _time("nudged_at"),
    _time("indexed_at"),
    UniqueConstraint("source", "source_uid", "sha256", "part"),
    Index(None, "study_instance_uid"),
    Index(None, "claimed_study_uid"),
    Index(None, "accession_key"),
    Index(None, "patient_id_key", "study_date"),
    Index(None, "state", "due_at"),
    Index(None, "source", "received_at"),
    Index(None, "path"),
)

#: Written by ``retrieval``; one vector space per model digest. Each is of a draft or of a report.
embedding = Table(
    "embedding",
    metadata,
    _id(),
    Column("study_instance_uid", Text, ForeignKey(study.c.study_instance_uid), nullable=False),
    Column("draft_uid", Text, ForeignKey(draft.c.sop_instance_uid)),
    Column("report_id", sa.BigInteger, ForeignKey(report.c.id)),
    Column("kind", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("vector", Vector(), nullable=False),
    UniqueConstraint("draft_uid", "kind"),
    UniqueConstraint("report_id"),
    Index(None, "study_instance_uid"),
    Index(None, "digest", "kind"),
)

#: Written by ``events``; append-only history of every transition.
event = Table(
    "event",
    metadata,
    _id(),
    _time("at", default=True),
    Column("study_instance_uid", Text, ForeignKey(study.c.study_instance_uid), nullable=False),
    Column("subject", Text, nullable=False),
    Column("from", Text),
    Column("to", Text, nullable=False),
    Column("reason", Text),
    Index(None, "study_instance_uid", "id"),
)

#: Written by ``heartbeats``: what runs, and when it was last seen alive.
process = Table(
    "process",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("facts", JSONB, nullable=False),
    _time("started_at", default=True),
    _time("last_seen", default=True),
)

#: Written by ``associations``: who was turned away, and why.
refused_association = Table(
    "refused_association",
    metadata,
    Column("calling_ae_title", Text, primary_key=True),
    Column("called_ae_title", Text, primary_key=True),
    Column("address", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("detail", Text, primary_key=True),
    Column("tls", sa.Boolean, primary_key=True),
    Column("contexts", JSONB, nullable=False),  # abstract syntaxes, as last proposed
    Column("count", sa.BigInteger, nullable=False),
    _time("first", default=True),
    _time("last", default=True),
)


def installation_id(connection: sa.Connection) -> str:
    """This installation's identity."""
    return str(connection.scalars(sa.select(installation.c.id)).one())


class Database:
    """Connections to Postgres."""

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(
                url,
                pool_pre_ping=True,  # a restarted server costs a reconnect, not a failed study
                hide_parameters=True,  # parameters can hold report text
                connect_args={
                    "connect_timeout": 5,
                    "tcp_user_timeout": 20_000,  # ms: a host that is gone
                    "options": "-c statement_timeout=30000 -c lock_timeout=15000",
                },
            )
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
            raise ConfigurationError(
                "database.url: not a database URL; postgresql+psycopg://user@host/name"
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """One transaction: committed at the end of the block, rolled back on any exception.

        Raises
        ------
        OutOfResources
            The database is away or gave up on the statement; a later attempt may work.
        """
        with errors_mapped(), self._engine.begin() as connection:
            yield connection

    def kept_connection(self) -> KeptConnection:
        """A connection for one busy thread, on which each statement is its own transaction."""
        return KeptConnection(self._engine)

    def dispose(self) -> None:
        """Close the pooled connections."""
        self._engine.dispose()


def migrations_dir() -> Path:
    """Where alembic's scripts are: inside the wheel, else at the repository's top."""
    packaged = Path(__file__).with_name("_migrations")
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "migrations"


def upgrade(url: str) -> None:
    """Bring the schema to this version's head (alembic, one transaction).

    Raises
    ------
    OutOfResources
        The database is away.
    """
    from alembic import command  # costs 0.6 s: not for `status`

    try:
        command.upgrade(_alembic(url), "head")
    except sa.exc.OperationalError as error:
        raise OutOfResources(f"database: {first_line(error)}") from error


def revisions(url: str) -> tuple[str | None, str | None]:
    """The schema's revision in the database, and the one this version wants."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(_alembic(url)).get_current_head()
    database = Database(url)
    try:
        with database.transaction() as connection:
            return MigrationContext.configure(connection).get_current_revision(), head
    finally:
        database.dispose()


def _alembic(url: str) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_dir()))
    config.attributes["url"] = url
    return config
