"""Between the experts: the points, the search, the answer, and what it rests on."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.checkpoints.huggingface import hash_params
from fusion_jax.config import Config
from fusion_jax.data.encoded import hash_encoded
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.merging import weighted_average
from fusion_jax.processes import is_first
from fusion_jax.search import soups
from fusion_jax.search.answer import Answer, choose
from fusion_jax.search.loop import SearchResult, search
from fusion_jax.search.plane import gram, make_plane, project
from fusion_jax.search.points import Points, make_points
from fusion_jax.search.space import NEEDS_BASE, SPACES, Space, around_base
from fusion_jax.systems.candidates import Scorer, make_fitness
from fusion_jax.systems.experts import DIRECT
from fusion_jax.systems.multitask import MULTITASK
from fusion_jax.systems.workdir import content_hash
from fusion_jax.types import Params

BASE = "pretrained"
"""Name of the pretrained model with the target's head, where it is a point."""

BEST = tuple(f"best_{i}" for i in range(1, 6))
"""Names of the best candidates of a search, which its answer is chosen among."""

RESERVED_NAMES = frozenset({BASE, DIRECT, MULTITASK, "mean", "uniform", *BEST})
"""What no source may be called: experts and candidates share their tables."""


def refuse_reserved(names: Iterable[str], what: str) -> None:
    """Raises where a source or an expert has a name that stands for another model.

    Args:
      names: of sources or of experts that were given.
      what: says which, for the message.

    Raises:
      ValueError: all such names.
    """
    taken = sorted(set(names) & RESERVED_NAMES)
    if taken:
        raise ValueError(
            f"{what} {', '.join(taken)}: these names stand for other models in the "
            f"results (as do {', '.join(sorted(RESERVED_NAMES))}); rename them"
        )


def base_is_a_point(config: Config) -> bool:
    """Whether the config or its space wants the pretrained model among the points."""
    return bool(config.search.with_base) or config.search.space in NEEDS_BASE


def interpolated_points(
    config: Config, models: Mapping[str, Params], start: Params | None
) -> Points:
    """The experts, and the pretrained model where the config or the space wants it.

    Args:
      config: of the system.
      models: expert name -> parameters.
      start: theta_0 with the target's head; None where it is no point.

    Raises:
      TreeMismatch, ValueError: as `search.points.make_points`.
    """
    base = {BASE: start} if start is not None and base_is_a_point(config) else {}
    frozen = () if config.experts else tuple(config.target.frozen)
    return make_points({**base, **models}, shared=frozen, groups=groups_of(config))


def groups_of(config: Config) -> tuple[tuple[str, int], ...]:
    """The rules of the config's groups of leaves; one group where it has none."""
    groups = tuple((pattern, int(row)) for pattern, row in config.search.groups)
    return groups or ((".*", 0),)


def expert_names(points: Points) -> list[str]:
    """The points that are experts."""
    return [name for name in points.names if name != BASE]


def experts_alone(points: Points) -> Points:
    """The points without the base, which comparators do not use."""
    names = expert_names(points)
    if len(names) == len(points.names):
        return points
    keep = np.array([points.names.index(name) for name in names])
    stack = jax.tree.map(lambda x: x[keep], points.stack)
    return points._replace(names=tuple(names), stack=stack)


def on_points(points: Points, row: np.ndarray) -> np.ndarray:
    """Weights of the experts, [E], as weights of the points, [K]: 0 for the base."""
    full = np.zeros(len(points.names), np.float32)
    full[[k for k, name in enumerate(points.names) if name != BASE]] = row
    return full


def merged_model(points: Points, coefficients: np.ndarray) -> Params:
    """The whole tree of one candidate, [G, K]."""
    merged = weighted_average(
        points.stack, jnp.asarray(coefficients), groups=points.groups
    )
    return trees.combine(points.shared, merged)


