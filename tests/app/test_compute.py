"""The thread that evaluates the networks, and ZeroGPU."""

import importlib
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest
import torch

from ddad.app import compute
from ddad.app.compute import QUICK, SLOW, ModelThread


@pytest.fixture
def threads():
    return ModelThread()


def test_results_errors_and_context_come_back(threads):
    visitor = ContextVar("visitor")
    visitor.set("this one")
    assert threads.run(SLOW, lambda: (visitor.get(), threading.current_thread().name)) == ("this one", "model")
    assert threads.run(SLOW, threads.run, QUICK, pow, 2, 3) == 8  # from inside: no deadlock
    with pytest.raises(ZeroDivisionError):
        threads.run(SLOW, lambda: 1 / 0)
    assert threads.run(SLOW, torch.get_num_threads) >= torch.get_num_threads() == 1


def test_quick_jobs_go_between_the_steps_of_a_long_one(threads):
    order = []

    def long_job():
        for step in range(3):
            order.append(f"step {step}")
            time.sleep(0.1)
            threads.give_way(SLOW)

    with ThreadPoolExecutor(3) as visitors:
        first = visitors.submit(threads.run, SLOW, long_job)
        time.sleep(0.03)
        waiting = visitors.submit(threads.run, SLOW, order.append, "slow")
        quick = visitors.submit(threads.run, QUICK, order.append, "quick")
        for one in (first, waiting, quick):
            one.result()
    assert order == ["step 0", "quick", "step 1", "step 2", "slow"]


def test_zero_gpu_functions_say_so_and_use_no_thread(monkeypatch):
    marked = []
    fake = types.ModuleType("spaces")
    fake.GPU = lambda duration: lambda function: marked.append((function.__name__, duration)) or function
    monkeypatch.setitem(sys.modules, "spaces", fake)
    try:
        importlib.reload(compute)
        assert compute.needs_gpu(compute.evaluates_networks(time.sleep)) is time.sleep
        assert marked == [("sleep", 60)]
    finally:
        monkeypatch.undo()
        importlib.reload(compute)
    assert compute.needs_gpu(time.sleep) is time.sleep
