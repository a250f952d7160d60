"""What all HTTP destinations share: where they are, how we log in, and why a call failed."""

from __future__ import annotations

import ssl
from base64 import b64encode
from contextlib import suppress
from http.client import HTTPException
from urllib.parse import SplitResult, urlsplit

from dicom_node import tls as node_tls
from dicom_node.config import Peer, Tls
from dicom_node.errors import ConfigurationError, PeerError


def base(peer: Peer) -> SplitResult:
    """Where its resources begin, in parts.

    Raises
    ------
    ConfigurationError
        The url names no host, or a user. It is not shown: there may be a password in it.
    """
    with suppress(ValueError):  # a port that is none, a bracket too many
        found = urlsplit(peer.url)
        if found.hostname and found.port != 0 and not found.username and not found.query:
            return found
    raise ConfigurationError(f'peer {peer.name}: url is not of the form "https://host:port/path"')


def headers(peer: Peer, calling_ae_title: str) -> dict[str, str]:
    """Who we are, and what lets us in (RFC 7617, 6750)."""
    who = {"User-Agent": calling_ae_title}
    if peer.token:
        return {**who, "Authorization": f"Bearer {peer.token}"}
    if peer.username:
        login = b64encode(f"{peer.username}:{peer.password}".encode()).decode()
        return {**who, "Authorization": f"Basic {login}"}
    return who


def context(peer: Peer, tls: Tls | None) -> ssl.SSLContext:
    """Whom we trust at this peer; read for every call, so that new files need no restart.

    Raises
    ------
    PeerError
        A file can't be used. Not for good: it is read again next time.
    """
    try:
        return node_tls.https_context(tls or Tls(), peer.authorities)
    except ConfigurationError as error:
        raise PeerError(f"{who(peer)} can't be called by TLS: {error}") from error


def why(error: BaseException, *, late: bool) -> str:
    """Why there is no answer, of one of few kinds: what the server sent is not quoted."""
    if late or isinstance(error, TimeoutError):
        return "did not answer in time"
    if isinstance(error, ssl.SSLError):
        return f"can't be reached by TLS: {node_tls.explain(error)}"
    if isinstance(error, ConnectionError | HTTPException):
        return f"refused the connection, closed it or gave no HTTP ({type(error).__name__})"
    return f"can't be reached: {getattr(error, 'strerror', None) or type(error).__name__}"


def who(peer: Peer) -> str:
    """The peer, for messages."""
    return f"{peer.name} ({peer.url})"
