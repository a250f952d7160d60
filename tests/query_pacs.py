"""A PACS for tests that is asked: a Query/Retrieve SCP (Study Root) over objects in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context, evt

from dicom_node.config import Peer
from dicom_node.queries import FIND, GET, MOVE

DIGITAL_X_RAY = UID("1.2.840.10008.5.1.4.1.1.1.1")
TITLE = "QUERYPACS"
_PENDING, _SUCCESS, _CANCEL = 0xFF00, 0x0000, 0xFE00
_UNIQUE = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
_UNKNOWN_DESTINATION = 0xA801

#: Keys that PS3.4 C.6.2.1 leaves to the SCP.
OPTIONAL = (
    "ModalitiesInStudy",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "BodyPartExamined",
    "NumberOfStudyRelatedInstances",
    "SOPClassUID",
)


def chest(**changes: Any) -> Dataset:
    """One small chest image of a patient; ``None`` leaves an attribute out."""
    study = generate_uid()
    values: dict[str, Any] = {
        "SOPClassUID": DIGITAL_X_RAY,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": study,
        "SeriesInstanceUID": generate_uid(),
        "PatientName": "VERYSECRET^NAME",
        "PatientID": "SECRET-ID",
        "IssuerOfPatientID": "HOSPITAL",
        "PatientBirthDate": "19500203",
        "PatientSex": "F",
        "StudyDate": "20260304",
        "StudyTime": "101500",
        "AccessionNumber": "SECRET-ACCESSION",
        "StudyID": "1",
        "SeriesNumber": "1",
        "InstanceNumber": "1",
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "Rows": 2,
        "Columns": 2,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": bytes(4),
        **changes,
    }
    made = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(made, keyword, value)
    made["PixelData"].VR = "OB"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


class QueryPacs:
    """Answers what it holds; what it is told to answer instead comes first.

    Parameters
    ----------
    told
        Of the keys that a PACS need not support, those it returns.
    matches
        Of those, the ones it matches.
    """

    def __init__(
        self,
        *held: Dataset,
        told: Sequence[str] = OPTIONAL,
        matches: Sequence[str] = ("ModalitiesInStudy",),
        services: Sequence[UID] = (FIND, MOVE, GET),
    ) -> None:
        self.hold(*held, told=told, matches=matches)
        entity = AE(TITLE)
        for service in services:
            entity.add_supported_context(service)
        entity.add_supported_context(DIGITAL_X_RAY, scu_role=True, scp_role=True)
        server = entity.start_server(
            ("127.0.0.1", 0),
            block=False,
            evt_handlers=[
                (evt.EVT_C_FIND, self._find),
                (evt.EVT_C_MOVE, self._move),
                (evt.EVT_C_GET, self._get),
            ],
        )
        assert server is not None  # it is one with block=False
        self._server = server

    def hold(
        self,
        *held: Dataset,
        told: Sequence[str] = OPTIONAL,
        matches: Sequence[str] = ("ModalitiesInStudy",),
    ) -> None:
        """Hold these, and forget what was before."""
        self.held = list(held)
        self.told, self.matches = {*told}, {*matches}
        self.filters = True  #: False: it answers everything to everybody
        self.seconds = 0.0  #: until it answers
        self.find_status: int | None = None  #: in place of an answer
        self.retrieve_status: int | None = None
        self.failing: set[str] = set()  #: SOP Instance UIDs that it can't send
        self.destinations: dict[str, tuple[str, int]] = {}  #: by AE title, for C-MOVE
        self.asked: list[Dataset] = []
        self.moved: list[str] = []  #: Series Instance UIDs that were asked for by C-MOVE
        self.got: list[str] = []  #: ... by C-GET
        self.endless = False  #: answers to C-FIND never end by themselves
        self.heeds_cancel = True

    def __enter__(self) -> QueryPacs:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def peer(self, **overrides: Any) -> Peer:
        """How a node would have it configured."""
        values: dict[str, Any] = {
            "name": "pacs",
            "ae_title": TITLE,
            "host": ("127.0.0.1",),
            "port": self.port,
            "roles": ("source", "query"),
            **overrides,
        }
        return Peer(**values)

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()

    # -- what it holds -----------------------------------------------------------------------------

    def _matching(self, question: Dataset, held: Dataset) -> bool:
        if not self.filters:
            return True
        for element in question:
            keyword, value = element.keyword, element.value
            if keyword in ("QueryRetrieveLevel", "SpecificCharacterSet") or value in ("", None):
                continue
            if keyword == "ModalitiesInStudy":
                if keyword in self.matches and value not in self._modalities(held):
                    return False
            elif str(held.get(keyword, "")) != str(value):
                return False
        return True

    def _modalities(self, held: Dataset) -> list[str]:
        return sorted({one.Modality for one in self._of_study(held)})

    def _of_study(self, held: Dataset) -> list[Dataset]:
        return [one for one in self.held if one.StudyInstanceUID == held.StudyInstanceUID]

    def _answer(self, question: Dataset, held: Dataset) -> Dataset:
        answer = Dataset()
        for element in question:
            keyword = element.keyword
            if keyword == "QueryRetrieveLevel":
                answer.QueryRetrieveLevel = question.QueryRetrieveLevel
            elif keyword == "ModalitiesInStudy" and keyword in self.told:
                answer.ModalitiesInStudy = self._modalities(held)
            elif keyword == "NumberOfStudyRelatedInstances" and keyword in self.told:
                answer.NumberOfStudyRelatedInstances = len(self._of_study(held))
            elif keyword in held and (keyword in self.told or keyword not in OPTIONAL):
                answer[keyword] = held[keyword]
        if "SpecificCharacterSet" in held:
            answer.SpecificCharacterSet = held.SpecificCharacterSet
        return answer

    # -- services ----------------------------------------------------------------------------------

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        question = event.identifier
        self.asked.append(question)
        time.sleep(self.seconds)
        if self.find_status is not None:
            yield self.find_status, None
            return
        found: dict[str, Dataset] = {}
        for held in self.held:
            if self._matching(question, held):
                unique = held[_UNIQUE[question.QueryRetrieveLevel]].value
                found.setdefault(unique, self._answer(question, held))
        while True:
            for answer in found.values():
                if event.is_cancelled and self.heeds_cancel:
                    yield _CANCEL, None
                    return
                yield _PENDING, answer
            if not self.endless:
                return

    def _wanted(self, question: Dataset) -> list[Dataset]:
        return [one for one in self.held if self._matching(question, one)]

    def _operations(self, question: Dataset) -> Iterator[tuple[int, Dataset | None] | int]:
        wanted = self._wanted(question)
        yield len(wanted)
        if self.retrieve_status is not None:
            yield self.retrieve_status, None
            return
        for one in wanted:
            sent = one
            if one.SOPInstanceUID in self.failing:  # of a class that nobody agreed on
                sent = chest(SOPClassUID="1.2.840.10008.5.1.4.1.1.66")
            yield _PENDING, sent

    def _move(self, event: evt.Event) -> Iterator[Any]:
        question = event.identifier
        self.moved.append(str(question.SeriesInstanceUID))
        destination = self.destinations.get(str(event.move_destination).strip())
        if destination is None:
            yield None, None  # pynetdicom answers 0xA801
            return
        yield (*destination, {"contexts": [build_context(DIGITAL_X_RAY)]})
        yield from self._operations(question)

    def _get(self, event: evt.Event) -> Iterator[Any]:
        self.got.append(str(event.identifier.SeriesInstanceUID))
        yield from self._operations(event.identifier)
