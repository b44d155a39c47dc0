"""A few pieces at once, in order: what numpy and XLA do outside of Python's lock."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = min(4, os.cpu_count() or 1)
_pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fusion_jax")


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """`map`, with as many items under way as there are threads, and no more.

    The items are taken from their iterator in the calling thread. What the function
    raises is raised here, at its place.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(_pool.submit(function, item))
            if len(waiting) > _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
