"""Iso-C and Iso-CTS: a summed task matrix with all its singular values equal."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import contract
from fusion_jax.merging.form import Form
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.selection import count
from fusion_jax.merging.spectral import (
    EXCLUDED,
    decompose,
    matmul,
    matrix_form,
    orthogonalised,
    side_by_side,
)
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def iso_c(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    scale: jax.Array | float = 1.0,
    exclude: str = EXCLUDED,
    input_axis: int = -2,
) -> Params:
    """Gives the summed task matrix one singular value in all directions, their mean.

    sum_k c_k delta_k = U S V^T
    theta = theta_0 + scale * mean(S) U V^T

    Leaves that are not matrices, and those of `exclude`, get the mean of task vectors,
    theta_0 + scale * sum_k c_k delta_k / K. Directions in which the sum is 0 count in
    the mean and stay 0, as no singular vector of theirs is distinguished.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; the paper has ones.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      scale: alpha, of the merged task vector; the paper tunes it, up to 3.
      exclude: regular expression of the names, in full, of matrices that get the mean.
      input_axis: of kernels; the result is the same for -2 and -1.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, another input axis, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Marczak et al. 2025, arXiv:2502.04959.
    """
    del key
    return run(
        iso_c_form(exclude=exclude, input_axis=input_axis),
        stack,
        coefficients,
        base=require_base(base, "iso_c"),
        groups=groups,
        options={"scale": scale},
    )


def iso_cts(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    scale: jax.Array | float = 1.0,
    common_fraction: float = 0.8,
    exclude: str = EXCLUDED,
    input_axis: int = -2,
) -> Params:
    """Iso-C in a common and in task-specific subspaces.

    n = round((r - floor(f r)) / K), at most floor(r / K);  r_c = r - K n
    U_c, S_c, V_c: first r_c triplets of sum_k c_k delta_k
    U_k, S_k, V_k: first n triplets of c_k delta_k (I - V_c V_c^T)
    Uo, Vo: polar factors of [U_c U_1 ... U_K] and [V_c V_1 ... V_K]
    theta = theta_0 + scale * mean(all S) Uo Vo^T

    for delta [in, out]: the projection takes the common directions from the outputs.
    Leaves that are not matrices, and those of `exclude`, get the mean of task vectors,
    theta_0 + scale * sum_k c_k delta_k / K. Directions without a singular value count
    in the mean and stay 0.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; the paper has ones.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      scale: alpha, of the merged task vector; the paper tunes it, up to 3.
      common_fraction: f, in [0, 1]; a number known at compilation.
      exclude: regular expression of the names, in full, of matrices that get the mean.
      input_axis: of kernels, -2 in [in, out], -1 in [out, in].

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, a fraction outside [0, 1], another input axis, or
        coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Marczak et al. 2025, arXiv:2502.04959.
    """
    del key
    return run(
        iso_cts_form(
            common_fraction=common_fraction, exclude=exclude, input_axis=input_axis
        ),
        stack,
        coefficients,
        base=require_base(base, "iso_cts"),
        groups=groups,
        options={"scale": scale},
    )


def iso_c_form(*, exclude: str = EXCLUDED, input_axis: int = -2) -> Form:
    """The form of `iso_c`."""

    def merge(deltas: jax.Array, coefficients: jax.Array) -> jax.Array:
        left, values, right = decompose(contract(coefficients, deltas))
        return jnp.mean(values) * matmul(left, right.T)

    return matrix_form(merge, exclude=exclude, input_axis=input_axis)


def iso_cts_form(
    *, common_fraction: float = 0.8, exclude: str = EXCLUDED, input_axis: int = -2
) -> Form:
    """The form of `iso_cts`."""
    if not 0 <= common_fraction <= 1:
        raise ValueError(f"common_fraction: {common_fraction} is not in [0, 1]")

    def merge(deltas: jax.Array, coefficients: jax.Array) -> jax.Array:
        full = min(deltas.shape[1:])
        rest = full - count(common_fraction, full)
        own = min(round(rest / len(deltas)), full // len(deltas))
        common = decompose(contract(coefficients, deltas)).first(
            full - own * len(deltas)
        )
        shared = matmul(common.right, common.right.T)
        tasks = coefficients[:, None, None] * deltas
        tasks = decompose(tasks - matmul(tasks, shared)).first(own)
        left = jnp.concatenate([common.left, side_by_side(tasks.left)], axis=1)
        right = jnp.concatenate([common.right, side_by_side(tasks.right)], axis=1)
        values = jnp.concatenate([common.values, tasks.values.reshape(-1)])
        return jnp.mean(values) * matmul(orthogonalised(left), orthogonalised(right).T)

    return matrix_form(merge, exclude=exclude, input_axis=input_axis)


_REFERENCE = "Marczak et al. 2025, arXiv:2502.04959"
_PROMISES = frozenset({"permutation", "base_at_zero", "shift"})

RECORDS: dict[str, Merge] = {
    "iso_c": Merge(
        function=iso_c,
        form=iso_c_form,
        needs=frozenset({"base"}),
        promises=_PROMISES,
        differentiable=False,
        reference=_REFERENCE,
    ),
    "iso_cts": Merge(
        function=iso_cts,
        form=iso_cts_form,
        needs=frozenset({"base"}),
        promises=_PROMISES,
        differentiable=False,
        reference=_REFERENCE,
    ),
}
