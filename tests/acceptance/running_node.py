"""A whole node as an administrator runs it: ``dicom-node run --config F`` and its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil

from dicom_node import account, config, status
from dicom_node.cli import wiring
from dicom_node.config import Peer, Settings
from dicom_node.db import Database
from dicom_node.errors import NotFound, OutOfResources
from dicom_node.supervisor import dies_with_us
from tests.ports import free_port

MODALITY = "MODALITY"
SWEEP_SECONDS = 3

#: Seconds; far above what a loaded machine needs, so that only a fault reaches them.
START_SECONDS = 180.0
STOP_SECONDS = 90.0
#: Per study: the demo model takes about half a second on two idle cores.
STUDY_SECONDS = 15.0

#: The parts of a running node, and the words of the command line that tell them apart.
PARTS = {
    "serve": "serve",
    "gpu worker": "gpu",
    "net worker": "net",
    "postgres": "-D",
    "valkey": "unixsocket",
}

T = TypeVar("T")

_CONFIG = f"""\
[node]
port = {{port}}
host = "127.0.0.1"
data = "{{data}}"

[model]
name = "demo"

[study]
ready_seconds = 1
quiet_seconds = 3

[jobs]
lease_seconds = 5
sweep_seconds = {SWEEP_SECONDS}
first_retry_seconds = 1
longest_retry_seconds = 2

[reports]
hl7_host = "127.0.0.1"
hl7_port = {{hl7_port}}

[[peers]]
name = "modality"
ae_title = "{MODALITY}"
host = "127.0.0.1"
roles = ["source"]

[[peers]]
name = "ris"
protocol = "hl7"
host = "127.0.0.1"
roles = ["source"]

[[peers]]
name = "pacs"
ae_title = "{{pacs_title}}"
host = "127.0.0.1"
port = {{pacs_port}}
roles = ["source", "destination"]
proof = "find"
"""


def wait_for(what: str, seconds: float, question: Callable[[], T | None]) -> T:
    """Ask until the answer is not ``None``; a database that is away is no answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = question()
        except OutOfResources:
            answer = None
        if answer is not None:
            return answer
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.2)


