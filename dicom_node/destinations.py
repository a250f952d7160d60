"""Where results go: the destination that speaks a peer's protocol."""

from __future__ import annotations

from importlib.metadata import entry_points

from dicom_node.config import Peer, Tls
from dicom_node.errors import ConfigurationError, NodeError
from dicom_node.scu import Destination, Timeouts

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
        Our certificates; only a peer with ``tls = true`` is told of them.

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
        certificates = {"tls": tls} if peer.tls else {}
        made: Destination = kind(peer, calling_ae_title, timeouts, **certificates)
    except NodeError:
        raise
    except Exception as error:  # foreign code may raise anything
        why = f"what speaks {peer.protocol} can't be loaded: {type(error).__name__}"
        raise ConfigurationError(f"peer {peer.name}: {why}") from error
    return made
