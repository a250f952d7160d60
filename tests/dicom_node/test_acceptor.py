"""An association as its acceptor sees it: every state, and all that is out of place there."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom import build_context, build_role
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext

from dicom_node import acceptor, dimse
from dicom_node.acceptor import Context, Receiving, Rejection, Request
from dicom_node.associations import Reason, Refused
from dicom_node.dimse import Command
from dicom_node.storage import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.upper_layer import Abort, Connection, Deadlines
from tests.dicom_node.sockets import HOUR, Pieces, connected
from tests.dicom_node.sockets import split as in_pieces
from tests.integration.adversary import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    ASSOCIATE_RQ,
    COMMAND,
    DIGITAL_X_RAY,
    GIVE_UP,
    LAST,
    P_DATA,
    RELEASE,
    RELEASE_RP,
    VERIFICATION,
    associate_rq,
    command_set,
    context,
    echo_rq,
    element,
    elements_of,
    item,
    message,
    p_data,
    pdu,
    split,
    store_rq,
    us,
    values,
)

SERVICE_USER, SERVICE_PROVIDER = 0, 2  # PS3.8 9.3.8, sources of an abort
UNRECOGNISED, UNEXPECTED, INVALID = 1, 2, 6  # ... and reasons of source 2
ECHO, STORE = 1, 3  # contexts of associate_rq()
REQUEST = associate_rq()


@dataclass
class Recorder:
    """The service, the association and what it receives: all of it noted down."""

    rejection: Rejection | None = None
    status: int = 0
    fault: Exception | None = None  #: raised when a request begins
    admitted: list[Request] = field(default_factory=list)
    inside: int = 0
    refusals: list[Refused] = field(default_factory=list)
    commands: list[tuple[Command, Context]] = field(default_factory=list)
    data_sets: list[bytes] = field(default_factory=list)
    dropped: int = 0
    prepared: int = 0
    _arriving: bytes = b""

    def admit(self, request: Request) -> AbstractContextManager[Recorder] | Rejection:
        self.admitted.append(request)
        return self.rejection or self

    def refused(self, refused: Refused) -> None:
        self.refusals.append(refused)

    def __enter__(self) -> Recorder:
        self.inside += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.inside -= 1

    @staticmethod
    def supported(abstract_syntax: UID) -> PresentationContext | None:
        return supported(abstract_syntax)

    def prepare(self) -> None:
        self.prepared += 1

    def receive(self, command: Command, context: Context) -> Receiving:
        self.answer(command, context)
        self._arriving = b""
        return self

    def answer(self, command: Command, context: Context) -> int:
        self.commands.append((command, context))
        if self.fault is not None:
            raise self.fault
        return self.status

    def write(self, piece: memoryview) -> None:
        self._arriving += piece

    def finish(self) -> int:
        self.data_sets.append(self._arriving)
        return self.status

    def drop(self) -> None:
        self.dropped += 1


def supported(abstract_syntax: UID) -> PresentationContext | None:
    syntaxes: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    if abstract_syntax not in (VERIFICATION, DIGITAL_X_RAY):
        return None
    return build_context(abstract_syntax, syntaxes)


def in_role(*, scu: bool) -> Recorder:
    """A service that takes part as SCP, and as SCU or not."""

    class Player(Recorder):
        @staticmethod
        def supported(abstract_syntax: UID) -> PresentationContext | None:
            context = supported(abstract_syntax)
            if context is not None:
                context.scu_role, context.scp_role = scu, True
            return context

    return Player()


class Caller(Pieces):
    """A peer that says all it has to say at once, and hangs up when all has been read."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(pieces)
        self.heard = b""
        self.closed = False

    def sendall(self, content: bytes) -> None:
        self.heard += content

    def close(self) -> None:
        self.closed = True


