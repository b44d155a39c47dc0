"""TSV-M: few singular vectors of each task, made orthogonal between tasks."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.form import Form
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.spectral import (
    EXCLUDED,
    decompose,
    matmul,
    matrix_form,
    orthogonalised,
    side_by_side,
)
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def tsv_m(
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
    """Sums low-rank task matrices whose singular vectors were made orthogonal.

    delta_k = U_k S_k V_k^T, its first max(1, floor(r / K)) triplets, r = min(in, out)
    U = [U_1 ... U_K], V = [V_1 ... V_K];  Uo, Vo: their polar factors
    theta = theta_0 + scale * sum_k c_k Uo_k S_k Vo_k^T

    Leaves that are not matrices, and those of `exclude`, get the mean of task vectors,
    theta_0 + scale * sum_k c_k delta_k / K. The result is linear in c; Uo and Vo do not
    depend on it, so that a search over c pays for one decomposition where it maps over
    c. Directions of rank-deficient task vectors that have no singular value are left
    out.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; the paper has ones.
      base: tree of [...], the pretrained model.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      scale: alpha, of the merged task vector.
      exclude: regular expression of the names, in full, of matrices that get the mean.
      input_axis: of kernels; the result is the same for -2 and -1.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base, another input axis, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Gargiulo et al. 2024, arXiv:2412.00081.
    """
    del key
    return run(
        tsv_m_form(exclude=exclude, input_axis=input_axis),
        stack,
        coefficients,
        base=require_base(base, "tsv_m"),
        groups=groups,
        options={"scale": scale},
    )


def tsv_m_form(*, exclude: str = EXCLUDED, input_axis: int = -2) -> Form:
    """The form of `tsv_m`."""
    return matrix_form(_merge, exclude=exclude, input_axis=input_axis)


def _merge(deltas: jax.Array, coefficients: jax.Array) -> jax.Array:
    rank = max(1, min(deltas.shape[1:]) // len(deltas))
    triplets = decompose(deltas).first(rank)
    left = orthogonalised(side_by_side(triplets.left))
    right = orthogonalised(side_by_side(triplets.right))
    values = (coefficients[:, None] * triplets.values).reshape(-1)
    return matmul(left * values, jnp.swapaxes(right, 0, 1))


RECORDS: dict[str, Merge] = {
    "tsv_m": Merge(
        function=tsv_m,
        form=tsv_m_form,
        needs=frozenset({"base"}),
        promises=frozenset({"permutation", "base_at_zero", "shift"}),
        differentiable=False,
        reference="Gargiulo et al. 2024, arXiv:2412.00081",
    ),
}
