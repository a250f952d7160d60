"""A check: one question and its answer; and steps, asked in order until one bars the way.

A fault is named once, at the step that proves it. What could not be asked after it is said to be
not tried: neither right nor wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dicom_node.errors import NodeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question and its answer."""

    name: str
    passed: bool
    text: str
    fix: str = ""  #: of a check that passed: worth doing all the same
    step: str = ""  #: a word that stays the same; empty: no step of a way to a peer
    tried: bool = True

    @property
    def is_fault(self) -> bool:
        """Was it asked, and is something wrong?"""
        return self.tried and not self.passed


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a step found where nothing is wrong; with a fix it is a note."""

    text: str
    fix: str = ""


class Fault(NodeError):
    """A step failed: what is wrong, and the one line that mends it."""

    def __init__(self, text: str, fix: str) -> None:
        super().__init__(text)
        self.fix = fix


class NotTried(NodeError):
    """A step makes no sense here: why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One question on the way to a peer; raises :class:`Fault` or :class:`NotTried`."""

    word: str
    ask: Callable[[], Finding]
    essential: bool = True  #: without it no later step makes sense
    name: str = ""  #: of the check, where it is not the way and the word


def in_order(way: str, steps: Sequence[Step]) -> list[Check]:
    """Ask each step; after an essential one that failed the rest is not tried."""
    checks: list[Check] = []
    barred = ""
    for step in steps:
        if barred:
            checks.append(_not_tried(way, step, f"the step before, {barred}, failed"))
            continue
        checks.append(_asked(way, step))
        if step.essential and checks[-1].is_fault:
            barred = step.word
    return checks


def attempt(name: str, question: Callable[[], str], fix: str) -> Check:
    """A check that needs no steps; whatever is wrong has this fix."""
    try:
        return Check(name=name, passed=True, text=question())
    except NodeError as error:
        return Check(name=name, passed=False, text=str(error), fix=fix)


def to_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """One object for each check that was tried."""
    return [
        {
            "name": one.name,
            "passed": one.passed,
            "text": one.text,
            "fix": one.fix,
            "step": one.step or one.name,
        }
        for one in checks
        if one.tried
    ]


def document(checks: Sequence[Check]) -> dict[str, Any]:
    """All of them; those that were not tried apart, for they say nothing about the peer."""
    skipped = [one for one in checks if not one.tried]
    return {
        "checks": to_json(checks),
        "not_tried": [{"name": one.name, "step": one.step, "text": one.text} for one in skipped],
    }


def _asked(way: str, step: Step) -> Check:
    name = _name(way, step)
    try:
        found = step.ask()
    except NotTried as error:
        return _not_tried(way, step, str(error))
    except Fault as error:
        return Check(name=name, passed=False, text=str(error), fix=error.fix, step=step.word)
    except NodeError as error:  # of our own side: the database went away, a file can't be used
        fix = "`dicom-node doctor` without a peer checks this node"
        return Check(name=name, passed=False, text=str(error), fix=fix, step=step.word)
    return Check(name=name, passed=True, text=found.text, fix=found.fix, step=step.word)


def _not_tried(way: str, step: Step, why: str) -> Check:
    name = _name(way, step)
    return Check(name=name, passed=False, text=why, step=step.word, tried=False)


def _name(way: str, step: Step) -> str:
    return step.name or f"{way}: {step.word}"
