"""A hospital's authority and the certificates it gives, made for a test by the openssl command."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dicom_node.config import Tls

BOTH_ROLES = "serverAuth,clientAuth"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """PEM files of one machine."""

    certificate: Path
    private_key: Path

    def settings(self, authority: Authority, port: int = 2762) -> Tls:
        """The section [tls] of a node with this certificate."""
        return Tls(
            port=port,
            certificate=str(self.certificate),
            private_key=str(self.private_key),
            authorities=str(authority.certificate),
        )


@dataclass
class Authority:
    """Signs certificates; its own is ``certificate``."""

    folder: Path
    name: str = "Hospital CA"
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        """Make its own key and certificate."""
        if not shutil.which("openssl"):
            say = pytest.fail if os.environ.get("CI") else pytest.skip
            say("openssl is not installed")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self._key = self.folder / "ca.pem", self.folder / "ca.key"
        words = ["req", "-x509", *_new_key("ec"), "-keyout", str(self._key)]
        openssl(*words, "-out", str(self.certificate), "-days", "3650", "-subj", f"/CN={self.name}")

    @property
    def own(self) -> Certificate:
        """Its own certificate, as a machine that signs for itself would show it."""
        return Certificate(certificate=self.certificate, private_key=self._key)

    def issue(
        self,
        *,
        host: str = "IP:127.0.0.1",
        days: int = 365,
        usage: str = BOTH_ROLES,
        kind: str = "ec",
    ) -> Certificate:
        """A new key and a certificate for it.

        Parameters
        ----------
        host
            subjectAltName, such as ``IP:127.0.0.1`` or ``DNS:pacs.example``.
        days
            Until it ends; a negative number: it ended then.
        usage
            extendedKeyUsage.
        kind
            ``ec`` (P-256), ``rsa:3072`` and the like.
        """
        stem = self.folder / f"certificate-{next(self._numbers)}"
        certificate, private_key = stem.with_suffix(".pem"), stem.with_suffix(".key")
        request = stem.with_suffix(".csr")
        extensions = ["-addext", f"subjectAltName={host}", "-addext", f"extendedKeyUsage={usage}"]
        words = ["req", *_new_key(kind), "-keyout", str(private_key), "-out", str(request)]
        openssl(*words, "-subj", "/CN=a node", *extensions)
        words = ["x509", "-req", "-in", str(request), "-out", str(certificate)]
        words += ["-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial"]
        openssl(*words, "-days", str(days), "-copy_extensions", "copy")
        return Certificate(certificate=certificate, private_key=private_key)


def openssl(*words: str) -> None:
    """Run one openssl command."""
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"openssl {' '.join(words)}: {done.stderr}"


def _new_key(kind: str) -> list[str]:
    curve = ["-pkeyopt", "ec_paramgen_curve:prime256v1"] if kind == "ec" else []
    return ["-newkey", kind, *curve, "-nodes"]
