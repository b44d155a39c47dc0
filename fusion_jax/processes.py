"""One job of several processes: the first one decides and writes.

Every process sees the same folder. What one finds there could change before another
looks, so the first one looks for all; and nothing is written twice.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fusion_jax.types import Params


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def agreed(question: Callable[[], bool]) -> bool:
    """The first process's answer, in all of them; every process has to ask.

    The others do not look themselves: a network file system may go on telling them for
    a while that a file is missing.
    """
    if jax.process_count() == 1:
        return question()
    answer = question() if is_first() else False
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def least(value: float) -> float:
    """The smallest value of all processes; every process has to ask."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.process_allgather(np.asarray(value, np.float32)).min())


def write_once(what: str, write: Callable[[], None]) -> None:
    """Lets the first process write; all go on once it is done, or fail with it.

    Args:
      what: is written, for the message of those that do not know why it failed.
      write: called in the first process alone.
    """
    if jax.process_count() == 1:
        write()
        return
    failure: list[Exception] = []

    def done() -> bool:
        try:
            write()
        except Exception as error:
            failure.append(error)
        return not failure

    if agreed(done):
        return
    raise (
        failure[0]
        if failure
        else RuntimeError(f"process 0 could not write {what}; it says why")
    )


def on_own_device(params: Params) -> Params:
    """Leaves that lie whole on the devices of all processes, on this one's alone.

    What is computed with them afterwards waits for no other process.
    """
    if jax.process_count() == 1:
        return params
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
