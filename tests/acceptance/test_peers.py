"""Who is turned away is listed and explained, and what `doctor` says lets it in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dicom_node import scu
from dicom_node.config import Peer
from dicom_node.errors import PeerError
from dicom_node.supervisor import dies_with_us
from tests.acceptance.running_node import START_SECONDS, wait_for
from tests.ports import free_port

VERIFICATION = "1.2.840.10008.1.1"

_CONFIG = """\
[node]
port = {port}
host = "127.0.0.1"
data = "{data}"

[database]
url = "{database_url}"

[broker]
url = "redis://127.0.0.1:{nobody}/0"

[[peers]]
name = "ct"
ae_title = "CT"
host = "192.0.2.7"
roles = ["source"]

[[peers]]
name = "pacs"
ae_title = "PACS"
query_ae_title = "PACSQR"
host = ["127.0.0.1", "192.0.2.8"]
roles = ["source"]

[[peers]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
roles = ["source"]
"""


class Site:
    """A configuration file, and the ``dicom-node serve`` that reads it."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.port = free_port()
        self.file = folder / "dicom-node.toml"
        self._log = folder / "serve.log"
        text = _CONFIG.format(
            port=self.port, nobody=free_port(), data=folder / "data", database_url=database_url
        )
        self.file.write_text(text, "utf-8")

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A node that answers."""
        with self._log.open("ab") as log:
            command = dies_with_us(self._command("serve"), signal.SIGTERM)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            what = f"serve answers, see {self._log}"
            wait_for(what, START_SECONDS, lambda: self.lets_in("PACS") or None)
            yield
        finally:
            process.terminate()
            process.wait(START_SECONDS)

    def lets_in(self, calling_ae_title: str, called_ae_title: str = "DICOMNODE") -> bool:
        """Does it answer C-ECHO?"""
        here = Peer(name="node", ae_title=called_ae_title, host=("127.0.0.1",), port=self.port)
        try:
            scu.echo(here, calling_ae_title)
        except PeerError:
            return False
        return True

    def json(self, command: str) -> Any:
        """The document that ``--json`` prints; there are faults, so the exit code is 1."""
        done = subprocess.run(
            [*self._command(command), "--json"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        return json.loads(done.stdout)

    def refused(self) -> dict[str, dict[str, Any]]:
        """What ``status`` lists, by calling AE title."""
        listed = self.json("status")["refused_associations"]
        return {one["calling_ae_title"]: one for one in listed}

    def _command(self, verb: str) -> list[str]:
        return [sys.executable, "-m", "dicom_node.cli", verb, "--config", str(self.file)]


@pytest.fixture
def site(tmp_path: Path, fresh_database_url: str) -> Site:
    return Site(tmp_path, fresh_database_url)


def test_who_is_turned_away_is_listed_explained_and_let_in_by_the_fix(site: Site) -> None:
    with site.serving():
        assert site.lets_in("PACSQR")
        turned_away = [("NEW", "DICOMNODE"), ("CT", "DICOMNODE"), ("ARCHIVE", "ELSEWHERE")]
        assert not any(site.lets_in(*titles) for titles in turned_away)

        def listed() -> dict[str, dict[str, Any]] | None:
            found = site.refused()  # written down within a second
            return found if len(found) == len(turned_away) else None

        found = wait_for("all are listed", START_SECONDS, listed)
        checks = {one["name"]: one for one in site.json("doctor")["checks"]}

    assert {title: one["code"] for title, one in found.items()} == {
        "NEW": "unknown-title",
        "CT": "wrong-address",
        "ARCHIVE": "wrong-called-title",
    }
    assert all(one["contexts"] == [VERIFICATION] for one in found.values())
    assert {one["address"] for one in found.values()} == {"127.0.0.1"}

    new, moved = checks["caller NEW at 127.0.0.1"]["fix"], checks["from ct"]["fix"]
    assert moved == 'peer ct: host = ["192.0.2.7", "127.0.0.1"]'
    assert 'called AE title "DICOMNODE"' in checks["from archive"]["fix"]

    text = site.file.read_text("utf-8")
    text = text.replace('host = "192.0.2.7"', moved.removeprefix("peer ct: "))
    site.file.write_text(f"{text}\n{new}\n", "utf-8")
    with site.serving():
        assert site.lets_in("NEW")
        assert site.lets_in("CT")
        checks = {one["name"]: one for one in site.json("doctor")["checks"]}
    assert checks["from ct"]["passed"]
    assert checks["from new"]["passed"]
    assert not checks["from archive"]["passed"]
    assert not [name for name in checks if name.startswith("caller")]
