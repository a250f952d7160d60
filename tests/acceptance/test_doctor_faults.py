"""`doctor PEER` on faults put into real peers: each is named once, at its step, with its fix.

The peers are DCMTK's storescp and dcmqrscp, Orthanc, and our own node; what can't be had of them (a
clock that is off, a machine that is not there) is a server made here.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE

from dicom_node import config, doctor, scu
from dicom_node.config import Node, Peer, Results, Settings
from dicom_node.db import Database
from dicom_node.doctor import Call, Check
from dicom_node.errors import PeerError
from dicom_node.supervisor import dies_with_us
from tests.acceptance import others
from tests.acceptance.archive import LOGIN, Archive
from tests.acceptance.others import dcmqrscp, orthanc, storescp
from tests.acceptance.running_node import START_SECONDS, wait_for
from tests.conftest import Server
from tests.dicom_node.certificates import Authority, Certificate
from tests.dicom_node.network import header
from tests.ports import free_port
from worker import records

VERIFICATION = "1.2.840.10008.1.1"
OURS = "AE title DICOMNODE at 127.0.0.1"  # what a peer must register


@dataclass(frozen=True)
class Told:
    """What doctor said of one peer."""

    checks: list[Check]

    @property
    def fault(self) -> Check:
        """The only one."""
        (found,) = [one for one in self.checks if one.is_fault]
        return found

    def step(self, word: str) -> Check:
        """The check of a step that was tried."""
        (found,) = [one for one in self.checks if one.step == word and one.tried]
        return found


def told(
    port: int = 104, *, settings: Settings | None = None, store: bool = False, **peer: object
) -> Told:
    """Ask doctor about a PACS on that port."""
    values = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "roles": ["destination"]}
    call = Call(
        settings=settings or Settings(),
        database=None,
        peer=Peer.model_validate({**values, "port": port, **peer}),
        classes=records.classes,
        store=store,
        patience=1,
    )
    return Told(doctor.examine(call))


@pytest.fixture(scope="module", params=[dcmqrscp, orthanc], ids=["dcmqrscp", "Orthanc"])
def pacs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A PACS in order; its port."""
    with request.param(tmp_path_factory.mktemp("pacs")) as port:
        yield port


def called_as(title: str) -> Settings:
    """We are somebody else."""
    return Settings(node=Node(ae_title=title))


# -- nothing wrong ---------------------------------------------------------------------------------


def test_a_pacs_in_order_has_no_fault_from_its_name_to_the_proof(pacs: int) -> None:
    found = told(pacs, store=True, proof="find")
    assert [one.name for one in found.checks if one.is_fault] == []
    assert "Basic Text SR Storage in Explicit VR or Implicit VR" in found.step("contexts").text
    assert found.step("store").text.startswith("stored with status 0x0000")
    assert found.step("proof").text.startswith("it lists the test object")


# -- the way there ---------------------------------------------------------------------------------


def test_a_wrong_host_is_named() -> None:
    fault = told(host="pacs.invalid").fault
    assert (fault.name, fault.text) == (
        "to pacs: name",
        "pacs.invalid has no address: Name or service not known",
    )
    assert fault.fix.startswith("peer pacs: host = ")


def test_a_wrong_port_is_named() -> None:
    fault = told(free_port()).fault
    assert fault.name == "to pacs: connection"
    assert "nobody listens there" in fault.text
    assert fault.fix.startswith("check port (and host) of peer pacs")


def test_the_port_of_another_service_is_named() -> None:
    with fhir_server(timedelta()) as port:
        fault = told(port).fault
    assert (fault.step, fault.text) == ("association", f"a web server answers at port {port}")
    assert fault.fix == "peer pacs: port = its DICOM port"


# -- titles and addresses --------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["STRANGER", "FAR"], ids=["title", "address"])
def test_a_caller_that_the_pacs_does_not_know_is_told_what_to_register(
    pacs: int, title: str
) -> None:
    fault = told(pacs, settings=called_as(title)).fault
    assert fault.name == "to pacs: association"
    assert "rejected the association for good" in fault.text
    assert f"register AE title {title} at 127.0.0.1" in fault.fix


