"""Who answers HL7 v2 over MLLP: take one message, keep it, then acknowledge it.

AA means "durably mine" (file synced *and* row committed), as 0x0000 does for C-STORE. A report
that can't be read is kept too, parked for a person, and answered AE: the sender's log then shows
that it did not get through, and sending it again makes no second row. AR is for what no further
attempt can mend: another kind of message. An address that is no source's is cut off before it is
listened to.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Literal

from dicom_node.errors import ConfigurationError, NodeError, OutOfResources, trace
from dicom_node.reports import hl7_message, read_order, read_oru

logger = logging.getLogger(__name__)

#: In place of a calling AE title, which MLLP has not.
CALLER = "HL7"
#: Bytes of one message; a report has some kilobytes.
MAXIMUM_SIZE = 4 * 2**20
MAXIMUM_CONNECTIONS = 20
#: Senders keep a connection open between messages; seconds without one until it is closed.
IDLE_SECONDS = 900.0

_TAKEN = (read_oru.KIND, *read_order.KINDS)

# HL7 v2.5, transport release 1: a block is <VT> message <FS><CR>; some leave the CR out.
_BEGIN, _END = b"\x0b", b"\x1c"

#: HL7 table 0008: accepted, error, rejected
Code = Literal["AA", "AE", "AR"]
#: Keeps a message durably, or raises.
Take = Callable[[bytes], object]
MayCall = Callable[[str], bool]
#: caller, address, reason
Refused = Callable[[str, str, str], None]


class MllpListener:
    """Takes messages until it is stopped.

    Parameters
    ----------
    address
        Host and port to listen on.
    take
        Keeps a message; called in a thread.
    may_call
        Says whether an IP address is a source's.
    refused
        Told of every caller that is turned away.
    """

    def __init__(
        self, address: tuple[str, int], take: Take, may_call: MayCall, refused: Refused
    ) -> None:
        self._address = address
        self._take = take
        self._may_call = may_call
        self._refused = refused
        self._conversations = 0
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The TCP port that is listened on, once started."""
        if self._server is None:
            raise RuntimeError("the listener is not started")
        return self._server.port

    def start(self) -> None:
        """Listen.

        Raises
        ------
        ConfigurationError
            The port is taken, or the host is not ours.
        """
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server(self._address, family=family)
        except OSError as error:
            raise ConfigurationError(
                f"reports.hl7_host, reports.hl7_port: can't listen on {host}:{port}:"
                f" {error.strerror}"
            ) from error
        self._server = _Server(listening, self._converse)

    def stop(self) -> None:
        """Stop listening; a message that is being kept is kept, and will be sent again."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = _address(writer)
        try:
            if await asyncio.to_thread(self._turned_away, address):
                return
            self._conversations += 1
            try:
                await self._answer(reader, writer)
            finally:
                self._conversations -= 1
        except asyncio.IncompleteReadError as error:
            if error.partial:
                logger.warning("%s left in the middle of a message", address)
        except (asyncio.LimitOverrunError, TimeoutError, OSError, ValueError) as error:
            logger.warning("HL7 connection of %s ended: %s", address, type(error).__name__)
        except asyncio.CancelledError:
            pass  # we stop: there is nothing behind us that this should end
        finally:
            writer.close()

    def _turned_away(self, address: str) -> bool:
        if not self._may_call(address):
            reason = "no HL7 peer with this address may send"
        elif self._conversations >= MAXIMUM_CONNECTIONS:
            reason = f"more than {MAXIMUM_CONNECTIONS} connections at a time"
        else:
            return False
        logger.warning("refused an HL7 connection of %s: %s", address, reason)
        self._refused(CALLER, address, reason)
        return True

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                block = (await reader.readuntil(_END)).lstrip(b"\r\n")
            if not block.startswith(_BEGIN):
                raise ValueError("no MLLP block")
            message = block[len(_BEGIN) : -len(_END)]
            code, text = await asyncio.to_thread(self._keep, message)
            writer.write(_BEGIN + acknowledgement(message, code, text) + _END + b"\r")
            async with asyncio.timeout(IDLE_SECONDS):
                await writer.drain()

    def _keep(self, message: bytes) -> tuple[Code, str]:
        """A border: every fault becomes an acknowledgement code."""
        if hl7_message.kind(message) not in _TAKEN:
            return "AR", f"only {', '.join(map('^'.join, _TAKEN))} are taken here"
        try:
            self._take(message)
        except OutOfResources as error:
            logger.warning("HL7 message not kept: %s", error)
            return "AE", "can't be kept now: send it again"
        except NodeError as error:
            logger.warning("HL7 message can't be read: %s", error)
            return "AE", "can't be read: the node's log says why"
        except Exception as error:
            logger.error("HL7 message: our bug\n%s", trace(error))
            return "AE", "internal error"
        return "AA", ""


class _Server:
    """An event loop in a thread of its own that serves one socket."""

    def __init__(
        self,
        listening: socket.socket,
        converse: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> None:
        self.port = int(listening.getsockname()[1])
        self._listening = listening
        self._converse = converse
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mllp")
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(
            self._converse, sock=self._listening, limit=MAXIMUM_SIZE
        )
        self._ready.set()
        try:
            await self._ended.wait()
        finally:
            server.close()  # asyncio.run then ends the conversations and waits for their threads

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()


def acknowledgement(message: bytes, code: Code, text: str) -> bytes:
    """The ACK of a message (HL7 v2.5 2.9.2.2): sender and receiver swapped, its id in MSA-2.

    ``text`` says what to do and nothing of the message's content.
    """
    msh = hl7_message.header(message) or [b"", b"|", b"^~\\&"]

    def sent(number: int, default: bytes = b"") -> bytes:
        return (msh[number] if number < len(msh) else b"") or default

    separator = msh[1]
    now = datetime.now(UTC).strftime("%Y%m%d%H%M%S+0000").encode()
    trigger = sent(9).split(sent(2)[:1])[1:2] or [b"R01"]
    kind = sent(2)[:1].join((b"ACK", trigger[0], b"ACK"))
    own_id = secrets.token_hex(10).encode()
    head = (b"MSH", sent(2), sent(5), sent(6), sent(3), sent(4), now, b"", kind, own_id)
    tail = (sent(11, b"P"), sent(12, b"2.5"))
    answer = (b"MSA", code.encode(), sent(10), text.encode())
    return separator.join((*head, *tail)) + b"\r" + separator.join(answer) + b"\r"


def _address(writer: asyncio.StreamWriter) -> str:
    peer = writer.get_extra_info("peername")
    address = str(peer[0]) if peer else "unknown"
    try:
        mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
    except ValueError:
        return address
    return str(mapped or address)
