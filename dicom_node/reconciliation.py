"""What the PACS has and we have not: studies by day, and the earlier ones of a patient.

The peers with the role ``query`` are asked; what is missing, a study or a part of one, becomes rows
of ``fetches``, and a worker fetches them. The only writer of ``reconciled_day``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import sqlalchemy as sa
from pydicom import dcmread
from pydicom.dataset import Dataset
from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql

from dicom_node import fetches, heartbeats, queries, retention, studies
from dicom_node.audit.auditor import Asking, Auditor
from dicom_node.config import Peer, Settings
from dicom_node.db import Database, reconciled_day
from dicom_node.errors import NotFound, PeerError, Unreadable
from dicom_node.fetches import Found
from dicom_node.malformed import MALFORMED
from dicom_node.periodic import Periodic
from dicom_node.queries import Inquiry, Study
from dicom_node.storage import Storage

logger = logging.getLogger(__name__)

HERE = "here"  #: see :func:`fetches.known`
#: Of so many earlier studies of a patient the series are asked for, to find those of the chest.
LOOKED_AT = 50

_HEADER = (
    *("SpecificCharacterSet", "StudyInstanceUID", "StudyDate", "StudyTime"),
    *("PatientID", "IssuerOfPatientID", "PatientBirthDate"),
)


#: Study Instance UID: how many objects a peer had of it when we had all that matter to us.
Whole = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A study that a peer has and we have not, or not whole."""

    study: Study
    state: str | None  #: of its fetch; ``None``: it has none
    is_chest: bool  #: as far as the peer says
    absent: int | None = None  #: so many objects of the chest; ``None``: all of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One peer's day held against ours."""

    peer: str
    study_date: str  #: YYYYMMDD
    found: int
    missing: Sequence[Missing]  #: newest first
    whole: Whole = field(default_factory=dict)

    @property
    def missed(self) -> list[Missing]:
        """Those that may be of the chest."""
        return [one for one in self.missing if one.is_chest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """An earlier study of a patient, at a peer."""

    study: Study
    peer: str


# -- by day ----------------------------------------------------------------------------------------


class Sweep:
    """Compares the last days with every peer that is asked, and queues what is missing."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        #: by peer and day: a study that was whole is looked at again only when the peer has more
        self._whole: dict[tuple[str, str], Whole] = {}

    def __call__(self) -> None:
        """Once, the newest day first; a peer that can't be asked does not keep the others from it.

        Raises
        ------
        OutOfResources
            The database is away.
        """
        with self._database.transaction() as connection:
            days = last_days(connection, self._settings.reconciliation.days)
        self._whole = {key: known for key, known in self._whole.items() if key[1] in days}
        for peer in self._settings.asked("query"):
            try:
                self._ask(peer, days)
            except PeerError as error:
                logger.warning("reconciliation: %s", error)

    def _ask(self, peer: Peer, days: Sequence[str]) -> None:
        database, settings = self._database, self._settings
        wait = timedelta(minutes=settings.reconciliation.patience_minutes)
        heard = Auditor(settings, heartbeats.process_name("node")).asking(database, peer)
        title, tls = settings.node.ae_title, settings.tls
        with queries.inquiry(peer, title, tls, asking=heard) as asked:
            for day in days:
                whole = self._whole.get((peer.name, day), {})
                comparison = compare(database, settings, asked, peer, day, whole)
                self._whole[peer.name, day] = comparison.whole
                with database.transaction() as connection:
                    queued = queue(connection, comparison, wait)
                    _reconciled(connection, comparison)
                if queued:
                    logger.info("%s has %d studies of %s that we have not", peer.name, queued, day)


def periodics(settings: Settings, database: Database) -> list[Periodic]:
    """The sweep as it runs beside the tick; none where the site does not want it."""
    wanted = settings.reconciliation
    if not (wanted.days and settings.asked("query")):
        return []
    return [Periodic("reconciliation", wanted.every_minutes * 60, Sweep(database, settings))]


def last_days(connection: Connection, count: int) -> list[str]:
    """Study dates, the newest first: the database's clock in this machine's time zone.

    Tomorrow's too, for a study has the date of the place where it was made.
    """
    now: datetime = connection.execute(sa.select(func.now())).scalar_one()
    today: date = now.astimezone().date()
    return [f"{today + timedelta(days=1 - back):%Y%m%d}" for back in range(count + 1)]


def compare(
    database: Database,
    settings: Settings,
    asked: Inquiry,
    peer: Peer,
    day: str,
    whole: Whole | None = None,
) -> Comparison:
    """Ask a peer for one day's studies, and what it has of them.

    Asked for are the series of those that we do not know, and the objects of those that we have,
    but not where ``whole`` says that nothing came since.

    Raises
    ------
    PeerError
        It can't be asked.
    """
    modalities, before = settings.reconciliation.modalities, whole or {}
    found = asked.studies_on(day, modalities)
    with database.transaction() as connection:
        known = fetches.known(connection, [one.study_instance_uid for one in found])
    missing: list[Missing] = []
    now: dict[str, int] = {}
    for one in found:
        uid, state = one.study_instance_uid, known.get(one.study_instance_uid)
        if state != HERE:
            is_chest = _is_chest(asked, one, state, modalities)
            missing.append(Missing(study=one, state=state, is_chest=is_chest))
        elif (uid, one.instances) not in before.items() and (
            part := _absent(database, asked, one, modalities)
        ):
            missing.append(part)
        elif one.instances is not None:
            now[uid] = one.instances
    return Comparison(peer=peer.name, study_date=day, found=len(found), missing=missing, whole=now)


def _absent(
    database: Database, asked: Inquiry, study: Study, modalities: Sequence[str]
) -> Missing | None:
    """What is not here of a study of which a part is."""
    uid = study.study_instance_uid
    theirs = asked.chest_instances(uid, modalities)
    with database.transaction() as connection:
        here = {one.sop_instance_uid for one in studies.instances(connection, uid)}
        row = fetches.of_study(connection, uid)
    absent = sum(one.sop_instance_uid not in here for one in theirs)
    if not absent:
        return None
    state = row.state if row and row.state not in (fetches.FETCHED, fetches.SKIPPED) else None
    return Missing(study=study, state=state, is_chest=True, absent=absent)


def _is_chest(asked: Inquiry, study: Study, state: str | None, modalities: Sequence[str]) -> bool:
    if state is not None:  # it was asked for before
        return state != fetches.SKIPPED
    return _has_chest_series(asked, study.study_instance_uid, modalities)


def _has_chest_series(asked: Inquiry, uid: str, modalities: Sequence[str]) -> bool:
    return any(series.may_be_chest(modalities) for series in asked.series_of(uid))


def queue(connection: Connection, comparison: Comparison, wait: timedelta = timedelta(0)) -> int:
    """Let what is missing be fetched, after ``wait``; how many studies were not queued before."""
    queued = 0
    for one in comparison.missing:
        found = _found(one.study, comparison.peer, comparison.study_date)
        if one.absent is not None:
            queued += fetches.complete(connection, found, wait=wait)
        elif one.is_chest:
            queued += fetches.want(connection, found, fetches.MISSED, wait=wait)
        else:
            fetches.skip(connection, found, "no series of the chest, as far as the peer says")
    return queued


def _found(study: Study, peer: str, study_date: str = "") -> Found:
    return Found(
        study_instance_uid=study.study_instance_uid,
        study_date=study.study_date or study_date,
        peer=peer,
    )


def _reconciled(connection: Connection, comparison: Comparison) -> None:
    values = {"found": comparison.found, "missing": len(comparison.missed)}
    new = postgresql.insert(reconciled_day).values(
        peer=comparison.peer, study_date=comparison.study_date, **values
    )
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["peer", "study_date"], set_={**values, "asked_at": func.now()}
        )
    )


# -- by patient ------------------------------------------------------------------------------------


def header_of(database: Database, storage: Storage, study_instance_uid: str) -> Study:
    """When a study that we have was made, and whose it is; our tables hold only keys of that.

    Raises
    ------
    NotFound
        No such study, or its files are deleted.
    Unreadable
        Its file is none.
    """
    with database.transaction() as connection:
        kept = studies.instances(connection, study_instance_uid)
        gone = retention.deleted(connection, study_instance_uid)
    here = [one for one in kept if one.sop_instance_uid not in gone]
    if not here:
        raise NotFound(f"study {study_instance_uid} has no file here any more")
    # An image says whose it is; a report may be of somebody else.
    image = next((one for one in here if one.sop_class_uid in studies.READABLE), here[0])
    found = queries.study_of(_header(storage, image.path))
    if found is None:
        raise Unreadable(f"{image.path}: no Study Instance UID")
    return found


def _header(storage: Storage, path: str) -> Dataset:
    try:
        return dcmread(storage.path(path), stop_before_pixels=True, specific_tags=[*_HEADER])
    except MALFORMED as error:  # "from None": pydicom puts values into its messages
        raise Unreadable(f"{path}: can't be read: {type(error).__name__}") from None


def priors(
    settings: Settings,
    study: Study,
    count: int,
    asking: Callable[[Peer], Asking] | None = None,
) -> tuple[list[Prior], list[PeerError]]:
    """The newest earlier chest studies of a study's patient, and why a peer could not be asked."""
    title, tls = settings.node.ae_title, settings.tls
    found: dict[str, Prior] = {}
    faults: list[PeerError] = []
    for peer in settings.asked("query"):
        try:
            heard = asking(peer) if asking else None
            with queries.inquiry(peer, title, tls, asking=heard) as asked:
                for one in _earlier(asked, study, settings.reconciliation.modalities, count):
                    found.setdefault(one.study_instance_uid, Prior(study=one, peer=peer.name))
        except PeerError as error:
            faults.append(error)
    newest = sorted(found.values(), key=lambda one: one.study.taken, reverse=True)
    return newest[:count], faults


def _earlier(asked: Inquiry, study: Study, modalities: Sequence[str], count: int) -> list[Study]:
    if not study.study_date:  # nobody can say what is earlier
        return []
    theirs = asked.studies_of(study.patient, modalities)
    before = [one for one in theirs if one.study_date and one.taken < study.taken]
    chest: list[Study] = []
    for one in before[:LOOKED_AT]:
        if len(chest) == count:
            break
        if _has_chest_series(asked, one.study_instance_uid, modalities):
            chest.append(one)
    return chest


def queue_priors(
    connection: Connection, settings: Settings, found: Sequence[Prior], prior_of: str
) -> int:
    """Let those that we have not be fetched; how many were not queued before.

    One of the days that are swept is a missed study first of all: it is read as well.
    """
    wanted = settings.reconciliation
    swept = last_days(connection, wanted.days) if wanted.days else []
    wait = timedelta(minutes=wanted.patience_minutes)
    queued = 0
    for one in found:
        study = _found(one.study, one.peer)
        if study.study_date in swept:
            queued += fetches.want(connection, study, fetches.MISSED, wait=wait)
        else:
            queued += fetches.want(connection, study, fetches.PRIOR, prior_of=prior_of)
    return queued
