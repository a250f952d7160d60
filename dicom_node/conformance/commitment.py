"""The statement's part on Storage Commitment, which we are SCU and SCP of (PS3.4 J)."""

from __future__ import annotations

from dicom_node import commitment_calls, commitment_service, commitments
from dicom_node.commitments import CLASS_INSTANCE_CONFLICT, NO_SUCH_INSTANCE
from dicom_node.config import Settings
from dicom_node.conformance.markdown import bullets, table


def asking(settings: Settings) -> str:
    """Return what we do as an SCU."""
    delivery, jobs = settings.delivery, settings.jobs
    return (
        'A peer with `proof = "commitment"` is asked to commit to each object after it was sent '
        "(N-ACTION, one reference a transaction, the Transaction UID of our own). Its report is "
        f"waited for {commitment_calls.PATIENCE:g} s on the same association, and may come at any "
        "time later on an association of the peer's, after a restart of ours too. An object that "
        "the peer reports as failed is sent again; a peer that does not report within "
        f"{delivery.commitment_seconds:g} s is asked again in a new transaction, and a late report "
        f"still counts. After {jobs.give_up_hours:g} hours a person is called. Optional attributes "
        "of the Action Information are not sent; those of the Event Information are not looked at."
    )


def reporting(settings: Settings) -> str:
    """Return how we report as an SCP."""
    jobs = settings.jobs
    return (
        "A source that asked for storage commitment is told the outcome (N-EVENT-REPORT) on an "
        "association of ours, at the host and port it is configured with, within seconds of its "
        "request. We propose to be the SCP by role selection, and report too where the peer says "
        "nothing of roles. A report that is not answered with 0x0000 is repeated as drafts are "
        f"(4.3.1), for {jobs.give_up_hours:g} hours; `dicom-node status` warns meanwhile."
    )


def answering(settings: Settings) -> str:
    """Return the terms on which we commit, and what we answer."""
    days = settings.retention.pixels_days
    kept = f"for {days:g} days after the study is finished" if days else "for ever"
    said = [
        "Requests are taken from peers with the role `source`, of Action Information of at most "
        f"{commitment_service.MAXIMUM_INFORMATION} bytes. A request is durable before it is "
        "answered 0x0000.",
        "We commit to an instance when a whole file of it is on our disk under the SOP class that "
        "the request names, whoever sent it. Failure reasons: "
        f"{commitments.in_words(NO_SUCH_INSTANCE)} (never here, deleted since, or its file is not "
        f"whole); {commitments.in_words(CLASS_INSTANCE_CONFLICT)}.",
        f"Committed instances are kept {kept}, sooner gone only while the disk is above its high "
        "mark, and later asked for again they are not committed to. They can't be retrieved: "
        "Retrieve AE Title is not sent. **A sender must not delete its only copy on our word.**",
        "A request that comes again under its Transaction UID is reported on once, unless the "
        f"report failed; transactions are remembered for {commitments.KEPT.days} days.",
        "Reports are taken from the peer that was asked only, on either kind of association, and "
        "are durable before they are answered 0x0000; one that is repeated changes nothing.",
    ]
    return bullets(said)


def statuses() -> str:
    """Return the statuses of N-ACTION and N-EVENT-REPORT as we answer them."""
    rows = [
        ("Success", "0x0000", "Durably kept."),
        ("No such SOP instance", "0x0112", "Not the well-known instance."),
        ("No such event type", "0x0113", "N-EVENT-REPORT: neither 1 nor 2."),
        (
            "Invalid argument value",
            "0x0115",
            "Not to be read, or lacking what is mandatory; a report on a transaction that this "
            "peer was not asked for; a Transaction UID that was used for other objects.",
        ),
        ("No such SOP class", "0x0118", "Not the Push Model."),
        ("No such action", "0x0123", "N-ACTION: not 1."),
        ("Not authorised", "0x0124", "N-ACTION of a peer that is no source."),
        ("Unrecognised operation", "0x0211", "Another normalised service."),
        ("Resource limitation", "0x0213", "Database away, or too long. Try again later."),
        ("Processing failure", "0x0110", "A fault of ours. It is in our log."),
    ]
    return "\n\n".join(
        [
            table(["Meaning", "Status code", "When"], rows),
            "As SCU: an N-ACTION that is answered 0x0118 or 0x0122, or whose context is not "
            "accepted, fails the delivery for good, with the remedy; every other failure is tried "
            "again (4.3.1).",
        ]
    )
