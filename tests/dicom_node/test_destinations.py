from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from dicom_node import destinations
from dicom_node.config import Peer, Tls
from dicom_node.destinations import open_destination
from dicom_node.errors import ConfigurationError
from dicom_node.fhir_server import FhirServer
from dicom_node.mllp import MllpPeer
from dicom_node.scu import DicomPeer

EHR: dict[str, object] = {
    "name": "ehr",
    "protocol": "fhir",
    "url": "https://ehr/fhir",
    "roles": ["destination"],
}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1"}, DicomPeer),
        ({"name": "ris", "protocol": "hl7", "host": "127.0.0.1"}, MllpPeer),
        (EHR, FhirServer),
    ],
    ids=["dicom", "hl7", "fhir"],
)
def test_a_peer_is_spoken_to_in_its_protocol(fields: dict[str, object], kind: type) -> None:
    assert isinstance(open_destination(Peer.model_validate(fields), "DICOMNODE"), kind)


def test_only_a_peer_by_tls_is_told_of_our_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, object]] = []
    point = EntryPoint("dicom", "tests:none", destinations.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda *_, **more: told.append(more))
    _install(monkeypatch, point)
    peer, tls = Peer(name="pacs", ae_title="PACS", host=("127.0.0.1",)), Tls()
    open_destination(peer, "DICOMNODE", tls=tls)
    open_destination(peer.model_copy(update={"tls": True}), "DICOMNODE", tls=tls)
    assert told == [{}, {"tls": tls}]


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
