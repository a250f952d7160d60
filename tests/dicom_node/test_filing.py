"""What filing reads of a data set: in every transfer syntax, and of nothing that is none."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_node import filing
from dicom_node.errors import CannotUnderstand
from dicom_node.filing import Header
from dicom_node.scp import TRANSFER_SYNTAXES
from dicom_node.storage import Identity, identity_key
from tests.dicom_node.network import DIGITAL_X_RAY, encoded, header


def read_header(data_set: bytes, transfer_syntax: UID) -> Header:
    return filing.read_header(io.BytesIO(data_set), transfer_syntax)


@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES, ids=lambda uid: uid.keyword)
def test_the_header_is_read_in_every_transfer_syntax(transfer_syntax: UID) -> None:
    found = read_header(encoded(header(), transfer_syntax), transfer_syntax)
    assert found.study_instance_uid == "1.2.3"
    assert found.series_instance_uid == "1.2.3.1"
    assert (found.sop_class_uid, found.sop_instance_uid) == (DIGITAL_X_RAY, "1.2.3.4")


def test_patients_are_the_same_only_with_the_same_id_and_issuer() -> None:
    def key(**changes: object) -> str:
        return read_header(encoded(header(**changes)), ExplicitVRLittleEndian).patient_key

    assert key(PatientID=None) == key(PatientID="") == key(PatientID="  ") == ""
    assert key() == key(PatientName="Other^Name") == key(PatientID="SECRET-ID ")
    assert len({key(), key(PatientID="OTHER"), key(IssuerOfPatientID="A"), ""}) == 4


def identity(transfer_syntax: UID = ExplicitVRLittleEndian, **changes: object) -> Identity:
    return read_header(encoded(header(**changes), transfer_syntax), transfer_syntax).identity


def issuer(**values: str) -> Sequence:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return Sequence([item])


@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES, ids=lambda uid: uid.keyword)
def test_an_image_tells_whose_study_it_is_of(transfer_syntax: UID) -> None:
    found = identity(
        transfer_syntax,
        AccessionNumber="A1",
        IssuerOfAccessionNumberSequence=issuer(LocalNamespaceEntityID="RIS"),
        IssuerOfPatientID="HOSPITAL ",
        StudyDate="20240311",
    )
    assert found == Identity(
        patient_id_key=identity_key("SECRET-ID"),
        patient_issuer_key=identity_key("HOSPITAL"),
        accession_key=identity_key("A1"),
        accession_issuer_key=identity_key("RIS"),
        study_date="20240311",
    )


def test_what_an_image_does_not_tell_is_empty() -> None:
    assert identity(PatientID=None) == Identity()
    blank = identity(PatientID=" ", AccessionNumber="", IssuerOfAccessionNumberSequence=issuer())
    assert blank == Identity()


@pytest.mark.parametrize(
    ("sent", "day"),
    [("2024.03.11", "20240311"), ("2024-03-11", "20240311"), ("2024", ""), ("XX", "")],
)
def test_a_study_date_is_a_day_or_nothing(sent: str, day: str) -> None:
    old = header()
    old.add(DataElement("StudyDate", "DA", sent, validation_mode=IGNORE))
    assert read_header(encoded(old), ExplicitVRLittleEndian).identity.study_date == day


def test_an_issuer_beyond_ascii_is_the_same_in_latin_1_and_utf_8() -> None:
    for character_set in ("ISO_IR 100", "ISO_IR 192"):
        found = identity(SpecificCharacterSet=character_set, IssuerOfPatientID="Klinikum Süd")
        assert found.patient_issuer_key == identity_key("Klinikum Süd")


def test_an_issuer_sequence_that_cannot_be_parsed_does_not_refuse_the_image() -> None:
    whole = encoded(
        header(IssuerOfAccessionNumberSequence=issuer(LocalNamespaceEntityID="HOSPITAL"))
    )
    damaged = whole.replace(b"UT\0\0", b"ZZ\0\0")  # no VR of that name
    assert damaged != whole
    found = read_header(damaged, ExplicitVRLittleEndian)
    assert found.study_instance_uid == "1.2.3"
    assert found.identity.accession_issuer_key == ""


def nested(depth: int) -> Dataset:
    dataset = header()
    for _ in range(depth):
        outer = header()
        outer.ReferencedStudySequence = Sequence([dataset])  # (0008,1110), before the UIDs
        dataset = outer
    return dataset


def test_nesting_beyond_our_stack_is_not_understood() -> None:
    level = b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises(CannotUnderstand, match="RecursionError"):
        read_header(level * 10_000, ExplicitVRLittleEndian)


def test_honest_nesting_is_understood() -> None:
    found = read_header(encoded(nested(20)), ExplicitVRLittleEndian)
    assert found.study_instance_uid == "1.2.3"


def test_a_zip_bomb_is_not_unpacked() -> None:
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    start = encoded(header())
    bomb = packer.compress(start + b"\xe0\x7f\x10\x00OB\0\0" + struct.pack("<L", 100 << 20))
    bomb += b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
    tracemalloc.start()
    try:
        found = read_header(bomb, DeflatedExplicitVRLittleEndian)
        assert tracemalloc.get_traced_memory()[1] < 5 * filing.MAXIMUM_INFLATED
    finally:
        tracemalloc.stop()
    assert found.study_instance_uid == "1.2.3"


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(data=st.data())
def test_damaged_data_sets_are_read_or_not_understood_and_nothing_else(data: st.DataObject) -> None:
    transfer_syntax = data.draw(
        st.sampled_from(
            [
                ExplicitVRLittleEndian,
                ImplicitVRLittleEndian,
                ExplicitVRBigEndian,
                DeflatedExplicitVRLittleEndian,
            ]
        )
    )
    dataset = nested(data.draw(st.integers(0, 2)))
    dataset.IssuerOfAccessionNumberSequence = issuer(LocalNamespaceEntityID="HOSPITAL")
    whole = bytearray(encoded(dataset, transfer_syntax))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with suppress(CannotUnderstand):
        assert isinstance(read_header(cut, transfer_syntax), Header)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.binary(max_size=300), st.sampled_from(TRANSFER_SYNTAXES[:4]))
def test_any_bytes_are_read_or_not_understood_and_nothing_else(
    noise: bytes, transfer_syntax: UID
) -> None:
    with suppress(CannotUnderstand):
        assert isinstance(read_header(noise, transfer_syntax), Header)


@pytest.mark.parametrize("length", [2**31, 0xFFFFFFFF], ids=["claimed", "undefined"])
def test_a_huge_element_before_the_uids_is_not_read_into_memory(length: int) -> None:
    data_set = io.BytesIO(b"\x10\0\x20\0UN\0\0" + struct.pack("<L", length))  # (0010,0020)
    data_set.seek(0, io.SEEK_END)
    data_set.write(bytes(3 * filing.MAXIMUM_HEADER))
    data_set.seek(0)
    tracemalloc.start()
    try:
        with pytest.raises(CannotUnderstand):
            filing.read_header(data_set, ExplicitVRLittleEndian)
        assert tracemalloc.get_traced_memory()[1] < 200 * filing.MAXIMUM_HEADER
    finally:
        tracemalloc.stop()


# -- the fast way ----------------------------------------------------------------------------------

SCANNED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


@pytest.mark.parametrize("transfer_syntax", SCANNED, ids=lambda uid: uid.keyword)
def test_a_plain_header_is_scanned_and_needs_no_more_than_its_first_bytes(
    transfer_syntax: UID,
) -> None:
    made = header(StudyDate="20240311", AccessionNumber="A1", InstanceNumber=1)
    data_set = encoded(made, transfer_syntax)
    slow = read_header(data_set, transfer_syntax)
    assert filing.scan(data_set + b"what follows", transfer_syntax) == slow
    assert slow.identity.study_date == "20240311"


@pytest.mark.parametrize(
    ("changes", "transfer_syntax"),
    [
        ({}, DeflatedExplicitVRLittleEndian),
        ({"IssuerOfAccessionNumberSequence": issuer(LocalNamespaceEntityID="H")}, SCANNED[0]),
    ],
    ids=["deflated", "an issuer's sequence"],
)
def test_what_is_not_plain_is_left_to_the_slow_way(
    changes: dict[str, object], transfer_syntax: UID
) -> None:
    data_set = encoded(header(**changes), transfer_syntax)
    assert filing.scan(data_set, transfer_syntax) is None


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300)
@given(data=st.data())
def test_what_the_fast_way_reads_the_slow_way_reads_too(data: st.DataObject) -> None:
    transfer_syntax = data.draw(st.sampled_from(SCANNED))
    some = st.sampled_from([None, "", " 1", "2024.03.11", "20240311"])
    names = ("AccessionNumber", "StudyDate", "IssuerOfPatientID")
    made = header(**{name: data.draw(some) for name in names}, InstanceNumber=1)
    whole = bytearray(encoded(made, transfer_syntax))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    head = bytes(whole[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))])
    scanned = filing.scan(head, transfer_syntax)
    if scanned is not None:
        assert scanned == read_header(bytes(whole), transfer_syntax)


@given(noise=st.binary(max_size=300), transfer_syntax=st.sampled_from(TRANSFER_SYNTAXES))
def test_noise_is_never_more_than_not_plain(noise: bytes, transfer_syntax: UID) -> None:
    filing.scan(noise, transfer_syntax)
