"""Keeps child processes alive, and never outlives them or lets them outlive us.

`dicom-node run` and `dicom-node work` with two queues are a handful of programs under one
`Supervisor`: started in order, restarted with back-off when they die, stopped in reverse order.
Should we be killed with SIGKILL, the kernel stops them for us (prctl(2), PR_SET_PDEATHSIG).

    with Supervisor(log_directory=data / "log") as supervisor:
        supervisor.start(Postgres(data))
        supervisor.start(Command(name="serve", arguments=("dicom-node", "serve")))
        supervisor.wait()                     # until SIGTERM or SIGINT
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Protocol

from dicom_node.errors import ConfigurationError, NodeError, OutOfResources

logger = logging.getLogger(__name__)

FIRST_DELAY = 0.5  #: seconds before the first restart
LAST_DELAY = 10.0  #: seconds; the delay doubles up to this
STEADY = 30.0  #: seconds alive after which a child's past failures are forgotten
LOG_LIMIT = 10 * 2**20  #: bytes; a longer log file is put aside when its child starts
START_SECONDS = 300.0  #: PostgreSQL may have to replay its whole log (max_wal_size) after a crash
_POLL = 0.05  #: seconds between two looks at a child that is starting

# $0 is our process id. Were we killed before setpriv's prctl, no signal would ever come: then the
# child has been handed to another parent by now, and must not start at all.
_ORPHAN_GUARD = '[ "$PPID" = "$0" ] || exit 1; exec "$@"'


class Program(Protocol):
    """What the supervisor must know about a program."""

    @property
    def name(self) -> str:
        """A word for log lines and for the log file's name."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables to add to our own."""

    @property
    def stop_signal(self) -> signal.Signals:
        """Asks the program to stop; also what the kernel sends it if we die."""

    @property
    def stop_seconds(self) -> float:
        """How long the program may take to stop before it is killed."""

    @property
    def takes_hangup(self) -> bool:
        """Is SIGHUP to be passed on to it, as the wish to read its files again?"""

    def prepare(self) -> None:
        """Whatever must be true before each start; NodeError if it can't be made so."""

    def command(self) -> Sequence[str]:
        """The program and its arguments."""

    def ready(self) -> bool:
        """True once others can use it; returns within a second or so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program that needs no preparation and counts as ready once it is started."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 30.0
    takes_hangup: bool = False

    def prepare(self) -> None:
        """Do nothing."""

    def command(self) -> Sequence[str]:
        """Return the arguments as given."""
        return self.arguments

    def ready(self) -> bool:
        """Return True."""
        return True


class StopRequested(Exception):
    """SIGTERM or SIGINT came while a program was being started; ends the `with` block quietly."""


def system_tool(name: str) -> str:
    """Return the path of one of util-linux's programs (setpriv, unshare, flock).

    Raises ConfigurationError where it is missing (then this is no Linux with util-linux).
    """
    path = shutil.which(name)
    if path is None:
        raise ConfigurationError(f"{name} not found: install util-linux, or run each part alone")
    return path


def dies_with_us(command: Sequence[str], death_signal: signal.Signals) -> list[str]:
    """Prefix `command` so that the kernel sends it `death_signal` when this thread ends.

    A chain of execs: `command` keeps the process id that was started. It is done by setpriv(1)
    and not by a `preexec_fn`, which runs Python between fork and exec and may deadlock as soon as
    any library keeps a thread (numpy's does).
    """
    guarded = ["sh", "-c", _ORPHAN_GUARD, str(os.getpid()), *command]
    return [system_tool("setpriv"), "--pdeathsig", death_signal.name, "--", *guarded]


def next_delay(previous: float, alive: float) -> float:
    """Return the seconds to wait before a restart.

    `previous` is the last such wait (0 if there was none), `alive` how long the child then ran.
    """
    if previous == 0 or alive >= STEADY:
        return FIRST_DELAY
    return min(2 * previous, LAST_DELAY)


class Supervisor:
    """Starts programs as child processes, restarts them, stops them.

    As a context manager it takes SIGTERM and SIGINT over and stops everything on the way out;
    SIGHUP goes on to those children that take it.
    A test that only wants a server may call `start` and `stop` without.
    """

    def __init__(self, *, log_directory: Path | None = None) -> None:
        """Children write to `<log_directory>/<name>.log`, or to our own output if it is None."""
        self._log_directory = log_directory
        self._children: list[_Child] = []
        self._stopping = False
        self._restore: Callable[[], None] = _nothing

    def __enter__(self) -> Supervisor:
        self._restore = _take_signals(
            {
                signal.SIGTERM: self._request_stop,
                signal.SIGINT: self._request_stop,
                signal.SIGHUP: self._pass_hangup_on,
            }
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            self.stop()
        finally:
            self._restore()
        return kind is StopRequested

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _pass_hangup_on(self, signum: int, frame: FrameType | None) -> None:
        for child in self._children:
            if child.program.takes_hangup:
                child.hang_up()

    def start(self, program: Program, *, timeout: float = START_SECONDS) -> None:
        """Start `program` and wait, at most `timeout` seconds, until it is ready.

        Raises OutOfResources if it stops or isn't ready in time, StopRequested if we were asked to
        stop meanwhile, and what `program.prepare()` raises.
        """
        # prctl(2): the "parent" whose death counts is the thread that forked.
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children must be started from the main thread")
        self._check_stop()
        child = _Child(program, self._log_directory)
        self._children.append(child)
        child.spawn()
        self._await_ready(child, time.monotonic() + timeout)
        logger.info("%s started", program.name, extra={"action": "child_start"})

    def _await_ready(self, child: _Child, deadline: float) -> None:
        while not child.program.ready():
            self._check_stop()
            if (code := child.exit_code()) is not None:
                raise OutOfResources(f"{child} stopped while starting, {_says(code)}{child.where}")
            if time.monotonic() > deadline:
                raise OutOfResources(f"{child} was not ready in time{child.where}")
            time.sleep(_POLL)

    def _check_stop(self) -> None:
        if self._stopping:
            raise StopRequested

    def wait(self) -> None:
        """Restart whatever dies, until SIGTERM or SIGINT."""
        with _wake_up_on_signals() as wake_up:
            while not self._stopping:
                waits = [wait for child in self._children if (wait := child.tend()) is not None]
                select.select([wake_up], [], [], min(waits, default=None))
                _drain(wake_up)

    def stop(self) -> None:
        """Stop the children, last started first; one that is too slow is killed."""
        while self._children:
            self._children.pop().stop()


class _Child:
    """A program's current process, or the wait before its next one."""

    def __init__(self, program: Program, log_directory: Path | None) -> None:
        self.program = program
        self._log = log_directory and log_directory / f"{program.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0  #: monotonic seconds
        self._due = 0.0  #: monotonic seconds; meant only while there is no process
        self._delay = 0.0  #: seconds, the last wait before a restart

    def __str__(self) -> str:
        return self.program.name

    @property
    def where(self) -> str:
        """Where to read more, as the end of a sentence."""
        return f": see {self._log}" if self._log else ""

    def exit_code(self) -> int | None:
        """Return the process's exit code, negative for a signal; None while it runs."""
        return self._process.poll() if self._process else None

    def spawn(self) -> None:
        """Prepare the program, then start its process."""
        self.program.prepare()
        self._started = time.monotonic()
        command = dies_with_us(self.program.command(), self.program.stop_signal)
        output = _open_log(self._log) if self._log else None
        try:
            self._process = subprocess.Popen(
                command,
                env=os.environ | self.program.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                # Ctrl-C must reach us alone: the order of stopping is ours.
                start_new_session=True,
            )
        finally:
            if output:
                output.close()

    def tend(self) -> float | None:
        """Do what is due; return the seconds until something may be due again without a signal."""
        if self._process is None:
            self._restart_if_due()
        elif (code := self._process.poll()) is not None:
            self._process = None
            self._put_off(_says(code), alive=time.monotonic() - self._started)
        return None if self._process else max(0.0, self._due - time.monotonic())

    def _restart_if_due(self) -> None:
        if time.monotonic() < self._due:
            return
        try:
            self.spawn()
        except (NodeError, OSError) as error:
            self._put_off(str(error), alive=0.0)

    def _put_off(self, why: str, *, alive: float) -> None:
        self._delay = next_delay(self._delay, alive)
        self._due = time.monotonic() + self._delay
        logger.warning(
            "%s stopped (%s), starting again in %.1f s%s",
            self,
            why,
            self._delay,
            self.where,
            extra={"action": "child_restart"},
        )

    def hang_up(self) -> None:
        """Send SIGHUP, where there is a process."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Ask the process to stop, wait, kill it if it takes too long."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(self.program.stop_signal)
        try:
            self._process.wait(self.program.stop_seconds)
        except subprocess.TimeoutExpired:
            logger.warning("%s did not stop: killed", self, extra={"action": "child_kill"})
            # Its group too (start_new_session made it the leader): it can't clean up any more.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        logger.info("%s stopped", self, extra={"action": "child_stop"})


def _says(exit_code: int) -> str:
    if exit_code < 0:
        return f"signal {-exit_code}"
    return f"exit code {exit_code}"


def _open_log(path: Path) -> IO[bytes]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def _nothing() -> None:
    pass


def _take_signals(
    handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]],
) -> Callable[[], None]:
    """Install handlers; return what puts the former ones back."""
    former = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}

    def restore() -> None:
        for signum, old in former.items():
            signal.signal(signum, old)

    return restore


@contextmanager
def _wake_up_on_signals() -> Iterator[socket.socket]:
    """Yield a socket that becomes readable with each signal, a child's death (SIGCHLD) included.

    A signal just before `select` would be slept through without it (the self-pipe trick).
    """
    read_end, write_end = socket.socketpair()
    read_end.setblocking(False)
    write_end.setblocking(False)
    restore = _take_signals({signal.SIGCHLD: lambda signum, frame: None})
    former = signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(former)
        restore()
        read_end.close()
        write_end.close()


def _drain(wake_up: socket.socket) -> None:
    try:
        wake_up.recv(4096)
    except BlockingIOError:
        return  # select ended because a restart is due
