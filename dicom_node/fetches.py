"""Studies that a peer has and we want: the only writer of ``study_fetch`` and ``prior_search``.

    fetch:         due -> fetching -> fetched | failed(reason)     not of the chest: skipped
                   peer away, or not all came: due later           lease over: claimable again
    prior search:  due -> searched | failed(reason)                peer away: due later

A study has one row, so it is fetched once, whoever finds it and however often. Whoever claims it
holds a lease and a token (how often it was ever claimed), which every later step names. A search
only adds rows that are unique: two of them do no harm, so it needs neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping, func
from sqlalchemy.dialects import postgresql

from dicom_node import events, nudges
from dicom_node.db import fetch, prior_search, study

MISSED = "missed"  #: the PACS had it and we had not
INCOMPLETE = "incomplete"  #: the PACS had more of it than we had
PRIOR = "prior"  #: an earlier study of a patient: kept and shown, not read
WANTED = "wanted"  #: it was a prior, and a person wants it read

#: Of one peer one study at a time, and so many in all: others send meanwhile.
AT_ONCE = 3
#: How long a search has until it may be begun again.
_SEARCH_LEASE = timedelta(minutes=10)
#: Who claims waits for who claims, so that the bounds hold: a number of ours for Postgres.
_CLAIMING = 0x6665746368

SKIPPED = "skipped"
FETCHED = "fetched"

#: What a peer's day, held against ours, brings; all others are priors.
_SWEPT = (MISSED, INCOMPLETE)
_FROM_SCRATCH = {"attempts": 0, "nudged_at": None, "started_at": None}
_WHY = {
    MISSED: "missed by its sender",
    INCOMPLETE: "a part of it was missed by its sender",
    WANTED: "a prior that a person wants read",
}

_CLAIMABLE = sa.or_(
    sa.and_(fetch.c.state == "due", fetch.c.due_at <= func.now()),
    sa.and_(fetch.c.state == "fetching", fetch.c.lease_until < func.now()),
)
_BEING_FETCHED = sa.and_(fetch.c.state == "fetching", fetch.c.lease_until >= func.now())
_SEARCHABLE = sa.and_(prior_search.c.state == "due", prior_search.c.due_at <= func.now())


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A study that a peer has, to be fetched."""

    study_instance_uid: str
    study_date: str  #: YYYYMMDD; empty: not said
    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """One study on its way to us."""

    id: int
    study_instance_uid: str
    peer: str
    purpose: str
    prior_of: str | None  #: Study Instance UID
    study_date: str
    state: str
    attempts: int  #: since it was last queued from scratch
    claims: int  #: ever; never reset: the token of this claim
    reason: str | None
    found_at: datetime
    age: timedelta = field(compare=False)  #: since the first attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Whose earlier studies are looked for."""

    id: int
    study_instance_uid: str
    attempts: int  #: this one counted
    age: timedelta = field(compare=False)  #: since it was wanted


_FETCH = sa.select(fetch, (func.now() - func.coalesce(fetch.c.started_at, func.now())).label("age"))


def _fetch(row: RowMapping) -> Fetch:
    return Fetch(**{name: row[name] for name in Fetch.__dataclass_fields__})


# -- wanting ---------------------------------------------------------------------------------------


def want(
    connection: Connection,
    found: Found,
    purpose: str,
    *,
    prior_of: str | None = None,
    wait: timedelta = timedelta(0),
) -> bool:
    """Queue a study; False: we have it, or it was queued before.

    Parameters
    ----------
    wait
        It may still come by itself: so long nothing is done.
    """
    here = sa.exists().where(study.c.study_instance_uid == found.study_instance_uid)
    if connection.scalar(sa.select(here)):
        return False
    return _add(
        connection,
        found,
        purpose=purpose,
        prior_of=prior_of,
        state="due",
        due_at=func.now() + wait,
    )


