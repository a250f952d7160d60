"""Who is asked: what a peer has (C-FIND), and to give it to us (C-MOVE, C-GET).

Study Root model, hierarchical, unique keys below the study (PS3.4 C.4, C.6.2). What a peer answers
is believed only as far as it can be checked: one that ignores a key answers too much, so every
answer is held against the question again, and one that never ends is cancelled.

Patient data come in answers: they are compared, never logged, and in no message of an error.
"""

from __future__ import annotations

import logging
import re
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from dicom_node.audit.auditor import Asking
from dicom_node.config import Peer, Tls
from dicom_node.errors import CannotUnderstand, NodeError, NotSupported, PeerError, trace
from dicom_node.filing import Origin
from dicom_node.malformed import MALFORMED
from dicom_node.scp import TRANSFER_SYNTAXES
from dicom_node.scu import DicomPeer, Timeouts
from dicom_node.storage import checked_uid
from dicom_node.studies import READABLE

logger = logging.getLogger(__name__)

#: Answers to one question; more are cancelled (PS3.4 C.4.1.3.2).
LIMIT = 2000
#: Answers that may still be on their way when a question is cancelled; then we abort.
_OVERRUN = 200
#: Seconds that the answers to one question may take together.
PATIENCE = 300.0
#: A PACS fetches from tape before it says anything, and tells of no step before the last.
RETRIEVING = Timeouts(answer=600)

# PS3.4 C.6.2.1.3
FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
MOVE = UID("1.2.840.10008.5.1.4.1.2.2.2")
GET = UID("1.2.840.10008.5.1.4.1.2.2.3")
_UNCOMPRESSED: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
#: As many SOP classes as fit an association with all their transfer syntaxes (PS3.8 9.3.2.2).
_CLASSES = (128 - 1) // len(TRANSFER_SYNTAXES)

_MESSAGE_ID = 1
_SUCCESS = 0x0000
_SOME_FAILED = 0xB000  # PS3.4 Table C.4-2: sub-operations complete, one or more failures
_CANCELLED = 0xFE00
_PENDING = (0xFF00, 0xFF01)
_PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.10

# PS3.4 Tables C.4-1, C.4-2, C.4-3; PS3.7 C
_MEANINGS = {
    0x0122: "SOP class not supported",
    0x0124: "not authorised",
    0xA700: "out of resources",
    0xA701: "out of resources, it can't count the matches",
    0xA702: "it can't perform the sub-operations",
    0xA900: "the question does not match the SOP class",
    _CANCELLED: "cancelled",
}
_UNKNOWN_DESTINATION = 0xA801
_NO_SUBOPERATIONS = 0xA702

