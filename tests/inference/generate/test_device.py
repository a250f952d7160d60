"""One thread runs everything, and nobody is left waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch

from inference.findings import DeviceLost, ModelFailure
from inference.generate.device import DeviceThread, device_errors


def idle() -> bool:
    return False


@pytest.fixture
def thread() -> Iterator[DeviceThread]:
    device = DeviceThread(idle)
    yield device
    device.close()


def test_all_work_is_done_by_one_thread(thread: DeviceThread) -> None:
    ran_by = {thread.call(threading.get_ident) for _ in range(3)}
    assert len(ran_by) == 1
    assert threading.get_ident() not in ran_by


def test_work_is_done_without_gradients(thread: DeviceThread) -> None:
    assert thread.call(torch.is_inference_mode_enabled)


def test_an_error_goes_to_its_caller_and_work_goes_on(thread: DeviceThread) -> None:
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0)
    assert thread.call(lambda: 5) == 5


def test_work_may_ask_for_work(thread: DeviceThread) -> None:
    assert thread.call(lambda: thread.call(lambda: 5)) == 5


def test_running_out_of_memory_is_a_failure_of_the_model(thread: DeviceThread) -> None:
    def run_out() -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    with pytest.raises(ModelFailure, match="the device is out of memory") as failure:
        thread.call(run_out)
    assert failure.value.retry


def test_a_device_that_fails_is_lost() -> None:
    with pytest.raises(DeviceLost, match="AcceleratorError") as failure, device_errors():
        raise torch.AcceleratorError("an illegal memory access was encountered")
    assert failure.value.retry


def test_other_errors_keep_their_name() -> None:
    with pytest.raises(KeyError), device_errors():
        raise KeyError("language")


def test_turns_go_on_until_there_is_nothing_left() -> None:
    turns: list[int] = []
    rested = threading.Event()

    def turn() -> bool:
        turns.append(len(turns))
        if len(turns) == 5:
            rested.set()
        return len(turns) < 5

    thread = DeviceThread(turn)
    thread.post(lambda: None, Future())
    assert rested.wait(60)
    thread.close()
    assert turns == [0, 1, 2, 3, 4]


def test_work_is_done_between_turns() -> None:
    thread = DeviceThread(lambda: True)  # always busy
    thread.post(lambda: None, Future())
    assert thread.call(lambda: 5) == 5
    thread.close()


def test_who_waits_for_a_closed_thread_is_told() -> None:
    answer: Future[int] = Future()
    thread = DeviceThread(idle)
    thread.post(lambda: None, answer)
    thread.close()
    with pytest.raises(ModelFailure, match="closed"):
        answer.result(timeout=60)


def test_a_closed_thread_takes_no_work() -> None:
    thread = DeviceThread(idle)
    thread.close()
    with pytest.raises(ModelFailure, match="closed"):
        thread.call(lambda: 5)


def test_closing_twice_is_closing() -> None:
    thread = DeviceThread(idle)
    thread.close()
    thread.close()


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_thread_that_dies_takes_nobody_with_it(error: type[BaseException]) -> None:
    def turn() -> bool:
        raise error("a fault of ours")

    answer: Future[int] = Future()
    thread = DeviceThread(turn)
    thread.post(lambda: None, answer)
    with pytest.raises(error, match="a fault of ours"):
        answer.result(timeout=60)
    with pytest.raises(error, match="a fault of ours"):
        thread.call(lambda: 5)
    thread.close()
