"""From command line and environment to settings, database and model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dicom_node import config as configuration
from dicom_node.config import Peer, Service, Settings
from dicom_node.db import Database
from dicom_node.embedded import Postgres, Valkey
from dicom_node.errors import ConfigurationError, OutOfResources


def settings(config: Path | None, flags: Mapping[str, object] | None = None) -> Settings:
    """The settings of this command."""
    return configuration.load(config, os.environ, flags or {})


def database_url(settings: Settings) -> str:
    """The database's URL; the embedded one's when none is set."""
    return settings.database.url or Postgres(settings.node.data).url


def broker_url(settings: Settings) -> str:
    """The broker's URL; the embedded one's when none is set."""
    return settings.broker.url or Valkey(settings.node.data).url


def resolved(settings: Settings) -> Settings:
    """The settings with both URLs filled in, for child processes."""
    return settings.model_copy(
        update={
            "database": Service(url=database_url(settings)),
            "broker": Service(url=broker_url(settings)),
        }
    )


def database(settings: Settings) -> Database:
    """The database of a node that has run here before."""
    return Database(database_url(settings))


def database_or_none(settings: Settings) -> Database | None:
    """The same, or ``None`` where no embedded database was ever started."""
    try:
        return database(settings)
    except OutOfResources:
        return None


def peer(settings: Settings, target: str) -> Peer:
    """A configured peer by name, or one given as AE@HOST:PORT.

    Raises
    ------
    ConfigurationError
        Neither.
    """
    from dicom_node import scu

    known = settings.peer(target)
    if known is not None:
        return known
    if "@" not in target:
        names = ", ".join(one.name for one in settings.peers) or "none"
        raise ConfigurationError(f"no peer is named {target} (known: {names}); or AE@HOST:PORT")
    return scu.parse_target(target)
