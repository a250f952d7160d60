"""PACS that refuse, abort, hang and lie, and one that is dead: each is DCMTK's, or silent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from dicom_node import destinations
from dicom_node.db import Database
from dicom_node.priorities import STAT
from dicom_node.scu import Timeouts
from tests.acceptance.outbox import Outbox, dcmqrscp, hanging, held, peer, storescp
from tests.acceptance.running_node import wait_for
from tests.acceptance.senders import require
from tests.conftest import PATIENCE, DraftFactory
from tests.pacs import Pacs
from tests.ports import free_port
from worker import sending

Say = Callable[[str], None]

#: What storescp is told, and what `status` then says of the peer. It answers no queries, so that
#: nothing it answers with success is proven.
MISBEHAVIOURS = {
    "--refuse": ("circuit", "rejected the association"),
    "--abort-after": ("circuit", "aborted the association"),
    "--abort-during": ("circuit", "aborted the association"),
    "--sleep-during 2": ("circuit", "did not answer within 1 s"),
    "--ignore": ("unproven", "were answered with success and are not proven"),
    # It answers, and sleeps then.
    "--sleep-after 2": ("unproven", "were answered with success and are not proven"),
    # It rejects those who do not say who made them: we do.
    "--reject": ("unproven", "were answered with success and are not proven"),
}
#: Enough where time is short.
SOME = ("--refuse", "--abort-during", "--sleep-during 2", "--ignore")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged with a traceback keeps sockets that nobody closes until the test is over."""
    caplog.set_level(logging.CRITICAL, logger="pynetdicom")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a minute for an answer here."""
    short = partial(
        destinations.open_destination,
        timeouts=Timeouts(connect=2, associate=10, answer=1, network=10),
    )
    monkeypatch.setattr(sending.destinations, "open_destination", short)


def test_no_bad_pacs_counts_as_delivered_and_each_gets_all_when_it_is_mended(
    database: Database,
    draft_factory: DraftFactory,
    tmp_path: Path,
    impatient: None,
    full: bool,
    say: Say,
) -> None:
    require("storescp", "dcmqrscp")
    ports = {words: free_port() for words in (MISBEHAVIOURS if full else SOME)}
    mended = {words: tmp_path / f"mended{words.split()[0]}" for words in ports}
    peers = [peer(words, port) for words, port in ports.items()]
    outbox = Outbox(database, tmp_path / "node", draft_factory, peers)
    uids = set(outbox.put(3))
    with ExitStack() as bad:
        for words, port in ports.items():
            bad.enter_context(storescp(tmp_path / words, port, *words.split()))
        with outbox.sending():
            for words in ports:
                code, text = MISBEHAVIOURS[words]
                say(f"{words}: {code}: {_alarm(outbox, code, words, text)}")
            assert [words for words in ports if "delivered" in outbox.states(words)] == []
            bad.close()
            with ExitStack() as good:
                for words, port in ports.items():
                    good.enter_context(dcmqrscp(mended[words], port))
                for words in ports:
                    outbox.wait_delivered(words, PATIENCE)
    assert {words: held(folder) for words, folder in mended.items()} == dict.fromkeys(ports, uids)
    assert outbox.alarms().keys().isdisjoint({"circuit", "unproven", "peer", "deliveries"})


def _alarm(outbox: Outbox, code: str, words: str, text: str) -> str:
    """Wait for an alarm of that kind that names the peer."""

    def look() -> str | None:
        texts = outbox.alarms().get(code, ())
        return next((one for one in texts if words in one and text in one), None)

    return wait_for(f"{words}: {code}", PATIENCE, look)


def test_a_pacs_that_answers_success_to_what_it_throws_away_never_counts_and_is_named_in_the_end(
    database: Database, draft_factory: DraftFactory, tmp_path: Path, say: Say
) -> None:
    pacs = Pacs()
    pacs.lists = False
    try:
        outbox = Outbox(database, tmp_path, draft_factory, [peer("liar", pacs.port)])
        outbox.put(1)
        with outbox.sending():
            wait_for("sent again", PATIENCE, lambda: pacs.stores > 1 or None)
            assert outbox.states("liar") <= {"due", "sending", "sent"}
            outbox.pass_days(2)
            wait_for("given up", PATIENCE, lambda: outbox.states("liar") == {"failed"} or None)
    finally:
        pacs.stop()
    (given_up,) = outbox.of("liar")
    assert given_up.reason is not None
    assert "answered success, and does not have it (find)" in given_up.reason
    say(f"{given_up.reason}; {outbox.alarms()['deliveries']}")


def test_a_pacs_that_hangs_delays_no_other(
    database: Database, draft_factory: DraftFactory, tmp_path: Path, say: Say
) -> None:
    require("dcmqrscp")
    port = free_port()
    with dcmqrscp(tmp_path / "pacs", port), ExitStack() as silent:
        good, dead = peer("good", port), peer("dead", silent.enter_context(hanging()))
        alone = Outbox(database, tmp_path / "alone", draft_factory, [peer("alone", port)])
        alone.put(20)
        with alone.sending():
            seconds = _until_delivered(alone, "alone")
        both = Outbox(database, tmp_path / "both", draft_factory, [good, dead])
        both.put(20)
        with both.sending():
            beside = _until_delivered(both, "good")
            tried = sorted(one.attempts for one in both.of("dead"))
            silent.close()
    say(f"20 drafts proven at a PACS: {seconds:.1f} s alone, {beside:.1f} s beside one that hangs")
    assert tried == [0] * 19 + [1]  # its first one hangs still


def _until_delivered(outbox: Outbox, name: str) -> float:
    began = time.monotonic()
    outbox.wait_delivered(name, PATIENCE)
    return time.monotonic() - began


def test_a_stat_draft_overtakes_the_routine_ones_that_workers_were_told_of_before(
    database: Database, draft_factory: DraftFactory, tmp_path: Path, peer_scp: Pacs
) -> None:
    outbox = Outbox(database, tmp_path, draft_factory, [peer("pacs", peer_scp.port)], at_once=2)
    outbox.put(30)
    urgent: list[str] = []

    def put_stat() -> None:
        if peer_scp.stores == 10:
            urgent.extend(outbox.put(1, STAT))

    peer_scp.while_storing = put_stat
    with outbox.sending(told=[one.id for one in outbox.of("pacs")]):
        outbox.wait_delivered("pacs", PATIENCE)
    (stat,) = urgent
    # Only what was under way already came first.
    assert list(peer_scp.received).index(stat) <= 10 + outbox.at_once