def say(service: Recorder, pieces: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """What is answered, as (PDU type, body); whatever happens the association ends and leaves."""
    caller = Caller(list(pieces))
    acceptor.serve(Connection(caller, "192.0.2.1", HOUR), service)  # type: ignore[arg-type]
    assert caller.closed
    assert service.inside == 0
    answers, rest = split(caller.heard)
    assert rest == b""
    return answers


def aborted(source: int, reason: int = 0) -> tuple[int, bytes]:
    return ABORT, bytes((0, 0, source, reason))


def rejected(result: int, source: int, diagnostic: int) -> tuple[int, bytes]:
    return ASSOCIATE_RJ, bytes((0, result, source, diagnostic))


def statuses(answers: Iterable[tuple[int, bytes]]) -> list[int]:
    commands = [fragment for _, _, fragment in values(body for _, body in answers)]
    return [int.from_bytes(elements_of(one)[0x0900], "little") for one in commands]


# -- Sta2: no association yet ----------------------------------------------------------------------

OUT_OF_PLACE = [
    pytest.param(p_data(1, COMMAND | LAST, b""), UNEXPECTED, id="P-DATA"),
    pytest.param(pdu(ASSOCIATE_AC, bytes(100)), UNEXPECTED, id="A-ASSOCIATE-AC"),
    pytest.param(pdu(ASSOCIATE_RJ, bytes(4)), UNEXPECTED, id="A-ASSOCIATE-RJ"),
    pytest.param(RELEASE, UNEXPECTED, id="A-RELEASE-RQ"),
    pytest.param(pdu(RELEASE_RP, bytes(4)), UNEXPECTED, id="A-RELEASE-RP"),
    pytest.param(pdu(0, bytes(4)), UNRECOGNISED, id="type 0"),
    pytest.param(pdu(8, bytes(4)), UNRECOGNISED, id="type 8"),
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", UNRECOGNISED, id="HTTP"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01" + bytes(512), UNRECOGNISED, id="TLS"),
]


@pytest.mark.parametrize("sent", [pytest.param(one.values[0], id=one.id) for one in OUT_OF_PLACE])
def test_before_an_association_only_a_request_for_one_is_in_place(sent: bytes) -> None:
    service = Recorder()
    assert say(service, [sent]) == [aborted(SERVICE_USER)]  # AA-1
    assert service.admitted == []
    (refused,) = service.refusals
    assert (refused.reason, refused.address) == (Reason.NOT_DICOM, "192.0.2.1")


@pytest.mark.parametrize("sent", [b"", REQUEST[:3], REQUEST[:90], GIVE_UP])
def test_who_goes_before_the_request_is_whole_is_not_worth_a_word(sent: bytes) -> None:
    service = Recorder()
    assert say(service, [sent]) == []
    assert service.refusals == []


BODY = REQUEST[6:]
NAMED = BODY[:68]  # up to the items


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(BODY[:67], id="cut in its fixed part"),
        pytest.param(BODY[:-1], id="cut in its last item"),
        pytest.param(NAMED + b"\x10\0\0", id="cut in an item's header"),
        pytest.param(BODY + item(0x50, item(0x51, bytes(4), length=5)), id="a sub-item too long"),
        pytest.param(NAMED + item(0x10, b"") * 20_000, id="twenty thousand items"),
        pytest.param(NAMED + 2 * item(0x50, item(0x51, b"") * 16_000), id="thousands of sub-items"),
    ],
)
def test_a_request_that_is_none_is_aborted(body: bytes) -> None:
    service = Recorder()
    assert say(service, [pdu(ASSOCIATE_RQ, body)]) == [aborted(SERVICE_USER)]
    assert service.admitted == []
    assert [one.reason for one in service.refusals] == [Reason.NOT_DICOM]


def test_a_request_that_is_too_long_is_not_even_read() -> None:
    service = Recorder()
    length = acceptor.MAXIMUM_ASSOCIATE_SIZE + 1
    assert say(service, [pdu(ASSOCIATE_RQ, b"", length)]) == [aborted(SERVICE_USER)]
    assert [one.reason for one in service.refusals] == [Reason.PDU_TOO_LONG]


