"""Where networks are evaluated: on ZeroGPU in the process that holds the GPU, elsewhere in one thread of this one."""

import contextvars
import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

try:
    import spaces
except ImportError:
    spaces = None

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

ZERO_GPU_SECONDS = 60
QUICK, SLOW, LONG = 0, 1, 2


class ModelThread:
    """One thread that evaluates the networks for all visitors, quick jobs first.

    OpenMP keeps a pool of workers for every thread that computes. Once the pools hold more workers than there are
    cores, workers sleep where they else would wait awake, and every small operation pays for waking them: on two cores
    a repair takes 3.6 s in one of several such threads, and 2.3 s in the only one.
    """

    def __init__(self) -> None:
        self._jobs: queue.PriorityQueue = queue.PriorityQueue()
        self._count = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._started = threading.Event()
        self._thread.start()
        self._started.wait()
        # What other threads compute is small: they need no pools.
        torch.set_num_threads(1)

    def run(self, priority: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a function in the thread and returns what it returns, or raises what it raises."""
        if threading.current_thread() is self._thread:
            return function(*args, **kwargs)
        future: Future = Future()
        context = contextvars.copy_context()  # Gradio's progress bars find their visitor through it
        with self._lock:
            self._count += 1
            number = self._count
        self._jobs.put((priority, number, future, functools.partial(context.run, function, *args, **kwargs)))
        return future.result()

    def give_way(self, priority: int) -> None:
        """Called between the steps of a job of some priority: does the quicker ones that wait, here and now."""
        while threading.current_thread() is self._thread:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job[0] >= priority:
                self._jobs.put(job)
                return
            self._do(job)

    def _work(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # fixes this thread's number before the others' is set
        self._started.set()
        while True:
            self._do(self._jobs.get())

    @staticmethod
    def _do(job: tuple[int, int, Future, Callable[[], Any]]) -> None:
        _, _, future, function = job
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)


@functools.cache
def model_thread() -> ModelThread:
    """The thread of this process."""
    return ModelThread()


def give_way(priority: int = SLOW) -> None:
    """Lets quicker jobs of other visitors go first; to be called between the steps of one that takes its time."""
    if spaces is None:
        model_thread().give_way(priority)


def evaluates_networks(function: Function, priority: int = SLOW) -> Function:
    """Makes a function run where networks are evaluated."""
    if spaces is not None:
        return function  # the process that holds the GPU has no other thread

    @functools.wraps(function)
    def in_model_thread(*args: Any, **kwargs: Any) -> Any:
        return model_thread().run(priority, function, *args, **kwargs)

    return in_model_thread  # type: ignore[return-value]


def needs_gpu(function: Function, seconds: int = ZERO_GPU_SECONDS) -> Function:
    """Marks an event's function for ZeroGPU, for so many seconds; everywhere else this changes nothing."""
    return function if spaces is None else spaces.GPU(duration=seconds)(function)