def test_the_wrong_title_of_the_pacs_is_named(pacs: int) -> None:
    fault = told(pacs, ae_title="WRONG").fault
    assert fault.name == "to pacs: association"
    assert "WRONG is not its AE title (PS3.8 9.3.4: 1/1/7)" in fault.text
    assert fault.fix.startswith(f"peer pacs: ae_title = the title it has at port {pacs}")


def test_a_pacs_that_gives_no_reason_leads_to_its_log(tmp_path: Path) -> None:
    with storescp(tmp_path, "--refuse") as port:
        fault = told(port).fault
    assert fault.step == "association"
    assert "without a reason (PS3.8 9.3.4: 1/1/1)" in fault.text
    assert OURS in fault.fix


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def by_tls(authority: Authority) -> Settings:
    return Settings(tls=authority.issue().settings(authority, port=0))


def tls_options(certificate: Certificate, trusted: Authority) -> list[str]:
    """storescp by TLS."""
    files = [str(certificate.private_key), str(certificate.certificate)]
    return ["+tls", *files, "+cf", str(trusted.certificate)]


def test_a_pacs_that_demands_tls_is_named(tmp_path: Path, authority: Authority) -> None:
    with storescp(tmp_path, *tls_options(authority.issue(), authority)) as port:
        fault = told(port).fault
    assert fault.name == "to pacs: association"
    assert fault.text == f"port {port} speaks TLS, and we call it without"
    assert fault.fix.startswith("peer pacs: tls = true")


def test_a_pacs_without_tls_is_named(tmp_path: Path, by_tls: Settings) -> None:
    with storescp(tmp_path) as port:
        fault = told(port, settings=by_tls, tls=True).fault
    assert fault.name == "to pacs: tls"
    assert fault.text == f"port {port} speaks DICOM without TLS, and we call it by TLS"
    assert fault.fix.startswith("peer pacs: tls = false")


def test_a_pacs_by_tls_in_order_says_when_its_certificate_ends(
    tmp_path: Path, authority: Authority, by_tls: Settings
) -> None:
    with storescp(tmp_path, *tls_options(authority.issue(), authority)) as port:
        found = told(port, settings=by_tls, tls=True)
    assert [one for one in found.checks if one.is_fault] == []
    ends = (datetime.now(UTC) + timedelta(days=365)).date()
    assert found.step("tls").text == f"TLSv1.3, its certificate ends on {ends}"


@pytest.mark.parametrize(
    ("certificate", "text", "fix"),
    [
        pytest.param({"days": -1}, "has expired (by this", "at the peer: renew", id="expired"),
        pytest.param(
            {"host": "DNS:pacs.example"},
            "is not for the address that was called",
            "peer pacs: host = the name in its certificate",
            id="name",
        ),
        pytest.param({"days": 5}, "", "at the peer: renew its certificate", id="soon"),
    ],
)
def test_what_is_wrong_with_the_certificate_of_a_pacs_is_named(
    tmp_path: Path,
    authority: Authority,
    by_tls: Settings,
    certificate: dict[str, Any],
    text: str,
    fix: str,
) -> None:
    with storescp(tmp_path, *tls_options(authority.issue(**certificate), authority)) as port:
        found = told(port, settings=by_tls, tls=True).step("tls")
    assert found.passed == (not text)
    assert text in found.text
    assert found.fix.startswith(fix)


@pytest.mark.parametrize("strange", ["theirs", "ours"])
def test_an_authority_that_one_side_does_not_trust_is_named(
    tmp_path: Path, authority: Authority, by_tls: Settings, strange: str
) -> None:
    stranger = Authority(tmp_path / "stranger", "Some other CA")
    theirs = (stranger if strange == "theirs" else authority).issue()
    trusted = authority if strange == "theirs" else stranger
    with storescp(tmp_path, *tls_options(theirs, trusted)) as port:
        fault = told(port, settings=by_tls, tls=True).fault
    assert fault.name == "to pacs: tls"
    if strange == "theirs":
        assert fault.fix.endswith(f"tls.authorities ({authority.certificate})")
    else:
        assert fault.text == "the peer does not trust the authority of our certificate"
        assert fault.fix.startswith("at the peer: trust the authority that signed our")