def test_the_largest_request_there_can_be_is_taken() -> None:
    syntaxes = [f"1.2.840.10008.1.2.4.{number}" for number in range(40)]
    everything = b"".join(context(2 * n + 1, DIGITAL_X_RAY, *syntaxes) for n in range(128))
    items = item(0x10, b"1.2.840.10008.3.1.1.1") + everything + BODY[-23:]
    service = Recorder()
    request = associate_rq(items)
    assert len(request) > 100_000
    assert [kind for kind, _ in say(service, [request])] == [ASSOCIATE_AC]
    assert len(service.admitted[0].abstract_syntaxes) == 128


OTHER_CONTEXT = BODY[68:].replace(b"3.1.1.1", b"3.1.1.2", 1)


@pytest.mark.parametrize(
    ("body", "source"),
    [
        pytest.param(b"\0\2" + BODY[2:], 2, id="another protocol version"),
        pytest.param(NAMED + OTHER_CONTEXT, 1, id="another application context"),
        pytest.param(NAMED + BODY[93:], 1, id="no application context"),
        pytest.param(BODY + item(0x10, b"1.2.840.10008.3.1.1.1"), 1, id="two of them"),
    ],
)
def test_another_protocol_is_rejected_for_good(body: bytes, source: int) -> None:
    service = Recorder()
    # PS3.8 9.3.4: protocol version of source 2, application context of source 1
    assert say(service, [pdu(ASSOCIATE_RQ, body)]) == [rejected(1, source, 2)]
    assert service.admitted == []
    assert [one.reason for one in service.refusals] == [Reason.NOT_DICOM]


def test_a_protocol_version_beside_ours_does_not_matter() -> None:
    ((kind, _),) = say(Recorder(), [pdu(ASSOCIATE_RQ, b"\0\3" + BODY[2:])])
    assert kind == ASSOCIATE_AC  # PS3.8 9.3.2: only bit 0 is tested


def test_who_is_not_admitted_is_rejected_and_told_of() -> None:
    rejection = Rejection(reason=Reason.LIMIT, result=2, source=3, diagnostic=2)
    service = Recorder(rejection=rejection)
    request = associate_rq(calling="CT 1", called="US")
    assert say(service, [request, *message(ECHO, echo_rq())]) == [rejected(2, 3, 2)]
    (refused,) = service.refusals
    assert (refused.calling_ae_title, refused.called_ae_title) == ("CT 1", "US")
    assert refused.contexts == (VERIFICATION, DIGITAL_X_RAY)
    assert (refused.reason, refused.address) == (Reason.LIMIT, "192.0.2.1")
    assert service.commands == []


titles = st.text(  # PS3.5 6.2: without backslash
    st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters="\\"), max_size=15
).map(lambda title: f"{title}X")
syntaxes = st.sampled_from([VERIFICATION, DIGITAL_X_RAY, "1.2.3.99"])


@given(calling=titles, called=titles, proposed=st.lists(syntaxes, min_size=1, max_size=8))
def test_who_asks_for_what_is_read_as_pynetdicom_reads_it(
    calling: str, called: str, proposed: list[str]
) -> None:
    contexts = [(2 * number + 1, one, "1.2.840.10008.1.2") for number, one in enumerate(proposed)]
    request = associate_rq(calling=calling, called=called, contexts=contexts)
    service = Recorder()
    say(service, [request])
    (read,) = service.admitted
    decoded = A_ASSOCIATE_RQ()
    decoded.decode(request)
    assert (read.calling_ae_title, read.called_ae_title) == (
        decoded.calling_ae_title.strip(),
        decoded.called_ae_title.strip(),
    )
    told = [one.abstract_syntax for one in decoded.presentation_context]
    assert [*read.abstract_syntaxes] == told == proposed


# -- Sta3: what is negotiated ----------------------------------------------------------------------


