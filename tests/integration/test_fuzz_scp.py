"""Fuzz: no conversation, however wrong, may hang, crash or swell the node, or make it say untruth.

2,000 cases run in CI, always the same; ``--slow``: 100,000, others each time. A case that fails is
printed as a text; put it into :data:`FOUND` to run it again.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    UserIdentityNegotiation,
)

from dicom_node import db
from dicom_node.upper_layer import Deadlines
from tests.acceptance import raw
from tests.acceptance.running_node import wait_for
from tests.commitment_pacs import PUSH_MODEL, PUSH_MODEL_INSTANCE, action
from tests.conftest import Server
from tests.dicom_node.network import encoded, header
from tests.integration.adversary import (
    ABORT,
    ALLOWED,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    COMMAND,
    CONTEXTS,
    DIGITAL_X_RAY,
    EXPLICIT,
    GIVE_UP,
    HOSTILE,
    IMPLICIT,
    LAST,
    P_DATA,
    PATIENCE,
    RELEASE,
    RELEASE_RP,
    ROGUE,
    STORE_RSP,
    VERIFICATION,
    WITH_DATA_SET,
    Connection,
    Service,
    associate_rq,
    context,
    data_set,
    echo,
    echo_rq,
    element,
    elements_of,
    item,
    message,
    p_data,
    pdu,
    serving,
    split,
    store_rq,
    uid,
    us,
    values,
)

pytestmark = pytest.mark.alone

HOSTILE_FILES = Path(__file__).parents[2].parent / "shared" / "data" / "hostile"
DEADLINES = Deadlines(handshake=2, associate=2, pdu=2, idle=2, close=1)
#: Seconds until a conversation must be over, whatever was sent.
LIMIT = 3 * DEADLINES.idle + PATIENCE
AT_ONCE = 32
BATCH = 100
GROWTH = 64 << 20  #: bytes of resident memory, from the first batch on
#: PS3.7 C, PS3.4 B.2.3: success, not authorised, invalid instance, class not supported, duplicate
#: invocation, unrecognised operation, mistyped argument, out of resources, data set does not match,
#: can't understand; of storage commitment (PS3.7 C.4, C.5) no such instance, event type, SOP class,
#: action, invalid argument, resource limitation. Not 0x0110: a processing failure would be a fault
#: of ours.
CORRECT = {
    *(0x0000, 0x0124, 0x0117, 0x0122, 0x0210, 0x0211, 0x0212),
    *(0xA700, 0xA900, 0xC000),
    *(0x0112, 0x0113, 0x0115, 0x0118, 0x0123, 0x0213),
}
#: Stand for UIDs of the case's own in what is drawn or recorded; of the same length.
INSTANCE, STUDY, TRANSACTION = "2.25.1000000000", "2.25.3000000000", "2.25.5000000000"
ACTION_RQ, ACTION_RSP = 0x0130, 0x8130  # PS3.7 E.1
#: Storage commitment too.
OPENING = associate_rq(contexts=(*CONTEXTS, (5, PUSH_MODEL, EXPLICIT)))
TWO_GIB = (1 << 31) - 1
ENDINGS = (*["half"] * 7, "stay", *["close"] * 2)  #: see :class:`Case`

_numbers = itertools.count(1)


# -- cases -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """What a requestor sends, and how it ends.

    ``half``: it closes its side and listens; ``stay``: it is silent; ``close``: it is gone.
    """

    opening: bytes  #: its answer is waited for where it is a whole PDU
    then: bytes
    ending: str = "half"

    @property
    def text(self) -> str:
        """For :meth:`of`."""
        packed = zlib.compress(struct.pack(">I", len(self.opening)) + self.opening + self.then)
        return f"{self.ending}:{base64.b64encode(packed).decode()}"

    @classmethod
    def of(cls, text: str) -> Self:
        """Of a text that a failure printed."""
        ending, _, packed = text.partition(":")
        content = zlib.decompress(base64.b64decode(packed))
        end = 4 + int.from_bytes(content[:4], "big")
        return cls(content[4:end], content[end:], ending)

    def fresh(self) -> Self:
        """The same with UIDs of its own."""
        number = next(_numbers)
        then = self.then
        for name in (INSTANCE, STUDY, TRANSACTION):
            then = then.replace(name.encode(), f"{name[:6]}{number:09}".encode())
        return type(self)(self.opening, then, self.ending)


def good_store(fragment: int = 16000) -> list[bytes]:
    """A C-STORE-RQ as it should be."""
    return message(3, store_rq(INSTANCE), data_set(INSTANCE, STUDY), fragment)


def action_rq() -> dict[int, bytes]:
    """The elements of a storage commitment request."""
    return {
        0x0003: uid(PUSH_MODEL),
        0x0100: us(ACTION_RQ),
        0x0110: us(1),
        0x0800: us(WITH_DATA_SET),
        0x1001: uid(PUSH_MODEL_INSTANCE),
        0x1008: us(1),
    }


INFORMATION = encoded(action(TRANSACTION, [(DIGITAL_X_RAY, INSTANCE)] * 2))


def good_action(fragment: int = 16000) -> list[bytes]:
    """A storage commitment request as it should be."""
    return message(5, action_rq(), INFORMATION, fragment)


#: Well-formed conversations.
GOOD = {
    "an echo": Case(associate_rq(), b"".join([*message(1, echo_rq()), RELEASE])),
    "a store": Case(associate_rq(), b"".join([*good_store(), RELEASE])),
    "a store in small fragments": Case(associate_rq(), b"".join([*good_store(7), RELEASE])),
    "a store without a release": Case(associate_rq(), b"".join(good_store()), "stay"),
    "a commitment request": Case(OPENING, b"".join([*good_action(), RELEASE])),
    "a commitment request in small fragments": Case(OPENING, b"".join([*good_action(7), RELEASE])),
}

UNKNOWN_VR = data_set(INSTANCE, STUDY).replace(b"\x20\0LO\6\0ROGUE1", b"\x20\0XX\0\0")

#: Cases that failed once, cut down to what made them fail.
FOUND = {
    "a context without an abstract syntax": Case(
        associate_rq(item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, b"\1\0\0\0")), b""
    ),
    "an empty PatientID of an unknown VR": Case(
        associate_rq(), b"".join(message(3, store_rq(INSTANCE), UNKNOWN_VR))
    ),
}


# -- (a) PDUs and messages that hypothesis makes up ------------------------------------------------

lengths = st.one_of(
    *[st.none()] * 4,
    st.sampled_from((0, 1, 2, 5, 0xFFFF, 1 << 20, TWO_GIB, (1 << 32) - 1)),
    st.integers(0, (1 << 32) - 1),
)
noise = st.binary(max_size=200)
uids = st.sampled_from(
    (
        *(VERIFICATION, DIGITAL_X_RAY, EXPLICIT, IMPLICIT, "1.2.840.10008.3.1.1.1", "1.2.3.99"),
        *("", "1" * 65, "no uid", "..", "../../etc", "2.25.1\0", "1.2.840.10008.5.1.4.1.2.2.1"),
    )
)
item_types = st.sampled_from((0x10, 0x20, 0x21, 0x30, 0x40, *range(0x50, 0x5A))) | st.integers(
    0, 255
)
items = st.recursive(
    st.builds(item, item_types, noise | uids.map(str.encode), lengths),
    lambda inner: st.builds(item, item_types, st.lists(inner, max_size=6).map(b"".join), lengths),
    max_leaves=10,
)
contexts = st.builds(context, st.integers(0, 255), uids, uids, uids)
requested_items = st.tuples(
    st.sampled_from((item(0x10, b"1.2.840.10008.3.1.1.1"), b"")),
    st.lists(contexts | items, max_size=12).map(b"".join),
    st.sampled_from((item(0x50, item(0x51, struct.pack(">I", 16384))), b"")),
).map(b"".join)
any_pdu = st.builds(pdu, st.integers(0, 9) | st.integers(0, 255), noise | items, lengths)
openings = st.one_of(*[st.just(OPENING)] * 6, st.builds(associate_rq, requested_items), any_pdu)
context_ids = st.sampled_from((1, 3, 3, 3, 5, 5, 7, 0, 2, 255))
control_headers = st.sampled_from((0, 1, 2, 3)) | st.integers(0, 255)


@st.composite
def command_sets(draw: st.DrawFn) -> bytes:
    """Elements missing, doubled, of odd length, of another group, huge, lying or out of order."""
    good = draw(st.sampled_from((echo_rq(), store_rq(INSTANCE), action_rq())))
    parts = [element(number, value) for number, value in good.items()]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(parts)))
        parts[at : at + draw(st.integers(0, 1))] = [draw(command_elements)]
    if draw(st.booleans()):
        parts = draw(st.permutations(parts))
    body = b"".join(parts)
    group_length = draw(st.sampled_from((len(body), len(body), 0, TWO_GIB)))
    return draw(st.sampled_from((element(0, struct.pack("<I", group_length)), b""))) + body


command_elements = st.one_of(
    st.just(b""),
    st.builds(
        element,
        st.sampled_from(
            (*(0x0002, 0x0100, 0x0110, 0x0120, 0x0700, 0x0800, 0x0900, 0x1000), *(0x1002, 0x1008))
        ),
        st.one_of(noise, uids.map(str.encode), st.integers(0, 0xFFFF).map(us)),
        group=st.sampled_from((0, 0, 0, 8, 0xFFFF)),
        length=lengths,
    ),
    st.just(element(0x1000, b"1" * 70_000)),
)


def data_element(tag: int, vr: bytes, value: bytes, length: int | None) -> bytes:
    """Explicit VR little endian, with the long form of the length."""
    said = len(value) if length is None else length
    return struct.pack("<HH2sxxI", tag >> 16, tag & 0xFFFF, vr, said) + value


data_elements = st.builds(
    data_element,
    st.sampled_from((0x00080005, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0xFFFEE000)),
    st.sampled_from((b"SQ", b"UN", b"OB", b"UI", b"UT", b"??", b"\0\0")),
    noise,
    lengths,
)
data_sets = st.one_of(
    *[st.just(data_set(INSTANCE, STUDY))] * 3,
    st.just(INFORMATION),
    st.builds(data_set, uids, uids),
    st.lists(data_elements, max_size=6).map(
        lambda made: b"".join(made) + data_set(INSTANCE, STUDY)
    ),
    st.integers(0, 160).map(lambda end: data_set(INSTANCE, STUDY)[:end]),
    st.just(data_set(INSTANCE, STUDY, 300_000)),
    noise,
)


@st.composite
def sent_messages(draw: st.DrawFn) -> list[bytes]:
    """A C-STORE-RQ, or what was meant to be one, in fragments."""
    number = draw(context_ids)
    command = [p_data(number, COMMAND | LAST, draw(command_sets()))]
    if draw(st.booleans()):
        command = message(number, draw(st.sampled_from((echo_rq(), store_rq(INSTANCE)))))
    whole = draw(data_sets)
    size = draw(st.sampled_from((1000, 16000, 100_000, 200_000)))
    data = message(number, {}, whole, size)[1:]
    return command + data


pieces = st.one_of(
    *[sent_messages()] * 3,
    *[st.just(good_store(50))] * 5,
    st.just(good_action(50)),
    st.builds(p_data, context_ids, control_headers, noise, lengths).map(lambda one: [one]),
    any_pdu.map(lambda one: [one]),
    st.sampled_from(([RELEASE], [GIVE_UP], [associate_rq()], message(1, echo_rq()))),
)


@st.composite
def conversations(draw: st.DrawFn) -> Case:
    """Messages one after the other, their PDUs perhaps dropped, doubled or out of order."""
    sent = [one for piece in draw(st.lists(pieces, min_size=1, max_size=4)) for one in piece]
    for _ in range(draw(st.sampled_from((0, 0, 1, 2, 3)))):
        at, to = (draw(st.integers(0, len(sent))) for _ in range(2))
        taken = sent[at : at + 1]
        del sent[at : at + draw(st.integers(0, 1))]
        sent[to:to] = taken * draw(st.integers(0, 2))
    return Case(draw(openings), b"".join(sent), draw(st.sampled_from(ENDINGS)))


def made_up(count: int, number: int) -> list[Case]:
    """Drawn by hypothesis; the same for the same ``number``."""
    drawn: list[Case] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(conversations())
    def draw(case: Case) -> None:
        drawn.append(case.fresh())

    draw()
    return drawn


# -- (b) good conversations, with bytes changed ----------------------------------------------------


def record(port: int, send: Callable[[Any], None], **request: Any) -> Case:
    """What pynetdicom says to the node in one association."""
    sent: list[bytes] = []
    entity = AE(ROGUE)
    association = entity.associate(
        ALLOWED,
        port,
        contexts=[build_context(VERIFICATION), build_context(DIGITAL_X_RAY, EXPLICIT)],
        ae_title="DICOMNODE",
        evt_handlers=[(evt.EVT_DATA_SENT, lambda event: sent.append(event.data))],
        **request,
    )
    assert association.is_established
    send(association)
    association.release()
    return Case(sent[0], b"".join(sent[1:]))


def store(association: Any) -> None:
    """C-STORE of two small objects."""
    for number in range(2):
        sent = header(
            SOPInstanceUID=f"{INSTANCE[:-1]}{number}",
            StudyInstanceUID=STUDY,
            SeriesInstanceUID="1.2",
        )
        sent.file_meta = FileMetaDataset()
        sent.file_meta.TransferSyntaxUID = UID(EXPLICIT)
        assert association.send_c_store(sent).Status == 0x0000


def recorded(port: int) -> list[Case]:
    """Good conversations: pynetdicom's, with plain and rich negotiation, and our own."""
    window, identity = AsynchronousOperationsWindowNegotiation(), UserIdentityNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 5
    identity.user_identity_type, identity.primary_field = 2, b"user"
    identity.secondary_field = b"secret"
    rich = [build_role(DIGITAL_X_RAY, scu_role=True, scp_role=True), window, identity]
    return [
        record(port, lambda association: association.send_c_echo()),
        record(port, store),
        record(port, store, ext_neg=rich),
        *GOOD.values(),
    ]