# -- what is accepted ------------------------------------------------------------------------------


def test_a_pacs_that_takes_implicit_vr_only_is_sent_that(tmp_path: Path) -> None:
    with storescp(tmp_path, "+xi") as port:
        found = told(port, store=True)
    assert [one for one in found.checks if one.is_fault] == []
    assert "Basic Text SR Storage in Implicit VR" in found.step("contexts").text
    assert found.step("store").passed


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ("OneSyntax", "transfer syntaxes not supported"),
        ("NoReports", "abstract syntax not supported"),
    ],
)
def test_a_pacs_that_takes_no_report_is_named(tmp_path: Path, profile: str, why: str) -> None:
    config = tmp_path / "profiles.cfg"
    config.write_text(others.PROFILES)
    with storescp(tmp_path, "-xf", str(config), profile) as port:
        found = told(port, store=True)
    assert found.fault.name == "to pacs: contexts"
    assert f"it does not take Basic Text SR Storage: {why}" in found.fault.text
    assert "accept Basic Text SR Storage (1.2.840.10008.5.1.4.1.1.88.11)" in found.fault.fix
    (store,) = [one for one in found.checks if one.step == "store"]
    assert not store.tried


def test_commitment_without_a_report_is_a_note_and_no_commitment_a_fault(pacs: int) -> None:
    settings = Settings(node=Node(port=free_port()))
    found = told(pacs, settings=settings, store=True, proof="commitment")
    faults = [one for one in found.checks if one.is_fault]
    if faults:  # dcmqrscp has none
        assert found.fault.name == "to pacs: contexts"
        assert 'proof = "commitment": it does not take Storage' in found.fault.text
        assert found.fault.fix.endswith('peer pacs: proof = "find"')
    else:  # Orthanc reports to where nobody listens
        proof = found.step("proof")
        assert "it took the request and did not report" in proof.text
        assert f"to DICOMNODE, port {settings.node.port}, on this machine" in proof.fix


# -- a full one ------------------------------------------------------------------------------------


def test_a_pacs_with_no_association_left_is_named(tmp_path: Path) -> None:
    with dcmqrscp(tmp_path, associations=1) as port:
        entity = AE("DICOMNODE")
        entity.add_requested_context(VERIFICATION)
        held = entity.associate("127.0.0.1", port, ae_title="PACS")
        assert held.is_established
        fault = told(port).fault
        held.release()
    assert fault.name == "to pacs: association"
    assert "for now: it is full, local limit exceeded (PS3.8 9.3.4: 2/3/2)" in fault.text
    assert fault.fix.startswith("at the peer: allow more associations")


def test_a_pacs_that_is_out_of_resources_is_named(tmp_path: Path) -> None:
    with storescp(tmp_path) as port:
        shutil.rmtree(tmp_path / "store")
        found = told(port, store=True)
    assert found.fault.name == "to pacs: store"
    assert "answered C-STORE with 0xA700" in found.fault.text
    assert found.fault.fix.startswith("at the peer: it is full")


@pytest.mark.parametrize("option", ["--abort-after", "--abort-during"])
def test_a_pacs_that_aborts_is_named_where_it_does(tmp_path: Path, option: str) -> None:
    with storescp(tmp_path, option) as port:
        found = told(port, store=True)
    assert found.fault.name == "to pacs: store"
    assert "aborted the association" in found.fault.text


def test_a_pacs_that_stores_and_forgets_is_named(pacs: int, tmp_path: Path) -> None:
    settings = called_as("NODE2")  # whose test object it never got
    with storescp(tmp_path) as takes:
        fault = told(takes, settings=settings, store=True, proof="find", query_port=pacs).fault
    assert fault.name == "queries to pacs: proof"
    assert "it answered success and does not list the object" in fault.text


