from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from dicom_node import destinations
from dicom_node.config import Peer, Tls
from dicom_node.destinations import open_destination, send_files
from dicom_node.dicomweb import DicomWebServer
from dicom_node.errors import ConfigurationError
from dicom_node.fhir_server import FhirServer
from dicom_node.mllp import MllpPeer
from dicom_node.results import text_sr
from dicom_node.scu import DicomPeer, Outcome
from tests.dicom_node.results.samples import record
from tests.dicom_node.web import WebServer, serving
from tests.pacs import Pacs

EHR: dict[str, object] = {
    "name": "ehr",
    "protocol": "fhir",
    "url": "https://ehr/fhir",
    "roles": ["destination"],
}


ARCHIVE = EHR | {"name": "archive", "protocol": "dicomweb", "url": "http://archive/dicom-web"}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1"}, DicomPeer),
        ({"name": "ris", "protocol": "hl7", "host": "127.0.0.1"}, MllpPeer),
        (EHR, FhirServer),
        (ARCHIVE, DicomWebServer),
    ],
    ids=["dicom", "hl7", "fhir", "dicomweb"],
)
def test_a_peer_is_spoken_to_in_its_protocol(fields: dict[str, object], kind: type) -> None:
    assert isinstance(open_destination(Peer.model_validate(fields), "DICOMNODE"), kind)


def test_only_a_peer_by_tls_is_told_of_our_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, object]] = []
    points = [EntryPoint(name, "tests:none", destinations.GROUP) for name in ("dicom", "fhir")]
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda *_, **more: told.append(more))
    _install(monkeypatch, *points)
    pacs, tls = Peer(name="pacs", ae_title="PACS", host=("127.0.0.1",)), Tls()
    by_tls = pacs.model_copy(update={"tls": True})
    ehr = Peer.model_validate(EHR)
    plain = ehr.model_copy(update={"url": "http://ehr/fhir"})
    for peer in (pacs, by_tls, plain, ehr):
        open_destination(peer, "DICOMNODE", tls=tls)
    assert told == [{}, {"tls": tls}, {}, {"tls": tls}]


def _install(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    def installed(group: str, name: str | None = None) -> list[EntryPoint]:
        assert group == "dicom_node.destinations"
        return [one for one in points if name in (None, one.name)]

    monkeypatch.setattr(destinations, "entry_points", installed)


def test_a_protocol_that_nobody_speaks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, EntryPoint("dicom", "dicom_node.scu:DicomPeer", destinations.GROUP))
    with pytest.raises(ConfigurationError, match=r"peer ehr: .* speaks fhir \(known: dicom\)"):
        open_destination(Peer.model_validate(EHR), "DICOMNODE")


def test_a_plug_in_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, EntryPoint("fhir", "no_such_module:Class", destinations.GROUP))
    with pytest.raises(ConfigurationError, match="speaks fhir can't be loaded: ModuleNotFound"):
        open_destination(Peer.model_validate(EHR), "DICOMNODE")


def test_a_wrong_address_is_the_destination_s_own_complaint() -> None:
    with pytest.raises(ConfigurationError, match="peer ehr: url is not of the form"):
        open_destination(Peer.model_validate(EHR | {"url": "https://"}), "DICOMNODE")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A draft and what is none."""
    draft, other = tmp_path / "draft.dcm", tmp_path / "other.txt"
    draft.write_bytes(text_sr.encode(record()).file)
    other.write_text("no DICOM", "utf-8")
    return [other, draft]


def test_files_go_to_a_dicomweb_server_one_by_one(files: list[Path]) -> None:
    told: list[Outcome] = []
    with serving(server := WebServer(status=409, content=b"")):
        peer = Peer.model_validate(ARCHIVE | {"url": server.origin})
        outcomes = send_files(files, peer, "DICOMNODE", told.append)
    assert told == outcomes
    assert [one.path for one in outcomes] == files
    assert "not a DICOM file" in str(outcomes[0].failure)
    assert "answered STOW-RS with 409" in str(outcomes[1].failure)
    assert len(server.requests) == 1


def test_files_go_to_a_dicom_peer_by_c_store(files: list[Path], peer_scp: Pacs) -> None:
    outcomes = send_files(files, peer_scp.peer(), "DICOMNODE")
    assert {one.path: one.status for one in outcomes} == dict(zip(files, (None, 0), strict=True))


def test_files_go_to_nobody_who_takes_no_dicom(files: list[Path]) -> None:
    with pytest.raises(ConfigurationError, match="peer ehr speaks fhir: it takes no DICOM"):
        send_files(files, Peer.model_validate(EHR), "DICOMNODE")
