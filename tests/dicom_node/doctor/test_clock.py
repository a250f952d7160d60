"""Clocks: three witnesses, each believed as far as it goes."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.config import Node, Peer, Settings
from dicom_node.db import Database
from dicom_node.doctor import clock
from dicom_node.doctor.checks import Fault, NotTried
from dicom_node.doctor.clock import Difference
from tests.conftest import StudyFactory
from tests.dicom_node.network import header
from tests.dicom_node.web import WebServer, serving

ERA = 2**32
SINCE_1900 = 2208988800
MODALITY = Peer(name="modality", ae_title="MODALITY", host=("127.0.0.1",), roles=("source",))

Change = Callable[[bytearray], bytes]


@pytest.mark.parametrize(
    ("seconds", "text"), [(601, "601 s ahead of ours (SNTP)"), (-61, "61 s behind ours (SNTP)")]
)
def test_more_than_a_minute_is_a_fault_and_both_clocks_are_suspect(
    seconds: float, text: str
) -> None:
    with pytest.raises(Fault) as caught:
        clock.judge(
            [Difference(seconds=1, witness="HTTP"), Difference(seconds=seconds, witness="SNTP")]
        )
    assert text in str(caught.value)
    assert caught.value.fix.startswith("set both clocks by NTP; that of this machine says 20")


def test_less_is_none_and_silence_says_nothing() -> None:
    assert "59 s from ours" in clock.judge([Difference(seconds=-59, witness="SNTP")]).text
    with pytest.raises(NotTried, match="it tells no time"):
        clock.judge([])


# -- SNTP ------------------------------------------------------------------------------------------


@contextmanager
def sntp(ahead: float, change: Change = bytes) -> Iterator[int]:
    """A time server that is so far ahead, and answers once; its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as answering:
        answering.bind(("127.0.0.1", 0))
        answering.settimeout(20)

        def answer() -> None:
            question, caller = answering.recvfrom(512)
            now = (time.time() + SINCE_1900 + ahead) % ERA
            stamp = struct.pack(">II", int(now), int(now % 1 * ERA))
            said = bytearray(b"\x24\1\0\0" + bytes(20) + question[40:48] + stamp + stamp)
            answering.sendto(change(said), caller)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield answering.getsockname()[1]
        finally:
            thread.join()


@pytest.mark.parametrize("ahead", [0.0, 600.0, -600.0])
def test_a_time_server_tells_how_far_its_clock_is_ahead(ahead: float) -> None:
    with sntp(ahead) as port:
        (found,) = clock.by_sntp(["127.0.0.1"], port)
    assert found.seconds == pytest.approx(ahead, abs=20)  # as long as a busy machine may take
    assert found.witness == "SNTP at 127.0.0.1"


def test_the_era_of_ntp_that_ends_in_2036_makes_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last = ERA - SINCE_1900 - 10.0  # ten seconds before it
    monkeypatch.setattr(time, "time", lambda: last)
    with sntp(600) as port:
        (found,) = clock.by_sntp(["127.0.0.1"], port)
    assert found.seconds == pytest.approx(600, abs=1)


def put(position: int, value: int) -> Change:
    """An answer that is wrong in one byte."""

    def change(said: bytearray) -> bytes:
        said[position] = value
        return bytes(said)

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(put(0, 0xE4), id="not-synchronised"),
        pytest.param(put(0, 0x23), id="a-question"),
        pytest.param(put(1, 0), id="kiss-of-death"),
        pytest.param(lambda said: bytes(said[:20]), id="short"),
        pytest.param(lambda said: bytes(24) + said[24:24] + bytes(24), id="nothing"),
        pytest.param(
            lambda said: bytes(said[:24]) + bytes(8) + bytes(said[32:]), id="answers-another"
        ),
    ],
)
def test_an_answer_that_can_t_be_trusted_is_none(change: Change) -> None:
    with sntp(600, change) as port:
        assert list(clock.by_sntp(["127.0.0.1"], port)) == []


def test_a_host_without_a_time_server_says_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    assert list(clock.by_sntp(["127.0.0.1"], port)) == []


# -- HTTP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 404])
def test_a_web_server_tells_the_time_whatever_it_answers(status: int) -> None:
    server = WebServer(status=status)
    with serving(server):
        (found,) = clock.by_http(urlsplit(f"{server.origin}/fhir"), None, 20)
    assert abs(found.seconds) < 20


def test_where_nobody_speaks_http_no_time_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert list(clock.by_http(urlsplit(f"http://127.0.0.1:{port}"), None, 5)) == []


# -- objects ---------------------------------------------------------------------------------------


def arrived(study_factory: StudyFactory, data: Path, made: datetime, **changes: object) -> None:
    """An object that came just now, made at that time."""
    stated = {
        "InstanceCreationDate": made.strftime("%Y%m%d"),
        "InstanceCreationTime": made.strftime("%H%M%S.%f"),
    }
    ds = header(**stated | changes)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.mkdir(exist_ok=True)
    ds.save_as(data / "object.dcm", enforce_file_format=True)
    study_factory(path="object.dcm")


def leads(database: Database, data: Path, **node: str) -> list[float]:
    settings = Settings(node=Node(data=data, **node))
    return [one.seconds for one in clock.by_objects(settings, database, MODALITY)]


@pytest.mark.parametrize(
    ("zone", "node"),
    [
        pytest.param("+0200", {}, id="its-own-zone"),
        pytest.param(None, {"timezone_offset": "+0200"}, id="the-zone-of-the-site"),
    ],
)
def test_an_object_from_the_future_tells_of_a_clock_ahead(
    database: Database,
    study_factory: StudyFactory,
    tmp_path: Path,
    zone: str | None,
    node: dict[str, str],
) -> None:
    there = datetime.now(UTC) + timedelta(hours=2, minutes=10)  # what the wall says there
    arrived(study_factory, tmp_path, there, TimezoneOffsetFromUTC=zone)
    (found,) = leads(database, tmp_path, **node)
    assert found == pytest.approx(600, abs=30)


def test_west_of_greenwich_is_earlier(
    database: Database, study_factory: StudyFactory, tmp_path: Path
) -> None:
    there = datetime.now(UTC) - timedelta(hours=4, minutes=20)
    arrived(study_factory, tmp_path, there, TimezoneOffsetFromUTC="-0430")
    (found,) = leads(database, tmp_path)
    assert found == pytest.approx(600, abs=30)


def test_an_object_that_is_older_than_its_arrival_says_nothing(
    database: Database, study_factory: StudyFactory, tmp_path: Path
) -> None:
    made = datetime.now(UTC) - timedelta(hours=1)
    arrived(study_factory, tmp_path, made, TimezoneOffsetFromUTC="+0000")
    assert leads(database, tmp_path) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"InstanceCreationTime": None},
        {"InstanceCreationDate": None},
        {"InstanceCreationDate": ""},
        {"TimezoneOffsetFromUTC": "nowhere"},
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_an_object_whose_time_can_t_be_read_says_nothing(
    database: Database, study_factory: StudyFactory, tmp_path: Path, changes: dict[str, object]
) -> None:
    made = datetime.now(UTC) + timedelta(days=2)
    arrived(study_factory, tmp_path, made, **changes)
    assert leads(database, tmp_path) == []


def test_an_object_whose_file_is_gone_says_nothing(
    database: Database, study_factory: StudyFactory, tmp_path: Path
) -> None:
    study_factory(path="gone.dcm")
    assert leads(database, tmp_path) == []