def mutated(content: bytes, source: random.Random) -> bytes:
    """Bytes changed, taken out, put in, doubled, cut off; lengths that lie."""
    changed = bytearray(content)
    for _ in range(source.randint(1, 6)):
        at = source.randrange(len(changed) + 1)
        size = source.choice((1, 1, 2, 4, 4, source.randrange(1, 200)))
        source.choice(MUTATIONS)(changed, at, size, source)
    return bytes(changed)


def flip(changed: bytearray, at: int, size: int, source: random.Random) -> None:
    """One bit."""
    if at < len(changed):
        changed[at] ^= 1 << source.randrange(8)


def overwrite(changed: bytearray, at: int, size: int, source: random.Random) -> None:
    """With noise, or with what lengths are wrong by."""
    changed[at : at + size] = source.choice((bytes(size), b"\xff" * size, source.randbytes(size)))


def insert(changed: bytearray, at: int, size: int, source: random.Random) -> None:
    """Noise."""
    changed[at:at] = source.randbytes(size)


def take_out(changed: bytearray, at: int, size: int, source: random.Random) -> None:
    """Some bytes."""
    del changed[at : at + size]


def double(changed: bytearray, at: int, size: int, source: random.Random) -> None:
    """Some bytes."""
    changed[at:at] = changed[at : at + size]