def accepted(service: Recorder, request: bytes) -> A_ASSOCIATE:
    """The answer, read by pynetdicom."""
    ((kind, body),) = say(service, [request])
    assert kind == ASSOCIATE_AC
    answer = A_ASSOCIATE_AC()
    answer.decode(pdu(kind, body))
    return answer.to_primitive()


def test_each_context_gets_its_answer() -> None:
    asked = [
        (1, VERIFICATION, ImplicitVRLittleEndian),
        (3, "1.2.840.10008.5.1.4.1.2.2.1", ImplicitVRLittleEndian),
        (5, DIGITAL_X_RAY, JPEG2000Lossless),
        (7, DIGITAL_X_RAY, ExplicitVRLittleEndian),
    ]
    answer = accepted(Recorder(), associate_rq(contexts=asked))
    results = answer.presentation_context_definition_results_list
    # PS3.8 9.3.3.2: accepted, abstract syntax not supported, transfer syntaxes not supported
    assert [(one.context_id, one.result) for one in results] == [(1, 0), (3, 3), (5, 4), (7, 0)]
    assert results[3].transfer_syntax == [ExplicitVRLittleEndian]


def test_we_say_who_we_are_and_how_long_a_pdu_may_be() -> None:
    answer = accepted(Recorder(), associate_rq(calling="CT 1", called="US"))
    assert (answer.calling_ae_title, answer.called_ae_title) == ("CT 1", "US")
    assert answer.application_context_name == "1.2.840.10008.3.1.1.1"
    assert answer.maximum_length_received == acceptor.MAXIMUM_PDU_SIZE
    assert answer.implementation_class_uid == IMPLEMENTATION_CLASS_UID
    (version,) = [
        one.implementation_version_name
        for one in answer.user_information
        if isinstance(one, ImplementationVersionNameNotification)
    ]
    assert version == IMPLEMENTATION_VERSION_NAME


