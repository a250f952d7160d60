"""Postgres' and its drivers' exceptions, as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa

from dicom_node.errors import ConfigurationError, OutOfResources

_NO_TABLES = "the database has no tables of this version: run `dicom-node db upgrade`"


@contextmanager
def driver_errors_mapped() -> Iterator[None]:
    """What psycopg itself raises."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise OutOfResources(f"database: {str(error).strip().partition(chr(10))[0]}") from error
    except psycopg.ProgrammingError as error:
        if isinstance(error, psycopg.errors.UndefinedFunction | psycopg.errors.UndefinedTable):
            raise ConfigurationError(_NO_TABLES) from error
        raise
    except psycopg.DatabaseError as error:
        if error.sqlstate is None:  # not the server's word: the connection died
            raise OutOfResources("database: connection lost") from error
        raise


@contextmanager
def errors_mapped() -> Iterator[None]:
    """What SQLAlchemy raises: away is ``OutOfResources``, without tables ``ConfigurationError``."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise OutOfResources(f"database: {first_line(error)}") from error
    except sa.exc.IntegrityError as error:
        if isinstance(error.orig, psycopg.errors.ForeignKeyViolation):  # a study ended just now
            raise OutOfResources("database: the study is being deleted") from error
        raise
    except sa.exc.ProgrammingError as error:
        if "does not exist" in str(error):
            raise ConfigurationError(_NO_TABLES) from error
        raise


def first_line(error: sa.exc.SQLAlchemyError) -> str:
    """What the driver said, without the statement that SQLAlchemy quotes below it."""
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
