"""DELLA: drop entries at random, the larger of a row less often."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import column
from fusion_jax.merging.dropping import dropping_form
from fusion_jax.merging.form import Block, Facts, Form, Options, Rank
from fusion_jax.merging.in_memory import require_base, require_key, run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.ties import magnitudes
from fusion_jax.types import Coefficients, Key, Params, ParamStack

# 1/q grows without bound as q falls to 0: one survivor would outweigh the leaf.
_LEAST = 1e-3


def della(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    density: jax.Array | float = 0.7,
    epsilon: jax.Array | float = 0.07,
    scale: jax.Array | float = 1.0,
    elect: str = "unweighted",
    aggregate: str = "mean",
    rescale: str = "inverse",
    exempt_vectors: bool = True,
    input_axis: int = -2,
) -> Params:
    """Keeps entries with a probability that grows with their rank, then as TIES.

    q_k = density - epsilon + 2 epsilon (rank_k - 1) / (in - 1),  rank_k = 1..in of
        |delta_k| along the input axis, smallest first; the fraction is 1/2 where in = 1
    d_k = m_k delta_k / q_k,  m_k ~ Bernoulli(q_k);  s = sign(sum_k d_k)
    theta = theta_0 + scale * sum_k c_k a_k d_k / sum_k c_k a_k,  a_k = [d_k s > 0]

    The mean of d_k over keys is delta_k.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative with
        aggregate='mean', where only their ratios count.
      base: tree of [...], the pretrained model.
      key: of the masks; each leaf and expert has its own, by the leaf's name and the
        expert's position.
      groups: ordered (regular expression, row of coefficients) rules.
      density: mean probability of keeping an entry, a number or [K]. At 0 (or less)
        the task vector is 0, at 1 (or more) it is whole, whatever epsilon.
      epsilon: half the width of the window of probabilities, a number or [K]. Where
        the window leaves (0, 1], probabilities are clipped to [0.001, 1] (or
        [density, 1], if that is less) and their mean is no longer `density`.
      scale: lambda, of the merged task vector.
      elect: 'unweighted', 'weighted' by coefficients, or 'none'.
      aggregate: 'mean' of those who agree, or 'sum'.
      rescale: 'inverse', each entry by its own 1/q_k (the paper), 'l1' to the leaf's
        L1 norm before (mergekit; favours large entries; at most n-fold), or 'none'.
      exempt_vectors: leave leaves of one axis or none as they are; else a vector's
        only axis is its input axis.
      input_axis: of matrices; -2 for Flax kernels [in, out], -1 for PyTorch's.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base or key, an unknown choice, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Deep et al. 2024, arXiv:2406.11617.
    """
    return run(
        della_form(
            elect=elect,
            aggregate=aggregate,
            rescale=rescale,
            exempt_vectors=exempt_vectors,
            input_axis=input_axis,
        ),
        stack,
        coefficients,
        base=require_base(base, "della"),
        key=require_key(key, "della"),
        groups=groups,
        options={"density": density, "epsilon": epsilon, "scale": scale},
    )


def della_linear(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    density: jax.Array | float = 0.7,
    epsilon: jax.Array | float = 0.07,
    scale: jax.Array | float = 1.0,
    elect: str = "none",
    aggregate: str = "sum",
    rescale: str = "inverse",
    exempt_vectors: bool = True,
    input_axis: int = -2,
) -> Params:
    """`della` with a plain weighted sum in place of the election.

    theta = theta_0 + scale * sum_k c_k d_k,  d_k as in `della`

    Args:
      stack: see `della`.
      coefficients: see `della`; of any sign and sum with aggregate='sum'.
      base: see `della`.
      key: see `della`.
      groups: see `della`.
      density: see `della`.
      epsilon: see `della`.
      scale: see `della`.
      elect: see `della`.
      aggregate: see `della`.
      rescale: see `della`.
      exempt_vectors: see `della`.
      input_axis: see `della`.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base or key, an unknown choice, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Deep et al. 2024, arXiv:2406.11617.
    """
    return della(
        stack,
        coefficients,
        base=require_base(base, "della_linear"),
        key=require_key(key, "della_linear"),
        groups=groups,
        density=density,
        epsilon=epsilon,
        scale=scale,
        elect=elect,
        aggregate=aggregate,
        rescale=rescale,
        exempt_vectors=exempt_vectors,
        input_axis=input_axis,
    )


def della_form(
    *,
    elect: str = "unweighted",
    aggregate: str = "mean",
    rescale: str = "inverse",
    exempt_vectors: bool = True,
    input_axis: int = -2,
) -> Form:
    """The form of `della`."""

    def probabilities(block: Block, facts: Facts, options: Options) -> jax.Array:
        density = column(options["density"], block).astype(jnp.float32)
        epsilon = column(options["epsilon"], block).astype(jnp.float32)
        ranks = facts["rank"].astype(jnp.float32)
        # Of a row of one entry the fraction has no value: its middle.
        last = _row_length(block, input_axis) - 1
        share = ranks / last if last else jnp.full(ranks.shape, 0.5, jnp.float32)
        q = density + epsilon * (2 * share - 1)
        q = jnp.clip(q, jnp.minimum(density, _LEAST), 1)
        return jnp.where(density >= 1, 1, jnp.where(density <= 0, 0, q))

    return dropping_form(
        probabilities,
        elect=elect,
        aggregate=aggregate,
        rescale=rescale,
        exempt_vectors=exempt_vectors,
        ranked=Rank("rank", magnitudes),
        unit="row",
        input_axis=input_axis,
    )


def della_linear_form(
    *,
    elect: str = "none",
    aggregate: str = "sum",
    rescale: str = "inverse",
    exempt_vectors: bool = True,
    input_axis: int = -2,
) -> Form:
    """The form of `della_linear`."""
    return della_form(
        elect=elect,
        aggregate=aggregate,
        rescale=rescale,
        exempt_vectors=exempt_vectors,
        input_axis=input_axis,
    )


def _row_length(block: Block, input_axis: int) -> int:
    shape = block.experts.shape[1:]
    return 1 if not shape else shape[input_axis if len(shape) > 1 else -1]


RECORDS: dict[str, Merge] = {
    "della": Merge(
        function=della,
        form=della_form,
        needs=frozenset({"base", "key"}),
        promises=frozenset({"base_at_zero", "scale_free", "shift"}),
        differentiable=False,
        reference="Deep et al. 2024, arXiv:2406.11617",
    ),
    "della_linear": Merge(
        function=della_linear,
        form=della_linear_form,
        needs=frozenset({"base", "key"}),
        promises=frozenset({"base_at_zero", "shift"}),
        differentiable=False,
        reference="Deep et al. 2024, arXiv:2406.11617",
    ),
}
