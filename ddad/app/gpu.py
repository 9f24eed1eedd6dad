"""ZeroGPU: on such a Space a function that computes says so; everywhere else this changes nothing."""

from collections.abc import Callable
from typing import Any, TypeVar

try:
    import spaces
except ImportError:
    spaces = None

Function = TypeVar("Function", bound=Callable[..., Any])

SECONDS = 60


def gpu(function: Function) -> Function:
    """Marks an event's function as one that needs the GPU for at most `SECONDS`."""
    return function if spaces is None else spaces.GPU(duration=SECONDS)(function)
