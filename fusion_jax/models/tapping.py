"""Layers seen from outside: their inputs and outputs pass through hooks."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import flax.linen as nn
import jax

from fusion_jax.models.layers import Dense, LayerNorm, Table
from fusion_jax.types import Around, Tap


@contextlib.contextmanager
def hooked(tap: Tap | None, around: Around | None, prefix: str) -> Iterator[None]:
    """Gives every layer applied within to the hooks.

    Args:
      tap: called with the input and output of every `Dense`, while tracing, in the
        order of the computation; None does nothing.
      around: called in the place of every `Dense`, `LayerNorm` and `Table`.
      prefix: name of the applied module's own leaves, such as 'encoder/layer_0'; empty
        for names within the module.
    """
    if tap is None and around is None:
        yield
        return
    place = (prefix,) if prefix else ()

    def seen(module: nn.Module, name: str, x: Any, y: Any) -> Any:
        if tap is None or not isinstance(module, Dense):
            return y
        changed = tap(f"{name}/kernel", x, y)
        return y if changed is None else changed

    # A layer applied by `around` is not to be intercepted again.
    inside = False

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: Any
    ) -> Any:
        nonlocal inside
        module = context.module
        layers = isinstance(module, Dense | LayerNorm | Table)
        if inside or not layers or context.method_name != "__call__":
            return call(*args, **kwargs)
        name = "/".join((*place, *module.path))
        if around is None:
            return seen(module, name, args[0], call(*args, **kwargs))
        # Linen lets a bound module create its parameters once; a free one of the same
        # fields can be applied as often as `around` likes.
        free, own = module.clone(parent=None, name=None), module.variables

        def layer(x: jax.Array) -> jax.Array:
            nonlocal inside
            inside = True
            try:
                y = cast(jax.Array, free.apply(own, x))
            finally:
                inside = False
            return seen(module, name, x, y)

        return around(name, layer, args[0])

    with nn.intercept_methods(intercept):
        yield
