"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

#: Below those that the kernel gives to connections (ip(7), ip_local_port_range): one of those may
#: be taken, by a test beside this one, before the server that it was found for has bound it.
_PORTS = range(20_000, 32_768)


def free_port() -> int:
    """A port nobody listens on just now."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
