"""The hospital beside the repository: Orthanc, dcmtk, OHIF, driven through their own scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[3] / "shared" / "hospital"
TOOLS = ("Orthanc", "dcmsend", "dsrdump", "dsr2html", "dciodvfy")
AE_TITLE = "ORTHANC"


def missing() -> str | None:
    """Why there is no hospital here."""
    if not SCRIPTS.is_dir():
        return f"{SCRIPTS} is not here"
    absent = [tool for tool in TOOLS if not _installed(tool)]
    return f"not installed: {', '.join(absent)} ({SCRIPTS}/install.sh)" if absent else None


def _installed(tool: str) -> bool:
    return bool(shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin"))


class Hospital:
    """A running PACS below a folder."""

    def __init__(self, folder: Path, *, port: int, node: str, viewer: bool) -> None:
        """``node``: the node under test, AE@host:port."""
        self._folder = folder
        self._node = node
        arguments = [] if viewer else ["--no-viewer"]
        self.run("up", "--aet", AE_TITLE, "--dicom-port", str(port), "--node", node, *arguments)

    def run(self, *arguments: str, check: bool = True) -> str:
        """One command of pacs.py; what it said."""
        return self._script("pacs.py", *arguments, check=check)

    def viewer(self, *arguments: str) -> str:
        """One command of viewer.py; fails where the page did not render."""
        return self._script("viewer.py", *arguments, check=True)

    def send_all(self) -> str:
        """The PACS sends every study it has to the node."""
        return self.run("send", "all", "--to", self._node)

    def studies(self) -> dict[str, dict[str, Any]]:
        """What the PACS holds, by Study Instance UID."""
        return {one["study"]: one for one in json.loads(self.run("list", "--json"))}

    def drafts(self, study_instance_uid: str) -> list[dict[str, Any]]:
        """The SR series of one study."""
        series = self.studies()[study_instance_uid]["series"]
        return [one for one in series if one["modality"] == "SR"]

    def down(self) -> None:
        """Stop everything and remove what it wrote."""
        self.run("down", "--purge")

    def _script(self, name: str, *arguments: str, check: bool) -> str:
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / name), *arguments],
            env=os.environ | {"HOSPITAL_RUN": str(self._folder)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        said = f"{done.stdout}{done.stderr}"
        assert done.returncode == 0 or not check, f"{name} {arguments}: {said}"
        return done.stdout