# -- DICOMweb --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """Orthanc's DICOMweb, with a login."""
    made = Archive(tmp_path_factory.mktemp("archive"), guarded=True)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def web(archive: Archive, **changes: object) -> Told:
    """What doctor says of it."""
    call = Call(
        settings=Settings(),
        database=None,
        peer=archive.peer(**changes),
        classes=records.classes,
        store=True,
    )
    return Told(doctor.examine(call))


def test_an_archive_in_order_is_stored_to_and_asked_over_the_web(archive: Archive) -> None:
    found = web(archive, **LOGIN)
    assert [one for one in found.checks if one.is_fault] == []
    assert found.step("store").passed
    assert found.step("proof").text.startswith("it lists the test object")


def test_an_archive_that_does_not_let_us_in_is_named_where_it_says_so(archive: Archive) -> None:
    fault = web(archive).fault
    assert fault.name == "to archive"
    assert "401" in fault.text
    assert fault.fix.startswith("check url, and username and password or token, of peer archive")


# -- clocks ----------------------------------------------------------------------------------------


@contextmanager
def fhir_server(ahead: timedelta) -> Iterator[int]:
    """A server that answers everything, by a clock that is so far ahead; its port."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = _answer

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(datetime.now(UTC) + ahead, usegmt=True)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def send_error(self, *args: Any, **others: Any) -> None:
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("minutes", "which"), [(10, "ahead of"), (-10, "behind"), (0, "")])
def test_a_clock_that_is_off_is_named(minutes: int, which: str) -> None:
    with fhir_server(timedelta(minutes=minutes)) as port:
        url = f"http://127.0.0.1:{port}/fhir"
        settings = Settings(results=Results(fhir=True))
        found = told(settings=settings, protocol="fhir", url=url, host=[], ae_title="")
    clock = found.step("clock")
    assert clock.passed == (not which)
    if which:
        assert found.fault is clock
        assert clock.text.endswith(f" s {which} ours (Date of its HTTP answer)")
        assert clock.fix.startswith("set both clocks by NTP")


# -- our own node as the peer, and as the one that is called ---------------------------------------

_NODE = """\
[node]
port = {port}
host = "127.0.0.1"
data = "{data}"

[database]
url = "{database_url}"

[broker]
url = "redis://127.0.0.1:{nobody}/0"

[[peers]]
name = "modality"
ae_title = "MODALITY"
host = "127.0.0.1"
roles = ["source"]

[[peers]]
name = "ct"
ae_title = "CT"
host = "192.0.2.7"
roles = ["source"]

