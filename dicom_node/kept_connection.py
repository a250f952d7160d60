"""A connection of Postgres for one busy thread: a transaction costs one round trip of waiting."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import pq

from dicom_node.database_errors import driver_errors_mapped, errors_mapped

_AT_ONCE = 1.0  # seconds: a dead connection fails sooner


class KeptConnection:
    """A connection that is neither asked for its health nor given back between transactions.

    What is run on it must do no harm when it is run twice: on a connection that has died since the
    last time, it is run again on a new one.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._began: float | None = None  # monotonic seconds

    def cut_if_hung(self, seconds: float) -> None:
        """End a transaction that takes longer, from any thread; :meth:`run` raises then.

        A server that was stopped, or whose disk hangs, keeps no time-out of its own.
        """
        began, connection = self._began, self._connection
        if began is None or connection is None or time.monotonic() - began < seconds:
            return
        with suppress(OSError, psycopg.Error):
            descriptor = os.dup(connection.fileno())
            with socket.socket(fileno=descriptor) as shared:
                shared.shutdown(socket.SHUT_RDWR)

    def run(self, statement: str, parameters: Sequence[str], meanwhile: Callable[[], None]) -> Any:
        """Run a statement in a transaction of its own; the one value that it returns.

        Parameters
        ----------
        meanwhile
            Runs while the server works; the transaction is committed after it has returned, and
            not if it raises.

        Raises
        ------
        OutOfResources
            The database is away or gave up on the statement; a later attempt may work.
        """
        with driver_errors_mapped(), errors_mapped():
            if self._connection is not None:
                began = time.monotonic()
                try:
                    return self._attempt(self._connection, statement, parameters, meanwhile)
                except psycopg.Error:
                    if time.monotonic() - began > _AT_ONCE:  # a lock, or a hung server
                        raise
            self._connection = self._connected()
            return self._attempt(self._connection, statement, parameters, meanwhile)

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        pooled = self._engine.raw_connection()
        connection = pooled.driver_connection
        pooled.detach()
        assert isinstance(connection, psycopg.Connection)
        return connection

    def _attempt(
        self,
        connection: psycopg.Connection[tuple[Any, ...]],
        statement: str,
        parameters: Sequence[str],
        meanwhile: Callable[[], None],
    ) -> Any:
        self._began = time.monotonic()
        try:
            return _committed(connection.pgconn, statement.encode(), parameters, meanwhile)
        except BaseException:
            self.close()
            raise
        finally:
            self._began = None

    def close(self) -> None:
        """Close the connection; what was not committed is undone."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _committed(
    pgconn: pq.abc.PGconn,
    statement: bytes,
    parameters: Sequence[str],
    meanwhile: Callable[[], None],
) -> Any:
    """One transaction by libpq's pipeline: everything is sent, and waited for once in the end.

    psycopg's own ``pipeline()`` does the same in about two hundred Python calls.
    """
    if pgconn.pipeline_status == pq.PipelineStatus.OFF:
        pgconn.enter_pipeline_mode()
    pgconn.send_query_params(b"BEGIN", None)
    pgconn.send_query_params(statement, [one.encode() for one in parameters])
    pgconn.send_flush_request()
    _flush(pgconn)
    meanwhile()
    pgconn.send_query_params(b"COMMIT", None)
    pgconn.pipeline_sync()
    _flush(pgconn)
    _, (found,), _, _ = [_results(pgconn) for _ in range(4)]
    value = found.get_value(0, 0)
    return None if value is None else json.loads(value)


def _results(pgconn: pq.abc.PGconn) -> list[pq.abc.PGresult]:
    """What one statement, or the sync after them, gives."""
    results: list[pq.abc.PGresult] = []
    while True:
        while pgconn.is_busy():
            _wait(pgconn, select.POLLIN)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        if result.status == pq.ExecStatus.PIPELINE_SYNC:
            return [result]
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            raise psycopg.errors.error_from_result(result)
        results.append(result)


def _flush(pgconn: pq.abc.PGconn) -> None:
    while pgconn.flush():
        _wait(pgconn, select.POLLIN | select.POLLOUT)
        pgconn.consume_input()


def _wait(pgconn: pq.abc.PGconn, events: int) -> None:
    ready = select.poll()  # a busy node has more open files than select() knows of
    ready.register(pgconn.socket, events)
    ready.poll()