def cut_off(changed: bytearray, at: int, size: int, source: random.Random) -> None:
    """The rest; seldom, or little would be left to look at."""
    if not source.randrange(4):
        del changed[at:]


MUTATIONS = (flip, flip, overwrite, overwrite, insert, take_out, double, cut_off)


def mutations(good: list[Case], count: int, number: int) -> list[Case]:
    """Of the request now and then, of what follows mostly."""
    source = random.Random(number)
    made = []
    for _ in range(count):
        case = source.choice(good).fresh()
        opening, then = case.opening, case.then
        if source.random() < 0.2:
            opening = mutated(opening, source)
        if opening == case.opening or source.random() < 0.3:
            then = mutated(then, source)
        made.append(Case(opening, then, source.choice(ENDINGS)))
    return made


# -- (c) hostile objects ---------------------------------------------------------------------------


def hostile_objects(claims: list[raw.Claim], count: int, number: int) -> list[Case]:
    """Of the shared files every one as it is (in the first batch), then with bytes changed."""
    source = random.Random(number)
    made = []
    for at in range(count):
        claim = claims[at % len(claims)] if number == 0 else source.choice(claims)
        data = claim.data_set
        if number or at >= len(claims):
            # What is read of a data set is at its beginning.
            data = mutated(data[:3000], source) + data[3000:]
        asked = (3, str(claim.sop_class_uid), str(claim.transfer_syntax))
        command = store_rq(claim.sop_instance_uid, sop_class_uid=str(claim.sop_class_uid))
        sent = message(3, command, data, 100_000)
        made.append(Case(associate_rq(contexts=(asked,)), b"".join([*sent, RELEASE])))
    return made


