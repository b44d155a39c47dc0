"""Scoring candidates of one problem: on dev for the search, once on test at the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import numpy as np

from fusion_jax.evaluation.objectives import OBJECTIVES
from fusion_jax.evaluation.scoring import Scores, score
from fusion_jax.search.ensemble import logit_ensemble
from fusion_jax.search.plane import Plane
from fusion_jax.search.points import Points
from fusion_jax.search.population import Population, make_population
from fusion_jax.search.racing import race, split_rows
from fusion_jax.systems.problem import Problem

REMEMBERED_BYTES = 2**28
"""Readouts kept so that a candidate that is asked for again costs nothing."""


@dataclass
class Scorer:
    """The points of a problem on one split.

    Attributes:
      problem: what is scored.
      split: 'dev' or 'test'.
      points: what is interpolated.
      population: the compiled evaluation.
      tokens_per_batch: as the config says.
      evaluated: candidates so far; one that was asked for again is counted once,
        except in races, which remember nothing.
    """

    problem: Problem
    split: str
    points: Points
    population: Population
    tokens_per_batch: int
    evaluated: int = 0
    _seen: dict[bytes, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    def readouts(self, coefficients: np.ndarray) -> dict[str, np.ndarray]:
        """Readouts of P candidates, [P, N, ...]; those seen before are remembered.

        Args:
          coefficients: [P, K], or [P, G, K] with groups.
        """
        keys = [row.tobytes() for row in self._per_group(coefficients)]
        new: dict[bytes, int] = {}
        for p, key in enumerate(keys):
            if key not in self._seen:
                new.setdefault(key, p)
        fresh: dict[bytes, dict[str, np.ndarray]] = {}
        if new:
            found = self.population(coefficients[list(new.values())])
            self.evaluated += len(new)
            self._remember(list(new), found)
            if len(new) == len(keys):
                return found
            fresh = {
                key: {name: x[row] for name, x in found.items()}
                for row, key in enumerate(new)
            }
        each = [fresh[key] if key in fresh else self._seen[key] for key in keys]
        return {name: np.stack([one[name] for one in each]) for name in each[0]}

    def _remember(self, keys: list[bytes], found: Mapping[str, np.ndarray]) -> None:
        size = sum(x.nbytes for x in found.values()) // len(keys)
        for row, key in enumerate(keys):
            if size * (len(self._seen) + 1) > REMEMBERED_BYTES:
                return
            # Copies: a view would keep the whole population's arrays.
            self._seen[key] = {name: x[row].copy() for name, x in found.items()}

    def scores(self, candidates: Mapping[str, np.ndarray]) -> dict[str, Scores]:
        """Scores of named candidates, each [K] or [G, K]."""
        if not candidates:
            return {}
        readouts = self.readouts(
            np.concatenate([self._per_group(c[None]) for c in candidates.values()])
        )
        return {
            name: self._score({key: x[p] for key, x in readouts.items()})
            for p, name in enumerate(candidates)
        }

    def ensemble(self, points: Points) -> Scores:
        """Scores of the mean of the points' logits."""
        batches = self.problem.batches(self.split, self.tokens_per_batch)
        readout = logit_ensemble(
            self.problem.model, self.problem.readout, points, batches
        )
        return self._score(readout)

    def plane_losses(self, plane: Plane) -> np.ndarray:
        """[M] losses at the best temperature, on a grid of points."""
        readouts = self.readouts(plane.coefficients)
        return OBJECTIVES["calibrated_loss"](
            readouts, self.problem.encoded[self.split], self.problem.metrics
        )

    def _per_group(self, coefficients: np.ndarray) -> np.ndarray:
        """[P, K] or [P, G, K] as [P, G, K] float32."""
        rows = np.asarray(coefficients, np.float32)
        if rows.ndim == 2:
            rows = rows[:, None]
        shape = (len(rows), self.points.num_groups, len(self.points.names))
        return np.broadcast_to(rows, shape)

    def _score(self, readout: Mapping[str, np.ndarray]) -> Scores:
        return score(readout, self.problem.encoded[self.split], self.problem.metrics)


def make_scorer(
    problem: Problem,
    split: str,
    points: Points,
    *,
    tokens_per_batch: int,
    way: str = "auto",
    chunk: int = 0,
) -> Scorer:
    """Prepares the scoring of candidates on a split.

    Args:
      problem: the target.
      split: 'dev' or 'test'.
      points: the points.
      tokens_per_batch: tokens of one batch, rows times padded length.
      way: of `search.population.WAYS`.
      chunk: candidates at once, 0 = by device and memory.
    """
    population = make_population(
        problem.model,
        problem.readout,
        points,
        problem.batches(split, tokens_per_batch),
        way=way,
        chunk=chunk or None,
        devices=_population_devices(),
    )
    return Scorer(problem, split, points, population, tokens_per_batch)


def make_fitness(
    scorer: Scorer, objective: str, *, racing: bool, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """`[P, G, K] -> [P]`, what the search minimises.

    Args:
      scorer: of the dev split; the test split is out of reach from here.
      objective: key of `evaluation.OBJECTIVES`.
      racing: stop candidates that are clearly behind on part of dev.
      seed: of the heats.

    Raises:
      ValueError: an unknown objective.
    """
    if objective not in OBJECTIVES:
        raise ValueError(
            f"search.objective: '{objective}' is unknown; there are "
            f"{', '.join(OBJECTIVES)}"
        )
    problem, encoded = scorer.problem, scorer.problem.encoded[scorer.split]

    def fitness_of(readouts: Mapping[str, np.ndarray]) -> np.ndarray:
        return OBJECTIVES[objective](readouts, encoded, problem.metrics)

    if not racing:
        return lambda rows: fitness_of(scorer.readouts(rows))
    heats = []
    for rows in split_rows(len(encoded), seed=seed):
        batches = problem.batches_of(encoded.take(rows), scorer.tokens_per_batch)
        heats.append(
            (
                rows,
                make_population(
                    problem.model,
                    problem.readout,
                    scorer.points,
                    batches,
                    way=scorer.population.plan.way,
                    chunk=scorer.population.plan.chunk,
                    devices=scorer.population.plan.devices,
                ),
            )
        )

    def raced(rows: np.ndarray) -> np.ndarray:
        scorer.evaluated += len(rows)
        return race(rows, heats, fitness_of).fitness

    return raced


def _population_devices() -> int:
    """All local accelerators; a CPU's virtual devices share the same cores."""
    return 1 if jax.default_backend() == "cpu" else jax.local_device_count()
