"""Threads that keep order, with bounded buffers."""

import threading
import time

import pytest

from ml.parallel import WeightedSemaphore, batched, parallel_map, prefetch


def test_order_is_kept_whatever_finishes_first():
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(parallel_map(work, range(50), threads=8, buffer_size=10)) == [
        i * i for i in range(50)
    ]


def test_no_more_than_buffer_size_items_are_taken_early():
    consumed = 0
    lock = threading.Lock()

    def source():
        nonlocal consumed
        for item in range(1000):
            with lock:
                consumed += 1
            yield item

    results = parallel_map(lambda item: item, source(), threads=2, buffer_size=10)
    for _ in range(5):
        next(results)
    assert consumed <= 5 + 10
    results.close()


def test_an_error_comes_where_its_result_would_have_and_stops_the_rest():
    done = []

    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        done.append(item)
        return item

    results = parallel_map(work, range(10_000), threads=2, buffer_size=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(done) < 100


def test_nothing_in_nothing_out():
    assert list(parallel_map(str, [], threads=4, buffer_size=4)) == []
    assert list(batched([], 3)) == []
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_prefetch_gives_the_items_in_order_and_raises_the_sources_error_in_its_place():
    def source():
        yield from range(5)
        raise ValueError("the sixth")

    items = prefetch(source(), buffer_size=2)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the sixth"):
        next(items)
    assert list(prefetch([], buffer_size=1)) == []
    assert list(prefetch([None, 0, None], buffer_size=1)) == [None, 0, None]


def test_prefetch_buffers_a_bounded_number_and_closes_its_source():
    closed = threading.Event()
    consumed = 0

    def source():
        nonlocal consumed
        try:
            while True:
                consumed += 1
                yield consumed
        finally:
            closed.set()

    items = prefetch(source(), buffer_size=3)
    assert next(items) == 1
    time.sleep(0.1)
    assert consumed <= 1 + 3 + 2  # one in the producer's hands, one waiting to be consumed
    items.close()
    assert closed.is_set()


def test_a_budget_is_never_exceeded_and_what_is_too_large_goes_alone():
    semaphore, lock = WeightedSemaphore(10), threading.Lock()
    current: list[int] = []
    seen: list[list[int]] = []

    def work(amount: int) -> None:
        with semaphore.acquire(amount):
            with lock:
                current.append(amount)
                seen.append(list(current))
            time.sleep(0.001)
            with lock:
                current.remove(amount)

    list(parallel_map(work, [3, 4, 25, 1, 6, 10, 2] * 10, threads=8, buffer_size=8))
    assert len(seen) == 70
    assert all(sum(amounts) <= 10 or amounts == [25] for amounts in seen)
    assert any(len(amounts) > 1 for amounts in seen)


def test_a_budget_is_given_back_after_an_error():
    semaphore = WeightedSemaphore(1)
    with pytest.raises(ValueError), semaphore.acquire(1):
        raise ValueError
    with semaphore.acquire(1):
        pass


def test_a_budget_may_be_used_up():
    semaphore, entered = WeightedSemaphore(10), threading.Event()

    def enter() -> None:
        with semaphore.acquire(6):
            entered.set()

    with semaphore.acquire(4):
        threading.Thread(target=enter, daemon=True).start()
        assert entered.wait(10)


def test_a_source_that_stands_still_does_not_keep_the_process():
    items = prefetch(range(3), buffer_size=1)
    next(items)
    (own,) = [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert own.daemon
    items.close()
