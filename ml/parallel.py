"""Work on many items with a few threads, without running ahead of whoever takes the results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Iterator[Result]:
    """`map(function, items)` on `threads` threads, in order, at most `ahead` results early.

    Unlike `Executor.map`, which submits every item at once, memory stays bounded whatever the
    number of items. The first error is raised where its result would have come, and the items
    not yet begun are dropped.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque(
            pool.submit(function, item) for item in islice(source, max(ahead, threads))
        )
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(source, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter (`itertools.batched` of Python 3.12)."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch
