"""What a peer must accept follows from the settings, and nothing else is a fault."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from pydicom.uid import (
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
)

from dicom_node.config import Peer, Results, Settings
from dicom_node.doctor import services
from dicom_node.doctor.checks import Fault, Finding
from dicom_node.doctor.negotiation import Answer, Kind
from worker import records


def judged(takes: Iterable[str], *, results: Results | None = None, **peer: object) -> Finding:
    """What is said of a peer that takes these in Explicit VR, and knows nothing else."""
    values = {"name": "pacs", "ae_title": "PACS", "host": "h", "roles": ["destination"], **peer}
    asked = services.wanted(
        Settings(results=results or Results()),
        Peer.model_validate(values),
        records.classes,
        queries_only=False,
    )
    forms = {uid for one in asked for uid in one.forms}
    answer = Answer(
        kind=Kind.ACCEPTED,
        accepted={uid: (ExplicitVRLittleEndian,) for uid in takes},
        refused=dict.fromkeys(forms - {*takes}, 3),
    )
    return services.judge(asked, answer)


def test_a_peer_that_takes_our_reports_and_nothing_else_is_in_order() -> None:
    found = judged([BasicTextSRStorage])
    assert found == Finding(text="it takes Basic Text SR Storage in Explicit VR")


def test_a_peer_that_takes_a_page_instead_gets_a_note() -> None:
    found = judged([EncapsulatedPDFStorage])
    assert "Encapsulated PDF Storage instead of Basic Text SR Storage" in found.text
    assert found.fix.startswith("for Basic Text SR Storage: at the peer: accept ")


def test_without_a_fallback_no_page_will_do() -> None:
    with pytest.raises(Fault, match="does not take Basic Text SR Storage"):
        judged([EncapsulatedPDFStorage], results=Results(fallback=()))


@pytest.mark.parametrize(
    ("peer", "missing", "fix"),
    [
        ({"proof": "commitment"}, "Storage Commitment Push Model", 'proof = "find"'),
        ({"proof": "find"}, "Information Model - FIND", "query_ae_title and query_port"),
        ({"roles": ["destination", "query"]}, "Information Model - MOVE", 'retrieve = "get"'),
        (
            {"roles": ["destination", "query"], "retrieve": "get"},
            "Information Model - GET",
            'retrieve = "move"',
        ),
        ({"roles": ["destination", "worklist"]}, "Modality Worklist", "its worklist"),
    ],
)
def test_what_the_configuration_makes_us_ask_for_must_be_there(
    peer: dict[str, object], missing: str, fix: str
) -> None:
    with pytest.raises(Fault, match=missing) as caught:
        judged([BasicTextSRStorage], **peer)
    assert fix in caught.value.fix


def test_each_kind_of_result_must_be_taken() -> None:
    with pytest.raises(Fault) as caught:
        judged([BasicTextSRStorage], results=Results(gsps=True, pdf=True))
    assert "results.gsps: it does not take Grayscale Softcopy Presentation" in str(caught.value)
    assert "results.pdf: it does not take Encapsulated PDF" in str(caught.value)
    assert GrayscaleSoftcopyPresentationStateStorage in caught.value.fix


def test_messages_are_no_matter_of_a_dicom_peer() -> None:
    results = Results(hl7=True, fhir=True)
    assert judged([BasicTextSRStorage], results=results).fix == ""


def test_queries_that_go_elsewhere_are_not_asked_for_here() -> None:
    assert judged([BasicTextSRStorage], proof="find", query_port=1104).fix == ""
