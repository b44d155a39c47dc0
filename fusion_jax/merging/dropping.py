"""Random dropping of task vectors, with a keep probability for every entry."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fusion_jax.merging.combine import column, combine, moved
from fusion_jax.merging.form import Block, Facts, Form, Options, Rank, Sum
from fusion_jax.merging.masks import uniform

RESCALES = ("inverse", "l1", "none")


def dropping_form(
    probabilities: Callable[[Block, Facts, Options], jax.Array],
    *,
    elect: str,
    aggregate: str,
    rescale: str,
    exempt_vectors: bool,
    ranked: Rank | None = None,
    unit: str = "element",
    input_axis: int = -2,
) -> Form:
    """The form of methods that drop entries at random and combine the rest.

    m_k = [u_k < q_k], u_k uniform in [0, 1)
    d_k = m_k delta_k / q_k ('inverse'), m_k delta_k |delta_k|_1 / |m_k delta_k|_1
        ('l1', the factor at most n), or m_k delta_k ('none')

    Args:
      probabilities: `(block, facts, options) -> q`, float32, broadcast over [K, ...].
      elect: see `combine`.
      aggregate: see `combine`.
      rescale: of `RESCALES`.
      exempt_vectors: whether leaves of one axis or none are not dropped.
      ranked: the step that `probabilities` needs before it.
      unit: see `Form`.
      input_axis: see `Form`.

    Returns:
      The form, with the option `scale` besides those that `probabilities` reads.

    Raises:
      ValueError: an unknown rescale.
    """
    if rescale not in RESCALES:
        raise ValueError(f"rescale: '{rescale}' is not one of {', '.join(RESCALES)}")

    def exempt(block: Block) -> bool:
        return exempt_vectors and len(block.shape) <= 1

    def survivors(block: Block, facts: Facts, options: Options) -> jax.Array:
        q = probabilities(block, facts, options)
        keep = uniform(block) < q
        deltas = block.deltas
        if rescale == "inverse":
            deltas = deltas / jnp.where(q > 0, q, 1)  # where 0, nothing survives
        # Computed once: XLA would draw again for every expert that is then added up.
        return jax.lax.optimization_barrier(jnp.where(keep, deltas, 0))

    def norms(block: Block, facts: Facts, options: Options) -> dict[str, jax.Array]:
        axes = tuple(range(1, block.experts.ndim))
        before = jnp.sum(jnp.abs(block.deltas), axis=axes)
        if exempt(block):
            return {"before": before, "after": before}
        after = jnp.sum(jnp.abs(survivors(block, facts, options)), axis=axes)
        return {"before": before, "after": after}

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        if exempt(block):
            deltas = block.deltas
        else:
            deltas = survivors(block, facts, options)
            if rescale == "l1":
                # Equal entries grow n-fold at most; without this cap one tiny
                # survivor would be blown up to the norm of all.
                before, after = facts["l1"]["before"], facts["l1"]["after"]
                ratio = before / jnp.where(after > 0, after, 1)
                deltas *= column(jnp.minimum(ratio, block.size), block)
        merged = combine(deltas, block.coefficients, elect=elect, aggregate=aggregate)
        return moved(block, merged, options["scale"])

    passes: tuple[Rank | Sum, ...] = (ranked,) if ranked else ()
    if rescale == "l1":
        passes += (Sum("l1", norms),)
    return Form(apply, passes, unit=unit, input_axis=input_axis)
