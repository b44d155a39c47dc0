"""Every method of a DFWE run on one split, on the same points and rows."""

from collections.abc import Mapping

import numpy as np

from fusion_jax.config import Config
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.search import soups
from fusion_jax.search.points import Points, make_points
from fusion_jax.systems.candidates import Scorer, make_scorer
from fusion_jax.systems.comparators import comparator_weights
from fusion_jax.systems.interpolation import expert_names, experts_alone, on_points
from fusion_jax.systems.multitask import MULTITASK
from fusion_jax.systems.problem import Problem
from fusion_jax.types import Params


def scorer_for(config: Config, problem: Problem, split: str, points: Points) -> Scorer:
    """The scorer of a split, evaluating as the config says."""
    return make_scorer(
        problem,
        split,
        points,
        tokens_per_batch=config.tokens_per_batch,
        way=config.search.way,
        chunk=config.search.chunk,
    )


def vertices(points: Points) -> np.ndarray:
    """[K, 1, K]: every point alone, where groups all agree."""
    rows = soups.one_hot(len(points.names))
    return np.repeat(rows[:, None], points.num_groups, axis=1)


def rival_weights(
    config: Config, dev: Scorer, on_dev: Mapping[str, Scores], seed: int
) -> dict[str, np.ndarray | None]:
    """Weights of the comparators, over the points of `dev`.

    Args:
      config: of the system.
      dev: scorer of the dev split, of all points.
      on_dev: point -> its dev scores.
      seed: of the random search.

    Returns:
      method -> [K], None for what was not asked for.
    """
    alone = experts_alone(dev.points)
    scorer = (
        dev if alone is dev.points else scorer_for(config, dev.problem, "dev", alone)
    )
    weights = comparator_weights(
        scorer,
        {name: on_dev[name] for name in alone.names},
        budget=config.search.budget,
        objective=config.search.objective,
        names=config.comparators,
        seed=seed,
    )
    return {
        name: None if row is None else on_points(dev.points, row)
        for name, row in weights.items()
    }


def all_scores(
    config: Config,
    scorer: Scorer,
    methods: Mapping[str, np.ndarray | None],
    multitask: Params | None,
) -> dict[str, Scores | None]:
    """Every method on one split, and every expert as 'expert:NAME'.

    Args:
      config: of the system.
      scorer: of the split.
      methods: method -> coefficients, None for what was not run.
      multitask: the multi-task model, which is no point.
    """
    points = scorer.points
    experts = {
        f"expert:{name}": row
        for name, row in zip(points.names, vertices(points), strict=True)
        if name in expert_names(points)
    }
    known = {name: row for name, row in methods.items() if row is not None}
    scores: dict[str, Scores | None] = dict.fromkeys(methods)
    scores |= scorer.scores({**known, **experts})
    if "logit_ensemble" in config.comparators:
        scores["logit_ensemble"] = scorer.ensemble(experts_alone(points))
    if multitask is not None:
        alone = make_points({MULTITASK: multitask})
        scores["multitask_finetune"] = scorer_for(
            config, scorer.problem, scorer.split, alone
        ).scores({MULTITASK: np.ones(1, np.float32)})[MULTITASK]
    return scores
