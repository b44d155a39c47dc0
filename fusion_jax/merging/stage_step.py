"""The sums that one stage of a model adds for a batch, compiled once."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fusion_jax.merging.layer_inputs import InputMoments, Moment
from fusion_jax.types import Batch, Params


class StageStep(NamedTuple):
    """Compiled measurements of a stage.

    Attributes:
      nothing: `(params, carry, batch) -> sums` of no batch.
      add: `(sums, params, carry, batch) -> (sums, carry or None)`, the first donated.
      readers: kernel leaf -> input; known after the first call.
    """

    nothing: Callable[..., dict[str, Moment]]
    add: Callable[..., Any]
    readers: dict[str, str]


# Kept, so that another merge of the same model does not compile it again.
@functools.lru_cache(maxsize=128)
def stage_step(apply: Callable[..., Any], moves: bool) -> StageStep:
    """The measurements of a stage; `moves` says whether the carry goes on."""
    readers: dict[str, str] = {}

    def measure(params: Params, carry: Any, batch: Batch) -> Any:
        tap = InputMoments(batch)
        output = apply(params, carry, batch, tap=tap)
        readers.update(tap.readers)
        return tap.sums, output if moves else None

    def nothing(params: Params, carry: Any, batch: Batch) -> dict[str, Moment]:
        shapes, _ = jax.eval_shape(measure, params, carry, batch)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    @functools.partial(jax.jit, donate_argnums=0)
    def add(
        sums: dict[str, Moment], params: Params, carry: Any, batch: Batch
    ) -> tuple[dict[str, Moment], Any]:
        found, output = measure(params, carry, batch)
        return jax.tree.map(jnp.add, sums, found), output

    return StageStep(nothing, add, readers)
