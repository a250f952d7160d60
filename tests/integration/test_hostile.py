"""Broken, odd and dangerous objects, sent as they are to a listener in a process of its own.

Every sender must get a status or an abort, and the service must live.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import psutil
import pydicom
import pytest
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.errors import CannotUnderstand
from dicom_node.filing import read_header
from tests.dicom_node.network import CONTEXT, VERIFICATION, association, encoded, header, send_raw

pytestmark = pytest.mark.alone

REPOSITORY = Path(__file__).parents[2]
HOSTILE = REPOSITORY.parent / "shared" / "data" / "hostile"
COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
MAXIMUM_GROWTH = 200 << 20  # bytes of resident memory, over all files
SLOW = 20.0  # seconds for one answer

SERVE = """
import sys
from pathlib import Path
from tests.dicom_node.network import SOURCE, running

with running(Path(sys.argv[1]), SOURCE, register=lambda instance: None) as node:
    print(node.port, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a sender of a file would say."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax: UID
    data_set: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The listener's process."""

    process: subprocess.Popen[str]
    port: int
    data: Path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data = tmp_path_factory.mktemp("hostile")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(data)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        yield Service(process=process, port=int(process.stdout.readline()), data=data)
        process.communicate(timeout=30)


def hostile_files() -> list[Path]:
    return sorted(HOSTILE.iterdir()) if HOSTILE.is_dir() else []


def no_meta(data: bytes) -> Sent:
    """A bare data set: guess as a careless sender would."""
    syntax = ExplicitVRBigEndian if data[0] == 0 else ExplicitVRLittleEndian
    if not data[4:6].isalpha():
        syntax = ImplicitVRLittleEndian
    return claims(pydicom.Dataset(), data, syntax)


def claims(meta: pydicom.Dataset, data_set: bytes, guess: UID) -> Sent:
    """What the data set says, else the file meta, else anything."""
    syntax = meta.get("TransferSyntaxUID") or guess
    said = {"class": meta.get("MediaStorageSOPClassUID"), "uid": None}
    with suppress(CannotUnderstand):
        inside = read_header(BytesIO(data_set), syntax)
        said = {"class": said["class"] or inside.sop_class_uid, "uid": inside.sop_instance_uid}
    return Sent(
        sop_class_uid=said["class"] or COMPUTED_RADIOGRAPHY,
        sop_instance_uid=said["uid"] or meta.get("MediaStorageSOPInstanceUID") or "1.2.3.4",
        transfer_syntax=syntax,
        data_set=data_set,
    )


def read(file: Path) -> Sent:
    raw = file.read_bytes()
    data = gzip.decompress(raw) if file.suffix == ".gz" else raw
    if data[128:132] != b"DICM":
        return no_meta(data)
    stream = BytesIO(data[132:])
    meta = pydicom.filereader.read_dataset(
        stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2
    )
    return claims(meta, data[132 + stream.tell() :], ImplicitVRLittleEndian)


def lives(service: Service) -> bool:
    asked = (VERIFICATION, ImplicitVRLittleEndian)
    with association(service.port, asked, timeout=SLOW) as opened:
        return bool(opened.send_c_echo().Status == 0x0000)


def send(service: Service, sent: Sent) -> str:
    """The answer: a status, or how the association ended."""
    asked = (sent.sop_class_uid, str(sent.transfer_syntax))
    # The second context keeps the association when the file claims no storage class.
    with association(service.port, asked, CONTEXT, timeout=SLOW) as opened:
        context_id = opened.accepted_contexts[0].context_id
        status = send_raw(
            opened,
            sent.data_set,
            sop_class_uid=sent.sop_class_uid,
            sop_instance_uid=sent.sop_instance_uid,
            context_id=context_id or 0,
        )
        if status is not None:
            return f"0x{status:04X}"
        return "aborted" if opened.acse.is_aborted() or opened.is_aborted else "no answer"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.skipif(not hostile_files(), reason="needs the shared test data (../shared)")
def test_every_hostile_object_gets_an_answer_and_the_service_lives(
    service: Service, record_property: pytest.RecordProperty
) -> None:
    assert lives(service)
    process = psutil.Process(service.process.pid)
    before = process.memory_info().rss
    answers: dict[str, str] = {}
    for file in hostile_files():
        answers[file.name] = send(service, read(file))
        assert lives(service), file.name
    grown = process.memory_info().rss - before
    record_property("grown", grown)
    print(f"resident memory grew by {grown >> 20} MiB", *answers.items(), sep="\n")
    allowed = {"0x0000", "0xA900", "0xC000", "aborted"}
    assert {name: answer for name, answer in answers.items() if answer not in allowed} == {}
    assert grown < MAXIMUM_GROWTH
    # Nothing that is merely odd is turned away: what has its UIDs is kept.
    assert answers["charset-japanese-cr-chest.dcm"] == "0x0000"
    assert answers["deeply-nested-sequence.dcm.gz"] == "0x0000"
    assert answers["mr-truncated.dcm"] == "0x0000"
    assert answers["unknown-sop-class.dcm"] == "0x0000"


LEVEL = b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
HUGE = b"\x08\x00\x05\x00UN\0\0\xff\xff\xff\x7f"  # claims 2 GiB

MADE = [
    pytest.param(LEVEL * 500_000, id="nested half a million deep"),
    pytest.param(HUGE + encoded(header()), id="length beyond the end"),
    pytest.param(encoded(header())[:-9], id="cut in a UID"),
    pytest.param(bytes(1 << 20), id="zeros"),
    pytest.param(b"\xff" * (1 << 20), id="ones"),
    pytest.param(encoded(header()) * 5000, id="the same elements again and again"),
]


@pytest.mark.parametrize("data_set", MADE)
def test_what_we_can_think_of_gets_an_answer_too(service: Service, data_set: bytes) -> None:
    sent = Sent(
        sop_class_uid=CONTEXT[0],
        sop_instance_uid="1.2.3.4",
        transfer_syntax=ExplicitVRLittleEndian,
        data_set=data_set,
    )
    assert send(service, sent) in ("0x0000", "0xA900", "0xC000", "aborted")
    assert lives(service)
