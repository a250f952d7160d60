"""What people see: rich tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dicom_node import remedies

if TYPE_CHECKING:
    from dicom_node.account import Account
    from dicom_node.associations import RefusedAssociation
    from dicom_node.config import Settings
    from dicom_node.deliveries import Delivery
    from dicom_node.doctor import Check
    from dicom_node.priors import EarlierStudy
    from dicom_node.reconciliation import Comparison
    from dicom_node.reports.feedback import Row
    from dicom_node.reports.store import Report
    from dicom_node.retrieval import Hit
    from dicom_node.status import Problem, Status
    from dicom_node.studies import Study

#: In a pipe there is no width to keep to, and a UID broken in two can't be found by grep.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def show(headings: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """One plain table; UIDs are never cut."""
    table = Table(*headings, title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in table.columns[:-1]:
        column.no_wrap = not console.is_terminal
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console.print(table)


def when(at: datetime | None) -> str:
    """A time as people read it, in the machine's zone."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else "-"


def counts(numbers: Mapping[str, int]) -> str:
    """``drafted 3, queued 1``."""
    return ", ".join(f"{state} {number}" for state, number in numbers.items()) or "none"


def show_status(status: Status) -> None:
    """The node at one glance, then its peers, then what needs a person."""
    node = status.settings.node
    up = "up" if status.node else "DOWN"
    lines = [
        ("node", f"{node.ae_title} on {node.host}:{node.port} {up}"),
        ("database", "up" if status.database_up else "DOWN"),
        ("broker", "up" if status.broker_up else "DOWN"),
        *(("worker", _worker(one.facts, one.name)) for one in status.workers),
        ("studies", counts(status.studies)),
        ("jobs", counts(status.jobs)),
        ("deliveries", counts(status.deliveries)),
        ("final reports", counts(status.reports)),
        ("storage", _free(status.free_bytes)),
    ]
    health = "healthy" if status.healthy else "NEEDS ATTENTION"
    show(("dicom-node", health), lines)
    if status.peers:
        console.print()
        show(
            ("peer", "last received", "last sent", "failures"),
            [
                (one.name, when(one.last_received), when(one.last_sent), one.failures)
                for one in status.peers
            ],
        )
    if status.refused:
        console.print()
        show(
            ("refused association", "address", "times", "last", "asked for", "reason"),
            [_refused(one, status.settings) for one in status.refused],
        )
    show_problems("problem", status.problems)
    show_problems("warning", status.warnings)


def _refused(one: RefusedAssociation, settings: Settings) -> tuple[object, ...]:
    fix = remedies.fix(settings, one) or "let in by now"
    short = "`dicom-node doctor` shows the lines to paste" if remedies.is_block(fix) else fix
    first, *others = one.contexts or ("-",)
    asked_for = f"{first} and {len(others)} more" if others else first
    titles = f"{one.calling_ae_title or '-'} to {one.called_ae_title or '-'}"
    return (titles, one.address, one.count, when(one.last), asked_for, f"{one.text}\n{short}")


def _worker(facts: Mapping[str, object], name: str) -> str:
    if not facts.get("model"):
        return f"{name} {facts.get('state')}"
    told = [f"{name} {facts['state']}: {facts['algorithm']} on {facts['device']}"]
    if slots := facts.get("slots"):
        told.append(f"{facts.get('busy')} of {slots} slots in use")
    for key, what in (
        ("seconds_per_report", "s per report"),
        ("tokens_per_pass", "tokens per pass"),
    ):
        if isinstance(number := facts.get(key), float):
            told.append(f"{number:.1f} {what}")
    return ", ".join(told)


def _free(free: int | None) -> str:
    return "unknown" if free is None else f"{free / 2**30:.1f} GiB free"


def show_problems(kind: str, problems: Sequence[Problem]) -> None:
    """Each with its fix."""
    if problems:
        console.print()
        show((kind, "what", "fix"), [(one.code, one.text, one.fix) for one in problems])


def show_studies(found: Sequence[Study]) -> None:
    """One line a study."""
    show(
        ("received", "state", "revision", "study"),
        [(when(one.received_at), one.state, one.revision, one.study_instance_uid) for one in found],
    )


def show_deliveries(found: Sequence[Delivery]) -> None:
    """One line a delivery."""
    show(
        ("delivery", "to", "state", "attempts", "next attempt", "study", "reason"),
        [
            (
                one.id,
                one.peer,
                one.state,
                one.attempts,
                when(one.next_attempt),
                one.study_instance_uid,
                one.reason,
            )
            for one in found
        ],
    )


