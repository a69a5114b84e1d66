"""Work on many items with a few threads and bounded buffers."""

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
    """Apply a function to the items on several threads, and yield the results in order.

    `Executor.map` submits every item at once; this function submits at most `buffer_size` items
    (or `threads`, if that is more) before their results are asked for, so memory stays bounded.
    An error of the function is raised in place of its result, and the items that are not yet begun
    are dropped.
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


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last of which may be shorter.

    `itertools.batched` of Python 3.12 does the same.
    """
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def run_in_thread(function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Call a function on a new daemon thread, which does not keep the process from ending."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # `Future.result` raises it again
            future.set_exception(error)

    threading.Thread(target=call, name=function.__name__, daemon=True).start()
    return future


class WeightedSemaphore:
    """A semaphore whose holders acquire amounts, which together stay within `total`.

    A thread that asks for more than `total` waits until no other thread holds anything.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def acquire(self, amount: int) -> Iterator[None]:
        """Wait until `amount` is available, and hold it for the duration of the block."""
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
    """Produce the items on a background thread, at most `buffer_size` items early.

    An error of the source is raised in place of its item. When the iterator is closed, the source
    is closed, too.

    Args:
        items: The source; it is read by the background thread only.
        buffer_size: The number of items that may wait in the buffer; 0 means any number.

    Yields:
        The items, in order.
    """
    queue: Queue[tuple[Item | None, BaseException | None]] = Queue(maxsize=buffer_size)
    stopped, finished = threading.Event(), threading.Event()

    def produce() -> None:
        source = iter(items)
        try:
            for item in source:
                if stopped.is_set():
                    return
                queue.put((item, None))
            queue.put((None, _END))
        except BaseException as error:  # the consumer raises it again
            queue.put((None, error))
        finally:
            if hasattr(source, "close"):
                source.close()
            finished.set()

    threading.Thread(target=produce, name="prefetch", daemon=True).start()
    try:
        while True:
            item, error = queue.get()
            if error is _END:
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # it is None only together with an error
    finally:
        stopped.set()
        # The producer may wait for space in the queue. `ml.scoring.results` says why this is no
        # `join`.
        while not finished.is_set():
            with suppress(Empty):
                queue.get(timeout=0.05)


_END = StopIteration()
