"""NearSwap: step towards another model, no entry further than t."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.form import Block, Facts, Form, Options
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def nearswap(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    t: jax.Array | float = 1e-4,
) -> Params:
    """Takes entries that are near, and moves the others by t.

    w = clip(t / |theta_1 - theta_0|, 0, 1)
    theta = w theta_1 + (1 - w) theta_0 = theta_0 + clip(theta_1 - theta_0, -t, t)

    Args:
      stack: tree of [1, ...], the other model.
      coefficients: [1], [G, 1] with `groups`, or a tree of [1]; their shape is
        checked, their values do not count.
      base: tree of [...], the model to start from.
      key: not used.
      groups: as the coefficients.
      t: absolute, in units of the parameters; 0 (or less) is the base.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32; entries nearer than t are
      exactly those of the other model.

    Raises:
      ValueError: more than one expert, no base, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the expert.

    Reference: no publication; a method of mergekit.
    """
    del key
    return run(
        nearswap_form(),
        stack,
        coefficients,
        base=require_base(base, "nearswap"),
        groups=groups,
        options={"t": t},
    )


def nearswap_form() -> Form:
    """The form of `nearswap`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        assert block.base is not None
        if len(block.experts) != 1:
            raise ValueError(f"nearswap: {len(block.experts)} experts given, takes one")
        t, delta = jnp.maximum(options["t"], 0), block.deltas[0]
        stepped = block.base + jnp.clip(delta, -t, t)
        return jnp.where(jnp.abs(delta) <= t, block.experts[0], stepped)

    return Form(apply)


RECORDS: dict[str, Merge] = {
    "nearswap": Merge(
        function=nearswap,
        form=nearswap_form,
        needs=frozenset({"base"}),
        promises=frozenset({"scale_free", "shift"}),
        experts=(1, 1),
        reference="no publication; a method of mergekit",
        weights=False,
    ),
}