@pytest.mark.parametrize(
    ("service", "answers"),
    [(Recorder(), []), (in_role(scu=True), [True]), (in_role(scu=False), [False])],
    ids=["default", "both roles", "SCP only"],
)
def test_a_role_is_answered_where_the_service_has_a_say_in_it(
    service: Recorder, answers: list[bool]
) -> None:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID("1.2.840.10008.3.1.1.1")
    primitive.calling_ae_title, primitive.called_ae_title = "ROGUE", "DICOMNODE"
    asked = build_context(DIGITAL_X_RAY)
    asked.context_id = 1
    primitive.presentation_context_definition_list = [asked]
    role = build_role(DIGITAL_X_RAY, scu_role=True, scp_role=True)
    length = MaximumLengthNotification()
    length.maximum_length_received = 16384
    primitive.user_information = [length, role]
    request = A_ASSOCIATE_RQ()
    request.from_primitive(primitive)
    answer = accepted(service, request.encode())
    roles = [one for one in answer.user_information if isinstance(one, type(role))]
    # PS3.7 D.3.3.4: no answer, and the default roles hold
    assert [one.scu_role for one in roles] == answers
    assert [one.result for one in answer.presentation_context_definition_results_list] == [0]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize(
    "items",
    [
        pytest.param(item(0x10, b"1.2.840.10008.3.1.1.1"), id="no contexts, no user information"),
        pytest.param(BODY[68:93] + BODY[-23:], id="no contexts"),
        pytest.param(BODY[68:] + item(0x99, b"?"), id="an item that nobody knows"),
        pytest.param(BODY[68:93] + context(1, VERIFICATION) + BODY[-23:], id="no transfer syntax"),
        pytest.param(BODY[68:93] + context(2, VERIFICATION, "1.2.840.10008.1.2"), id="even id"),
        pytest.param(BODY[68:93] + context(1, "no uid", "1.2.840.10008.1.2"), id="no UID"),
        pytest.param(BODY[68:93] + item(0x20, b"\1\0\0\0"), id="a context without anything"),
        pytest.param(
            BODY[68:93] + 2 * context(1, VERIFICATION, "1.2.840.10008.1.2"), id="an id twice"
        ),
    ],
)
def test_an_odd_request_gets_an_answer_or_an_abort_and_finds_no_bug(
    items: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ((kind, body),) = say(Recorder(), [associate_rq(items)])
    assert kind == ASSOCIATE_AC or (kind, body) == aborted(SERVICE_PROVIDER, INVALID)
    assert "our bug" not in caplog.text


# -- Sta6: messages --------------------------------------------------------------------------------


def test_an_echo_is_answered_in_its_context() -> None:
    service = Recorder()
    _, (kind, body), released = say(service, [REQUEST, *message(ECHO, echo_rq(9)), RELEASE])
    assert kind == P_DATA
    ((number, control, command),) = values([body])
    said = elements_of(command)
    assert (number, control) == (ECHO, COMMAND | LAST)
    assert (said[0x0100], said[0x0120], said[0x0900]) == (us(0x8030), us(9), us(0))
    assert released == (RELEASE_RP, bytes(4))
    ((asked, negotiated),) = service.commands
    assert (asked.command_field, negotiated.abstract_syntax) == (dimse.C_ECHO_RQ, VERIFICATION)


def test_a_data_set_arrives_as_it_was_sent_and_gets_the_services_status() -> None:
    service = Recorder(status=0xA700)
    content = bytes(range(256)) * 4000
    sent = [REQUEST, *message(STORE, store_rq("1.2.3"), content, 100_000), RELEASE]
    answers = say(service, sent)
    assert statuses(answers[1:-1]) == [0xA700]
    assert service.data_sets == [content]
    assert service.commands[0][1] == Context(UID(DIGITAL_X_RAY), ExplicitVRLittleEndian)
    assert service.commands[0][0].affected_sop_instance_uid == "1.2.3"
    assert service.dropped == 0


def test_many_messages_are_answered_in_their_order() -> None:
    service = Recorder()
    sent = [REQUEST]
    for number in range(50):
        sent += message(STORE, store_rq(f"1.2.{number}", message_id=number), bytes(number))
        sent += message(ECHO, echo_rq(1000 + number))
    answers = say(service, sent)[1:]
    told = [elements_of(one[2])[0x0120] for one in values(body for _, body in answers)]
    wanted = [(number, 1000 + number) for number in range(50)]
    assert told == [us(one) for one in itertools.chain(*wanted)]
    assert [len(one) for one in service.data_sets] == [*range(50)]
    assert service.prepared == 100  # once after each answer


fragment_sizes = st.integers(1, 60)


@given(
    data=st.binary(max_size=300),
    sizes=st.tuples(fragment_sizes, fragment_sizes),
    per_pdu=st.lists(st.integers(1, 9), min_size=1),
    cuts=st.lists(st.integers(0, 2000), max_size=20),
)
def test_it_does_not_matter_how_a_message_is_cut(
    data: bytes, sizes: tuple[int, int], per_pdu: list[int], cuts: list[int]
) -> None:
    """Into fragments, those into PDUs (some of command and data set), and those into bytes."""
    made = []
    encoded = command_set(store_rq("1.2.3"))
    for flag, content, size in ((COMMAND, encoded, sizes[0]), (0, data, sizes[1])):
        starts = [*range(0, len(content), size)] or [0]
        for at in starts:
            fragment = content[at : at + size]
            header = flag | (LAST if at == starts[-1] else 0)
            made.append(struct.pack(">IBB", len(fragment) + 2, STORE, header) + fragment)
    pdus = []
    for count in itertools.cycle(per_pdu):
        taken, made = made[:count], made[count:]
        if not taken:
            break
        pdus.append(pdu(P_DATA, b"".join(taken)))
    service = Recorder()
    answers = say(service, in_pieces(b"".join([REQUEST, *pdus, RELEASE]), cuts))
    assert statuses(answers[1:-1]) == [0]
    assert service.data_sets == [data]


def test_a_cancel_request_finds_nothing_to_cancel() -> None:
    cancel = {0x0100: us(dimse.C_CANCEL_RQ), 0x0120: us(1), 0x0800: us(0x0101)}
    service = Recorder()
    answers = say(service, [REQUEST, *message(ECHO, cancel), *message(ECHO, echo_rq()), RELEASE])
    assert statuses(answers[1:-1]) == [0]
    assert len(service.commands) == 1


COMMAND_SET = command_set(store_rq("1.2.3"))
BEGUN = p_data(STORE, COMMAND | LAST, COMMAND_SET)


@pytest.mark.parametrize(
    ("sent", "reason"), [*OUT_OF_PLACE[1:3], *OUT_OF_PLACE[4:], pytest.param(REQUEST, UNEXPECTED)]
)
@pytest.mark.parametrize("before", [b"", BEGUN + p_data(STORE, 0, b"half")], ids=["idle", "within"])
def test_within_an_association_data_release_and_abort_only_are_in_place(
    sent: bytes, reason: int, before: bytes
) -> None:
    service = Recorder()
    answers = say(service, [REQUEST, before, sent, *message(ECHO, echo_rq())])
    assert answers[1:] == [aborted(SERVICE_PROVIDER, reason)]
    assert service.refusals == []
    assert service.dropped == (1 if before else 0)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(p_data(STORE, LAST, b"data"), id="a data set without a command"),
        pytest.param(BEGUN + BEGUN, id="a command within a data set"),
        pytest.param(BEGUN + p_data(ECHO, LAST, b"data"), id="a data set in another context"),
        pytest.param(p_data(5, COMMAND | LAST, COMMAND_SET), id="a context nobody proposed"),
        pytest.param(p_data(STORE, COMMAND | LAST, b"?"), id="a malformed command"),
        pytest.param(p_data(STORE, COMMAND | LAST, b""), id="an empty command"),
        pytest.param(p_data(STORE, COMMAND, element(0, bytes(dimse.MAXIMUM_COMMAND))), id="long"),
        pytest.param(p_data(STORE, COMMAND, bytes(999)) * 17, id="long in fragments"),
    ],
)
def test_a_message_that_is_none_is_aborted_by_the_service_user(sent: bytes) -> None:
    service = Recorder()
    answers = say(service, [REQUEST, sent, *message(ECHO, echo_rq())])
    assert answers[1:] == [aborted(SERVICE_USER)]
    assert service.data_sets == []
    assert service.dropped == len(service.commands)


