"""Final reports as SR documents, all made up, in the shapes in which they come."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import BasicTextSRStorage

from tests.dicom_node.results.samples import reread

DOCUMENT = "1.2.826.0.1.3680043.10.1561.7.1"
STUDY = "1.2.826.0.1.3680043.10.1561.7.2"

REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")
FINDINGS = Code("59776-5", "LN", "Findings")
IMPRESSIONS = Code("19005-8", "LN", "Impressions")
CONCLUSIONS = Code("55110-1", "LN", "Conclusions")
HISTORY = Code("11329-0", "LN", "History")
ADDENDUM = Code("55107-7", "LN", "Addendum")
FINDING = Code("121071", "DCM", "Finding")
IMPRESSION = Code("121073", "DCM", "Impression")
CONCLUSION = Code("121077", "DCM", "Conclusion")
OLD_FINDINGS = Code("121070", "DCM", "Findings")
OLD_IMPRESSIONS = Code("121072", "DCM", "Impressions")
OLD_CONCLUSIONS = Code("121076", "DCM", "Conclusions")
OLD_HISTORY = Code("121060", "DCM", "History")
OLD_ADDENDUM = Code("121078", "DCM", "Addendum")
PERSON = Code("121008", "DCM", "Person Observer Name")
REPLACED = Code("121360", "DCM", "Replaced report")
ADDENDED = Code("121361", "DCM", "Addended report")


def dataset(**values: object) -> Dataset:
    """Return a data set; ``None`` leaves an attribute out."""
    ds = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def coded(code: Code) -> list[Dataset]:
    """Return a code sequence of one item."""
    item = dataset(CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator)
    item.CodeMeaning = code.meaning
    return [item]


def item(
    kind: str, name: Code | None, relationship: str | None = "CONTAINS", **values: object
) -> Dataset:
    """Return a content item."""
    names = coded(name) if name else None
    return dataset(
        RelationshipType=relationship, ValueType=kind, ConceptNameCodeSequence=names, **values
    )


def text(name: Code | None, value: str, *below: Dataset, relationship: str = "CONTAINS") -> Dataset:
    """Return a TEXT item."""
    return item("TEXT", name, relationship, TextValue=value, ContentSequence=list(below) or None)


def container(name: Code | None, *below: Dataset, continuity: str = "SEPARATE") -> Dataset:
    """Return a CONTAINER item."""
    return item(
        "CONTAINER", name, ContinuityOfContent=continuity, ContentSequence=list(below) or None
    )


def document(*below: Dataset, title: Code | None = REPORT, **changes: object) -> Dataset:
    """Return a verified document as a file gives it; ``None`` leaves an attribute out."""
    values: dict[str, object] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": BasicTextSRStorage,
        "SOPInstanceUID": DOCUMENT,
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": f"{STUDY}.1",
        "Modality": "SR",
        "StudyDate": "20240311",
        "ContentDate": "20240311",
        "ContentTime": "113000",
        "AccessionNumber": "ACC1",
        "IssuerOfAccessionNumberSequence": [dataset(LocalNamespaceEntityID="RIS")],
        "PatientID": "MRN0012345",
        "IssuerOfPatientID": "GENHOSP",
        "PatientName": "Doe^Jane",
        "ManufacturerModelName": "RIS 1",
        "CompletionFlag": "COMPLETE",
        "VerificationFlag": "VERIFIED",
        "VerifyingObserverSequence": [verifier("20240311120000")],
        "ValueType": "CONTAINER",
        "ConceptNameCodeSequence": coded(title) if title else None,
        "ContinuityOfContent": "SEPARATE",
        "ContentSequence": list(below),
    }
    return reread(dataset(**{**values, **changes}))


def verifier(at: str) -> Dataset:
    """Return an item of the Verifying Observer Sequence."""
    return dataset(
        VerifyingObserverName="Reader^Rosa",
        VerifyingOrganization="General Hospital",
        VerificationDateTime=at,
        VerifyingObserverIdentificationCodeSequence=[],
    )


def author(kind: str = "PSN") -> Dataset:
    """Return an item of the Author Observer Sequence: a person's, or a device's."""
    if kind == "PSN":
        return dataset(ObserverType="PSN", PersonName="Reader^Rosa")
    return dataset(ObserverType="DEV", DeviceUID="1.2.3.4", Manufacturer="Acme")


def predecessor(*uids: str, purpose: Code | None = None) -> list[Dataset]:
    """Return a Predecessor Documents Sequence."""
    purposes = coded(purpose) if purpose else None
    references: Sequence[Dataset] = [
        dataset(
            ReferencedSOPClassUID=BasicTextSRStorage,
            ReferencedSOPInstanceUID=uid,
            PurposeOfReferenceCodeSequence=purposes,
        )
        for uid in uids
    ]
    series = dataset(SeriesInstanceUID="1.2.3.5", ReferencedSOPSequence=list(references))
    return [dataset(StudyInstanceUID=STUDY, ReferencedSeriesSequence=[series])]