# -- having a conversation, and judging it ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back."""

    case: Case
    received: bytes = b""
    silent: bool = False  #: they did not hang up


def converse(port: int, case: Case) -> Outcome:
    """Say it all, and listen until they hang up."""
    with Connection(port, HOSTILE, timeout=LIMIT) as connection:
        received = b""
        try:
            with suppress(ConnectionError):
                connection.send(case.opening)
                if split(case.opening)[0]:
                    received += pdu(*connection.pdu())
                connection.send(case.then)
            if case.ending == "close":
                return Outcome(case)
            if case.ending == "half":
                with suppress(OSError):  # they were quicker
                    connection.socket.shutdown(1)
            return Outcome(case, received + connection.rest())
        except TimeoutError:
            return Outcome(case, received, silent=True)


def faults(outcome: Outcome) -> Iterator[str]:
    """What is wrong with an answer."""
    if outcome.silent:
        yield f"no end after {LIMIT:.0f} s"
    pdus, left = split(outcome.received)
    if left:
        yield f"{len(left)} bytes are no whole PDU"
    yield from misplaced(pdus)
    for response in responses(outcome.received):
        status = int.from_bytes(response.get(0x0900, b"\xff\xff"), "little")
        if status not in CORRECT:
            yield f"status 0x{status:04X}"


