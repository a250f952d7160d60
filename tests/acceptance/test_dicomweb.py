"""A real DICOMweb archive: drafts stored byte for byte, proven, and delivered by a whole node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dicom_node import scu
from dicom_node.dicomweb import DicomWebServer
from dicom_node.errors import PeerError, PeerRefused
from dicom_node.results import objects
from dicom_node.results.objects import ResultObject
from dicom_node.scu import Reference
from tests.acceptance import phantoms
from tests.acceptance.archive import LOGIN, Archive, archive
from tests.acceptance.destination import destination
from tests.acceptance.running_node import MODALITY, START_SECONDS, RunningNode, running, wait_for
from tests.dicom_node.results.samples import CLASSIFIED, LABELER, STUDY, record


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """One archive for all tests that leave it running."""
    with archive(tmp_path_factory.mktemp("archive")) as started:
        yield started


def made(kind: str = "text_sr", **changes: Any) -> ResultObject:
    """A draft; other ``findings`` make another one."""
    return objects.encode(record(kind=kind, labels=CLASSIFIED, labeler=LABELER, **changes))


def written(folder: Path, draft: ResultObject) -> Path:
    """The file that is sent."""
    file = folder / f"{draft.sop_instance_uid}.dcm"
    file.write_bytes(draft.file)
    return file


def reference(draft: ResultObject) -> Reference:
    """Where it is to be found."""
    return Reference(
        study_instance_uid=STUDY,
        series_instance_uid=draft.series_instance_uid,
        sop_instance_uid=draft.sop_instance_uid,
    )


def client(of: Archive, **changes: object) -> DicomWebServer:
    """As a node calls it."""
    return DicomWebServer(of.peer(**changes), "DICOMNODE")


@pytest.mark.parametrize("kind", ["text_sr", "coded_sr", "pdf", "capture", "gsps"])
def test_a_draft_of_each_kind_is_kept_byte_for_byte_and_listed(
    orthanc: Archive, kind: str, tmp_path: Path
) -> None:
    draft = made(kind)
    assert client(orthanc).prove(reference(draft)) is False
    assert client(orthanc).send(written(tmp_path, draft)) == 0x0000
    assert client(orthanc).prove(reference(draft)) is True
    assert orthanc.file(draft.sop_instance_uid) == draft.file


def test_a_second_time_changes_nothing(orthanc: Archive, tmp_path: Path) -> None:
    draft = made(findings="Sent twice.")
    for _ in range(2):
        assert client(orthanc).send(written(tmp_path, draft)) == 0x0000
    assert orthanc.instances().count(draft.sop_instance_uid) == 1
    assert orthanc.file(draft.sop_instance_uid) == draft.file


def test_an_object_elsewhere_in_the_hierarchy_is_not_proven(
    orthanc: Archive, tmp_path: Path
) -> None:
    draft = made(findings="Somewhere else.")
    client(orthanc).send(written(tmp_path, draft))
    here = reference(draft)
    for level in ("study_instance_uid", "series_instance_uid", "sop_instance_uid"):
        assert client(orthanc).prove(replace(here, **{level: "2.25.1"})) is False
    assert client(orthanc).prove(here) is True


def test_an_archive_is_verified_and_what_is_none_is_not(orthanc: Archive) -> None:
    client(orthanc).verify()
    with pytest.raises(PeerError, match=r"answered QIDO-RS with 404: .* check the peer's url"):
        client(orthanc, url=f"{orthanc.url}/nowhere").verify()


def test_an_object_that_the_archive_can_t_read_is_refused(orthanc: Archive, tmp_path: Path) -> None:
    draft = made(findings="Torn.")
    file = tmp_path / "torn.dcm"
    file.write_bytes(draft.file[:400])  # its file meta information, and no UIDs behind it
    with pytest.raises(PeerRefused, match="answered STOW-RS with 400"):
        client(orthanc).send(file)


def test_an_archive_that_was_down_takes_and_lists_again(tmp_path: Path) -> None:
    with archive(tmp_path / "archive") as started:
        before, after = made(findings="Before."), made(findings="After.")
        client(started).send(written(tmp_path, before))
        started.stop()
        for ask in (
            lambda: client(started).send(written(tmp_path, after)),
            lambda: client(started).prove(reference(before)),
        ):
            with pytest.raises(PeerError, match="refused the connection") as caught:
                ask()
            assert caught.value.retry
        started.start()
        assert client(started).prove(reference(before)) is True
        assert client(started).send(written(tmp_path, after)) == 0x0000
        assert client(started).prove(reference(after)) is True


def test_an_archive_lets_in_who_knows_the_password(tmp_path: Path) -> None:
    draft = made()
    file = written(tmp_path, draft)
    with archive(tmp_path / "archive", guarded=True) as started:
        for login in ({}, {**LOGIN, "password": "falsch"}):
            with pytest.raises(PeerError, match="with 401: set username and password") as caught:
                client(started, **login).send(file)
            assert caught.value.retry, "somebody will set it"
        assert client(started, **LOGIN).send(file) == 0x0000
        assert client(started, **LOGIN).prove(reference(draft)) is True
        assert started.file(draft.sop_instance_uid) == draft.file


# --- a whole node --------------------------------------------------------------------------------


def delivery(node: RunningNode, study: str, peer: str) -> dict[str, Any] | None:
    """The delivery of a study's draft to one peer, once there is one."""
    found = node.study(study) or {"drafts": []}
    deliveries = [one for draft in found["drafts"] for one in draft["deliveries"]]
    return next((one for one in deliveries if one["peer"] == peer), None)


def in_state(node: RunningNode, study: str, peer: str, state: str) -> dict[str, Any]:
    """The same, waited for."""

    def question() -> dict[str, Any] | None:
        found = delivery(node, study, peer)
        return found if found and found["state"] == state else None

    return wait_for(f"{peer} is {state}", START_SECONDS, question)


def test_a_draft_reaches_an_archive_that_comes_back_without_a_person(
    tmp_path: Path, say: Callable[[str], None]
) -> None:
    away = Archive(tmp_path / "archive")
    more = f"""
[[peers]]
name = "archive"
protocol = "dicomweb"
url = "{away.url}"
roles = ["destination"]
proof = "find"
"""
    (tmp_path / "node").mkdir()
    try:
        with (
            destination() as pacs,
            running(tmp_path / "node", pacs_title="PACS", pacs_port=pacs.port, more=more) as node,
        ):
            (sent,) = phantoms.make(tmp_path, 1, phantoms.drawn(1))
            scu.send_files([sent.path], node.peer, MODALITY)
            study = sent.study_instance_uid
            in_state(node, study, "pacs", "delivered")
            waiting = delivery(node, study, "archive")
            assert waiting is not None
            assert waiting["state"] in ("due", "sending")
            away.start()
            (found,) = node.wait_ended(study)
            (draft,) = found["drafts"]
            assert {one["peer"]: one["state"] for one in draft["deliveries"]} == {
                "pacs": "delivered",
                "archive": "delivered",
            }
            assert away.instances() == [draft["sop_instance_uid"]]
            (kept,) = (node.data / "drafts").rglob(f"{draft['sop_instance_uid']}*")
            assert away.file(draft["sop_instance_uid"]) == kept.read_bytes()
            say(f"to an archive that was down: {found['drafts'][0]['deliveries']}")
    finally:
        away.stop()