def complete(connection: Connection, found: Found, *, wait: timedelta = timedelta(0)) -> bool:
    """Queue the rest of a study of which a part is here; False: it waits, failed or is a prior."""
    values = {"purpose": INCOMPLETE, "state": "due", "due_at": func.now() + wait}
    again = connection.execute(
        sa.update(fetch)
        .where(fetch.c.study_instance_uid == found.study_instance_uid)
        .where(fetch.c.state.in_((FETCHED, SKIPPED)), fetch.c.purpose.in_(_SWEPT))
        .values(peer=found.peer, **values, **_FROM_SCRATCH, reason=None, ended_at=None)
    ).rowcount
    return bool(again) or _add(connection, found, **values)


def skip(connection: Connection, found: Found, reason: str) -> bool:
    """Remember that this one is not wanted, so that it is not asked for again."""
    return _add(connection, found, purpose=MISSED, state=SKIPPED, reason=reason)


def _add(connection: Connection, found: Found, **values: object) -> bool:
    added = connection.scalar(
        postgresql.insert(fetch)
        .values(
            study_instance_uid=found.study_instance_uid,
            study_date=found.study_date,
            peer=found.peer,
            **values,
        )
        .on_conflict_do_nothing()
        .returning(fetch.c.id)
    )
    return added is not None


def known(connection: Connection, study_instance_uids: Collection[str]) -> Mapping[str, str]:
    """Which of these we have (``here``) or have a row for (its state)."""
    having = sa.select(study.c.study_instance_uid).where(
        study.c.study_instance_uid.in_(study_instance_uids)
    )
    rows = sa.select(fetch.c.study_instance_uid, fetch.c.state).where(
        fetch.c.study_instance_uid.in_(study_instance_uids)
    )
    states = {uid: state for uid, state in connection.execute(rows)}
    return states | dict.fromkeys(connection.scalars(having), "here")


# -- fetching --------------------------------------------------------------------------------------


def claim(
    connection: Connection, fetch_id: int, *, lease: timedelta, worker: str, per_hour: int
) -> Fetch | None:
    """Take the study if it is free and its turn; ``None``: another has it, or it must wait."""
    connection.execute(sa.select(func.pg_advisory_xact_lock(_CLAIMING)))
    _came_by_itself(connection, fetch_id)
    begun = sa.select(func.count()).where(_BEING_FETCHED).scalar_subquery()
    changed = connection.execute(
        sa.update(fetch)
        .where(fetch.c.id == fetch_id, _CLAIMABLE, _may_begin(per_hour), begun < AT_ONCE)
        .values(
            state="fetching",
            attempts=fetch.c.attempts + 1,
            claims=fetch.c.claims + 1,
            worker=worker,
            lease_until=func.now() + lease,
            started_at=func.coalesce(fetch.c.started_at, func.now()),
            claimed_at=func.now(),
        )
    ).rowcount
    if not changed:
        return None
    return _fetch(connection.execute(_FETCH.where(fetch.c.id == fetch_id)).mappings().one())


def _came_by_itself(connection: Connection, fetch_id: int) -> None:
    """Whoever should have sent it did, before we asked for it: it is a study like any other."""
    here = sa.exists().where(study.c.study_instance_uid == fetch.c.study_instance_uid)
    connection.execute(
        sa.update(fetch)
        .where(fetch.c.id == fetch_id, fetch.c.claimed_at.is_(None), here)
        .where(fetch.c.purpose != INCOMPLETE)  # of which a part was here before
        .values(state=FETCHED, purpose=MISSED, reason="it came by itself", ended_at=func.now())
    )


def _may_begin(per_hour: int) -> sa.ColumnElement[bool]:
    """Nothing else comes from that peer, and of what was swept up not too many came lately."""
    other, lately = fetch.alias(), fetch.alias()
    busy = sa.exists().where(
        other.c.peer == fetch.c.peer,
        other.c.state == "fetching",
        other.c.lease_until >= func.now(),
    )
    begun = (
        sa.select(func.count())
        .where(lately.c.purpose.in_(_SWEPT))
        .where(lately.c.claimed_at > func.now() - timedelta(hours=1))
        .scalar_subquery()
    )
    return sa.and_(~busy, sa.or_(fetch.c.purpose.not_in(_SWEPT), begun < per_hour))


