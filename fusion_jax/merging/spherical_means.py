"""Mean directions of any number of experts: Multi-SLERP and the Karcher mean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import contract
from fusion_jax.merging.form import Block, Facts, Form, Options, Sum
from fusion_jax.merging.gram import directions, gram
from fusion_jax.merging.in_memory import run
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack

# A squared length below this share has no direction: it is rounding, in float32.
_NO_DIRECTION = 1e-6


def multislerp(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
) -> Params:
    """The mean direction of experts at their mean norm, leaf by leaf.

    theta = theta_0 + (sum_k c_k ||v_k||) m,  v_k = theta_k - theta_0
    m = sum_k c_k u_k / ||sum_k c_k u_k||,  u_k = v_k / ||v_k||; without a base
    theta_0 = 0.

    The published form goes from m along T = sum_k c_k (u_k - <u_k, m> m), which is
    always 0.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative. Their sum
        scales the norm.
      base: tree of [...], the pretrained model, or None.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. A leaf of norm 0 has no say
      in m. Where the directions cancel, ||sum_k c_k u_k|| <= 0.001 sum_k |c_k|, the
      result is theta_0 + sum_k c_k v_k.

    Raises:
      ValueError: coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: `multislerp` of Goddard et al. 2024, arXiv:2403.13257.
    """
    del key
    return run(multislerp_form(), stack, coefficients, base=base, groups=groups)


def karcher(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    max_iter: int = 10,
) -> Params:
    """The Karcher mean of directions at their mean norm, leaf by leaf.

    theta = theta_0 + (sum_k c_k ||v_k||) u,  v_k = theta_k - theta_0
    u = argmin sum_k c_k angle(u, u_k)^2 on the sphere, from u ~ sum_k c_k u_k by
    u <- cos|T| u + sin|T| T / |T|,  T = sum_k c_k w_k / sin(w_k) (u_k - cos(w_k) u)
    with w_k = angle(u, u_k) and sum_k c_k = 1 in T; without a base theta_0 = 0.

    Every iterate is a combination of the u_k, so it is found from their [K, K] inner
    products, whatever the size of the leaf.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative. Their sum
        scales the norm.
      base: tree of [...], the pretrained model, or None.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      max_iter: steps, all of them taken.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. A leaf of norm 0 has no say
      in u. No mean exists between antipodal experts: where directions cancel,
      ||sum_k c_k u_k|| <= 0.001 sum_k |c_k|, the result is theta_0 + sum_k c_k v_k, and
      an expert opposite to u, within a degree, pulls nowhere.

    Raises:
      ValueError: coefficients that do not fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Karcher 1977, doi:10.1002/cpa.3160300502.
    """
    del key
    return run(
        karcher_form(max_iter=max_iter), stack, coefficients, base=base, groups=groups
    )


def multislerp_form() -> Form:
    """The form of `multislerp`."""
    return _form(lambda start, cosines, weights: start)


def karcher_form(*, max_iter: int = 10) -> Form:
    """The form of `karcher`."""

    def mean(start: jax.Array, cosines: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(
            0, max_iter, lambda _, place: _step(place, cosines, weights), start
        )

    return _form(mean)


def _form(mean: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> Form:
    """Of `mean(start, cosines, weights)`: the direction as weights [K] of the u_k."""

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del options
        row = block.coefficients
        norms, cosines, present = directions(facts["gram"])
        weights = jnp.where(present, row, 0)
        total = jnp.sum(weights)
        bound = _NO_DIRECTION * jnp.square(jnp.sum(jnp.abs(weights)))
        defined = (_square(weights, cosines) > bound) & (jnp.square(total) > bound)
        # Any values will do where there is no direction, if their gradients are finite.
        cosines = jnp.where(defined, cosines, jnp.eye(len(row), dtype=cosines.dtype))
        weights = jnp.where(defined, weights / jnp.where(defined, total, 1), 1)
        place = mean(_unit(weights, cosines), cosines, weights)
        scale = jnp.sum(row * norms)
        on_sphere = scale * place / jnp.where(present, norms, 1)
        merged = contract(jnp.where(defined, on_sphere, row), block.deltas)
        return merged if block.base is None else block.base + merged

    return Form(apply, (Sum("gram", gram),))


def _square(place: jax.Array, cosines: jax.Array) -> jax.Array:
    """||sum_k place_k u_k||^2; products, because of the precision of a TPU's dot."""
    return jnp.sum(place[:, None] * cosines * place[None, :])


def _unit(place: jax.Array, cosines: jax.Array) -> jax.Array:
    square = _square(place, cosines)
    return place / jnp.sqrt(jnp.where(square > 0, square, 1))


def _step(place: jax.Array, cosines: jax.Array, weights: jax.Array) -> jax.Array:
    """One step along the sphere, [K] -> [K]."""
    cosine = jnp.clip(jnp.sum(cosines * place[None, :], axis=1), -1, 1)
    pull = weights * _angle_over_sine(cosine)
    tangent = pull - jnp.sum(pull * cosine) * place
    # A length of 0 has no gradient; near it, the series of cos and sin x / x.
    square = jnp.maximum(_square(tangent, cosines), 0)
    small = square < 1e-4
    length = jnp.sqrt(jnp.where(small, 1, square))
    along = jnp.where(small, 1 - square / 2 + square**2 / 24, jnp.cos(length))
    aside = jnp.where(small, 1 - square / 6 + square**2 / 120, jnp.sin(length) / length)
    return _unit(along * place + aside * tangent, cosines)


def _angle_over_sine(cosine: jax.Array) -> jax.Array:
    """arccos(x) / sqrt(1 - x^2); its series near 1, and 0 at its pole -1."""
    gap = 1 - cosine
    near, opposite = gap < 1e-2, gap > 2 - 1e-4
    inner = jnp.where(near | opposite, 0, cosine)
    ratio = jnp.arccos(inner) / jnp.sqrt(1 - jnp.square(inner))
    series = 1 + gap / 3 + 2 * jnp.square(gap) / 15
    return jnp.where(near, series, jnp.where(opposite, 0, ratio))


RECORDS: dict[str, Merge] = {
    "multislerp": Merge(
        function=multislerp,
        form=multislerp_form,
        accepts=frozenset({"base"}),
        promises=frozenset({"one_hot", "equal_experts", "permutation"}),
        reference="Goddard et al. 2024, arXiv:2403.13257",
    ),
    "karcher": Merge(
        function=karcher,
        form=karcher_form,
        accepts=frozenset({"base"}),
        promises=frozenset({"one_hot", "equal_experts", "permutation"}),
        reference="Karcher 1977, doi:10.1002/cpa.3160300502",
    ),
}
