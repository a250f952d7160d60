"""The network part of the statement: which services, on what terms, with which answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import groupby

from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from dicom_node import acceptor, dimse, errors, filing, listener, scp, scu, upper_layer, worklist
from dicom_node.acceptor import Rejection, Request
from dicom_node.associations import Reason
from dicom_node.commitment_information import PUSH_MODEL
from dicom_node.config import Peer, Settings, Tls
from dicom_node.conformance import commitment, query
from dicom_node.conformance.annexes import title
from dicom_node.conformance.created import CreatedObject
from dicom_node.conformance.markdown import bullets, section, table
from dicom_node.errors import NodeError, PeerError
from dicom_node.queries import GET, MOVE
from dicom_node.storage import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_VERIFICATION = UID("1.2.840.10008.1.1")
_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
_WORKLIST_FIND = UID("1.2.840.10008.5.1.4.31")
_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"

_RESULTS = {1: "1, rejected-permanent", 2: "2, rejected-transient"}
_SOURCES = {
    1: "1, service-user",
    2: "2, service-provider (ACSE)",
    3: "3, service-provider (presentation)",
}
_DIAGNOSTICS = {  # PS3.8 9.3.4, by source
    (1, 2): "2, application-context-name-not-supported",
    (1, 3): "3, calling-AE-title-not-recognized",
    (1, 7): "7, called-AE-title-not-recognized",
    (3, 1): "1, temporary-congestion",
    (3, 2): "2, local-limit-exceeded",
}


def overview(objects: Sequence[CreatedObject]) -> str:
    """Return the overview: which services in which role."""
    rows = [
        ("Verification", _VERIFICATION.name, "yes", "yes", ""),
        ("Storage", "every Storage SOP class (4.1)", "as created below", "yes", ""),
        *(
            ("Storage", f"{UID(uid).name}: {title(one.kind)}", "yes", "yes", "yes")
            for one in objects
            for uid in one.sop_class_uids
        ),
        ("Storage Commitment", PUSH_MODEL.name, "yes", "yes", ""),
        *(("Query/Retrieve", uid.name, "yes", "no", "") for uid in (_FIND, MOVE, GET)),
        ("Basic Worklist Management", _WORKLIST_FIND.name, "yes", "no", ""),
    ]
    return table(["Service", "SOP class", "SCU", "SCP", "Created"], rows)


def specification(settings: Settings, objects: Sequence[CreatedObject]) -> str:
    """Return the specification of our one application entity."""
    return "\n\n".join(
        [
            section(2, "4 Application entity specification", _INTRODUCTION),
            _sop_classes(objects),
            _association_policies(settings),
            _initiation(settings, objects),
            _acceptance(settings),
            _statuses(settings),
        ]
    )


_INTRODUCTION = (
    "There is one application entity. It accepts associations as an SCP of Verification and "
    "Storage, and opens associations as an SCU of Verification, Storage, Query/Retrieve and "
    "Basic Worklist Management. Of Storage Commitment it is SCU and SCP on associations of either "
    "direction. It conforms to the Standard SOP classes named here."
)


# -- SOP classes -----------------------------------------------------------------------------------


def _sop_classes(objects: Sequence[CreatedObject]) -> str:
    created = {uid for one in objects for uid in one.sop_class_uids}
    rows = [
        (uid.name, uid, "SCU and SCP" if uid in created else "SCP") for uid in _storage_classes()
    ]
    return section(
        3,
        "4.1 SOP classes",
        table(
            ["SOP class", "UID", "Role"],
            [
                (_VERIFICATION.name, _VERIFICATION, "SCU and SCP"),
                (PUSH_MODEL.name, PUSH_MODEL, "SCU and SCP"),
                *((uid.name, uid, "SCU") for uid in (_FIND, MOVE, GET)),
                (_WORKLIST_FIND.name, _WORKLIST_FIND, "SCU"),
                *rows,
            ],
        ),
        "Beside these known ones, a Storage SOP class is whatever a peer proposes under "
        "1.2.840.10008.5.1.4.1.1, and every private abstract syntax: it is stored, and what is no "
        "chest X-ray is not read. `dicom-node send` sends objects of any SOP class as an SCU.",
    )


def _storage_classes() -> list[UID]:
    return sorted(UID(str(context.abstract_syntax)) for context in AllStoragePresentationContexts)


# -- association policies --------------------------------------------------------------------------


def _association_policies(settings: Settings) -> str:
    return "\n\n".join(
        [
            section(3, "4.2 Association policies"),
            section(4, "4.2.1 General", table(["Parameter", "Value"], _GENERAL)),
            section(4, "4.2.2 Number of associations", *_numbers(settings)),
            section(4, "4.2.3 Asynchronous nature", _ASYNCHRONOUS),
            section(
                4,
                "4.2.4 Implementation identifying information",
                table(
                    ["Name", "Value"],
                    [
                        ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
                        ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME),
                    ],
                ),
            ),
            section(
                4,
                "4.2.5 Time-outs",
                table(["Wait, as acceptor", "Seconds"], _waits(upper_layer.Deadlines())),
                table(["Wait, as initiator", "Seconds"], _waits(scu.Timeouts())),
                "When the node stops, running associations get "
                f"{listener.STOP_GRACE:g} s to end, then they are cut.",
            ),
        ]
    )


_GENERAL = [
    ("Application context name", _APPLICATION_CONTEXT),
    ("Maximum PDU length, as acceptor", f"{acceptor.MAXIMUM_PDU_SIZE} bytes"),
    ("Maximum PDU length, as initiator", f"{AE().maximum_pdu_size} bytes"),
    ("Longest A-ASSOCIATE-RQ accepted", f"{acceptor.MAXIMUM_ASSOCIATE_SIZE} bytes"),
    ("Longest command set accepted", f"{dimse.MAXIMUM_COMMAND} bytes"),
    ("Largest object accepted", "what the disk has room for"),
    (
        "Deflated data sets",
        f"Series Instance UID within the first {filing.MAXIMUM_HEADER} bytes, inflated",
    ),
]
_ASYNCHRONOUS = (
    "Asynchronous operations are neither proposed nor accepted: one operation at a time on an "
    "association. SCP/SCU role selection is for Storage Commitment and C-GET, else the default "
    "roles stay; extended negotiation and user identity are neither proposed nor answered."
)


def _numbers(settings: Settings) -> tuple[str, str]:
    bounds = settings.listener
    rows = [
        ("Associations accepted at a time", bounds.associations),
        ("of one address", bounds.associations_per_address),
        ("more, of peers that propose Verification only", scp.VERIFICATION_PLACES),
        ("Connections without an association; one more ends the oldest", listener.WAITING),
    ]
    processes = bounds.processes or "one for every two processor cores, at most 4"
    said = (
        f"Receiver processes on the port: {processes}. Drafts are sent over one association each."
    )
    return table(["Bound, in each receiver process", "Value"], rows), said


_WAITS = {
    upper_layer.Deadlines: {
        "handshake": "TLS handshake",
        "associate": "From the connection to a whole A-ASSOCIATE-RQ (ARTIM)",
        "idle": "Silence between two PDUs of an association",
        "pdu": "From a PDU's first byte to its last, and until a peer takes our answer",
        "close": "For the peer to close the connection after our last PDU (ARTIM)",
    },
    scu.Timeouts: {
        "connect": "TCP connection",
        "associate": "Answer to an A-ASSOCIATE-RQ",
        "answer": "Answer to a DIMSE request",
        "network": "Silence inside a PDU",
    },
}


def _waits(limits: upper_layer.Deadlines | scu.Timeouts) -> list[tuple[str, str]]:
    names = _WAITS[type(limits)]
    return [(names[one.name], f"{getattr(limits, one.name):g}") for one in fields(limits)]


# -- initiation ------------------------------------------------------------------------------------


def _initiation(settings: Settings, objects: Sequence[CreatedObject]) -> str:
    return "\n\n".join(
        [
            section(3, "4.3 Association initiation policy"),
            _sending(settings, objects),
            _proving(settings),
            _verifying(),
            _asking_what_is_planned(settings),
            _reporting(settings),
            _fetching(settings),
        ]
    )


def _sending(settings: Settings, objects: Sequence[CreatedObject]) -> str:
    jobs = settings.jobs
    return section(
        4,
        "4.3.1 Activity: send drafts",
        "Each kind of object that is made of a draft goes to each DICOM peer with the role "
        "`destination`, one object an association. A peer that accepts no presentation "
        "context for it, or answers 0x0122, is offered the next form of the same draft: "
        "the other SOP classes of an SR, then the kinds of `results.fallback`. The bytes "
        "of an object never change, so it may be sent again, and is, until it is stored: "
        f"the first repeat comes after {jobs.first_retry_seconds:g} s, then after twice as "
        f"long each time up to {jobs.longest_retry_seconds:g} s (less by up to half, by "
        f"chance), and after {jobs.give_up_hours:g} hours a person is called. A peer gets "
        f"at most {settings.delivery.at_once} objects at a time. One that can't be "
        "reached, rejects the association, does not answer or answers a status that may "
        f"pass {settings.delivery.open_after} times in a row is left alone for such a "
        "wait, then tried with one object. An object that its peer takes in Implicit VR "
        "Little Endian only is sent so.",
        _contexts(_created_contexts(objects), "SCU"),
    )


def _proving(settings: Settings) -> str:
    return section(
        4,
        "4.3.2 Activity: prove the delivery",
        'For a peer with `proof = "find"` the object is looked up after it was sent, in '
        "the Study Root model at the IMAGE level, by its Study, Series and SOP Instance "
        "UIDs alone; matching is relied on for these unique keys only. The peer may answer "
        "under a title and port of its own (`query_ae_title`, `query_port`).",
        commitment.asking(settings),
        _contexts([(_FIND, _UNCOMPRESSED), (PUSH_MODEL, _UNCOMPRESSED)], "SCU"),
    )


def _verifying() -> str:
    return section(
        4,
        "4.3.3 Activity: verify a peer",
        "`dicom-node doctor` and `dicom-node echo` send one C-ECHO. `dicom-node doctor "
        "PEER` also proposes every SOP class that the configuration makes the node send "
        "or ask for; with `--store` it stores one test SR and asks for its proof. "
        "`dicom-node send` "
        "offers each file's own SOP class and transfer syntax.",
        _contexts([(_VERIFICATION, _UNCOMPRESSED)], "SCU"),
    )


def _asking_what_is_planned(settings: Settings) -> str:
    return section(
        4,
        "4.3.4 Activity: ask what is planned",
        "Each peer with the role `worklist` is asked every "
        f"{settings.worklist.every_seconds:g} s, over one association, for each of "
        f"{', '.join(settings.worklist.modalities)}: matching keys are Modality and "
        "Scheduled Procedure Step Start Date (yesterday to tomorrow), and returned are "
        f"{', '.join(f'`{key}`' for key in worklist.ASKED)} and "
        "`IssuerOfAccessionNumberSequence`. Of patient and accession number digests are "
        "kept. A study is given an order by Study Instance UID or accession number where "
        "the Patient IDs are the same. 0xFF00 and 0xFF01 go on; after any failure, or more "
        f"than {worklist.MAXIMUM} answers, what was known stands and `dicom-node status` "
        "warns.",
        _contexts([(_WORKLIST_FIND, _UNCOMPRESSED)], "SCU"),
    )


def _reporting(settings: Settings) -> str:
    return section(
        4,
        "4.3.5 Activity: report on storage commitment",
        commitment.reporting(settings),
        _contexts([(PUSH_MODEL, _UNCOMPRESSED)], "SCP"),
    )


def _fetching(settings: Settings) -> str:
    return section(
        4,
        "4.3.6 Activity: find and fetch studies",
        query.finding(settings),
        query.retrieving(),
        _contexts([(uid, _UNCOMPRESSED) for uid in (_FIND, MOVE, GET)], "SCU"),
    )


_UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_Offered = tuple[UID, Sequence[UID]]


def _created_contexts(objects: Iterable[CreatedObject]) -> Iterator[_Offered]:
    for one in objects:
        own = UID(one.transfer_syntax_uid)
        offered = [own, *([ImplicitVRLittleEndian] if own == ExplicitVRLittleEndian else [])]
        for uid in one.sop_class_uids:
            yield UID(uid), offered


def _contexts(offered: Iterable[_Offered], role: str) -> str:
    first_of = {uid: syntaxes for uid, syntaxes in offered}
    return table(
        ["Abstract syntax", "UID", "Transfer syntaxes, in order", "UIDs", "Role", "Ext. neg."],
        [
            (uid.name, uid, _names(syntaxes), ", ".join(syntaxes), role, "none")
            for uid, syntaxes in first_of.items()
        ],
    )


def _names(syntaxes: Iterable[UID]) -> str:
    return ", ".join(uid.name for uid in syntaxes)


# -- acceptance ------------------------------------------------------------------------------------


def _acceptance(settings: Settings) -> str:
    syntaxes = [UID(uid) for uid in scp.TRANSFER_SYNTAXES]
    return "\n\n".join(
        [
            section(3, "4.4 Association acceptance policy"),
            section(
                4,
                "4.4.1 Who is let in",
                "Nobody but the configured peers: the calling AE title and the address must both "
                "be those of one peer with the role `source`, or of a destination that we ask for "
                "storage commitment (which may not store), the called AE title must be ours, and "
                "a peer that is configured for TLS must use it. Whoever is turned away is kept "
                "with title, address, proposed contexts and reason, which `dicom-node status` and "
                "`dicom-node doctor` show.",
                table(["When", "Result", "Source", "Reason/Diag."], _rejection_rows()),
                "A connection that fails its TLS handshake, or asks for no association in time, is "
                "closed without an answer.",
            ),
            section(
                4,
                "4.4.2 Presentation contexts",
                "Verification and Storage Commitment in the first two, every Storage SOP class in "
                "all of these, in the default roles (Storage Commitment in both) and without "
                "extended negotiation. Of several transfer syntaxes in "
                "one context the first in this order is accepted: uncompressed before lossless "
                "before lossy, so that no sender compresses for us.",
                table(
                    ["", "Transfer syntax", "UID"],
                    [(at, uid.name, uid) for at, uid in enumerate(syntaxes, start=1)],
                ),
            ),
            section(4, "4.4.3 SOP specific conformance: Verification", _ECHO),
            section(4, "4.4.4 SOP specific conformance: Storage", bullets(_stored(settings))),
            section(
                4,
                "4.4.5 SOP specific conformance: Storage Commitment Push Model",
                commitment.answering(settings),
            ),
        ]
    )


_ECHO = (
    "Standard conformance. C-ECHO is answered while nothing is taken for want of disk space, too."
)


def _rejection_rows() -> list[tuple[str, str, str, str]]:
    return [
        (
            rejection.reason.text,
            _RESULTS[rejection.result],
            _SOURCES[rejection.source],
            _DIAGNOSTICS[rejection.source, rejection.diagnostic],
        )
        for rejection in _rejections()
    ]


def _rejections() -> Iterator[Rejection]:
    """Ask the code: each way to be turned away, tried."""
    for called, calling, address in (
        ("OTHER", "SENDER", "192.0.2.1"),
        ("NODE", "OTHER", "192.0.2.1"),
        ("NODE", "SENDER", "192.0.2.2"),
        ("NODE", "SENDER", "192.0.2.1"),  # not by TLS
    ):
        rejection = scp.rejection_of(_site(), _asking(called, calling, address))
        assert rejection is not None
        yield rejection
    for reason in (Reason.LIMIT, Reason.LIMIT_PER_ADDRESS, Reason.DISK_FULL):
        yield scp._congested(reason)
    yield acceptor._NOT_DICOM


def _site() -> Settings:
    peer = Peer(name="sender", ae_title="SENDER", host=("192.0.2.1",), roles=("source",), tls=True)
    tls = Tls(port=2762, certificate="-", private_key="-", authorities="-")
    node = Settings().node.model_copy(update={"ae_title": "NODE"})
    return Settings(node=node, tls=tls, peers=(peer,))


def _asking(called: str, calling: str, address: str) -> Request:
    return Request(
        calling_ae_title=calling,
        called_ae_title=called,
        address=address,
        tls=False,
        local=False,
        abstract_syntaxes=(_VERIFICATION,),
        is_dicom=True,
    )


def _stored(settings: Settings) -> list[str]:
    """PS3.4 B.4.3.2: what an SCP says of itself."""
    kept = settings.retention
    return [
        "Level of conformance: 2 (Full). All attributes are kept, private ones too.",
        "Level of Digital Signature support: 3. Data sets are stored byte for byte in the transfer "
        "syntax they came in; nothing is transcoded, coerced or discarded.",
        "Success (0x0000) means that the file is synced to disk and its row is committed: a power "
        "cut or a crash after it loses nothing.",
        "An instance that comes again with the same bytes is stored once and answered 0x0000. "
        "Other bytes under a known SOP Instance UID are stored beside the first, and shown as a "
        "warning by `dicom-node study`.",
        f"Of a finished study the images are kept {_span(kept.pixels_days)}, or until the disk is "
        f"above its high mark, and what is known of it {_span(kept.metadata_days)}. A study at "
        "which there is still work to do is never deleted.",
        "Stored objects can't be retrieved over DICOM: the node is no archive.",
        "A final report that comes as an SR (Basic Text, Enhanced, Comprehensive, Comprehensive "
        "3D) is read and held against the draft.",
    ]


def _span(days: float) -> str:
    return f"for {days:g} days" if days else "for ever"


# -- statuses --------------------------------------------------------------------------------------


def _statuses(settings: Settings) -> str:
    return "\n\n".join(
        [
            section(3, "4.5 Status codes and failures"),
            section(4, "4.5.1 C-STORE, as SCP", _scp_statuses(), bullets(_ABORTS)),
            section(4, "4.5.2 C-STORE, as SCU", _scu_statuses()),
            section(
                4,
                "4.5.3 C-ECHO, C-FIND, C-MOVE and C-GET, as SCU",
                "C-ECHO: 0x0000 is success, everything else a failure that `dicom-node doctor` "
                "shows. C-FIND: 0xFF00 and 0xFF01 go on, 0x0000 ends; every other status, and an "
                "end without a match, leaves the delivery unproven and is asked again.",
                query.statuses(),
            ),
            section(4, "4.5.4 N-ACTION and N-EVENT-REPORT, of either role", commitment.statuses()),
            section(4, "4.5.5 Failures of communication", _failures(settings)),
        ]
    )


def _scp_statuses() -> str:
    rows = [("Success", "0x0000", "Durably stored.", "")]
    rows += [
        (
            "Failure",
            f"0x{one.dimse_status:04X}",
            _first_line(one),
            "A later attempt may succeed." if one.retry else "No attempt will succeed.",
        )
        for one in sorted(_with_status(), key=lambda one: one.dimse_status)
        if one is not NodeError
    ]
    failure = f"0x{NodeError.dimse_status:04X}"
    rows.append(("Failure", failure, "Processing failure: a fault of ours.", "It is in our log."))
    return table(["Service status", "Status code", "When", "Meaning for the sender"], rows)


def _with_status() -> list[type[NodeError]]:
    known = [one for one in vars(errors).values() if isinstance(one, type)]
    return [one for one in known if issubclass(one, NodeError) and "dimse_status" in one.__dict__]


def _first_line(of: type) -> str:
    return (of.__doc__ or "").strip().splitlines()[0]


_ABORTS = (
    "A request without SOP Class UID, SOP Instance UID or data set, in a context that was not "
    "accepted, or of another service than the context's is answered by A-ABORT (source 0).",
    "A PDU that is longer than agreed, malformed, unknown or out of place is answered by A-ABORT "
    "(source 2), and so is silence for longer than 4.2.5 allows. No byte of an overlong PDU is "
    "read.",
    "What was received of an object whose association ended is thrown away.",
)


def _scu_statuses() -> str:
    rows = []
    known = sorted(STORAGE_SERVICE_CLASS_STATUS.items())
    for (kind, meaning, outcome), group in groupby(known, key=_judged):
        codes = [status for status, _ in group]
        rows.append((kind, _range(codes), meaning, outcome))
    rows.append(("", "any other", "", _outcome(0x0001)))
    return table(["Service status", "Status code", "Meaning", "Behaviour"], rows)


def _judged(known: tuple[int, tuple[str, str]]) -> tuple[str, str, str]:
    status, (kind, meaning) = known
    return kind, meaning, _outcome(status)


#: What a failure to send leads to.
BEHAVIOURS: dict[type[PeerError], str] = {
    errors.PeerRefused: (
        "Failed for good: shown by `dicom-node status`; `dicom-node retry` sends it again."
    ),
    errors.NotSupported: "The next form of the draft is sent (4.3.1).",
    PeerError: "Sent again later (4.3.1).",
}
STORED = "Counts as stored."


def _outcome(status: int) -> str:
    """Ask the code what it makes of a status."""
    try:
        scu._stored(status, "")
    except PeerError as error:
        return BEHAVIOURS[type(error)]
    return STORED


def _range(codes: Sequence[int]) -> str:
    first, last = codes[0], codes[-1]
    return f"0x{first:04X}" if first == last else f"0x{first:04X} to 0x{last:04X}"


def _failures(settings: Settings) -> str:
    again = "The delivery is due again (4.3.1); `dicom-node status` shows the reason."
    deadlines = upper_layer.Deadlines()
    return table(
        ["Failure", "As initiator", "As acceptor"],
        [
            ("Time-out", f"A-ABORT. {again}", f"A-ABORT, and closed {deadlines.close:g} s later."),
            ("A-ABORT by the peer", again, "Logged; an unfinished object is thrown away."),
            ("Connection lost", again, "Logged; an unfinished object is thrown away."),
            ("Association rejected", again, "see 4.4.1"),
        ],
    )