def test_a_context_that_was_not_accepted_can_not_be_used() -> None:
    asked = [(1, VERIFICATION, ImplicitVRLittleEndian), (3, DIGITAL_X_RAY, JPEG2000Lossless)]
    answers = say(Recorder(), [associate_rq(contexts=asked), BEGUN])
    assert answers[1:] == [aborted(SERVICE_USER)]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(struct.pack(">IBB", 3, STORE, LAST), id="a value longer than its PDU"),
        pytest.param(struct.pack(">IBB", 1, STORE, LAST), id="a value shorter than its header"),
    ],
)
def test_data_whose_lengths_do_not_add_up_is_aborted(body: bytes) -> None:
    service = Recorder()
    answers = say(service, [REQUEST, BEGUN, pdu(P_DATA, body)])
    assert answers[1:] == [aborted(SERVICE_PROVIDER, INVALID)]
    assert service.dropped == 1


@pytest.mark.parametrize("size", [acceptor.MAXIMUM_PDU_SIZE, acceptor.MAXIMUM_PDU_SIZE + 1])
def test_a_pdu_may_be_as_long_as_agreed(size: int) -> None:
    service = Recorder()
    answers = say(service, [REQUEST, BEGUN, p_data(STORE, LAST, bytes(size - 6))])
    if size > acceptor.MAXIMUM_PDU_SIZE:
        assert answers[1:] == [aborted(SERVICE_PROVIDER)]
        assert service.dropped == 1
    else:
        assert statuses(answers[1:]) == [0]


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"", RELEASE, GIVE_UP], ids=["hangs up", "releases", "aborts"])
@pytest.mark.parametrize(
    "half",
    [p_data(STORE, COMMAND, COMMAND_SET[:9]), BEGUN, BEGUN + p_data(STORE, 0, b"x")],
    ids=["a command", "no data yet", "some data"],
)
def test_what_is_half_received_is_dropped_however_it_ends(half: bytes, end: bytes) -> None:
    service = Recorder()
    say(service, [REQUEST, half, end])
    assert service.dropped == len(service.commands)
    assert service.data_sets == []