def misplaced(pdus: list[tuple[int, bytes]]) -> Iterator[str]:
    """PDUs that no acceptor sends, or not there."""
    for at, (kind, body) in enumerate(pdus):
        if kind in (ASSOCIATE_RJ, RELEASE_RP, ABORT):
            if len(body) != 4 or at < len(pdus) - 1:
                yield f"PDU of type {kind} is not whole, or not the last"
        elif kind not in (ASSOCIATE_AC, P_DATA):
            yield f"PDU of type {kind}"


def messages(stream: bytes) -> Iterator[tuple[bool, bytes]]:
    """Whole command sets (True) and data sets of a stream of PDUs."""
    pdus, left = split(stream)
    bodies = [body for kind, body in pdus if kind == P_DATA]
    if left[:1] == bytes([P_DATA]):
        bodies.append(left[6:])  # its first values may be whole
    parts: dict[bool, bytes] = {True: b"", False: b""}
    for _, control, fragment in values(bodies):
        is_command = bool(control & COMMAND)
        parts[is_command] += fragment
        if control & LAST:
            yield is_command, parts[is_command]
            parts[is_command] = b""


def responses(received: bytes) -> list[dict[int, bytes]]:
    """The command sets that came back."""
    return [elements_of(content) for is_command, content in messages(received) if is_command]


def acknowledged(outcome: Outcome) -> set[str]:
    """SOP Instance UIDs that were answered "stored"."""
    return {
        response.get(0x1000, b"").rstrip(b"\0 ").decode("latin-1")
        for response in responses(outcome.received)
        if response.get(0x0100) == us(STORE_RSP) and response.get(0x0900) == us(0x0000)
    }


