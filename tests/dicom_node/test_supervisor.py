"""The supervisor with real child processes: small shell programs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import OutOfResources
from dicom_node.supervisor import (
    FIRST_DELAY,
    LAST_DELAY,
    LOG_LIMIT,
    STEADY,
    Command,
    Supervisor,
    dies_with_us,
    next_delay,
)

PATIENCE = 20.0  #: seconds; far above what a loaded machine needs, so that only a fault reaches it


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def shell(name: str, script: str, **more: float) -> Command:
    return Command(name=name, arguments=("sh", "-c", script), **more)  # type: ignore[arg-type]


def notes_its_pid(name: str, notes: Path) -> Command:
    return shell(name, f"echo $$ >> {notes}; exec sleep 1000")


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone(pids: list[str]) -> bool:
    return not any(alive(int(pid)) for pid in pids)


def terminate_us_when(condition: Callable[[], bool]) -> threading.Thread:
    def run() -> None:
        wait_until(condition)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@dataclass
class Grumpy:
    """A program that ends at once, and whose second preparation fails."""

    notes: Path
    name: str = "grumpy"
    environment: dict[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 5.0
    takes_hangup: bool = False
    prepared: int = 0

    def prepare(self) -> None:
        self.prepared += 1
        if self.prepared == 2:
            raise OutOfResources("the disk is full")

    def command(self) -> list[str]:
        return ["sh", "-c", f"echo {self.prepared} >> {self.notes}"]

    def ready(self) -> bool:
        return True


@dataclass
class NeverReady(Grumpy):
    script: str = "exec sleep 1000"

    def command(self) -> list[str]:
        return ["sh", "-c", self.script]

    def ready(self) -> bool:
        return False


@given(st.lists(st.floats(0, 2 * STEADY), min_size=1))
def test_the_delay_doubles_up_to_a_limit_and_starts_again_after_a_steady_run(
    lives: list[float],
) -> None:
    delay, failures = 0.0, 0
    for alive in lives:
        failures = 1 if alive >= STEADY else failures + 1
        delay = next_delay(delay, alive)
        assert delay == min(FIRST_DELAY * 2 ** (failures - 1), LAST_DELAY)


def test_stop_ends_the_last_started_child_first(tmp_path: Path) -> None:
    notes, up = tmp_path / "notes", tmp_path / "up"
    supervisor = Supervisor()
    for name in ("one", "two", "three"):
        trap = f"trap 'echo {name} >> {notes}; kill $!; exit' TERM"
        script = f"{trap}; sleep 1000 & echo {name} >> {up}; wait"
        supervisor.start(shell(name, script))
    wait_until(lambda: len(lines(up)) == 3)
    supervisor.stop()
    assert lines(notes) == ["three", "two", "one"]


def test_a_child_that_will_not_stop_is_killed_with_its_group(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    script = f"trap '' TERM; sleep 1000 & echo $! $$ >> {notes}; wait; sleep 1000"
    supervisor = Supervisor()
    supervisor.start(shell("deaf", script, stop_seconds=0.2))
    wait_until(lambda: len(lines(notes)) == 2)
    supervisor.stop()
    wait_until(lambda: gone(lines(notes)))


def test_a_child_that_dies_is_started_again_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = tmp_path / "notes"
    with Supervisor(log_directory=tmp_path / "log") as supervisor:
        supervisor.start(notes_its_pid("steady", tmp_path / "steady"))
        supervisor.start(shell("fragile", f"echo $$ >> {notes}; exit 3"))
        thread = terminate_us_when(lambda: len(lines(notes)) == 3)
        began = time.monotonic()
        supervisor.wait()
        elapsed = time.monotonic() - began
    thread.join()
    assert elapsed >= 1.5  # 0.5 s, then 1 s
    assert len(lines(tmp_path / "steady")) == 1
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    log = tmp_path / "log" / "fragile.log"
    assert warnings[0] == f"fragile stopped (exit code 3), starting again in 0.5 s: see {log}"


def test_a_restart_whose_preparation_fails_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = tmp_path / "notes"
    with Supervisor() as supervisor:
        supervisor.start(Grumpy(notes))
        thread = terminate_us_when(lambda: "3" in lines(notes))
        supervisor.wait()
    thread.join()
    assert lines(notes) == ["1", "3"]
    assert "the disk is full" in caplog.text


def test_a_child_killed_by_a_signal_is_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = tmp_path / "notes"

    def second_is_up() -> bool:
        pids = lines(notes)
        if len(pids) == 1 and alive(int(pids[0])):
            os.kill(int(pids[0]), signal.SIGKILL)
        return len(pids) == 2

    with Supervisor() as supervisor:
        supervisor.start(notes_its_pid("victim", notes))
        thread = terminate_us_when(second_is_up)
        supervisor.wait()
    thread.join()
    assert "victim stopped (signal 9), starting again" in caplog.text
    assert gone(lines(notes))


def test_a_child_that_dies_while_starting_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    supervisor = Supervisor(log_directory=tmp_path)
    program = NeverReady(tmp_path, script="echo no such file >&2; exit 7")
    with pytest.raises(OutOfResources, match=r"starting, exit code 7: see .*grumpy\.log"):
        supervisor.start(program)
    assert (tmp_path / "grumpy.log").read_text() == "no such file\n"
    supervisor.stop()


def test_a_child_that_is_not_ready_in_time_is_an_error(tmp_path: Path) -> None:
    supervisor = Supervisor()
    with pytest.raises(OutOfResources, match="grumpy was not ready in time"):
        supervisor.start(NeverReady(tmp_path), timeout=0.1)
    supervisor.stop()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_child_starts_ends_the_block_quietly(
    tmp_path: Path, signum: signal.Signals
) -> None:
    former = signal.getsignal(signum)
    notes = tmp_path / "notes"
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signum))
    reached = False
    with Supervisor() as supervisor:
        supervisor.start(notes_its_pid("first", notes))
        timer.start()
        supervisor.start(NeverReady(tmp_path))
        reached = True
    timer.join()
    assert not reached
    assert gone(lines(notes))
    assert signal.getsignal(signum) is former


def test_a_hangup_reaches_those_children_only_that_take_it(tmp_path: Path) -> None:
    notes, deaf, former = tmp_path / "notes", tmp_path / "deaf", signal.getsignal(signal.SIGHUP)
    listens = (
        f"trap 'echo hung-up >> {notes}' HUP; echo up >> {notes}; while :; do sleep 0.05; done"
    )
    with Supervisor() as supervisor:
        supervisor.start(shell("listens", listens, takes_hangup=True))
        supervisor.start(notes_its_pid("deaf", deaf))  # SIGHUP would end it
        wait_until(lambda: bool(lines(notes)) and bool(lines(deaf)))
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: lines(notes) == ["up", "hung-up"])
        assert alive(int(lines(deaf)[0]))
    assert signal.getsignal(signal.SIGHUP) is former


def test_a_hangup_finds_children_that_have_just_died(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with Supervisor() as supervisor:
        supervisor.start(shell("gone", f"echo $$ >> {notes}", takes_hangup=True))
        wait_until(lambda: bool(lines(notes)) and gone(lines(notes)))
        os.kill(os.getpid(), signal.SIGHUP)


def test_an_error_leaves_the_block_after_the_children_stopped(tmp_path: Path) -> None:
    notes = tmp_path / "notes"

    def run() -> None:
        with Supervisor() as supervisor:
            supervisor.start(notes_its_pid("first", notes))
            wait_until(lambda: bool(lines(notes)))
            supervisor.start(NeverReady(tmp_path), timeout=0)

    with pytest.raises(OutOfResources):
        run()
    assert gone(lines(notes))


def test_children_are_started_from_the_main_thread_only() -> None:
    errors: list[Exception] = []

    def start() -> None:
        try:
            Supervisor().start(shell("stray", "exit"))
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_a_child_sees_our_environment_and_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "1")
    notes = tmp_path / "notes"
    arguments = (
        "sh",
        "-c",
        f"echo $OURS $THEIRS > {notes}.new; mv {notes}.new {notes}; exec sleep 9",
    )
    supervisor = Supervisor()
    supervisor.start(Command(name="child", arguments=arguments, environment={"THEIRS": "2"}))
    wait_until(notes.exists)
    supervisor.stop()
    assert lines(notes) == ["1", "2"]


def test_a_long_log_is_put_aside_when_its_child_starts(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_bytes(b"x" * (LOG_LIMIT + 1))
    supervisor = Supervisor(log_directory=tmp_path)
    supervisor.start(shell("child", "echo fresh; exec sleep 1000"))
    wait_until(lambda: log.read_text() == "fresh\n")
    supervisor.stop()
    assert (tmp_path / "child.log.1").stat().st_size == LOG_LIMIT + 1


def test_a_child_whose_parent_is_already_dead_does_not_start(tmp_path: Path) -> None:
    # The extra shell in between is the parent that the child finds, as init would be.
    command = dies_with_us(["touch", str(tmp_path / "started")], signal.SIGTERM)
    result = subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *command], check=False)
    assert result.returncode == 1
    assert not (tmp_path / "started").exists()


SUPERVISE = """
    import sys
    from dicom_node.supervisor import Command, Supervisor
    with Supervisor() as supervisor:
        for name in ("one", "two"):
            script = f"echo $$ >> {sys.argv[1]}; exec sleep 1000"
            supervisor.start(Command(name=name, arguments=("sh", "-c", script)))
        supervisor.wait()
"""


@pytest.mark.parametrize(
    ("signum", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -9)]
)
def test_no_child_outlives_the_supervisor(
    tmp_path: Path, signum: signal.Signals, exit_code: int
) -> None:
    notes = tmp_path / "notes"
    script = textwrap.dedent(SUPERVISE)
    with subprocess.Popen([sys.executable, "-c", script, str(notes)]) as process:
        wait_until(lambda: len(lines(notes)) == 2)
        process.send_signal(signum)
        assert process.wait(PATIENCE) == exit_code
    wait_until(lambda: gone(lines(notes)))
