"""Orders: what is kept of them, and that a study gets its own patient's or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import db, orders
from dicom_node.db import Database
from dicom_node.identity import MIXED
from dicom_node.orders import Order, Source, Told, order_key
from dicom_node.priorities import ROUTINE, STAT, URGENT
from dicom_node.storage import Identity
from tests.conftest import StudyFactory
from tests.dicom_node.reports.made import identity

STUDY = "1.2.3"
WHOSE = identity("P1", issuer="HOSP", accession="A1", ris="RIS")


def told(text: str | None = "Cough", **changes: Any) -> Told:
    """What a RIS says of the order of STUDY."""
    values: dict[str, Any] = {
        "source": "hl7",
        "peer": "RIS",
        "order_key": order_key("F1"),
        "study_instance_uid": STUDY,
        "identity": WHOSE,
        "indication": text,
        "indication_source": "HL7 ORM RIS > OBR-31",
        **changes,
    }
    return Told(**values)


def order(text: str = "Cough", **changes: Any) -> Order:
    """The order of STUDY as it is kept."""
    values: dict[str, Any] = {
        "source": "hl7",
        "study_instance_uid": STUDY,
        "identity": WHOSE,
        "indication": text,
        "indication_source": "HL7 ORM RIS > OBR-31",
        "priority": ROUTINE,
        "state": "open",
        **changes,
    }
    return Order(**values)


def keep(database: Database, *said: Told) -> None:
    with database.transaction() as connection:
        orders.keep(connection, said)


def found(database: Database, uid: str = STUDY) -> Order | None:
    with database.transaction() as connection:
        return orders.find(connection, uid)


def rows(database: Database) -> list[dict[str, Any]]:
    with database.transaction() as connection:
        query = sa.select(db.imaging_order).order_by(db.imaging_order.c.id)
        return [dict(row) for row in connection.execute(query).mappings()]


@pytest.fixture
def study(study_factory: StudyFactory) -> str:
    """STUDY, of the patient WHOSE."""
    return study_factory(study_instance_uid=STUDY, identity=WHOSE)


# -- keeping ---------------------------------------------------------------------------------------


def test_an_order_is_found_by_its_study(database: Database, study: str) -> None:
    keep(database, told(priority=URGENT))
    assert found(database) == order(priority=URGENT)


def test_an_update_replaces_what_it_says_and_leaves_the_rest(
    database: Database, study: str
) -> None:
    keep(database, told("Cough", priority=STAT))
    keep(database, told("Fall", identity=Identity(), study_instance_uid=""))
    assert found(database) == order("Fall", priority=STAT)
    keep(database, told(None))
    assert found(database) == order("Fall", priority=STAT)


def test_a_reason_can_be_taken_back(database: Database, study: str) -> None:
    keep(database, told("Cough"), told(""))
    keep(database, told(""))
    assert [row["indication"] for row in rows(database)] == [""]


def test_a_number_that_another_patient_gets_keeps_nothing_of_the_first(
    database: Database, study: str
) -> None:
    keep(database, told("Cough", priority=STAT))
    keep(database, told(None, identity=identity("P2", accession="A1")))
    (row,) = rows(database)
    assert (row["indication"], row["priority"]) == ("", ROUTINE)
    assert found(database) is None


def test_a_cancelled_order_is_none_until_it_is_placed_again(database: Database, study: str) -> None:
    keep(database, told())
    keep(database, Told(source="hl7", peer="RIS", order_key=order_key("F1"), cancelled=True))
    assert found(database) is None
    keep(database, told())
    assert found(database) == order()


@pytest.mark.parametrize(
    ("cancelled", "left"),
    [
        pytest.param(order_key("F1"), [], id="the whole order"),
        pytest.param(order_key("F1", "chest"), ["hand"], id="one procedure"),
        pytest.param(order_key("F2"), ["chest", "hand"], id="another order"),
    ],
)
def test_a_cancellation_may_name_a_procedure(
    database: Database, cancelled: str, left: list[str]
) -> None:
    keep(database, *(told(one, order_key=order_key("F1", one)) for one in ("chest", "hand")))
    keep(database, told(order_key=cancelled, cancelled=True))
    still = [row["indication"] for row in rows(database) if row["state"] == "open"]
    assert sorted(still) == left


def test_a_cancellation_by_procedure_meets_an_order_that_named_none(database: Database) -> None:
    keep(database, told())
    keep(database, told(order_key=order_key("F1", "chest"), cancelled=True))
    assert [row["state"] for row in rows(database)] == ["cancelled"]


def test_another_senders_order_of_the_same_number_is_another(database: Database) -> None:
    keep(database, told(), told(peer="OTHER"), told(source="worklist"))
    assert len(rows(database)) == 3


def test_what_postgres_can_not_hold_is_left_out(database: Database, study: str) -> None:
    keep(database, told("Co\0ugh\ud800" + "x" * 3000))
    kept = found(database)
    assert kept is not None
    assert kept.indication.startswith("Cough?x")
    assert len(kept.indication) == orders.LONGEST


def test_old_orders_are_forgotten(database: Database) -> None:
    keep(database, told(), told(order_key=order_key("F2")))
    with database.transaction() as connection:
        old = sa.func.now() - orders.KEPT - sa.text("interval '1 day'")
        which = db.imaging_order.c.order_key == order_key("F2")
        connection.execute(sa.update(db.imaging_order).where(which).values(changed_at=old))
        assert orders.forget(connection) == 1
    assert len(rows(database)) == 1


def test_a_study_of_which_nothing_is_kept_takes_its_orders_along(
    database: Database, study: str
) -> None:
    by_number = told(order_key=order_key("F2"), study_instance_uid="")
    anothers = told(order_key=order_key("F3"), identity=identity("P2", accession="A1"))
    keep(database, told(), by_number, anothers)
    with database.transaction() as connection:
        orders.erase(connection, STUDY)
    assert [row["order_key"] for row in rows(database)] == [order_key("F3")]


# -- finding ---------------------------------------------------------------------------------------


def test_a_study_that_nobody_told_of_has_no_order(database: Database) -> None:
    keep(database, told())
    assert found(database) is None


def test_the_accession_number_finds_it_too(database: Database, study: str) -> None:
    keep(database, told(study_instance_uid="", identity=identity("P1", accession="A1")))
    assert found(database) is not None


def test_the_database_and_the_rule_agree(database: Database, study: str) -> None:
    """``find`` looks at no more than what it hands to ``match``."""
    anothers = identity("P2", accession="A1")
    keep(
        database,
        told("his", study_instance_uid=""),
        told("anothers", order_key=order_key("F2"), identity=anothers),
        told("not his", order_key=order_key("F3"), identity=identity("P1", accession="A9"),
             study_instance_uid="9.9"),
    )  # fmt: skip
    kept = found(database)
    assert kept is not None
    assert kept.indication == "his"


@pytest.mark.parametrize(
    "whose",
    [
        pytest.param(identity("P2", issuer="HOSP", accession="A1", ris="RIS"), id="id"),
        pytest.param(identity("P1", issuer="OTHER", accession="A1", ris="RIS"), id="issuer"),
        pytest.param(identity("", issuer="HOSP", accession="A1", ris="RIS"), id="none"),
        pytest.param(replace(WHOSE, patient_id_key=MIXED), id="several patients"),
        pytest.param(replace(WHOSE, patient_issuer_key=MIXED), id="several issuers"),
    ],
)
def test_another_patients_study_gets_no_order_not_even_by_its_uid(whose: Identity) -> None:
    assert orders.match(STUDY, whose, [order()]) is None


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(order(identity=identity("P2", accession="A1")), id="another patient"),
        pytest.param(order(identity=identity("", accession="A1")), id="no patient"),
        pytest.param(
            order(identity=identity("P1", accession="A1", ris="LAB"), study_instance_uid=""),
            id="another issuer of the number",
        ),
        pytest.param(
            order(identity=identity("P1", accession="A2"), study_instance_uid=""),
            id="another number",
        ),
        pytest.param(order(identity=identity("P1"), study_instance_uid=""), id="no number"),
        pytest.param(order(state="cancelled"), id="cancelled"),
    ],
)
def test_an_order_that_does_not_agree_is_none(one: Order) -> None:
    assert orders.match(STUDY, WHOSE, [one]) is None


def test_the_studys_own_order_goes_before_one_of_its_number() -> None:
    others = order("Hand", study_instance_uid="9.9")
    best = orders.match(STUDY, WHOSE, [others, order("Chest")])
    assert best is not None
    assert best.indication == "Chest"


@pytest.mark.parametrize(
    "two",
    [
        pytest.param([order("A", study_instance_uid="8"), order("A", study_instance_uid="9")],
                     id="two studies"),
        pytest.param([order("A", study_instance_uid=""), order("B", study_instance_uid="")],
                     id="two reasons"),
    ],
)  # fmt: skip
def test_a_number_of_two_procedures_is_nobodys(two: list[Order]) -> None:
    assert orders.match(STUDY, WHOSE, two) is None


@pytest.mark.parametrize(
    ("sources", "texts", "best"),
    [
        (("hl7", "worklist"), ("Fall", "Cough"), "Cough"),
        (("hl7", "worklist"), ("Fall", ""), "Fall"),
        (("hl7", "hl7"), ("newer", "older"), "newer"),
    ],
)
def test_the_worklist_goes_before_hl7_and_what_is_newer_before_what_is_older(
    sources: tuple[Source, Source], texts: tuple[str, str], best: str
) -> None:
    known = [order(text, source=source) for text, source in zip(texts, sources, strict=True)]
    chosen = orders.match(STUDY, WHOSE, known)
    assert chosen is not None
    assert chosen.indication == best


def test_what_is_urgent_to_one_source_is_urgent() -> None:
    known = [order(priority=STAT), order("Fall", source="worklist")]
    chosen = orders.match(STUDY, WHOSE, known)
    assert chosen is not None
    assert (chosen.indication, chosen.priority) == ("Fall", STAT)


_KEY = st.sampled_from(["", "a", "b", MIXED])
_IDENTITY = st.builds(
    Identity,
    patient_id_key=_KEY,
    patient_issuer_key=_KEY,
    accession_key=_KEY,
    accession_issuer_key=_KEY,
)
_ORDER = st.builds(
    order,
    st.sampled_from(["", "Cough", "Fall"]),
    source=st.sampled_from(orders.SOURCES),
    study_instance_uid=st.sampled_from(["", STUDY, "9.9"]),
    identity=_IDENTITY,
    priority=st.sampled_from([ROUTINE, URGENT, STAT]),
    state=st.sampled_from(["open", "cancelled"]),
)


@given(whose=_IDENTITY, known=st.lists(_ORDER, max_size=6))
def test_whatever_is_known_the_order_of_a_study_is_its_patients_and_open(
    whose: Identity, known: list[Order]
) -> None:
    chosen = orders.match(STUDY, whose, known)
    if chosen is None:
        return
    said = chosen.identity
    assert said.patient_id_key == whose.patient_id_key != ""
    assert MIXED not in (whose.patient_id_key, whose.patient_issuer_key)
    assert len({said.patient_issuer_key, whose.patient_issuer_key} - {""}) <= 1
    assert chosen.state == "open"
    by_number = said.accession_key == whose.accession_key != ""
    assert chosen.study_instance_uid == STUDY or by_number