[[peers]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs_port}
roles = ["destination"]
proof = "commitment"
"""


@dataclass(frozen=True)
class OurNode:
    """`dicom-node serve`, and the file that it reads."""

    file: Path
    port: int

    def lets_in(self, calling: str) -> bool:
        here = Peer(name="node", ae_title="DICOMNODE", host=("127.0.0.1",), port=self.port)
        try:
            scu.echo(here, calling)
        except PeerError:
            return False
        return True

    @property
    def settings(self) -> Settings:
        """As it reads them."""
        return config.load(self.file, {}, {})

    def doctor(self, peer: str, *, store: bool = False) -> dict[str, Check]:
        """The checks of a peer, by name."""
        settings = self.settings
        database = Database(settings.database.url)
        asked = settings.peer(peer)
        assert asked is not None
        call = Call(
            settings=settings,
            database=database,
            peer=asked,
            classes=records.classes,
            store=store,
            patience=START_SECONDS,
        )
        try:
            return {one.name: one for one in doctor.examine(call)}
        finally:
            database.dispose()

    def doctor_json(self, peer: str) -> dict[str, Any]:
        """The document of ``dicom-node doctor PEER --json``; there is a fault."""
        words = [sys.executable, "-m", "dicom_node.cli", "doctor", peer, "--json"]
        words += ["--config", str(self.file)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document


@pytest.fixture(scope="module")
def our_node(
    tmp_path_factory: pytest.TempPathFactory, server: Server, template: str
) -> Iterator[OurNode]:
    folder = tmp_path_factory.mktemp("node")
    node = OurNode(file=folder / "dicom-node.toml", port=free_port())
    url = server.create(template=template)
    text = _NODE.format(
        port=node.port,
        pacs_port=free_port(),
        nobody=free_port(),
        data=folder / "data",
        database_url=url,
    )
    node.file.write_text(text, "utf-8")
    words = [sys.executable, "-m", "dicom_node.cli", "serve", "--config", str(node.file)]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(dies_with_us(words, signal.SIGTERM), stdout=log, stderr=log)
    try:
        wait_for(
            f"it answers, see {log.name}", START_SECONDS, lambda: node.lets_in("MODALITY") or None
        )
        yield node
    finally:
        process.terminate()
        process.wait(START_SECONDS)
        server.drop(url)


@pytest.mark.parametrize(
    ("calling", "called", "text", "fix"),
    [
        ("STRANGER", "DICOMNODE", "our calling AE title STRANGER", "at the peer: register AE"),
        ("CT", "DICOMNODE", "or not at our address", "AE title CT at 127.0.0.1"),
        ("MODALITY", "WRONG", "WRONG is not its AE title", "peer pacs: ae_title = "),
    ],
    ids=["title", "address", "called title"],
)
def test_our_node_as_the_peer_is_no_different(
    our_node: OurNode, calling: str, called: str, text: str, fix: str
) -> None:
    settings = Settings(node=Node(ae_title=calling))
    fault = told(our_node.port, settings=settings, ae_title=called).fault
    assert fault.name == "to pacs: association"
    assert text in fault.text
    assert fix in fault.fix


def test_who_calls_us_from_another_address_is_named_with_the_line_to_change(
    our_node: OurNode,
) -> None:
    assert not our_node.lets_in("CT")

    def listed() -> Check | None:
        found = our_node.doctor("ct")["from ct"]  # written down within a second
        return None if found.passed else found

    fault = wait_for("it is listed", START_SECONDS, listed)
    assert fault.fix == 'peer ct: host = ["192.0.2.7", "127.0.0.1"]'
    document = our_node.doctor_json("ct")
    faults = [one for one in document["checks"] if not one["passed"]]
    assert faults == [doctor.to_json([fault])[0]]
    assert [one["name"] for one in document["not_tried"]] == ["clock of ct"]


def test_an_object_from_the_future_tells_of_a_clock(our_node: OurNode, tmp_path: Path) -> None:
    assert not our_node.doctor("modality")["clock of modality"].tried
    send(our_node.port, tmp_path, datetime.now(UTC) + timedelta(minutes=10))
    checks = our_node.doctor("modality")
    clock = checks["clock of modality"]
    assert [one for one in checks.values() if one.is_fault] == [clock]
    assert "ahead of ours (Instance Creation Time" in clock.text
    assert checks["objects from modality"].text == (
        "Digital X-Ray Image Storage - For Presentation in Explicit VR Little Endian (1)"
    )


def test_a_pacs_that_reports_to_our_node_proves_the_test_object(
    our_node: OurNode, tmp_path: Path
) -> None:
    (pacs_port,) = [one.port for one in our_node.settings.peers if one.name == "pacs"]
    with orthanc(tmp_path, port=pacs_port, reports_to=our_node.port):
        checks = our_node.doctor("pacs", store=True)
    assert [one for one in checks.values() if one.is_fault] == []
    assert checks["to pacs: proof"].text.startswith("it commits to the test object")
    assert checks["from pacs"].passed


def send(port: int, folder: Path, made: datetime) -> None:
    """Store one object of the modality, made at that time."""
    ds = header(
        SOPInstanceUID="1.2.3.9",
        InstanceCreationDate=made.strftime("%Y%m%d"),
        InstanceCreationTime=made.strftime("%H%M%S"),
        TimezoneOffsetFromUTC="+0000",
    )
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = folder / "object.dcm"
    ds.save_as(file, enforce_file_format=True)
    here = Peer(name="node", ae_title="DICOMNODE", host=("127.0.0.1",), port=port)
    (outcome,) = scu.send_files([file], here, "MODALITY")
    assert outcome.failure is None
