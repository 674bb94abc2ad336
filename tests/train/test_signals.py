"""Requests to stop: noted once, passed on to children, forced by asking again later."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
from torch.utils.data import Dataset

from espnet2_lamer.train import console
from espnet2_lamer.train.console import (
    STOP_SIGNALS,
    ignore_stop_signals,
    pass_signals_on,
    stop_on_signals,
)
from espnet2_lamer.train.iterator import _HeldLoader


@pytest.fixture
def forced():
    """Signals that reached the handlers from before."""
    calls = []
    before = {n: signal.signal(n, lambda n, _: calls.append(n)) for n in STOP_SIGNALS}
    yield calls
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_a_request_and_its_echo_is_none(forced, number):
    with stop_on_signals() as request:
        assert request.signal == 0
        # Slurm's to every process of the step, then the parent's.
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert request.signal == number
    assert forced == []
    os.kill(os.getpid(), number)
    assert forced == [number]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_who_asks_again_later_is_not_kept_waiting(forced, monkeypatch, number):
    with stop_on_signals() as request:
        os.kill(os.getpid(), number)
        monkeypatch.setattr(console, "SAME_REQUEST_SECONDS", 0.0)
        time.sleep(0.01)
        os.kill(os.getpid(), number)
        assert request.signal == number
    assert forced == [number]


def test_a_ctrl_c_that_was_ignored_before_stays_so(forced):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM


def _train(ready):
    with stop_on_signals() as request:
        ready.set()
        while not request.signal:
            time.sleep(0.01)
    sys.exit(128 + request.signal)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_parent_passes_signals_on_and_waits(forced, number):
    context = multiprocessing.get_context("fork")
    ready = [context.Event() for _ in range(2)]
    children = [context.Process(target=_train, args=(event,)) for event in ready]
    with pass_signals_on() as request:
        for child in children:
            child.start()
        assert all(event.wait(30) for event in ready)
        os.kill(os.getpid(), number)
        for child in children:
            child.join(30)
    assert [child.exitcode for child in children] == [128 + number] * 2
    assert request.signal == number and forced == []


class _Ones(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return 1


def _slow_start(started):
    # What torch does between fork and worker_init_fn, on a busy machine.
    started.put(os.getpid())
    time.sleep(0.5)


@pytest.fixture
def sigint_counts():
    """A shell that starts the tests in the background lets them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_counts")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_loader_that_is_just_starting_outlives_a_signal_to_all(number):
    started = multiprocessing.get_context("fork").SimpleQueue()

    def start(worker):
        _slow_start(started)
        ignore_stop_signals()

    loader = _HeldLoader(
        _Ones(), num_workers=1, multiprocessing_context="fork", worker_init_fn=start
    )
    with stop_on_signals() as request:
        batches = iter(loader)
        os.kill(started.get(), number)
        assert [int(batch) for batch in batches] == [1, 1, 1, 1]
        assert request.signal == 0
        os.kill(os.getpid(), number)  # nothing is held back for long
        assert request.signal == number
