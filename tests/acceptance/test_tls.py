"""TLS as a hospital sees it: DCMTK and openssl call `dicom-node serve`; testssl.sh judges it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE

from dicom_node.config import Peer, Tls
from dicom_node.errors import PeerError
from dicom_node.scu import DicomPeer
from dicom_node.supervisor import dies_with_us
from tests.acceptance.running_node import START_SECONDS, wait_for
from tests.conftest import Server
from tests.dicom_node.certificates import Authority, Certificate
from tests.ports import free_port

VERIFICATION = "1.2.840.10008.1.1"

_CONFIG = """\
[node]
port = {plain_port}
host = "127.0.0.1"
data = "{data}"

[listener]
processes = {processes}

[tls]
port = {port}
certificate = "{certificate}"
private_key = "{private_key}"
authorities = "{authorities}"

[database]
url = "{database_url}"

[broker]
url = "redis://127.0.0.1:{nobody}/0"

[[peers]]
name = "modality"
ae_title = "MODALITY"
host = "127.0.0.1"
roles = ["source"]
tls = true

[[peers]]
name = "ct"
ae_title = "CT"
host = "192.0.2.7"
roles = ["source"]
tls = true

[[peers]]
name = "old"
ae_title = "OLD"
host = "127.0.0.1"
roles = ["source"]
"""


def needed(tool: str, package: str) -> str:
    """The tool's path; without it the test is skipped, and in CI it fails."""
    found = shutil.which(tool)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{tool} ({package}) is missing")
    return found


