"""rsyslog as a collector, by UDP and by TLS on one port (Debian: rsyslog, rsyslog-gnutls)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.dicom_node.certificates import Authority
from tests.ports import free_port

_START_SECONDS = 60.0

_CONFIGURATION = """
global(
    maxMessageSize="64k" workDirectory="{folder}" DefaultNetstreamDriver="gtls"
    DefaultNetstreamDriverCAFile="{authority}" DefaultNetstreamDriverCertFile="{certificate}"
    DefaultNetstreamDriverKeyFile="{private_key}"
)
module(load="imudp")
module(
    load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1"
    StreamDriver.AuthMode="x509/certvalid"
)
input(type="imudp" address="127.0.0.1" port="{port}")
input(type="imtcp" address="127.0.0.1" port="{port}")
template(name="line" type="string" string="%pri% %app-name% %msgid% %msg%\\n")
if $app-name == "dicom-node" then action(type="omfile" file="{file}" template="line")
"""


class Rsyslog:
    """A collector whose file is read."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        if not shutil.which("rsyslogd") or not list(Path("/usr/lib").rglob("lmnsd_gtls.so")):
            say = pytest.fail if os.environ.get("CI") else pytest.skip
            say("rsyslog and rsyslog-gnutls are not installed")
        self.port = free_port()
        self._folder = folder
        self._file = folder / "collected"
        own = authority.issue()
        text = _CONFIGURATION.format(
            folder=folder,
            authority=authority.certificate,
            certificate=own.certificate,
            private_key=own.private_key,
            port=self.port,
            file=self._file,
        )
        (folder / "rsyslog.conf").write_text(text, "utf-8")

    @contextmanager
    def running(self) -> Iterator[Rsyslog]:
        """It listens; it is gone afterwards."""
        files = ["-f", str(self._folder / "rsyslog.conf"), "-i", str(self._folder / "pid")]
        process = subprocess.Popen(["rsyslogd", "-n", *files], stderr=subprocess.DEVNULL)
        try:
            _until(self._listens, _START_SECONDS)
            yield self
        finally:
            process.terminate()
            process.wait()

    def wait(self, lines: Sequence[str], seconds: float) -> None:
        """Until these are the last lines it has written."""
        _until(lambda: self._lines()[-len(lines) :] == list(lines), seconds)

    def _lines(self) -> list[str]:
        with suppress(FileNotFoundError):
            return self._file.read_text("utf-8").splitlines()
        return []

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain for rsyslog"
        time.sleep(0.05)
