"""Steps asked in order: a fault is named once, and what it bars is not tried."""

from __future__ import annotations

from collections.abc import Callable

from dicom_node.doctor.checks import Fault, Finding, NotTried, Step, document, in_order
from dicom_node.errors import OutOfResources


def fine() -> Finding:
    return Finding(text="fine")


def broken() -> Finding:
    raise Fault("broken", "mend it")


def senseless() -> Finding:
    raise NotTried("nobody wants it")


def without_database() -> Finding:
    raise OutOfResources("the database is away")


def steps(*asked: Callable[[], Finding], essential: bool = True) -> list[Step]:
    words = ["first", "second", "third"]
    return [
        Step(word=word, ask=ask, essential=essential)
        for word, ask in zip(words, asked, strict=True)
    ]


def test_after_a_fault_the_rest_is_not_tried_and_not_blamed() -> None:
    checks = in_order("to pacs", steps(fine, broken, fine))
    assert [(one.name, one.passed, one.tried) for one in checks] == [
        ("to pacs: first", True, True),
        ("to pacs: second", False, True),
        ("to pacs: third", False, False),
    ]
    assert [one.is_fault for one in checks] == [False, True, False]
    assert checks[2].text == "the step before, second, failed"


def test_a_fault_that_bars_nothing_lets_the_rest_be_tried() -> None:
    checks = in_order("to pacs", steps(broken, fine, fine, essential=False))
    assert [one.tried for one in checks] == [True, True, True]


def test_a_step_that_makes_no_sense_bars_nothing() -> None:
    checks = in_order("to pacs", steps(senseless, fine, fine))
    assert [one.tried for one in checks] == [False, True, True]
    assert not any(one.is_fault for one in checks)


def test_a_fault_of_our_own_leads_to_our_own_parts() -> None:
    (check,) = in_order("to pacs", [Step(word="proof", ask=without_database)])
    assert (check.is_fault, check.text) == (True, "the database is away")
    assert check.fix == "`dicom-node doctor` without a peer checks this node"


def test_a_step_may_give_its_check_another_name() -> None:
    (check,) = in_order("to pacs", [Step(word="echo", ask=fine, name="to pacs")])
    assert (check.name, check.step) == ("to pacs", "echo")


def test_the_document_keeps_apart_what_was_not_tried() -> None:
    told = document(in_order("to pacs", steps(fine, broken, fine)))
    assert told["checks"][1] == {
        "name": "to pacs: second",
        "passed": False,
        "text": "broken",
        "fix": "mend it",
        "step": "second",
    }
    assert told["not_tried"] == [
        {"name": "to pacs: third", "step": "third", "text": "the step before, second, failed"}
    ]
    assert len(told["checks"]) == 2
