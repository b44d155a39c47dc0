"""KnOTS: task vectors rotated into one basis, and merged there."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import combine, contract, moved
from fusion_jax.merging.form import Block, Facts, Form, Options
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.selection import above, threshold
from fusion_jax.types import Coefficients, Key, Params, ParamStack

INNER = ("ties", "sum")


def knots(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    density: jax.Array | float = 0.2,
    scale: jax.Array | float = 1.0,
    cut: jax.Array | float = 1e-5,
    inner: str = "ties",
    input_axis: int = -2,
) -> Params:
    """Merges matrices in the directions of output that task vectors share.

    [delta_1; ...; delta_K] = P S U^T  [K * in, out], without s <= cut * max(s)
    e_k = P_k S = delta_k U
    theta = theta_0 + scale * merge(e_1, ..., e_K; c) U^T

    `merge` is TIES: each e_k keeps its `density` share of largest entries, the sign of
    their sum is elected, and those who agree are averaged by c; or the sum by c, which
    is task arithmetic. Entries are trimmed in every matrix by itself (the paper trims
    over all matrices at once). A balanced vote elects nobody, because the signs of U
    are arbitrary. Experts of low rank are given in full, theta_k = theta_0 + B_k A_k.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative with
        inner='ties', where only their ratios count.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      density: share of the in * rank entries that each e_k keeps, a number or [K].
      scale: lambda, of the merged task vector.
      cut: share of the largest singular value below which directions are dropped.
      inner: 'ties' or 'sum'.
      input_axis: -2 in Flax kernels [in, out], -1 in PyTorch's [out, in].

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. Leaves that are not
      matrices move by scale times the mean of their task vectors by c.

    Raises:
      ValueError: no base, an unknown choice, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Stoica et al. 2024, arXiv:2410.19735.
    """
    del key
    return run(
        knots_form(inner=inner, input_axis=input_axis),
        stack,
        coefficients,
        base=require_base(base, "knots"),
        groups=groups,
        options={"density": density, "scale": scale, "cut": cut},
    )


def knots_form(*, inner: str = "ties", input_axis: int = -2) -> Form:
    """The form of `knots`."""
    if inner not in INNER:
        raise ValueError(f"inner: '{inner}' is not one of {', '.join(INNER)}")
    if input_axis not in (-2, -1):
        raise ValueError(f"input_axis: {input_axis} is not -2 or -1")

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        row = block.coefficients.astype(block.experts.dtype)
        if len(block.shape) != 2 or 0 in block.shape:
            total = jnp.sum(row)
            share = row / jnp.where(total == 0, 1, total)
            return moved(block, contract(share, block.deltas), options["scale"])
        deltas = block.deltas
        if input_axis == -1:
            deltas = jnp.swapaxes(deltas, 1, 2)
        basis, rank = _basis(deltas, options["cut"])
        inside = jnp.einsum("kio,ro->kir", deltas, basis, precision="highest")
        merged = merged_inside(
            inside, row, rank=rank, density=options["density"], inner=inner
        )
        merged = jnp.matmul(merged, basis, precision="highest")
        merged = merged if input_axis == -2 else merged.T
        return moved(block, merged, options["scale"])

    return Form(apply, unit="leaf", input_axis=input_axis)


def merged_inside(
    inside: jax.Array,
    coefficients: jax.Array,
    *,
    rank: jax.Array | int,
    density: jax.Array | float,
    inner: str,
) -> jax.Array:
    """merge(e_1, ..., e_K; c), the half of `knots` inside the common basis.

    Args:
      inside: e_k, [K, in, n].
      coefficients: [K].
      rank: of the n columns those that are directions; the others are zero.
      density: share of the in * rank entries that each e_k keeps.
      inner: of `INNER`.

    Returns:
      [in, n].

    Raises:
      ValueError: `inner` is unknown.
    """
    if inner not in INNER:
        raise ValueError(f"inner: '{inner}' is not one of {', '.join(INNER)}")
    if inner == "sum":
        return contract(coefficients, inside)
    return combine(
        _trimmed(inside, rank, density),
        coefficients,
        elect="unweighted",
        aggregate="mean",
        zero_sign=0.0,
    )


def _basis(deltas: jax.Array, cut: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """U^T [min(K in, out), out], zero where it is cut, and how many rows are not."""
    tall = deltas.reshape(-1, deltas.shape[2])
    # In units of the largest entry: squares of tiny deltas are not float32.
    largest = jnp.max(jnp.abs(tall))
    tall = tall / jnp.where(largest > 0, largest, 1)
    if tall.shape[0] > tall.shape[1]:
        tall = jnp.linalg.qr(tall, mode="r")
    _, values, basis = jnp.linalg.svd(tall, full_matrices=False)
    keep = values > cut * jnp.max(values)
    return jnp.where(keep[:, None], basis, 0), jnp.sum(keep)


def _trimmed(
    inside: jax.Array, rank: jax.Array | int, density: jax.Array | float
) -> jax.Array:
    """The largest entries of each e_k, of its in * rank."""
    values = jnp.abs(inside).astype(jnp.float32)
    # Of the rank alone: dropped directions are no entries.
    size = jnp.asarray(inside.shape[1] * rank, inside.dtype)
    counts = jnp.floor(jnp.asarray(density, inside.dtype) * size + 1e-6)
    line = threshold(values.reshape(len(values), -1), counts)
    places = jnp.arange(values[0].size, dtype=jnp.int32).reshape(values.shape[1:])
    return jnp.where(above(values, line, places), inside, 0)


RECORDS: dict[str, Merge] = {
    "knots": Merge(
        function=knots,
        form=knots_form,
        needs=frozenset({"base"}),
        promises=frozenset({"permutation", "base_at_zero", "scale_free", "shift"}),
        differentiable=False,
        reference="Stoica et al. 2024, arXiv:2410.19735",
    ),
}
