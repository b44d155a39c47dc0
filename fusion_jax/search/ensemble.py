"""The logit ensemble: K models at inference, an upper reference of one merged one."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.evaluation.readout import collect
from fusion_jax.search.points import Points
from fusion_jax.search.ways import Readout
from fusion_jax.types import Batch, Model, Params, ParamStack


def ensemble_outputs(
    model: Model, points: Points
) -> Callable[..., dict[str, jax.Array]]:
    """A traced function `(stack, shared, batch) -> outputs averaged over experts`."""
    count = len(points.names)

    def outputs(stack, shared, batch):
        def add(total, k):
            params = trees.combine(jax.tree.map(lambda x: x[k], stack), shared)
            out = model.apply(params, batch)
            return jax.tree.map(jnp.add, total, out), None

        shapes = jax.eval_shape(
            model.apply,
            trees.combine(jax.tree.map(lambda x: x[0], stack), shared),
            batch,
        )
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, jnp.arange(count))
        return jax.tree.map(lambda x: x / count, total)

    return outputs


def label_ensemble(
    model: Model, given: tuple[ParamStack, jax.Array], batch: Batch
) -> dict[str, jax.Array]:
    """Logits averaged label by label, over the experts that know the label.

    z_c = sum_k o_kc z_kc / sum_k o_kc; a label that nobody knows is averaged over all.

    Args:
      model: of all experts, with logits [..., C].
      given: (stack [K, ...], owners [K, C] bool).
      batch: one batch.

    Returns:
      {'logits': [..., C]}.
    """
    stack, owners = given
    nobody = ~jnp.any(owners, axis=0)
    share = jnp.where(nobody, True, owners).astype(jnp.float32)
    share = share / jnp.sum(share, axis=0)

    def add(total: jax.Array, one: tuple[Params, jax.Array]):
        params, weight = one
        return total + weight * model.apply(params, batch)["logits"], None

    first = jax.eval_shape(
        lambda s: model.apply(jax.tree.map(lambda x: x[0], s), batch), stack
    )["logits"]
    zeros = jnp.zeros(first.shape, first.dtype)
    return {"logits": jax.lax.scan(add, zeros, (stack, share))[0]}


def logit_ensemble(
    model: Model, readout: Readout, points: Points, batches: Sequence[Batch]
) -> dict[str, np.ndarray]:
    """Readouts of the mean of the experts' logits.

    z_n = (1/K) sum_k z_k(x_n)

    Args:
      model: pure functions.
      readout: `(outputs, batch) -> dict of [B, ...]`.
      points: the K experts.
      batches: of one split, 'index' [B] the row number, -1 for padding.

    Returns:
      name -> [N, ...], rows in the order of the encoded split.
    """
    outputs = ensemble_outputs(model, points)
    run = jax.jit(lambda stack, shared, b: readout(outputs(stack, shared, b), b))
    parts = [
        (np.asarray(b["index"]), run(points.stack, points.shared, b)) for b in batches
    ]
    num_rows = 1 + max(int(index.max()) for index, _ in parts)
    return collect(parts, num_rows)
