"""What an audit message of each kind holds (PS3.15 A.5.3): pure functions, one a table.

Of a patient only the Patient ID is in them, where a table asks for it; never the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from dicom_node.audit.schema import AuditMessage, Code, Participant, ParticipantObject

# PS3.16 CID 400, 401, 402, 403, 404 and 405
_APPLICATION_ACTIVITY = Code("110100", "DCM", "Application Activity")
_APPLICATION_START = Code("110120", "DCM", "Application Start")
_APPLICATION_STOP = Code("110121", "DCM", "Application Stop")
_INSTANCES_TRANSFERRED = Code("110104", "DCM", "DICOM Instances Transferred")
_EXPORT = Code("110106", "DCM", "Export")
_QUERY = Code("110112", "DCM", "Query")
_SECURITY_ALERT = Code("110113", "DCM", "Security Alert")
_NODE_AUTHENTICATION = Code("110126", "DCM", "Node Authentication")
_APPLICATION = Code("110150", "DCM", "Application")
_SOURCE = Code("110153", "DCM", "Source Role ID")
_DESTINATION = Code("110152", "DCM", "Destination Role ID")
_DESTINATION_MEDIA = Code("110154", "DCM", "Destination Media")
_URI = Code("110037", "DCM", "URI")
_STUDY_INSTANCE_UID = Code("110180", "DCM", "Study Instance UID")
_SOP_CLASS_UID = Code("110181", "DCM", "SOP Class UID")
_NODE_ID = Code("110182", "DCM", "Node ID")
_PATIENT_NUMBER = Code("2", "RFC-3881", "Patient Number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What passed: instances of one study of one patient."""

    study_instance_uid: str
    patient_id: str  #: empty: not known
    sop_classes: Mapping[str, int] = field(default_factory=dict)  #: UID -> how many instances


def application(
    ae_title: str, *, user_id: str = "", user_name: str = "", network_access_point: str = ""
) -> Participant:
    """Somebody who speaks DICOM (PS3.15 A.5.2.1, A.5.2.2); where it has no name, by its title."""
    return Participant(
        user_id=user_id or ae_title,
        alternative_user_id=f"AETITLES={ae_title}" if ae_title else "",
        user_name=user_name,
        network_access_point=network_access_point,
    )


def application_activity(us: Participant, *, at: datetime, started: bool) -> AuditMessage:
    """PS3.15 A.5.3.1."""
    return AuditMessage(
        event=_APPLICATION_ACTIVITY,
        types=(_APPLICATION_START if started else _APPLICATION_STOP,),
        action="E",
        at=at,
        participants=(replace(us, roles=(_APPLICATION,)),),
    )


def instances_transferred(
    sender: Participant,
    receiver: Participant,
    content: Content,
    *,
    at: datetime,
    action: Literal["C", "R", "U"],
) -> AuditMessage:
    """PS3.15 A.5.3.7; both ways the sender is the one who asked.

    Parameters
    ----------
    action
        Had the receiver such instances: no (C), not known (R), with other bytes (U)?
    """
    return AuditMessage(
        event=_INSTANCES_TRANSFERRED,
        action=action,
        at=at,
        participants=(
            replace(sender, roles=(_SOURCE,), is_requestor=True),
            replace(receiver, roles=(_DESTINATION,)),
        ),
        objects=(_study(content), _patient(content)),
    )


def export(
    us: Participant, media: str, content: Content, *, at: datetime, person: str = ""
) -> AuditMessage:
    """PS3.15 A.5.3.4: what leaves as something else than DICOM, or as a file.

    Parameters
    ----------
    media
        The URI of the file or of the system that got it.
    person
        Who asked for it, as login@host; empty: nobody, it was our own doing.
    """
    process = replace(us, roles=(_SOURCE,), is_requestor=not person)
    people = (Participant(user_id=person, roles=(_SOURCE,), is_requestor=True),) if person else ()
    target = Participant(
        user_id=media,
        roles=(_DESTINATION, _DESTINATION_MEDIA),
        network_access_point=media,
        media_type=_URI,
    )
    return AuditMessage(
        event=_EXPORT,
        action="R",
        at=at,
        participants=(*people, process, target),
        objects=(_study(content), _patient(content)),
    )


def query(
    us: Participant,
    asked: Participant,
    *,
    sop_class_uid: str,
    transfer_syntax_uid: str,
    data_set: bytes,
    at: datetime,
) -> AuditMessage:
    """PS3.15 A.5.3.10: that we asked, and what; not the answer."""
    return AuditMessage(
        event=_QUERY,
        action="E",
        at=at,
        participants=(
            replace(us, roles=(_SOURCE,), is_requestor=True),
            replace(asked, roles=(_DESTINATION,)),
        ),
        objects=(
            ParticipantObject(
                id=sop_class_uid,
                id_type=_SOP_CLASS_UID,
                type_code="2",
                role="3",
                query=data_set,
                details=(("TransferSyntax", transfer_syntax_uid.encode("ascii")),),
            ),
        ),
    )


def security_alert(
    us: Participant, caller: Participant, description: str, *, at: datetime
) -> AuditMessage:
    """PS3.15 A.5.3.11: somebody was turned away, which was enough (a minor failure)."""
    return AuditMessage(
        event=_SECURITY_ALERT,
        types=(_NODE_AUTHENTICATION,),
        action="E",
        at=at,
        outcome="4",
        participants=(us, caller),
        objects=(
            ParticipantObject(
                id=caller.network_access_point,
                id_type=_NODE_ID,
                type_code="2",
                role="13",
                name=caller.user_id,
                details=(("Alert Description", description.encode("utf-8")),),
            ),
        ),
    )


def _study(content: Content) -> ParticipantObject:
    return ParticipantObject(
        id=content.study_instance_uid,
        id_type=_STUDY_INSTANCE_UID,
        type_code="2",
        role="3",
        name=content.study_instance_uid,
        sop_classes=content.sop_classes,
    )


def _patient(content: Content) -> ParticipantObject:
    return ParticipantObject(
        id=content.patient_id, id_type=_PATIENT_NUMBER, type_code="1", role="1"
    )