def not_requested(service: Service, outcomes: Iterable[Outcome]) -> Iterator[tuple[Case, str]]:
    """Which acknowledged storage commitment request has no row."""
    with service.database.transaction() as connection:
        rows = connection.scalars(sa.select(db.commitment_request.c.transaction_uid)).all()
    for outcome in outcomes:
        answers = [one for one in responses(outcome.received) if one.get(0x0100) == us(ACTION_RSP)]
        sent = b"".join(data for is_command, data in messages(outcome.case.then) if not is_command)
        taken = any(one.get(0x0900) == us(0x0000) for one in answers)
        if taken and not any(row.encode() in sent for row in rows):
            yield outcome.case, "a storage commitment request was acknowledged and is not here"


def not_kept(service: Service, outcomes: Iterable[Outcome]) -> Iterator[tuple[Case, str]]:
    """Which acknowledged object is not in the table and on disk exactly."""
    claimed = {outcome: acknowledged(outcome) for outcome in outcomes}
    kept = data_sets_of(service, set().union(*claimed.values()))
    for outcome, names in claimed.items():
        sent = {data for is_command, data in messages(outcome.case.then) if not is_command}
        for name in names:
            if not sent & kept.get(name, set()):
                yield outcome.case, f"{name} was acknowledged and is not here"


def data_sets_of(service: Service, names: set[str]) -> Mapping[str, set[bytes]]:
    """What the table and the disk have of these, each file checked against its row."""
    table, found = db.instance, dict[str, set[bytes]]()
    wanted = sa.select(table.c.sop_instance_uid, table.c.path, table.c.sha256).where(
        table.c.sop_instance_uid.in_(names)
    )
    with service.database.transaction() as connection:
        for name, path, sha256 in connection.execute(wanted):
            content = (service.data / path).read_bytes()
            assert hashlib.sha256(content).hexdigest() == sha256, path
            # PS3.10 7.1: the group length is the first element of the file meta
            end = 144 + int.from_bytes(content[140:144], "little")
            found.setdefault(name, set()).add(content[end:])
    return found


class Judge:
    """Has conversations with a node and looks at what became of each, and of the node."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.before = service.figures()
        self.complaints = len(service.complaints())

    def batch(self, cases: list[Case]) -> Counter[str]:
        """Many at once; how they ended."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            outcomes = list(pool.map(partial(converse, self.service.port), cases))
        wrong = [(one.case, fault) for one in outcomes for fault in faults(one)]
        wrong += not_kept(self.service, outcomes)
        wrong += not_requested(self.service, outcomes)
        assert not wrong, "\n".join(f"{fault}: {case.text}" for case, fault in wrong)
        complaints = self.service.complaints()[self.complaints :]
        if complaints:
            self.complaints += len(complaints)
            pytest.fail("\n".join([*complaints[:1], *self._who_is_complained_of(cases)]))
        echo(self.service.port)
        grown = self.service.figures().resident - self.before.resident
        assert grown < GROWTH, f"grew by {grown >> 20} MiB"
        return Counter(end for one in outcomes for end in ends(one))

    def _who_is_complained_of(self, cases: list[Case]) -> Iterator[str]:
        """Each alone once more: which make the node tell of a fault of its own?"""
        for case in cases:
            converse(self.service.port, case)
            time.sleep(0.1)  # the log is written after the answer
            found = len(self.service.complaints())
            if found > self.complaints:
                self.complaints = found
                yield case.text

    def is_flat(self) -> bool | None:
        """No thread is left of any conversation."""
        return self.service.figures().threads <= self.before.threads + 3 or None


def ends(outcome: Outcome) -> Iterator[str]:
    """In words, for the count."""
    names = {ASSOCIATE_RJ: "rejected", ABORT: "aborted", RELEASE_RP: "released"}
    last = [kind for kind, _ in split(outcome.received)[0]][-1:]
    yield next((names[kind] for kind in last if kind in names), "closed")
    for response in responses(outcome.received):
        yield f"0x{int.from_bytes(response.get(0x0900, b''), 'little'):04X}"