def test_what_ends_within_a_pdu_is_dropped() -> None:
    service = Recorder()
    say(service, [REQUEST, BEGUN, p_data(STORE, LAST, b"data")[:14]])
    assert (service.dropped, service.data_sets) == (1, [])


def test_what_the_service_aborts_is_aborted() -> None:
    service = Recorder(fault=Abort("out of place", source=0))
    for begun in (BEGUN, message(ECHO, echo_rq())[0]):
        assert say(service, [REQUEST, begun])[1:] == [aborted(SERVICE_USER)]
    assert service.dropped == 0


def test_a_bug_of_ours_ends_the_association_and_is_told_without_what_was_received(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Recorder(fault=ZeroDivisionError("Doe^Jane"))
    say(service, [REQUEST, BEGUN])
    assert "our bug" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert "Doe" not in caplog.text


@given(noise=st.lists(st.binary(max_size=60) | st.just(BEGUN) | st.just(RELEASE), max_size=6))
def test_noise_within_an_association_is_never_more_than_an_abort(noise: list[bytes]) -> None:
    service = Recorder()
    answers = say(service, [REQUEST, *noise])[1:]
    assert [kind for kind, _ in answers if kind not in (ABORT, RELEASE_RP)] == []
    assert service.dropped == len(service.commands)


# -- time ------------------------------------------------------------------------------------------

IMPATIENT = Deadlines(associate=0.1, idle=0.1, pdu=0.1, close=0.1)


@pytest.mark.parametrize("sent", [b"", REQUEST[:1], REQUEST[:100]], ids=["0", "1", "100 bytes"])
def test_who_does_not_ask_in_time_is_closed_and_told_of(sent: bytes) -> None:
    service = Recorder()
    with connected(IMPATIENT) as (connection, caller):
        caller.sendall(sent)
        acceptor.serve(connection, service)
        assert received(caller) == []  # PS3.8 9.2.3, AA-2: ARTIM has run out
    assert [one.reason for one in service.refusals] == [Reason.TIMEOUT]


@pytest.mark.parametrize("sent", [b"", BEGUN, BEGUN[:20]], ids=["idle", "in data", "in a PDU"])
def test_an_association_that_falls_silent_is_aborted(sent: bytes) -> None:
    service = Recorder()
    with connected(IMPATIENT) as (connection, caller):
        caller.sendall(REQUEST + sent)
        acceptor.serve(connection, service)
        assert received(caller)[1:] == [aborted(SERVICE_PROVIDER)]
    assert service.refusals == []
    assert service.dropped == len(service.commands)


def test_a_connection_is_established_from_the_acceptance_on() -> None:
    with connected(IMPATIENT) as (connection, caller):
        caller.sendall(pdu(ASSOCIATE_RQ, b"\0\2" + BODY[2:]))
        acceptor.serve(connection, Recorder())
        assert not connection.established
    with connected(IMPATIENT) as (connection, caller):
        caller.sendall(REQUEST)
        acceptor.serve(connection, Recorder())
        assert connection.established


def received(caller: socket.socket) -> list[tuple[int, bytes]]:
    content = b""
    while piece := caller.recv(1000):
        content += piece
    return split(content)[0]
