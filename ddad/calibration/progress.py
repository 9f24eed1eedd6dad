"""How far a long work is: a bar in the terminal, and a word to whoever else waits for it."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")

# Called with what is being done, how many are done, and how many there are; what it raises ends the work.
Report = Callable[[str, int, int], None]


def track(
    items: Sequence[Item], description: str, report: Report | None = None, unit: str = "image"
) -> Iterator[Item]:
    """The items one after the other; after each the bar moves and `report` is called."""
    for number, item in enumerate(tqdm(items, desc=description, mininterval=1, unit=unit), start=1):
        yield item
        if report is not None:
            report(description, number, len(items))
