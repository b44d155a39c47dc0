"""The search: warm points first, then ask, evaluate, tell until the budget is spent."""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import atomic
from fusion_jax.search import strategy as strategies
from fusion_jax.search.space import Space

Evaluate = Callable[[np.ndarray], np.ndarray]
"""`[P, G, K] -> [P]` float64, lower is better."""


@dataclass
class SearchResult:
    """What a search leaves behind.

    Attributes:
      mean: [G, K] coefficients of the distribution's mean.
      evaluations: one dict a candidate: 'generation' (-1 for a warm point), 'index',
        'coefficients' [G, K], 'fitness', 'origin' ('warm' or 'search').
      means: [G, K] of the mean before the first generation and after each.
    """

    mean: np.ndarray
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    means: list[np.ndarray] = field(default_factory=list)

    def best(self, count: int = 1) -> list[np.ndarray]:
        """Coefficients of the best evaluated candidates, best first, no duplicates."""
        found: list[np.ndarray] = []
        for entry in sorted(self.evaluations, key=lambda e: e["fitness"]):
            row = np.asarray(entry["coefficients"], np.float32)
            if not any(np.array_equal(row, other) for other in found):
                found.append(row)
            if len(found) == count:
                break
        return found


def search(
    evaluate: Evaluate,
    space: Space,
    *,
    strategy: str = "CR_FM_NES",
    budget: int = 100,
    population: int | None = None,
    warm: Sequence[np.ndarray] = (),
    seed: int = 0,
    state_file: Path | None = None,
    on_generation: Callable[[SearchResult], None] | None = None,
) -> SearchResult:
    """Minimises a fitness over a genome space without gradients.

    Args:
      evaluate: `[P, G, K] -> [P]`; NaN counts as the worst.
      space: genome -> coefficients.
      strategy: name in evosax's table.
      budget: candidate evaluations in all, warm points included; never exceeded.
      population: candidates a generation, None for the strategy's default.
      warm: [G, K] coefficients to evaluate first: the uniform soup, each expert.
      seed: of all random numbers.
      state_file: saved after every generation; a search that finds one goes on from
        there and ends as if it had not been interrupted.
      on_generation: called after each generation, for a progress bar.

    Returns:
      The result.

    Raises:
      ValueError: an unknown strategy, or a budget below the warm points and one
        generation.
    """
    engine = strategies.make_strategy(strategy, space, population)
    if budget < len(warm) + engine.population:
        raise ValueError(
            f"budget: {budget} evaluations do not hold {len(warm)} warm points and one "
            f"generation of {engine.population}; give at least "
            f"{len(warm) + engine.population}"
        )
    key = jax.random.key(seed)
    result = SearchResult(mean=_coefficients(space, engine.start[None])[0])
    result.means.append(result.mean)
    if state_file is not None and state_file.exists():
        generation, state, result = _load(state_file, _template(engine, space, key))
    else:
        generation, state = _begin(evaluate, engine, space, key, warm, result)
    while len(result.evaluations) + engine.population <= budget:
        key_ask, key_tell = jax.random.split(jax.random.fold_in(key, generation))
        genomes, state = strategies.ask(engine, key_ask, state)
        rows = _coefficients(space, genomes)
        fitness = evaluate(rows)
        state = strategies.tell(engine, key_tell, genomes, fitness, state)
        _record(result, generation, rows, fitness, "search")
        result.mean = _coefficients(space, strategies.mean(engine, state)[None])[0]
        result.means.append(result.mean)
        generation += 1
        if state_file is not None:
            _save(state_file, generation, state, result)
        if on_generation is not None:
            on_generation(result)
    return result


def _begin(
    evaluate: Evaluate,
    engine: strategies.Strategy,
    space: Space,
    key: jax.Array,
    warm: Sequence[np.ndarray],
    result: SearchResult,
) -> tuple[int, Any]:
    """Warm points, and the first population of a strategy that starts from one."""
    if warm:
        rows = np.stack([np.asarray(w, np.float32) for w in warm])
        _record(result, -1, rows, evaluate(rows), "warm")
    if not engine.by_population:
        return 0, strategies.init(engine, key)
    genomes = strategies.first_population(engine, space.spread, _first_key(key))
    rows = _coefficients(space, genomes)
    fitness = evaluate(rows)
    _record(result, 0, rows, fitness, "search")
    return 1, strategies.init(engine, key, genomes, fitness)


def _template(engine: strategies.Strategy, space: Space, key: jax.Array) -> Any:
    """A state of the right structure, without an evaluation."""
    genomes = strategies.first_population(engine, space.spread, _first_key(key))
    return strategies.init(engine, key, genomes, np.zeros(engine.population))


def _first_key(key: jax.Array) -> jax.Array:
    return jax.random.fold_in(key, 2**20)  # beyond the number of any generation


def _coefficients(space: Space, genomes: jax.Array) -> np.ndarray:
    return np.asarray(space.coefficients(genomes), np.float32)


def _record(
    result: SearchResult,
    generation: int,
    rows: np.ndarray,
    fitness: np.ndarray,
    origin: str,
) -> None:
    for row, value in zip(rows, np.asarray(fitness, np.float64), strict=True):
        result.evaluations.append(
            {
                "generation": generation,
                "index": len(result.evaluations),
                "coefficients": row.tolist(),
                "fitness": float(value) if np.isfinite(value) else float("inf"),
                "origin": origin,
            }
        )


def _save(path: Path, generation: int, state: Any, result: SearchResult) -> None:
    buffer = io.BytesIO()
    record = json.dumps({"generation": generation, "evaluations": result.evaluations})
    arrays: dict[str, Any] = {"means": np.stack(result.means), "record": record}
    for i, leaf in enumerate(jax.tree.leaves(state)):
        arrays[f"leaf_{i}"] = np.asarray(_plain(leaf))
    np.savez(buffer, **arrays)
    atomic.write_bytes(path, buffer.getvalue())


def _load(path: Path, template: Any) -> tuple[int, Any, SearchResult]:
    try:
        with np.load(path) as file:
            record = json.loads(str(file["record"]))
            means = list(file["means"])
            saved = [file[f"leaf_{i}"] for i in range(len(jax.tree.leaves(template)))]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: not a search state of this strategy ({error}); delete the file "
            "to search anew"
        ) from error
    treedef = jax.tree.structure(template)
    state = treedef.unflatten(
        [
            _like(value, leaf)
            for value, leaf in zip(saved, jax.tree.leaves(template), strict=True)
        ]
    )
    return (
        record["generation"],
        state,
        SearchResult(mean=means[-1], evaluations=record["evaluations"], means=means),
    )


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(value: np.ndarray, leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(value))
    return jnp.asarray(value, getattr(leaf, "dtype", None))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
