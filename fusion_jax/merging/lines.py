"""LiNeS: a summed task vector, scaled by the depth of its layers."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.merging.combine import contract, moved, total
from fusion_jax.merging.form import Block, Facts, Form, Options, Sum
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack

_MOST_LAYERS = 1024
_LAYER = r".*layer_(\d+)/.*"


def lines(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    alpha: jax.Array | float | None = None,
    beta: jax.Array | float = 0.5,
    layer_pattern: str = _LAYER,
) -> Params:
    r"""Task arithmetic whose scale grows from the first layer to the last.

    delta_M = sum_k c_k delta_k
    lambda = alpha + beta l / (L - 1) in layer l of L, alpha outside of layers
    theta = theta_0 + lambda delta_M

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; any sign and sum.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      alpha: scale of the first layer; None: ||sum_k delta_k||_1 / (K ||delta_M||_1)
        over the whole vector, which gives the merge the size of an average. For one
        expert the paper has alpha and beta = 1 - alpha.
      beta: what the last layer gets more; to be tuned.
      layer_pattern: regular expression that a leaf's name matches in full; its one
        group is the number of the layer. L is one more than the largest number found
        in any leaf, so that stacks of one model, an encoder and a decoder, are counted
        alike; leaves that do not match are outside of layers. One layer gets alpha.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, a pattern without exactly one group, a layer that is not a
        number below 1024, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Wang et al. 2024, arXiv:2410.17146.
    """
    del key
    return run(
        lines_form(layer_pattern=layer_pattern),
        stack,
        coefficients,
        base=require_base(base, "lines"),
        groups=groups,
        options={"alpha": alpha, "beta": beta},
    )


def lines_form(*, layer_pattern: str = _LAYER) -> Form:
    """The form of `lines`."""
    pattern = re.compile(layer_pattern)
    if pattern.groups != 1:
        raise ValueError(
            f"layer_pattern: '{layer_pattern}' has {pattern.groups} groups; give it "
            r"one, of the number of the layer, such as '.*layer_(\d+)/.*'"
        )

    def layer(name: str) -> int | None:
        matched = pattern.fullmatch(name)
        if matched is None:
            return None
        number = matched.group(1) or ""
        if not number.isdecimal() or int(number) >= _MOST_LAYERS:
            raise ValueError(
                f"layer_pattern: '{number}' in leaf '{name}' is not a number below "
                f"{_MOST_LAYERS}"
            )
        return int(number)

    def sizes(block: Block, facts: Facts, options: Options) -> dict[str, Any]:
        del facts, options
        # Only sums are gathered over leaves: the largest number is that of the last
        # place that anybody marked.
        found = np.zeros(_MOST_LAYERS, np.float32)
        number = layer(block.name)
        if number is not None:
            found[number] = 1
        merged = contract(block.coefficients, block.deltas)
        return {
            "sum": jnp.sum(jnp.abs(total(block.deltas))),
            "merged": jnp.sum(jnp.abs(merged)),
            "found": jnp.asarray(found),
        }

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        sizes = facts["sizes"]
        factor = options.get("alpha")
        if factor is None:
            factor = _ratio(sizes["sum"], sizes["merged"]) / len(block.experts)
        number = layer(block.name)
        if number is not None:
            last = jnp.max(jnp.where(sizes["found"] > 0, jnp.arange(_MOST_LAYERS), 0))
            factor += options["beta"] * number / jnp.maximum(last, 1)
        return moved(block, contract(block.coefficients, block.deltas), factor)

    return Form(apply, (Sum("sizes", sizes),), scope="model", by_name=True)


def _ratio(above: jax.Array, below: jax.Array) -> jax.Array:
    """A quotient, 0 over zero, with finite gradients of tiny numbers."""
    # The derivative of a quotient has 1 / below^2, which overflows below 1e-19.
    unit = jax.lax.stop_gradient(jnp.where(below == 0, 1, below))
    ratio = (above / unit) / jnp.where(below == 0, 1, below / unit)
    return jnp.where(below == 0, 0, ratio)


RECORDS: dict[str, Merge] = {
    "lines": Merge(
        function=lines,
        form=lines_form,
        needs=frozenset({"base"}),
        promises=frozenset({"permutation", "base_at_zero", "shift"}),
        leafwise=False,
        reference="Wang et al. 2024, arXiv:2410.17146",
    ),
}
