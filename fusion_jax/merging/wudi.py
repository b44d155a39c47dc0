"""WUDI in closed form: a task vector that agrees with each on its own subspace."""

import re

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import contract, moved
from fusion_jax.merging.form import Block, Facts, Form, Options
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.ridge import correction
from fusion_jax.merging.spectral import EXCLUDED
from fusion_jax.types import Coefficients, Key, Params, ParamStack

TABLES = EXCLUDED + r"|(.*[/.])?(shared|relative_attention_bias)([/.].*)?"
"""Those, and the tables of T5: a table's first axis is no input, and it is long."""


def wudi(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    ridge: jax.Array | float = 1e-3,
    exclude: str = TABLES,
    others: str = "mean",
    input_axis: int = -2,
) -> Params:
    """Task vector with the least interference, taking task vectors for inputs.

    minimise over delta  sum_k c_k ||delta_k^T (delta - delta_k)||^2 / ||delta_k||^2
    (A + r I) delta = sum_k c_k G_k delta_k + r sum_k c_k delta_k,  A = sum_k c_k G_k,
    G_k = delta_k delta_k^T / ||delta_k||^2,  r = ridge * trace(A) / in
    theta = theta_0 + delta

    The paper descends from the plain sum of task vectors and stops early, which leaves
    directions that the objective hardly sees at the sum. The ridge towards the sum
    (weighted, so that coefficients of one are the paper's) does the same without steps.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      ridge: relative to the mean of the diagonal of A.
      exclude: regular expression; leaves whose name matches in full are among the
        others.
      others: of leaves that are not matrices or excluded: 'mean' of task vectors by c,
        or 'base', which leaves them as pretrained (the paper).
      input_axis: -2 in Flax kernels [in, out], -1 in PyTorch's [out, in].

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, an unknown choice, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Cheng et al. 2025, arXiv:2503.08099.
    """
    del key
    return run(
        wudi_form(exclude=exclude, others=others, input_axis=input_axis),
        stack,
        coefficients,
        base=require_base(base, "wudi"),
        groups=groups,
        options={"ridge": ridge},
    )


def wudi_form(
    *, exclude: str = TABLES, others: str = "mean", input_axis: int = -2
) -> Form:
    """The form of `wudi`."""
    if others not in ("mean", "base"):
        raise ValueError(f"others: '{others}' is not one of mean, base")
    if input_axis not in (-2, -1):
        raise ValueError(f"input_axis: {input_axis} is not -2 or -1")
    excluded = re.compile(exclude)

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        row = block.coefficients.astype(block.experts.dtype)
        if len(block.shape) != 2 or 0 in block.shape or excluded.fullmatch(block.name):
            if others == "base":
                assert block.base is not None
                return block.base
            total = jnp.sum(row)
            share = row / jnp.where(total == 0, 1, total)
            return moved(block, contract(share, block.deltas), 1.0)
        deltas = block.deltas
        if input_axis == -1:
            deltas = jnp.swapaxes(deltas, 1, 2)
        merged = _least_interference(deltas, row, options["ridge"])
        return moved(block, merged if input_axis == -2 else merged.T, 1.0)

    return Form(apply, unit="leaf", input_axis=input_axis, by_name=True)


def _least_interference(
    deltas: jax.Array, row: jax.Array, ridge: jax.Array | float
) -> jax.Array:
    """[K, in, out], [K] -> [in, out]."""
    start = contract(row, deltas)
    unit = _unit(deltas)
    gaps = row[:, None, None] * (deltas - start)
    _, num_in, num_out = deltas.shape
    matrix = jnp.einsum(
        "kio,kjo->ij", row[:, None, None] * unit, unit, precision="highest"
    )
    # The smaller of the two Gram matrices in between.
    if num_in <= num_out:
        grams = jnp.einsum("kio,kjo->kij", unit, unit, precision="highest")
        residual = jnp.einsum("kij,kjo->io", grams, gaps, precision="highest")
    else:
        inner = jnp.einsum("kio,kip->kop", unit, gaps, precision="highest")
        residual = jnp.einsum("kio,kop->ip", unit, inner, precision="highest")
    return start + correction(matrix, residual, ridge)


def _unit(deltas: jax.Array) -> jax.Array:
    """delta_k / ||delta_k||; 0 where delta_k is 0."""
    # Two divisions: the square of 1e-30 is not a float32. The first one cancels.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(deltas), axis=(1, 2)))
    scaled = deltas / jnp.where(largest > 0, largest, 1)[:, None, None]
    square = jnp.sum(scaled**2, axis=(1, 2))
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return scaled / norm[:, None, None]


RECORDS: dict[str, Merge] = {
    "wudi": Merge(
        function=wudi,
        form=wudi_form,
        needs=frozenset({"base"}),
        promises=frozenset(
            {"one_hot", "equal_experts", "permutation", "base_at_zero", "shift"}
        ),
        reference="Cheng et al. 2025, arXiv:2503.08099",
    ),
}