#: Of BodyPartExamined; the words for which ``inference.selection`` takes an image as a chest's.
_CHEST = re.compile(
    "CHEST|CXR|THORA[XC]|TORA[XC]|LUNG|BRUSTK|POUMON|PULM|POLMON|LONGEN|LONGFOTO|BORSTKAS"
)
_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"[0-9]{2,6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """Who somebody is, to be compared and never shown."""

    patient_id: str = field(repr=False)
    issuer: str = field(default="", repr=False)
    birth_date: str = field(default="", repr=False)  #: YYYYMMDD; empty: not said

    @property
    def can_be_asked_for(self) -> bool:
        """Is the id one that a query matches exactly? PS3.4 C.2.2.2.4: * and ? are wildcards."""
        return bool(self.patient_id) and not re.search(r"[*?\\]", self.patient_id)

    def is_surely(self, other: Patient) -> bool:
        """Is the other the same patient? A wrong one never, so a doubt says no.

        The ids are the same, and nothing that both say differs. Where only one names the issuer
        of the id, it is the same only if both give the same birth date.
        """
        if not self.patient_id or self.patient_id != other.patient_id:
            return False
        births = {self.birth_date, other.birth_date} - {""}
        issuers = {self.issuer, other.issuer} - {""}
        if len(births) > 1 or len(issuers) > 1:
            return False
        born_alike = bool(self.birth_date and other.birth_date)
        return self.issuer == other.issuer or born_alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study that a peer has."""

    study_instance_uid: str
    study_date: str  #: YYYYMMDD; empty: not said
    study_time: str  #: HHMMSS or less; empty: not said
    modalities: tuple[str, ...]  #: empty: not said
    instances: int | None  #: ``None``: not said
    patient: Patient

    @property
    def taken(self) -> tuple[str, str]:
        """When, to be compared."""
        return self.study_date, self.study_time

    def may_have(self, modalities: Collection[str]) -> bool:
        """Has it one of these modalities, as far as the peer says?"""
        return not self.modalities or bool({*self.modalities} & {*modalities})


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series that a peer has."""

    series_instance_uid: str
    modality: str
    body_part: str  #: empty: not said

    def may_be_chest(self, modalities: Collection[str]) -> bool:
        """Is it of one of these modalities, and of no other body part as far as it says?"""
        part = unicodedata.normalize("NFKD", self.body_part.upper())
        plain = "".join(one for one in part if not unicodedata.combining(one))
        return self.modality in modalities and (not plain or bool(_CHEST.search(plain)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """An instance that a peer has."""

    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str  #: empty: not said


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved:
    """What a peer says of its sub-operations (PS3.4 C.4.2.1.6)."""

    completed: int
    failed: int


#: Makes one received data set durable: the command's and sender's words, and the encoded bytes.
Keep = Callable[[Origin, bytes], None]


class _Queried(DicomPeer):
    """A peer where it answers queries."""

    def __init__(
        self,
        peer: Peer,
        calling_ae_title: str,
        timeouts: Timeouts | None,
        tls: Tls | None,
        asking: Asking | None = None,
    ) -> None:
        super().__init__(peer.for_queries, calling_ae_title, timeouts, tls)
        self._asking = asking

    # -- C-FIND ------------------------------------------------------------------------------------

    def find(self, association: Association, question: Dataset) -> list[Dataset]:
        """The answers to a question (PS3.4 C.4.1), those beyond the bounds left out."""
        if self._asking is not None:
            self._asking(FIND, question)
        found: list[Dataset | None] = []
        until = time.monotonic() + PATIENCE
        overrun = 0
        for identifier in self._pending(association, question):
            if len(found) < LIMIT and time.monotonic() < until:
                found.append(identifier)
                continue
            overrun += 1
            if overrun == 1:
                logger.warning("%s: too many answers, the rest is left out", self.who)
                with suppress(RuntimeError):  # it has ended just now
                    association.send_c_cancel(_MESSAGE_ID, query_model=FIND)
            elif overrun > _OVERRUN:
                association.abort()
                break
        return [one for one in found if one is not None]

    def _pending(self, association: Association, question: Dataset) -> Iterator[Dataset | None]:
        """``None``: an answer that nobody can decode."""
        answered = time.monotonic()
        answers = self._asked(association.send_c_find, question, FIND, _MESSAGE_ID)
        for answer, identifier in answers:
            status = self.status(association, answer, answered)
            answered = time.monotonic()
            if status in _PENDING:
                yield identifier
            elif status not in (_SUCCESS, _CANCELLED):
                raise self.failure("C-FIND", status)

    def _asked(
        self, send: Callable[..., Iterator[tuple[Dataset, Dataset | None]]], *arguments: object
    ) -> Iterator[tuple[Dataset, Dataset | None]]:
        try:
            return send(*arguments)
        except ValueError as error:  # no accepted context
            raise NotSupported(f"{self.who} accepts no {_service(send)}") from error
        except RuntimeError as error:
            raise PeerError(f"{self.who}: the association has ended") from error

    # -- C-MOVE, C-GET -----------------------------------------------------------------------------

    def retrieve(self, association: Association, service: str, question: Dataset) -> Retrieved:
        """Ask for objects and wait for the last of them (PS3.4 C.4.2, C.4.3)."""
        answered = time.monotonic()
        if service == "C-MOVE":
            title = self._calling_ae_title
            answers = self._asked(association.send_c_move, question, title, MOVE, _MESSAGE_ID)
        else:
            answers = self._asked(association.send_c_get, question, GET, _MESSAGE_ID)
        for answer, _ in answers:
            status = self.status(association, answer, answered)
            answered = time.monotonic()
            if status in (_SUCCESS, _SOME_FAILED):
                return Retrieved(
                    completed=int(answer.get("NumberOfCompletedSuboperations") or 0),
                    failed=int(answer.get("NumberOfFailedSuboperations") or 0),
                )
            if status not in _PENDING:
                raise self.failure(service, status)
        raise PeerError(f"{self.who}: {service} ended without an answer")

    def failure(self, service: str, status: int) -> PeerError:
        """What a status that ends a service without success means, and what to do."""
        who, ours = self.who, self._calling_ae_title
        meaning = _MEANINGS.get(status, "it can't process the request")
        if status == _UNKNOWN_DESTINATION:
            meaning = "move destination unknown: the PACS must know our AE title, host and port"
            meaning += f" ({ours}); set them there, nothing is to be changed here"
        elif status == _NO_SUBOPERATIONS and service == "C-MOVE":
            meaning += f": can it reach us as {ours}, and is it a source in our configuration?"
        message = f"{who} answered {service} with 0x{status:04X}: {meaning}"
        return PeerError(message, status=status)


class Inquiry:
    """One association on which a peer is asked; see :func:`inquiry`.

    Every method raises :class:`PeerError`.
    """

    def __init__(self, peer: _Queried, association: Association) -> None:
        self._peer = peer
        self._association = association

    def studies_on(self, day: str, modalities: Iterable[str]) -> list[Study]:
        """The studies of one day (YYYYMMDD) that may have one of these modalities."""
        found = self._studies(modalities, {"StudyDate": day}, ())
        return [one for one in found if one.study_date in ("", day)]

    def studies_of(self, patient: Patient, modalities: Iterable[str]) -> list[Study]:
        """The studies of surely this patient that may have one of these modalities."""
        if not patient.can_be_asked_for:
            return []
        asked_back = ("IssuerOfPatientID", "PatientBirthDate")
        found = self._studies(modalities, {"PatientID": patient.patient_id}, asked_back)
        return [one for one in found if patient.is_surely(one.patient)]

    def _studies(
        self, modalities: Iterable[str], keys: dict[str, str], asked_back: Sequence[str]
    ) -> list[Study]:
        """Newest first, each once: ModalitiesInStudy takes one value (PS3.4 C.2.2.2.1)."""
        found: dict[str, Study] = {}
        wanted = tuple(modalities)
        told = ("StudyInstanceUID", "StudyDate", "StudyTime", "NumberOfStudyRelatedInstances")
        for modality in wanted:
            question = _question("STUDY", (*told, *asked_back), ModalitiesInStudy=modality, **keys)
            for identifier in self._peer.find(self._association, question):
                study = study_of(identifier)
                if study is not None and study.may_have(wanted):
                    found[study.study_instance_uid] = study
        return sorted(found.values(), key=lambda one: one.taken, reverse=True)

    def series_of(self, study_instance_uid: str) -> list[Series]:
        """The series of a study."""
        told = ("SeriesInstanceUID", "Modality", "BodyPartExamined")
        question = _question("SERIES", told, StudyInstanceUID=study_instance_uid)
        answers = self._peer.find(self._association, question)
        series = {
            uid: Series(
                series_instance_uid=uid,
                modality=_text(one, "Modality"),
                body_part=_text(one, "BodyPartExamined"),
            )
            for one in answers
            if (uid := _uid(one, "SeriesInstanceUID"))
        }
        return list(series.values())

    def instances_of(self, study_instance_uid: str, series_instance_uid: str) -> list[Instance]:
        """The instances of a series."""
        question = _question(
            "IMAGE",
            ("SOPInstanceUID", "SOPClassUID"),
            StudyInstanceUID=study_instance_uid,
            SeriesInstanceUID=series_instance_uid,
        )
        instances = {
            uid: Instance(
                series_instance_uid=series_instance_uid,
                sop_instance_uid=uid,
                sop_class_uid=_uid(one, "SOPClassUID"),
            )
            for one in self._peer.find(self._association, question)
            if (uid := _uid(one, "SOPInstanceUID"))
        }
        return list(instances.values())

    def chest_instances(
        self, study_instance_uid: str, modalities: Collection[str]
    ) -> list[Instance]:
        """The instances of those series of a study that may be of the chest."""
        return [
            instance
            for series in self.series_of(study_instance_uid)
            if series.may_be_chest(modalities)
            for instance in self.instances_of(study_instance_uid, series.series_instance_uid)
        ]


@contextmanager
def inquiry(
    peer: Peer,
    calling_ae_title: str,
    tls: Tls | None = None,
    timeouts: Timeouts | None = None,
    asking: Asking | None = None,
) -> Iterator[Inquiry]:
    """Ask a peer over one association; ``asking`` is told of each question before.

    Raises
    ------
    PeerError
        It can't be asked.
    """
    queried = _Queried(peer, calling_ae_title, timeouts, tls, asking)
    with queried.association([build_context(FIND, _UNCOMPRESSED)]) as association:
        yield Inquiry(queried, association)


def move(
    peer: Peer,
    calling_ae_title: str,
    study_instance_uid: str,
    series_instance_uids: Iterable[str],
    tls: Tls | None = None,
    timeouts: Timeouts = RETRIEVING,
) -> Retrieved:
    """C-MOVE of series to ourselves: the objects come in through our own SCP, from that peer.

    Raises
    ------
    PeerError
        It sends none.
    """
    queried = _Queried(peer, calling_ae_title, timeouts, tls)
    with queried.association([build_context(MOVE, _UNCOMPRESSED)]) as association:
        return _sum(
            queried.retrieve(association, "C-MOVE", _series(study_instance_uid, uid))
            for uid in series_instance_uids
        )


def get(
    peer: Peer,
    calling_ae_title: str,
    study_instance_uid: str,
    instances: Sequence[Instance],
    keep: Keep,
    tls: Tls | None = None,
    timeouts: Timeouts = RETRIEVING,
) -> Retrieved:
    """C-GET of the series of these instances: the objects come over the same association.

    Parameters
    ----------
    keep
        Makes an object durable before it is acknowledged; what it raises is the answer.

    Raises
    ------
    PeerError
        It sends none.
    """
    queried = _Queried(peer, calling_ae_title, timeouts, tls)
    classes = _classes(instances)
    # A context for each syntax: a peer that must choose one for all would compress anew.
    contexts = [build_context(uid, [syntax]) for uid in classes for syntax in TRANSFER_SYNTAXES]
    with queried.association(
        [build_context(GET, _UNCOMPRESSED), *contexts],
        roles=[build_role(uid, scp_role=True) for uid in classes],  # PS3.7 D.3.3.4
        handlers=[(evt.EVT_C_STORE, _keeping(keep, peer))],
    ) as association:
        return _sum(
            queried.retrieve(association, "C-GET", _series(study_instance_uid, uid))
            for uid in dict.fromkeys(one.series_instance_uid for one in instances)
        )


def _classes(instances: Iterable[Instance]) -> list[str]:
    """Those that the peer names; where it names none, those that can be read."""
    told = {one.sop_class_uid for one in instances}
    return sorted(told - {""} | ({*READABLE} if "" in told else set()))[:_CLASSES]


def _keeping(keep: Keep, peer: Peer) -> Callable[[evt.Event], int]:
    """A border: every fault becomes a DIMSE status (PS3.4 B.2.3)."""

    def store(event: evt.Event) -> int:
        try:
            request = cast(C_STORE, event.request)
            if request.DataSet is None:
                raise CannotUnderstand("C-STORE without a data set")
            origin = Origin(
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                transfer_syntax=UID(event.context.transfer_syntax),
                calling_ae_title=peer.ae_title,
                address=peer.address,
            )
            keep(origin, request.DataSet.getvalue())
        except NodeError as error:
            logger.warning("C-GET from %s: 0x%04X %s", peer.name, error.dimse_status, error)
            return error.dimse_status
        except Exception as error:
            logger.error("C-GET from %s: our bug\n%s", peer.name, trace(error))
            return _PROCESSING_FAILURE
        return _SUCCESS

    return store


def _sum(parts: Iterable[Retrieved]) -> Retrieved:
    all_parts = list(parts)
    return Retrieved(
        completed=sum(one.completed for one in all_parts),
        failed=sum(one.failed for one in all_parts),
    )


def _service(send: Callable[..., object]) -> str:
    return send.__name__.removeprefix("send_").upper().replace("_", "-")


def _question(level: str, told: Iterable[str], **keys: str) -> Dataset:
    """PS3.4 C.2.2.1: what is to match, and what is to be told."""
    question = Dataset()
    question.QueryRetrieveLevel = level
    if not all(value.isascii() for value in keys.values()):
        question.SpecificCharacterSet = "ISO_IR 192"
    for keyword in told:
        setattr(question, keyword, "")
    for keyword, value in keys.items():
        setattr(question, keyword, value)
    return question


def _series(study_instance_uid: str, series_instance_uid: str) -> Dataset:
    return _question(
        "SERIES",
        (),
        StudyInstanceUID=study_instance_uid,
        SeriesInstanceUID=series_instance_uid,
    )


# -- answers ---------------------------------------------------------------------------------------


def study_of(identifier: Dataset) -> Study | None:
    """What an answer, or an object's header, says of its study; ``None``: it names none."""
    uid = _uid(identifier, "StudyInstanceUID")
    if not uid:
        return None
    modalities = _text(identifier, "ModalitiesInStudy").split("\\")
    count = _text(identifier, "NumberOfStudyRelatedInstances")
    return Study(
        study_instance_uid=uid,
        study_date=_matching(_DATE, _text(identifier, "StudyDate")),
        study_time=_matching(_TIME, _text(identifier, "StudyTime")),
        modalities=tuple(one.strip() for one in modalities if one.strip()),
        instances=int(count) if count.isascii() and count.isdigit() else None,
        patient=patient_of(identifier),
    )


def patient_of(header: Dataset) -> Patient:
    """Whose it says it is, decoded by its own character set (PS3.3 C.12.1.1.2)."""
    return Patient(
        patient_id=_text(header, "PatientID"),
        issuer=_text(header, "IssuerOfPatientID"),
        birth_date=_matching(_DATE, _text(header, "PatientBirthDate")),
    )


def _uid(identifier: Dataset, keyword: str) -> str:
    try:
        return checked_uid(_text(identifier, keyword), keyword)
    except CannotUnderstand:  # an answer that can't be used is none
        return ""


def _text(header: Dataset, keyword: str) -> str:
    """The value as text, several ones as DICOM writes them; empty where it can't be read."""
    try:
        value = header.get(keyword)
        parts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
        return "\\".join(str(one) for one in parts if one is not None).strip(" \0")
    except MALFORMED:
        return ""


def _matching(form: re.Pattern[str], value: str) -> str:
    found = form.match(value)
    return found.group() if found else ""
