"""One job of several processes: all compute the same, the first decides and writes.

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


def agreed(value: bool) -> bool:
    """What the first process says; every process has to ask."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def write_once(what: str, write: Callable[[], None]) -> None:
    """Lets the first process write; all go on once it is done.

    Args:
      what: names the place where they wait, in jax's messages.
      write: called in the first process alone.
    """
    if is_first():
        write()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def on_own_device(params: Params) -> Params:
    """Leaves that lie whole on the devices of all processes, on this one's alone.

    What is computed with them afterwards waits for no other process.
    """
    if jax.process_count() == 1:
        return params
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
