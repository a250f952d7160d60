"""The parts of this node: database, processes, schema, disk, certificate, destinations."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import sqlalchemy as sa

from dicom_node import db, tls
from dicom_node import status as node_status
from dicom_node.config import Settings
from dicom_node.db import Database
from dicom_node.doctor.checks import Check, attempt
from dicom_node.errors import NodeError, OutOfResources


def parts(settings: Settings, database: Database | None) -> list[Check]:
    """Each part of this node, the database first."""
    return list(_parts(settings, database))


def missing(database: Database) -> list[Check]:
    """The one fault of a database that is away or has no tables; none where it answers."""
    try:
        with database.transaction() as connection:
            connection.execute(sa.select(db.instance.c.path).limit(1))
    except OutOfResources as error:
        fix = "`dicom-node doctor` without a peer says more"
        return [Check(name="database", passed=False, text=str(error), fix=fix)]
    return []


def _parts(settings: Settings, database: Database | None) -> Iterator[Check]:
    snapshot = node_status.snapshot(database, settings)
    codes = {problem.code: problem for problem in snapshot.problems}
    for code in ("database", "node", "broker", "worker-gpu", "worker-net"):
        problem = codes.get(code)
        if problem is not None:
            yield Check(name=code, passed=False, text=problem.text, fix=problem.fix)
        elif snapshot.database_up:
            yield Check(name=code, passed=True, text="up")
    if snapshot.database_up and database is not None:
        yield _schema(settings)
    yield _disk(settings)
    if settings.tls.configured:
        yield _certificate(settings)
    yield _destinations(settings)


def _schema(settings: Settings) -> Check:
    def question() -> str:
        from dicom_node.embedded import Postgres

        url = settings.database.url or Postgres(settings.node.data).url
        present, wanted = db.revisions(url)
        if present != wanted:
            raise NodeError(f"the database is at {present or 'nothing'}, we need {wanted}")
        return f"revision {present}"

    return attempt("schema", question, "run `dicom-node db upgrade`")


def _disk(settings: Settings) -> Check:
    folder = settings.node.data
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        fix = "start the node once, or set [node] data"
        return Check(name="disk", passed=False, text=f"{folder}: {error.strerror}", fix=fix)
    enough = free >= node_status.LOW_BYTES
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    return Check(name="disk", passed=enough, text=text, fix="" if enough else "free space there")


def _certificate(settings: Settings) -> Check:
    def question() -> str:
        return f"ours for TLS ends on {tls.expiry(settings.tls).date()}"

    return attempt("certificate", question, "mend the files of [tls], then send SIGHUP")


def _destinations(settings: Settings) -> Check:
    names = ", ".join(peer.name for peer in settings.destinations())
    if names:
        return Check(name="destinations", passed=True, text=names)
    fix = 'add [[peers]] with name, ae_title, host, port and roles = ["destination"]'
    return Check(name="destinations", passed=False, text="drafts go nowhere", fix=fix)
