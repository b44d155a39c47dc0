"""Fisher merging: every entry of every expert weighs as much as it is certain."""

import math

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import contract, total
from fusion_jax.merging.form import Block, Facts, Form, Options, Sum
from fusion_jax.merging.in_memory import run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack

NORMS = ("none", "model", "tensor")


def fisher(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    statistics: Params,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    floor: jax.Array | float = 1e-6,
    normalize: str = "none",
) -> Params:
    """Average of experts, entry by entry, by their diagonal Fisher information.

    f_k = max(F_k, floor * m),  m the mean of F over the leaf and all experts
    theta = sum_k c_k f_k theta_k / sum_k c_k f_k

    The floor is relative, so that the unit of the Fishers does not count. Where the
    Fishers of all experts are below it, or 0, this is the mean by c alone.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative, their sum
        not zero. Only their ratios count.
      statistics: diagonal Fishers F_k, tree of [K, ...] like `stack`, not negative.
      base: not used.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      floor: share of m.
      normalize: of `NORMS`. 'model' divides each F_k by its L2 norm over the whole
        model first, so that no expert is louder because its Fisher is; m is then the
        mean over the model. 'tensor' divides each leaf of F_k by its mean. A Fisher is
        concentrated: a few entries make its norm, and most of a model may be decided
        by which expert has fewer of them. Leaf by leaf that is not so.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: Fishers are missing or have other shapes, the coefficients do not
        fit, or the norm is unknown.

    Reference: Matena & Raffel 2022, arXiv:2111.09832.
    """
    del base, key
    fishers = trees.flatten(statistics)
    _check(trees.flatten(stack), fishers)
    return run(
        fisher_form(normalize=normalize),
        stack,
        coefficients,
        groups=groups,
        options={"floor": floor},
        statistics=fishers,
    )


def fisher_form(*, normalize: str = "none") -> Form:
    """The form of `fisher`."""
    if normalize not in NORMS:
        raise ValueError(
            f"fisher: normalize '{normalize}' is not one of {', '.join(NORMS)}"
        )

    def whole(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts, options
        return jnp.sum(_flat(block), axis=1)

    def entries(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts, options
        if block.valid is None:
            return jnp.asarray(math.prod(block.experts.shape[1:]), block.experts.dtype)
        return jnp.sum(block.valid.astype(block.experts.dtype))

    def square(block: Block, facts: Facts, options: Options) -> jax.Array:
        # In units of the sum: the square of a Fisher of 1e-20 is not a float32.
        del options
        return jnp.sum((_flat(block) / _positive(facts["whole"])[:, None]) ** 2, axis=1)

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        sums = facts["whole"]
        unit = jnp.ones_like(sums)
        if normalize == "tensor":
            unit = _positive(sums / facts["entries"])
        if normalize == "model":
            # [K]: the L2 norms, of which the sums were divided out above.
            unit = _positive(sums) * jnp.sqrt(_positive(facts["square"]))
        mean = jnp.sum(sums / unit) / (len(sums) * facts["entries"])
        column = (-1, *[1] * (block.experts.ndim - 1))
        certainty = _fishers(block) / (unit * _positive(mean)).reshape(column)
        certainty = jnp.maximum(certainty, options["floor"])
        row = block.coefficients.astype(block.experts.dtype)
        middle = contract(row / jnp.sum(row), block.experts)
        share = row.reshape(column) * certainty
        divisor = total(share)
        # From the mean: it is what is left where nothing is known.
        moves = total(share * (block.experts - middle))
        known = divisor != 0
        return middle + jnp.where(known, moves / jnp.where(known, divisor, 1), 0)

    passes = (Sum("whole", whole), Sum("entries", entries))
    if normalize == "model":
        passes += (Sum("square", square),)
    return Form(apply, passes, scope="model" if normalize == "model" else "leaf")


def _fishers(block: Block) -> jax.Array:
    if block.statistics is None:
        raise ValueError(f"fisher: no Fishers for leaf '{block.name}'")
    return jnp.asarray(block.statistics).astype(block.experts.dtype)


def _flat(block: Block) -> jax.Array:
    return _fishers(block).reshape(len(block.experts), -1)


def _positive(x: jax.Array) -> jax.Array:
    """The same, 1 in the place of 0: a divisor."""
    return jnp.where(x > 0, x, 1)


def _check(leaves: dict[str, jax.Array], fishers: dict[str, jax.Array]) -> None:
    faults = [
        f"{name}: no such leaf in the stack" for name in fishers.keys() - leaves.keys()
    ]
    for name, x in leaves.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            continue
        if name not in fishers:
            faults.append(f"{name}: missing")
        elif jnp.shape(fishers[name]) != x.shape:
            faults.append(f"{name}: {jnp.shape(fishers[name])}, experts are {x.shape}")
    if faults:
        lines = "\n  ".join(sorted(faults)[:40])
        raise ValueError(
            f"fisher: statistics must be the Fishers of every leaf, shaped like the "
            f"stack:\n  {lines}"
        )


RECORDS: dict[str, Merge] = {
    "fisher": Merge(
        function=fisher,
        form=fisher_form,
        needs=frozenset({"statistics"}),
        promises=frozenset(
            {"one_hot", "equal_experts", "permutation", "scale_free", "shift"}
        ),
        reference="Matena & Raffel 2022, arXiv:2111.09832",
    ),
}
