"""The test object: nobody's, always the same, and valid to other people's judges."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmwrite

from dicom_node.doctor import marked_object
from tests.dicom_node.results import judges


def encoded(ae_title: str, sop_class_uid: str = marked_object.CLASSES[0]) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, marked_object.made(ae_title, sop_class_uid), enforce_file_format=True)
    return buffer.getvalue()


def test_a_hundred_tests_leave_one_object() -> None:
    assert encoded("DICOMNODE") == encoded("DICOMNODE")


def test_two_nodes_and_two_classes_have_objects_of_their_own() -> None:
    made = [
        marked_object.made(title, uid).SOPInstanceUID
        for title in ("DICOMNODE", "OTHER")
        for uid in marked_object.CLASSES
    ]
    assert len({*made}) == len(made)


def test_nobody_takes_it_for_a_patients() -> None:
    ds = marked_object.made("DICOMNODE", marked_object.CLASSES[0])
    assert (ds.PatientName, ds.PatientID) == ("DICOM-NODE^TEST", "DICOM-NODE-TEST")
    assert ds.QualityControlSubject == "YES"
    assert ds.StudyDescription == ds.SeriesDescription == "TEST OBJECT - DELETE"


@pytest.mark.parametrize("sop_class_uid", marked_object.CLASSES)
def test_other_peoples_judges_find_nothing_wrong(tmp_path: Path, sop_class_uid: str) -> None:
    file = tmp_path / "test.dcm"
    file.write_bytes(encoded("DICOMNODE", sop_class_uid))
    for name, judge in (("dciodvfy", judges.dciodvfy), ("dsrdump", judges.dsrdump)):
        assert judges.unexplained(name, judge(file)) == []
