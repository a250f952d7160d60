"""A node's audit messages at a collector that goes away while the node is killed: none is lost."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dicom_node import config, scu
from dicom_node.errors import PeerError
from tests.acceptance import phantoms
from tests.acceptance.destination import destination
from tests.acceptance.running_node import MODALITY, START_SECONDS, RunningNode, wait_for
from tests.conftest import PATIENCE
from tests.dicom_node.audit import judge
from tests.dicom_node.audit.collectors import TlsServer, UdpServer
from tests.dicom_node.certificates import Authority

# The short form is tests/integration/test_audit_kill_9.py: a node without workers.
pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]

_SECTIONS = """
[audit]
url = "{url}"

[tls]
certificate = "{certificate}"
private_key = "{private_key}"
authorities = "{authorities}"
"""

ACTIVITY, RECEIVED, ALERT = "110100", "110104 in", "110113"
SENT = "110104 out"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "hospital")


@pytest.fixture(params=["tls", "udp"])
def collector(
    request: pytest.FixtureRequest, authority: Authority
) -> Iterator[TlsServer | UdpServer]:
    """Where the messages go."""
    made = TlsServer(_context(authority)) if request.param == "tls" else UdpServer()
    made.start()
    yield made
    made.stop()


def _context(authority: Authority) -> ssl.SSLContext:
    certificate = authority.issue()
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate.certificate, certificate.private_key)
    made.load_verify_locations(authority.certificate)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


@pytest.fixture
def audited(
    tmp_path: Path, collector: TlsServer | UdpServer, authority: Authority
) -> Iterator[RunningNode]:
    """A healthy node that tells the collector."""
    home = tmp_path / "node"
    home.mkdir()
    with destination() as pacs:
        node = RunningNode(home, pacs_title="PACS", pacs_port=pacs.port)
        ours = authority.issue()
        sections = _SECTIONS.format(
            url=collector.url,
            certificate=ours.certificate,
            private_key=ours.private_key,
            authorities=authority.certificate,
        )
        node.file.write_text(node.file.read_text("utf-8") + sections, "utf-8")
        node.settings = config.load(node.file, {}, {})
        try:
            node.start()
            node.wait_healthy()
            yield node
        finally:
            node.stop()


def test_nothing_is_lost_while_the_collector_is_away_and_the_node_is_killed(
    audited: RunningNode,
    collector: TlsServer | UdpServer,
    tmp_path: Path,
    say: Callable[[str], None],
) -> None:
    first = _study(audited, tmp_path, 1)
    wait_for("the first study is told of", PATIENCE, lambda: _holds(collector, SENT, first) or None)

    collector.stop()
    second = _study(audited, tmp_path, 2)
    _call_as_a_stranger(audited)
    audited.kill("everything")
    audited.wait_healthy()
    third = _study(audited, tmp_path, 3)
    waiting = audited.status()["audit"]["waiting"]
    assert waiting >= 5

    collector.start()
    wait_for(
        "the spool is empty",
        START_SECONDS,
        lambda: audited.status()["audit"]["waiting"] == 0 or None,
    )
    told = list(dict.fromkeys(collector.collected.messages))  # each once
    facts = [_fact(one) for one in told]
    say(f"{waiting} messages waited, {len(told)} came, {len(collector.collected.messages)} in all")
    transfers = [one for one in facts if one[0] in (SENT, RECEIVED)]
    assert transfers == [
        (kind, study) for study in (first, second, third) for kind in (RECEIVED, SENT)
    ]
    assert len([one for one in facts if one[0] == ALERT]) == 1
    assert len([one for one in facts if one[0] == ACTIVITY]) == 6  # three processes, twice


def _study(node: RunningNode, folder: Path, index: int) -> str:
    """A study comes and its draft goes out; its UID."""
    (image,) = phantoms.make(folder, 90_000 + index, phantoms.drawn(index), views=("PA",))
    wait_for("the study is taken", START_SECONDS, lambda: _is_taken(node, image.path) or None)
    node.wait_ended(image.study_instance_uid)
    return image.study_instance_uid


def _is_taken(node: RunningNode, file: Path) -> bool:
    (outcome,) = scu.send_files([file], node.peer, MODALITY)
    return outcome.failure is None


def _call_as_a_stranger(node: RunningNode) -> None:
    with pytest.raises(PeerError):
        scu.echo(node.peer, "STRANGER")
    # A refusal is written down within a second: until then a kill forgets it.
    wait_for("it is noted", PATIENCE, lambda: node.status()["refused_associations"] or None)


def _holds(collector: TlsServer | UdpServer, kind: str, study: str) -> bool:
    return (kind, study) in [_fact(one) for one in list(collector.collected.messages)]


def _fact(message: str) -> tuple[str, str]:
    """What happened, and to which study."""
    root = judge.judged(message)
    event = judge.event(root)
    objects = root.findall("ParticipantObjectIdentification")
    subject = objects[0].attrib["ParticipantObjectID"] if objects else ""
    if event == "110104":
        sender = judge.player(root, "110153").attrib["UserID"]
        event += " in" if sender == MODALITY else " out"
    return event, subject
