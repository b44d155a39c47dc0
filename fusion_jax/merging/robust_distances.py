"""Merges that tell bad experts by their distances: geometric median and Krum."""

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import contract
from fusion_jax.merging.form import Block, Facts, Form, Options, Sum
from fusion_jax.merging.gram import roots, squared_distances
from fusion_jax.merging.in_memory import run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def geometric_median(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    smoothing: jax.Array | float = 1e-4,
    num_iterations: int = 32,
) -> Params:
    """The point with the smallest sum of distances to all experts.

    theta = argmin sum_k c_k ||theta - theta_k||, over the whole model, from the
    weighted mean by theta <- sum_k w_k theta_k / sum_k w_k
    with w_k = c_k / max(||theta - theta_k||, smoothing * s)
    and s the root mean square distance between two experts

    Every iterate is a combination of experts, so it is found from their [K, K]
    distances, whatever the size of the model.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative. Only
        their ratios count; all 0 is the same as all equal. A leaf uses its own row
        and the distances of the whole model.
      base: not used.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      smoothing: nu, the least distance as a share of s; more than 0. In float32 it
        should not be below 1e-4.
      num_iterations: of Weiszfeld, all of them taken.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32.

    Raises:
      ValueError: the coefficients do not fit.

    Reference: Weiszfeld 1937; Pillutla et al. 2019, arXiv:1912.13445 (smoothed).
    """
    del base, key
    return run(
        geometric_median_form(num_iterations=num_iterations),
        stack,
        coefficients,
        groups=groups,
        options={"smoothing": smoothing},
    )


def krum(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    num_byzantine: int = 0,
    num_selected: int = 1,
) -> Params:
    """The expert nearest to its neighbours, or the mean of a few such.

    s_k = sum of ||theta_j - theta_k||^2 over the K - f - 2 nearest j, whole model
    theta = theta_k of the smallest s_k; for m > 1 the mean of the m smallest

    Equal scores are told apart by the sum over all j, then by the order of experts.
    Where experts did different tasks it takes one task and leaves out the others.

    Args:
      stack: tree of [K, ...], K >= 2 f + 3.
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; their values do not
        count.
      base: not used.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      num_byzantine: f, experts that may be anything.
      num_selected: m, of 1..K-f.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. Experts that are not
      selected may hold NaN.

    Raises:
      ValueError: K, f and m do not go together, or coefficients that do not fit.

    Reference: Blanchard et al. 2017, arXiv:1703.02757.
    """
    del base, key
    form = krum_form(num_byzantine=num_byzantine, num_selected=num_selected)
    return run(form, stack, coefficients, groups=groups)


def geometric_median_form(*, num_iterations: int = 32) -> Form:
    """The form of `geometric_median`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        place = _weiszfeld(
            facts["distances"],
            block.coefficients,
            options["smoothing"],
            num_iterations,
        )
        return contract(place, block.experts)

    passes = (Sum("distances", squared_distances),)
    return Form(apply, passes, scope="model")


def krum_form(*, num_byzantine: int = 0, num_selected: int = 1) -> Form:
    """The form of `krum`."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del options
        num_experts = len(block.experts)
        if num_byzantine < 0 or num_experts < 2 * num_byzantine + 3:
            raise ValueError(
                f"krum: num_byzantine={num_byzantine} needs at least "
                f"{2 * max(num_byzantine, 0) + 3} experts, {num_experts} given"
            )
        if not 1 <= num_selected <= num_experts - num_byzantine:
            raise ValueError(
                f"krum: num_selected={num_selected} is not of 1.."
                f"{num_experts - num_byzantine}"
            )
        near = jnp.sort(facts["distances"], axis=1)
        # The first is the expert's distance to itself.
        scores = jnp.sum(near[:, 1 : num_experts - num_byzantine - 1], axis=1)
        order = jnp.lexsort((jnp.sum(near, axis=1), scores))
        chosen = order[:num_selected]
        return jnp.sum(block.experts[chosen], axis=0) / num_selected

    passes = (Sum("distances", squared_distances),)
    return Form(apply, passes, scope="model")


def _weiszfeld(
    distances: jax.Array,
    coefficients: jax.Array,
    smoothing: jax.Array | float,
    num_iterations: int,
) -> jax.Array:
    """The geometric median as weights [K] of sum one, from squared distances [K, K]."""
    num_experts = len(distances)
    mean = jnp.sum(distances) / max(num_experts * (num_experts - 1), 1)
    # Distances in units of s: a model of any scale takes the same steps.
    scale, apart = roots(mean)
    distances = jnp.where(apart, distances / jnp.where(apart, scale, 1) ** 2, 0)
    total = jnp.sum(coefficients)
    votes = jnp.where(total == 0, 1, coefficients) / jnp.where(
        total == 0, num_experts, total
    )

    def step(_: int, place: jax.Array) -> jax.Array:
        towards = jnp.sum(distances * place[None, :], axis=1)
        square = towards - jnp.sum(place * towards) / 2
        weights = votes / jnp.sqrt(jnp.maximum(square, smoothing**2))
        return weights / jnp.sum(weights)

    return jax.lax.fori_loop(0, num_iterations, step, votes)


RECORDS: dict[str, Merge] = {
    "geometric_median": Merge(
        function=geometric_median,
        form=geometric_median_form,
        promises=frozenset(
            {"one_hot", "equal_experts", "permutation", "scale_free", "shift"}
        ),
        leafwise=False,
        reference="Pillutla et al. 2019, arXiv:1912.13445",
    ),
    "krum": Merge(
        function=krum,
        form=krum_form,
        promises=frozenset({"equal_experts", "permutation", "scale_free", "shift"}),
        leafwise=False,
        differentiable=False,
        experts=(3, None),
        weights=False,
        reference="Blanchard et al. 2017, arXiv:1703.02757",
    ),
}
