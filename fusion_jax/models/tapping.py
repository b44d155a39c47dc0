"""Linear layers seen from outside: every input and output passes through a tap."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

from fusion_jax.models.layers import Dense
from fusion_jax.types import Tap


@contextlib.contextmanager
def tapped(tap: Tap | None, prefix: str) -> Iterator[None]:
    """Gives inputs and outputs of every `Dense` applied within to a tap.

    Args:
      tap: called while tracing, in the order of the computation; None does nothing.
      prefix: name of the applied module's own leaves, such as 'encoder/layer_0'; empty
        for names within the module.
    """
    if tap is None:
        yield
        return

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> Any:
        y = call(*args, **kwargs)
        module = context.module
        if not isinstance(module, Dense) or context.method_name != "__call__":
            return y
        place = (prefix,) if prefix else ()
        changed = tap("/".join((*place, *module.path, "kernel")), args[0], y)
        return y if changed is None else changed

    with nn.intercept_methods(intercept):
        yield