def renew(connection: Connection, held: Fetch, *, lease: timedelta) -> bool:
    """Keep the lease; False: it was lost."""
    return bool(
        connection.execute(
            sa.update(fetch).where(*_held(held)).values(lease_until=func.now() + lease)
        ).rowcount
    )


def fetched(connection: Connection, held: Fetch, reason: str | None = None) -> None:
    """It is here, all of it."""
    if not _advance(connection, held, FETCHED, reason, ended_at=func.now()):
        return
    what = f"a prior of {held.prior_of}" if held.purpose == PRIOR else _WHY[held.purpose]
    here = sa.exists().where(study.c.study_instance_uid == held.study_instance_uid)
    if connection.scalar(sa.select(here)):
        subject = f"fetch {held.id} from {held.peer}"
        uid = held.study_instance_uid
        events.append(connection, uid, subject, "fetching", FETCHED, reason or what)


def retry_later(connection: Connection, held: Fetch, delay: timedelta, reason: str) -> None:
    """Not now: again after ``delay``."""
    due = func.now() + delay
    _advance(connection, held, "due", reason, due_at=due, nudged_at=None)


def fail(connection: Connection, held: Fetch, reason: str) -> None:
    """It will not come: an administrator must look."""
    _advance(connection, held, "failed", reason, ended_at=func.now())


def _advance(
    connection: Connection, held: Fetch, state: str, reason: str | None, **values: object
) -> bool:
    changed = connection.execute(
        sa.update(fetch)
        .where(*_held(held))
        .values(state=state, reason=reason, lease_until=None, **values)
    ).rowcount
    return bool(changed)  # else another worker holds it now and will come to the same end


def _held(held: Fetch) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        fetch.c.id == held.id,
        fetch.c.state == "fetching",
        fetch.c.claims == held.claims,
    )


def nudge(connection: Connection, *, every: timedelta, per_hour: int) -> list[int]:
    """The next study of each peer, priors first, that nobody was told of within ``every``."""
    # The next in each peer's line, not all of them: the others could not begin.
    line = (
        sa.select(fetch.c.id)
        .ext(postgresql.distinct_on(fetch.c.peer))
        .where(_CLAIMABLE, _may_begin(per_hour))
        .order_by(fetch.c.peer, fetch.c.purpose.in_(_SWEPT), fetch.c.study_date.desc(), fetch.c.id)
    )
    return nudges.mark(connection, fetch, fetch.c.id.in_(line), every=every)


def requeue(connection: Connection, *, study_instance_uids: Collection[str] | None) -> int:
    """Make failed ones due again: those of these studies, or all (``None``); how many."""
    which = [fetch.c.state == "failed"]
    if study_instance_uids is not None:
        which.append(fetch.c.study_instance_uid.in_(study_instance_uids))
    return connection.execute(
        sa.update(fetch).where(*which).values(state="due", due_at=func.now(), **_FROM_SCRATCH)
    ).rowcount


# -- priors ----------------------------------------------------------------------------------------


def is_prior(study_instance_uid: sa.ColumnElement[str] | str) -> sa.Exists:
    """SQL: the study came as an earlier one of a patient, so nothing is drafted for it."""
    return sa.exists().where(
        fetch.c.study_instance_uid == study_instance_uid,
        fetch.c.purpose == PRIOR,
        fetch.c.claimed_at.is_not(None),  # what came before we asked came by itself
    )


def read_after_all(connection: Connection, study_instance_uid: str) -> bool:
    """A person wants a prior read; False: it is none."""
    mine = (fetch.c.study_instance_uid == study_instance_uid, fetch.c.purpose == PRIOR)
    return bool(connection.execute(sa.update(fetch).where(*mine).values(purpose=WANTED)).rowcount)