class RunningNode:
    """The node below ``home``; it may be killed and started again."""

    def __init__(self, home: Path, *, pacs_title: str, pacs_port: int, more: str = "") -> None:
        """``more``: more peers, as TOML."""
        self.home = home
        self.data = home / "data"
        self.file = home / "dicom-node.toml"
        text = _CONFIG.format(
            port=free_port(),
            hl7_port=free_port(),
            data=self.data,
            pacs_title=pacs_title,
            pacs_port=pacs_port,
        )
        self.file.write_text(text + more, "utf-8")
        self.settings: Settings = config.load(self.file, {}, {})
        self._run: subprocess.Popen[bytes] | None = None
        self._database: Database | None = None

    # -- processes -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start ``dicom-node run``; it is not waited for."""
        command = [sys.executable, "-m", "dicom_node.cli", "run", "--config", str(self.file)]
        with (self.home / "run.log").open("ab") as log:
            self._run = subprocess.Popen(
                # Should pytest be killed, the node goes too.
                dies_with_us(command, signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> int:
        """Stop by SIGTERM; the exit code."""
        if self._database is not None:
            self._database.dispose()
        if self._run is None:
            return 0
        tree = self.tree()
        self._run.terminate()
        try:
            return self._run.wait(STOP_SECONDS)
        finally:
            _kill(tree)
            self._run.wait()

    def run(self) -> psutil.Process:
        """``dicom-node run`` itself."""
        assert self._run is not None
        return psutil.Process(self._run.pid)

    def tree(self) -> list[psutil.Process]:
        """``run`` and everything below it."""
        try:
            run = self.run()
            return [run, *run.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def find(self, part: str) -> psutil.Process | None:
        """A part's process (of :data:`PARTS`), ``None`` while it does not run."""
        try:
            children = self.run().children()
        except psutil.NoSuchProcess:
            return None
        return next((child for child in children if _is(child, part)), None)

    def process(self, part: str) -> psutil.Process:
        """The same, waited for."""
        return wait_for(f"{part} runs", START_SECONDS, lambda: self.find(part))

    def kill(self, part: str) -> None:
        """``kill -9`` one part; ``run``: the supervisor alone; ``everything``: all at once."""
        if part in PARTS:
            self.process(part).kill()
            return
        # Stopped first, or the supervisor would replace what dies before it.
        victims = self.tree() if part == "everything" else [self.run()]
        self.run().suspend()
        _kill(victims)
        assert self._run is not None
        self._run.wait()
        self.start()

    def logs(self) -> str:
        """The last lines of every log."""
        files = [self.home / "run.log", *sorted((self.data / "log").glob("*.log"))]
        return "\n".join(f"{file}:\n{_tail(file)}" for file in files)

    # -- what it says --------------------------------------------------------------------------

    def cli(
        self, *arguments: str, check: bool = True, config: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one ``dicom-node`` command, on this node's configuration unless another is given."""
        command = [sys.executable, "-m", "dicom_node.cli", *arguments]
        command += ["--config", str(config or self.file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"{arguments}: {done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *arguments: str, check: bool = True) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        document: dict[str, Any] = json.loads(self.cli(*arguments, "--json", check=check).stdout)
        return document

    @property
    def database(self) -> Database:
        """The node's own database."""
        if self._database is None:
            self._database = wiring.database(self.settings)
        return self._database

    @property
    def peer(self) -> Peer:
        """This node as others call it."""
        node = self.settings.node
        return Peer(
            name="node",
            ae_title=node.ae_title,
            host=("127.0.0.1",),
            port=node.port,
            roles=("destination",),
        )

    def status(self) -> dict[str, Any]:
        """The document of ``status --json``, without a process of its own."""
        return status.to_json(status.snapshot(self.database, self.settings))

    def study(self, study_instance_uid: str) -> dict[str, Any] | None:
        """The document of ``study --json``, without a process of its own."""
        try:
            with self.database.transaction() as connection:
                return account.to_json(account.of(connection, study_instance_uid))
        except NotFound:
            return None

    def wait_healthy(self) -> None:
        """Until every part runs and nobody needs to do anything."""
        wait_for(f"healthy, see {self.home}", START_SECONDS, lambda: self._healthy() or None)

    def _healthy(self) -> bool:
        if any(self.find(part) is None for part in PARTS):
            return False
        found = self.status()
        return bool(found["healthy"])

    def wait_ended(self, *study_instance_uids: str) -> list[dict[str, Any]]:
        """Until the studies are complete and nothing of them is under way; their accounts."""
        seconds = START_SECONDS + STUDY_SECONDS * len(study_instance_uids)
        return [
            wait_for(f"study {uid} ends", seconds, lambda uid=uid: self._ended(uid))  # type: ignore[misc]
            for uid in study_instance_uids
        ]

    def _ended(self, study_instance_uid: str) -> dict[str, Any] | None:
        found = self.study(study_instance_uid)
        return found if found is not None and _is_ended(found) else None


def _is_ended(found: dict[str, Any]) -> bool:
    deliveries = [one for draft in found["drafts"] for one in draft["deliveries"]]
    return (
        found["state"] == "complete"
        and bool(found["jobs"])
        and all(one["state"] in ("drafted", "refused", "failed") for one in found["jobs"])
        and all(one["state"] in ("delivered", "failed", "dropped") for one in deliveries)
    )


@contextmanager
def running(
    home: Path, *, pacs_title: str, pacs_port: int, more: str = ""
) -> Iterator[RunningNode]:
    """A healthy node; all its processes are gone afterwards."""
    node = RunningNode(home, pacs_title=pacs_title, pacs_port=pacs_port, more=more)
    try:
        node.start()
        node.wait_healthy()
        yield node
    except BaseException:
        print(node.logs())  # pytest shows it with the failure
        raise
    finally:
        code = node.stop()
    assert code == 0, f"run ended with exit code {code}, see {home}/run.log"
    assert mentioning(home) == []


def mentioning(folder: Path) -> list[str]:
    """Command lines of the processes that work on a folder: it is in their words or their cwd."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if str(folder) in " ".join((*words, process.cwd())):
                found.append(" ".join(words))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def _is(process: psutil.Process, part: str) -> bool:
    try:
        # Valkey writes its whole title into its first word.
        words = " ".join(process.cmdline()).split()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    # unshare, flock and setpriv come before the program they become.
    program = os.path.basename(words[0]) if words else ""
    ours = program.startswith("python") and "dicom_node.cli" in words
    server = program == "postgres" or program.startswith("valkey")
    return (ours or server) and any(word.startswith(PARTS[part]) for word in words)


def _tail(file: Path, lines: int = 15) -> str:
    return "\n".join(file.read_text("utf-8", errors="replace").splitlines()[-lines:])


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
