"""Where results go: the destination that speaks a peer's protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from dicom_node import scu
from dicom_node.config import Peer, Tls
from dicom_node.errors import ConfigurationError, NodeError, PeerError, Unreadable
from dicom_node.scu import Destination, Outcome, Timeouts

GROUP = "dicom_node.destinations"  #: entry points, by protocol


def open_destination(
    peer: Peer, calling_ae_title: str, timeouts: Timeouts | None = None, tls: Tls | None = None
) -> Destination:
    """Return the destination for a peer; nothing is connected yet.

    Parameters
    ----------
    peer
        Whom to call, and in which protocol.
    calling_ae_title
        Who we are.
    timeouts
        How long to wait.
    tls
        Our certificates; only a peer that is called by TLS or HTTPS is told of them.

    Raises
    ------
    ConfigurationError
        Nobody who speaks the protocol is installed or can be loaded, or the peer's address is none.
    """
    found = entry_points(group=GROUP, name=peer.protocol)
    if not found:
        known = ", ".join(sorted(one.name for one in entry_points(group=GROUP)))
        raise ConfigurationError(
            f"peer {peer.name}: nobody installed speaks {peer.protocol} (known: {known})"
        )
    try:
        kind = next(iter(found)).load()
        secure = peer.tls or peer.url.startswith("https:")
        certificates = {"tls": tls} if secure else {}
        made: Destination = kind(peer, calling_ae_title, timeouts, **certificates)
    except NodeError:
        raise
    except Exception as error:  # foreign code may raise anything
        why = f"what speaks {peer.protocol} can't be loaded: {type(error).__name__}"
        raise ConfigurationError(f"peer {peer.name}: {why}") from error
    return made


def send_files(
    files: Sequence[Path],
    peer: Peer,
    calling_ae_title: str,
    progress: Callable[[Outcome], None] = lambda outcome: None,
    tls: Tls | None = None,
) -> list[Outcome]:
    """Send files as they are: by C-STORE over few associations, or by STOW-RS one by one.

    Returns
    -------
    list of Outcome
        One per file. A failure of one file does not stop the others.

    Raises
    ------
    ConfigurationError
        The peer takes no DICOM objects.
    """
    if peer.protocol == "dicom":
        return scu.send_files(files, peer, calling_ae_title, progress, tls=tls)
    if peer.protocol != "dicomweb":
        raise ConfigurationError(f"peer {peer.name} speaks {peer.protocol}: it takes no DICOM")
    destination = open_destination(peer, calling_ae_title, tls=tls)
    outcomes = []
    for file in files:
        outcomes.append(_outcome(destination, file))
        progress(outcomes[-1])
    return outcomes


def _outcome(destination: Destination, file: Path) -> Outcome:
    try:
        return Outcome(path=file, status=destination.send(file), failure=None)
    except PeerError as error:
        return Outcome(path=file, status=error.status, failure=str(error))
    except Unreadable as error:
        return Outcome(path=file, status=None, failure=str(error))