def search(connection: Connection, study_instance_uid: str) -> None:
    """Let the priors of this study's patient be looked for, once; of a prior they are not."""
    if connection.scalar(sa.select(is_prior(study_instance_uid))):
        return
    new = postgresql.insert(prior_search).values(study_instance_uid=study_instance_uid, state="due")
    connection.execute(new.on_conflict_do_nothing())


def nudge_searches(connection: Connection, *, every: timedelta) -> list[int]:
    """The due searches nobody was told of within ``every``."""
    return nudges.mark(connection, prior_search, _SEARCHABLE, every=every)


def begin_search(connection: Connection, search_id: int) -> Search | None:
    """Begin; should this process die, somebody begins again. ``None``: it is done, or begun."""
    row = (
        connection.execute(
            sa.update(prior_search)
            .where(prior_search.c.id == search_id, _SEARCHABLE)
            .values(attempts=prior_search.c.attempts + 1, due_at=func.now() + _SEARCH_LEASE)
            .returning(prior_search, (func.now() - prior_search.c.created_at).label("age"))
        )
        .mappings()
        .one_or_none()
    )
    return Search(**{name: row[name] for name in Search.__dataclass_fields__}) if row else None


def searched(connection: Connection, begun: Search, reason: str) -> None:
    """All peers were asked."""
    _end_search(connection, begun, "searched", reason)


def search_failed(connection: Connection, begun: Search, reason: str) -> None:
    """They can't be asked: the study has no priors of theirs."""
    _end_search(connection, begun, "failed", reason)


def search_later(connection: Connection, begun: Search, delay: timedelta, reason: str) -> None:
    """A peer is away: again after ``delay``."""
    connection.execute(
        sa.update(prior_search)
        .where(prior_search.c.id == begun.id, prior_search.c.state == "due")
        .values(due_at=func.now() + delay, nudged_at=None, reason=reason)
    )


def _end_search(connection: Connection, begun: Search, state: str, reason: str) -> None:
    ended = connection.execute(
        sa.update(prior_search)
        .where(prior_search.c.id == begun.id, prior_search.c.state == "due")
        .values(state=state, reason=reason)
    ).rowcount
    if ended:
        events.append(connection, begun.study_instance_uid, "priors", None, state, reason)


# -- looking ---------------------------------------------------------------------------------------


def of_study(connection: Connection, study_instance_uid: str) -> Fetch | None:
    """How this study came, or will."""
    rows = connection.execute(_FETCH.where(fetch.c.study_instance_uid == study_instance_uid))
    found = rows.mappings().one_or_none()
    return _fetch(found) if found else None


def priors_of(connection: Connection, study_instance_uid: str) -> list[Fetch]:
    """What was or will be fetched for this study, newest first."""
    rows = connection.execute(
        _FETCH.where(fetch.c.prior_of == study_instance_uid).order_by(fetch.c.study_date.desc())
    )
    return [_fetch(row) for row in rows.mappings()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What does not come from a peer."""

    peer: str
    failed: int
    waiting: int  #: tried so often that somebody should look
    reason: str  #: the latest


def troubles(connection: Connection, *, attempts: int) -> list[Trouble]:
    """The peers from which studies failed to come, or do since ``attempts`` attempts."""
    failed = fetch.c.state == "failed"
    waiting = sa.and_(fetch.c.state == "due", fetch.c.attempts >= attempts)
    latest = func.array_agg(
        postgresql.aggregate_order_by(fetch.c.reason, fetch.c.claimed_at.desc())
    )
    rows = connection.execute(
        sa.select(
            fetch.c.peer,
            func.count().filter(failed).label("failed"),
            func.count().filter(waiting).label("waiting"),
            latest.label("reasons"),
        )
        .where(sa.or_(failed, waiting))
        .group_by(fetch.c.peer)
        .order_by(fetch.c.peer)
    )
    return [
        Trouble(
            peer=row.peer,
            failed=row.failed,
            waiting=row.waiting,
            reason=row.reasons[0] or "unknown",
        )
        for row in rows
    ]
