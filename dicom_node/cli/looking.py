"""status, studies, study, draft, search: the verbs that only look.

``status`` must answer within a second: what it does not need is imported where it is used.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node import drafts
from dicom_node import status as node_status
from dicom_node.cli import tables, wiring
from dicom_node.config import Settings
from dicom_node.errors import NotFound

if TYPE_CHECKING:
    from dicom_node.deliveries import Delivery
    from dicom_node.retrieval import Hit, Kind
    from inference.findings import Embedding
    from inference.models import ReportModel

WATCH_SECONDS = 2.0


def status(settings: Settings, *, as_json: bool, watch: bool) -> None:
    """Print the snapshot; exit code 1 when something needs a person."""
    database = wiring.database_or_none(settings)
    while True:
        snapshot = node_status.snapshot(database, settings)
        if watch:
            tables.console.clear()
        if as_json:
            print(json.dumps(node_status.to_json(snapshot), indent=None if watch else 2))
        else:
            tables.show_status(snapshot)
        if not watch:
            sys.exit(0 if snapshot.healthy else 1)
        time.sleep(WATCH_SECONDS)


def studies(settings: Settings, *, state: str | None, limit: int, as_json: bool) -> None:
    """List studies."""
    from dicom_node import studies as node_studies

    with wiring.database(settings).transaction() as connection:
        found = node_studies.newest(connection, state=state, limit=limit)
    if not as_json:
        tables.show_studies(found)
        return
    rows = [
        {
            "study_instance_uid": one.study_instance_uid,
            "state": one.state,
            "revision": one.revision,
            "received_at": one.received_at.isoformat(),
        }
        for one in found
    ]
    print(json.dumps({"studies": rows}, indent=2))


def study(settings: Settings, study_uid: str, *, as_json: bool) -> None:
    """One study's account."""
    from dicom_node import account

    with wiring.database(settings).transaction() as connection:
        found = account.of(connection, study_uid)
    if as_json:
        print(json.dumps(account.to_json(found), indent=2))
    else:
        tables.show_account(found)


def deliveries(
    settings: Settings, *, state: str | None, peer: str | None, limit: int, as_json: bool
) -> None:
    """List deliveries."""
    from dicom_node import deliveries as node_deliveries

    with wiring.database(settings).transaction() as connection:
        found = node_deliveries.newest(connection, state=state, peer=peer, limit=limit)
    if as_json:
        print(json.dumps({"deliveries": [_delivery(one) for one in found]}, indent=2))
    else:
        tables.show_deliveries(found)


def _delivery(one: Delivery) -> dict[str, object]:
    return {
        "id": one.id,
        "peer": one.peer,
        "study_instance_uid": one.study_instance_uid,
        "draft_uid": one.draft_uid,
        "state": one.state,
        "priority": one.priority,
        "attempts": one.attempts,
        "proof": one.proof,
        "reason": one.reason,
        "next_attempt": one.next_attempt.isoformat() if one.next_attempt else None,
    }


def draft(
    settings: Settings, study_uid: str, *, kind: str | None, output: Path | None, text: bool
) -> None:
    """The study's current draft: its stored bytes, or the text of those bytes."""
    from dicom_node.storage import Storage

    with wiring.database(settings).transaction() as connection:
        live = drafts.live(connection, study_uid)
    found = next((one for one in live if kind in (None, one.kind)), None)
    if found is None:
        what = f"no {kind}" if live else "no draft"
        raise NotFound(f"study {study_uid} has {what}; `dicom-node study {study_uid}` says why")
    path = Storage(settings.node.data).path(found.path)
    if output is not None:
        _audit_export(settings, output, found)  # first: there is no file that nobody told of
        output.write_bytes(path.read_bytes())
    if text or output is None:
        print(_plain_text(found))


def _audit_export(settings: Settings, output: Path, found: drafts.Draft) -> None:
    if not settings.audit.url:
        return
    from dicom_node import heartbeats
    from dicom_node.audit.auditor import Auditor
    from dicom_node.results import audited

    auditor = Auditor(settings, heartbeats.process_name("cli"))
    with wiring.database(settings).transaction() as connection:
        auditor.written(connection, output, audited.content(found))


def _plain_text(found: drafts.Draft) -> str:
    """What a radiologist would read, whatever kind of object it went out as."""
    from dicom_node.results import text_sr
    from dicom_node.results.record import DraftRecord

    of = DraftRecord.from_json(json.dumps(found.record))
    return text_sr.text(text_sr.document(replace(of, kind="text_sr", sop_class_uid="")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What to look for: exactly one of text, image and study."""

    text: str | None
    image: Path | None
    study: str | None
    kind: str | None
    limit: int

    @property
    def targets(self) -> tuple[Kind, ...]:
        """Cross-modal unless said otherwise: words find images, images find reports.

        Where nothing of the first kind is indexed (a model that places no texts), the next.
        """
        if self.kind is not None:
            return ("image",) if self.kind == "image" else ("report",)
        return ("image",) if self.text is not None else ("report", "image")


def find(settings: Settings, query: Query) -> list[Hit]:
    """The best hits.

    Raises
    ------
    NotFound
        The study has no vector, or there is no such file.
    """
    from dicom_node.retrieval import nearest, stored

    database = wiring.database(settings)
    if query.study is not None:
        with database.transaction() as connection:
            vector = stored(connection, query.study, "image")
        if vector is None:
            raise NotFound(f"study {query.study} is not in the index: it has no draft")
    else:
        vector = _embed(settings, query)
    with database.transaction() as connection:
        for kind in query.targets:
            hits = nearest(connection, vector, kind=kind, limit=query.limit, asked=query.study)
            if hits:
                return hits
    return []


def search(settings: Settings, query: Query, *, as_json: bool) -> None:
    """Find studies."""
    hits = find(settings, query)
    if not as_json:
        tables.show_hits(hits)
        return
    rows = [
        {
            "study_instance_uid": hit.study_instance_uid,
            "kind": hit.kind,
            "score": hit.score,
            "text": hit.text,
            "same_patient": hit.same_patient,
        }
        for hit in hits
    ]
    print(json.dumps({"model": settings.model.name, "hits": rows}, indent=2))


def _embed(settings: Settings, query: Query) -> Embedding:
    from pydicom.misc import is_dicom

    from inference import models, pixels

    path = Path(settings.model.path) if settings.model.path else None
    model: ReportModel = models.load(
        settings.model.name,
        path=path,
        device=settings.model.device,
        options=models.Options(slots=1, draft_tokens=0),  # nothing is written here
    )
    if query.text is not None:
        return model.embed_text(query.text)
    assert query.image is not None  # the command takes exactly one of the three
    if not query.image.is_file():
        raise NotFound(f"{query.image}: no such file")
    open_image = pixels.read if is_dicom(query.image) else pixels.from_file
    return model.embed_image(open_image(query.image))
