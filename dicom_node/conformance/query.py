"""The statement's part on Query/Retrieve, which we are an SCU of (PS3.4 C)."""

from __future__ import annotations

from dicom_node import queries
from dicom_node.config import Settings
from dicom_node.conformance.markdown import table


def finding(settings: Settings) -> str:
    """Return what is asked by C-FIND, and on which answers we rely."""
    wanted = settings.reconciliation
    modalities = ", ".join(wanted.modalities)
    rows = [
        (
            "STUDY, by day",
            f"Study Date (one day), Modalities in Study ({modalities}, each)",
            "Study Instance UID, Study Time, Number of Study Related Instances",
        ),
        (
            "STUDY, by patient",
            "Patient ID, Modalities in Study",
            "the same; Study Date, Issuer of Patient ID, Patient's Birth Date",
        ),
        (
            "SERIES",
            "Study Instance UID",
            "Series Instance UID, Modality, Body Part Examined",
        ),
        ("IMAGE", "Study and Series Instance UID", "SOP Instance UID, SOP Class UID"),
    ]
    return "\n\n".join(
        [
            f"Each peer with the role `query` is asked every {wanted.every_minutes:g} minutes for "
            f"the studies of the last {wanted.days} days (0: never) that are not here, and for "
            f"{wanted.priors} earlier studies of the patient of each new one. Study Root model, "
            "hierarchical search, no extended negotiation. Optional keys may be ignored: answers "
            "are held against the question again. A patient is the same where Patient ID is and "
            "neither issuer nor birth date differ; where only one side names an issuer, both must "
            f"give the same birth date. After {queries.LIMIT} answers or {queries.PATIENCE:g} s "
            "the question is cancelled (C-CANCEL).",
            table(["Level", "Matching keys", "Return keys"], rows),
        ]
    )


def retrieving() -> str:
    """Return how studies are got."""
    return (
        'What is missing is asked for series by series (SERIES level): with `retrieve = "move"` '
        "by C-MOVE to our own AE title, so that the objects come in as from any source; with "
        '`retrieve = "get"` by C-GET, for which we propose to be SCP of the SOP classes that the '
        "peer names (PS3.7 D.3.3.4), in every transfer syntax of 4.4.2, each in a context of its "
        "own. An object is as durable before its C-STORE is answered as in 4.4.4. Success is that "
        "every instance of the C-FIND at IMAGE level is here, whatever the statuses say; the rest "
        f"is asked for again later. An answer is waited for {queries.RETRIEVING.answer:g} s."
    )


def statuses() -> str:
    """Return what the statuses of a retrieval lead to."""
    return (
        "0xFF00 goes on; 0x0000 and 0xB000 end and are counted. 0xA701, 0xA702, 0xA801 (the peer "
        "does not know our AE title, host and port), 0xA900, 0xCxxx, 0xFE00: the study is asked "
        "for again later, as drafts are sent again (4.3.1), and `dicom-node status` warns."
    )