# -- the tests -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(
    server: Server, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One node for all cases: it must live through each."""
    url = server.create(template=template)
    with serving(tmp_path_factory.mktemp("fuzz"), url, DEADLINES) as started:
        yield started
    server.drop(url)


@pytest.fixture(scope="module")
def judge(service: Service) -> Judge:
    """It has seen the node busy, and measures from there."""
    Judge(service).batch([case.fresh() for case in GOOD.values()] * 10)
    return Judge(service)


@pytest.fixture
def first_seed(request: pytest.FixtureRequest) -> int:
    """The same each time in CI; with ``--slow`` another each time."""
    return random.SystemRandom().randrange(1 << 30) if request.config.getoption("--slow") else 0


Fuzz = Callable[[Callable[[int, int], list[Case]], int], Counter[str]]


@pytest.fixture
def fuzz(
    request: pytest.FixtureRequest,
    judge: Judge,
    first_seed: int,
    capsys: pytest.CaptureFixture[str],
) -> Fuzz:
    """``fuzz(cases, count)``: batches from ``cases(count, seed)``; 50 times as many with --slow."""
    slow = request.config.getoption("--slow")

    def run(cases: Callable[[int, int], list[Case]], count: int) -> Counter[str]:
        counted: Counter[str] = Counter()
        batches = count * (50 if slow else 1) // BATCH
        for number in range(batches):
            print(f"seed {first_seed + number}")
            counted += judge.batch(cases(BATCH, first_seed + number))
            if slow and number % 50 == 49:
                with capsys.disabled():
                    print(f"\n    batch {number + 1} of {batches}: {dict(counted)}", flush=True)
        wait_for("no thread is left", LIMIT, judge.is_flat)
        return counted

    return run


KNOWN = [pytest.param(case, id=name) for name, case in (GOOD | FOUND).items()]


@pytest.mark.parametrize("case", KNOWN)
def test_a_known_conversation_ends_well(judge: Judge, case: Case) -> None:
    judge.batch([case.fresh()])


def test_a_case_can_be_run_again_from_its_text() -> None:
    case = GOOD["a store"].fresh()
    assert Case.of(case.text) == case


def test_a_good_store_is_acknowledged_and_kept(service: Service) -> None:
    case = GOOD["a store"].fresh()
    outcome = converse(service.port, case)
    (name,) = acknowledged(outcome)
    assert list(not_kept(service, [outcome])) == []
    other = Outcome(Case(case.opening, b""), outcome.received)
    assert [fault for _, fault in not_kept(service, [other])] == [
        f"{name} was acknowledged and is not here"
    ]


def test_a_good_commitment_request_is_acknowledged_and_kept(service: Service) -> None:
    case = GOOD["a commitment request"].fresh()
    outcome = converse(service.port, case)
    assert list(not_requested(service, [outcome])) == []
    other = Outcome(Case(case.opening, b""), outcome.received)
    assert len(list(not_requested(service, [other]))) == 1


@pytest.mark.timeout(7200)
def test_what_hypothesis_makes_up_is_answered(fuzz: Fuzz) -> None:
    counted = fuzz(made_up, 800)
    assert min(counted[end] for end in ("0x0000", "0xA900", "aborted", "rejected")) > 20
    assert counted["0x0115"] > 0


@pytest.mark.timeout(7200)
def test_good_conversations_with_bytes_changed_are_answered(judge: Judge, fuzz: Fuzz) -> None:
    counted = fuzz(partial(mutations, recorded(judge.service.port)), 800)
    assert min(counted[end] for end in ("0x0000", "0xA900", "aborted", "released")) > 20
    assert counted["0x0115"] > 5


@pytest.mark.timeout(7200)
@pytest.mark.skipif(not HOSTILE_FILES.is_dir(), reason="needs the shared test data (../shared)")
def test_hostile_objects_with_bytes_changed_are_answered(fuzz: Fuzz) -> None:
    claims = [raw.claim_of(path) for path in sorted(HOSTILE_FILES.iterdir())]
    counted = fuzz(partial(hostile_objects, claims), 400)
    assert min(counted[end] for end in ("0x0000", "0xA900", "0xC000")) > 20
