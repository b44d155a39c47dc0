"""evosax strategies behind four functions, with their known faults handled.

- A strategy ranks candidates; with ties its weights no longer sum to one and its
  spread collapses on a plateau. It is given ranks, ties broken by the key.
- A fitness that is not a number ranks last.
- One instance serves a whole run: each new one would compile anew.
- Populations must be even for some strategies: all are made even.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms import algorithms

from fusion_jax.search.space import Space

UNSOUND = {
    "xNES": "its covariance never turns, so it fails on rotated problems",
    "LM_MA_ES": "its populations become NaN",
    "NoiseReuseES": "it is made for unrolled inner problems",
    "SV_CMA_ES": "it moves several means at once and has no single answer",
    "SV_Open_ES": "it moves several means at once and has no single answer",
    "RandomSearch": "it samples without a mean; the comparator random_search does it",
}
"""evosax strategies that are refused, and why."""


class Strategy(NamedTuple):
    """A strategy at work.

    Attributes:
      algorithm: the evosax object, one a run.
      params: its hyperparameters.
      population: P, candidates in a generation.
      start: [D], where it begins.
      by_population: its state starts from an evaluated population.
    """

    algorithm: Any
    params: Any
    population: int
    start: jax.Array
    by_population: bool


def default_population(dimension: int) -> int:
    """4 + floor(3 ln D), made even (Hansen 2016, arXiv:1604.00772, eq. 48)."""
    size = 4 + int(3 * math.log(max(dimension, 1)))
    return size + size % 2


def make_strategy(name: str, space: Space, population: int | None = None) -> Strategy:
    """Builds a strategy for a genome space.

    Args:
      name: in evosax's table, CR_FM_NES or CMA_ES for instance.
      space: what is searched.
      population: candidates a generation; by default `default_population`, at least
        four, odd numbers are rounded up.

    Returns:
      The strategy.

    Raises:
      ValueError: the name is unknown or in `UNSOUND`.
    """
    known = sorted(set(algorithms) - set(UNSOUND))
    if name in UNSOUND:
        raise ValueError(
            f"strategy: '{name}' is refused: {UNSOUND[name]}; take one of "
            f"{', '.join(known)}"
        )
    if name not in algorithms:
        raise ValueError(
            f"strategy: '{name}' is unknown; take one of {', '.join(known)}"
        )
    size = max(4, population or default_population(space.dimension))
    size += size % 2
    algorithm = algorithms[name](
        population_size=size, solution=jnp.zeros(space.dimension)
    )
    params = algorithm.default_params
    if hasattr(params, "std_init"):
        params = params.replace(std_init=jnp.float32(space.spread))
    by_population = not hasattr(algorithm, "get_mean")
    return Strategy(algorithm, params, size, jnp.asarray(space.start), by_population)


def first_population(strategy: Strategy, spread: float, key: jax.Array) -> jax.Array:
    """[P, D] around the start, for strategies that begin with an evaluated one."""
    noise = jax.random.normal(key, (strategy.population, len(strategy.start)))
    return (strategy.start + spread * noise).at[0].set(strategy.start)


def init(
    strategy: Strategy,
    key: jax.Array,
    population: jax.Array | None = None,
    fitness: np.ndarray | None = None,
) -> Any:
    """The state before the first generation."""
    if strategy.by_population:
        assert population is not None and fitness is not None
        ranked = ranks(fitness, jax.random.fold_in(key, 1))
        return strategy.algorithm.init(key, population, ranked, strategy.params)
    return strategy.algorithm.init(key, strategy.start, strategy.params)


def ask(strategy: Strategy, key: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """[P, D] genomes of the next generation, and the state."""
    return strategy.algorithm.ask(key, state, strategy.params)


def tell(
    strategy: Strategy,
    key: jax.Array,
    population: jax.Array,
    fitness: np.ndarray,
    state: Any,
) -> Any:
    """The state after a generation with float64 fitness [P], lower is better."""
    ranked = ranks(fitness, jax.random.fold_in(key, 1))
    state, _ = strategy.algorithm.tell(key, population, ranked, state, strategy.params)
    return state


def mean(strategy: Strategy, state: Any) -> jax.Array:
    """[D], the genome that the strategy believes in."""
    if strategy.by_population:
        return strategy.algorithm.get_best_solution(state)
    return strategy.algorithm.get_mean(state)


def ranks(fitness: np.ndarray, key: jax.Array) -> jax.Array:
    """[P] float32 ranks 0 .. P-1, ties in an order drawn by the key, NaN last."""
    values = np.asarray(fitness, np.float64)
    values = np.where(np.isnan(values), np.inf, values)
    draw = np.asarray(jax.random.permutation(key, len(values)))
    order = np.lexsort((draw, values))
    place = np.empty(len(values), np.float32)
    place[order] = np.arange(len(values), dtype=np.float32)
    return jnp.asarray(place)


@functools.cache
def names() -> tuple[str, ...]:
    """Strategies that can be asked for."""
    return tuple(sorted(set(algorithms) - set(UNSOUND)))
