"""Work on many items with a few threads, without running ahead of whoever takes the results."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from queue import Empty, Queue
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, buffer_size: int
) -> Iterator[Result]:
    """`map(function, items)` on `threads` threads, in order, at most `buffer_size` results early.

    Unlike `Executor.map`, which submits every item at once, memory stays bounded whatever the
    number of items. The first error is raised where its result would have come, and the items
    not yet begun are dropped.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque(
            pool.submit(function, item) for item in islice(source, max(buffer_size, threads))
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


def in_thread(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Call a function on a thread of its own, which does not keep the process from ending."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=call, name=function.__name__, daemon=True).start()
    return future


class WeightedSemaphore:
    """Lets threads go on while what they use together stays within `total`.

    One that wants more than that has to wait until it is alone.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def acquire(self, amount: int) -> Iterator[None]:
        """Hold `amount` while the context is open; waits until there is room for it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + amount <= self.total)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


def prefetch(items: Iterable[Item], buffer_size: int) -> Generator[Item, None, None]:
    """Produce the items on a thread of their own, at most `buffer_size` of them early (0: any
    number).

    An error of the source is raised where its item would have come. When the iterator is closed,
    the source is closed as well.
    """
    queue: Queue[tuple[Item | None, BaseException | None]] = Queue(maxsize=buffer_size)
    stopped, ended = threading.Event(), threading.Event()

    def produce() -> None:
        source = iter(items)
        try:
            for item in source:
                if stopped.is_set():
                    return
                queue.put((item, None))
            queue.put((None, _END))
        except BaseException as error:  # raised again where the items are taken
            queue.put((None, error))
        finally:
            if hasattr(source, "close"):
                source.close()
            ended.set()

    threading.Thread(target=produce, name="prefetch", daemon=True).start()
    try:
        while True:
            item, error = queue.get()
            if error is _END:
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # None only beside an error
    finally:
        stopped.set()
        # Its thread may wait for room in the queue. Not a `join`: `ml.scoring.results` says why.
        while not ended.is_set():
            with suppress(Empty):
                queue.get(timeout=0.05)


_END = StopIteration()
