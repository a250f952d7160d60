"""Action and Event Information: what pydicom writes is read, and what is wrong is refused."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.commitment_information import (
    FAILURES_EXIST,
    SUCCESSFUL,
    action_information,
    event_information,
    read_report,
    read_request,
)
from dicom_node.commitments import REASONS, InvalidArgument, Item, Report, Request
from tests.dicom_node.network import DIGITAL_X_RAY, encoded

TRANSACTION = "2.25.17"
ONE, OTHER = Item(DIGITAL_X_RAY, "1.2.3"), Item(DIGITAL_X_RAY, "1.2.4")
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]

uids = st.from_regex(r"[12](\.(0|[1-9][0-9]{0,8})){1,6}", fullmatch=True)
items = st.builds(Item, uids, uids)
syntaxes = st.sampled_from(SYNTAXES)


@given(
    transaction=uids,
    references=st.lists(items, min_size=1, max_size=5).map(tuple),
    syntax=syntaxes,
)
def test_a_request_is_read_as_it_was_written(
    transaction: str, references: tuple[Item, ...], syntax: UID
) -> None:
    request = Request(transaction_uid=transaction, references=references)
    assert read_request(encoded(action_information(request), syntax), syntax) == request


@given(
    transaction=uids,
    committed=st.lists(items, max_size=4),
    failed=st.dictionaries(items, st.sampled_from(sorted(REASONS)), max_size=4),
    syntax=syntaxes,
)
def test_a_report_is_read_as_it_was_written(
    transaction: str, committed: list[Item], failed: dict[Item, int], syntax: UID
) -> None:
    safe = tuple(item for item in committed if item not in failed)
    report = Report(transaction_uid=transaction, committed=safe, failed=failed)
    event_type, made = event_information(report)
    assert event_type == (FAILURES_EXIST if failed else SUCCESSFUL)
    assert read_report(encoded(made, syntax), syntax) == report


def test_a_report_does_not_say_that_anything_can_be_retrieved() -> None:
    _, made = event_information(Report(transaction_uid=TRANSACTION, committed=(ONE,)))
    assert "RetrieveAETitle" not in made


def test_a_uid_is_given_back_as_it_came_right_or_wrong() -> None:
    item = Item(DIGITAL_X_RAY, "1.02.003")
    _, made = event_information(Report(transaction_uid="2.025", committed=(item,)))
    read = read_report(encoded(made), ExplicitVRLittleEndian)
    assert (read.transaction_uid, read.committed) == ("2.025", (item,))


def test_sequences_of_undefined_length_are_read_too() -> None:
    made = action_information(Request(transaction_uid=TRANSACTION, references=(ONE, OTHER)))
    made["ReferencedSOPSequence"].is_undefined_length = True
    for item in made.ReferencedSOPSequence:
        item.is_undefined_length_sequence_item = True
    assert read_request(encoded(made), ExplicitVRLittleEndian).references == (ONE, OTHER)


def test_an_object_called_both_committed_and_failed_has_failed() -> None:
    _, made = event_information(
        Report(transaction_uid=TRANSACTION, committed=(ONE, OTHER), failed={ONE: 0x0112})
    )
    read = read_report(encoded(made), ExplicitVRLittleEndian)
    assert (read.committed, read.failed) == ((OTHER,), {ONE: 0x0112})


def test_thousands_of_references_are_read() -> None:
    many = tuple(Item(DIGITAL_X_RAY, f"1.2.3.{number}") for number in range(5000))
    made = action_information(Request(transaction_uid=TRANSACTION, references=many))
    assert read_request(encoded(made), ExplicitVRLittleEndian).references == many


def without(keyword: str) -> Dataset:
    """A request that lacks something."""
    made = action_information(Request(transaction_uid=TRANSACTION, references=(ONE,)))
    for dataset in (made, *made.ReferencedSOPSequence):
        if keyword in dataset:
            delattr(dataset, keyword)
    return made


def changed(value: bytes, into: bytes) -> bytes:
    made = action_information(Request(transaction_uid=TRANSACTION, references=(ONE,)))
    whole = encoded(made)
    assert value in whole
    return whole.replace(value, into)


def nested(depth: int) -> bytes:
    """Items in items."""
    begin = struct.pack("<HH2sHL", 0x0008, 0x1199, b"SQ", 0, 0xFFFFFFFF)
    begin += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return begin * depth


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom has a word for it
@pytest.mark.parametrize(
    "data_set",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SECRET" * 10, id="noise"),
        pytest.param(encoded(without("TransactionUID")), id="no Transaction UID"),
        pytest.param(encoded(without("ReferencedSOPSequence")), id="no references"),
        pytest.param(encoded(without("ReferencedSOPClassUID")), id="no SOP class"),
        pytest.param(encoded(without("ReferencedSOPInstanceUID")), id="no SOP instance"),
        pytest.param(changed(b"2.25.17\0", b"SECRET^A"), id="a name for a UID"),
        pytest.param(changed(b"2.25.17\0", b"2.25.\xff\xff\0"), id="a UID that is no text"),
        pytest.param(changed(b"2.25.17\0", b"\0\0\0\0\0\0\0\0"), id="an empty UID"),
        pytest.param(changed(b"SQ", b"OB"), id="bytes for a sequence"),
        pytest.param(nested(20_000), id="sequences without end"),
    ],
)
def test_a_request_that_is_none_is_refused_without_a_word_of_it(data_set: bytes) -> None:
    with pytest.raises(InvalidArgument) as raised:
        read_request(data_set, ExplicitVRLittleEndian)
    assert raised.value.dimse_status == 0x0115
    assert "SECRET" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_sequence_without_items_is_no_request() -> None:
    made = without("ReferencedSOPSequence")
    made.ReferencedSOPSequence = Sequence()
    with pytest.raises(InvalidArgument):
        read_request(encoded(made), ExplicitVRLittleEndian)


def test_a_failure_without_a_reason_is_no_report() -> None:
    _, made = event_information(Report(transaction_uid=TRANSACTION, committed=(), failed={ONE: 1}))
    del made.FailedSOPSequence[0].FailureReason
    with pytest.raises(InvalidArgument):
        read_report(encoded(made), ExplicitVRLittleEndian)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom has a word for it
@given(noise=st.binary(max_size=300), syntax=syntaxes)
def test_noise_is_refused_and_nothing_else_is_raised(noise: bytes, syntax: UID) -> None:
    for read in (read_request, read_report):
        with suppress(InvalidArgument):
            read(noise, syntax)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom has a word for it
@given(at=st.integers(0, 200), byte=st.integers(0, 255), syntax=syntaxes)
def test_a_changed_byte_is_read_or_refused(at: int, byte: int, syntax: UID) -> None:
    made = action_information(Request(transaction_uid=TRANSACTION, references=(ONE, OTHER)))
    whole = bytearray(encoded(made, syntax))
    whole[at % len(whole)] = byte
    with suppress(InvalidArgument):
        read_request(bytes(whole), syntax)