class Site:
    """A node with a TLS port, and the authority of its hospital."""

    def __init__(
        self, folder: Path, database_url: str, *, processes: int = 1, kind: str = "ec"
    ) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self.plain_port, self.port = free_port(), free_port()
        self.certificate = Certificate(
            certificate=folder / "node.pem", private_key=folder / "node.key"
        )
        self.renew(self.authority.issue(kind=kind))
        self.file = folder / "dicom-node.toml"
        text = _CONFIG.format(
            plain_port=self.plain_port,
            port=self.port,
            processes=processes,
            data=folder / "data",
            database_url=database_url,
            nobody=free_port(),
            certificate=self.certificate.certificate,
            private_key=self.certificate.private_key,
            authorities=self.authority.certificate,
        )
        self.file.write_text(text, "utf-8")
        self.process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A node that answers by TLS."""
        log = self.folder / "serve.log"
        words = [sys.executable, "-m", "dicom_node.cli", "serve", "--config", str(self.file)]
        with log.open("ab") as written:
            self.process = subprocess.Popen(
                dies_with_us(words, signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
            )
        try:
            wait_for(f"serve answers, see {log}", START_SECONDS, lambda: self.answers() or None)
            yield
        finally:
            self.process.terminate()
            self.process.wait(START_SECONDS)

    def renew(self, new: Certificate) -> None:
        """Put another certificate where the node reads its own."""
        shutil.copy(new.certificate, self.certificate.certificate)
        shutil.copy(new.private_key, self.certificate.private_key)

    def hang_up(self) -> None:
        """What an administrator does then."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def client(self, certificate: Certificate | None = None) -> Tls:
        """The settings of a caller whose certificate is good."""
        return (certificate or self.authority.issue()).settings(self.authority)

    def answers(self) -> bool:
        """Does it echo to the modality?"""
        here = Peer(
            name="node", ae_title="DICOMNODE", host=("127.0.0.1",), port=self.port, tls=True
        )
        try:
            DicomPeer(here, "MODALITY", tls=self.client()).verify()
        except PeerError:
            return False
        return True

    def shown(self) -> bytes:
        """The certificate that it shows."""
        return _shown(self.port, self.client())

    def json(self, verb: str) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        words = [sys.executable, "-m", "dicom_node.cli", verb, "--json", "--config", str(self.file)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode in (0, 1), done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def refused(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The refused association that ``status`` lists, waited for."""

        def listed() -> dict[str, Any] | None:
            found = self.json("status")["refused_associations"]
            return next((one for one in found if is_it(one)), None)

        return wait_for("it is listed", START_SECONDS, listed)

    def explained(self, text: str) -> list[dict[str, Any]]:
        """The checks of ``doctor`` that say so."""
        return [one for one in self.json("doctor")["checks"] if text in one["text"]]


def _shown(port: int, tls: Tls) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tls.authorities)
    context.load_cert_chain(tls.certificate, tls.private_key)
    with (
        socket.create_connection(("127.0.0.1", port), START_SECONDS) as connected,
        context.wrap_socket(connected, server_hostname="127.0.0.1") as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True) or b""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, server: Server, template: str) -> Iterator[Site]:
    """One node for all tests that only call it."""
    made = Site(tmp_path_factory.mktemp("site"), server.create(template=template))
    with made.serving():
        yield made


def echoscu(site: Site, *words: str, calling: str = "MODALITY", port: int = 0) -> str:
    """DCMTK's C-ECHO; what it complained of, "" where it was answered."""
    command = [needed("echoscu", "dcmtk"), "-v", "-aet", calling, "-aec", "DICOMNODE", *words]
    command += ["127.0.0.1", str(port or site.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode == 0) == (
        "Received Echo Response (Success)" in done.stderr + done.stdout
    )
    return "" if done.returncode == 0 else done.stderr + done.stdout


def by_tls(site: Site, certificate: Certificate) -> list[str]:
    """DCMTK's words for: by TLS, with this certificate, trusting the hospital."""
    words = ["+tls", str(certificate.private_key), str(certificate.certificate)]
    return [*words, "+cf", str(site.authority.certificate), "-rc"]


@pytest.mark.parametrize("kind", ["ec", "rsa:2048"])
def test_dcmtk_is_answered_by_tls(site: Site, kind: str) -> None:
    assert echoscu(site, *by_tls(site, site.authority.issue(kind=kind))) == ""


def test_a_peer_of_the_plain_port_may_call_it_still(site: Site) -> None:
    assert echoscu(site, calling="OLD", port=site.plain_port) == ""


def _without_a_certificate(site: Site) -> None:
    openssl = needed("openssl", "openssl")
    words = [openssl, "s_client", "-connect", f"127.0.0.1:{site.port}"]
    words += ["-CAfile", str(site.authority.certificate)]
    # The server's verdict comes while we wait for what it says (TLS 1.3).
    done = subprocess.run(
        [*words, "-ign_eof"], input=b"x", capture_output=True, timeout=120, check=False
    )
    assert b"alert" in done.stderr


def _of_a_stranger(site: Site) -> None:
    stranger = Authority(site.folder / "stranger", "Some other CA")
    assert echoscu(site, *by_tls(site, stranger.issue()))


def _expired(site: Site) -> None:
    assert echoscu(site, *by_tls(site, site.authority.issue(days=-1)))


def _plain(site: Site) -> None:
    assert echoscu(site)


@pytest.mark.parametrize(
    ("call", "detail"),
    [
        (_without_a_certificate, "the peer showed no certificate"),
        (_of_a_stranger, "the peer's certificate is of an authority that is not trusted"),
        (_expired, "the peer's certificate has expired"),
        (_plain, "the peer speaks no TLS; DICOM without TLS has another port"),
    ],
)
def test_who_can_t_come_by_tls_is_refused_listed_and_explained(
    site: Site, call: Callable[[Site], None], detail: str
) -> None:
    call(site)
    one = site.refused(lambda one: detail in one["reason"])
    assert (one["code"], one["address"], one["tls"]) == ("tls-handshake", "127.0.0.1", True)
    (check,) = site.explained(detail)
    assert check["fix"] == one["fix"]
    assert str(site.authority.certificate) in check["fix"]  # whom the sender's must be from
    assert site.answers()


@pytest.mark.parametrize(
    ("calling", "tls", "code", "fix"),
    [
        ("STRANGER", True, "unknown-title", '[[peers]]\nname = "stranger"'),
        ("CT", True, "wrong-address", 'peer ct: host = ["192.0.2.7", "127.0.0.1"]'),
        ("MODALITY", False, "tls-required", "at the sender: call port"),
    ],
)
def test_who_has_a_good_certificate_is_refused_all_the_same_where_title_or_address_is_wrong(
    site: Site, calling: str, tls: bool, code: str, fix: str
) -> None:
    words = by_tls(site, site.authority.issue()) if tls else []
    port = site.port if tls else site.plain_port
    assert "Rejected Permanent" in echoscu(site, *words, calling=calling, port=port)
    one = site.refused(lambda one: one["calling_ae_title"] == calling)
    assert (one["code"], one["tls"]) == (code, tls)
    assert one["fix"].startswith(fix)
    assert [check["fix"] for check in site.explained(one["reason"])] == [one["fix"]]


def test_status_tells_when_our_certificate_ends(site: Site) -> None:
    def told() -> dict[str, Any] | None:
        found: dict[str, Any] = site.json("status")["tls"]
        return found if found["certificate_expires"] else None

    found = wait_for("the node tells of it", START_SECONDS, told)
    days = (datetime.fromisoformat(found["certificate_expires"]) - datetime.now().astimezone()).days
    assert (found["port"], days) == (site.port, 364)


@pytest.mark.parametrize("processes", [1, 2])
def test_new_certificates_are_taken_on_sighup_and_no_association_is_lost(
    tmp_path: Path, fresh_database_url: str, processes: int
) -> None:
    site = Site(tmp_path, fresh_database_url, processes=processes)
    with site.serving():
        tls = site.client()
        context = ssl.create_default_context(cafile=tls.authorities)
        context.load_cert_chain(tls.certificate, tls.private_key)
        entity = AE("MODALITY")
        entity.add_requested_context(VERIFICATION)
        association = entity.associate(
            "127.0.0.1", site.port, ae_title="DICOMNODE", tls_args=(context, "127.0.0.1")
        )
        assert association.is_established
        before = site.shown()
        site.certificate.private_key.write_text("nonsense")
        site.hang_up()  # faulty: what was loaded stays
        log = site.folder / "serve.log"
        fault = "holds no private key in PEM form"
        wait_for("the fault is logged", START_SECONDS, lambda: fault in log.read_text() or None)
        assert site.shown() == before
        site.renew(site.authority.issue())
        site.hang_up()
        new = ssl.PEM_cert_to_DER_cert(site.certificate.certificate.read_text())
        wait_for("it is shown", START_SECONDS, lambda: site.shown() == new or None)
        assert association.send_c_echo().Status == 0x0000
        association.release()


#: What BCP 195 is about; the rest of testssl.sh is HTTP and the habits of browsers.
_QUESTIONS = ("protocols", "standard", "fs", "server-preference", "server-defaults", "vulnerable")
_SEVERE = ("LOW", "MEDIUM", "HIGH", "CRITICAL")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ec", "rsa:3072"])
def test_testssl_finds_nothing_that_the_documentation_does_not_explain(
    tmp_path: Path, fresh_database_url: str, repository: Path, kind: str
) -> None:
    testssl = needed("testssl", "testssl.sh")
    site = Site(tmp_path, fresh_database_url, kind=kind)
    words = [testssl, "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none"]
    words += [f"--{question}" for question in _QUESTIONS]
    words += ["--add-ca", str(site.authority.certificate), "--jsonfile", str(tmp_path / "found")]
    with site.serving():
        subprocess.run(
            [*words, f"127.0.0.1:{site.port}"], capture_output=True, timeout=900, check=False
        )
        assert site.answers()
    found = json.loads((tmp_path / "found").read_text("utf-8"))
    severity = {one["id"]: one["severity"] for one in found}
    looked = {severity[one] for one in ("TLS1_3", "heartbleed", "cert_chain_of_trust")}
    assert looked == {"OK"}
    explained = re.findall(
        r"^\| `(\w+)`", (repository / "docs" / "tls.md").read_text("utf-8"), re.M
    )
    severe = [one for one in found if one["severity"] in _SEVERE]
    assert [one for one in severe if one["id"] not in explained] == []
