"""``dicom-node status --json`` beside the least that Python needs for one question to Postgres.

    python -m bench.status [--studies 1000] [--runs 15] [--json]

An embedded PostgreSQL in a temporary folder, filled with studies, one job, draft and delivery each.
The peer is a Python that imports SQLAlchemy and psycopg and asks ``SELECT 1``: what is above it is
ours. Both are fresh processes, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

from dicom_node import db
from dicom_node.embedded import Postgres
from dicom_node.supervisor import Supervisor

_FLOOR = """
import sys, sqlalchemy as sa
sa.create_engine(sys.argv[1]).connect().scalar(sa.text('SELECT 1'))
"""

_FILL = """
INSERT INTO study (study_instance_uid, state, revision, patient_key)
    SELECT '2.25.' || n, 'complete', 1, md5(n::text) FROM generate_series(1, :studies) n;
INSERT INTO job (study_instance_uid, revision, model, state)
    SELECT study_instance_uid, 1, 'demo', 'drafted' FROM study;
INSERT INTO draft (sop_instance_uid, series_instance_uid, sop_class_uid, study_instance_uid, job_id,
                   model, kind, version, text, inputs, record, path, sha256)
    SELECT study_instance_uid || '.1', study_instance_uid || '.2', '', study_instance_uid, id,
           'demo', 'text_sr', 1, 'Clear lungs.', '[]', '{}', '', '' FROM job;
INSERT INTO delivery (draft_uid, peer, state, sent_at, sent_uid)
    SELECT sop_instance_uid, 'pacs', 'delivered', now(), sop_instance_uid FROM draft;
ANALYZE;
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Supervisor() as supervisor:
        postgres = Postgres(Path(folder))
        supervisor.start(postgres)
        db.upgrade(postgres.url)
        fill(postgres.url, arguments.studies)
        ours, floor = measured(postgres.url, arguments.runs)
    figures = {
        "studies": arguments.studies,
        "runs": arguments.runs,
        "status_seconds": round(ours, 3),
        "floor_seconds": round(floor, 3),
        "ratio": round(ours / floor, 2),
    }
    print(json.dumps(figures) if arguments.json else _as_text(figures))


def fill(url: str, studies: int) -> None:
    """Make the rows of so many studies that were read and delivered."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in _FILL.split(";"):
            if statement.strip():
                values = {"studies": studies} if ":studies" in statement else {}
                connection.execute(sa.text(statement), values)
    engine.dispose()


def measured(url: str, runs: int) -> tuple[float, float]:
    """Medians of wall seconds: status, and the floor."""
    environment = {**os.environ, "DICOM_NODE_DATABASE__URL": url}
    status = [sys.executable, "-m", "dicom_node.cli", "status", "--json"]
    floor = [sys.executable, "-c", _FLOOR, url]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for command, seconds in zip((status, floor), times, strict=True):
            began = time.monotonic()
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
            seconds.append(time.monotonic() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def _as_text(figures: dict[str, float]) -> str:
    return (
        f"status --json with {figures['studies']} studies: {figures['status_seconds']} s,"
        f" {figures['ratio']} times the floor of {figures['floor_seconds']} s"
        f" (medians of {figures['runs']})"
    )


if __name__ == "__main__":
    main()
