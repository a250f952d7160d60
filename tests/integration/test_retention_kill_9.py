"""``kill -9`` of whoever deletes, before each of its steps: no row claims what is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_node import db
from dicom_node.db import Database
from tests.dicom_node.retained import Site, open_site

pytestmark = pytest.mark.alone

AGED, FORGOTTEN, UNFINISHED = "2.25.1", "2.25.2", "2.25.3"

# For each line "STEP FOLDER" a process that dies before its STEP-th commit or change of the disk.
DELETER = """
import os, signal, sys
from pathlib import Path
import sqlalchemy as sa
from dicom_node import retention
from dicom_node.config import Disk, Retention, Settings
from dicom_node.db import Database
from dicom_node.disk import Watermarks
from dicom_node.storage import Storage

ROOMY = Disk(high_percent=100, low_percent=99.9)

def delete(last, data):
    storage, steps = Storage(data), iter(range(1, last))

    def step(*arguments, **options):
        if next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def after(step_of):
        return lambda *arguments, **options: (step(), step_of(*arguments, **options))[1]

    for name in ("unlink", "rmdir", "fsync"):
        setattr(os, name, after(getattr(os, name)))
    sa.event.listen(sa.Engine, "commit", step)
    settings = Settings(retention=Retention(pixels_days=30, metadata_days=365))
    retention.apply(Database(sys.argv[1]), storage, settings, Watermarks(data, ROOMY))
    os._exit(0)

for line in sys.stdin:
    last, data = line.split()
    child = os.fork()
    if not child:
        delete(int(last), Path(data))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Deleter:
    """Processes that delete and are killed while they do."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def killed_before(self, step: int, data: Path) -> bool:
        """Delete below ``data``; was there such a step?"""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(step, data, file=stdin, flush=True)
        code = int(stdout.readline())
        assert code in (0, -signal.SIGKILL)
        return code != 0


@pytest.fixture
def deleter(fresh_database_url: str) -> Iterator[Deleter]:
    command = [sys.executable, "-c", DELETER, fresh_database_url]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Deleter(process)
        finally:
            process.kill()


@pytest.fixture
def database(fresh_database_url: str) -> Iterator[Database]:
    opened = Database(fresh_database_url)
    yield opened
    opened.dispose()


def prepared(database: Database, data: Path) -> Site:
    """One study whose pixels are due, one that is due altogether, and one that is unfinished."""
    tables = [one.name for one in db.metadata.sorted_tables if one is not db.installation]
    with database.transaction() as connection:
        connection.execute(sa.text(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY"))
    site = open_site(database, data)
    site.finished(FORGOTTEN)
    site.pass_days(360)
    site.apply()
    site.receive(AGED)
    site.finished(AGED)
    site.receive(UNFINISHED)
    site.draft(UNFINISHED, "due")
    site.pass_days(31)
    return site


def check(site: Site) -> None:
    """After a kill, and again when the next process has finished what it began."""
    for _ in range(2):
        instances, drafts = site.claimed_files()
        assert instances | drafts <= site.files()
        assert not site.deleted(UNFINISHED)
        site.apply()
    assert site.deleted(AGED)
    assert site.state(FORGOTTEN) is None
    assert {one.split("/")[1] for one in site.files()} == {AGED, UNFINISHED}
    assert site.files() == set.union(*site.claimed_files())


def test_a_deleter_that_is_killed_anywhere_leaves_no_row_that_claims_what_is_gone(
    database: Database, deleter: Deleter, tmp_path: Path
) -> None:
    step, killed = 0, True
    while killed:
        step += 1
        site = prepared(database, tmp_path / str(step))
        killed = deleter.killed_before(step, tmp_path / str(step))
        check(site)
        site.close()
    assert step > 15  # or it did not do what it should
