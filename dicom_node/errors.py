"""What can go wrong in the node, as a tree.

    NodeError
      ConfigurationError        a setting is wrong; names the key and the nearest known one
      OutOfResources            disk, database or broker away; a later attempt may work  0xA700
      WrongSopClass             data set does not match what the command said            0xA900
      CannotUnderstand          data set can't be filed                                  0xC000
      NotAuthorised             the caller may not ask for this                          0x0124
      Unreadable                a stored object can't be read any more
      PeerError                 another node: unreachable, rejected us, refused an object
        PeerRefused             ... with a status that a later attempt will not change
        NotSupported            ... takes no objects of this kind; another kind may go
        Unproven                ... took the object and can't be asked whether it has it
      NotFound                  the thing asked for is not here

Errors are caught at three borders only: SCP handler (becomes a DIMSE status), task (becomes a job
or delivery state), CLI (one line, exit code 1). Messages carry UIDs and job
ids, never patient data.
"""

from __future__ import annotations

import traceback


class NodeError(Exception):
    """Something went wrong in the node."""

    retry = False  #: may a later attempt succeed?
    dimse_status = 0x0110  #: PS3.7 C.5.10, Processing Failure
    code = "node"  #: stable word for job and delivery reasons


class ConfigurationError(NodeError):
    """A setting is missing, unknown or wrong."""

    code = "configuration"


class OutOfResources(NodeError):
    """Refused: out of resources."""

    retry = True
    dimse_status = 0xA700  # PS3.4 B.2.3
    code = "resources"


class WrongSopClass(NodeError):
    """Data set does not match SOP class or instance named in the command."""

    dimse_status = 0xA900  # PS3.4 B.2.3
    code = "sop-class"


class CannotUnderstand(NodeError):
    """The data set can't be parsed or lacks what filing needs."""

    dimse_status = 0xC000  # PS3.4 B.2.3
    code = "cannot-understand"


class NotAuthorised(NodeError):
    """Refused: not authorised."""

    dimse_status = 0x0124  # PS3.7 C.5.13
    code = "not-authorised"


class Unreadable(NodeError):
    """A stored object can't be read."""

    code = "unreadable"


class PeerError(NodeError):
    """A peer could not be reached, rejected the association or refused an object for now."""

    retry = True
    code = "peer"

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status  #: the peer's DIMSE status, if one came back


class PeerRefused(PeerError):
    """The peer refused an object for good (PS3.4 B.2.3: 0xA9xx, 0xCxxx, 0x01xx)."""

    retry = False
    code = "peer.refused"


class NotSupported(PeerError):
    """The peer takes no objects of this kind (until somebody configures it to)."""

    code = "peer.unsupported"


class Unproven(PeerError):
    """The peer answered success to an object, and that it has it is not proven."""

    code = "peer.unproven"


class NotFound(NodeError):
    """What was asked for is not here."""

    code = "not-found"


def trace(error: BaseException) -> str:
    """Where an unexpected exception came from: frames and types, never the message.

    A foreign library's message may quote the value it choked on, and that may be a patient's name.
    """
    parts = []
    current: BaseException | None = error
    while current is not None:
        frames = "".join(traceback.format_tb(current.__traceback__))
        parts.append(f"{frames}{type(current).__module__}.{type(current).__qualname__}")
        current = current.__cause__ or current.__context__
    return "\ncaused by\n".join(parts)