def show_account(account: Account) -> None:
    """One study's whole way."""
    study = account.study
    console.print(f"study {study.study_instance_uid}")
    console.print(f"state {study.state}, revision {study.revision}")
    console.print(f"choice {_choice(account.choice)}\n")
    show(
        ("instance", "revision", "bytes", "sha256"),
        [(one.sop_instance_uid, one.revision, one.size, one.sha256) for one in account.instances],
    )
    console.print()
    show(
        ("job", "revision", "model", "state", "attempts", "reason"),
        [
            (one.id, one.revision, one.model, one.state, one.attempts, one.reason)
            for one in account.jobs
        ],
    )
    for draft in account.drafts:
        live = f"superseded by {draft.superseded_by}" if draft.superseded_by else "current"
        console.print(f"\ndraft {draft.sop_instance_uid} ({draft.kind} v{draft.version}, {live})")
        console.print(Text(draft.text or "says only that there is no draft, and why"))
    for report in account.reports:
        console.print(f"\nfinal report {report.id} ({report.source}, {report.verdict})")
        console.print(Text(report.text))
    console.print()
    show(
        ("delivery to", "state", "proof", "attempts", "reason"),
        [(one.peer, one.state, one.proof, one.attempts, one.reason) for one in account.deliveries],
    )
    if account.priors:
        console.print()
        show_priors(account.priors)
    console.print()
    show(
        ("at", "what", "from", "to", "reason"),
        [
            (when(one.at), one.subject, one.from_state, one.to_state, one.reason)
            for one in account.events
        ],
    )


def show_priors(found: Sequence[EarlierStudy]) -> None:
    """A patient's earlier studies."""
    show(
        ("prior", "date", "state", "from", "reason"),
        [
            (one.study_instance_uid, one.study_date, one.state, one.peer, one.reason)
            for one in found
        ],
    )


def show_missing(found: Sequence[Comparison]) -> None:
    """Peers' days, and what of each is missing here."""
    show(
        ("peer", "date", "found", "missing"),
        [(day.peer, day.study_date, day.found, len(day.missed)) for day in found],
    )
    missed = [(day.peer, one) for day in found for one in day.missed]
    if missed:
        console.print()
        show(
            ("missing study", "date", "at", "modalities", "instances", "missing", "fetch"),
            [
                (
                    one.study.study_instance_uid,
                    one.study.study_date,
                    peer,
                    ", ".join(one.study.modalities),
                    one.study.instances,
                    "all" if one.absent is None else one.absent,
                    one.state or "not queued",
                )
                for peer, one in missed
            ],
        )


def _choice(choice: Mapping[str, object] | None) -> str:
    if choice is None:
        return "not made yet"
    refusal = choice.get("refusal")
    if isinstance(refusal, Mapping):
        return f"none: {refusal['code']}: {refusal['text']}"
    return f"{choice['sop_instance_uid']} by rule {choice['rule']}"


def show_reports(found: Sequence[Report]) -> None:
    """One line a report, nothing of what it says."""
    show(
        ("received", "id", "source", "verdict", "state", "reason", "message or document", "study"),
        [
            (
                when(one.received_at),
                one.id,
                one.source,
                one.verdict,
                one.state,
                one.reason,
                one.source_uid,
                one.study_instance_uid,
            )
            for one in found
        ],
    )


def show_feedback(rows: Sequence[Row]) -> None:
    """One line a model version and week, then its labels."""
    show(
        ("week", "model", "pairs", "accepted", "edited", "rejected", "distance", "label F1"),
        [
            (
                one.week,
                f"{one.algorithm_name} {one.algorithm_version} ({one.digest[:12]})",
                one.n,
                one.accepted,
                one.edited,
                one.rejected,
                f"{one.mean_distance:.3f} mean, {one.median_distance:.3f} median",
                "-" if one.f1 is None else f"{one.f1:.3f}",
            )
            for one in rows
        ],
    )
    console.print()
    show(
        ("week", "label", "agreed", "missed", "added", "contradicted"),
        [
            (one.week, label, count.agreed, count.missed, count.added, count.contradicted)
            for one in rows
            for label, count in one.labels.items()
        ],
    )


def show_hits(hits: Sequence[Hit]) -> None:
    """Best first."""
    show(
        ("score", "matched", "same patient", "study", "report"),
        [
            (
                f"{hit.score:.3f}",
                hit.kind,
                "yes" if hit.same_patient else "",
                hit.study_instance_uid,
                hit.text,
            )
            for hit in hits
        ],
    )


def show_checks(checks: Sequence[Check]) -> None:
    """One line a check; the fix only where one is needed, lines to paste below all."""
    blocks = {one.name: one.fix for one in checks if remedies.is_block(one.fix)}
    show(
        ("check", "", "what", "fix"),
        [
            (one.name, _verdict(one), _what(one), "lines below" if one.name in blocks else one.fix)
            for one in checks
        ],
    )
    for name, lines in blocks.items():
        console.print(Text(f"\n# {name}: if it may send, paste into the configuration"))
        console.print(Text(lines), soft_wrap=True)


def _verdict(check: Check) -> str:
    if not check.tried:
        return "-"
    if not check.passed:
        return "FAULT"
    return "note" if check.fix else "ok"


def _what(check: Check) -> str:
    return check.text if check.tried else f"not tried: {check.text}"
