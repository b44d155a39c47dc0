"""RAM: average each entry over the experts that changed it."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import column, moved, total
from fusion_jax.merging.form import Block, Facts, Form, Options, Sum
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def ram(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    epsilon: jax.Array | float = 1e-5,
) -> Params:
    """Mean of each entry's task vectors over those experts that changed it.

    z_k = [|delta_k| > epsilon],  n = sum_k z_k
    theta = theta_0 + sum_k z_k delta_k / max(n, 1)

    For sparse task vectors, as reinforcement learning leaves them; of dense ones it is
    the plain average.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; their shape is
        checked, their values do not count.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: as the coefficients.
      epsilon: absolute, as the method defines it: the result depends on the scale of
        the task vectors, and on the dtype they were stored in.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: arXiv:2601.13572.
    """
    del key
    return run(
        ram_form(),
        stack,
        coefficients,
        base=require_base(base, "ram"),
        groups=groups,
        options={"epsilon": epsilon},
    )


def ram_plus(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    epsilon: jax.Array | float = 1e-5,
    boost: jax.Array | float = 0.1,
    limit: jax.Array | float = 0.2,
) -> Params:
    """`ram` that strengthens what one expert alone has changed.

    z_k, n as in `ram`; over a leaf, shared_k = #[z_k, n > 1], unique_k = #[z_k, n = 1]
    b_k = 1 + boost * clip(shared_k / unique_k, 0, limit)
    theta = theta_0 + sum_k z_k delta_k (b_k if n = 1, else 1/n)

    Args:
      stack: see `ram`.
      coefficients: see `ram`; their values do not count.
      base: see `ram`.
      key: not used.
      groups: see `ram`.
      epsilon: see `ram`; absolute.
      boost: strength of the factor b_k.
      limit: largest ratio of shared to unique entries that counts.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: arXiv:2601.13572.
    """
    del key
    return run(
        ram_plus_form(),
        stack,
        coefficients,
        base=require_base(base, "ram_plus"),
        groups=groups,
        options={"epsilon": epsilon, "boost": boost, "limit": limit},
    )


def ram_form() -> Form:
    """The form of `ram`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        changed, number = _changed(block, options)
        summed = total(jnp.where(changed, block.deltas, 0))
        return moved(block, summed / jnp.maximum(number, 1), 1.0)

    return Form(apply)


def ram_plus_form() -> Form:
    """The form of `ram_plus`."""

    def overlap(block: Block, facts: Facts, options: Options) -> dict[str, jax.Array]:
        del facts
        changed, number = _changed(block, options)
        axes = tuple(range(1, changed.ndim))
        return {
            "shared": jnp.sum(changed & (number > 1), axis=axes, dtype=jnp.int32),
            "unique": jnp.sum(changed & (number == 1), axis=axes, dtype=jnp.int32),
        }

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        changed, number = _changed(block, options)
        counts = facts["overlap"]
        ratio = counts["shared"] / jnp.maximum(counts["unique"], 1)
        factor = 1 + options["boost"] * jnp.clip(ratio, 0, options["limit"])
        share = jnp.where(
            number == 1, column(factor, block), 1 / jnp.maximum(number, 1)
        )
        return moved(block, total(jnp.where(changed, share * block.deltas, 0)), 1.0)

    return Form(apply, (Sum("overlap", overlap),))


def _changed(block: Block, options: Options) -> tuple[jax.Array, jax.Array]:
    """Which experts changed an entry, [K, ...], and how many they are, [...]."""
    changed = jnp.abs(block.deltas) > options["epsilon"]
    return changed, total(changed.astype(jnp.int32))


_PROMISES = frozenset({"equal_experts", "permutation", "scale_free", "shift"})

RECORDS: dict[str, Merge] = {
    "ram": Merge(
        function=ram,
        form=ram_form,
        needs=frozenset({"base"}),
        promises=_PROMISES,
        reference="arXiv:2601.13572",
        weights=False,
    ),
    "ram_plus": Merge(
        function=ram_plus,
        form=ram_plus_form,
        needs=frozenset({"base"}),
        promises=_PROMISES,
        reference="arXiv:2601.13572",
        weights=False,
    ),
}