def find_weights(config: Config, dev: Scorer, seed: int, folder: Path) -> SearchResult:
    """Warm points first (soup and vertices), then generations up to the budget.

    Args:
      config: of the system.
      dev: scorer of the dev split; test is out of reach from here.
      seed: of the strategy and the races.
      folder: where the state is saved after every generation.

    Raises:
      ValueError: unknown space, objective or strategy, or too small a budget.
    """
    options, points = config.search, dev.points
    warm = [
        np.repeat(row[None], points.num_groups, axis=0)
        for row in [_uniform(points), *soups.one_hot(len(points.names))]
    ]
    fitness = make_fitness(dev, options.objective, racing=options.race, seed=seed)
    name = content_hash(
        search=options.to_dict(),
        points=points.names,
        experts=hash_params(points.stack),
        shared=hash_params(points.shared),
        dev=hash_encoded(dev.problem.encoded[dev.split]),
        metrics=dev.problem.metrics,
        dtype=config.dtype,
        seed=seed,
    )
    return search(
        fitness,
        _space(options.space, points),
        strategy=options.strategy,
        budget=options.budget,
        population=options.population or None,
        warm=warm,
        seed=seed,
        # Others search anew: what they would find could be half of the first's.
        state_file=folder / f"search-{name}.npz" if is_first() else None,
    )


def choose_answer(
    dev: Scorer, found: SearchResult
) -> tuple[Answer, np.ndarray, dict[str, Scores]]:
    """The distribution's mean, unless another is better by a standard error.

    Returns:
      (answer, its [G, K] coefficients, name -> dev scores of all that were compared:
      'mean', 'best_1' to 'best_5', 'uniform' and every point).
    """
    points = dev.points
    vertices = dict(zip(points.names, soups.one_hot(len(points.names)), strict=True))
    best = dict(zip(BEST, found.best(len(BEST)), strict=False))
    candidates = {"mean": found.mean, **best, "uniform": _uniform(points), **vertices}
    scores = dev.scores(candidates)
    answer = choose(scores)
    chosen = np.broadcast_to(
        np.atleast_2d(candidates[answer.name]), (points.num_groups, len(points.names))
    )
    return answer, np.asarray(chosen, np.float32), scores


def leave_one_out(dev: Scorer, chosen: np.ndarray) -> dict[str, float | None]:
    """Dev score of the merge without each point, the other weights scaled up.

    None for a point that carries all the weight.
    """
    rows = {}
    for k, name in enumerate(dev.points.names):
        row = chosen.copy()
        row[:, k] = 0
        total = row.sum(axis=1, keepdims=True)
        if (np.abs(total) > 1e-3).all():
            rows[name] = row / total
    scores = dev.scores(rows)
    return {
        name: scores[name].mean if name in scores else None for name in dev.points.names
    }


def loss_plane(
    dev: Scorer, means: Sequence[np.ndarray], resolution: int
) -> dict[str, Any] | None:
    """Dev loss over the plane through the three experts with the largest weights.

    Args:
      dev: scorer of the dev split.
      means: [G, K] after each generation, the walk drawn on the plane.
      resolution: grid lines each way; 0 for no plane.

    Returns:
      'experts' (three indices), 'points' [M, 2], 'loss' [M], 'walk' [S, 2]; None
      without a resolution or with fewer than three experts.
    """
    points = dev.points
    if not resolution or len(expert_names(points)) < 3:
        return None
    walk = np.stack([np.mean(mean, axis=0) for mean in means])
    order = [int(k) for k in np.argsort(-np.abs(walk[-1])) if points.names[k] != BASE]
    corners = (order[0], order[1], order[2])
    plane = make_plane(corners, len(points.names), resolution=resolution)
    return {
        "experts": list(corners),
        "points": plane.points.tolist(),
        "loss": dev.plane_losses(plane).tolist(),
        "walk": project(walk, gram(points.stack), corners).tolist(),
    }


def _space(name: str, points: Points) -> Space:
    if name not in SPACES:
        raise ValueError(
            f"search.space: '{name}' is unknown; there are {', '.join(SPACES)}"
        )
    if name in NEEDS_BASE:
        return around_base(SPACES[name](len(points.names) - 1, points.num_groups))
    return SPACES[name](len(points.names), points.num_groups)


def _uniform(points: Points) -> np.ndarray:
    """The uniform soup of the experts; the base has no part in it."""
    return on_points(points, soups.uniform(len(expert_names(points))))
