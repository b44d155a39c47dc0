"""DARE: drop entries of the task vectors at random and rescale the rest."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import column
from fusion_jax.merging.dropping import dropping_form
from fusion_jax.merging.form import Block, Facts, Form, Options
from fusion_jax.merging.in_memory import require_base, require_key, run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def dare(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    density: jax.Array | float = 0.1,
    scale: jax.Array | float = 1.0,
    elect: str = "none",
    aggregate: str = "sum",
    rescale: str = "inverse",
    exempt_vectors: bool = True,
) -> Params:
    """Keeps each entry of a task vector with one probability, and rescales it.

    d_k = m_k delta_k / density,  m_k ~ Bernoulli(density) for each entry
    theta = theta_0 + scale * sum_k c_k d_k

    The mean of d_k over keys is delta_k.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative with
        aggregate='mean', where only their ratios count.
      base: tree of [...], the pretrained model.
      key: of the masks; each leaf and expert has its own, by the leaf's name and the
        expert's position.
      groups: ordered (regular expression, row of coefficients) rules.
      density: 1 - p, the probability of keeping an entry, a number or [K]. At 0 the
        task vector is 0, at 1 it is whole.
      scale: lambda, of the merged task vector.
      elect: 'none', or signs elected as in TIES: 'unweighted', 'weighted'.
      aggregate: 'sum', or 'mean' over coefficients (of those who agree).
      rescale: 'inverse' by 1/density (the paper), 'l1' to the leaf's L1 norm before
        (mergekit; biased on small leaves; at most n-fold), or 'none'.
      exempt_vectors: leave leaves of one axis or none as they are: a leaf of n entries
        would be emptied with probability (1 - density)^n.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base or key, an unknown choice, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Yu et al. 2024, arXiv:2311.03099.
    """
    return run(
        dare_form(
            elect=elect,
            aggregate=aggregate,
            rescale=rescale,
            exempt_vectors=exempt_vectors,
        ),
        stack,
        coefficients,
        base=require_base(base, "dare"),
        key=require_key(key, "dare"),
        groups=groups,
        options={"density": density, "scale": scale},
    )


def dare_ties(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    density: jax.Array | float = 0.1,
    scale: jax.Array | float = 1.0,
    elect: str = "unweighted",
    aggregate: str = "mean",
    rescale: str = "inverse",
    exempt_vectors: bool = True,
) -> Params:
    """`dare` with the election and the mean of TIES in place of its trimming.

    d_k = m_k delta_k / density,  m_k ~ Bernoulli(density) for each entry
    s = sign(sum_k d_k),  a_k = [d_k s > 0]
    theta = theta_0 + scale * sum_k c_k a_k d_k / sum_k c_k a_k

    Args:
      stack: see `dare`.
      coefficients: see `dare`; not negative with aggregate='mean'.
      base: see `dare`.
      key: see `dare`.
      groups: see `dare`.
      density: see `dare`.
      scale: see `dare`.
      elect: see `dare`.
      aggregate: see `dare`.
      rescale: see `dare`.
      exempt_vectors: see `dare`; exempt leaves vote and are merged likewise.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: no base or key, an unknown choice, or coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Yu et al. 2024, arXiv:2311.03099.
    """
    return dare(
        stack,
        coefficients,
        base=require_base(base, "dare_ties"),
        key=require_key(key, "dare_ties"),
        groups=groups,
        density=density,
        scale=scale,
        elect=elect,
        aggregate=aggregate,
        rescale=rescale,
        exempt_vectors=exempt_vectors,
    )


def dare_form(
    *,
    elect: str = "none",
    aggregate: str = "sum",
    rescale: str = "inverse",
    exempt_vectors: bool = True,
) -> Form:
    """The form of `dare`."""

    def probabilities(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        q = column(options["density"], block).astype(jnp.float32)
        return jnp.clip(q, 0, 1)

    return dropping_form(
        probabilities,
        elect=elect,
        aggregate=aggregate,
        rescale=rescale,
        exempt_vectors=exempt_vectors,
    )


def dare_ties_form(
    *,
    elect: str = "unweighted",
    aggregate: str = "mean",
    rescale: str = "inverse",
    exempt_vectors: bool = True,
) -> Form:
    """The form of `dare_ties`."""
    return dare_form(
        elect=elect,
        aggregate=aggregate,
        rescale=rescale,
        exempt_vectors=exempt_vectors,
    )


RECORDS: dict[str, Merge] = {
    "dare": Merge(
        function=dare,
        form=dare_form,
        needs=frozenset({"base", "key"}),
        promises=frozenset({"base_at_zero", "shift"}),
        reference="Yu et al. 2024, arXiv:2311.03099",
    ),
    "dare_ties": Merge(
        function=dare_ties,
        form=dare_ties_form,
        needs=frozenset({"base", "key"}),
        promises=frozenset({"base_at_zero", "scale_free", "shift"}),
        reference="Yu et al. 2024, arXiv:2311.03099",
    ),
}
