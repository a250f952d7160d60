"""The whole way to a peer, step by step: what ``doctor PEER`` asks.

    DICOM   name, connection, tls, association, contexts, echo, store, proof
    HTTP    name, connection, tls, the server's own question, store, proof
    HL7     name, connection

From C-ECHO on it is the delivery's own code that asks (``destinations``).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

from dicom_node import http_peer
from dicom_node import tls as node_tls
from dicom_node.doctor import answers, clock, negotiation, route, services
from dicom_node.doctor.checks import Check, Fault, Finding, NotTried, Step, in_order
from dicom_node.doctor.clock import Difference
from dicom_node.doctor.negotiation import Answer, Kind
from dicom_node.doctor.round_trip import Call, RoundTrip
from dicom_node.errors import ConfigurationError

_DICOM = (Kind.ACCEPTED, Kind.REJECTED, Kind.ABORTED)
_SAYS_NOTHING = (Kind.CLOSED, Kind.SILENT)


class Way:
    """To any peer: its name and a TCP connection.

    Parameters
    ----------
    call
        Who calls whom.
    name
        Of the checks: "to pacs".
    """

    def __init__(self, call: Call, name: str) -> None:
        self.call = call
        self.name = name
        self.addresses: list[str] = []  #: once the name was resolved
        self.reached = False
        self.open = ExitStack()

    def checks(self) -> list[Check]:
        """Ask every step; no connection stays open longer than its step needs it."""
        with self.open:
            return in_order(self.name, list(self.steps()))

    def steps(self) -> Iterator[Step]:
        """In order."""
        yield Step(word="name", ask=self._resolve)
        yield Step(word="connection", ask=self._connect, name=self.name)

    def place(self) -> tuple[str, int]:
        """Host and port."""
        return self.call.peer.address, self.call.peer.port

    def times(self) -> Iterator[Difference]:
        """What its host says of the time, once it was reached."""
        if self.reached:
            yield from clock.by_sntp(self.addresses)

    def connected(self) -> socket.socket:
        """One more connection, open until :attr:`open` is closed."""
        seconds = self.call.timeouts.connect
        made = route.connect(self.addresses, self.place()[1], seconds, self.call.whose)
        self.reached = True
        return self.open.enter_context(made)

    def _resolve(self) -> Finding:
        host = self.place()[0]
        self.addresses = route.resolve(host, self.call.whose)
        found = ", ".join(self.addresses)
        return Finding(text=found if found == host else f"{host} is {found}")

    def _connect(self) -> Finding:
        host, port = self.connected().getpeername()[:2]
        self.open.close()  # a server of one thread would wait for us to speak
        return Finding(text=f"{host}:{port} answers")


class HttpWay(Way):
    """To a FHIR or DICOMweb server."""

    def __init__(self, call: Call, name: str) -> None:
        super().__init__(call, name)
        self._base = urlsplit(call.peer.url)
        self._round_trip = RoundTrip(call)

    def steps(self) -> Iterator[Step]:
        """In order."""
        yield Step(word="name", ask=self._resolve)
        yield Step(word="connection", ask=self._connect)
        if self._base.scheme == "https":
            yield Step(word="tls", ask=self._tls)
        yield Step(word="service", ask=self.call.verified, name=self.name)
        if self.call.peer.protocol == "dicomweb":
            yield Step(word="store", ask=self._round_trip.store)
            yield Step(word="proof", ask=self._round_trip.prove)

    def place(self) -> tuple[str, int]:
        """Host and port."""
        try:
            base = http_peer.base(self.call.peer)
        except ConfigurationError as error:
            raise Fault(str(error), f"{self.call.whose}: mend url") from error
        return base.hostname or "", base.port or (443 if base.scheme == "https" else 80)

    def times(self) -> Iterator[Difference]:
        """What its host says of the time, once it was reached, and what its server says."""
        yield from super().times()
        with suppress(ConfigurationError):  # named where TLS was tried
            if self.reached:
                context = self._context() if self._base.scheme == "https" else None
                yield from clock.by_http(self._base, context, self.call.timeouts.connect)

    def _context(self) -> ssl.SSLContext:
        return node_tls.https_context(self.call.settings.tls, self.call.peer.authorities)

    def _tls(self) -> Finding:
        host = self.place()[0]
        trusted = f"a PEM file, and that into authorities of {self.call.whose}"
        try:
            with route.shaken_hands(self.connected(), self._context(), host) as made:
                return route.certificate(made)
        except ConfigurationError as error:
            raise Fault(str(error), f"mend authorities of {self.call.whose}") from error
        except OSError as error:
            raise route.tls_fault(error, host, self.call.whose, trusted) from error
        finally:
            self.open.close()


class DicomWay(Way):
    """To a DICOM peer, at the place where it stores or the one where it answers queries."""

    def __init__(
        self, call: Call, name: str, round_trip: RoundTrip, *, queries_only: bool = False
    ) -> None:
        super().__init__(call, name)
        self._queries_only = queries_only
        self._connection: socket.socket
        self._answer: Answer
        self._round_trip = round_trip
        self._wanted = services.wanted(
            call.settings, call.peer, call.classes, queries_only=queries_only
        )

    def steps(self) -> Iterator[Step]:
        """In order."""
        yield Step(word="name", ask=self._resolve)
        yield Step(word="connection", ask=self._connect)
        if self.call.peer.tls:
            yield Step(word="tls", ask=self._tls)
        yield Step(word="association", ask=self._associate)
        yield Step(word="contexts", ask=self._contexts, essential=False)
        yield Step(word="echo", ask=self._echo, name=self.name)
        if not self._queries_only:
            yield Step(word="store", ask=self._store)
        if self._proves:
            yield Step(word="proof", ask=self._prove)

    @property
    def _proves(self) -> bool:
        """Is this the place where the proof is asked for?"""
        peer = self._round_trip.peer
        if peer.proof == "find":
            return peer.is_destination and self.call.peer == peer.for_queries
        return not self._queries_only

    def _resolve(self) -> Finding:
        found = super()._resolve()
        self.addresses = self.addresses[:1]  # pynetdicom calls the first and no other
        return found

    def _connect(self) -> Finding:
        self._connection = self.connected()
        host, port = self._connection.getpeername()[:2]
        return Finding(text=f"{host}:{port} takes the connection")

    def _tls(self) -> Finding:
        settings, host = self.call.settings, self.call.peer.address
        try:
            context = node_tls.Material(settings.tls).client_context()
            made = self.open.enter_context(route.shaken_hands(self._connection, context, host))
        except ConfigurationError as error:
            raise Fault(str(error), "mend the files of [tls]") from error
        except OSError as error:
            raise self._tls_fault(error) from error
        self._connection = made
        return route.certificate(made)

    def _tls_fault(self, error: OSError) -> Fault:
        whose, host = self.call.whose, self.call.peer.address
        if route.is_unexplained(error) and self._ask(self.connected()).kind in _DICOM:
            return Fault(
                f"port {self.call.peer.port} speaks DICOM without TLS, and we call it by TLS",
                f"{whose}: tls = false, or port = its TLS port (2762 by custom)",
            )
        trusted = f"tls.authorities ({self.call.settings.tls.authorities})"
        return route.tls_fault(error, host, whose, trusted)

    def _ask(self, connection: socket.socket) -> Answer:
        call = self.call
        ours, theirs = call.settings.node.ae_title, call.peer.ae_title
        sop_classes = list(dict.fromkeys(uid for one in self._wanted for uid in one.forms))
        seconds = call.timeouts.associate
        return negotiation.ask(connection, ours, theirs, sop_classes, seconds)

    def _associate(self) -> Finding:
        call, our_address = self.call, str(self._connection.getsockname()[0])
        try:
            self._answer = self._ask(self._connection)
        except ssl.SSLError as error:  # a verdict on our certificate that came late
            raise self._tls_fault(error) from error
        finally:
            self.open.close()
        if self._answer.kind is Kind.ACCEPTED:
            return Finding(text=f"{call.peer.ae_title} accepts {call.settings.node.ae_title}")
        raise answers.no_association(
            self._answer,
            call.settings,
            call.peer,
            our_address=our_address,
            by_tls=self._speaks_tls(),
        )

    def _speaks_tls(self) -> bool:
        if self.call.peer.tls or self._answer.kind not in _SAYS_NOTHING:
            return False
        port, seconds = self.call.peer.port, self.call.timeouts.connect
        return route.speaks_tls(self.addresses[0], port, seconds)

    def _contexts(self) -> Finding:
        return services.judge(self._wanted, self._answer)

    def _echo(self) -> Finding:
        if services.VERIFICATION not in self._answer.accepted:
            raise NotTried("it does not take C-ECHO, and need not")
        return self.call.verified()

    def _store(self) -> Finding:
        return self._round_trip.store(self._answer.accepted)

    def _prove(self) -> Finding:
        needed = services.PROOFS.get(self._round_trip.peer.proof)
        if needed and needed not in self._answer.accepted:
            raise NotTried(f"it does not take {needed.name}, see contexts")
        return self._round_trip.prove()
