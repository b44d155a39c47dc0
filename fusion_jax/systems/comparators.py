"""What DFWE is compared with, on the same points and the same dev set."""

from collections.abc import Collection

import numpy as np

from fusion_jax.evaluation.objectives import OBJECTIVES
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.search import soups
from fusion_jax.search.gradient import EVALUATIONS_OF_A_STEP, gradient_weights
from fusion_jax.systems.candidates import Scorer
from fusion_jax.systems.experts import DIRECT


def comparator_weights(
    scorer: Scorer,
    vertices: dict[str, Scores],
    *,
    budget: int,
    objective: str,
    names: Collection[str],
    seed: int,
) -> dict[str, np.ndarray | None]:
    """Coefficients of every comparator that is a point between the experts.

    Args:
      scorer: of the dev split.
      vertices: expert name -> its dev scores, in the order of the points.
      budget: evaluations of the random search and cost of the gradient's steps, as
        many as DFWE's.
      objective: of the random search.
      names: of `systems.defaults.COMPARATORS`; others are None, not run.
      seed: of the random search.

    Returns:
      method -> [K], None for what was not asked for.
    """
    experts = list(vertices)
    count = len(experts)
    quality = np.array([score.mean for score in vertices.values()])
    one_hot = soups.one_hot(count)
    # Only where the direct model is among the experts are the others known to be one
    # source each; experts that were given have a history of their own.
    trained = DIRECT in experts
    sources = [k for k, name in enumerate(experts) if trained and name != DIRECT]
    best_source = max(sources, key=lambda k: quality[k], default=None)
    found: dict[str, np.ndarray | None] = {
        "uniform_soup": soups.uniform(count),
        "best_expert": one_hot[int(np.argmax(quality))],
        "direct_finetune": one_hot[experts.index(DIRECT)]
        if DIRECT in experts
        else None,
        "pretrain_finetune_best": None if best_source is None else one_hot[best_source],
        "greedy_soup": None,
        "loss_softmax": None,
        "random_search": None,
        "gradient_weights": None,
    }
    if "greedy_soup" in names:
        found["greedy_soup"], _ = soups.greedy(
            lambda c: scorer.scores({"soup": c})["soup"].mean, quality
        )
    if "loss_softmax" in names:
        losses = np.array([score.loss for score in vertices.values()])
        found["loss_softmax"] = soups.loss_softmax(losses)
    if "random_search" in names:
        rows = np.concatenate(
            [
                soups.uniform(count)[None],
                one_hot,
                soups.random_candidates(count, max(budget - count - 1, 1), seed),
            ]
        )[:budget]
        fitness = OBJECTIVES[objective](
            scorer.readouts(rows),
            scorer.problem.encoded[scorer.split],
            scorer.problem.metrics,
        )
        found["random_search"] = rows[int(np.argmin(fitness))]
    if "gradient_weights" in names:
        found["gradient_weights"] = gradient_weights(
            scorer.problem.model,
            scorer.problem.kind,
            scorer.points,
            scorer.problem.batches(scorer.split, scorer.tokens_per_batch),
            steps=max(budget // EVALUATIONS_OF_A_STEP, 1),
        ).coefficients
    return found
